# SPDX-License-Identifier: GPL-2.0-or-later
"""Paths for the audio of calls: levels, recordings, listening in, calls from a page."""

from __future__ import annotations

import asyncio
import json
import re
import struct
import time
from collections import deque
from collections.abc import AsyncIterator, Coroutine
from contextlib import suppress
from math import log10
from pathlib import Path as FilePath
from typing import Annotated, Any

from fastapi import HTTPException, Query, Request, WebSocket, WebSocketDisconnect
from fastapi.responses import FileResponse, StreamingResponse
from pydantic import BaseModel, StringConstraints

from gateway.addresses import bracketed
from gateway.api.access import (
    NO_CALL,
    Paths,
    admit,
    audit,
    deny,
    forbidden,
    no_call,
    refusals,
    run,
    same_site,
    send_until_closed,
    token_of,
)
from gateway.api.backend import Backend, BrowserCalls, Role
from gateway.api.calls import CallId
from gateway.api.client import RefusedError
from gateway.api.connections import HOP
from gateway.api.siblings import Siblings
from gateway.audio import FRAME_BYTES, FRAME_MS, SAMPLE_RATE
from gateway.bridge.recording_and_listening import FullError, Listener
from gateway.measures import BoundedDict
from gateway.sip.browser_leg import BrowserEnd
from gateway.sip.messages.replies import KEYS
from gateway.tasks import TaskSet

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


def add_audio(paths: Paths, backend: Backend, siblings: Siblings) -> None:
    """Add the paths for levels, recordings, listening in and calls from a page."""

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

    _add_recordings(paths, backend)
    _add_listening(paths, backend)
    _add_browser_calls(paths, backend)


def _add_listening(paths: Paths, backend: Backend) -> None:
    """Add the WebSocket with both sides of a call in progress."""

    @paths.app.websocket("/api/v1/calls/{call_id}/audio")
    async def listen(socket: WebSocket, call_id: str) -> None:
        try:
            admit(paths.access, socket, Role.OPERATOR)
            if backend.listeners is None:
                raise no_call(call_id)
            with refusals(call_id):
                listeners = backend.listeners(call_id)
                try:
                    listener = listeners.join()
                except FullError as full:
                    raise RefusedError(str(full)) from None
        except HTTPException as refused:
            if refused.status_code == 403:
                audit(socket, "listen", {"call": call_id}, "403")
            await deny(socket, refused)
            return
        began = time.monotonic()
        audit(socket, "listen", {"call": call_id}, "ok")
        try:
            await socket.accept()
            await send_until_closed(socket, _send_sound(socket, listener))
        finally:
            listeners.leave(listener)
            audit(socket, "listened", {"call": call_id}, f"{time.monotonic() - began:.1f} s")


def _add_recordings(paths: Paths, backend: Backend) -> None:
    """Add the path that sends a call's recording, and log who reads it."""
    path = "/calls/{call_id}/recording"
    readers: BoundedDict[tuple[str, str], float] = BoundedDict(MAX_READERS)
    """When each was logged last, by who and call; the latest last."""

    def note_reader(request: Request, call_id: str) -> None:
        """Write an audit line; not for a part (``Range``) within ``READ_SECONDS`` of the last."""
        key, now = (token_of(request).name, call_id), time.monotonic()
        part = "range" in request.headers
        if not part or now - readers.get(key, -READ_SECONDS) >= READ_SECONDS:
            audit(request, "recording.read", {"call": call_id}, "ok")
            readers[key] = now

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
    """Yield the first ``length`` bytes of a file, read on a thread."""
    with path.open("rb") as file:
        while length and (piece := await asyncio.to_thread(file.read, min(length, PIECE_BYTES))):
            length -= len(piece)
            yield piece


async def _send_sound(socket: WebSocket, listener: Listener) -> None:
    """Send both sides of a call until it is over.

    First a text: codec, rate, ms of a frame. Then for each look the frames dropped so far (4 bytes,
    network order), and bytes of G.711, by turns of the caller and of what they hear.
    """
    told = {"codec": listener.codec.name, "rate": SAMPLE_RATE, "frame_ms": FRAME_MS}
    await socket.send_json(told)
    while (found := await listener.next()) is not None:
        await socket.send_bytes(struct.pack("!I", found[0]) + found[1])
    await socket.close(OVER)


def _dbfs(peak: int) -> float | None:
    """Return a peak (0 to 32,768) in dBFS; None for silence, a peak of 8 or less."""
    return None if peak <= 8 else round(20 * log10(peak / FULL_SCALE), 1)


PATH = "/browser-call"
MAX_FRAMES = 10
"""Of one message: 200 ms."""
MAX_TEXT = 256
"""Characters of a text message."""
BURST_FRAMES, CLOCK_FAST = 250, 1.05
"""How far ahead of real time a microphone may be: five seconds that a page stood still, and a clock
that is fast by a twentieth."""
BURST_TEXTS, TEXTS_PER_SECOND = 50, 20.0
WAITING_FRAMES, WAITING_TEXTS = 50, 64
"""Frames and texts queued for a page that does not read; the oldest audio is dropped."""
ON_THE_WAY_FRAMES = 100
"""Sent to a page that says what it has got: two seconds. What is more would wait in the queues of a
network that is slower than the audio."""
SEND_SECONDS = 5.0
"""Time (s) without a byte taken after which a page is disconnected."""
ANNOUNCED_SECONDS = 30.0
"""Until something becomes of a call; what may have to decide first is faster."""
LOOK_SECONDS = 0.3
"""Between two looks at the transcript."""

Number = Annotated[str, StringConstraints(pattern=r"^[0-9A-Za-z+*#_.-]{1,64}$")]


class BrowserCallInfo(BaseModel):
    """Whether pages may call, and whom."""

    limit: int
    active: int
    numbers: list[dict[str, str]]


class _Closed(Exception):  # noqa: N818 - a page's end, not a defect
    """The WebSocket is closed with this code, and counted under this reason."""

    def __init__(self, code: int, reason: str) -> None:
        super().__init__(reason)
        self.code, self.reason = code, reason


class _Allowance:
    """Token bucket: ``per_second`` messages or frames, ``at_once`` of them in a burst."""

    def __init__(self, per_second: float, at_once: float, now: float) -> None:
        self._rate, self._most = per_second, at_once
        self._left, self._at = at_once, now

    def take(self, count: int, now: float) -> bool:
        """Take ``count`` at ``now`` (s), and return whether there were as many.

        What was too many is owed: it counts against the next.
        """
        self._left = min(self._most, self._left + (now - self._at) * self._rate) - count
        self._at = now
        return self._left >= 0


class _Page:
    """A page in a call: checks what the page sends, and queues messages and audio for it."""

    def __init__(self, socket: WebSocket) -> None:
        self.end: BrowserEnd | None = None
        self.unread = 0
        """Frames that it did not take in time."""
        self._sent = 0
        self._got: int | None = None
        """Frames that it has, as far as it says so."""
        self._socket = socket
        self._clock = asyncio.get_running_loop().time
        now = self._clock()
        self._frames = _Allowance(CLOCK_FAST * 1000 / FRAME_MS, BURST_FRAMES, now)
        self._told = _Allowance(TEXTS_PER_SECOND, BURST_TEXTS, now)
        self._texts: deque[dict[str, Any]] = deque(maxlen=WAITING_TEXTS)
        self._audio = bytearray()
        self._pulse = asyncio.Event()
        self.announced = self.over = False

    def tell(self, message: dict[str, Any]) -> None:
        """Queue a JSON message for the page; of ``WAITING_TEXTS`` the oldest is dropped."""
        self.announced = self.announced or message["type"] != "trying"
        self._texts.append(message)
        self._pulse.set()

    def hear(self) -> None:
        """Queue the audio that there is for the page (G.711).

        Above ``WAITING_FRAMES`` the oldest is dropped, and counted as unread.
        """
        assert self.end is not None
        self._audio += self.end.hear()
        excess = len(self._audio) - WAITING_FRAMES * FRAME_BYTES
        if excess > 0:
            self.unread += excess // FRAME_BYTES
            del self._audio[:excess]
        self._pulse.set()

    async def send(self) -> None:
        """Send messages, then audio, as they come, until ``ended`` was sent.

        Audio is dropped while ``ON_THE_WAY_FRAMES`` are not acknowledged, if the page does so.
        Raises _Closed: 1013 if nothing becomes of the call within ``ANNOUNCED_SECONDS``, 1008 if
        the page takes nothing for ``SEND_SECONDS``.
        """
        while not self.over:
            try:
                async with asyncio.timeout(None if self.announced else ANNOUNCED_SECONDS):
                    await self._pulse.wait()
            except TimeoutError:
                raise _Closed(1013, "not_taken") from None
            self._pulse.clear()
            texts, audio = tuple(self._texts), bytes(self._audio)
            self._texts.clear()
            self._audio.clear()
            frames = len(audio) // FRAME_BYTES
            if self._got is not None and self._sent - self._got > ON_THE_WAY_FRAMES:
                self.unread += frames
                audio = b""
            else:
                self._sent += frames
            try:
                async with asyncio.timeout(SEND_SECONDS):
                    for text in texts:
                        await self._socket.send_text(json.dumps(text))
                    if audio:
                        await self._socket.send_bytes(audio)
            except TimeoutError:
                raise _Closed(1008, "not_reading") from None
            self.over = any(text["type"] == "ended" for text in texts)

    async def receive(self) -> None:
        """Take audio and messages of the page until it leaves.

        Raises _Closed with a close code for frames of another size (1003), too many at once (1009)
        or too fast (1008).
        """
        assert self.end is not None
        while (message := await self._socket.receive())["type"] != "websocket.disconnect":
            audio = message.get("bytes")
            if audio is None:
                self._on_text(message.get("text") or "", self.end)
                continue
            if len(audio) > MAX_FRAMES * FRAME_BYTES:
                raise _Closed(1009, "too_large")
            if not audio or len(audio) % FRAME_BYTES:
                raise _Closed(1003, "no_frames")
            if not self._frames.take(len(audio) // FRAME_BYTES, self._clock()):
                raise _Closed(1008, "too_fast")
            self.end.say(audio)

    def _on_text(self, text: str, end: BrowserEnd) -> None:
        """Handle a JSON message of the page: ping, count of frames played, DTMF digit, hang-up.

        Raises _Closed where it is too long (1009), comes too fast (1008) or is none of these
        (1003).
        """
        if len(text) > MAX_TEXT:
            raise _Closed(1009, "too_large")
        if not self._told.take(1, self._clock()):
            raise _Closed(1008, "too_fast")
        try:
            told = json.loads(text)
        except (ValueError, RecursionError):
            told = None
        match told:
            case {"type": "ping", "id": int(number)}:
                self.tell({"type": "pong", "id": number})
            case {"type": "got", "frames": int(frames)} if 0 <= frames <= self._sent:
                self._got = frames
            case {"type": "dtmf", "digit": str(digit)} if len(digit) == 1 and digit in KEYS:
                end.press(digit)
            case {"type": "hangup"}:
                end.leave()
            case _:
                raise _Closed(1003, "not_understood")


def _add_browser_calls(paths: Paths, backend: Backend) -> None:
    """Add the paths; without ``api.browser_calls`` they say that there are none."""
    calls = backend.browser_calls

    @paths.add("GET", PATH, Role.OPERATOR, BrowserCallInfo, tags=["browser"])
    async def get_browser_calls(request: Request) -> Any:
        """Whether a call from a page may be placed now, and the numbers that routes name."""
        if calls is None:
            return {"limit": 0, "active": 0, "numbers": []}
        return {"limit": calls.limit, "active": calls.active, "numbers": calls.numbers()}

    @paths.app.websocket(f"/api/v1{PATH}")
    async def browser_call(
        socket: WebSocket,
        to: Number,
        caller: Annotated[Number, Query(alias="from")] = "browser",
    ) -> None:
        try:
            _permit(paths, socket, calls)
        except HTTPException as refused:
            await deny(socket, refused)
            return
        assert calls is not None
        await socket.accept()
        page, close = _Page(socket), _Closed(1000, "call_over")
        if calls.active >= calls.limit:
            close = _Closed(1013, "too_many")
        else:
            host, port = socket.client or ("local", 0)
            source = f"{bracketed(host)}:{port}"
            end = page.end = calls.begin(
                to, caller, source, socket.state.token.name, page.tell, page.hear
            )
            audit(socket, "browser_call", {"call": end.leg.call_id, "to": to}, "ok")
            page.tell({"type": "trying", "call": end.leg.call_id})
            try:
                await _carried(page, _follow(backend, page, end.leg.call_id))
            except _Closed as closed:
                close = closed
            finally:
                end.leave()
                calls.over(end)
        calls.closed(close.reason, page.unread)
        with suppress(RuntimeError, WebSocketDisconnect):
            await socket.close(close.code, close.reason)


def _permit(paths: Paths, socket: WebSocket, calls: BrowserCalls | None) -> None:
    """Check origin, role and ``api.browser_calls`` of a page's request, in this order.

    Raises HTTPException: 403, 401.
    """
    origin = socket.headers.get("origin")
    if origin is not None and not same_site(origin, socket.headers.get("host", "")):
        raise forbidden("a page of another site")
    admit(paths.access, socket, Role.OPERATOR)
    if calls is None or not calls.limit:
        raise forbidden("api.browser_calls is not set")


async def _follow(backend: Backend, page: _Page, call_id: str) -> None:
    """Queue for the page, each ``LOOK_SECONDS``, the transcript from its first changed entry on.

    Never ends. While the call has no session, nothing.
    """
    sent: dict[int, Any] = {}
    while True:
        await asyncio.sleep(LOOK_SECONDS)
        try:
            told = await run(backend, "transcript", {"call": call_id})
        except HTTPException:
            continue  # it has not begun, or is over
        first = told["count"] - len(told["transcript"])
        entries = dict(enumerate(told["transcript"], first))
        changed = [number for number, entry in entries.items() if sent.get(number) != entry]
        sent = entries
        if changed:
            later = [entries[number] for number in range(changed[0], first + len(entries))]
            page.tell({"type": "transcript", "first": changed[0], "entries": later})


async def _carried(page: _Page, following: Coroutine[Any, Any, None]) -> None:
    """Carry a call until it is over; ``following`` runs beside it.

    Raises _Closed: 1000 where the page has left, and as :meth:`_Page.send` and
    :meth:`_Page.receive`.
    """
    beside = TaskSet()
    beside.spawn(following, "words for a page")
    sending = asyncio.create_task(page.send(), name="audio to a page")
    receiving = asyncio.create_task(page.receive(), name="audio of a page")
    try:
        done, _ = await asyncio.wait({sending, receiving}, return_when=asyncio.FIRST_COMPLETED)
        for task in done:
            with suppress(WebSocketDisconnect, RuntimeError):
                await task
        if sending not in done:
            raise _Closed(1000, "page_left")
    finally:
        for task in (sending, receiving):
            task.cancel()
        await asyncio.gather(sending, receiving, return_exceptions=True)
        await beside.cancel()
