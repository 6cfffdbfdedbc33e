# SPDX-License-Identifier: GPL-2.0-or-later
"""``gateway run`` and ``gateway emulator``: the gateway, and a realtime server for development."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import click

from gateway.cli import CONFIG, examples

if TYPE_CHECKING:
    from collections.abc import Callable

    from gateway.config import Config, LogSettings
    from gateway.dialplan import Dialplan


@click.command("run", epilog=examples("gateway run -c gateway.toml", "gateway run --workers 4"))
@CONFIG
@click.option(
    "--workers",
    type=click.IntRange(min=1),
    metavar="N",
    help="Number of processes that share the calls; overrides workers.count.",
)
@click.option(
    "--worker",
    type=click.IntRange(min=0),
    metavar="I",
    help="Run only worker I, counted from 0; another program starts the others.",
)
@click.option(
    "--supervisor/--no-supervisor",
    default=True,
    help="Run under a supervisor process that restarts the gateway if it crashes. Several workers "
    "always have one.",
)
@click.option("--supervisor-link", type=int, hidden=True)
def run_gateway(
    config: Path,
    workers: int | None,
    worker: int | None,
    supervisor: bool,
    supervisor_link: int | None,
) -> None:
    """Answer calls until SIGTERM or Ctrl-C.

    Calls in progress may then end within limits.drain_timeout; a second signal ends them at once.
    """
    from gateway.app.process import keep_running
    from gateway.config import ConfigError
    from gateway.log import set_up_logging
    from gateway.planning.check import load_all

    try:
        settings, dialplan = load_all(config, workers=workers)
    except ConfigError as error:
        click.echo(str(error), err=True)
        sys.exit(2)
    count, log = settings.workers.count, settings.log
    if worker is not None and worker >= count:
        click.echo(
            f"--worker {worker}: workers.count is {count}, so the last is {count - 1}", err=True
        )
        sys.exit(2)
    secrets = settings.secrets() + dialplan.secrets()
    try:
        sink = set_up_logging(_format(log), log.level, log.file, secrets, worker, log.redact)
    except OSError as error:
        click.echo(f"{config}: {error}", err=True)
        sys.exit(1)
    keep_running(sink.reopen)
    if worker is None and supervisor_link is None and (count > 1 or supervisor):
        from gateway.app.supervisor import supervise

        sys.exit(supervise(settings, config, sink.reopen))
    sink.write_behind()

    def read() -> tuple[Config, Dialplan]:
        found, routes = load_all(config, workers=workers)
        return (found if worker is None else found.for_worker(worker)), routes

    own = settings if worker is None else settings.for_worker(worker)
    _serve(config, own, dialplan, supervisor_link, read)


def _format(log: LogSettings) -> Literal["json", "console"]:
    """Return ``log.format``; where that is not set, console on a terminal and JSON elsewhere."""
    if "format" in log.model_fields_set or log.file is not None or not sys.stderr.isatty():
        return log.format
    return "console"


def _serve(
    config: Path,
    settings: Config,
    dialplan: Dialplan,
    supervisor_link: int | None,
    read: Callable[[], tuple[Config, Dialplan]],
) -> None:
    try:
        from gateway.app import service
        from gateway.sip.agent import AgentError
    except ImportError as error:
        click.echo(f"pjsua2 cannot be loaded ({error}): `make` builds and installs it", err=True)
        sys.exit(1)
    try:
        service.run(settings, dialplan, supervisor_link, read)
    except (AgentError, OSError) as error:
        click.echo(f"{config}: {error}", err=True)
        sys.exit(1)


@click.command(
    "emulator",
    epilog=examples("gateway emulator --listen 127.0.0.1:8765 --script hotel.toml"),
)
@click.option("--listen", default="127.0.0.1:8765", show_default=True, metavar="HOST:PORT")
@click.option(
    "--script", type=click.Path(path_type=Path, exists=True), help="Scripted replies and faults."
)
@click.option("--record", type=click.Path(path_type=Path), help="Folder for events and audio.")
def emulator(listen: str, script: Path | None, record: Path | None) -> None:
    """Run a realtime server with scripted replies: no model, no API key."""
    from gateway.devtools.emulator import run

    try:
        run(listen, script, record)
    except (ValueError, OSError) as error:
        click.echo(str(error), err=True)
        sys.exit(2)
