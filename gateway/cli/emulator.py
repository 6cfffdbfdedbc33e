# SPDX-License-Identifier: GPL-2.0-or-later
"""``gateway emulator``: a realtime server for development."""

from __future__ import annotations

import sys
from pathlib import Path

import click

from gateway.cli.options import examples


@click.command(
    "emulator",
    epilog=examples("gateway emulator --listen 127.0.0.1:8765 --script hotel.toml"),
)
@click.option("--listen", default="127.0.0.1:8765", show_default=True, metavar="HOST:PORT")
@click.option(
    "--script", type=click.Path(path_type=Path, exists=True), help="Scripted replies and faults."
)
@click.option("--record", type=click.Path(path_type=Path), help="Folder for events and audio.")
def command(listen: str, script: Path | None, record: Path | None) -> None:
    """Run a realtime server with scripted replies: no model, no API key."""
    from gateway.devtools.emulator import run

    try:
        run(listen, script, record)
    except (ValueError, OSError) as error:
        click.echo(str(error), err=True)
        sys.exit(2)
