# SPDX-License-Identifier: GPL-2.0-or-later
"""A PBX, an agent behind it, and telephones: brought up and ended together."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from tests.interop.lab.agent import Agent
from tests.interop.lab.asterisk import Asterisk
from tests.interop.lab.baresip import Phone
from tests.interop.lab.debian import Root
from tests.interop.lab.keys import self_signed

Snippets = Callable[["Scene"], tuple[str, str]]
"""Makes what is added to pjsip.conf and extensions.conf, when the gateway's address is known."""

GatewayConfig = Callable[["Scene"], str]
"""Makes what is added to the gateway's configuration or dialplan; Asterisk's address is known."""


class Scene:
    """One Asterisk with one agent.

    Args:
        snippets: see above.
        includes: contexts of the snippets that the telephones may dial into.
        listen: the gateway's listener, ``udp:127.0.0.2:0`` for example.
        gateway, routes: see above.
    """

    def __init__(
        self,
        root: Root,
        folder: Path,
        snippets: Snippets,
        *,
        listen: str,
        includes: tuple[str, ...] = (),
        gateway: GatewayConfig | None = None,
        routes: GatewayConfig | None = None,
    ) -> None:
        self.root = root
        self.transport = listen.partition(":")[0]
        """Between Asterisk and the gateway."""
        self.folder = folder
        self.keys = self_signed(folder / "keys", "lab")
        self.asterisk = Asterisk(root, folder / "asterisk", self.keys)
        self.agent = Agent(
            folder / "agent",
            (listen,),
            gateway(self) if gateway else "",
            routes(self) if routes else "",
        )
        self.phones: dict[str, Phone] = {}
        self._snippets = snippets
        self._includes = includes

    async def start(self) -> None:
        """The agent first: Asterisk's configuration has its address."""
        await self.agent.start()
        pjsip, extensions = self._snippets(self)
        self.asterisk.configuration.write(pjsip, extensions, self._includes)
        await self.asterisk.start()

    async def stop(self) -> None:
        """End all of it; asserts that the gateway was without a fault."""
        for phone in self.phones.values():
            await phone.stop()
        await self.asterisk.stop()
        await self.agent.stop()

    async def phone(self, number: str) -> Phone:
        """The telephone with this number, 201 to 209, registered at Asterisk, in no call."""
        if number not in self.phones:
            phone = Phone(self.root, self.folder / number, number, keys=self.keys)
            self.phones[number] = phone
            await phone.start()
            await phone.register(self.asterisk.address, self.asterisk.phone_secret)
        await self.phones[number].idle()
        return self.phones[number]

    def uri(self, number: str) -> str:
        """What a telephone dials."""
        return f"sip:{number}@{self.asterisk.address}"
