# SPDX-License-Identifier: GPL-2.0-or-later
"""HTTP services of the operator: tools that are requests, and questions before a tool runs or words
are said.

One client for all; a request is sent again only where it cannot be carried out twice, and answers
are bounded in size.
"""

from __future__ import annotations

import asyncio
import json
import random
import zlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cache, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import quote, urlencode, urlsplit
from weakref import WeakValueDictionary

import structlog

from gateway import __version__
from gateway.text import json_of
from gateway.tools.functions import (
    ContentService,
    DigitsService,
    Function,
    ToolCall,
    ToolError,
    Waiting,
)

if TYPE_CHECKING:
    import ssl

    import httpx

log = structlog.get_logger("tools")

SAFE = frozenset({"GET", "HEAD", "PUT", "DELETE", "OPTIONS"})
"""Methods that may be sent again (RFC 9110 section 9.2.2)."""

WORTH_IT = frozenset({429, 502, 503, 504})
"""Statuses that another try may mend."""

MAX_BODY = 1024 * 1024
"""Bytes read of an answer; the model gets less of it."""

PARTS_A_TURN = 50
"""Chunks of a body that are taken before others have their turn."""

MAX_COMPACTED = 64 * 1024
"""Characters of an answer whose white space is taken out; the model gets less of a larger one."""

MAX_DETAIL = 500
"""Characters of a failure's body that the model is told."""

_WINDOWS = {"": None, "identity": None, "gzip": 31, "x-gzip": 31, "deflate": 15}
"""Content codings that are read (RFC 9110 section 8.4.1), as zlib's window bits."""

FIRST_PAUSE = 0.25
"""Seconds before the second try; each further pause is twice as long."""

MAX_PAUSE = 5.0
"""Seconds that a service's ``Retry-After`` is taken for at most: a caller waits meanwhile."""


@dataclass(frozen=True, slots=True)
class Request:
    """One request; nothing of it but method and host may be logged."""

    method: str
    url: str
    headers: Mapping[str, str] = field(default_factory=dict, repr=False)
    query: Mapping[str, str] = field(default_factory=dict, repr=False)
    body: Any = None
    """Sent as JSON, where it is not None."""
    retries: int = 0
    again: bool = False
    """Whether any method may be retried: the service knows the request by its Idempotency-Key."""

    @property
    def whole_url(self) -> str:
        """The URL with the query added to what it has already."""
        if not self.query:
            return self.url
        return f"{self.url}{'&' if '?' in self.url else '?'}{urlencode(self.query)}"

    @property
    def repeatable(self) -> bool:
        """Whether a request that may have arrived can be sent again."""
        return self.again or self.method in SAFE


@cache
def public_authorities() -> ssl.SSLContext:
    """A context that trusts the public authorities, for all clients: reading them takes 20 ms."""
    import httpx

    return httpx.create_ssl_context(trust_env=False)


class HttpClient:
    """Owns the connections. Belongs to the event loop.

    Args:
        ca: a file of authorities that are trusted beside the public ones.
    """

    def __init__(
        self, max_connections: int, proxy: str | None = None, ca: Path | None = None
    ) -> None:
        import httpx  # not at the top: `gateway check` needs none of it

        # The library's own queue for connections keeps those of requests that are cancelled in it.
        self._places = asyncio.Semaphore(max_connections)
        self._most_of_one = max(1, max_connections // 2)
        self._services: WeakValueDictionary[str, asyncio.Semaphore] = WeakValueDictionary()
        trusted = public_authorities()
        if ca is not None:
            trusted = httpx.create_ssl_context(trust_env=False)
            trusted.load_verify_locations(ca)
        self._client = httpx.AsyncClient(
            proxy=proxy,
            verify=trusted,
            limits=httpx.Limits(
                max_connections=max_connections, max_keepalive_connections=max_connections // 2
            ),
            timeout=httpx.Timeout(None),  # the whole of a request has its deadline
            trust_env=False,  # no proxy that nobody asked for, no credentials of a .netrc
            follow_redirects=False,  # its headers are for the host that was named
            headers={
                "User-Agent": f"sip-realtime-gateway/{__version__}",
                "Accept-Encoding": "gzip, deflate",
            },
        )

    async def close(self) -> None:
        await self._client.aclose()

    async def send(self, request: Request) -> str:
        """The body of a 2xx answer, as text. To be called under a deadline.

        Raises ToolError for everything else, in words that hold no part of URL or headers.
        """
        pause = FIRST_PAUSE
        for left in range(request.retries, -1, -1):
            try:
                return await self._once(request)
            except _AgainError as failure:
                if not left:
                    raise ToolError(str(failure)) from None
                # Those who were refused together need not come again together.
                wait = failure.after if failure.after is not None else pause
                wait *= random.uniform(0.75, 1.25)
                log.info("tool.retried", host=_host(request.url), wait_ms=round(wait * 1000))
                await asyncio.sleep(wait)
                pause *= 2
        raise AssertionError("unreachable")

    async def _once(self, request: Request) -> str:
        """Send one request and return the answer's text.

        Raises ToolError, and _AgainError where another attempt may help.
        """
        import httpx

        # A service that does not answer leaves connections to the others.
        service = "/".join(request.url.split("/", 3)[:3])
        of_service = self._services.setdefault(service, asyncio.Semaphore(self._most_of_one))
        try:
            async with (
                of_service,
                self._places,
                self._client.stream(
                    request.method,
                    request.whole_url,
                    headers=dict(request.headers),
                    json=request.body,
                ) as response,
            ):
                text, whole = await read_answer(response)
        except httpx.ConnectError:
            raise _AgainError(f"{_host(request.url)} cannot be reached") from None
        except httpx.TransportError as error:
            said = f"the connection to {_host(request.url)} broke ({type(error).__name__})"
            if request.repeatable:
                raise _AgainError(said) from None
            raise ToolError(f"{said}; whether it was done is not known") from None
        except (httpx.InvalidURL, UnicodeError):
            raise ToolError("the address of this service is not usable") from None
        if response.is_success:
            if not whole:
                raise ToolError(f"the answer is larger than {MAX_BODY} bytes")
            return text
        said = f"the service answered {response.status_code}"
        if text.strip():
            said += f": {' '.join(text.split())[:MAX_DETAIL]}"
        if response.status_code in WORTH_IT and request.repeatable:
            raise _AgainError(said, _retry_after(response))
        raise ToolError(said)


class _AgainError(Exception):
    """Another try may help, after so many seconds if that was said."""

    def __init__(self, message: str, after: float | None = None) -> None:
        super().__init__(message)
        self.after = after


async def read_answer(response: httpx.Response) -> tuple[str, bool]:
    """Return the body as text, and whether that is all of it. Raises ToolError.

    A small body that is compressed may become a very large one: it is decompressed here, where the
    bound holds for what comes out, and not by the client, which does it packet by packet.
    """
    coding = response.headers.get("content-encoding", "identity").strip().lower()
    if coding not in _WINDOWS:
        raise ToolError("the service answered in a content coding that was not asked for")
    window = _WINDOWS[coding]
    unpack = None if window is None else zlib.decompressobj(window)
    body, read, parts = bytearray(), 0, 0
    async for part in response.aiter_raw():
        room = MAX_BODY + 1 - len(body)
        read, parts = read + len(part), parts + 1
        if read > MAX_BODY:
            return "", False
        if parts % PARTS_A_TURN == 0:  # chunks of a byte have all come at once
            await asyncio.sleep(0)
        try:
            body += part[:room] if unpack is None else unpack.decompress(part, room)
        except zlib.error:
            raise ToolError(
                "the service answered with a body that cannot be decompressed"
            ) from None
        if len(body) > MAX_BODY:
            return "", False
    return body.decode(response.encoding or "utf-8", "replace"), True


def _retry_after(response: httpx.Response) -> float | None:
    value = response.headers.get("retry-after", "").strip()
    if not (value.isascii() and value.isdigit()):
        return None
    return min(float(value[:9]), MAX_PAUSE)


def _host(url: str) -> str:
    try:
        return urlsplit(url).hostname or "the service"
    except ValueError:
        return "the service"


def compact(text: str) -> str:
    """JSON without its white space, which costs tokens; other text as it is."""
    if len(text) > MAX_COMPACTED:
        return text
    try:
        return json.dumps(json_of(text), ensure_ascii=False, separators=(",", ":"))
    except (ValueError, RecursionError):
        return text


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
            **call.trace_headers,
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
    """Return a call id as a header value: callers may have put anything into it."""
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
    headers = {**call.trace_headers, **operator.headers}
    request = Request("POST", operator.url, headers, body=body, retries=1, again=True)
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
            headers = {**call.trace_headers, **rule.headers}
            text = await client.send(Request("POST", rule.url, headers, body=body, again=True))
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


LONG_ENTRY = 8
"""Digits that stand in a token by no chance."""
MAX_TOKEN = 256
"""Characters of a token in place of digits."""


def _tells(token: str, digits: str) -> bool:
    """Whether a token has the digits in it, grouped or not; few may stand there by chance."""
    there = "".join(filter(str.isdigit, token))
    return digits in there if len(digits) >= LONG_ENTRY else digits == there


async def store_digits(
    client: HttpClient, service: DigitsService, call: ToolCall, digits: str
) -> dict[str, Any]:
    """POST digits of the kind ``call.name``; returns what the model may know.

    Neither what the service says of a failure nor a token that has the digits in it is passed on.
    """
    kind = call.name
    body = {"call": call.call, "route": call.route, "kind": kind, "digits": digits}
    failed: dict[str, Any] = {"status": "failed"}
    try:
        async with asyncio.timeout(service.store_timeout):
            text = await client.send(Request("POST", service.url, service.headers, body=body))
        answer = json_of(text)
    except TimeoutError:
        return {**failed, "reason": "the service that takes the digits did not answer in time"}
    except (ToolError, ValueError):
        return {**failed, "reason": "the service that takes the digits did not take them"}
    token = answer.get("token") if isinstance(answer, dict) else None
    if not isinstance(token, str) or not 0 < len(token) <= MAX_TOKEN or _tells(token, digits):
        return {**failed, "reason": "the service that takes the digits gave no token"}
    told = {"status": "stored", "kind": kind, "token": token, "digits": len(digits)}
    return {**told, "last_four": digits[-4:]} if len(digits) >= SHOW_LAST_FOUR else told


SHOW_LAST_FOUR = 12
"""Digits of an entry from which its last four are told; of a shorter one they say too much."""
