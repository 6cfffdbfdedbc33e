"""The command: look at everything, print the report, and say by the status whether to worry."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path

import click

from gateway.config import Config, ConfigError
from gateway.devtools.doctor import library, machine, network
from gateway.devtools.doctor.finding import Finding, Verdict, bad, lines, ok, warn
from gateway.dialplan import Dialplan
from gateway.planning.check import check, load_all

_NOTE = "  note: "


@click.command()
@click.option(
    "-c",
    "--config",
    type=click.Path(path_type=Path, dir_okay=False),
    default=Path("gateway.toml"),
    show_default=True,
    help="The configuration file.",
)
@click.option("--json", "as_json", is_flag=True, help="The report as a JSON array.")
def command(config: Path, as_json: bool) -> None:
    """Say what this machine and this pjsua2 can carry, and what to mend.

    Nothing is changed and no session is opened. Exit 0, or 1 when something is bad.
    """
    findings = list(examine(config))
    if as_json:
        click.echo(json.dumps([asdict(finding) for finding in findings], indent=1))
    else:
        for line in lines(findings):
            click.echo(line)
    sys.exit(any(finding.verdict is Verdict.BAD for finding in findings))


def examine(path: Path) -> Iterator[Finding]:
    """Everything that can be found out with the configuration at ``path``."""
    config: Config | None = None
    dialplan = Dialplan(())
    try:
        config, dialplan = load_all(path)
    except ConfigError as error:
        for problem in error.problems:
            yield bad("config", str(problem), "the gateway does not start like this")
    else:
        yield from _good(path)
    yield from library.look(config)
    yield from machine.look(config)
    if config is not None:
        yield from _folders(config)
        yield from network.look(config, dialplan)


def _good(path: Path) -> Iterator[Finding]:
    _, said = check(path)
    yield ok("config", f"{path} is good")
    for line in said:
        if line.startswith(_NOTE):
            yield warn("config", line.removeprefix(_NOTE), "right if it is meant so")


def _folders(config: Config) -> Iterator[Finding]:
    """Whether what the gateway writes can be written."""
    wanted = [
        ("records.folder", config.records.folder),
        ("log.file", config.log.file.parent if config.log.file else None),
        ("control.socket", config.control.socket.parent if config.control.socket else None),
    ]
    for key, folder in wanted:
        if folder is None:
            continue
        there = folder
        while not there.exists():
            there = there.parent
        if os.access(there, os.W_OK | os.X_OK):
            yield ok(key, f"{folder} can be written")
        else:
            user = os.geteuid()
            yield bad(key, f"{there} cannot be written by user {user}", "chown or chmod it")
