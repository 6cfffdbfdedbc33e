# SPDX-License-Identifier: GPL-2.0-or-later
"""Tokens and seconds that a server says it has used (``usage`` of ``response.done`` and of
``conversation.item.input_audio_transcription.completed``). Pure, and tolerant: what cannot be read
counts as nothing, and never stops a call.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

MODALITIES = ("text", "audio", "image")


@dataclass(frozen=True, slots=True)
class Tokens:
    """Counts by modality."""

    text: int = 0
    audio: int = 0
    image: int = 0

    def __add__(self, other: Tokens) -> Tokens:
        return Tokens(self.text + other.text, self.audio + other.audio, self.image + other.image)

    @property
    def total(self) -> int:
        """Sum over the modalities."""
        return self.text + self.audio + self.image

    def as_json(self) -> dict[str, int]:
        """By modality."""
        return {"text": self.text, "audio": self.audio, "image": self.image}


@dataclass(frozen=True, slots=True)
class Usage:
    """Usage of one or several responses; ``cached`` is part of ``input``."""

    input: Tokens = field(default_factory=Tokens)
    cached: Tokens = field(default_factory=Tokens)
    output: Tokens = field(default_factory=Tokens)
    seconds: float = 0.0
    """Duration of audio, where transcription is billed by it."""

    def __add__(self, other: Usage) -> Usage:
        return Usage(
            self.input + other.input,
            self.cached + other.cached,
            self.output + other.output,
            self.seconds + other.seconds,
        )

    @property
    def total(self) -> int:
        """Number of tokens, input and output."""
        return self.input.total + self.output.total

    def as_json(self) -> dict[str, Any]:
        """The counts by direction and modality."""
        return {
            "input": self.input.as_json(),
            "cached": self.cached.as_json(),
            "output": self.output.as_json(),
        }


def usage_of(raw: Mapping[str, Any]) -> Usage:
    """Read a ``usage`` object, GA's or Beta's.

    Without details, all tokens are taken for audio, the dearest; what the details leave over is
    taken for text. Cached tokens without details of their own are text first, which stands first
    in a conversation.
    """
    if raw.get("type") == "duration":
        return Usage(seconds=_seconds(raw.get("seconds")))
    read = _table(raw.get("input_token_details"))
    taken = _tokens(read, _count(raw.get("input_tokens")))
    cached = _cached(read, taken)
    output = _tokens(_table(raw.get("output_token_details")), _count(raw.get("output_tokens")))
    return Usage(taken, cached, output)


def transcription_usage_of(raw: Mapping[str, Any]) -> Usage:
    """The same for a transcription, whose output is text."""
    usage = usage_of(raw)
    return Usage(usage.input, usage.cached, Tokens(text=usage.output.total), usage.seconds)


def _tokens(details: Mapping[str, Any], total: int) -> Tokens:
    found = Tokens(*(_count(details.get(f"{name}_tokens")) for name in MODALITIES))
    over = max(0, total - found.total)
    if not over:
        return found
    return found + (Tokens(text=over) if found.total else Tokens(audio=over))


def _cached(details: Mapping[str, Any], taken: Tokens) -> Tokens:
    left = _count(details.get("cached_tokens"))
    inner = _table(details.get("cached_tokens_details"))
    if inner:
        return Tokens(
            *(min(_count(inner.get(f"{name}_tokens")), getattr(taken, name)) for name in MODALITIES)
        )
    counts = []
    for name in MODALITIES:
        counts.append(min(left, getattr(taken, name)))
        left -= counts[-1]
    return Tokens(*counts)


def _table(value: Any) -> Mapping[str, Any]:
    return value if isinstance(value, Mapping) else {}


def _count(value: Any) -> int:
    if isinstance(value, bool) or not isinstance(value, int | float):
        return 0
    return max(0, int(value)) if value == value and abs(value) < 1e15 else 0


def _seconds(value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float):
        return 0.0
    return float(value) if 0 <= value < 1e9 else 0.0
