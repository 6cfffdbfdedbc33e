# SPDX-License-Identifier: GPL-2.0-or-later
"""Each row of the tables of errors, closes and refused handshakes: what a whole call makes of it.

The tables below say it again, in a caller's words, so that a row that changes its kind changes a
call only where somebody meant it to.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterable
from typing import Any
from urllib.parse import urlencode

import pytest

from gateway.devtools.emulator.objects import ProtocolError
from gateway.devtools.emulator.session_log import SessionRecord
from gateway.realtime.errors import CLOSE_CODES, ERROR_CODES, HANDSHAKE_STATUSES
from tests.support.harness import GatewayStack, eventually
from tests.support.listening import Spoken, is_silence
from tests.support.sip_phone import PhoneCall

FATAL = {
    "invalid_api_key",
    "missing_model",
    "invalid_model",
    "model_not_found",
    "beta_api_shape_disabled",
    "insufficient_quota",
}
"""Errors after which nothing more comes of this session, nor of another one like it."""

OVER = {"session_expired"}
"""Errors after which nothing more comes of this session, but of another one."""

FOR_NOW = {"rate_limit_exceeded", "server_error"}
"""Errors of a moment: the session goes on, and a new one is to be had in a while."""

GOES_ON = {
    "conversation_already_has_active_response",
    "response_cancel_not_active",
    "input_audio_buffer_commit_empty",
    "item_truncate_invalid_item_id",
    "item_delete_invalid_item_id",
    "item_retrieve_invalid_item_id",
    "unsupported_content_type",
    "invalid_value",
    "missing_required_parameter",
    "unknown_parameter",
    "cannot_update_voice",
    "invalid_event",
    "invalid_json",
    "a_code_of_tomorrow",
}
"""Errors that mean nothing for a session that is up, and no session for one that is not."""

OF_LIVE = {
    "account_deactivated",
    "billing_hard_limit_reached",
    "context_injection_incomplete",
    "decision_already_made",
    "forbidden",
    "immutable_field_update",
    "invalid_audio",
    "outbound_sip_not_enabled",
    "provider_invite_failed",
    "responses_handoff_incomplete",
    "session_id_not_found",
    "session_storage_failed",
}
"""Errors of Live sessions, which have their own test (``test_live_tools.py``)."""

NO_USE = {1002, 1003, 1007, 1008, 1009, 1010, 3000, 4000, 4004}
"""Closes at set-up that would come again."""

PASSES = {1000, 1001, 1005, 1006, 1011, 1012, 1013, 1014}
"""Closes at set-up after which another attempt is worth while."""

NEVER_CLOSES = {1015}
"""No WebSocket library reports it for a session: TLS fails before there is one (``no-tls``)."""

NO_USE_STATUSES = {400, 401, 403, 404}
PASSING_STATUSES = {408, 425, 429, 500, 502, 503, 504}

FAILED = 'Q.850;cause=41;text="Session failed"'
LOST = 'Q.850;cause=41;text="Session lost"'
REFUSED = 'Q.850;cause=41;text="Session refused"'

NOT_IN_TIME = 'Q.850;cause=41;text="No session in time"'

TALK = {"vad": "off", "answers": [{"kind": "pattern", "seconds": 0.2, "seed": 5, "burst": True}]}

BRIEF = {
    "vad": "off",
    "answer": "pattern",
    "answer.seconds": 0.2,
    "answer.seed": 5,
    "answer.burst": "true",
}


def _route(
    user: str,
    script: dict[str, Any],
    more: str = "fallback = []",
    greeting: str = '[route.greeting]\nsay = "Hello."',
    connect_timeout: float = 8.0,
) -> str:
    query = urlencode(BRIEF | script)
    return f"""
[[route]]
name = "{user}"
to = "^{user}$"
{more}
{greeting}
[route.realtime]
url = "ws://127.0.0.1:{{port}}/v1/realtime?{query}"
api_key = "{{key}}"
connect_timeout = {connect_timeout}
"""


SETUP: dict[str, tuple[dict[str, Any], bool]] = {}
"""By user part: a script that leaves the first connection without a session, and whether another
attempt is made."""
for _code in sorted(FATAL | OVER | FOR_NOW | GOES_ON):
    SETUP[f"error-{_code}"] = (
        {"refuse.step": "connect", "refuse.code": _code, "refuse.first_sessions": 1},
        _code in OVER | FOR_NOW,
    )
for _close in sorted(NO_USE | PASSES):
    _end: dict[str, Any] = {"code": _close} if _close != 1006 else {"drop": "true"}
    SETUP[f"close-{_close}"] = (
        {"end.at": "session.update", "end.first_sessions": 1}
        | {f"end.{key}": value for key, value in _end.items()},
        _close in PASSES,
    )
for _status in sorted(NO_USE_STATUSES | PASSING_STATUSES):
    SETUP[f"http-{_status}"] = (
        {"refuse.step": "upgrade", "refuse.http_status": _status, "refuse.first_sessions": 1},
        _status in PASSING_STATUSES,
    )

COLLISION = "conversation_already_has_active_response"
"""Said only while another response runs: the request waits for the end of that one."""

ASKED = [f"asked-{code}" for code in sorted(FATAL | OVER | FOR_NOW | GOES_ON - {COLLISION})]

WORLD = {
    "keep_sessions": 400,
    "routes": "".join(_route(user, script) for user, (script, _) in SETUP.items())
    + "".join(
        _route(
            user,
            {
                "refuse.step": "response.create",
                "refuse.code": user.removeprefix("asked-"),
                "refuse.times": 1,
            },
            greeting='[route.session]\ninstructions = "Talk."',
        )
        for user in ASKED
    )
    + _route("never", {"refuse.step": "upgrade", "refuse.http_status": 503}, connect_timeout=4.0)
    + _route("no-tls", {}, connect_timeout=4.0).replace("ws://", "wss://")
    + _route("few", {"rate_limits.requests": 1, "rate_limits.window_s": 3600})
    + _route("ladder", {}, 'fallback = [{ action = "reconnect", timeout = 10 }]'),
}


async def each(
    world: GatewayStack, rows: Iterable[Any], of: Callable[[Any], Awaitable[None]]
) -> None:
    """Rows at the same time, as many as the gateway takes calls; none begins after a failure."""
    room = asyncio.Semaphore(min(world.gateway.max_calls, 8))
    wrong: list[Exception] = []

    async def one(row: Any) -> None:
        async with room:
            if wrong:
                return  # its call may still be up, and take the room of others
            try:
                await of(row)
            except Exception as error:
                error.add_note(f"row: {row}")
                wrong.append(error)

    await asyncio.gather(*(one(row) for row in rows))
    if wrong:
        raise ExceptionGroup("rows", wrong)


async def spoken(call: PhoneCall, session: SessionRecord, count: int, before: int = 0) -> None:
    """So many answers of this session came, the last one heard to its end.

    Args:
        before: packets that had come before it was asked for; all answers sound the same.
    """
    await session.wait_until(lambda s: len(s.sent("response.done")) >= count, 20)
    audio = bytes(list(session.sent_items.values())[-1])
    spoken_ms = len(audio) // 8
    await call.rtp.until(lambda: Spoken(audio).heard_ms(call.rtp.packets[before:]) == spoken_ms)


async def up(world: GatewayStack, user: str) -> tuple[PhoneCall, SessionRecord]:
    """A call whose greeting was heard."""
    call = await world.dial(user)
    session = await world.session_of(call)
    await spoken(call, session, 1)
    return call, session


async def goes_on(
    world: GatewayStack, call: PhoneCall, session: SessionRecord, answers: int
) -> None:
    """The same session answers the caller's next turn, and the caller hangs up."""
    before = len(call.rtp.packets)
    world.emulator.live[session.id].session.pretend_speech(100)
    await spoken(call, session, answers, before)
    await world.summary_at_end(call)
    record = await world.record(call)
    assert record["failovers"] == []


async def ended(world: GatewayStack, call: PhoneCall, why: str, reason: str) -> str:
    """The gateway's BYE says why; returns the record's word about it."""
    bye = await call.hung_up()
    record = await world.record(call)
    ending = record["ending"]
    assert (ending["why"], ending["sip_code"], ending["reason"]) == (why, 200, reason)
    assert bye.headers["reason"] == reason
    return str(ending["detail"])


async def replaced(world: GatewayStack, call: PhoneCall, first: SessionRecord, why: str) -> None:
    """Another session goes on with the call, until the caller hangs up."""
    line = await world.gateway.wait("call.session_replaced", call=call.call_id)
    (second,) = (one for one in world.emulator.sessions if one.id == line["session"])
    assert second is not first
    before = len(call.rtp.packets)
    world.emulator.live[second.id].session.pretend_speech(100)
    await spoken(call, second, 1, before)
    await world.summary_at_end(call)
    (trouble,) = (await world.record(call))["failovers"]
    assert (trouble["why"], trouble["outcome"]) == (why, "recovered")


def test_every_row_is_here() -> None:
    assert {*ERROR_CODES, "a_code_of_tomorrow"} == (FATAL | OVER | FOR_NOW | GOES_ON | OF_LIVE)
    assert {*CLOSE_CODES} == NO_USE | PASSES | NEVER_CLOSES
    assert {*HANDSHAKE_STATUSES} <= NO_USE_STATUSES | PASSING_STATUSES


@pytest.mark.parametrize("route", ["greeted", "ladder"])
async def test_errors_in_a_call(world: GatewayStack, route: str) -> None:
    """Told out of the blue: survived, or another session, or the end, as the route has it."""
    world.behave(**TALK)

    async def row(code: str) -> None:
        call, session = await up(world, route)
        world.emulator.live[session.id].error(ProtocolError(code, "As scripted."), None)
        if code in FATAL | OVER:
            if route == "ladder":
                await replaced(world, call, session, "session_error")
            else:
                detail = await ended(world, call, "session_error", FAILED)
                assert detail == f"{code}: As scripted."
            await eventually(lambda: not session.live, "the session's end")
            assert session.close_code == 1000
            return
        error = await world.gateway.wait("call.error", call=call.call_id)
        assert error["code"] == code
        await goes_on(world, call, session, 2)

    codes = FATAL | OVER if route == "ladder" else FATAL | OVER | FOR_NOW | GOES_ON
    await each(world, sorted(codes), row)


async def test_errors_that_answer_a_request_for_an_answer(world: GatewayStack) -> None:
    """What answers a key is refused: the caller hears it all the same, or the call ends."""

    async def row(user: str) -> None:
        code = user.removeprefix("asked-")
        call = await world.dial(user)
        session = await world.session_of(call)
        call.rtp.press("1#")
        if code in FATAL | OVER:
            assert await ended(world, call, "session_error", FAILED)
            return
        await spoken(call, session, 1)
        await world.summary_at_end(call)

    await each(world, ASKED, row)


@pytest.mark.parametrize("route", ["greeted", "ladder"])
async def test_closes_in_a_call(world: GatewayStack, route: str) -> None:
    world.behave(**TALK)

    async def row(code: int) -> None:
        call, session = await up(world, route)
        world.emulator.live[session.id].close(code, "As scripted.", drop=code == 1006)
        if code == 1000:
            # Closed as a session closes whose work is done: nobody is put in its place.
            await ended(world, call, "session_closed", 'Q.850;cause=16;text="Session closed"')
        elif route == "ladder":
            await replaced(world, call, session, "session_lost")
        else:
            assert (await ended(world, call, "session_lost", LOST)).startswith(str(code))

    await each(world, sorted(PASSES | NO_USE), row)


@pytest.mark.parametrize("what", ["error", "close", "http"])
async def test_no_session_at_first(world: GatewayStack, what: str) -> None:
    """Tried again where that helps, and then the call is answered; else refused at once."""

    async def row(user: str) -> None:
        again = SETUP[user][1]
        call = world.phone.call(user)
        call.invite()
        if again:
            await call.answered()
            session = await world.session_of(call)
            await spoken(call, session, 1)
            await world.summary_at_end(call)
            return
        final = await call.refused()
        assert final.code == 503
        assert final.headers["reason"] == REFUSED
        assert int(final.headers["retry-after"]) > 0
        ending = (await world.record(call))["ending"]
        assert (ending["why"], ending["sip_code"]) == ("session_refused", 503)
        assert not world.gateway.all("session.retry", call=call.call_id)

    await each(world, [user for user in SETUP if user.startswith(f"{what}-")], row)


async def test_no_session_at_all(world: GatewayStack) -> None:
    """What may pass is tried for ``connect_timeout``, and then the call is refused."""

    async def row(user: str) -> None:
        call = world.phone.call(user)
        call.invite()
        final = await call.refused()
        assert (final.code, final.headers["reason"]) == (503, NOT_IN_TIME)
        ending = (await world.record(call))["ending"]
        assert (ending["why"], ending["sip_code"]) == ("session_unreachable", 503)
        assert world.gateway.all("session.retry", call=call.call_id)

    await each(world, ["never", "no-tls"], row)


TONE_PACKETS = 10
"""Of the chime's 0.6 s; what of the answer before it is still on its way is less."""


async def test_a_rate_that_is_used_up_is_heard(world: GatewayStack) -> None:
    """Every further response fails, the words about it too: then there is a sound."""
    call, session = await up(world, "few")
    await world.gateway.wait("call.agent_speech_stopped", call=call.call_id)
    before = len(call.rtp.packets)
    world.emulator.live[session.id].session.pretend_speech(100)
    line = await world.gateway.wait("call.response_failure_tone", call=call.call_id)
    assert line["why"] == "rate_limit_exceeded"
    # All of the tone: how soon it begins is no matter of this test.
    await call.rtp.until(
        lambda: sum(not is_silence(p) for p in call.rtp.packets[before:]) > TONE_PACKETS
    )
    await world.summary_at_end(call)
