# SPDX-License-Identifier: GPL-2.0-or-later
"""What is known of realtime servers before a call asks."""

from __future__ import annotations

import asyncio
from typing import Any, cast

import pytest

from gateway.app import health_checks
from gateway.app.health_checks import HealthChecker, ServerChange, ServerHealth, SyntheticCalls
from gateway.config.operations import SyntheticCall
from gateway.realtime.connection import Endpoint
from gateway.realtime.errors import SetupFailed
from tests.support.harness import eventually

URL = "wss://one.example/v1/realtime"


def test_a_probe_that_fails_is_trouble_until_something_works() -> None:
    health = ServerHealth()
    assert health.trouble(URL) is None
    assert health.probe_failed(URL, "no answer", 10.0) == ServerChange(URL, True, "no answer", 0.0)
    assert health.trouble(URL) == "no answer"
    assert health.probe_failed(URL, "refused", 20.0) is None, "said once"
    assert health.trouble(URL) == "refused"
    assert health.worked(URL, 70.0) == ServerChange(URL, False, "", 60.0)
    assert health.trouble(URL) is None
    assert health.worked(URL, 71.0) is None


def test_calls_are_trouble_when_three_in_a_row_fail() -> None:
    health = ServerHealth()
    assert health.call_failed(URL, "lost", 1.0) is None
    assert health.worked(URL, 2.0) is None
    assert [health.call_failed(URL, "lost", now) for now in (3.0, 4.0)] == [None, None]
    changed = health.call_failed(URL, "lost", 5.0)
    assert changed is not None
    assert changed.down


def test_servers_are_known_apart() -> None:
    health = ServerHealth()
    health.probe_failed(URL, "down", 1.0)
    health.worked("ws://two.example", 1.0)
    states = {one["url"]: (one["state"], one["seconds"]) for one in health.as_json(4.0)}
    assert states == {URL: ("in trouble", 3.0), "ws://two.example": ("up", None)}


class Session:
    """One that can be closed."""

    async def close(self, _reason: str) -> None:
        """Close it."""


def test_after_a_reload_its_servers_are_checked_and_others_forgotten(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    old = Endpoint("wss://old.example/v1/realtime", api_key="one")
    changed = Endpoint(old.url, api_key="two")
    new = Endpoint("wss://new.example/v1/realtime", api_key="one")
    working = [changed, new]

    async def open_session(endpoint: Endpoint, *_args: Any, **_more: Any) -> Session:
        if endpoint not in working:
            raise OSError("wrong key")
        return Session()

    monkeypatch.setattr(health_checks, "open_session", open_session)

    def states(checker: HealthChecker) -> dict[object, object]:
        return {one["url"]: one["state"] for one in checker.as_json()}

    async def main() -> None:
        checker = HealthChecker([old], 60.0, 1.0)
        checker.start()
        await eventually(lambda: states(checker) == {old.shown: "in trouble"}, "trouble")
        checker.use([changed], 60.0, 1.0)
        assert checker.trouble(changed) is None, "another key may do"
        await eventually(lambda: states(checker) == {old.shown: "up"}, "the new key")
        checker.use([new], 60.0, 1.0)
        await eventually(lambda: states(checker) == {new.shown: "up"}, "the new server")
        for _ in range(3):  # calls that began before
            checker.met(old, cast(SetupFailed, None), 0.1)
        assert states(checker) == {new.shown: "up"}
        await checker.stop()

    asyncio.run(main())


def test_a_reload_changes_interval_and_timeout_of_the_checks(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    server = Endpoint(URL)
    timeouts: list[float] = []

    async def open_session(*_args: Any, **given: Any) -> Session:
        timeouts.append(given["timeout"])
        raise OSError("nobody there")

    monkeypatch.setattr(health_checks, "open_session", open_session)

    async def main() -> None:
        checker = HealthChecker([server], 0.0, 1.0)
        checker.start()
        checker.use([server], 3600.0, 1.0)
        await eventually(lambda: checker.trouble(server) is not None, "the first check")
        assert timeouts == [1.0]
        checker.use([server], 0.01, 3.0)
        await eventually(lambda: len(timeouts) >= 4, "checks at another interval")
        assert set(timeouts[1:]) == {3.0}
        assert checker.trouble(server) is not None
        checker.use([server], 0.0, 3.0)
        assert checker.trouble(server) is None
        assert checker.as_json() == []
        await checker.stop()

    asyncio.run(main())


def test_no_synthetic_call_while_the_process_drains(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(health_checks, "FIRST_SECONDS", 0.0)
    told: list[str] = []
    settings = SyntheticCall.model_validate({"name": "one", "to": "1", "interval_minutes": 1})
    nothing = cast(Any, None)
    asked: list[None] = []

    def drains() -> bool:
        asked.append(None)
        return True

    calls = SyntheticCalls([settings], nothing, nothing, nothing, drains)

    async def call(_settings: SyntheticCall) -> tuple[str, float | None]:
        told.append("called")
        return "refused", None

    monkeypatch.setattr(calls, "_call", call)

    async def main() -> None:
        await calls.start()
        await eventually(lambda: bool(asked), "the time of the call")
        await calls.stop()

    asyncio.run(main())
    assert told == []
    assert not calls._results["one"].counts
