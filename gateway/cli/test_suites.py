# SPDX-License-Identifier: GPL-2.0-or-later
"""``gateway test``: run suites of calls, and show the results: in the terminal, as JUnit XML for a
CI, as one HTML page for people."""

from __future__ import annotations

import asyncio
import html
import os
import re
import sys
from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any
from urllib.parse import quote
from xml.etree import ElementTree as ET

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
from gateway.devtools.call_suites.running import CallResult, RunOptions, run_calls
from gateway.devtools.call_suites.verdicts import CallLookup, Mark, Said, Verdict
from gateway.devtools.scripted_caller import Span
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
        own, lookup = _gateway_of(config)
        calls = [replace(one, target=target or one.target or own) for one in calls]
        if not all(one.target for one in calls):
            raise click.UsageError(f"{config} names no address to call: give --target")
        options = RunOptions(
            parallel=parallel,
            local=local_address(local),
            sounds=report,
            pjsip_log_level=3 if verbose else 0,
        )
        results = _run(console, calls, options, lookup, quiet)
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


def _gateway_of(config: Path) -> tuple[str, CallLookup]:
    """Return the SIP address of a configuration's gateway, or "", and the lookup of its calls.

    Reads these keys only: the gateway's secrets need not be here. Raises ConfigError.
    """
    if not config.exists():
        return "", CallLookup(None, f"{config} is not there")
    data = read_toml(config).data
    listen = _at(data, "sip", "listen")
    if listen is None:
        listen = list(SipSettings().listen)
    target = _target_of(listen[0]) if isinstance(listen, list) and listen else ""
    keeps = bool(_at(data, "records", "folder") or _at(data, "records", "database"))
    try:
        return target, CallLookup(socket_of(config), keeps_records=keeps)
    except NoAnswerError as error:
        return target, CallLookup(None, str(error))


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
    console: Console, calls: list[SuiteCall], options: RunOptions, lookup: CallLookup, quiet: bool
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
        return asyncio.run(run_calls(calls, options, lookup, progress, result))


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


_NOT_IN_XML = re.compile("[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")
"""Characters that XML 1.0 has no way to write (section 2.2)."""


def junit(results: Sequence[CallResult]) -> bytes:
    """Return results as JUnit XML: a ``testsuite`` for each file, a ``testcase`` for each call."""
    root = ET.Element("testsuites")
    _count(root, results)
    for name in dict.fromkeys(one.call.suite for one in results):
        mine = [one for one in results if one.call.suite == name]
        suite = ET.SubElement(root, "testsuite", name=_xml(name))
        suite.set("timestamp", min(one.report.started_at for one in mine).isoformat("T", "seconds"))
        _count(suite, mine)
        for one in mine:
            _case(suite, one)
    ET.indent(root)
    text: bytes = ET.tostring(root, encoding="utf-8", xml_declaration=True)
    return text


def _count(element: ET.Element, results: Sequence[CallResult]) -> None:
    element.set("tests", str(len(results)))
    element.set("failures", str(sum(one.failed for one in results)))
    element.set("errors", "0")
    element.set("skipped", "0")
    element.set("time", f"{sum(one.seconds for one in results):.3f}")


def _case(suite: ET.Element, one: CallResult) -> None:
    case = ET.SubElement(suite, "testcase", name=_xml(one.call.name))
    case.set("classname", _xml(one.call.suite))
    case.set("time", f"{one.seconds:.3f}")
    failed = [str(verdict) for verdict in one.verdicts if verdict.mark is Mark.FAILED]
    if failed:
        failure = ET.SubElement(case, "failure", type="assertion", message=_xml(failed[0]))
        failure.text = _xml("\n".join(failed))
    lines = [f"{verdict.mark}  {verdict}" for verdict in one.verdicts]
    lines += [f"{said.who}: {said.text}" for said in one.evidence.both_sides()]
    if one.sound is not None:
        lines.append(f"sound: {one.sound}")
    ET.SubElement(case, "system-out").text = _xml("\n".join(lines))


def _xml(text: str) -> str:
    return _NOT_IN_XML.sub("�", text)


_STYLE = """
body{font:15px/1.45 system-ui,sans-serif;margin:2rem auto;max-width:60rem;padding:0 1rem;
color:#1c1c1c;background:#fff}h1{font-size:1.4rem}h2{font-size:1.1rem;margin:0}
table{border-collapse:collapse;width:100%}
td,th{text-align:left;overflow-wrap:anywhere;padding:.2rem .6rem .2rem 0;vertical-align:top}
th{font-weight:600}td.mark+td,.t+td{white-space:nowrap}td.mark+td+td{min-width:10rem}
section{border-top:1px solid #ccc;padding:1rem 0}.t{color:#555;white-space:nowrap;text-align:right;
font-variant-numeric:tabular-nums}.passed{color:#176317}.failed{color:#a11313}.skipped{color:#6b5500}
.mark{font-weight:600;white-space:nowrap}audio{width:100%;margin:.5rem 0}svg{width:100%;height:46px}
summary{cursor:pointer;padding:.3rem 0}
"""


def page(results: Sequence[CallResult], folder: Path) -> str:
    """Return an HTML page with all results, for a file in ``folder``.

    Recordings are linked relative to ``folder``; nothing is loaded from elsewhere.
    """
    failed = sum(one.failed for one in results)
    rows = "".join(
        f'<tr><td>{_mark(one.failed)}</td><td><a href="#call-{one.call.number}">'
        f"{html.escape(one.call.suite)}: {html.escape(one.call.name)}</a></td>"
        f'<td class="t">{one.seconds:.1f} s</td></tr>'
        for one in results
    )
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        '<meta http-equiv="Content-Security-Policy" content="default-src \'none\'; '
        "style-src 'unsafe-inline'; media-src 'self' file:\">"
        f"<title>{failed} of {len(results)} calls failed</title><style>{_STYLE}</style></head>"
        "<body>"
        f"<h1>{len(results) - failed} of {len(results)} calls passed</h1><table>{rows}</table>"
        f"{''.join(_section(one, folder) for one in results)}</body></html>\n"
    )


def _section(one: CallResult, folder: Path) -> str:
    report = one.report
    rows = "".join(_verdict_row(verdict) for verdict in one.verdicts)
    sound = ""
    if one.sound is not None:
        source = quote(os.path.relpath(one.sound, folder))
        sound = (
            f'<audio controls preload="metadata" src="{source}" '
            f'aria-label="Recording of {html.escape(one.call.name)}"></audio>'
            "<p>Caller left, and above in the picture; agent right, and below: "
            f'<a href="{source}">{html.escape(one.sound.name)}</a></p>'
        )
    who = f"{html.escape(one.call.caller_id)} to {html.escape(report.uri)}"
    facts = f"{who}, {html.escape(report.codec or 'no media')}, {one.seconds:.1f} s"
    return (
        f'<section id="call-{one.call.number}"><h2>{_mark(one.failed)} '
        f"{html.escape(one.call.suite)}: {html.escape(one.call.name)}</h2><p>{facts}</p>"
        f"<table>{rows}</table>{sound}{_lanes(one)}"
        f"<details{' open' if one.failed else ''}><summary>Steps</summary>"
        f"<table>{''.join(_moments(one))}</table></details>{_transcript(one)}</section>"
    )


def _mark(failed: bool) -> str:
    return f'<span class="mark {"failed" if failed else "passed"}">{"✗" if failed else "✓"}</span>'


def _verdict_row(one: Verdict) -> str:
    return (
        f'<tr><td class="mark {one.mark}">{one.mark}</td><td>{html.escape(one.name)}</td>'
        f"<td>{html.escape(one.wanted)}</td><td>{html.escape(one.found)}</td></tr>"
    )


def _moments(one: CallResult) -> Iterator[str]:
    """Yield table rows of SIP messages, steps and sound, by time since the INVITE."""
    report = one.report
    media = report.media_ms or report.answered_ms or 0.0
    rows: list[tuple[float, str, str]] = [(0.0, "caller", f"INVITE {report.uri}")]
    for at, text in ((report.ringing_ms, "ringing"), (report.answered_ms, "200 OK")):
        rows += [] if at is None else [(at, "agent", text)]
    for step in report.steps:
        late = "" if step.done else ", not done"
        rows.append((step.began_ms, "caller", f"{step.step} ({step.took_ms:.0f} ms{late})"))
    for span in report.heard:
        rows.append((media + span.from_ms, "agent", f"heard for {span.to_ms - span.from_ms} ms"))
    for target in report.refers:
        rows.append((report.ended_ms or 0.0, "agent", f"REFER to {target}"))
    if report.ended_ms is not None and report.end is not None:
        end = report.end
        who = "caller" if end.by == "caller" else "agent"
        rows.append((report.ended_ms, who, f"{end.method or 'end'}: {end.code} {end.reason}"))
    for at, who, text in sorted(rows, key=lambda row: row[0]):
        yield (
            f'<tr><td class="t">{at / 1000:.2f} s</td><td>{who}</td>'
            f"<td>{html.escape(text)}</td></tr>"
        )


def _lanes(one: CallResult) -> str:
    """Return an SVG of when each side was heard: caller above, agent below."""
    length = one.report.recorded_ms
    if not length:
        return ""

    def bars(spans: Sequence[Span], top: int, colour: str) -> str:
        return "".join(
            f'<rect x="{1000 * span.from_ms / length:.1f}" y="{top}" height="18" fill="{colour}" '
            f'width="{max(1.0, 1000 * (span.to_ms - span.from_ms) / length):.1f}"/>'
            for span in spans
        )

    return (
        '<svg viewBox="0 0 1000 46" preserveAspectRatio="none" role="img" aria-label="Who spoke '
        f'when, {length / 1000:.1f} s: caller above, agent below"><rect width="1000" height="46" '
        f'fill="#f2f2f2"/>{bars(one.report.spoken, 3, "#2a6fb0")}'
        f"{bars(one.report.heard, 25, '#b0602a')}</svg>"
    )


def _transcript(one: CallResult) -> str:
    said: Sequence[Said] = one.evidence.transcript or ()
    if not said:
        return f"<p>No transcript: {html.escape(one.evidence.no_words)}</p>"
    rows = "".join(
        f'<tr><td class="t">{"" if line.at_ms is None else f"{line.at_ms / 1000:.1f} s"}</td>'
        f"<td>{html.escape(line.who)}</td><td>{html.escape(line.text)}</td></tr>"
        for line in said
    )
    return (
        f"<details open><summary>Transcript, by {html.escape(one.evidence.words_by)}</summary>"
        f"<table>{rows}</table></details>"
    )
