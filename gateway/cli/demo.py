# SPDX-License-Identifier: GPL-2.0-or-later
"""``gateway demo``: one scripted call through a real gateway, with checks."""

from __future__ import annotations

import importlib.util
import sys
import time
from pathlib import Path

import click
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from gateway.cli import examples
from gateway.devtools.demo_processes import DemoError, Result, run
from gateway.devtools.demo_scenario import Check, Stage
from gateway.devtools.timeline.story import read_sound, tell
from gateway.devtools.timeline.text import render

PLAIN_WIDTH = 110
"""Columns where no terminal says how many it has: a log is read in wide windows."""


@click.command("demo", epilog=examples("gateway demo --output demo-output"))
@click.option(
    "--output",
    type=click.Path(path_type=Path, file_okay=False),
    default=Path("demo-output"),
    show_default=True,
    help="Folder for record, log, WAV and picture.",
)
def command(output: Path) -> None:
    """Run emulator, gateway and one scripted call on this machine; print a timeline.

    The caller listens to the greeting, asks a question, interrupts the response and sends DTMF,
    over real SIP and RTP. Exit 0 only if every check passed.
    """
    console = Console(highlight=False)
    if not console.is_terminal:
        console = Console(highlight=False, width=PLAIN_WIDTH)
    _needs_packages()
    stage = Stage(output)
    began = time.monotonic()
    with console.status("starts the emulator") as status:

        def progress(text: str) -> None:
            console.print(f"[dim]{time.monotonic() - began:5.1f} s[/]  {escape(text)}")
            status.update(escape(text))

        try:
            stage.prepare()
            result = run(stage, progress)
        except KeyboardInterrupt:
            console.print("interrupted; every process has been ended")
            sys.exit(130)
        except (DemoError, OSError) as error:
            console.print(f"[bold red]The demo failed:[/] {escape(str(error))}")
            sys.exit(1)
    _show(console, stage, result)
    if not result.passed:
        failed = ", ".join(check.name for check in result.checks if not check.passed)
        console.print(f"[bold red]Failed:[/] {escape(failed)}")
        sys.exit(1)
    console.print("[bold green]The call went as scripted.[/]")


def _needs_packages() -> None:
    for package in ("matplotlib", "soxr", "webrtcvad"):
        if importlib.util.find_spec(package) is None:
            raise click.ClickException(
                f"the demo needs the package {package}: install the extra devtools"
            )


def _show(console: Console, stage: Stage, result: Result) -> None:
    from gateway.devtools.timeline.picture import draw  # a second of imports, once the call is over

    story = tell(result.record)
    sound = read_sound(stage.recording, result.recording_at_ms)
    console.print()
    console.print(render(story, sound))
    with stage.text.open("w", encoding="utf-8") as file:
        Console(file=file, width=PLAIN_WIDTH, highlight=False).print(render(story, sound))
    draw(story, stage.picture, sound)
    console.print()
    console.print(_checks(result.checks))
    console.print()
    files = Table.grid(padding=(0, 2))
    for path, what in (
        (stage.picture, "the call as a picture"),
        (stage.recording, "what was said (left) and heard (right)"),
        (stage.record, "the gateway's record of the call"),
        (stage.folder / "gateway.log", "its log; emulator.log and caller.log beside it"),
        (stage.config, "what all three were started with"),
    ):
        files.add_row(str(path), f"[dim]{what}[/]")
    console.print(files)
    console.print(
        "[dim]The agent was the emulator: no model is behind it. README.md has the one line for "
        "the live service.[/]"
    )


def _checks(checks: list[Check]) -> Table:
    table = Table.grid(padding=(0, 1))
    for check in checks:
        mark = "[green]✓[/]" if check.passed else "[bold red]✗[/]"
        table.add_row(mark, escape(check.name), f"[dim]{escape(check.found)}[/]")
    return table
