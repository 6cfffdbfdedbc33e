"""Questions about words: may they be said?

``POST`` of a JSON object with ``call``, ``route``, ``caller``, ``called``, ``who`` (agent or
caller) and ``text``. It is answered with ``{"allow": true}`` or ``false``, and a ``reason`` for
the record.
"""

from __future__ import annotations

import asyncio

from gateway.text import json_of
from gateway.tools.api import ToolError
from gateway.tools.http import HttpClient, Request
from gateway.tools.runner import ContentService, ToolCall

MAX_REASON = 500

Verdict = tuple[bool | None, str]
"""None: no answer, or none that is understood."""


async def ask(client: HttpClient, rule: ContentService, call: ToolCall) -> Verdict:
    """Whether ``call.arguments`` may be said by ``call.name``, within the rule's time."""
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
