"""``gateway status``."""

from __future__ import annotations

import json
import sys
import tomllib
from pathlib import Path
from typing import Any

import click

from gateway.cli.options import CONFIG, examples
from gateway.cli.status_text import status_lines
from gateway.control.client import ANSWER_SECONDS, NoAnswerError, RefusedError, ask_within
from gateway.text import printable

SOCKET = click.option(
    "--socket",
    "path",
    type=click.Path(path_type=Path, dir_okay=False),
    help="Control socket of the gateway; overrides control.socket.",
)


@click.command("status", epilog=examples("gateway status", "gateway status --json"))
@CONFIG
@SOCKET
@click.option("--json", "as_json", is_flag=True, help="Print everything as one JSON object.")
def command(config: Path, path: Path | None, as_json: bool) -> None:
    """Show trunks, calls, servers and rejected requests of a running gateway.

    Exit 0; 1 when no gateway answers; 3 when a part of it has failed.
    """
    status = asked(config, path, "status")
    if as_json:
        click.echo(printable(json.dumps(status, ensure_ascii=False)))
    else:
        for line in status_lines(status):
            click.echo(printable(line))
    if (status.get("health") or {}).get("problems"):
        sys.exit(3)


def asked(
    config: Path,
    path: Path | None,
    command: str,
    seconds: float = ANSWER_SECONDS,
    **fields: Any,
) -> dict[str, Any]:
    """Return the answer of the gateway that the options name, within ``seconds``.

    Without an answer, prints why and exits with 1.
    """
    try:
        return ask_within(seconds, path or socket_of(config), {**fields, "command": command})
    except (NoAnswerError, RefusedError) as error:
        click.echo(printable(str(error)), err=True)
        sys.exit(1)


def socket_of(config: Path) -> Path:
    """Return the path of the control socket of this configuration. Raises NoAnswerError.

    Reads that key only: secrets need not be present, and nothing slow is imported.
    """
    try:
        data = tomllib.loads(config.read_text(encoding="utf-8"))
    except OSError as error:
        raise NoAnswerError(f"{config}: {error.strerror or error}") from None
    except ValueError as error:  # neither TOML nor UTF-8
        raise NoAnswerError(f"{config}: {error}") from None
    section = data.get("control")
    name = section.get("socket") if isinstance(section, dict) else None
    if not isinstance(name, str) or not name:
        raise NoAnswerError(f"{config}: control.socket is not set, so no gateway can be asked")
    if "${" in name:
        from gateway.config.source import read_toml

        name = str(read_toml(config).data["control"]["socket"])
    return Path(config.absolute().parent, Path(name).expanduser())
