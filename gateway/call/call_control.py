# SPDX-License-Identifier: GPL-2.0-or-later
"""Call control: actions of model, operator or gateway (transfer, hold, DTMF), one at a time; timers
that end a call; the hang-up after the closing words.

An action is queued, and begins after the speech before it has played out; barge-in before that
cancels it, if the model asked for it. While the caller is on hold or being transferred, no audio
passes between caller and model.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Protocol

from gateway.call.call_record import CallTimeline
from gateway.call.inputs import BLegAnswered, ReferProgress, TransferEvent
from gateway.call.outputs import HangUpBLeg, Output, PlaySound, SendDtmf
from gateway.call.plan import CallPlan
from gateway.call.tools.commands import Destination, HoldPlan
from gateway.call.tools.definitions import (
    HOLD,
    SEND_DTMF,
    TRANSFER_CALL,
    Target,
    ToolCallError,
    hold_seconds,
    key_steps,
    transfer_target,
)
from gateway.ending import EndReason

KEY_SECONDS = 0.32
"""From one digit to the next (s): 200 ms of tone (pjmedia's length of an event) and a gap that
every receiver hears (ITU-T Q.24 asks for 40 ms)."""


class CallAction(Protocol):
    """Interface of an action on the call: transfer, hold, or sending DTMF. Methods that take the
    time (s) return outputs to execute, in order."""

    is_transfer: ClassVar[bool] = False
    """It is a transfer: it may take the caller away from us, so it can outlive the session."""
    deadline: float | None
    """When :meth:`tick` is due next (s); None while nothing waits for time."""
    result: Mapping[str, Any] | None
    """For the model, once the action is done; None while it goes on."""
    audio_suspended: bool
    """No audio passes between caller and model, once the action has begun."""
    joined: bool = False
    """The caller is joined with the B-leg."""
    interpreted: bool = False
    """They are joined with an interpreter; it stays True when its sessions are lost, and becomes
    False when they are closed."""
    over: EndReason | None = None
    """Why the call is to end now: transferred, or the joined B-leg has ended. None: it goes on."""
    detail: str = ""
    """Text for the record with :attr:`over`."""

    def begin(self, now: float) -> list[Output]:
        """Start the action; called once, when :meth:`CallActions.begin_if_ready` finds that it may
        begin."""

    def tick(self, now: float) -> list[Output]:
        """Act on :attr:`deadline`; nothing before it has come."""

    def on_transfer_event(self, happening: TransferEvent, now: float) -> list[Output]:
        """Handle progress of a REFER, or an event of the B-leg or of an interpreter; nothing in an
        action that is no transfer."""
        return []

    def session_lost(self, now: float) -> list[Output]:
        """Go on without the model, as :meth:`CallActions.session_lost` says; hold and DTMF do not
        change."""
        return []

    def abandon(self, now: float) -> list[Output]:
        """End the action, as :meth:`CallActions.abandon` says: a transfer hangs up its B-leg and
        gets an outcome; nothing for hold and DTMF, whose sound is not stopped."""
        return []

    def stop_interpreting(self) -> list[Output]:
        """Close the sessions that interpret between the joined legs; nothing without them."""
        return []

    def end_by_bye(self, now: float) -> bool:
        """End a transfer by the caller's BYE, if that means success: its REFER was accepted, and
        neither ringing nor an outcome was reported since. Returns whether it does; the record then
        has the outcome ``unknown``. False for hold and DTMF."""
        return False


class SendDtmfAction(CallAction):
    """Sends DTMF digits to the caller's side, one every ``KEY_SECONDS``, with pauses between them.
    Caller and model hear each other meanwhile.

    Args:
        steps: digits, and pauses (s), in order.
        how: auto, rfc4733 or info (SIP INFO).
    """

    audio_suspended = False

    def __init__(self, steps: tuple[str | float, ...], how: str, timeline: CallTimeline) -> None:
        self.deadline: float | None = None
        self.result: Mapping[str, Any] | None = None
        self._steps = list(steps)
        self._keys = "".join(step for step in steps if isinstance(step, str))
        self._how = how
        self._timeline = timeline

    def begin(self, now: float) -> list[Output]:
        """Log all digits (``dtmf_sent``), and return ``SendDtmf`` of the first; where a pause comes
        first, wait for its end."""
        note = self._timeline.note(now, "dtmf_sent", "info", digits=self._keys)
        return [note, *self._next_digit(now)]

    def tick(self, now: float) -> list[Output]:
        """At :attr:`deadline`, return ``SendDtmf`` of the next digit; after the last, set
        :attr:`result` and return nothing."""
        if self.deadline is None or now < self.deadline:
            return []
        return self._next_digit(now)

    def _next_digit(self, now: float) -> list[Output]:
        """Return ``SendDtmf`` of the next digit, and set :attr:`deadline` to ``KEY_SECONDS`` later.
        Where pauses come next, set it to their end and return nothing; after the last step, set
        :attr:`result`."""
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


class HoldAction(CallAction):
    """Plays hold music to the caller, during which model and caller do not hear each other.

    Args:
        seconds: how long; None until :meth:`stop` (an operator's hold).
    """

    def __init__(self, seconds: float | None, plan: HoldPlan, timeline: CallTimeline) -> None:
        self.audio_suspended = True
        self.deadline: float | None = None
        self.result: Mapping[str, Any] | None = None
        self._seconds = seconds
        self._plan = plan
        self._timeline = timeline
        self._began = 0.0

    def begin(self, now: float) -> list[Output]:
        """Log ``holding``, and return ``PlaySound`` with the route's music. It ends after
        ``seconds``, or before by :meth:`stop`; without them only by :meth:`stop`."""
        self._began = now
        self.deadline = None if self._seconds is None else now + self._seconds
        note = self._timeline.note(now, "holding", "info", seconds=self._seconds)
        return [note, PlaySound(self._plan.sound)]

    def tick(self, now: float) -> list[Output]:
        """Stop the music, as :meth:`stop` does, when its time is over; nothing before."""
        return self.stop(now) if self.deadline is not None and now >= self.deadline else []

    def stop(self, now: float) -> list[Output]:
        """Stop the music, let model and caller hear each other again, and set the result for the
        model: how many seconds the caller was on hold."""
        self.audio_suspended, self.deadline = False, None
        held = round(now - self._began, 1)
        self.result = {"status": "the caller is back", "seconds": held}
        return [self._timeline.note(now, "hold_ended", "info", seconds=held), PlaySound("")]


@dataclass(frozen=True, slots=True)
class Result:
    """Result of an action that is done."""

    call_id: str
    """``call_id`` of the tool call that it answers; ``BY_GATEWAY``, ``BY_OPERATOR`` or
    ``BY_CALLER`` where the model did not ask."""
    output: Mapping[str, Any]
    """JSON object for the model."""
    respond: bool
    """Whether a response is requested; False when the model began to speak during hold music."""


BY_GATEWAY, BY_OPERATOR, BY_CALLER = "gateway", "operator", "caller"
"""Who asked for an action, in place of a tool call's id where it was not the model. The caller asks
for a human (escape)."""


class CallActions:
    """Runs the actions of a call, one at a time. Methods that take the time (s) return outputs.

    An action is queued first, and begins when the speech before it was heard
    (:meth:`begin_if_ready`). While one is queued or under way, another is refused with
    ToolCallError.

    Args:
        transfer_to: makes the action for a target; its second argument is whether a session is up
            (without one the target is not briefed by the model).
    """

    def __init__(
        self,
        plan: CallPlan,
        timeline: CallTimeline,
        transfer_to: Callable[[Target, bool], CallAction],
    ) -> None:
        self._plan = plan
        self._timeline = timeline
        self._transfer_to = transfer_to
        self._session_up = True
        self._action: CallAction | None = None
        self._call_id = ""
        """``call_id`` of the tool call that asked for the action, or ``BY_...``."""
        self._begin_by: float | None = None
        """Until when the speech before a queued action is waited for (s); None: it has begun, or
        none is there."""
        self._not_before = 0.0
        """Until when words about the action may begin (s); 0 where none are to come."""
        self._unasked = False
        """The model has ended the hold by speaking, so no response is to be requested."""
        self._late = False
        """A REFER has succeeded after its transfer was given up."""
        tools = plan.tools
        names = {TRANSFER_CALL} if tools.transfer.destinations else set()
        names |= {SEND_DTMF} if tools.send_dtmf.enabled else set()
        self.names = frozenset(names | ({HOLD} if tools.hold.enabled else set()))
        """Names of the tools that are actions, of those that the route offers."""

    def queue_tool_action(
        self, name: str, call_id: str, arguments: str, now: float, *, said_within: float = 0.0
    ) -> None:
        """Queue the action of a tool call. Raises ToolCallError where another is queued or under
        way, or the arguments are not allowed (destination, number, keys, or seconds that the route
        does not allow).

        Args:
            name: ``transfer_call``, ``send_dtmf`` or ``hold``.
            call_id: ``call_id`` of the function call, or who asked (``BY_GATEWAY`` and others).
            arguments: JSON text.
            said_within: seconds in which the model may begin to announce the action, so that the
                action begins no sooner; 0: it has been announced by now.
        """
        if self._action is not None:
            raise ToolCallError(f"{self._refusal()}; wait for its outcome")
        if name == TRANSFER_CALL:
            target = transfer_target(arguments, self._plan.tools.transfer)
            self._action = self._transfer_to(target, self._session_up)
        elif name == SEND_DTMF:
            how = self._plan.tools.send_dtmf.mode
            self._action = SendDtmfAction(key_steps(arguments), how, self._timeline)
        else:
            seconds = hold_seconds(arguments, self._plan.tools.hold.max_duration)
            self._action = HoldAction(seconds, self._plan.tools.hold, self._timeline)
        self._call_id = call_id
        self._begin_by = now + self._plan.limits.say_seconds
        self._not_before = now + said_within if said_within else 0.0

    def refer_to(self, uri: str, now: float) -> None:
        """Queue a blind transfer (REFER) to a URI that an application chose, as an operator's
        action (``BY_OPERATOR``). Before the REFER is sent, the URI is checked by the same limits as
        a number that a model chose. Raises ToolCallError while another action is queued or under
        way."""
        target = Target(Destination(uri, uri, allowed_numbers=re.compile("")), uri)
        self._queue(self._transfer_to(target, self._session_up), now)

    def session_lost(self, now: float) -> list[Output]:
        """Note that the call has no session and will get no other: the model briefs no target from
        now on. A transfer under way goes on; in place of a briefing that the model has not said to
        its end comes the route's sound, or where it has none the target is connected at once."""
        self._session_up = False
        return [] if self._action is None else self._action.session_lost(now)

    def press(self, digits: str, now: float) -> None:
        """Queue DTMF digits for an operator, with ``w``, ``W`` and comma as pauses of 0.5, 1 and 2
        s. Raises ToolCallError as :func:`key_steps` does (no keys, too many, others), and while
        another action is queued or under way."""
        steps, mode = key_steps(json.dumps({"digits": digits})), self._plan.tools.send_dtmf.mode
        self._queue(SendDtmfAction(steps, mode, self._timeline), now)

    def hold(self, held: bool, now: float) -> list[Output]:
        """Put the caller on hold for an operator (``held``), at once and until this is called with
        ``held`` False, the caller asks for a human, or the call ends; or end the hold that has
        begun, also a tool's. Raises ToolCallError where another action is queued or under way, or
        there is no hold to end."""
        if held:
            action = HoldAction(None, self._plan.tools.hold, self._timeline)
            self._queue(action, now)
            return self.begin_if_ready(now, queued=False, confirmed=True)
        if not isinstance(self._action, HoldAction) or self._begin_by is not None:
            raise ToolCallError("the caller is not on hold")
        return self._action.stop(now)

    def _refusal(self) -> str:
        """Return the refusal of an action while another is queued or under way."""
        kinds = {HoldAction: "hold", SendDtmfAction: "DTMF"}
        kind = next((kinds[it] for it in kinds if isinstance(self._action, it)), "transfer")
        return f"something else is being done for this call ({kind})"

    def _queue(self, action: CallAction, now: float) -> None:
        """Queue an action for an operator or application (``BY_OPERATOR``), which is not announced:
        :meth:`begin_if_ready` begins it after the speech under way. Raises ToolCallError while
        another is queued or under way."""
        if self._action is not None:
            raise ToolCallError(self._refusal())
        self._action, self._call_id = action, BY_OPERATOR
        self._not_before = 0.0
        self._begin_by = now + self._plan.limits.say_seconds

    def begin_if_ready(self, now: float, *, queued: bool, confirmed: bool) -> list[Output]:
        """Begin the queued action once the call is up, ``said_within`` is over, and the speech
        before it was heard; called after inputs of a call in progress, and right after the queueing
        of an operator's hold or an escape, which wait for nothing. Speech is waited for
        ``limits.say_seconds`` at most, from the queueing or from when ``confirmed`` was last False.
        Nothing without a queued action.

        Args:
            queued: speech is still in the playout queue, or running.
            confirmed: the ACK came, and no sensitive digits are being entered.
        """
        if self._action is None or self._begin_by is None:
            return []
        if now >= self._not_before:
            self._not_before = 0.0
        if not confirmed:
            self._begin_by = now + self._plan.limits.say_seconds
            return []
        if self._not_before:
            return []
        if queued and now < self._begin_by:
            return []
        self._begin_by = None
        return self._action.begin(now)

    def cancel_queued(self) -> str | None:
        """Cancel an action that the model asked for and that has not begun, since the agent is
        interrupted.

        Returns the ``call_id`` to answer; None where there is none: it has begun, or gateway,
        operator or caller asked for it.
        """
        if self._begin_by is None or self._call_id in (BY_GATEWAY, BY_OPERATOR, BY_CALLER):
            return None
        self._action = self._begin_by = None
        return self._call_id

    def drop_for_escape(self, now: float) -> list[Output]:
        """End the current action, since the caller asked for a human (``[route.escape]``).

        Returns what stops it: hold music ends; of an interpreted transfer, callee and interpreter
        are released. An action that has not begun, or DTMF being sent, is dropped and needs
        nothing. Not for another transfer under way: escape is refused then. The action's tool call
        is not answered here: take its :attr:`call_id` before.
        """
        if self.interpreted:
            return self.abandon(now)
        has_begun = self._begin_by is None
        action, self._action, self._begin_by = self._action, None, None
        return action.stop(now) if isinstance(action, HoldAction) and has_begun else []

    def on_model_audio(self, now: float) -> list[Output]:
        """Stop the hold music of a tool call, since the model speaks; no response is requested for
        its result. Called when a response's audio begins, and again with some later deltas. Nothing
        without a hold that has begun; an operator's goes on."""
        action = self._action
        if not isinstance(action, HoldAction) or self._begin_by is not None:
            return []
        if self._call_id == BY_OPERATOR:  # what it says waits for the caller
            return []
        self._unasked = True
        return action.stop(now)

    def on_transfer_event(self, happening: TransferEvent, now: float) -> list[Output]:
        """Pass an event of REFER, B-leg or interpreter to the transfer that has begun.

        Without one, the event is of a transfer that was given up: a B-leg that has answered is hung
        up; a REFER that succeeded (2xx) ends the call (:attr:`hangup_due`); others are ignored.
        """
        if self._action is not None and self.underway:
            return self._action.on_transfer_event(happening, now)
        if isinstance(happening, BLegAnswered):
            return [HangUpBLeg()]  # it crossed our giving up
        if isinstance(happening, ReferProgress) and 200 <= happening.code < 300:
            # A REFER cannot be withdrawn; the caller is there now, not here.
            self._late = True
        return []

    def tick(self, now: float) -> list[Output]:
        """Have the action that has begun act on its deadline; nothing for one that is queued."""
        if self._action is None or self._begin_by is not None:
            return []
        return self._action.tick(now)

    def take_result(self) -> Result | None:
        """Return the result of an action that is done, and remove the action, so that another may
        be queued.

        None while it goes on. None, too, for an operator's hold or DTMF, which is removed when
        done: the model need not say anything.
        """
        if (action := self._action) is None or action.result is None:
            return None
        self._action = None
        unasked, self._unasked = self._unasked, False
        if self._call_id == BY_OPERATOR and not action.is_transfer:
            return None  # the model need not say anything
        return Result(self._call_id, action.result, respond=not unasked)

    def abandon(self, now: float) -> list[Output]:
        """Remove the action, queued or begun, because the call ends, or because the caller of an
        interpreted transfer asked for a human. No tool call is answered.

        A transfer that has begun closes its interpreting sessions, hangs up its B-leg, and gets an
        outcome in the record (:meth:`Transfer.abandon`). Its sound goes on; the model's briefing is
        ended by the end of the session or :meth:`OutOfBandResponses.abandon`. Nothing is returned
        for hold, DTMF and actions that have not begun.
        """
        action, self._action, self._begin_by = self._action, None, None
        return [] if action is None else action.abandon(now)

    def end_by_bye(self, now: float) -> bool:
        """End the transfer by the caller's BYE, if that means success
        (:meth:`CallAction.end_by_bye`), and return whether it does; False without a transfer."""
        return self._action is not None and self._action.end_by_bye(now)

    @property
    def deadline(self) -> float | None:
        """When :meth:`begin_if_ready` is to be asked again for a queued action, or :meth:`tick` is
        due for one that has begun (s); None while nothing waits for a time."""
        if self._begin_by is not None:
            return self._not_before or self._begin_by
        return None if self._action is None else self._action.deadline

    @property
    def busy(self) -> bool:
        """Whether an action is queued or under way."""
        return self._action is not None

    @property
    def call_id(self) -> str | None:
        """``call_id`` of the tool call that asked for the action, queued or begun, or who else did
        (``BY_...``); None without an action."""
        return None if self._action is None else self._call_id

    @property
    def transferring(self) -> bool:
        """Whether a transfer is queued or has begun, which goes on even if the session is lost.
        True also while the legs are joined; False once :meth:`take_result` has removed a transfer
        that failed."""
        return self._action is not None and self._action.is_transfer

    @property
    def underway(self) -> bool:
        """Whether a transfer has begun (:attr:`transferring`)."""
        return self.transferring and self._begin_by is None

    @property
    def audio_suspended(self) -> bool:
        """Whether an action that has begun keeps audio from passing between caller and model: a
        hold, or a transfer that is neither joined nor failed."""
        return self._action is not None and self._begin_by is None and self._action.audio_suspended

    @property
    def joined(self) -> bool:
        """Whether the caller is joined with the B-leg."""
        return self._action is not None and self._action.joined

    @property
    def interpreted(self) -> bool:
        """Whether caller and B-leg are joined with an interpreter; still True when its sessions are
        lost, but not once :meth:`stop_interpreting` has closed them."""
        return self._action is not None and self._action.interpreted

    def stop_interpreting(self) -> list[Output]:
        """Close the sessions that interpret between caller and B-leg, which stay joined; nothing
        without such sessions."""
        return [] if self._action is None else self._action.stop_interpreting()

    @property
    def hangup_due(self) -> tuple[EndReason, str] | None:
        """Reason to end the call now, with a detail for the record; None while it goes on. A REFER
        succeeded (also late, after its transfer was given up), or the joined B-leg has ended."""
        if self._late:
            return EndReason.TRANSFERRED, "answered after it was given up"
        if self._action is None or self._action.over is None:
            return None
        return self._action.over, self._action.detail


ACK_SECONDS = 32.5
"""The library sends BYE when the ACK of a 200 has not come for 64 * T1 = 32 s (RFC 3261 section
13.3.1.4), and tells; should it not, we do so ourselves."""


class Timers:
    """Timers that end a call: no ACK, rings too long, too long a call, no RTP. Times in s.

    The methods start and stop them; :meth:`due` tells which one is over.
    """

    def __init__(self, plan: CallPlan) -> None:
        self._plan = plan
        self._ack_at: float | None = None
        self._ring_until: float | None = None
        self._max_at: float | None = None
        self._rtp_at: float | None = None
        self._packets = -1

    def answered(self, now: float) -> None:
        """Start the wait for the ACK, of ``ACK_SECONDS``: the 200 was sent."""
        self._ack_at = now + ACK_SECONDS

    def dialling(self, now: float, ring_seconds: float) -> None:
        """Start the wait for the callee's answer to a call that we place, of ``ring_seconds``."""
        self._ring_until = now + ring_seconds

    def confirmed(self, now: float, *, held: bool) -> None:
        """Start maximum duration and RTP timeout, and stop the waits for ACK and answer: the ACK
        came, or the callee's 200.

        Args:
            held: the caller has us on hold already, so the RTP timeout does not start.
        """
        self._ack_at = self._ring_until = None
        self._max_at = now + self._plan.limits.max_call_duration
        self.held(now, held)

    def held(self, now: float, held: bool) -> None:
        """Stop the RTP timeout when a hold by the caller begins (``held``), as a caller on hold may
        send no RTP; start it anew when the hold ends. After the ACK only: it would start a timeout
        that does not run."""
        self._rtp_at = None if held else now

    def packets(self, count: int, now: float, *, expected: bool) -> None:
        """Restart the RTP timeout if packets were received since this was last called, or if none
        are expected. To be called only after the ACK and not during a hold, as it would start a
        timeout that does not run.

        Args:
            count: packets received so far.
            expected: False where the caller's SDP says that none are sent.
        """
        if count != self._packets or not expected:
            self._packets = count
            self._rtp_at = now

    @property
    def deadline(self) -> float | None:
        """When the first running timer is over (s); None while none runs. With
        ``limits.rtp_timeout`` 0 the RTP timeout never runs."""
        rtp_at = None
        if self._rtp_at is not None and self._plan.limits.rtp_timeout > 0:
            rtp_at = self._rtp_at + self._plan.limits.rtp_timeout
        due = (self._ring_until, self._ack_at, self._max_at, rtp_at)
        return min((at for at in due if at is not None), default=None)

    def due(self, now: float) -> tuple[EndReason, str] | None:
        """Return end reason and detail (for the record) of a timer that is over; None without one.
        Of several the first of: no ACK, rings too long, maximum duration, no RTP."""
        if self._ack_at is not None and now >= self._ack_at:
            return EndReason.LEG_TIMEOUT, "no ACK"
        if self._ring_until is not None and now >= self._ring_until:
            return EndReason.NO_ANSWER, "rang too long"
        if self._max_at is not None and now >= self._max_at:
            return EndReason.MAX_DURATION, ""
        timeout = self._plan.limits.rtp_timeout
        if self._rtp_at is not None and timeout > 0 and now >= self._rtp_at + timeout:
            return EndReason.RTP_TIMEOUT, f"no packet for {timeout:g} s"
        return None


LINGER_SECONDS = 0.2
"""From the last frame handed to RTP to the BYE: a telephone plays some 60 ms later than it
receives, and throws away what it still holds when the BYE comes."""


@dataclass(slots=True)
class _LastWords:
    """A hang-up that waits for the end of the closing words."""

    why: EndReason
    deadline: float
    """When the call ends at the latest (s)."""
    call_id: str
    """``call_id`` of the ``end_call`` that has no answer yet; "": it has one, or there is none."""
    awaited: bool
    """Words are requested or to come; False: all that is to be heard is queued."""
    speech_by: float = 0.0
    """Until when a Live session may begin its goodbye (s); 0: it has begun, or is not waited
    for."""
    counted_ms: int = 0
    """Queued audio (ms) that the deadline allows for."""
    playing: bool = False
    """Audio was queued when :meth:`HangupAfterPlayout.due` was last asked."""
    heard_until: float = 0.0
    """Until when a sound in place of the words is played (s)."""
    said: bool = False
    """All of it was handed to RTP; the deadline is when the telephone has played it."""


GOODBYE_BEGINS_SECONDS = 4.0
"""How soon a goodbye begins that a model says by itself, after it has asked for the end."""


class HangupAfterPlayout:
    """Hangs up once the closing words have been played to the caller, or do not come in time.

    An ``after_...`` method starts it, in place of a hang-up that waits already, or
    :meth:`on_session_over` does; :meth:`due` then tells when to end the call.

    Args:
        seconds: longest wait (s) for words that are requested and do not come, and for queued
            audio that does not play; words that come are played to their end.
    """

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds
        self._words: _LastWords | None = None

    @property
    def deadline(self) -> float | None:
        """When :meth:`due` is to be asked (s): at the latest time of the hang-up or, while a
        goodbye is still to begin, when it is no longer waited for. None while no hang-up waits."""
        words = self._words
        if words is None:
            return None
        return words.speech_by or words.deadline

    def after_spoken_goodbye(self, call_id: str, now: float) -> None:
        """Hang up after the audio that is queued: the goodbye that the model has said with its tool
        call ``end_call``.

        Args:
            call_id: of that call; it gets no answer unless the hang-up is cancelled
                (:meth:`cancel`).
        """
        self._words = _LastWords(
            EndReason.AGENT_HANGUP, now + self._seconds, call_id, awaited=False
        )

    def after_requested_goodbye(self, now: float) -> None:
        """Hang up after the goodbye that the gateway has requested, since ``end_call`` came without
        words; the call of ``end_call`` was answered."""
        self._words = _LastWords(EndReason.AGENT_HANGUP, now + self._seconds, "", awaited=True)

    def after_next_speech(self, now: float) -> None:
        """Hang up after the goodbye that a Live session says by itself. If it does not begin within
        ``GOODBYE_BEGINS_SECONDS``, hang up once nothing is queued any more."""
        by = now + min(GOODBYE_BEGINS_SECONDS, self._seconds)
        self._words = _LastWords(
            EndReason.AGENT_HANGUP, now + self._seconds, "", awaited=True, speech_by=by
        )

    def on_response_created(self) -> None:
        """Note that the goodbye of a Live session (:meth:`after_next_speech`) has begun: its end is
        waited for from now on. A hang-up that waits for anything else stays as it is."""
        if self._words is not None:
            self._words.speech_by = 0.0

    def after_last_words(self, why: EndReason, now: float) -> None:
        """Have :meth:`due` end the call for ``why``, once the words that the gateway has requested
        and all queued audio were played. Once no response runs or is to come, only queued audio is
        waited for; a response that brings no words is waited for ``seconds`` at most. Replaces a
        hang-up that waits; :meth:`cancel` stops this one only for ``agent_hangup``."""
        self._words = _LastWords(why, now + self._seconds, "", awaited=True)

    def wait_for_sound(self, until: float) -> None:
        """Hang up at ``until`` (s), the end of a sound that is played in place of words that did
        not come. Nothing while no hang-up waits."""
        if self._words is not None:
            self._words.heard_until = self._words.deadline = until

    def on_session_over(self, now: float) -> None:
        """Hang up (``session_closed``) after the queued audio of a session that closed normally. A
        hang-up that waits only for queued audio stays as it is; one that waits for words is
        replaced: none will come."""
        if self._words is None or self._words.awaited:
            self._words = _LastWords(
                EndReason.SESSION_CLOSED, now + self._seconds, "", awaited=False
            )

    @property
    def is_queued(self) -> bool:
        """Whether a hang-up waits only for queued audio, so that the session may close."""
        return self._words is not None and not self._words.awaited

    def cancel(self) -> str | None:
        """Cancel a hang-up for ``agent_hangup`` (the model asked for it), since the agent is
        interrupted, or the caller is being transferred.

        Returns the ``call_id`` of the ``end_call`` to be answered, "" where it has been answered;
        None where there is no such hang-up: one of another reason goes on.
        """
        words = self._words
        if words is None or words.why is not EndReason.AGENT_HANGUP:
            return None
        self._words = None
        return words.call_id

    def due(self, now: float, *, queued_ms: int, responding: bool) -> EndReason | None:
        """Follow the playout of the words, and return the reason to end the call now, or None; to
        be called after each input.

        The call ends ``LINGER_SECONDS`` after words that were played; at once where no words are to
        come, nothing was or is queued, and no sound plays in their place; and at the deadline,
        which queued audio puts off to ``seconds`` after its own end. None without a hang-up that
        waits.

        Args:
            queued_ms: audio put into the playout queue since it was last empty; 0 when it is.
            responding: a response runs or is to come.
        """
        words = self._words
        if words is None:
            return None
        if now >= words.speech_by:
            words.speech_by = 0.0
        if words.awaited and not (responding or words.speech_by):
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
