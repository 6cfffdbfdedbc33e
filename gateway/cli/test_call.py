# SPDX-License-Identifier: GPL-2.0-or-later
"""``gateway test-call``: place scripted calls."""

from __future__ import annotations

import sys
from pathlib import Path

import click
import structlog
from rich.console import Console
from rich.markup import escape

from gateway.audio.g711 import Codec
from gateway.config.source import ConfigError
from gateway.devtools.scripted_caller.run import CallOptions, PhoneError, place_calls
from gateway.devtools.scripted_caller.script import (
    CallReport,
    Digits,
    Outcome,
    RunReport,
    Script,
    load_script,
    simple_script,
)
from gateway.devtools.scripted_caller.sound import SoundError

_EPILOG = """
\b
Example:
  gateway test-call sip:100@127.0.0.1:5060 --play hello.wav --record heard.wav --dtmf 42#

\b
Exit status: 0 as scripted; 2 wrong usage or script; 3 refused (the SIP code is shown);
4 no answer; 5 a step missed its deadline; 6 the call was lost; 7 it could not be placed;
130 interrupted.
"""


@click.command("test-call", epilog=_EPILOG)
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
def command(
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
    _quiet_logs(verbose)
    if script is not None and (play is not None or dtmf):
        raise click.UsageError("--script has its own steps; leave out --play and --dtmf")
    options = CallOptions(
        codecs=tuple(dict.fromkeys(Codec(name.upper()) for name in codecs)) or tuple(Codec),
        local=_address(local),
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
        steps = _script(script, play, dtmf, seconds, answer_within)
        run = place_calls(uri, steps, options, progress)
    except ConfigError as error:
        click.echo(str(error), err=True)
        sys.exit(2)
    except (ValueError, SoundError) as error:
        raise click.UsageError(str(error)) from None
    except PhoneError as error:
        click.echo(f"cannot call: {error}", err=True)
        sys.exit(Outcome.FAILED.exit_code)
    _tell(console, run, many)
    if report is not None:
        _write_report(report, run, many)
    sys.exit(run.exit_code)


def _script(
    file: Path | None, play: Path | None, keys: str, seconds: float, answer_within: float
) -> Script:
    if file is not None:
        return load_script(file)
    try:
        if keys:
            Digits(keys=keys)
    except ValueError:
        raise click.UsageError(f"--dtmf {keys}: keys are 0-9 * # A-D, at most 64") from None
    return simple_script(play, keys, seconds, answer_within)


def _address(text: str | None) -> tuple[str, int] | None:
    if text is None:
        return None
    host, colon, port = text.rpartition(":")
    if not colon or not port.isdigit() or int(port) > 65535:
        raise click.UsageError(f"--local {text}: write HOST:PORT, as 127.0.0.1:0")
    return host.strip("[]"), int(port)


def _tell(console: Console, run: RunReport, many: bool) -> None:
    if many:
        console.print(f"{run.completed} of {len(run.calls)} calls as scripted")
        return
    call = run.calls[0]
    colour = "green" if call.outcome is Outcome.COMPLETED else "red"
    console.print(f"[{colour}]{escape(call.message)}[/]; {_figures(call)}")


def _figures(call: CallReport) -> str:
    if call.answered_ms is None or call.ended_ms is None:
        return "nobody talked"
    heard = sum(span.to_ms - span.from_ms for span in call.heard) / 1000
    return (
        f"{call.codec}, answered after {call.answered_ms:.0f} ms, "
        f"{(call.ended_ms - call.answered_ms) / 1000:.1f} s long, {heard:.1f} s of sound heard"
    )


def _write_report(file: Path, run: RunReport, many: bool) -> None:
    text = (run if many else run.calls[0]).model_dump_json(indent=2) + "\n"
    if str(file) == "-":
        click.echo(text, nl=False)
        return
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text, "utf-8")
    except OSError as error:
        raise click.ClickException(f"{file}: cannot be written: {error.strerror}") from None


def _quiet_logs(verbose: bool) -> None:
    structlog.configure(
        wrapper_class=structlog.make_filtering_bound_logger("warning" if verbose else "error"),
        logger_factory=structlog.PrintLoggerFactory(sys.stderr),
    )
