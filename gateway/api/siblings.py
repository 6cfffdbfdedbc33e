# SPDX-License-Identifier: GPL-2.0-or-later
"""The other workers of a machine: requests about their calls are forwarded to them.

Each worker has a Unix socket; a request for a call that is not here goes to the worker that has it,
with the token that came with it. So every worker's API, and every command, reaches all calls.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import re
from collections.abc import AsyncGenerator, Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias
from urllib.parse import quote

import httpx
import structlog
from starlette.datastructures import Headers, QueryParams
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.types import Receive, Scope, Send
from starlette.websockets import WebSocket, WebSocketDisconnect
from websockets.asyncio.client import unix_connect
from websockets.exceptions import ConnectionClosed, InvalidHandshake, InvalidStatus

from gateway.api.backend import MAX_EVENTS, POSITION, EventFeed, Token
from gateway.api.connections import HOP, LOCAL, PEER, RIGHTS, ROLE, USER
from gateway.tasks import TaskSet, until_one_ends

CONNECT_SECONDS = 1.0
ANSWER_SECONDS = 30.0
"""More than any command takes."""
LOOK_SECONDS = 2.0
"""For what a worker answers at once: one that hangs is passed over then."""
SILENT_SECONDS = 40.0
"""For a stream of events, on which something comes every 15 s."""
AGAIN_SECONDS = 1.0
"""Until a worker whose stream has ended is asked for it again."""
MAX_MESSAGE_BYTES = 2 * 1024 * 1024

_CALL = re.compile(r"/(?:api/v1/calls|v1/realtime/calls|v1/live/sessions)/([^/]+)(?:/.*)?")
_NOT_CALLS = frozenset({"export"})
_OWN = frozenset(
    {"host", "connection", "content-length", "transfer-encoding", "upgrade", "cookie", HOP}
)
_NOT_KEPT = frozenset({"connection", "date", "server", "transfer-encoding"})
"""Header fields of an answer that are this worker's."""

log = structlog.get_logger("api")


class Siblings:
    """Asks the other workers by their sockets. Lives on the event loop."""

    def __init__(self, sockets: Sequence[Path]) -> None:
        self.sockets = tuple(sockets)
        self._clients: dict[Path, httpx.AsyncClient] = {}

    def client(self, path: Path) -> httpx.AsyncClient:
        """Return the HTTP client of a worker's socket, made at first use."""
        if path not in self._clients:
            self._clients[path] = httpx.AsyncClient(
                # Without a limit, which that of the API's connections is: requests that are
                # cancelled in httpcore's queue would leave connections in its pool for ever.
                transport=httpx.AsyncHTTPTransport(
                    uds=str(path), limits=httpx.Limits(max_connections=None)
                ),
                base_url="http://gateway",
                timeout=httpx.Timeout(ANSWER_SECONDS, connect=CONNECT_SECONDS),
            )
        return self._clients[path]

    async def live(self) -> list[dict[str, Any]]:
        """Return the rows of calls in progress at other workers; none of a worker that does not
        answer."""
        parameters = {"live": "true", "limit": "1000"}
        answers = await asyncio.gather(
            *(self._get(one, "/api/v1/calls", parameters) for one in self.sockets)
        )
        return [row for answer in answers for row in answer.get("calls", ())]

    async def levels(self) -> dict[str, Any]:
        """Return the audio levels of calls at other workers (dBFS), by call; none of a worker that
        does not answer."""
        answers = await asyncio.gather(
            *(self._get(one, "/api/v1/levels", {}) for one in self.sockets)
        )
        return {call: pair for one in answers for call, pair in one.get("levels", {}).items()}

    async def worker_with(self, call: str) -> Path | None:
        """Return the socket of the first worker that knows a call of this name; None for none."""
        answers = await asyncio.gather(
            *(self._get(one, "/api/v1/here", {"call": call}) for one in self.sockets)
        )
        found = [
            path for path, answer in zip(self.sockets, answers, strict=True) if answer.get("here")
        ]
        return found[0] if found else None

    async def events(
        self, path: Path, after: str
    ) -> AsyncGenerator[tuple[str, Mapping[str, Any]], None]:
        """Yield id and event of a worker, with its position first, from behind ``after`` on.

        Never ends: a stream that ends, or is silent for ``SILENT_SECONDS``, is asked for again.
        """
        limits = httpx.Timeout(CONNECT_SECONDS, read=SILENT_SECONDS)
        while True:
            try:
                asked = self.client(path).stream(
                    "GET",
                    "/api/v1/events",
                    params={"after": after} if after else {},
                    headers={HOP: "1"},
                    timeout=limits,
                )
                async with asked as answer:
                    answer.raise_for_status()
                    number, rest = "", b""
                    async for piece in answer.aiter_bytes():
                        *lines, rest = (rest + piece).split(b"\n")
                        for line in lines:
                            name, _, value = line.partition(b": ")
                            if name == b"id":
                                number = value.decode()
                            elif name == b"data":
                                after = number
                                yield number, json.loads(value)
                        if len(rest) > MAX_MESSAGE_BYTES:
                            break  # no event of ours
            except (httpx.HTTPError, OSError, ValueError):
                pass  # it is being started, has ended or hangs
            await asyncio.sleep(AGAIN_SECONDS)

    async def _get(self, path: Path, target: str, parameters: dict[str, str]) -> dict[str, Any]:
        """Return the JSON answer of another worker; {} for an error, and where it does not answer
        within ``LOOK_SECONDS``."""
        try:
            asked = self.client(path).get(target, params=parameters, headers={HOP: "1"})
            async with asyncio.timeout(LOOK_SECONDS):
                answer = await asked
            return dict(answer.json()) if answer.is_success else {}
        except (httpx.HTTPError, OSError, ValueError):  # TimeoutError is an OSError
            return {}  # it is being started, has ended or hangs


Coming: TypeAlias = tuple[Path | None, str, Mapping[str, Any]]
"""Worker (None: this one), id and event."""


async def merged(
    feed: EventFeed, siblings: Siblings, after: str
) -> AsyncGenerator[tuple[str, Mapping[str, Any]], None]:
    """Yield id and event of all workers, as :meth:`EventFeed.follow` does for one.

    The first, without an id, says that each of them is followed, or does not answer. An id names
    the last event of each worker, so that a follower resumes at any of them.
    """
    coming: asyncio.Queue[Coming] = asyncio.Queue(MAX_EVENTS)
    at: dict[Path | None, str] = {None: feed.position(after)}
    placed: dict[Path, asyncio.Event] = {path: asyncio.Event() for path in siblings.sockets}
    own = feed.follow(after)

    async def take_own() -> None:
        async for number, event in own:
            await coming.put((None, number, event))

    async def take(path: Path) -> None:
        async for number, event in siblings.events(path, after):
            if event["type"] == POSITION:
                at[path] = number
                placed[path].set()
            else:
                await coming.put((path, number, event))

    tasks = TaskSet()
    tasks.spawn(take_own(), "events")
    for worker in placed:
        tasks.spawn(take(worker), f"events of {worker}")
    try:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(LOOK_SECONDS):
                await asyncio.gather(*(one.wait() for one in placed.values()))
        yield "", {}
        while True:
            path, number, event = await coming.get()
            at[path] = number
            yield ",".join(at.values()), event
    finally:
        await tasks.cancel()
        await own.aclose()


@dataclass(eq=False)
class ForwardToWorker:
    """Forwards requests about another worker's call to it (ASGI).

    Args:
        here: whether this worker knows a call by this name.
        token_of: the token of a request; one without goes nowhere.
    """

    app: Any
    siblings: Siblings
    here: Callable[[str], bool]
    token_of: Callable[[Scope], Token | None]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        path = await self._worker_of(scope)
        if path is None:
            await self.app(scope, receive, send)
        elif scope["type"] == "http":
            await self._forward_request(Request(scope, receive), path, send)
        else:
            await self._forward_websocket(WebSocket(scope, receive, send), path)

    async def _worker_of(self, scope: Scope) -> Path | None:
        """Return the socket of the worker that a request is forwarded to; None for none.

        None: it names no call, one that is here or nowhere, has no valid token, or was forwarded.
        """
        if scope["type"] not in ("http", "websocket") or HOP in Headers(scope=scope):
            return None
        call = ""
        if scope["type"] == "websocket" and scope["path"] == "/v1/realtime":
            call = QueryParams(scope["query_string"]).get("call_id", "")
        elif found := _CALL.fullmatch(scope["path"]):
            call = "" if found[1] in _NOT_CALLS else found[1]
        if not call or self.here(call) or self.token_of(scope) is None:
            return None
        return await self.siblings.worker_with(call)

    async def _forward_request(self, request: Request, path: Path, send: Send) -> None:
        """Forward a request to another worker, and stream its response to the client.

        503 where it does not answer, 413 for a body that is too long.
        """
        # As it came: of a Call-ID, "?" and "#" would begin something else.
        path_of = request.scope.get("raw_path", b"").decode("latin-1") or request.url.path
        target = path_of + (f"?{request.url.query}" if request.url.query else "")
        client = self.siblings.client(path)
        try:
            body = await request.body()
        except ClientDisconnect:
            return
        except HTTPException as error:  # too long; nobody else answers here
            refused = JSONResponse({"error": error.detail}, error.status_code)
            await refused(request.scope, request.receive, send)
            return
        headers = [
            (name.encode("latin-1"), value.encode("latin-1"))  # as they came
            for name, value in self._headers(request.scope)
        ]
        asked = client.build_request(request.method, target, headers=headers, content=body)
        try:
            answer = await client.send(asked, stream=True)
        except (httpx.HTTPError, OSError) as error:
            log.warning("api.worker_silent", socket=str(path), error=type(error).__name__)
            answered = Response(status_code=503, headers={"Retry-After": "1"})
            await answered(request.scope, request.receive, send)
            return
        try:
            kept = {k: v for k, v in answer.headers.items() if k not in _NOT_KEPT}
            # Piece by piece: a recording is long.
            passed_on = StreamingResponse(answer.aiter_raw(), answer.status_code, kept)
            await passed_on(request.scope, request.receive, send)
        except (httpx.HTTPError, OSError) as error:
            log.warning("api.worker_silent", socket=str(path), error=type(error).__name__)
            raise
        finally:
            await answer.aclose()

    async def _forward_websocket(self, socket: WebSocket, path: Path) -> None:
        """Join a WebSocket with one to another worker, until either ends, with its close code.

        Its refusal of the handshake is the client's; 503 where it does not answer.
        """
        uri = f"ws://gateway{socket.url.path}?{socket.url.query}"
        try:
            other = await unix_connect(
                str(path),
                uri,
                additional_headers=[
                    one
                    for one in self._headers(socket.scope)
                    if not one[0].startswith("sec-websocket")
                ],
                max_size=MAX_MESSAGE_BYTES,
                compression=None,
                open_timeout=ANSWER_SECONDS,
                proxy=None,
            )
        except InvalidStatus as refused:
            await socket.send_denial_response(
                Response(
                    bytes(refused.response.body or b""),  # which may be a bytearray
                    refused.response.status_code,
                    {"content-type": "application/json", "x-should-retry": "false"},
                )
            )
            return
        except (OSError, TimeoutError, InvalidHandshake):
            await socket.send_denial_response(Response(status_code=503))
            return
        await socket.accept()

        async def back() -> None:
            async for message in other:
                if isinstance(message, str):
                    await socket.send_text(message)
                else:
                    await socket.send_bytes(message)

        try:
            with contextlib.suppress(ConnectionClosed, WebSocketDisconnect, RuntimeError):
                await until_one_ends(back(), _forward(socket, other))
        finally:
            await other.close()
        with contextlib.suppress(RuntimeError, WebSocketDisconnect):
            await socket.close(other.close_code or 1000)

    def _headers(self, scope: Scope) -> list[tuple[str, str]]:
        """Return the header fields to forward, with who has sent the request.

        Of a client of the Unix socket or a log-in of the console that is name and role; else the
        token in ``Authorization`` says it.
        """
        fields = [(name, value) for name, value in Headers(scope=scope).items() if name not in _OWN]
        told = {HOP: "1", PEER: (scope.get("client") or ("local", 0))[0]}
        token = self.token_of(scope)
        if LOCAL in scope:
            told |= {USER: quote(scope[LOCAL]), RIGHTS: scope[ROLE].name.lower()}
        elif token is not None and "authorization" not in Headers(scope=scope):
            told |= {USER: quote(token.name), RIGHTS: token.role.name.lower()}
        return [*((n, v) for n, v in fields if n not in (PEER, USER, RIGHTS)), *told.items()]


async def _forward(socket: WebSocket, other: Any) -> None:
    """Send the client's messages on to the worker, until either closes."""
    with contextlib.suppress(ConnectionClosed, WebSocketDisconnect, RuntimeError):
        while (message := await socket.receive())["type"] != "websocket.disconnect":
            await other.send(message.get("text") or message.get("bytes") or "")
