# SPDX-License-Identifier: GPL-2.0-or-later
"""``gateway check`` and ``gateway doctor``: judge the configuration, and what it names."""

from __future__ import annotations

import json
import sys
from dataclasses import asdict
from pathlib import Path

import click

from gateway.cli import CONFIG, examples


@click.command("check", epilog=examples("gateway check -c gateway.toml"))
@CONFIG
def check_command(config: Path) -> None:
    """Check the configuration and its dialplans, without network access.

    Prints `file:line: key: message` for each problem and exits with 2; otherwise prints a summary
    with notes on settings that are seldom meant, and exits with 0.
    """
    from gateway.planning.check import check

    status, lines = check(config)
    for line in lines:
        click.echo(line, err=status != 0)
    sys.exit(status)


@click.command("doctor", epilog=examples("gateway doctor -c gateway.toml"))
@CONFIG
@click.option("--json", "as_json", is_flag=True, help="Print the report as a JSON array.")
def doctor(config: Path, as_json: bool) -> None:
    """Check host, pjsua2 build, configuration, realtime servers and trunks; print fixes.

    Nothing is changed and no call is placed; one session is opened at each realtime server, and
    each trunk is asked once. Exit 0, or 1 when something is bad.
    """
    from gateway.devtools.doctor import Verdict, lines
    from gateway.devtools.doctor.examine import examine

    findings = list(examine(config))
    if as_json:
        click.echo(json.dumps([asdict(finding) for finding in findings], indent=1))
    else:
        for line in lines(findings):
            click.echo(line)
    sys.exit(any(finding.verdict is Verdict.BAD for finding in findings))
