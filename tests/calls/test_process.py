"""The process: started again when it dies, and not ended by signals that mean something else."""

from __future__ import annotations

import os
import signal
from pathlib import Path

from gateway_process import Gateway
from harness import World

from gateway.signals import HARMLESS


async def test_a_gateway_that_dies_is_started_again(own_folder: Path) -> None:
    world = World(own_folder)
    world.gateway = Gateway(own_folder / "gateway.toml", options=())
    await world.start()
    try:
        up = await world.gateway.wait("worker.up")
        call = await world.dial("greeted")
        os.kill(up["pid"], signal.SIGSEGV)
        died = await world.gateway.wait("worker.died")
        assert (died["pid"], died["ended"]) == (up["pid"], "SIGSEGV")
        await world.gateway.wait("worker.up", count=2)
        line = await world.gateway.wait("gateway.up", count=2)
        _transport, host, port = line["listen"][0].split(":")
        world.phone.gateway = (host, int(port))
        after = await world.dial("greeted")
        await after.rtp.until(lambda: len(after.rtp.packets) > 10)
        await world.summary_at_end(after)
        await world.phone.forget(call)
    finally:
        await world.stop()


async def test_signals_that_mean_nothing_end_no_call(world: World) -> None:
    call = await world.dial()
    for number in HARMLESS:
        world.gateway.signal(number)
    heard = len(call.rtp.packets)
    await call.rtp.until(lambda: len(call.rtp.packets) > heard + 10)
    await world.summary_at_end(call)
