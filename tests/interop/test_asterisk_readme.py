# SPDX-License-Identifier: GPL-2.0-or-later
"""The two snippets of README.md, as they are there: only the gateway's address is another."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator

import pytest

from tests.interop.lab.debian import Root
from tests.interop.lab.ports import GATEWAY
from tests.interop.lab.scene import Scene
from tests.interop.lab.snippets import of_readme
from tests.support.harness import eventually

pytestmark = pytest.mark.interop


def snippets(scene: Scene) -> tuple[str, str]:
    gateway = {"192.0.2.10:5060": scene.agent.address, "192.0.2.10": GATEWAY}
    # What comes without a context lands in that of the telephones.
    return of_readme("`pjsip.conf` on the Asterisk", gateway), of_readme("`extensions.conf`", {})


@pytest.fixture(scope="module")
def scene(
    runner: asyncio.Runner, root: Root, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Scene]:
    made = Scene(root, tmp_path_factory.mktemp("readme"), snippets, listen=f"udp:{GATEWAY}:0")
    try:
        runner.run(made.start())
        yield made
    finally:
        runner.run(made.stop())


async def test_a_telephone_dials_100(scene: Scene) -> None:
    scene.agent.behave(vad="off", answer={"kind": "pattern", "seconds": 1})
    phone = await scene.phone("201")
    call = scene.agent.next_call()
    await phone.call(scene.uri("100"))
    session = await call.session()
    await session.wait_until(lambda s: bool(s.sent("response.done")), within_s=30)
    (greeting,) = session.sent_items.values()
    await eventually(lambda: phone.heard.has(bytes(greeting)), "the whole greeting")
    await phone.hang_up()
    assert (await call.summary())["ending"]["why"] == "remote_hangup"
