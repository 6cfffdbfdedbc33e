# SPDX-License-Identifier: GPL-2.0-or-later
"""Records of calls: one JSON file each, and one file of session events."""
