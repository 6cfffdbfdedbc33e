# SPDX-License-Identifier: GPL-2.0-or-later
"""What one develops and tests with: emulator, scripted caller, timeline, demo, doctor."""
