# SPDX-License-Identifier: GPL-2.0-or-later
"""One session of the load endpoint: its socket, what it hears, what it says."""

from __future__ import annotations

import itertools
import json
import socket
import struct
import time
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qs, urlsplit

from websockets.http11 import Request
from websockets.server import ServerProtocol

from . import marks, wire
from .clocks import ANCILLARY_BYTES

if TYPE_CHECKING:
    from .endpoint import Server
    from .tls import TlsSocket

_RECEIVE = 256 * 1024

_numbers = itertools.count(1)


class Session:
    """One WebSocket connection, from its first byte to its end."""

    def __init__(self, server: Server, connection: socket.socket | TlsSocket, slots: int) -> None:
        self.server = server
        self.socket = connection
        self.number = next(_numbers)
        self.slot = self.number % slots
        self.kind = ""
        self.live = False
        """A Live session: one endless track down, and none of the events of responses."""
        self.up = False
        self.closed = False
        self.call = 0
        """Number of the marked call whose audio comes in; 0 until some has."""
        self.messages = self.bytes = 0
        self.pending = b""
        self.stalls = 0
        self.steady = False
        self.sequence = 0
        self.first = 0
        """Sequence number with which the answer began that is to be interrupted."""
        self.turn = 0
        self.wide = marks.Wide(24000) if server.codec == "g722" else None
        """Makes and finds marks in linear PCM."""
        self.finder = self.wide or marks.Finder()
        self._data = b""
        self._handshake: ServerProtocol | None = ServerProtocol()
        self._new_response()

    def _new_response(self) -> None:
        self.turn += 1
        self.response = f"resp_CQ5wmTgEPEHNJ{self.number:05d}{self.turn:05d}"
        self.item = f"item_CQ5wmMcIvmGXH{self.number:05d}{self.turn:05d}"

    # ---- receiving

    def receive(self) -> None:
        """Take what waits on the socket."""
        try:
            if self.kind == "measured":
                data, ancillary, _flags, _peer = self.socket.recvmsg(_RECEIVE, ANCILLARY_BYTES)
                at = self.server.arrivals.at(ancillary)
            else:
                data, at = self.socket.recv(_RECEIVE), 0
        except BlockingIOError:
            return
        except OSError:
            data, at = b"", 0
        if not data:
            self.close()
        elif self._handshake is not None:
            self._shake_hands(data)
        else:
            self._take(data, at)

    def _shake_hands(self, data: bytes) -> None:
        protocol = self._handshake
        assert protocol is not None
        protocol.receive_data(data)
        for request in protocol.events_received():
            assert isinstance(request, Request)
            url = urlsplit(request.path)
            self.live = url.path.endswith("/live/sessions")
            self.kind = parse_qs(url.query).get("model", ["bulk"])[0]
            protocol.send_response(protocol.accept(request))
            for out in protocol.data_to_send():
                self.write(out)
            self._handshake = None
            if self.live:
                continue
            session = {"id": f"sess_{self.number:06d}", "object": "realtime.session"}
            self.write(wire.event("session.created", session={**session, "type": "realtime"}))

    def _take(self, data: bytes, at: int) -> None:
        if self._data:
            data = self._data + data
        done = 0
        for opcode, start, end in wire.client_frames(data):
            done = end
            if opcode == wire.TEXT:
                if self.up and self.kind == "bulk":
                    self.messages += 1
                    self.bytes += end - start
                else:
                    self._message(wire.unmasked(data, start, end), at)
            elif opcode == wire.PING:
                self.write(wire.frame(wire.unmasked(data, start, end), wire.PONG))
            elif opcode == wire.CLOSE:
                self.write(wire.frame(wire.unmasked(data, start, end), wire.CLOSE))
                self.close()
                return
        self._data = data[done:]

    def _message(self, payload: bytes, at: int) -> None:
        self.messages += 1
        self.bytes += len(payload)
        if not self.up:
            self._set_up(json.loads(payload))
        elif self.kind == "measured":
            event = json.loads(payload)
            if event["type"].endswith(".append"):
                self._hear(marks.decoded(event["audio"]), at)
            else:
                fields = {k: v for k, v in event.items() if k in ("audio_end_ms", "item_id")}
                self.server.note("commands", (self.call, event["type"], at, fields))

    def _set_up(self, update: dict[str, Any]) -> None:
        if update.get("type") == "session.start":
            self.kind = update["session"]["model"]
            facts = {"id": f"live_{self.number:06d}", "expires_at": 2_000_000_000}
            session = {**update["session"], **facts, "status": "active"}
            self.server.confirm(self, wire.event("session.started", session=session))
            return
        if update.get("type") != "session.update":
            return
        session = {**update["session"], "id": f"sess_{self.number:06d}"}
        self.server.confirm(self, wire.event("session.updated", session=session))

    def confirm(self, updated: bytes) -> None:
        """Tell that the session is set up."""
        if not self.closed:
            self.write(updated)
            self.up = True
            self.server.joined(self)

    def _hear(self, audio: bytes, at: int) -> None:
        for call, sequence in self.finder.feed(audio):
            self.call = call
            self.server.note("heard", (call, sequence, at))

    # ---- sending

    def write(self, data: bytes) -> None:
        """Send now; what the kernel does not take goes first next time."""
        if self.closed:
            return
        if self.pending:
            data = self.pending + data
        try:
            sent = self.socket.send(data)
        except BlockingIOError:
            sent = 0
        except OSError:
            self.close()
            return
        self.pending = data[sent:]
        if self.pending:
            self.stalls += 1

    def say(self, frames: int = 1) -> None:
        """Send one marked delta of so many frames, with the time of each."""
        first = self.sequence
        self.sequence += frames
        audio = b"".join((self.wide or marks).frame(self.call, first + n) for n in range(frames))
        message = self.audio(audio)
        at = time.monotonic_ns()
        self.write(message)
        for n in range(frames):
            self.server.note("said", (self.call, first + n, at))

    def audio(self, audio: bytes) -> bytes:
        """A message that carries ``audio``."""
        return wire.track(audio) if self.live else wire.delta(self.response, self.item, audio)

    def begin(self) -> None:
        """A new response with a new item."""
        if self.live:
            return
        self._new_response()
        self.write(wire.opening(self.response, self.item))

    def finish(self, status: str = "completed") -> None:
        """The end of its audio and of the response."""
        if self.live:
            return
        self.write(wire.audio_done(self.response, self.item) + wire.ending(self.response, status))

    def end(self, fate: str) -> None:
        """End the call from this side."""
        if self.closed:
            return
        self.server.hush(self)
        if fate == "end_call":
            if self.turn == 1:
                self.begin()
            call = {"type": "function_call", "name": "end_call", "call_id": f"call_{self.number}"}
            self.write(wire.audio_done(self.response, self.item))
            self.write(wire.ending(self.response, output=[{**call, "arguments": "{}"}]))
        elif fate == "close":
            self.write(wire.frame(struct.pack("!H", 1000) + b"done", wire.CLOSE))
        elif fate == "abort":
            self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            self.close()

    def close(self) -> None:
        """Give the socket up."""
        if not self.closed:
            self.closed = True
            self.server.left(self)
            self.socket.close()
