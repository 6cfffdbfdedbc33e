# SPDX-License-Identifier: GPL-2.0-or-later
"""Processes of ``gateway``, forked from one that has imported it already.

Python takes more than a second of processor time to import the gateway, and the tests start it some
two hundred times. What is forked goes on as ``python -m gateway ARGUMENTS`` does, or as a script of
the tests that runs the gateway, with the environment and the limits of whoever asks for it.
"""

from __future__ import annotations

import array
import asyncio
import atexit
import ctypes
import gc
import importlib
import json
import os
import resource
import runpy
import signal
import socket
import subprocess
import sys
import threading
import traceback
from collections.abc import Sequence
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from tempfile import TemporaryFile
from typing import Any, ClassVar, NoReturn

MODULES = (
    *("gateway.cli", "gateway.cli.serve", "gateway.app.service"),
    *("gateway.cli.develop", "gateway.cli.live_calls", "gateway.cli.test_suites"),
    *("gateway.devtools.emulator", "gateway.devtools.scripted_caller"),
    *("gateway.api.server", "gateway.api.connections", "gateway.api.metrics"),
    *("gateway.planning.check", "gateway.records.retention"),
    *(
        "jsonschema",
        "httpcore",
        "anyio._backends._asyncio",
        "sqlalchemy.dialects.sqlite",
        "alembic.command",
    ),
)
"""What a gateway imports at its start or for its first call."""
GATEWAY = ("-m", "gateway")
"""What Python is given for ``gateway``."""

_LINE_BYTES = 1024 * 1024
_REQUEST_BYTES = 256 * 1024
_PR_SET_PDEATHSIG = 1


def end_with_parent() -> None:
    """In a new process: the kernel kills it when its parent dies."""
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


class Forked:
    """One such process, with the attributes of ``asyncio.subprocess.Process`` that tests use."""

    _first: ClassVar[socket.socket | None] = None
    """A connection to the process that has imported the gateway, once it was started."""
    _server: ClassVar[socket.socket | None] = None
    """One to a fork of it, which forks for this process alone."""

    def __init__(self, pid: int, limit: int) -> None:
        self.pid = pid
        self.returncode: int | None = None
        self.stdout = asyncio.StreamReader(limit=limit)
        self.stderr = asyncio.StreamReader(limit=limit)
        self.pipes: list[asyncio.ReadTransport] = []
        """Standard output and error."""
        self._ended = asyncio.Event()
        self._handle = os.pidfd_open(pid)
        asyncio.get_running_loop().add_reader(self._handle, self._on_end)

    @classmethod
    async def start(
        cls, entry: Sequence[str], arguments: Sequence[str], env: dict[str, str], limit: int
    ) -> Forked:
        """Fork; ``limit`` is that of a line, in bytes.

        Args:
            entry: what Python would be given before the arguments: ``-m gateway``, a script, or
                ``-c`` and a program.
        """
        with ExitStack() as ours:
            pairs = [os.pipe() for _ in range(2)]
            for _, written in pairs:
                ours.callback(os.close, written)
            pid = cls._fork(entry, arguments, env, [written for _, written in pairs])
            made = cls(pid, limit)
        loop = asyncio.get_running_loop()
        for (read, _), stream in zip(pairs, (made.stdout, made.stderr), strict=True):
            transport, _ = await loop.connect_read_pipe(
                partial(asyncio.StreamReaderProtocol, stream), os.fdopen(read, "rb", 0)
            )
            made.pipes.append(transport)
        return made

    @classmethod
    async def command(cls, *words: str | Path) -> Forked:
        """Start ``gateway WORDS``."""
        return await cls.start(GATEWAY, [*map(str, words)], dict(os.environ), _LINE_BYTES)

    @classmethod
    def run(cls, *words: str | Path) -> subprocess.CompletedProcess[str]:
        """Run ``gateway WORDS`` to its end."""
        with TemporaryFile() as out, TemporaryFile() as error:
            arguments, files = [*map(str, words)], [out.fileno(), error.fileno()]
            pid = cls._fork(GATEWAY, arguments, dict(os.environ), files)
            status = int(cls._ask({"wait": pid}))
            told = [os.pread(file, os.fstat(file).st_size, 0).decode() for file in files]
        return subprocess.CompletedProcess(arguments, status, *told)

    async def communicate(self) -> tuple[bytes, bytes]:
        """Wait for its end; what it wrote to standard output and error."""
        out, error, _ = await asyncio.gather(self.stdout.read(), self.stderr.read(), self.wait())
        return out, error

    def send_signal(self, number: signal.Signals) -> None:
        """Send a signal, unless it has ended."""
        if self.returncode is None:
            os.kill(self.pid, number)

    def kill(self) -> None:
        """SIGKILL."""
        self.send_signal(signal.SIGKILL)

    async def wait(self) -> int:
        """Its exit status, or the negative number of the signal that ended it."""
        await self._ended.wait()
        assert self.returncode is not None
        return self.returncode

    def _on_end(self) -> None:
        asyncio.get_running_loop().remove_reader(self._handle)
        os.close(self._handle)
        self.returncode = int(self._ask({"wait": self.pid}))
        self._ended.set()

    @classmethod
    def _fork(
        cls, entry: Sequence[str], arguments: Sequence[str], env: dict[str, str], to: Sequence[int]
    ) -> int:
        """The process id; ``to`` are descriptors of its standard output and error."""
        request = {
            "entry": list(entry),
            "arguments": list(arguments),
            "environment": env,
            "folder": str(Path.cwd()),
            "descriptors": resource.getrlimit(resource.RLIMIT_NOFILE),
        }
        return int(cls._ask(request, to))

    @classmethod
    def _ask(cls, request: dict[str, Any], descriptors: Sequence[int] = ()) -> str:
        if cls._server is None:
            cls.prepare()
            assert cls._first is not None
            cls._server, other = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
            with other:
                _send(cls._first, {}, [other.fileno()])
        _send(cls._server, request, descriptors)
        return cls._server.recv(100).decode()

    @classmethod
    def prepare(cls) -> None:
        """Have the gateway imported; processes that this one forks later share it."""
        if cls._first is not None:
            return
        cls._first, other = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with other:
            subprocess.Popen(
                [sys.executable, "-m", "tests.support.forked", str(other.fileno())],
                stdin=subprocess.DEVNULL,
                pass_fds=[other.fileno()],
                preexec_fn=end_with_parent,
            )


def _send(connection: socket.socket, request: dict[str, Any], descriptors: Sequence[int]) -> None:
    passed = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", descriptors))]
    connection.sendmsg([json.dumps(request).encode()], passed if descriptors else [])


def serve(connection: socket.socket) -> tuple[list[str], list[str]]:
    """Fork when asked to; returns entry and arguments, in each process that is forked.

    An empty request has one more such server forked, for the connection that comes with it.
    """
    while True:
        data, ancillary, _flags, _address = connection.recvmsg(
            _REQUEST_BYTES, socket.CMSG_SPACE(2 * array.array("i").itemsize)
        )
        if not data:
            sys.exit()
        request = json.loads(data)
        passed = array.array("i")
        for _level, _kind, value in ancillary:
            passed.frombytes(value)
        if "wait" in request:
            _pid, status = os.waitpid(request["wait"], 0)
            connection.send(str(os.waitstatus_to_exitcode(status)).encode())
            continue
        pid = os.fork()
        if pid == 0:
            connection.close()
            if not request:
                end_with_parent()
                connection = socket.socket(fileno=passed[0])
                continue
            for number, descriptor in enumerate(passed, 1):
                os.dup2(descriptor, number)
                os.close(descriptor)
            end_with_parent()
            signal.signal(signal.SIGINT, signal.default_int_handler)
            os.chdir(request["folder"])
            os.environ.clear()
            os.environ.update(request["environment"])
            resource.setrlimit(resource.RLIMIT_NOFILE, request["descriptors"])
            return list(request["entry"]), list(request["arguments"])
        for descriptor in passed:
            os.close(descriptor)
        if request:
            connection.send(str(pid).encode())


def go_on(entry: list[str], arguments: list[str]) -> None:
    """Do what Python would with these words."""
    sys.argv = [entry[0], *arguments]
    if entry[0] == "-m":
        sys.argv[0] = entry[1]
        importlib.import_module("gateway.cli").main()
    elif entry[0] == "-c":
        exec(compile(entry[1], "<entry>", "exec"), {"__name__": "__main__"})
    else:
        runpy.run_path(entry[0], run_name="__main__")


def finish(status: object) -> NoReturn:
    """End the process without freeing all that was imported: each page of it would be copied."""
    if isinstance(status, str):
        print(status, file=sys.stderr)
        status = 1
    threading._shutdown()  # type: ignore[attr-defined]
    atexit._run_exitfuncs()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(int(status or 0))  # type: ignore[call-overload]


if __name__ == "__main__":
    # What a terminal interrupts are the tests, which end what they have started.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    # What is imported stays: looking for garbage in it would copy its pages in each process.
    gc.disable()
    for module in MODULES:
        importlib.import_module(module)
    # As every gateway does at its start.
    importlib.import_module("gateway.billing.prices").own_prices()
    importlib.import_module("gateway.tools.http").public_authorities()
    gc.enable()
    gc.freeze()
    entry, arguments = serve(socket.socket(fileno=int(sys.argv[1])))
    try:
        go_on(entry, arguments)
    except SystemExit as ending:
        status = ending.code
    except BaseException:
        traceback.print_exc()
        status = 1
    else:
        status = 0
    finish(status)
