# SPDX-License-Identifier: GPL-2.0-or-later
"""Two workers behind a real Kamailio: balance, drain, death, and dialogs that stay put."""

from __future__ import annotations

import asyncio
import csv
import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.interop.cluster import HOST, MAX_CALLS, Cluster, RoutedCall
from tests.interop.kamailio import Target, program
from tests.support.listening import assert_continuous, noise
from tests.support.rtp_end import FRAME
from tests.support.sip_phone import Phone

pytestmark = [
    pytest.mark.interop,
    pytest.mark.skipif(
        program("kamailio") is None and "CI" not in os.environ,
        reason="Kamailio is not installed: deploy/setup/need-kamailio.sh",
    ),
]


@pytest.fixture(scope="module")
def shared(runner: asyncio.Runner, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    made = Cluster(tmp_path_factory.mktemp("cluster"))
    try:
        runner.run(made.start())
        yield made
    finally:
        runner.run(made.stop())


@pytest.fixture
def cluster(
    runner: asyncio.Runner, shared: Cluster, request: pytest.FixtureRequest
) -> Iterator[Cluster]:
    before = request.session.testsfailed
    yield shared
    if request.session.testsfailed == before:
        runner.run(shared.idle())


async def assert_alive(cluster: Cluster, call: RoutedCall, seed: int) -> None:
    """What the caller says arrives (on a busy machine not every frame), and packets come back."""
    session = await cluster.session_of(call)
    said = noise(seed, 0.8)
    frames = [said[start : start + FRAME] for start in range(0, len(said), FRAME)]
    heard = len(call.rtp.packets)
    call.rtp.say(b"\x55" * 4000 + said)
    await session.wait_until(lambda one: sum(f in one.received for f in frames) >= 10, 20)
    await call.rtp.until(lambda: len(call.rtp.packets) > heard + 10, 20)


def is_out(worker: int) -> object:
    def look(targets: list[Target]) -> bool:
        return targets[worker].flags == "IP"

    return look


async def test_calls_are_spread_and_counted(cluster: Cluster) -> None:
    calls = [await cluster.dial() for _ in range(2 * MAX_CALLS)]
    assert sorted(map(cluster.worker_of, calls)) == [0, 0, 1, 1]
    await cluster.settled((2, 2))
    for number, call in enumerate(calls):
        await assert_alive(cluster, call, number)
    refused = cluster.phone.call("plain")
    refused.invite()
    answer = await refused.refused()
    assert answer.code == 503
    assert answer.headers["retry-after"] == "5"
    await calls[0].hang_up()
    replacement = await cluster.dial()
    assert cluster.worker_of(replacement) == cluster.worker_of(calls[0])
    for call in [*calls[1:], replacement]:
        await call.hang_up()
        assert (await cluster.summary(call))["worker"] == cluster.worker_of(call)


async def test_no_worker_is_lost_to_a_caller_who_gives_up(cluster: Cluster) -> None:
    call = cluster.phone.call("slow")
    call.invite()
    await call.until(lambda one: 180 in one.responses, what="180")
    await cluster.proxy.until(lambda targets: sum(t.load for t in targets) == 1, "it counts")
    call.cancel()
    assert (await call.refused()).code == 487
    unknown = cluster.phone.call("nobody")
    unknown.invite()
    assert (await unknown.refused()).code == 404
    await cluster.settled((0, 0))


async def test_a_model_that_cannot_be_had_is_asked_for_once(cluster: Cluster) -> None:
    call = cluster.phone.call("broken")
    call.invite()
    refused = await call.refused()
    assert (refused.code, refused.headers["retry-after"]) == (503, "5")
    assert 180 in call.responses
    cluster.worker_of(call)  # one only


async def test_a_dialog_stays_on_its_worker(cluster: Cluster) -> None:
    calls = await cluster.dial_each()
    first, second = calls
    await first.hang_up()  # a new call would now go to worker 0
    await cluster.settled((0, 1))
    assert (await second.reinvite()).code == 200
    await assert_alive(cluster, second, 20)
    await second.hang_up()
    summary = await cluster.summary(second)
    assert (summary["worker"], summary["ending"]["why"]) == (1, "remote_hangup")


async def test_the_gateways_bye_comes_back_through_the_proxy(cluster: Cluster) -> None:
    call = await cluster.dial()
    session = await cluster.session_of(call)
    cluster.emulator.live[session.id].close(1000)
    bye = await call.hung_up()
    host, port = cluster.proxy.address
    assert bye.headers["via"].startswith(f"SIP/2.0/UDP {host}:{port};")


async def test_503_of_a_worker_that_filled_up_is_not_the_callers(cluster: Cluster) -> None:
    direct = Phone((HOST, cluster.base))
    await direct.start()
    try:
        others = [direct.call("plain") for _ in range(MAX_CALLS)]
        for other in others:
            other.invite()
            await other.answered()
        calls = [await cluster.dial() for _ in range(MAX_CALLS)]
        assert [cluster.worker_of(call) for call in calls] == [1] * MAX_CALLS
        assert all(max(call.responses) == 200 for call in calls)
        assert (await direct.options()).code == 200, "full is not out"
        await cluster.settled((0, MAX_CALLS))
        for call in [*others, *calls]:
            await call.hang_up()
    finally:
        await direct.stop()


async def test_a_draining_worker_is_taken_out_and_comes_back(cluster: Cluster) -> None:
    staying, other = await cluster.dial_each()
    before = cluster.pid(0)
    os.kill(before, signal.SIGTERM)
    await cluster.gateway.wait("gateway.signal", worker=0)
    at_once = await cluster.dial()  # before a probe: refused by 0, taken by 1
    assert cluster.worker_of(at_once) == 1
    direct = Phone((HOST, cluster.base))
    await direct.start()
    try:
        answer = await direct.options()
    finally:
        await direct.stop()
    assert (answer.code, answer.headers["retry-after"]) == (503, "5")
    await cluster.proxy.until(is_out(0), "worker 0 is out")
    await at_once.hang_up()
    again = await cluster.dial()
    assert cluster.worker_of(again) == 1
    assert (await staying.reinvite()).code == 200
    await assert_alive(cluster, staying, 30)
    await assert_alive(cluster, other, 31)
    await staying.hang_up()
    assert (await cluster.summary(staying))["ending"]["why"] == "remote_hangup"
    assert_continuous(staying.rtp.packets)
    await cluster.gateway.wait("worker.drained", worker=0, pid=before)
    await cluster.gateway.wait("worker.ready", worker=0, count=_ups(cluster, 0, before) + 1)
    await cluster.settled((0, 2))
    assert cluster.pid(0) != before
    assert cluster.worker_of(await cluster.dial()) == 0
    for call in cluster.phone.calls.values():
        if call is not staying and call is not at_once:
            await call.hang_up()


async def test_killing_a_worker_loses_only_its_calls(cluster: Cluster) -> None:
    lost, kept = await cluster.dial_each()
    session = await cluster.session_of(lost)
    before = cluster.pid(0)
    os.kill(before, signal.SIGKILL)
    died = await cluster.gateway.wait("worker.crashed", worker=0, pid=before)
    assert died["ended"] == "SIGKILL"
    new = await cluster.dial()
    await assert_alive(cluster, kept, 40)
    await assert_alive(cluster, new, 41)
    assert (await kept.reinvite()).code == 200
    await session.wait_until(lambda one: not one.live, 30)
    await cluster.gateway.wait("worker.ready", worker=0, count=_ups(cluster, 0, before) + 1)
    lost.bye()  # its worker knows nothing of it any more
    await lost.until(lambda call: any(m.code == 481 for m in call.messages), what="481 to the BYE")
    for call in (kept, new):
        await call.hang_up()
        assert (await cluster.summary(call))["ending"]["why"] == "remote_hangup"
        assert_continuous(call.rtp.packets)
    await cluster.settled((0, 0))
    pair = await cluster.dial_each()
    for call in pair:
        await call.hang_up()


def _ups(cluster: Cluster, worker: int, pid: int) -> int:
    """How often the worker had come up when it had this process."""
    pids = [line["pid"] for line in cluster.gateway.all("worker.ready", worker=worker)]
    return pids.index(pid) + 1


async def test_no_call_of_sipp_fails_while_both_workers_are_restarted(
    cluster: Cluster, tmp_path: Path
) -> None:
    host, port = cluster.proxy.address
    statistics = tmp_path / "statistics.csv"
    scenario = Path(__file__).with_name("sipp") / "call.xml"
    command = ["sipp", "-sf", str(scenario), "-s", "plain", f"{host}:{port}", "-i", HOST]
    command += ["-r", "4", "-l", str(MAX_CALLS), "-nostdin", "-timeout", "300"]
    command += ["-trace_stat", "-stf", str(statistics), "-fd", "1"]
    sipp = await asyncio.create_subprocess_exec(
        *command,
        cwd=tmp_path,
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.DEVNULL,
        stderr=asyncio.subprocess.DEVNULL,
    )
    try:
        for worker in (0, 1):
            before = cluster.pid(worker)
            ups = _ups(cluster, worker, before)
            os.kill(before, signal.SIGTERM)
            await cluster.gateway.wait("worker.ready", worker=worker, count=ups + 1)
            calls = len(cluster.gateway.all("call.confirmed", worker=worker))
            await cluster.gateway.wait("call.confirmed", worker=worker, count=calls + 1)
            await cluster.proxy.until(lambda targets: all(t.flags == "AP" for t in targets), "back")
        sipp.send_signal(signal.SIGUSR1)  # no more calls
        async with asyncio.timeout(60):
            await sipp.wait()
    finally:
        if sipp.returncode is None:
            sipp.kill()
            await sipp.wait()
    # SIPp 3.6 may crash when it is done, so its statistics say how it went.
    with statistics.open() as file:
        last = list(csv.DictReader(file, delimiter=";"))[-1]
    assert (last["FailedCall(C)"], last["SuccessfulCall(C)"]) == ("0", last["TotalCallCreated"])
