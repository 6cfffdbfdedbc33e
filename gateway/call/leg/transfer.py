"""One transfer, from the request to its outcome.

Three ways: *blind*, the caller's side is asked to call the target (REFER, RFC 3515) and says what
became of it; *attended*, we call the target first, and the caller's side takes that call over
(Replaces, RFC 3891 and RFC 5589 section 7); *bridge*, we call the target and join both.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from gateway.call.ending import EndReason
from gateway.call.inputs import (
    BLegAnswered,
    BLegEnded,
    BLegRinging,
    ReferProgress,
)
from gateway.call.leg.outcomes import Outcome, outcome_of
from gateway.call.outputs import BridgeLegs, DialBLeg, HangUpBLeg, Output, PlaySound, Refer, Send
from gateway.call.plan import TransferPlan
from gateway.call.record import TransferAttempt
from gateway.call.timeline import CallTimeline
from gateway.call.tools.arguments import Target
from gateway.realtime.commands import CreateItem

TAKE_OVER_SECONDS = 20.0
"""The caller's side has answered callee and knows where to: its INVITE needs no ringing."""

Happening = ReferProgress | BLegRinging | BLegAnswered | BLegEnded

_NEXT = "The caller is back with you: tell them, and offer something else."


class Transfer:
    """Told what happens, it says what to do; the caller waits with a sound meanwhile."""

    def __init__(self, target: Target, plan: TransferPlan, timeline: CallTimeline) -> None:
        self.deadline: float | None = None
        self.away = True
        """Caller and model do not hear each other."""
        self.begun = False
        self.joined = False
        self.over: EndReason | None = None
        """Set when the call ends by it."""
        self.detail = ""
        self.result: Mapping[str, Any] | None = None
        """For the model, once the transfer has failed."""
        self._target = target
        self._plan = plan
        self._timeline = timeline
        self._taken = False
        self._ringing = False
        self._replacing = False
        self._second = False
        self._attempt = TransferAttempt(0.0, target.destination.name, target.uri, "")

    @property
    def name(self) -> str:
        """The destination's."""
        return self._target.destination.name

    @property
    def released(self) -> bool:
        """The caller's side may let go of our call: it has taken the target, or is about to."""
        return self._taken and not self._ringing

    def begin(self, now: float) -> list[Output]:
        """What was to be said first has been heard."""
        destination, uri = self._target.destination, self._target.uri
        self._attempt = TransferAttempt(
            self._timeline.ms(now), destination.name, uri, destination.mode
        )
        self.begun = True
        self._timeline.record.transfers.append(self._attempt)
        self.deadline = now + destination.ring_timeout
        note = self._timeline.note(
            now, "transfer", "info", destination=self.name, to=uri, mode=destination.mode
        )
        by_pattern = destination.allowed_numbers is not None
        if destination.mode == "blind":
            return [note, PlaySound(self._plan.sound), Refer(uri, by_pattern=by_pattern)]
        self._second = True
        return [
            note,
            PlaySound(self._plan.sound),
            DialBLeg(uri, destination.trunk, by_pattern=by_pattern),
        ]

    def on(self, happening: Happening, now: float) -> list[Output]:
        """Something was said of the transfer, or happened to the second leg."""
        match happening:
            case ReferProgress():
                return self._on_told(happening, now)
            case BLegRinging(code):
                return self._on_ringing(code, now)
            case BLegAnswered():
                return self._on_second_answered(now)
            case BLegEnded():
                return self._on_second_ended(happening, now)

    def tick(self, now: float) -> list[Output]:
        """The deadline has come."""
        if self.deadline is None or now < self.deadline:
            return []
        if self._replacing or (self._taken and not self._ringing):
            return self._fail(Outcome.UNKNOWN, 0, now)
        if not self._second and not self._taken:
            return self._fail(Outcome.FAILED, 408, now)
        return self._fail(Outcome.NO_ANSWER, 0, now)

    def abandon(self, now: float) -> list[Output]:
        """The call is over, or was joined and is now: let go of the second leg."""
        if self._attempt.outcome in ("", Outcome.RINGING):
            self._close(Outcome.UNKNOWN if self._taken else Outcome.FAILED, 0, now)
        second, self._second = self._second, False
        return [HangUpBLeg()] if second else []

    def taken_over(self, now: float) -> None:
        """The caller's side has let go of our call, without a word of what it made of it."""
        self._close(Outcome.UNKNOWN, 0, now)

    def _on_told(self, told: ReferProgress, now: float) -> list[Output]:
        if self._second and not self._replacing:
            return []  # of an earlier REFER
        if told.code >= 300:
            outcome = outcome_of(told.code) if self._taken or told.by_us else Outcome.REFUSED
            return self._fail(outcome, told.code, now)
        self._taken = True
        if told.code >= 200:
            self._close(Outcome.ANSWERED, told.code, now)
            self.over, self.detail = EndReason.TRANSFERRED, f"to {self.name}"
            return [self._timeline.note(now, "transfer_answered", "info", code=told.code)]
        if told.final:
            return self._fail(Outcome.UNKNOWN, told.code, now)
        if told.code >= 180 and not self._replacing:
            return self._on_ringing(told.code, now)
        return [self._timeline.note(now, "transfer_progress", code=told.code, phrase=told.phrase)]

    def _on_ringing(self, code: int, now: float) -> list[Output]:
        if self._ringing:
            return []
        self._ringing = True
        self._attempt.outcome = Outcome.RINGING
        text = f"The transfer to {self.name} is ringing."
        content = [{"type": "input_text", "text": text}]
        item = {"type": "message", "role": "system", "content": content}
        note = self._timeline.note(now, "transfer_ringing", "info", code=code)
        return [note, Send(CreateItem(item))]

    def _on_second_answered(self, now: float) -> list[Output]:
        if not self._second or self._replacing or self.joined:
            return []
        note = self._timeline.note(now, "transfer_picked_up", "info", destination=self.name)
        if self._target.destination.mode == "attended":
            self._replacing = True
            self._ringing = False
            self.deadline = now + TAKE_OVER_SECONDS
            return [note, Refer(replaces=True)]
        self.joined, self.away, self.deadline = True, False, None
        self._close(Outcome.ANSWERED, 200, now)
        return [note, PlaySound(""), BridgeLegs(self._plan.listen)]

    def _on_second_ended(self, ended: BLegEnded, now: float) -> list[Output]:
        if not self._second:
            return []
        self._second = False
        if self.joined:
            self.over, self.detail = (
                EndReason.BRIDGE_ENDED,
                f"{self.name}: {ended.code} {ended.phrase}",
            )
            return [self._timeline.note(now, "bridge_ended", "info")]
        if self._replacing:
            # What replaces a call ends it (RFC 3891 section 3); NOTIFY has the last word.
            return [self._timeline.note(now, "transfer_replaced", code=ended.code)]
        if 200 <= ended.code < 300:
            return self._fail(Outcome.FAILED, ended.code, now)
        return self._fail(outcome_of(ended.code), ended.code, now)

    def _fail(self, outcome: Outcome, code: int, now: float) -> list[Output]:
        self._close(outcome, code, now)
        self.away, self.deadline = False, None
        result: dict[str, Any] = {"status": outcome.value, "destination": self.name}
        if code:
            result["sip_code"] = code
        self.result = {**result, "next": _NEXT}
        note = self._timeline.note(now, "transfer_failed", "info", outcome=outcome.value, code=code)
        return [note, PlaySound(""), *self.abandon(now)]

    def _close(self, outcome: Outcome, code: int, now: float) -> None:
        self._attempt.outcome = outcome.value
        self._attempt.sip_code = code
        self._attempt.ms = round(self._timeline.ms(now) - self._attempt.at_ms, 1)
