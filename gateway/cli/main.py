"""The command line. Each command imports what it needs when it runs, so that help is quick."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import click

from gateway import __version__

if TYPE_CHECKING:
    from gateway.config import Config
    from gateway.dialplan import Dialplan

_CONFIG = click.option(
    "-c",
    "--config",
    type=click.Path(path_type=Path, dir_okay=False),
    default=Path("gateway.toml"),
    show_default=True,
    help="The configuration file.",
)

_ELSEWHERE = {
    "call": (
        "gateway.devtools.scripted_caller",
        "command",
        "Place one scripted call and say how it went.",
    ),
    "demo": (
        "gateway.devtools.demo",
        "command",
        "Emulator, gateway and one scripted call, then a timeline.",
    ),
    "doctor": (
        "gateway.devtools.doctor",
        "command",
        "Say what this machine and this pjsua2 can carry, and what to mend.",
    ),
    "status": ("gateway.cli.status", "command", "Say how a running gateway is."),
    "calls": ("gateway.cli.calls", "calls", "List the calls of a running gateway."),
    "hangup": ("gateway.cli.calls", "hangup", "End a call of a running gateway."),
    "transfer": ("gateway.cli.calls", "transfer", "Hand a call of a running gateway on."),
    "say": ("gateway.cli.conversation", "say", "Let the model of a call say something."),
    "tell": ("gateway.cli.conversation", "tell", "Put a message into a call's conversation."),
    "show": ("gateway.cli.conversation", "show", "Show the model of a call an image."),
    "respond": ("gateway.cli.conversation", "respond", "Let the model speak by instructions."),
    "ask": ("gateway.cli.conversation", "ask_aside", "Ask the model about a call, unheard."),
    "transcript": ("gateway.cli.conversation", "transcript", "What was said in a call."),
    "events": (
        "gateway.devtools.event_viewer",
        "command",
        "Read the event log of a session as a conversation.",
    ),
    "route-test": (
        "gateway.devtools.route_test",
        "command",
        "Say which route a call takes, and why no other.",
    ),
    "dial": ("gateway.cli.dial", "command", "Place one call with a route's session."),
    "timeline": (
        "gateway.devtools.timeline",
        "command",
        "Show the record of a call as text and picture.",
    ),
}
"""Commands that live with what they run: module, name, short help."""


class _Commands(click.Group):
    def list_commands(self, ctx: click.Context) -> list[str]:
        """Names in the order of the alphabet."""
        return sorted({*super().list_commands(ctx), *_ELSEWHERE})

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Import a command when it is asked for."""
        if cmd_name not in _ELSEWHERE:
            return super().get_command(ctx, cmd_name)
        module, name, _help = _ELSEWHERE[cmd_name]
        command = getattr(importlib.import_module(module), name)
        assert isinstance(command, click.Command)
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """List the commands without importing those that live elsewhere."""
        rows = []
        for name in self.list_commands(ctx):
            if name in _ELSEWHERE:
                rows.append((name, _ELSEWHERE[name][2]))
            else:
                command = super().get_command(ctx, name)
                rows.append((name, command.get_short_help_str(70) if command else ""))
        with formatter.section("Commands"):
            formatter.write_dl(rows)


@click.group(cls=_Commands, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="gateway")
def main() -> None:
    """Joins SIP phone calls to realtime speech-to-speech sessions."""


@main.command()
@_CONFIG
@click.option(
    "--workers",
    type=click.IntRange(min=1),
    metavar="N",
    help="Processes that share the calls, in place of workers.count.",
)
@click.option(
    "--worker",
    type=click.IntRange(min=0),
    metavar="I",
    help="Be only worker I, counted from 0, and let another program start the rest.",
)
@click.option(
    "--supervisor/--no-supervisor",
    default=True,
    help="Whether a second process starts this one again if it dies; with several workers always.",
)
@click.option("--supervisor-link", type=int, hidden=True)
def run(
    config: Path,
    workers: int | None,
    worker: int | None,
    supervisor: bool,
    supervisor_link: int | None,
) -> None:
    """Answer calls until SIGTERM or Ctrl-C; a second one does not wait for calls to end."""
    from gateway.app.signals import keep_running
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
        sink = set_up_logging(log.format, log.level, log.file, secrets, worker, log.redact)
    except OSError as error:
        click.echo(f"{config}: {error}", err=True)
        sys.exit(1)
    keep_running(sink.reopen)
    if worker is None and supervisor_link is None and (count > 1 or supervisor):
        from gateway.app.workers.supervisor import supervise

        sys.exit(supervise(settings, config, sink.reopen))
    sink.write_behind()
    _serve(
        config,
        settings if worker is None else settings.for_worker(worker),
        dialplan,
        supervisor_link,
    )


def _serve(config: Path, settings: Config, dialplan: Dialplan, supervisor_link: int | None) -> None:
    try:
        from gateway.app import service
        from gateway.sip.agent import AgentError
    except ImportError as error:
        click.echo(f"pjsua2 cannot be loaded ({error}): `make` builds and installs it", err=True)
        sys.exit(1)
    try:
        service.run(settings, dialplan, supervisor_link)
    except (AgentError, OSError) as error:
        click.echo(f"{config}: {error}", err=True)
        sys.exit(1)


@main.command(short_help="Say what is wrong with a configuration and its dialplans.")
@_CONFIG
def check(config: Path) -> None:
    """Say what is wrong with a configuration and its dialplans: exit 0, or 2."""
    from gateway.planning.check import check as check_files

    status, lines = check_files(config)
    for line in lines:
        click.echo(line, err=status != 0)
    sys.exit(status)


@main.command()
@click.option("--listen", default="127.0.0.1:8765", show_default=True, metavar="HOST:PORT")
@click.option("--script", type=click.Path(path_type=Path, exists=True), help="What it shall do.")
@click.option("--record", type=click.Path(path_type=Path), help="Folder for events and audio.")
def emulator(listen: str, script: Path | None, record: Path | None) -> None:
    """A realtime server to develop against; no model is behind it."""
    from gateway.devtools import emulator as package

    try:
        package.run(listen, script, record)
    except (ValueError, OSError) as error:
        click.echo(str(error), err=True)
        sys.exit(2)


if __name__ == "__main__":
    main()
