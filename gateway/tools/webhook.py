# SPDX-License-Identifier: GPL-2.0-or-later
"""Tools that are HTTP requests, as a dialplan describes them."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any
from urllib.parse import quote

from gateway.tools.api import Waiting
from gateway.tools.functions import Function, ToolCall
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
