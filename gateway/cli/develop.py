# SPDX-License-Identifier: GPL-2.0-or-later
"""``gateway demo`` and ``test-call``; ``timeline`` and ``events`` show what is kept of a call."""

from __future__ import annotations

import asyncio
import importlib.util
import sys
import time
from collections.abc import Iterable
from pathlib import Path

import click
import structlog
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from gateway.audio import G711, Codec
from gateway.cli import examples
from gateway.config.source import ConfigError
from gateway.devtools.demo import LIVE, DemoError, Result, run
from gateway.devtools.demo_scenario import REALTIME, Check, Stage
from gateway.devtools.event_lines import (
    AGENT,
    CALLER,
    ERROR,
    GATEWAY,
    SERVER,
    Entry,
    EventLogError,
    Line,
    read_lines,
)
from gateway.devtools.event_viewer import entries_of
from gateway.devtools.scripted_caller import (
    CallReport,
    Digits,
    Outcome,
    RunReport,
    Script,
    load_script,
    simple_script,
)
from gateway.devtools.scripted_caller.run import CallOptions, PhoneError, place_calls
from gateway.devtools.scripted_caller.sound import SoundError
from gateway.devtools.timeline import (
    Record,
    RecordError,
    Sound,
    SoundFileError,
    read_record,
    read_sound,
    story_of,
)
from gateway.devtools.timeline import as_text as timeline_text
from gateway.devtools.timeline.as_text import render


@click.command("timeline", epilog=examples("gateway timeline record.json --png call.png"))
@click.argument("record", type=click.Path(path_type=Path, dir_okay=False))
@click.option("--png", type=click.Path(path_type=Path, dir_okay=False), help="Write a picture.")
@click.option(
    "--wav",
    type=click.Path(path_type=Path, dir_okay=False),
    help="Stereo recording of the call, caller left.",
)
@click.option(
    "--wav-at",
    type=float,
    metavar="MS",
    help="Where the recording begins, ms after the INVITE. Default: when the call was confirmed.",
)
def timeline(record: Path, png: Path | None, wav: Path | None, wav_at: float | None) -> None:
    """Show a call's RECORD: speech of both sides, interruptions, DTMF, delays, ending.

    RECORD is the file of records.folder, or a black box, of which the SIP messages of both legs and
    lost RTP are shown, too.
    """
    from gateway.devtools.timeline.black_box import is_black_box, read_black_box, render_wire

    wire = None
    try:
        if is_black_box(record) or ".blackbox.jsonl" in record.name:
            wire = read_black_box(record)
        call = read_record(record) if wire is None else wire.record
        sound = None if wav is None else read_sound(wav, _begin(call, wav_at))
    except (RecordError, SoundFileError) as error:
        click.echo(str(error), err=True)
        sys.exit(2)
    story = story_of(call)
    console = Console(highlight=False)
    console.print(render(story, sound))
    if wire is not None:
        console.print(render_wire(wire))
    if png is not None:
        _draw(png, call, sound)
        console.print(f"[dim]picture: {png}[/]")


def _begin(record: Record, wav_at: float | None) -> float:
    if wav_at is not None:
        return wav_at
    return record.times_ms.confirmed or record.times_ms.answered or 0.0


def _draw(png: Path, record: Record, sound: Sound | None) -> None:
    try:
        from gateway.devtools.timeline.picture import draw
    except ImportError as error:
        raise click.ClickException(f"a picture needs the package matplotlib: {error}") from None
    try:
        draw(story_of(record), png, sound)
    except OSError as error:
        raise click.ClickException(f"{png}: cannot be written: {error.strerror}") from None


_STYLES = {
    CALLER: timeline_text.CALLER,
    AGENT: timeline_text.AGENT,
    GATEWAY: "green",
    SERVER: "white",
    ERROR: timeline_text.RED,
}


@click.command(
    "events", epilog=examples("gateway events records/2026-11-28/7f3a.events.jsonl --errors")
)
@click.argument("file", type=click.Path(path_type=Path, dir_okay=False))
@click.option("--raw", is_flag=True, help="Print each event unchanged, one per line.")
@click.option("--errors", is_flag=True, help="Show errors only.")
def events(file: Path, raw: bool, errors: bool) -> None:
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
    entries = sorted(entries_of(lines), key=lambda entry: entry.t_ms)
    if errors:
        entries = [entry for entry in entries if entry.trouble]
        if not entries:
            console.print("[green]nothing went wrong[/]")
    console.print(table(entries))


def table(entries: Iterable[Entry]) -> Table:
    """Return the events of a session as a table: time, speaker, text."""
    grid = Table.grid(padding=(0, 2))
    grid.add_column(justify="right", style="dim", no_wrap=True)
    grid.add_column(no_wrap=True)
    grid.add_column(ratio=1)
    for entry in entries:
        style = _STYLES["error"] if entry.trouble else _STYLES[entry.who]
        detail = f"  [dim]{escape(entry.detail)}[/]" if entry.detail else ""
        text = escape(entry.text)
        grid.add_row(
            timeline_text.clock(entry.t_ms),
            f"[{style}]{entry.who}[/]",
            f"[{style}]{text}[/]{detail}",
        )
    return grid


def _is_trouble(line: Line) -> bool:
    # Alone, the begin of a response has no end.
    return line.type != "response.created" and any(entry.trouble for entry in entries_of([line]))


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
@click.option("--live", is_flag=True, help="With a Live session in place of a Realtime one.")
def demo(output: Path, live: bool) -> None:
    """Run emulator, gateway and one scripted call on this machine; print a timeline.

    The caller listens to the greeting, asks a question, interrupts the response and sends DTMF,
    over real SIP and RTP. Exit 0 only if every check passed.
    """
    console = Console(highlight=False)
    if not console.is_terminal:
        console = Console(highlight=False, width=PLAIN_WIDTH)
    _needs_packages()
    stage = Stage(output, LIVE if live else REALTIME)
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
    """Print timeline, checks and files of the demo's call."""
    from gateway.devtools.timeline.picture import draw  # a second of imports, once the call is over

    story = story_of(result.record)
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


_TEST_CALL_EPILOG = """
\b
Example:
  gateway test-call sip:100@127.0.0.1:5060 --play hello.wav --record heard.wav --dtmf 42#

\b
Exit status: 0 as scripted; 2 wrong usage or script; 3 refused (the SIP code is shown);
4 no answer; 5 a step missed its deadline; 6 the call was lost; 7 it could not be placed;
130 interrupted.
"""


@click.command("test-call", epilog=_TEST_CALL_EPILOG)
@click.argument("uri")
@click.option("--play", type=click.Path(path_type=Path), help="WAV, .ulaw or .alaw to play.")
@click.option("--record", type=click.Path(path_type=Path), help="Write what is heard.")
@click.option(
    "--record-both", type=click.Path(path_type=Path), help="Stereo WAV: caller left, heard right."
)
@click.option("--dtmf", default="", metavar="KEYS", help="Keys to press after playing, as 42#.")
@click.option(
    "--seconds",
    type=click.FloatRange(0.02, 3600),
    default=10.0,
    show_default=True,
    help="Hang up this long after the answer.",
)
@click.option(
    "--answer-within",
    type=click.FloatRange(0.1, 600),
    default=30.0,
    show_default=True,
    help="Seconds to wait for an answer.",
)
@click.option(
    "--script", type=click.Path(path_type=Path), help="TOML steps instead of the options above."
)
@click.option("--report", type=click.Path(path_type=Path), help="Write a JSON report (- for out).")
@click.option(
    "--codec",
    "codecs",
    multiple=True,
    type=click.Choice([codec.value for codec in Codec], case_sensitive=False),
    help="Codec to offer first. Default: PCMU.",
)
@click.option("--local", metavar="HOST:PORT", help="Local address; port 0 is any.")
@click.option(
    "--from",
    "user",
    default="caller",
    show_default=True,
    help="Caller's user name.",
)
@click.option("--repeat", type=click.IntRange(1, 1_000_000), default=1, help="Number of calls.")
@click.option("--parallel", type=click.IntRange(1, 10_000), default=1, help="Simultaneous calls.")
@click.option("-q", "--quiet", is_flag=True, help="Print errors only.")
@click.option("-v", "--verbose", is_flag=True, help="Print pjsip's warnings too.")
def test_call(
    uri: str,
    play: Path | None,
    record: Path | None,
    record_both: Path | None,
    dtmf: str,
    seconds: float,
    answer_within: float,
    script: Path | None,
    report: Path | None,
    codecs: tuple[str, ...],
    local: str | None,
    user: str,
    repeat: int,
    parallel: int,
    quiet: bool,
    verbose: bool,
) -> None:
    """Place a scripted call to URI, such as sip:100@127.0.0.1:5060.

    Plays a file, sends DTMF, listens and hangs up; the exit status tells the outcome.
    """
    console = Console(stderr=True, quiet=quiet, highlight=False)
    quiet_logs(verbose)
    if script is not None and (play is not None or dtmf):
        raise click.UsageError("--script has its own steps; leave out --play and --dtmf")
    options = CallOptions(
        codecs=tuple(dict.fromkeys(Codec(name) for name in codecs)) or G711,
        local=local_address(local),
        user=user,
        record=record,
        record_both=record_both,
        repeat=repeat,
        parallel=parallel,
        pjsip_log_level=3 if verbose else 0,
    )
    many = repeat > 1

    def progress(number: int, text: str) -> None:
        lead = f"[dim]call {number}[/] " if many and number else ""
        console.print(f"{lead}{escape(text)}")

    try:
        steps = _steps_of(script, play, dtmf, seconds, answer_within)
        run = asyncio.run(place_calls(uri, steps, options, progress))
    except ConfigError as error:
        click.echo(str(error), err=True)
        sys.exit(2)
    except (ValueError, SoundError) as error:
        raise click.UsageError(str(error)) from None
    except PhoneError as error:
        click.echo(f"cannot call: {error}", err=True)
        sys.exit(Outcome.FAILED.exit_code)
    _tell_outcome(console, run, many)
    if report is not None:
        _write_report(report, run, many)
    sys.exit(run.exit_code)


def _steps_of(
    file: Path | None, play: Path | None, keys: str, seconds: float, answer_within: float
) -> Script:
    """Return the script of a file, or one made of the options."""
    if file is not None:
        return load_script(file)
    try:
        if keys:
            Digits(keys=keys)
    except ValueError:
        raise click.UsageError(f"--dtmf {keys}: keys are 0-9 * # A-D, at most 64") from None
    return simple_script(play, keys, seconds, answer_within)


def local_address(text: str | None) -> tuple[str, int] | None:
    """Parse ``--local HOST:PORT``; None for None. Raises click.UsageError."""
    if text is None:
        return None
    host, colon, port = text.rpartition(":")
    if not colon or not port.isdigit() or int(port) > 65535:
        raise click.UsageError(f"--local {text}: write HOST:PORT, as 127.0.0.1:0")
    return host.strip("[]"), int(port)


def _tell_outcome(console: Console, run: RunReport, many: bool) -> None:
    """Print how the calls went."""
    if many:
        console.print(f"{run.completed} of {len(run.calls)} calls as scripted")
        return
    call = run.calls[0]
    colour = "green" if call.outcome is Outcome.COMPLETED else "red"
    console.print(f"[{colour}]{escape(call.message)}[/]; {_figures(call)}")


def _figures(call: CallReport) -> str:
    """Return a call's codec, delay of the answer and duration as text."""
    if call.answered_ms is None or call.ended_ms is None:
        return "nobody talked"
    heard = sum(span.to_ms - span.from_ms for span in call.heard) / 1000
    return (
        f"{call.codec}, answered after {call.answered_ms:.0f} ms, "
        f"{(call.ended_ms - call.answered_ms) / 1000:.1f} s long, {heard:.1f} s of sound heard"
    )


def _write_report(file: Path, run: RunReport, many: bool) -> None:
    """Write the report as JSON; ``-`` is standard output."""
    text = (run if many else run.calls[0]).model_dump_json(indent=2) + "\n"
    if str(file) == "-":
        click.echo(text, nl=False)
        return
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text, "utf-8")
    except OSError as error:
        raise click.ClickException(f"{file}: cannot be written: {error.strerror}") from None


def quiet_logs(verbose: bool) -> None:
    """Log errors only, on standard error; warnings too where ``verbose``."""
    structlog.configure(
        wrapper_class=structlog.make_filtering_bound_logger("warning" if verbose else "error"),
        logger_factory=structlog.PrintLoggerFactory(sys.stderr),
    )
