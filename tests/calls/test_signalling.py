# SPDX-License-Identifier: GPL-2.0-or-later
"""INVITE to the final response, and every way in which a call does not come about."""

from __future__ import annotations

import asyncio
import random
import socket
from functools import partial
from typing import Any

import pytest

from gateway.devtools.emulator.session_log import SessionRecord
from tests.support.harness import GatewayStack, closed_port, eventually
from tests.support.listening import Spoken, assert_continuous
from tests.support.sip_phone import PhoneCall

_silent = socket.socket()
_silent.bind(("127.0.0.1", 0))
_silent.listen(16)
"""A server that takes connections and never says a word."""

WORLD = {
    "max_calls": 12,
    "routes": f"""
[[route]]
name = "hasty"
to = "^hasty$"
[route.realtime]
url = "{{url}}"
connect_timeout = 0.6

[[route]]
name = "nobody"
to = "^nobody$"
[route.realtime]
url = "ws://127.0.0.1:{closed_port()}/v1/realtime"
connect_timeout = 0.6

[[route]]
name = "speechless"
to = "^speechless$"
[route.realtime]
url = "ws://127.0.0.1:{_silent.getsockname()[1]}/v1/realtime"
connect_timeout = 0.6

[[route]]
name = "speechless-long"
to = "^speechless-long$"
[route.realtime]
url = "ws://127.0.0.1:{_silent.getsockname()[1]}/v1/realtime"
""",
}


def assert_unavailable(call: PhoneCall) -> None:
    """503 with Retry-After after 180, and never a 200."""
    assert call.final is not None
    assert call.final.code == 503
    assert 200 not in call.responses
    assert int(call.final.headers["retry-after"]) > 0


async def test_progress_comes_in_order(world: GatewayStack) -> None:
    call = await world.dial()
    # A 200 whose ACK is late is sent again.
    assert list(dict.fromkeys(call.responses)) == [100, 180, 200]
    times = (await world.summary_at_end(call))["times_ms"]
    order = ["ringing", "session", "answered", "confirmed", "end"]
    assert [times[name] for name in order] == sorted(times[name] for name in order)


async def test_answered_only_when_the_model_is_ready(world: GatewayStack) -> None:
    world.behave(updated_delay_ms=300)
    call = await world.dial()
    session = await world.session_of(call)
    updated = session.sent("session.updated")[0].at
    assert call.answered_at > updated
    ringing = next(message for message in call.messages if message.code == 180)
    assert ringing.at < updated
    await world.summary_at_end(call)


async def test_no_route(world: GatewayStack) -> None:
    before = world.emulator.total_sessions
    call = world.phone.call("nowhere")
    call.invite()
    assert (await call.refused()).code == 404
    assert 180 not in call.responses
    record = await world.record(call)
    assert record["ending"]["why"] == "no_route"
    assert record["ending"]["sip_code"] == 404
    assert record["sip_call_id"] == call.call_id
    assert world.emulator.total_sessions == before


REFUSALS: dict[str, tuple[str, dict[str, Any], str]] = {
    "no session.created": ("hasty", {"created": "never"}, "session_unreachable"),
    "no session.updated": ("hasty", {"updated": "never"}, "session_unreachable"),
    "server down": ("nobody", {}, "session_unreachable"),
    "server mute": ("speechless", {}, "session_unreachable"),
    "upgrade refused for now": (
        "hasty",
        {"refuse": {"step": "upgrade", "http_status": 503}},
        "session_unreachable",
    ),
    "key refused after the upgrade": (
        "plain",
        {"refuse": {"step": "connect", "code": "invalid_api_key"}},
        "session_refused",
    ),
    "no such model": (
        "plain",
        {"refuse": {"step": "connect", "code": "model_not_found"}},
        "session_refused",
    ),
    "settings refused": (
        "plain",
        {"refuse": {"step": "session.update", "code": "unknown_parameter"}},
        "session_refused",
    ),
    "closed at once": (
        "hasty",
        {"end": {"at": "session.created", "code": 1011}},
        "session_unreachable",
    ),
    "cut at once": (
        "hasty",
        {"end": {"at": "session.created", "drop": True}},
        "session_unreachable",
    ),
}


@pytest.mark.parametrize("case", REFUSALS)
async def test_no_session_is_no_answer(world: GatewayStack, case: str) -> None:
    user, script, why = REFUSALS[case]
    world.behave(**script)
    before = world.emulator.total_sessions
    call = world.phone.call(user)
    call.invite()
    await call.refused()
    assert_unavailable(call)
    record = await world.record(call)
    assert record["ending"]["why"] == why
    assert record["ending"]["sip_code"] == 503
    if why == "session_refused":
        assert world.emulator.total_sessions == before + 1, "what will not do is not tried again"


async def test_a_server_that_recovers_in_time_is_used(world: GatewayStack) -> None:
    world.behave(refuse={"step": "upgrade", "http_status": 503})
    call = world.phone.call("plain")
    call.invite()
    await world.gateway.wait("session.retry")
    world.behave()
    await call.answered()
    await world.summary_at_end(call)


async def test_no_common_codec(world: GatewayStack) -> None:
    before = world.emulator.total_sessions
    call = world.phone.call("plain", codecs=("GSM",))
    call.invite()
    assert (await call.refused()).code == 488
    record = await world.record(call)
    assert record["ending"]["why"] == "no_common_codec"
    assert world.emulator.total_sessions == before


@pytest.mark.parametrize("offer", [("PCMA", "PCMU"), ("PCMU", "PCMA"), ("GSM", "PCMA")])
async def test_the_callers_first_law_is_the_sessions(
    world: GatewayStack, offer: tuple[str, ...]
) -> None:
    world.behave(answer={"kind": "pattern", "seconds": 1, "burst": True})
    call = await world.dial("greeted", codecs=offer)
    session = await world.session_of(call)
    wanted = next(name for name in offer if name != "GSM")
    settings = session.seen("session.update")[0].body["session"]["audio"]
    assert settings["input"]["format"] == settings["output"]["format"]
    assert settings["input"]["format"]["type"] == f"audio/{wanted.lower()}"
    await session.wait_until(lambda s: s.sent("response.done") != [], 20)
    (audio,) = session.sent_items.values()
    await call.rtp.until(lambda: bytes(audio) in call.rtp.heard)
    summary = await world.summary_at_end(call)
    assert summary["codec"] == wanted
    assert {packet.payload_type for packet in call.rtp.packets} == {0 if wanted == "PCMU" else 8}


async def test_an_invite_without_offer(world: GatewayStack) -> None:
    """The 200 makes the offer, the ACK answers it (RFC 3261 section 13.2.1)."""
    world.behave(answer={"kind": "pattern", "seconds": 1, "burst": True})
    call = world.phone.call("greeted", codecs=(), acknowledge=False)
    call.invite()
    await call.answered()
    call.ack(("PCMU",))
    session = await world.session_of(call)
    await session.wait_until(lambda s: s.sent("response.done") != [], 20)
    (audio,) = session.sent_items.values()
    await call.rtp.until(lambda: bytes(audio) in call.rtp.heard)
    assert (await world.summary_at_end(call))["codec"] == "PCMU"


async def test_options(world: GatewayStack) -> None:
    answer = await world.phone.options()
    assert answer.code == 200
    assert "INVITE" in answer.headers["allow"]


async def test_a_retransmitted_invite_is_one_call(world: GatewayStack) -> None:
    """While it rings the 180 comes again; after the ACK nothing does."""
    world.behave(updated="never")
    before = world.emulator.total_sessions
    call = world.phone.call("plain", acknowledge=False)
    call.invite()
    await call.until(lambda c: 180 in c.responses, what="180")
    call.invite()
    await call.until(lambda c: c.responses.count(180) == 2, what="the 180 again")
    await world.updated()
    await call.answered()
    call.invite()
    await call.until(lambda c: c.responses.count(200) >= 2, what="the 200 again")
    call.ack()
    await world.gateway.wait("call.confirmed", call=call.call_id)
    for _ in range(3):
        call.invite()
    await world.phone.options()  # what was sent before it has been dealt with
    await world.summary_at_end(call)
    assert set(call.responses) == {100, 180, 200}
    assert world.emulator.total_sessions == before + 1
    assert len(world.gateway.all("call.invite", call=call.call_id)) == 1


CANCELLED_AT: dict[str, tuple[str, dict[str, Any]]] = {
    "while connecting": ("speechless-long", {}),
    "before session.created": ("plain", {"created": "never"}),
    "before session.updated": ("plain", {"updated": "never"}),
    "between two attempts": ("plain", {"refuse": {"step": "upgrade", "http_status": 503}}),
}


@pytest.mark.parametrize("stage", CANCELLED_AT)
async def test_cancel_closes_the_half_open_session(world: GatewayStack, stage: str) -> None:
    user, script = CANCELLED_AT[stage]
    world.behave(**script)
    before = world.emulator.total_sessions
    call = world.phone.call(user)
    call.invite()
    await call.until(lambda c: 180 in c.responses, what="180")
    if stage == "between two attempts":
        await world.gateway.wait("session.retry", call=call.call_id)
    elif stage == "while connecting":
        await world.gateway.wait("session.connecting", call=call.call_id)
    else:
        await eventually(lambda: world.emulator.total_sessions > before, "a session")
    call.cancel()
    await call.until(
        lambda c: [m.code for m in c.messages if m.method == "CANCEL"] == [200],
        what="200 of CANCEL",
    )
    assert (await call.refused()).code == 487
    record = await world.record(call)
    assert record["ending"]["why"] == "cancelled"
    assert record["ending"]["by"] == "caller"
    assert record["times_ms"]["answered"] is None
    await eventually(lambda: not world.emulator.live, "the session closed")


async def test_cancel_at_any_moment(world: GatewayStack) -> None:
    """The CANCEL races the answer: one of them wins, and nothing is left either way."""
    chance = random.Random(1)
    won: set[int] = set()
    for _ in range(40):
        call = world.phone.call("plain")
        call.invite()
        await asyncio.sleep(chance.uniform(0, 0.05))
        call.cancel()
        await call.until(lambda c: c.final is not None, what="final response")
        assert call.final is not None
        won.add(call.final.code)
        if call.final.code == 200:
            await call.hang_up()
        else:
            assert call.final.code == 487
        summary = await world.summary(call)
        assert summary["ending"]["why"] == (
            "remote_hangup" if call.final.code == 200 else "cancelled"
        )
        await world.phone.forget(call)
    assert 487 in won


def goes_on(call: PhoneCall, session: SessionRecord) -> bool:
    """Whether half a second of the agent's first words was heard."""
    return Spoken(bytes(*session.sent_items.values())).heard_ms(call.rtp.packets) >= 500


async def test_calls_beyond_max_calls_are_refused_and_the_others_untouched(
    world: GatewayStack,
) -> None:
    world.behave(answer={"kind": "pattern", "seconds": 30, "burst": True})
    most = world.gateway.max_calls
    calls = [await world.dial("greeted") for _ in range(most)]
    sessions = [await world.session_of(call) for call in calls[-4:]]
    for _ in range(3):
        over = world.phone.call("greeted")
        over.invite()
        await over.refused()
        assert_unavailable(over)
        assert 180 not in over.responses
        record = await world.record(over)
        assert record["ending"]["why"] == "over_capacity"
        assert "sip.max_calls (gateway.toml:" in record["explanation"][-1]
        assert record["sip_call_id"] == over.call_id
    for call, session in zip(calls[-4:], sessions, strict=True):
        await call.rtp.until(partial(goes_on, call, session))
        assert_continuous(call.rtp.packets)
    for call in calls:
        await call.hang_up()
    again = await world.dial("plain")
    await world.summary_at_end(again)


async def test_a_flood_of_invites_is_survived(world: GatewayStack) -> None:
    """Each of 80 at once gets its answer, and the call beside them loses no packet. Until it is
    refused each has a pair of RTP ports, of the 100 that a gateway of tests has."""
    world.behave(answer={"kind": "pattern", "seconds": 30, "burst": True})
    call = await world.dial("greeted")
    flood = [world.phone.call(f"nowhere{number % 3}") for number in range(80)]
    for other in flood:
        other.invite()
    for other in flood:
        assert (await other.refused()).code == 404
        await world.phone.forget(other)  # refusals are sampled: most have no record
    heard = len(call.rtp.packets)
    await call.rtp.until(lambda: len(call.rtp.packets) > heard + 25)
    await world.summary_at_end(call)
    assert_continuous(call.rtp.packets)
