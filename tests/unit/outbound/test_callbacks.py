# SPDX-License-Identifier: GPL-2.0-or-later
"""Promised calls: what may be promised, what is kept of it, and when it is placed."""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from zoneinfo import ZoneInfo

import pytest

from gateway.bridge.legs import DialRefusedError
from gateway.call.call_record import CallRecord
from gateway.config.sections import CallbackSettings
from gateway.outbound import callbacks as scheduler_module
from gateway.outbound.callbacks import CallbackScheduler, Rules, callback_of
from gateway.planning.check import check
from gateway.tools.api import ToolError
from gateway.tools.functions import ToolCall
from gateway.tools.http import HttpClient
from tests.support.harness import eventually
from tests.support.http_service import Answer, http_service

NOW = datetime(2026, 11, 20, 12, 0, tzinfo=UTC)
RULES = Rules("desk", "carrier", re.compile(r"\+49[0-9]{4,}"), 14, ZoneInfo("Europe/Berlin"))
CALL = ToolCall("c1", "schedule_callback", "{}", "call-1", "r", variables={"from": "030-123"})


@pytest.mark.parametrize(
    ("given", "at", "number"),
    [
        ({"at": "2026-11-20T14:30"}, "2026-11-20T13:30:00+00:00", "030123"),
        ({"at": "2026-11-20T14:30Z"}, "2026-11-20T14:30:00+00:00", "030123"),
        (
            {"at": "2026-11-21 09:00", "number": "+49 (30) 555"},
            "2026-11-21T08:00:00+00:00",
            "+4930555",
        ),
        ({"at": "2026-12-01T09:00", "number": "030 123"}, "2026-12-01T08:00:00+00:00", "030123"),
    ],
)
def test_what_may_be_promised(given: dict[str, Any], at: str, number: str) -> None:
    callback, _ = callback_of(given, RULES, "030-123", "call-1", NOW)
    assert (callback.at, callback.number, callback.route, callback.trunk) == (
        at,
        number,
        "desk",
        "carrier",
    )


@pytest.mark.parametrize(
    ("given", "caller", "words"),
    [
        ({"at": "soon"}, "1", "'soon' is no time; write it like"),
        ({"at": "2026-11-20T12:59"}, "1", "is in the past; it is 2026-11-20T13:00 now"),
        ({"at": "2026-12-20T12:00"}, "1", "too far ahead, at most 14 days"),
        ({"at": "2026-11-20T14:30"}, "anonymous", "the caller's is not known; ask for it"),
        ({"at": "2026-11-20T14:30", "number": "+1900123"}, "1", "may not be called"),
        ({"at": "2026-11-20T14:30", "number": "sip:x@y"}, "1", "is no telephone number"),
        ({"at": "2026-11-20T14:30", "number": "*#"}, "1", "is no telephone number"),
    ],
)
def test_what_may_not(given: dict[str, Any], caller: str, words: str) -> None:
    with pytest.raises(ToolError, match=re.escape(words)):
        callback_of(given, RULES, caller, "call-1", NOW)


class World:
    """A scheduler with a clock of its own, and calls that end as they are told to."""

    def __init__(self, folder: Path, **settings: Any) -> None:
        self.file = folder / "callbacks.json"
        settings = {"file": self.file, "auto_dial": True, **settings}
        self.settings = CallbackSettings.model_validate(settings)
        self.now = NOW
        self.dialled: list[tuple[str, str, str, Mapping[str, str]]] = []
        self.outcomes: list[str] = []
        self.http = HttpClient(4)
        self.scheduler = self.another()

    def another(self) -> CallbackScheduler:
        """A scheduler of the same file, as after a restart."""
        return CallbackScheduler(self.settings, self.dial, self.http, lambda: self.now)

    def dial(
        self, to: str, route: str, trunk: str, variables: Mapping[str, str]
    ) -> asyncio.Future[CallRecord]:
        """Place a call, as the next outcome says."""
        self.dialled.append((to, route, trunk, variables))
        outcome = self.outcomes.pop(0) if self.outcomes else "answered"
        if outcome == "refused":
            raise DialRefusedError("outbound.max_calls_per_minute = 1")
        over: asyncio.Future[CallRecord] = asyncio.get_running_loop().create_future()
        record = CallRecord("out-1")
        record.times.answered = 1.0 if outcome == "answered" else None
        over.set_result(record)
        return over

    @property
    def kept(self) -> list[dict[str, Any]]:
        """What the file has."""
        found: list[dict[str, Any]] = json.loads(self.file.read_text())
        return found


def at(seconds: float) -> dict[str, str]:
    """Arguments for a call then."""
    return {"at": (NOW + timedelta(seconds=seconds)).isoformat(), "reason": "a  refund"}


def test_promises_outlive_the_process_and_are_placed_once(tmp_path: Path) -> None:
    async def main() -> None:
        world = World(tmp_path)
        await world.scheduler.start()
        told = json.loads(await world.scheduler.take(RULES, CALL, at(600)))
        assert told == {"status": "scheduled", "at": "2026-11-20 13:10", "number": "030123"}
        await world.scheduler.stop()
        assert world.file.stat().st_mode & 0o777 == 0o600
        again = world.another()
        world.now += timedelta(seconds=601)
        await again.start()
        await eventually(lambda: again.placed == 1, "a call")
        reason = {"callback_reason": "a refund"}
        assert world.dialled == [("030123", "desk", "carrier", reason)]
        await eventually(lambda: world.kept == [], "nothing is kept")
        assert again.as_json() == {"count": 0, "waiting": [], "placed": 1, "given_up": 0}
        await again.stop()
        await world.http.close()

    asyncio.run(main())


def test_nobody_answers_and_then_somebody_does(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(scheduler_module, "AGAIN_SECONDS", 0.01)

    async def main() -> None:
        world = World(tmp_path)
        world.outcomes = ["no answer", "refused", "answered"]
        await world.scheduler.start()
        await world.scheduler.take(RULES, CALL, at(1))
        world.now += timedelta(seconds=2)
        await eventually(lambda: world.scheduler.placed == 1, "a call")
        assert len(world.dialled) == 3
        await world.scheduler.stop()
        await world.http.close()

    asyncio.run(main())


@pytest.mark.parametrize("dial", [True, False])
def test_too_late_is_given_up(tmp_path: Path, dial: bool) -> None:
    async def main() -> None:
        world = World(tmp_path, expire_after=60, auto_dial=dial)
        await world.scheduler.start()
        await world.scheduler.take(RULES, CALL, at(1))
        world.now += timedelta(seconds=90)
        await eventually(lambda: world.kept == [], "nothing is kept")
        assert world.dialled == []
        assert world.scheduler.given_up == int(dial)
        await world.scheduler.stop()
        await world.http.close()

    asyncio.run(main())


def test_a_later_promise_takes_the_place_of_an_earlier_one(tmp_path: Path) -> None:
    async def main() -> None:
        world = World(tmp_path, max_pending=1)
        await world.scheduler.start()
        await world.scheduler.take(RULES, CALL, at(600))
        told = json.loads(await world.scheduler.take(RULES, CALL, at(900)))
        assert told["status"] == "scheduled in place of the earlier one"
        (kept,) = world.kept
        assert kept["at"] == "2026-11-20T12:15:00+00:00"
        with pytest.raises(ToolError, match="no more callbacks"):
            await world.scheduler.take(RULES, CALL, {**at(900), "number": "+4930555"})
        (listed,) = world.scheduler.as_json()["waiting"]
        assert (listed["number"], listed["tries"]) == ("030123", 0)
        await world.scheduler.stop()
        await world.http.close()

    asyncio.run(main())


def test_the_operator_is_told_and_may_say_no(tmp_path: Path) -> None:
    async def main() -> None:
        with http_service() as service:
            headers = {"X-Key": "s3cret"}
            world = World(tmp_path, url=service.url + "/promised", headers=headers)
            await world.scheduler.start()
            await world.scheduler.take(RULES, CALL, at(600))
            (asked,) = service.asked
            assert (asked.path, asked.headers["x-key"]) == ("/promised", "s3cret")
            assert asked.json["number"] == "030123"
            assert asked.json["call"] == "call-1"
            service.answers = [Answer(409)]
            with pytest.raises(ToolError, match="could not be noted down"):
                await world.scheduler.take(RULES, CALL, {**at(600), "number": "+4930555"})
            assert len(world.kept) == 1
            await world.scheduler.stop()
            await world.http.close()

    asyncio.run(main())


@pytest.mark.parametrize("text", ["{", '[{"id": 1}]', '["x"]', '[{"at": "x"}]'])
def test_a_file_that_cannot_be_read_is_put_aside(tmp_path: Path, text: str) -> None:
    async def main() -> None:
        world = World(tmp_path)
        world.file.write_text(text)
        await world.scheduler.start()
        assert world.scheduler.as_json()["count"] == 0
        assert world.file.with_name("callbacks.json.bad").read_text() == text
        await world.scheduler.take(RULES, CALL, at(600))
        await world.scheduler.stop()
        await world.http.close()

    asyncio.run(main())


@pytest.mark.parametrize(
    ("config", "route", "words"),
    [
        ("", "", "callbacks would be lost: set callbacks.file or callbacks.url"),
        ("[callbacks]\nfile = 'c.json'", "route = 'x'", 'there is no route "x"'),
        ("[callbacks]\nfile = 'c.json'", "trunk = 'x'", 'there is no trunk "x"'),
        ("[callbacks]\nfile = 'c.json'\nauto_dial = true", "", "is needed: numbers are called"),
        ("[callbacks]\nfile = 'c.json'\nauto_dial = true", "", "needs outbound.enabled"),
        (
            "[callbacks]\nfile = 'c.json'",
            "allowed_numbers = '('",
            "is not a valid regular expression",
        ),
        ("[callbacks]\nurl = 'x'", "", "must begin with http"),
    ],
)
def test_mistakes(tmp_path: Path, config: str, route: str, words: str) -> None:
    (tmp_path / "routes").mkdir()
    head = "[[route]]\nname = 'r'\n[route.schedule_callback]\nenabled = true\n"
    (tmp_path / "routes" / "r.toml").write_text(head + route)
    base = '[realtime]\nurl = "ws://127.0.0.1:1"\n[dialplan]\nfolder = "routes"\n'
    (tmp_path / "gateway.toml").write_text(base + config)
    status, told = check(tmp_path / "gateway.toml", {})
    assert status == 2
    assert words in "\n".join(told), told
