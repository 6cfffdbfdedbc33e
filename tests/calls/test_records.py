# SPDX-License-Identifier: GPL-2.0-or-later
"""Rows of real calls: after ``kill -9``, and as the command line shows them."""

from __future__ import annotations

import asyncio
import json
import os
import random
import signal
from functools import partial
from pathlib import Path
from typing import Any

from click.testing import CliRunner

from gateway.cli import main
from gateway.config.operations import DATABASE_NAME
from gateway.records.database import Database, Filter
from tests.support import figures
from tests.support.gateway_process import Gateway
from tests.support.harness import GatewayStack, eventually
from tests.support.postgres import PASSWORD, Postgres
from tests.support.sip_phone import PhoneCall

KILLS = int(os.environ.get("GATEWAY_TEST_KILLS", "2"))
"""How often the process is killed; more on demand."""


def rows_of(world: GatewayStack) -> dict[str, list[dict[str, Any]]]:
    """The rows of each SIP Call-ID."""
    database = Database(f"sqlite:///{world.records_folder / DATABASE_NAME}", read_only=True)
    found: dict[str, list[dict[str, Any]]] = {}
    if not database.exists():
        return found
    for row in database.each(Filter()):
        found.setdefault(row["sip_call_id"], []).append(row)
    return found


async def kill_while_calls_come(world: GatewayStack, kills: int, calls: int) -> list[PhoneCall]:
    """Kill the gateway at random moments while INVITEs come; returns the calls it answered to."""
    answered: list[PhoneCall] = []
    for _ in range(kills):
        made = [
            world.phone.call("nobody" if number % 5 == 1 else "plain") for number in range(calls)
        ]

        async def invite(each: list[PhoneCall]) -> None:
            for call in each:
                call.invite()
                await call.until(lambda one: one.responses)

        inviting = asyncio.create_task(invite(made))
        # In every other round all are up, and some of them are being ended.
        last = made[min(random.randrange(2, 2 * calls), calls - 1)]
        await last.until(lambda call: call.responses)
        if last is made[-1]:
            up = [call for call in made if call.user == "plain"]
            await asyncio.gather(*(call.until(lambda one: one.final) for call in up))
            for call in up[: random.randrange(5)]:
                call.bye()
            await asyncio.sleep(random.uniform(0, 0.2))
        world.gateway.signal(signal.SIGKILL)
        await world.gateway.ended()
        inviting.cancel()
        await asyncio.gather(inviting, return_exceptions=True)
        answered += [call for call in made if call.responses]
        for call in made:
            await world.phone.forget(call)
        world.gateway = Gateway(world.gateway.config)
        await world.gateway.start()
        world.phone.gateway = world.gateway.sip
    return answered


async def test_every_call_that_was_answered_to_has_one_row_after_kill_9(own_folder: Path) -> None:
    world = GatewayStack(own_folder)
    await world.start()
    try:
        answered = await kill_while_calls_come(world, kills=KILLS, calls=20)
        assert len(answered) > 3

        def all_there() -> bool:
            rows = rows_of(world)
            return all(
                [one["ended_at"] is not None for one in rows.get(call.call_id, ())] == [True]
                for call in answered
            )

        await eventually(all_there, "one closed row for each call")
        whys = {rows_of(world)[call.call_id][0]["why"] for call in answered}
        assert whys <= {"process_lost", "no_route", "remote_hangup"}
        assert "process_lost" in whys
        answered_to = f"{len(answered)} INVITEs answered to, one row each"
        figures.show(f"kill -9, {KILLS} times, 20 calls each", answered_to)
    finally:
        # What the killed ones logged is gone with them: their calls are not compared with a log.
        await world.gateway.stop()
        await world.phone.stop()
        await world.emulator.stop()


async def gateway(world: GatewayStack, *arguments: str) -> str:
    """Run a command on this gateway's configuration; returns its output."""
    run = partial(CliRunner().invoke, main, [*arguments, "-c", str(world.gateway.config)])
    result = await asyncio.to_thread(run)
    assert result.exit_code == 0, result.output
    return result.stdout


async def test_past_calls_on_the_command_line(world: GatewayStack) -> None:
    call = await world.dial("greeted")
    refused = world.phone.call("nobody")
    refused.invite()
    await refused.refused()
    summary = await world.summary_at_end(call)
    wanted = {call.call_id, refused.call_id}
    await eventually(lambda: wanted <= rows_of(world).keys(), "rows")
    await eventually(
        lambda: all(one["ended_at"] for rows in rows_of(world).values() for one in rows), "ends"
    )
    found = {
        one["sip_call_id"]: one
        for one in json.loads(await gateway(world, "calls", "--past", "--json"))
    }
    assert (found[call.call_id]["outcome"], found[call.call_id]["why"]) == (
        "completed",
        "remote_hangup",
    )
    assert found[call.call_id]["id"] == summary["call"]
    assert (found[refused.call_id]["outcome"], found[refused.call_id]["sip_code"]) == (
        "refused",
        404,
    )
    told = await gateway(world, "explain", summary["call"][-8:])
    assert "route greeted takes it (10-routes.toml:" in told
    assert "not plain: to wants '^plain$', is 'greeted'" in told
    assert "completed: remote_hangup by caller, SIP 200" in told
    told = await gateway(world, "explain", found[refused.call_id]["id"])
    assert "refused: no_route by gateway, SIP 404" in told
    lines = (
        await gateway(world, "calls", "--past", "--format", "csv", "--why", "no_route")
    ).split()
    assert lines[0].startswith("id,invited_at,")
    assert all("no_route" in line for line in lines[1:])


async def hears(call: PhoneCall, before: int) -> None:
    """Wait for half a second of sound."""
    await call.rtp.until(lambda: len(call.rtp.packets) > before + 25)


async def test_calls_go_on_while_postgresql_is_away(own_folder: Path) -> None:
    server = Postgres()
    world = GatewayStack(own_folder)
    world_config = 'folder = "records"\n'
    try:
        await asyncio.to_thread(server.start)
        await world.start()
        # At once, so that only the gateway can leave a gap.
        world.behave(vad="off", answer={"kind": "pattern", "seconds": 60, "burst": True})
        await world.gateway.stop()
        text = world.gateway.config.read_text()
        database = f'{world_config}database = "{server.url}"\n'
        world.gateway.config.write_text(text.replace(world_config, database))
        world.gateway = Gateway(world.gateway.config)
        await world.gateway.start()
        world.phone.gateway = world.gateway.sip
        lasting = [await world.dial("greeted") for _ in range(5)]
        await asyncio.to_thread(server.stop)
        await world.gateway.wait("records.database_unavailable")
        during = await world.dial("plain")
        await world.summary_at_end(during)
        heard = [len(call.rtp.packets) for call in lasting]
        await asyncio.gather(*map(hears, lasting, heard))
        await asyncio.to_thread(server.start)
        for call in lasting:
            summary = await world.summary_at_end(call)
            assert summary["underruns"] == 0
        await world.gateway.wait("records.database_available")
        found = Database(server.url, read_only=True)
        expected = {call.call_id for call in (*lasting, during)}

        def all_there() -> bool:
            rows = list(found.each(Filter()))
            closed = [row["sip_call_id"] for row in rows if row["outcome"] == "completed"]
            return sorted(closed) == sorted(expected)

        await eventually(all_there, "one row for each")
        found.close()
        assert PASSWORD not in str(world.gateway.lines)
    finally:
        await world.gateway.stop()
        await world.phone.stop()
        await world.emulator.stop()
        await asyncio.to_thread(server.remove)
