"""The last words of a call: it ends when they have been heard."""

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
    """Something of it was still to be handed to RTP when last looked at."""
    heard_until: float = 0.0
    """A sound in place of the words is heard so long."""
    said: bool = False
    """All of it has been since; the deadline is when the telephone has played it."""


class HangupAfterPlayout:
    """Knows whether what is playing is the last of the call.

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
        """The model has said goodbye and asked to hang up, by the tool call ``call_id``."""
        self._words = _LastWords(
            EndReason.AGENT_HANGUP, now + self._seconds, call_id, awaited=False
        )

    def asked_for(self, now: float) -> None:
        """The model has asked to hang up; a goodbye was asked for, and its tool call answered."""
        self._words = _LastWords(EndReason.AGENT_HANGUP, now + self._seconds, "", awaited=True)

    def last(self, why: EndReason, now: float) -> None:
        """We end the call; the words for it were asked for, and nobody takes them back."""
        self._words = _LastWords(why, now + self._seconds, "", awaited=True)

    def replaced(self, until: float) -> None:
        """The last words did not come; a sound is heard in their place until then (s)."""
        if self._words is not None:
            self._words.heard_until = self._words.deadline = until

    def session_over(self, now: float) -> None:
        """The session closed as it should; what came of it is still to be heard."""
        if self._words is None or self._words.awaited:
            self._words = _LastWords(
                EndReason.SESSION_CLOSED, now + self._seconds, "", awaited=False
            )

    @property
    def being_said(self) -> bool:
        """All of a goodbye is here: it needs no session any more."""
        return self._words is not None and not self._words.awaited

    def take_back(self) -> str | None:
        """The caller speaks up, the call goes on: the tool call to answer, or empty.

        None when there was no goodbye to take back.
        """
        words = self._words
        if words is None or words.why is not EndReason.AGENT_HANGUP:
            return None
        self._words = None
        return words.call_id

    def over(self, now: float, *, queued_ms: int, responding: bool) -> EndReason | None:
        """Why the call ends now, if it does.

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
