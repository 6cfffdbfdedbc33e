# SPDX-License-Identifier: GPL-2.0-or-later
"""A realtime server for load: hundreds of sessions, fifty messages a second each way, little CPU.

Runs as a process of its own and obeys JSON lines on standard input (``python -m
tests.load.endpoint``). All sessions are served by one clock in slots of 2 ms, so that they do not
speak in step. Three kinds of session, told by the ``model`` of the URL:

* ``bulk``: speaks without end; what the gateway sends is counted, read every 100 ms;
* ``measured``: frames carry marks, and every arrival and departure has a time;
* ``short``: speaks as well, and ends by itself at a random moment in one of several ways, or lets
  the caller end (the soak).
"""

from __future__ import annotations

import heapq
import itertools
import json
import os
import random
import select
import socket
import ssl
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from . import marks, tls, wire
from .clocks import SO_TIMESTAMPNS, Arrivals
from .endpoint_session import Session

SLOTS = 10
"""Slots of the 20 ms; session n speaks in slot n modulo this."""
SLOT_NS = 20_000_000 // SLOTS
LEAD_FRAMES = 10
"""How far ahead of real time a bulk session speaks, so that an underrun is the gateway's."""
LIVE_PAUSE_FRAMES = 10
"""Silent frames in each second of a Live session, where the gateway may catch up as it does between
sentences."""
_LIVE_SILENCE = wire.track(marks.SILENCE)
_READ_EVERY = 5
_BURST_MS, _BURST_SPEED, _ANSWER_MS, _PAUSE_MS = 200, 5, 8000, 500
_MAX_NOTES = 400_000
"""Times kept between two collections; a window of four measured calls makes some thousands."""

FATES = {"stay": 40, "end_call": 25, "close": 20, "abort": 15}
"""What becomes of a short session, in percent: left to the caller, ended by the model's tool,
closed with 1000, or cut without a close frame."""
_FATE_MS = (50, 4000)
_HESITATES, _HESITATION_MS = 0.2, (100, 1500)
"""The share of short sessions that let ``session.updated`` wait, and how long: a caller who rings
off meanwhile sends a CANCEL."""


class Server:
    """The listener, its sessions and the clock."""

    def __init__(self) -> None:
        self.arrivals = Arrivals()
        self._notes: dict[str, list[Any]] = {}
        self._dropped_notes = 0
        self._listener = socket.create_server(("127.0.0.1", 0), backlog=4096)
        self._listener.setblocking(False)
        self.port = int(self._listener.getsockname()[1])
        self._epoll = select.epoll()
        self._handlers: dict[int, Callable[[], None]] = {}
        self._watch(self._listener.fileno(), self._accept)
        self._watch(0, self._obey)
        self._commands = b""
        self._sessions: dict[int, Session] = {}
        self._slots: list[dict[Session, None]] = [{} for _ in range(SLOTS)]
        self._frames: dict[Session, bytes] = {}
        self._timers: list[tuple[int, int, Callable[[], None]]] = []
        self._order = itertools.count()
        self._tick_number = 0
        self._late: list[int] = []
        self._bulk_mode = "steady"
        self.codec = "pcmu"
        """Of the calls; sessions of ``g722`` are in 24 kHz PCM."""
        self._rng = random.Random(7)
        self._tls: ssl.SSLContext | None = None
        self._totals = {"sessions": 0, "messages": 0, "bytes": 0, "sent": 0, "stalls": 0}
        self._fates: dict[str, int] = {}
        self._running = True

    # ---- the loop

    def run(self) -> None:
        """Serve until told to end or standard input closes."""
        next_tick = time.monotonic_ns()
        while self._running:
            now = time.monotonic_ns()
            if now >= next_tick:
                if self._sessions:
                    self._late.append(now - next_tick)
                self._tick()
                next_tick += SLOT_NS
                if now - next_tick > 500_000_000:
                    next_tick = now  # a stopped process does not make up for lost seconds
            while self._timers and self._timers[0][0] <= now:
                heapq.heappop(self._timers)[2]()
            due = min(next_tick, self._timers[0][0] if self._timers else next_tick)
            wait = max(0, due - time.monotonic_ns()) / 1e9
            # select has microseconds where epoll has milliseconds only.
            if select.select([self._epoll], [], [], wait)[0]:
                for descriptor, _events in self._epoll.poll(0):
                    handler = self._handlers.get(descriptor)
                    if handler is not None:
                        handler()

    def _tick(self) -> None:
        number = self._tick_number
        self._tick_number += 1
        slot = self._slots[number % SLOTS]
        pauses = (number // SLOTS) % 50 >= 50 - LIVE_PAUSE_FRAMES
        reads = (number // SLOTS) % _READ_EVERY == 0
        for session in tuple(slot):
            if session.kind == "measured":
                if session.steady and session.live and pauses:
                    session.write(_LIVE_SILENCE)
                elif session.steady:
                    session.say()
                continue
            if reads and session.kind == "bulk":
                session.receive()
                if session.closed:
                    continue
            if session.messages < 2:
                continue  # nobody is on the line yet: there was a session.update at most
            if session.live and pauses:
                session.write(_LIVE_SILENCE)
            elif self._bulk_mode == "steady" or session.live:
                self._speak(session)

    def _speak(self, session: Session) -> None:
        frame = self._frames.get(session)
        if frame is None:
            session.begin()
            frame = session.audio((session.wide or marks).speech(1))
            self._frames[session] = frame
            session.write(session.audio((session.wide or marks).speech(LEAD_FRAMES)))
        session.write(frame)
        self._totals["sent"] += 1

    def _answer_in_bursts(self, session: Session, sent: int = 0) -> None:
        """As the real service: 200 ms a message, five times as fast as it is spoken."""
        if session.closed or self._bulk_mode != "burst":
            return
        if sent == 0:
            session.begin()
        session.write(
            wire.delta(
                session.response, session.item, (session.wide or marks).speech(_BURST_MS // 20)
            )
        )
        self._totals["sent"] += 1
        sent += 1
        if sent * _BURST_MS < _ANSWER_MS:
            self.after(_BURST_MS / _BURST_SPEED, lambda: self._answer_in_bursts(session, sent))
        else:
            session.finish()
            rest = _ANSWER_MS * (1 - 1 / _BURST_SPEED) + _PAUSE_MS
            self.after(rest, lambda: self._answer_in_bursts(session))

    def after(self, ms: float, what: Callable[[], None]) -> None:
        """Do something later."""
        at = time.monotonic_ns() + int(ms * 1e6)
        heapq.heappush(self._timers, (at, next(self._order), what))

    def _watch(self, descriptor: int, handler: Callable[[], None]) -> None:
        self._handlers[descriptor] = handler
        self._epoll.register(descriptor, select.EPOLLIN)

    def _unwatch(self, descriptor: int) -> None:
        if self._handlers.pop(descriptor, None) is not None:
            self._epoll.unregister(descriptor)

    # ---- sessions

    def _accept(self) -> None:
        while True:
            try:
                connection, _peer = self._listener.accept()
            except BlockingIOError:
                return
            connection.setblocking(False)
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            end = connection if self._tls is None else tls.TlsSocket(connection, self._tls)
            session = Session(self, end, SLOTS)
            self._sessions[connection.fileno()] = session
            self._watch(connection.fileno(), session.receive)

    def confirm(self, session: Session, updated: bytes) -> None:
        """Have a session confirmed, at once or after a while."""
        if session.kind == "short" and self._rng.random() < _HESITATES:
            self.after(self._rng.uniform(*_HESITATION_MS), lambda: session.confirm(updated))
        else:
            session.confirm(updated)

    def hush(self, session: Session) -> None:
        """Let it say nothing more."""
        self._slots[session.slot].pop(session, None)

    def joined(self, session: Session) -> None:
        """A session is set up."""
        self._totals["sessions"] += 1
        if session.kind == "measured":
            session.socket.setsockopt(socket.SOL_SOCKET, SO_TIMESTAMPNS, 1)
            self._slots[session.slot][session] = None
        elif session.kind == "bulk":
            self._unwatch(session.socket.fileno())
            self._slots[session.slot][session] = None
            if self._bulk_mode == "burst" and not session.live:
                wait = self._rng.uniform(500, _ANSWER_MS)
                self.after(wait, lambda: self._answer_in_bursts(session))

        elif session.kind == "short":
            self._slots[session.slot][session] = None
            fate = self._rng.choices(list(FATES), list(FATES.values()))[0]
            self._fates[fate] = self._fates.get(fate, 0) + 1
            self.after(self._rng.uniform(*_FATE_MS), lambda: session.end(fate))

    def left(self, session: Session) -> None:
        """A session is over."""
        descriptor = session.socket.fileno()
        self._unwatch(descriptor)
        self._sessions.pop(descriptor, None)
        self._slots[session.slot].pop(session, None)
        self._frames.pop(session, None)
        if session.kind == "bulk":
            for name in ("messages", "bytes", "stalls"):
                self._totals[name] += getattr(session, name)

    def _measured(self) -> list[Session]:
        """Measured sessions whose caller has been heard."""
        return [s for s in self._sessions.values() if s.kind == "measured" and s.call]

    def note(self, kind: str, what: Any) -> None:
        """Keep a time for the next collection."""
        notes = self._notes.setdefault(kind, [])
        if len(notes) < _MAX_NOTES:
            notes.append(what)
        else:
            self._dropped_notes += 1

    # ---- the measured sessions' parts

    def _steady(self, on: bool) -> None:
        for session in self._measured():
            if on:
                # Another phase against the gateway's clock each time.
                self._slots[session.slot].pop(session, None)
                session.slot = self._rng.randrange(SLOTS)
                self._slots[session.slot][session] = None
                session.begin()
            elif session.steady:
                session.finish()
            session.steady = on

    def _probe(self, until: int) -> None:
        for session in self._measured():
            self.after(self._rng.uniform(0, 150), lambda s=session: self._probe_one(s, until))  # type: ignore[misc]

    def _probe_one(self, session: Session, until: int) -> None:
        if session.closed or time.monotonic_ns() > until:
            return
        session.begin()
        session.say()
        session.finish()
        self.after(self._rng.uniform(100, 200), lambda: self._probe_one(session, until))

    def _barge(self, until: int) -> None:
        for session in self._measured():
            self.after(self._rng.uniform(0, 300), lambda s=session: self._barge_one(s, until))  # type: ignore[misc]

    def _barge_one(self, session: Session, until: int) -> None:
        if session.closed or time.monotonic_ns() > until:
            return
        session.begin()
        session.first = session.sequence
        for _ in range(8):
            session.say(10)
        self.after(self._rng.uniform(250, 500), lambda: self._interrupt(session, until))

    def _interrupt(self, session: Session, until: int) -> None:
        message = wire.event(
            "input_audio_buffer.speech_started", item_id="item_caller", audio_start_ms=1
        )
        at = time.monotonic_ns()
        session.write(message)
        heard = (session.call, session.first, session.sequence, at, session.item)
        self.note("interrupted", heard)
        # Audio that was under way when the server stopped, and its end.
        session.say(1)
        session.finish("cancelled")
        self.after(300, lambda: self._barge_one(session, until))

    # ---- commands

    def _obey(self) -> None:
        data = os.read(0, 65536)
        if not data:
            self._running = False
            return
        *lines, self._commands = (self._commands + data).split(b"\n")
        for line in lines:
            reply = self._command(json.loads(line))
            sys.stdout.write(json.dumps(reply) + "\n")
            sys.stdout.flush()

    def _command(self, command: dict[str, Any]) -> dict[str, Any]:
        until = time.monotonic_ns() + int(command.get("seconds", 0) * 1e9)
        match command["do"]:
            case "where":
                return {"port": self.port}
            case "count":
                return self._count()
            case "tls":
                self._tls = tls.server_context(Path(command["certificate"]), Path(command["key"]))
            case "bulk":
                self._bulk_mode = command["mode"]
                self.codec = command.get("codec", "pcmu")
            case "steady":
                self._steady(command["on"])
            case "probe":
                self._probe(until)
            case "barge":
                self._barge(until)
            case "take":
                self.arrivals.renew()
                notes, self._notes = self._notes, {}
                late, self._late = self._late, []
                return {**notes, "late_ns": late[:_MAX_NOTES], "dropped_notes": self._dropped_notes}
            case "end":
                self._running = False
            case other:
                return {"error": f"no command {other!r}"}
        return {}

    def _count(self) -> dict[str, Any]:
        live = list(self._sessions.values())
        bulk = [session for session in live if session.kind == "bulk"]
        totals = {
            name: value + sum(getattr(session, name, 0) for session in bulk)
            for name, value in self._totals.items()
        }
        kinds: dict[str, int] = {}
        for session in live:
            if session.up:
                kinds[session.kind] = kinds.get(session.kind, 0) + 1
        calls = sorted(session.call for session in self._measured())
        return {"totals": totals, "live": kinds, "calls": calls, "fates": self._fates}


if __name__ == "__main__":
    Server().run()
