# SPDX-License-Identifier: GPL-2.0-or-later
"""Interface of functions that the model calls: what each is given and returns, and who runs it.

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
"""Of one image. It goes to the server between two packets of the caller's voice, which wait for
it: on a line of 10 Mbit/s for half a second."""

_KINDS = {"image/png": b"\x89PNG\r\n\x1a\n", "image/jpeg": b"\xff\xd8\xff"}
_URI = re.compile(r"data:([a-z]+/[a-z.+-]+);base64,", re.IGNORECASE)


class ImageError(ValueError):
    """This is no image that the model can be shown; the message says why."""


def data_uri(image: bytes) -> str:
    """The data URI of a PNG or JPEG. Raises ImageError."""
    if len(image) > MAX_BYTES:
        raise ImageError(f"the image has {len(image)} bytes; {MAX_BYTES} are allowed")
    kind = next((kind for kind, magic in _KINDS.items() if image.startswith(magic)), None)
    if kind is None:
        raise ImageError("the image is neither PNG nor JPEG")
    return f"data:{kind};base64,{base64.b64encode(image).decode()}"


def checked(uri: str) -> str:
    """A data URI, made anew from what is in it. Raises ImageError."""
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
    """What the caller gets when a function takes long: nothing (the model talks on), words, or a
    sound."""

    filler_delay: float = 0.0
    """From when on (s); 0 for never."""
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
    """What a function may do to its call. Methods ask, return at once, and ignore a call that is
    over. From the event loop only."""

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

    Methods may be called from any thread. They ask, and return at once; a call that is over by
    then takes no notice.
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
        """Let the model say exactly this, as soon as it says nothing else."""
        self._ask(lambda control: control.say(words))

    def tell(self, text: str, *, role: str = "system", respond: bool = False) -> None:
        """Tell the model something, or as ``user`` in the caller's place; with ``respond`` it is
        asked to answer. Raises ToolError."""
        if role not in ("system", "user"):
            raise ToolError(f"role must be system or user, not {role}")
        self._ask(lambda control: control.tell(text, role, respond))

    def show(self, image: bytes | str, text: str = "", *, respond: bool = False) -> None:
        """Show the model a PNG or JPEG: its bytes, or a data URI. Raises ToolError."""
        try:
            uri = data_uri(image) if isinstance(image, bytes) else checked(image)
        except ImageError as error:
            raise ToolError(str(error)) from None
        self._ask(lambda control: control.show(uri, text, respond))

    def respond(self, instructions: str) -> None:
        """Let the model speak, by these instructions for this one response."""
        self._ask(lambda control: control.respond(instructions))

    def transfer(self, destination: str, words: str = "") -> None:
        """Hand the caller on to a ``[[route.transfer]]``; ``words`` are said if that fails, and
        the call ends."""
        self._ask(lambda control: control.transfer(destination, words))

    def set_disposition(self, disposition: str) -> None:
        """Note in the record how the call went, like ``completed``. Raises ToolError."""
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
    """What an iterator gives, as a list that is read only as far as it is written."""

    def __init__(self, first: Any, more: Iterator[Any]) -> None:
        super().__init__((first,))
        self._more = more

    def __iter__(self) -> Iterator[Any]:
        return chain(super().__iter__(), self._more)


def _plain(value: Any) -> Any:
    """Return a value that JSON has no form of as one that it has. Raises ValueError."""
    if isinstance(value, Iterator):
        for first in value:
            return _Series(first, value)
        return []
    try:
        return to_jsonable_python(value)
    except PydanticSerializationError as error:
        raise ValueError(str(error)) from None


_ENCODER = json.JSONEncoder(ensure_ascii=False, separators=(",", ":"), default=_plain)


def text_of(value: Any, most: int = sys.maxsize) -> str:
    """A result as text: texts as they are, anything else as JSON. Raises ValueError.

    Not much more than ``most`` characters are made of it, however large it is.
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
    """A failure, as the model is told of it."""
    return json.dumps({"error": message, **more}, ensure_ascii=False)


def bounded(text: str, limit: int) -> str:
    """At most ``limit`` characters, and a note behind them where more were there."""
    if len(text) <= limit:
        return unicode_of(text)
    return f"{unicode_of(text[:limit])}\n[cut: only the first {limit} characters are shown]"


@dataclass(frozen=True, slots=True)
class ToolCall:
    """A function that the model wants run; ``arguments`` is its JSON text, checked or not."""

    call_id: str
    name: str
    arguments: str
    call: str
    """The telephone call, by the id that logs and records have."""
    route: str = ""
    caller: str = ""
    """SIP URI."""
    called: str = ""
    variables: Mapping[str, str] = field(default_factory=lambda: MappingProxyType({}))
    traceparent: str = ""
    """Field of that name (W3C Trace Context) for what is asked of others; empty for none."""
    control: CallControl | None = None
    """Ways for the function to act on the call meanwhile; from the event loop only."""

    @property
    def trace_headers(self) -> dict[str, str]:
        """Header fields by which a service can put what it does into the call's trace."""
        return {"traceparent": self.traceparent} if self.traceparent else {}


@dataclass(frozen=True, slots=True)
class Question:
    """The operator's application is asked whether a tool may be used."""

    request: ToolCall
    rule: int
    """Index of the route's rule that asks, from 0."""


class ContentService(Protocol):
    """A service that is asked whether words may be said."""

    @property
    def name(self) -> str: ...
    @property
    def url(self) -> str: ...
    @property
    def headers(self) -> Mapping[str, str]: ...
    @property
    def timeout(self) -> float: ...


class DigitsService(Protocol):
    """A service that takes sensitive digits, and gives a token for them."""

    @property
    def url(self) -> str: ...
    @property
    def headers(self) -> Mapping[str, str]: ...
    @property
    def store_timeout(self) -> float: ...


class ToolRunner(Protocol):
    """Runs functions. Every call has a deadline in the machine; what comes later is dropped."""

    def run(self, call: ToolCall, done: Callable[[str], None]) -> None:
        """Begin, and return at once; ``done`` is called on the event loop, with text for the model.

        Failures are texts too: a model can make something of them.
        """

    def check(
        self, rule: ContentService, call: ToolCall, done: Callable[[bool | None, str], None]
    ) -> None:
        """Ask whether words may be said; ``done`` is called as for ``ask``, None for no answer."""

    def store(
        self,
        service: DigitsService,
        call: ToolCall,
        digits: str,
        done: Callable[[Mapping[str, Any]], None],
    ) -> None:
        """Hand digits of the kind ``call.name`` to a service; ``done`` is called on the event loop,
        with what the model may know."""

    def ask(self, question: Question, done: Callable[[bool, str], None]) -> None:
        """Ask the operator; ``done`` is called on the event loop, with the answer and a reason."""


Run = Callable[[ToolCall, dict[str, Any]], Awaitable[str]]
"""Takes the call and its checked arguments; returns the text for the model, or raises ToolError.

It is cancelled at its deadline.
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
    """Deadline."""
    max_result_chars: int
    """Characters of its result that the model gets."""
    waiting: Waiting = field(default_factory=Waiting)
    approval: bool = False
    """Whether it needs a rule that approves it."""

    def definition(self) -> dict[str, Any]:
        """Return the entry of the session object (GA ``tools``)."""
        return {
            "type": "function",
            "name": self.name,
            "description": self.description,
            "parameters": dict(self.parameters),
        }
