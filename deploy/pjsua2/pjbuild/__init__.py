# SPDX-License-Identifier: GPL-2.0-or-later
"""Builds a pjsua2 wheel from pjproject's source for the interpreter that runs it (Linux).

Only the standard library is used: the build runs before anything else is installed.
"""
