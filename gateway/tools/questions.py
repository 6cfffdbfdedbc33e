# SPDX-License-Identifier: GPL-2.0-or-later
"""Questions to the operator's application over HTTP: may a tool run, may words be said?"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from gateway.text import json_of
from gateway.tools.api import ToolError
from gateway.tools.functions import ContentService, ToolCall
from gateway.tools.http import HttpClient, Request

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
