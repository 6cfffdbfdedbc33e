# SPDX-License-Identifier: GPL-2.0-or-later
"""Control socket, certificate reload on SIGHUP, and a warning about addresses behind NAT."""

from __future__ import annotations

import asyncio
import signal
import socket
from collections.abc import Mapping
from pathlib import Path

import structlog

from gateway.control.server import Command, ControlError, ControlServer
from gateway.sip.agent import AgentError, UserAgent
from gateway.sip.trunks.nat import hosts_of, unreachable
from gateway.tasks import TaskSet

log = structlog.get_logger("gateway")

RESOLVE_SECONDS = 5.0


class Maintenance:
    """Runs while the user agent listens.

    Args:
        socket_path: of the control socket; None for none.
        commands: what may be asked there.
    """

    def __init__(
        self,
        agent: UserAgent,
        socket_path: Path | None,
        commands: Mapping[str, Command],
    ) -> None:
        self._agent = agent
        self._control = None if socket_path is None else ControlServer(socket_path, commands)
        self._tasks = TaskSet()

    async def start(self) -> None:
        """Open the control socket. Raises AgentError when that fails."""
        if self._control is not None:
            try:
                await self._control.start()
            except ControlError as error:
                raise AgentError(str(error)) from None
        asyncio.get_running_loop().add_signal_handler(signal.SIGHUP, self._on_hangup)
        self._tasks.spawn(self._look_at_addresses(), "look at addresses")

    async def stop(self) -> None:
        """Close the control socket and end the tasks."""
        asyncio.get_running_loop().remove_signal_handler(signal.SIGHUP)
        signal.signal(signal.SIGHUP, lambda *_: None)  # the default would cut the drain short
        await self._tasks.cancel()
        if self._control is not None:
            await self._control.stop()

    def _on_hangup(self) -> None:
        self._tasks.spawn(self._renew(), "reload certificates")

    async def _renew(self) -> None:
        try:
            count = await self._agent.renew_certificates()
        except AgentError as error:
            log.error("sip.certificate_reload_failed", error=str(error))
        except TimeoutError:
            log.error("sip.certificate_reload_failed", error="the SIP thread does not answer")
        else:
            log.info("sip.certificates_reloaded", listeners=count)

    async def _look_at_addresses(self) -> None:
        found: dict[str, list[str]] = {}
        for trunk in self._agent.trunks.all:
            found[trunk.name] = []
            for host in hosts_of(trunk):
                found[trunk.name] += await _resolved(host)
        for line in unreachable(self._agent.settings, found):
            log.warning("sip.nat", advice=line)


async def _resolved(host: str) -> list[str]:
    loop = asyncio.get_running_loop()
    try:
        async with asyncio.timeout(RESOLVE_SECONDS):
            infos = await loop.getaddrinfo(host, None, type=socket.SOCK_DGRAM)
    except (OSError, TimeoutError):
        return []  # what needs it will say so
    return [str(info[4][0]) for info in infos]
