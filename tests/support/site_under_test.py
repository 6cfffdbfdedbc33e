# SPDX-License-Identifier: GPL-2.0-or-later
"""A gateway with a configuration of the test's own, its emulator, and a telephone."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from gateway.api.client import ask_within
from gateway.devtools.emulator import Emulator
from gateway.devtools.emulator.script import Script
from tests.support.gateway_process import WITHIN_S, Gateway
from tests.support.harness import place_database, rtp_range
from tests.support.sip_phone import Phone

PEER = Path(__file__).parent / "peer.py"

CONFIG = """
[sip]
listen = {listen}
rtp_ports = [{low}, {high}]
{sip}
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
[control]
socket = "control"
{more}
"""

ROUTES = """
[[route]]
name = "by-trunk"
trunk = "provider"
[route.greeting]
say = "Hello, trunk."
"""

ANYBODY = """
[[route]]
name = "anybody"
[route.greeting]
say = "Hello, stranger."
"""


@cache
def rsa_key() -> str:
    """A key in PEM, for all certificates of this process: making one takes up to half a second."""
    made = subprocess.run(
        ["openssl", "genpkey", "-algorithm", "RSA", "-pkeyopt", "rsa_keygen_bits:2048"],
        check=True,
        capture_output=True,
        text=True,
    )
    return made.stdout


def certificate(folder: Path, name: str, *more: str) -> dict[str, str]:
    """A fresh self-signed certificate for 127.0.0.1 and ::1, called ``name``; its files.

    Args:
        more: extensions, as openssl's ``-addext`` has them.
    """
    files = {"certificate": str(folder / "cert.pem"), "private_key": str(folder / "key.pem")}
    Path(files["private_key"]).write_text(rsa_key())
    subprocess.run(
        [
            *("openssl", "req", "-x509", "-key", files["private_key"], "-days", "2"),
            *("-out", files["certificate"]),
            *("-subj", f"/CN={name}", "-addext", "subjectAltName=IP:127.0.0.1,IP:::1"),
            *(word for extension in more for word in ("-addext", extension)),
        ],
        check=True,
        capture_output=True,
    )
    return files


@dataclass
class Site:
    """What a test has at hand."""

    gateway: Gateway
    phone: Phone
    emulator: Emulator
    folder: Path

    def port(self, transport: str, host: str = "127.0.0.1") -> int:
        """Where the gateway listens."""
        listening = self.gateway.all("gateway.started")[0]["listen"]
        begin = f"{transport}:{host}:"
        return int(next(a for a in listening if a.startswith(begin)).removeprefix(begin))

    async def status(self) -> dict[str, Any]:
        """What ``gateway status`` is told. Raises RefusedError and NoAnswerError."""
        return await asyncio.to_thread(ask_within, WITHIN_S, self.folder / "control", "status")


@asynccontextmanager
async def site(
    folder: Path,
    *,
    listen: tuple[str, ...] = ("udp:127.0.0.1:0",),
    sip: str = "",
    more: str = "",
    routes: str = ROUTES + ANYBODY,
    entry: tuple[str, ...] = ("-m", "gateway"),
) -> AsyncIterator[Site]:
    """Bring it up, and down; asserts that nothing went wrong."""
    low, high = rtp_range()
    emulator = Emulator(audio_limit=1_000_000, keep_sessions=5)
    emulator.script = Script.model_validate(
        {"answer": {"kind": "pattern", "seconds": 60, "burst": True}}
    )
    await emulator.start()
    (folder / "routes").mkdir(exist_ok=True)
    (folder / "routes" / "10.toml").write_text(routes)
    place_database(folder / "records")
    config = folder / "gateway.toml"
    config.write_text(
        CONFIG.format(
            listen=json.dumps(list(listen)),
            low=low,
            high=high,
            sip=sip,
            url=emulator.url(),
            more=more,
        )
    )
    gateway = Gateway(config, entry)
    phone = Phone(("127.0.0.1", 0))
    await phone.start()
    try:
        await gateway.start()
        made = Site(gateway, phone, emulator, folder)
        if any(address.startswith("udp:127.0.0.1") for address in listen):
            phone.gateway = ("127.0.0.1", made.port("udp"))
        yield made
        gateway.check(await gateway.stop())
    finally:
        await gateway.stop()
        await phone.stop()
        await emulator.stop()


class Peer:
    """The other endpoint, pjsua2 in a process of its own (``peer.py``)."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self._process = process

    @classmethod
    async def call(cls, uri: str, listen: tuple[str, str], **order: Any) -> Peer:
        """Place a call."""
        low, high = rtp_range()
        request = {"uri": uri, "listen": [*listen, 0], "rtp_ports": [low, high], **order}
        process = await asyncio.create_subprocess_exec(
            sys.executable,
            str(PEER),
            json.dumps(request),
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.DEVNULL,
        )
        return cls(process)

    async def up(self) -> None:
        """Wait until it hears the gateway; only with ``until``."""
        assert self._process.stdout is not None
        async with asyncio.timeout(WITHIN_S):
            line = (await self._process.stdout.readline()).decode()
            assert line == "up\n", line

    async def result(self) -> dict[str, Any]:
        """Let it end, and say how it went."""
        async with asyncio.timeout(WITHIN_S):
            out, _ = await self._process.communicate(b"\n")
        answer: dict[str, Any] = json.loads(out.splitlines()[-1])
        return answer
