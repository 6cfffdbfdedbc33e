"""The seam to functions that live outside of a call: what runs them is somebody else's business."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol


@dataclass(frozen=True, slots=True)
class ToolCall:
    """A function that the model wants run; ``arguments`` is its JSON text, unchecked."""

    call_id: str
    name: str
    arguments: str
    call: str
    """The telephone call, by the id that logs and records have."""


class ToolRunner(Protocol):
    """Runs functions. Every call has a deadline in the machine; what comes later is dropped."""

    @property
    def names(self) -> frozenset[str]:
        """The functions that there are."""

    def start(self, call: ToolCall, done: Callable[[str], None]) -> None:
        """Begin, and return at once; ``done`` is called on the event loop, with text for the model.

        Failures are texts too: a model can make something of them.
        """
