# SPDX-License-Identifier: GPL-2.0-or-later
"""Plugin of pytest: runs the files of tests in several processes (``--workers``).

The tests are imported and collected once, by the process that prints; the others are forked from
it. Importing and collecting anew in each takes a minute of processor time of two cores.
"""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Iterator
from itertools import groupby
from multiprocessing import get_context
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any
from warnings import WarningMessage

import pytest

from tests.support import figures
from tests.support.forked import Forked, end_with_parent

NICE = 5
"""Of the worker that runs unit tests beside calls: they use what time calls leave, and no more."""

LONGEST = (
    *("test_many_calls", "test_dialogs", "test_live_matrix", "test_demo", "test_process"),
    *("test_odd_rtp", "test_recordings", "test_shared", "test_transports", "test_live_tools"),
    *("test_media_offers", "test_webhooks", "test_media", "test_live", "test_demo_live"),
    "test_connections",
)
"""Files that take half a minute and more, most of it waiting."""

_FORKED = get_context("fork")


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add ``--workers``."""
    parser.addoption("--workers", type=int, default=2, help="processes that run tests")


def pytest_collection() -> None:
    """Import the gateway for those that tests will start, while the tests are collected."""
    Forked.prepare()


@pytest.hookimpl(tryfirst=True)
def pytest_runtestloop(session: pytest.Session) -> bool | None:
    """Run what was collected in several processes."""
    if session.testsfailed or session.config.option.collectonly:
        return None  # pytest says so
    files = [list(items) for _, items in groupby(session.items, lambda item: item.path)]
    files.sort(key=_when)
    session.config._tmp_path_factory.getbasetemp()  # type: ignore[attr-defined]
    workers = [
        _Worker(session, files, number)
        for number in range(min(session.config.option.workers, len(files)))
    ]
    try:
        _distribute(session, deque(range(len(files))), workers)
    finally:
        for worker in workers:
            worker.process.terminate()
            worker.process.join()
    return True


def _when(items: list[pytest.Item]) -> int:
    """The order of files: the longest first, so that no process is left with one at the end."""
    name, of_units = items[0].path.stem, "unit" in items[0].path.parts
    return LONGEST.index(name) if name in LONGEST else len(LONGEST) + of_units


def _distribute(session: pytest.Session, left: deque[int], workers: list[_Worker]) -> None:
    """Answer each worker that asks for a file, and report what they say, until all have ended.

    The test in which a worker ends has failed; another worker goes on with those after it.
    """
    going_on = {worker.connection: worker for worker in workers}
    while going_on:
        for ready in wait(list(going_on)):
            worker = going_on[ready]  # type: ignore[index]
            try:
                kind, value = worker.connection.recv()
            except (EOFError, ConnectionResetError):
                del going_on[worker.connection]
                following = worker.ended()
                if following:
                    workers.append(following)
                    going_on[following.connection] = following
                continue
            if kind == "next":
                worker.connection.send(worker.take(left))
            elif kind == "figures":
                figures.found.update(value)
            elif kind == "start":
                worker.running = value
            else:
                worker.report(kind, value)
        if session.shouldfail or session.shouldstop:
            raise session.Failed(session.shouldfail or session.shouldstop)


class _Worker:
    """One process, and the connection to it."""

    def __init__(
        self,
        session: pytest.Session,
        files: list[list[pytest.Item]],
        number: int,
        first: tuple[int, int] | None = None,
    ) -> None:
        self._session = session
        self._files = files
        self._number = number
        self._first = first
        """The file and the test with which it begins, where another has left them."""
        self.running = (-1, -1)
        """Positions of the file and of the test in it."""
        self.connection, self._other = _FORKED.Pipe()
        self.process = _FORKED.Process(target=self._run)
        self.process.start()
        self._other.close()

    def take(self, left: deque[int]) -> int | None:
        """The next file for this worker, if there is one."""
        if not left or (self._only_unit_tests and not self._is_unit_test(left[-1])):
            return None
        return left.pop() if self._only_unit_tests else left.popleft()

    def report(self, kind: str, value: Any) -> None:
        """In the process that prints: pass on what this worker's pytest said."""
        hook = self._session.config.hook
        if kind == "report":
            made = hook.pytest_report_from_serializable(config=self._session.config, data=value)
            hook.pytest_runtest_logreport(report=made)
        elif kind == "warning":
            hook.pytest_warning_recorded.call_historic(kwargs=value)

    def ended(self) -> _Worker | None:
        """In the process that prints: the worker that goes on where this one ended too soon."""
        self.process.join()
        if not self.process.exitcode:
            return None
        file, position = self.running
        if position < 0:
            self._session.shouldfail = f"a worker ended with {self.process.exitcode}"
            return None
        item = self._files[file][position]
        report = pytest.TestReport(
            nodeid=item.nodeid,
            location=item.location,
            keywords=dict.fromkeys(item.keywords, 1),
            outcome="failed",
            longrepr=f"its process ended with {self.process.exitcode}",
            when="call",
        )
        self._session.config.hook.pytest_runtest_logreport(report=report)
        return _Worker(self._session, self._files, self._number, (file, position + 1))

    @property
    def _only_unit_tests(self) -> bool:
        workers: int = self._session.config.option.workers
        both = self._is_unit_test(-1) and not self._is_unit_test(0)
        return both and self._number == workers - 1 > 0

    def _is_unit_test(self, file: int) -> bool:
        return "unit" in self._files[file][0].path.parts

    # ---- in the forked process

    def _run(self) -> None:
        end_with_parent()
        config = self._session.config
        if self._only_unit_tests:
            os.nice(NICE)
        self.connection.close()
        # What is captured goes to files, which all processes would share.
        capture: Any = config.pluginmanager.get_plugin("capturemanager")
        capture.stop_global_capturing()
        capture.start_global_capturing()
        terminal: Any = config.pluginmanager.get_plugin("terminalreporter")
        terminal._tw._file = Path(os.devnull).open("w")  # noqa: SIM115 - until the process ends
        config.pluginmanager.register(_Told(config, self._other))
        temporary = config._tmp_path_factory  # type: ignore[attr-defined]
        temporary._basetemp = temporary.getbasetemp() / f"worker-{self._number}"
        temporary._basetemp.mkdir(exist_ok=True)
        places = self._places()
        place = next(places, None)
        while place is not None:
            following = None if self._session.shouldfail else next(places, None)
            self._other.send(("start", place))
            config.hook.pytest_runtest_protocol(
                item=self._item(place), nextitem=following and self._item(following)
            )
            place = following
        self._other.send(("figures", figures.found))

    def _item(self, place: tuple[int, int]) -> pytest.Item:
        file, position = place
        return self._files[file][position]

    def _places(self) -> Iterator[tuple[int, int]]:
        file, position = self._first or (None, 0)
        while True:
            if file is None:
                self._other.send(("next", None))
                file = self._other.recv()
                if file is None:
                    return
            for test in range(position, len(self._files[file])):
                yield file, test
            file, position = None, 0


class _Told:
    """Tells the process that prints what pytest says in this one."""

    def __init__(self, config: pytest.Config, connection: Connection[Any, Any]) -> None:
        self._config = config
        self._connection = connection

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """The outcome of a test's set-up, call or tear-down."""
        data = self._config.hook.pytest_report_to_serializable(config=self._config, report=report)
        self._connection.send(("report", data))

    def pytest_warning_recorded(
        self, warning_message: WarningMessage, when: str, nodeid: str
    ) -> None:
        """A warning of a test; without its source, which may be a coroutine."""
        told = WarningMessage(
            str(warning_message.message),
            warning_message.category,
            warning_message.filename,
            warning_message.lineno,
        )
        said = {"warning_message": told, "when": when, "nodeid": nodeid}
        self._connection.send(("warning", {**said, "location": None}))
