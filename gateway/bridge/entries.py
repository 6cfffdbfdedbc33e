# SPDX-License-Identifier: GPL-2.0-or-later
"""Guards the entries of a call's handling, so that an exception ends its call and no other.

Whatever reaches a call from outside (legs, sessions, media clock, timers, results of tools) enters
by a method decorated with :func:`entry`. What that raises goes to ``on_fault`` of its object, which
ends the call, frees its place and writes its record.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Coroutine
from dataclasses import dataclass
from typing import Any, Concatenate, ParamSpec, Protocol, TypeVar

from gateway.call.inputs import Input
from gateway.call.record import CallRecord


class HasFaults(Protocol):
    """What methods with :func:`entry` belong to."""

    def on_fault(self, error: Exception) -> None:
        """End the call because of a defect of ours. Never raises."""


@dataclass(frozen=True, slots=True)
class CallHost:
    """What the parts of one call's handling share: its record, its machine's input, its clock."""

    record: CallRecord
    feed: Callable[[Input], None]
    """Hands an input to the machine."""
    now_ms: Callable[[], float]
    """Milliseconds since the call began."""
    on_fault: Callable[[Exception], None]
    """Ends the call because of a defect of ours."""
    is_over: Callable[[], bool] = lambda: False
    """Whether the call has ended and its record is complete."""


class CallPart:
    """Base of the parts of a call's handling: their defects end the call."""

    def __init__(self, host: CallHost) -> None:
        self._host = host

    def on_fault(self, error: Exception) -> None:
        """As :class:`HasFaults`."""
        self._host.on_fault(error)


_P = ParamSpec("_P")
_Self = TypeVar("_Self", bound=HasFaults)


def entry(
    method: Callable[Concatenate[_Self, _P], None],
) -> Callable[Concatenate[_Self, _P], None]:
    """Hand what ``method`` raises to ``on_fault``."""

    @functools.wraps(method)
    def run(self: _Self, /, *args: _P.args, **kwargs: _P.kwargs) -> None:
        try:
            method(self, *args, **kwargs)
        except Exception as error:
            self.on_fault(error)

    return run


def entry_task(
    method: Callable[Concatenate[_Self, _P], Coroutine[Any, Any, None]],
) -> Callable[Concatenate[_Self, _P], Coroutine[Any, Any, None]]:
    """As :func:`entry`, for a coroutine that a task runs."""

    @functools.wraps(method)
    async def run(self: _Self, /, *args: _P.args, **kwargs: _P.kwargs) -> None:
        try:
            await method(self, *args, **kwargs)
        except Exception as error:
            self.on_fault(error)

    return run
