# SPDX-License-Identifier: GPL-2.0-or-later
"""Dialogs: PRACK, CANCEL that crosses a 200, repeats, session timers, odd requests."""

from __future__ import annotations

import asyncio
import re
from typing import Any

import pytest

from gateway.sip.messages.replies import EXTENSIONS
from tests.support.dialog import DialogCall, answered, dialog_call
from tests.support.harness import GatewayStack
from tests.support.listening import Spoken, assert_continuous
from tests.support.sip_phone import Message

WORLD = {"log_level": "debug", "more": ""}
LONG_ANSWER: dict[str, Any] = {"kind": "pattern", "seconds": 120, "burst": True}


async def greeted(world: GatewayStack, *headers: str, **sdp: Any) -> DialogCall:
    world.behave(vad="off", answer=LONG_ANSWER)
    call = await answered(dialog_call(world.phone, "greeted", *headers, **sdp))
    await world.gateway.wait("call.confirmed", call=call.call_id)
    await call.rtp.heard_bytes(3200)
    return call


async def ends_well(world: GatewayStack, call: DialogCall) -> None:
    """The call has gone on as if nothing had been."""
    assert not call.byes
    session = await world.session_of(call)
    await session.wait_until(lambda s: len(s.sent_items) == 1, 20)
    (audio,) = session.sent_items.values()
    # The answer may have begun after the silence that came first.
    await call.rtp.until(lambda: Spoken(bytes(audio)).heard_ms(call.rtp.packets) >= 300)
    await world.summary_at_end(call)
    assert_continuous(call.rtp.packets)


async def refreshed_by_us(world: GatewayStack) -> None:
    """We refresh at half of 90 s; glare on the way: 491 both ways, then it is tried again."""
    call = await greeted(world, "Supported: timer", "Session-Expires: 90;refresher=uas")
    assert call.final is not None
    assert call.final.headers["session-expires"].replace(" ", "") == "90;refresher=uas"

    def hold_back(_call: DialogCall, request: Message) -> bool:
        return request.method == "INVITE"

    call.answerer = hold_back
    await call.until(lambda _c: any(m.method == "INVITE" for m in call.requests), 60, "a refresh")
    ours = next(m for m in call.requests if m.method == "INVITE")
    crossing = await call.ask("INVITE", body=call.sdp.text(call.rtp.port))
    assert crossing.code == 491, crossing.start
    call.respond(ours, 491)
    call.answerer = None
    await call.until(
        lambda _c: len({m.headers["cseq"] for m in call.requests if m.method == "INVITE"}) > 1,
        20,
        "another attempt after 491",
    )
    again = [m for m in call.requests if m.method == "INVITE"][-1]
    assert again.headers["session-expires"].startswith("90")
    await call.until(lambda _c: call.requests[-1].method == "ACK", what="ACK of the refresh")
    await ends_well(world, call)


@pytest.fixture(scope="module")
def refresh(runner: asyncio.Runner, shared_world: GatewayStack) -> asyncio.Task[None]:
    """Started first, awaited last: 45 s, beside the other tests."""

    async def begin() -> asyncio.Task[None]:
        return asyncio.create_task(refreshed_by_us(shared_world))

    return runner.run(begin())


@pytest.fixture
def world(shared_world: GatewayStack, refresh: asyncio.Task[None]) -> GatewayStack:
    """The module's; the call that we refresh is up all the time."""
    assert refresh
    return shared_world


# ---- INVITE


async def test_reliable_progress(world: GatewayStack) -> None:
    """RFC 3262: the 180 is repeated until its PRACK, and not after it."""
    world.behave(vad="off", answer=LONG_ANSWER, updated_delay_ms=1800)
    call = dialog_call(world.phone, "greeted", "Require: 100rel")
    call.prack = False
    call.invite()
    await call.until(lambda c: c.responses.count(180) >= 2, what="180 again")
    assert 200 not in call.responses
    ringing = next(m for m in call.messages if m.code == 180)
    assert "100rel" in ringing.headers["require"]
    call._acknowledge_progress(ringing)
    await call.until(
        lambda c: any(m.code == 200 and m.method == "PRACK" for m in c.messages),
        what="200 of PRACK",
    )
    rang = call.responses.count(180)
    await call.answered()
    assert call.responses.count(180) == rang
    await call.rtp.heard_bytes(8000)
    await ends_well(world, call)


async def test_an_extension_that_nobody_knows_is_refused(world: GatewayStack) -> None:
    call = dialog_call(world.phone, "greeted", "Require: timetravel")
    call.invite()
    refusal = await call.refused()
    assert refusal.code == 420
    assert refusal.headers["unsupported"] == "timetravel"
    await world.phone.forget(call)


async def test_cancel_that_crosses_the_200(world: GatewayStack) -> None:
    """It has no effect any more (RFC 3261 section 9.2): the call goes on until its BYE."""
    world.behave(vad="off", answer=LONG_ANSWER)
    call = dialog_call(world.phone, "greeted")
    call.acknowledge = False
    await answered(call)
    call.cancel()
    await call.until(
        lambda c: any(m.method == "CANCEL" and m.code for m in c.messages), what="answer to CANCEL"
    )
    call.ack()
    await call.rtp.heard_bytes(8000)
    await ends_well(world, call)


async def test_the_200_comes_again_until_its_ack(world: GatewayStack) -> None:
    world.behave(vad="off", answer=LONG_ANSWER)
    call = dialog_call(world.phone, "greeted")
    call.acknowledge = False
    await answered(call)
    await call.until(lambda c: c.responses.count(200) >= 3, what="200 twice more")
    assert not call.rtp.packets or len({p.payload for p in call.rtp.packets}) == 1
    call.ack()
    await world.gateway.wait("call.confirmed", call=call.call_id)
    await call.rtp.heard_bytes(16000)
    await ends_well(world, call)


# ---- session timers (RFC 4028)


async def test_an_interval_too_small(world: GatewayStack) -> None:
    call = dialog_call(world.phone, "greeted", "Supported: timer", "Session-Expires: 60")
    call.invite()
    refusal = await call.refused()
    assert refusal.code == 422
    assert int(refusal.headers["min-se"]) == 90
    assert call.responses == [422]
    await world.gateway.wait("sip.rejected", code=422)
    await world.phone.forget(call)


@pytest.mark.parametrize("method", ["INVITE", "UPDATE"])
async def test_refreshed_by_the_peer(world: GatewayStack, method: str) -> None:
    expires = "Session-Expires: 90;refresher=uac"
    call = await greeted(world, "Supported: timer", expires)
    assert call.final is not None
    assert call.final.headers["session-expires"].replace(" ", "") == "90;refresher=uac"
    assert "timer" in call.final.headers["require"]
    for _ in range(2):
        answer = await call.ask(
            method, "Supported: timer", expires, body=call.sdp.text(call.rtp.port)
        )
        assert answer.code == 200
        assert answer.headers["session-expires"].startswith("90")
    await ends_well(world, call)


async def test_a_refresh_without_a_description(world: GatewayStack) -> None:
    call = await greeted(world, "Supported: timer", "Session-Expires: 90;refresher=uac")
    answer = await call.ask("UPDATE", "Supported: timer", "Session-Expires: 90;refresher=uac")
    assert answer.code == 200
    assert not answer.body
    await ends_well(world, call)


# ---- inside a dialog


async def test_a_second_offer_before_the_first_is_through(world: GatewayStack) -> None:
    """RFC 3261 section 14.2: 500 with Retry-After; then it may come again."""
    call = await greeted(world)
    first, _ = call.put("INVITE", body=call.sdp.text(call.rtp.port))
    second, _ = call.put("INVITE", body=call.sdp.text(call.rtp.port))

    def codes(number: int) -> set[int]:
        cseq = f"{number} INVITE"
        return {m.code for m in call.messages if m.code >= 200 and m.headers["cseq"] == cseq}

    await call.until(lambda _c: codes(first) and codes(second), what="two answers")
    assert (codes(first), codes(second)) == ({200}, {500})
    assert (await call.ask("INVITE", body=call.sdp.text(call.rtp.port))).code == 200
    await world.summary_at_end(call)


SIPFRAG = "SIP/2.0 100 Trying\r\n"
REQUIRING = ("INVITE", "UPDATE", "INFO", "OPTIONS", "REFER", "NOTIFY", "MESSAGE", "PRACK", "BYE")

INSIDE: tuple[tuple[str, tuple[str, ...], str, str, int], ...] = (
    ("OPTIONS", (), "", "", 200),
    ("MESSAGE", (), "Hello?", "text/plain", 405),
    ("SUBSCRIBE", ("Event: presence",), "", "", 489),
    ("SUBSCRIBE", ("Event: refer",), "", "", 489),
    ("NOTIFY", ("Event: talk", "Subscription-State: active"), "", "", 481),
    ("NOTIFY", ("Event: refer", "Subscription-State: active"), "", "", 481),
    ("NOTIFY", ("Event: refer", "Subscription-State: active"), SIPFRAG, "message/sipfrag", 481),
    (
        "NOTIFY",
        ("Event: Refer;id=7", "Subscription-State: terminated;reason=noresource"),
        "",
        "",
        481,
    ),
    ("NOTIFY", ("Event: refer",), SIPFRAG, "message/sipfrag", 481),
    ("NOTIFY", (), "", "", 481),
    ("PUBLISH", ("Event: presence",), "", "", 405),
    ("REGISTER", (), "", "", 405),
    ("PRACK", ("RAck: 1 1 INVITE",), "", "", 481),
    ("PRACK", (), "", "", 481),
    ("UPDATE", (), "", "", 200),
    ("UPDATE", (), "x", "text/plain", 415),
    ("CANCEL", (), "", "", 481),
    ("FLY", (), "", "", 501),
    ("INFO", (), "<x/>", "application/unheard-of", 415),
    ("INFO", ("Info-Package: nothing-such",), "x", "text/plain", 469),
    ("REFER", (), "", "", 400),
    *((method, ("Require: timetravel",), "", "", 420) for method in REQUIRING),
)


async def test_requests_inside_a_call(world: GatewayStack) -> None:
    call = await greeted(world)
    assert call.final is not None
    assert set(call.final.headers["supported"].split(", ")) == EXTENSIONS
    wrong = []
    for method, headers, body, kind, code in INSIDE:
        answer = await call.ask(method, *headers, body=body, kind=kind)
        allow = "INVITE" in answer.headers.get("allow", "") or code not in (405, 501)
        if answer.code != code or not allow:
            wrong.append((method, *headers, code, answer.start))
        if code == 420:
            assert answer.headers["unsupported"] == "timetravel", answer.start
    assert not wrong, "\n".join(map(str, wrong))
    call.messages.clear()  # the BYE that was refused is not the one that ends the call
    await ends_well(world, call)


OUTSIDE = {
    "MESSAGE": 405, "SUBSCRIBE": 405, "NOTIFY": 481, "REGISTER": 405, "PUBLISH": 405, "INFO": 481,
    "UPDATE": 481, "PRACK": 481, "BYE": 481, "FLY": 501,
}  # fmt: skip


async def test_requests_outside_of_calls(world: GatewayStack) -> None:
    """Each gets its answer at once, and one line in the log however often it comes."""
    for _ in range(2):
        for method, code in OUTSIDE.items():
            host, port = world.phone.address
            branch = f"z9hG4bK{method.lower()}{len(world.phone.strays)}"
            lines = [
                f"{method} sip:greeted@127.0.0.1 SIP/2.0",
                f"Via: SIP/2.0/UDP {host}:{port};branch={branch};rport",
                f"From: <sip:tester@{host}>;tag=1",
                "To: <sip:greeted@127.0.0.1>",
                f"Call-ID: {branch}",
                f"CSeq: 1 {method}",
                f"Contact: <sip:tester@{host}:{port}>",
                "Max-Forwards: 70",
                "Event: presence",
                "Content-Length: 0",
            ]
            world.phone.send(("\r\n".join(lines) + "\r\n\r\n").encode())
            answer = await world.phone.stray("SIP/2.0 ", 20, branch)
            assert answer.code == code, (method, answer.start)

    def rules() -> list[str]:
        said = [str(line["rule"]) for line in world.gateway.all("sip.rejected")]
        return [rule for rule in said if "outside" in rule]

    await world.gateway.until(lambda: len(rules()) >= len(OUTSIDE))
    assert len(set(rules())) == len(rules()) == len(OUTSIDE)


async def test_our_description_names_the_range(world: GatewayStack) -> None:
    """RTP ports come from ``sip.rtp_ports``, even ones (RFC 3550 section 11)."""
    match = re.search(r"rtp_ports = \[(\d+), (\d+)\]", world.gateway.config.read_text())
    assert match is not None
    for _ in range(6):
        call = dialog_call(world.phone, "greeted")
        world.behave(vad="off", answer=LONG_ANSWER)
        await answered(call)
        assert call.final is not None
        media = re.search(r"^m=audio (\d+)", call.final.body, re.M)
        assert media is not None
        port = int(media[1])
        assert int(match[1]) <= port < int(match[2])
        assert port % 2 == 0
        await world.summary_at_end(call)


async def test_a_refresh_by_us(world: GatewayStack, refresh: asyncio.Task[None]) -> None:
    await refresh
    await world.idle()
