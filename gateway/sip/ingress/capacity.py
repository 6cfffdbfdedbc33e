# SPDX-License-Identifier: GPL-2.0-or-later
"""What the process can carry: 503 where it is full or drains, repeated INVITEs, file descriptors.

* The INVITE that finds every call of the library taken, or no handle for its sockets: pjsua would
  say 486. RFC 3261 section 21.5.4 wants 503, so that a proxy or trunk tries another gateway.
  A socket that was closed holds its place in pjlib's queue of handles for half a second more: where
  calls come and go faster than that, the queue is full long before the calls are, and pjlib ends
  the process. Even a call that is refused has had two sockets, for RTP and RTCP.
* An INVITE that comes once more after its 200 was acknowledged meets no transaction any more.
  RFC 6026 section 7.1 lets it be absorbed for 64 * T1; without that it would be a second call.
* OPTIONS while the gateway drains, or lacks a server or a database that calls need: pjsua would say
  200, and a dispatcher would go on sending calls. While every call is taken it stays 200: one that
  took a full gateway out would lose it for longer than it is full, and single calls that find
  no place are refused one by one."""

from __future__ import annotations

import os
import resource
import time
from collections import OrderedDict, deque
from collections.abc import Callable

from gateway.sip.messages.headers import headers_of
from gateway.sip.signalling import DROP, PASS, Decision, Received

HANDLE_REST_SECONDS = 0.6
"""pjlib's ``PJ_IOQUEUE_KEY_FREE_DELAY`` is 0.5 s; the rest is for a thread that comes late."""

REPEAT_SECONDS = 32.0
"""64 * T1 (RFC 6026 section 7.1)."""

MAX_REMEMBERED = 16_384
"""INVITEs remembered for being repeated: 500 a second. Beyond, the oldest is forgotten first."""

_SOCKETS_PER_CALL = 2


class Arrivals:
    """Remembers new INVITEs, before a call is made of them.

    Args:
        handles: sockets that the library's media queue holds.
        capacity: calls that the library carries.
    """

    def __init__(self, handles: int, capacity: int) -> None:
        # Calls that hold sockets now were up when the rest began, or have come since.
        self._most = max(1, handles // _SOCKETS_PER_CALL - capacity - 1)
        self._admitted: deque[float] = deque()
        self._seen: OrderedDict[str, float] = OrderedDict()

    def exhausted(self, now: float) -> bool:
        """Return whether one more call might find no handle for its sockets. ``now`` in s."""
        while self._admitted and self._admitted[0] <= now - HANDLE_REST_SECONDS:
            self._admitted.popleft()
        return len(self._admitted) >= self._most

    def admit(self, now: float) -> None:
        """Count a call that is about to be made. ``now`` in s."""
        self._admitted.append(now)

    def is_repeat(self, identity: str, now: float) -> bool:
        """Return whether this INVITE came before (RFC 6026 section 7.1); remember it if not."""
        while self._seen:
            oldest, at = next(iter(self._seen.items()))
            if at > now - REPEAT_SECONDS and len(self._seen) < MAX_REMEMBERED:
                break
            del self._seen[oldest]
        if identity in self._seen:
            return True
        self._seen[identity] = now
        return False


class CapacityCheck:
    """Answers new INVITEs while ``full()``, and OPTIONS while ``unready()``.

    Made and used on the SIP thread.

    Args:
        full: whether the library has no call left; asked for each new INVITE.
        unready: whether no new call is wanted; asked for each OPTIONS outside of dialogs.
        arrivals: what the INVITEs before say about the next one.
        retry_after: seconds for the Retry-After header.
        on_refused: told the message of each refused INVITE.
    """

    def __init__(
        self,
        full: Callable[[], bool],
        unready: Callable[[], bool],
        arrivals: Arrivals,
        retry_after: int,
        on_refused: Callable[[str], None],
    ) -> None:
        self._full = full
        self._unready = unready
        self._arrivals = arrivals
        self._on_refused = on_refused
        self._unavailable = Decision(503, (("Retry-After", str(retry_after)),))

    def decide(self, received: Received) -> Decision:
        """Decide on a new request outside of dialogs: pass, drop, or refuse with 503."""
        if received.method == "INVITE":
            return self._on_invite(received.message.decode("utf-8", "replace"))
        if received.method == "OPTIONS" and self._unready():
            return self._unavailable
        return PASS

    def _on_invite(self, message: str) -> Decision:
        """Drop a repeated INVITE; refuse a new one with 503 where no call is free."""
        now = time.monotonic()
        identity = _identity_of(message)
        if identity and self._arrivals.is_repeat(identity, now):
            return DROP
        if not self._full() and not self._arrivals.exhausted(now):
            self._arrivals.admit(now)
            return PASS
        self._on_refused(message)
        return self._unavailable


def _identity_of(message: str) -> str:
    """Return what identifies the copies of one INVITE; empty when that cannot be read."""
    headers = headers_of(message)
    if any(name not in headers for name in ("via", "from", "call-id", "cseq")):
        return ""
    return "\n".join(headers[name][0] for name in ("via", "from", "call-id", "cseq"))


DESCRIPTORS_PER_CALL = 3
"""RTP, RTCP, and the session's WebSocket."""

OWN_DESCRIPTORS = 128
"""What the process has without a call: libraries, log, listeners, wake-up pipes, records; and
sockets of calls that have ended and linger for a moment."""


SPARE_DESCRIPTORS = 24
"""Kept free of calls: for sessions of calls that have just begun, and for who asks how we are."""


def descriptors_needed(calls: int) -> int:
    """Return the file descriptors needed for so many calls at a time."""
    return OWN_DESCRIPTORS + DESCRIPTORS_PER_CALL * calls


def descriptor_limits() -> tuple[int, int]:
    """Soft and hard limit of open files (``ulimit -Sn``, ``-Hn``)."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    return _counted(soft), _counted(hard)


def raise_descriptor_limit(calls: int) -> bool:
    """Raise the soft limit to what ``calls`` need; False when the hard limit is below that."""
    need = descriptors_needed(calls)
    soft, hard = descriptor_limits()
    if soft < need:
        top = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
        resource.setrlimit(resource.RLIMIT_NOFILE, (min(need, hard), top))
    return hard >= need


def descriptors_left(count: int) -> bool:
    """Return whether the process can open so many more descriptors, by opening them."""
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
