"""``gateway calls``, ``gateway hangup`` and ``gateway transfer``."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from gateway.control.cli import socket_of
from gateway.control.client import NoAnswerError, RefusedError, ask
from gateway.control.text import call_lines


def _asks(function: Callable[..., None]) -> Callable[..., None]:
    """The options that say which gateway is asked."""
    config = click.option(
        "-c",
        "--config",
        type=click.Path(path_type=Path, dir_okay=False),
        default=Path("gateway.toml"),
        show_default=True,
        help="The configuration file of the gateway that is asked.",
    )
    path = click.option(
        "--socket",
        "path",
        type=click.Path(path_type=Path, dir_okay=False),
        help="Its socket, in place of control.socket of the configuration.",
    )
    return config(path(function))


def _ask(config: Path, path: Path | None, name: str, **fields: str) -> dict[str, Any]:
    try:
        return ask(path or socket_of(config), name, **fields)
    except (NoAnswerError, RefusedError) as error:
        click.echo(str(error), err=True)
        sys.exit(1)


@click.command("calls")
@_asks
@click.option("--json", "as_json", is_flag=True, help="All of it, as one JSON array.")
def calls(config: Path, path: Path | None, as_json: bool) -> None:
    """List the calls in progress, with the ids that hangup and transfer take."""
    found = _ask(config, path, "status")["calls"]
    if as_json:
        click.echo(json.dumps(found, ensure_ascii=False))
        return
    if not found:
        click.echo("no calls in progress", err=True)
    for line in call_lines(found):
        click.echo(line)


@click.command("hangup")
@click.argument("call")
@_asks
def hangup(call: str, config: Path, path: Path | None) -> None:
    """End CALL now: its id, or the beginning of it. Exit 0, or 1 and why not."""
    answer = _ask(config, path, "hangup", call=call)
    click.echo(f"{answer['call']} is hung up")


@click.command("transfer")
@click.argument("call")
@click.argument("destination")
@_asks
def transfer(call: str, destination: str, config: Path, path: Path | None) -> None:
    """Hand CALL on to DESTINATION, one of its route's [[route.transfer]].

    The call goes the way that the route says for it; if nobody answers there, the caller comes
    back to the model. Exit 0 when it was asked for, or 1 and why not.
    """
    answer = _ask(config, path, "transfer", call=call, destination=destination)
    click.echo(f"{answer['call']} goes to {answer['to']}")
