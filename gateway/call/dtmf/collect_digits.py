"""Digits that the model asks for with ``collect_digits``: told to it, and not to the conversation.

Time begins when what the model says has been heard, and again with each key.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from gateway.call.conversation.control import ConversationControl
from gateway.call.outputs import Output
from gateway.call.tools.arguments import collect_wanted

LONGEST_SECONDS = 120.0
"""So long at most a first key is waited for while the model talks."""


class DigitCollection:
    """Waits for keys while :attr:`wants_digits`. Every method takes the time (s)."""

    def __init__(
        self,
        talk: ConversationControl,
        collected: Callable[[Mapping[str, Any], float], list[Output]],
    ) -> None:
        self._talk = talk
        self._told = collected
        self._digits = ""
        self._most = 0
        self._terminator = ""
        self._seconds = 0.0
        self._until = 0.0
        self.deadline: float | None = None
        """When :meth:`tick` is due (s)."""
        talk.collecting = self

    @property
    def wants_digits(self) -> bool:
        """Whether keys are for the model that asked for them."""
        return self.deadline is not None

    def begin(self, arguments: str, now: float) -> None:
        """The model asks, by these arguments (JSON text). Raises ToolCallError."""
        wanted = collect_wanted(arguments, self._talk.plan.collect_digits)
        self._digits = ""
        self._most, self._terminator, self._seconds = wanted
        self.deadline = now + self._seconds
        self._until = now + LONGEST_SECONDS

    def key(self, digit: str, now: float) -> list[Output]:
        """The caller pressed a key."""
        if digit == self._terminator:
            return self._done("terminator", now)
        self._digits += digit
        if len(self._digits) >= self._most:
            return self._done("full", now)
        self.deadline = now + self._seconds
        return []

    def tick(self, now: float) -> list[Output]:
        """The time for a key may be over."""
        if self.deadline is None or now < self.deadline:
            return []
        if self._talk.speaking and not self._digits and now < self._until:
            self.deadline = now + self._seconds  # the caller is still being told what to do
            return []
        return self._done("timeout", now)

    def _done(self, ended_by: str, now: float) -> list[Output]:
        self.deadline = None
        private = self._talk.plan.collect_digits.private
        shown = "*" * len(self._digits) if private else self._digits
        if private:
            self._talk.timeline.record.private.add(self._digits)
        note = self._talk.timeline.note(
            now, "dtmf_collected", "info", digits=shown, ended_by=ended_by
        )
        return [note, *self._told({"digits": self._digits, "ended_by": ended_by}, now)]
