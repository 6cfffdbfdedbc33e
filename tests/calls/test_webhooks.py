# SPDX-License-Identifier: GPL-2.0-or-later
"""Webhooks of real calls: signed, repeated until they arrive, and never doubled by their id."""

from __future__ import annotations

import base64
import json
import signal
from contextlib import suppress
from pathlib import Path

from openai import OpenAI
from standardwebhooks.webhooks import Webhook

from tests.calls.test_operator import command
from tests.calls.test_records import KILLS, kill_while_calls_come, rows_of
from tests.support import figures
from tests.support.gateway_process import Gateway
from tests.support.harness import GatewayStack, eventually
from tests.support.http_service import Answer, http_service
from tests.support.referred import dial

SECRET = "whsec_" + base64.b64encode(b"a key of webhooks, 32 bytes long").decode()
OTHER = "whsec_" + base64.b64encode(b"the key before that, also longer").decode()


def hooks(url: str, events: list[str]) -> str:
    """Lines of the configuration."""
    return (
        f'[[webhook]]\nname = "crm"\nurl = "{url}"\nsecret = "{SECRET}"\n'
        f'previous_secret = "{OTHER}"\nevents = {json.dumps(events)}\n'
    )


async def test_events_of_a_call_are_signed_for_official_clients(own_folder: Path) -> None:
    with http_service() as receiver:
        told = ["call.incoming", "call.answered", "call.ended"]
        world = GatewayStack(own_folder, more=hooks(receiver.url, told))
        await world.start()
        call = await world.dial("greeted")
        summary = await world.summary_at_end(call)
        await eventually(lambda: len(receiver.asked) >= 3, "three deliveries")
        lines = json.dumps(world.gateway.lines)
        await world.stop()
    assert SECRET not in lines
    by_type = {got.json["type"]: got for got in receiver.asked}
    assert sorted(by_type) == sorted(told)
    for got in receiver.asked:
        for secret in (SECRET, OTHER):
            Webhook(secret).verify(got.body, dict(got.headers))
        client = OpenAI(api_key="none", webhook_secret=SECRET)
        client.webhooks.verify_signature(got.body.decode(), dict(got.headers))
        assert got.headers["idempotency-key"] == got.headers["webhook-id"]
        assert got.json["data"]["call_id"] == summary["call"]
    assert by_type["call.ended"].json["data"]["outcome"] == "completed"
    order = [by_type[kind].json["data"]["sequence"] for kind in told]
    assert order == sorted(order)


async def test_deliveries_outlive_kill_9(own_folder: Path) -> None:
    with http_service() as receiver:
        receiver.answers = [Answer(503)]
        world = GatewayStack(own_folder, more=hooks(receiver.url, ["call.incoming", "call.ended"]))
        await world.start()
        call = await world.dial()
        call_id = (await world.gateway.wait("call.session_up", call=call.call_id))["call"]
        await eventually(lambda: len(receiver.asked) >= 1, "a first try")
        world.gateway.signal(signal.SIGKILL)
        await world.gateway.ended()
        await world.phone.forget(call)
        receiver.asked.clear()
        receiver.answers = [Answer(200)]
        world.gateway = Gateway(world.gateway.config)
        await world.gateway.start()
        await eventually(lambda: len(receiver.asked) >= 2, "both")
        await world.gateway.stop()
        await world.phone.stop()
        await world.emulator.stop()
    told = {got.json["type"]: got.json["data"] for got in receiver.asked}
    assert told["call.ended"]["why"] == "process_lost"
    assert {data["call_id"] for data in told.values()} == {call_id}


async def test_each_call_has_one_end_by_its_id_after_kill_9_at_random_moments(
    own_folder: Path,
) -> None:
    with http_service() as receiver:
        world = GatewayStack(own_folder, more=hooks(receiver.url, ["call.incoming", "call.ended"]))
        await world.start()
        answered = await kill_while_calls_come(world, kills=max(KILLS, 3), calls=20)
        assert len(answered) > 3

        def ids() -> dict[str, set[str]]:
            found: dict[str, set[str]] = {}
            for got in tuple(receiver.asked):
                if not got.body.endswith(b"}"):
                    continue  # it was cut off by a kill
                if got.json["type"] == "call.ended":
                    call = got.json["data"]["call_id"]
                    found.setdefault(call, set()).add(got.headers["webhook-id"])
            return found

        def all_told() -> bool:
            rows = rows_of(world)
            wanted = {row["id"] for one in answered for row in rows.get(one.call_id, ())}
            return len(wanted) == len(answered) and wanted <= ids().keys()

        await eventually(all_told, "the end of each call")
        await world.gateway.stop()
        await world.phone.stop()
        await world.emulator.stop()
    assert {len(each) for each in ids().values()} == {1}, "a repeated delivery has its first id"
    told = f"{len(ids())} calls, the end of each told by one id; {len(receiver.asked)} requests"
    figures.show(f"webhooks, kill -9 {max(KILLS, 3)} times", told)


EVENTS = {
    *("call.incoming", "call.ringing", "call.answered", "call.ended"),
    *("call.transferring", "call.transferred", "call.transfer_failed"),
    *("call.budget", "call.trouble"),
}
HOOKED_ROUTES = """
[[route]]
name = "desk"
to = "^desk$"
greeting.say = "Hello."
[[route.transfer]]
name = "desk"
to = "sip:1002@pbx.example"
[[route]]
name = "poor"
to = "^poor$"
greeting.say = "Hello."
[route.budget]
per_call = 0.0001
"""


async def test_every_event_arrives_signed(own_folder: Path) -> None:
    with http_service() as receiver:
        more = hooks(receiver.url, sorted(EVENTS))
        world = GatewayStack(own_folder, routes=HOOKED_ROUTES, more=more)
        await world.start()
        words = {"kind": "pattern", "seconds": 0.2}
        wanted = {"name": "transfer_call", "arguments": '{"destination": "desk"}'}
        for outcome in ("200 OK", "486 Busy Here"):
            world.behave(vad="off", answers=[{"kind": "nothing", "tools": [wanted]}, words])
            call = await dial(world, "desk")
            await call.asked()
            call.notify("180 Ringing")
            call.notify(outcome, last=True)
            if outcome != "200 OK":
                await world.gateway.wait("call.transfer_failed", call=call.call_id)
                await call.hang_up()
            await world.gateway.wait("call.summary", call=call.call_id)
        world.behave(answers=[{"kind": "pattern", "seconds": 2}])
        poor = world.phone.call("poor")
        poor.invite()
        await poor.answered()
        await world.gateway.wait("call.summary", call=poor.call_id)
        world.behave(end={"code": 1011, "after_s": 0.3, "first_sessions": 1})
        lost = await world.dial("desk")
        await world.gateway.wait("call.session_replaced", call=lost.call_id)
        await world.summary_at_end(lost)
        with suppress(AssertionError):  # a delivery that is missing is named below
            await eventually(
                lambda: {got.json["type"] for got in tuple(receiver.asked)} >= EVENTS,
                "all events",
            )
        await world.stop()
    assert {got.json["type"] for got in receiver.asked} == EVENTS
    ids = [got.headers["webhook-id"] for got in receiver.asked]
    assert len(ids) == len(set(ids))
    for got in receiver.asked:
        Webhook(SECRET).verify(got.body, dict(got.headers))
        data = got.json["data"]
        assert data.keys() >= {"call_id", "sequence", "state", "direction", "route"}


async def test_the_command_lists_and_resends(own_folder: Path) -> None:
    with http_service() as receiver:
        receiver.answers = [Answer(403)]
        more = hooks(receiver.url, ["call.ended"]) + '[control]\nsocket = "gateway.sock"\n'
        world = GatewayStack(own_folder, more=more)
        await world.start()
        summary = await world.summary_at_end(await world.dial("greeted"))
        await world.gateway.wait("webhook.dead")
        status, said = await command(world, "webhooks", "--dead")
        assert (status, summary["call"] in said, "HTTP 403" in said) == (0, True, True)
        receiver.answers = [Answer(200)]
        assert await command(world, "webhooks", "--resend", "all") == (0, "tried anew: 1\n")
        await eventually(lambda: len(receiver.asked) == 2, "delivered")
        assert (await command(world, "webhooks", "--resend", "none"))[0] == 1
        await world.stop()
    assert receiver.asked[0].headers["webhook-id"] == receiver.asked[1].headers["webhook-id"]
