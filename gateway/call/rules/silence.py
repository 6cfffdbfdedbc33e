# SPDX-License-Identifier: GPL-2.0-or-later
"""Nobody speaks: prompts a caller who says nothing; detects a response that does not come.

The cause of the model's silence does not matter: a request without ``response.created``, a response
without audio or that stops in the middle, a turn that is not answered, an ``error`` without
``response.done``, or a connection on which no event comes after a ``session.update`` or while the
caller speaks. A response that the server cancels, and audio that is silence, are no answer either.
A Live session may have nothing to say to a turn, and not to several.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import ClassVar

from gateway.call import inputs
from gateway.call.conversation.control import ConversationControl, Termination
from gateway.call.outputs import Output, PlaySound, Send
from gateway.call.plan import SilencePlan, UserIdlePlan
from gateway.ending import EndReason
from gateway.realtime.events import (
    AudioDelta,
    InputCommitted,
    OtherEvent,
    ResponseCreated,
    ResponseDone,
    SpeechStarted,
    SpeechStopped,
    UpdateSession,
    WorkDelegated,
)


class UserIdleTimeout:
    """Prompts a caller after ``idle.timeout`` seconds in which neither side was heard; after
    ``max_prompts`` prompts in a row ends the call (``[route.idle]``).

    Args:
        working: returns whether something is being done for the caller
            (``Conversation.working``); then nobody is prompted.
    """

    reacts_to: ClassVar[tuple[type, ...]] = (
        inputs.Confirmed,
        inputs.PlayoutStarted,
        inputs.PlayoutDrained,
        inputs.DigitPressed,
        inputs.HoldChanged,
        inputs.ToolDone,
        inputs.BLegEnded,
        inputs.SessionReady,
        inputs.SessionClosed,
        SpeechStarted,
        SpeechStopped,
        InputCommitted,
    )

    def __init__(self, control: ConversationControl, working: Callable[[], bool]) -> None:
        self._control = control
        self._working = working
        self._since: float | None = None
        """When the wait began (s); None before the ACK."""
        self._speaking = False
        self._held = False
        self._asked = 0
        """Prompts since the caller last spoke or pressed a key."""

    @property
    def _plan(self) -> UserIdlePlan:
        """Settings of ``[route.idle]``, read anew each time: the plan with the call's fetched data
        replaces the first one."""
        return self._control.plan.idle

    def on(self, input: inputs.Input, now: float) -> list[Output]:
        """Start the wait at the ACK, and anew at each later input of a type in :attr:`reacts_to`
        (both sides' speech, digits, holds, results of functions, the end of a B-leg, another
        session). Speech and DTMF digits of the caller set the count of prompts to 0. Returns no
        output. Nothing happens without a timeout."""
        if self._plan.timeout <= 0:
            return []
        match input:
            case inputs.ServerEventReceived(event=SpeechStarted()):
                self._speaking, self._asked = True, 0
            case inputs.ServerEventReceived(event=SpeechStopped() | InputCommitted()):
                self._speaking = False
            case inputs.DigitPressed():
                self._asked = 0
            case inputs.HoldChanged(held=held):
                self._held = held
        if self._since is not None or isinstance(input, inputs.Confirmed):
            self._since = now
        return []

    def on_session_over(self) -> None:
        """Take a caller's speech as over, since the session that was to tell its end is lost,
        closed on hold or handed over. Only that: the wait goes on, and with a hand-over counts
        from before it."""
        self._speaking = False

    def tick(self, now: float) -> list[Output]:
        """When the timeout is over, start the wait anew, and have the model say the prompt; after
        ``max_prompts`` terminate (reason ``IDLE``): transfer the caller to ``transfer_to`` if it is
        set; without it, or if the transfer fails, the model says ``goodbye`` and the call is hung
        up.

        Nobody is prompted, and only the wait starts anew, while a side speaks, a response runs, is
        requested or waits, an action is queued or under way, ``working`` returns True, the agent
        waits in a queue (hold and wait), the caller holds, no session is up, or a hang-up waits for
        its last words.
        """
        if self.deadline is None or now < self.deadline:
            return []
        control = self._control
        self._since = now
        heard = self._speaking or control.speaking or not control.responses.idle
        busy = control.waiting or control.call_actions.busy or self._working()
        busy = busy or self._held or control.between_sessions
        if heard or busy or control.hangup_after_playout.deadline is not None:
            return []
        if self._asked < self._plan.max_prompts:
            self._asked += 1
            note = control.timeline.note(now, "idle_prompted", "info", count=self._asked)
            return [note, *control.say(self._plan.prompt, now)]
        silent = f"nothing said after being asked {self._asked} times"
        control.terminate(
            Termination(EndReason.IDLE, silent, self._plan.goodbye, self._plan.transfer_to)
        )
        return [control.timeline.note(now, "idle", "info", asked=self._asked)]

    @property
    def deadline(self) -> float | None:
        """When :meth:`tick` acts next (s): ``timeout`` after the wait began, or after the last
        interruption of the agent if that was later. None before the ACK, without a timeout, and
        while the call is ending."""
        if self._since is None or self._plan.timeout <= 0 or self._control.termination is not None:
            return None
        return max(self._since, self._control.playback.interrupted_at) + self._plan.timeout


TURN_TIMEOUTS = 2
"""Times ``silence.timeout`` that a caller is quiet in a turn before the server should have ended
the turn. A quiet voice may not be heard here, and pauses sooner or later."""

FAINT_SECONDS = 60.0
"""From ``speech_started``: how long (s) a voice too soft to count as loud counts as speech."""

UNANSWERED_TURNS = 3
"""Turns in a row to which a Live session says nothing, after which it counts as silent, ..."""

UNANSWERED_TIMEOUTS = 5
"""... once so many times ``silence.timeout`` are over since the first of them: the caller may speak
with somebody else."""

MAX_WORK_SECONDS = 120.0
"""Longest time (s) from the last word of the model in which work of the server (MCP calls in a row,
a backend) explains its silence."""

MCP_SECONDS = 60.0
"""Longest time (s) that one MCP call of the server counts as running."""

BACKEND_SECONDS = 60.0
"""Longest time (s) that a backend counts as at work after a delegation, or after a response of it
with function calls."""

_MAX_MCP = 16
_MCP_ENDS = ("response.mcp_call.completed", "response.mcp_call.failed")

_NO_EVENTS, _UPDATE = "no_events", "update_not_answered"
"""Reasons why an event of the server is awaited: the caller is loud and it sends none; a
``session.update`` was sent."""

FIRST_WORDS_SECONDS = 8.0
"""Without a ``timeout``: how long a session without turn events (Live) may take for its first
words, to a greeting or to the caller's first turn (s). Now and then one comes up and never
speaks."""

LOUD_SECONDS = 2
"""Seconds in which the caller is loud and the server sends no event, after which one is awaited, if
it has reported speech of this caller before. A server that never has may have nothing to say
of noise: it is sent a ``session.update`` without changes, which it must answer."""

MAX_LOUD_SECONDS = 60
"""The number of loud seconds until it is sent again doubles up to this."""


class Silence:
    """Detects that the caller has waited ``silence.timeout`` seconds for audio of a response that
    is expected (:attr:`due`) and has not come (``[route.silence]``).

    It then sets :attr:`rule`, on which the machine replaces the session or requests the response
    again. From ``filler_delay`` seconds on a filler sound may play.

    Args:
        caller_speaks: returns whether the server hears the caller speak now.
        tool_runs: returns whether tool calls of the model are being carried out
            (``Functions.busy``).
    """

    reacts_to: ClassVar[tuple[type, ...]] = (
        inputs.HoldChanged,
        inputs.CallerSounds,
        inputs.SessionReady,
        SpeechStarted,
        SpeechStopped,
        InputCommitted,
        ResponseCreated,
        ResponseDone,
        WorkDelegated,
        OtherEvent,
    )

    def __init__(
        self,
        control: ConversationControl,
        caller_speaks: Callable[[], bool],
        tool_runs: Callable[[], bool],
    ) -> None:
        self._control = control
        self._caller_speaks = caller_speaks
        self._tool_runs = tool_runs
        self._since: float | None = None
        """Since when the caller waits for audio (s); None while nothing is awaited or
        something explains the silence."""
        self._turn = False
        """The caller's turn is over, and the server has not begun to answer it."""
        self._answered = False
        """A response was created since the caller last began to speak."""
        self._held = False
        """The caller holds the call by SDP."""
        self._spoke = False
        """This session has said something that was no silence."""
        self._filler = False
        """The filler sound plays."""
        self._mcp: dict[str, float] = {}
        """MCP calls that the server runs, and until when they count (s)."""
        self._works_until = 0.0
        """Until when the backend of a Live session counts as at work (s); 0 while it is not."""
        self._owed = ""
        """Why an event of the server is awaited, of whatever type: ``no_events`` or
        ``update_not_answered``; "" while none is."""
        self._hears = False
        """The server has reported speech of this caller in this session."""
        self._loud = 0
        """Loud seconds of the caller's since the server's last event."""
        self._ask_after = LOUD_SECONDS
        """Loud seconds after which the next ``session.update`` without changes is sent."""
        self._quiet_since: float | None = None
        """When the caller was last heard in a turn that the server has not ended or answered (s);
        None without such a turn."""
        self._faint_until = 0.0
        """Until when a soft voice counts as speech in this turn (s)."""
        self._unanswered: list[float] = []
        """When turns ended to which a Live session has said nothing (s), oldest first; of more than
        ``UNANSWERED_TURNS`` the last replaces the one before."""
        self._works_since: float | None = None
        """Since when the server works (MCP, backend) without saying anything (s); None while it
        does not."""
        self._bytes_per_ms = control.plan.codec.bytes_per_ms
        self._silent_bytes = 0
        """Bytes of model audio since its last that was no silence."""
        self._silent_since: float | None = None
        """Since when the caller hears nothing but silent model audio (s); None otherwise."""
        self.rule: str | None = None
        """Name of the silence that has lasted too long, such as ``response_not_created``; None
        until then, and after :meth:`reset`."""

    @property
    def _plan(self) -> SilencePlan:
        """Settings of ``[route.silence]``, read anew each time: the plan with the call's fetched
        data replaces the first one."""
        return self._control.plan.silence

    @property
    def due(self) -> bool:
        """Whether the agent is expected to speak: a turn is unanswered (:attr:`turn_due`), or a
        response runs, is requested or waits."""
        return self.turn_due or not self._control.responses.idle

    @property
    def turn_due(self) -> bool:
        """Whether a turn is unanswered, the backend works, or the server sends no event though the
        caller is loud."""
        return self._turn or self._owed == _NO_EVENTS or self.backend_works

    @property
    def backend_works(self) -> bool:
        """Whether the backend of a Live session works on what the voice has delegated to it, and
        its time is not over: ``BACKEND_SECONDS`` since the last delegation or its last response
        with function calls, whichever was later, and at most ``MAX_WORK_SECONDS`` since the server
        began to work (MCP calls count) with no word of model or caller in between. Stays True until
        :meth:`tick` notices that the time is over. False for a Realtime session."""
        return self._works_until > 0

    @property
    def mcp_runs(self) -> bool:
        """Whether an MCP call of the server runs, and its time (``MCP_SECONDS``) is not over."""
        return bool(self._mcp)

    def on(self, input: inputs.Input, now: float) -> list[Output]:
        """Follow the caller's loud seconds, turns, responses, hold and the server's MCP calls, to
        know whether the agent is expected to speak. A new session ends all waits.

        Returns nothing, with one exception: an empty ``session.update`` where the caller is loud,
        the server sends no event, and it has never reported this caller's speech (see
        :data:`LOUD_SECONDS`). A Live session, and a route without a timeout, get none.
        """
        match input:
            case inputs.HoldChanged(held=held):
                self._held = held
            case inputs.CallerSounds(faint=True):
                if self._quiet_since is not None and now < self._faint_until:
                    self._quiet_since = now
            case inputs.CallerSounds() if self._control.capabilities.turn_events:
                if self._quiet_since is not None:
                    self._quiet_since = now
                self._loud += 1
                if self._hears and self._loud >= LOUD_SECONDS:
                    self._owed, self._since = _NO_EVENTS, None
                elif not self._hears and self._loud == self._ask_after:
                    self._ask_after = min(2 * self._ask_after, MAX_LOUD_SECONDS)
                    return [Send(UpdateSession({}))] if self._plan.timeout > 0 else []
            case inputs.ServerEventReceived(event=SpeechStarted()):
                self._hears = True
                self._turn = self._answered = False
                self._works_since = None
                if self._quiet_since is None and self._responds:
                    self._quiet_since, self._faint_until = now, now + FAINT_SECONDS
            case inputs.ServerEventReceived(event=SpeechStopped()):
                self._turn = self._turn_is_answered_next()
                if self._spoke and not self._control.capabilities.turn_events:
                    self._unanswered = [*self._unanswered[: UNANSWERED_TURNS - 1], now]
            case inputs.ServerEventReceived(event=InputCommitted()):
                # Where no beginning was told, one that is over was the answer to another turn. From
                # here on the request for the response says that one is due.
                self._answered &= self._hears or self._control.responses.active is not None
                by_gateway = self._control.plan.interruptions.by_gateway
                self._turn = not by_gateway and self._turn_is_answered_next()
            case inputs.ServerEventReceived(event=ResponseCreated()):
                self._turn, self._answered = False, True
            case inputs.ServerEventReceived(event=OtherEvent() as event):
                self._on_mcp_call(event, now)
            case inputs.ServerEventReceived(event=WorkDelegated(target="responses")):
                self._works_until = self._begin_work(now, BACKEND_SECONDS)
            case inputs.ServerEventReceived(event=ResponseDone() as done) if done.backend:
                self._on_backend_done(done, now)
            case inputs.ServerEventReceived(event=ResponseDone() as done):
                self._on_done(done)
            case inputs.SessionReady():
                self.reset()
        return []

    def _on_done(self, done: ResponseDone) -> None:
        """Handle ``response.done`` of a response for the caller. After one that the server
        cancelled by itself another is awaited, where turns are answered (:attr:`_responds`), unless
        another runs, is requested or waits already. After one that we have interrupted, and while
        the caller speaks, what is awaited stays as it was. Any other status ends the wait for the
        end of the caller's turn (:attr:`_turn_hangs_at`)."""
        if done.status != "cancelled":
            self._quiet_since = None
            return
        ours = done.reason == "client_cancelled" or self._control.playback.was_interrupted(
            done.response_id
        )
        if not ours and not self._caller_speaks():
            self._turn = self._responds and self._control.responses.idle

    @property
    def _responds(self) -> bool:
        """Whether each turn of the caller is answered by a response: requested by the gateway, or
        begun by the server; False for a Live session."""
        plan = self._control.plan
        answers = plan.interruptions.by_gateway or plan.server.responds
        return answers and self._control.capabilities.turn_events

    def _begin_work(self, now: float, seconds: float) -> float:
        """Note that the server works from now on, if it does not yet. Return until when (s) that
        explains its silence: ``seconds`` from now, at most ``MAX_WORK_SECONDS`` since it began to
        work without saying anything."""
        if self._works_since is None:
            self._works_since = now
        return min(now + seconds, self._works_since + MAX_WORK_SECONDS)

    def _on_backend_done(self, done: ResponseDone, now: float) -> None:
        """Handle ``response.done`` of a backend: if it is completed and has function calls, the
        backend counts as at work for another ``BACKEND_SECONDS``, or less (:meth:`_begin_work`);
        else the backend is done, and the wait for the voice's words starts anew."""
        calls = any(item.get("type") == "function_call" for item in done.output)
        if calls and done.status == "completed":
            self._works_until = self._begin_work(now, BACKEND_SECONDS)
        else:
            self._works_until, self._since = 0.0, None

    def on_event(self) -> None:
        """Note that the server has sent an event, also one that :meth:`on` does not get: no event
        is awaited any more, and loud seconds are counted anew."""
        self._loud, self._owed = 0, ""

    def on_update_sent(self, now: float) -> list[Output]:
        """Note that a ``session.update`` was sent: an event of the server is awaited, which accepts
        or refuses it; the caller counts as waiting meanwhile. Returns what :meth:`update_wait`
        does."""
        self._owed = self._owed or _UPDATE
        return self.update_wait(now, confirmed=True)

    def on_audible(self) -> None:
        """Count silent audio anew, as an audio delta of the model is not silence; called by
        :meth:`on_audio`, and by ``CallMachine.more_audio``, whose deltas :meth:`on_audio` does not
        get."""
        self._silent_bytes, self._silent_since = 0, None

    def on_audio(self, delta: AudioDelta, now: float, *, speaking: bool) -> list[Output]:
        """Handle an audio delta of the model that was queued; any ends the caller's wait. One that
        is not silence also stops the filler, ends the wait for the end of the caller's turn, and
        forgets the turns that a Live session has not answered; it answers the turn if its response
        was not announced by ``response.created``. Silent ones are reported (``audio_is_silence``)
        once they have lasted ``silence.timeout`` seconds, in audio or by the clock; not those of a
        Live session.

        Args:
            speaking: other model audio was queued before it, which the caller still hears.
        """
        self._since = None
        if not delta.silent:
            self._turn &= delta.response_id in self._control.responses.running  # else: unannounced
            self.on_audible()
            self._spoke = True
            self._unanswered.clear()
            self._quiet_since = self._works_since = None
            return self._stop_filler()
        self._silent_bytes += len(delta.audio)
        if self._silent_since is None and not speaking:
            self._silent_since = now
        seconds, timeout = self._silent_bytes / self._bytes_per_ms / 1000, self._plan.timeout
        if self._silent_since is not None:
            seconds = max(seconds, now - self._silent_since)
        if not (0 < timeout <= seconds and self._control.capabilities.turn_events):
            return []
        self._turn = self._responds
        return self._set_rule("audio_is_silence", timeout, now)

    def update_wait(self, now: float, *, confirmed: bool) -> list[Output]:
        """Note since when the caller waits, or that they wait no more, and then stop the filler;
        called after each input. :meth:`tick` acts on the wait.

        The caller waits while a response is expected or an event awaited, nothing explains the
        silence, and they do not speak (:meth:`_caller_waits`). While something explains the
        silence, the time of a caller's turn that the server does not end starts anew, and turns
        that a Live session has not answered are forgotten, as they are while its backend works.

        Args:
            confirmed: the ACK came; before it nobody waits.
        """
        if self._quiet_since is not None and not (confirmed and self._is_unexplained()):
            self._quiet_since = now
        if self._unanswered and (self.backend_works or not (confirmed and self._is_unexplained())):
            self._unanswered.clear()
        if not (confirmed and self._caller_waits()):
            self._since = None
            return self._stop_filler()
        if self._since is None:
            self._since = now
        return []

    def tick(self, now: float) -> list[Output]:
        """Act on :attr:`deadline`: forget late MCP calls and a late backend, after which the
        caller's wait starts anew; then report the first silence that has lasted too long (a turn
        that the server does not end, turns that a Live session does not answer, the caller's wait),
        or begin the filler sound. While a backend works, the caller's wait is not reported, and
        only the filler may begin."""
        self._mcp = {one: until for one, until in self._mcp.items() if now < until}
        if self.backend_works and now >= self._works_until:
            self._works_until, self._since = 0.0, now
        if self._turn_hangs_at is not None and now >= self._turn_hangs_at:
            self._turn = True
            return self._set_rule("turn_not_ended", TURN_TIMEOUTS * self._timeout, now)
        if self._turns_unanswered_at is not None and now >= self._turns_unanswered_at:
            self._turn = True
            return self._set_rule("turn_not_answered", self._timeout, now)
        if self._since is None or not self._caller_waits():
            return []
        plan, timeout = self._plan, self._timeout
        if now >= self._since + timeout and not self.backend_works:
            return self._set_rule(self._which_silence(), timeout, now)
        if plan.filler_sound and not self._filler and now >= self._since + plan.filler_delay:
            self._filler = True
            return [self._control.timeline.note(now, "filler"), PlaySound(plan.filler_sound)]
        return []

    @property
    def deadline(self) -> float | None:
        """When :meth:`tick` acts next (s); None while nothing is awaited."""
        plan = self._plan
        works_until = [self._works_until] if self.backend_works else []
        hangs_at = [at for at in (self._turn_hangs_at, self._turns_unanswered_at) if at is not None]
        if self._since is None:
            return min((*self._mcp.values(), *works_until, *hangs_at), default=None)
        over = min(works_until, default=self._since + self._timeout)
        over = min((over, *hangs_at))
        if plan.filler_sound and not self._filler:
            return min(self._since + plan.filler_delay, over)
        return over

    @property
    def _timeout(self) -> float:
        """The longest wait for audio (s): ``silence.timeout``; without it ``FIRST_WORDS_SECONDS``
        for a Live session that has said nothing yet, 0 (no limit) for others."""
        given = self._plan.timeout
        if given or self._spoke or self._control.capabilities.turn_events:
            return given
        return FIRST_WORDS_SECONDS

    @property
    def _turn_hangs_at(self) -> float | None:
        """When a turn that the server neither ends nor answers has lasted too long (s):
        ``TURN_TIMEOUTS`` timeouts after the caller was last heard in it. None without such a turn
        or a timeout."""
        if self._quiet_since is None or self._timeout <= 0:
            return None
        return self._quiet_since + TURN_TIMEOUTS * self._timeout

    @property
    def _turns_unanswered_at(self) -> float | None:
        """When a Live session counts as silent (s), since it has said nothing to
        ``UNANSWERED_TURNS`` turns: ``UNANSWERED_TIMEOUTS`` timeouts after the first, and one after
        the last. None with fewer turns, without a timeout, and while the caller speaks."""
        timeout, ends = self._plan.timeout, self._unanswered
        if len(ends) < UNANSWERED_TURNS or timeout <= 0 or self._caller_speaks():
            return None
        return max(ends[0] + UNANSWERED_TIMEOUTS * timeout, ends[-1] + timeout)

    def reset(self) -> list[Output]:
        """End all waits, forget turns, and set :attr:`rule` to None, since the session is lost or
        replaced, or a silence was handled. Returns the end of the filler sound; nothing where none
        plays."""
        self._since = self.rule = None
        self._spoke = self._turn = self._answered = self._hears = False
        self._loud, self._owed, self._ask_after = 0, "", LOUD_SECONDS
        self._works_until = 0.0
        self._quiet_since = self._works_since = self._silent_since = None
        self._silent_bytes = 0
        self._unanswered.clear()
        self._mcp.clear()
        return self._stop_filler()

    def _set_rule(self, rule: str, seconds: float, now: float) -> list[Output]:
        """Set :attr:`rule`, log ``silence_detected``, stop the filler, and start all waits anew;
        the machine, not this rule, acts on it. What is due stays due (:attr:`due`), so that it is
        requested again; :meth:`reset` forgets that, too.

        Args:
            rule: name of the silence, such as ``response_not_created``.
            seconds: how long it has lasted, for the log.
        """
        self.rule = rule
        self._since = self._quiet_since = self._silent_since = None
        self._silent_bytes = 0
        self._unanswered.clear()
        fields = {"rule": rule, "seconds": seconds}
        note = self._control.timeline.note(now, "silence_detected", "warning", **fields)
        return [*self._stop_filler(), note]

    def _turn_is_answered_next(self) -> bool:
        """Return whether a response to the turn that ends now is still to come.

        The gateway requests it, or the server begins it by itself; it does so only if no response
        runs, or if it interrupts the one that runs. False where one was created since the turn
        began, and for a Live session that has spoken before, which may find nothing to say.
        """
        plan, responses = self._control.plan, self._control.responses
        if not self._control.capabilities.turn_events and self._spoke:
            return False  # it may find that there is nothing to be said
        if self._answered:
            return False  # the server announced its response before the end of the turn
        if plan.interruptions.by_gateway:
            return True
        # A response that is not interrupted goes on, and takes the place of another.
        return plan.server.responds and (plan.server.interrupts or responses.active is None)

    def _caller_waits(self) -> bool:
        """Return whether the caller waits for the agent: it is expected to speak (:attr:`due`), or
        an event of the server is awaited; nothing explains the silence (:meth:`_is_unexplained`);
        and the caller does not speak (their speech does not count if the server sends no events
        meanwhile). False where no limit applies (:attr:`_timeout` is 0), unless a backend works."""
        limited = self._timeout > 0 or self.backend_works
        if not limited or not (self.due or self._owed):
            return False
        return self._is_unexplained() and (not self._caller_speaks() or self._owed == _NO_EVENTS)

    def _is_unexplained(self) -> bool:
        """Return whether nothing explains the silence. Explanations are: model audio in the queue,
        an action queued or under way, tool calls being carried out (``tool_runs``), an MCP call, a
        hold by the caller, hold and wait, the end of the call, and a hang-up after a goodbye. The
        work of a backend is none here."""
        control = self._control
        if self._held or self._mcp:
            return False
        # Last words have a deadline of their own.
        ends = control.termination is not None or control.hangup_after_playout.deadline is not None
        busy = control.speaking or control.call_actions.busy or self._tool_runs() or control.waiting
        return not (ends or busy)

    def _which_silence(self) -> str:
        """Return the name of the silence by what is missing: ``audio_stalled`` or
        ``response_without_audio`` while a response runs; else ``turn_not_answered``; else
        ``response_not_created`` for a request; else ``no_events`` or ``update_not_answered``."""
        active = self._control.responses.active
        if active is not None:
            stalled = self._control.playback.had_audio(active)
            return "audio_stalled" if stalled else "response_without_audio"
        if self._turn:
            return "turn_not_answered"
        return self._owed if self._control.responses.idle else "response_not_created"

    def _on_mcp_call(self, event: OtherEvent, now: float) -> None:
        """Note that the server's MCP call begins or ends; while one runs the silence is explained,
        for at most ``MCP_SECONDS``, or less (:meth:`_begin_work`). At most ``_MAX_MCP`` are
        followed at a time."""
        item_id = str(event.raw.get("item_id"))
        if event.type == "response.mcp_call.in_progress" and len(self._mcp) < _MAX_MCP:
            self._mcp[item_id] = self._begin_work(now, MCP_SECONDS)
        elif event.type in _MCP_ENDS:
            self._mcp.pop(item_id, None)

    def _stop_filler(self) -> list[Output]:
        """Return the ``PlaySound`` that ends the filler sound; nothing where none plays, or a hold
        or transfer that has begun has replaced it by a sound of its own."""
        was, self._filler = self._filler, False
        return [PlaySound("")] if was and not self._control.call_actions.audio_suspended else []
