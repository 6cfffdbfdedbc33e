# SPDX-License-Identifier: GPL-2.0-or-later
"""``gateway events``: show the event log of a session."""

from __future__ import annotations

import sys
from collections.abc import Iterable
from pathlib import Path

import click
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from gateway.cli.options import examples
from gateway.devtools import event_text
from gateway.devtools.event_viewer import (
    AGENT,
    CALLER,
    ERROR,
    GATEWAY,
    SERVER,
    Entry,
    EventLogError,
    Line,
    read_lines,
    tell,
)

_STYLES = {
    CALLER: event_text.CALLER,
    AGENT: event_text.AGENT,
    GATEWAY: "green",
    SERVER: "white",
    ERROR: event_text.RED,
}


@click.command(
    "events", epilog=examples("gateway events records/2026-11-28/7f3a.events.jsonl --errors")
)
@click.argument("file", type=click.Path(path_type=Path, dir_okay=False))
@click.option("--raw", is_flag=True, help="Print each event unchanged, one per line.")
@click.option("--errors", is_flag=True, help="Show errors only.")
def command(file: Path, raw: bool, errors: bool) -> None:
    """Show the event log FILE of a call's session as a conversation."""
    console = Console(highlight=False, soft_wrap=True)
    try:
        lines = list(read_lines(file))
    except EventLogError as error:
        click.echo(str(error), err=True)
        sys.exit(2)
    if raw:
        for line in lines:
            if not errors or _is_trouble(line):
                console.print(line.text, markup=False)
        return
    entries = sorted(tell(lines), key=lambda entry: entry.t_ms)
    if errors:
        entries = [entry for entry in entries if entry.trouble]
        if not entries:
            console.print("[green]nothing went wrong[/]")
    console.print(table(entries))


def table(entries: Iterable[Entry]) -> Table:
    """The conversation for a rich console."""
    grid = Table.grid(padding=(0, 2))
    grid.add_column(justify="right", style="dim", no_wrap=True)
    grid.add_column(no_wrap=True)
    grid.add_column(ratio=1)
    for entry in entries:
        style = _STYLES["error"] if entry.trouble else _STYLES[entry.who]
        detail = f"  [dim]{escape(entry.detail)}[/]" if entry.detail else ""
        text = escape(entry.text)
        grid.add_row(
            event_text.clock(entry.t_ms), f"[{style}]{entry.who}[/]", f"[{style}]{text}[/]{detail}"
        )
    return grid


def _is_trouble(line: Line) -> bool:
    # Alone, the begin of a response has no end.
    return line.type != "response.created" and any(entry.trouble for entry in tell([line]))
