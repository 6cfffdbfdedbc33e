# SPDX-License-Identifier: GPL-2.0-or-later
"""The supervisor of the worker processes: starts them, keeps them up, ends when all have ended.

Also what supervisor and workers share: the link between them, messages to systemd, and signals that
must not end a process.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import socket
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from types import FrameType

import structlog

from gateway.config import Config
from gateway.tasks import wait_any

log = structlog.get_logger("workers")

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
"""Signals without effect, unless a handler is set later (SIGHUP: reload)."""


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


_VARIABLE = "NOTIFY_SOCKET"


def notify(*lines: str) -> None:
    """Send lines such as ``READY=1`` to systemd (sd_notify(3)) in one datagram, without blocking.

    Nothing where ``NOTIFY_SOCKET`` is not set; a failure is logged.
    """
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


UP = b"up\n"
"""Message of a worker, once, when it takes calls."""

WELL, ILL = b"well\n", b"ill\n"
"""Messages of a worker, one each second from then on."""


class SupervisorLink:
    """The worker's end of the socket to its supervisor.

    Args:
        descriptor: the socket, inherited from the supervisor; owned from now on.
        on_gone: called once, when the supervisor has ended.
    """

    def __init__(self, descriptor: int, on_gone: Callable[[], None]) -> None:
        self._socket = socket.socket(fileno=descriptor)
        self._socket.setblocking(False)
        self._socket.set_inheritable(False)
        self._on_gone = on_gone
        self._watching = True
        asyncio.get_running_loop().add_reader(self._socket, self._read)

    def report_ready(self) -> None:
        """Tell the supervisor, once, that this worker takes calls."""
        with contextlib.suppress(OSError):  # a supervisor that is gone is noticed by reading
            self._socket.send(UP)

    def report_health(self, well: bool) -> None:
        """Tell the supervisor whether the process is healthy; to be called once a second."""
        with contextlib.suppress(OSError):
            self._socket.send(WELL if well else ILL)

    def close(self) -> None:
        """Close the socket; ``on_gone`` is not called any more."""
        self._unwatch()
        self._socket.close()

    def _read(self) -> None:
        """Call ``on_gone``, once, when the other end of the socket is closed."""
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
        """Stop reading the socket; a second time nothing."""
        if self._watching:
            self._watching = False
            asyncio.get_running_loop().remove_reader(self._socket)


class Worker:
    """A process from its start to its end; a restart is another one.

    Args:
        index: which worker, counted from 0.
        command: program and arguments; ``--supervisor_link FD`` is added.
    """

    def __init__(self, index: int, command: Sequence[str]) -> None:
        self.index = index
        self.was_up = False
        self.well = True
        """Its last health report."""
        self.missed: set[signal.Signals] = set()
        """Signals to forward as soon as it is up."""
        self.started_at = 0.0
        """Time of the event loop's clock, s."""
        self._command = tuple(command)
        self._process: asyncio.subprocess.Process | None = None
        self._supervisor_link: socket.socket | None = None

    @property
    def pid(self) -> int:
        """Process id, 0 before the start."""
        return 0 if self._process is None else self._process.pid

    @property
    def running(self) -> bool:
        """Whether it was started and has not ended."""
        return self._process is not None and self._process.returncode is None

    async def start(self) -> None:
        """Start the process with its end of a socket pair, in a session of its own.

        Ctrl-C is for the supervisor alone. Raises OSError.
        """
        self.started_at = asyncio.get_running_loop().time()
        ours, theirs = socket.socketpair()
        with theirs:
            ours.setblocking(False)
            try:
                self._process = await asyncio.create_subprocess_exec(
                    *self._command,
                    "--supervisor-link",
                    str(theirs.fileno()),
                    stdin=asyncio.subprocess.DEVNULL,
                    pass_fds=(theirs.fileno(),),
                    start_new_session=True,
                    env={name: value for name, value in os.environ.items() if name != _VARIABLE},
                )
            except BaseException:
                ours.close()
                raise
        self._supervisor_link = ours

    async def came_up(self, seconds: float) -> bool:
        """Wait for its message that it takes calls; return False if it ended before.

        Raises TimeoutError after ``seconds`` without either.
        """
        assert self._supervisor_link is not None
        loop = asyncio.get_running_loop()
        async with asyncio.timeout(seconds):
            try:
                self.was_up = (await loop.sock_recv(self._supervisor_link, 64)).startswith(UP)
            except ConnectionError:
                self.was_up = False
        return self.was_up

    async def listen(self, seconds: float) -> None:
        """Keep its last health report in ``well``, until its end of the socket closes.

        Raises TimeoutError after ``seconds`` without a report.
        """
        assert self._supervisor_link is not None
        loop = asyncio.get_running_loop()
        while True:
            async with asyncio.timeout(seconds):
                try:
                    said = await loop.sock_recv(self._supervisor_link, 4096)
                except ConnectionError:
                    return
            if not said:
                return
            self.well = not said.endswith(ILL)

    async def ended(self) -> int:
        """Wait for its end; return the exit status, or minus the signal that ended it."""
        assert self._process is not None
        status = await self._process.wait()
        if self._supervisor_link is not None:
            self._supervisor_link.close()
            self._supervisor_link = None
        return status

    def send(self, number: signal.Signals) -> None:
        """Send a signal; nothing if it does not run."""
        if self._process is not None and self._process.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                self._process.send_signal(number)


def how_ended(status: int) -> str:
    """Return an exit status in words: ``exit status 1`` or ``SIGKILL``."""
    if status >= 0:
        return f"exit status {status}"
    try:
        return signal.Signals(-status).name
    except ValueError:
        return f"signal {-status}"


UP_SECONDS = 60.0
"""Longest time from start to taking calls; a second on an idle machine."""

SILENT_SECONDS = 40.0
"""A worker reports its health each second; after so long without a report it is killed. It ends by
itself when its event loop hangs for half of that."""

WATCHDOG_SECONDS = 5.0
"""How often systemd is told that all workers are well, while they are."""

STEADY_SECONDS = 60.0
"""Up for so long, its earlier deaths are forgotten."""

FIRST_PAUSE_SECONDS = 0.5
LONGEST_PAUSE_SECONDS = 30.0

OWN_END_SECONDS = 25.0
"""What a worker may need beyond its drain: its deadlines for BYE, sessions, SIP and records."""


class Supervisor:
    """Starts the worker processes, restarts those that crash, and forwards signals to them.

    Args:
        command: program and arguments of the worker with this index.
        count: how many.
        max_restarts: deaths in a row after which a worker is given up.
        drain_seconds: how long the workers' calls may go on after the first signal.
        reopen_log: called on SIGUSR1, which the workers get, too.
    """

    def __init__(
        self,
        command: Callable[[int], Sequence[str]],
        count: int,
        *,
        max_restarts: int,
        drain_seconds: float,
        reopen_log: Callable[[], None] = lambda: None,
    ) -> None:
        self._command = command
        self._count = count
        self._max_restarts = max_restarts
        self._drain_seconds = drain_seconds
        self._reopen_log = reopen_log
        self._workers: dict[int, Worker] = {}
        self._ever_up: set[int] = set()
        self._announced = False
        self._stop = asyncio.Event()
        self._killing: asyncio.TimerHandle | None = None
        self._watchdog: asyncio.TimerHandle | None = None
        self._status = 0

    async def run(self) -> int:
        """Keep the workers up until SIGTERM or SIGINT; a second one hurries them.

        Returns the exit status: 0 when all ended as told, else 1, or a worker's own when none
        could start.
        """
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._on_signal, number)
        loop.add_signal_handler(signal.SIGHUP, self._forward_signal, signal.SIGHUP)
        loop.add_signal_handler(signal.SIGUSR1, self._on_usr1)
        log.info("workers.starting", count=self._count)
        self._notify_systemd()
        try:
            async with asyncio.TaskGroup() as keepers:
                for index in range(self._count):
                    keepers.create_task(self._keep(index), name=f"worker {index}")
        finally:
            for timer in (self._killing, self._watchdog):
                if timer is not None:
                    timer.cancel()
            self._signal_all(signal.SIGKILL)  # none is left, unless something here failed
            for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1):
                loop.remove_signal_handler(number)
        log.info("workers.stopped", status=self._status)
        return self._status

    def _on_signal(self, number: int) -> None:
        """Have all workers drain (SIGTERM, SIGINT); the second time, end their calls."""
        self._end(signal.Signals(number).name)

    def _on_usr1(self) -> None:
        """Reopen the log, and have the workers do so (SIGUSR1)."""
        self._reopen_log()
        self._forward_signal(signal.SIGUSR1)

    def _forward_signal(self, number: signal.Signals) -> None:
        """Send a signal to each worker; one that is starting gets it once it takes calls.

        Before that it may have read its files already, and may have no handler yet.
        """
        for worker in self._workers.values():
            if worker.was_up:
                worker.send(number)
            else:
                worker.missed.add(number)

    def _end(self, reason: str) -> None:
        """Send SIGTERM to all workers, by which they drain, and the second time end their calls.

        None is restarted from then on. Those that run after their drain and ``OWN_END_SECONDS``,
        the second time after these alone, are killed.
        """
        forced = self._stop.is_set()
        running = [worker.index for worker in self._workers.values() if worker.running]
        log.info("workers.stopping", reason=reason, running=running, forced=forced)
        self._stop.set()
        notify("STOPPING=1")
        self._signal_all(signal.SIGTERM)
        if self._killing is not None:
            self._killing.cancel()
        seconds = OWN_END_SECONDS + (0.0 if forced else self._drain_seconds)
        self._killing = asyncio.get_running_loop().call_later(seconds, self._kill)

    def _kill(self) -> None:
        """Kill the workers that have not ended by their deadline."""
        left = [worker.index for worker in self._workers.values() if worker.running]
        log.error("workers.killed", workers=left, advice="they did not end in time")
        self._signal_all(signal.SIGKILL)

    def _signal_all(self, number: signal.Signals) -> None:
        """Send a signal to all workers that run, starting ones too."""
        for worker in self._workers.values():
            worker.send(number)

    # ---- one worker

    async def _keep(self, index: int) -> None:
        """Run a worker, and start it again each time it ends, until the supervisor stops.

        Drained alone (status 0): at once. Ended with a status before it was ever up: all workers
        are told to end, as a setting is wrong. Crashed: after a pause that doubles, and not after
        ``max_restarts`` deaths in a row; ``STEADY_SECONDS`` up begin a new row.
        """
        deaths = 0
        while not self._stop.is_set():
            worker = Worker(index, self._command(index))
            self._workers[index] = worker
            status = await self._live(worker)
            if self._stop.is_set():
                self._note_last_end(worker, status)
                return
            if status == 0 and worker.was_up:
                # Somebody told this one alone to drain: so it is restarted with what its files say.
                log.info("worker.drained", worker=index, pid=worker.pid)
                deaths = 0
                continue
            if index not in self._ever_up and status > 0:
                # A wrong setting, not a crash: trying again would only hide it.
                log.error("worker.cannot_start", worker=index, ended=how_ended(status))
                self._status = status
                self._end(f"worker {index} cannot start")
                return
            seconds = asyncio.get_running_loop().time() - worker.started_at
            deaths = 1 if worker.was_up and seconds >= STEADY_SECONDS else deaths + 1
            if not await self._pause(worker, status, seconds, deaths):
                return

    async def _live(self, worker: Worker) -> int:
        """Run one worker from start to end; return its exit status, 1 if it cannot be executed.

        Killed where it is not up within ``UP_SECONDS``, or silent for ``SILENT_SECONDS``.
        """
        try:
            await worker.start()
        except OSError as error:
            log.error("worker.exec_failed", worker=worker.index, error=str(error))
            return 1
        log.info("worker.started", worker=worker.index, pid=worker.pid)
        if self._stop.is_set():  # told to end while it was being started
            worker.send(signal.SIGTERM)
        try:
            if await worker.came_up(UP_SECONDS):
                self._note_up(worker)
        except TimeoutError:
            log.error(
                "worker.start_timeout", worker=worker.index, pid=worker.pid, seconds=UP_SECONDS
            )
            worker.send(signal.SIGKILL)
        if worker.was_up:
            await self._listen(worker)
        return await self._ended(worker)

    async def _ended(self, worker: Worker) -> int:
        """Wait for a worker's end, which follows that of its socket; return its exit status.

        SIGKILL after ``OWN_END_SECONDS``; workers that are told to end have another deadline.
        """
        try:
            async with asyncio.timeout(None if self._stop.is_set() else OWN_END_SECONDS):
                return await worker.ended()
        except TimeoutError:
            log.error("worker.not_ended", worker=worker.index, pid=worker.pid)
            worker.send(signal.SIGKILL)
        return await worker.ended()

    async def _listen(self, worker: Worker) -> None:
        """Read a worker's health reports until its end; SIGKILL after ``SILENT_SECONDS`` without.

        One that was told to end has another deadline, and is not killed here.
        """
        try:
            await worker.listen(SILENT_SECONDS)
        except TimeoutError:
            if not self._stop.is_set():  # one that is told to end has another deadline
                log.error("worker.silent", worker=worker.index, pid=worker.pid)
                worker.send(signal.SIGKILL)

    def _notify_systemd(self) -> None:
        """Send systemd's watchdog its beat if all running workers are well, else a status naming
        the first that is not; again each ``WATCHDOG_SECONDS``."""
        ill = [one.index for one in self._workers.values() if one.running and not one.well]
        if ill:
            notify(f"STATUS=not well: worker {ill[0]}")
        else:
            notify("WATCHDOG=1")
        self._watchdog = asyncio.get_running_loop().call_later(
            WATCHDOG_SECONDS, self._notify_systemd
        )

    def _note_up(self, worker: Worker) -> None:
        """Log that a worker takes calls, and send it the signals that it missed.

        When all have been up for the first time, ``READY=1`` goes to systemd.
        """
        log.info("worker.ready", worker=worker.index, pid=worker.pid)
        self._ever_up.add(worker.index)
        for number in worker.missed:
            worker.send(number)
        if len(self._ever_up) == self._count and not self._announced:
            self._announced = True
            log.info("workers.ready", pids=[one.pid for _, one in sorted(self._workers.items())])
            notify("READY=1", f"STATUS={self._count} workers take calls")

    async def _pause(self, worker: Worker, status: int, seconds: float, deaths: int) -> bool:
        """Log a crash and wait before the next start; return False if there is none.

        None past ``max_restarts`` (exit status 1 then), or if the supervisor was told to stop.

        Args:
            seconds: from its start to its end.
            deaths: in a row, this one included.
        """
        said = {
            "worker": worker.index,
            "pid": worker.pid,
            "ended": how_ended(status),
            "after_seconds": round(seconds, 1),
            "deaths": deaths,
            "max_restarts": self._max_restarts,
        }
        if deaths > self._max_restarts:
            log.error("worker.restart_limit_reached", **said)
            notify(f"STATUS=worker {worker.index} was given up")
            self._status = 1
            return False
        pause = min(FIRST_PAUSE_SECONDS * 2 ** (deaths - 1), LONGEST_PAUSE_SECONDS)
        log.error("worker.crashed", **said, restart_in_seconds=pause)
        await wait_any(pause, self._stop)
        return not self._stop.is_set()

    def _note_last_end(self, worker: Worker, status: int) -> None:
        """Log the end of a worker that was told to end; the supervisor's status is 1 if it failed.

        SIGTERM before it was up is no failure; an earlier status is kept.
        """
        never_up = not worker.was_up and status == -signal.SIGTERM
        log.info("worker.ended", worker=worker.index, pid=worker.pid, ended=how_ended(status))
        if status != 0 and not never_up and self._status == 0:
            self._status = 1


def supervise(config: Config, file: Path, reopen_log: Callable[[], None]) -> int:
    """Run ``workers.count`` workers of the configuration in ``file``; returns the exit status."""

    def command(index: int) -> list[str]:
        count = str(config.workers.count)
        run = [sys.executable, "-m", "gateway", "run", "-c", str(file), "--workers", count]
        return run if config.workers.count == 1 else [*run, "--worker", str(index)]

    async def main() -> int:
        supervisor = Supervisor(
            command,
            config.workers.count,
            max_restarts=config.workers.max_restarts,
            drain_seconds=max(config.limits.drain_timeout, config.limits.min_drain_time),
            reopen_log=reopen_log,
        )
        return await supervisor.run()

    return asyncio.run(main())
