"""What a function may do to the call it runs for, while it runs. Values: the call decides."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class Say:
    """Let the model say these words, once it is not saying anything else."""

    words: str


@dataclass(frozen=True, slots=True)
class Tell:
    """Put a message into the conversation; nothing answers it by itself."""

    text: str
    role: str = "system"
    """system, or user: as if the caller had said it."""
    respond: bool = False
    """Ask the model to answer to it."""


@dataclass(frozen=True, slots=True)
class Show:
    """Put an image into the conversation, as a message of the user."""

    image: str
    """A data URI, as :func:`gateway.tools.images.checked` returns it."""
    text: str = ""
    """Beside it."""
    respond: bool = False


@dataclass(frozen=True, slots=True)
class Respond:
    """Let the model speak, by these instructions for this one response."""

    instructions: str


@dataclass(frozen=True, slots=True)
class AskAside:
    """Ask the model something beside the conversation; the caller hears nothing of it."""

    key: str
    instructions: str
    metadata: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class TransferTo:
    """Hand the caller on to a destination of the route, by its name."""

    destination: str
    words: str
    """For the caller, where that fails."""


@dataclass(frozen=True, slots=True)
class HandOn:
    """Hand the caller on as an operator says; where that fails, the model goes on."""

    destination: str


@dataclass(frozen=True, slots=True)
class EndCall:
    """Say goodbye with these words and hang up; without words at once."""

    words: str


CallCommand = Say | Tell | Show | Respond | AskAside | TransferTo | HandOn | EndCall
