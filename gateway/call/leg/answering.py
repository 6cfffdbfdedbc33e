"""How a call that came in is answered, and what its caller hears before the model is there.

As a rule it rings until the model is ready. A route may let the caller hear something meanwhile: as
early media (183, RFC 3960), or in a call that is answered at once.
"""

from __future__ import annotations

from gateway.call.outputs import Answer, Output, PlaySound, Progress, Ring
from gateway.call.plan import AnswerPlan
from gateway.call.record import CallTimeline


class AnswerPolicy:
    """From the INVITE to the model's turn. Times in s, of the machine's clock."""

    def __init__(self, plan: AnswerPlan, timeline: CallTimeline) -> None:
        self._plan = plan
        self._timeline = timeline
        self._began: float | None = None
        self.waiting = False
        """The model is ready, and the caller is still to hear something out."""
        self.confirmed = False
        """The ACK came before the model."""

    @property
    def at_once(self) -> bool:
        """The 200 goes out before the model is ready."""
        return self._plan.mode == "immediate"

    def begin(self, now: float) -> list[Output]:
        """The INVITE has a route."""
        times = self._timeline.record.times
        if self.at_once:
            times.answered = self._timeline.ms(now)
            return [Answer(), self._timeline.note(now, "answered", "info"), *self._sound()]
        times.ringing = self._timeline.ms(now)
        note = self._timeline.note(now, "ringing", "info")
        if self._plan.mode != "early_media":
            return [note, Ring()]
        self._began = now
        return [note, Progress(), *self._sound()]

    def on_confirmed(self, now: float) -> None:
        """The ACK of a 200 that was sent at once: now the caller hears."""
        self.confirmed, self._began = True, now

    def heard_out(self, now: float) -> bool:
        """Whether what is to be heard to its end has been; asked when the model is ready."""
        at = self.deadline
        self.waiting = self._plan.play_to_end_seconds > 0 and (at is None or now < at)
        return not self.waiting

    @property
    def deadline(self) -> float | None:
        """When the sound will have been heard once; None while nobody hears it."""
        return None if self._began is None else self._began + self._plan.play_to_end_seconds

    def answer(self, now: float) -> list[Output]:
        """The model's turn has come: answer, if that has not been done."""
        quiet: list[Output] = [PlaySound("")] if self._plan.mode != "when_ready" else []
        if self.at_once:
            return quiet
        self._timeline.record.times.answered = self._timeline.ms(now)
        return [*quiet, Answer(), self._timeline.note(now, "answered", "info")]

    def _sound(self) -> list[Output]:
        return [PlaySound(self._plan.sound)] if self._plan.sound else []
