"""When the caller speaks up, or presses a key: whether the agent falls silent."""

from __future__ import annotations

from gateway.call.outputs import Output
from gateway.call.talk import Talk
from gateway.realtime.events import SpeechStarted


class Interruptions:
    """Decides about barge-in. Every method takes the time (s) and returns outputs."""

    def __init__(self, talk: Talk) -> None:
        self._talk = talk

    def speech(self, event: SpeechStarted, now: float) -> list[Output]:
        """The server hears the caller speak."""
        # Silence first: a log that takes its time must not let the agent talk on.
        cut = self._talk.interrupt("speech", now) if self._talk.plan.server_interrupts else []
        return [*cut, self._talk.journal.note(now, "caller_starts", audio_ms=event.audio_start_ms)]

    def key(self, now: float) -> list[Output]:
        """The caller pressed a key."""
        return self._talk.interrupt("digit", now) if self._talk.plan.digits.interrupt else []
