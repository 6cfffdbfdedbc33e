"""``gateway calls``, ``gateway hangup`` and ``gateway transfer``."""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path

import click

from gateway.cli.status import CONFIG, SOCKET, asked
from gateway.cli.status_text import call_lines
from gateway.text import printable

POLL_SECONDS = 0.2
"""Between two questions for the outcome of a transfer."""


@click.command("calls")
@CONFIG
@SOCKET
@click.option("--json", "as_json", is_flag=True, help="All of it, as one JSON array.")
def calls(config: Path, path: Path | None, as_json: bool) -> None:
    """List the calls in progress, with the ids that hangup and transfer take."""
    found = asked(config, path, "status")["calls"]
    if as_json:
        click.echo(printable(json.dumps(found, ensure_ascii=False)))
        return
    if not found:
        click.echo("no calls in progress", err=True)
    for line in call_lines(found):
        click.echo(printable(line))


@click.command("hangup")
@click.argument("call")
@CONFIG
@SOCKET
def hangup(call: str, config: Path, path: Path | None) -> None:
    """End CALL now: its id, or the beginning of it. Exit 0, or 1 and why not."""
    answer = asked(config, path, "hangup", call=call)
    click.echo(f"{answer['call']} is hung up")


@click.command("transfer")
@click.argument("call")
@click.argument("destination")
@CONFIG
@SOCKET
def transfer(call: str, destination: str, config: Path, path: Path | None) -> None:
    """Hand CALL on to DESTINATION, one of its route's [[route.transfer]].

    The call goes the way that the route says for it; if nobody answers there, the caller comes
    back to the model. Waits for the outcome: exit 0 when somebody has taken the call, or 1 and why
    not. Ctrl-C leaves the transfer as it is.
    """
    answer = asked(config, path, "transfer", call=call, destination=destination)
    click.echo(printable(f"{answer['call']} goes to {answer['to']}"))
    until = time.monotonic() + answer["seconds"]
    number = answer["transfer"]
    while not (told := asked(config, path, "transfer_outcome", transfer=number))["over"]:
        if time.monotonic() >= until:
            click.echo(f"no outcome yet: {told['outcome']}", err=True)
            sys.exit(1)
        time.sleep(POLL_SECONDS)
    click.echo(printable(told["outcome"]), err=not told["done"])
    if not told["done"]:
        sys.exit(1)
