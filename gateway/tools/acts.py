"""What a function may do to the call it runs for, while it runs. Values: the call decides."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Say:
    """Let the model say these words, once it is not saying anything else."""

    words: str


@dataclass(frozen=True, slots=True)
class Tell:
    """Put a system message into the conversation; nothing answers it by itself."""

    text: str


@dataclass(frozen=True, slots=True)
class TransferTo:
    """Hand the caller on to a destination of the route, by its name."""

    destination: str
    words: str
    """For the caller, where that fails."""


@dataclass(frozen=True, slots=True)
class EndCall:
    """Say goodbye with these words and hang up; without words at once."""

    words: str


Act = Say | Tell | TransferTo | EndCall
