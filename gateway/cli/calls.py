# SPDX-License-Identifier: GPL-2.0-or-later
"""``gateway calls``, ``gateway hangup`` and ``gateway transfer``."""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path

import click

from gateway.cli.options import CONFIG, examples
from gateway.cli.status import SOCKET, asked, call_lines
from gateway.text import printable

POLL_SECONDS = 0.2
"""Interval of the queries for the outcome of a transfer."""


@click.command("calls", epilog=examples("gateway calls", "gateway calls --json"))
@CONFIG
@SOCKET
@click.option("--json", "as_json", is_flag=True, help="Print everything as one JSON array.")
def calls(config: Path, path: Path | None, as_json: bool) -> None:
    """List calls in progress.

    For each: id (the other commands take it, or its beginning), state, age, numbers, route, codec
    and cost so far.
    """
    found = asked(config, path, "status")["calls"]
    if as_json:
        click.echo(printable(json.dumps(found, ensure_ascii=False)))
        return
    if not found:
        click.echo("no calls in progress", err=True)
    for line in call_lines(found):
        click.echo(printable(line))


@click.command("hangup", epilog=examples("gateway hangup 7f3a"))
@click.argument("call")
@CONFIG
@SOCKET
def hangup(call: str, config: Path, path: Path | None) -> None:
    """End CALL, given by its id or the beginning of it. Exit 0, or 1 with the reason."""
    answer = asked(config, path, "hangup", call=call)
    click.echo(f"{answer['call']} is hung up")


@click.command("transfer", epilog=examples("gateway transfer 7f3a sales"))
@click.argument("call")
@click.argument("destination")
@CONFIG
@SOCKET
def transfer(call: str, destination: str, config: Path, path: Path | None) -> None:
    """Transfer CALL to DESTINATION, the name of one of its route's [[route.transfer]].

    The transfer runs in the mode that the route sets; without an answer the caller returns to the
    model. Waits for the outcome: exit 0 when the call was answered, or 1 with the reason. Ctrl-C
    does not cancel the transfer.
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
