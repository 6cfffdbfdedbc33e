# SPDX-License-Identifier: GPL-2.0-or-later
"""What browsers get: calls of the console's pages, as INVITEs to admission; keys of a provider."""

from __future__ import annotations

import asyncio
import re
from collections import Counter
from collections.abc import Callable, Mapping
from copy import deepcopy
from typing import TYPE_CHECKING, Any

import structlog

from gateway.api.backend import NoCallError
from gateway.api.client import RefusedError
from gateway.planning.call_plan import session_plan
from gateway.realtime.dialects import GA
from gateway.realtime.session_object import plain_json
from gateway.text import json_of
from gateway.tools.functions import ToolError
from gateway.tools.http import read_answer

if TYPE_CHECKING:
    from gateway.api.backend import Command

from gateway.audio.codecs import Codec
from gateway.bridge.media import MediaPump
from gateway.config import Config
from gateway.dialplan import Dialplan
from gateway.sip.agent import UserAgent
from gateway.sip.browser_leg import TRANSPORT, BrowserEnd
from gateway.sip.leg import Invite

log = structlog.get_logger("gateway")

_NUMBER = re.compile(r"\^(\w+)\$")


class BrowserCalls:
    """Calls of pages of the console. Lives on the event loop.

    Args:
        files: configuration and dialplan as they are now.
    """

    def __init__(
        self,
        agent: UserAgent,
        pump: MediaPump,
        files: Callable[[], tuple[Config, Dialplan]],
    ) -> None:
        self._agent = agent
        self._pump = pump
        self._files = files
        self._ends: set[BrowserEnd] = set()
        self.closes: Counter[str] = Counter()
        """WebSockets by why they were closed."""
        self.unread = self.skipped = 0
        """Frames of 20 ms: that pages did not take in time, and that came too fast to be mixed."""

    @property
    def limit(self) -> int:
        """Maximum number of calls at a time."""
        return self._files()[0].api.browser_calls

    @property
    def active(self) -> int:
        return len(self._ends)

    def numbers(self) -> list[dict[str, str]]:
        _config, dialplan = self._files()
        return [
            {"number": found[1], "route": route.name}
            for route in dialplan.routes
            if route.enabled and route.to and (found := _NUMBER.fullmatch(route.to.pattern))
        ]

    def begin(
        self,
        to: str,
        caller: str,
        source: str,
        who: str,
        tell: Callable[[dict[str, Any]], None],
        hear: Callable[[], None],
    ) -> BrowserEnd:
        invite = Invite(
            sip_call_id="",
            to_uri=f"sip:{to}@{TRANSPORT}.invalid",
            from_uri=f"sip:{caller}@{TRANSPORT}.invalid",
            to_user=to,
            from_user=caller,
            from_name="",
            source=source,
            headers={},
            offered=(Codec.PCMU,),
            attributed_by=f"token {who}",
            transport=TRANSPORT,
            there=True,
        )
        end = self._agent.take_browser(invite, tell)
        self._ends.add(end)
        self._pump.add(end.audio, hear)
        return end

    def over(self, end: BrowserEnd) -> None:
        """Take away a call whose page has left."""
        self._ends.discard(end)
        self._pump.remove(end.audio)
        self.skipped += end.skipped

    def closed(self, reason: str, unread: int) -> None:
        self.closes[reason] += 1
        self.unread += unread


SECRET_SECONDS = 10.0  # for the provider's answer


class SecretCommands:
    """Brokers short-lived keys of the provider: for a browser, with the session of a route.

    Args:
        current: configuration and dialplan as they are now.
    """

    def __init__(self, current: Callable[[], tuple[Config, Dialplan]]) -> None:
        self._current = current
        self.commands: dict[str, Command] = {"client_secret": self._client_secret}

    async def _client_secret(self, request: Mapping[str, Any]) -> Mapping[str, Any]:
        """Create an ephemeral key at the provider for a route's session. Raises RefusedError."""
        import httpx

        config, dialplan = self._current()
        route = next((one for one in dialplan.routes if one.name == request.get("route")), None)
        if route is None:
            raise NoCallError(f"there is no route {request.get('route')!r}")
        plan = session_plan(config, route, Codec.PCMU)
        if plan.endpoint.dialect is not GA:
            raise RefusedError("the route's server has no client secrets")
        session = deepcopy(dict(plan.settings))
        for way in ("input", "output"):  # a browser negotiates its own
            session.get("audio", {}).get(way, {}).pop("format", None)
        own = route.session.get("tools")
        session.pop("tools", None)
        if own:  # the gateway's tools are run in calls of the gateway only
            session["tools"] = own
        body = {
            "expires_after": request.get("expires_after"),
            "session": {"type": "realtime", "model": plan.endpoint.model, **session},
        }
        url = plan.endpoint.shown.replace("ws", "http", 1) + "/client_secrets"
        headers = {**plan.endpoint.request_headers(), "Accept-Encoding": "gzip, deflate"}
        try:
            async with (
                asyncio.timeout(SECRET_SECONDS),
                httpx.AsyncClient(trust_env=False, timeout=SECRET_SECONDS) as client,
                client.stream("POST", url, json=plain_json(body), headers=headers) as answer,
            ):
                text, _whole = await read_answer(answer)
                found = json_of(text)
        except (httpx.HTTPError, TimeoutError, ValueError, ToolError) as error:
            log.warning("operator.client_secret_failed", error=type(error).__name__)
            raise RefusedError("the provider gave no answer") from None
        if not answer.is_success or not isinstance(found, dict) or "value" not in found:
            told = plan.endpoint.redact(text)[:500]
            log.warning("operator.client_secret_failed", status=answer.status_code, error=told)
            raise RefusedError(f"the provider refused it: {answer.status_code}")
        return found
