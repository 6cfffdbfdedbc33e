# SPDX-License-Identifier: GPL-2.0-or-later
"""The control socket: commands to a running gateway, from its own user on its own machine."""
