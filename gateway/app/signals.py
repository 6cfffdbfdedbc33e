# SPDX-License-Identifier: GPL-2.0-or-later
"""Signals that would end the process by default, and must not while there are calls."""

from __future__ import annotations

import signal
from collections.abc import Callable
from types import FrameType

HARMLESS = (
    signal.SIGUSR1,
    signal.SIGUSR2,
    signal.SIGHUP,
    signal.SIGQUIT,
    signal.SIGALRM,
    signal.SIGVTALRM,
    signal.SIGPROF,
    signal.SIGPIPE,
    signal.SIGIO,
    signal.SIGPWR,
    signal.SIGSTKFLT,
)
"""Do nothing, or what somebody sets up later (SIGHUP: certificates)."""


def keep_running(on_usr1: Callable[[], None]) -> None:
    """Let none of :data:`HARMLESS` end the process; SIGUSR1 calls ``on_usr1``. Main thread.

    Handlers, not SIG_IGN: that would be inherited by the processes of MCP servers.
    """

    def handle(number: int, _frame: FrameType | None) -> None:
        if number == signal.SIGUSR1:
            on_usr1()

    for number in HARMLESS:
        signal.signal(number, handle)
        signal.siginterrupt(number, False)
