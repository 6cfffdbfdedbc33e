# SPDX-License-Identifier: GPL-2.0-or-later
"""Commands that a tool function or an operator gives to a running call. The call decides."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class Say:
    """Let the model say exactly these words, once no response is running."""

    words: str


@dataclass(frozen=True, slots=True)
class Tell:
    """Put a message into the conversation; no response is requested by itself."""

    text: str
    role: str = "system"
    """``system``, or ``user``: as if the caller had said it."""
    respond: bool = False
    """Request a response to it."""


@dataclass(frozen=True, slots=True)
class Show:
    """Put an image into the conversation, as a message of the user."""

    image: str
    """A data URI, as :func:`gateway.tools.functions.checked` returns it."""
    text: str = ""
    """Text beside the image."""
    respond: bool = False


@dataclass(frozen=True, slots=True)
class Respond:
    """Request one response with these instructions."""

    instructions: str


@dataclass(frozen=True, slots=True)
class RequestOutOfBand:
    """Request an out-of-band response, which the caller does not hear."""

    key: str
    instructions: str
    metadata: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class TransferTo:
    """Transfer the caller to a destination of the route, by its name; then the call ends."""

    destination: str
    words: str
    """Last words to the caller where the transfer fails."""


@dataclass(frozen=True, slots=True)
class OperatorTransfer:
    """Transfer the caller for an operator; where that fails, the conversation goes on."""

    destination: str
    briefing: str = ""


@dataclass(frozen=True, slots=True)
class OperatorHold:
    """Put the caller on hold for an operator, or take them back."""

    held: bool


@dataclass(frozen=True, slots=True)
class PressKeys:
    """Send DTMF digits to the caller's side for an operator; w, W and , are pauses."""

    digits: str


@dataclass(frozen=True, slots=True)
class MuteCaller:
    """Let the model hear silence in place of the caller, or hear the caller again."""

    muted: bool


@dataclass(frozen=True, slots=True)
class ReferTo:
    """Send the caller to a URI (REFER); where that fails, the conversation goes on."""

    uri: str


@dataclass(frozen=True, slots=True)
class Interrupt:
    """Stop what the caller hears of the model, as if they had spoken."""


@dataclass(frozen=True, slots=True)
class EndCall:
    """Say goodbye with these words and hang up; without words at once."""

    words: str


@dataclass(frozen=True, slots=True)
class RecordCall:
    """Start, stop, pause, resume or delete the recording of the call."""

    action: str
    by: str = "operator"


@dataclass(frozen=True, slots=True)
class SetDisposition:
    """Note how the call went, in the words of those who called or were called."""

    disposition: str
    by: str


CallCommand = (
    Say
    | Tell
    | Show
    | Respond
    | RequestOutOfBand
    | TransferTo
    | OperatorTransfer
    | OperatorHold
    | PressKeys
    | MuteCaller
    | ReferTo
    | Interrupt
    | EndCall
    | RecordCall
    | SetDisposition
)


class CommandsFromTools:
    """The methods of :class:`gateway.tools.functions.CallControl`, as commands for ``take``."""

    def __init__(self, take: Callable[[CallCommand], None]) -> None:
        self._take = take

    def say(self, words: str) -> None:
        """Have the model say these words: :class:`Say`."""
        self._take(Say(words))

    def tell(self, text: str, role: str, respond: bool) -> None:
        """Add a message for the model: :class:`Tell`."""
        self._take(Tell(text, role, respond))

    def show(self, image_uri: str, text: str, respond: bool) -> None:
        """Add an image for the model: :class:`Show`."""
        self._take(Show(image_uri, text, respond))

    def respond(self, instructions: str) -> None:
        """Request a response with these instructions: :class:`Respond`."""
        self._take(Respond(instructions))

    def transfer(self, destination: str, words: str) -> None:
        """Transfer the caller: :class:`TransferTo`."""
        self._take(TransferTo(destination, words))

    def record(self, action: str) -> None:
        """Start, stop, pause, resume or delete the recording: :class:`RecordCall`."""
        self._take(RecordCall(action, "tool"))

    def set_disposition(self, disposition: str) -> None:
        """Note how the call went: :class:`SetDisposition`."""
        self._take(SetDisposition(disposition, "tool"))

    def end(self, words: str) -> None:
        """End the call: :class:`EndCall`."""
        self._take(EndCall(words))
