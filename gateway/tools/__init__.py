# SPDX-License-Identifier: GPL-2.0-or-later
"""Functions that the model calls: their definition, arguments, results and runner.

:mod:`gateway.call` decides what a call of a tool leads to, the bridge carries it out. A module of
tools written in Python needs these names of here::

    from gateway.tools import Call, tool

    @tool(timeout=5)
    async def room_price(call: Call, nights: int) -> dict[str, float]:
        \"\"\"The price of a room.\"\"\"
        return {"euros": 80.0 * nights}
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

__all__ = ["Call", "ToolError", "tool"]

MAX_BYTES = 512 * 1024
"""Bytes of one image. It goes to the server between two packets of the caller's voice, which wait
for it: on a line of 10 Mbit/s for half a second."""

_KINDS = {"image/png": b"\x89PNG\r\n\x1a\n", "image/jpeg": b"\xff\xd8\xff"}
_URI = re.compile(r"data:([a-z]+/[a-z.+-]+);base64,", re.IGNORECASE)


class ImageError(ValueError):
    """An image cannot be shown to the model; the message says why."""


def data_uri(image: bytes) -> str:
    """Return the data URI of a PNG or JPEG file. Raises ImageError if it is neither, by its first
    bytes, or exceeds ``MAX_BYTES``."""
    if len(image) > MAX_BYTES:
        raise ImageError(f"the image has {len(image)} bytes; {MAX_BYTES} are allowed")
    kind = next((kind for kind, magic in _KINDS.items() if image.startswith(magic)), None)
    if kind is None:
        raise ImageError("the image is neither PNG nor JPEG")
    return f"data:{kind};base64,{base64.b64encode(image).decode()}"


def checked_data_uri(uri: str) -> str:
    """Return a data URI encoded again from its image, without what else it had.

    Raises ImageError unless it is base64 of a PNG or JPEG, as its media type says, of ``MAX_BYTES``
    at most.
    """
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
    """Mark a function as a tool of the model, as ``@tool`` or ``@tool(...)``; the function itself
    is returned unchanged.

    Args:
        name: for the model; the function's own by default.
        description: for the model; by default the docstring up to ``Args:``.
        timeout: deadline in seconds; None is ``tools.timeout``.
        filler_delay: seconds after which the caller hears ``filler_text`` or ``filler_sound``, if
            there is no result yet; 0 for never.
        filler_text: words that the model says to the caller meanwhile.
        filler_sound: a sound of the gateway or the path of a WAV file, which plays until the result
            is there.
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
    """Requests of a function to its call, one for each method of :class:`Call`, with the same
    meaning. They return at once, and do nothing once the call is over. From the event loop only."""

    def say(self, words: str) -> None: ...
    def send_message(self, text: str, role: str, respond: bool) -> None: ...
    def send_image(self, image_uri: str, text: str, respond: bool) -> None: ...
    def create_response(self, instructions: str) -> None: ...
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

    def send_message(self, text: str, *, role: str = "system", respond: bool = False) -> None:
        """Add a message to the conversation: of the ``system``, or as the caller's (``user``).

        With ``respond`` a response is requested, too; without, the model reads it at its next one.
        Raises ToolError for another role.
        """
        if role not in ("system", "user"):
            raise ToolError(f"role must be system or user, not {role}")
        self._ask(lambda control: control.send_message(text, role, respond))

    def send_image(self, image: bytes | str, text: str = "", *, respond: bool = False) -> None:
        """Add an image and a text to the conversation as a message of the caller; with ``respond``
        request a response to it.

        Args:
            image: a PNG or JPEG of ``MAX_BYTES`` at most, as bytes or as data URI. Raises ToolError
                for another.
        """
        try:
            uri = data_uri(image) if isinstance(image, bytes) else checked_data_uri(image)
        except ImageError as error:
            raise ToolError(str(error)) from None
        self._ask(lambda control: control.send_image(uri, text, respond))

    def create_response(self, instructions: str) -> None:
        """Request a response with these instructions, in place of the session's, for it only."""
        self._ask(lambda control: control.create_response(instructions))

    def transfer(self, destination: str, words: str = "") -> None:
        """Transfer the caller to the ``[[route.transfer]]`` with the name ``destination``.

        If that fails, the model says ``words``, and the call ends.
        """
        self._ask(lambda control: control.transfer(destination, words))

    def set_disposition(self, disposition: str) -> None:
        """Set the disposition in the record, like ``completed``, in place of an earlier one. Raises
        ToolError if it is empty or has more than ``MAX_DISPOSITION`` characters."""
        if not 0 < len(disposition) <= MAX_DISPOSITION:
            raise ToolError(f"disposition must have 1 to {MAX_DISPOSITION} characters")
        self._ask(lambda control: control.set_disposition(disposition))

    def record(self, action: RecordingAction) -> None:
        """Control the recording of the call; nothing if the route allows none. ``delete`` ends it
        and deletes what was recorded so far, here and in the storage.

        Raises ToolError for another action.
        """
        if action not in get_args(RecordingAction):
            raise ToolError(f"action must be one of {', '.join(get_args(RecordingAction))}")
        self._ask(lambda control: control.record(action))

    def end(self, words: str = "") -> None:
        """Have the model say these words, then hang up; with "" hang up without further words."""
        self._ask(lambda control: control.end(words))

    def _ask(self, ask: Callable[[CallControl], None]) -> None:
        """Have a request made on the event loop: at once there, later from another thread; nothing
        for a :class:`Call` without a control, as in a test."""
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
    """Convert a value that JSON has no type for: an iterator to a list that is read as it is
    written, dates, models and such as pydantic does. Raises ValueError for any other."""
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
    """Return a function's result as text: a str as it is, of any length, anything else as JSON.

    JSON is written piece by piece until it has more than ``most`` characters, and is then cut in
    the middle. Raises ValueError for a result that cannot be JSON.
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
    """Return the result that tells the model of a failure: a JSON object with ``error`` and the
    fields ``more``."""
    return json.dumps({"error": message, **more}, ensure_ascii=False)


def bounded(text: str, limit: int) -> str:
    """Return the first ``limit`` characters of a text, and if that is not all a line that says so
    behind them; characters that UTF-8 does not have are replaced."""
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
    """Runs functions and asks services, for the state machine of a call.

    Methods return at once; ``done`` is called once, on the event loop, at once where the process is
    busy, and never if the process stops before. The state machine has a deadline for each call, and
    drops a later result.
    """

    def run(self, call: ToolCall, done: Callable[[str], None]) -> None:
        """Run the function ``call.name`` of the call's route with its deadline; ``done`` gets its
        result, or its failure as a JSON object with ``error``, as text for the model."""

    def check(
        self, rule: ContentService, call: ToolCall, done: Callable[[bool | None, str], None]
    ) -> None:
        """Ask a guardrail's service whether the speaker ``call.name`` may say ``call.arguments``.

        ``done`` gets True or False, or None if the service did not answer in time or intelligibly,
        and the reason.
        """

    def store(
        self,
        service: DigitsService,
        call: ToolCall,
        digits: str,
        done: Callable[[Mapping[str, Any]], None],
    ) -> None:
        """Send digits of the kind ``call.name`` to a service; ``done`` gets the result for the
        model: ``status`` "stored" with the service's ``token``, or "failed" with a ``reason``."""

    def ask(self, question: Question, done: Callable[[bool, str], None]) -> None:
        """Ask the service of an approval rule whether a tool call may run; ``done`` gets the
        answer, False also without one, and a reason, "" for none."""


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
        """Return the function's entry in ``tools`` of the session object (GA)."""
        return {
            "type": "function",
            "name": self.name,
            "description": self.description,
            "parameters": dict(self.parameters),
        }
