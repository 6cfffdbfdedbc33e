# SPDX-License-Identifier: GPL-2.0-or-later
"""Commands of tool functions, operators and applications to a running call; plans of the built-in
tools.

The machine carries commands out (``gateway.call.conversation.control.carry_out``). They need an
answered call, not joined with a B-leg, and its session; while the conversation is being ended only
:class:`RequestOutOfBand` is taken. :class:`RecordCall` needs only an answered call, and
:class:`SetDisposition` nothing. What cannot be done is dropped; where it is *rejected* the log has
``command_rejected``.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True, slots=True)
class Say:
    """Request a response that says exactly these words, without tools, once none is running."""

    words: str


@dataclass(frozen=True, slots=True)
class SendMessage:
    """Put a message into the conversation; with ``respond``, request a response to it."""

    text: str
    role: str = "system"
    """``system``, or ``user``: as if the caller had said it."""
    respond: bool = False


@dataclass(frozen=True, slots=True)
class SendImage:
    """Put an image into the conversation, as a message of the user; with ``respond``, request a
    response to it."""

    image: str
    """A data URI, as :func:`gateway.tools.checked` returns it."""
    text: str = ""
    """Text in the same message; "" for none."""
    respond: bool = False


@dataclass(frozen=True, slots=True)
class RequestResponse:
    """Request one response with these instructions in place of the session's, once none is
    running."""

    instructions: str


@dataclass(frozen=True, slots=True)
class RequestOutOfBand:
    """Request an out-of-band response, which the caller does not hear;
    :class:`gateway.call.outputs.OutOfBandDone` reports its end."""

    key: str
    """Name under which its end is reported; one at a time."""
    instructions: str
    metadata: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class TransferTo:
    """End the conversation by a transfer to a destination of the route, by its name, once no other
    action is queued or under way; no more responses are requested. A hang-up that is due already
    comes instead, unless it is cancelled."""

    destination: str
    words: str
    """Last words to the caller where the transfer fails; then the call is hung up."""


@dataclass(frozen=True, slots=True)
class OperatorTransfer:
    """Transfer the caller to a destination of the route, for an operator. Where that fails the
    model is told, and the conversation goes on; rejected while another action is under way."""

    destination: str
    briefing: str = ""
    """What the destination is told before it takes the call, where it is briefed; "" for a summary
    by the model."""


@dataclass(frozen=True, slots=True)
class OperatorHold:
    """Put the caller on hold for an operator, at once, and tell the model; the caller hears music,
    and not the model. Rejected while another action is under way."""

    held: bool
    """False: end the hold; rejected without one."""


@dataclass(frozen=True, slots=True)
class PressKeys:
    """Send DTMF digits to the caller's side, for an operator, once queued speech was played.
    Rejected while another action is under way."""

    digits: str
    """0-9, *, #, A-D, with w (0.5 s), W (1 s) and comma (2 s) as pauses."""


@dataclass(frozen=True, slots=True)
class MuteCaller:
    """Have the session get silence in place of the caller's audio while ``muted``, for an operator;
    the model is told of both."""

    muted: bool


@dataclass(frozen=True, slots=True)
class ReferTo:
    """Transfer the caller to a URI that an application chose, by REFER (blind). Where that fails
    the model is told, and the conversation goes on; rejected while another action is under way."""

    uri: str


@dataclass(frozen=True, slots=True)
class Interrupt:
    """Interrupt the model as barge-in does: stop playout, truncate, cancel the responses that run,
    and also a hang-up or a queued action that the model asked for."""


@dataclass(frozen=True, slots=True)
class EndCall:
    """End the conversation: have the model say these words, then hang up. Waits for an action that
    is queued or under way; no more responses are requested. A hang-up that is due already comes
    without these words, unless it is cancelled."""

    words: str
    """"" hangs up without any."""


@dataclass(frozen=True, slots=True)
class RecordCall:
    """Start, stop, pause, resume or delete the recording of an answered call; needs no session."""

    action: str
    """start, stop, pause, resume or delete."""
    by: str = "operator"
    """Who wants it, for the log: operator, or tool."""


@dataclass(frozen=True, slots=True)
class SetDisposition:
    """Set the disposition of the call in its record, at any time; the last one counts."""

    disposition: str
    by: str
    """Who says so, for the log: tool or operator."""


CallCommand = (
    Say
    | SendMessage
    | SendImage
    | RequestResponse
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
    """What a tool function calls on its call (:class:`gateway.tools.CallControl`): each
    method puts one command into the machine, and returns nothing. The function is not told of a
    command that cannot be carried out; the log may have ``command_rejected``.

    Args:
        take: puts a command into the machine, as :class:`gateway.call.inputs.ToolRequest`.
    """

    def __init__(self, take: Callable[[CallCommand], None]) -> None:
        self._take = take

    def say(self, words: str) -> None:
        """Have the model say exactly these words, once no response is running: :class:`Say`."""
        self._take(Say(words))

    def send_message(self, text: str, role: str, respond: bool) -> None:
        """Add a message to the conversation, as system or user (``role``), and with ``respond``
        request a response: :class:`SendMessage`."""
        self._take(SendMessage(text, role, respond))

    def send_image(self, image_uri: str, text: str, respond: bool) -> None:
        """Add an image (data URI), with a text, to the conversation as the user's, and with
        ``respond`` request a response: :class:`SendImage`."""
        self._take(SendImage(image_uri, text, respond))

    def create_response(self, instructions: str) -> None:
        """Request one response with these instructions in place of the session's, once no response
        is running: :class:`RequestResponse`."""
        self._take(RequestResponse(instructions))

    def transfer(self, destination: str, words: str) -> None:
        """End the conversation now, and transfer the caller to a destination of the route once no
        other action is under way: :class:`TransferTo`. Requests that wait, such as a :meth:`say`,
        are dropped, and later commands ignored, except :meth:`record`, :meth:`set_disposition` and
        out-of-band requests of an application.

        Args:
            destination: name of the destination; one that the route does not have counts as a
                transfer that failed.
            words: said by the model if the transfer fails, before the call is hung up; "" for none.
        """
        self._take(TransferTo(destination, words))

    def record(self, action: str) -> None:
        """Start, stop, pause, resume or delete (``action``) the recording of the call:
        :class:`RecordCall`."""
        self._take(RecordCall(action, "tool"))

    def set_disposition(self, disposition: str) -> None:
        """Set the disposition in the record of the call, in place of an earlier one; it need not be
        one of the values that the route gives the model: :class:`SetDisposition`."""
        self._take(SetDisposition(disposition, "tool"))

    def end(self, words: str) -> None:
        """Have the model say these words, then hang up; with "" hang up without any, once queued
        audio was played. An action that is under way is waited for: :class:`EndCall`. Requests that
        wait, such as a :meth:`say`, are dropped, and later commands ignored as after
        :meth:`transfer`."""
        self._take(EndCall(words))


@dataclass(frozen=True, slots=True)
class BriefingPlan:
    """Briefing of whoever answers a transfer, before they take the call:
    :class:`gateway.dialplan.tool_sections.Briefing`."""

    text: str = ""
    """What they are told; "" for words that the tool call brings, or a summary by the model."""
    prompt: str = "Press 1 to take the call, or 2 to decline it."
    """Said after it."""
    sound: str = ""
    """Played in a loop where the model cannot speak; "" joins the call at once then."""
    music: str = "music"
    """For the caller meanwhile."""
    accept_key: str = "1"
    decline_key: str = "2"
    timeout: float = 30.0
    """Longest wait (s) for the key, from the answer; without one the transfer fails."""
    record: bool = False
    """Record the briefing into a file of its own, where the call is recorded."""


@dataclass(frozen=True, slots=True)
class Destination:
    """A transfer destination of the route: :class:`gateway.dialplan.tool_sections.Transfer`."""

    name: str
    to: str
    """A sip or tel URI; ``{number}`` in it stands for the number asked for."""
    mode: str = "blind"
    """blind, attended or bridge."""
    allowed_numbers: re.Pattern[str] | None = None
    """Numbers that the model may ask for, matched as a whole; None: ``to`` is the only target."""
    description: str = ""
    """For the model."""
    trunk: str = ""
    """Name of the trunk that the call to it goes through."""
    caller_id: str = ""
    """User of From in the call to it; "" for the trunk's."""
    ring_timeout: float = 30.0
    """Longest wait (s) for the answer of the target, or the outcome of a REFER."""
    briefing: BriefingPlan | None = None
    """Before it takes the call; None: none. Not for blind."""


@dataclass(frozen=True, slots=True)
class InterpreterPlan:
    """Two sessions that interpret between caller and B-leg, one for each direction."""

    destination: str
    """Name of the destination to which calls are interpreted."""
    to_caller: Mapping[str, Any]
    """Session object of the one that hears the B-leg and speaks to the caller."""
    to_callee: Mapping[str, Any]
    """Session object of the one that hears the caller and speaks to the B-leg."""
    original_db: float = -18.0
    """Level (dB) at which each hears the other's own voice; 0 is full volume."""
    at_once: bool = True
    """Call the destination at the start of the call, after the greeting; False: when model or
    operator transfer to it."""


@dataclass(frozen=True, slots=True)
class TransferPlan:
    """The tool ``transfer_call``, offered where there are destinations; and how each transfer of
    the call is made."""

    destinations: tuple[Destination, ...] = ()
    sound: str = "ringback"
    """For the caller until the target has answered."""
    listen: bool = False
    """The session goes on listening once caller and B-leg are joined; False: it is closed."""
    interpreter: InterpreterPlan | None = None
    """None: no call is interpreted."""


@dataclass(frozen=True, slots=True)
class SendDtmfPlan:
    """The tool ``send_dtmf``: see :class:`gateway.dialplan.tool_sections.SendDtmf`."""

    enabled: bool = False
    mode: str = "auto"
    """auto, rfc4733 or info, as :class:`gateway.call.outputs.SendDtmf`."""


@dataclass(frozen=True, slots=True)
class HoldPlan:
    """The tool ``hold``, by which the model plays music to the caller; and holds by the caller."""

    enabled: bool = False
    """The model has the tool."""
    sound: str = "chime"
    """Hold music for the caller, also for an operator's hold."""
    max_duration: float = 60.0
    """Seconds that the model may ask for."""
    release_after: float = 0.0
    """Seconds for which the caller has us on hold, after which a session that is billed by time is
    closed; another is opened when they come back. 0: never."""


@dataclass(frozen=True, slots=True)
class LanguagePlan:
    """The tool ``set_language``."""

    names: Mapping[str, str] = field(default_factory=dict)
    """Name of each language, by its code (ISO 639-1, with or without a region)."""
    updates: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    """``session.update`` for each, by code; none: the tool is not offered."""


@dataclass(frozen=True, slots=True)
class DispositionPlan:
    """The tool ``set_disposition``."""

    default: str = ""
    """The call's disposition where nobody sets one."""
    values: tuple[str, ...] = ()
    """What the model may say; none: the tool is not offered."""


@dataclass(frozen=True, slots=True)
class CollectPlan:
    """The tool ``collect_digits``, by which the model waits for DTMF digits of the caller."""

    enabled: bool = False
    timeout: float = 15.0
    """Longest wait for each digit (s), where the model does not say."""
    max_digits: int = 32
    """Most digits that the model may ask for."""
    private: bool = False
    """The digits go to the model, and into no log or record."""
    sensitive: bool = False
    """The digits go to ``url`` only, once they were checked; the model gets the service's answer (a
    token), and session and recording get silence in place of the tones."""
    url: str = ""
    """Service that takes sensitive digits (POST)."""
    headers: Mapping[str, str] = field(default_factory=dict, repr=False)
    store_timeout: float = 10.0
    """Longest wait (s) for its answer."""


@dataclass(frozen=True, slots=True)
class SchedulePlan:
    """The tool ``schedule_callback``, by which the model promises to call back; the bridge runs it,
    like the route's functions."""

    enabled: bool = False
    max_days: int = 14
    """How far ahead a callback may be."""


@dataclass(frozen=True, slots=True)
class RecordingPlan:
    """Recording of the call: ``[route.recording]``."""

    mode: str = "off"
    """off; on_demand: when the model, a function or an operator starts it; always: from the ACK of
    the answer, or the caller's consent."""
    format: str = "wav"
    """wav, wav_pcm or opus."""
    consent: str = "none"
    """none; announce: who says no to the prompt is not recorded; ask: only who says yes is."""
    prompt: str = ""
    """Said before the greeting, or when a recording is to be started later, with announce and
    ask."""
    yes_key: str = "1"
    """DTMF digit for yes."""
    no_key: str = "2"
    """DTMF digit for no."""
    yes_phrases: tuple[tuple[str, ...], ...] = ()
    """Words of the caller that are a yes, as ``gateway.text.words_of`` splits them."""
    no_phrases: tuple[tuple[str, ...], ...] = ()
    """Likewise for no."""
    consent_timeout: float = 10.0
    """Wait (s) for the answer, from the end of the prompt."""
    after_transfer: bool = False
    """The recording goes on when caller and B-leg are joined; False: it ends then."""
    tool: bool = False
    """The model has the tool ``record_call``, unless ``mode`` is off."""
