# SPDX-License-Identifier: GPL-2.0-or-later
"""Digits that the caller presses, and digits that a tool asks for."""
