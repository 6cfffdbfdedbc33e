# SPDX-License-Identifier: GPL-2.0-or-later
"""An event loop whose clock goes on only while nothing happens: no busy machine misses a deadline.

For tests of which all ends, sockets on loopback among them, are on this loop: what a thread or
another process does takes no time here.
"""

from __future__ import annotations

import asyncio
import selectors
from collections.abc import Coroutine
from typing import Any, TypeVar

GRACE_S = 0.1
"""What a busy kernel may take to hand what was sent on one socket to another; a longer wait on
which nothing happens for so long is over at once."""

_Result = TypeVar("_Result")


class _Selector(selectors.EpollSelector):
    passed_s = 1000.0

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        found = super().select(None if timeout is None else min(timeout, GRACE_S))
        if timeout is not None and timeout > 0 and not found:
            self.passed_s += timeout
        return found


class _Loop(asyncio.SelectorEventLoop):
    def __init__(self) -> None:
        self._idle = _Selector()
        super().__init__(self._idle)

    def time(self) -> float:
        return self._idle.passed_s


def run(main: Coroutine[Any, Any, _Result]) -> _Result:
    """As ``asyncio.run``, by that clock."""
    with asyncio.Runner(loop_factory=_Loop) as runner:
        return runner.run(main)
