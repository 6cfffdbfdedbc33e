# SPDX-License-Identifier: GPL-2.0-or-later
"""Limits of one source: rates, log lines, bans after repeated refusals, connections (TCP, TLS).

Pure: time comes in. A connection costs us a descriptor, and its owner little. Those of trunks are
theirs for as long as they like; a stranger has a few, and has to say something soon and often.
"""

from __future__ import annotations

from collections import Counter, OrderedDict
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from gateway.addresses import counted
from gateway.measures import BoundedDict
from gateway.sip import BanPolicy

MAX_SOURCES = 4096
"""Sources remembered, and as many banned; the one not heard of for longest is forgotten first."""


class TokenBucket:
    """Token bucket: full with ``burst`` tokens at first, refilled by ``rate`` tokens a second up to
    that."""

    __slots__ = ("_at", "_left", "burst", "rate")

    def __init__(self, rate: float, burst: float) -> None:
        self.rate = rate
        self.burst = burst
        self._left = float(burst)
        self._at = 0.0

    def take(self, now: float) -> bool:
        """Take a token; return whether there was one. ``now`` in s."""
        self._left = min(self.burst, self._left + (now - self._at) * self.rate)
        self._at = now
        if self._left < 1:
            return False
        self._left -= 1
        return True


class SourceBuckets:
    """A token bucket for each source; the one asked for longest ago is forgotten beyond
    ``max_sources``."""

    def __init__(self, max_sources: int = MAX_SOURCES) -> None:
        self._buckets: BoundedDict[str, TokenBucket] = BoundedDict(max_sources)

    def __len__(self) -> int:
        return len(self._buckets)

    def take(self, source: str, rate: float, burst: float, now: float) -> bool:
        """Take a token of ``source``; return whether there was one. A ``rate`` of 0 is no limit.
        Rate (tokens a second) and burst count when the source is new; ``now`` in s."""
        if not rate:
            return True
        bucket = self._buckets.get(source) or TokenBucket(rate, burst)
        self._buckets[source] = bucket
        return bucket.take(now)


REPEAT_SECONDS = 60.0
"""A source that is refused on and on has a line with a count this often."""

MAX_REFUSALS = 1024
"""Pairs of rule and source that are counted apart; beyond, the oldest has its line early."""

LINES_PER_SECOND = 5.0
LINES_AT_ONCE = 50
"""Lines in all. A flood from made-up addresses gets one line with its sum each minute instead."""

Write = Callable[[Mapping[str, Any]], None]


@dataclass(slots=True)
class _Logged:
    """When a pair of rule and source had its last line in the log, and refusals since."""

    since: float
    repeated: int = 0


MAX_INVITES = 1000
"""Refused INVITEs that ``gateway explain`` knows."""


class RefusalLog:
    """Counts refused requests by rule, and logs them at a limited rate.

    Lives on the SIP thread; ``by_rule`` may be read on others.

    Args:
        write: writes one log line with these fields.
    """

    def __init__(self, write: Write) -> None:
        self._write = write
        self._logged: OrderedDict[tuple[str, str], _Logged] = OrderedDict()
        self._lines = TokenBucket(LINES_PER_SECOND, LINES_AT_ONCE)
        self._unlogged = 0
        self._unlogged_since = 0.0
        self.by_rule: Counter[str] = Counter()
        """Requests refused since the start, by rule."""
        self.unanswered = 0
        """Of these, how many got no answer because their source had too many already."""

        self.invites: BoundedDict[str, Mapping[str, Any]] = BoundedDict(MAX_INVITES)
        """The last INVITEs that were refused, by SIP Call-ID; these have no record."""

    def note(self, rule: str, source: str, now: float, **fields: Any) -> None:
        """Count a refusal of ``source`` (an address without port) by ``rule``, and log it with
        ``fields`` if this pair of rule and source has no line yet; repeats are counted for a later
        line."""
        self.by_rule[rule] += 1
        key = (rule, source)
        entry = self._logged.get(key)
        if entry is not None:
            entry.repeated += 1
            return
        if len(self._logged) >= MAX_REFUSALS:
            self._release(now)
        self._logged[key] = _Logged(now)
        self._say({"rule": rule, "source": source, **fields}, now)

    def tick(self, now: float) -> None:
        """Log counts of repeated refusals, each pair of rule and source once in ``REPEAT_SECONDS``,
        and the sum of those beyond the rate of lines. To be called about once a second."""
        while self._logged and next(iter(self._logged.values())).since <= now - REPEAT_SECONDS:
            self._release(now)
        if self._unlogged and now - self._unlogged_since >= REPEAT_SECONDS:
            self._write({"rule": "several", "source": "many", "repeated": self._unlogged})
            self._unlogged = 0

    def _release(self, now: float) -> None:
        """Log how often the oldest pair of rule and source was repeated, if it was. If it has been
        counted for ``REPEAT_SECONDS``, its count starts anew; else it is forgotten."""
        (rule, source), entry = self._logged.popitem(last=False)
        if not entry.repeated:
            return
        seconds = round(now - entry.since)
        line = {"rule": rule, "source": source, "repeated": entry.repeated, "seconds": seconds}
        self._say(line, now)
        if entry.since <= now - REPEAT_SECONDS:
            self._logged[rule, source] = _Logged(now)  # it goes on: the next line is a minute away

    def _say(self, fields: Mapping[str, Any], now: float) -> None:
        """Write a log line; beyond ``LINES_PER_SECOND`` it is only counted, for the line "several"
        of :meth:`tick`."""
        if self._lines.take(now):
            self._write(fields)
            return
        if not self._unlogged:
            self._unlogged_since = now
        self._unlogged += 1


KNOWN_SECONDS = 86400.0
"""How long what anybody could send in its name does not count against a source that has proved
who it is."""

_SCANNERS = (
    "friendly-scanner",
    "friendly-request",
    "sipvicious",
    "sipcli",
    "sip-scan",
    "sipscan",
    "sipptk",
    "sundayddr",
    "iwar",
    "vaxsipuseragent",
    "vaxipuseragent",
    "siparmyknife",
    "sivus",
    "pplsip",
)
"""How tools that look for telephone systems to misuse begin their User-Agent, in lower case."""


def is_scanner(user_agent: str) -> bool:
    """Return whether a User-Agent begins as that of a known scanner, which gets no answer."""
    return user_agent.strip().lower().startswith(_SCANNERS)


@dataclass(slots=True)
class _Count:
    """Refusals of a source since the window began."""

    since: float
    total: int = 0
    proven: int = 0
    """Those that nobody else can have sent in the source's name."""


@dataclass(slots=True)
class _Ban:
    """A ban until a time (s); ``proven``: nobody else can have caused it."""

    until: float
    proven: bool
    dropped: int = 0


class Bans:
    """Bans of sources, as :func:`gateway.addresses.counted` has them, after repeated refusals.

    Lives on the SIP thread; :meth:`as_json` may be asked on any.
    """

    def __init__(self, policy: BanPolicy) -> None:
        self._policy = policy
        self._refused: BoundedDict[str, _Count] = BoundedDict(MAX_SOURCES)
        self._banned: BoundedDict[str, _Ban] = BoundedDict(MAX_SOURCES)
        self._known: BoundedDict[str, float] = BoundedDict(MAX_SOURCES)

    def drops(self, source: str, now: float, *, may_prove: bool = False) -> bool:
        """Return whether a request of ``source`` gets no answer because of a ban; count it if so.

        Args:
            may_prove: the request can prove who sent it. Then only bans apply that rest on refusals
                proven to be the source's own: others can write its address into UDP packets.
        """
        source = counted(source)
        ban = self._banned.get(source)
        if ban is None:
            return False
        if now >= ban.until:
            del self._banned[source]
            return False
        if may_prove and not ban.proven:
            return False
        ban.dropped += 1
        return True

    def __contains__(self, source: str) -> bool:
        """Return whether a source is banned, whoever caused the ban."""
        return counted(source) in self._banned

    def refused(self, source: str, now: float, *, surely: bool, connected: bool = False) -> bool:
        """Count a refusal; return whether it bans the source, which was not banned before.

        ``after`` refusals within ``window`` s do; as many proven ones (``surely`` or ``connected``)
        make a ban proven, also one in force. Nothing with ``after`` 0, and nothing unproven while a
        ban is in force.

        Args:
            surely: the request is proven to be the source's. Refusals that others could have caused
                do not count against a source that has proven itself lately.
            connected: it came over TCP or TLS, so from that host or its NAT.
        """
        if not self._policy.after:
            return False
        source = counted(source)
        known = self._known.get(source)
        if not surely and known is not None and now - known < KNOWN_SECONDS:
            return False
        ban = self._banned.get(source)
        if ban is not None and (ban.proven or not (surely or connected)):
            return False
        count = self._refused.pop(source, None)
        if count is None or now - count.since > self._policy.window:
            count = _Count(now)
        count.total += 1
        count.proven += surely or connected
        proven = count.proven >= self._policy.after
        if proven or (count.total >= self._policy.after and ban is None):
            self._banned[source] = _Ban(now + self._policy.seconds, proven)
        if not proven:
            self._refused[source] = count
        return ban is None and source in self._banned

    def take(self, found: Iterable[tuple[str, float, bool]], now: float) -> None:
        """Ban sources that other processes have banned, for at most the policy's seconds.

        Not one that proved a password here within ``KNOWN_SECONDS``, unless the ban is proven; and
        not one whose ban here is in force, unless only the new one is proven.

        Args:
            found: IP literal, seconds left, and whether nobody else can have caused it.
        """
        for named, seconds, proven in found:
            source = counted(named)
            ban = self._banned.get(source)
            since = self._known.get(source)
            known = since is not None and now - since < KNOWN_SECONDS
            in_force = ban is not None and now < ban.until
            if (known and not proven) or (ban is not None and in_force and ban.proven >= proven):
                continue
            self._banned[source] = _Ban(now + min(seconds, self._policy.seconds), proven)

    def proved(self, source: str, now: float) -> None:
        """Note that a source has proved a password: its refusals are forgotten, and unproven ones
        do not count for ``KNOWN_SECONDS``. A ban in force stays."""
        source = counted(source)
        self._refused.pop(source, None)
        self._known[source] = now

    def tick(self, now: float) -> None:
        """Drop bans that have expired. To be called about once a second."""
        # Bans of other processes are shorter, so the oldest need not be the first to expire.
        for source in [source for source, ban in self._banned.items() if ban.until <= now]:
            del self._banned[source]

    def as_json(self, now: float) -> list[dict[str, Any]]:
        """Return the bans in force, the latest first: source, seconds left, and requests that got
        no answer."""
        return [
            {"source": source, "seconds": round(ban.until - now, 1), "dropped": ban.dropped}
            for source, ban in reversed(tuple(self._banned.items()))
            if ban.until > now
        ]


PER_SOURCE = 20
"""Connections of one stranger; several telephones behind one address have one each."""

OF_STRANGERS = 500
"""Connections of all strangers together."""

OF_A_PEER = 200
"""Connections of one address of a trunk. One more closes the one that was silent for longest: of a
peer that was restarted, the old ones may be open here for hours."""

FIRST_MESSAGE_SECONDS = 10.0
"""How long a stranger may be silent at first. A telephone connects because it has something to
say."""

IDLE_SECONDS = 300.0
"""How long a stranger may be silent between calls."""


@dataclass(slots=True)
class _Open:
    """An accepted connection, and when it was opened or last heard."""

    source: str
    since: float
    stranger: bool
    heard: bool = False


class Connections:
    """Counts and limits accepted TCP and TLS connections by their source. On the SIP thread.

    Args:
        is_trunk: whether an address is one that calls of a trunk come from.
        is_welcome: whether requests of a stranger at this address can lead to anything.
        has_call: whether a stranger's address has a call in progress.
    """

    def __init__(
        self,
        is_trunk: Callable[[str], bool],
        is_welcome: Callable[[str], bool],
        has_call: Callable[[str], bool],
    ) -> None:
        self._is_trunk = is_trunk
        self._is_welcome = is_welcome
        self._has_call = has_call
        self._open: dict[int, _Open] = {}
        self._strangers: Counter[str] = Counter()
        self._of_peers: Counter[str] = Counter()

    def opened(self, connection: int, source: str, now: float) -> str:
        """Count an accepted connection; return why it is to be closed at once, or "". A trunk's
        address is always taken; a stranger if welcome, up to ``PER_SOURCE``, and ``OF_STRANGERS``
        together."""
        self.closed(connection)
        if self._is_trunk(source):
            self._open[connection] = _Open(source, now, stranger=False)
            self._of_peers[source] += 1
            return ""
        if not self._is_welcome(source):
            return "connection of a stranger"
        source = counted(source)
        if self._strangers[source] >= PER_SOURCE:
            return f"more than {PER_SOURCE} connections"
        if self._strangers.total() >= OF_STRANGERS:
            return f"more than {OF_STRANGERS} connections of strangers"
        self._open[connection] = _Open(source, now, stranger=True)
        self._strangers[source] += 1
        return ""

    def heard(self, connection: int, now: float) -> None:
        """Note an accepted message on a connection: its idle time begins anew, and is longer from
        now on."""
        found = self._open.get(connection)
        if found is not None:
            found.heard, found.since = True, now

    def closed(self, connection: int) -> None:
        """Forget a connection that was closed; one that is not known is ignored."""
        found = self._open.pop(connection, None)
        if found is not None:
            counts = self._strangers if found.stranger else self._of_peers
            counts[found.source] -= 1
            if not counts[found.source]:
                del counts[found.source]

    def surplus_connection(self, source: str) -> int | None:
        """Return the connection of a trunk's address that is to make room, the one silent for
        longest; None while it has at most ``OF_A_PEER``."""
        if self._of_peers[source] <= OF_A_PEER:
            return None
        own = (one for one in self._open.items() if one[1].source == source)
        return min(own, key=lambda one: one[1].since)[0]

    def overdue(self, now: float) -> list[tuple[int, str, str]]:
        """Return the connections that are to be closed: handle, source and rule. Those of
        strangers, without a call, silent for ``IDLE_SECONDS``, or ``FIRST_MESSAGE_SECONDS`` before
        the first message."""
        late = []
        for connection, one in self._open.items():
            limit = IDLE_SECONDS if one.heard else FIRST_MESSAGE_SECONDS
            if one.stranger and now - one.since >= limit and not self._has_call(one.source):
                rule = "idle connection" if one.heard else "connection without a message"
                late.append((connection, one.source, rule))
        return late
