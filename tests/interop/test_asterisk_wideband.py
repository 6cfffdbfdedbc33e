# SPDX-License-Identifier: GPL-2.0-or-later
"""A trunk of Asterisk's in G.722, whose coder is another than ours, and in Opus."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator

import numpy as np
import pytest
from numpy.typing import NDArray

from tests.interop.lab.debian import Root
from tests.interop.lab.ports import GATEWAY
from tests.interop.lab.scene import Scene
from tests.interop.test_asterisk_trunk import plain, plain_gateway
from tests.support.harness import eventually

pytestmark = pytest.mark.interop


def wide(scene: Scene) -> tuple[str, str]:
    pjsip, extensions = plain(scene)
    return pjsip.replace("allow = ulaw,alaw", "allow = g722,opus,ulaw"), extensions


def wide_gateway(codec: str) -> Callable[[Scene], str]:
    return lambda scene: plain_gateway(scene) + f'codecs = ["{codec}", "PCMU"]\n'


@pytest.fixture(scope="module", params=["G722", "opus"])
def wide_scene(
    runner: asyncio.Runner,
    root: Root,
    tmp_path_factory: pytest.TempPathFactory,
    request: pytest.FixtureRequest,
) -> Iterator[Scene]:
    made = Scene(
        root,
        tmp_path_factory.mktemp("wide"),
        wide,
        listen=f"udp:{GATEWAY}:0",
        includes=("to-agent",),
        gateway=wide_gateway(request.param),
    )
    try:
        runner.run(made.start())
        yield made
    finally:
        runner.run(made.stop())


async def test_another_coder(wide_scene: Scene, request: pytest.FixtureRequest) -> None:
    """Asterisk's understands ours, and ours understands it, as loud as it was."""
    tones = {"kind": "tones", "frequencies_hz": [1000], "seconds": 4, "burst": True}
    wide_scene.agent.behave(vad="off", answer=tones)
    phone = await wide_scene.phone("201")
    call = wide_scene.agent.next_call()
    await phone.call(wide_scene.uri("100"))
    session = await call.session()
    times = np.arange(2 * 8000) / 8000
    await phone.say((8000 * np.sin(2 * np.pi * 700 * times)).astype("<i2").tobytes())
    await eventually(
        lambda: as_loud(np.frombuffer(bytes(session.received), "<i2"), 700, 24000),
        "the caller's tone in the session",
    )
    await eventually(lambda: as_loud(phone.heard.samples(), 1000, 8000), "the model's tone")
    await phone.hang_up()
    assert (await call.summary())["codec"] == request.node.callspec.params["wide_scene"]


def as_loud(samples: NDArray[np.int16], hz: int, rate: int) -> bool:
    """Whether a tone of 8,000 to 8,320 is there with this amplitude, for half a second at least."""
    size = rate // 10
    wave = np.exp(-2j * np.pi * hz * np.arange(size) / rate) * 2 / size
    found = np.abs(samples[: len(samples) // size * size].reshape(-1, size) @ wave)
    return int(np.count_nonzero((found > 7200) & (found < 9000))) >= 5
