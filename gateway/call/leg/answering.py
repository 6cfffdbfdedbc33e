# SPDX-License-Identifier: GPL-2.0-or-later
"""Answer policy of an inbound call, and what its caller hears before the model is ready.

As a rule it rings until the model is ready. A route may let the caller hear something meanwhile: as
early media (183, RFC 3960), or in a call that is answered at once.
"""

from __future__ import annotations

from gateway.call.outputs import Answer, Output, PlaySound, Progress, Ring
from gateway.call.plan import AnswerPlan
from gateway.call.record import CallTimeline


class AnswerPolicy:
    """Decides when a call is answered. Times in s, of the machine's clock."""

    def __init__(self, plan: AnswerPlan, timeline: CallTimeline) -> None:
        self._plan = plan
        self._timeline = timeline
        self._began: float | None = None
        self.waiting = False
        """The model is ready; a sound is to be played to its end first."""
        self.confirmed = False
        """The ACK came before the model."""

    @property
    def at_once(self) -> bool:
        """Return whether the 200 is sent before the model is ready."""
        return self._plan.mode == "immediate"

    def begin(self, now: float) -> list[Output]:
        """Ring, send early media, or answer at once."""
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
        """Note the ACK of a 200 that was sent at once: from now on the caller hears the sound."""
        self.confirmed, self._began = True, now

    def heard_out(self, now: float) -> bool:
        """Return whether the sound was played to its end; ask when the model is ready."""
        at = self.deadline
        self.waiting = self._plan.play_to_end_seconds > 0 and (at is None or now < at)
        return not self.waiting

    @property
    def deadline(self) -> float | None:
        """When the sound has been played once (s); None while nobody hears it."""
        return None if self._began is None else self._began + self._plan.play_to_end_seconds

    def answer(self, now: float) -> list[Output]:
        """Stop the sound, and answer if that was not done before."""
        quiet: list[Output] = [PlaySound("")] if self._plan.mode != "when_ready" else []
        if self.at_once:
            return quiet
        self._timeline.record.times.answered = self._timeline.ms(now)
        return [*quiet, Answer(), self._timeline.note(now, "answered", "info")]

    def _sound(self) -> list[Output]:
        return [PlaySound(self._plan.sound)] if self._plan.sound else []
