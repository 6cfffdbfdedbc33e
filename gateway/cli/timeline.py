# SPDX-License-Identifier: GPL-2.0-or-later
"""``gateway timeline``: the record of a call as text and picture."""

from __future__ import annotations

import sys
from pathlib import Path

import click
from rich.console import Console

from gateway.cli.options import examples
from gateway.devtools.timeline.sound import Sound, SoundFileError, read_sound
from gateway.devtools.timeline.story import Record, RecordError, read_record, tell
from gateway.devtools.timeline.text import render


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
def command(record: Path, png: Path | None, wav: Path | None, wav_at: float | None) -> None:
    """Show a call's RECORD: speech of both sides, interruptions, DTMF, delays, ending."""
    try:
        call = read_record(record)
        sound = None if wav is None else read_sound(wav, _begin(call, wav_at))
    except (RecordError, SoundFileError) as error:
        click.echo(str(error), err=True)
        sys.exit(2)
    story = tell(call)
    console = Console(highlight=False)
    console.print(render(story, sound))
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
        draw(tell(record), png, sound)
    except OSError as error:
        raise click.ClickException(f"{png}: cannot be written: {error.strerror}") from None
