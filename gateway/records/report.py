# SPDX-License-Identifier: GPL-2.0-or-later
"""Reports: calls of a time by route, trunk, day or end reason, and what the month will cost."""

from __future__ import annotations

import calendar
import csv
import html
import io
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from datetime import date, datetime, tzinfo
from math import ceil
from typing import Any, Literal

from gateway.records.tables import cell_of

By = Literal["route", "trunk", "day", "ending", "variant"]

CANARY, CONTROL, SYNTHETIC = "canary", "control", "synthetic"
"""Variants of calls: of a route with a canary, and those that the gateway makes to test itself."""

NONE = "-"
"""In place of a route or trunk that a call did not have."""

MAX_TIMES = 100_000
"""Response times kept of one line; those of further calls are left out."""


@dataclass(slots=True)
class Line:
    """The calls of one route, trunk, day or end reason."""

    name: str
    calls: int = 0
    answered: int = 0
    talk_seconds: float = 0.0
    interruptions: int = 0
    transfers: int = 0
    failed: int = 0
    """Calls with the outcome ``failed`` or ``crashed``."""
    transferred: int = 0
    """Calls that ended so."""
    cost: Counter[str] = field(default_factory=Counter)
    """By currency."""
    endings: Counter[str] = field(default_factory=Counter)
    dispositions: Counter[str] = field(default_factory=Counter)
    p50: list[float] = field(default_factory=list)
    p95: list[float] = field(default_factory=list)
    """Percentiles of each call's response times, ms."""

    def add(self, row: Mapping[str, Any]) -> None:
        """Count a call, by its row in the database."""
        self.calls += 1
        self.answered += row["answered_at"] is not None
        self.talk_seconds += row["talk_seconds"] or 0.0
        self.interruptions += row["interruptions"] or 0
        self.transfers += row["transfers"] or 0
        self.failed += row["outcome"] in ("failed", "crashed")
        self.transferred += row["outcome"] == "transferred"
        if row["cost"]:
            self.cost[row["currency"] or "?"] += row["cost"]
        self.endings[row["why"] or row["state"]] += 1
        if row["disposition"]:
            self.dispositions[row["disposition"]] += 1
        for times, name in ((self.p50, "response_p50_ms"), (self.p95, "response_p95_ms")):
            if row[name] is not None and len(times) < MAX_TIMES:
                times.append(row[name])

    def as_json(self) -> dict[str, Any]:
        return {
            "name": self.name,
            "calls": self.calls,
            "answered": self.answered,
            "talk_minutes": round(self.talk_seconds / 60, 1),
            "response_p50_ms": quantile(self.p50, 0.5),
            "response_p95_ms": quantile(self.p95, 0.95),
            "interruptions": self.interruptions,
            "transfers": self.transfers,
            "failed": self.failed,
            "cost": {name: round(amount, 6) for name, amount in sorted(self.cost.items())},
            "endings": dict(self.endings.most_common()),
            "dispositions": dict(self.dispositions.most_common()),
        }


@dataclass(slots=True)
class Forecast:
    """Expected cost of a month, in one currency."""

    month: str
    """Like 2026-11."""
    currency: str
    spent: float
    expected: float


@dataclass(slots=True)
class Report:
    """Lines by what they are of, the whole, and a forecast for each currency."""

    by: By
    since: str
    until: str
    lines: list[Line]
    total: Line
    forecast: list[Forecast] = field(default_factory=list)

    def as_json(self) -> dict[str, Any]:
        return {
            "by": self.by,
            "since": self.since,
            "until": self.until,
            "lines": [line.as_json() for line in self.lines],
            "total": self.total.as_json(),
            "forecast": [
                {
                    "month": one.month,
                    "currency": one.currency,
                    "spent": round(one.spent, 4),
                    "expected": round(one.expected, 4),
                }
                for one in self.forecast
            ],
        }


def report_of(
    rows: Iterable[Mapping[str, Any]], by: By, since: str, until: str, zone: tzinfo | None
) -> Report:
    """Count calls but synthetic ones; ``zone`` is that in which a day begins, None for the
    machine's.
    """
    lines: dict[str, Line] = {}
    total = Line("total")
    for row in rows:
        if row["variant"] == SYNTHETIC:
            continue
        name = _name(row, by, zone)
        line = lines.get(name)
        if line is None:
            line = lines[name] = Line(name)
        line.add(row)
        total.add(row)
    found = sorted(
        lines.values(),
        key=lambda one: (0, one.name) if by == "day" else (-one.calls, one.name),
    )
    return Report(by, since, until, found, total)


def _name(row: Mapping[str, Any], by: By, zone: tzinfo | None) -> str:
    if by == "day":
        return str(row["invited_at"].astimezone(zone).date())
    if by == "ending":
        return str(row["why"] or row["state"])
    return str(row[by] or NONE)


def quantile(values: list[float], part: float) -> float | None:
    """The value below which this part of them is; None without any."""
    if not values:
        return None
    return round(sorted(values)[ceil(part * len(values)) - 1], 1)


def forecast_of(
    rows: Iterable[Mapping[str, Any]], today: date, zone: tzinfo | None
) -> list[Forecast]:
    """What this month will have cost, from calls of the last 28 days and of the month.

    A day to come costs as much as its weekday has on average, within the last 28 days and since
    the first call in them. Today counts as a whole day at least.
    """
    spent: dict[str, Counter[date]] = {}
    first = today
    for row in rows:
        day = row["invited_at"].astimezone(zone).date()
        first = min(first, day)
        if row["cost"]:
            spent.setdefault(row["currency"] or "?", Counter())[day] += row["cost"]
    length = calendar.monthrange(today.year, today.month)[1]
    known = [date.fromordinal(n) for n in range(first.toordinal(), today.toordinal())][-28:]
    found = []
    for currency, days in sorted(spent.items()):
        so_far = sum(
            amount
            for day, amount in days.items()
            if (day.year, day.month) == (today.year, today.month)
        )

        def usual(weekday: int, days: Counter[date] = days) -> float:
            same = [days[day] for day in known if day.weekday() == weekday]
            every = same or [days[day] for day in known] or [days[today]]
            return sum(every) / len(every)

        to_come = (date(today.year, today.month, n) for n in range(today.day + 1, length + 1))
        expected = so_far + max(usual(today.weekday()) - days[today], 0.0)
        expected += sum(usual(day.weekday()) for day in to_come)
        found.append(Forecast(f"{today:%Y-%m}", currency, so_far, expected))
    return found


# ---- as text


HEADINGS = (
    "calls", "answered", "minutes", "wait p50", "wait p95", "interruptions", "transfers", "cost",
    "endings", "dispositions",
)  # fmt: skip


def cells_of(line: Line) -> tuple[str, ...]:
    """A line's values below :data:`HEADINGS`; waits in ms."""
    told = line.as_json()
    waits = (told["response_p50_ms"], told["response_p95_ms"])
    return (
        str(line.calls),
        str(line.answered),
        f"{line.talk_seconds / 60:.1f}",
        *("" if one is None else f"{one:.0f}" for one in waits),
        str(line.interruptions),
        str(line.transfers),
        ", ".join(f"{amount:.4f} {name}" for name, amount in sorted(line.cost.items())),
        _counted(line.endings),
        _counted(line.dispositions),
    )


def _counted(counter: Counter[str]) -> str:
    return ", ".join(f"{name} {count}" for name, count in counter.most_common(5))


def table_of(report: Report) -> Iterator[str]:
    """Yield the lines of a report as text in columns, then the forecast of its cost."""
    rows: list[tuple[str, ...]] = [(report.by, *HEADINGS)]
    rows += [(line.name, *cells_of(line)) for line in (*report.lines, report.total)]
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    for row in rows:
        cells = [
            cell.rjust(width) if 0 < column < 9 else cell.ljust(width)
            for column, (cell, width) in enumerate(zip(row, widths, strict=True))
        ]
        yield "  ".join(cells).rstrip()
    for one in report.forecast:
        yield (
            f"{one.month}: {one.spent:.2f} {one.currency} so far, "
            f"{one.expected:.2f} {one.currency} expected by its end"
        )


def csv_of(report: Report) -> Iterator[str]:
    """Yield the report as lines of CSV. Cells that a spreadsheet would run are quoted."""
    waits = ("response_p50_ms", "response_p95_ms")
    numbers = ("calls", "answered", "talk_minutes", *waits, "interruptions", "transfers")
    counts = ("cost", "endings", "dispositions")
    rows: list[list[Any]] = [[report.by, *numbers, *counts]]
    for line in (*report.lines, report.total):
        told = line.as_json()
        texts = [";".join(f"{name}={value}" for name, value in told[key].items()) for key in counts]
        rows.append([cell_of(line.name), *(told[key] for key in numbers), *map(cell_of, texts)])
    for row in rows:
        text = io.StringIO()
        csv.writer(text).writerow(row)
        yield text.getvalue().rstrip("\r\n")


_PAGE = """<!DOCTYPE html>
<html lang="en"><head><meta charset="utf-8"><title>{title}</title>
<style>
body {{ font: 11pt/1.4 system-ui, sans-serif; margin: 2em; color: #111; }}
h1 {{ font-size: 16pt; margin: 0 0 .3em; }}
table {{ border-collapse: collapse; width: 100%; margin: 1em 0; }}
thead {{ display: table-header-group; }}
tr {{ break-inside: avoid; }}
th, td {{ padding: .3em .6em; border-bottom: 1px solid #ccc; text-align: right; }}
th:first-child, td:first-child, th:nth-last-child(-n+2), td:nth-last-child(-n+2)
{{ text-align: left; }}
tfoot td {{ font-weight: bold; border-top: 2px solid #111; }}
@page {{ size: A4 landscape; margin: 12mm; }}
@media print {{ body {{ margin: 0; font-size: 9pt; }} }}
</style></head><body>
<h1>{title}</h1><p>{period}</p>
<table><thead><tr>{head}</tr></thead><tbody>
{body}
</tbody><tfoot>{foot}</tfoot></table>
{forecast}
</body></html>
"""


def page_of(report: Report, made: datetime) -> str:
    """The report as an HTML page, which prints on A4."""

    def row(line: Line) -> str:
        cells = (line.name, *cells_of(line))
        return "<tr>" + "".join(f"<td>{html.escape(cell)}</td>" for cell in cells) + "</tr>"

    forecast = "".join(
        f"<p>{one.month}: {one.spent:.2f} {html.escape(one.currency)} so far, "
        f"<strong>{one.expected:.2f} {html.escape(one.currency)}</strong> expected by its end.</p>"
        for one in report.forecast
    )
    return _PAGE.format(
        title=f"Calls by {report.by}",
        period=f"{report.since} to {report.until}, made {made:%Y-%m-%d %H:%M %Z}; waits in ms",
        head="".join(f"<th>{name}</th>" for name in (report.by, *HEADINGS)),
        body="\n".join(row(line) for line in report.lines),
        foot=row(report.total),
        forecast=forecast,
    )
