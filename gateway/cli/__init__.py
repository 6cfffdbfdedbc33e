# SPDX-License-Identifier: GPL-2.0-or-later
"""The command ``gateway``: its subcommands by section, each imported when it is run, and what they
share: options, examples, requests to a running gateway."""

from __future__ import annotations

import importlib
import json
import re
import sys
from pathlib import Path
from typing import Any, NamedTuple

import click

from gateway import __version__
from gateway.api.client import (
    ANSWER_SECONDS,
    NoAnswerError,
    RefusedError,
    ask_within,
    socket_of,
    sockets_at,
)
from gateway.text import printable

CONFIG = click.option(
    "-c",
    "--config",
    type=click.Path(path_type=Path, dir_okay=False),
    default=Path("gateway.toml"),
    show_default=True,
    help="The configuration file.",
)
SOCKET = click.option(
    "--socket",
    "path",
    type=click.Path(path_type=Path, dir_okay=False),
    help="Control socket of the gateway; overrides control.socket.",
)


def examples(*lines: str) -> str:
    """Return the epilog of a command's help with these command lines."""
    title = "Example:" if len(lines) == 1 else "Examples:"
    return "\n".join(["\b", title, *(f"  {line}" for line in lines)])


def print_json(value: Any) -> None:
    """Print a value as JSON on one line, without characters that a terminal acts on."""
    click.echo(printable(json.dumps(value, ensure_ascii=False)))


def ask_gateway(
    config: Path,
    path: Path | None,
    command: str,
    seconds: float = ANSWER_SECONDS,
    **fields: Any,
) -> dict[str, Any]:
    """Send a command with its ``fields`` to the running gateway, and return the answer.

    Without an answer, or refused, prints why and exits with status 1.

    Args:
        config: file with ``control.socket``.
        path: socket in place of that one; None for that one.
        command: name of a command of :mod:`gateway.api.client`.
        seconds: time for the answer.
    """
    return ask_workers(config, path, command, seconds, **fields)[0][1]


def ask_workers(
    config: Path,
    path: Path | None,
    command: str,
    seconds: float = ANSWER_SECONDS,
    *,
    all_workers: bool = False,
    **fields: Any,
) -> list[tuple[str, dict[str, Any]]]:
    """Do the same with each of ``all_workers``, or else with the first that answers.

    Returns each answer with the name of the worker's socket. Prints why a worker gave none; exits
    with status 1 if all did not.
    """
    if fields.get("call") == "":
        raise click.UsageError("CALL is empty: gateway calls shows what there is")
    found: list[tuple[str, dict[str, Any]]] = []
    failed: Exception | None = None
    try:
        for one in sockets_at(path or socket_of(config)):
            try:
                found.append((one.name, ask_within(seconds, one, command, **fields)))
            except NoAnswerError as error:
                failed = failed or error
                continue
            if not all_workers:
                break
    except (NoAnswerError, RefusedError) as error:
        failed = error
    if failed is not None and (all_workers or not found):
        click.echo(printable(str(failed)), err=True)
    if not found:
        sys.exit(1)
    return found


class _Entry(NamedTuple):
    """Where a command is, and its line in ``gateway --help``."""

    module: str
    help: str
    attribute: str = "command"


_SECTIONS: dict[str, dict[str, _Entry]] = {
    "Serve": {
        "run": _Entry("serve", "Answer calls until SIGTERM or Ctrl-C.", "run_gateway"),
        "status": _Entry(
            "live_calls", "Show trunks, calls and servers of a running gateway.", "status"
        ),
        "reload": _Entry("serve", "Have a running gateway read its files anew.", "reload"),
        "webhooks": _Entry("serve", "List deliveries to webhooks, or try them anew.", "webhooks"),
        "dial": _Entry("serve", "Place one call and join it to a route's session.", "dial"),
    },
    "Configure": {
        "init": _Entry(
            "configure", "Write gateway.toml and a dialplan for a PBX or trunk.", "init"
        ),
        "check": _Entry("configure", "Check the configuration and its dialplans.", "check_command"),
        "route-test": _Entry("route_test", "Show which route a call takes, and why."),
        "token": _Entry("configure", "Make a token for the HTTP API.", "token"),
        "doctor": _Entry(
            "configure", "Check host, network, realtime servers and trunks.", "doctor"
        ),
    },
    "Live calls": {
        "calls": _Entry("live_calls", "List calls in progress, or past calls.", "calls"),
        "top": _Entry("top", "Watch live calls in the terminal, and act on them by a key."),
        "hangup": _Entry("live_calls", "End a call.", "hangup"),
        "transfer": _Entry(
            "live_calls", "Transfer a call to a destination of its route.", "transfer"
        ),
        "hold": _Entry("live_calls", "Put a caller on hold, or take them back.", "hold"),
        "mute": _Entry("live_calls", "Let the model hear silence, not the caller.", "mute"),
        "dtmf": _Entry("live_calls", "Send DTMF digits to a caller.", "dtmf"),
        "transcript": _Entry("live_calls", "Print what was said in a call.", "transcript"),
        "say": _Entry("live_calls", "Have the model say a text in a call.", "say"),
        "send-message": _Entry(
            "live_calls", "Add a message to a call's conversation.", "send_message"
        ),
        "send-image": _Entry("live_calls", "Add an image to a call's conversation.", "send_image"),
        "create-response": _Entry(
            "live_calls", "Have the model speak by instructions.", "create_response"
        ),
        "query": _Entry(
            "live_calls", "Ask the model about a call, unheard by the caller.", "query"
        ),
        "recording": _Entry(
            "live_calls", "Control a call's recording, or decrypt one.", "recording"
        ),
    },
    "Past calls": {
        "report": _Entry("past", "Report on calls by route, trunk, day or ending.", "report"),
        "canary": _Entry("past", "Compare, stop or start the canary of a route.", "canary"),
        "explain": _Entry("past", "Explain how a call was routed and why it ended.", "explain"),
        "blackbox": _Entry("past", "Print where the black box of a call is.", "black_box"),
        "replay": _Entry("past", "Replay a black box, and show what differs.", "replay"),
        "parked": _Entry(
            "past", "List rows that the database refused, or write them again.", "parked"
        ),
        "erase": _Entry("past", "Erase a number from the data of ended calls.", "erase"),
    },
    "Develop": {
        "demo": _Entry("develop", "Emulator, gateway and one scripted call, with checks.", "demo"),
        "emulator": _Entry("serve", "Run a realtime server with scripted replies.", "emulator"),
        "test-call": _Entry("develop", "Place one scripted call and report on it.", "test_call"),
        "test": _Entry("test_suites", "Run suites of calls with assertions."),
        "timeline": _Entry("develop", "Show the record of a call as text and picture.", "timeline"),
        "events": _Entry("develop", "Show the event log of a session as a conversation.", "events"),
    },
}
_ENTRIES = {name: entry for section in _SECTIONS.values() for name, entry in section.items()}

_RENAMED = {
    "call": "test-call",
    "tell": "send-message",
    "show": "send-image",
    "respond": "create-response",
    "ask": "query",
}


class _Commands(click.Group):
    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(_ENTRIES)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Import and return a command."""
        if cmd_name not in _ENTRIES:
            return None
        entry = _ENTRIES[cmd_name]
        try:
            module = importlib.import_module(f"gateway.cli.{entry.module}")
        except ModuleNotFoundError as error:
            if (error.name or "").startswith("gateway"):
                raise
            extra = "top" if error.name == "textual" else "devtools"
            needs = f"needs the package {error.name}: install the extra {extra}"
            raise click.ClickException(f"{cmd_name} {needs}") from None
        command = getattr(module, entry.attribute)
        assert isinstance(command, click.Command)
        return command

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """Find the command; answer an old name with the new one, a mistyped one with the like."""
        if args and args[0] in _RENAMED:
            ctx.fail(f"'gateway {args[0]}' is now 'gateway {_RENAMED[args[0]]}'")
        if args and not args[0].startswith("-") and args[0] not in _ENTRIES:
            from difflib import get_close_matches

            if close := get_close_matches(args[0], _ENTRIES, n=1):
                ctx.fail(f"there is no command {args[0]!r}; did you mean {close[0]!r}?")
        return super().resolve_command(ctx, args)

    def invoke(self, ctx: click.Context) -> Any:
        """Run the command; of a configuration that stands where no file does, say where it does."""
        try:
            return super().invoke(ctx)
        except click.UsageError as error:
            found = re.search(r"unexpected extra argument.*\((\S+\.toml)", error.message)
            takes = error.ctx.command.params if error.ctx else []
            if found and any(one.name == "config" for one in takes):
                message = f"{error.message}; write -c {found[1]}"
                raise click.UsageError(message, error.ctx) from None
            raise

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """List the commands by section, without importing them."""
        for title, section in _SECTIONS.items():
            with formatter.section(title):
                formatter.write_dl([(name, entry.help) for name, entry in section.items()])


@click.group(
    cls=_Commands,
    context_settings={"help_option_names": ["-h", "--help"]},
    epilog=examples(
        "gateway demo                      try everything on this machine, without a key",
        "gateway init                      write a configuration",
        "gateway run -c gateway.toml       serve",
    ),
)
@click.version_option(__version__, prog_name="gateway")
def main() -> None:
    """Joins SIP phone calls to realtime speech-to-speech sessions."""
