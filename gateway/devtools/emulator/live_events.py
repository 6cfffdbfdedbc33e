# SPDX-License-Identifier: GPL-2.0-or-later
"""Client events of the Live protocol and the items in them, as strict models.

``session.input_audio.append`` is not among them: it comes fifty times a second and has a path of
its own.
"""

from __future__ import annotations

import binascii
from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import Field, TypeAdapter

from gateway.devtools.emulator.client_events import ClientEvent, by_type
from gateway.devtools.emulator.objects import ProtocolError, Strict, checked, validated

MAX_APPEND_TOKENS = 500
MAX_FIXTURE_S = 30
FIXTURE_RATE = 24_000
_CHARACTERS_PER_TOKEN = 4  # of English, about: the service's tokeniser is not public


ImageDetail = Literal["low", "high", "auto", "original"] | None
Status = Literal["in_progress", "completed", "incomplete"] | None
Phase = Literal["commentary", "final_answer"] | None


class InputText(Strict):
    text: str
    type: Literal["input_text"] = "input_text"


class DecisionImage(Strict):
    type: Literal["input_image"]
    image_url: str
    detail: ImageDetail = None


class DecisionJson(Strict):
    type: Literal["input_json"]
    data: dict[str, Any] | list[dict[str, Any]]


DecisionPart = Annotated[InputText | DecisionImage | DecisionJson, Field(discriminator="type")]


class Breakpoint(Strict):
    mode: Literal["explicit"]
    ttl: Literal["30m", "12h"] | None = None


class _Part(Strict):
    prompt_cache_breakpoint: Breakpoint | None = None


class BackendText(_Part):
    type: Literal["input_text"]
    text: str


class BackendImage(_Part):
    type: Literal["input_image"]
    detail: ImageDetail = None
    file_id: str | None = None
    image_url: str | None = None


class BackendFile(_Part):
    type: Literal["input_file"]
    detail: Literal["auto", "low", "high"] | None = None
    file_data: str | None = None
    file_id: str | None = None
    file_url: str | None = None
    filename: str | None = None


BackendPart = Annotated[BackendText | BackendImage | BackendFile, Field(discriminator="type")]


class Direct(Strict):
    type: Literal["direct"]


class Program(Strict):
    type: Literal["program"]
    caller_id: str


class FunctionOutput(Strict):
    """The result of a function."""

    type: Literal["function_call_output"]
    call_id: str
    output: str | list[BackendPart]
    id: str | None = None
    status: Status = None
    caller: Annotated[Direct | Program, Field(discriminator="type")] | None = None
    name: str | None = None
    namespace: str | None = None

    @property
    def text(self) -> str:
        return words_of(self.output)


class BackendMessage(Strict):
    """A message for the backend."""

    role: Literal["user", "assistant", "system", "developer"]
    content: str | list[BackendPart]
    type: Literal["message"] = "message"
    status: Status = None
    phase: Phase = None

    @property
    def text(self) -> str:
        return words_of(self.content)


def words_of(content: str | list[BackendPart]) -> str:
    if isinstance(content, str):
        return content
    return " ".join(part.text for part in content if isinstance(part, BackendText))


OTHER_ITEMS = frozenset(
    {
        "item_reference",
        "mcp_approval_response",
        "reasoning",
        "custom_tool_call_output",
        "shell_call_output",
        "computer_call_output",
    }
)
"""Types of items that the backend takes without a look at them."""


def backend_item(item: Mapping[str, Any]) -> FunctionOutput | BackendMessage | None:
    """Check the item of a ``response.item.create``; return None for one of :data:`OTHER_ITEMS`.

    Raises :class:`ProtocolError`.
    """
    kind = item.get("type", "message")
    if kind == "function_call_output":
        return validated(FunctionOutput, item, "item")
    if kind == "message":
        return validated(BackendMessage, item, "item")
    if kind not in OTHER_ITEMS:
        raise ProtocolError("invalid_value", f"Invalid value: '{str(kind)[:100]}'.", "item.type")
    return None


class OutputText(Strict):
    type: Literal["output_text"]
    text: str


class Declined(Strict):
    type: Literal["refusal"]
    refusal: str


class _DecisionItem(Strict):
    id: str | None = None


class DecisionUserMessage(_DecisionItem):
    role: Literal["user"]
    content: str | list[DecisionPart]
    type: Literal["message"] = "message"


class DecisionNotice(_DecisionItem):
    role: Literal["developer", "system"]
    content: str | list[InputText]
    type: Literal["message"] = "message"


class DecisionAnswer(_DecisionItem):
    role: Literal["assistant"]
    content: str | list[Annotated[OutputText | Declined, Field(discriminator="type")]]
    phase: Phase = None
    type: Literal["message"] = "message"


class _Call(_DecisionItem):
    call_id: str
    name: str
    namespace: str | None = None
    status: Status = None


class DecisionCall(_Call):
    type: Literal["function_call"]
    arguments: str


class DecisionCustomCall(_Call):
    type: Literal["custom_tool_call"]
    input: str


class DecisionOutput(_DecisionItem):
    type: Literal["function_call_output", "custom_tool_call_output"]
    call_id: str
    output: str | list[Annotated[InputText | DecisionImage, Field(discriminator="type")]]
    status: Status = None


_MESSAGES: TypeAdapter[Any] = TypeAdapter(
    Annotated[DecisionUserMessage | DecisionNotice | DecisionAnswer, Field(discriminator="role")]
)
_CALLS: TypeAdapter[Any] = TypeAdapter(
    Annotated[DecisionCall | DecisionCustomCall | DecisionOutput, Field(discriminator="type")]
)


def check_decision_item(item: Mapping[str, Any]) -> None:
    """Check the item of a ``decision.item.create``. Raises :class:`ProtocolError`."""
    message = item.get("type", "message") == "message"
    checked(_MESSAGES if message else _CALLS, item, "item")


def tokens(text: str) -> int:
    """Return about how many tokens ``text`` has."""
    return -(-len(text) // _CHARACTERS_PER_TOKEN)


def too_long(param: str, limit: int) -> ProtocolError:
    """Return the error for a text with more than ``limit`` tokens."""
    text = f"Invalid '{param}': string too long. Expected at most {limit} tokens."
    return ProtocolError("string_above_max_length", text, param)


def fixture_pcm(audio: str) -> bytes:
    """Decode the audio of a ``fixture.play``: 16-bit PCM at 24 kHz.

    Raises :class:`ProtocolError` (``invalid_audio``).
    """
    try:
        pcm = binascii.a2b_base64(audio, strict_mode=True)
    except ValueError:
        raise ProtocolError("invalid_audio", "'audio' is not valid base64.", "audio") from None
    if not pcm or len(pcm) % 2:
        text = "'audio' must be raw mono PCM16 with a whole number of samples."
        raise ProtocolError("invalid_audio", text, "audio")
    if len(pcm) > 2 * FIXTURE_RATE * MAX_FIXTURE_S:
        raise ProtocolError("invalid_audio", "'audio' is longer than 30 seconds.", "audio")
    return pcm


TextKind = Literal["instructions", "thinking", "commentary"]


class LiveEvent(ClientEvent):
    """A client event of the Live protocol."""


class Start(LiveEvent):
    type: Literal["session.start"]
    session: dict[str, Any]


class Update(LiveEvent):
    type: Literal["session.update"]
    session: dict[str, Any]


class Mute(LiveEvent):
    type: Literal["session.input_audio.mute", "session.input_audio.unmute"]


class PlayFixture(LiveEvent):
    type: Literal["session.output_audio.fixture.play"]
    audio: str


class AppendText(LiveEvent):
    type: Literal[
        "session.instructions.append", "session.thinking.append", "session.commentary.append"
    ]
    content: str = Field(min_length=1)
    delegation_id: str | None
    """Required, though it may be null."""


class CreateItem(LiveEvent):
    type: Literal["response.item.create"]
    item: dict[str, Any]


class CreateResponse(LiveEvent):
    type: Literal["response.create"]


class CreateDecision(LiveEvent):
    type: Literal["decision.create"]
    event_id: Annotated[str, Field(min_length=1, max_length=512)]


class CreateDecisionItem(LiveEvent):
    type: Literal["decision.item.create"]
    item: dict[str, Any]


class DeleteDecisionItem(LiveEvent):
    type: Literal["decision.item.delete"]
    item_id: str


class Close(LiveEvent):
    type: Literal["session.close"]


LIVE_EVENTS = by_type(LiveEvent.__subclasses__())
