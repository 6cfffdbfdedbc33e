# SPDX-License-Identifier: GPL-2.0-or-later
"""Functions that the model calls: their definition, arguments, results and runner.

Tool modules in Python take ``tool``, :class:`Call` and :class:`ToolError` from here, by way of
:mod:`gateway.tools`.
"""

from __future__ import annotations

import base64
import binascii
import json
import re
import sys
from collections.abc import Awaitable, Callable, Iterator, Mapping
from dataclasses import dataclass, field
from itertools import chain
from types import MappingProxyType
from typing import Any, Literal, Protocol, TypeVar, get_args, overload

from pydantic_core import PydanticSerializationError, to_jsonable_python

from gateway.text import unicode_of

MAX_BYTES = 512 * 1024
"""Bytes of one image. It goes to the server between two packets of the caller's voice, which wait
for it: on a line of 10 Mbit/s for half a second."""

_KINDS = {"image/png": b"\x89PNG\r\n\x1a\n", "image/jpeg": b"\xff\xd8\xff"}
_URI = re.compile(r"data:([a-z]+/[a-z.+-]+);base64,", re.IGNORECASE)


class ImageError(ValueError):
    """An image cannot be shown to the model; the message says why."""


def data_uri(image: bytes) -> str:
    """Return the data URI of a PNG or JPEG file. Raises ImageError."""
    if len(image) > MAX_BYTES:
        raise ImageError(f"the image has {len(image)} bytes; {MAX_BYTES} are allowed")
    kind = next((kind for kind, magic in _KINDS.items() if image.startswith(magic)), None)
    if kind is None:
        raise ImageError("the image is neither PNG nor JPEG")
    return f"data:{kind};base64,{base64.b64encode(image).decode()}"


def checked_data_uri(uri: str) -> str:
    """Return a data URI encoded again from its image, a PNG or JPEG. Raises ImageError."""
    head = _URI.match(uri)
    if head is None:
        raise ImageError("the image must be a data URI: data:image/png;base64,...")
    kind = head[1].lower()
    if kind not in _KINDS:
        raise ImageError(f"the image is {kind}; it must be image/png or image/jpeg")
    if len(uri) > MAX_BYTES * 4 // 3 + 64:
        raise ImageError(f"the image has more than {MAX_BYTES} bytes")
    try:
        image = base64.b64decode(uri[head.end() :], validate=True)
    except binascii.Error:
        raise ImageError("the data URI is no base64") from None
    if not image.startswith(_KINDS[kind]):
        raise ImageError(f"the data URI says {kind}, and its bytes do not")
    return data_uri(image)


class ToolError(Exception):
    """Raised by a tool that cannot do what was asked; its text is for the model."""


MARK = "__gateway_tool__"
"""Attribute of a decorated function."""

_F = TypeVar("_F", bound=Callable[..., object])


@dataclass(frozen=True, slots=True)
class Waiting:
    """What the caller hears while a function runs for long: words, a sound, or nothing."""

    filler_delay: float = 0.0
    """Seconds from the start of the function; 0 for never."""
    filler_text: str = ""
    filler_sound: str = ""
    """One of :mod:`gateway.audio.sounds`, or the path of a WAV file; heard until the result is
    there."""


@dataclass(frozen=True, slots=True)
class Options:
    """Arguments of ``@tool``."""

    name: str | None = None
    description: str | None = None
    timeout: float | None = None
    """Deadline (s); None for ``tools.timeout``."""
    waiting: Waiting = field(default_factory=Waiting)


@overload
def tool(function: _F) -> _F: ...
@overload
def tool(
    *,
    name: str | None = None,
    description: str | None = None,
    timeout: float | None = None,
    filler_delay: float = 0.0,
    filler_text: str = "",
    filler_sound: str = "",
) -> Callable[[_F], _F]: ...
def tool(
    function: _F | None = None,
    *,
    name: str | None = None,
    description: str | None = None,
    timeout: float | None = None,
    filler_delay: float = 0.0,
    filler_text: str = "",
    filler_sound: str = "",
) -> _F | Callable[[_F], _F]:
    """Mark a function as a tool of the model.

    Args:
        name: for the model; the function's own by default.
        description: for the model; the first paragraph of the docstring by default.
        timeout: deadline in seconds, in place of ``tools.timeout``.
        filler_delay: seconds after which the caller hears ``filler_text`` or ``filler_sound``.
        filler_text: words for the caller while they wait.
        filler_sound: what they hear until the result is there.
    """
    options = Options(name, description, timeout, Waiting(filler_delay, filler_text, filler_sound))

    def mark(function: _F) -> _F:
        setattr(function, MARK, options)
        return function

    return mark if function is None else mark(function)


MAX_DISPOSITION = 64
"""Characters."""


RecordingAction = Literal["start", "stop", "pause", "resume", "delete"]


class CallControl(Protocol):
    """Requests of a function to its call, as methods of :class:`Call`. They return at once, and do
    nothing once the call is over. From the event loop only."""

    def say(self, words: str) -> None: ...
    def tell(self, text: str, role: str, respond: bool) -> None: ...
    def show(self, image_uri: str, text: str, respond: bool) -> None: ...
    def respond(self, instructions: str) -> None: ...
    def transfer(self, destination: str, words: str) -> None: ...
    def set_disposition(self, disposition: str) -> None: ...
    def record(self, action: str) -> None: ...
    def end(self, words: str) -> None: ...


@dataclass(frozen=True, slots=True)
class Call:
    """The telephone call that a tool runs for: a parameter of this type is not the model's.

    Methods may be called from any thread. They request something, return at once, and do nothing
    once the call is over.
    """

    id: str
    """The call's id in logs and records."""
    caller: str
    """SIP URI of the other side."""
    called: str
    """SIP URI that was called."""
    route: str
    variables: Mapping[str, str] = field(default_factory=lambda: MappingProxyType({}))
    """Variables as in the route's texts, with its named groups."""
    _control: CallControl | None = field(default=None, repr=False)
    _on_loop: Callable[[Callable[[], None]], None] = field(default=lambda do: do(), repr=False)

    def say(self, words: str) -> None:
        """Have the model say exactly this, once it says nothing else."""
        self._ask(lambda control: control.say(words))

    def tell(self, text: str, *, role: str = "system", respond: bool = False) -> None:
        """Add a message to the conversation: of the ``system``, or as the caller's (``user``).

        With ``respond`` the model answers it. Raises ToolError for another role.
        """
        if role not in ("system", "user"):
            raise ToolError(f"role must be system or user, not {role}")
        self._ask(lambda control: control.tell(text, role, respond))

    def show(self, image: bytes | str, text: str = "", *, respond: bool = False) -> None:
        """Show the model a PNG or JPEG, as bytes or data URI, with a text. Raises ToolError."""
        try:
            uri = data_uri(image) if isinstance(image, bytes) else checked_data_uri(image)
        except ImageError as error:
            raise ToolError(str(error)) from None
        self._ask(lambda control: control.show(uri, text, respond))

    def respond(self, instructions: str) -> None:
        """Have the model respond, with these instructions for this one response."""
        self._ask(lambda control: control.respond(instructions))

    def transfer(self, destination: str, words: str = "") -> None:
        """Transfer the caller to a ``[[route.transfer]]``, by its name.

        If that fails, ``words`` are said and the call ends.
        """
        self._ask(lambda control: control.transfer(destination, words))

    def set_disposition(self, disposition: str) -> None:
        """Set the disposition in the record, like ``completed``. Raises ToolError by its length."""
        if not 0 < len(disposition) <= MAX_DISPOSITION:
            raise ToolError(f"disposition must have 1 to {MAX_DISPOSITION} characters")
        self._ask(lambda control: control.set_disposition(disposition))

    def record(self, action: RecordingAction) -> None:
        """Control the recording, where the route allows one; ``delete`` leaves nothing of it.

        Raises ToolError for another action.
        """
        if action not in get_args(RecordingAction):
            raise ToolError(f"action must be one of {', '.join(get_args(RecordingAction))}")
        self._ask(lambda control: control.record(action))

    def end(self, words: str = "") -> None:
        """Say these words, then hang up."""
        self._ask(lambda control: control.end(words))

    def _ask(self, ask: Callable[[CallControl], None]) -> None:
        control = self._control
        if control is not None:
            self._on_loop(lambda: ask(control))


# ---- functions and their runner


class _Series(list[Any]):
    """Items of an iterator, as a list for :class:`json.JSONEncoder`, which reads as it writes."""

    def __init__(self, first: Any, more: Iterator[Any]) -> None:
        super().__init__((first,))
        self._more = more

    def __iter__(self) -> Iterator[Any]:
        return chain(super().__iter__(), self._more)


def _plain(value: Any) -> Any:
    """Convert a value that JSON has no type for. Raises ValueError."""
    if isinstance(value, Iterator):
        for first in value:
            return _Series(first, value)
        return []
    try:
        return to_jsonable_python(value)
    except PydanticSerializationError as error:
        raise ValueError(str(error)) from None


_ENCODER = json.JSONEncoder(ensure_ascii=False, separators=(",", ":"), default=_plain)


def result_text(value: Any, most: int = sys.maxsize) -> str:
    """Return a function's result as text: a text as it is, anything else as JSON.

    JSON is written until it has ``most`` characters, however large the result is. Raises ValueError
    for a result that cannot be JSON.
    """
    if isinstance(value, str):
        return value
    text = ""
    try:
        for piece in _ENCODER.iterencode(value):
            text += piece
            if len(text) > most:
                break
    except (TypeError, RecursionError) as error:  # keys that are no texts, or too deep
        raise ValueError(str(error)) from None
    return text


def error_text(message: str, **more: object) -> str:
    """Return the result that tells the model of a failure, a JSON object with ``error``."""
    return json.dumps({"error": message, **more}, ensure_ascii=False)


def bounded(text: str, limit: int) -> str:
    """Return the first ``limit`` characters of a text, and a note if that is not all."""
    if len(text) <= limit:
        return unicode_of(text)
    return f"{unicode_of(text[:limit])}\n[cut: only the first {limit} characters are shown]"


@dataclass(frozen=True, slots=True)
class ToolCall:
    """A call of a function by the model (``function_call`` item).

    Questions to services have one, too: see :class:`ToolRunner`.
    """

    call_id: str
    name: str
    arguments: str
    """JSON text of the model, checked or not."""
    call: str
    """Id of the telephone call."""
    route: str = ""
    caller: str = ""
    """SIP URI."""
    called: str = ""
    variables: Mapping[str, str] = field(default_factory=lambda: MappingProxyType({}))
    traceparent: str = ""
    """Header field for requests to services (W3C Trace Context); empty for none."""
    control: CallControl | None = None
    """Requests of the function to the call; from the event loop only."""

    @property
    def trace_headers(self) -> dict[str, str]:
        """Header fields that put the work of a service into the call's trace."""
        return {"traceparent": self.traceparent} if self.traceparent else {}


@dataclass(frozen=True, slots=True)
class Question:
    """A question to the operator's service whether a tool call may run."""

    request: ToolCall
    rule: int
    """Index, from 0, of the route's approval rule."""


class ContentService(Protocol):
    """A guardrail's service, which decides whether words may be said."""

    @property
    def name(self) -> str: ...
    @property
    def url(self) -> str: ...
    @property
    def headers(self) -> Mapping[str, str]: ...
    @property
    def timeout(self) -> float: ...


class DigitsService(Protocol):
    """A service that stores sensitive digits and returns a token for them."""

    @property
    def url(self) -> str: ...
    @property
    def headers(self) -> Mapping[str, str]: ...
    @property
    def store_timeout(self) -> float: ...


class ToolRunner(Protocol):
    """Runs functions and asks services.

    Methods return at once; ``done`` is called on the event loop. The state machine has a deadline
    for each call, and drops a later result.
    """

    def run(self, call: ToolCall, done: Callable[[str], None]) -> None:
        """Run a function; ``done`` gets its result, or its failure, as text for the model."""

    def check(
        self, rule: ContentService, call: ToolCall, done: Callable[[bool | None, str], None]
    ) -> None:
        """Ask whether the speaker ``call.name`` may say ``call.arguments``.

        ``done`` gets the answer, None if there is none, and the reason.
        """

    def store(
        self,
        service: DigitsService,
        call: ToolCall,
        digits: str,
        done: Callable[[Mapping[str, Any]], None],
    ) -> None:
        """Store digits of the kind ``call.name``; ``done`` gets the result for the model."""

    def ask(self, question: Question, done: Callable[[bool, str], None]) -> None:
        """Ask for an approval; ``done`` gets the answer and a reason."""


Run = Callable[[ToolCall, dict[str, Any]], Awaitable[str]]
"""Runs a function with the checked arguments of a call; returns the text for the model.

Raises ToolError. It is cancelled at its deadline.
"""


@dataclass(frozen=True, slots=True)
class Function:
    """One function that the model can call."""

    name: str
    description: str
    parameters: Mapping[str, Any]
    """JSON Schema of the arguments."""
    run: Run
    timeout: float
    """Deadline (s)."""
    max_result_chars: int
    """Characters of its result that the model gets."""
    waiting: Waiting = field(default_factory=Waiting)
    approval: bool = False
    """Whether it runs only if an approval rule allows it."""

    def definition(self) -> dict[str, Any]:
        """Return the entry of the session object (GA ``tools``)."""
        return {
            "type": "function",
            "name": self.name,
            "description": self.description,
            "parameters": dict(self.parameters),
        }
