# SPDX-License-Identifier: GPL-2.0-or-later
"""What the emulator says: by fixed rules, or by a script's ``Answer``, made into speech or tones.

The rules know what was put into the conversation since the last answer (a :class:`Turn`) and say it
back: instructions, texts, digits one by one, and how long the caller spoke, with the caller's own
voice after it.

:class:`TextModel` speaks OpenAI's chat completions and responses, and keeps nothing: the reply to a
request is that of ``text_replies`` behind as many as the request has messages of the assistant; one
that asks for JSON gets ``text_scores`` for the criteria that its instructions name. So any number
of calls can be served at once.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import re
import time
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

from gateway.devtools.emulator.objects import new_id
from gateway.devtools.emulator.response import Content, Settings
from gateway.devtools.emulator.script import Answer, Script
from gateway.devtools.speech import (
    PCM_RATE,
    AudioFormat,
    pattern,
    synthesise,
    tones,
    words_of_keys,
)

GREETING = (
    "Hello. You are talking to the emulator, not to a real model. "
    "Say something, or press some keys."
)
GOODBYE = "Thank you for calling. Goodbye."
STILL_THERE = "Are you still there?"
END_CALL = "end_call"

_EXACTLY = re.compile(r"\bsay\s+(?:exactly|the following|this)\b[^:]*:\s*(.+)", re.I | re.S)
_PRESSED = re.compile(r"\bpressed\s+((?:[0-9A-D*#]\s*)+)(?![\w])")
_BYE = re.compile(r"\bgood\s?-?bye\b|\bhang up\b", re.I)
_QUOTES = "\"'“”„«»"


@dataclass(slots=True)
class Turn:
    """What was put into the conversation since the last answer."""

    instructions: str | None = None
    """Of this ``response.create``, not of the session."""
    texts: list[str] = field(default_factory=list)
    caller_spoke: bool = False
    spoken_ms: int = 0
    outputs: list[str] = field(default_factory=list)
    """Results of function calls."""
    idle: bool = False
    first: bool = False


@dataclass(frozen=True, slots=True)
class Plan:
    """An answer: words to speak, the caller's audio to play after them, functions to call."""

    text: str
    play_caller: bool = False
    calls: tuple[tuple[str, str], ...] = ()


def plan_of(turn: Turn, tools: Sequence[Mapping[str, Any]]) -> Plan:
    """Return the answer to ``turn`` by the emulator's rules; ``tools`` are those in force."""
    if turn.instructions:
        return Plan(exact_words(turn.instructions) or _unquoted(turn.instructions))
    if turn.texts:
        return _to_texts(turn.texts, tools)
    if turn.caller_spoke:
        seconds = f"{turn.spoken_ms / 1000:.1f}"
        return Plan(f"You spoke for {seconds} seconds. This is what I heard.", play_caller=True)
    if turn.outputs:
        return Plan(f"The function answered: {turn.outputs[-1][:300]}")
    if turn.idle:
        return Plan(STILL_THERE)
    return Plan(GREETING if turn.first else "I am still here.")


def exact_words(instructions: str) -> str:
    """Return the words that ``instructions`` want verbatim; "" if they want none."""
    exact = _EXACTLY.search(instructions)
    return _unquoted(exact.group(1)) if exact else ""


def _unquoted(text: str) -> str:
    return text.strip().strip(_QUOTES).strip()


def pressed_keys(text: str) -> str:
    """The telephone keys that ``text`` says were pressed; empty if it names none."""
    pressed = _PRESSED.search(text)
    return re.sub(r"\s", "", pressed.group(1)) if pressed else ""


def answer_to_append(kind: str, content: str) -> Answer | None:
    """Return the answer to appended instructions or thinking; None for no answer.

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


def _to_texts(texts: Sequence[str], tools: Sequence[Mapping[str, Any]]) -> Plan:
    said = []
    for text in texts:
        keys = pressed_keys(text)
        if keys in ("0", "0#") or _BYE.search(text):
            return Plan(GOODBYE, calls=end_call_of(tools))
        said.append(f"You pressed {words_of_keys(keys)}." if keys else f"You wrote: {text}")
    return Plan(" ".join(said))


def end_call_of(tools: Sequence[Mapping[str, Any]]) -> tuple[tuple[str, str], ...]:
    """Return a call of :data:`END_CALL` with arguments for its schema; empty if it is no tool."""
    for tool in tools:
        if tool.get("type") == "function" and tool.get("name") == END_CALL:
            return ((END_CALL, json.dumps(_arguments(tool.get("parameters") or {}))),)
    return ()


def _arguments(schema: Mapping[str, Any]) -> dict[str, Any]:
    arguments: dict[str, Any] = {}
    properties = schema.get("properties") or {}
    for name in schema.get("required") or []:
        kind = properties.get(name) or {}
        values = kind.get("enum")
        if values:
            arguments[name] = values[0]
        elif kind.get("type", "string") == "string":
            arguments[name] = "The caller said goodbye."
        else:
            arguments[name] = {"boolean": True, "integer": 0, "number": 0, "array": []}.get(
                kind["type"], {}
            )
    return arguments


MAX_ECHO_S = 30
_CACHE_BYTES = 32 * 1024 * 1024

CallerAudio = tuple[bytes, AudioFormat]


class ContentMaker:
    """Makes the audio of answers off the event loop, in one thread (espeak has one voice)."""

    def __init__(self) -> None:
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="emulator-speech")
        self._cache: OrderedDict[tuple[str, str, float, str], bytes] = OrderedDict()
        self._cached = 0

    async def make(
        self,
        answer: Answer,
        settings: Settings,
        audio_format: AudioFormat,
        turn: Turn,
        caller: CallerAudio | None,
    ) -> Content:
        """Return words, audio and calls of a response. Raises ``SpeechError``.

        Args:
            caller: the caller's last turn, for answers that echo it.
        """
        calls = tuple((tool.name, tool.arguments) for tool in answer.tools)
        if answer.end_call:
            calls += end_call_of(settings.tools)
        match answer.kind:
            case "conversation":
                plan = plan_of(turn, settings.tools)
                audio = await self._speak(plan.text, settings, audio_format)
                if plan.play_caller and caller is not None:
                    audio += _converted(caller, audio_format)
                return Content(plan.text, audio, True, plan.calls + calls)
            case "say":
                audio = await self._speak(answer.text, settings, audio_format)
                return Content(answer.text, audio, True, calls)
            case "pattern":
                count = audio_format.bytes_for(answer.seconds * 1000)
                return Content(answer.text, pattern(answer.seed, count), True, calls)
            case "tones":
                pcm = tones(answer.frequencies_hz, answer.seconds, answer.level_dbfs)
                return Content(answer.text, audio_format.encode(pcm, PCM_RATE), True, calls)
            case "quiet":
                silence = audio_format.silence(round(answer.seconds * 1000))
                return Content(answer.text, silence, True, calls)
            case "echo":
                echo = _converted(caller, audio_format) if caller is not None else b""
                return Content(answer.text, echo, True, calls)
            case _:
                return Content(message=False, calls=calls)

    def close(self) -> None:
        self._thread.shutdown(wait=True, cancel_futures=True)

    async def _speak(self, text: str, settings: Settings, audio_format: AudioFormat) -> bytes:
        if settings.modality == "text":
            return b""
        key = (text, settings.voice, settings.speed, audio_format.type)
        audio = self._cache.pop(key, None)
        if audio is None:
            loop = asyncio.get_running_loop()
            audio = await loop.run_in_executor(self._thread, _spoken, *key[:3], audio_format)
            self._cached += len(audio)
        self._cache[key] = audio
        while self._cached > _CACHE_BYTES:
            self._cached -= len(self._cache.popitem(last=False)[1])
        return audio


def _spoken(text: str, voice: str, speed: float, audio_format: AudioFormat) -> bytes:
    return audio_format.encode(*synthesise(text, voice, speed))


def _converted(caller: CallerAudio, audio_format: AudioFormat) -> bytes:
    audio, caller_format = caller
    audio = audio[: caller_format.bytes_for(MAX_ECHO_S * 1000)]
    if caller_format is audio_format:
        return audio
    return audio_format.encode(caller_format.decode(audio), caller_format.rate)


MAX_BODY = 4 * 1024 * 1024
REQUEST_SECONDS = 10.0

DEFAULT_REPLIES = (
    "Good day. I would like to ask something, please.",
    "Thank you, that is all. Goodbye. [DONE]",
)
DEFAULT_SCORE = 8.0


class _BadRequestError(Exception):
    """A request that is not served, with its HTTP status and the reason."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status


class TextModel:
    """Serves ``/v1/chat/completions`` and ``/v1/responses`` over HTTP, without streaming.

    Args:
        script: asked for with each request, as a test may change it.
    """

    def __init__(self, script: Callable[[], Script]) -> None:
        self.requests = 0
        self._script = script
        self._server: asyncio.Server | None = None
        self.port = 0

    async def start(self, host: str = "127.0.0.1", port: int = 0) -> int:
        """Listen; returns the port. Raises OSError."""
        self._server = await asyncio.start_server(self._serve, host, port)
        self.port = int(self._server.sockets[0].getsockname()[1])
        return self.port

    async def stop(self) -> None:
        """Stop listening."""
        if self._server is not None:
            self._server.close()
            await self._server.wait_closed()
            self._server = None

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            async with asyncio.timeout(REQUEST_SECONDS):
                try:
                    status, told = 200, self._answer(*await _request(reader))
                except _BadRequestError as error:
                    status = error.status
                    told = {"error": {"message": str(error), "type": "invalid_request_error"}}
                body = json.dumps(told).encode()
                head = f"HTTP/1.1 {status} {'OK' if status == 200 else 'Error'}\r\n"
                head += "Content-Type: application/json\r\nConnection: close\r\n"
                writer.write(f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body)
                await writer.drain()
        except (TimeoutError, OSError, asyncio.IncompleteReadError, asyncio.LimitOverrunError):
            pass
        finally:
            writer.close()
            with contextlib.suppress(OSError):
                await writer.wait_closed()

    def _answer(self, path: str, asked: Mapping[str, Any]) -> dict[str, Any]:
        self.requests += 1
        chat = path == "/v1/chat/completions"
        if not chat and path != "/v1/responses":
            raise _BadRequestError(404, "there are /v1/chat/completions and /v1/responses")
        messages = asked.get("messages" if chat else "input")
        if not isinstance(messages, list) or not asked.get("model"):
            raise _BadRequestError(400, "model and messages are required")
        texts = [(str(one.get("role")), str(one.get("content"))) for one in messages]
        form = asked.get("response_format") if chat else (asked.get("text") or {}).get("format")
        text = self._scores(texts) if form else self._reply(texts)
        sent, made = sum(len(one) for _, one in texts) // 4, max(1, len(text) // 4)
        model = str(asked["model"])
        return (_completion if chat else _response)(model, text, sent, made)

    def _reply(self, messages: list[tuple[str, str]]) -> str:
        replies = self._script().text_replies or list(DEFAULT_REPLIES)
        said = sum(role == "assistant" for role, _ in messages)
        return replies[min(said, len(replies) - 1)]

    def _scores(self, messages: list[tuple[str, str]]) -> str:
        given = self._script().text_scores
        system = next((text for role, text in messages if role in ("system", "developer")), "")
        criteria: Any = {}
        with contextlib.suppress(ValueError):
            criteria = json.loads(system.rpartition("\n")[2])
        marks = {
            str(name): {"score": given.get(str(name), DEFAULT_SCORE), "reason": "by the script"}
            for name in (criteria if isinstance(criteria, dict) else ())
        }
        return json.dumps(marks)


async def _request(reader: asyncio.StreamReader) -> tuple[str, dict[str, Any]]:
    line, *fields = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")
    method, _, rest = line.partition(" ")
    path = rest.partition(" ")[0].partition("?")[0]
    lengths = [one.partition(":")[2] for one in fields if one.lower().startswith("content-length:")]
    if method != "POST" or len(lengths) != 1 or not lengths[0].strip().isdigit():
        raise _BadRequestError(400, "a POST with Content-Length is wanted")
    if int(lengths[0]) > MAX_BODY:
        raise _BadRequestError(413, "the body is too long")
    try:
        body = json.loads(await reader.readexactly(int(lengths[0])))
    except ValueError:
        raise _BadRequestError(400, "the body is no JSON") from None
    if not isinstance(body, dict):
        raise _BadRequestError(400, "the body is no object")
    return path, body


def _completion(model: str, text: str, sent: int, made: int) -> dict[str, Any]:
    return {
        "id": new_id("chatcmpl"),
        "object": "chat.completion",
        "created": int(time.time()),
        "model": model,
        "choices": [
            {
                "index": 0,
                "message": {"role": "assistant", "content": text, "refusal": None},
                "finish_reason": "stop",
                "logprobs": None,
            }
        ],
        "usage": {"prompt_tokens": sent, "completion_tokens": made, "total_tokens": sent + made},
    }


def _response(model: str, text: str, sent: int, made: int) -> dict[str, Any]:
    part = {"type": "output_text", "text": text, "annotations": []}
    return {
        "id": new_id("resp"),
        "object": "response",
        "created_at": int(time.time()),
        "status": "completed",
        "model": model,
        "output": [
            {
                "id": new_id("msg"),
                "type": "message",
                "role": "assistant",
                "status": "completed",
                "content": [part],
            }
        ],
        "parallel_tool_calls": True,
        "tool_choice": "auto",
        "tools": [],
        "usage": {
            "input_tokens": sent,
            "input_tokens_details": {"cached_tokens": 0},
            "output_tokens": made,
            "output_tokens_details": {"reasoning_tokens": 0},
            "total_tokens": sent + made,
        },
    }
