# SPDX-License-Identifier: GPL-2.0-or-later
"""Paths to watch and hear calls: levels, a call as it goes on, listening in, recordings."""

from __future__ import annotations

import asyncio
import re
import struct
import time
from collections import OrderedDict
from collections.abc import AsyncIterator
from contextlib import suppress
from math import log10
from pathlib import Path as FilePath
from typing import Annotated, Any

from fastapi import HTTPException, Query, Request, WebSocket, WebSocketDisconnect
from fastapi.responses import FileResponse, JSONResponse, StreamingResponse
from pydantic import BaseModel

from gateway.api.access import NO_CALL, Paths, audit, no_call, token_of
from gateway.api.backend import Backend, NoCallError, Role
from gateway.api.calls import CallId
from gateway.api.client import RefusedError
from gateway.api.connections import BEARER, HOP, UNAUTHORIZED
from gateway.api.siblings import Siblings
from gateway.audio.codecs import FRAME_MS, SAMPLE_RATE
from gateway.bridge.recording_and_listening import FullError, Listener

FULL_SCALE = 32_768

PIECE_BYTES = 64 * 1024
"""Of a recording in progress, read together."""

READ_SECONDS = 60.0
"""A player reads a recording in parts: who goes on within this time is not logged again."""
MAX_READERS = 1000

OVER = 1000
"""WebSocket close code (RFC 6455 section 7.4)."""


class Levels(BaseModel):
    """By call in progress: how loud its caller is, and what they hear (dBFS); null: silence."""

    levels: dict[str, tuple[float | None, float | None]]


class Progress(BaseModel):
    """A call in progress: its record, with what has come of timeline and transcript."""

    call: dict[str, Any]


def add_watching(paths: Paths, backend: Backend, siblings: Siblings) -> None:
    """Add the paths to watch and hear calls in progress, and to read recordings."""

    @paths.add("GET", "/levels", Role.READONLY, Levels, tags=["calls"])
    async def get_levels(request: Request) -> Any:
        """How loud both sides of each call in progress are just now."""
        found: dict[str, Any] = {
            call: (_dbfs(caller), _dbfs(agent))
            for call, (caller, agent) in backend.levels().items()
        }
        if HOP not in request.headers:
            found |= await siblings.levels()
        return {"levels": found}

    @paths.add("GET", "/calls/{call_id}/progress", Role.OPERATOR, Progress, NO_CALL, tags=["calls"])
    async def get_progress(
        call_id: CallId,
        request: Request,
        place: Annotated[int, Query(ge=0, le=1 << 40)] = 0,
        spoken: Annotated[int, Query(ge=0, le=1 << 40)] = 0,
    ) -> Any:
        """A call in progress: its record, the timeline from ``place`` on, which the last answer
        named, and the transcript from entry ``spoken`` on."""
        if backend.progress is None:
            raise no_call(call_id)
        try:
            told = backend.progress(call_id, place, spoken)
        except NoCallError as error:
            raise no_call(call_id, str(error)) from None
        except RefusedError as error:
            raise HTTPException(409, {"code": "refused", "message": str(error)}) from None
        if not place:  # who watches a call is logged once
            audit(request, "read", {"call": told["call_id"]}, "ok")
        return {"call": told}

    _add_recording(paths, backend)

    @paths.app.websocket("/api/v1/calls/{call_id}/audio")
    async def listen(socket: WebSocket, call_id: str) -> None:
        token = paths.access.token_of(socket.scope)
        if token is None:
            await socket.send_denial_response(JSONResponse({"error": UNAUTHORIZED}, 401, BEARER))
            return
        socket.state.token = token
        if token.role < Role.OPERATOR:
            audit(socket, "listen", {"call": call_id}, "403")
            error = {"code": "forbidden", "message": "needs the role operator"}
            await socket.send_denial_response(JSONResponse({"error": error}, 403))
            return
        try:
            if backend.listeners is None:
                raise NoCallError(f"there is no call {call_id!r}")
            listeners = backend.listeners(call_id)
            listener = listeners.join()
        except (RefusedError, FullError) as problem:
            status = 404 if isinstance(problem, NoCallError) else 409
            code = "call_not_found" if status == 404 else "refused"
            error = {"code": code, "message": str(problem)}
            await socket.send_denial_response(JSONResponse({"error": error}, status))
            return
        began = time.monotonic()
        audit(socket, "listen", {"call": call_id}, "ok")
        try:
            await socket.accept()
            await _send_sound(socket, listener)
        finally:
            listeners.leave(listener)
            audit(socket, "listened", {"call": call_id}, f"{time.monotonic() - began:.1f} s")


def _add_recording(paths: Paths, backend: Backend) -> None:
    """Add the path that sends a call's recording, and log who reads it."""
    path = "/calls/{call_id}/recording"
    readers: OrderedDict[tuple[str, str], float] = OrderedDict()
    """When each was logged last, by who and call; the latest last."""

    def note_reader(request: Request, call_id: str) -> None:
        key, now = (token_of(request).name, call_id), time.monotonic()
        part = "range" in request.headers
        if not part or now - readers.get(key, -READ_SECONDS) >= READ_SECONDS:
            audit(request, "recording.read", {"call": call_id}, "ok")
            readers.pop(key, None)
            readers[key] = now
        while len(readers) > MAX_READERS:
            readers.popitem(last=False)

    @paths.add(
        "GET", path, Role.OPERATOR, errors=NO_CALL, tags=["calls"], response_class=FileResponse
    )
    async def get_recording(call_id: CallId, request: Request) -> Any:
        """The recording of a call; an encrypted one as it is in the folder."""
        folder = backend.recordings
        found: list[FilePath] = []
        if folder is not None and re.fullmatch(r"[A-Za-z0-9-]{1,80}", call_id):
            # On a thread: there may be very many files.
            found = await asyncio.to_thread(lambda: sorted(folder.glob(f"*_{call_id}.*")))
        if not found:
            raise no_call(call_id, f"there is no recording of {call_id!r} here")
        note_reader(request, call_id)
        path, kinds = found[0], {".wav": "audio/wav", ".ogg": "audio/ogg"}
        kind = kinds.get(path.suffix, "application/octet-stream")
        if any(row["id"] == call_id for row in backend.live()):
            # Its file grows: what it has now, not more than is announced.
            length = path.stat().st_size
            headers = {
                "Content-Length": str(length),
                "Content-Disposition": f'attachment; filename="{path.name}"',
            }
            return StreamingResponse(_beginning(path, length), media_type=kind, headers=headers)
        return FileResponse(path, media_type=kind, filename=path.name)


async def _beginning(path: FilePath, length: int) -> AsyncIterator[bytes]:
    with path.open("rb") as file:
        while length and (piece := await asyncio.to_thread(file.read, min(length, PIECE_BYTES))):
            length -= len(piece)
            yield piece


async def _send_sound(socket: WebSocket, listener: Listener) -> None:
    """Send what the call says, until it is over or nobody listens.

    First a text: codec, rate, ms of a frame. Then for each look the frames dropped so far (4 bytes,
    network order), and bytes of G.711, by turns of the caller and of what they hear.
    """

    async def out() -> None:
        told = {"codec": listener.codec.name, "rate": SAMPLE_RATE, "frame_ms": FRAME_MS}
        await socket.send_json(told)
        while (found := await listener.next()) is not None:
            await socket.send_bytes(struct.pack("!I", found[0]) + found[1])
        await socket.close(OVER)

    sending = asyncio.create_task(out(), name="listening")
    try:
        while (await socket.receive())["type"] != "websocket.disconnect":
            pass  # nothing is said there
    finally:
        sending.cancel()
        with suppress(asyncio.CancelledError, WebSocketDisconnect, RuntimeError):
            await sending


def _dbfs(peak: int) -> float | None:
    return None if peak <= 8 else round(20 * log10(peak / FULL_SCALE), 1)
