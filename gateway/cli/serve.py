# SPDX-License-Identifier: GPL-2.0-or-later
"""``gateway run``, ``dial`` and ``emulator``, which have calls or sessions of their own; ``reload``
and ``webhooks``, for a running gateway."""

from __future__ import annotations

import asyncio
import json
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import click

from gateway.cli import CONFIG, SOCKET, ask_gateway, ask_workers, examples
from gateway.cli.live_calls import duration
from gateway.text import printable

if TYPE_CHECKING:
    from collections.abc import Callable

    from gateway.call.call_record import CallRecord
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
    from gateway.app.supervisor import keep_running
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
        place = config.with_name(settings.where("log.file"))  # it is set: stdout is not opened
        click.echo(f"{place}: log.file: {log.file}: {error.strerror}", err=True)
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
    _serve(config, own, dialplan, supervisor_link, read, sink.close)


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
    write_log: Callable[[], None],
) -> None:
    """Run the gateway until it ends; exit with 1 when it cannot start."""
    try:
        from gateway.app import service
        from gateway.sip.agent import AgentError
    except ImportError as error:
        click.echo(f"A library is missing ({error}): `make` builds and installs it", err=True)
        sys.exit(1)
    try:
        service.run(settings, dialplan, supervisor_link, read, write_log)
    except (AgentError, OSError) as error:
        where = settings.where(str(error).partition(": ")[0])  # most messages begin with the key
        line = "" if where == "default" else f":{where.rpartition(':')[2]}"
        click.echo(f"{config}{line}: {error}", err=True)
        sys.exit(1)


RELOAD_SECONDS = 30.0
"""For the answer (s): among others, for MCP servers of new routes, among others."""


@click.command("reload", epilog=examples("gateway reload"))
@CONFIG
@SOCKET
def reload(config: Path, path: Path | None) -> None:
    """Have a running gateway read its files anew, without touching calls in progress.

    Prints what changed and what needs a restart. Where a file is wrong, the gateway keeps all of
    the old: exit 2, with file, line and key.
    """
    each = ask_workers(config, path, "reload", RELOAD_SECONDS, all_workers=True)
    for name, told in each:
        who = f"{name}: " if len(each) > 1 else ""
        for problem in told["problems"]:
            click.echo(printable(f"{who}{problem}"), err=True)
        for key in told["changed"]:
            click.echo(printable(f"{who}changed: {key}"))
        for key in told["restart_required"]:
            click.echo(printable(f"{who}needs a restart: {key}"))
        if told["applied"] and not told["changed"] and not told["restart_required"]:
            click.echo(f"{who}nothing has changed")
    if not all(told["applied"] for _, told in each):
        sys.exit(2)


@click.command(
    "webhooks", epilog=examples("gateway webhooks --dead", "gateway webhooks --resend all")
)
@CONFIG
@SOCKET
@click.option("--dead", is_flag=True, help="Those that were given up, in place of those that wait.")
@click.option("--resend", metavar="ID", help="Try a delivery that was given up anew; all: each.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON, with what is delivered.")
def webhooks(
    config: Path, path: Path | None, dead: bool, resend: str | None, as_json: bool
) -> None:
    """List deliveries to webhooks, or try those that were given up anew."""
    if resend is not None:
        wanted = "*" if resend == "all" else resend
        count = ask_gateway(config, path, "resend", delivery=wanted)["resent"]
        click.echo(f"tried anew: {count}")
        return
    found = ask_gateway(config, path, "deliveries", dead=str(dead).lower())["deliveries"]
    if as_json:
        click.echo(json.dumps(found, indent=2))
        return
    for one in found:
        age = duration(time.time() - one["created"])
        said = f", {one['error']}" if one["error"] else ""
        about = f"{one['id']}  {one['endpoint']}  {one['body'].get('type')} of {one['call_id']}"
        click.echo(printable(f"{about}, {age} old, tried {one['tries']} times{said}"))
    if not found:
        click.echo("none")


@click.command(
    "emulator",
    epilog=examples("gateway emulator --listen 127.0.0.1:8765 --script hotel.toml"),
)
@click.option("--listen", default="127.0.0.1:8765", show_default=True, metavar="HOST:PORT")
@click.option(
    "--script", type=click.Path(path_type=Path, exists=True), help="Scripted replies and faults."
)
@click.option("--record", type=click.Path(path_type=Path), help="Folder for events and audio.")
@click.option("--text-model", default="", metavar="HOST:PORT", help="Serve a text model, too.")
def emulator(listen: str, script: Path | None, record: Path | None, text_model: str) -> None:
    """Run a realtime server with scripted replies: no model, no API key."""
    from gateway.devtools.emulator import run

    try:
        run(listen, script, record, text_model)
    except OSError as error:
        click.echo(f"{error.filename}: {error.strerror}", err=True)
        sys.exit(2)
    except ValueError as error:
        click.echo(str(error), err=True)
        sys.exit(2)


NOT_PLACED = 2
NOT_ANSWERED = 1

POLL_SECONDS = 0.5
"""How often a running gateway is asked whether the call is over."""


def _variables(_context: object, _parameter: object, values: tuple[str, ...]) -> dict[str, str]:
    """Parse ``NAME=VALUE`` options. Raises BadParameter."""
    found = {}
    for value in values:
        name, equals, text = value.partition("=")
        if not equals or not name.isidentifier():
            raise click.BadParameter(f"{value!r} is not NAME=VALUE")
        found[name] = text
    return found


@click.command(
    "dial", epilog=examples("gateway dial +4930123456 --route reception --trunk carrier")
)
@click.argument("to")
@click.option("--route", required=True, metavar="NAME", help="Route whose session the call gets.")
@click.option(
    "--trunk", default="", metavar="NAME", help="Trunk to call through; required for a number."
)
@click.option(
    "--caller-id",
    default="",
    metavar="NUMBER",
    help="Caller number; overrides the trunk's caller_id, must match its caller_ids.",
)
@click.option(
    "--var",
    "variables",
    multiple=True,
    callback=_variables,
    metavar="NAME=VALUE",
    help="Value of a variable that the route's named groups would set.",
)
@CONFIG
def dial(
    to: str, route: str, trunk: str, caller_id: str, variables: dict[str, str], config: Path
) -> None:
    """Call TO, a number or a sip or tel URI, and join it to a route's session.

    The running gateway with this configuration places the call, if its control socket answers;
    otherwise a gateway is run for this call. Waits for the end of the call: exit 0 when it was
    answered, 1 when not, 2 when it was not placed. Ctrl-C does not end a call of the running
    gateway; `gateway hangup` does.
    """
    from gateway.api.client import sockets_at
    from gateway.app.supervisor import keep_running
    from gateway.config import ConfigError
    from gateway.log import set_up_logging
    from gateway.planning.check import load_all

    try:
        settings, dialplan = load_all(config)
    except ConfigError as error:
        click.echo(str(error), err=True)
        sys.exit(NOT_PLACED)
    socket = settings.control.socket
    for one in () if socket is None else sockets_at(socket):
        status = _placed_by_gateway(one, to, route, trunk, variables, caller_id)
        if status is not None:
            sys.exit(status)
    log = settings.log
    sink = set_up_logging(
        log.format, log.level, log.file, settings.secrets() + dialplan.secrets(), None, log.redact
    )
    keep_running(sink.reopen)
    sys.exit(_place(settings, dialplan, to, route, trunk, variables, caller_id))


def _placed_by_gateway(
    path: Path, to: str, route: str, trunk: str, variables: dict[str, str], caller_id: str
) -> int | None:
    """Have the running gateway place a call; return the exit status at its end.

    None where no gateway answers at the socket ``path``."""
    from gateway.api.client import NoAnswerError, RefusedError, ask

    try:
        fields = {"to": to, "route": route, "trunk": trunk, "variables": variables}
        call = ask(path, "dial", **fields, caller_id=caller_id)["call"]
    except NoAnswerError:
        return None
    except RefusedError as refused:
        click.echo(printable(f"not placed: {refused}"), err=True)
        return NOT_PLACED
    try:
        while not (answer := ask(path, "call", call=call))["over"]:
            time.sleep(POLL_SECONDS)
    except (NoAnswerError, RefusedError) as error:
        click.echo(printable(f"{call}: {error}"), err=True)
        return NOT_ANSWERED
    except KeyboardInterrupt:
        click.echo(f"{call} goes on in the gateway: `gateway hangup {call}` ends it", err=True)
        return NOT_ANSWERED
    return _tell(answer["summary"])


def _tell(summary: dict[str, Any]) -> int:
    """Print how the call ended; return the exit status."""
    ending = summary["ending"]
    answered = summary["times_ms"]["answered"] is not None
    code, detail = str(ending["sip_code"]), str(ending["detail"])
    told = "answered" if answered else "not answered"
    # What the network said begins with the code; where nobody answered, there is no code.
    silent = not answered and detail and not detail.startswith(code)
    said = detail if silent else f"SIP {code} {detail.removeprefix(code).strip()}".rstrip()
    click.echo(printable(f"{told}: {ending['why']} by {ending['by']}, {said}"))
    return 0 if answered else NOT_ANSWERED


def _place(
    settings: Config,
    dialplan: Dialplan,
    to: str,
    route: str,
    trunk: str,
    variables: dict[str, str],
    caller_id: str,
) -> int:
    """Run a gateway for one call; return the exit status."""
    try:
        from gateway.app.service import Service
        from gateway.bridge.legs import DialRefusedError
        from gateway.sip.agent import AgentError
    except ImportError as error:
        click.echo(f"A library is missing ({error}): `make` builds and installs it", err=True)
        return NOT_PLACED

    async def one_call() -> CallRecord:
        return await Service(settings, dialplan).run_one(to, route, trunk, variables, caller_id)

    try:
        record = asyncio.run(one_call())
    except DialRefusedError as refused:
        click.echo(printable(f"not placed: {refused}"), err=True)
        return NOT_PLACED
    except (AgentError, OSError, ValueError) as error:
        click.echo(str(error), err=True)
        return NOT_PLACED
    return _tell(record.summary())
