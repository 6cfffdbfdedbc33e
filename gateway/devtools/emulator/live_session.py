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
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import structlog

from gateway.devtools.emulator.connection import Connection, audio_of
from gateway.devtools.emulator.dialogue import (
    GOODBYE,
    ContentMaker,
    Turn,
    exact_words,
    pressed_keys,
)
from gateway.devtools.emulator.listening import Cancellable, Started, VadSettings, VoiceDetector
from gateway.devtools.emulator.live_delegation import Delegations
from gateway.devtools.emulator.live_events import (
    FIXTURE_RATE,
    LIVE_EVENTS,
    TextKind,
    started_session,
    tokens,
    updated_session,
)
from gateway.devtools.emulator.objects import Json, ProtocolError, new_id, pieces
from gateway.devtools.emulator.response import Content, Settings
from gateway.devtools.emulator.script import Answer, LiveError
from gateway.devtools.emulator.speech import PCM, AudioFormat, SpeechError

MAX_CATCH_UP_S = 0.3
"""Input that comes late is caught up to this; of a longer hole the delay stays."""
_PREROLL_MS = 300
_BACKCHANNEL_AFTER_MS = 600
_FRAGMENT_MS = 200
_CONTEXT_TOKENS = 128_000
_TOKENS_PER_SECOND = 20
MAX_WAITING_S = 60
"""Input that may wait for the clock; beyond it the session ends."""

_log = structlog.get_logger("gateway.devtools.emulator")


@dataclass(slots=True)
class Utterance:
    """Something to be said, or a fixture: ``audio`` in the session's format."""

    audio: bytes
    text: str = ""
    answer: Answer = field(default_factory=Answer)
    began: Callable[[], None] | None = None
    ended: Callable[[], None] | None = None
    fixture: bool = False
    cuttable: bool = True
    taken: int = 0
    start_ms: int = 0


class LiveSession:
    """State of one session. Client events arrive as calls of its methods, which raise
    :class:`ProtocolError` where the service would send an ``error``."""

    def __init__(self, wire: LiveConnection, maker: ContentMaker) -> None:
        self.script = wire.script
        self.record = wire.record
        self.expires_at = time.time() + wire.script.expires_s
        self.emit = wire.emit
        self.later = wire.later
        self._live = wire.script.live
        self._wire = wire
        self._maker = maker
        self._azure = wire.azure
        self.settings: Json = {}
        self.position_ms = 0
        """The session's clock: audio of the client that was taken in."""
        self.closing = False
        self._format: AudioFormat = PCM
        self._detector: VoiceDetector | None = None
        self._waiting = bytearray()
        self._due = 0.0
        self._stepping: Cancellable | None = None
        self._fed_at = 0.0
        self._agenda: list[tuple[float, int, Callable[[], None]]] = []
        self._numbers = itertools.count()
        self._muted = False
        self._track: deque[Utterance] = deque()
        self._held_until_ms: float | None = None
        self._held = bytearray()
        self._recent = bytearray()
        self._turn = bytearray()
        self._turn_began_ms: int | None = None
        self._backchannelled = False
        self._unplaced: dict[int, str | None] = {}
        self._answered = self._turns = 0
        self._context_tokens = 0
        self._started_at = 0.0
        self._tasks: set[asyncio.Task[None]] = set()
        self._said_something = {"input": False, "output": False}
        self.delegations = Delegations(self)

    # What the connection calls

    def announce(self) -> None:
        """Do nothing: the client speaks first."""

    async def stop(self) -> None:
        """The connection is over: end what still runs."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    @property
    def started(self) -> bool:
        """Whether ``session.started`` was sent."""
        return bool(self.settings)

    @property
    def backlog_ms(self) -> int:
        """Audio of the client that waits for the clock."""
        return self._format.length_ms(len(self._waiting))

    def append(self, data: bytes) -> None:
        """``session.input_audio.append``, decoded."""
        if not self.started:
            raise ProtocolError("invalid_request_error", "The session has not started.", "type")
        if self._format.type == "audio/pcm" and len(data) % 2:
            text = "'audio' must have a whole number of samples."
            raise ProtocolError("invalid_audio", text, "audio")
        self._fed_at = time.monotonic()
        self._waiting += data
        if self.backlog_ms > MAX_WAITING_S * 1000:
            self._wire.close(1009, "too much audio")
            return
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
        deaf = self._muted or any(one.fixture for one in self._track)
        self._hear(self._format.silence(chunk_ms) if deaf else chunk)
        self.position_ms += chunk_ms
        while self._agenda and self._agenda[0][0] <= self.position_ms:
            heapq.heappop(self._agenda)[2]()
        self._speak(len(chunk))

    # Speaking

    def say(self, utterance: Utterance) -> None:
        """Put something on the output track, after what is on it."""
        if self._live.speaks or utterance.fixture:
            self._track.append(utterance)

    def cut(self) -> None:
        """Stop speaking; what was not sent is never sent. A fixture goes on."""
        self._track = deque(one for one in self._track if one.fixture or not one.cuttable)
        self._held_until_ms = None

    @property
    def speaking(self) -> bool:
        """Whether there is something to say on the track."""
        return bool(self._track)

    def _speak(self, size: int) -> None:
        audio = bytearray()
        while len(audio) < size and self._track:
            one = self._track[0]
            if not one.taken:
                self._begin(one, len(audio))
            wanted = len(one.audio) if one.answer.burst else size - len(audio)
            part = one.audio[one.taken : one.taken + wanted]
            stall_at = one.answer.stall_at_ms
            if stall_at is not None and one.taken <= self._format.bytes_for(stall_at) < (
                one.taken + len(part)
            ):
                self._held_until_ms = self.position_ms + one.answer.stall_s * 1000
            one.taken += max(1, len(part))
            audio += part
            if one.taken >= len(one.audio):
                self._track.popleft()
                if one.ended is not None:
                    one.ended()
        if len(audio) < size:
            audio += self._format.silence(self._live.chunk_ms)[: size - len(audio)]
        if self._held_until_ms is not None:
            self._held += audio
            if self.position_ms < self._held_until_ms:
                return
            audio, self._held, self._held_until_ms = self._held, bytearray(), None
        for start in range(0, len(audio), size):
            self._emit_audio(bytes(audio[start : start + size]))

    def _emit_audio(self, audio: bytes) -> None:
        event: Json = {"type": "session.output_audio.delta", "delta": ""}
        if self._azure:
            length = self._format.length_ms(len(audio))
            event |= {"start_ms": self.position_ms - length, "end_ms": self.position_ms}
        self.emit(event, audio)

    def _begin(self, one: Utterance, offset: int) -> None:
        one.start_ms = self.position_ms - self._live.chunk_ms + self._format.length_ms(offset)
        if one.began is not None:
            one.began()
        length_ms = self._format.length_ms(len(one.audio))
        self._fragments("output", one.text, one.start_ms, length_ms, one)

    def _fragments(
        self, side: str, text: str, start_ms: int, length_ms: int, one: Utterance | None = None
    ) -> None:
        """Plan the transcript of ``text``, spoken since ``start_ms``, in fragments of 200 ms."""
        parts = pieces(text, max(1, length_ms // _FRAGMENT_MS)) if text.strip() else []
        for number, part in enumerate(parts):
            begin = start_ms + length_ms * number // len(parts)
            end = start_ms + length_ms * (number + 1) // len(parts)
            due = max(0, end + self._live.transcript_lag_ms - self.position_ms)

            def tell(part: str = part, begin: int = begin, end: int = end) -> None:
                cut = one is not None and self._sent_to_ms(one) <= begin
                if not cut:
                    self._tell_fragment(side, part, begin, end)

            self.at(due, tell)

    def _sent_to_ms(self, one: Utterance) -> int:
        return one.start_ms + self._format.length_ms(one.taken)

    def _tell_fragment(self, side: str, part: str, begin: int, end: int) -> None:
        if self._said_something[side] and not part.startswith(" "):
            part = f" {part}"
        self._said_something[side] = True
        self._context_tokens += tokens(part)
        event = {"type": f"session.{side}_transcript.delta", "delta": part}
        self.emit({**event, "start_ms": begin, "end_ms": end})

    # Listening

    def pretend_speech(self, length_ms: int = 300) -> None:
        """Behave as if the caller spoke for ``length_ms`` from now, whatever comes."""
        self._caller_began(self.position_ms)
        self.at(length_ms, lambda: self._caller_ended(self.position_ms))

    def _hear(self, chunk: bytes) -> None:
        self._recent += chunk
        if self._turn_began_ms is not None:
            self._turn += chunk
        keep = self._format.bytes_for(_PREROLL_MS)
        del self._recent[: max(0, len(self._recent) - keep)]
        for event in self._detector.feed(chunk) if self._detector is not None else ():
            if isinstance(event, Started):
                self._caller_began(event.at_ms)
            else:
                self._caller_ended(event.voice_end_ms)
        if self._turn_began_ms is None:
            return
        spoken = self.position_ms + self._live.chunk_ms - self._turn_began_ms
        if self._live.backchannel and spoken >= _BACKCHANNEL_AFTER_MS and not self._backchannelled:
            self._backchannelled = True
            words = self._live.backchannel
            self._answer(Turn(), Answer(kind="say", text=words), cuttable=False)
        if not self._live.talks_on and spoken >= self._live.interrupt_ms:
            self.cut()

    def _caller_began(self, at_ms: int) -> None:
        if self._turn_began_ms is None:
            self._turn_began_ms = at_ms
            self._turn = bytearray(self._recent)
            self._backchannelled = False

    def _caller_ended(self, at_ms: int) -> None:
        began = self._turn_began_ms
        if began is None:
            return
        self._turn_began_ms = None
        spoken = max(20, at_ms - began)
        number, scripted = self._turns, self.script.transcripts
        self._turns += 1
        words = f"({spoken / 1000:.1f} seconds of speech, not transcribed)"
        if scripted:
            words = scripted[min(number, len(scripted) - 1)]
        self._fragments("input", words, began, spoken)
        turn = Turn(caller_spoke=True, spoken_ms=spoken)
        self._answer(turn, self.next_answer(), (bytes(self._turn), self._format))
        self._turn = bytearray()

    # Answering

    def next_answer(self) -> Answer:
        """What the script says for the next answer."""
        answers = self.script.answers
        self._answered += 1
        return answers[min(self._answered, len(answers)) - 1] if answers else Answer()

    def _answer(
        self,
        turn: Turn,
        answer: Answer,
        caller: tuple[bytes, AudioFormat] | None = None,
        *,
        cuttable: bool = True,
    ) -> None:
        if answer.kind in ("silent", "hang"):
            return

        def made(content: Content) -> None:
            calls = content.calls
            if not calls and not answer.delegate:
                self.say_content(content, answer, cuttable=cuttable)
            elif content.audio:

                def began() -> None:
                    self.delegations.create(calls, spoken=True)

                self.say(Utterance(content.audio, content.text, answer, began))
            else:
                self.delegations.create(calls, spoken=False)

        self.make(answer, turn, made, caller)

    def make(
        self,
        answer: Answer,
        turn: Turn,
        made: Callable[[Content], None],
        caller: tuple[bytes, AudioFormat] | None = None,
    ) -> None:
        """Make the sound of an answer, then call ``made`` with it, ``first_delay_ms`` later."""

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
        task.add_done_callback(self._made)

    def _made(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not self._tasks and self._stepping is None:
            self._advance()

    def speak_text(self, text: str) -> None:
        """Say these words."""
        answer = Answer(kind="say", text=text)
        self.make(answer, Turn(), lambda content: self.say_content(content, answer))

    def say_content(self, content: Content, answer: Answer, *, cuttable: bool = True) -> None:
        """Put the sound of an answer on the track."""
        if content.audio:
            self.say(Utterance(content.audio, content.text, answer, cuttable=cuttable))

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

    def start(self, session: object) -> None:
        """``session.start``."""
        if self.started:
            raise ProtocolError("invalid_request_error", "The session has started already.")
        settings = started_session(session, azure=self._azure)
        self.record.model = settings["model"]
        fmt = settings["audio"]["format"]
        width = 2 if fmt["type"] == "audio/pcm" else 1
        self._format = AudioFormat(fmt["type"], fmt["rate"], fmt["rate"] * width // 1000)
        if self.record.log is not None:
            self.record.log.caller_format(self._format, LiveConnection.append_type)
        if self.script.vad == "auto":
            silence = self._live.turn_silence_ms
            self._detector = VoiceDetector(VadSettings(0.5, 0, silence), self._format, 0)
        if self.script.created == "never":
            return
        client_event_id = self._wire.client_event_id

        def started() -> None:
            self.settings = settings
            self._started_at = self._fed_at = time.monotonic()
            self._watch_input()
            self.later(self._live.usage_interval_s, self._tell_usage)
            for fault in self._live.errors:
                self.at(fault.after_s * 1000, partial(self._fault, fault))
            self._reply("session.started", client_event_id, session=self.session_object())

        if self.script.created_delay_ms:
            self.later(self.script.created_delay_ms / 1000, started)
        else:
            started()

    def update(self, session: object) -> None:
        """``session.update``."""
        self.settings = updated_session(self.settings, session)
        self._acknowledge("session.updated", session=self.session_object())

    def mute(self, *, on: bool) -> None:
        """``session.input_audio.mute`` and ``.unmute``."""
        self._muted = on
        self._acknowledge(f"session.input_audio.{'muted' if on else 'unmuted'}")

    def play_fixture(self, pcm: bytes) -> None:
        """``session.output_audio.fixture.play``."""
        self._no_fixture("A fixture is playing already.")
        client_event_id = self._wire.client_event_id
        self._track.clear()
        audio = self._format.encode(pcm, FIXTURE_RATE)

        def ended() -> None:
            self._reply("session.output_audio.fixture.played", client_event_id)

        self._acknowledge("session.output_audio.fixture.playing")
        self.say(Utterance(audio, ended=ended, fixture=True))

    def append_text(self, kind: TextKind, content: str, delegation_id: str | None) -> None:
        """``session.instructions.append``, ``.thinking.`` or ``.commentary.``."""
        self._no_fixture("Text cannot be appended while a fixture is playing.")
        self.delegations.check_reply(delegation_id)
        self._context_tokens += tokens(content)
        client_event_id = self._wire.client_event_id
        asked_ms = self.position_ms
        number = next(self._numbers)
        self._unplaced[number] = client_event_id

        def placed() -> None:
            del self._unplaced[number]
            where = {"start_ms": asked_ms, "end_ms": self.position_ms}
            self._reply(f"session.{kind}.appended", client_event_id, **where)
            if kind != "instructions":
                self.delegations.hush()
            self._follow(kind, content)

        self.at(self._live.append_delay_ms, placed)

    def _follow(self, kind: TextKind, content: str) -> None:
        """Do what a text leads to."""
        if kind == "commentary":
            if self._live.commentary == "paraphrased":
                content = f"Well, as I was told: {content}"
            if self._live.commentary != "unspoken":
                self.speak_text(content)
            return
        answer = rule_for(kind, content)
        if answer is None:
            return
        if kind == "instructions":
            self.cut()
        self._answer(Turn(texts=[content]), answer)

    def _no_fixture(self, message: str) -> None:
        if any(one.fixture for one in self._track):
            raise ProtocolError("invalid_request_error", message, "type")

    def add_backend_item(self, item: Json) -> None:
        """``response.item.create``."""
        self.delegations.add_item(item)

    def continue_backend(self) -> None:
        """``response.create``."""
        self.delegations.proceed()

    def create_decision(self, event_id: str) -> None:
        """``decision.create``."""
        self.delegations.decide(event_id)

    def add_decision_item(self, item: Json) -> None:
        """``decision.item.create``."""
        kept = {**item, "id": item.get("id") or new_id("ditem")}
        self.delegations.decision_items[kept["id"]] = kept
        self._acknowledge("decision.item.created", item=kept)

    def delete_decision_item(self, item_id: str) -> None:
        """``decision.item.delete``."""
        if self.delegations.decision_items.pop(item_id, None) is None:
            raise ProtocolError("item_not_found", f"No item '{item_id[:100]}'.", "item_id")
        self._acknowledge("decision.item.deleted", item_id=item_id)

    def close(self) -> None:
        """``session.close``."""
        if self._live.closes == "never":
            return
        client_event_id = self._wire.client_event_id
        self.closing = True
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
        """Seconds since ``session.started``, begun ones whole."""
        return {"seconds": math.ceil(time.monotonic() - self._started_at)}

    def _tell_usage(self) -> None:
        heard = self.position_ms / 1000 * _TOKENS_PER_SECOND
        ratio = min(1.0, (heard + self._context_tokens) / _CONTEXT_TOKENS)
        event = {"type": "session.usage.updated", "usage": self.usage()}
        self.emit({**event, "context_window": {"usage_ratio": round(ratio, 6)}})
        self.later(self._live.usage_interval_s, self._tell_usage)

    def _watch_input(self) -> None:
        left = self._fed_at + self._live.input_timeout_s - time.monotonic()
        if left <= 0:
            self.end("expired")
        else:
            self.later(left, self._watch_input)

    def handoff_incomplete(self) -> None:
        """Report a backend that used up its tokens."""
        text = "Responses handoff incomplete"
        self._wire.error(ProtocolError("responses_handoff_incomplete", text), None)

    def _fault(self, fault: LiveError) -> None:
        error = ProtocolError(fault.code, fault.message, None, fault.type)
        self._wire.error(error, None)
        if fault.silences:
            self.cut()

    # Events

    def session_object(self) -> Json:
        """The session as the server sees it."""
        settings = copy.deepcopy(self.settings)
        for tool in (settings["delegation"].get("responses") or {}).get("tools", []):
            tool.pop("authorization", None)
        return {
            **settings,
            "id": self.record.id,
            "expires_at": int(self.expires_at),
            "status": "active",
        }

    def _acknowledge(self, type_: str, **fields: Any) -> None:
        self._reply(type_, self._wire.client_event_id, **fields)

    def _reply(self, type_: str, client_event_id: str | None, **fields: Any) -> None:
        event = {"type": type_, **fields}
        if client_event_id is not None and not self._azure:
            event["client_event_id"] = client_event_id
        self.emit(event)


def rule_for(kind: TextKind, content: str) -> Answer | None:
    """What the emulator does about an appended text that is not to be spoken; None: nothing.

    Instructions to say something are followed, those that name a goodbye lead to one, those with
    "stop" silence the voice; pressed digits in a ``thinking`` text are read out.
    """
    if kind == "thinking":
        return Answer(kind="conversation") if pressed_keys(content) else None
    if exact := exact_words(content):
        return Answer(kind="say", text=exact)
    lowered = content.lower()
    if "goodbye" in lowered:
        return Answer(kind="say", text=GOODBYE)
    return Answer(kind="nothing") if "stop" in lowered else None


class LiveConnection(Connection):
    """Serves one Live client."""

    append_type = "session.input_audio.append"
    client_events: Mapping[str, Any] = LIVE_EVENTS
    without_id = frozenset({"session.output_audio.delta"})

    def __init__(self, *args: Any, azure: bool = False, **kwargs: Any) -> None:
        self.azure = azure
        """Whether to speak as Azure's preview does: 24 kHz PCM, no echo of client ids."""
        self.client_event_id: str | None = None
        super().__init__(*args, **kwargs)

    def _new_session(self, maker: ContentMaker) -> LiveSession:
        return LiveSession(self, maker)

    def error(self, error: ProtocolError, client_event_id: str | None) -> None:
        """Send an ``error`` event."""
        body = {"type": error.type, "code": error.code, "message": error.message}
        if error.param is not None:
            body["param"] = error.param
        event: Json = {"type": "error", "error": body}
        if client_event_id is not None and not self.azure:
            body["client_event_id"] = event["client_event_id"] = client_event_id
        self.emit(event)

    def _audio_of(self, event: Mapping[str, Any]) -> bytes:
        for name in event.keys() - {"type", "event_id", "audio"}:
            text = f"Unknown parameter: '{name}'."
            raise ProtocolError("unknown_parameter", text, name)
        try:
            return audio_of(event)
        except ProtocolError as error:
            raise ProtocolError("invalid_audio", error.message, "audio") from None

    def _handle(self, event: Json, event_id: str | None) -> None:
        session: LiveSession = self.session
        if not session.started and event["type"] != "session.start":
            text = "The first event must be 'session.start'; wait for 'session.started'."
            raise ProtocolError("invalid_request_error", text, "type")
        if session.closing:
            raise ProtocolError("session_closing", "The session is closing.", "type")
        self.client_event_id = event_id
        super()._handle(event, event_id)

    def _expire(self) -> None:
        self.session.end("expired")

    def _end(self) -> None:
        end = self.script.end
        assert end is not None
        if end.closed is None:
            super()._end()
        else:
            self.session.end(end.closed)
