# SPDX-License-Identifier: GPL-2.0-or-later
"""Session of a call: its set-up, loss and replacement, and the answer to the call that follows from
it; and the state of the call, which is shared with what handles the leg."""

from __future__ import annotations

from enum import Enum, auto
from typing import Protocol

from gateway.call import inputs, outputs
from gateway.call.call_control import Timers
from gateway.call.call_record import CallRecord, CallTimeline
from gateway.call.conversation.control import HELD, RESUMED, record_call
from gateway.call.conversation.conversation import Conversation
from gateway.call.conversation.playback import Playout
from gateway.call.failover import Failover, Handover, seed_commands
from gateway.call.outputs import Output
from gateway.call.plan import AnswerPlan, CallPlan, FallbackStep, OutboundPlan, Prepared
from gateway.call.tools.commands import OperatorHold, RecordCall, SetDisposition
from gateway.ending import EndReason
from gateway.realtime.errors import Kind

RELEASE_AGAIN_SECONDS = 1.0
"""Until it is tried again to close a session on hold (s), where something is being done."""


class State(Enum):
    """State of a call. They are passed through in this order; some are left out. Only an escape
    from an interpreted call leads back, from BRIDGED to TALKING."""

    CONNECTING = auto()
    """The session is being set up: 180, 183 or (``answer.mode = "immediate"``) 200 is sent; an
    outbound call is not dialed yet."""
    DIALLING = auto()
    """The callee of an outbound call is being called and has not answered."""
    ANSWERED = auto()
    """200 is sent, its ACK has not come."""
    TALKING = auto()
    """Answered and confirmed by ACK; with or without a session (:attr:`CallContext.session_up`):
    it may be being replaced, be closed on hold, or be given up for a transfer."""
    BRIDGED = auto()
    """Caller and B-leg are joined."""
    ENDING = auto()
    """The ending is decided; the leg is not over yet, or the session still needed."""
    FINISHED = auto()
    """Leg and session are over."""


class AnswerPolicy:
    """Decides when an inbound call is answered (``[route.answer]``). Times in s.

    ``when_ready``: 180, and 200 once the model is ready. ``early_media``: 183 with SDP and the
    route's sound, and 200 once the model is ready and the sound was played for
    ``play_to_end_seconds``. ``immediate``: 200 and the sound; the model is heard once both
    conditions hold.
    """

    def __init__(self, plan: AnswerPlan, timeline: CallTimeline) -> None:
        self._plan = plan
        self._timeline = timeline
        self._began: float | None = None
        self.waiting = False
        """The model is ready, and the sound has not yet been played for ``play_to_end_seconds``."""
        self.confirmed = False
        """The ACK came before the model was ready, or before the sound was played (only in mode
        ``immediate``)."""

    @property
    def at_once(self) -> bool:
        """Whether the 200 is sent before the model is ready (``mode = "immediate"``)."""
        return self._plan.mode == "immediate"

    def begin(self, now: float) -> list[Output]:
        """Begin the call, once. Mode ``when_ready`` returns ``Ring`` (180); ``early_media``
        ``Progress`` (183 with SDP) and the sound, whose time counts from now; ``immediate``
        ``Answer`` (200) and the sound. Records and logs ``ringing``, or ``answered``."""
        times = self._timeline.record.times
        if self.at_once:
            times.answered = self._timeline.ms(now)
            return [
                outputs.Answer(),
                self._timeline.note(now, "answered", "info"),
                *self._play_sound(),
            ]
        times.ringing = self._timeline.ms(now)
        note = self._timeline.note(now, "ringing", "info")
        if self._plan.mode != "early_media":
            return [note, outputs.Ring()]
        self._began = now
        return [note, outputs.Progress(), *self._play_sound()]

    def on_confirmed(self, now: float) -> None:
        """Note the ACK of a 200 that was sent before the model was ready: ``play_to_end_seconds``
        count from now, as the caller hears the sound from now on."""
        self.confirmed, self._began = True, now

    def check_sound(self, now: float) -> bool:
        """Set :attr:`waiting` to whether the sound has still to be played, and return the opposite:
        whether it has been for ``play_to_end_seconds``. Always True where that setting is 0; else
        False before the ACK in mode ``immediate``. To be called once the model is ready, and again
        at :attr:`deadline`."""
        at = self.deadline
        self.waiting = self._plan.play_to_end_seconds > 0 and (at is None or now < at)
        return not self.waiting

    @property
    def deadline(self) -> float | None:
        """When :meth:`check_sound` is to be called again (s): ``play_to_end_seconds`` after the
        route's sound began, with the 183 (``early_media``) or at the ACK (``immediate``). None
        before that, and in mode ``when_ready``, which has no sound."""
        return None if self._began is None else self._began + self._plan.play_to_end_seconds

    def answer(self, now: float) -> list[Output]:
        """Stop the sound (none in mode ``when_ready``) and return ``Answer`` (200), which is
        recorded and logged as ``answered``. In mode ``immediate`` only stop the sound: the 200 was
        sent before."""
        quiet: list[Output] = [outputs.PlaySound("")] if self._plan.mode != "when_ready" else []
        if self.at_once:
            return quiet
        self._timeline.record.times.answered = self._timeline.ms(now)
        return [*quiet, outputs.Answer(), self._timeline.note(now, "answered", "info")]

    def _play_sound(self) -> list[Output]:
        """Return ``PlaySound`` of the route's sound; nothing where it has none."""
        return [outputs.PlaySound(self._plan.sound)] if self._plan.sound else []


class CallContext:
    """State and components of one call, shared by the machine and its handlers.

    Args:
        now: time (s) at which the call began.
    """

    def __init__(self, plan: CallPlan, record: CallRecord, now: float, playout: Playout) -> None:
        self.state = State.CONNECTING
        self.plan = plan
        self.record = record
        self.timeline = CallTimeline(record, now)
        self.conversation = Conversation(plan, self.timeline, playout)
        self.timers = Timers(plan)
        self.opening = AnswerPolicy(plan.answer, self.timeline)
        self.session_up = False
        """The active session is set up, and not lost or closed."""
        self.retry_after: float | None = None
        """Retry-After (s) of the server that refused a session last; None where it told none."""
        self.held = False
        """The caller has put us on hold."""

    @property
    def live(self) -> bool:
        """Whether the call is ANSWERED, TALKING or BRIDGED. One that is answered before its first
        session is up (``answer.mode = "immediate"``) is CONNECTING until then, and not live."""
        return self.state in (State.ANSWERED, State.TALKING, State.BRIDGED)

    @property
    def may_hand_over(self) -> bool:
        """Whether the session is one to be handed over before it ends: it is up, and the call is
        :attr:`live` and not joined with a B-leg."""
        return self.session_up and self.state in (State.ANSWERED, State.TALKING)

    def complete_plan(self, input: Prepared, now: float) -> list[Output]:
        """Replace the plan of call and conversation, and the record's metadata, by those with the
        fetched data in their texts; mark ``data`` and ``caller_history`` in the timeline, where the
        route has them. Returns no output."""
        self.plan = input.plan
        self.record.metadata = dict(input.plan.metadata)
        self.conversation.prepare(input.plan)
        # The log has its line from who fetched it.
        if input.ms is not None:
            failed = {"failed": input.failure} if input.failure else {}
            self.timeline.mark(now, "data", ms=input.ms, **failed)
        if input.history is not None:
            self.timeline.mark(now, "caller_history", **input.history)
        return []


class End(Protocol):
    """What is needed here of ``CallMachine._end_call`` (a Protocol, so that the module need not
    import it): ends the call, once; ``step`` says how an unanswered one is rejected."""

    def __call__(
        self, why: EndReason, now: float, detail: str = "", *, step: FallbackStep | None = None
    ) -> list[Output]: ...


class SessionEvents:
    """Handles the inputs of the realtime sessions: set-up, loss, errors, hand-over, tools, budget.

    Each handler takes its input and the time (s), and returns the outputs to execute.
    :attr:`failover` and :attr:`handover` replace a session; this class answers the inbound call, or
    dials the outbound one, when the first session is ready.

    Args:
        end: ends the call, once.
    """

    def __init__(self, call: CallContext, end: End) -> None:
        self._call = call
        self._end = end
        control, transcript = call.conversation.control, call.conversation.transcript
        self.failover = Failover(control, transcript, call.timeline)
        self.handover = Handover(
            control,
            transcript,
            call.timeline,
            lambda: call.conversation.quiet,
            lambda: call.conversation.response_due,
            call.conversation.detach,
            call.conversation.ask_again,
        )
        self.lost_meanwhile: tuple[EndReason, str] | None = None
        """Reason and detail of a session lost while the caller was being transferred, with which
        the call ends if the transfer fails; None: it was not."""
        self._greeting_requested = False
        self.deadline: float | None = None
        """When :meth:`tick` is to close the session because the caller has us on hold (s). None
        without a hold, in a hold for which no session is closed (:meth:`_plan_release`), and once
        :meth:`tick` has closed it or found none to close."""
        self._released = self._returning = False
        """It was closed for that; the caller is back, and another one is being opened."""
        self._resume = False
        """A response was due when the session was lost, and is requested of the next one."""
        self._waited = False
        """The agent waited in a queue when the session was lost (hold and wait)."""

    def begin_in_outage(self, detail: str, now: float) -> list[outputs.Output]:
        """Begin a call whose server is known to be down, without trying the server: end an outbound
        one; for an inbound one ring (180, or as ``answer.mode`` says), and take the first fallback
        step other than ``reconnect``; answer the call where that step needs it. Without fallback
        steps, end the call (503) and do not ring; with none but ``reconnect``, ring and then end it
        likewise, or by BYE where ``answer.mode`` has answered it.

        Args:
            detail: why the server is known to be down, for the record.
        """
        if not self._has_fallback:
            return self._end(EndReason.SESSION_UNREACHABLE, now, detail)
        begun = self._call.opening.begin(now)
        why = EndReason.SESSION_UNREACHABLE
        todo = self.failover.begin(why, detail, now, answered=False, fatal=True)
        if self.failover.over is not None:
            return [*begun, *todo, *self.end_after_failover(now)]
        return [*begun, *self.answer_if_step_waits(todo, now)]

    def on_hold_changed(self, held: bool, now: float) -> list[outputs.Output]:
        """Handle a hold by the caller (``held``) or its end. On hold, set the time at which the
        session is closed, ``hold.release_after`` s from now (0: never), if a session is up that is
        billed by time. Back from hold, forget that time, and return ``OpenSession`` where the
        session was closed."""
        self._plan_release(held, now)
        if held or not self._released:
            return []
        self._released, self._returning = False, True
        return [self.failover.open_again()]

    def _plan_release(self, held: bool, now: float) -> None:
        """Set the time at which the session is closed because the caller has us on hold; none
        without a hold, with ``hold.release_after`` 0, while no session is up, and for a session
        that is not billed by time."""
        after = self._call.plan.tools.hold.release_after
        by_time = self._call.conversation.control.capabilities.billed_by_time
        wanted = held and after > 0 and by_time and self._call.session_up
        self.deadline = now + after if wanted else None

    def tick(self, now: float) -> list[outputs.Output]:
        """Close a session that is billed by time, and a standby session, once the caller has had us
        on hold for ``hold.release_after`` seconds; :meth:`on_hold_changed` opens one again. While
        an action is queued or under way, or something is being done (:attr:`Conversation.working`),
        it stays open, and :attr:`deadline` is ``RELEASE_AGAIN_SECONDS`` later. Nothing where the
        call is in another state than TALKING, or no session is up."""
        if self.deadline is None or now < self.deadline:
            return []
        self.deadline = None
        if not (self._call.state is State.TALKING and self._call.session_up):
            return []
        if self._call.conversation.call_actions.busy or self._call.conversation.working:
            self.deadline = now + RELEASE_AGAIN_SECONDS
            return []
        self._released, self._call.session_up = True, False
        self.handover.on_session_over()
        rest = self._call.conversation.detach(now)
        note = self._call.timeline.note(now, "session_released", "info")
        return [*rest, note, outputs.CloseSession("on hold")]

    def on_session_ready(self, input: inputs.SessionReady, now: float) -> list[outputs.Output]:
        """Handle a session that is set up (``session.updated``, or ``session.started`` of a Live
        one).

        While the call is CONNECTING: seed the session (:func:`seed_commands`), and return
        ``Answer`` for an inbound call (not yet while its sound plays, see :class:`AnswerPolicy`),
        ``Dial`` for an outbound one. In a call that is up: go on with the session, if failover or
        the end of a hold has opened it; else nothing. While the call is ending, close the session.
        """
        if self._call.state is State.ENDING:
            # It came up while it was being given up; nobody else will close it.
            return [outputs.CloseSession("call over")]
        returned, self._returning = self._returning, False
        if (self.failover.active or returned) and self._call.state is not State.CONNECTING:
            return self._on_replacement_ready(input, now)
        if self._call.state is not State.CONNECTING:
            return []
        self._call.session_up = True
        control, words = self._call.conversation.control, self._call.conversation.transcript
        control.set_capabilities(input.capabilities)
        self.handover.on_session_up(input.seconds_left, now)
        recovered = (
            self.failover.on_session_ready(now)
            if self.failover.active
            else seed_commands(words, control)
        )
        if self._call.plan.outbound is not None:
            return [*recovered, *self._dial(input, self._call.plan.outbound, now)]
        self._call.record.session.session_id = input.session_id
        self._call.record.times.session = self._call.timeline.ms(now)
        note = self._call.timeline.note(now, "session_up", "info", session_id=input.session_id)
        answer = self.answer(now) if self._call.opening.check_sound(now) else []
        # What was said or pressed before is answered after the first words of all.
        due = self._was_due()[1] and self._greeting_requested
        return [*recovered, note, *answer, *self._call.conversation.ask_again(now, due)]

    def _on_replacement_ready(self, input: inputs.SessionReady, now: float) -> list[outputs.Output]:
        """Go on, in a call that is up, with the session that a fallback step has opened, or that
        follows a hold. The first is seeded with the conversation; the second, which had its seed
        when it was opened, is told whether the caller is back or has us on hold again. If the
        caller has us on hold now, a session that is billed by time is closed in its turn after
        ``hold.release_after``.

        Then request the greeting, if it was never requested, or if the route has one, a response
        was due when the session was lost, and nothing of the agent was heard yet; and what the
        caller was being told or asked and has not heard to its end; and after a failover the
        response that was due, or that the end of a wait in a queue has wanted meanwhile
        (:meth:`Conversation.ask_again`).
        """
        self._call.session_up = True
        self._call.conversation.control.set_capabilities(input.capabilities)
        self.handover.on_session_up(input.seconds_left, now)
        self._call.record.session.session_id = input.session_id
        self._call.conversation.control.responses.reset()
        resume, due = self._was_due()
        if self.failover.active:
            todo = self.failover.on_session_ready(now)
        else:
            note, due = self._call.timeline.note, False
            todo = [note(now, "session_resumed", "info", session_id=input.session_id)]
            words = HELD if self._call.held else RESUMED
            todo += self._call.conversation.control.add_message(words)
        self._plan_release(self._call.held, now)
        unheard = self._call.plan.greeting is not None
        unheard = unheard and self._call.record.times.first_audio is None
        if not self._greeting_requested or (resume and unheard):
            todo += self.request_greeting(now)
        return todo + self._call.conversation.ask_again(now, due)

    def _was_due(self) -> tuple[bool, bool]:
        """Return whether a response was due when the session was lost, which is forgotten, and
        whether one is due now: for that reason, because the agent waited in a queue then, or as the
        conversation is now (:attr:`Transcript.response_due`)."""
        resume, waited, self._resume, self._waited = self._resume, self._waited, False, False
        return resume, resume or waited or self._call.conversation.transcript.response_due

    def on_standby_ready(self, input: inputs.StandbyReady, now: float) -> list[outputs.Output]:
        """Keep a standby session that is ready, for a hand-over in the next pause (at the latest
        ``FORCED_SECONDS`` before the active one ends); ignored if none is being opened. Returns no
        output."""
        self.handover.on_standby_ready(input, now)
        return []

    def on_standby_failed(self, input: inputs.StandbyFailed, now: float) -> list[outputs.Output]:
        """Log a standby session that failed (``handover_failed``), and plan another while there is
        time; nothing while no session is up."""
        return self.handover.on_standby_failed(input.detail, now) if self._call.session_up else []

    def request_greeting(self, now: float) -> list[outputs.Output]:
        """Begin the conversation: request disclosure, consent to a recording, and greeting, as the
        route has them. Nothing before the ACK if the source is not trusted, so that a forged INVITE
        costs no response: after the ACK, :meth:`request_deferred_greeting` makes the request."""
        if not (self._call.plan.trusted or self._call.record.times.confirmed is not None):
            return []
        self._greeting_requested = True
        return self._call.conversation.open(now)

    def request_deferred_greeting(self, now: float) -> list[outputs.Output]:
        """Request the greeting when the ACK of our 200 came, or the callee's 200; nothing if it was
        requested before or no session is up."""
        return (
            self.request_greeting(now)
            if self._call.session_up and not self._greeting_requested
            else []
        )

    def answer(self, now: float) -> list[outputs.Output]:
        """Answer the inbound call, since the session is up: stop the sound for the wait, return
        ``Answer`` (200 OK), start the wait for the ACK, and request the greeting; for a source that
        is not trusted, the greeting follows only after the ACK (:meth:`request_greeting`).

        A call that was answered at once gets no second ``Answer``. If its ACK came, it is TALKING
        now: ``StartRecording``, if the route records always and asks for no consent, and
        ``StartMedia``. If not, it is ANSWERED, and the wait for the ACK starts anew.
        """
        self._call.opening.waiting = False
        todo = self._call.opening.answer(now)
        if self._call.opening.confirmed:
            self._call.state = State.TALKING
            todo += self._call.conversation.recording.start_if_due(now, confirmed=True)
            todo.append(outputs.StartMedia())
        else:
            self._call.state = State.ANSWERED
            self._call.timers.answered(now)
        return todo + self.request_greeting(now)

    def _answer_for_fallback(self, now: float) -> list[outputs.Output]:
        """Answer an inbound call, as :meth:`answer` but without greeting, since its fallback step
        (announcement, transfer; no session is up) or the transfer of an escape needs an answered
        call. Where the ACK came before, take the step that has waited; else the step waits for the
        ACK."""
        self._call.opening.waiting = False
        todo = self._call.opening.answer(now)
        if self._call.opening.confirmed:
            self._call.state = State.TALKING
            todo += self._call.conversation.recording.start_if_due(now, confirmed=True)
            return [*todo, outputs.StartMedia(), *self.failover.on_call_answered(now)]
        self._call.state = State.ANSWERED
        self._call.timers.answered(now)
        return todo

    def end_after_failover(self, now: float) -> list[outputs.Output]:
        """End the call as ``failover.over`` says, which is set: for the reason for which the
        session was lost, and as the last step (busy, redirect, hangup) says."""
        over = self.failover.over
        assert over is not None
        return self._end(over.why, now, over.detail, step=over.step)

    def _dial(
        self, up: inputs.SessionReady, plan: OutboundPlan, now: float
    ) -> list[outputs.Output]:
        """Return ``Dial``, since the session of an outbound call is ready; the call is DIALLING
        from now on, and its ring timeout runs."""
        self._call.state = State.DIALLING
        self._call.timers.dialling(now, plan.ring_timeout)
        self._call.record.session.session_id = up.session_id
        self._call.record.times.session = self._call.timeline.ms(now)
        return [
            self._call.timeline.note(now, "session_up", "info", session_id=up.session_id),
            outputs.Dial(),
            self._call.timeline.note(now, "dialing", "info"),
        ]

    @property
    def may_escape(self) -> bool:
        """Whether the state of the call lets a key or phrase take the caller to a human now: the
        call is confirmed by ACK (with or without a session), not ENDING, and not joined with a
        B-leg, unless through an interpreter. The rule
        :class:`gateway.call.rules.escape.EscapeToHuman` has further conditions."""
        early = self._call.state is State.CONNECTING and self._call.opening.confirmed
        interpreted = self._call.conversation.call_actions.interpreted
        return early or interpreted or self._call.state is State.TALKING

    def escape_to_human(self, by: str, now: float) -> list[outputs.Output]:
        """Interrupt the agent, and transfer the caller to the first destination of
        ``[route.escape]``, and on failure to the next.

        A call that is CONNECTING, or joined with an interpreter, goes on as TALKING. Without a
        session, the failover is stopped, a session that is being opened is given up, none is opened
        when the caller is back from a hold, and the call ends if no destination can be reached.
        With a session, the caller is back with the model then.

        Args:
            by: key or word, for the log.
        """
        todo: list[outputs.Output] = []
        if not self._call.session_up:
            # There is nobody to come back to.
            why, detail = EndReason.SESSION_UNREACHABLE, "the caller asked for a human"
            if self.failover.active:
                why = self.failover.why
            elif self._call.state is State.BRIDGED:  # with an interpreter: it was closed for that
                why, self._call.state = EndReason.SESSION_CLOSED, State.TALKING
            self._released = self._returning = False
            todo += self._give_up_session(why, detail, "escaped", now)
        if self._call.state is State.CONNECTING:
            todo += self._answer_for_fallback(now)
        return todo + self._call.conversation.escape.begin(by, now)

    def _give_up_session(
        self, why: EndReason, detail: str, outcome: str, now: float
    ) -> list[outputs.Output]:
        """Give up the session, also one that is being opened, for a caller who is being transferred
        (``outcome`` of a failover that is stopped): the call ends for this reason if the transfer
        fails, and a briefing goes on without the model. ``session_up`` is False already."""
        actions = self._call.conversation.call_actions
        self.lost_meanwhile = (why, detail)
        return [
            *self.failover.stop(outcome),
            outputs.CloseSession(why.value),
            *actions.session_lost(now),
        ]

    def settle_failover(self, now: float) -> list[outputs.Output]:
        """Have the failover follow what has happened during it, after each input. Stop it where a
        transfer was queued, as by an approval that came: its steps would end the call of a caller
        whom somebody has answered. End the call where the conversation is to end, as by a budget
        that is spent, once queued audio was played: there is nobody to say its last words. Nothing
        while no step is being taken."""
        if not self.failover.active:
            return []
        conversation = self._call.conversation
        if conversation.call_actions.audio_suspended:
            self.failover.on_sound_replaced()
        if conversation.call_actions.transferring:
            detail = "lost before the transfer"
            return self._give_up_session(self.failover.why, detail, "transferred", now)
        termination = conversation.control.termination
        if termination is None or conversation.control.speaking:
            return []
        return self._end(termination.why, now, termination.detail)

    def on_session_failed(self, input: inputs.SessionFailed, now: float) -> list[outputs.Output]:
        """Handle a session that could not be set up.

        During a failover: try to open one again later within the step's time, or take the next
        step. Of a call that is CONNECTING, or back from a hold: take the first fallback step (no
        ``reconnect`` if the error is fatal, or the call has no ACK yet); where no fallback steps
        may be taken (:attr:`_has_fallback`), end the call (503 if it is not answered). Otherwise it
        was given up meanwhile, as for a transfer: nothing.
        """
        fatal = input.verdict.kind is Kind.FATAL
        why = EndReason.SESSION_REFUSED if fatal else EndReason.SESSION_UNREACHABLE
        detail = f"{input.verdict.code}: {input.detail}"
        self._call.retry_after = input.retry_after
        if self.failover.active:
            todo = self.failover.on_attempt_failed(
                detail, now, fatal=fatal, after=input.retry_after
            )
            return self.answer_if_step_waits(todo, now)
        returning, self._returning = self._returning, False
        if not (self._call.state is State.CONNECTING or returning):
            return []  # it was given up meanwhile
        if not self._has_fallback:
            return self._end(why, now, detail)
        answered = self._call.opening.confirmed or returning
        return self.answer_if_step_waits(
            self.failover.begin(why, detail, now, answered=answered, fatal=fatal), now
        )

    def answer_if_step_waits(self, todo: list[outputs.Output], now: float) -> list[outputs.Output]:
        """Answer the call (:meth:`_answer_for_fallback`), if the fallback step waits for that and
        the call is still CONNECTING. Returns ``todo``, the outputs of the step, and then those of
        the answer."""
        if self.failover.wants_answer and self._call.state is State.CONNECTING:
            todo = todo + self._answer_for_fallback(now)
        return todo

    @property
    def _has_fallback(self) -> bool:
        """Whether fallback steps may be taken: the route has some, the conversation is not being
        ended, no hang-up waits for closing words or queued audio, and the call is no outbound one
        that has not been answered."""
        placing = self._call.plan.outbound is not None and not self._call.live
        control = self._call.conversation.control
        leaving = control.hangup_after_playout.deadline is not None
        leaving = leaving or control.termination is not None
        return bool(self._call.plan.server.fallback) and not (placing or leaving)

    def on_session_closed(self, input: inputs.SessionClosed, now: float) -> list[outputs.Output]:
        """Handle the close of the session's WebSocket, the first of these that applies:

        Only note that no session is up, if the call is ending or bridged; nothing if the session
        was given up before. A standby session that is ready is promoted at once in a live call,
        except after a normal close (1000). Where the caller is being transferred, or is to be, the
        loss ends the call if the transfer fails. After a normal close, or where a hang-up waits
        only for queued audio, that audio of a live call is played to its end and the call ends.
        Otherwise the session is lost: the fallback steps are taken, or the call ends
        (:meth:`_handle_loss`).
        """
        was_up, self._call.session_up = self._call.session_up, False
        given_up = not was_up and (self.failover.active or self._call.state is not State.CONNECTING)
        if given_up or self._call.state in (State.ENDING, State.BRIDGED):
            return []
        if input.code != 1000 and self._may_promote:
            return self._promote(now)
        self.handover.on_session_over()
        if self._call.live and self._call.conversation.call_actions.transferring:
            return self._handle_loss(EndReason.SESSION_LOST, now, f"{input.code} {input.reason}")
        queued = self._call.conversation.control.hangup_after_playout.is_queued
        if self._call.live and (input.code == 1000 or queued):
            rest = self._call.conversation.hang_up_after_playout(now)
            return [*rest, self._call.timeline.note(now, "session_closed", "info", code=input.code)]
        why = EndReason.SESSION_CLOSED if input.code == 1000 else EndReason.SESSION_LOST
        return self._handle_loss(why, now, f"{input.code} {input.reason}".strip())

    @property
    def _may_promote(self) -> bool:
        """Whether a standby session is ready, and the call is one that it could take over."""
        return self.handover.ready and self._call.state in (State.ANSWERED, State.TALKING)

    def _promote(self, now: float) -> list[outputs.Output]:
        """Promote the standby session, which is ready, at once: the active one is lost."""
        self._call.session_up = True
        return self.handover.promote_if_quiet(now, at_once=True)

    def on_silence(self, rule: str, now: float) -> list[outputs.Output]:
        """Handle a response that is due, or an event that the server owes, which has not come
        within ``silence.timeout``: promote a standby session that is ready, else take the fallback
        steps, as for a lost session. Where none may be taken, interrupt what runs, play the failure
        sound and request the response again; after ``max_failures`` in a row end the conversation.

        Args:
            rule: name of the silence, such as ``response_not_created``, for log and record.
        """
        if self._may_promote:
            return self._promote(now)
        if not self._has_fallback:
            return self._call.conversation.on_silence(rule, now)
        detail = f"{rule}: nothing heard for {self._call.plan.silence.timeout:g} s"
        return self._handle_loss(EndReason.SESSION_SILENT, now, detail)

    def _handle_loss(self, why: EndReason, now: float, detail: str) -> list[outputs.Output]:
        """Handle a session that is lost, silent, or ended by an ``error``: take the fallback steps,
        also in a call that was not answered yet, as its sound was to be played to the end. Queued
        audio is played to its end then, and a response that was due is requested of the next
        session. If no step may be taken (:attr:`_has_fallback`), end the call at once.

        While the caller is being transferred, or is to be once the words before are heard, or is
        bridged, only close the session and set :attr:`lost_meanwhile`: the loss ends the call if
        the transfer fails. A briefing goes on without the model.
        """
        actions = self._call.conversation.call_actions
        leaving = self._call.state is State.BRIDGED or actions.transferring
        if not (self._call.live and leaving):
            if not self._has_fallback:
                return self._end(why, now, detail)
            self._call.session_up = self._call.opening.waiting = False
            self._resume = self._call.conversation.response_due
            self._waited = self._call.conversation.control.waiting
            rest = self._call.conversation.detach(now)
            # Until the ACK there is nobody who could hear anything.
            answered = self._call.state is State.TALKING or self._call.opening.confirmed
            todo = rest + self.failover.begin(why, detail, now, answered=answered)
            return self.answer_if_step_waits(todo, now)
        # The caller is on the way to somebody else: it matters only if they come back.
        self._call.session_up = False
        note = self._call.timeline.note(
            now, "session_lost", "warning", why=why.value, detail=detail
        )
        gone = self._give_up_session(why, detail, "transferred", now)
        # Words that are still to be heard before the transfer begins.
        rest = [] if actions.underway else self._call.conversation.detach(now)
        return [note, *gone, *rest]

    def on_budget(self, input: inputs.BudgetThreshold, now: float) -> list[outputs.Output]:
        """Close the session that listens to a bridged call, or those that interpret in it, when a
        budget is spent; the legs stay joined. Nothing at a warning, and in other states: there the
        rule :class:`gateway.call.rules.cost_control.Budget` acts."""
        if self._call.state is not State.BRIDGED or not input.spent:
            return []
        interpreted = self._call.conversation.call_actions.interpreted
        if not (self._call.session_up or interpreted):
            return []
        # The two go on by themselves; only the sessions cost money.
        self._call.session_up = False
        note = self._call.timeline.note(now, "budget_exceeded", "warning", budget=input.detail)
        if interpreted:
            return [note, *self._call.conversation.call_actions.stop_interpreting()]
        return [note, outputs.CloseSession(EndReason.BUDGET.value)]

    def on_server_error(
        self, input: inputs.ServerErrorReceived, now: float
    ) -> list[outputs.Output]:
        """Handle an ``error`` event of the session: hand it to the conversation. If it ends the
        session, promote a standby session that is ready, or where a hang-up waits only for queued
        audio, close the session and play that audio to its end; else take the fallback steps as for
        a lost one. Nothing while no session is up."""
        if not self._call.session_up:
            return []
        conversation = self._call.conversation
        todo = conversation.on_error(input.error, input.command, now)
        if conversation.ended(now)[0] is not EndReason.SESSION_ERROR:
            return todo
        if self._may_promote:
            return todo + self._promote(now)
        why = EndReason.SESSION_ERROR
        if self._call.live and conversation.control.hangup_after_playout.is_queued:
            self._call.session_up = False
            rest = conversation.hang_up_after_playout(now)
            return [*todo, *rest, outputs.CloseSession(why.value)]
        detail = f"{input.error.code}: {input.error.message}"
        return todo + self._handle_loss(why, now, detail)

    def on_bridged(self, now: float) -> list[outputs.Output]:
        """Handle caller and B-leg that have been joined: the call is BRIDGED, and what is for model
        and caller alone stops (:meth:`Conversation.on_bridged`). Close the session; or with
        ``transfer.listen``, and without an interpreter, have it listen only. Where a budget was
        spent meanwhile, no session listens or interprets."""
        self._call.state = State.BRIDGED
        conversation, control = self._call.conversation, self._call.conversation.control
        note = self._call.timeline.note(now, "bridged", "info")
        todo = [note, *conversation.on_bridged(now)]
        silent, termination = control.call_actions.interpreted, control.termination
        if termination is not None and termination.why is EndReason.BUDGET:
            silent, todo = True, todo + control.call_actions.stop_interpreting()
        if self._call.session_up and self._call.plan.tools.transfer.listen and not silent:
            return todo + control.listen()
        was_up, self._call.session_up = self._call.session_up, False
        return [*todo, outputs.CloseSession("bridged")] if was_up else todo

    def on_tool_done(self, input: inputs.ToolDone, now: float) -> list[outputs.Output]:
        """Hand the result of a tool function to the conversation, which answers the model's call;
        dropped if no session is up and no fallback step is being taken."""
        if not (self._call.session_up or self.failover.active):
            return []
        return self._call.conversation.functions.on_tool_done(input.call_id, input.output, now)

    def on_tool_request(self, input: inputs.ToolRequest, now: float) -> list[outputs.Output]:
        """Carry out a command of a tool function, operator or application.

        A recording command, and the end of an operator's hold, need a call that is
        :attr:`CallContext.live`, a disposition nothing. The others need a live call that is not
        bridged, and its session. A command that lacks what it needs is dropped; an out-of-band
        request is reported as ``refused``.
        """
        if isinstance(input.command, RecordCall) and self._call.live:
            return record_call(input.command, self._call.conversation.control, now)
        if isinstance(input.command, SetDisposition):
            command, control = input.command, self._call.conversation.control
            return [control.note_disposition(command.disposition, command.by, now)]
        talks = self._call.session_up and self._call.state is not State.BRIDGED
        if not (self._call.live and (talks or input.command == OperatorHold(False))):
            return self._call.conversation.reject_command(input.command)
        return self._call.conversation.on_command(input.command, now)
