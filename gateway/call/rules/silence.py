# SPDX-License-Identifier: GPL-2.0-or-later
"""Nobody speaks: prompts a caller who says nothing; detects a response that is due and not heard.

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
    ``max_prompts`` ends the call. ``working`` returns whether a function runs for the model."""

    reacts_to: ClassVar[tuple[type, ...]] = (
        inputs.Confirmed,
        inputs.PlayoutStarted,
        inputs.PlayoutDrained,
        inputs.DigitPressed,
        inputs.HoldChanged,
        inputs.ToolDone,
        inputs.BLegEnded,
        SpeechStarted,
        SpeechStopped,
    )

    def __init__(self, control: ConversationControl, working: Callable[[], bool]) -> None:
        self._control = control
        self._working = working
        self._since: float | None = None
        self._speaking = False
        self._held = False
        self._asked = 0

    @property
    def _plan(self) -> UserIdlePlan:
        """Settings of ``[route.idle]``, complete once the call's data are there."""
        return self._control.plan.idle

    def on(self, input: inputs.Input, now: float) -> list[Output]:
        """Start the wait anew: a side was heard, or something ended. Returns no output."""
        if self._plan.timeout <= 0:
            return []
        match input:
            case inputs.ServerEventReceived(event=SpeechStarted()):
                self._speaking, self._asked = True, 0
            case inputs.ServerEventReceived(event=SpeechStopped()):
                self._speaking = False
            case inputs.DigitPressed():
                self._asked = 0
            case inputs.HoldChanged(held=held):
                self._held = held
        if self._since is not None or isinstance(input, inputs.Confirmed):
            self._since = now
        return []

    def tick(self, now: float) -> list[Output]:
        """Have the model say the prompt, or end the conversation, when the timeout is over."""
        if self.deadline is None or now < self.deadline:
            return []
        control = self._control
        self._since = now
        heard = self._speaking or control.speaking or not control.responses.idle
        busy = control.waiting or control.call_actions.busy or self._working()
        if heard or busy or self._held or control.hangup_after_playout.deadline is not None:
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
        """When the caller is prompted next (s); None before the ACK and while the call is ended."""
        if self._since is None or self._plan.timeout <= 0 or self._control.termination is not None:
            return None
        return max(self._since, self._control.playback.interrupted_at) + self._plan.timeout


TURN_TIMEOUTS = 2
"""Timeouts after which a turn that the server does not end is one that it should have ended: the
caller is quiet for that long. A quiet voice may not be heard here, and pauses sooner or later."""

FAINT_SECONDS = 60.0
"""A caller who speaks too softly to count as loud is believed to speak for this long (s)."""

UNANSWERED_TURNS = 3
"""Turns in a row to which a Live session says nothing, after which it counts as silent, ..."""

UNANSWERED_TIMEOUTS = 5
"""... and timeouts since the first of them: the caller may speak with somebody else."""

MAX_WORK_SECONDS = 120.0
"""Work of the server's own counts no longer than this without a word: MCP calls in a row (s)."""

MCP_SECONDS = 60.0
"""An MCP call of the server's counts as a running tool for at most this long (s)."""

BACKEND_SECONDS = 60.0
"""A backend that is at work counts as that for at most this long (s) without a response of it."""

_MAX_MCP = 16
_MCP_ENDS = ("response.mcp_call.completed", "response.mcp_call.failed")

_NO_EVENTS, _UPDATE = "no_events", "update_not_answered"

FIRST_WORDS_SECONDS = 8.0
"""Without a ``timeout``: how long a session without turns may take for its first words, to a
greeting or to the caller's first turn (s). Now and then one comes up and never speaks."""

LOUD_SECONDS = 2
"""Loud seconds of the caller's, without any event of a server that has heard this caller before,
after which the next quiet is one that the server owes an event for. A server that has never heard
this caller may have nothing to say of noise: it is asked, by an update that changes nothing."""

MAX_LOUD_SECONDS = 60
"""The loud seconds until it is asked again double up to this."""


class Silence:
    """Detects a response that is due and brings no audio, by the time the caller has waited.

    A silence that lasts ``silence.timeout`` seconds sets :attr:`rule`, on which the machine
    replaces the session or requests the response again. Meanwhile a filler sound may play.
    ``caller_speaks`` and ``tool_runs`` return what the server and the tools say now.
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
        self._turn = False
        """The caller's turn is over, and the server has not begun to answer it."""
        self._answered = False
        """A response was created since the caller last began to speak."""
        self._held = False
        self._spoke = False
        """This session has said something."""
        self._filler = False
        self._mcp: dict[str, float] = {}
        """MCP calls that the server runs, and until when they count (s)."""
        self._works_until = 0.0
        """Until when a backend counts as at work (s); 0 while it is not."""
        self._owed = ""
        """Why the server owes an event, of whatever type; empty while it does not."""
        self._hears = False
        """The server has said that the caller spoke: it listens, and by the same measure still."""
        self._loud = 0
        """Loud seconds of the caller's since the server's last event."""
        self._ask_after = LOUD_SECONDS
        self._quiet_since: float | None = None
        """Since when a caller who speaks, as the server says, is quiet; None once it answers."""
        self._faint_until = 0.0
        """Until when a soft voice counts in this turn (s)."""
        self._unanswered: list[float] = []
        """Ends of turns to which a Live session has said nothing (s): the first, and the last."""
        self._works_since: float | None = None
        """Since when the server works without a word."""
        self._bytes_per_ms = control.plan.codec.bytes_per_ms
        self._silent_bytes = 0
        """Of the model's audio, since its last sound."""
        self._silent_since: float | None = None
        """Since when there was nothing to be heard but silence of the model's."""
        self.rule: str | None = None
        """Which silence lasted too long, once one has."""

    @property
    def _plan(self) -> SilencePlan:
        """Settings of ``[route.silence]``, complete once the call's data are there."""
        return self._control.plan.silence

    @property
    def due(self) -> bool:
        """Whether the agent is due to speak: a turn is unanswered, a response runs, or its backend
        works."""
        owed = self._turn or self._owed == _NO_EVENTS
        return owed or self.backend_works or not self._control.responses.idle

    @property
    def backend_works(self) -> bool:
        """Whether the backend of a Live session works on what the voice has delegated to it."""
        return self._works_until > 0

    def on(self, input: inputs.Input, now: float) -> list[Output]:
        """Follow turns, responses, hold and the server's MCP calls. Returns ``session.update``
        without changes to a server that sends no event though the caller is loud."""
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
                self._works_until = self._work_until(now, BACKEND_SECONDS)
            case inputs.ServerEventReceived(event=ResponseDone() as done) if done.backend:
                self._on_backend_done(done, now)
            case inputs.ServerEventReceived(event=ResponseDone() as done):
                self._on_done(done)
            case inputs.SessionReady():
                self.reset()
        return []

    def _on_done(self, done: ResponseDone) -> None:
        """Handle ``response.done``: after one that the server cancelled by itself, expect another
        response."""
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
        """Whether each turn of the caller is answered by a response."""
        plan = self._control.plan
        answers = plan.interruptions.by_gateway or plan.server.responds
        return answers and self._control.capabilities.turn_events

    def _work_until(self, now: float, seconds: float) -> float:
        """Return until when work that the server begins now excuses its silence (s)."""
        if self._works_since is None:
            self._works_since = now
        return min(now + seconds, self._works_since + MAX_WORK_SECONDS)

    def _on_backend_done(self, done: ResponseDone, now: float) -> None:
        """Handle a ``response.done`` of the backend: it goes on with the results of functions, or
        is done."""
        calls = any(item.get("type") == "function_call" for item in done.output)
        if calls and done.status == "completed":
            self._works_until = self._work_until(now, BACKEND_SECONDS)
        else:
            self._works_until, self._since = 0.0, None

    def on_event(self) -> None:
        """Note that the server has sent an event, of whatever type."""
        self._loud, self._owed = 0, ""

    def on_update_sent(self, now: float) -> list[Output]:
        """Expect an event: a ``session.update`` was sent, which the server answers or refuses."""
        self._owed = self._owed or _UPDATE
        return self.update_wait(now, confirmed=True)

    def on_audible(self) -> None:
        """Note an audio delta of the model that is not silence."""
        self._silent_bytes, self._silent_since = 0, None

    def on_audio(self, delta: AudioDelta, now: float, *, speaking: bool) -> list[Output]:
        """Handle an audio delta that was queued (``speaking``: behind other audio): end the wait,
        stop the filler, or report audio that has been silence for ``silence.timeout`` seconds."""
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
        return self._report("audio_is_silence", timeout, now)

    def update_wait(self, now: float, *, confirmed: bool) -> list[Output]:
        """Start the caller's wait, or end it, by what the last input has changed; before the ACK
        (not ``confirmed``) nobody waits."""
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
        """Report a silence that has lasted too long, or play the filler sound."""
        self._mcp = {one: until for one, until in self._mcp.items() if now < until}
        if self.backend_works and now >= self._works_until:
            self._works_until, self._since = 0.0, now
        if self._turn_hangs_at is not None and now >= self._turn_hangs_at:
            self._turn = True
            return self._report("turn_not_ended", TURN_TIMEOUTS * self._timeout, now)
        if self._turns_unanswered_at is not None and now >= self._turns_unanswered_at:
            self._turn = True
            return self._report("turn_not_answered", self._timeout, now)
        if self._since is None or not self._caller_waits():
            return []
        plan, timeout = self._plan, self._timeout
        if now >= self._since + timeout and not self.backend_works:
            return self._report(self._which_silence(), timeout, now)
        if plan.filler_sound and not self._filler and now >= self._since + plan.filler_delay:
            self._filler = True
            return [self._control.timeline.note(now, "filler"), PlaySound(plan.filler_sound)]
        return []

    @property
    def deadline(self) -> float | None:
        """When :meth:`tick` is due (s); None while nobody waits."""
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
        """The longest wait for audio (s); 0 for no limit."""
        given = self._plan.timeout
        if given or self._spoke or self._control.capabilities.turn_events:
            return given
        return FIRST_WORDS_SECONDS

    @property
    def _turn_hangs_at(self) -> float | None:
        """When a turn that the server neither ends nor answers has lasted too long (s); None
        without one."""
        if self._quiet_since is None or self._timeout <= 0:
            return None
        return self._quiet_since + TURN_TIMEOUTS * self._timeout

    @property
    def _turns_unanswered_at(self) -> float | None:
        """When a Live session has left ``UNANSWERED_TURNS`` unanswered for too long (s); None if it
        has not."""
        timeout, ends = self._plan.timeout, self._unanswered
        if len(ends) < UNANSWERED_TURNS or timeout <= 0 or self._caller_speaks():
            return None
        return max(ends[0] + UNANSWERED_TIMEOUTS * timeout, ends[-1] + timeout)

    def reset(self) -> list[Output]:
        """End all waits, since the session is lost or replaced. Returns the end of the filler
        sound."""
        self._since = self.rule = None
        self._spoke = self._turn = self._answered = self._hears = False
        self._loud, self._owed, self._ask_after = 0, "", LOUD_SECONDS
        self._works_until = 0.0
        self._quiet_since = self._works_since = self._silent_since = None
        self._silent_bytes = 0
        self._unanswered.clear()
        self._mcp.clear()
        return self._stop_filler()

    def _report(self, rule: str, seconds: float, now: float) -> list[Output]:
        """Set :attr:`rule` to the name of the silence and log it; stop the filler, and count
        anew."""
        self.rule = rule
        self._since = self._quiet_since = self._silent_since = None
        self._silent_bytes = 0
        self._unanswered.clear()
        fields = {"rule": rule, "seconds": seconds}
        note = self._control.timeline.note(now, "silence_detected", "warning", **fields)
        return [*self._stop_filler(), note]

    def _turn_is_answered_next(self) -> bool:
        """Return whether a response to the turn that ends now is still to come."""
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
        """Return whether the caller hears nothing while a response or event is due."""
        limited = self._timeout > 0 or self.backend_works
        if not limited or not (self.due or self._owed):
            return False
        return self._is_unexplained() and (not self._caller_speaks() or self._owed == _NO_EVENTS)

    def _is_unexplained(self) -> bool:
        """Return whether nothing explains the silence: no speech, action, tool, hold or goodbye."""
        control = self._control
        if self._held or self._mcp:
            return False
        # Last words have a deadline of their own.
        ends = control.termination is not None or control.hangup_after_playout.deadline is not None
        busy = control.speaking or control.call_actions.busy or self._tool_runs() or control.waiting
        return not (ends or busy)

    def _which_silence(self) -> str:
        """Return the name of the silence by what is missing, such as ``response_not_created``."""
        active = self._control.responses.active
        if active is not None:
            stalled = self._control.playback.had_audio(active)
            return "audio_stalled" if stalled else "response_without_audio"
        if self._turn:
            return "turn_not_answered"
        return self._owed if self._control.responses.idle else "response_not_created"

    def _on_mcp_call(self, event: OtherEvent, now: float) -> None:
        """Note that an MCP call of the server begins or ends; nobody speaks meanwhile."""
        item_id = str(event.raw.get("item_id"))
        if event.type == "response.mcp_call.in_progress" and len(self._mcp) < _MAX_MCP:
            self._mcp[item_id] = self._work_until(now, MCP_SECONDS)
        elif event.type in _MCP_ENDS:
            self._mcp.pop(item_id, None)

    def _stop_filler(self) -> list[Output]:
        """Return the end of the filler sound; nothing where none plays."""
        was, self._filler = self._filler, False
        return [PlaySound("")] if was and not self._control.call_actions.busy else []
