# SPDX-License-Identifier: GPL-2.0-or-later
"""Twenty calls of a suite through a real Asterisk, and what JUnit's readers make of them."""

from __future__ import annotations

import asyncio
import json
import os
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import quote

import pytest
from junitparser import JUnitXml

from tests.interop.lab.debian import Root
from tests.interop.lab.ports import GATEWAY, PBX, PHONES
from tests.interop.lab.scene import Scene
from tests.interop.lab.snippets import deployed

pytestmark = pytest.mark.interop

SUITE = Path(__file__).parent / "suites" / "twenty-calls.toml"

TESTER = f"""
[tester]
type = endpoint
context = phones
disallow = all
allow = ulaw,alaw
direct_media = no
rtp_symmetric = yes
[tester]
type = identify
endpoint = tester
match = {PHONES}
"""

TRANSFER = {
    "answers": [
        {
            "kind": "say",
            "text": "One moment.",
            "tools": [{"name": "transfer_call", "arguments": json.dumps({"destination": "end"})}],
        }
    ]
}

ROUTES = f"""
[[route]]
name = "talkative"
to = "^102$"
[route.greeting]
say = "Good morning. This is the reception of a small hotel by the sea, with a view of the harbour."

[[route]]
name = "leaving"
to = "^103$"
[route.realtime]
url = "ws://127.0.0.1:{{port}}/v1/realtime?script=goodbye"
[route.greeting]
say = "Goodbye."

[[route]]
name = "transfers"
to = "^104$"
[route.realtime]
url = "ws://127.0.0.1:{{port}}/v1/realtime?behaviour={quote(json.dumps(TRANSFER))}"
[route.greeting]
say = "One moment."
[[route.transfer]]
name = "end"
to = "sip:300@{PBX}"
mode = "blind"

[[route]]
name = "by-number"
to = "^105$"
from = "^4930123$"
[route.greeting]
say = "Hello again."
"""


def snippets(scene: Scene) -> tuple[str, str]:
    values = {"192.0.2.10:5060": scene.agent.address, "192.0.2.10": GATEWAY}
    pjsip = deployed("pjsip-trunk.conf", values) + TESTER
    # It sends the final NOTIFY with the first frame that the caller hears of the target.
    ends = "[from-agent]\nexten => 300,1,Answer()\n same => n,Set(TIMEOUT(absolute)=2)\n"
    ends += " same => n,Echo()\n"
    return pjsip, deployed("extensions-trunk.conf", {}) + ends


def trunk(scene: Scene) -> str:
    values = {"192.0.2.1:5060": scene.asterisk.address, "192.0.2.1": PBX}
    return deployed("gateway-trunk.toml", values) + '\n[control]\nsocket = "gateway.sock"\n'


@pytest.fixture(scope="module")
def scene(
    runner: asyncio.Runner, root: Root, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Scene]:
    made = Scene(
        root,
        tmp_path_factory.mktemp("suites"),
        snippets,
        listen=f"udp:{GATEWAY}:0",
        includes=("to-agent",),
        gateway=trunk,
        routes=lambda _scene: ROUTES,
    )
    try:
        runner.run(made.start())
        yield made
    finally:
        runner.run(made.stop())


async def test_twenty_calls(scene: Scene, tmp_path: Path) -> None:
    began = time.monotonic()
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "gateway", "test", SUITE, "-c", scene.agent.gateway.config),
        *("--target", f"sip:{scene.asterisk.address}", "--local", f"{PHONES}:0"),
        *("--parallel", "10", "--junit", tmp_path / "out.xml", "--report", tmp_path / "report"),
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    told, _ = await process.communicate()
    print(f"{time.monotonic() - began:.0f} s\n{told.decode()}")
    (suite,) = JUnitXml.fromfile(str(tmp_path / "out.xml"))
    assert (suite.name, suite.tests, suite.failures) == ("twenty-calls", 20, 0), told.decode()
    assert process.returncode == 0
    assert "not checked:" not in told.decode()


async def test_a_telephone_of_the_pbx(scene: Scene, tmp_path: Path) -> None:
    """Its calls are challenged (401), and answered with the password of the environment."""
    suite = tmp_path / "phone.toml"
    suite.write_text(
        'username = "201"\npassword = "${env:PHONE_SECRET}"\n[[call]]\nname = "echo"\nto = "300"\n'
        'step = [{ do = "wait_answer" }]\n[call.expect]\nended_by = "caller"\n'
    )
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "gateway", "test", suite, "-c", tmp_path / "none.toml"),
        *("--target", f"sip:{scene.asterisk.address}", "--local", "127.0.0.6:0"),
        env={**os.environ, "PHONE_SECRET": scene.asterisk.phone_secret},
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    told, _ = await process.communicate()
    assert process.returncode == 0, told.decode()
