# SPDX-License-Identifier: GPL-2.0-or-later
"""HTTP services of the operator: webhook tools, approvals, content checks, storage of digits.

One client for all; a request is sent again only where it cannot be carried out twice, and answers
are bounded in size.
"""

from __future__ import annotations

import asyncio
import json
import random
import re
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
from gateway.text import json_of, text_or_json
from gateway.tools import (
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
"""Idempotent methods, which may be sent again (RFC 9110 section 9.2.2)."""

RETRIED_STATUSES = frozenset({429, 502, 503, 504})
"""Statuses after which a request is sent again."""

MAX_BODY = 1024 * 1024
"""Bytes read of an answer; the model gets less of it."""

PARTS_A_TURN = 50
"""Chunks of a body that are read before other tasks have their turn."""

MAX_COMPACTED = 64 * 1024
"""Characters of an answer up to which its white space is removed; of a larger one the model gets
only the beginning."""

MAX_DETAIL = 500
"""Characters of a failure's body that the model is told."""

_WINDOWS = {"": None, "identity": None, "gzip": 31, "x-gzip": 31, "deflate": 15}
"""Content codings that are decoded (RFC 9110 section 8.4.1), with zlib's ``wbits``."""

FIRST_PAUSE = 0.25
"""Seconds before the second try; each further pause is twice as long."""

MAX_PAUSE = 5.0
"""Seconds that a service's ``Retry-After`` is taken for at most: a caller waits meanwhile."""


@dataclass(frozen=True, slots=True)
class Request:
    """A request. Only its method and host may be logged."""

    method: str
    url: str
    headers: Mapping[str, str] = field(default_factory=dict, repr=False)
    query: Mapping[str, str] = field(default_factory=dict, repr=False)
    body: Any = None
    """Sent as JSON if it is not None."""
    retries: int = 0
    """Further tries after the first."""
    again: bool = False
    """Whether the service takes this request twice without harm, whatever its method."""

    @property
    def whole_url(self) -> str:
        """The URL with :attr:`query` added behind a query that it has itself."""
        if not self.query:
            return self.url
        return f"{self.url}{'&' if '?' in self.url else '?'}{urlencode(self.query)}"

    @property
    def repeatable(self) -> bool:
        """Whether a request that may have arrived can be sent again: by its method, or by
        :attr:`again`."""
        return self.again or self.method in SAFE


@cache
def public_authorities() -> ssl.SSLContext:
    """Return a TLS context with the public authorities (certifi's), made once in a process, since
    that takes 20 ms."""
    import httpx

    return httpx.create_ssl_context(trust_env=False)


class HttpClient:
    """HTTP client of the process, on the event loop. It follows no redirect and takes no settings
    from the environment.

    A request waits for a connection while ``max_connections`` are in use, or half of them by its
    service (scheme, host and port).

    Args:
        proxy: URL; None connects directly.
        ca: PEM file of authorities that are trusted beside the public ones.
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
        """Close all connections; requests under way fail."""
        await self._client.aclose()

    async def send(self, request: Request) -> str:
        """Send a request, up to ``request.retries`` times again; return the body of a 2xx answer as
        text.

        It is sent again if it cannot have arrived, or if it is repeatable and the connection broke
        or the answer is one of ``RETRIED_STATUSES``; after ``Retry-After`` (``MAX_PAUSE`` at most),
        or else ``FIRST_PAUSE``, doubled each time, each ±25 %.

        The caller sets the deadline. Raises ToolError for any other end, a redirect too; its text
        has no part of the URL but the host, and no header.
        """
        pause = FIRST_PAUSE
        for left in range(request.retries, -1, -1):
            try:
                return await self._once(request)
            except _RetryableError as failure:
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
        """Send a request once, after waiting for a connection; return the body of a 2xx answer as
        text.

        Raises _RetryableError if it may be sent again, otherwise ToolError: for another status with
        the first ``MAX_DETAIL`` characters of its body, and for a body of more than ``MAX_BODY``.
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
            raise _RetryableError(f"{_host(request.url)} cannot be reached") from None
        except httpx.TransportError as error:
            said = f"the connection to {_host(request.url)} broke ({type(error).__name__})"
            if request.repeatable:
                raise _RetryableError(said) from None
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
        if response.status_code in RETRIED_STATUSES and request.repeatable:
            raise _RetryableError(said, _retry_after(response))
        raise ToolError(said)


class _RetryableError(Exception):
    """A request failed and may be sent again: after ``after`` seconds if the service has said so,
    None if not."""

    def __init__(self, message: str, after: float | None = None) -> None:
        super().__init__(message)
        self.after = after


async def read_answer(response: httpx.Response) -> tuple[str, bool]:
    """Return the body as text, and True; or "" and False if it exceeds ``MAX_BODY`` bytes,
    compressed or not.

    A small body that is compressed may become a very large one: it is decompressed here, where the
    bound holds for what comes out. Raises ToolError for a body that cannot be decompressed, or is
    in a coding that was not asked for. Lets other tasks run after each ``PARTS_A_TURN`` chunks.
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
    return body.decode(_charset(response), "replace"), True


def _charset(response: httpx.Response) -> str:
    """Return the charset of an answer's Content-Type; UTF-8 for one that is not listed, as some of
    Python's codecs are no text, or take very long."""
    named = (response.charset_encoding or "").lower().replace("_", "-")
    known = named in _CHARSETS or _CHARSET_FAMILIES.fullmatch(named) is not None
    return named if known else "utf-8"


_CHARSETS = frozenset({"us-ascii", "ascii", "utf-16", "shift-jis", "gbk", "big5"})
_CHARSET_FAMILIES = re.compile(
    r"latin-?1|iso-8859-(?:[1-9]|1[013-6])|windows-125[0-8]|koi8-[ru]|euc-(?:jp|kr)|utf-16[lb]e"
    r"|gb(?:18030|2312)"
)


def _retry_after(response: httpx.Response) -> float | None:
    """Return the seconds of ``Retry-After``, ``MAX_PAUSE`` at most; None without it, or if it is a
    date."""
    value = response.headers.get("retry-after", "").strip()
    if not (value.isascii() and value.isdigit()):
        return None
    return min(float(value[:9]), MAX_PAUSE)


def _host(url: str) -> str:
    """Return the host of a URL, for people; "the service" if it has none."""
    try:
        return urlsplit(url).hostname or "the service"
    except ValueError:
        return "the service"


def compact(text: str) -> str:
    """Return JSON without its white space, which costs tokens; text that is none, or longer than
    ``MAX_COMPACTED``, as it is."""
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
    """Arguments that are in the URL, and are not sent in query or body, too."""
    headers: Mapping[str, str] = field(repr=False)
    timeout: float
    retries: int
    idempotent: bool
    max_result_chars: int
    waiting: Waiting


def function_of(hook: Webhook, client: HttpClient) -> Function:
    """Return the function that sends a webhook tool's request, with the settings of the tool."""
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
    """Send a webhook tool's request; return its answer, compacted. Raises ToolError."""
    return compact(await client.send(request_of(hook, call, given)))


def request_of(hook: Webhook, call: ToolCall, given: Mapping[str, Any]) -> Request:
    """Return a webhook tool's request for the model's arguments.

    Arguments that are not in the URL go as JSON into the body of a method in ``WITH_BODY``, and
    into the query of others. Headers: the call's id, an Idempotency-Key of the function call, the
    trace, then the tool's own, which replace those.
    """
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
        query={} if body else {name: text_or_json(value) for name, value in rest.items()},
        body=rest if body else None,
        retries=hook.retries,
        again=hook.idempotent,
    )


def _all_quoted(values: Mapping[str, object]) -> dict[str, str]:
    """Return all values percent-encoded: see :func:`_quoted`."""
    return {name: _quoted(value) for name, value in values.items()}


def _quoted(value: object) -> str:
    """Return a value percent-encoded for any place in a URL."""
    # A dot segment would be taken out of the path, and what is before it, too.
    text = quote(text_or_json(value), safe="")
    return text.replace(".", "%2E") if set(text) <= {"."} else text


def _header(value: str) -> str:
    """Return an id as a header value: printable ASCII, 256 characters at most."""
    return "".join(char for char in value if " " < char < "\x7f")[:256]


MAX_REASON = 500
"""Characters of a reason that are kept."""


@dataclass(frozen=True, slots=True)
class Operator:
    """Service that decides on approvals of one rule; ``timeout`` is its deadline (s)."""

    url: str
    timeout: float
    headers: Mapping[str, str] = field(default_factory=dict, repr=False)


async def ask_approval(client: HttpClient, operator: Operator, call: ToolCall) -> tuple[bool, str]:
    """Ask a service whether a tool call may run; return its answer, and the reason ("" for none).

    It is asked a second time where the first failed. True only if the answer has ``"approve":
    true``; False with our reason if there is no answer, or none that is understood. The caller sets
    the deadline.
    """
    asked = {"tool": call.name, "arguments": _arguments(call.arguments)}
    answer = await _ask(client, operator, call, asked, retries=1)
    if isinstance(answer, str):
        return False, answer
    reason = answer.get("reason")
    return answer.get("approve") is True, str(reason)[:MAX_REASON] if reason else ""


def _arguments(text: str) -> Any:
    """Return a tool call's arguments as JSON value, {} for ""; as the text if they are no JSON."""
    try:
        return json_of(text or "{}")
    except ValueError:
        return text


Verdict = tuple[bool | None, str]
"""Whether words may be said, None without an answer that is understood; and the reason."""


async def ask_content(client: HttpClient, rule: ContentService, call: ToolCall) -> Verdict:
    """Ask a guardrail's service whether ``call.name``, a speaker, may say ``call.arguments``.

    It is asked once, within ``rule.timeout`` (s). The verdict is its ``allow`` and ``reason``;
    None, with our reason, if it is too late, cannot be asked, or ``allow`` is neither true nor
    false.
    """
    try:
        async with asyncio.timeout(rule.timeout):
            answer = await _ask(client, rule, call, {"who": call.name, "text": call.arguments})
    except TimeoutError:
        return None, "too late"
    if isinstance(answer, str):
        return None, answer
    allow = answer.get("allow")
    if not isinstance(allow, bool):
        return None, NOT_UNDERSTOOD
    return allow, str(answer.get("reason") or "")[:MAX_REASON]


NOT_UNDERSTOOD = "the answer was not understood"


async def _ask(
    client: HttpClient,
    service: Operator | ContentService,
    call: ToolCall,
    asked: Mapping[str, Any],
    retries: int = 0,
) -> Mapping[str, Any] | str:
    """POST a question about a call, with ids and addresses of the call; return the object in the
    answer, or as text why there is none.

    Args:
        asked: further fields of the question, which replace those of the call.
    """
    facts = {"call": call.call, "route": call.route, "caller": call.caller, "called": call.called}
    headers = {**call.trace_headers, **service.headers}
    body = {**facts, **asked}
    # Nothing is done by a question: asked twice, it only rings twice.
    request = Request("POST", service.url, headers, body=body, retries=retries, again=True)
    try:
        answer = json_of(await client.send(request))
    except ToolError:
        return "nobody could be asked"
    except ValueError:
        return NOT_UNDERSTOOD
    return answer if isinstance(answer, dict) else NOT_UNDERSTOOD


LONG_ENTRY = 8
"""Number of digits that are in a token by no chance."""
MAX_TOKEN = 256
"""Characters of a token in place of digits."""


def _reveals(token: str, digits: str) -> bool:
    """Whether a token contains the digits, however grouped; of fewer than ``LONG_ENTRY`` digits,
    which may be in it by chance, whether its digits are just these."""
    there = "".join(filter(str.isdigit, token))
    return digits in there if len(digits) >= LONG_ENTRY else digits == there


async def store_digits(
    client: HttpClient, service: DigitsService, call: ToolCall, digits: str
) -> dict[str, Any]:
    """POST digits of the kind ``call.name`` to a service once; return the result for the model.

    That is ``status`` "stored", kind, the service's token, the number of digits and of at least
    ``SHOW_LAST_FOUR`` the last four; or "failed" with a reason of ours: no answer within
    ``store_timeout`` (s), not 2xx with JSON, or no token of at most ``MAX_TOKEN`` characters.
    Neither the service's words about a failure nor a token that reveals the digits is passed on.
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
    if not isinstance(token, str) or not 0 < len(token) <= MAX_TOKEN or _reveals(token, digits):
        return {**failed, "reason": "the service that takes the digits gave no token"}
    told = {"status": "stored", "kind": kind, "token": token, "digits": len(digits)}
    return {**told, "last_four": digits[-4:]} if len(digits) >= SHOW_LAST_FOUR else told


SHOW_LAST_FOUR = 12
"""Digits of an entry whose last four the model gets; of a shorter one they tell too much."""
