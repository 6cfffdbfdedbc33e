"""Figures of speed, memory and endurance: ``make bench`` and ``python -m tests.load.soak``."""
