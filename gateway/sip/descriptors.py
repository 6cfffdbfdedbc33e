# SPDX-License-Identifier: GPL-2.0-or-later
"""File descriptors: what calls need of them, and the process's limit."""

from __future__ import annotations

import os
import resource

PER_CALL = 3
"""RTP, RTCP, and the session's WebSocket."""

OWN = 128
"""What the process has without a call: libraries, log, listeners, wake-up pipes, records; and
sockets of calls that have ended and linger for a moment."""


SPARE = 24
"""Kept free of calls: for sessions of calls that have just begun, and for who asks how we are."""


def needed(calls: int) -> int:
    """Descriptors for so many calls at a time."""
    return OWN + PER_CALL * calls


def limits() -> tuple[int, int]:
    """Soft and hard limit of open files (``ulimit -Sn``, ``-Hn``)."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    return _counted(soft), _counted(hard)


def allow(calls: int) -> bool:
    """Raise the soft limit to what ``calls`` need; False when the hard limit is below that."""
    need = needed(calls)
    soft, hard = limits()
    if soft < need:
        top = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
        resource.setrlimit(resource.RLIMIT_NOFILE, (min(need, hard), top))
    return hard >= need


def are_left(count: int) -> bool:
    """Whether the process may open so many more, by trying."""
    opened: list[int] = []
    try:
        for _ in range(count):
            opened.append(os.dup(0 if not opened else opened[0]))
    except OSError:
        return False
    finally:
        for descriptor in opened:
            os.close(descriptor)
    return True


def _counted(limit: int) -> int:
    return 2**31 - 1 if limit == resource.RLIM_INFINITY else limit
