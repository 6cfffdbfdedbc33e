# SPDX-License-Identifier: GPL-2.0-or-later
"""Notes of ``gateway check`` on routes: patterns of another syntax, expressions without anchors,
routes that an earlier one hides; Live sessions, caller history, transcription, tools, toll fraud.
"""

from __future__ import annotations

import re
import shutil
from collections.abc import Iterator, Mapping, Sequence
from fnmatch import fnmatchcase

from phonenumbers import country_code_for_region

from gateway.billing import transcriber_of
from gateway.call.tools.definitions import OWN
from gateway.config import Config
from gateway.config.sections import on_loopback
from gateway.dialplan import Dialplan, Route, call_settings
from gateway.planning.route_tools import module_tools
from gateway.realtime.connection import is_live

_LITERAL = re.compile(r"\^?((?:[0-9A-Za-z_-]|\\[+*.])+)\$?")
"""An expression that stands for one number or name, with or without anchors."""

_ASTERISK = re.compile(
    r"\^?(?:_[0-9XZN*#+.!\[\]-]+|\+?[0-9]*[XZN][0-9XZN]*[.!]?|[0-9]+[xzn][0-9xzn]*[.!]?)\$?"
)
_GLOB = re.compile(r"\^?\+?[0-9]+\*\$?")
_NUMBER = re.compile(r"\^?(?:(?:\\[+*#d]|[#0-9.]|\[[0-9-]+\]|\{[0-9]+\})\??)+\$?")
"""An expression, or one side of a ``|`` in it, that stands for numbers of a limited length."""

_CLASSES = {"X": "[0-9]", "Z": "[1-9]", "N": "[2-9]", ".": ".+", "!": ".*", "+": "\\+", "*": "\\*"}


def route_notes(routes: Sequence[Route]) -> Iterator[str]:
    """Yield a line for each condition that probably means something else, and each hidden route."""
    for route in routes:
        for key, regex in (("to", route.to), ("from", route.from_)):
            note = None if regex is None else pattern_note(regex.pattern)
            if note is not None:
                yield f"route {route.name}, {key}: {note}"
    yield from _hidden(routes)


def has_live_sessions(config: Config, route: Route) -> bool:
    """Return whether the route's own server has Live sessions, not Realtime ones."""
    server = call_settings(config, route).realtime
    return is_live(server.url, server.model)


def live_notes(config: Config, routes: Sequence[Route]) -> Iterator[str]:
    """Yield a line for each setting of a route that has no effect with Live sessions."""
    for route in routes:
        if not has_live_sessions(config, route):
            continue
        by = (route.live.get("delegation") or {}).get("type", "client")
        for key, given in (
            ("interruptions", route.interruptions.by_gateway),
            ("post_call", bool(route.post_call.prompts) and by != "responses"),
            ("context", route.context.max_turns > 0),
        ):
            if given:
                yield f"route {route.name}, {key}: has no effect with Live sessions"
        for one, key in ((route.greeting, "greeting"), (route.disclosure, "disclosure")):
            if one is not None and one.exact and not config.media.speech_command:
                yield f"route {route.name}, {key}.exact: has no effect without media.speech_command"
        offered = bool(route.tools or route.tool or route.mcp or route.transfer)
        if offered and by != "responses" and route.delegate is None:
            yield (
                f"route {route.name}, live: nobody calls its functions without "
                'delegation.type = "responses"'
            )
        if route.delegate is not None and by != "client":
            yield f'route {route.name}, delegate: has no effect with delegation.type = "{by}"'
        if any(guard.speaker != "caller" for guard in route.guardrail):
            yield (
                f"route {route.name}, guardrail: of a Live session words come seconds after the "
                "caller has heard them"
            )


def history_notes(config: Config, routes: Sequence[Route]) -> Iterator[str]:
    """Yield a line for each ``[route.caller_history]`` that finds nothing, or trusts strangers."""
    names = {route.name for route in routes}
    for route in routes:
        wanted = route.caller_history
        if not wanted.enabled:
            continue
        start = f"route {route.name}, caller_history"
        if config.records.database_url is None:
            yield f"{start}: has no effect without records.database"
        for name in sorted({*wanted.routes} - names):
            yield f'{start}.routes: there is no route "{name}"'
        redacted = config.records.redact if route.records.redact is None else route.records.redact
        if "numbers" in redacted:
            yield f"{start}: finds no calls of this route, since their numbers are masked (redact)"
        if wanted.trust == "any":
            yield f"{start}: anybody who sends a number hears what its calls were about (trust)"


def pattern_note(text: str) -> str | None:
    """Return what is odd about a regular expression on a number, and the one that is meant."""
    if "@" in text or re.match(r"\^?\(?(sips?|tel):", text):
        return (
            f'"{text}" is compared with the user, what stands before the @ of an address: "^100$"'
        )
    bare = text.strip("^$/ ")
    if re.fullmatch(r"[\\+()0-9 ./-]*[0-9]", bare) and (" " in text or text.strip("^$") != bare):
        number = re.sub(r"[^+0-9]", "", bare).replace("+", "\\+")
        return f'"{text}" matches no number, since none has spaces or slashes: "^{number}$"'
    if _ASTERISK.fullmatch(text):
        inner = text.strip("^$").lstrip("_").upper()
        meant = "".join(_CLASSES.get(char, char) for char in inner)
        return f'"{text}" looks like an Asterisk pattern; as a regular expression: "^{meant}$"'
    if _GLOB.fullmatch(text):
        start = text.strip("^$").rstrip("*")
        plain = start.replace("+", "\\+")
        return (
            f'"{text}" matches {start[:-1]} and then any number of {start[-1]}; numbers that begin '
            f'with {start}: "^{plain}"'
        )
    literal = _LITERAL.fullmatch(text)
    if literal and literal[1][:1].isdigit() and not (text.startswith("^") and text.endswith("$")):
        meant = f"^{literal[1]}$"
        if text.startswith("^"):
            return f'"{text}" matches every number that begins so; only this one: "{meant}"'
        if text.endswith("$"):
            return f'"{text}" matches every number that ends so; only this one: "{meant}"'
        number = literal[1]
        return f'"{text}" matches 1{number}2, too; only this number: "{meant}"'
    if text == ".":  # any number, but none at all
        return None
    group = re.fullmatch(r"\((?:\?:)?([^()]*)\)", text)
    sides = (group[1] if group else text).split("|")
    ends = {(side.startswith("^"), side.endswith("$")) for side in sides}
    if all(map(_NUMBER.fullmatch, sides)) and (ends == {(False, False)} or len(ends) > 1):
        inner = "|".join(side.strip("^$") for side in sides)
        meant = f"^({inner})$" if len(sides) > 1 else f"^{inner}$"
        return f'"{text}" matches longer numbers, too; only these: "{meant}"'
    return None


def _hidden(routes: Sequence[Route]) -> Iterator[str]:
    """Yield routes that take every call of later ones, which thus get none."""
    told: set[str] = set()
    for index, route in enumerate(routes):
        hidden = [later for later in routes[index + 1 :] if later.name not in told]
        hidden = [later for later in hidden if _covers(route, later)]
        told.update(later.name for later in hidden)
        names = ", ".join(later.name for later in hidden)
        if hidden and not _conditions(route):
            yield f"route {route.name} takes every call, none is left for {names}"
        elif hidden:
            yield f"route {route.name} comes first and takes every call of {names}"


def _conditions(route: Route) -> dict[str, object]:
    """Return the conditions that a route sets by their keys, to compare with another route's."""
    set_ = {
        "to": route.to and route.to.pattern,
        "from": route.from_ and route.from_.pattern,
        "pai": route.pai and route.pai.pattern,
        "diversion": route.diversion and route.diversion.pattern,
        "source": route.source,
        "trunk": route.trunk,
        "hours": route.hours and (route.hours, route.timezone),
    }
    headers = {f"header {name.lower()}": regex.pattern for name, regex in route.headers.items()}
    return {key: value for key, value in {**set_, **headers}.items() if value}


def _covers(route: Route, later: Route) -> bool:
    """Return whether ``route`` provably matches each call that ``later`` matches."""
    theirs = _conditions(later)
    for key, value in _conditions(route).items():
        if theirs.get(key) == value:
            continue
        regex = {"to": route.to, "from": route.from_}.get(key)
        other = {"to": later.to, "from": later.from_}.get(key)
        if regex is None or other is None:
            return False
        text = other.pattern
        literal = _LITERAL.fullmatch(text)
        whole = text.startswith("^") and text.endswith("$")
        if literal is None or not whole or not regex.search(literal[1].replace("\\", "")):
            return False
    return True


def tool_notes(config: Config, dialplan: Dialplan) -> Iterator[str]:
    """Yield a line for each tool that no route offers, secret sent by plain HTTP, and approval
    rule that fits no tool."""
    python = module_tools(config.tools)
    shared = [tool.name for tool in dialplan.tools]
    offered = [pattern for route in dialplan.routes for pattern in route.tools]
    unused = [
        name
        for name in (*python, *shared)
        if not any(fnmatchcase(name, pattern) for pattern in offered)
    ]
    if unused:
        yield f"no route offers {', '.join(unused)} (route.tools)"
    for server in config.tools.mcp:
        if server.command and shutil.which(server.command[0]) is None:
            yield f"tools.mcp: {server.name}: this machine has no program {server.command[0]}"
    yield from _plain_text(config, dialplan)
    for route in dialplan.routes:
        yield from _rules(route, config, [*python, *shared])


def tool_summary(config: Config, dialplan: Dialplan) -> list[str]:
    """Return one line with the number of tools of each kind; nothing where there are none."""
    over_http = len(dialplan.tools) + sum(len(route.tool) for route in dialplan.routes)
    servers = ", ".join(server.name for server in config.tools.mcp)
    python = len(module_tools(config.tools))
    if not (over_http or servers or python):
        return []
    return [
        f"  tools     {python} in Python, {over_http} over HTTP, MCP servers: {servers or 'none'}"
    ]


def _plain_text(config: Config, dialplan: Dialplan) -> Iterator[str]:
    """Yield a line for each server that gets secrets by plain HTTP."""
    sent = [
        (server.url, server.authorization or server.headers)
        for server in config.tools.mcp
        if server.url
    ]
    for tool in (*dialplan.tools, *(one for route in dialplan.routes for one in route.tool)):
        sent.append((tool.url, tool.headers))
    for route in dialplan.routes:
        sent += [(rule.url, rule.headers) for rule in route.approval if rule.url]
    if config.callbacks.url:
        sent.append((config.callbacks.url, config.callbacks.headers))
    for url in sorted({url for url, secret in sent if secret and not on_loopback(url)}):
        if url.startswith("http:"):
            yield f"{url.partition('?')[0]} gets secrets unencrypted: use https://"


def session_mcp(config: Config, route: Route) -> list[str]:
    """Return the labels of the MCP servers that the realtime server calls in a route's session."""
    given = [tool for tool in route.session.get("tools") or () if isinstance(tool, Mapping)]
    labels = [str(tool.get("server_label", "")) for tool in given if tool.get("type") == "mcp"]
    ours = [one for one in config.tools.mcp if one.name in route.mcp]
    return [*labels, *(one.name for one in ours if one.client == "provider")]


def _rules(route: Route, config: Config, functions: list[str]) -> Iterator[str]:
    """Yield approval rules that fit no tool, and tools that a rule does not reach."""
    servers = [server for server in config.tools.mcp if server.name in route.mcp]
    known = [*OWN, *(name for name in functions), *(tool.name for tool in route.tool)]
    labels = [*(server.name for server in servers), *session_mcp(config, route)]
    for rule in route.approval:
        of_mcp = any(
            rule.tool.startswith(f"{label}_") or fnmatchcase(f"{label}_", rule.tool)
            for label in labels
        )
        if not of_mcp and not any(fnmatchcase(name, rule.tool) for name in known):
            yield f'route {route.name}: no tool fits the approval of "{rule.tool}"'
    dialect = call_settings(config, route).realtime.dialect
    passed_on = [server.name for server in servers if server.client == "provider"]
    if passed_on and dialect != "ga":
        yield (
            f"route {route.name}: the dialect {dialect} knows no MCP; {', '.join(passed_on)} will "
            'not be there (client = "gateway" is with every server)'
        )
    for server in servers:
        needs = server.require_approval != "never"
        ruled = any(
            rule.tool.startswith(f"{server.name}_") or fnmatchcase(f"{server.name}_x", rule.tool)
            for rule in route.approval
        )
        if needs and not ruled:
            yield (
                f"route {route.name}: tools of {server.name} need approval, but no rule approves "
                "them: they will be refused"
            )


def transcription_notes(config: Config, routes: Sequence[Route]) -> Iterator[str]:
    """Yield a line for each setting that waits for words of a caller whom nobody transcribes."""
    for route in routes:
        if transcriber_of(route.session):
            continue
        for guard in route.guardrail:
            if guard.speaker != "agent" and not has_live_sessions(config, route):
                yield (
                    f"route {route.name}: the guardrail {guard.name} checks the caller, who is not "
                    "transcribed (set session.audio.input.transcription)"
                )
        if route.recording.consent != "none":
            yield (
                f"route {route.name}: a spoken yes or no to the recording is not understood, only "
                "keys (set session.audio.input.transcription)"
            )
        if route.escape.phrases:
            yield (
                f"route {route.name}: escape.phrases are not understood "
                "(set session.audio.input.transcription)"
            )


_ANY_NUMBER = ("+882161234567", "09001234567", "112", "7")
_ANY_ADDRESS = ("sip:+882161234567@203.0.113.9:5999", "sip:x-7f3@elsewhere.invalid")
"""An expression that matches all of these matches everything."""


def toll_fraud_notes(config: Config, dialplan: Dialplan) -> Iterator[str]:
    """Yield a line for each setting that lets calls go anywhere at the operator's cost."""
    outbound = config.outbound
    if not outbound.country and (outbound.allowed_prefixes or outbound.denied_prefixes):
        yield (
            "outbound.country is not set: 0900 and +49900 are not known to be the same, and calls "
            "abroad not to be such"
        )
    workers = config.workers.count
    if outbound.enabled and workers > 1 and config.records.database_url is None:
        yield (
            f"workers.count is {workers}: the caps in [outbound] hold for each worker by itself, "
            "as there is no records.folder or records.database in which they are shared"
        )
    for prefix in outbound.allowed_prefixes:
        if prefix in ("", "+", "0", "00"):
            yield f"outbound.allowed_prefixes: {prefix!r} matches every number"
        code = str(country_code_for_region(outbound.country)) if outbound.country else ""
        if code and prefix.startswith(code):
            yield (
                f"outbound.allowed_prefixes: {prefix!r} is not the beginning of numbers with "
                f'+{code}; write "+{prefix}"'
            )
    for route in dialplan.routes:
        numbers = [
            (f"transfer {one.name!r}, allowed_numbers", one.allowed_numbers)
            for one in route.transfer
        ]
        numbers.append(
            ("schedule_callback.allowed_numbers", route.schedule_callback.allowed_numbers)
        )
        for where, pattern in numbers:
            if pattern is not None and all(pattern.fullmatch(one) for one in _ANY_NUMBER):
                yield f"route {route.name}, {where}: matches every number"
        pattern = route.allowed_refer_to
        if pattern is not None and any(pattern.fullmatch(one) for one in _ANY_ADDRESS):
            yield (
                f"route {route.name}, allowed_refer_to: matches every address, so any caller "
                "can make the gateway call anywhere"
            )
