# SPDX-License-Identifier: GPL-2.0-or-later
"""Decision core: the state machine of a call, as pure code. No sockets, threads or clock."""
