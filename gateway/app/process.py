# SPDX-License-Identifier: GPL-2.0-or-later
"""Parts of the process, its health, what systemd is told of it, and signals that must not end it.

SIP thread, media clock, event loop and background tasks are checked once a second. A failure after
which no call can be carried ends the process, so that its supervisor starts it again; any other is
reported by ``gateway status`` and to systemd.
"""

from __future__ import annotations

import asyncio
import contextlib
import faulthandler
import os
import signal
import socket
from collections.abc import Awaitable, Callable, Mapping
from contextlib import AsyncExitStack
from dataclasses import dataclass
from types import FrameType
from typing import Any

import structlog

from gateway.measures import Distribution
from gateway.tasks import TaskSet

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


log = structlog.get_logger("gateway")

_VARIABLE = "NOTIFY_SOCKET"


def notify(*lines: str) -> None:
    """Send e.g. ``READY=1`` to systemd; do nothing where ``NOTIFY_SOCKET`` is not set."""
    address = os.environ.get(_VARIABLE, "")
    if not address:
        return
    if address.startswith("@"):  # the abstract namespace
        address = "\0" + address[1:]
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as sender:
            sender.setblocking(False)
            sender.sendto("\n".join(lines).encode(), address)
    except OSError as error:
        log.warning("gateway.notify_failed", error=str(error))


def without_notify(environ: dict[str, str]) -> dict[str, str]:
    """Return the environment for a child process, which must not notify systemd."""
    return {name: value for name, value in environ.items() if name != _VARIABLE}


UP = b"up\n"
"""Message of a worker, once, when it takes calls."""

WELL, ILL = b"well\n", b"ill\n"
"""Messages of a worker, one each second from then on."""


class SupervisorLink:
    """The worker's end.

    Args:
        descriptor: the socket, inherited from the supervisor; owned from now on.
        on_gone: told once when the supervisor is no more.
    """

    def __init__(self, descriptor: int, on_gone: Callable[[], None]) -> None:
        self._socket = socket.socket(fileno=descriptor)
        self._socket.setblocking(False)
        self._socket.set_inheritable(False)
        self._on_gone = on_gone
        self._watching = True
        asyncio.get_running_loop().add_reader(self._socket, self._read)

    def report_ready(self) -> None:
        """Tell the supervisor that calls are answered."""
        with contextlib.suppress(OSError):  # a supervisor that is gone is noticed by reading
            self._socket.send(UP)

    def report_health(self, well: bool) -> None:
        """Report whether the process is healthy, once a second."""
        with contextlib.suppress(OSError):
            self._socket.send(WELL if well else ILL)

    def close(self) -> None:
        self._unwatch()
        self._socket.close()

    def _read(self) -> None:
        """Drain the process when the supervisor has ended."""
        try:
            if self._socket.recv(64):
                return  # nothing is ever sent to a worker
        except BlockingIOError:
            return
        except OSError:
            pass  # reset: gone
        self._unwatch()
        self._on_gone()

    def _unwatch(self) -> None:
        if self._watching:
            self._watching = False
            asyncio.get_running_loop().remove_reader(self._socket)


LOOK_SECONDS = 1.0

LAG_LOOKS = 5
"""Measurements of the event loop's lag in that time."""

STALL_SECONDS = 1.0
"""The event loop late by so much is a line in the log: every call stood still."""

HUNG_SECONDS = 20.0
"""An event loop or a SIP thread that has not turned for so long is not waited for any more."""

SILENT_CLOCK_SECONDS = 5.0
"""A media clock that brings nothing for so long, while calls have media, has stopped."""


class Health:
    """Keeps what has failed in this process, by the name of the part.

    Args:
        sip: what is wrong with the SIP thread; empty while nothing is.
        beats: how often the media clock has brought audio; None while no call has media.
        on_look: told each second whether all is well.
        on_unfit: told once, with the reason, that no call can be carried any more.
        lag: counts by how much (s) a timer of the event loop comes late.
    """

    def __init__(
        self,
        sip: Callable[[], str],
        beats: Callable[[], int | None],
        on_look: Callable[[bool], None],
        on_unfit: Callable[[str], None],
        lag: Distribution,
    ) -> None:
        self.problems: dict[str, str] = {}
        self._lag = lag
        self._sip = sip
        self._beats = beats
        self._on_look = on_look
        self._on_unhealthy = on_unfit
        self._stalls = 0
        self._longest_stall = 0.0
        self._last_beats: int | None = None
        self._silent_since = 0.0
        self._tasks = TaskSet()

    def start(self) -> None:
        """Start looking, once a second."""
        self._tasks.serve(self._run, "health")

    async def stop(self) -> None:
        """Stop looking, and call off the dump of threads that hang."""
        await self._tasks.cancel()
        faulthandler.cancel_dump_traceback_later()

    def failed(self, part: str, error: object) -> None:
        """Report that a part of the process has failed, from now until the process ends."""
        self.problems[part] = str(error)
        log.error("gateway.not_well", part=part, error=str(error))

    def on_unhandled(self, _loop: asyncio.AbstractEventLoop, context: Mapping[str, Any]) -> None:
        """Log what nobody has caught: the event loop's exception handler."""
        error, task = context.get("exception"), context.get("background")
        log.error(
            "gateway.unhandled",
            what=context.get("message"),
            exc_info=error if isinstance(error, BaseException) else None,
        )
        if isinstance(task, asyncio.Task):
            self.failed(task.get_name(), f"{type(error).__name__}: {error}")

    def as_json(self) -> dict[str, Any]:
        """Return the state of the process for ``gateway status``."""
        return {
            "well": not self.problems,
            "problems": dict(self.problems),
            "loop_stalls": self._stalls,
            "longest_loop_stall_seconds": round(self._longest_stall, 1),
        }

    async def _run(self) -> None:
        """Look regularly whether SIP thread, media clock and tasks are alive."""
        loop = asyncio.get_running_loop()
        while True:
            # By a thread that needs no interpreter: also where something never gives it back.
            faulthandler.dump_traceback_later(HUNG_SECONDS, exit=True)
            late = 0.0
            for _ in range(LAG_LOOKS):
                began = loop.time()
                await asyncio.sleep(LOOK_SECONDS / LAG_LOOKS)
                one = loop.time() - began - LOOK_SECONDS / LAG_LOOKS
                self._lag.observe(one)
                late = max(late, one)
            if late >= STALL_SECONDS:
                self._stalls += 1
                self._longest_stall = max(self._longest_stall, late)
                log.error("gateway.loop_stalled", seconds=round(late, 1))
            self._look(loop.time())

    def _look(self, now: float) -> None:
        """Note a SIP thread or media clock that has stopped."""
        unfit = {"SIP thread": self._sip(), "media clock": self._clock(now)}
        for part, error in unfit.items():
            if error and part not in self.problems:
                self.failed(part, error)
                self._on_unhealthy(f"{part}: {error}")
        self._on_look(not self.problems)

    def _clock(self, now: float) -> str:
        """Return why the media clock is unfit: it has stood still for too long; or ""."""
        beats = self._beats()
        if beats is None or beats != self._last_beats:
            self._last_beats, self._silent_since = beats, now
            return ""
        silent = now - self._silent_since
        return f"no beat for {silent:.0f} s" if silent >= SILENT_CLOCK_SECONDS else ""


Step = Callable[[], Awaitable[None] | None]


@dataclass(frozen=True, slots=True)
class Part:
    """Something that is started and stopped with the process."""

    name: str
    start: Step | None
    stop: Step
    only_serving: bool = False

    async def start_on(self, stack: AsyncExitStack) -> None:
        """Start it, and have ``stack`` stop it. Raises what its start raises."""
        if self.start is not None and (starting := self.start()) is not None:
            await starting
        stack.push_async_callback(self._stop)

    async def _stop(self) -> None:
        """Stop it; what that raises is logged, and skips no other part."""
        try:
            stopping = self.stop()
            if stopping is not None:
                await stopping
        except Exception:
            log.exception("gateway.stop_failed", part=self.name)
