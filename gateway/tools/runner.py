"""The seam to functions that live outside of a call: what runs them is somebody else's business."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Protocol

from gateway.tools.api import CallControl


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
    control: CallControl | None = None
    """What the function may do to the call meanwhile; from the event loop only."""


@dataclass(frozen=True, slots=True)
class Question:
    """The operator's application is asked whether a tool may be used."""

    request: ToolCall
    rule: int
    """Which rule of the route asks, counted from 0."""


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

    def ask(self, question: Question, done: Callable[[bool, str], None]) -> None:
        """Ask the operator; ``done`` is called on the event loop, with the answer and a reason."""
