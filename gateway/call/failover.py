# SPDX-License-Identifier: GPL-2.0-or-later
"""Failover and hand-over: the session that is lost, or about to expire, is replaced by another.

When it is lost or cannot be set up, the route's fallback steps are taken in turn; before it is to
expire, a standby session takes over in a pause. The new session is seeded with the conversation as
the caller heard it (``Transcript.seed``) and continues from there.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from gateway.call import inputs
from gateway.call.call_record import CallTimeline, FailoverRecord
from gateway.call.conversation.control import ConversationControl, Termination, message
from gateway.call.conversation.transcript import Transcript
from gateway.call.outputs import CloseSession, OpenSession, Output, PlaySound, PromoteStandby, Send
from gateway.call.plan import FallbackStep
from gateway.ending import EndReason
from gateway.realtime.events import AudioDelta, CreateItem
from gateway.realtime.session_object import Capabilities

FIRST_WAIT = 0.25
LONGEST_WAIT = 4.0
"""Seconds from an attempt that failed to the next; each wait is double the one before."""

PROVEN_SECONDS = 30.0
"""A new session that is silent within this (s), before the caller heard it, counts as a failed
attempt. So does one that is lost within the step's own timeout."""

MAX_PER_MINUTE = 3
"""Lost sessions within 60 s after which the same server is not tried again; the next step is."""

MAX_PER_CALL = 20
"""Lost sessions of one call after which no other one is opened."""

SINCE = "Said and done since what you were told at the start:"
"""Context for a session that took over."""

_OPENS = ("reconnect", "server")
NEEDS_ANSWER = ("announcement", "transfer")
"""Actions that need an answered call; an unanswered one is answered for them."""


@dataclass(frozen=True, slots=True)
class Over:
    """How the call is to be ended, since no fallback step is left that could replace the
    session."""

    why: EndReason
    detail: str
    step: FallbackStep | None = None
    """The step that says how a call that is not answered is rejected (busy, redirect); None: as
    ``why`` has it."""


class Failover:
    """Takes the route's fallback steps (``[[route.fallback]]``) in order, until a session is up,
    the caller is transferred, or the call ends.

    Methods that take the time (s) return outputs.
    """

    def __init__(
        self, control: ConversationControl, transcript: Transcript, timeline: CallTimeline
    ) -> None:
        self._control = control
        self._transcript = transcript
        self._timeline = timeline
        self._server = 0
        """Server of the session that was opened last, as ``OpenSession`` counts them."""
        self._steps: tuple[FallbackStep, ...] = ()
        self._at = -1
        """Index of the current step in ``_steps``; -1: none was taken."""
        self.why = EndReason.SESSION_LOST
        """Reason for which the session was lost last."""
        self._detail = ""
        self._until: float | None = None
        """When the time of the step is over (s); None where it has none."""
        self._again_at: float | None = None
        """When the step's next attempt is due (s); None while one runs."""
        self._wait = FIRST_WAIT
        """From a failed attempt to the next (s)."""
        self._sounding = ""
        """Sound of a step that plays; "" for none."""
        self._answered = False
        self._unproven: float | None = None
        """When the latest new session came up (s); None once the caller has heard its audio."""
        self._lost_at: deque[float] = deque(maxlen=MAX_PER_MINUTE)
        self.old_audio_plays = False
        """Audio of the lost session was still queued when the next session came up."""
        self._began = 0.0
        self.active = False
        """The call has no session, and a fallback step is being taken."""
        self.wants_answer = False
        """The step needs an answered call, and waits for the answer and its ACK."""
        self.over: Over | None = None
        """Set once no step is left; with it the machine ends the call."""

    # ---- what happens

    def begin(
        self, why: EndReason, detail: str, now: float, *, answered: bool, fatal: bool = False
    ) -> list[Output]:
        """Record and log the lost session, and take the first fallback step; where there is none to
        take, set :attr:`over`.

        Exceptions, in this order: after ``MAX_PER_CALL`` losses no step that opens a session is
        taken. A new session that was lost too soon (:meth:`_counts_as_failed`), and before the
        caller heard its audio, is a failed attempt of its step: the step is tried again, or the
        next one taken. After ``MAX_PER_MINUTE`` losses within 60 s the step that follows the
        one taken last comes, not the first.

        Args:
            answered: the caller can hear sounds. False: the call waits for its answer or ACK, so
                no sound is played, and ``reconnect`` is left out, as that server was tried already.
            fatal: the server would refuse another session, so ``reconnect`` is left out.
        """
        # A call that is not answered has been tried for its connect_timeout already.
        useless = fatal or not answered
        steps = tuple(
            step
            for step in self._control.plan.server.fallback
            if not (useless and step.action == "reconnect")
        )
        self.why, self._detail, self._answered = why, detail, answered
        self._began, unproven, self._unproven = now, self._unproven, None
        self.active = True
        record = self._timeline.record
        record.session.failovers.append(
            FailoverRecord(round(self._timeline.ms(now), 1), why.value, detail)
        )
        note = self._timeline.note(now, "session_lost", "warning", why=why.value, detail=detail)
        often = len(self._lost_at) == MAX_PER_MINUTE and now - self._lost_at[0] < 60
        self._lost_at.append(now)
        if len(record.session.failovers) > MAX_PER_CALL:
            self._steps, self._at = tuple(step for step in steps if step.action not in _OPENS), -1
        elif unproven is not None and self._counts_as_failed(unproven, now):
            self._latest_record.steps.append(self._step.action)
            todo = self.on_attempt_failed(detail, now, fatal=fatal)
            return [note, *todo, *(self._play_sound(now) if self._again_at is not None else [])]
        elif not often:
            self._steps, self._at = steps, -1
        return [note, *self._next_step(now)]

    def _counts_as_failed(self, up_at: float, now: float) -> bool:
        """Return whether the session that came up at ``up_at`` (s), and of which the caller has
        heard nothing, counts as a failed attempt of its step: the step's timeout, which runs since
        the step was taken, is not over; or the session was lost as silent (``session_silent``)
        within ``PROVEN_SECONDS`` of ``up_at``. False where no step with a timeout was taken."""
        if self._until is None:
            return False
        return now < self._until or (
            self.why is EndReason.SESSION_SILENT and now - up_at < PROVEN_SECONDS
        )

    def on_attempt_failed(
        self, detail: str, now: float, *, fatal: bool, after: float | None = None
    ) -> list[Output]:
        """Plan another attempt of the step: ``FIRST_WAIT`` later the first time, then each time
        twice as long, up to ``LONGEST_WAIT``. Take the next step where that would be after the
        step's timeout, or the failure is ``fatal``. Nothing while no step that opens sessions is
        being taken: an announcement has given up the attempt of the step before.

        Args:
            detail: for the record, if the call ends.
            fatal: the server would refuse another session, too.
            after: Retry-After of the server (s): the next attempt is not earlier. None: it sent
                none.
        """
        if not self.active or self._until is None or self._step.action not in _OPENS:
            return []
        self._detail = detail
        again_at = now + max(self._wait, after or 0.0)
        if fatal or again_at >= self._until:
            return self._next_step(now)
        self._again_at, self._wait = again_at, min(2 * self._wait, LONGEST_WAIT)
        return []

    def on_session_ready(self, now: float) -> list[Output]:
        """End the failover, as ``recovered``: a new session is up. Returns, in order, the end of
        the step's sound, a log line, and the commands that seed the session with the
        conversation."""
        self.active, self._again_at, self._unproven = False, None, now
        self.old_audio_plays = self._control.speaking
        lasted = round((now - self._began) * 1000, 1)
        self._latest_record.outcome, self._latest_record.session_after_ms = "recovered", lasted
        note = self._timeline.note(now, "session_replaced", "info", after_ms=lasted)
        return [*self._stop_sound(), note, *seed_commands(self._transcript, self._control)]

    def on_call_answered(self, now: float) -> list[Output]:
        """Note that the caller can hear sounds from now on: the ACK of our 200 came, or the callee
        has answered. Take the step that has waited for that; else play the sound of the step being
        taken. Returns nothing while no step is being taken."""
        waited, self._answered, self.wants_answer = self.wants_answer, True, False
        if not self.active:
            return []
        return self._take_step(now) if waited else self._play_sound(now)

    def on(self, input: inputs.Input, todo: Sequence[Output], now: float) -> list[Output]:
        """Follow what the caller hears; the machine calls this with inputs of a live call, also
        where no session was ever lost.

        Where the caller hears the new session (:meth:`_agent_is_heard`), set ``heard_after_ms`` (ms
        since the loss), once; a later loss of that session does not count as a failed attempt of
        its step. When playout has run empty, no old audio plays any more. While a step is being
        taken, return its sound, once the caller hears nothing else (:meth:`_play_sound`); again
        after another sound in its place.

        Args:
            todo: what the input has brought so far; of it, sounds for the caller are looked at.
        """
        if self._agent_is_heard(input) and self._timeline.record.session.failovers:
            last = self._latest_record
            if not self.active:
                self._unproven = None
            if last.heard_after_ms is None and not self.active and self._at >= 0:
                last.heard_after_ms = round((now - self._began) * 1000, 1)
        if isinstance(input, inputs.PlayoutDrained):
            self.old_audio_plays = False
        if not self.active:
            return []
        sounds = [it.name for it in todo if type(it) is PlaySound and not it.b_leg]
        if sounds and sounds[-1] != self._sounding:
            self.on_sound_replaced()  # by a function's filler, say, which ends with its result
        return self._play_sound(now)

    def on_sound_replaced(self) -> None:
        """Note that another sound, as of a hold or transfer, has taken the place of the step's: the
        end of the step stops no sound, unless :meth:`on` has played the step's again."""
        self._sounding = ""

    def _agent_is_heard(self, input: inputs.Input) -> bool:
        """Return whether this input means that the caller hears audio of the new session, if one is
        up: playout starts or, while audio of the lost session still plays, an audio delta comes."""
        if isinstance(input, inputs.ServerEventReceived) and self.old_audio_plays:
            return isinstance(input.event, AudioDelta)
        return isinstance(input, inputs.PlayoutStarted)

    def tick(self, now: float) -> list[Output]:
        """When the step's time is over, take the next; when its next attempt is due, open a
        session. Nothing while no step is being taken."""
        if not self.active:
            return []
        if self._until is not None and now >= self._until:
            return self._next_step(now)
        if self._again_at is not None and now >= self._again_at:
            self._again_at = None
            return [self._open()]
        return []

    def _open(self) -> Output:
        """Return ``OpenSession`` for the step's server, and note it for :meth:`open_again`."""
        self._server = self._step.server
        return self.open_again()

    def open_again(self) -> Output:
        """Return ``OpenSession`` for the server that was used last, at first the route's own: for
        the call's first session, the next attempt, and after a hold. Its seed is the conversation
        so far, which the transcript notes as told (:meth:`Transcript.since_seed`)."""
        return OpenSession(self._server, seed=tuple(self._transcript.seed()))

    @property
    def deadline(self) -> float | None:
        """When :meth:`tick` is due (s); None while no step with a timeout is being taken."""
        due = [at for at in (self._until, self._again_at) if at is not None]
        return min(due, default=None) if self.active else None

    def stop(self, outcome: str) -> list[Output]:
        """Stop the failover, since the caller is being transferred: record ``outcome`` (escaped,
        where the caller asked for a human, or transferred), and return the end of the step's sound.
        A session that the step is opening is not closed here. Nothing while no step is being
        taken."""
        if not self.active:
            return []
        self.active = self.wants_answer = False
        self._latest_record.outcome = outcome
        return self._stop_sound()

    # ---- the steps

    @property
    def _step(self) -> FallbackStep:
        """The fallback step that is being taken."""
        return self._steps[self._at]

    @property
    def _latest_record(self) -> FailoverRecord:
        """The entry of the latest loss in the record."""
        return self._timeline.record.session.failovers[-1]

    def _next_step(self, now: float) -> list[Output]:
        """Take the next fallback step, recorded and logged; after the last, give up. Before the
        ACK, one that needs an answered call only sets :attr:`wants_answer`, for which the call is
        answered; :meth:`on_call_answered` takes it."""
        self._at += 1
        self._until = self._again_at = None
        self._wait = FIRST_WAIT
        if self._at >= len(self._steps):
            return self._give_up(None)
        step = self._step
        self._latest_record.steps.append(step.action)
        note = self._timeline.note(
            now, "fallback_step", "warning", do=step.action, seconds=step.timeout
        )
        if step.action in NEEDS_ANSWER and not self._answered:
            self.wants_answer = True
            return [note]
        return [note, *self._take_step(now)]

    def _take_step(self, now: float) -> list[Output]:
        """Carry out the step. ``reconnect`` and ``server`` play its sound and open a session;
        ``announcement`` closes the session and plays the sound; these go on until the step's
        timeout at the latest. ``transfer`` ends the failover: it closes the session, and has the
        conversation end by the transfer, whose briefing is without the model. ``busy``,
        ``redirect`` and ``hangup`` end the call."""
        step = self._step
        if step.action in _OPENS:
            self._until = now + step.timeout
            return [*self._play_sound(now), self._open()]
        if step.action == "announcement":
            self._until = now + step.timeout
            return [CloseSession(self.why.value), *self._play_sound(now)]
        if step.action == "transfer":
            self.active = False
            self._latest_record.outcome = "transferred"
            todo = self._control.call_actions.session_lost(now)
            self._control.terminate(Termination(self.why, self._detail, "", step.transfer_to))
            return [*todo, *self._stop_sound(), CloseSession(self.why.value)]
        return self._give_up(step)

    def _give_up(self, step: FallbackStep | None) -> list[Output]:
        """End the failover without a session: record ``given up``, set :attr:`over`, with which the
        machine ends the call, and return the end of the step's sound.

        Args:
            step: busy, redirect or hangup, which says how; None where no step is left.
        """
        self.active = False
        self._latest_record.outcome = "given up"
        self.over = Over(self.why, self._detail, step)
        return self._stop_sound()

    # ---- what is heard

    def _play_sound(self, now: float) -> list[Output]:
        """Return ``PlaySound`` of the step's sound, and record when the caller first heard one
        (``sound_after_ms``). Nothing where the step has none, the caller cannot hear it yet, words
        of the agent are still queued, a hold or transfer has begun, which plays its own, or the
        sound plays already."""
        sound, held = self._step.sound, self._control.call_actions.audio_suspended
        if not self._answered or self._control.speaking or held or sound in ("", self._sounding):
            return []
        self._sounding = sound
        if self._latest_record.sound_after_ms is None:
            self._latest_record.sound_after_ms = round((now - self._began) * 1000, 1)
        return [PlaySound(sound)]

    def _stop_sound(self) -> list[Output]:
        """Return the end of the step's sound; nothing where none plays."""
        was, self._sounding = self._sounding, ""
        return [PlaySound("")] if was else []


def refusal_of(step: FallbackStep | None, otherwise: int) -> tuple[int, dict[str, str]]:
    """Return status and further headers of the final response to a call that is not answered: 486
    (``busy``) or 302 with Contact (``redirect``) as the step says, else ``otherwise`` without
    headers, also for None and for another step."""
    if step is not None and step.action == "busy":
        return 486, {}
    if step is not None and step.action == "redirect":
        return 302, {"Contact": f"<{step.transfer_to}>"}
    return otherwise, {}


def seed_commands(transcript: Transcript, control: ConversationControl) -> list[Output]:
    """Return the commands that seed a new session: changed settings, then the items of the
    conversation as the caller heard it.

    A session that got both when it was opened gets only a message with what was said since, if
    anything was. A session that only transcribes gets nothing.
    """
    if not control.capabilities.responds:
        return []
    if control.capabilities.seeded_at_start:
        since = transcript.since_seed()
        item = message("user", f"{SINCE}\n{since}")
        return [Send(CreateItem(item), seed=True)] if since else []
    changes: list[Output] = [Send(update, seed=True) for update in transcript.changes]
    return changes + [Send(CreateItem(item), seed=True) for item in transcript.seed()]


FORCED_SECONDS = 3.0
"""Seconds before the end of a session at which a pause is no longer waited for."""

INTERVAL_SECONDS = 30.0
"""Seconds between two attempts to open a standby session, failed ones too. A server's
``expires_at`` decides when, never how often."""

MAX_HANDOVERS = 20
"""Standby sessions opened in one call; five hours of sessions of 15 minutes. After
them the session is left to its end, and replaced when it is lost."""

SHORTEST_SECONDS = 2 * FORCED_SECONDS
"""A session that expires sooner (s) is not handed over: there is no time for it."""


class Handover:
    """Replaces a session before the server ends it (``expires_at``): opens a standby session, and
    promotes it in a pause.

    Args:
        quiet: returns whether neither side speaks, no response is due, and no action or tool is
            under way.
        due: returns whether a response is due.
        detach: ends what belongs to the active session; its queued audio is played to the end.
        ask_again: requests what the caller was being told or asked and has not heard to its end,
            and the response that is due, if its second argument says that one is.
    """

    def __init__(
        self,
        control: ConversationControl,
        transcript: Transcript,
        timeline: CallTimeline,
        quiet: Callable[[], bool],
        due: Callable[[], bool],
        detach: Callable[[float], list[Output]],
        ask_again: Callable[[float, bool], list[Output]],
    ) -> None:
        self._control = control
        self._transcript = transcript
        self._timeline = timeline
        self._quiet = quiet
        self._due = due
        self._detach = detach
        self._ask_again = ask_again
        self._lead = control.plan.server.handover_before_expiry
        self._open_at: float | None = None
        """When the standby session is opened (s); None where none is planned."""
        self._latest = 0.0
        """When the standby session is promoted without a pause (s)."""
        self._opening = False
        self._standby: tuple[str, float | None, Capabilities] | None = None
        """Id, end (s; None: not told) and capabilities of the standby session that is ready."""
        self._opened = 0
        """Standby sessions opened in this call; one more once ``handover_limit`` was logged."""
        self._opened_at = -INTERVAL_SECONDS

    def on_session_up(self, seconds_left: float | None, now: float) -> None:
        """Forget the standby session, and plan one for the session that is active from now on: it
        is opened ``handover_before_expiry`` s before the end, at once if that is past, but not
        sooner than :meth:`_opening_time` says; ``FORCED_SECONDS`` before the end it is promoted
        without a pause.

        None is planned where that setting is 0, less than ``SHORTEST_SECONDS`` are left, or there
        is no such time.

        Args:
            seconds_left: until the server ends it; None where it does not tell: none is planned.
        """
        self._opening, self._standby = False, None
        self._open_at = None
        if seconds_left is None or self._lead <= 0 or seconds_left < SHORTEST_SECONDS:
            return
        self._latest = now + seconds_left - FORCED_SECONDS
        wanted = max(now, min(now + seconds_left - self._lead, self._latest))
        self._open_at = self._opening_time(wanted)

    def _opening_time(self, wanted: float) -> float | None:
        """Return when a standby session is to be opened (s): at ``wanted``, or if that is later,
        ``INTERVAL_SECONDS`` after the last one was opened. None where it would be less than
        ``FORCED_SECONDS`` before the active session ends, or ``MAX_HANDOVERS`` were opened and that
        was logged."""
        at = max(wanted, self._opened_at + INTERVAL_SECONDS)
        return at if at <= self._latest and self._opened <= MAX_HANDOVERS else None

    def on_session_over(self) -> None:
        """Forget the standby session and its plan: the active session is lost or no longer needed.
        The standby is not closed by this, but by the next ``OpenSession`` or ``CloseSession``."""
        self._open_at, self._opening, self._standby = None, False, None

    def on_standby_ready(self, input: inputs.StandbyReady, now: float) -> None:
        """Keep the standby session that is ready, until :meth:`promote_if_quiet` promotes it;
        ignored where none is being opened."""
        if not self._opening:
            return
        self._opening = False
        ends = None if input.seconds_left is None else now + input.seconds_left
        self._standby = (input.session_id, ends, input.capabilities)

    def on_standby_failed(self, detail: str, now: float) -> list[Output]:
        """Log (``handover_failed``) the standby session that could not be set up or was lost, and
        plan another: now, or ``INTERVAL_SECONDS`` after the failed one was opened, whichever is
        later. Where there is no time for it (:meth:`_opening_time`), the active session is left to
        its end. Nothing where there is none, as it was dropped."""
        if not (self._opening or self._standby):
            return []
        self._opening, self._standby = False, None
        note = self._timeline.note(now, "handover_failed", "warning", detail=detail)
        self._open_at = self._opening_time(now)
        return [note]

    def tick(self, now: float) -> list[Output]:
        """Return ``OpenSession`` for the standby session, with the conversation so far as seed,
        when it is time and none is being opened or ready. After ``MAX_HANDOVERS`` only log
        ``handover_limit``, once."""
        if self._open_at is None or self._opening or self._standby is not None:
            return []
        if now < self._open_at:
            return []
        if self._opened >= MAX_HANDOVERS:
            self._opened, self._open_at = MAX_HANDOVERS + 1, None
            return [self._timeline.note(now, "handover_limit", "warning", sessions=MAX_HANDOVERS)]
        self._opening = True
        self._opened, self._opened_at = self._opened + 1, now
        opening = OpenSession(standby=True, seed=tuple(self._transcript.seed()))
        return [self._timeline.note(now, "handover_begins", "info"), opening]

    @property
    def ready(self) -> bool:
        """Whether a standby session is ready."""
        return self._standby is not None

    def promote_if_quiet(self, now: float, *, at_once: bool = False) -> list[Output]:
        """Promote the standby session in a pause, or ``FORCED_SECONDS`` before the active session
        ends. Nothing before that, and where none is ready.

        With a server whose transcripts come late, it is no pause while words of the latest turns
        are still to come. Returns, in order, what ends the active session's responses,
        ``PromoteStandby``, a log line, the commands that seed the new session, and requests for
        what the caller was being told or asked and for the response that is due. Counts the
        hand-over in the record, which has the new session's id from now on, and plans the next one.

        Args:
            at_once: do not wait for a pause (the active session is lost).
        """
        late = self._control.capabilities.late_words and self._transcript.words_missing
        pause = self._quiet() and not late
        if self._standby is None or not (at_once or pause or now >= self._latest):
            return []
        (session_id, ends, capabilities), self._standby = self._standby, None
        due = self._due()
        rest = self._detach(now)
        self.on_session_up(None if ends is None else ends - now, now)
        self._timeline.record.session.session_id = session_id
        self._timeline.record.session.handovers += 1
        note = self._timeline.note(now, "handed_over", "info", session_id=session_id)
        self._control.set_capabilities(capabilities)
        outputs = [*rest, PromoteStandby(), note, *seed_commands(self._transcript, self._control)]
        return outputs + self._ask_again(now, due or self._transcript.response_due)

    @property
    def deadline(self) -> float | None:
        """When to open the standby session or, where it is ready, to promote it without a pause
        (s); None without a plan, and while it is being opened."""
        if self._standby is not None:
            return self._latest
        return None if self._opening else self._open_at
