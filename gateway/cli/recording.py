# SPDX-License-Identifier: GPL-2.0-or-later
"""``gateway recording``: control the recording of a call, decrypt a file."""

from __future__ import annotations

from pathlib import Path

import click

from gateway.cli import CONFIG, examples
from gateway.cli.live_calls import SOCKET, asked
from gateway.cli.past import fail


@click.group(
    "recording",
    epilog=examples(
        "gateway recording start 7f3a", "gateway recording decrypt call.wav.sealed -i key.txt"
    ),
)
def recording() -> None:
    """Control the recording of a call, or decrypt one."""


def _action(name: str, help: str) -> None:
    @recording.command(name, help=help, epilog=examples(f"gateway recording {name} 7f3a"))
    @click.argument("call")
    @CONFIG
    @SOCKET
    def act(call: str, config: Path, path: Path | None) -> None:
        answer = asked(config, path, "recording", call=call, action=name)
        click.echo(f"{answer['call']}: {answer['state']}")


_action("start", "Record CALL from now on, where its route allows it.")
_action("stop", "End the recording of CALL.")
_action("pause", "Record silence in CALL until it is resumed.")
_action("resume", "Record sound in CALL again.")
_action("delete", "End the recording of CALL, and leave nothing of it.")


@recording.command(
    "decrypt", epilog=examples("gateway recording decrypt call.wav.sealed -i key.txt")
)
@click.argument("file", type=click.Path(path_type=Path, exists=True, dir_okay=False))
@click.option(
    "-i",
    "--identity",
    "keys",
    type=click.Path(path_type=Path, exists=True, dir_okay=False),
    multiple=True,
    required=True,
    help="File with a private key of age or SSH; several may be given.",
)
@click.option("-o", "--output", type=click.Path(path_type=Path), help="Default: without .sealed.")
def decrypt(file: Path, keys: tuple[Path, ...], output: Path | None) -> None:
    """Write the plain recording of FILE. Exit 1 where no key fits, or it was changed."""
    from gateway.records.recording_files import RecordingError, identities_of
    from gateway.records.recording_files import decrypt as decrypted

    target = output or (file.with_suffix("") if file.suffix == ".sealed" else None)
    if target is None:
        raise click.UsageError("--output is needed: the file's name does not end in .sealed")
    try:
        note = decrypted(file, target, identities_of(keys))
    except (RecordingError, OSError) as error:
        raise fail(str(error)) from None
    click.echo(f"{target}: {note}" if note else str(target))
