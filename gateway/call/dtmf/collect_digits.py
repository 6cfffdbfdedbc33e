# SPDX-License-Identifier: GPL-2.0-or-later
"""Tool ``collect_digits``: collect DTMF digits for the model, as the result of its tool call.

The timeout begins when the model's words have been played, and again with each digit.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from gateway.call.conversation.control import ConversationControl
from gateway.call.outputs import Output
from gateway.call.tools.arguments import collect_wanted

LONGEST_SECONDS = 120.0
"""The longest wait (s) for a first digit while the model talks."""


class DigitCollection:
    """Takes digits while :attr:`wants_digits`. Every method takes the time (s)."""

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
        """Return whether digits are being collected."""
        return self.deadline is not None

    def begin(self, arguments: str, now: float) -> None:
        """Start, with these arguments of the model (JSON text). Raises ToolCallError."""
        wanted = collect_wanted(arguments, self._talk.plan.collect_digits)
        self._digits = ""
        self._most, self._terminator, self._seconds = wanted
        self.deadline = now + self._seconds
        self._until = now + LONGEST_SECONDS

    def key(self, digit: str, now: float) -> list[Output]:
        """Take a digit."""
        if digit == self._terminator:
            return self._done("terminator", now)
        self._digits += digit
        if len(self._digits) >= self._most:
            return self._done("full", now)
        self.deadline = now + self._seconds
        return []

    def tick(self, now: float) -> list[Output]:
        """End the collection when the time for a digit is over."""
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
