# SPDX-License-Identifier: GPL-2.0-or-later
"""The two sessions that interpret between the joined legs of a call: open, play, respond, open
again.

Each session hears one leg and speaks to the other (``listener``). The server ends turns and answers
them. What a session says is played to its end, whoever speaks meanwhile, and the response to the
next turn follows.
"""

from __future__ import annotations

from dataclasses import asdict

from gateway.call.call_record import CallTimeline
from gateway.call.inputs import InterpreterEvent, InterpreterInput, InterpreterLost, InterpreterUp
from gateway.call.outputs import (
    BridgeLegs,
    HearFully,
    Interpret,
    InterpreterPlay,
    InterpreterSend,
    OpenInterpreter,
    Output,
)
from gateway.call.tools.commands import InterpreterPlan
from gateway.realtime.events import (
    AudioDelta,
    AudioDone,
    CreateResponse,
    ResponseDone,
    ServerError,
    ServerEvent,
)

REOPENED_SECONDS = 60.0
"""A session that was up for so long (s) when it was lost, as at the end that its server sets, is
opened again."""


class Interpretation:
    """The two sessions that interpret between joined legs; ``listener``, ``caller`` or ``callee``,
    is who hears a session.

    The server ends turns and answers them by itself; this passes the audio on, requests a response
    that the server could not begin, and opens a lost session again that was up for
    ``REOPENED_SECONDS`` or longer.
    """

    def __init__(self, plan: InterpreterPlan, timeline: CallTimeline) -> None:
        self._plan = plan
        self._timeline = timeline
        self._up: dict[str, float] = {}
        """Since when (s) each listener's session is up."""
        self._owed: set[str] = set()
        """Listeners in whose sessions a turn had no response, as the one before was not over."""
        self._open = False
        """Between :meth:`begin` and :meth:`end`."""

    def begin(self) -> list[Output]:
        """Begin to interpret: return ``BridgeLegs``, by which each leg hears its interpreter, and
        the other's own voice at the level of the route (``original_db``), and ``Interpret``, which
        opens both sessions."""
        self._open = True
        joined = BridgeLegs(listen=False, original_db=self._plan.original_db)
        return [joined, Interpret(self._plan.to_caller, self._plan.to_callee)]

    def end(self) -> list[Output]:
        """Stop interpreting: return ``Interpret()``, which closes both sessions; nothing before
        :meth:`begin`, or if it was returned already."""
        was_open, self._open = self._open, False
        return [Interpret()] if was_open else []

    def on(self, happening: InterpreterInput, now: float) -> list[Output]:
        """Handle an interpreting session that is up (log ``interpreter_up``) or lost, or its event;
        nothing before :meth:`begin` and after :meth:`end`."""
        if not self._open:
            return []
        match happening:
            case InterpreterUp(listener):
                self._up[listener] = now
                return [self._timeline.note(now, "interpreter_up", "info", **asdict(happening))]
            case InterpreterLost():
                return self._on_lost(happening, now)
            case InterpreterEvent(listener, event):
                return self._on_event(listener, event)

    def _on_lost(self, lost: InterpreterLost, now: float) -> list[Output]:
        """Return ``OpenInterpreter`` where the lost session was up for ``REOPENED_SECONDS``. Where
        it was up for less, or could not be opened, log ``interpreter_lost``, and return
        ``HearFully``: its listener hears the other's own voice at full volume. The other session
        goes on."""
        listener = lost.listener
        self._owed.discard(listener)
        up_at = self._up.pop(listener, None)
        if up_at is not None and now - up_at >= REOPENED_SECONDS:
            return [OpenInterpreter(listener)]
        note = self._timeline.note(now, "interpreter_lost", "warning", **asdict(lost))
        return [note, HearFully(listener)]

    def _on_event(self, listener: str, event: ServerEvent) -> list[Output]:
        """Return ``InterpreterPlay`` with audio for ``listener``, and at the end of a content part
        with ``more`` False.

        Where the server could not answer a turn, as a response was running (error
        ``conversation_already_has_active_response``), request a response at that one's
        ``response.done``. Other events are ignored.
        """
        match event:
            case AudioDelta():
                return [InterpreterPlay(listener, event.audio, more=True)]
            case AudioDone():
                return [InterpreterPlay(listener, b"", more=False)]
            case ServerError(code="conversation_already_has_active_response"):
                self._owed.add(listener)
            case ResponseDone() if listener in self._owed:
                self._owed.discard(listener)
                return [InterpreterSend(listener, CreateResponse())]
        return []
