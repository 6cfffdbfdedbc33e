# SPDX-License-Identifier: GPL-2.0-or-later
"""The process: started again when it dies, and not ended by signals that mean something else."""

from __future__ import annotations

import asyncio
import json
import os
import signal
from pathlib import Path

import pytest

from gateway.app.supervisor import HARMLESS
from tests import support
from tests.support.faulty_gateway import PARTS
from tests.support.forked import Forked
from tests.support.gateway_process import START_S, Gateway
from tests.support.harness import GatewayStack, eventually


async def test_a_gateway_that_dies_is_started_again(own_folder: Path) -> None:
    world = GatewayStack(own_folder)
    world.gateway = Gateway(own_folder / "gateway.toml", options=())
    await world.start()
    try:
        up = await world.gateway.wait("worker.ready")
        for number in HARMLESS:
            world.gateway.signal(number)  # to the supervisor, which goes on
        call = await world.dial("greeted")
        os.kill(up["pid"], signal.SIGSEGV)
        died = await world.gateway.wait("worker.crashed")
        assert (died["pid"], died["ended"]) == (up["pid"], "SIGSEGV")
        await world.gateway.wait("worker.ready", START_S, count=2)
        line = await world.gateway.wait("gateway.started", count=2)
        _transport, host, port = line["listen"][0].split(":")
        world.phone.gateway = (host, int(port))
        after = await world.dial("greeted")
        await after.rtp.until(lambda: len(after.rtp.packets) > 10)
        await world.summary_at_end(after)
        await world.phone.forget(call)
    finally:
        await world.stop()


async def test_signals_that_mean_nothing_end_no_call(world: GatewayStack) -> None:
    call = await world.dial()
    for number in HARMLESS:
        world.gateway.signal(number)
    heard = len(call.rtp.packets)
    await call.rtp.until(lambda: len(call.rtp.packets) > heard + 10)
    await world.summary_at_end(call)


async def status_of(world: GatewayStack) -> tuple[int | None, str]:
    """Exit status and output of ``gateway status``."""
    process = await Forked.command("status", "-c", world.gateway.config)
    out, _ = await process.communicate()
    return process.returncode, out.decode()


FAULTY = (str(Path(support.__file__).with_name("faulty_gateway.py")),)
CONTROL = '[control]\nsocket = "gateway.sock"\n'


@pytest.mark.parametrize(
    ("part", "told"), [("exit of the SIP thread", "SIP thread"), ("media clock", "media clock")]
)
async def test_a_process_that_cannot_carry_calls_ends(
    own_folder: Path, part: str, told: str
) -> None:
    assert part in PARTS
    world = GatewayStack(own_folder, entry=FAULTY, drain_seconds=600)
    await world.start()
    try:
        call = await world.dial("greeted")
        (own_folder / "fault").write_text(part)
        line = await world.gateway.wait("gateway.not_well", part=told)
        assert line["error"]
        # The SIP thread hangs up before it is gone.
        assert (await world.summary(call))["ending"]["why"] in ("internal_error", "leg_timeout")
        assert await world.gateway.ended() == 1
        assert world.gateway.all("gateway.cannot_carry_calls")
        assert told in world.gateway.other_output[-1]
    finally:
        await world.gateway.stop()
        await world.phone.stop()
        await world.emulator.stop()


async def test_a_background_task_that_ends_is_seen(own_folder: Path) -> None:
    world = GatewayStack(own_folder, entry=FAULTY, more=CONTROL)
    world.gateway.tolerated |= {"gateway.unhandled", "gateway.task_restarted"}
    await world.start()
    try:
        assert (await status_of(world))[0] == 0
        (own_folder / "fault").write_text("cost ledger")
        await world.gateway.wait("gateway.not_well", part="cost ledger")
        (own_folder / "fault").unlink()
        code, told = await status_of(world)
        assert code == 3
        assert "NOT WELL  cost ledger: ZeroDivisionError: cost ledger" in told
        await world.summary_at_end(await world.dial("greeted"))
    finally:
        await world.stop()


async def test_numbers_and_keys_are_masked_where_the_route_says_so(own_folder: Path) -> None:
    routes = """
[[route]]
name = "masked"
to = '^[+]49301234567$'
records.redact = ["numbers", "dtmf"]
records.events = true
"""
    world = GatewayStack(own_folder, routes=routes)
    await world.start()
    try:
        call = await world.dial("+49301234567")
        session = await world.session_of(call)
        call.rtp.press("47156083#")
        await session.wait_until(lambda one: bool(one.seen("conversation.item.create")), 20)
        summary = await world.summary_at_end(call)
        record = await world.record(call)
        log = world.records_folder / record["event_log"]["file"]
        await eventually(
            lambda: log.exists() and '"over":true' in log.read_text(), "the end of the event log"
        )
        lines = [line for line in world.gateway.lines if line.get("call") == summary["call"]]
        for text in (json.dumps(lines), json.dumps(record), log.read_text()):
            assert "4930123" not in text
            assert "47156083" not in text
            assert "4 7 1 5 6 0 8 3" not in text
        assert "+********567@" in summary["to"]
    finally:
        await world.stop()


async def follow(gateway: Gateway, file: Path) -> None:
    """Feed what is written to log files of this name, moved ones too, to ``gateway.lines``."""
    read: dict[int, int] = {}
    while True:
        for one in file.parent.glob(f"{file.name}*"):
            data = one.read_bytes()
            begin = read.get(one.stat().st_ino, 0)
            end = data.rfind(b"\n") + 1
            gateway.lines += [json.loads(line) for line in data[begin:end].splitlines()]
            read[one.stat().st_ino] = max(begin, end)
        gateway._pulse.set()
        await asyncio.sleep(0.02)


IGNORED = (
    *(signal.SIGUSR2, signal.SIGALRM, signal.SIGQUIT, signal.SIGHUP, signal.SIGPIPE),
    *(signal.SIGWINCH, signal.SIGCONT, signal.SIGCHLD, signal.SIGURG, signal.SIGIO),
    *(signal.SIGVTALRM, signal.SIGPROF, signal.SIGPWR, signal.SIGXFSZ),
)


@pytest.mark.parametrize("options", [("--no-supervisor",), ()], ids=["alone", "supervised"])
async def test_signals_to_a_process_with_a_call(own_folder: Path, options: tuple[str, ...]) -> None:
    """SIGUSR1 after logrotate has moved the log; SIGHUP and those that do nothing."""
    file = own_folder / "gateway.log"
    world = GatewayStack(own_folder, log_level=f'debug"\nfile = "{file}')
    world.gateway = Gateway(own_folder / "gateway.toml", options=options)
    following = asyncio.create_task(follow(world.gateway, file))
    await world.start()
    try:
        call = await world.dial("greeted")
        moved = file.rename(own_folder / "gateway.log.1")
        world.gateway.signal(signal.SIGUSR1)
        await eventually(file.exists, "a new log file")
        second = await world.dial("greeted")
        name = world.gateway.ids_of(second.call_id)[0]
        await eventually(lambda: name in file.read_text(), "its lines in the new file")
        for number in IGNORED:
            world.gateway.signal(number)
        for one in (call, second):
            one.rtp.packets.clear()
            await one.rtp.heard_bytes(1600)
        await world.summary_at_end(second)
        await world.summary_at_end(call)
        assert call.call_id in moved.read_text()
        assert "gateway.stopped" not in moved.read_text()
        assert all(json.loads(line) for line in moved.read_text().splitlines())
        status = await world.gateway.stop()
        await eventually(lambda: bool(world.gateway.all("gateway.stopped")), "its last line")
        await world.stop(status)
    finally:
        following.cancel()
        world.gateway.kill()
