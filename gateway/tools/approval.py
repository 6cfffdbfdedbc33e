"""Questions to the operator's application: may the model use this tool, with these arguments?

``POST`` of a JSON object with ``call``, ``route``, ``caller``, ``called``, ``tool`` and
``arguments``. It is answered, within the rule's time, with ``{"approve": true}`` or ``false`` and,
for the model, a ``reason``; anything else is a no.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from gateway.text import json_of
from gateway.tools.api import ToolError
from gateway.tools.http import HttpClient, Request
from gateway.tools.runner import ToolCall

MAX_REASON = 500


@dataclass(frozen=True, slots=True)
class Operator:
    """Where one rule asks, and for how long (s)."""

    url: str
    timeout: float
    headers: Mapping[str, str] = field(default_factory=dict, repr=False)


async def ask(client: HttpClient, operator: Operator, call: ToolCall) -> tuple[bool, str]:
    """Whether it is approved, and why not. To be called under a deadline."""
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
