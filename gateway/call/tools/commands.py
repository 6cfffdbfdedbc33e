"""Commands that a tool function or an operator gives to a running call. The call decides."""

from __future__ import annotations

from collections.abc import Callable, Mapping
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
class RequestOutOfBand:
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
class OperatorTransfer:
    """Hand the caller on as an operator says; where that fails, the model goes on."""

    destination: str


@dataclass(frozen=True, slots=True)
class EndCall:
    """Say goodbye with these words and hang up; without words at once."""

    words: str


CallCommand = (
    Say | Tell | Show | Respond | RequestOutOfBand | TransferTo | OperatorTransfer | EndCall
)


class CommandsFromTools:
    """The methods of :class:`gateway.tools.api.CallControl`, as commands for ``take``."""

    def __init__(self, take: Callable[[CallCommand], None]) -> None:
        self._take = take

    def say(self, words: str) -> None:
        """Give :class:`Say`."""
        self._take(Say(words))

    def tell(self, text: str, role: str, respond: bool) -> None:
        """Give :class:`Tell`."""
        self._take(Tell(text, role, respond))

    def show(self, image_uri: str, text: str, respond: bool) -> None:
        """Give :class:`Show`."""
        self._take(Show(image_uri, text, respond))

    def respond(self, instructions: str) -> None:
        """Give :class:`Respond`."""
        self._take(Respond(instructions))

    def transfer(self, destination: str, words: str) -> None:
        """Give :class:`TransferTo`."""
        self._take(TransferTo(destination, words))

    def end(self, words: str) -> None:
        """Give :class:`EndCall`."""
        self._take(EndCall(words))
