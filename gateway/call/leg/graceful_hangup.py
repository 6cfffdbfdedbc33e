# SPDX-License-Identifier: GPL-2.0-or-later
"""Hang up after playout: end the call when its last words have been played."""

from __future__ import annotations

from dataclasses import dataclass

from gateway.call.ending import EndReason

LINGER_SECONDS = 0.2
"""From the last frame handed to RTP to the BYE: a telephone plays some 60 ms later than it
receives, and throws away what it still holds when the BYE comes."""


@dataclass(slots=True)
class _LastWords:
    why: EndReason
    deadline: float
    call_id: str
    awaited: bool
    counted_ms: int = 0
    """Queued audio that the deadline allows for."""
    playing: bool = False
    """Audio was queued when :meth:`HangupAfterPlayout.over` was last asked."""
    heard_until: float = 0.0
    """Until when a sound in place of the words is played (s)."""
    said: bool = False
    """All of it was handed to RTP; the deadline is when the telephone has played it."""


class HangupAfterPlayout:
    """Knows whether the audio that is playing is the last of the call.

    Args:
        seconds: how long to wait for last words that do not come.
    """

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds
        self._words: _LastWords | None = None

    @property
    def deadline(self) -> float | None:
        """When last words are cut (s); None while there are none."""
        return None if self._words is None else self._words.deadline

    def said(self, call_id: str, now: float) -> None:
        """Hang up after the goodbye that the model has said, by the tool call ``call_id``."""
        self._words = _LastWords(
            EndReason.AGENT_HANGUP, now + self._seconds, call_id, awaited=False
        )

    def asked_for(self, now: float) -> None:
        """Hang up after the goodbye that was requested for the model's ``end_call``."""
        self._words = _LastWords(EndReason.AGENT_HANGUP, now + self._seconds, "", awaited=True)

    def last(self, why: EndReason, now: float) -> None:
        """Hang up for ``why`` after the requested words; barge-in does not cancel this."""
        self._words = _LastWords(why, now + self._seconds, "", awaited=True)

    def replaced(self, until: float) -> None:
        """Play a sound until then (s) in place of last words that did not come."""
        if self._words is not None:
            self._words.heard_until = self._words.deadline = until

    def session_over(self, now: float) -> None:
        """Hang up after the audio of a session that closed normally."""
        if self._words is None or self._words.awaited:
            self._words = _LastWords(
                EndReason.SESSION_CLOSED, now + self._seconds, "", awaited=False
            )

    @property
    def being_said(self) -> bool:
        """Return whether all closing audio is queued, so that the session may close now."""
        return self._words is not None and not self._words.awaited

    def take_back(self) -> str | None:
        """Cancel the hang-up because of barge-in; return the tool call to answer, or empty.

        None when there was no hang-up to cancel.
        """
        words = self._words
        if words is None or words.why is not EndReason.AGENT_HANGUP:
            return None
        self._words = None
        return words.call_id

    def over(self, now: float, *, queued_ms: int, responding: bool) -> EndReason | None:
        """Return why the call ends now; None: it does not.

        ``queued_ms``: audio put into the queue since it was last empty, 0 when it is;
        ``responding``: a response runs or is to come.
        """
        words = self._words
        if words is None:
            return None
        if words.awaited and not responding:
            words.awaited = False
        if queued_ms:
            words.playing = True
            if queued_ms > words.counted_ms:
                # What has come is heard to its end; the wait is for words that do not come.
                words.counted_ms = queued_ms
                words.deadline = max(words.deadline, now + queued_ms / 1000 + self._seconds)
        elif words.playing and not words.awaited:
            words.playing = False
            words.deadline = min(words.deadline, now + LINGER_SECONDS)
            words.said = True
        silent = not (queued_ms or words.awaited or words.said or now < words.heard_until)
        return words.why if silent or now >= words.deadline else None
