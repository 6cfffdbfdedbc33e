# SPDX-License-Identifier: GPL-2.0-or-later
"""Plain stand-ins for what one call's handling works with: a leg, a session, a server, audio."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from types import SimpleNamespace
from typing import Any, cast

import pytest

from gateway.audio import Codec
from gateway.bridge import sessions as sessions_module
from gateway.bridge.call_controller import CallController
from gateway.bridge.machine_driver import CallHost
from gateway.bridge.media import MediaPump
from gateway.bridge.sessions import SessionPlan
from gateway.call import inputs
from gateway.call.call_record import CallRecord
from gateway.call.machine import MachineInput
from gateway.call.plan import CallPlan
from gateway.realtime.connection import Endpoint
from gateway.realtime.errors import Kind, SetupFailed, Step, Verdict
from gateway.realtime.events import ServerEvent
from gateway.realtime.session import SessionClosed
from gateway.realtime.session_object import REALTIME
from gateway.sip.leg import Leg

LOST = Verdict(Kind.RETRYABLE, "1006", "lost", True)


class FakeLeg:
    """A leg that writes down what it is told to do."""

    def __init__(self, call_id: str = "sip-1", **invite: Any) -> None:
        facts = {"sip_call_id": call_id, "from_uri": "sip:a@x", "to_uri": "sip:b@x", **invite}
        self.invite = SimpleNamespace(**facts)
        self.handler: Any = None
        self.audio: Any = None
        self.security = "rtp"
        self.call_id = ""
        self.done: list[tuple[Any, ...]] = []

    def __getattr__(self, name: str) -> Callable[..., None]:
        if name.startswith("_"):
            raise AttributeError(name)
        return lambda *given: self.done.append((name, *given))

    @property
    def leg(self) -> Leg:
        """Itself, for what takes real ones."""
        return cast(Leg, self)

    @property
    def verbs(self) -> list[str]:
        """What it was told to do, without the arguments."""
        return [name for name, *_given in self.done]


class FakeSession:
    """A session that is up."""

    def __init__(self, server: FakeServer, number: int, opened: Mapping[str, Any]) -> None:
        self.id = f"sess_{number}"
        self.effective = {"id": self.id}
        self.seconds_left = server.seconds_left
        self.round_trip_ms = 0.0
        self.capabilities = REALTIME
        self.commands = SimpleNamespace(
            refused=[], command_of=lambda _event_id: None, asked_by=lambda _event: None
        )
        self.counters = SimpleNamespace(audio_dropped=0)
        self.audio = b""
        self.sent: list[Any] = []
        self.ended: tuple[int, str] | None = None
        self._server = server
        self._opened = opened

    @property
    def closed(self) -> bool:
        """Whether it has ended."""
        return self.ended is not None

    def audio_counts(self) -> dict[str, int]:
        """As a Realtime session."""
        return {}

    def append(self, audio: bytes) -> None:
        """Caller audio."""
        self.audio += audio

    def send(self, command: Any) -> None:
        """A command."""
        self.sent.append(command)

    def tell_usage(self) -> None:
        """As :meth:`gateway.realtime.session.Session.tell_usage`."""

    async def close(self, reason: str) -> None:
        """Close it, once."""
        if self.ended is None:
            self.ended = (1000, reason)
            self._opened["on_closed"](SessionClosed(1000, reason, True, LOST))

    def says(self, event: ServerEvent) -> None:
        """The server sends an event."""
        self._opened["on_event"](event)

    def lost(self, code: int = 1006) -> None:
        """The connection is gone."""
        self.ended = (code, "")
        self._opened["on_closed"](SessionClosed(code, "", False, LOST))


class FakeServer:
    """In place of what opens sessions: opens them as soon as it may."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.sessions: list[FakeSession] = []
        self.asked: list[str] = []
        self.failure: SetupFailed | None = None
        self._failing = ""
        self.early: list[ServerEvent] = []
        self.seconds_left: float | None = None
        self.open = asyncio.Event()
        self.open.set()
        monkeypatch.setattr(sessions_module, "open_with_retry", self._open_with_retry)
        monkeypatch.setattr(sessions_module, "SPREAD_SECONDS", 0.0)

    async def _open_with_retry(self, endpoint: Any, settings: Any, **opened: Any) -> FakeSession:
        self.asked.append(endpoint.url)
        await self.open.wait()
        if self.failure is not None and self._failing in ("", endpoint.url):
            raise self.failure
        if opened["late"] is not None:
            await opened["late"]()
        session = FakeSession(self, len(self.sessions) + 1, opened)
        self.sessions.append(session)
        for event in self.early:
            session.says(event)
        return session

    def fails(
        self, detail: str = "busy", retry_after: float | None = None, only_at: str = ""
    ) -> None:
        """Every set-up fails from now on, or those at this URL."""
        self._failing = only_at
        self.failure = SetupFailed(LOST, Step.CREATED, detail)
        self.failure.retry_after = retry_after


class Fed:
    """The host of a call's parts: keeps what is fed to the machine."""

    def __init__(self) -> None:
        self.inputs: list[MachineInput] = []
        self.faults: list[Exception] = []
        self.over = False
        self.ms = 0.0
        self.record = CallRecord("call-1")
        self.host = CallHost(
            self.record,
            self.inputs.append,
            lambda delta: self.inputs.append(inputs.ServerEventReceived(delta)),
            lambda: self.ms,
            self.faults.append,
            lambda: self.over,
        )

    def take(self) -> list[MachineInput]:
        """What was fed since the last time."""
        taken, self.inputs[:] = list(self.inputs), []
        return taken


class FakeCall:
    """A call that came in, with its real machine between a leg and a server that are stand-ins."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, *others: Endpoint, **plan: Any) -> None:
        self.server = FakeServer(monkeypatch)
        self.leg = FakeLeg()
        self.record = CallRecord("call-1", "sip-1", route="r")
        self.finished: list[CallController] = []
        self.pump = MediaPump()
        self.controller = CallController(
            self.leg.leg,
            CallPlan("r", Codec.PCMU, **plan),
            SessionPlan(Endpoint("ws://first/v1/realtime"), {}, 1.0, 100, others=others),
            self.record,
            self.pump,
            self.finished.append,
        )

    async def up(self) -> None:
        """Through ringing and session to the conversation."""
        self.controller.start()
        await settle()
        self.leg.handler.on_media(Codec.PCMU)
        self.leg.handler.on_confirmed()
        await settle()

    @property
    def ending(self) -> tuple[str, str]:
        """By whom, and why."""
        assert self.record.ending is not None
        return self.record.ending.by.value, self.record.ending.why.value

    @property
    def session(self) -> Any:
        """The first session."""
        return self.server.sessions[0]


async def settle(turns: int = 6) -> None:
    """Let everything happen that waits for nothing but a turn of the event loop."""
    for _ in range(turns):
        await asyncio.sleep(0)
