# SPDX-License-Identifier: GPL-2.0-or-later
"""Two workers under one supervisor, Kamailio before them, and a telephone that calls it."""

from __future__ import annotations

import re
import signal
import socket
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from gateway.devtools.emulator import Emulator
from gateway.devtools.emulator.session_log import SessionRecord
from tests.interop.kamailio import Kamailio
from tests.interop.lab.ports import free_port
from tests.support.gateway_process import FAULTS, Gateway, Line
from tests.support.harness import closed_port, eventually, rtp_range
from tests.support.sip_phone import Message, Phone, PhoneCall

HOST = "127.0.0.2"
WORKERS = 2
MAX_CALLS = 2
"""Of each worker."""

_CONFIG = """
[sip]
listen = ["udp:{host}:{port}"]
rtp_ports = [{rtp_low}, {rtp_high}]
max_calls = {max_calls}
[access]
max_concurrent_calls = 0
[realtime]
url = "{url}"
[dialplan]
folder = "routes"
[log]
level = "debug"
[workers]
count = {workers}
[limits]
drain_timeout = 100
min_drain_time = 2.5
"""

_ROUTES = """
[[route]]
name = "plain"
to = "^plain$"

[[route]]
name = "slow"
to = "^slow$"
[route.realtime]
url = "ws://{host}:{silent}/v1/realtime"

[[route]]
name = "broken"
to = "^broken$"
[route.realtime]
url = "ws://{host}:{closed}/v1/realtime"
connect_timeout = 0.5
"""
"""``slow`` waits for a server that never says a word, ``broken`` for one that is not there."""


@dataclass(eq=False)
class RoutedCall(PhoneCall):
    """A call through a proxy that record-routes (RFC 3261 section 12.2.1.1)."""

    routes: list[str] = field(default_factory=list)

    async def reinvite(self) -> Message:
        """Offer the same once more inside the dialog; returns the final response, acknowledged."""
        self._sequence += 1
        number = f"{self._sequence} INVITE"
        branch = self._branch + str(self._sequence)
        headers = ["Content-Type: application/sdp"]
        offer = self._invite.partition(b"\r\n\r\n")[2].decode()
        self.phone.send(self._request("INVITE", branch, self._sequence, headers, offer))

        def answers(call: PhoneCall) -> list[Message]:
            return [m for m in call.messages if m.code >= 200 and m.headers["cseq"] == number]

        await self.until(answers, what=f"final response to {number}")
        self.phone.send(self._request("ACK", branch + "a", self._sequence))
        return answers(self)[0]

    def _on_response(self, message: Message) -> None:
        if message.headers["cseq"] != "1 INVITE":
            return
        if 200 <= message.code < 300:
            self.routes = re.findall(r"<[^>]+>", message.headers.get("record-route", ""))
        super()._on_response(message)

    def _request(
        self,
        method: str,
        branch: str,
        sequence: int,
        headers: tuple[str, ...] | list[str] = (),
        body: str = "",
    ) -> bytes:
        inside = bool(self.routes) and branch != self._branch
        if not inside:
            return super()._request(method, branch, sequence, headers, body)
        route = [f"Route: {route}" for route in self.routes]
        raw = super()._request(method, branch, sequence, [*route, *headers], body)
        _, _, rest = raw.partition(b"\r\n")
        return f"{method} {self._target} SIP/2.0\r\n".encode() + rest


class RoutedPhone(Phone):
    """A telephone that knows of proxies: its answers carry every Via of their requests."""

    _vias: bytes = b""

    def datagram_received(self, data: bytes, addr: tuple[str | Any, int]) -> None:
        self._vias = b"\r\n".join(re.findall(rb"^Via:[^\r]*", data, re.MULTILINE))
        super().datagram_received(data, addr)

    def send(self, data: bytes) -> None:
        """Send bytes to the proxy."""
        if data.startswith(b"SIP/2.0 "):  # at once, so to the request that came last
            start, _via, rest = data.split(b"\r\n", 2)
            data = b"\r\n".join((start, self._vias, rest))
        super().send(data)

    def call(
        self,
        user: str,
        codecs: tuple[str, ...] = ("PCMU", "PCMA"),
        headers: tuple[str, ...] = (),
        *,
        acknowledge: bool = True,
    ) -> RoutedCall:
        """A call that is not sent yet."""
        made = super().call(user, codecs, headers, acknowledge=acknowledge)
        routed = RoutedCall(self, user, codecs, headers, made.rtp, acknowledge=acknowledge)
        self.calls.pop(made.call_id)
        self.calls[routed.call_id] = routed
        return routed


class Cluster:
    """All of it. ``more`` is added to ``kamailio-local.cfg``."""

    def __init__(self, folder: Path, more: str = "") -> None:
        ports = free_port(HOST, WORKERS + 1)
        self.base = ports
        self.emulator = Emulator()
        self.gateway = Gateway(folder / "gateway.toml")
        self.phone = RoutedPhone((HOST, ports + WORKERS))
        self.proxy = Kamailio(
            folder / "kamailio",
            (HOST, ports + WORKERS),
            [(f"{HOST}:{ports + worker}", MAX_CALLS) for worker in range(WORKERS)],
            more,
        )
        self._folder = folder
        self._silent = socket.create_server((HOST, 0))

    async def start(self) -> None:
        """Bring all up."""
        await self.emulator.start()
        (self._folder / "routes").mkdir()
        (self._folder / "routes" / "10.toml").write_text(
            _ROUTES.format(host=HOST, silent=self._silent.getsockname()[1], closed=closed_port())
        )
        low, high = rtp_range()
        config = _CONFIG.format(
            host=HOST,
            port=self.base,
            rtp_low=low,
            rtp_high=high,
            max_calls=MAX_CALLS,
            url=self.emulator.url(),
            workers=WORKERS,
        )
        self.gateway.config.write_text(config)
        await self.gateway.start()
        await self.gateway.wait("workers.ready")
        await self.proxy.start()
        await self.phone.start()

    async def stop(self) -> None:
        """Bring all down; the gateway's exit status says whether each worker ended well."""
        try:
            await self.phone.stop()
            await self.proxy.stop()
            self.gateway.signal(signal.SIGTERM)
            await self.gateway.until(lambda: bool(self.gateway.all("workers.stopping")))
            self.gateway.signal(signal.SIGTERM)  # a second one: this time nobody is to notice
            status = await self.gateway.ended()
        finally:
            await self.emulator.stop()
            self._silent.close()
        assert status == 0, self.gateway.tail()
        assert not self.gateway.other_output, self.gateway.other_output
        faults = [line for line in self.gateway.lines if line["event"] in FAULTS]
        assert not faults, faults[:5]

    async def dial(self) -> RoutedCall:
        """Place a call through the proxy and wait until it is up."""
        call = self.phone.call("plain")
        call.invite()
        await call.answered()
        await self.gateway.wait("call.confirmed", call=call.call_id)
        return call

    async def dial_each(self) -> list[RoutedCall]:
        """Two calls, the first on worker 0 and the second on worker 1."""
        calls = [await self.dial(), await self.dial()]
        calls.sort(key=self.worker_of)
        assert [self.worker_of(call) for call in calls] == [0, 1]
        return calls

    def worker_of(self, call: PhoneCall) -> int:
        """Which worker took the call."""
        (line,) = self.gateway.all("call.invite", call=call.call_id)
        return int(line["worker"])

    def pid(self, worker: int) -> int:
        """Process id of a worker, the newest that came up."""
        return int(self.gateway.all("worker.ready", worker=worker)[-1]["pid"])

    async def summary(self, call: PhoneCall) -> Line:
        """The summary line of a call."""
        return await self.gateway.wait("call.summary", call=call.call_id)

    async def session_of(self, call: PhoneCall) -> SessionRecord:
        """What the emulator saw of this call's session."""
        line = await self.gateway.wait("call.session_up", call=call.call_id)
        return next(one for one in self.emulator.sessions if one.id == line["session_id"])

    async def settled(self, loads: tuple[int, ...] = (0,) * WORKERS) -> None:
        """Wait until the dispatcher counts so many calls, and all workers take more."""

        def good(targets: list[Any]) -> bool:
            in_use = all(target.flags == "AP" for target in targets)
            return in_use and tuple(target.load for target in targets) == loads

        await self.proxy.until(good, f"loads {loads}")

    async def idle(self) -> None:
        """Forget the calls of a test; asserts that no session is left of them."""
        for call in list(self.phone.calls.values()):
            await self.phone.forget(call)
        await eventually(lambda: not self.emulator.live, "no session")
        await self.settled()
