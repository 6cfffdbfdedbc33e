# SPDX-License-Identifier: GPL-2.0-or-later
"""Grouping of DTMF digits (RFC 4733) into runs, by terminator, length or pause."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum


class EndedBy(StrEnum):
    """Why a run of digits is complete."""

    TERMINATOR = "terminator"
    TIMEOUT = "timeout"
    FULL = "full"
    CALL_END = "call_end"


@dataclass(frozen=True, slots=True)
class Collected:
    """A complete run of digits, without its terminator."""

    digits: str
    ended_by: EndedBy


class DigitCollector:
    """Gathers digits until the terminator, the largest number, or a pause.

    Args:
        inter_digit_seconds: the pause after which the run is complete.
        terminator: the key that completes a run and is not part of it; empty for none. Pressed
            alone, it is itself the message.
        max_digits: the run is complete when it has this many.
    """

    def __init__(self, inter_digit_seconds: float, terminator: str, max_digits: int) -> None:
        self._pause = inter_digit_seconds
        self._terminator = terminator
        self._max = max_digits
        self._digits = ""
        self.deadline: float | None = None
        """When the run is complete for want of another key; None while there is none."""

    def press(self, digit: str, now: float) -> Collected | None:
        """One key at time ``now`` (s); returns the run that it completed, if it did.

        A run whose pause is over by then has to be taken with :meth:`expire` first.
        """
        if digit == self._terminator:
            return self._take(EndedBy.TERMINATOR, alone=digit)
        self._digits += digit
        if len(self._digits) >= self._max:
            return self._take(EndedBy.FULL)
        self.deadline = now + self._pause
        return None

    def expire(self, now: float) -> Collected | None:
        """Return the run, if its pause is over at ``now`` (s)."""
        if self.deadline is None or now < self.deadline:
            return None
        return self._take(EndedBy.TIMEOUT)

    def abandon(self) -> Collected | None:
        """Return the run that the end of the call cut short, if there is one."""
        return self._take(EndedBy.CALL_END) if self._digits else None

    def _take(self, ended_by: EndedBy, alone: str = "") -> Collected:
        collected = Collected(self._digits or alone, ended_by)
        self._digits, self.deadline = "", None
        return collected
