# SPDX-License-Identifier: GPL-2.0-or-later
"""What a run prints and saves: a line for each level, tables, Markdown and a plot."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from .figures import Level, Spread
from .plot import draw
from .setups import Rate
from .worker import ROOT

DOCS = ROOT / "docs" / "performance.md"
PICTURE = ROOT / "docs" / "performance.png"
BEGIN, END = "<!-- figures: begin -->", "<!-- figures: end -->"

WIDTH = 132
"""Columns of the tables; a narrower terminal wraps."""

Rows = list[list[str]]


def head(console: Console, facts: dict[str, Any], levels: tuple[int, ...]) -> None:
    """What is about to be measured, and on what."""
    for text in _facts(facts):
        console.print(text)
    console.print(f"calls: {', '.join(map(str, levels))}")


def line(console: Console, level: Level) -> None:
    """One level, as soon as it is there."""
    apart = f", {level.conditions}" if level.conditions else ""
    text = (
        f"{level.subject:8} {level.calls:4} calls{apart}  {level.cpu_per_call:.3f} % of a core each"
    )
    if level.subject == "gateway":
        text += (
            f"  up {_three(level.up)}  down {_three(level.down)}"
            f"  spacing p99 {level.spacing.p99} ms  barge-in p99 {level.barge_in.p99} ms"
            f"  underruns {level.underruns.get('bulk', 0)}"
        )
    console.print(f"{text}  (others on the machine {max(level.foreign_cpu, default=0):.0f} %)")
    if level.faults:
        console.print(f"[red]  faults in the gateway's log: {', '.join(level.faults)}[/red]")


def write(
    console: Console,
    output: Path,
    facts: dict[str, Any],
    levels: list[Level],
    rates: list[Rate],
    *,
    docs: bool,
) -> None:
    """Print the tables, save text and plot, and renew the figures in the documentation."""
    tables = _tables(levels, rates)
    plain = Console(file=io.StringIO(), width=WIDTH)
    for out in (console, plain):
        for title, columns, rows in tables:
            table = Table(title=title, title_justify="left")
            for column in columns:
                table.add_column(column, justify="right")
            for row in rows:
                table.add_row(*row)
            out.print(table)
    text = plain.file
    assert isinstance(text, io.StringIO)
    (output / "bench.txt").write_text("\n".join(_facts(facts)) + "\n" + text.getvalue())
    draw(output / "bench.png", _usual(levels))
    markdown = _markdown(facts, tables)
    (output / "bench.md").write_text(markdown)
    if docs:
        renew(DOCS, markdown)
        PICTURE.write_bytes((output / "bench.png").read_bytes())
        console.print(f"Renewed: {DOCS}, {PICTURE}")
    console.print(f"Saved in {output}: bench.txt, bench.json, bench.md, bench.png")


def renew(page: Path, markdown: str) -> None:
    """Put new figures between the two marks of a page. Raises ValueError without the marks."""
    before, begin, rest = page.read_text().partition(BEGIN)
    _old, end, after = rest.partition(END)
    if not begin or not end:
        raise ValueError(f"{page} has no place for figures between {BEGIN} and {END}")
    page.write_text(f"{before}{begin}\n{markdown}{end}{after}")


def _facts(facts: dict[str, Any]) -> list[str]:
    pjsua2 = facts["pjsua2"]
    return [
        f"machine: {facts['processor']}, {facts['memory']}, {facts['system']}",
        f"python {facts['python']}, gateway {facts['commit']}"
        + (f", run at nice {facts['nice']}" if facts["nice"] else ""),
        f"pjsua2: {pjsua2['distribution']} (pjproject {pjsua2['version']}), "
        f"{facts['capacity']} calls, {pjsua2['tls']}",
    ]


def _three(spread: Spread) -> str:
    return f"{spread.p50:.0f}/{spread.p95:.0f}/{spread.p99:.0f}" if spread.count else "-"


def _tables(levels: list[Level], rates: list[Rate]) -> list[tuple[str, list[str], Rows]]:
    usual = _usual(levels)
    gateways = [level for level in usual if level.subject == "gateway"]
    floors = {level.calls: level for level in levels if level.subject == "floor"}
    tables = [
        _cpu(gateways, floors),
        _delays(gateways, floors),
        _resources(gateways, floors),
        _load(gateways),
    ]
    if len(usual) < len(levels):
        tables.append(_conditions(gateways, [level for level in levels if level not in usual]))
    if rates:
        tables.append(_rates(rates))
    return tables


def _usual(levels: list[Level]) -> list[Level]:
    """The floor, and the levels under the conditions of the first."""
    first = next((level.conditions for level in levels if level.subject == "gateway"), "")
    return [level for level in levels if level.subject == "floor" or level.conditions == first]


def _conditions(gateways: list[Level], others: list[Level]) -> tuple[str, list[str], Rows]:
    usual = {level.calls: level for level in gateways}
    rows = []
    for level in others:
        same = usual.get(level.calls)
        rows.append(
            [
                str(level.calls),
                level.conditions,
                f"{level.cpu_per_call:.3f}",
                f"{level.cpu_per_call / same.cpu_per_call:.2f}" if same else "-",
                _three(level.up),
                _three(same.up) if same else "-",
                _three(level.down),
                _three(level.down_steady),
                f"{level.lost_up} / {level.lost_down} of {level.sent_up + level.sent_down}",
                f"{level.underruns.get('bulk', 0)}",
                f"{max(level.foreign_cpu, default=0):.0f}",
            ]
        )
    columns = [
        "calls", "with", "a call", "times the usual", "up p50/95/99", "usual", "down",
        "down, live", "lost up / down", "underruns", "others' CPU %",
    ]  # fmt: skip
    title = "Under other conditions: processor time in percent of a core, delays in ms"
    return title, columns, rows


def _cpu(gateways: list[Level], floors: dict[int, Level]) -> tuple[str, list[str], Rows]:
    names = sorted({name for level in gateways for name in level.threads})
    rows = []
    for level in gateways:
        floor = floors.get(level.calls)
        below = floor.cpu_per_call if floor else 0.0
        per_call = [one.total / level.calls for one in level.cpu]
        rows.append(
            [
                str(level.calls),
                f"{level.cpu_per_call:.3f}",
                f"{min(per_call):.3f}-{max(per_call):.3f}",
                f"{below:.3f}" if floor else "-",
                f"{level.cpu_per_call / below:.1f}" if below else "-",
                *(f"{level.threads.get(name, 0.0):.1f}" for name in names),
            ]
        )
    title = "Processor time: percent of a core for each call, and by thread for all of them"
    return title, ["calls", "a call", "lowest-highest", "floor", "ratio", *names], rows


def _delays(gateways: list[Level], floors: dict[int, Level]) -> tuple[str, list[str], Rows]:
    rows = []
    for level in gateways:
        floor = floors.get(level.calls)
        rows.append(
            [
                str(level.calls),
                _three(level.up),
                _three(level.down),
                _three(level.down_steady),
                _three(floor.down) if floor else "-",
                f"{level.spacing.p50:.1f}/{level.spacing.p99:.1f}",
                f"{level.barge_in.p50:.1f}/{level.barge_in.p99:.1f}",
                f"{level.barge_packets}",
                f"{level.truncation_ms.highest:.0f} ({level.truncations})",
                f"{level.lost_up} / {level.lost_down} of {level.sent_up + level.sent_down}",
            ]
        )
    columns = [
        "calls", "up p50/95/99", "down", "down, live", "pjsip there and back", "spacing p50/99",
        "barge-in p50/99", "packets after", "truncation error", "lost up / down",
    ]  # fmt: skip
    return "Delays in ms, one way, without the 20 ms that a frame takes to be spoken", columns, rows


def _resources(gateways: list[Level], floors: dict[int, Level]) -> tuple[str, list[str], Rows]:
    rows = []
    for level in gateways:
        memory = level.memory
        floor = floors.get(level.calls)
        rows.append(
            [
                str(level.calls),
                f"{memory['idle_rss_kib'] / 1024:.0f}",
                f"{memory['rss_kib'] / 1024:.0f}",
                f"{memory['rss_per_call_kib']:.0f}",
                f"{memory['pss_per_call_kib']:.0f}",
                f"{floor.memory['rss_per_call_kib']:.0f}" if floor else "-",
                f"{memory['descriptors_idle']:.0f} + "
                f"{(memory['descriptors'] - memory['descriptors_idle']) / level.calls:.1f} a call",
                f"{memory['threads']:.0f}",
                f"{level.underruns.get('bulk', 0)}",
                f"{level.underruns.get('frames_dropped', 0)}",
            ]
        )
    columns = [
        "calls", "idle MiB", "MiB", "RSS KiB a call", "PSS KiB a call", "floor RSS", "descriptors",
        "threads", "underruns", "frames dropped",
    ]  # fmt: skip
    return "Memory, descriptors, threads; what the gateway itself counted", columns, rows


def _load(gateways: list[Level]) -> tuple[str, list[str], Rows]:
    rows = [
        [
            str(level.calls),
            f"{level.messages_up:.1f} / {level.messages_down:.1f}",
            _three(level.setup),
            " ".join(f"{name} {value:.0f}" for name, value in sorted(level.helpers.items())),
            " ".join(f"{name} {value:.1f}" for name, value in sorted(level.tester_late.items())),
            f"{max(level.foreign_cpu, default=0):.0f}",
            f"{level.load_average:.1f}",
        ]
        for level in gateways
    ]
    columns = [
        "calls", "messages/s up / down", "set-up ms", "load's own CPU %", "its clocks late p99 ms",
        "others' CPU %", "load average",
    ]  # fmt: skip
    return "The load, and what else ran", columns, rows


def _rates(rates: list[Rate]) -> tuple[str, list[str], Rows]:
    rows = [
        [
            str(rate.per_second),
            f"{rate.reached:.0f}",
            str(rate.calls),
            str(rate.failed),
            _three(rate.setup),
            f"{rate.cpu_ms_per_call:.1f}",
        ]
        for rate in rates
    ]
    columns = ["calls/s", "reached", "calls", "failed", "INVITE to 200 ms", "CPU ms a call"]
    return "Brief calls, each with its own session: INVITE to 200, p50/95/99", columns, rows


def _markdown(facts: dict[str, Any], tables: list[tuple[str, list[str], Rows]]) -> str:
    parts = ["\n".join(f"- {text}" for text in _facts(facts)) + "\n"]
    for title, columns, rows in tables:
        lines = [
            f"**{title}**\n",
            "| " + " | ".join(columns) + " |",
            "|" + "--:|" * len(columns),
            *("| " + " | ".join(row) + " |" for row in rows),
        ]
        parts.append("\n".join(lines) + "\n")
    return "\n" + "\n".join(parts) + "\n"
