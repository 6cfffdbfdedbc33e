# SPDX-License-Identifier: GPL-2.0-or-later
"""A Live session: one endless audio stream each way, on a clock that runs on the client's audio.

Nothing of the session happens without audio that comes: no speech, no text is placed, no
transcript is sent. Every :attr:`Live.chunk_ms` of input makes as much output, silence included,
never faster than :attr:`Live.speed` allows.
"""

from __future__ import annotations

import asyncio
import copy
import heapq
import itertools
import math
import time
from collections.abc import Callable
from functools import partial
from typing import Any, Protocol

import structlog

from gateway.devtools.emulator import live_events
from gateway.devtools.emulator.client_events import ClientEvent
from gateway.devtools.emulator.dialogue import (
    CallerAudio,
    ContentMaker,
    Turn,
    answer_to_append,
)
from gateway.devtools.emulator.live_audio import LiveListening, Track, Transcripts, Utterance
from gateway.devtools.emulator.live_config import started_session, updated_session
from gateway.devtools.emulator.live_delegation import Delegations
from gateway.devtools.emulator.live_events import FIXTURE_RATE, TextKind, tokens
from gateway.devtools.emulator.objects import Json, ProtocolError, Sender
from gateway.devtools.emulator.response import Content, Settings
from gateway.devtools.emulator.script import Answer, LiveError, Script
from gateway.devtools.emulator.session_log import SessionRecord
from gateway.devtools.speech import PCM, AudioFormat, SpeechError

APPEND_TYPE = "session.input_audio.append"
MAX_CATCH_UP_S = 0.3
"""Input that comes late is caught up to this; of a longer hole the delay stays."""
_CONTEXT_TOKENS = 128_000
_TOKENS_PER_SECOND = 20
MAX_WAITING_S = 60
"""Input that may wait for the clock; beyond it the session ends."""

_log = structlog.get_logger("gateway.devtools.emulator")


class Wire(Sender, Protocol):
    """The connection, as a Live session uses it."""

    azure: bool
    client_event_id: str | None
    """Of the client event that is being handled."""

    def error(self, error: ProtocolError, client_event_id: str | None) -> None:
        """Send an ``error`` event."""

    def close(self, code: int, reason: str = "", *, drop: bool = False) -> None:
        """End the connection after what was sent so far."""


class LiveSession:
    """State of one session. Client events arrive as calls of its methods, which raise
    :class:`ProtocolError` where the service would send an ``error``."""

    def __init__(
        self, wire: Wire, record: SessionRecord, script: Script, maker: ContentMaker
    ) -> None:
        self.script = script
        self.record = record
        self.expires_at = time.time() + script.expires_s
        self.emit = wire.emit
        self.later = wire.later
        self._live = script.live
        self._wire = wire
        self._maker = maker
        self._azure = wire.azure
        self.settings: Json = {}
        self.position_ms = 0
        """The session's clock: audio of the client that was taken in."""
        self.closing = False
        self._format: AudioFormat = PCM
        self._waiting = bytearray()
        self._due = 0.0
        self._stepping: asyncio.TimerHandle | None = None
        self._fed_at = 0.0
        self._agenda: list[tuple[float, int, Callable[[], None]]] = []
        self._numbers = itertools.count()
        self._muted = False
        self._transcripts = Transcripts(self)
        self._sent_ms = 0
        self._use_format()
        self._unplaced: dict[int, str | None] = {}
        self._answered = 0
        self._context_tokens = 0
        self._started_at = 0.0
        self._tasks: set[asyncio.Task[None]] = set()
        self.delegations = Delegations(self)

    def _use_format(self) -> None:
        self._track = Track(self._format, self._live.chunk_ms, self._utterance_begun)
        self._listening = LiveListening(self, self._transcripts, self._format)

    # What the connection calls

    def announce(self) -> None:
        """Do nothing: the client speaks first."""

    async def stop(self) -> None:
        """Cancel all tasks, as the connection has ended."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    @property
    def started(self) -> bool:
        """Whether ``session.started`` was sent."""
        return bool(self.settings)

    def append(self, data: bytes) -> None:
        """Handle ``session.input_audio.append`` with its audio decoded."""
        if not self.started:
            raise ProtocolError("invalid_request_error", "The session has not started.", "type")
        if self._format.type == "audio/pcm" and len(data) % 2:
            text = "'audio' must have a whole number of samples."
            raise ProtocolError("invalid_audio", text, "audio")
        self._fed_at = time.monotonic()
        self._waiting += data
        if self._format.length_ms(len(self._waiting)) > MAX_WAITING_S * 1000:
            self._wire.close(1009, "too much audio")
        elif self._stepping is None:
            self._advance()

    # The clock

    def at(self, delay_ms: float, action: Callable[[], None]) -> None:
        """Call ``action`` when the session's clock is ``delay_ms`` on from now."""
        heapq.heappush(self._agenda, (self.position_ms + delay_ms, next(self._numbers), action))

    def _advance(self) -> None:
        if self._tasks and self._live.speed > 1:
            return  # A fast clock does not run away from the making of speech.
        self._stepping = None
        chunk_ms = self._live.chunk_ms
        size = self._format.bytes_for(chunk_ms)
        while len(self._waiting) >= size:
            now = time.monotonic()
            if now < self._due:
                self._stepping = self.later(self._due - now, self._advance)
                return
            pace_s = chunk_ms / 1000 / self._live.speed
            self._due = max(self._due, now - MAX_CATCH_UP_S) + pace_s
            chunk = bytes(self._waiting[:size])
            del self._waiting[:size]
            self._step(chunk, chunk_ms)
            if self._tasks and self._live.speed > 1:
                return

    def _step(self, chunk: bytes, chunk_ms: int) -> None:
        deaf = self._muted or self._track.fixture
        self._listening.hear(self._format.silence(chunk_ms) if deaf else chunk)
        self.position_ms += chunk_ms
        while self._agenda and self._agenda[0][0] <= self.position_ms:
            heapq.heappop(self._agenda)[2]()
        for audio in self._track.take(self.position_ms):
            self._emit_audio(audio)

    # Speaking

    def stop_speaking(self) -> None:
        """Stop speaking, and drop what was not sent. A fixture goes on."""
        self._track.stop_speaking()

    @property
    def speaking(self) -> bool:
        return bool(self._track)

    def _put(self, utterance: Utterance) -> None:
        if self._live.speaks or utterance.fixture:
            self._track.put(utterance)

    def _emit_audio(self, audio: bytes) -> None:
        event: Json = {"type": "session.output_audio.delta", "delta": ""}
        if self._azure:
            length = self._format.length_ms(len(audio))
            event |= {"start_ms": self._sent_ms, "end_ms": self._sent_ms + length}
            self._sent_ms += length
        self.emit(event, audio)

    def _utterance_begun(self, one: Utterance) -> None:
        if one.began is not None:
            one.began()
        if not one.fixture:
            self._listening.agent_began()
        length_ms = self._format.length_ms(len(one.audio))
        sent = partial(self._track.sent_until_ms, one)
        self._transcripts.plan("output", one.text, one.start_ms, length_ms, sent)

    def fragment(self, event: Json) -> None:
        self._context_tokens += tokens(event["delta"])
        self.emit(event)
        self.delegations.fragment_sent(event)

    def pretend_speech(self, length_ms: int = 300) -> None:
        """Behave as if the caller spoke for ``length_ms`` from now, whatever comes."""
        self._listening.pretend_speech(length_ms)

    # Answering

    def next_answer(self) -> Answer:
        """Return what the script has for the next answer."""
        self._answered += 1
        return self.script.answer(self._answered)

    def answer(
        self,
        turn: Turn,
        answer: Answer,
        caller: CallerAudio | None = None,
        *,
        interruptible: bool = True,
    ) -> None:
        """Answer ``turn`` as the script's ``answer`` says; ``caller`` is the audio of the turn."""
        if answer.kind in ("silent", "hang"):
            return

        def made(content: Content) -> None:
            calls = content.calls
            if not calls and not answer.delegate and answer.outcome == "completed":
                self.say_content(content, answer, interruptible=interruptible)
            elif content.audio:

                def began() -> None:
                    self.delegations.create(calls, answer, spoken=True)

                self._put(Utterance(content.audio, content.text, answer, began))
            else:
                self.delegations.create(calls, answer, spoken=False)

        self.make(answer, turn, made, caller)

    def make(
        self,
        answer: Answer,
        turn: Turn,
        made: Callable[[Content], None],
        caller: CallerAudio | None = None,
    ) -> None:
        """Make the audio of an answer in a task; call ``made`` with it after ``first_delay_ms``."""

        async def work() -> None:
            try:
                content = await self._maker.make(
                    answer, self._voice_settings(), self._format, turn, caller
                )
            except SpeechError as error:
                _log.error("no speech for an answer", session=self.record.id, error=str(error))
                return
            if answer.first_delay_ms:
                self.at(answer.first_delay_ms, lambda: made(content))
            else:
                made(content)

        task = asyncio.create_task(work(), name=f"answer in {self.record.id}")
        self._tasks.add(task)
        task.add_done_callback(self._content_made)

    def _content_made(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not self._tasks and self._stepping is None:
            self._advance()

    def speak_text(self, text: str) -> None:
        answer = Answer(kind="say", text=text)
        self.make(answer, Turn(), lambda content: self.say_content(content, answer))

    def say_content(self, content: Content, answer: Answer, *, interruptible: bool = True) -> None:
        if content.audio:
            self._put(Utterance(content.audio, content.text, answer, interruptible=interruptible))

    def _voice_settings(self) -> Settings:
        voice = self.settings["audio"]["output"]["voice"]
        return Settings(
            instructions=self.settings["instructions"],
            modality="audio",
            format=self.settings["audio"]["format"],
            voice=voice["id"] if isinstance(voice, dict) else voice,
            speed=1.0,
            max_tokens="inf",
            tools=self.delegations.functions(),
            metadata=None,
            in_conversation=True,
            context=None,
        )

    # What client events do

    def handle(self, event: ClientEvent) -> None:
        """Do what a client event asks for. Raises :class:`ProtocolError`."""
        delegations = self.delegations
        match event:
            case live_events.Start():
                self.start(event.session)
            case live_events.Update():
                self.settings = updated_session(self.settings, event.session)
                self.acknowledge("session.updated", session=self.session_object())
            case live_events.Mute():
                self.mute(on=event.type.endswith(".mute"))
            case live_events.PlayFixture():
                self.play_fixture(live_events.fixture_pcm(event.audio))
            case live_events.AppendText():
                if tokens(event.content) > live_events.MAX_APPEND_TOKENS:
                    raise live_events.too_long("content", live_events.MAX_APPEND_TOKENS)
                kind = event.type.split(".")[1]
                self.append_text(kind, event.content, event.delegation_id)  # type: ignore[arg-type]
            case live_events.CreateItem():
                delegations.add_item(event.item)
            case live_events.CreateResponse():
                delegations.proceed()
            case live_events.CreateDecision():
                delegations.decide(event.event_id)
            case live_events.CreateDecisionItem():
                delegations.add_decision_item(event.item)
            case live_events.DeleteDecisionItem():
                delegations.delete_decision_item(event.item_id)
            case live_events.Close():
                self.close()

    def start(self, session: object) -> None:
        """``session.start``."""
        if self.started:
            raise ProtocolError("invalid_request_error", "The session has started already.")
        settings = started_session(session, azure=self._azure)
        self.record.model = settings["model"]
        fmt = settings["audio"]["format"]
        width = 2 if fmt["type"] == "audio/pcm" else 1
        self._format = AudioFormat(fmt["type"], fmt["rate"], fmt["rate"] * width // 1000)
        self._use_format()
        if self.record.log is not None:
            self.record.log.caller_format(self._format, APPEND_TYPE)
        if self.script.created == "never":
            return
        client_event_id = self._wire.client_event_id

        def started() -> None:
            self.settings = settings
            self._started_at = self._fed_at = time.monotonic()
            self._watch_input()
            self.later(self._live.usage_interval_s, self._send_usage)
            for fault in self._live.errors:
                self.at(fault.after_s * 1000, partial(self._fault, fault))
            self._reply("session.started", client_event_id, session=self.session_object())

        if self.script.created_delay_ms:
            self.later(self.script.created_delay_ms / 1000, started)
        else:
            started()

    def mute(self, *, on: bool) -> None:
        """``session.input_audio.mute`` and ``.unmute``."""
        self._muted = on
        self.acknowledge(f"session.input_audio.{'muted' if on else 'unmuted'}")

    def play_fixture(self, pcm: bytes) -> None:
        """``session.output_audio.fixture.play``."""
        self._no_fixture("A fixture is playing already.")
        client_event_id = self._wire.client_event_id
        self._track.stop_speaking()
        audio = self._format.encode(pcm, FIXTURE_RATE)

        def ended() -> None:
            self._reply("session.output_audio.fixture.played", client_event_id)

        self.acknowledge("session.output_audio.fixture.playing")
        self._put(Utterance(audio, ended=ended, fixture=True))

    def append_text(self, kind: TextKind, content: str, delegation_id: str | None) -> None:
        """``session.instructions.append``, ``.thinking.`` or ``.commentary.``."""
        self._no_fixture("Text cannot be appended while a fixture is playing.")
        self.delegations.check_reply(delegation_id)
        self._context_tokens += tokens(content)
        client_event_id = self._wire.client_event_id
        asked_ms = self.position_ms
        said = self._track.count
        number = next(self._numbers)
        self._unplaced[number] = client_event_id

        def placed() -> None:
            del self._unplaced[number]
            where = {"start_ms": asked_ms, "end_ms": self.position_ms}
            self._reply(f"session.{kind}.appended", client_event_id, **where)
            if kind != "instructions":
                self.delegations.hush()
            self._act_on_text(kind, content, said)

        self.at(self._live.append_delay_ms, placed)

    def _act_on_text(self, kind: TextKind, content: str, said: int) -> None:
        """Speak or answer an appended text.

        Args:
            said: number of the last utterance on the track when the text came.
        """
        if kind == "commentary":
            if self._live.commentary == "paraphrased":
                content = f"Well, as I was told: {content}"
            if self._live.commentary != "unspoken":
                self.speak_text(content)
            return
        answer = answer_to_append(kind, content)
        if answer is None:
            return
        if kind == "instructions":
            self._track.stop_speaking(said)
        self.answer(Turn(texts=[content]), answer)

    def _no_fixture(self, message: str) -> None:
        if self._track.fixture:
            raise ProtocolError("invalid_request_error", message, "type")

    def close(self) -> None:
        """``session.close``."""
        if self._live.closes == "never":
            return
        client_event_id = self._wire.client_event_id
        self.closing = True
        self._transcripts.flush()
        for waiting in self._unplaced.values():
            text = "The session was closed before this text was placed."
            self._wire.error(ProtocolError("context_injection_incomplete", text), waiting)
        self._unplaced.clear()

        def over() -> None:
            if self._live.closes == "normal":
                self.end("close_requested", client_event_id)
            else:
                self._wire.close(1006, drop=True)

        if self._live.close_delay_ms:
            self.later(self._live.close_delay_ms / 1000, over)
        else:
            over()

    # The end

    def end(self, reason: str, client_event_id: str | None = None) -> None:
        """Send ``session.closed``, then close."""
        self.closing = True
        if self._live.storage_fails:
            text = "The session could not be stored."
            error = ProtocolError("session_storage_failed", text, None, "server_error")
            self._wire.error(error, None)
        if self.started:
            body = {"reason": reason, "session": self.session_object(), "usage": self.usage()}
            self._reply("session.closed", client_event_id, **body)
        self._wire.close(1005)

    def usage(self) -> Json:
        """Return ``usage``: seconds since ``session.started``, rounded up."""
        return {"seconds": math.ceil(time.monotonic() - self._started_at)}

    def _send_usage(self) -> None:
        heard = self.position_ms / 1000 * _TOKENS_PER_SECOND
        ratio = min(1.0, (heard + self._context_tokens) / _CONTEXT_TOKENS)
        event = {"type": "session.usage.updated", "usage": self.usage()}
        self.emit({**event, "context_window": {"usage_ratio": round(ratio, 6)}})
        self.later(self._live.usage_interval_s, self._send_usage)

    def _watch_input(self) -> None:
        left = self._fed_at + self._live.input_timeout_s - time.monotonic()
        if left <= 0:
            self.end("expired")
        else:
            self.later(left, self._watch_input)

    def handoff_incomplete(self) -> None:
        text = "Responses handoff incomplete"
        self._wire.error(ProtocolError("responses_handoff_incomplete", text), None)

    def _fault(self, fault: LiveError) -> None:
        error = ProtocolError(fault.code, fault.message, None, fault.type)
        self._wire.error(error, None)
        if fault.silences:
            self.stop_speaking()

    # Events

    def session_object(self) -> Json:
        """Return the session object of ``session.started``, without secrets of tools."""
        settings = copy.deepcopy(self.settings)
        for tool in (settings["delegation"].get("responses") or {}).get("tools", []):
            tool.pop("authorization", None)
        return {
            **settings,
            "id": self.record.id,
            "expires_at": int(self.expires_at),
            "status": "active",
        }

    def acknowledge(self, type_: str, **fields: Any) -> None:
        self._reply(type_, self._wire.client_event_id, **fields)

    def _reply(self, type_: str, client_event_id: str | None, **fields: Any) -> None:
        event = {"type": type_, **fields}
        if client_event_id is not None and not self._azure:
            event["client_event_id"] = client_event_id
        self.emit(event)
