# SPDX-License-Identifier: GPL-2.0-or-later
"""Every way in which a call ends: who, why, what SIP said, and nothing left behind."""

from __future__ import annotations

import signal
from pathlib import Path
from typing import Any

import pytest

from gateway.devtools.emulator.objects import ProtocolError
from gateway.devtools.emulator.session_log import SessionRecord
from tests.support.harness import GatewayStack, eventually
from tests.support.listening import Spoken, assert_continuous, is_silence
from tests.support.sip_phone import PhoneCall

WORLD = {
    "routes": """
[[route]]
name = "short"
to = "^short$"
[route.limits]
max_call_duration = 1.0

[[route]]
name = "attentive"
to = "^attentive$"
[route.limits]
rtp_timeout = 1.5

[[route]]
name = "brisk"
to = "^brisk$"
[route.greeting]
say = "Hello."
[route.end_call]
goodbye_timeout = 0.5
"""
}


async def ended_by_us(world: GatewayStack, call: PhoneCall, why: str, by: str) -> dict[str, Any]:
    """Wait for the gateway's BYE; asserts ending, Reason header and a closed session."""
    bye = await call.hung_up()
    record = await world.record(call)
    ending = record["ending"]
    assert (ending["why"], ending["by"], ending["sip_code"]) == (why, by, 200)
    assert bye.headers["reason"] == ending["reason"]
    assert bye.headers["reason"].startswith("Q.850;cause=")
    session = await world.session_of(call)
    await eventually(lambda: not session.live, "the session's end")
    assert len(call.byes) == 1
    return record


async def last_words(session: SessionRecord, call: PhoneCall) -> None:
    """Asserts that the last answer was heard to its end before the call was over."""
    audio = bytes(list(session.sent_items.values())[-1])
    call.rtp.read_what_waits()
    assert Spoken(audio).heard_ms(call.rtp.packets) == len(audio) // 8
    assert_continuous(call.rtp.packets)


# ---- the caller


async def test_caller_hangs_up(world: GatewayStack) -> None:
    world.behave(answer={"kind": "pattern", "seconds": 20, "burst": True})
    call = await world.dial("greeted")
    await call.rtp.heard_bytes(8000)
    session = await world.session_of(call)
    await call.hang_up('Reason: SIP;cause=200;text="Call completed elsewhere"')
    record = await world.record(call)
    assert (record["ending"]["why"], record["ending"]["by"]) == ("remote_hangup", "caller")
    assert record["ending"]["reason"] == 'SIP;cause=200;text="Call completed elsewhere"'
    await eventually(lambda: not session.live, "the session's end")
    assert (session.close_code, session.close_reason) == (1000, "remote_hangup")
    assert not call.byes


async def test_caller_hangs_up_as_soon_as_it_is_answered(world: GatewayStack) -> None:
    for _ in range(5):
        call = world.phone.call("greeted")
        call.invite()
        await call.answered()
        await call.hang_up()
        record = await world.record(call)
        assert (record["ending"]["why"], record["ending"]["by"]) == ("remote_hangup", "caller")


# ---- the model


async def test_model_says_goodbye(world: GatewayStack) -> None:
    """The goodbye is heard to its last byte, then comes the BYE."""
    goodbye = {"kind": "pattern", "seconds": 1.5, "burst": True, "end_call": True}
    world.behave(vad="off", answer=goodbye)
    call = await world.dial("greeted")
    record = await ended_by_us(world, call, "agent_hangup", "model")
    session = await world.session_of(call)
    await last_words(session, call)
    assert (session.close_code, session.close_reason) == (1000, "agent_hangup")
    assert record["ending"]["reason"] == 'Q.850;cause=16;text="Normal call clearing"'


async def test_model_hangs_up_without_a_word(world: GatewayStack) -> None:
    """It is asked for a goodbye, which is heard to its end."""
    answers = [
        {"kind": "nothing", "end_call": True},
        {"kind": "pattern", "seconds": 1, "seed": 3, "speed": 1.5},
    ]
    world.behave(vad="off", answers=answers)
    call = await world.dial("greeted")
    await ended_by_us(world, call, "agent_hangup", "model")
    session = await world.session_of(call)
    await last_words(session, call)
    (output,) = session.seen("conversation.item.create")
    assert output.body["item"]["type"] == "function_call_output"
    assert len(session.seen("response.create")) == 2


async def test_model_hangs_up_and_stays_mute(world: GatewayStack) -> None:
    """No goodbye comes: the call ends all the same, when its time is over."""
    world.behave(vad="off", answers=[{"kind": "nothing", "end_call": True}, {"kind": "hang"}])
    call = await world.dial("brisk")
    await ended_by_us(world, call, "agent_hangup", "model")


async def test_caller_speaks_into_the_goodbye(world: GatewayStack) -> None:
    """Then the call is not over: the goodbye stops, and the model is told so."""
    goodbye = {"kind": "pattern", "seconds": 10, "burst": True, "end_call": True}
    reply = {"kind": "pattern", "seconds": 1, "seed": 8, "burst": True}
    world.behave(
        vad="scripted", answers=[goodbye, reply], speech={"at_ms": [1500], "length_ms": 200}
    )
    call = await world.dial("greeted")
    session = await world.session_of(call)
    await session.wait_until(lambda s: len(s.sent_items) == 2, 20)
    await session.wait_until(lambda s: len(s.sent("response.done")) == 2, 20)
    await call.rtp.until(lambda: bytes(list(session.sent_items.values())[1]) in call.rtp.heard)
    await world.summary_at_end(call)
    await world.gateway.wait("call.hangup_cancelled", call=call.call_id)
    (cut,) = session.truncations
    heard = Spoken(bytes(session.sent_items[cut.item_id])).heard_ms(call.rtp.packets)
    assert cut.requested_ms == heard
    (output,) = session.seen("conversation.item.create")
    assert output.body["item"]["type"] == "function_call_output"
    assert "not ended" in output.body["item"]["output"]


@pytest.mark.parametrize("burst", [True, False])
async def test_session_closes_normally(world: GatewayStack, burst: bool) -> None:
    """What came of it is heard to its end, then the call ends; even when it came before the ACK."""
    answer = {"kind": "pattern", "seconds": 2, "burst": burst}
    world.behave(vad="off", answer=answer, end={"at": "response.done", "code": 1000})
    call = await world.dial("greeted")
    await ended_by_us(world, call, "session_closed", "model")
    await last_words(await world.session_of(call), call)


@pytest.mark.parametrize(
    "end",
    [{"drop": True}, {"code": 1011}, {"code": 1001}, {"code": 4000, "reason": "x.invalid_model"}],
    ids=lambda end: str(end.get("code", "cut")),
)
async def test_session_is_lost(world: GatewayStack, end: dict[str, Any]) -> None:
    answer = {"kind": "pattern", "seconds": 10, "speed": 2}
    nth = {"at": "response.output_audio.delta", "nth": 5}
    world.behave(vad="off", answer=answer, end={**nth, **end})
    call = await world.dial("greeted")
    record = await ended_by_us(world, call, "session_lost", "network")
    assert record["ending"]["detail"].startswith(str(end.get("code", 1006)))


@pytest.mark.parametrize("code", ["insufficient_quota", "session_expired"])
async def test_fatal_error(world: GatewayStack, code: str) -> None:
    world.behave(vad="off", answer="silent")
    call = await world.dial("greeted")
    session = await world.session_of(call)
    error = ProtocolError(code, "No more of this today.")
    world.emulator.live[session.id].error(error, None)
    record = await ended_by_us(world, call, "session_error", "model")
    assert record["ending"]["detail"] == f"{code}: No more of this today."
    assert session.close_code == 1000


async def test_an_error_that_means_nothing_is_survived(world: GatewayStack) -> None:
    world.behave(vad="off", answer={"kind": "pattern", "seconds": 1})
    call = await world.dial("plain")
    session = await world.session_of(call)
    connection = world.emulator.live[session.id]
    for code in ("response_cancel_not_active", "never_heard_of", "server_error"):
        connection.error(ProtocolError(code, "Never mind."), None)
    await world.gateway.wait("call.error", call=call.call_id, count=3)
    call.rtp.press("1#")
    await call.rtp.until(lambda: any(not is_silence(p) for p in call.rtp.packets))
    await world.summary_at_end(call)


# ---- network and gateway


async def test_rtp_falls_silent(world: GatewayStack) -> None:
    """A caller whose network is gone sends no BYE."""
    world.behave(answer="silent")
    call = await world.dial("attentive")
    await call.rtp.heard_bytes(20 * 160)
    call.rtp.sending = False
    await ended_by_us(world, call, "rtp_timeout", "network")


async def test_rtp_that_never_began(world: GatewayStack) -> None:
    world.behave(answer="silent")
    call = world.phone.call("attentive")
    call.rtp.sending = False
    call.invite()
    await call.answered()
    await ended_by_us(world, call, "rtp_timeout", "network")


async def test_longest_call(world: GatewayStack) -> None:
    world.behave(answer={"kind": "pattern", "seconds": 20, "burst": True})
    call = await world.dial("short")
    record = await ended_by_us(world, call, "max_duration", "gateway")
    assert record["talk_ms"] >= 1000


async def test_shutdown_ends_calls_properly(own_folder: Path) -> None:
    """SIGTERM: BYE and a closed session for calls that are up, 503 for one that rings."""
    world = GatewayStack(own_folder)
    await world.start()
    world.behave(vad="off", answer={"kind": "pattern", "seconds": 20, "burst": True})
    calls = [await world.dial("greeted") for _ in range(2)]
    await calls[0].rtp.heard_bytes(4000)
    world.behave(updated="never")
    ringing = world.phone.call("plain")
    ringing.invite()
    await world.gateway.wait("session.connecting", call=ringing.call_id)
    await eventually(lambda: len(world.emulator.live) == 3, "the third session")
    world.gateway.signal(signal.SIGTERM)
    for call in calls:
        record = await ended_by_us(world, call, "shutdown", "operator")
        assert record["ending"]["reason"] == 'Q.850;cause=41;text="Gateway shuts down"'
        session = await world.session_of(call)
        assert (session.close_code, session.close_reason) == (1000, "shutdown")
    refusal = await ringing.refused()
    assert refusal.code == 503
    assert int(refusal.headers["retry-after"]) > 0
    assert (await world.record(ringing))["ending"]["why"] == "shutdown"
    status = await world.gateway.ended()
    await eventually(lambda: not world.emulator.live, "all sessions closed")
    await world.stop(status)


async def test_drain_lets_calls_finish(own_folder: Path) -> None:
    """Within ``drain_seconds`` calls go on and new ones are refused; the last one ends the wait."""
    world = GatewayStack(own_folder, drain_seconds=60)
    await world.start()
    world.behave(vad="off", answer={"kind": "pattern", "seconds": 20, "burst": True})
    call = await world.dial("greeted")
    world.gateway.signal(signal.SIGTERM)
    await world.gateway.wait("gateway.signal")
    late = world.phone.call("plain")
    late.invite()
    assert (await late.refused()).code == 503
    assert (await world.record(late))["ending"]["why"] == "shutdown"
    heard = len(call.rtp.packets)
    await call.rtp.until(lambda: len(call.rtp.packets) > heard + 25)
    assert not is_silence(call.rtp.packets[-1])
    await world.summary_at_end(call)
    await world.stop(await world.gateway.ended())


async def test_a_second_signal_hurries(own_folder: Path) -> None:
    world = GatewayStack(own_folder, drain_seconds=60)
    await world.start()
    call = await world.dial()
    world.gateway.signal(signal.SIGINT)
    await world.gateway.wait("gateway.signal")
    world.gateway.signal(signal.SIGINT)
    await ended_by_us(world, call, "shutdown", "operator")
    await world.stop(await world.gateway.ended())


async def test_a_caller_that_is_gone_holds_no_shutdown_up(own_folder: Path) -> None:
    """Nobody answers the BYE: call, session and process end all the same."""
    world = GatewayStack(own_folder)
    await world.start()
    call = await world.dial()
    world.phone.deaf = True
    status = await world.gateway.stop()
    assert (await world.record(call))["ending"]["why"] == "shutdown"
    await eventually(lambda: not world.emulator.live, "all sessions closed")
    await world.stop(status)


async def test_a_caller_that_is_gone_leaves_nothing_when_we_hang_up(world: GatewayStack) -> None:
    world.behave(answer="silent")
    call = await world.dial("short")
    session = await world.session_of(call)
    world.phone.deaf = True
    try:
        record = await world.record(call)
    finally:
        world.phone.deaf = False
    assert record["ending"]["why"] == "max_duration"
    await eventually(lambda: not session.live, "the session's end")
    await world.summary_at_end(await world.dial())
