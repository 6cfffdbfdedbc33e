"""What `gateway check` says about tools that can be meant so, but seldom is."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from fnmatch import fnmatchcase

from gateway.call.tools.definitions import OWN
from gateway.config.models import Config
from gateway.config.realtime import on_loopback
from gateway.dialplan import Dialplan, Route, call_settings
from gateway.planning.route_tools import module_tools


def advice(config: Config, dialplan: Dialplan) -> Iterator[str]:
    """One line for each."""
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
    yield from _plain_text(config, dialplan)
    for route in dialplan.routes:
        yield from _rules(route, config, [*python, *shared])


def summary(config: Config, dialplan: Dialplan) -> list[str]:
    """What there is, on one line; none where there is nothing."""
    over_http = len(dialplan.tools) + sum(len(route.tool) for route in dialplan.routes)
    servers = ", ".join(server.name for server in config.tools.mcp)
    python = len(module_tools(config.tools))
    if not (over_http or servers or python):
        return []
    return [
        f"  tools     {python} in Python, {over_http} over HTTP, MCP servers: {servers or 'none'}"
    ]


def _plain_text(config: Config, dialplan: Dialplan) -> Iterator[str]:
    """Secrets that can be read on the way."""
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
            yield f"{url.partition('?')[0]} gets secrets without encryption (https:// is)"


def _rules(route: Route, config: Config, functions: list[str]) -> Iterator[str]:
    servers = [server for server in config.tools.mcp if server.name in route.mcp]
    known = [*OWN, *(name for name in functions), *(tool.name for tool in route.tool)]
    labels = [server.name for server in servers]
    for tool in route.session.get("tools") or ():
        if isinstance(tool, Mapping) and tool.get("type") == "mcp":
            labels.append(str(tool.get("server_label", "")))
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
                f"route {route.name}: tools of {server.name} need approval, and no rule gives it: "
                "they are refused"
            )
