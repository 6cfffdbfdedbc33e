# SPDX-License-Identifier: GPL-2.0-or-later
"""Functions that run outside of a call: what each is given and returns, and who runs them."""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any, Protocol

from pydantic_core import PydanticSerializationError, to_json

from gateway.tools.api import CallControl, Waiting


def text_of(value: Any) -> str:
    """A result as text: texts as they are, anything else as JSON. Raises ValueError."""
    if isinstance(value, str):
        return value
    try:
        return to_json(value).decode()
    except PydanticSerializationError as error:
        raise ValueError(str(error)) from None


def error_text(message: str, **more: object) -> str:
    """A failure, as the model is told of it."""
    return json.dumps({"error": message, **more}, ensure_ascii=False)


def bounded(text: str, limit: int) -> str:
    """At most ``limit`` characters, and a note behind them where more were there."""
    if len(text) <= limit:
        return text
    return f"{text[:limit]}\n[cut: only the first {limit} of {len(text)} characters are shown]"


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
