# SPDX-License-Identifier: GPL-2.0-or-later
"""A simulated caller that is a realtime session: it hears the call and speaks by its own voice."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import Callable
from typing import Any

from gateway.audio.g711 import FRAME_BYTES
from gateway.devtools.call_suites.simulated import Conversation
from gateway.devtools.call_suites.suite import Persona
from gateway.devtools.call_suites.verdicts import Said
from gateway.devtools.scripted_caller.talking import TalkingCall
from gateway.realtime.endpoint import Endpoint
from gateway.realtime.events import (
    AgentTranscript,
    AudioDelta,
    AudioDone,
    ResponseDone,
    ServerEvent,
    SpeechStarted,
)
from gateway.realtime.session import Session, SessionClosed
from gateway.realtime.session_object import session_object
from gateway.realtime.setup import SetupFailed, open_session

SETUP_SECONDS = 10.0

INSTRUCTIONS = """\
You play a person who makes a telephone call, and speak to the one who was called. You are the \
caller, never the agent: say one or two short sentences at a time, and no more than was asked.
Who you are: {persona}
What you want: {goal}
Once you have it, or it cannot be had, say goodbye and call the function end_call."""

END_CALL = {
    "type": "function",
    "name": "end_call",
    "description": "Hang up, after the goodbye.",
    "parameters": {
        "type": "object",
        "properties": {
            "goal_reached": {"type": "boolean", "description": "You have what you wanted."}
        },
        "required": ["goal_reached"],
    },
}


class RealtimeCaller:
    """Plays a persona in one call, by a session of its own."""

    def __init__(self, persona: Persona, since_dial_ms: Callable[[], float]) -> None:
        self.conversation = Conversation()
        self._persona = persona
        self._now = since_dial_ms
        self._over = asyncio.Event()
        self._rest = b""
        """Of the part that is being said, less than a frame."""
        self._call: TalkingCall | None = None

    async def talk(self, call: TalkingCall) -> None:
        """Let the session hear and speak until it ends the call, or a limit is reached."""
        self._call = call
        persona, conversation = self._persona, self.conversation
        conversation.end = "the call ended"
        session: Session | None = None
        try:
            async with asyncio.timeout(persona.max_seconds):
                endpoint = Endpoint(persona.url, persona.model, persona.api_key)
                wanted = {
                    "instructions": INSTRUCTIONS.format(persona=persona.persona, goal=persona.goal),
                    "audio": {"output": {"voice": persona.voice}},
                }
                session = await open_session(
                    endpoint,
                    session_object(wanted, call.tape.codec.value, [END_CALL]),
                    timeout=SETUP_SECONDS,
                    on_event=self._on_event,
                    on_closed=self._on_closed,
                )
                await self._pump(call, session)
                await call.said()
        except TimeoutError:
            conversation.end = f"max_seconds, {persona.max_seconds:g}, were over"
        except (SetupFailed, ValueError) as error:
            conversation.end = str(error)
        finally:
            if session is not None:
                with contextlib.suppress(OSError):
                    await session.close()

    async def _pump(self, call: TalkingCall, session: Session) -> None:
        """Send what is heard until it is over."""
        over = asyncio.ensure_future(self._over.wait())
        try:
            while not self._over.is_set():
                heard = asyncio.ensure_future(call.audio())
                try:
                    await asyncio.wait((heard, over), return_when=asyncio.FIRST_COMPLETED)
                    if heard.done():
                        session.append(heard.result())
                finally:
                    heard.cancel()
        finally:
            over.cancel()

    def _on_event(self, event: ServerEvent) -> None:
        assert self._call is not None
        match event:
            case AudioDelta(audio=audio):
                audio = self._rest + audio
                whole = len(audio) // FRAME_BYTES * FRAME_BYTES
                self._rest = audio[whole:]
                if whole:
                    self._call.queue(audio[:whole])
            case AudioDone() if self._rest:
                silence = self._call.tape.codec.silence
                self._call.queue(self._rest + silence * (FRAME_BYTES - len(self._rest)))
                self._rest = b""
            case SpeechStarted():
                self._rest = b""
                self._call.flush()
            case AgentTranscript(transcript=words) if words:
                self.conversation.said.append(Said("caller", words, self._now()))
            case ResponseDone():
                self._on_response(event)

    def _on_response(self, event: ResponseDone) -> None:
        persona, conversation = self._persona, self.conversation
        conversation.turns += 1
        with contextlib.suppress(TypeError, ValueError):
            conversation.tokens += int((event.usage or {}).get("total_tokens") or 0)
        for item in event.output:
            if item.get("type") == "function_call" and item.get("name") == END_CALL["name"]:
                arguments: Any = None
                with contextlib.suppress(ValueError):
                    arguments = json.loads(str(item.get("arguments")))
                conversation.reached = (
                    isinstance(arguments, dict) and arguments.get("goal_reached") is True
                )
                self._end("reached" if conversation.reached else "given up")
        if conversation.turns >= persona.max_turns:
            self._end(f"max_turns, {persona.max_turns}, were over")
        elif conversation.tokens >= persona.max_tokens:
            self._end(f"max_tokens, {persona.max_tokens}, were used up")

    def _on_closed(self, closed: SessionClosed) -> None:
        self._end(f"its session was closed: {closed.code} {closed.reason}".rstrip())

    def _end(self, why: str) -> None:
        if not self._over.is_set():
            self.conversation.end = why
            self._over.set()
