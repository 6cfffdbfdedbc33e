"""``gateway doctor``: what this machine and this pjsua2 can carry, and what to mend.

Nothing is changed, no session is opened and no call placed. ``library`` asks pjsua2 in a process of
its own, ``machine`` the kernel, ``network`` binds ports for a moment and connects once to each
realtime server.
"""

__all__ = ["command"]
