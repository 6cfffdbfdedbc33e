# SPDX-License-Identifier: GPL-2.0-or-later
"""Costs and event logs of real calls: what the server tells is what the record has."""

from __future__ import annotations

import hashlib
import json
from decimal import Decimal
from typing import Any

from click.testing import CliRunner

from gateway.cli import main
from tests.support.figures import show
from tests.support.gateway_process import Gateway
from tests.support.harness import API_KEY, AT_NOON, GatewayStack, eventually

WORLD = {
    "routes": """
[[route]]
name = "logged"
to = "^logged$"
records.events = true
[route.session]
instructions = "Speak with {from_name|a stranger} about {header.X-Topic|nothing}."
audio.input.transcription.model = "whisper-1"
[route.greeting]
say = "Hello {from_name|stranger}."

[[route]]
name = "thrifty"
to = "^thrifty$"
from = "^tester$"
records.events = true
[route.greeting]
say = "Hello."
[route.budget]
per_day = 0.000001
goodbye = "Your time is up."
""",
    "more": AT_NOON,
}
GPT_REALTIME_2_1 = {"text": (4, Decimal("0.40"), 24), "audio": (32, Decimal("0.40"), 64)}


def _events(world: GatewayStack, record: dict[str, Any]) -> list[dict[str, Any]]:
    """Whole lines of the event log so far."""
    path = world.records_folder / record["event_log"]["file"]
    written = path.read_text() if path.exists() else ""
    return [json.loads(line) for line in written.splitlines(keepends=True) if line.endswith("\n")]


async def _whole_log(world: GatewayStack, record: dict[str, Any]) -> list[dict[str, Any]]:
    """Its last line comes when the session is gone, which the record does not wait for."""

    def is_whole() -> bool:
        return any("over" in line.get("meta", {}) for line in _events(world, record)[-1:])

    await eventually(is_whole, "the last line")
    return _events(world, record)


def _of(lines: list[dict[str, Any]], direction: str, kind: str) -> list[dict[str, Any]]:
    return [
        line["event"]
        for line in lines
        if line["dir"] == direction and line["event"]["type"] == kind
    ]


def _price(usages: list[dict[str, Any]]) -> Decimal:
    """By hand, apart from the gateway's own arithmetic."""
    total = Decimal(0)
    for usage in usages:
        read, written = usage["input_token_details"], usage["output_token_details"]
        for name, (price, cached_price, out_price) in GPT_REALTIME_2_1.items():
            cached = read["cached_tokens_details"][f"{name}_tokens"]
            total += (read[f"{name}_tokens"] - cached) * price
            total += cached * cached_price + written[f"{name}_tokens"] * out_price
    return total / 1_000_000


async def test_what_was_used_is_priced_and_what_was_said_is_logged(world: GatewayStack) -> None:
    call = world.phone.call("logged", headers=("X-Topic: bicycles",))
    call.invite()
    await call.answered()
    session = await world.session_of(call)
    await call.rtp.heard_bytes(12_000)
    call.rtp.press("42#")
    await world.gateway.wait("call.dtmf_collected", call=call.call_id)
    await world.gateway.wait("call.response", call=call.call_id, count=2)
    await world.summary_at_end(call)
    record = await world.record(call)
    lines = await _whole_log(world, record)

    # Costs, from the usage on the wire.
    usages = [done["response"]["usage"] for done in _of(lines, "in", "response.done")]
    told = [usage for usage in usages if usage is not None]
    assert len(told) >= 2
    cost = record["cost"]
    assert (cost["model"], cost["currency"], cost["unpriced"]) == ("gpt-realtime-2.1", "USD", [])
    assert cost["responses"] == len(usages)
    expected = _price(told)
    assert expected > 0
    assert Decimal(str(cost["priced"])) == expected
    assert cost["tokens"]["output"]["audio"] == sum(
        usage["output_token_details"]["audio_tokens"] for usage in told
    )

    # The log: every message both ways in order, nothing secret, no audio.
    directions = [line["dir"] for line in lines]
    assert (directions[0], directions[-1], directions.count("close")) == ("meta", "meta", 1)
    times = [line["t_ms"] for line in lines]
    assert times == sorted(times)
    assert lines[1]["event"]["type"] == "session.created"
    (update,) = _of(lines, "out", "session.update")
    assert update["session"]["instructions"] == "Speak with a stranger about bicycles."
    appends = _of(lines, "out", "input_audio_buffer.append")
    assert sum(append["audio"]["bytes"] for append in appends) == session.received_total
    deltas = _of(lines, "in", "response.output_audio.delta")
    assert sum(delta["delta"]["bytes"] for delta in deltas) == sum(
        len(audio) for audio in session.sent_items.values()
    )
    silences = {
        hashlib.sha256(b"\xff" * append["audio"]["bytes"]).hexdigest()[:16] for append in appends
    }
    assert silences & {append["audio"]["sha256"] for append in appends}
    messages = [line.get("messages", 1) for line in lines if line.get("event") in appends]
    assert max(messages) > 1, "audio that nothing comes between is one line"
    (created,) = _of(lines, "out", "conversation.item.create")
    assert "4 2" in created["item"]["content"][0]["text"]
    assert API_KEY not in json.dumps(lines)
    assert record["event_log"]["dropped"] == 0

    # And as a conversation.
    path = str(world.records_folder / record["event_log"]["file"])
    shown = CliRunner().invoke(main, ["events", path]).output
    assert "Hello stranger." in shown
    assert "pressed 4 2" in " ".join(shown.split())
    assert "tokens in" in shown
    assert CliRunner().invoke(main, ["events", "--errors", path]).output.strip() == (
        "nothing went wrong"
    )
    raw = CliRunner().invoke(main, ["events", "--raw", path]).output
    assert [json.loads(line) for line in raw.splitlines()] == lines
    size = sum(len(json.dumps(line)) for line in lines)
    show(
        "event log",
        f"{len(lines)} events in {times[-1] / 1000:.1f} s, {size / 1024:.0f} KiB; "
        f"cost {cost['priced']} USD as by hand",
    )


async def test_a_route_without_money_says_goodbye_and_takes_no_more_calls(
    world: GatewayStack,
) -> None:
    call = await world.dial("thrifty")
    session = await world.session_of(call)
    bye = await call.hung_up(30)
    assert 'text="Budget used up"' in bye.headers["reason"]
    record = await world.record(call)
    ending = record["ending"]
    assert (ending["by"], ending["why"], ending["sip_code"]) == ("gateway", "budget", 200)
    assert ending["detail"].startswith("route: 0.00")
    assert "budget_exceeded" in [entry["event"] for entry in record["timeline"]]
    # The goodbye was heard to its end: all that the session has sent came by RTP.
    lines = await _whole_log(world, record)
    (deaf,) = _of(lines, "out", "session.update")[1:]
    assert deaf["session"]["audio"]["input"] == {"turn_detection": None}
    asked = _of(lines, "out", "response.create")
    assert asked[-1]["response"]["instructions"] == "Say exactly: Your time is up."
    sent = sum(len(audio) for audio in session.sent_items.values())
    heard = sum(1 for packet in call.rtp.packets if set(packet.payload) != {0xFF}) * 160
    assert len(session.sent_items) == 2
    assert heard >= sent - 2 * 160

    again = world.phone.call("thrifty")
    again.invite()
    refused = await again.refused()
    assert refused.code == 480
    assert 'text="Budget used up"' in refused.headers["reason"]
    assert (await world.summary(again))["ending"]["why"] == "budget"
    other = await world.dial("greeted")
    await other.hang_up()
    await world.summary(other)


async def test_a_restart_does_not_forget_what_was_spent(world: GatewayStack) -> None:
    first = world.gateway
    first.check(await first.stop())
    kept = json.loads((world.records_folder / "today.cost").read_text())
    assert Decimal(kept["numbers"]["tester"]) == Decimal(kept["total"]) > 0
    assert set(kept["routes"]) >= {"logged", "thrifty"}
    world.gateway = Gateway(first.config)
    told = [line for line in first.lines if line["event"] == "call.summary"]
    world.gateway.lines.extend(told)
    await world.gateway.start()
    world.phone.gateway = world.gateway.sip
    again = world.phone.call("thrifty")
    again.invite()
    assert (await again.refused()).code == 480
