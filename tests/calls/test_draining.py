# SPDX-License-Identifier: GPL-2.0-or-later
"""Draining as telephones and dispatchers see it, and ``gateway run --workers`` as a whole."""

from __future__ import annotations

import asyncio
import json
import signal
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from tests.interop.lab.ports import free_port
from tests.support.forked import Forked
from tests.support.gateway_process import Gateway
from tests.support.harness import GatewayStack
from tests.support.sip_phone import Phone

NOTICE = "min_drain_time = 30"


@asynccontextmanager
async def own_world(
    folder: Path, more: str, drain_seconds: float = 20
) -> AsyncIterator[GatewayStack]:
    """A world that the test itself brings down, by signals."""
    made = GatewayStack(folder, more=more, drain_seconds=drain_seconds)
    await made.start()
    status = None
    try:
        yield made
        status = await made.gateway.ended()
    finally:
        await made.stop(status)


async def test_a_draining_gateway_refuses_what_is_new_and_keeps_what_it_has(
    own_folder: Path,
) -> None:
    async with own_world(own_folder, "") as world:
        assert (await world.phone.options()).code == 200
        call = await world.dial()
        world.gateway.signal(signal.SIGTERM)
        await world.gateway.wait("gateway.signal")
        probe = await world.phone.options()
        assert (probe.code, probe.headers["retry-after"]) == (503, "5")
        new = world.phone.call("plain")
        new.invite()
        refused = await new.refused()
        assert (refused.code, refused.headers["retry-after"]) == (503, "5")
        heard = len(call.rtp.packets)
        await call.rtp.until(lambda: len(call.rtp.packets) > heard + 10)
        await call.hang_up()
        assert (await world.summary(call))["ending"]["why"] == "remote_hangup"
        summary = await world.summary(new)
        assert summary["ending"]["why"] == "shutdown"
        assert summary["explanation"][-1] == "refused before any route: the gateway drains"


async def test_a_gateway_without_calls_stays_to_be_noticed_until_a_second_signal(
    own_folder: Path,
) -> None:
    async with own_world(own_folder, NOTICE) as world:
        world.gateway.signal(signal.SIGTERM)
        await world.gateway.wait("gateway.signal")
        assert (await world.phone.options()).code == 503
        world.gateway.signal(signal.SIGTERM)


def write(folder: Path, port: int, more: str = "") -> Path:
    (folder / "dialplans").mkdir()
    (folder / "dialplans" / "10.toml").write_text('[[route]]\nname = "any"\n')
    file = folder / "gateway.toml"
    file.write_text(
        f'[sip]\nlisten = ["udp:127.0.0.1:{port}"]\nrtp_ports = [19000, 19399]\nmax_calls = 4\n'
        f'[realtime]\nurl = "ws://127.0.0.1:9/v1/realtime"\n{more}'
    )
    return file


async def test_two_workers_under_one_supervisor(runner: asyncio.Runner, tmp_path: Path) -> None:
    port = free_port("127.0.0.1", 2)
    gateway = Gateway(write(tmp_path, port, "[workers]\ncount = 2\n"))
    await gateway.start()
    try:
        up = await gateway.wait("workers.ready")
        for worker in (0, 1):  # a worker's lines come by a thread of its own
            await gateway.wait("gateway.started", worker=worker)
            await gateway.wait("worker.ready", worker=worker)
        assert {line["worker"]: line["listen"] for line in gateway.all("gateway.started")} == {
            0: [f"udp:127.0.0.1:{port}"],
            1: [f"udp:127.0.0.1:{port + 1}"],
        }
        assert up["pids"] == [gateway.all("worker.ready", worker=n)[0]["pid"] for n in (0, 1)]
        for worker in (0, 1):
            phone = Phone(("127.0.0.1", port + worker))
            await phone.start()
            # 503 once it is known that there is no realtime server.
            assert (await phone.options()).code in (200, 503)
            await phone.stop()
    finally:
        status = await gateway.stop()
    assert status == 0
    assert {line["worker"] for line in gateway.all("gateway.stopped")} == {0, 1}
    assert not gateway.other_output


def test_a_port_that_is_taken_ends_the_start(tmp_path: Path) -> None:
    port = free_port("127.0.0.1", 2)
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as owner:
        owner.bind(("127.0.0.1", port + 1))
        done = Forked.run("run", "-c", str(write(tmp_path, port)), "--workers", "2")
    assert done.returncode == 1
    assert f"cannot bind udp:127.0.0.1:{port + 1}" in done.stderr
    assert "`ss -lptu` shows which program has it" in done.stderr
    lines = [json.loads(line) for line in done.stderr.splitlines() if line.startswith("{")]
    (said,) = [line for line in lines if line["event"] == "worker.cannot_start"]
    assert (said["worker"], said["ended"]) == (1, "exit status 1")
    assert lines[-1]["event"] == "workers.stopped"


def test_what_cannot_be_shared_is_refused_before_anything_starts(tmp_path: Path) -> None:
    done = Forked.run("run", "-c", str(write(tmp_path, 5060)), "--workers", "200")
    assert done.returncode == 2
    assert ": sip.rtp_ports: has room for 1 calls in each of 200 workers" in done.stderr


def test_a_worker_that_there_is_not(tmp_path: Path) -> None:
    done = Forked.run("run", "-c", str(write(tmp_path, 5060)), "--workers", "2", "--worker", "2")
    assert done.returncode == 2
    assert "--worker 2: workers.count is 2, so the last is 1" in done.stderr
