# SPDX-License-Identifier: GPL-2.0-or-later
"""What the caller hears of each item, to the frame; barge-in and truncation."""
