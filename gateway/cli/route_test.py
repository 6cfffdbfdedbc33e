# SPDX-License-Identifier: GPL-2.0-or-later
"""``gateway route-test``: show which route a call takes."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

import click
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from gateway.cli import CONFIG, examples
from gateway.devtools.route_test import (
    GivenError,
    invite_from_message,
    invite_from_options,
    moment,
)

if TYPE_CHECKING:
    from gateway.devtools.route_test import Answer


@click.command(
    "route-test",
    epilog=examples(
        "gateway route-test --to 100 --from +4930123456",
        "gateway route-test --invite captured.sip --source 192.0.2.1",
    ),
)
@CONFIG
@click.option("--to", "to", metavar="USER", help="Called user or address.")
@click.option("--from", "from_", metavar="USER", default="anonymous", help="Caller.")
@click.option("--header", "headers", metavar="'NAME: VALUE'", multiple=True, help="A header field.")
@click.option("--source", metavar="ADDRESS[:PORT]", help="Source address of the INVITE.")
@click.option("--trunk", metavar="NAME", help="Trunk; default: found by the source address.")
@click.option("--at", metavar="'DATE TIME'", help="Time of the call; default: now.")
@click.option("--codec", type=click.Choice(["PCMU", "PCMA"]), default="PCMU", help="Offered codec.")
@click.option("--invite", type=click.File("r"), help="File with the INVITE; - is stdin.")
@click.option("--data", metavar="JSON", help="Response of the route's data service, or @FILE.")
@click.option("--fetch", is_flag=True, help="Request the data from the route's service.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def command(
    config: Path,
    to: str | None,
    from_: str,
    headers: tuple[str, ...],
    source: str | None,
    trunk: str | None,
    at: str | None,
    codec: str,
    invite: TextIO | None,
    data: str | None,
    fetch: bool,
    as_json: bool,
) -> None:
    """Show which route an INVITE takes, why the others do not match, and its session.

    Exit 0, or 1 when no route matches.
    """
    from gateway.config import ConfigError
    from gateway.planning.check import load_all

    if (to is None) == (invite is None):
        raise click.UsageError("say who is called: --to USER, or --invite FILE")
    if data is not None and fetch:
        raise click.UsageError("either --data or --fetch")
    try:
        from gateway.devtools.route_test import asked, given_data

        bring = given_data(data) if data is not None else asked if fetch else None
        from gateway.devtools.route_test import answer

        settings, dialplan = load_all(config)
        if invite is not None:
            given = invite_from_message(_read(invite), headers, source)
        else:
            given = invite_from_options(to or "", from_, headers, source, codec)
        found = answer(settings, dialplan, given, moment(at), trunk, bring)
    except (ConfigError, GivenError, UnicodeDecodeError) as error:
        click.echo(str(error), err=True)
        sys.exit(2)
    except ImportError as error:
        click.echo(f"pjsua2 cannot be loaded ({error}): `make` builds and installs it", err=True)
        sys.exit(2)
    if as_json:
        click.echo(json.dumps(found.as_json(), indent=2, ensure_ascii=False))
    else:
        show(found, Console(highlight=False, soft_wrap=True))
    sys.exit(0 if found.route else 1)


def _read(file: TextIO) -> str:
    # What is no UTF-8 is no reason to stop: the gateway takes such INVITEs too.
    buffer = getattr(file, "buffer", None)
    return file.read() if buffer is None else buffer.read().decode("utf-8", "replace")


def show(found: Answer, console: Console) -> None:
    """Print the answer for people."""
    facts = found.facts
    name = f' "{facts.from_name}"' if facts.from_name else ""
    trunk = f"trunk {facts.trunk} ({found.attributed_by})" if facts.trunk else "no trunk"
    console.print(
        f"[bold]{escape(facts.to_user or facts.to_uri)}[/] called by "
        f"[bold]{escape(facts.from_user or facts.from_uri)}[/]{escape(name)} from "
        f"{escape(facts.source_ip)}, {escape(trunk)}, {facts.at:%a %Y-%m-%d %H:%M %Z}"
    )
    if found.access:
        console.print(f"[yellow]note:[/] {escape(found.access)}")
    console.print("\n[bold]Routes[/]")
    _verdicts(found, console)
    if not found.route:
        console.print("\n[bold red]No route takes this call: 404[/]")
        return
    console.print(f"\n[bold]Variables[/] of {escape(found.route)}")
    grid = Table.grid(padding=(0, 2))
    for key, value in found.variables.items():
        if value:
            cleaned = " [yellow](something was taken away)[/]" if key in found.cleaned else ""
            grid.add_row(f"  {{{escape(key)}}}", escape(value) + cleaned)
    console.print(grid)
    if found.data:
        console.print(f"\n[bold]Data[/] {escape(found.data)}")
    if found.metadata:
        console.print("\n[bold]Metadata[/]")
        console.print(_pretty(found.metadata), markup=False)
    console.print(f"\n[bold]Session[/] at {escape(found.server)}, model {escape(found.model)}")
    console.print(_pretty(found.session), markup=False)
    if found.greeting is not None:
        console.print("\n[bold]First response[/]")
        console.print(_pretty(found.greeting), markup=False)


def _verdicts(found: Answer, console: Console) -> None:
    if not found.verdicts:
        console.print("  there is none")
    width = max((len(verdict.name) for verdict in found.verdicts), default=0)
    for verdict in found.verdicts:
        taken = verdict.name == found.route
        mark = "[green]✓[/]" if taken else "[yellow]·[/]" if not verdict.refusal else "[red]✗[/]"
        why = "takes the call" if taken else verdict.refusal or "would, but an earlier one does"
        console.print(
            f"  {mark} {escape(verdict.name.ljust(width))}  {escape(why)}  "
            f"[dim]{escape(_short(verdict.where))}[/]"
        )


def _short(where: str) -> str:
    file, _, line = where.rpartition(":")
    path = Path(file)
    near = path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path
    return f"{near}:{line}"


def _pretty(value: Any) -> str:
    return json.dumps(value, indent=2, ensure_ascii=False)
