"""Answers cut into the pieces that deltas carry."""

from __future__ import annotations

from gateway.devtools.emulator.objects import Json


def part(kind: str, text: str) -> Json:
    """A content part as ``response.content_part`` events show it."""
    if kind == "text":
        return {"type": "text", "text": text}
    return {"type": "audio", "transcript": text}


def pieces(text: str, count: int) -> list[str]:
    """``text`` cut at spaces into at most ``count`` pieces that join to it again."""
    words = text.split(" ")
    size = max(1, -(-len(words) // count))
    groups = [" ".join(words[start : start + size]) for start in range(0, len(words), size)]
    return [group if index == 0 else " " + group for index, group in enumerate(groups) if text]


def chunks(text: str, size: int) -> list[str]:
    """``text`` in pieces of ``size`` characters."""
    return [text[start : start + size] for start in range(0, len(text), size)]
