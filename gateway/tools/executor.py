"""Everything that functions outside of calls need, and the tasks in which they run."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import structlog

from gateway.planning.route_tools import RouteTools, mcp_settings, offers_of
from gateway.tasks import TaskSet
from gateway.tools import approval, python, webhook
from gateway.tools import content_check as words
from gateway.tools.api import ToolError
from gateway.tools.functions import Function
from gateway.tools.http import HttpClient
from gateway.tools.mcp import McpServer
from gateway.tools.results import bounded, error_text
from gateway.tools.runner import ContentService, Question, ToolCall
from gateway.tools.schema import parsed

if TYPE_CHECKING:
    from gateway.config import Config
    from gateway.dialplan import Dialplan

log = structlog.get_logger("tools")

MAX_RUNNING = 1000
"""Functions of all calls at a time: eight for each of some hundred calls. More are refused."""

_NOTHING = RouteTools()


class ToolExecutor:
    """The process's :class:`gateway.tools.runner.ToolRunner`. Lives on the event loop.

    Raises ToolModuleError where the module of tools cannot be had.
    """

    def __init__(self, config: Config, dialplan: Dialplan) -> None:
        self._settings = config.tools
        self._offers = offers_of(config, dialplan)
        self._rules = {
            route.name: tuple(one.timeout for one in route.approval) for route in dialplan.routes
        }
        self._threads = python.Threads(config.tools.threads)
        self.http = HttpClient(config.tools.http_connections, config.tools.http_proxy)
        wanted = {name for offer in self._offers.values() for name in offer.mcp}
        self._servers = {
            one.name: McpServer(mcp_settings(one, config.tools))
            for one in config.tools.mcp
            if one.name in wanted
        }
        self._fixed = {name: self._made(offer) for name, offer in self._offers.items()}
        self._tasks = TaskSet()

    def add(self, route: str, function: Function) -> None:
        """Give a route one more function, before calls come."""
        self._fixed.setdefault(route, {})[function.name] = function

    async def start(self) -> None:
        """Connect to the MCP servers; one that is not there in time is tried again later."""
        await asyncio.gather(*(server.start() for server in self._servers.values()))

    async def stop(self) -> None:
        """End what runs, and close all connections."""
        await self._tasks.cancel()
        await asyncio.gather(*(server.stop() for server in self._servers.values()))
        await self.http.close()

    def states(self) -> dict[str, dict[str, object]]:
        """Each MCP server's, for ``gateway status``."""
        return {
            name: {"state": server.state, "tools": len(server.functions)}
            for name, server in self._servers.items()
        }

    def of(self, route: str) -> dict[str, Function]:
        """The functions of a route as they are now, by name."""
        found = dict(self._fixed.get(route, {}))
        for name in self._offers.get(route, _NOTHING).mcp:
            found.update(self._servers[name].functions)
        return found

    def definitions(self, route: str) -> list[dict[str, Any]]:
        """What the session is told of them, and of the servers that it calls itself."""
        passed_on = self._offers.get(route, _NOTHING).passed_on
        own = [one.definition() for one in self.of(route).values()]
        return own + [server.session_tool() for server in passed_on]

    # ---- ToolRunner

    def run(self, call: ToolCall, done: Callable[[str], None]) -> None:
        """As :meth:`gateway.tools.runner.ToolRunner.run`."""
        if len(self._tasks) >= MAX_RUNNING:
            log.error("tool.too_many", tool=call.name, call=call.call, limit=MAX_RUNNING)
            done(error_text("the gateway is busy; try again later"))
            return
        self._tasks.spawn(self._run(call, done), f"tool {call.name}")

    def ask(self, question: Question, done: Callable[[bool, str], None]) -> None:
        """Ask the operator's application."""
        if len(self._tasks) >= MAX_RUNNING:
            done(False, "the gateway is busy")
            return
        self._tasks.spawn(self._ask(question, done), f"ask about {question.request.name}")

    def check(
        self, rule: ContentService, call: ToolCall, done: Callable[[bool | None, str], None]
    ) -> None:
        """Ask the operator's application whether words may be said."""
        if len(self._tasks) >= MAX_RUNNING:
            done(False, "the gateway is busy")
            return
        self._tasks.spawn(self._check(rule, call, done), f"check of {call.name}")

    async def _check(
        self, rule: ContentService, call: ToolCall, done: Callable[[bool | None, str], None]
    ) -> None:
        answer: words.Verdict = (None, "nobody could be asked")
        try:
            answer = await words.ask(self.http, rule, call)
        except Exception:
            log.exception("guardrail.failed", rule=rule.name, call=call.call)
            answer = (False, "the gateway could not ask")  # on_timeout is about others' failures
        done(*answer)

    async def _run(self, call: ToolCall, done: Callable[[str], None]) -> None:
        function = self.of(call.route).get(call.name)
        loop = asyncio.get_running_loop()
        began, outcome = loop.time(), "done"
        if function is None:
            done(error_text("this function is not available now"))
            return
        try:
            given = parsed(function.parameters, call.arguments)
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
        done(text)

    async def _ask(self, question: Question, done: Callable[[bool, str], None]) -> None:
        call = question.request
        operator = self._offers.get(call.route, _NOTHING).operators.get(question.rule)
        answer = (False, "nobody could be asked")
        if operator is not None:
            try:
                async with asyncio.timeout(self._rules[call.route][question.rule]):
                    answer = await approval.ask(self.http, operator, call)
            except TimeoutError:
                answer = (False, "nobody answered in time")
            except Exception:
                log.exception("approval.failed", tool=call.name, call=call.call)
        done(*answer)

    def _made(self, offer: RouteTools) -> dict[str, Function]:
        settings = self._settings
        made = [
            python.function_of(tool, self._threads, settings.timeout, settings.max_result_chars)
            for tool in offer.python
        ]
        made += [webhook.function_of(hook, self.http) for hook in offer.webhooks]
        return {function.name: function for function in made}
