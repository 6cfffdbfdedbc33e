# SPDX-License-Identifier: GPL-2.0-or-later
"""Functions that each route offers, from configuration and dialplan, and their executor."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from fnmatch import fnmatchcase
from functools import partial
from typing import TYPE_CHECKING

from gateway.call.plan import ApprovalRule
from gateway.call.tools.definitions import OWN
from gateway.config.sections import McpServerSettings, ToolSettings
from gateway.config.source import Problem
from gateway.config.validate import suggestion
from gateway.config.values import shown
from gateway.dialplan.tool_sections import ARGUMENT, WebTool
from gateway.dialplan.variables import names_in, render
from gateway.tools.api import Waiting
from gateway.tools.executor import RouteTools, ToolExecutor, ToolLimits
from gateway.tools.functions import text_of
from gateway.tools.mcp import McpSettings
from gateway.tools.module import PythonTool, ToolModuleError, python_tools
from gateway.tools.questions import Operator
from gateway.tools.webhook import Webhook

if TYPE_CHECKING:
    from gateway.config import Config
    from gateway.dialplan import Dialplan, Route


def tool_executor(config: Config, dialplan: Dialplan) -> ToolExecutor:
    """Return what runs the functions of all routes. Raises ToolModuleError."""
    tools = config.tools
    limits = ToolLimits(
        threads=tools.threads,
        timeout=tools.timeout,
        max_result_chars=tools.max_result_chars,
        http_connections=tools.http_connections,
        http_proxy=tools.http_proxy,
    )
    servers = [_mcp_settings(server, tools) for server in tools.mcp if server.client == "gateway"]
    return ToolExecutor(offers_of(config, dialplan), servers, limits)


def offers_of(config: Config, dialplan: Dialplan) -> dict[str, RouteTools]:
    """Return what each route offers, by its name. Raises ToolModuleError."""
    python = module_tools(config.tools)
    return {route.name: _offer(route, config.tools, python, dialplan) for route in dialplan.routes}


def module_tools(settings: ToolSettings) -> Mapping[str, PythonTool]:
    """The functions of ``tools.module``. Raises ToolModuleError."""
    if not settings.module:
        return {}
    return python_tools(settings.module, settings.search_path, OWN)


def problems(config: Config, dialplan: Dialplan, source: Problem) -> Iterator[Problem]:
    """Yield names in routes that do not exist. ``source`` is where ``tools.module`` stands."""
    try:
        python = module_tools(config.tools)
    except ToolModuleError as error:
        if error.file is None:
            yield Problem(source.file, source.line, source.key, str(error))
        else:
            yield Problem(error.file, error.line, "", str(error))
        return
    shared = [tool.name for tool in dialplan.tools]
    for name in sorted(set(shared) & set(python)):
        yield Problem(source.file, source.line, source.key, f"[[tool]] {name!r} is there, too")
    known = [*python, *shared]
    servers = [server.name for server in config.tools.mcp]
    for route in dialplan.routes:
        file, line = dialplan.origins[route.name]
        for pattern in route.tools:
            if not any(fnmatchcase(name, pattern) for name in known):
                message = f'there is no tool "{pattern}"' + suggestion(pattern, known)
                yield Problem(file, line, f"route {route.name}, tools", message)
        own = [tool.name for tool in route.tool]
        for index, name in enumerate(own):
            if name in own[:index] or any(
                name in known and fnmatchcase(name, pattern) for pattern in route.tools
            ):
                yield Problem(file, line, f"route {route.name}, tool", f"{name!r} is there twice")
        for name in route.mcp:
            if name not in servers:
                message = f'there is no [[tools.mcp]] "{name}"' + suggestion(name, servers)
                yield Problem(file, line, f"route {route.name}, mcp", message)


def approval_rules(route: Route, values: Mapping[str, str]) -> tuple[ApprovalRule, ...]:
    """The route's rules, with its variables filled in."""
    return tuple(
        ApprovalRule(
            tool=one.tool,
            policy=one.policy,
            when=one.when,
            timeout=one.timeout,
            prompt=partial(_question, one.prompt, values),
        )
        for one in route.approval
    )


def _question(text: str, values: Mapping[str, str], tool: str, given: Mapping[str, object]) -> str:
    told = {ARGUMENT + name: text_of(value)[:200] for name, value in given.items()}
    return render(text, {**values, "tool": tool.replace("_", " "), **told})


def _offer(
    route: Route, settings: ToolSettings, python: Mapping[str, PythonTool], dialplan: Dialplan
) -> RouteTools:
    def chosen(name: str) -> bool:
        return any(fnmatchcase(name, pattern) for pattern in route.tools)

    hooks = [*(tool for tool in dialplan.tools if chosen(tool.name)), *route.tool]
    servers = [server for server in settings.mcp if server.name in route.mcp]
    return RouteTools(
        python=tuple(tool for tool in python.values() if chosen(tool.name)),
        webhooks=tuple(_webhook(tool, settings) for tool in hooks),
        mcp=tuple(server.name for server in servers if server.client == "gateway"),
        passed_on=tuple(server.session_tool() for server in servers if server.client == "provider"),
        operators={
            index: Operator(one.url, one.timeout, shown(one.headers))
            for index, one in enumerate(route.approval)
            if one.url is not None
        },
    )


def _webhook(tool: WebTool, settings: ToolSettings) -> Webhook:
    return Webhook(
        name=tool.name,
        description=tool.description,
        parameters=tool.json_schema(),
        method=tool.method,
        url=partial(_url, tool.url),
        in_url=frozenset(
            name.removeprefix(ARGUMENT) for name in names_in(tool.url) if name.startswith(ARGUMENT)
        ),
        headers=shown(tool.headers),
        timeout=tool.timeout or settings.timeout,
        retries=tool.retries,
        idempotent=tool.idempotent,
        max_result_chars=tool.max_result_chars or settings.max_result_chars,
        waiting=Waiting(tool.filler_delay, tool.filler_text, tool.filler_sound or ""),
    )


def _url(text: str, variables: Mapping[str, str], arguments: Mapping[str, str]) -> str:
    named = {ARGUMENT + name: value for name, value in arguments.items()}
    return render(text, {**variables, **named})


def _mcp_settings(server: McpServerSettings, settings: ToolSettings) -> McpSettings:
    """Return the settings of a server that the gateway calls itself."""
    headers = shown(server.headers)
    if server.authorization is not None:
        headers["Authorization"] = f"Bearer {server.authorization.get_secret_value()}"
    return McpSettings(
        name=server.name,
        url=server.url or "",
        headers=headers,
        proxy=settings.http_proxy,
        command=server.command,
        env=shown(server.env),
        folder=str(settings.search_path),
        allowed_tools=server.allowed_tools,
        connect_timeout=server.connect_timeout,
        timeout=server.timeout,
        max_result_chars=settings.max_result_chars,
        needs_approval=server.needs_approval,
        waiting=Waiting(server.filler_delay, server.filler_text),
    )
