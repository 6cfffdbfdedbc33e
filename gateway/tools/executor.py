# SPDX-License-Identifier: GPL-2.0-or-later
"""Runs the functions that the model calls, and asks services for approvals and content checks."""

from __future__ import annotations

import asyncio
import functools
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import structlog

from gateway.tasks import TaskSet, is_being_cancelled
from gateway.tools import (
    ContentService,
    DigitsService,
    Function,
    Question,
    ToolCall,
    ToolError,
    bounded,
    error_text,
    http,
    python,
)
from gateway.tools.http import HttpClient
from gateway.tools.mcp import McpServer, McpSettings
from gateway.tools.python import PythonTool
from gateway.tools.schema import parse_arguments

log = structlog.get_logger("tools")

MAX_RUNNING = 1000
"""Functions of all calls at a time: eight for each of some hundred calls. More are refused."""


@dataclass(frozen=True, slots=True)
class RouteTools:
    """Tools of one route beside the gateway's own."""

    python: tuple[PythonTool, ...] = ()
    webhooks: tuple[http.Webhook, ...] = ()
    mcp: tuple[str, ...] = ()
    """Names of the MCP servers that the gateway calls."""
    passed_on: tuple[Mapping[str, Any], ...] = ()
    """MCP servers that the realtime server calls, as in GA ``session.tools``."""
    operators: Mapping[int, http.Operator] = field(default_factory=dict)
    """Services that decide on approvals, by the index of the approval rule in the route."""


@dataclass(frozen=True, slots=True)
class ToolLimits:
    """Settings of all functions: see :class:`gateway.config.sections.ToolSettings`."""

    threads: int
    timeout: float
    """Seconds, for a function without a deadline of its own."""
    max_result_chars: int
    http_connections: int
    http_proxy: str | None
    http_ca: Path | None


_NOTHING = RouteTools()


class ToolExecutor:
    """The process's :class:`gateway.tools.ToolRunner`. Lives on the event loop.

    Args:
        offers: tools of each route, by its name.
        servers: MCP servers; those that no route names are not connected to.
    """

    def __init__(
        self,
        offers: Mapping[str, RouteTools],
        servers: Iterable[McpSettings],
        limits: ToolLimits,
    ) -> None:
        self._limits = limits
        self._offers = offers
        self._threads = python.Threads(limits.threads)
        wanted = {name for offer in offers.values() for name in offer.mcp}
        self._servers = {one.name: McpServer(one) for one in servers if one.name in wanted}
        self._fixed = {name: self._functions_of(offer) for name, offer in offers.items()}
        self._tasks = TaskSet()

    @functools.cached_property
    def http(self) -> HttpClient:
        """Return the process's client for HTTP services, made at the first use: `gateway
        route-test` needs none."""
        return HttpClient(
            self._limits.http_connections, self._limits.http_proxy, self._limits.http_ca
        )

    def add(self, route: str, function: Function) -> None:
        """Add a function of the gateway's own to a route, in place of one with its name; before
        calls come."""
        self._fixed.setdefault(route, {})[function.name] = function

    async def start(self) -> None:
        """Connect to all MCP servers at once, and return when each has listed its tools or its
        `connect_timeout` is up; one that is not there in time is tried again later.

        Makes the HTTP client and loads the libraries, too: the first call would wait for them.
        """
        import jsonschema  # noqa: F401

        _ = self.http
        await asyncio.gather(*(server.start() for server in self._servers.values()))

    async def stop(self) -> None:
        """Cancel all functions and questions, whose `done` is then not called; disconnect from MCP
        servers and end their processes; close the HTTP client."""
        await self._tasks.cancel()
        await asyncio.gather(*(server.stop() for server in self._servers.values()))
        await self.http.close()

    def states(self) -> dict[str, dict[str, object]]:
        """Return by name of MCP server its state ("up", "not started", "connection lost" or the
        name of the error) and its number of tools, for ``gateway status``."""
        return {
            name: {"state": server.state, "tools": len(server.functions)}
            for name, server in self._servers.items()
        }

    def of(self, route: str) -> dict[str, Function]:
        """Return the functions of a route by name, those of its MCP servers as last listed, also
        while a server is away.

        Of two with one name, an MCP server's counts. Empty for an unknown route.
        """
        found = dict(self._fixed.get(route, {}))
        for name in self._offers.get(route, _NOTHING).mcp:
            found.update(self._servers[name].functions)
        return found

    def definitions(self, route: str) -> list[dict[str, Any]]:
        """Return ``tools`` of the session object for a route: a function each for all of
        :meth:`of`, then the MCP servers that the realtime server calls."""
        passed_on = self._offers.get(route, _NOTHING).passed_on
        own = [one.definition() for one in self.of(route).values()]
        return own + [dict(server) for server in passed_on]

    # ---- ToolRunner

    def run(self, call: ToolCall, done: Callable[[str], None]) -> None:
        """Run a function: see :meth:`gateway.tools.ToolRunner.run`.

        While ``MAX_RUNNING`` tasks of all calls run, it is not run, and ``done`` gets an error at
        once.
        """
        if len(self._tasks) >= MAX_RUNNING:
            log.error("tool.too_many", tool=call.name, call=call.call, limit=MAX_RUNNING)
            done(error_text("the gateway is busy; try again later"))
            return
        self._tasks.spawn(self._run(call, done), f"tool {call.name}")

    def ask(self, question: Question, done: Callable[[bool, str], None]) -> None:
        """Ask for an approval: see :meth:`gateway.tools.ToolRunner.ask`.

        While ``MAX_RUNNING`` tasks of all calls run, nobody is asked, and ``done`` gets False at
        once.
        """
        if len(self._tasks) >= MAX_RUNNING:
            done(False, "the gateway is busy")
            return
        self._tasks.spawn(self._ask(question, done), f"ask about {question.request.name}")

    def check(
        self, rule: ContentService, call: ToolCall, done: Callable[[bool | None, str], None]
    ) -> None:
        """Check content: see :meth:`gateway.tools.ToolRunner.check`.

        While ``MAX_RUNNING`` tasks of all calls run, nobody is asked, and ``done`` gets False (the
        words are not allowed) at once.
        """
        if len(self._tasks) >= MAX_RUNNING:
            done(False, "the gateway is busy")
            return
        self._tasks.spawn(self._check(rule, call, done), f"check of {call.name}")

    def store(
        self,
        service: DigitsService,
        call: ToolCall,
        digits: str,
        done: Callable[[Mapping[str, Any]], None],
    ) -> None:
        """Store sensitive digits: see :meth:`gateway.tools.ToolRunner.store`.

        While ``MAX_RUNNING`` tasks of all calls run, they are not sent, and ``done`` gets
        ``status`` "failed" at once.
        """
        if len(self._tasks) >= MAX_RUNNING:
            done({"status": "failed", "reason": "the gateway is busy"})
            return
        self._tasks.spawn(self._store(service, call, digits, done), "store digits")

    async def _store(
        self,
        service: DigitsService,
        call: ToolCall,
        digits: str,
        done: Callable[[Mapping[str, Any]], None],
    ) -> None:
        """Send sensitive digits to the service once; pass what :func:`http.store_digits` returns to
        ``done``, or ``status`` "failed" if it raises. Neither digits nor error text are logged."""
        reason = "the gateway could not send them"
        result: Mapping[str, Any] = {"status": "failed", "reason": reason}
        try:
            result = await http.store_digits(self.http, service, call, digits)
        except Exception as error:
            # Without its text and its frames, which may have the digits.
            log.error("digits.failed", call=call.call, error=type(error).__name__)
        done(result)

    async def _check(
        self, rule: ContentService, call: ToolCall, done: Callable[[bool | None, str], None]
    ) -> None:
        """Ask a guardrail's service; pass its verdict to ``done``: None if it did not answer in
        time or not intelligibly, False if a defect of ours kept it from being asked."""
        answer: http.Verdict = (None, "nobody could be asked")
        try:
            answer = await http.ask_content(self.http, rule, call)
        except Exception:
            log.exception("guardrail.failed", rule=rule.name, call=call.call)
            answer = (False, "the gateway could not ask")  # on_timeout is about others' failures
        done(*answer)

    async def _run(self, call: ToolCall, done: Callable[[str], None]) -> None:
        """Run a function; pass its result, or its failure as an error text, to ``done``.

        ``done`` is not called if this task is cancelled, but is if the function cancels itself.
        """
        text = error_text("the function failed")
        try:
            text = await self._result(call)
        except asyncio.CancelledError:
            if is_being_cancelled():
                raise
        except Exception as error:  # of an exception that cannot be told
            log.error("tool.failed", tool=call.name, call=call.call, error=type(error).__name__)
        done(text)

    async def _result(self, call: ToolCall) -> str:
        """Check the arguments by the function's schema, then run it with its deadline; return its
        result cut to ``max_result_chars``, or an error text for the model.

        An unknown function (as of a server that was removed), wrong arguments, a ToolError, the
        deadline and any other exception are failures; of the last only the exception's class is
        told. Logs ``tool.ran`` with the duration (ms).
        """
        function = self.of(call.route).get(call.name)
        loop = asyncio.get_running_loop()
        began, outcome = loop.time(), "done"
        if function is None:
            return error_text("this function is not available now")
        try:
            given = parse_arguments(function.parameters, call.arguments)
            async with asyncio.timeout(function.timeout):
                text = bounded(await function.run(call, given), function.max_result_chars)
        except ToolError as error:
            outcome = "failed"
            text = bounded(error_text(str(error)), function.max_result_chars)
        except TimeoutError:
            outcome = "too late"
            text = error_text(f"no result within {function.timeout:g} s")
        except Exception as error:
            outcome = "fault"
            log.exception("tool.failed", tool=call.name, call=call.call)
            text = error_text(f"the function failed ({type(error).__name__})")
        ms = round((loop.time() - began) * 1000)
        log.debug("tool.ran", tool=call.name, call=call.call, outcome=outcome, ms=ms)
        return text

    async def _ask(self, question: Question, done: Callable[[bool, str], None]) -> None:
        """Ask the service of the approval rule; pass its answer and reason to ``done``.

        False if the rule has no service, the service's ``timeout`` is up, or asking raises.
        """
        call = question.request
        operator = self._offers.get(call.route, _NOTHING).operators.get(question.rule)
        answer = (False, "nobody could be asked")
        if operator is not None:
            try:
                async with asyncio.timeout(operator.timeout):
                    answer = await http.ask_approval(self.http, operator, call)
            except TimeoutError:
                answer = (False, "nobody answered in time")
            except Exception:
                log.exception("approval.failed", tool=call.name, call=call.call)
        done(*answer)

    def _functions_of(self, offer: RouteTools) -> dict[str, Function]:
        """Return a route's functions in Python and its webhook tools, by name; a webhook tool goes
        before a Python function with its name. Those of MCP servers are not among them."""
        limits = self._limits
        made = [
            python.function_of(tool, self._threads, limits.timeout, limits.max_result_chars)
            for tool in offer.python
        ]
        made += [http.function_of(hook, self.http) for hook in offer.webhooks]
        return {function.name: function for function in made}
