"""``gateway status``."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import click

from gateway.cli.status_text import status_lines
from gateway.control.client import ANSWER_SECONDS, NoAnswerError, RefusedError, ask_within
from gateway.text import printable

CONFIG = click.option(
    "-c",
    "--config",
    type=click.Path(path_type=Path, dir_okay=False),
    default=Path("gateway.toml"),
    show_default=True,
    help="The configuration file of the gateway that is asked.",
)
SOCKET = click.option(
    "--socket",
    "path",
    type=click.Path(path_type=Path, dir_okay=False),
    help="Its socket, in place of control.socket of the configuration.",
)


@click.command("status")
@CONFIG
@SOCKET
@click.option("--json", "as_json", is_flag=True, help="All of it, as one JSON object.")
def command(config: Path, path: Path | None, as_json: bool) -> None:
    """Say how a running gateway is: trunks, calls, refusals.

    Exit 0, 1 without an answer, or 3 when a part of it has failed.
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
    """The answer of the gateway that the options name, within ``seconds``; without one the process
    ends with 1 and says why."""
    try:
        return ask_within(seconds, path or socket_of(config), {**fields, "command": command})
    except (NoAnswerError, RefusedError) as error:
        click.echo(printable(str(error)), err=True)
        sys.exit(1)


def socket_of(config: Path) -> Path:
    """Where a gateway with this configuration listens. Raises NoAnswerError.

    Only that key is read, so that no secret has to be at hand.
    """
    from gateway.config.problems import ConfigError
    from gateway.config.source import read_toml

    try:
        data: dict[str, Any] = read_toml(config).data
    except ConfigError as error:
        raise NoAnswerError(str(error)) from None
    section = data.get("control")
    name = section.get("socket") if isinstance(section, dict) else None
    if not isinstance(name, str) or not name:
        raise NoAnswerError(f"{config}: control.socket is not set, so no gateway can be asked")
    return Path(config.absolute().parent, Path(name).expanduser())
