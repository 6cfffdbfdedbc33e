# SPDX-License-Identifier: GPL-2.0-or-later
"""OpenAI's SIP interfaces on this gateway: ``/v1/realtime/calls``, ``/v1/live/sessions``.

Paths, bodies and errors are those of its clients, which need another base URL only.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import time
from typing import Any

import structlog
from fastapi import FastAPI, Request, Response, WebSocket, WebSocketDisconnect
from fastapi.responses import JSONResponse

from gateway.api.backend import LIVE_ID, HostedCalls, Refusal, Role, Token, not_found, recognized
from gateway.bridge.sideband import Follower, Sideband
from gateway.sip.source_limits import TokenBucket
from gateway.tasks import until_one_ends

MAX_BODY_BYTES = 1024 * 1024
REFUSED_BY_DEFAULT = 603

EVENTS_AT_ONCE, EVENTS_PER_SECOND = 200, 50
"""Events of an application that are read; each may ask the realtime server for a response."""

log = structlog.get_logger("api")


_ERRORS = {
    400: "The call's state or the body does not allow it; `param` says what",
    401: "No token, or one that is not known",
    403: "The token is no application's, or the target is not allowed",
    404: "There is no such call of this application",
    413: "The body is too long",
    429: "Too many wrong tokens",
}
_DESCRIBED: dict[str, Any] = {
    "tags": ["applications"],
    "openapi_extra": {"x-role": "application", "security": [{"token": []}]},
    "responses": {code: {"description": text} for code, text in _ERRORS.items()},
}


def add_hosted(app: FastAPI, calls: HostedCalls, tokens: tuple[Token, ...]) -> None:
    """Add the paths of OpenAI's SIP interfaces, for tokens with the role application."""

    def known(authorization: str) -> Token:
        """Return the application's token. Raises Refusal: 401, 403 for one of another role."""
        token = recognized(authorization, tokens)
        if token is None:
            raise Refusal(401, "invalid_api_key", "Incorrect API key provided")
        if token.role is not Role.APPLICATION:
            raise Refusal(403, "forbidden", "needs a token with the role application")
        return token

    def of_kind(call_id: str, path: str) -> str:
        """Return the id of a call, which the other interface does not know."""
        if call_id.startswith(LIVE_ID) != path.startswith("/v1/live/"):
            raise not_found(LIVE_ID if path.startswith("/v1/live/") else "")
        return call_id

    @app.exception_handler(Refusal)
    async def refused(_request: Request, error: Refusal) -> Response:
        return _answer(error)

    async def asked(request: Request) -> tuple[Token, dict[str, Any]]:
        """Return token and JSON object of a request, {} without a body. Raises Refusal."""
        token = known(request.headers.get("authorization", ""))
        raw = await request.body()
        if len(raw) > MAX_BODY_BYTES:
            raise Refusal(413, "too_long", "the body is longer than 1 MiB")
        try:
            body = json.loads(raw) if raw.strip() else {}
        except (ValueError, RecursionError):
            body = None
        if not isinstance(body, dict):
            raise Refusal(400, "invalid_json", "the body is no JSON object")
        return token, body

    base, live = "/v1/realtime/calls/{call_id}", "/v1/live/sessions/{call_id}"

    @app.post(f"{base}/accept", **_DESCRIBED)
    async def accept(call_id: str, request: Request) -> Response:
        """Accept a call with this session."""
        token, body = await asked(request)
        calls.accept(token, of_kind(call_id, request.url.path), body)
        return Response()

    @app.post(f"{live}/accept", **_DESCRIBED)
    async def accept_live(call_id: str, request: Request) -> Response:
        """Accept a call with this Live session."""
        token, body = await asked(request)
        calls.accept(token, of_kind(call_id, request.url.path), body.get("session"))
        return Response()

    @app.post(f"{live}/reject", name="reject_live", **_DESCRIBED)
    @app.post(f"{base}/reject", **_DESCRIBED)
    async def reject(call_id: str, request: Request) -> Response:
        """Reject a call, with 603 or the status code given; a Live call needs one."""
        token, body = await asked(request)
        of_kind(call_id, request.url.path)
        default = None if call_id.startswith(LIVE_ID) else REFUSED_BY_DEFAULT
        code = body.get("status_code", default)
        if type(code) is not int or not 300 <= code <= 699:
            raise Refusal(400, "invalid_value", "status_code must be 300 to 699", "status_code")
        calls.reject(token, call_id, code)
        return Response()

    @app.post(f"{live}/refer", name="refer_live", **_DESCRIBED)
    @app.post(f"{base}/refer", **_DESCRIBED)
    async def refer(call_id: str, request: Request) -> Response:
        """Send the caller to ``target_uri``."""
        token, body = await asked(request)
        target = body.get("target_uri")
        if not isinstance(target, str):
            raise Refusal(400, "missing_required_parameter", "target_uri is missing", "target_uri")
        calls.refer(token, of_kind(call_id, request.url.path), target)
        return Response()

    @app.post(f"{live}/hangup", name="hangup_live", **_DESCRIBED)
    @app.post(f"{base}/hangup", **_DESCRIBED)
    async def hangup(call_id: str, request: Request) -> Response:
        """End a call."""
        token = known(request.headers.get("authorization", ""))
        calls.hang_up(token, of_kind(call_id, request.url.path))
        return Response()

    @app.websocket(f"{live}/attach")
    @app.websocket("/v1/realtime")
    async def sideband(socket: WebSocket, call_id: str = "") -> None:
        try:
            token = known(socket.headers.get("authorization", ""))
            side, follower = calls.sideband(token, of_kind(call_id, socket.url.path))
        except Refusal as refusal:
            await socket.send_denial_response(_answer(refusal))
            return
        try:
            await socket.accept()
            await _joined(socket, side, follower)
        finally:
            side.detach(follower)


def _answer(error: Refusal) -> Response:
    """Return an error response that tells OpenAI's client library not to retry."""
    return JSONResponse(error.body, error.status, {"x-should-retry": "false"})


async def _joined(socket: WebSocket, side: Sideband, follower: Follower) -> None:
    """Pass events both ways until either side ends.

    The application's are read at ``EVENTS_PER_SECOND`` at most, after ``EVENTS_AT_ONCE``.
    """

    async def out() -> None:
        while (message := await follower.next()) is not None:
            await socket.send_text(message.decode())
        await socket.close(follower.close_code or 1000)

    async def back() -> None:
        events = TokenBucket(EVENTS_PER_SECOND, EVENTS_AT_ONCE)
        while True:
            if not events.take(time.monotonic()):
                await asyncio.sleep(1 / EVENTS_PER_SECOND)
            message = await socket.receive()
            if message["type"] == "websocket.disconnect":
                return
            told = message.get("text") or message.get("bytes")
            if told:
                side.take(told, follower)

    with contextlib.suppress(WebSocketDisconnect, RuntimeError):
        await until_one_ends(out(), back())
