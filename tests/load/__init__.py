# SPDX-License-Identifier: GPL-2.0-or-later
"""Figures of speed, memory and endurance: ``make bench`` and ``python -m tests.load.soak``."""
