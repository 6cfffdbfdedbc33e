"""What holds for every test."""

from __future__ import annotations

import signal


def pytest_configure() -> None:
    """Let what tests start be interrupted.

    A shell that puts a job into the background has it ignore SIGINT, and every child inherits
    that; a handler, even the default one, is not inherited.
    """
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)
