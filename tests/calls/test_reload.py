# SPDX-License-Identifier: GPL-2.0-or-later
"""A reload: the next call takes what the files say now, calls in progress keep what they have."""

from __future__ import annotations

import asyncio
import json
import os
import re
import signal
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path

from click.testing import CliRunner, Result

from gateway.cli import main
from tests.interop.lab.keys import self_signed
from tests.support import figures
from tests.support.black_boxes import written
from tests.support.harness import GatewayStack, eventually

CONTROL = '[control]\nsocket = "gateway.sock"\n'
CALLS = int(os.environ.get("GATEWAY_TEST_CALLS", "5"))
MORE = '\n[[route]]\nname = "late"\nto = "^late$"\nfallback = []\n[route.session]\n'
SECRET = "sk-new-secret-0815"


@asynccontextmanager
async def gateway(folder: Path) -> AsyncIterator[GatewayStack]:
    """A gateway with a control socket."""
    world = GatewayStack(folder, more=CONTROL)
    await world.start()
    try:
        yield world
    finally:
        await world.stop()


async def reload(world: GatewayStack) -> Result:
    """Run ``gateway reload``."""
    arguments = ["reload", "-c", str(world.gateway.config)]
    return await asyncio.to_thread(partial(CliRunner().invoke, main, arguments))


def routes(world: GatewayStack) -> Path:
    """The dialplan's file."""
    return world.folder / "routes" / "10-routes.toml"


def sent_in(box: Path) -> list[str]:
    """First lines of the SIP messages that a black box has of those sent, and what they answer."""
    lines = [line for line in written(box).splitlines() if '"sip":"out"' in line]
    texts = [json.loads(line)["text"].split("\n") for line in lines]
    methods = [next(one for one in text if one.startswith("CSeq:")).split()[-1] for text in texts]
    return [f"{text[0].strip()} ({method})" for text, method in zip(texts, methods, strict=True)]


async def test_new_routes_hold_for_the_next_call(own_folder: Path) -> None:
    async with gateway(own_folder) as world:
        first = await world.dial("greeted")
        refused = world.phone.call("late")
        refused.invite()
        assert (await refused.refused()).code == 404
        text = routes(world).read_text()
        boxed = MORE + '[route.records]\nblack_box = "always"\n'
        routes(world).write_text(text.replace('say = "Hello."', 'say = "Good day."') + boxed)
        file = world.gateway.config
        file.write_text(file.read_text().replace("max_calls = 100", "max_calls = 90"))
        done = await reload(world)
        assert done.exit_code == 0, done.output
        assert "changed: route late: new\n" in done.output
        assert "changed: route greeted: changed\n" in done.output
        assert "needs a restart: sip.max_calls: 100 -> 90\n" in done.output
        late = await world.dial("late")
        heard = len(first.rtp.packets)
        await first.rtp.until(lambda: len(first.rtp.packets) > heard + 10)
        for call in (late, first):
            await world.summary_at_end(call)
        box = Path(world.records_folder, (await world.record(late))["black_box"])
        # A 200 whose ACK is late is sent again.
        await eventually(lambda: "SIP/2.0 200 OK (BYE)" in sent_in(box), "the 200 to the BYE")
        codes = ("100 Trying", "180 Ringing", "200 OK")
        ringing = [f"SIP/2.0 {code} (INVITE)" for code in codes]
        assert list(dict.fromkeys(sent_in(box)))[:-1] == ringing, "from the first call on"
        again = await world.dial("greeted")
        session = await world.session_of(again)
        await eventually(lambda: bool(session.seen("response.create")), "a greeting")
        assert "Good day." in str(session.seen("response.create")[0].body)
        await world.summary_at_end(again)
        line = world.gateway.all("gateway.reloaded")[0]
        assert line["restart_required"] == ["sip.max_calls: 100 -> 90"]


async def test_calls_do_not_wait_for_a_file_that_is_read_slowly(own_folder: Path) -> None:
    """Neither when files are checked nor when functions are made of them, which read it again."""
    file = self_signed(own_folder, "authority").certificate
    world = GatewayStack(own_folder, more=f'{CONTROL}[tools]\nhttp_ca = "{file}"\n')
    await world.start()
    text = file.read_text()
    file.unlink()
    os.mkfifo(file)
    world.gateway.signal(signal.SIGHUP)
    for _ in ("check", "functions"):
        # Opens when somebody reads it; the next reader has a pipe of its own.
        pipe = await asyncio.wait_for(asyncio.to_thread(file.open, "w"), 20)
        file.unlink()
        os.mkfifo(file)
        await world.summary_at_end(await world.dial("greeted"))
        assert not world.gateway.all("gateway.reloaded")
        pipe.write(text)
        pipe.close()
    await world.gateway.wait("gateway.reloaded")
    await world.summary_at_end(await world.dial("greeted"))
    await world.stop()


async def test_a_wrong_file_changes_nothing(own_folder: Path) -> None:
    async with gateway(own_folder) as world:
        text = routes(world).read_text()
        routes(world).write_text(text + '\n[[route]]\nname = "bad"\nto = "("\n')
        failed = await reload(world)
        assert failed.exit_code == 2
        assert f"{routes(world).name}:" in failed.output
        await world.gateway.wait("gateway.reload_failed")
        call = await world.dial("greeted")
        await world.summary_at_end(call)
        routes(world).write_text(text)
        world.gateway.signal(signal.SIGHUP)
        line = await world.gateway.wait("gateway.reloaded")
        assert (line["changed"], line["restart_required"]) == ([], [])


async def test_reloads_and_a_drain_are_heard_by_nobody(own_folder: Path) -> None:
    """What the model says comes whole and in its order to each call, across all of them."""
    before_s = CALLS / 5 if CALLS > 5 else 0.0
    world = GatewayStack(own_folder, more=CONTROL, drain_seconds=30 + before_s)
    await world.start()
    # At once, so that only the gateway can leave a gap, and long enough to outlast the reloads.
    said = {"kind": "pattern", "seconds": 6 + 3 * before_s + CALLS // 5, "burst": True}
    world.behave(vad="off", answers=[said, {"kind": "silent"}])
    calls = [await world.dial("greeted") for _ in range(CALLS)]
    began = time.time()
    await asyncio.sleep(before_s)
    reloaded = time.time()
    text = routes(world).read_text()
    for name in ("first", "second"):
        routes(world).write_text(text + MORE.replace("late", name))
        assert (await reload(world)).exit_code == 0
    world.gateway.signal(signal.SIGTERM)
    await world.gateway.wait("gateway.state", state="draining")
    await asyncio.sleep(before_s)
    drained = time.time()
    times = [[packet.at for packet in call.rtp.packets] for call in calls]
    for name, since, until in (("before", began, reloaded), ("during", reloaded, drained)):
        if found := figures.gaps(times, since, until):
            shown = figures.spread(found, "ms")
            figures.show(f"packets apart at callers {name} reloads and drain", shown)
    for call in calls:
        session = await world.session_of(call)
        await session.wait_until(lambda s: bool(s.sent("response.done")), 20)
        sent = bytes(next(iter(session.sent_items.values())))
        await call.rtp.until(lambda call=call, sent=sent: sent in call.rtp.heard)  # type: ignore[misc]
        summary = await world.summary_at_end(call)
        assert (summary["underruns"], summary["ending"]["why"]) == (0, "remote_hangup")
    await world.stop(await world.gateway.ended())


async def test_a_new_secret_is_in_no_log(own_folder: Path) -> None:
    async with gateway(own_folder) as world:
        route = MORE + f'instructions = "It is {SECRET}."\n[route.realtime]\n'
        routes(world).write_text(routes(world).read_text() + route + f'api_key = "{SECRET}"\n')
        file = world.gateway.config
        key = f'api_key = "{SECRET}"\nmodel = "gpt-{SECRET}"\nping_interval = 4'
        file.write_text(re.sub(r"api_key = .*", key, file.read_text()))
        done = await reload(world)
        assert done.exit_code == 0, done.output
        assert SECRET not in done.output
        for told in ("realtime.api_key", "realtime.model", "realtime.ping_interval: 5.0 -> 4.0"):
            assert f"changed: {told}\n" in done.output
        call = world.phone.call("late")
        call.invite()
        await call.refused()  # the emulator wants another key
        await world.summary(call)
        assert SECRET not in str(world.gateway.lines)
