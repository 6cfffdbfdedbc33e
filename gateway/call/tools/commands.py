# SPDX-License-Identifier: GPL-2.0-or-later
"""Commands of tool functions and operators to a running call; plans of the built-in tools.

The call decides what becomes of a command.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any


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
    """Put the caller on hold for an operator (hold music), or end that."""

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
    """Interrupt the model as barge-in does: stop playout, truncate, cancel its response."""


@dataclass(frozen=True, slots=True)
class EndCall:
    """Say goodbye with these words and hang up; without words at once."""

    words: str


@dataclass(frozen=True, slots=True)
class RecordCall:
    """Start, stop, pause, resume or delete the recording of the call (``action``)."""

    action: str
    by: str = "operator"


@dataclass(frozen=True, slots=True)
class SetDisposition:
    """Set the disposition of the call: how it went, in the words of the business."""

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
    """Gives tool functions their methods on the call
    (:class:`gateway.tools.functions.CallControl`), and makes a command of each.

    Args:
        take: takes the commands, as input of the machine.
    """

    def __init__(self, take: Callable[[CallCommand], None]) -> None:
        self._take = take

    def say(self, words: str) -> None:
        """Have the model say exactly these words: :class:`Say`."""
        self._take(Say(words))

    def tell(self, text: str, role: str, respond: bool) -> None:
        """Add a message to the conversation: :class:`Tell`."""
        self._take(Tell(text, role, respond))

    def show(self, image_uri: str, text: str, respond: bool) -> None:
        """Add an image (data URI) to the conversation: :class:`Show`."""
        self._take(Show(image_uri, text, respond))

    def respond(self, instructions: str) -> None:
        """Request a response with these instructions: :class:`Respond`."""
        self._take(Respond(instructions))

    def transfer(self, destination: str, words: str) -> None:
        """Transfer the caller to a destination of the route: :class:`TransferTo`."""
        self._take(TransferTo(destination, words))

    def record(self, action: str) -> None:
        """Start, stop, pause, resume or delete the recording (``action``): :class:`RecordCall`."""
        self._take(RecordCall(action, "tool"))

    def set_disposition(self, disposition: str) -> None:
        """Set the disposition of the call: :class:`SetDisposition`."""
        self._take(SetDisposition(disposition, "tool"))

    def end(self, words: str) -> None:
        """Say these words and hang up: :class:`EndCall`."""
        self._take(EndCall(words))


@dataclass(frozen=True, slots=True)
class BriefingPlan:
    """Briefing of whoever answers a transfer, before they take the call:
    :class:`gateway.dialplan.tool_sections.Briefing`."""

    text: str = ""
    prompt: str = "Press 1 to take the call, or 2 to decline it."
    sound: str = ""
    music: str = "music"
    accept_key: str = "1"
    decline_key: str = "2"
    timeout: float = 30.0
    record: bool = False


@dataclass(frozen=True, slots=True)
class Destination:
    """A transfer destination of the route: :class:`gateway.dialplan.tool_sections.Transfer`."""

    name: str
    to: str
    """A sip or tel URI; ``{number}`` in it stands for the number asked for."""
    mode: str = "blind"
    """blind, attended or bridge."""
    allowed_numbers: re.Pattern[str] | None = None
    """Numbers that the model may name; None for a single destination."""
    description: str = ""
    trunk: str = ""
    caller_id: str = ""
    """User of From in the call to it; "" for the trunk's."""
    ring_timeout: float = 30.0
    briefing: BriefingPlan | None = None


@dataclass(frozen=True, slots=True)
class InterpreterPlan:
    """Two sessions that interpret between caller and B-leg, one for each direction."""

    destination: str
    """Whose calls are interpreted."""
    to_caller: Mapping[str, Any]
    """The session object of the one that the caller hears, and that hears the B-leg."""
    to_callee: Mapping[str, Any]
    original_db: float = -18.0
    """How loud each hears the other's own voice, against their volume without an interpreter."""
    at_once: bool = True
    """Call the destination at the start of the call, after the greeting."""


@dataclass(frozen=True, slots=True)
class TransferPlan:
    """The tool ``transfer_call``, offered where there are destinations."""

    destinations: tuple[Destination, ...] = ()
    sound: str = "ringback"
    listen: bool = False
    """Whether the session goes on listening once caller and B-leg are joined."""
    interpreter: InterpreterPlan | None = None


@dataclass(frozen=True, slots=True)
class SendDtmfPlan:
    """The tool ``send_dtmf``: see :class:`gateway.dialplan.tool_sections.SendDtmf`."""

    enabled: bool = False
    mode: str = "auto"


@dataclass(frozen=True, slots=True)
class HoldPlan:
    """The tool ``hold``; ``release_after``: s on hold until a session billed by time is closed."""

    enabled: bool = False
    sound: str = "chime"
    max_duration: float = 60.0
    release_after: float = 0.0


@dataclass(frozen=True, slots=True)
class LanguagePlan:
    """The tool ``set_language``."""

    names: Mapping[str, str] = field(default_factory=dict)
    """Name of each language, by its code (ISO 639-1)."""
    updates: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    """``session.update`` for each; none: the tool is not offered."""


@dataclass(frozen=True, slots=True)
class DispositionPlan:
    """The tool ``set_disposition``."""

    default: str = ""
    """How the call went where nobody says."""
    values: tuple[str, ...] = ()
    """What the model may say; none: the tool is not offered."""


@dataclass(frozen=True, slots=True)
class CollectPlan:
    """The tool ``collect_digits``."""

    enabled: bool = False
    timeout: float = 15.0
    """Wait for each digit (s), if the model does not say."""
    max_digits: int = 32
    private: bool = False
    """The digits go to the model, and into no log or record."""
    sensitive: bool = False
    """The digits go to ``url`` only; the model gets a token, and nobody hears their tones."""
    url: str = ""
    headers: Mapping[str, str] = field(default_factory=dict, repr=False)
    store_timeout: float = 10.0


@dataclass(frozen=True, slots=True)
class SchedulePlan:
    """The tool ``schedule_callback``; it is run outside, as functions are."""

    enabled: bool = False
    max_days: int = 14


@dataclass(frozen=True, slots=True)
class RecordingPlan:
    """Recording of the call: ``[route.recording]``."""

    mode: str = "off"
    """off, on_demand or always."""
    format: str = "wav"
    """wav, wav_pcm or opus."""
    consent: str = "none"
    """none; announce: who says no to the prompt is not recorded; ask: only who says yes is."""
    prompt: str = ""
    yes_key: str = "1"
    no_key: str = "2"
    yes_phrases: tuple[tuple[str, ...], ...] = ()
    """Words of the caller that are a yes, as ``gateway.text.words_of`` splits them."""
    no_phrases: tuple[tuple[str, ...], ...] = ()
    consent_timeout: float = 10.0
    """Wait (s) for the answer, from the end of the prompt."""
    after_transfer: bool = False
    """Whether caller and B-leg are recorded once they are joined."""
    tool: bool = False
    """Whether the model has the tool ``record_call``."""
