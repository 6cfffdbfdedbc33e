"""Rules of a conversation: each watches for one thing and acts through ``ConversationControl``.

A rule about a conversation (a budget, a caller who says nothing, words that must not be said) is a
part of its own: it sees what happens after the conversation itself has taken it, keeps its own
deadline, and never calls another part.
"""

from __future__ import annotations

from typing import Protocol

from gateway.call.inputs import Input
from gateway.call.outputs import Output


class ConversationRule(Protocol):
    """Looks on at one conversation. Methods take the time (s) and return what to do."""

    def on(self, input: Input, now: float) -> list[Output]:
        """Something happened. Audio deltas are not shown: they come fifty times a second."""
        ...

    def tick(self, now: float) -> list[Output]:
        """A deadline may have come."""
        ...

    @property
    def deadline(self) -> float | None:
        """When :meth:`tick` is due next (s); None while nothing waits for time."""
        ...
