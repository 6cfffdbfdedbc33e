# SPDX-License-Identifier: GPL-2.0-or-later
"""Refusals in the log: each source and rule is said once, and then counted."""

from __future__ import annotations

from collections import Counter, OrderedDict
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from gateway.sip.ingress.rate_limits import TokenBucket

REPEAT_SECONDS = 60.0
"""A source that is refused on and on has a line with a count this often."""

MAX_SOURCES = 1024
"""Pairs of rule and source that are counted apart; beyond, the oldest has its line early."""

LINES_PER_SECOND = 5.0
LINES_AT_ONCE = 50
"""Lines in all. A flood from made-up addresses gets one line with its sum each minute instead."""

Write = Callable[[Mapping[str, Any]], None]


@dataclass(slots=True)
class _Told:
    since: float
    repeated: int = 0


class RefusalLog:
    """Counts refusals by rule and says them. Lives on the SIP thread; ``by_rule`` may be read.

    Args:
        write: writes one line with these fields.
    """

    def __init__(self, write: Write) -> None:
        self._write = write
        self._told: OrderedDict[tuple[str, str], _Told] = OrderedDict()
        self._lines: TokenBucket | None = None
        self._unsaid = 0
        self._unsaid_since = 0.0
        self.by_rule: Counter[str] = Counter()
        """Requests refused since the start, by rule."""
        self.unanswered = 0
        """Of these, how many got no answer because their source had too many already."""

    def note(self, rule: str, source: str, now: float, **fields: Any) -> None:
        """One refusal of ``source`` (an address without port) by ``rule``."""
        self.by_rule[rule] += 1
        key = (rule, source)
        told = self._told.get(key)
        if told is not None:
            told.repeated += 1
            return
        if len(self._told) >= MAX_SOURCES:
            self._let_go(now)
        self._told[key] = _Told(now)
        self._say({"rule": rule, "source": source, **fields}, now)

    def tick(self, now: float) -> None:
        """Say what has been counted for long enough. To be called about once a second."""
        while self._told and next(iter(self._told.values())).since <= now - REPEAT_SECONDS:
            self._let_go(now)
        if self._unsaid and now - self._unsaid_since >= REPEAT_SECONDS:
            self._write({"rule": "several", "source": "many", "repeated": self._unsaid})
            self._unsaid = 0

    def _let_go(self, now: float) -> None:
        (rule, source), told = self._told.popitem(last=False)
        if not told.repeated:
            return
        seconds = round(now - told.since)
        line = {"rule": rule, "source": source, "repeated": told.repeated, "seconds": seconds}
        self._say(line, now)
        if told.since <= now - REPEAT_SECONDS:
            self._told[rule, source] = _Told(now)  # it goes on: the next line is a minute away

    def _say(self, fields: Mapping[str, Any], now: float) -> None:
        if self._lines is None:
            self._lines = TokenBucket(LINES_PER_SECOND, LINES_AT_ONCE, now)
        if self._lines.take(now):
            self._write(fields)
            return
        if not self._unsaid:
            self._unsaid_since = now
        self._unsaid += 1
