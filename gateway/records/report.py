# SPDX-License-Identifier: GPL-2.0-or-later
"""Texts for people from rows of the database: reports, exports, and why a call went as it did.

A report counts the calls of a period by route, trunk, day or end reason, and forecasts the cost of
the month.
"""

from __future__ import annotations

import calendar
import csv
import html
import io
import json
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from datetime import date, datetime, tzinfo
from math import ceil
from typing import Any, Literal

from gateway.text import printable, unicode_in

By = Literal["route", "trunk", "day", "ending", "variant"]

CANARY, CONTROL, SYNTHETIC = "canary", "control", "synthetic"
"""Variants of calls: of a route with a canary, and those that the gateway makes to test itself."""

NONE = "-"
"""Name of the line for calls without a route or trunk."""

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
    """Calls with the outcome ``transferred``; ``transfers`` counts attempts, too."""
    cost: Counter[str] = field(default_factory=Counter)
    """By currency."""
    endings: Counter[str] = field(default_factory=Counter)
    dispositions: Counter[str] = field(default_factory=Counter)
    p50: list[float] = field(default_factory=list)
    p95: list[float] = field(default_factory=list)
    """Percentiles of each call's response times, ms."""

    def add(self, row: Mapping[str, Any]) -> None:
        """Count a call, by its row in the database; response times up to ``MAX_TIMES`` calls."""
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
    """A line for each route, trunk, day, end reason or variant, the total, and a forecast for each
    currency."""

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
    """Count the calls in ``rows`` by route, trunk, day, end reason or variant, and in all; without
    a forecast.

    Synthetic calls are left out. Days are in order, other lines by their number of calls.

    Args:
        since: beginning of the period, as the report shows it; ``until`` is its end.
        zone: time zone of the days; None for the machine's.
    """
    lines: dict[str, Line] = {}
    total = Line("total")
    for row in rows:
        if row["variant"] == SYNTHETIC:
            continue
        name = _group_of(row, by, zone)
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


def _group_of(row: Mapping[str, Any], by: By, zone: tzinfo | None) -> str:
    """Return the name of a row's line: its day in ``zone``, its end reason (or state, while in
    progress), or the column ``by``, :data:`NONE` if that is empty."""
    if by == "day":
        return str(row["invited_at"].astimezone(zone).date())
    if by == "ending":
        return str(row["why"] or row["state"])
    return str(row[by] or NONE)


def quantile(values: list[float], part: float) -> float | None:
    """Return the ``part`` quantile (0 to 1, nearest rank) of ``values``; None without values."""
    if not values:
        return None
    return round(sorted(values)[ceil(part * len(values)) - 1], 1)


def forecast_of(
    rows: Iterable[Mapping[str, Any]], today: date, zone: tzinfo | None
) -> list[Forecast]:
    """Forecast the cost of this month, one for each currency, from the calls in ``rows``: those of
    the last 28 days and of the month.

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
    """Return a line's values as texts, in the order of :data:`HEADINGS`; waits in ms."""
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
    """Return the five most frequent names, each with its number."""
    return ", ".join(f"{name} {count}" for name, count in counter.most_common(5))


def table_of(report: Report) -> Iterator[str]:
    """Yield the report as lines of text in columns, then the forecast."""
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
    """Yield the report as lines of CSV, without line ends."""
    waits = ("response_p50_ms", "response_p95_ms")
    numbers = ("calls", "answered", "talk_minutes", *waits, "interruptions", "transfers")
    counts = ("cost", "endings", "dispositions")
    rows: list[list[Any]] = [[report.by, *numbers, *counts]]
    for line in (*report.lines, report.total):
        told = line.as_json()
        texts = [";".join(f"{name}={value}" for name, value in told[key].items()) for key in counts]
        rows.append([line.name, *(told[key] for key in numbers), *texts])
    for row in rows:
        yield _csv_line(row).rstrip("\r\n")


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
    """Return the report as an HTML page that prints on A4; ``made`` is the time that it shows."""

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


# ---- one call, one row

EXPORTED = (
    *("id", "invited_at", "direction", "from_number", "to_number", "route", "trunk"),
    *("duration_seconds", "outcome", "why", "ended_by", "sip_code", "disposition", "cost"),
)
"""Columns of a CSV file."""


def row_json(row: Mapping[str, Any]) -> dict[str, Any]:
    """Return a row for JSON: times in ISO 8601, texts without what UTF-8 does not have."""
    return {
        name: value.isoformat() if isinstance(value, datetime) else unicode_in(value)
        for name, value in row.items()
    }


def export_lines(rows: Iterable[Mapping[str, Any]], form: str) -> Iterator[str]:
    """Yield rows as lines with their ends: JSON for ``form`` "jsonl", or else CSV with a header."""
    if form == "jsonl":
        for row in rows:
            yield printable(json.dumps(row_json(row), ensure_ascii=False)) + "\n"
        return
    yield _csv_line(EXPORTED)
    for row in rows:
        told = row_json(row)
        yield _csv_line([told[name] for name in EXPORTED])


def _csv_line(values: Iterable[Any]) -> str:
    """Return a row of CSV with its line end."""
    line = io.StringIO()
    csv.writer(line).writerow(map(_csv_cell, values))
    return line.getvalue()


def _csv_cell(value: Any) -> Any:
    """Return a value for a cell of CSV, with an apostrophe before a text that a spreadsheet would
    run as a formula."""
    text = value if isinstance(value, str) else ""
    # A number's + is no formula, nor is a lone dash.
    run = len(text) > 1 and text[:1] in tuple("=+-@\t\r\n") and not text.removeprefix("+").isdigit()
    return f"'{text}" if run else value


def explanation_lines(row: Mapping[str, Any]) -> Iterator[str]:
    """Yield the lines of ``gateway explain``: why a call was accepted or refused, its session, and
    why it ended. ``row`` has the whole record."""
    record = row.get("record") or {}
    direction = "outbound call" if row["direction"] == "outbound" else "call"
    numbers = f"{row['from_number'] or 'gateway'} to {row['to_number']}"
    yield f"{direction} {row['id']}: {numbers}, INVITE at {_time(row['invited_at'])}"
    lines = record.get("explanation") or ([f"route {row['route']}"] if row["route"] else [])
    last = [line for line in lines[-1:] if line.startswith("ended by ")]
    yield from (f"  {line}" for line in lines[: len(lines) - len(last)])
    yield from _milestones(row, record)
    yield from (f"  {line}" for line in last)
    yield f"  {ending_text(row)}"


def ending_text(row: Mapping[str, Any]) -> str:
    """Return how a call ended, by whom and why, or "in progress" and its state."""
    if not row["why"]:
        return f"in progress: {row['state']}"
    code = f", SIP {row['sip_code']}" if row.get("sip_code") else ""
    detail = f": {row['detail']}" if row.get("detail") else ""
    after = row.get("duration_seconds")
    when = f" after {after:.1f} s" if after is not None else ""
    disposition = f"; disposition {row['disposition']}" if row.get("disposition") else ""
    return f"{row['outcome']}: {row['why']} by {row['ended_by']}{code}{when}{detail}{disposition}"


def _milestones(row: Mapping[str, Any], record: Mapping[str, Any]) -> Iterator[str]:
    """Yield lines about the session, failovers, answer, first audio and transfers of a call."""
    times = record.get("times_ms") or {}
    if times.get("session") is not None:
        yield f"  session {row['session_id'] or '?'} after {times['session']:.0f} ms"
    for lost in record.get("failovers") or ():
        steps = ", ".join(lost["steps"]) or "none"
        yield f"  session lost ({lost['why']}: {lost['detail']}), steps {steps}: {lost['outcome']}"
    if times.get("answered") is not None:
        yield f"  answered after {times['answered']:.0f} ms, {row['codec']} {row['security']}"
    if times.get("first_audio") is not None:
        yield f"  first audio after {times['first_audio']:.0f} ms"
    for one in record.get("transfers") or ():
        code = f", SIP {one['sip_code']}" if one["sip_code"] else ""
        code += f", briefing {one['briefing']}" if one.get("briefing") else ""
        yield f"  transfer to {one['destination']} ({one['mode']}): {one['outcome'] or '?'}{code}"


def _time(value: Any) -> str:
    """Return a time in ISO 8601 with ms; another value as text."""
    return value.isoformat(timespec="milliseconds") if isinstance(value, datetime) else str(value)
