"""The command line. Each command imports what it needs when it runs, so that help is quick."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path

import click

from gateway import __version__

_CONFIG = click.option(
    "-c",
    "--config",
    type=click.Path(path_type=Path, dir_okay=False),
    default=Path("gateway.toml"),
    show_default=True,
    help="The configuration file.",
)

_ELSEWHERE = {
    "call": ("gateway.caller", "command", "Place one scripted call and say how it went."),
    "demo": (
        "gateway.demo",
        "command",
        "Emulator, gateway and one scripted call, then a timeline.",
    ),
    "timeline": ("gateway.timeline", "command", "Show the record of a call as text and picture."),
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
def run(config: Path) -> None:
    """Answer calls until SIGTERM or Ctrl-C; a second one does not wait for calls to end."""
    from gateway import service
    from gateway.config import ConfigError
    from gateway.config.check import load_all
    from gateway.log import set_up_logging
    from gateway.sip.agent import AgentError

    try:
        settings, dialplan = load_all(config)
    except ConfigError as error:
        click.echo(str(error), err=True)
        sys.exit(2)
    try:
        log = settings.log
        set_up_logging(log.format, log.level, log.file, settings.secrets() + dialplan.secrets())
        service.run(settings, dialplan)
    except (AgentError, OSError) as error:
        click.echo(f"{config}: {error}", err=True)
        sys.exit(1)


@main.command()
@_CONFIG
def check(config: Path) -> None:
    """Say what is wrong with a configuration and its dialplans: exit 0, or 2."""
    from gateway.config.check import check as check_files

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
    from gateway import emulator as package

    try:
        package.run(listen, script, record)
    except (ValueError, OSError) as error:
        click.echo(str(error), err=True)
        sys.exit(2)


if __name__ == "__main__":
    main()
