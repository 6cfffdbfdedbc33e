# SPDX-License-Identifier: GPL-2.0-or-later
"""State machine of one call: ring, connect, answer, talk, end.

Pure: events come in as :mod:`gateway.call.inputs`, with the time; decisions go out as
:mod:`gateway.call.outputs`. The same inputs give the same outputs, so a call can be replayed.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from math import ceil
from typing import Any, get_args

from gateway.call import inputs, outputs
from gateway.call.call_record import CallRecord
from gateway.call.conversation.control import HELD, RESUMED
from gateway.call.conversation.out_of_band import PostCallAnalysis, post_call_of
from gateway.call.conversation.playback import Playout
from gateway.call.failover import refusal_of
from gateway.call.plan import CallPlan, FallbackStep, Prepared
from gateway.call.session_lifecycle import CallContext, SessionEvents
from gateway.call.session_lifecycle import State as State
from gateway.ending import (
    Ending,
    EndReason,
    ending_of,
    reason_header,
    refusal_code,
    why_leg_ended,
    why_not_answered,
)
from gateway.realtime.events import AudioDelta, UpdateSession

LEG_END_SECONDS = 35.0
"""A BYE is retransmitted for 32 s (RFC 3261 timer F); a leg not over by then is given up."""

_FOR_RULES = (
    *(inputs.ApprovalResult, inputs.ContentChecked, inputs.SoundHeard, inputs.CallerSounds),
    *(inputs.BeepHeard, inputs.LineQuality, inputs.CallerLevel),
)

MachineInput = inputs.Input | Prepared
"""What a call's machine takes."""


class LegEvents:
    """Handles what the SIP leg reports: ringing, media, ACK, hold, DTMF, RTP. Methods take s."""

    def __init__(self, call: CallContext, session: SessionEvents) -> None:
        self._call = call
        self._session = session
        self._listening_early = False

    def on_remote_ringing(self, input: inputs.RemoteRinging, now: float) -> list[outputs.Output]:
        if self._call.state is not State.DIALLING or self._call.record.times.ringing is not None:
            return []
        self._call.record.times.ringing = self._call.timeline.ms(now)
        return [self._call.timeline.note(now, "ringing", "info", code=input.code)]

    def on_media_up(self, input: inputs.MediaUp, now: float) -> list[outputs.Output]:
        """Listen to early media of an outbound call; note a codec that has changed."""
        leg = self._call.record.leg
        if self._call.state is State.DIALLING and self._call.plan.outbound is not None:
            leg.codec = input.codec.value  # the callee's choice of those that were offered
            if not self._call.plan.outbound.early_media or self._listening_early:
                return []
            self._listening_early = True
            note = self._call.timeline.note(now, "early_media", "info")
            return [outputs.StartMedia(playout=False), note]
        heard = self._call.live or self._call.state is State.CONNECTING
        if input.codec.value == (leg.codec or self._call.plan.codec.value) or not heard:
            return []
        leg.codec = input.codec.value
        # The session keeps its codec. What lies between the two sides is linear, so each is right
        # in its own; a change in the session would meet answers that are on their way in the old.
        return [self._call.timeline.note(now, "codec_changed", "info", codec=input.codec.value)]

    def on_confirmed(self, _input: inputs.Confirmed, now: float) -> list[outputs.Output]:
        """Start timers and greeting: the ACK came, and the call is up."""
        if self._call.state is State.CONNECTING and self._call.opening.at_once:
            self._call.record.times.confirmed = self._call.timeline.ms(now)
            self._call.timers.confirmed(now, held=self._call.held)
            self._call.opening.on_confirmed(now)
            if self._call.session_up:
                self._call.opening.sound_played(now)
            return [self._call.timeline.note(now, "confirmed", "info")]
        if self._call.state is State.DIALLING:
            self._call.record.times.answered = self._call.timeline.ms(now)
        elif self._call.state is not State.ANSWERED:
            return []
        self._call.state = State.TALKING
        self._call.record.times.confirmed = self._call.timeline.ms(now)
        self._call.timers.confirmed(now, held=self._call.held)
        note = self._call.timeline.note(now, "confirmed", "info")
        # Before the first frame that the caller hears.
        recorded = self._call.conversation.recording.start_if_due(now, confirmed=True)
        todo: list[outputs.Output] = [*recorded, note, outputs.StartMedia()]
        todo += self._session.failover.on_call_answered(now)
        return todo + self._session.confirmed(now)

    def on_hold_changed(self, input: inputs.HoldChanged, now: float) -> list[outputs.Output]:
        """Hold or resume: playout stands still, and the session hears what the route says."""
        media_is_up = self._call.live or self._call.state is State.CONNECTING
        if not media_is_up or input.held is self._call.held:
            return []
        self._call.held = input.held
        if self._call.record.times.confirmed is not None:
            self._call.timers.held(now, input.held)
        note = self._call.timeline.note(now, "held" if input.held else "resumed", "info")
        released = self._session.held(input.held, now)
        if self._call.state is not State.TALKING or not self._call.session_up:
            return [note, *released]
        return [note, *self._call.conversation.control.add_message(HELD if input.held else RESUMED)]

    def on_digit(self, input: inputs.DigitPressed, now: float) -> list[outputs.Output]:
        """Hand a DTMF digit to the conversation."""
        call = self._call
        if self._session.may_escape and call.conversation.escape.is_escape_key(input.digit):
            return self._session.escape_to_human("key", now)
        if not (call.session_up or self._session.failover.active or call.state is State.BRIDGED):
            return []
        return call.conversation.on_digit(input.digit, now, in_band=input.in_band)

    def on_rtp(self, input: inputs.RtpStats, now: float) -> list[outputs.Output]:
        """Feed the RTP timeout with the count of packets."""
        confirmed = self._call.record.times.confirmed is not None
        if not self._call.held and confirmed and self._call.state is not State.ENDING:
            self._call.timers.packets(input.packets, now, expected=input.expected)
        return []


class CallMachine:
    """Decides for one inbound or outbound call.

    Args:
        plan: the settings of its route.
        record: filled in as the call goes on.
        now: time of the INVITE (s); every ``now`` is of the same monotonic clock.
    """

    def __init__(self, plan: CallPlan, record: CallRecord, now: float, playout: Playout) -> None:
        call = self._call = CallContext(plan, record, now, playout)
        record.metadata = dict(plan.metadata)
        record.disposition = record.disposition or plan.tools.disposition.default
        self._ending: Ending | None = None
        self._hold = (False, False)
        self._end_at: float | None = None
        self._post_call: PostCallAnalysis | None = None
        self._ended_ms: float | None = None
        self._flowing: tuple[str, str, int] | None = None
        """The part of the audio that came last, if nothing but that has happened."""
        session = self._session = SessionEvents(call, self._end_call)
        leg = LegEvents(call, session)
        conversation, note = call.conversation, call.timeline.note
        times = conversation.response_times
        self._playback, self._silence = conversation.control.playback, conversation.silence
        self._handlers: dict[type, Callable[[Any, float], list[outputs.Output]]] = {
            inputs.SessionReady: session.on_session_ready,
            inputs.SessionFailed: session.on_session_failed,
            inputs.SessionClosed: session.on_session_closed,
            inputs.StandbyReady: session.on_standby_ready,
            inputs.StandbyFailed: session.on_standby_failed,
            inputs.ServerEventReceived: self._on_event,
            inputs.ServerErrorReceived: session.on_server_error,
            inputs.MediaUp: leg.on_media_up,
            inputs.Confirmed: leg.on_confirmed,
            inputs.HoldChanged: leg.on_hold_changed,
            inputs.RemoteRinging: leg.on_remote_ringing,
            inputs.ToolDone: session.on_tool_done,
            inputs.ToolRequest: session.on_tool_request,
            **dict.fromkeys(get_args(inputs.TransferEvent), self._on_transfer),
            **dict.fromkeys(_FOR_RULES, lambda _input, _now: []),
            inputs.CallerHeard: lambda input, _now: times.on_caller_heard(input),
            inputs.CallerReplaced: lambda input, now: [
                note(now, "caller_replaced", "info", uri=input.uri)
            ],
            inputs.BudgetThreshold: session.on_budget,
            inputs.DigitPressed: leg.on_digit,
            inputs.DigitsStored: lambda input, now: conversation.on_digits_stored(input, now),
            inputs.RtpStats: leg.on_rtp,
            inputs.LegEnded: self._on_leg_ended,
            inputs.PlayoutStarted: self._on_playout_started,
            inputs.PlayoutDrained: lambda _input, now: conversation.on_playout_drained(now),
            inputs.PlayoutRefused: lambda it, now: conversation.on_playout_refused(it.frames, now),
            inputs.Tick: self._on_tick,
            inputs.ShutDown: lambda _input, now: self._end_call(EndReason.SHUTDOWN, now),
            inputs.HangupRequested: lambda _input, now: self._end_call(EndReason.OPERATOR, now),
            inputs.InternalError: self._on_internal_error,
        }

    @property
    def state(self) -> State:
        return self._call.state

    @property
    def record(self) -> CallRecord:
        return self._call.record

    def start(self, now: float) -> list[outputs.Output]:
        """Ring and open a session; for an outbound call, open it before dialling."""
        opening = self._session.failover.open_again()
        if self._call.plan.outbound is not None:
            return [self._call.timeline.note(now, "data_lookup", "info"), opening]
        if self._call.opening.at_once:
            self._call.timers.answered(now)
        if self._call.plan.server.known_outage:
            return self._session.known_outage(self._call.plan.server.known_outage, now)
        return [*self._call.opening.begin(now), opening]

    def more_audio(self, event: AudioDelta) -> bytes | None:
        """Return the frames to queue of a delta that follows on another; None: it is an input."""
        if event.part != self._flowing or event.silent:
            return None
        self._silence.on_event()
        self._silence.on_audible()
        return self._playback.queue_audio(event)

    def handle(self, input: MachineInput, now: float) -> list[outputs.Output]:
        """Take an input that came at ``now`` (s); return what to do, in order."""
        if type(input) is inputs.RtpStats:  # once a second, and audio goes on meanwhile
            return self._handlers[inputs.RtpStats](input, now)
        conversation = self._call.conversation
        event = input.event if type(input) is inputs.ServerEventReceived else None
        flowing, self._flowing = self._flowing, None
        if self._call.state is State.FINISHED:
            return []
        if isinstance(input, Prepared):
            return [] if self._post_call is not None else self._on_prepared(input, now)
        if self._post_call is not None and type(input) is not inputs.InternalError:
            return self._wait_for_post_call(self._post_call, input, now)
        if type(input) in (inputs.ServerEventReceived, inputs.ServerErrorReceived):
            conversation.silence.on_event()
        if type(input) is inputs.ServerEventReceived:
            event = conversation.complete(input.event)
            input = input if event is input.event else replace(input, event=event)
        session_was_up = self._call.session_up
        todo = self._handlers[type(input)](input, now)
        only_queued = [type(output) for output in todo] == [outputs.Play]
        if type(event) is AudioDelta and only_queued and not self._session.failover.old_audio_plays:
            self._flowing = event.part
            return todo
        if self._call.live:
            todo = todo + conversation.apply_rules(input, now)
            todo += self._session.failover.on(input, now)
            todo += self._after_input(now)
            if type(input) is inputs.CallerSounds and not todo:
                self._flowing = flowing  # once a second, too, while the caller speaks
        elif self._session.failover.over is not None:
            todo = todo + self._session.give_up(now)
        responds = conversation.control.capabilities.responds
        if not (responds and (session_was_up or self._call.session_up)):
            if self._session.failover.active:
                # A tool's result, a key: the session that is to come will be told.
                conversation.transcript.add_sent_items(todo, now)
            return [output for output in todo if not isinstance(output, outputs.Send)]
        conversation.transcript.add_sent_items(todo, now)
        if any(type(o) is outputs.Send and type(o.command) is UpdateSession for o in todo):
            todo += conversation.silence.on_update_sent(now)
        return todo

    @property
    def variables(self) -> Mapping[str, str]:
        """Return the values of the route's variables in this call."""
        return self._call.plan.variables

    @property
    def talking(self) -> bool:
        """Return whether caller and model talk with each other."""
        return self._call.session_up and self._call.state is State.TALKING

    @property
    def deadline(self) -> float | None:
        """When a :class:`inputs.Tick` is due next (s); None while nothing waits for time."""
        if self._call.state is State.FINISHED:
            return None
        if self._call.state is State.ENDING:
            return self._end_at if self._post_call is None else self._post_call.deadline
        call = self._call
        due = (
            call.conversation.deadline,
            call.timers.deadline,
            call.opening.deadline if call.opening.waiting else None,
            self._session.failover.deadline,
            self._session.deadline,
            self._session.handover.deadline if call.session_up and call.talking else None,
        )
        return min((at for at in due if at is not None), default=None)

    def _after_input(self, now: float) -> list[outputs.Output]:
        """Return what follows for the call from what has just happened in its conversation."""
        conversation = self._call.conversation
        todo = conversation.after_input(now, confirmed=self._call.state is not State.ANSWERED)
        if conversation.call_actions.joined and self._call.state is State.TALKING:
            todo += self._session.on_bridged(now)
        if self._call.session_up and self._call.talking:
            todo += self._session.handover.promote_if_quiet(now)
        if self.talking and conversation.silence.rule:
            todo += self._session.on_silence(conversation.silence.rule, now)
        if self._session.failover.over is not None:
            return todo + self._session.give_up(now)
        why, detail = conversation.call_actions.hangup_due or (None, "")
        lost = self._session.lost_meanwhile
        if why is None and lost is None:
            why, detail = conversation.ended(now)
        elif why is None and lost is not None and not conversation.call_actions.underway:
            why, detail = lost
        if why is not None:
            return todo + self._end_call(why, now, detail)
        hold = (
            self._call.held or conversation.call_actions.audio_suspended,
            self._call.held and self._call.plan.silence_on_hold,
        )
        if hold != self._hold:
            self._hold = hold
            todo.append(outputs.Hold(*hold))
        return todo

    def _on_prepared(self, input: Prepared, now: float) -> list[outputs.Output]:
        """Take the plan that was completed with fetched data."""
        self._call.plan = input.plan
        self._call.record.metadata = dict(input.plan.metadata)
        self._call.conversation.prepare(input.plan)
        # The log has its line from who fetched it.
        if input.ms is not None:
            failed = {"failed": input.failure} if input.failure else {}
            self._call.timeline.mark(now, "data", ms=input.ms, **failed)
        if input.history is not None:
            self._call.timeline.mark(now, "caller_history", **input.history)
        return []

    def _on_event(self, input: inputs.ServerEventReceived, now: float) -> list[outputs.Output]:
        """Hand an event to the conversation, while the session is up."""
        if not self._call.session_up:
            return []
        return self._call.conversation.on_event(input.event, now, input.command)

    def _on_transfer(self, input: inputs.TransferEvent, now: float) -> list[outputs.Output]:
        if isinstance(input, inputs.InterpreterEvent):
            self._call.conversation.transcript.on_interpreter_event(input, now)
        return (
            self._call.conversation.call_actions.on_transfer_event(input, now)
            if self._call.live
            else []
        )

    def _on_leg_ended(self, input: inputs.LegEnded, now: float) -> list[outputs.Output]:
        """End the call with its leg; a BYE may complete a transfer."""
        if self._ending is not None:
            return self._finish(now)
        # First of all, what was heard.
        todo = self._call.conversation.control.playback.stop(now) if self._call.live else []
        outcome = f"{input.code or ''} {input.phrase}".strip()
        if self._call.state is State.DIALLING:
            why = why_not_answered(input.code)
            return todo + self._end_call(why, now, outcome, leg_over=True, code=input.code)
        if input.method == "BYE" and self._call.conversation.call_actions.taken_over(now):
            why, outcome = EndReason.TRANSFERRED, "the caller's side let go; it told no outcome"
        else:
            talked = self._call.state in (State.TALKING, State.BRIDGED)
            why = why_leg_ended(input.code, input.method, local=input.local, talked=talked)
        return todo + self._end_call(why, now, outcome, reason=input.reason_header, leg_over=True)

    def _on_playout_started(self, _input: inputs.Input, now: float) -> list[outputs.Output]:
        """Note that the caller hears the model, the first time in the record, too."""
        if self._call.record.times.first_audio is None:
            self._call.record.times.first_audio = self._call.timeline.ms(now)
        return self._call.conversation.on_playout_started(now)

    def _on_tick(self, _input: inputs.Tick, now: float) -> list[outputs.Output]:
        """Act on all deadlines that have come."""
        if self._call.state is State.ENDING:
            if self._end_at is not None and now >= self._end_at:
                return [self._call.timeline.note(now, "leg_timeout", "error"), *self._finish(now)]
            return []
        due = self._call.timers.due(now)
        if due is not None:
            return self._end_call(due[0], now, due[1])
        if self._call.opening.waiting and self._call.opening.sound_played(now):
            return self._session.answer(now)
        todo = self._session.answered_for_fallback(self._session.failover.tick(now), now)
        todo += self._session.tick(now)
        if self._call.session_up and self._call.talking:
            todo += self._session.handover.tick(now)
        return todo + self._call.conversation.on_tick(now)

    def _end_call(
        self,
        why: EndReason,
        now: float,
        detail: str = "",
        *,
        reason: str | None = None,
        leg_over: bool = False,
        code: int = 0,
        step: FallbackStep | None = None,
    ) -> list[outputs.Output]:
        """End the call, once: tell the leg, close the session, record the ending."""
        if self._ending is not None:
            return []
        if why in (EndReason.CANCELLED, EndReason.OVER_CAPACITY):
            self._call.record.times.answered = None  # the 200 did not go out, or too late
        answered = self._call.record.times.answered is not None
        outbound = self._call.plan.outbound is not None
        self._ending = ending_of(
            why, answered=answered, detail=detail, reason=reason, outbound=outbound, code=code
        )
        # Of a call of ours that was not dialled yet, there is no leg to end.
        leg_over = leg_over or (outbound and self._call.state is State.CONNECTING)
        if self._call.session_up and self._call.state is State.TALKING:
            conversation = self._call.conversation
            self._post_call = post_call_of(
                conversation.control.out_of_band,
                conversation.transcript,
                self._call.plan.content.post_call,
                why,
                now,
            )
        self._call.state = State.ENDING
        self._call.session_up = False
        self._end_at = now + LEG_END_SECONDS
        self._call.conversation.on_end(now)
        todo = self._call.conversation.call_actions.abandon(now)
        if self._post_call is not None:
            self._ended_ms, self._post_call.leg_over = self._call.timeline.ms(now), leg_over
            todo += self._post_call.request_answers(now)
        else:
            todo.append(outputs.CloseSession(1000, why.value))
        if leg_over:
            return todo if self._post_call is not None else todo + self._finish(now)
        headers = {"Reason": reason_header(why)}
        if answered or outbound:
            return [*todo, outputs.HangUp(headers)]
        code, more = refusal_of(step, refusal_code(why))
        headers |= more
        self._ending = replace(self._ending, sip_code=code)
        if code == 503:
            told = self._call.retry_after or 0.0
            headers["Retry-After"] = str(max(self._call.plan.server.retry_after, ceil(told)))
        return [*todo, outputs.Reject(code, headers)]

    def _wait_for_post_call(
        self, after: PostCallAnalysis, input: inputs.Input, now: float
    ) -> list[outputs.Output]:
        """Wait for the post-call responses; the call is over for the caller."""
        todo = after.on(input, now)
        if not after.is_complete(now):
            return todo
        self._post_call = None
        todo.append(outputs.CloseSession(1000, after.why.value))
        return todo + self._finish(now) if after.leg_over else todo

    def _on_internal_error(self, input: inputs.InternalError, now: float) -> list[outputs.Output]:
        """End the call after an exception; at once where ending it may be what failed."""
        self._post_call = None
        if self._call.state is not State.ENDING:
            return self._end_call(EndReason.INTERNAL_ERROR, now, input.detail)
        # Ending it may be what failed, and a leg or a session left up costs somebody money.
        note = self._call.timeline.note(now, "teardown_error", "error", detail=input.detail)
        close = outputs.CloseSession(1000, EndReason.INTERNAL_ERROR.value)
        return [note, close, outputs.HangUp({"Reason": reason_header(EndReason.INTERNAL_ERROR)})]

    def _finish(self, now: float) -> list[outputs.Output]:
        """Complete the record, once leg and session are over."""
        assert self._ending is not None
        self._call.state = State.FINISHED
        record, ending, ended_ms = self._call.record, self._ending, self._ended_ms
        record.ending = ending
        record.times.end = self._call.timeline.ms(now) if ended_ms is None else ended_ms
        record.media.late_audio_ms = self._call.conversation.late_audio_ms
        note = self._call.timeline.note(
            now, "end", "debug", by=ending.by.value, why=ending.why.value, detail=ending.detail
        )
        return [note, outputs.Finished()]
