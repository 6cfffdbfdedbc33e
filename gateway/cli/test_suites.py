# SPDX-License-Identifier: GPL-2.0-or-later
"""``gateway test``: run suites of calls, and say which assertions they hold."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import click
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from gateway.api.client import NoAnswerError, socket_of
from gateway.cli import CONFIG, examples
from gateway.cli.develop import local_address, quiet_logs
from gateway.config.sip import SipSettings
from gateway.config.source import ConfigError, read_toml
from gateway.devtools.call_suites import SuiteCall, load_suites
from gateway.devtools.call_suites.result_files import junit, page
from gateway.devtools.call_suites.running import CallResult, RunOptions, run_calls
from gateway.devtools.call_suites.verdicts import Mark, Witness
from gateway.devtools.scripted_caller.run import PhoneError
from gateway.devtools.scripted_caller.sound import SoundError
from gateway.text import printable

REPORT = "index.html"


@click.command(
    "test",
    epilog=examples(
        "gateway test suites/",
        "gateway test suites/reception.toml --junit out.xml --report report/",
        "gateway test suites/ --target sip:pbx.example.com:5060 --parallel 10",
    ),
)
@click.argument("suites", nargs=-1, required=True, type=click.Path(path_type=Path))
@CONFIG
@click.option("--target", default="", metavar="SIP", help="Default: the gateway of --config.")
@click.option("--junit", "xml", type=click.Path(path_type=Path), help="Write JUnit XML.")
@click.option("--report", type=click.Path(path_type=Path), help="Folder for a page and sounds.")
@click.option(
    "--parallel", type=click.IntRange(1, 100), default=4, show_default=True, help="At a time."
)
@click.option("--only", multiple=True, metavar="WORDS", help="Calls with these words in the name.")
@click.option("--local", metavar="HOST:PORT", help="Local address; port 0 is any.")
@click.option("-q", "--quiet", is_flag=True, help="Print failures and the summary only.")
@click.option("-v", "--verbose", is_flag=True, help="Print pjsip's warnings too.")
def command(
    suites: tuple[Path, ...],
    config: Path,
    target: str,
    xml: Path | None,
    report: Path | None,
    parallel: int,
    only: tuple[str, ...],
    local: str | None,
    quiet: bool,
    verbose: bool,
) -> None:
    """Place the calls of SUITES, TOML files or folders of them, and check what they expect.

    Calls go to the running gateway of the configuration, or to --target. Exit 0 when every call
    passed, 1 when one failed, 2 for a mistake in a suite or nobody to call.
    """
    console = Console(highlight=False, soft_wrap=True)
    quiet_logs(verbose)
    try:
        calls = load_suites(suites)
        calls = [one for one in calls if not only or any(word in one.name for word in only)]
        if not calls:
            raise click.UsageError("--only: no call has such a name")
        own, witness = _gateway_of(config)
        calls = [replace(one, target=target or one.target or own) for one in calls]
        if not all(one.target for one in calls):
            raise click.UsageError(f"{config} names no address to call: give --target")
        options = RunOptions(
            parallel=parallel,
            local=local_address(local),
            sounds=report,
            pjsip_log_level=3 if verbose else 0,
        )
        results = _run(console, calls, options, witness, quiet)
    except ConfigError as error:
        click.echo(printable(str(error)), err=True)
        sys.exit(2)
    except (PhoneError, SoundError, ValueError) as error:
        hint = f"; start it: gateway run -c {config}" if "nothing listens" in str(error) else ""
        click.echo(printable(f"cannot call: {error}{hint}"), err=True)
        sys.exit(2)
    _show(console, results, len(calls))
    try:
        _write(results, xml, report)
    except OSError as error:
        raise click.ClickException(f"{error.filename}: {error.strerror}") from None
    if report is not None:
        console.print(f"[dim]report: {report / REPORT}[/]")
    if len(results) < len(calls):
        sys.exit(130)
    sys.exit(1 if any(one.failed for one in results) else 0)


def _gateway_of(config: Path) -> tuple[str, Witness]:
    """Return the SIP address of a configuration's gateway, or "", and the witness of its calls.

    Reads these keys only: the gateway's secrets need not be here. Raises ConfigError.
    """
    if not config.exists():
        return "", Witness(None, f"{config} is not there")
    data = read_toml(config).data
    listen = _at(data, "sip", "listen")
    if listen is None:
        listen = list(SipSettings().listen)
    target = _target_of(listen[0]) if isinstance(listen, list) and listen else ""
    keeps = bool(_at(data, "records", "folder") or _at(data, "records", "database"))
    try:
        return target, Witness(socket_of(config), keeps_records=keeps)
    except NoAnswerError as error:
        return target, Witness(None, str(error))


def _at(data: Any, *keys: str) -> Any:
    for key in keys:
        data = data.get(key) if isinstance(data, dict) else None
    return data


def _target_of(listen: object) -> str:
    """Return the SIP address that reaches a listener of ``sip.listen`` from this machine."""
    transport, _, address = str(listen).partition(":")
    host, _, port = address.rpartition(":")
    if not port.isdigit() or int(port) == 0:
        return ""
    host = {"0.0.0.0": "127.0.0.1", "[::]": "[::1]"}.get(host, host)
    return f"sip:{host}:{port}" + ("" if transport == "udp" else f";transport={transport}")


def _run(
    console: Console, calls: list[SuiteCall], options: RunOptions, witness: Witness, quiet: bool
) -> list[CallResult]:
    """Place the calls of suites, and show progress."""
    lively = console.is_terminal and not quiet
    status = console.status("") if lively else nullcontext()
    going: dict[int, str] = {}
    ended = 0

    def show() -> None:
        if lively:
            lines = [f"{ended} of {len(calls)} calls ended", *going.values()]
            status.update("\n".join(lines))  # type: ignore[union-attr]

    def progress(call: SuiteCall, text: str) -> None:
        going[call.number] = f"  {escape(call.name)}: [dim]{escape(printable(text)) or 'dials'}[/]"
        show()

    def result(one: CallResult) -> None:
        nonlocal ended
        ended += 1
        going.pop(one.call.number, None)
        if one.failed or not quiet:
            mark = "[bold red]✗[/]" if one.failed else "[green]✓[/]"
            name = escape(printable(f"{one.call.suite}: {one.call.name}"))
            console.print(f"{mark} {name} [dim]{one.seconds:.1f} s[/]")
        for verdict in one.verdicts:
            if verdict.mark is not Mark.PASSED and (verdict.mark is Mark.FAILED or not quiet):
                colour = "red" if verdict.mark is Mark.FAILED else "yellow"
                console.print(f"    [{colour}]{escape(printable(str(verdict)))}[/]")
        show()

    with status:
        return asyncio.run(run_calls(calls, options, witness, progress, result))


def _show(console: Console, results: Sequence[CallResult], wanted: int) -> None:
    table = Table("suite", "calls", "passed", "failed", "checks", "not checked", box=None)
    for suite in dict.fromkeys(one.call.suite for one in results):
        mine = [one for one in results if one.call.suite == suite]
        marks = [verdict.mark for one in mine for verdict in one.verdicts]
        bad = sum(one.failed for one in mine)
        row = (len(mine), len(mine) - bad, bad, len(marks), marks.count(Mark.SKIPPED))
        table.add_row(escape(suite), *map(str, row))
    console.print()
    console.print(table)
    if len(results) < wanted:
        console.print(f"interrupted: {wanted - len(results)} calls were not placed")


def _write(results: Sequence[CallResult], xml: Path | None, report: Path | None) -> None:
    if xml is not None:
        xml.parent.mkdir(parents=True, exist_ok=True)
        xml.write_bytes(junit(results))
    if report is not None:
        report.mkdir(parents=True, exist_ok=True)
        (report / REPORT).write_text(page(results, report), "utf-8")
