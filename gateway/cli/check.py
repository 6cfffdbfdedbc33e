# SPDX-License-Identifier: GPL-2.0-or-later
"""``gateway check``: judge the configuration and its dialplans."""

from __future__ import annotations

import sys
from pathlib import Path

import click

from gateway.cli.options import CONFIG, examples


@click.command("check", epilog=examples("gateway check -c gateway.toml"))
@CONFIG
def command(config: Path) -> None:
    """Check the configuration and its dialplans, without network access.

    Prints `file:line: key: message` for each problem and exits with 2; otherwise prints a summary
    with notes on settings that are seldom meant, and exits with 0.
    """
    from gateway.planning.check import check

    status, lines = check(config)
    for line in lines:
        click.echo(line, err=status != 0)
    sys.exit(status)
