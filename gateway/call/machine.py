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
"""Wait (s) for the end of the leg after our BYE, CANCEL or refusal, which is retransmitted for 32 s
(RFC 3261 timer F); a leg not over by then is given up."""

FOR_RULES = (
    inputs.SoundHeard,
    inputs.CallerSounds,
    inputs.LineQuality,
    inputs.CallerLevel,
    inputs.BeepHeard,
    inputs.ApprovalResult,
    inputs.ContentChecked,
)
"""Inputs that only rules of the conversation handle."""

MachineInput = inputs.Input | Prepared
"""What a call's machine takes: ``Prepared`` brings the plan with the call's data in its texts."""


class LegEvents:
    """Handles the inputs of the caller's SIP leg. Handlers take the time (s) and return outputs, in
    order."""

    def __init__(self, call: CallContext, session: SessionEvents) -> None:
        self._call = call
        self._session = session
        self._listening_early = False

    def on_remote_ringing(self, input: inputs.RemoteRinging, now: float) -> list[outputs.Output]:
        """Record and log ``ringing`` for the first provisional response (180 and more) of the
        callee of an outbound call; nothing for further ones."""
        if self._call.state is not State.DIALLING or self._call.record.times.ringing is not None:
            return []
        self._call.record.times.ringing = self._call.timeline.ms(now)
        return [self._call.timeline.note(now, "ringing", "info", code=input.code)]

    def on_media_up(self, input: inputs.MediaUp, now: float) -> list[outputs.Output]:
        """Handle media that is up, for the first time or after a re-INVITE.

        While the callee of an outbound call is dialled, record the codec and, where the route wants
        early media, have the session hear it, once (``StartMedia`` without playout). Otherwise log
        and record a codec that has changed; the session keeps its own. Nothing while the call is
        ending.
        """
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
        """Handle the ACK of our 200, or the callee's 200: the call is up (``TALKING``).

        Starts maximum duration and, unless the caller has us on hold, RTP timeout. Returns, in
        order, the start of the recording on a route that records always without consent,
        ``StartMedia``, the fallback step that has waited for the answer (or the sound of a step
        that is being taken), and the request for the greeting, if a session is up and the greeting
        was not requested before the ACK.

        With ``answer.mode = "immediate"``, an ACK that comes before the model is ready, or before
        the sound was played, only is recorded and starts the timers: the call stays CONNECTING, and
        :meth:`SessionEvents.answer` does the rest. Ignored in a call that waits for neither ACK nor
        answer.
        """
        if self._call.state is State.CONNECTING and self._call.opening.at_once:
            self._call.record.times.confirmed = self._call.timeline.ms(now)
            self._call.timers.confirmed(now, held=self._call.held)
            self._call.opening.on_confirmed(now)
            if self._call.session_up:
                self._call.opening.check_sound(now)
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
        return todo + self._session.request_deferred_greeting(now)

    def on_hold_changed(self, input: inputs.HoldChanged, now: float) -> list[outputs.Output]:
        """Handle a hold or resume by the caller's re-INVITE (RFC 3264 section 8.4); ignored where
        nothing changes, while the callee of an outbound call is dialled, and once the call is
        ending.

        Stops the RTP timeout, or restarts it on resume; after the ACK only. Tells the model (system
        message) in a call that is TALKING with a session. A session that is billed by time may be
        closed later in the hold; on resume another is opened in its place.
        """
        media_is_up = self._call.live or self._call.state is State.CONNECTING
        if not media_is_up or input.held is self._call.held:
            return []
        self._call.held = input.held
        if self._call.record.times.confirmed is not None:
            self._call.timers.held(now, input.held)
        note = self._call.timeline.note(now, "held" if input.held else "resumed", "info")
        released = self._session.on_hold_changed(input.held, now)
        if self._call.state is not State.TALKING or not self._call.session_up:
            return [note, *released]
        return [note, *self._call.conversation.control.add_message(HELD if input.held else RESUMED)]

    def on_digit(self, input: inputs.DigitPressed, now: float) -> list[outputs.Output]:
        """Handle a DTMF digit of the caller: the key of ``[route.escape]`` transfers the caller to
        a human, if that is possible now and ``collect_digits`` does not want the key. Any other
        digit, and that key where it does not transfer, goes to the conversation.

        The conversation gets digits only while a session is up or a lost one is being replaced, or
        the legs are joined; otherwise they are dropped, without a log line.
        """
        call = self._call
        if self._session.may_escape and call.conversation.escape.is_escape_key(input.digit):
            return self._session.escape_to_human("key", now)
        if not (call.session_up or self._session.failover.active or call.state is State.BRIDGED):
            return []
        return call.conversation.on_digit(input.digit, now, in_band=input.in_band)

    def on_rtp(self, input: inputs.RtpStats, now: float) -> list[outputs.Output]:
        """Restart the RTP timeout where packets have come since the last count, or none are
        expected. Not on hold, before the ACK, or while the call ends. Returns no output."""
        confirmed = self._call.record.times.confirmed is not None
        if not self._call.held and confirmed and self._call.state is not State.ENDING:
            self._call.timers.packets(input.packets, now, expected=input.expected)
        return []


class CallMachine:
    """State machine of one inbound or outbound call: takes inputs, returns outputs.

    Args:
        plan: settings of its route.
        record: filled in as the call goes on.
        now: time of the INVITE (s); every ``now`` is of the same monotonic clock.
        playout: queue of frames to the caller, which barge-in flushes.
    """

    def __init__(self, plan: CallPlan, record: CallRecord, now: float, playout: Playout) -> None:
        call = self._call = CallContext(plan, record, now, playout)
        record.metadata = dict(plan.metadata)
        record.disposition = record.disposition or plan.tools.disposition.default
        self._ending: Ending | None = None
        self._hold = outputs.Hold(held=False, silent=False)
        """The last ``Hold`` that was returned."""
        self._end_at: float | None = None
        """Until when the end of the leg is waited for (s)."""
        self._post_call: PostCallAnalysis | None = None
        """The analysis that keeps the session open after the end was decided; None without one."""
        self._ended_ms: float | None = None
        """When that end was decided (ms since the INVITE)."""
        self._flowing: tuple[str, str, int] | None = None
        """Content part of the audio delta that came last, if nothing but that has happened since:
        further audio of that part may go through :meth:`more_audio`."""
        session = self._session = SessionEvents(call, self._end_call)
        leg = LegEvents(call, session)
        conversation, note = call.conversation, call.timeline.note
        times = conversation.response_times
        playback, functions = conversation.control.playback, conversation.functions
        self._playback, self._silence = playback, conversation.silence
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
            inputs.CallerHeard: lambda input, _now: times.on_caller_heard(input),
            inputs.CallerReplaced: lambda input, now: [
                note(now, "caller_replaced", "info", uri=input.uri)
            ],
            inputs.BudgetThreshold: session.on_budget,
            inputs.DigitPressed: leg.on_digit,
            inputs.DigitsStored: lambda it, now: functions.digit_collection.stored(it.result, now),
            inputs.RtpStats: leg.on_rtp,
            inputs.LegEnded: self._on_leg_ended,
            inputs.PlayoutStarted: lambda _input, now: conversation.on_playout_started(now),
            inputs.PlayoutDrained: lambda _input, now: playback.on_playout_drained(now),
            inputs.PlayoutRefused: lambda it, now: playback.on_playout_refused(it.frames, now),
            inputs.Tick: self._on_tick,
            inputs.ShutDown: lambda _input, now: self._end_call(EndReason.SHUTDOWN, now),
            inputs.HangupRequested: lambda _input, now: self._end_call(EndReason.OPERATOR, now),
            inputs.InternalError: self._on_internal_error,
            **dict.fromkeys(FOR_RULES, lambda _input, _now: []),
        }

    @property
    def state(self) -> State:
        """State of the call."""
        return self._call.state

    def start(self, now: float) -> list[outputs.Output]:
        """Return the outputs that begin the call; call this once, before :meth:`handle`.

        Inbound: ``Ring``, ``Progress`` or ``Answer`` by the route's answer mode, with the sound
        that the mode has, and ``OpenSession``. Outbound: ``OpenSession`` alone; the callee is
        dialled when the session is ready. Where the server is known to be down, an inbound call
        gets the first fallback step other than ``reconnect`` in place of ``OpenSession``; without
        such a step it ends, and an outbound one always (:meth:`SessionEvents.begin_in_outage`).
        """
        opening = self._session.failover.open_again()
        placed = self._call.plan.outbound is not None
        if self._call.opening.at_once and not placed:
            self._call.timers.answered(now)
        if self._call.plan.server.known_outage:
            return self._session.begin_in_outage(self._call.plan.server.known_outage, now)
        if placed:
            return [self._call.timeline.note(now, "data_lookup", "info"), opening]
        return [*self._call.opening.begin(now), opening]

    def more_audio(self, event: AudioDelta) -> bytes | None:
        """Take an audio delta that directly follows one of the same content part, and return its
        whole frames; they may be empty. They count as queued: put them into the playout queue, and
        do not pass the delta to :meth:`handle`.

        A short way, asked first for each of the fifty deltas a second of a response. None, with
        nothing changed, where the delta is to go through :meth:`handle`: another input has come
        since, or it is silence.
        """
        if event.part != self._flowing or event.silent:
            return None
        self._silence.on_event()
        self._silence.on_audible()
        return self._playback.queue_audio(event)

    def handle(self, input: MachineInput, now: float) -> list[outputs.Output]:
        """Take an input that came at ``now`` (s) and return the outputs to execute, in order;
        nothing once the call is finished.

        After the handler of the input come, in a live call, the rules of the conversation,
        failover, and what has waited (:meth:`_after_input`). A call that is not live ends there if
        failover has no step left, or its model hangs up. An audio delta that only queues its audio
        has none of these, unless audio of a lost session still plays.

        Each ``Send`` is left out where no session was up before or after the input, and where the
        session only transcribes. While a session is being replaced, the transcript keeps the items
        of such a ``Send`` for the next session.

        During post-call analysis only the analysis gets the input, ``InternalError`` excepted.
        ``Prepared`` only replaces the plan, and during the analysis nothing; ``RtpStats`` only
        restarts the RTP timeout.
        """
        if type(input) is inputs.RtpStats:  # once a second, and audio goes on meanwhile
            return self._handlers[inputs.RtpStats](input, now)
        conversation = self._call.conversation
        event = input.event if type(input) is inputs.ServerEventReceived else None
        flowing, self._flowing = self._flowing, None
        if self._call.state is State.FINISHED:
            return []
        if isinstance(input, Prepared):
            return [] if self._post_call is not None else self._call.complete_plan(input, now)
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
            todo += self._session.failover.on(input, todo, now)
            todo += self._after_input(now, any(type(one) is outputs.Send for one in todo))
            if type(input) is inputs.CallerSounds and not todo:
                self._flowing = flowing  # once a second, too, while the caller speaks
        elif self._session.failover.over is not None:
            todo = todo + self._session.end_after_failover(now)
        elif self._call.session_up:
            todo = todo + self._while_not_live(now)
        responds = conversation.control.capabilities.responds
        if not (responds and (session_was_up or self._call.session_up)):
            if self._session.failover.active:
                # A tool's result, a key: the session that is to come will be told.
                conversation.transcript.add_sent_items(todo, now)
            return [output for output in todo if not isinstance(output, outputs.Send)]
        conversation.transcript.add_sent_items(todo, now)
        todo = conversation.control.call_ids.sent(todo)
        if any(type(o) is outputs.Send and type(o.command) is UpdateSession for o in todo):
            todo += conversation.silence.on_update_sent(now)
        return todo

    @property
    def variables(self) -> Mapping[str, str]:
        """Values of the route's variables in this call."""
        return self._call.plan.variables

    @property
    def talking(self) -> bool:
        """Whether the call is up with a session, and not joined with a B-leg; True also on hold and
        while a transfer is under way, when caller and model do not hear each other."""
        return self._call.session_up and self._call.state is State.TALKING

    @property
    def deadline(self) -> float | None:
        """When a :class:`inputs.Tick` is due next (s); None while nothing waits for time, and once
        finished. In a call that is ending: when leg or post-call analysis is given up."""
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
            self._session.handover.deadline if call.may_hand_over else None,
        )
        return min((at for at in due if at is not None), default=None)

    def _while_not_live(self, now: float) -> list[outputs.Output]:
        """Follow an input of a call that is not live but has a session: one that we place, until
        the callee answers (the session may hear the network's announcement), or an inbound one
        whose sound is still to be played. A queued action stays queued, and its wait for speech
        begins anew; a hang-up that is due ends the call. Nothing else of :meth:`_after_input` is
        done."""
        self._call.conversation.call_actions.begin_if_ready(now, queued=False, confirmed=False)
        why, detail = self._call.conversation.ended(now)
        return [] if why is None else self._end_call(why, now, detail)

    def _after_input(self, now: float, sending: bool) -> list[outputs.Output]:
        """Start what was waiting when this input came, in a live call. In order: actions, goodbye
        and tasks of the conversation; the end of a failover during which a transfer was queued or
        the conversation was to end; where caller and B-leg were joined, the call is BRIDGED, and
        its session is closed or only listens; a hand-over; the replacement of a session that gives
        no response; the end of the call; ``Hold`` where the hold has changed.

        The call ends when failover has no step left; else when an action says so, when the session
        was lost during a transfer that has failed since, or, where none was so lost, when the
        conversation says so. ``Hold`` is on while the caller has us on hold or an action suspends
        the audio.

        Args:
            sending: the input has commands sent to the session. Another that took over now would
                not be told of them, so that a hand-over waits for the next input.
        """
        conversation = self._call.conversation
        todo = conversation.after_input(now, confirmed=self._call.state is not State.ANSWERED)
        sending = sending or any(type(one) is outputs.Send for one in todo)
        todo += self._session.settle_failover(now)
        if conversation.call_actions.joined and self._call.state is State.TALKING:
            todo += self._session.on_bridged(now)
        if self._call.may_hand_over and not sending:
            todo += self._session.handover.promote_if_quiet(now)
        if self.talking and conversation.silence.rule:
            todo += self._session.on_silence(conversation.silence.rule, now)
        if self._session.failover.over is not None:
            return todo + self._session.end_after_failover(now)
        why, detail = conversation.call_actions.hangup_due or (None, "")
        lost = self._session.lost_meanwhile
        if why is None and lost is None:
            why, detail = conversation.ended(now)
        elif why is None and lost is not None and not conversation.call_actions.transferring:
            why, detail = lost
        if why is not None:
            return todo + self._end_call(why, now, detail)
        audio_held = self._call.held or conversation.call_actions.audio_suspended
        hold = outputs.Hold(audio_held, self._call.held and self._call.plan.silence_on_hold)
        if hold != self._hold:
            self._hold = hold
            todo.append(hold)
            conversation.control.playback.on_paused("held", audio_held, now)
        return todo

    def _on_event(self, input: inputs.ServerEventReceived, now: float) -> list[outputs.Output]:
        """Hand a server event to the conversation; ignored while no session is up."""
        if not self._call.session_up:
            return []
        return self._call.conversation.on_event(input.event, now, input.command)

    def _on_transfer(self, input: inputs.TransferEvent, now: float) -> list[outputs.Output]:
        """Hand REFER progress, an event of the B-leg or of an interpreter to the transfer, and
        return its outputs; ignored unless the call is live. Words of an interpreter go into the
        transcript in any case."""
        conversation = self._call.conversation
        if isinstance(input, inputs.InterpreterEvent):
            conversation.transcript.on_interpreter_event(input, now)
        return conversation.call_actions.on_transfer_event(input, now) if self._call.live else []

    def _on_leg_ended(self, input: inputs.LegEnded, now: float) -> list[outputs.Output]:
        """Handle the end of the SIP dialog (BYE, CANCEL, failure or timeout): end the call, or
        finish it where it was ending.

        First stop playout of a live call, so that the record has what was heard. An outbound call
        that was not answered ends by its final response. A BYE may mean that the caller's side has
        carried out our REFER; then the call ends as transferred. Else the reason follows from
        status, method and who ended the leg.
        """
        if self._ending is not None:
            return self._finish(now)
        # First of all, what was heard.
        todo = self._call.conversation.control.playback.stop(now) if self._call.live else []
        outcome = f"{input.code or ''} {input.phrase}".strip()
        if self._call.state is State.DIALLING:
            why = why_not_answered(input.code)
            return todo + self._end_call(why, now, outcome, leg_over=True, code=input.code)
        if input.method == "BYE" and self._call.conversation.call_actions.end_by_bye(now):
            why, outcome = EndReason.TRANSFERRED, "the caller's side let go; it told no outcome"
        else:
            talked = self._call.state in (State.TALKING, State.BRIDGED)
            why = why_leg_ended(input.code, input.method, local=input.local, talked=talked)
        return todo + self._end_call(why, now, outcome, reason=input.reason_header, leg_over=True)

    def _on_tick(self, _input: inputs.Tick, now: float) -> list[outputs.Output]:
        """Act on deadlines. In a call that is ending, only: if the leg has not ended in time, log
        it and finish.

        Otherwise only the first of these that applies: a timer of the call that is over (ACK,
        ringing, maximum duration, RTP) ends the call; a call whose model is ready is answered once
        its sound was played; failover, hand-over, conversation and session on hold, in this order,
        each act on their own deadlines.
        """
        if self._call.state is State.ENDING:
            if self._end_at is not None and now >= self._end_at:
                return [self._call.timeline.note(now, "leg_timeout", "error"), *self._finish(now)]
            return []
        due = self._call.timers.due(now)
        if due is not None:
            return self._end_call(due[0], now, due[1])
        if self._call.opening.waiting and self._call.opening.check_sound(now):
            return self._session.answer(now)
        todo = self._session.answer_if_step_waits(self._session.failover.tick(now), now)
        if self._call.may_hand_over:
            todo += self._session.handover.tick(now)
        todo += self._call.conversation.on_tick(now)
        return todo + self._session.tick(now)

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
        """Decide the ending of the call, which is ENDING from now on; nothing a second time.
        Returns ``CloseSession``, unless post-call analysis still needs the session, and for a leg
        that is not over ``HangUp`` (BYE, CANCEL) or, of an inbound call that is not answered,
        ``Reject``.

        Before them come the end of the current action (a B-leg is hung up) and, of an analysis,
        which only a call that is TALKING with a session can have, its requests, after a briefing
        under way is cancelled (:meth:`OutOfBandResponses.abandon`). A cancelled call, and
        one over capacity, counts as not answered. A 503 has Retry-After: of route or server,
        whichever is longer. The call is finished here if the leg is over, or was never dialled, and
        there is no analysis.

        Args:
            why: reason, from which SIP code, Reason header and who ended it follow.
            detail: text for the record.
            reason: Reason header of the peer's BYE or CANCEL; None where we end the call.
            leg_over: the dialog is over already.
            code: SIP code of the callee's final response to a placed call; 0 without one.
            step: fallback step that says how an unanswered call is rejected (486, 302).
        """
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
            todo += self._call.conversation.control.out_of_band.abandon(now)
            todo += self._post_call.request_answers(now)
        else:
            todo.append(outputs.CloseSession(why.value))
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
        """Hand an input to the post-call analysis, which goes on after the call. Once it is
        complete, return ``CloseSession``, and finish the call if the leg is over; else the leg's
        end does."""
        todo = after.on(input, now)
        if not after.is_complete(now):
            return todo
        self._post_call = None
        todo.append(outputs.CloseSession(after.why.value))
        return todo + self._finish(now) if after.leg_over else todo

    def _on_internal_error(self, input: inputs.InternalError, now: float) -> list[outputs.Output]:
        """Handle an exception in our own code: end the call (``internal_error``); post-call
        analysis is given up. In a call that is ending already, only log it and close session and
        leg (``HangUp``): its ending stays. It is finished here if only the analysis was waited
        for."""
        after, self._post_call = self._post_call, None
        if self._call.state is not State.ENDING:
            return self._end_call(EndReason.INTERNAL_ERROR, now, input.detail)
        # Ending it may be what failed, and a leg or a session left up costs somebody money.
        note = self._call.timeline.note(now, "teardown_error", "error", detail=input.detail)
        close = outputs.CloseSession(EndReason.INTERNAL_ERROR.value)
        hangup = outputs.HangUp({"Reason": reason_header(EndReason.INTERNAL_ERROR)})
        finished = self._finish(now) if after is not None and after.leg_over else []
        return [note, close, hangup, *finished]

    def _finish(self, now: float) -> list[outputs.Output]:
        """Complete the record with ending and time of the end, once the leg (or the wait for its
        end) and post-call analysis are over. Returns the log line ``end`` and ``Finished``."""
        assert self._ending is not None
        self._call.state = State.FINISHED
        record, ending, ended_ms = self._call.record, self._ending, self._ended_ms
        record.ending = ending
        record.times.end = self._call.timeline.ms(now) if ended_ms is None else ended_ms
        record.media.late_audio_ms = self._call.conversation.control.playback.late_audio_ms
        note = self._call.timeline.note(
            now, "end", "debug", by=ending.by.value, why=ending.why.value, detail=ending.detail
        )
        return [note, outputs.Finished()]
