"""A function that lives outside of a call, whatever it is made of: what the toolbox runs."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from gateway.tools.api import Waiting
from gateway.tools.runner import ToolCall

Run = Callable[[ToolCall, dict[str, Any]], Awaitable[str]]
"""Takes the call and its checked arguments; returns the text for the model, or raises ToolError.

It is cancelled at its deadline.
"""


@dataclass(frozen=True, slots=True)
class Function:
    """One function of the model's."""

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
    """It may not be used without a rule that approves it."""

    def definition(self) -> dict[str, Any]:
        """As the session object wants it (GA ``tools``)."""
        return {
            "type": "function",
            "name": self.name,
            "description": self.description,
            "parameters": dict(self.parameters),
        }
