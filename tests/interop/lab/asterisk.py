# SPDX-License-Identifier: GPL-2.0-or-later
"""An Asterisk of its own, on loopback."""

from __future__ import annotations

import asyncio
from pathlib import Path

from tests.interop.lab.ami import Manager
from tests.interop.lab.asterisk_conf import MANAGER_SECRET, PHONE_SECRET, Configuration, Ports
from tests.interop.lab.debian import Root
from tests.interop.lab.keys import Keys
from tests.interop.lab.ports import PBX, free_port
from tests.interop.lab.process import Process
from tests.support.harness import rtp_range

BOOT_S = 60.0


class Asterisk:
    """Asterisk as a process, with its manager interface.

    Its ports are chosen when it is made, so that others may be told where it will be.
    """

    def __init__(self, root: Root, folder: Path, keys: Keys) -> None:
        self.ports = Ports(
            sip=free_port(PBX),
            tls=free_port(PBX),
            manager=free_port(PBX),
            # Telephones go on sending to one that was killed: another must not hear them.
            rtp=rtp_range(),
        )
        self.configuration = Configuration(folder, root, self.ports, keys)
        self.manager = self._new_manager()
        self._process = Process(
            [
                *root.command("usr/sbin/asterisk"),
                *("-C", str(self.configuration.main), "-f", "-n", "-T"),
            ],
            folder,
            folder / "asterisk.log",
        )

    @property
    def address(self) -> str:
        """``host:port`` for SIP over UDP and TCP."""
        return f"{PBX}:{self.ports.sip}"

    @property
    def tls_address(self) -> str:
        """``host:port`` for SIP over TLS."""
        return f"{PBX}:{self.ports.tls}"

    @property
    def phone_secret(self) -> str:
        """The password of every telephone."""
        return PHONE_SECRET

    async def start(self) -> None:
        """Run it until it has booted. The configuration has to be written before."""
        await self._process.start()
        try:
            async with asyncio.timeout(BOOT_S):
                while True:
                    try:
                        await self.manager.connect()
                        return
                    except OSError:
                        assert self._process.running, self._process.tail()
                        await asyncio.sleep(0.05)
        except TimeoutError:
            raise AssertionError(f"Asterisk does not boot: {self._process.tail()}") from None

    async def stop(self) -> None:
        """End it and its calls."""
        await self.manager.close()
        await self._process.stop()

    async def restart(self) -> None:
        """End it, which ends its calls; then a new process in its place."""
        await self.stop()
        self.manager = self._new_manager()
        await self.start()

    async def crash_and_restart(self) -> None:
        """Kill it, which leaves every call without a word; then a new process in its place."""
        await self._process.kill()
        await self.manager.close()
        self.manager = self._new_manager()
        await self.start()

    async def reachable(self, endpoint: str) -> None:
        """Wait until a contact of this endpoint has answered OPTIONS."""
        await self.manager.wait(
            "ContactStatus", EndpointName=endpoint, ContactStatus="Reachable", within_s=30
        )

    async def channels(self) -> list[str]:
        """The names of the channels that are up."""
        lines = (await self.manager.command("core show channels concise")).splitlines()
        return [line.split("!")[0] for line in lines if "!" in line]

    async def is_idle(self) -> bool:
        """Whether no channel is up."""
        return not await self.channels()

    def tail(self, size: int = 6000) -> str:
        """The end of its log."""
        return self._process.tail(size)

    def _new_manager(self) -> Manager:
        return Manager(PBX, self.ports.manager, "lab", MANAGER_SECRET)
