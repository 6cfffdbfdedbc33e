# SPDX-License-Identifier: GPL-2.0-or-later
"""``gateway token``: bearer tokens of the HTTP API."""

from __future__ import annotations

import click

from gateway.cli import examples


@click.group("token", epilog=examples("gateway token create --name dashboard --role readonly"))
def command() -> None:
    """Make tokens for the HTTP API."""


@command.command("create", epilog=examples("gateway token create --name ops --role admin"))
@click.option("--name", required=True, help="Who uses it, as the log shows.")
@click.option(
    "--role",
    type=click.Choice(["application", "readonly", "operator", "admin"]),
    default="readonly",
    show_default=True,
    help="What it allows.",
)
def create(name: str, role: str) -> None:
    """Print a new token and its lines for the configuration.

    The token goes to standard output, once: it is kept nowhere. The lines, which have its hash
    only, go to standard error.
    """
    from gateway.api.tokens import hash_of, new_token

    token = new_token()
    click.echo(token)
    lines = ["[[api.token]]", f'name = "{name}"', f'role = "{role}"', f'hash = "{hash_of(token)}"']
    click.echo("\n".join(["", "# for gateway.toml:", *lines]), err=True)
