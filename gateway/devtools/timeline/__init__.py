# SPDX-License-Identifier: GPL-2.0-or-later
"""The record of a call, made readable: as text and as a picture."""
