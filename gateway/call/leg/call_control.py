"""What the model asks the gateway to do for it: transfer, hold, press keys. One at a time.

An action begins when what the model said before it has been heard, and the caller may still stop
it then by speaking up. While the caller is away (hears a sound, or is being transferred) nothing
of them goes to the model, and nothing of the model to them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from gateway.call.ending import EndReason, Outcome, outcome_of
from gateway.call.inputs import (
    BLegAnswered,
    BLegEnded,
    BLegRinging,
    ReferProgress,
)
from gateway.call.outputs import (
    BridgeLegs,
    DialBLeg,
    HangUpBLeg,
    Output,
    PlaySound,
    Refer,
    Send,
    SendDtmf,
)
from gateway.call.plan import CallPlan, HoldPlan, TransferPlan
from gateway.call.record import CallTimeline, TransferAttempt
from gateway.call.tools.arguments import (
    Target,
    ToolCallError,
    hold_seconds,
    key_steps,
    transfer_target,
)
from gateway.call.tools.definitions import HOLD, SEND_DTMF, TRANSFER_CALL
from gateway.realtime.commands import CreateItem

TAKE_OVER_SECONDS = 20.0
"""The caller's side has answered callee and knows where to: its INVITE needs no ringing."""

TransferEvent = ReferProgress | BLegRinging | BLegAnswered | BLegEnded

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

    def on(self, happening: TransferEvent, now: float) -> list[Output]:
        """Something was said of the transfer, or happened to the second leg."""
        match happening:
            case ReferProgress():
                return self._on_refer_progress(happening, now)
            case BLegRinging(code):
                return self._on_ringing(code, now)
            case BLegAnswered():
                return self._on_b_leg_answered(now)
            case BLegEnded():
                return self._on_b_leg_ended(happening, now)

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

    def _on_refer_progress(self, told: ReferProgress, now: float) -> list[Output]:
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

    def _on_b_leg_answered(self, now: float) -> list[Output]:
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

    def _on_b_leg_ended(self, ended: BLegEnded, now: float) -> list[Output]:
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


KEY_SECONDS = 0.32
"""From one key to the next: 200 ms of tone (pjmedia's length of an event) and a gap that every
receiver hears (ITU-T Q.24 asks for 40 ms)."""


class SendDtmfAction:
    """Sends keys, with their pauses."""

    away = joined = False
    over: EndReason | None = None
    detail = ""

    def __init__(self, steps: tuple[str | float, ...], how: str, timeline: CallTimeline) -> None:
        self.deadline: float | None = None
        self.result: Mapping[str, Any] | None = None
        self._steps = list(steps)
        self._keys = "".join(step for step in steps if isinstance(step, str))
        self._how = how
        self._timeline = timeline

    def begin(self, now: float) -> list[Output]:
        """Press the first key."""
        note = self._timeline.note(now, "dtmf_sent", "info", digits=self._keys)
        return [note, *self._go_on(now)]

    def tick(self, now: float) -> list[Output]:
        """Press the next key, when its time has come."""
        if self.deadline is None or now < self.deadline:
            return []
        return self._go_on(now)

    def _go_on(self, now: float) -> list[Output]:
        wait, self.deadline = 0.0, None
        while self._steps:
            step = self._steps.pop(0)
            if isinstance(step, str):
                if wait:
                    self._steps.insert(0, step)
                    break
                self.deadline = now + KEY_SECONDS
                return [SendDtmf(step, self._how)]
            wait += step
        if wait:
            self.deadline = now + wait
        else:
            self.result = {"status": "sent", "digits": self._keys}
        return []


class HoldAction:
    """Lets the caller hear music for a while."""

    joined = False
    over: EndReason | None = None
    detail = ""

    def __init__(self, seconds: float, plan: HoldPlan, timeline: CallTimeline) -> None:
        self.away = True
        self.deadline: float | None = None
        self.result: Mapping[str, Any] | None = None
        self._seconds = seconds
        self._plan = plan
        self._timeline = timeline
        self._began = 0.0

    def begin(self, now: float) -> list[Output]:
        """Start the music."""
        self._began, self.deadline = now, now + self._seconds
        note = self._timeline.note(now, "holding", "info", seconds=self._seconds)
        return [note, PlaySound(self._plan.sound)]

    def tick(self, now: float) -> list[Output]:
        """Stop it, when its time has come."""
        return self.stop(now) if self.deadline is not None and now >= self.deadline else []

    def stop(self, now: float) -> list[Output]:
        """The caller is back."""
        self.away, self.deadline = False, None
        held = round(now - self._began, 1)
        self.result = {"status": "the caller is back", "seconds": held}
        return [self._timeline.note(now, "hold_ended", "info", seconds=held), PlaySound("")]


Action = Transfer | SendDtmfAction | HoldAction


@dataclass(frozen=True, slots=True)
class Result:
    """What to tell the model of its tool call."""

    call_id: str
    output: Mapping[str, Any]
    respond: bool
    """Whether it is to say something about it; False when it is speaking already."""


BY_GATEWAY = "gateway"
BY_OPERATOR = "operator"
"""In place of the tool call's id, for what the model did not ask for."""


class CallActions:
    """Keeps the one action of a call. Every method takes the time (s)."""

    def __init__(self, plan: CallPlan, timeline: CallTimeline) -> None:
        self._plan = plan
        self._timeline = timeline
        self._action: Action | None = None
        self._call_id = ""
        self._begin_by: float | None = None
        self._unasked = False
        self._late = False
        offered = {
            TRANSFER_CALL: bool(plan.transfer.destinations),
            SEND_DTMF: plan.send_dtmf.enabled,
            HOLD: plan.hold.enabled,
        }
        self.names = frozenset(name for name, there in offered.items() if there)
        """The tools that lead here."""

    def ask(self, name: str, call_id: str, arguments: str, now: float) -> None:
        """The model wants this done. Raises ToolCallError, with what is wrong."""
        if self._action is not None:
            raise ToolCallError("something else is being done for this call; wait for its outcome")
        if name == TRANSFER_CALL:
            target = transfer_target(arguments, self._plan.transfer)
            self._action = Transfer(target, self._plan.transfer, self._timeline)
        elif name == SEND_DTMF:
            self._action = SendDtmfAction(
                key_steps(arguments), self._plan.send_dtmf.mode, self._timeline
            )
        else:
            seconds = hold_seconds(arguments, self._plan.hold.max_duration)
            self._action = HoldAction(seconds, self._plan.hold, self._timeline)
        self._call_id = call_id
        self._begin_by = now + self._plan.say_seconds

    def settle(self, now: float, *, queued: bool, confirmed: bool) -> list[Output]:
        """Begin, once the call is up, and unless something is still to be heard (``queued``) and
        there is time for it."""
        if self._action is None or self._begin_by is None:
            return []
        if not confirmed:
            self._begin_by = now + self._plan.say_seconds
            return []
        if queued and now < self._begin_by:
            return []
        self._begin_by = None
        return self._action.begin(now)

    def interrupt(self) -> str | None:
        """The caller speaks up; returns the tool call that will not be done, if there is one."""
        if self._begin_by is None or self._call_id in (BY_GATEWAY, BY_OPERATOR):
            return None
        self._action = self._begin_by = None
        return self._call_id

    def model_speaks(self, now: float) -> list[Output]:
        """The model has something to say: its music is over."""
        action = self._action
        if not isinstance(action, HoldAction) or self._begin_by is not None:
            return []
        self._unasked = True
        return action.stop(now)

    def on(self, happening: TransferEvent, now: float) -> list[Output]:
        """Something about a transfer."""
        if isinstance(self._action, Transfer) and self._begin_by is None:
            return self._action.on(happening, now)
        if isinstance(happening, BLegAnswered):
            return [HangUpBLeg()]  # it crossed our giving up
        if isinstance(happening, ReferProgress) and 200 <= happening.code < 300:
            # Nobody can take back a REFER; the caller is there now, not here.
            self._late = True
        return []

    def tick(self, now: float) -> list[Output]:
        """A deadline may have come."""
        if self._action is None or self._begin_by is not None:
            return []
        return self._action.tick(now)

    def take_result(self) -> Result | None:
        """What is done now."""
        action = self._action
        if action is None or action.result is None:
            return None
        self._action = None
        unasked, self._unasked = self._unasked, False
        return Result(self._call_id, action.result, respond=not unasked)

    def abandon(self, now: float) -> list[Output]:
        """The call ends."""
        action, self._action, self._begin_by = self._action, None, None
        return action.abandon(now) if isinstance(action, Transfer) and action.begun else []

    def taken_over(self, now: float) -> bool:
        """Whether the caller's BYE means that it has gone where it was transferred to."""
        transfer = self._action
        if not isinstance(transfer, Transfer) or not transfer.released:
            return False
        transfer.taken_over(now)
        return True

    @property
    def deadline(self) -> float | None:
        """When :meth:`tick` or :meth:`settle` is due next (s)."""
        if self._begin_by is not None:
            return self._begin_by
        return None if self._action is None else self._action.deadline

    @property
    def busy(self) -> bool:
        """Something is being done, or about to begin."""
        return self._action is not None

    @property
    def underway(self) -> bool:
        """Something is being done that can outlive the session."""
        return isinstance(self._action, Transfer) and self._begin_by is None

    @property
    def away(self) -> bool:
        """Caller and model do not hear each other now."""
        return self._action is not None and self._begin_by is None and self._action.away

    @property
    def joined(self) -> bool:
        """The caller talks with somebody else, through us."""
        return self._action is not None and self._action.joined

    @property
    def over(self) -> tuple[EndReason, str] | None:
        """Why the call ends now, and with which words, if it does."""
        if self._late:
            return EndReason.TRANSFERRED, "answered after it was given up"
        if self._action is None or self._action.over is None:
            return None
        return self._action.over, self._action.detail
