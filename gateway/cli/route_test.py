# SPDX-License-Identifier: GPL-2.0-or-later
"""``gateway route-test``: the route that an INVITE takes, the reasons, and the session."""

from __future__ import annotations

import asyncio
import ipaddress
import json
import re
import sys
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass, field, replace
from datetime import datetime
from functools import partial
from pathlib import Path
from typing import Any, TextIO
from urllib.parse import quote

import click
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from gateway.audio import G711, Codec
from gateway.bridge.route_data import fetch, with_data
from gateway.call.plan import CallPlan
from gateway.cli import CONFIG, examples
from gateway.config import Config, ConfigError
from gateway.dialplan import Dialplan, InviteFacts, Match
from gateway.dialplan.variables import AS_WRITTEN
from gateway.log import BLANK, Redactor
from gateway.planning import (
    call_plan,
    codec_of,
    facts_of,
    session_codec,
    session_plan,
)
from gateway.planning.check import load_all
from gateway.planning.route_tools import metadata_of, tool_executor
from gateway.planning.sip import sip_settings
from gateway.realtime.live_session import CLIP
from gateway.realtime.live_voice import texts
from gateway.realtime.wire import with_pcm
from gateway.sip.leg import Invite
from gateway.sip.messages.headers import first_of, headers_of, invite_of
from gateway.sip.trunks import Trunks
from gateway.tools.http import HttpClient

DEFAULT_SOURCE = "127.0.0.1:5060"
_URI = re.compile(r"(?:sips?|tel):", re.IGNORECASE)
_HEADER = re.compile(r"\s*([!%*+.`'~_\-0-9A-Za-z]+)\s*:\s*([^\r\n]*)")
_VIA_HOST = re.compile(r"SIP/2\.0/\w+\s+(\[[^\]]+\]|[^\s:;,]+)(?::(\d+))?", re.IGNORECASE)


class GivenError(ValueError):
    """An option or file that makes no INVITE; the message says what is wrong."""


def invite_from_options(
    to: str, from_: str, headers: Iterable[str], source: str | None, codec: str
) -> Invite:
    """Return an INVITE to ``to``, a number, address or ``"Name" <sip:...>``. Raises GivenError."""
    payload = {"PCMU": "0", "PCMA": "8", "G722": "9", "opus": "96"}[codec]
    lines = [
        f"INVITE {_uri(to)} SIP/2.0",
        f"To: {_field(to)}",
        f"From: {_field(from_)};tag=route-test",
        "Call-ID: route-test",
        *header_lines(headers),
        "",
        f"m=audio 4000 RTP/AVP {payload}",
        f"a=rtpmap:{payload} {Codec(codec).rtpmap}",
    ]
    return invite_of("\r\n".join(lines), full_source(source or DEFAULT_SOURCE))


def invite_from_message(message: str, headers: Iterable[str], source: str | None) -> Invite:
    """Return the INVITE in the text of a SIP message, with ``headers`` added. Raises GivenError."""
    text = re.sub(r"\r?\n", "\r\n", message.lstrip())
    start, _, rest = text.partition("\r\n")
    if not re.fullmatch(r"INVITE \S+ SIP/2\.0", start.strip()):
        raise GivenError("is no INVITE: it has to begin like INVITE sip:100@example.com SIP/2.0")
    text = "\r\n".join([start.strip(), *header_lines(headers), rest])
    return invite_of(text, full_source(source or _via_source(text) or DEFAULT_SOURCE))


def header_lines(headers: Iterable[str]) -> list[str]:
    """Return header fields in the form ``Name: value``. Raises GivenError."""
    lines = []
    for header in headers:
        found = _HEADER.fullmatch(header)
        if found is None:
            raise GivenError(f"--header {header!r}: must be like 'X-Name: value'")
        lines.append(f"{found[1]}: {found[2].strip()}")
    return lines


def full_source(source: str) -> str:
    """Return an address with its port, 5060 by default. Raises GivenError."""
    host, port = source, "5060"
    if (found := re.fullmatch(r"(\[[^\]]+\]|[^:]+):(\d+)", source)) is not None:
        host, port = found[1], found[2]
    try:
        address = ipaddress.ip_address(host.strip("[]"))
    except ValueError:
        raise GivenError(f"--source {source!r}: must be an address like 192.0.2.1") from None
    return f"[{address}]:{port}" if address.version == 6 else f"{address}:{port}"


def moment(text: str | None) -> datetime:
    """Return a time like ``2026-11-20 18:30``, local unless it has an offset; now for None.

    Raises GivenError.
    """
    if text is None:
        return datetime.now().astimezone()
    try:
        at = datetime.fromisoformat(text.strip())
    except ValueError:
        raise GivenError(f"--at {text!r}: must be like '2026-11-20 18:30'") from None
    return at.astimezone()


def _via_source(message: str) -> str:
    """Return the source that the first Via of a message names, or ""."""
    vias = headers_of(message).get("via", ())
    found = _VIA_HOST.match(vias[0]) if vias else None
    if found is None:
        return ""
    received = re.search(r";received=([^;,\s]+)", vias[0])
    try:
        return full_source(f"{received[1] if received else found[1]}")
    except GivenError:
        return ""


def _uri(text: str) -> str:
    inside = re.search(r"<([^>]+)>", text)
    bare = inside[1] if inside else text.strip()
    if _URI.match(bare):
        return bare
    return f"sip:{bare}" if "@" in bare else f"sip:{quote(bare, safe='+*#-_.!~()&=$,;?/')}@gateway"


def _field(text: str) -> str:
    name, bracket, _ = text.partition("<")
    return f"{name}<{_uri(text)}>" if bracket else f"<{_uri(text)}>"


def given_data(text: str) -> Fetch:
    """Return a source of data: the JSON object in ``text``, or in ``@FILE``. Raises GivenError."""
    if text.startswith("@"):
        try:
            text = Path(text[1:]).read_text("utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise GivenError(f"--data {text!r}: cannot be read ({error})") from None
    try:
        data = json.loads(text)
    except ValueError as error:
        raise GivenError(f"--data: is no JSON ({error})") from None
    if not isinstance(data, dict):
        raise GivenError("--data: must be a JSON object")
    return lambda _match: (data, "as given")


def asked(match: Match) -> tuple[Any, str]:
    """Request the data of ``[route.data]``; return it and what became of the request."""

    async def ask() -> tuple[Any, str]:
        client = HttpClient(1)
        try:
            return await fetch(match, client)
        finally:
            await client.close()

    data, failure = asyncio.run(ask())
    return data, f"none: {failure}; the defaults" if failure else "as the service answers now"


Fetch = Callable[[Match], tuple[Any, str]]
"""Brings the data of a call, None for none, and says where they are from or why there are none."""


@dataclass(frozen=True, slots=True)
class Verdict:
    """One route: why it does not match, empty when it does."""

    name: str
    where: str
    refusal: str


@dataclass(frozen=True, slots=True)
class Answer:
    """Everything that is shown; nothing in it is secret. ``route`` is empty when none matches."""

    facts: InviteFacts
    attributed_by: str
    access: str
    """What keeps this INVITE from every route, if something does."""
    verdicts: tuple[Verdict, ...]
    route: str = ""
    variables: Mapping[str, str] = field(default_factory=dict)
    cleaned: tuple[str, ...] = ()
    server: str = ""
    model: str = ""
    session: Any = None
    greeting: Any = None
    metadata: Mapping[str, str] = field(default_factory=dict)
    data: str = ""
    """What is in the place of the data that a call would fetch, if it would."""

    def as_json(self) -> dict[str, Any]:
        facts = {**asdict(replace(self.facts, headers={})), "at": self.facts.at.isoformat()}
        facts["headers"] = {name: list(values) for name, values in self.facts.headers.items()}
        return {
            "facts": facts,
            "attributed_by": self.attributed_by,
            "access": self.access,
            "routes": [asdict(verdict) for verdict in self.verdicts],
            "route": self.route or None,
            "variables": self.variables,
            "cleaned": list(self.cleaned),
            "server": self.server,
            "model": self.model,
            "session": self.session,
            "response": self.greeting,
            "metadata": dict(self.metadata),
            "data": self.data,
        }


def answer(
    config: Config,
    dialplan: Dialplan,
    invite: Invite,
    at: datetime,
    trunk: str | None,
    data: Fetch | None = None,
) -> Answer:
    """Return which route takes an INVITE that comes at ``at``, and the session of its call.

    Args:
        trunk: name of the trunk; None to find it by the source address.
        data: source of what ``[route.data]`` would fetch; None for the defaults.

    Raises GivenError for a trunk that is not there.
    """
    settings = sip_settings(config)
    trunks = Trunks(settings.trunks)
    how = "as given"
    if trunk is None:
        host, _, port = invite.source.rpartition(":")
        via = first_of(invite.headers, "via").lower().partition(" ")[0]
        reliable = "/tcp" in via or "/tls" in via
        found = trunks.attribute(host.strip("[]"), int(port), reliable, invite.to_uri)
        trunk, how = (found.trunk.name, found.how) if found else ("", "")
    elif trunk not in trunks.by_name:
        known = ", ".join(trunks.by_name) or "none is configured"
        raise GivenError(f"--trunk {trunk!r}: there is no such trunk ({known})")
    codecs = trunks.by_name[trunk].codecs if trunk in trunks.by_name else G711
    offered = tuple(one for one in codecs if invite.offered is None or one in invite.offered)
    invite = replace(invite, trunk=trunk, codecs=codecs, offered=offered or None)
    facts = facts_of(invite, at)
    verdicts = tuple(
        Verdict(
            one.route.name,
            str(dialplan.origins[one.route.name]),
            str(one).partition(": ")[2] if one.refusal else "",
        )
        for one in dialplan.explain(facts)
    )
    access = ""
    if not trunk:
        verdict = settings.access.action_for(facts.source_ip, bool(settings.trunks))
        if verdict != "allow":
            done = {"reject": "refused", "drop": "dropped"}[verdict]
            access = f"access.unknown_sources: this source is no trunk's, so its calls are {done}"
    return _with_route(Answer(facts, how, access, verdicts), config, dialplan, invite, data)


def _with_route(
    found: Answer, config: Config, dialplan: Dialplan, invite: Invite, data: Fetch | None
) -> Answer:
    """Add session, greeting and data of the route to an answer."""
    match = dialplan.match(found.facts)
    if match is None:
        return found
    told = ""
    if match.route.data is not None:
        got, told = (None, "not fetched: the defaults") if data is None else data(match)
        match = with_data(match, got)
    codec = session_codec(config, match.route, codec_of(invite))
    # Tools of MCP servers are not among these: nothing is started here.
    plan = session_plan(config, match.route, codec, match.values, tool_executor(config, dialplan))
    hide = partial(_hidden, Redactor((*config.secrets(), *dialplan.secrets())))
    session = plan.settings_for(plan.endpoint)
    if codec.wide:
        session = with_pcm({"session": session})["session"]
    return replace(
        found,
        route=match.route.name,
        variables={name: hide(value) for name, value in match.values.items()},
        cleaned=match.cleaned,
        server=plan.endpoint.shown,
        model=str(session.get("model") or plan.endpoint.model),
        session=hide(session),
        greeting=hide(_greeting(call_plan(config, match, codec, 0), live=plan.endpoint.live)),
        metadata=hide(metadata_of(match.route, match.values)),
        data=told,
    )


def _greeting(plan: CallPlan, *, live: bool) -> Any:
    """Return the event that requests the greeting, without audio; None without a greeting."""
    if not live or plan.greeting is None:
        return plan.greeting
    if plan.greeting_clip:
        return {"type": CLIP, "content": f"greeting.clip, {len(plan.greeting_clip)} bytes"}
    if plan.greeting_words:
        return texts("commentary", plan.greeting_words)[0]
    return texts("instructions", str(plan.greeting["instructions"]))[0]


def _hidden(redact: Redactor, value: Any, secret: bool = False) -> Any:
    """Return a JSON value without its secrets."""
    if isinstance(value, Mapping):
        return {
            name: _hidden(redact, inner, secret or name in AS_WRITTEN)
            for name, inner in value.items()
        }
    if isinstance(value, list):
        return [_hidden(redact, inner, secret) for inner in value]
    if isinstance(value, str):
        return BLANK if secret else redact(None, "", value)
    return value


@click.command(
    "route-test",
    epilog=examples(
        "gateway route-test --to 100 --from +4930123456",
        "gateway route-test --invite captured.sip --source 192.0.2.1",
    ),
)
@CONFIG
@click.option("--to", "to", metavar="USER", help="Called user or address.")
@click.option("--from", "from_", metavar="USER", default="anonymous", help="Caller.")
@click.option("--header", "headers", metavar="'NAME: VALUE'", multiple=True, help="A header field.")
@click.option("--source", metavar="ADDRESS[:PORT]", help="Source address of the INVITE.")
@click.option("--trunk", metavar="NAME", help="Trunk; default: found by the source address.")
@click.option("--at", metavar="'DATE TIME'", help="Time of the call; default: now.")
@click.option("--codec", type=click.Choice(list(Codec)), default="PCMU", help="Offered codec.")
@click.option("--invite", type=click.File("r"), help="File with the INVITE; - is stdin.")
@click.option("--data", metavar="JSON", help="Response of the route's data service, or @FILE.")
@click.option("--fetch", is_flag=True, help="Request the data from the route's service.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def command(
    config: Path,
    to: str | None,
    from_: str,
    headers: tuple[str, ...],
    source: str | None,
    trunk: str | None,
    at: str | None,
    codec: str,
    invite: TextIO | None,
    data: str | None,
    fetch: bool,
    as_json: bool,
) -> None:
    """Show which route an INVITE takes, why the others do not match, and its session.

    Exit 0, or 1 when no route matches.
    """
    if (to is None) == (invite is None):
        raise click.UsageError("say who is called: --to USER, or --invite FILE")
    if data is not None and fetch:
        raise click.UsageError("either --data or --fetch")
    try:
        bring = given_data(data) if data is not None else asked if fetch else None
        settings, dialplan = load_all(config)
        if invite is not None:
            given = invite_from_message(_read(invite), headers, source)
        else:
            given = invite_from_options(to or "", from_, headers, source, codec)
        found = answer(settings, dialplan, given, moment(at), trunk, bring)
    except (ConfigError, GivenError, UnicodeDecodeError) as error:
        click.echo(str(error), err=True)
        sys.exit(2)
    if as_json:
        click.echo(json.dumps(found.as_json(), indent=2, ensure_ascii=False))
    else:
        show(found, Console(highlight=False, soft_wrap=True))
    sys.exit(0 if found.route else 1)


def _read(file: TextIO) -> str:
    # What is no UTF-8 is no reason to stop: the gateway takes such INVITEs too.
    buffer = getattr(file, "buffer", None)
    return file.read() if buffer is None else buffer.read().decode("utf-8", "replace")


def show(found: Answer, console: Console) -> None:
    """Print an answer as text."""
    facts = found.facts
    name = f' "{facts.from_name}"' if facts.from_name else ""
    trunk = f"trunk {facts.trunk} ({found.attributed_by})" if facts.trunk else "no trunk"
    console.print(
        f"[bold]{escape(facts.to_user or facts.to_uri)}[/] called by "
        f"[bold]{escape(facts.from_user or facts.from_uri)}[/]{escape(name)} from "
        f"{escape(facts.source_ip)}, {escape(trunk)}, {facts.at:%a %Y-%m-%d %H:%M %Z}"
    )
    if found.access:
        console.print(f"[yellow]note:[/] {escape(found.access)}")
    console.print("\n[bold]Routes[/]")
    _verdicts(found, console)
    if not found.route:
        console.print("\n[bold red]No route takes this call: 404[/]")
        return
    console.print(f"\n[bold]Variables[/] of {escape(found.route)}")
    grid = Table.grid(padding=(0, 2))
    for key, value in found.variables.items():
        if value:
            cleaned = " [yellow](something was taken away)[/]" if key in found.cleaned else ""
            grid.add_row(f"  {{{escape(key)}}}", escape(value) + cleaned)
    console.print(grid)
    if found.data:
        console.print(f"\n[bold]Data[/] {escape(found.data)}")
    if found.metadata:
        console.print("\n[bold]Metadata[/]")
        console.print(_pretty(found.metadata), markup=False)
    console.print(f"\n[bold]Session[/] at {escape(found.server)}, model {escape(found.model)}")
    console.print(_pretty(found.session), markup=False)
    if found.greeting is not None:
        live = "type" in found.greeting
        console.print(f"\n[bold]{'Greeting' if live else 'First response'}[/]")
        console.print(_pretty(found.greeting), markup=False)


def _verdicts(found: Answer, console: Console) -> None:
    """Print for each route whether it takes the call, and why not."""
    if not found.verdicts:
        console.print("  there is none")
    width = max((len(verdict.name) for verdict in found.verdicts), default=0)
    for verdict in found.verdicts:
        taken = verdict.name == found.route
        mark = "[green]✓[/]" if taken else "[yellow]·[/]" if not verdict.refusal else "[red]✗[/]"
        why = "takes the call" if taken else verdict.refusal or "would, but an earlier one does"
        console.print(
            f"  {mark} {escape(verdict.name.ljust(width))}  {escape(why)}  "
            f"[dim]{escape(_short(verdict.where))}[/]"
        )


def _short(where: str) -> str:
    file, _, line = where.rpartition(":")
    path = Path(file)
    near = path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path
    return f"{near}:{line}"


def _pretty(value: Any) -> str:
    return json.dumps(value, indent=2, ensure_ascii=False)
