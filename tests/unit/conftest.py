# SPDX-License-Identifier: GPL-2.0-or-later
"""Runs tests that are coroutines, each on an event loop of its own, with a deadline; settings of
Hypothesis for all."""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import Iterator

import pytest
import structlog
from hypothesis import HealthCheck, settings

TEST_SECONDS = 60.0

# No threshold on wall time; what is found can be tried again by what is printed.
settings.register_profile(
    "tests", deadline=None, suppress_health_check=[HealthCheck.too_slow], print_blob=True
)
settings.load_profile("tests")


@pytest.hookimpl(tryfirst=True)
def pytest_pyfunc_call(pyfuncitem: pytest.Function) -> bool | None:
    """Run the test if it is a coroutine."""
    if not inspect.iscoroutinefunction(pyfuncitem.obj):
        return None
    arguments = {name: pyfuncitem.funcargs[name] for name in pyfuncitem._fixtureinfo.argnames}

    async def bounded() -> None:
        async with asyncio.timeout(TEST_SECONDS):
            await pyfuncitem.obj(**arguments)

    asyncio.run(bounded())
    return True


@pytest.fixture(autouse=True)
def _own_logging() -> Iterator[None]:
    """A command that is run in a test sets logging up for its whole process."""
    before = structlog.get_config()
    yield
    structlog.configure(**before)
