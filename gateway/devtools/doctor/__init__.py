# SPDX-License-Identifier: GPL-2.0-or-later
"""``gateway doctor``: check host, pjsua2 build, realtime servers and trunks.

Nothing is changed and no call placed. ``library`` asks pjsua2 in a process of its own, ``machine``
the kernel; ``network`` binds ports for a moment and opens a session at each realtime server;
``trunks`` resolves each trunk, sends OPTIONS and logs in.
"""

__all__ = ["command"]
