# SPDX-License-Identifier: GPL-2.0-or-later
"""TCP and TLS connections that others open: who may have how many, and for how long. Pure.

A connection costs a descriptor, and none of its owner's but one. Those of trunks are theirs for as
long as they like; a stranger has a few, has to say something soon, and again and again.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass

PER_SOURCE = 20
"""Connections of one stranger; several telephones behind one address have one each."""

OF_STRANGERS = 500
"""Connections of all strangers together."""

FIRST_MESSAGE_SECONDS = 10.0
"""How long a stranger may be silent at first. A telephone connects because it has something to
say."""

IDLE_SECONDS = 300.0
"""How long a stranger may be silent between calls."""


@dataclass(slots=True)
class _Open:
    source: str
    since: float
    stranger: bool
    heard: bool = False


class Connections:
    """Used on the SIP thread.

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

    def opened(self, connection: int, source: str, now: float) -> str:
        """A connection has been accepted; returns why it is to be closed at once, or ""."""
        self.closed(connection)
        if self._is_trunk(source):
            self._open[connection] = _Open(source, now, stranger=False)
            return ""
        if not self._is_welcome(source):
            return "connection of a stranger"
        if self._strangers[source] >= PER_SOURCE:
            return f"more than {PER_SOURCE} connections"
        if self._strangers.total() >= OF_STRANGERS:
            return f"more than {OF_STRANGERS} connections of strangers"
        self._open[connection] = _Open(source, now, stranger=True)
        self._strangers[source] += 1
        return ""

    def heard(self, connection: int, now: float) -> None:
        """A message came by it that was let in."""
        found = self._open.get(connection)
        if found is not None:
            found.heard, found.since = True, now

    def closed(self, connection: int) -> None:
        """It is gone."""
        found = self._open.pop(connection, None)
        if found is not None and found.stranger:
            self._strangers[found.source] -= 1
            if not self._strangers[found.source]:
                del self._strangers[found.source]

    def overdue(self, now: float) -> list[tuple[int, str, str]]:
        """Those to be closed for their silence: connection, source and rule."""
        late = []
        for connection, one in self._open.items():
            limit = IDLE_SECONDS if one.heard else FIRST_MESSAGE_SECONDS
            if one.stranger and now - one.since >= limit and not self._has_call(one.source):
                rule = "idle connection" if one.heard else "connection without a message"
                late.append((connection, one.source, rule))
        return late
