# SPDX-License-Identifier: GPL-2.0-or-later
"""Reports of past calls: what is counted, and what the month is expected to cost."""

from __future__ import annotations

import csv
import io
import json
from datetime import UTC, date, datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from gateway.cli import main
from gateway.records.database import Database
from gateway.records.report import By, forecast_of, report_of
from gateway.records.spool import Entry
from gateway.records.tables import CLOSED


def row(**given: Any) -> dict[str, Any]:
    """A row of an ended call."""
    at = datetime(2026, 11, 20, 12, tzinfo=UTC)
    return {
        "invited_at": at,
        "answered_at": at,
        "talk_seconds": 60.0,
        "interruptions": 1,
        "transfers": 0,
        "cost": 0.5,
        "currency": "USD",
        "why": "remote_hangup",
        "state": "ended",
        "outcome": "completed",
        "variant": "",
        "disposition": "",
        "route": "desk",
        "trunk": "",
        "response_p50_ms": 600.0,
        "response_p95_ms": 900.0,
        **given,
    }


def test_what_is_counted() -> None:
    rows = [
        row(disposition="completed"),
        row(disposition="callback", response_p50_ms=800.0, transfers=2),
        row(route="shop", answered_at=None, why="busy", talk_seconds=None, cost=None),
        row(interruptions=None, response_p50_ms=None, response_p95_ms=None, currency="EUR"),
        row(variant="synthetic"),
    ]
    told = report_of(rows, "route", "a", "b", UTC).as_json()
    desk, shop = told["lines"]
    assert (desk["name"], desk["calls"], desk["answered"], desk["talk_minutes"]) == (
        "desk", 3, 3, 3.0,
    )  # fmt: skip
    assert (desk["response_p50_ms"], desk["response_p95_ms"]) == (600.0, 900.0)
    assert (desk["interruptions"], desk["transfers"]) == (2, 2)
    assert desk["cost"] == {"EUR": 0.5, "USD": 1.0}
    assert desk["dispositions"] == {"completed": 1, "callback": 1}
    assert (shop["endings"], shop["cost"]) == ({"busy": 1}, {})
    assert told["total"]["calls"] == 4


@pytest.mark.parametrize(
    ("by", "names"),
    [
        ("day", ["2026-11-20", "2026-11-21"]),
        ("trunk", ["-", "carrier"]),
        ("ending", ["remote_hangup", "busy"]),
    ],
)
def test_what_a_line_is_of(by: By, names: list[str]) -> None:
    late = datetime(2026, 11, 20, 23, 30, tzinfo=UTC)
    rows = [row(), row(), row(invited_at=late, trunk="carrier", why="busy")]
    zone = timezone(timedelta(hours=1))
    assert [line.name for line in report_of(rows, by, "", "", zone).lines] == names


def test_the_rest_of_a_month_costs_what_its_weekdays_cost() -> None:
    # From Monday the 2nd to Sunday the 15th: 2 on weekdays, 1 at weekends; the 16th is a Monday.
    rows = [
        row(invited_at=datetime(2026, 11, day, 9, tzinfo=UTC), cost=1.0 if day % 7 in (0, 1) else 2)
        for day in range(2, 16)
    ]
    (found,) = forecast_of(rows, date(2026, 11, 16), UTC)
    assert (found.month, found.currency, found.spent) == ("2026-11", "USD", 24.0)
    # Today 2, four more weekdays, a weekend, five weekdays, a weekend, and Monday the 30th.
    assert found.expected == 24.0 + 2 + 8 + 2 + 10 + 2 + 2


@pytest.mark.parametrize("form", ["table", "csv", "html", "json"])
def test_the_command(tmp_path: Path, form: str) -> None:
    (tmp_path / "gateway.toml").write_text('[records]\nfolder = "r"\n')
    database = Database(f"sqlite:///{tmp_path / 'r' / 'calls.sqlite3'}")
    at = datetime.now(UTC).isoformat()
    body = {"id": "c", "revision": CLOSED, "schema_version": 1, "route": "<b>desk", "why": "busy"}
    times = dict.fromkeys(("invited_at", "updated_at", "ended_at"), at)
    more = {"cost": 0.25, "currency": "USD", "disposition": "no_agent", "interruptions": 3}
    database.write([Entry("row", "c", {**body, **times, **more}, 0.0)])
    database.close()
    config = str(tmp_path / "gateway.toml")
    done = CliRunner().invoke(main, ["report", "-c", config, "--format", form])
    assert done.exit_code == 0, done.output
    if form == "csv":
        (line, total) = csv.DictReader(io.StringIO(done.output))
        assert (line["route"], line["cost"], line["dispositions"]) == (
            "<b>desk", "USD=0.25", "no_agent=1",
        )  # fmt: skip
        assert total["interruptions"] == "3"
    elif form == "json":
        told = json.loads(done.output)
        assert told["total"]["endings"] == {"busy": 1}
        assert told["forecast"][0]["expected"] >= 0.25
    elif form == "html":
        assert "<td>&lt;b&gt;desk</td>" in done.output
        assert "<b>desk" not in done.output
        assert "@page" in done.output
    else:
        assert "0.2500 USD" in done.output
        assert "expected by its end" in done.output
