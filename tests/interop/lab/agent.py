# SPDX-License-Identifier: GPL-2.0-or-later
"""The gateway under test with its emulator: an agent that callers of the lab talk to."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from gateway.devtools.emulator import Emulator
from gateway.devtools.emulator.script import Script
from gateway.devtools.emulator.session_log import SessionRecord
from tests.support.gateway_process import Gateway
from tests.support.harness import rtp_range

CONFIG = """
[sip]
listen = [{listen}]
rtp_ports = [{rtp_low}, {rtp_high}]
[realtime]
url = "{url}"
[dialplan]
folder = "routes"
[records]
folder = "records"
[log]
level = "debug"
[limits]
drain_timeout = 0
{media}
{more}
"""

MEDIA = """
[media]
rtp_timeout = 3
"""
"""Unless a test has a table [media] of its own: a PBX that is gone is noticed soon."""

ROUTES = """
[[route]]
name = "greeted"
to = "^100$"
[route.greeting]
say = "Hello."

[[route]]
name = "plain"
to = "^101$"
"""
"""100 speaks first, 101 listens."""


class Agent:
    """One gateway, one emulator.

    Args:
        folder: for its files.
        listen: as in ``sip.listen``, ``udp:127.0.0.2:0`` for example.
        more: TOML that is added to the configuration.
        routes: TOML that is added to the dialplan; ``{port}`` in it is the emulator's.
    """

    def __init__(
        self, folder: Path, listen: tuple[str, ...], more: str = "", routes: str = ""
    ) -> None:
        self.folder = folder
        self.emulator = Emulator(audio_limit=8_000_000)
        self.gateway = Gateway(folder / "gateway.toml")
        self._listen = listen
        self._more = more
        self._routes = routes

    async def start(self) -> None:
        """Bring both up."""
        low, high = rtp_range()
        await self.emulator.start()
        (self.folder / "routes").mkdir(parents=True)
        (self.folder / "routes" / "10-routes.toml").write_text(
            (ROUTES + self._routes).replace("{port}", str(self.emulator.port))
        )
        config = CONFIG.format(
            listen=json.dumps(self._listen)[1:-1],
            rtp_low=low,
            rtp_high=high,
            url=self.emulator.url(),
            media="" if "[media]" in self._more else MEDIA,
            more=self._more,
        )
        self.gateway.config.write_text(config)
        await self.gateway.start()

    async def stop(self) -> None:
        """Bring both down; asserts that the gateway saw no fault and leaves no call."""
        try:
            status = await self.gateway.stop()
        finally:
            await self.emulator.stop()
        self.gateway.check(status)

    @property
    def transport(self) -> str:
        """Of its first listener."""
        return self._listen[0].partition(":")[0]

    def behave(self, **fields: Any) -> None:
        """How the emulator's next session behaves."""
        self.emulator.script = Script.model_validate(fields)

    @property
    def address(self) -> str:
        """``host:port`` of its first listener."""
        host, port = self.gateway.sip
        return f"{host}:{port}"

    def next_call(self) -> AgentCall:
        """The next call that comes to the gateway; to be asked for before it is placed."""
        return AgentCall(self, len(self.gateway.all("call.invite")) + 1)


class AgentCall:
    """One call at the agent's side."""

    def __init__(self, agent: Agent, number: int) -> None:
        self._agent = agent
        self._number = number

    async def wait(self, event: str, **fields: Any) -> dict[str, Any]:
        """The first log line of this event about this call, waited for."""
        invite = await self._agent.gateway.wait("call.invite", count=self._number)
        return dict(await self._agent.gateway.wait(event, call=invite["call"], **fields))

    async def session(self) -> SessionRecord:
        """The emulator's side of it."""
        line = await self.wait("call.session_up")
        return next(one for one in self._agent.emulator.sessions if one.id == line["session_id"])

    async def summary(self) -> dict[str, Any]:
        """What the gateway says of it at its end."""
        return await self.wait("call.summary")
