# SPDX-License-Identifier: GPL-2.0-or-later
"""Which callers a canary takes, and by what it falls behind."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace
from typing import Any, cast

import pytest
from structlog.testing import capture_logs

from gateway.app.canary import Canaries, behind
from gateway.dialplan.route_session import Canary
from gateway.records.report import Line


def canary(share: float = 10, **stop: Any) -> Canary:
    """One that changes something."""
    given = {"share": share, "session": {"instructions": "Be brief."}, "stop": stop}
    return Canary.model_validate(given)


def line(calls: int, failed: int = 0, transferred: int = 0, p95: float | None = None) -> Line:
    """The figures of one side."""
    waits = [] if p95 is None else [p95]
    return Line("x", calls=calls, failed=failed, transferred=transferred, p95=waits)


def test_a_share_of_callers_and_always_the_same() -> None:
    callers = [f"+4930{number}" for number in range(2000)]
    few, more = ({one for one in callers if canary(share).has("sales", one)} for share in (10, 25))
    assert 140 < len(few) < 260
    assert 430 < len(more) < 570
    assert few < more
    assert few != {one for one in callers if canary().has("support", one)}
    assert all(canary(100).has("sales", one) for one in callers)


@pytest.mark.parametrize(
    ("ours", "theirs", "stop", "why"),
    [
        (line(49, failed=49), line(900), {}, ""),
        (line(50, failed=3), line(900), {}, "failed: 6.0 % of its calls, 0.0 % of the others"),
        (line(50, failed=3), line(100, failed=1), {}, ""),
        (line(50, failed=50), line(900), {"failed_percent": 0}, ""),
        (line(50, failed=50), line(49), {}, ""),
        (
            line(5, transferred=2),
            line(5, transferred=1),
            {"min_calls": 5, "transferred_percent": 10},
            "transferred: 40.0 % of its calls, 20.0 % of the others",
        ),
        (line(50, p95=1500), line(50, p95=900), {}, ""),
        (
            line(50, p95=1500),
            line(50, p95=900),
            {"response_ms": 500},
            "response p95: 1500 ms, 900 ms of the others",
        ),
        (line(50), line(50, p95=900), {"response_ms": 500}, ""),
    ],
)
def test_what_stops_a_canary(ours: Line, theirs: Line, stop: dict[str, Any], why: str) -> None:
    assert behind(ours, theirs, canary(**stop)) == why


def test_figures_begin_anew_when_it_changes_something_else() -> None:
    base = canary()
    assert base.fingerprint == canary(50, min_calls=9).fingerprint
    other = Canary.model_validate({"share": 10, "session": {"instructions": "Be long."}})
    assert base.fingerprint != other.fingerprint


def test_a_canary_that_a_reload_has_taken_away_is_not_judged() -> None:
    routes = [SimpleNamespace(name="sales", enabled=True, canary=canary())]
    records = SimpleNamespace(listeners=[])
    canaries = Canaries(
        cast(Any, SimpleNamespace(routes=routes)), cast(Any, None), cast(Any, records), "sqlite://"
    )
    canaries._states = {"sales": cast(Any, SimpleNamespace(stopped_by=""))}
    canaries.use(cast(Any, SimpleNamespace(routes=[])))

    async def main() -> None:
        await canaries._judge("sales")
        await canaries._refresh()

    asyncio.run(main())
    assert not canaries._runs("sales")


def test_a_defect_leaves_canaries_as_they_are_and_is_tried_again_however_often() -> None:
    routes = [SimpleNamespace(name="sales", enabled=True, canary=canary())]
    runs, stopped = SimpleNamespace(stopped_by=""), SimpleNamespace(stopped_by="ann", why="")
    answers: list[Any] = [*3 * [ValueError("no such column")], {"sales": stopped}]

    async def run(_operation: Any) -> Any:
        canaries._changed.set()  # it is looked again at once
        answer = answers.pop(0) if answers else {"sales": stopped}
        if isinstance(answer, Exception):
            raise answer
        return answer

    records = SimpleNamespace(listeners=[])
    canaries = Canaries(
        cast(Any, SimpleNamespace(routes=routes)),
        cast(Any, SimpleNamespace(run=run)),
        cast(Any, records),
        "sqlite://",
    )
    canaries._states = {"sales": cast(Any, runs)}

    async def main() -> None:
        follows = asyncio.create_task(canaries._follow())
        while answers and not follows.done():
            assert canaries._runs("sales")
            await asyncio.sleep(0)
        await asyncio.sleep(0)
        assert not follows.done(), follows.exception()
        follows.cancel()

    with capture_logs() as logs:
        asyncio.run(main())
    assert not canaries._runs("sales")
    assert [one["event"] for one in logs] == ["shared.failed", "canary.stopped"], "said once"
