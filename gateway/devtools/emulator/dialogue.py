# SPDX-License-Identifier: GPL-2.0-or-later
"""What the emulator says: by fixed rules, or by a script's ``Answer``, made into speech or tones.

The rules know what was put into the conversation since the last answer (a :class:`Turn`) and say it
back: instructions, texts, digits one by one, and how long the caller spoke, with the caller's own
voice after it.
"""

from __future__ import annotations

import asyncio
import json
import re
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

from gateway.devtools.emulator.response import Content, Settings
from gateway.devtools.emulator.script import Answer
from gateway.devtools.emulator.speech import (
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
    """What an answer is to: everything since the last one."""

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
    """The answer to ``turn``; ``tools`` are the function tools in force."""
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
    """What ``instructions`` want said word for word; empty if they do not."""
    exact = _EXACTLY.search(instructions)
    return _unquoted(exact.group(1)) if exact else ""


def _unquoted(text: str) -> str:
    return text.strip().strip(_QUOTES).strip()


def pressed_keys(text: str) -> str:
    """The telephone keys that ``text`` says were pressed; empty if it names none."""
    pressed = _PRESSED.search(text)
    return re.sub(r"\s", "", pressed.group(1)) if pressed else ""


def answer_to_append(kind: str, content: str) -> Answer | None:
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


def _to_texts(texts: Sequence[str], tools: Sequence[Mapping[str, Any]]) -> Plan:
    said = []
    for text in texts:
        keys = pressed_keys(text)
        if keys in ("0", "0#") or _BYE.search(text):
            return goodbye(tools)
        said.append(f"You pressed {words_of_keys(keys)}." if keys else f"You wrote: {text}")
    return Plan(" ".join(said))


def goodbye(tools: Sequence[Mapping[str, Any]], text: str = GOODBYE) -> Plan:
    """Say goodbye, and call :data:`END_CALL` where the session has it."""
    return Plan(text, calls=end_call_of(tools))


def end_call_of(tools: Sequence[Mapping[str, Any]]) -> tuple[tuple[str, str], ...]:
    """The call of :data:`END_CALL` with arguments that its schema wants, if it is a tool."""
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
        """Everything that a response will send. Raises ``SpeechError``."""
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
        """End the thread."""
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
