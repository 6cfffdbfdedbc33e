"""Speech for the emulator and for scripted callers: phrases as 16-bit PCM.

The realtime API's voice names are mapped to voices of espeak-ng that a listener can tell apart;
they sound like espeak-ng, not like the names they stand for.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import lru_cache

from gateway.devtools.emulator.espeak import SpeechError, engine

__all__ = ["SpeechError", "synthesise", "words_of_keys"]

MAX_CHARACTERS = 4000
"""Longest text spoken at once: about five minutes of it."""

_WORDS_PER_MINUTE = 165
_SLOWEST, _FASTEST = 80, 450


@dataclass(frozen=True, slots=True)
class _Voice:
    name: str
    pitch: int


_VOICES = {
    "alloy": _Voice("en-us+Andy", 45),
    "ash": _Voice("en-us+m3", 35),
    "ballad": _Voice("en-029+m7", 50),
    "coral": _Voice("en-us+f4", 55),
    "echo": _Voice("en-us+m1", 30),
    "sage": _Voice("en-us+f1", 45),
    "shimmer": _Voice("en-us+f3", 65),
    "verse": _Voice("en-us+m7", 50),
    "marin": _Voice("en-us+f2", 50),
    "cedar": _Voice("en-us+m2", 25),
}
_OTHER = _Voice("en-us", 50)

_KEYS = {"*": "star", "#": "hash"}


def synthesise(text: str, voice: str = "marin", speed: float = 1.0) -> tuple[bytes, int]:
    """Speak ``text``: mono 16-bit little-endian PCM, and its rate in Hz.

    ``voice`` is a voice name of the realtime API (an unknown one gets a plain voice), ``speed``
    a multiple of the usual pace. Text beyond :data:`MAX_CHARACTERS` is left out. Phrases are
    cached. Safe from any thread, but takes milliseconds: keep it off the event loop.
    Raises :class:`SpeechError` when no synthesiser works.
    """
    pace = round(min(max(_WORDS_PER_MINUTE * speed, _SLOWEST), _FASTEST))
    return _phrase(text[:MAX_CHARACTERS], _VOICES.get(voice, _OTHER), pace)


@lru_cache(maxsize=64)
def _phrase(text: str, voice: _Voice, pace: int) -> tuple[bytes, int]:
    speaker = engine()
    return speaker.synthesise(text, voice.name, voice.pitch, pace), speaker.rate


def words_of_keys(keys: str) -> str:
    """Telephone keys as words, one by one: ``"42#"`` becomes ``"4, 2, hash"``."""
    return ", ".join(_KEYS.get(key, key) for key in re.sub(r"[\s,]+", "", keys))
