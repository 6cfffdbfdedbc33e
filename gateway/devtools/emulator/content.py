# SPDX-License-Identifier: GPL-2.0-or-later
"""From a script's ``Answer`` to bytes: speech, tones, patterns, echoes."""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from concurrent.futures import ThreadPoolExecutor

from gateway.devtools.emulator import dialogue
from gateway.devtools.emulator.audio import PCM_RATE, AudioFormat, pattern, tones
from gateway.devtools.emulator.dialogue import Turn
from gateway.devtools.emulator.espeak import synthesise
from gateway.devtools.emulator.response import Content, Settings
from gateway.devtools.emulator.script import Answer

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
            calls += dialogue.end_call(settings.tools)
        match answer.kind:
            case "conversation":
                plan = dialogue.plan(turn, settings.tools)
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
