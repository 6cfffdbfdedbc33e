# SPDX-License-Identifier: GPL-2.0-or-later
"""HTTP services of the operator: tools that are requests, and questions before a tool runs or words
are said."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any
from urllib.parse import quote

from gateway.text import json_of
from gateway.tools.api import ToolError, Waiting
from gateway.tools.functions import ContentService, Function, ToolCall
from gateway.tools.http import HttpClient, Request, compact

WITH_BODY = frozenset({"POST", "PUT", "PATCH"})


@dataclass(frozen=True, slots=True)
class Webhook:
    """One ``[[tool]]``: see :class:`gateway.dialplan.tool_sections.WebTool`."""

    name: str
    description: str
    parameters: Mapping[str, Any]
    method: str
    url: Callable[[Mapping[str, str], Mapping[str, str]], str] = field(compare=False)
    """Returns the URL for a call's variables and the model's arguments, both percent-encoded."""
    in_url: frozenset[str]
    """Arguments that stand in the URL, and are not sent a second time."""
    headers: Mapping[str, str] = field(repr=False)
    timeout: float
    retries: int
    idempotent: bool
    max_result_chars: int
    waiting: Waiting


def function_of(hook: Webhook, client: HttpClient) -> Function:
    """The function of a webhook."""
    return Function(
        name=hook.name,
        description=hook.description,
        parameters=hook.parameters,
        run=partial(_run, hook, client),
        timeout=hook.timeout,
        max_result_chars=hook.max_result_chars,
        waiting=hook.waiting,
    )


async def _run(hook: Webhook, client: HttpClient, call: ToolCall, given: dict[str, Any]) -> str:
    return compact(await client.send(request_of(hook, call, given)))


def request_of(hook: Webhook, call: ToolCall, given: Mapping[str, Any]) -> Request:
    """The request for these arguments; those that stand in the URL are not sent a second time."""
    rest = {name: value for name, value in given.items() if name not in hook.in_url}
    body = hook.method in WITH_BODY
    return Request(
        method=hook.method,
        url=hook.url(_all_quoted(call.variables), _all_quoted(given)),
        headers={
            "X-Gateway-Call": _header(call.call),
            "Idempotency-Key": _header(f"{call.call}:{call.call_id}"),
            **hook.headers,
        },
        query={} if body else {name: _text(value) for name, value in rest.items()},
        body=rest if body else None,
        retries=hook.retries,
        again=hook.idempotent,
    )


def _text(value: object) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def _all_quoted(values: Mapping[str, object]) -> dict[str, str]:
    return {name: _quoted(value) for name, value in values.items()}


def _quoted(value: object) -> str:
    # A dot segment would be taken out of the path, and what is before it, too.
    text = quote(_text(value), safe="")
    return text.replace(".", "%2E") if set(text) <= {"."} else text


def _header(value: str) -> str:
    """Ids are whatever a caller's side made of them."""
    return "".join(char for char in value if " " < char < "\x7f")[:256]


MAX_REASON = 500
"""Characters of a reason that are kept."""


@dataclass(frozen=True, slots=True)
class Operator:
    """Service that one rule asks, with its deadline (s)."""

    url: str
    timeout: float
    headers: Mapping[str, str] = field(default_factory=dict, repr=False)


async def ask_approval(client: HttpClient, operator: Operator, call: ToolCall) -> tuple[bool, str]:
    """Return whether the call is approved, and the reason. The caller sets the deadline."""
    body = {
        "call": call.call,
        "route": call.route,
        "caller": call.caller,
        "called": call.called,
        "tool": call.name,
        "arguments": _arguments(call.arguments),
    }
    # Somebody is asked: twice is only more ringing, and nothing is done by it.
    request = Request("POST", operator.url, operator.headers, body=body, retries=1, again=True)
    try:
        answer = json_of(await client.send(request))
    except ToolError:
        return False, "nobody could be asked"
    except ValueError:
        return False, "the answer was not understood"
    if not isinstance(answer, dict):
        return False, "the answer was not understood"
    reason = answer.get("reason")
    return answer.get("approve") is True, str(reason)[:MAX_REASON] if reason else ""


def _arguments(text: str) -> Any:
    try:
        return json_of(text or "{}")
    except ValueError:
        return text


Verdict = tuple[bool | None, str]
"""None: no answer, or none that is understood."""


async def ask_content(client: HttpClient, rule: ContentService, call: ToolCall) -> Verdict:
    """Return whether ``call.name`` may say ``call.arguments``, within the rule's timeout."""
    body = {
        "call": call.call,
        "route": call.route,
        "caller": call.caller,
        "called": call.called,
        "who": call.name,
        "text": call.arguments,
    }
    try:
        async with asyncio.timeout(rule.timeout):
            text = await client.send(Request("POST", rule.url, rule.headers, body=body, again=True))
        answer = json_of(text)
    except TimeoutError:
        return None, "too late"
    except ToolError:
        return None, "nobody could be asked"
    except ValueError:
        return None, "the answer was not understood"
    allow = answer.get("allow") if isinstance(answer, dict) else None
    if not isinstance(allow, bool):
        return None, "the answer was not understood"
    return allow, str(answer.get("reason") or "")[:MAX_REASON]
