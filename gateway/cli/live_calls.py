# SPDX-License-Identifier: GPL-2.0-or-later
"""Commands on the live calls of a running gateway, and its status, as lines of text."""

from __future__ import annotations

import json
import re
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from decimal import Decimal
from functools import wraps
from pathlib import Path
from typing import Any

import click

from gateway.api.client import (
    ANSWER_SECONDS,
    NoAnswerError,
    RefusedError,
    ask,
    socket_of,
    sockets_at,
)
from gateway.cli import CONFIG, SOCKET, ask_gateway, ask_workers, examples, print_json
from gateway.ending import OUTCOMES
from gateway.text import money, printable


@click.command("status", epilog=examples("gateway status", "gateway status --json"))
@CONFIG
@SOCKET
@click.option("--json", "as_json", is_flag=True, help="Print everything as one JSON object.")
def status(config: Path, path: Path | None, as_json: bool) -> None:
    """Show trunks, calls, servers and rejected requests of a running gateway.

    Exit 0; 1 when no gateway answers; 3 when a part of it has failed.
    """
    each = ask_workers(config, path, "status", all_workers=True)
    if as_json:
        told = each[0][1] if len(each) == 1 else {"workers": dict(each)}
        print_json(told)
    for name, status in () if as_json else each:
        if len(each) > 1:
            click.echo(f"{name}:")
        for line in status_lines(status):
            click.echo(printable(line))
    if any((status.get("health") or {}).get("problems") for _, status in each):
        sys.exit(3)


POLL_SECONDS = 0.2
"""Interval of the queries for the outcome of a transfer."""


@click.command(
    "calls",
    epilog=examples(
        "gateway calls",
        "gateway calls --past --since 12h --outcome failed",
        "gateway calls --past --format csv --limit 0 > calls.csv",
    ),
)
@CONFIG
@SOCKET
@click.option("--json", "as_json", is_flag=True, help="Print everything as one JSON array.")
@click.option("--past", is_flag=True, help="Calls from the database, newest first.")
@click.option("--since", metavar="TIME", help="From this time on (ISO 8601), or of this age: 12h.")
@click.option("--until", metavar="TIME", help="Before this time, or this age.")
@click.option("--number", default="", help="From or to this number.")
@click.option("--route", default="", help="Of this route.")
@click.option("--trunk", default="", help="Of this trunk.")
@click.option("--outcome", type=click.Choice(OUTCOMES), help="With this outcome.")
@click.option("--why", default="", help="With this end reason.")
@click.option("--limit", type=click.IntRange(min=0), default=50, show_default=True, help="0: all.")
@click.option("--format", "form", type=click.Choice(["text", "json", "jsonl", "csv"]))
def calls(
    config: Path,
    path: Path | None,
    as_json: bool,
    past: bool,
    since: str | None,
    until: str | None,
    limit: int,
    form: str | None,
    **wanted: str | None,
) -> None:
    """List calls in progress, or past calls.

    For each: id (the other commands take it, its beginning or end), state, age, numbers, route,
    codec and cost so far; of the past ones, how they ended. Filters and --format are for --past.
    """
    if past:
        from gateway.cli.past import print_past

        fields = {name: value or "" for name, value in wanted.items()}
        print_past(config, since, until, fields, limit, form or ("json" if as_json else "text"))
        return
    if since or until or form or any(wanted.values()):
        raise click.UsageError("filters and --format are for past calls: add --past")
    workers = ask_workers(config, path, "status", all_workers=True)
    found = [call for _, status in workers for call in status["calls"]]
    if as_json:
        print_json(found)
        return
    if not found:
        click.echo("no calls in progress", err=True)
    for line in call_lines(found):
        click.echo(printable(line))


FOLLOW_SECONDS = 0.5
QUERY_SECONDS = 25.0

_RESPOND = click.option("--respond", is_flag=True, help="Also request a response to it.")

Ask = Callable[..., dict[str, Any]]
"""Asks the gateway for a command about the call, by its name and fields."""


def _on_call(name: str, *lines: str) -> Callable[[Callable[..., None]], click.Command]:
    """Make a command about CALL of a function that is given how to ask, and its own parameters."""

    def made(function: Callable[..., None]) -> click.Command:
        @click.command(name, epilog=examples(*lines))
        @click.argument("call")
        @CONFIG
        @SOCKET
        @wraps(function)
        def command(call: str, config: Path, path: Path | None, **given: Any) -> None:
            def ask(command: str, **fields: Any) -> dict[str, Any]:
                seconds = QUERY_SECONDS if command == "query" else ANSWER_SECONDS
                return ask_gateway(config, path, command, seconds, **{"call": call, **fields})

            function(ask, **given)

        return command

    return made


def _confirm(answer: Mapping[str, Any], what: str, respond: bool) -> None:
    more = " and response requested" if respond else ""
    click.echo(printable(f"{answer['call']}: {what} added{more}"))


@_on_call("hangup", "gateway hangup 7f3a")
def hangup(ask: Ask) -> None:
    """End CALL, given by its id, its beginning or its end. Exit 0, or 1 with the reason."""
    answer = ask("hangup")
    click.echo(f"{answer['call']} is hung up")


@_on_call("transfer", "gateway transfer 7f3a sales")
@click.argument("destination")
@click.option("--briefing", default="", help="What whoever answers is told first.")
def transfer(ask: Ask, destination: str, briefing: str) -> None:
    """Transfer CALL to DESTINATION, the name of one of its route's [[route.transfer]].

    The transfer runs in the mode that the route sets; without an answer the caller returns to the
    model. Waits for the outcome: exit 0 when the call was answered, or 1 with the reason. Ctrl-C
    does not cancel the transfer.
    """
    answer = ask("transfer", destination=destination, briefing=briefing)
    click.echo(printable(f"{answer['call']} goes to {answer['to']}"))
    until = time.monotonic() + answer["seconds"]
    which = {"call": answer["call"], "transfer": answer["transfer"]}
    while not (told := ask("transfer_outcome", **which))["over"]:
        if time.monotonic() >= until:
            click.echo(f"no outcome yet: {told['outcome']}", err=True)
            sys.exit(1)
        time.sleep(POLL_SECONDS)
    click.echo(printable(told["outcome"]), err=not told["done"])
    if not told["done"]:
        sys.exit(1)


@_on_call("say", 'gateway say 7f3a "Please hold the line."')
@click.argument("text")
def say(ask: Ask, text: str) -> None:
    """Have the model say TEXT in CALL, word for word, after the current response."""
    answer = ask("say", text=text)
    click.echo(printable(f"{answer['call']}: queued; the model says it after the current response"))


@_on_call("send-message", 'gateway send-message 7f3a "The order has shipped." --respond')
@click.argument("text")
@click.option("--user", is_flag=True, help="Send it as the caller, not the system.")
@_RESPOND
def send_message(ask: Ask, text: str, user: bool, respond: bool) -> None:
    """Add TEXT to the conversation of CALL as a message."""
    role = "user" if user else "system"
    answer = ask("send_message", text=text, role=role, respond=respond)
    _confirm(answer, f"{role} message", respond)


@_on_call("send-image", 'gateway send-image 7f3a parcel.jpg --text "Their parcel."')
@click.argument("image", type=click.Path(path_type=Path, exists=True, dir_okay=False))
@click.option("--text", default="", help="Text to send with it.")
@_RESPOND
def send_image(ask: Ask, image: Path, text: str, respond: bool) -> None:
    """Add IMAGE, a PNG or JPEG file, to the conversation of CALL."""
    from gateway.tools import ImageError, data_uri

    try:
        uri = data_uri(image.read_bytes())
    except (OSError, ImageError) as error:
        click.echo(f"{image}: {error}", err=True)
        sys.exit(1)
    answer = ask("send_image", image=uri, text=text, respond=respond)
    _confirm(answer, "image", respond)


@_on_call("create-response", 'gateway create-response 7f3a "Ask for the order number."')
@click.argument("instructions")
def create_response(ask: Ask, instructions: str) -> None:
    """Have the model speak in CALL, with INSTRUCTIONS for this response only."""
    answer = ask("create_response", text=instructions)
    click.echo(printable(f"{answer['call']}: response requested"))


@_on_call("query", 'gateway query 7f3a "Sum the call up in one line."')
@click.argument("question")
def query(ask: Ask, question: str) -> None:
    """Ask the model QUESTION about CALL; the caller does not hear it."""
    answer = ask("query", text=question)
    click.echo(printable(answer["text"]))


@_on_call("hold", "gateway hold 7f3a", "gateway hold 7f3a --off")
@click.option("--off", is_flag=True, help="Take the caller back from hold.")
def hold(ask: Ask, off: bool) -> None:
    """Put the caller of CALL on hold, with music."""
    answer = ask("unhold" if off else "hold")
    click.echo(printable(f"{answer['call']}: {'back from' if off else 'on'} hold"))


@_on_call("mute", "gateway mute 7f3a", "gateway mute 7f3a --off")
@click.option("--off", is_flag=True, help="Let the model hear the caller again.")
def mute(ask: Ask, off: bool) -> None:
    """Let the model hear silence in place of the caller of CALL."""
    answer = ask("unmute" if off else "mute")
    click.echo(printable(f"{answer['call']}: {'unmuted' if off else 'muted'}"))


@_on_call("dtmf", "gateway dtmf 7f3a 12w#")
@click.argument("digits")
def dtmf(ask: Ask, digits: str) -> None:
    """Send DIGITS to the caller's side of CALL; w is a pause."""
    answer = ask("dtmf", digits=digits)
    click.echo(printable(f"{answer['call']}: digits sent"))


@click.command("transcript", epilog=examples("gateway transcript 7f3a --follow"))
@click.argument("call")
@click.option("-f", "--follow", is_flag=True, help="Continue until the call ends.")
@click.option("--json", "as_json", is_flag=True, help="Print each entry as one JSON object.")
@click.option("--unmasked", is_flag=True, help="Show private digits and what records.redact masks.")
@CONFIG
@SOCKET
def transcript(
    call: str, follow: bool, as_json: bool, unmasked: bool, config: Path, path: Path | None
) -> None:
    """Print what both sides said in CALL so far, and what the caller heard of it.

    Digits are masked as in the record of the call.
    """

    def say(entries: Iterable[Mapping[str, Any]]) -> None:
        for one in entries:
            told = json.dumps(one, ensure_ascii=False) if as_json else line_of(one)
            click.echo(printable(told))

    answer = ask_gateway(config, path, "transcript", call=call, unmasked=unmasked)
    while follow:
        # Words are added to the latest entry as they come: it is shown when the next is there.
        last = answer["transcript"][-1:]
        say(answer["transcript"][:-1])
        time.sleep(FOLLOW_SECONDS)
        after = answer["count"] - len(last)
        try:
            socket = sockets_at(path or socket_of(config))[0]
            answer = ask(socket, "transcript", call=call, after=after, unmasked=unmasked)
        except (NoAnswerError, RefusedError):
            answer, follow = {"transcript": last}, False
    say(answer["transcript"])


def line_of(entry: Mapping[str, Any]) -> str:
    """Return an entry of a transcript as a line: seconds, speaker, words, what was heard."""
    heard = entry.get("heard")
    cut = "" if heard is None else f"  [heard: {heard or 'nothing'}]"
    return f"{entry['at_ms'] / 1000:8.1f}  {entry['who']:<7} {entry['text'] or '(no words)'}{cut}"


@click.group(
    "recording",
    epilog=examples(
        "gateway recording start 7f3a", "gateway recording decrypt call.wav.sealed -i key.txt"
    ),
)
def recording() -> None:
    """Control the recording of a call, or decrypt one."""


def _action(name: str, help: str) -> None:
    """Make the command for one action on a recording."""

    @recording.command(name, help=help, epilog=examples(f"gateway recording {name} 7f3a"))
    @click.argument("call")
    @CONFIG
    @SOCKET
    def act(call: str, config: Path, path: Path | None) -> None:
        answer = ask_gateway(config, path, "recording", call=call, action=name)
        click.echo(f"{answer['call']}: {answer['state']}")


_action("start", "Record CALL from now on, where its route allows it.")
_action("stop", "End the recording of CALL.")
_action("pause", "Record silence in CALL until it is resumed.")
_action("resume", "Record sound in CALL again.")
_action("delete", "End the recording of CALL, and leave nothing of it.")


@recording.command(
    "decrypt", epilog=examples("gateway recording decrypt call.wav.sealed -i key.txt")
)
@click.argument("file", type=click.Path(path_type=Path, exists=True, dir_okay=False))
@click.option(
    "-i",
    "--identity",
    "keys",
    type=click.Path(path_type=Path, exists=True, dir_okay=False),
    multiple=True,
    required=True,
    help="File with a private key of age or SSH; several may be given.",
)
@click.option("-o", "--output", type=click.Path(path_type=Path), help="Default: without .sealed.")
def decrypt(file: Path, keys: tuple[Path, ...], output: Path | None) -> None:
    """Write the plain recording of FILE. Exit 1 where no key fits, or it was changed."""
    from gateway.records.recording_files import RecordingError, identities_of
    from gateway.records.recording_files import decrypt as decrypted

    target = output or (file.with_suffix("") if file.suffix == ".sealed" else None)
    if target is None:
        raise click.UsageError("--output is needed: the file's name does not end in .sealed")
    try:
        note = decrypted(file, target, identities_of(keys))
    except (RecordingError, OSError) as error:
        raise click.ClickException(printable(str(error))) from None
    click.echo(f"{target}: {note}" if note else str(target))


_BANS_SHOWN = 10


def status_lines(status: Mapping[str, Any]) -> Iterator[str]:
    """Yield the answer to the command ``status`` as the lines that people read."""
    build = status["pjsua2"]
    state = "draining" if status["draining"] else "up"
    yield f"gateway {status['version']}, {state} for {duration(status['uptime_seconds'])}"
    for part, error in ((status.get("health") or {}).get("problems") or {}).items():
        yield f"  NOT WELL  {part}: {error}"
    yield f"  pjsua2    {build['distribution']}, {build['tls']}"
    yield f"  listens   {', '.join(status['listen'])}"
    yield f"  calls     {len(status['calls'])} of {status['max_calls']}"
    for call in status["calls"]:
        through = f" by {call['trunk']}" if call["trunk"] else ""
        yield (
            f"    {duration(call['age_seconds']):>8}  {call['from'] or 'gateway'} to {call['to']}"
            f"{through}, "
            f"route {call['route']}, {call['codec']} {call['security'] or '(no media yet)'}"
            f"{_figures(call)}"
        )
    yield f"  trunks    {len(status['trunks']) or 'none'}"
    for trunk in status["trunks"]:
        yield f"    {trunk['name']}: {_trunk(trunk)}"
    for server in status.get("realtime") or []:
        state, since = server["state"], server["seconds"]
        more = "" if since is None else f" for {since:.0f} s: {server['detail']}"
        yield f"  realtime  {server['url']}: {state}{more}"
    for name, tools in sorted((status.get("mcp") or {}).items()):
        yield f"  mcp       {name}: {tools['state']}, {tools['tools']} tools"
    promised = status.get("callbacks") or {}
    if promised.get("count"):
        yield f"  callbacks {promised['count']} promised"
        for one in promised["waiting"]:
            tries = f", tried {one['tries']} times" if one["tries"] else ""
            yield f"    {one['at']}  {one['number']}, route {one['route']}{tries}"
    if status["refused"]:
        yield "  refused"
        for rule, count in sorted(status["refused"].items()):
            yield f"    {count:>8}  {rule}"
    for why, count in sorted((status.get("unrecorded") or {}).items()):
        yield f"    {count:>8}  calls without a record of their own: {why}"
    banned = status.get("banned") or []
    for ban in banned[:_BANS_SHOWN]:
        left = duration(ban["seconds"])
        yield f"  banned    {ban['source']} for {left} more, {ban['dropped']} requests dropped"
    if len(banned) > _BANS_SHOWN:
        yield f"  banned    and {len(banned) - _BANS_SHOWN} more (--json has all)"
    cost = status.get("cost") or {}
    if cost.get("calls"):
        routes = cost["routes"].items()
        each = ", ".join(f"{name} {money(Decimal(amount))}" for name, amount in sorted(routes))
        shared = money(Decimal(cost["shared_total"]))
        yield f"  cost      {shared} {cost['currency']} on {cost['day']}" + (each and f": {each}")
    dropped = {name: count for name, count in status["dropped"].items() if count}
    if dropped:
        yield "  dropped   " + ", ".join(f"{count} {name}" for name, count in dropped.items())


def call_lines(calls: Iterable[Mapping[str, Any]]) -> Iterator[str]:
    """Yield a line for each call in progress: id, state, age, numbers, route, codec, cost."""
    for call in calls:
        age = duration(call["age_seconds"])
        caller = _user(call["from"]) or "gateway"  # of a call that it placed
        cost = call.get("cost") or {}
        parts = [
            f"{call['call_id']}  {call['state']:<12}  {age}  {caller} -> {_user(call['to'])}",
            f"route {call['route']}",
            call.get("codec") or "no media yet",
            f"{cost['priced']:.4f} {cost['currency']}" if cost else "",
        ]
        yield ", ".join(filter(None, parts))


def _user(uri: str) -> str:
    """Return the user part of a SIP URI; all of any other URI."""
    found = re.match(r"(?:.*<)?sips?:([^@;>]+)@", uri)
    return found[1] if found else uri


def _figures(call: Mapping[str, Any]) -> str:
    """Return quality and cost of a call as text."""
    quality, cost = call.get("quality") or {}, call.get("cost") or {}
    scores = [(quality.get(way) or {}).get("mos") for way in ("rx", "tx")]
    told = "/".join(f"{score['mean']:.1f}" if score else "-" for score in scores)
    heard = f", MOS {told}" if any(scores) else ""
    return heard + (f", {cost['priced']:.4f} {cost['currency']}" if cost else "")


def _trunk(trunk: Mapping[str, Any]) -> str:
    """Return state, registration, OPTIONS and calls of a trunk as text."""
    parts = [f"{trunk['state']} for {duration(trunk['since_seconds'])}"]
    if trunk["state"] == "static":
        parts = ["by address"]
    if trunk["expires_seconds"] is not None:
        parts.append(f"expires in {duration(trunk['expires_seconds'])}")
    if trunk["last_error"]:
        parts.append(f"last error {trunk['last_error']}")
    if trunk["next_try_seconds"] is not None:
        parts.append(f"next try in {duration(trunk['next_try_seconds'])}")
    if trunk["options"]:
        parts.append(f"OPTIONS {trunk['options']}")
    parts.append(f"{trunk['calls']} calls")
    return ", ".join(parts)


def duration(seconds: float) -> str:
    """Return seconds as text in their two largest units, as ``2 h 5 min``."""
    left = max(0, int(seconds))
    days, left = divmod(left, 86400)
    hours, left = divmod(left, 3600)
    minutes, left = divmod(left, 60)
    parts = [(days, "d"), (hours, "h"), (minutes, "min"), (left, "s")]
    first = next((index for index, (count, _) in enumerate(parts) if count), 3)
    return " ".join(f"{count} {unit}" for count, unit in parts[first : first + 2] if count) or "0 s"
