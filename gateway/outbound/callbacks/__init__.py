# SPDX-License-Identifier: GPL-2.0-or-later
"""Callbacks that the model has scheduled: kept in a file, sent to a URL, placed when due."""
