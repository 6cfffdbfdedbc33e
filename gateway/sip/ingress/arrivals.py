"""What the INVITEs of the last moments mean for the next one. Pure: the time is passed in.

Two things that pjsip leaves to its user:

* A socket that was closed holds its place in pjlib's queue of handles for half a second more. Where
  calls come and go faster than that, the queue is full long before the calls are, and pjlib ends
  the process (or, compiled without assertions, the call). Even a call that is refused has had two
  sockets, for RTP and RTCP.
* An INVITE that comes once more after its 200 was acknowledged meets no transaction any more.
  RFC 6026 section 7.1 lets it be absorbed for 64 * T1; without that it would be a second call.
"""

from __future__ import annotations

from collections import OrderedDict, deque

HANDLE_REST_SECONDS = 0.6
"""pjlib's ``PJ_IOQUEUE_KEY_FREE_DELAY`` is 0.5 s; the rest is for a thread that comes late."""

REPEAT_SECONDS = 32.0
"""64 * T1 (RFC 6026 section 7.1)."""

MAX_REMEMBERED = 16_384
"""INVITEs remembered for being repeated: 500 a second. Beyond, the oldest is forgotten first."""

_SOCKETS_PER_CALL = 2


class Arrivals:
    """New INVITEs as they come, before any call is made of them.

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
        """Whether one more call might find no handle for its sockets."""
        while self._admitted and self._admitted[0] <= now - HANDLE_REST_SECONDS:
            self._admitted.popleft()
        return len(self._admitted) >= self._most

    def admit(self, now: float) -> None:
        """A call is made of this one."""
        self._admitted.append(now)

    def is_repeat(self, identity: str, now: float) -> bool:
        """Whether this INVITE has been here already; remembers it when not."""
        while self._seen:
            oldest, at = next(iter(self._seen.items()))
            if at > now - REPEAT_SECONDS and len(self._seen) < MAX_REMEMBERED:
                break
            del self._seen[oldest]
        if identity in self._seen:
            return True
        self._seen[identity] = now
        return False
