# SPDX-License-Identifier: GPL-2.0-or-later
"""Fixtures of the tests on the wire: ``async def`` tests, a world for each module, figures."""

from __future__ import annotations

import asyncio
import gc
import inspect
import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import structlog

from tests.support import figures
from tests.support.gateway_process import Gateway
from tests.support.harness import GatewayStack

TEST_SECONDS = float(os.environ.get("GATEWAY_TEST_SECONDS", "110"))
"""More for ``python -m tests.load.survive``."""


def pytest_configure(config: pytest.Config) -> None:
    """Names of marks; what tests start can be interrupted.

    A shell that puts a job into the background has it ignore SIGINT, and every child inherits
    that; a handler, even the default one, is not inherited.
    """
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    config.addinivalue_line("markers", "slow: takes a minute; leave out with -m 'not slow'")
    gc.disable()  # what is imported for the tests stays


def pytest_collection_finish() -> None:
    """Look for garbage of the tests alone."""
    gc.enable()
    gc.freeze()


@pytest.fixture(scope="session")
def runner() -> Iterator[asyncio.Runner]:
    """The one event loop of emulator, telephone and log readers; it stands still between tests."""
    with asyncio.Runner() as made:
        yield made


@pytest.hookimpl(tryfirst=True)
def pytest_pyfunc_call(pyfuncitem: pytest.Function) -> bool | None:
    """Run an ``async def`` test on the loop that its fixtures live on."""
    if not inspect.iscoroutinefunction(pyfuncitem.obj):
        return None
    # That of its own folder: tests of interop have another one.
    runner = pyfuncitem._request.getfixturevalue("runner")
    names = inspect.signature(pyfuncitem.obj).parameters
    arguments = {name: pyfuncitem.funcargs[name] for name in names}

    async def bounded() -> None:
        async with asyncio.timeout(TEST_SECONDS):
            await pyfuncitem.obj(**arguments)

    runner.run(bounded())
    return True


@pytest.fixture(scope="module")
def shared_world(
    runner: asyncio.Runner,
    request: pytest.FixtureRequest,
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[GatewayStack]:
    """A world with the module's ``WORLD`` settings."""
    settings: dict[str, Any] = getattr(request.module, "WORLD", {})
    made = GatewayStack(tmp_path_factory.mktemp("world"), **settings)
    runner.run(made.start())
    yield made
    runner.run(made.stop())


@pytest.fixture
def world(
    runner: asyncio.Runner, shared_world: GatewayStack, request: pytest.FixtureRequest
) -> Iterator[GatewayStack]:
    """The module's world; after each test nothing of its calls may be left."""
    shared_world.behave()
    before = request.session.testsfailed
    yield shared_world
    if request.session.testsfailed == before:
        runner.run(shared_world.idle())
    else:
        runner.run(shared_world.abandon())


@pytest.fixture(autouse=True)
def _no_gateway_left(request: pytest.FixtureRequest) -> Iterator[None]:
    """A test that fails leaves no gateway of its own running."""
    before = request.session.testsfailed
    there = set(Gateway.running)
    yield
    if request.session.testsfailed > before:
        shared = request.node.funcargs.get("shared_world")
        kept = there if shared is None else there | {shared.gateway}
        for gateway in Gateway.running - kept:
            gateway.kill()


@pytest.fixture
def own_folder(tmp_path: Path, runner: asyncio.Runner) -> Path:
    """For a test that brings up a world of its own."""
    return tmp_path


@pytest.fixture(autouse=True, scope="module")
def _quiet_emulator() -> Iterator[None]:
    """The emulator's own log would fill every failure's report."""
    before = structlog.get_config()
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger("warning"))
    yield
    structlog.configure(**before)


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Show the figures."""
    lines = figures.shown()
    if not lines:
        return
    terminalreporter.section("figures")
    for line in lines:
        terminalreporter.write_line(line)
    figures.FILE.parent.mkdir(exist_ok=True)
    figures.FILE.write_text("\n".join(lines) + "\n")
