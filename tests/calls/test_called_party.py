# SPDX-License-Identifier: GPL-2.0-or-later
"""Calls that we place, to callees that do what proxies and PBXs do: fork, bargain, cross."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest

from tests.support.answerer import Answerer, interval_of
from tests.support.forked import Forked
from tests.support.rtp_end import RtpEnd

REFUSED, NO_ANSWER = 3, 4
"""Exit statuses of ``gateway test-call``."""


@asynccontextmanager
async def calling(
    *options: str, status: int = 0, told: str = ""
) -> AsyncIterator[tuple[Answerer, RtpEnd]]:
    """``gateway test-call`` to a callee of ours; afterwards it has to have ended by itself, with
    this status and these words."""
    callee = Answerer()
    await callee.start()
    rtp = RtpEnd(0, b"\xff")
    process = await Forked.command("test-call", f"sip:callee@127.0.0.1:{callee.port}", *options)
    try:
        yield callee, rtp
        async with asyncio.timeout(30):
            out, error = await process.communicate()
        assert process.returncode == status, error.decode()[-2000:]
        assert told in (out + error).decode()
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
        await rtp.close()
        callee.stop()


async def test_forked_answers(runner: asyncio.Runner) -> None:
    """Two telephones ring; the first that answers is taken, the other one gets ACK and BYE."""
    async with calling("--seconds", "2") as (callee, rtp):
        invite = await callee.next("INVITE")
        callee.reply(invite, 100)
        callee.reply(invite, 180, tag="one")
        callee.reply(invite, 180, tag="two")
        callee.reply(invite, 200, tag="two", rtp=rtp.port)
        await callee.next("ACK", "two")
        callee.reply(invite, 200, tag="one", rtp=rtp.port)
        await callee.next("ACK", "one")
        await callee.next("BYE", "one")
        assert not [m for m in callee.requests if m.method == "BYE"], "the first goes on"
        await rtp.until(lambda: len(rtp.packets) > 20)
        await callee.next("BYE", "two")


async def test_a_callee_that_wants_longer_intervals(runner: asyncio.Runner) -> None:
    """422 with Min-SE (RFC 4028 section 7.3): the call is placed again, as asked for."""
    async with calling("--seconds", "1") as (callee, rtp):
        first = await callee.next("INVITE")
        assert "timer" in first.headers["supported"]
        callee.reply(first, 422, "Min-SE: 3000", tag="small")
        again = await callee.next("INVITE")
        assert interval_of(again) >= 3000
        assert int(again.headers["min-se"]) == 3000
        expires = f"Session-Expires: {interval_of(again)};refresher=uac"
        callee.reply(again, 200, expires, "Require: timer", tag="good", rtp=rtp.port)
        await callee.next("ACK", "good")
        await callee.next("BYE", "good")


async def test_reliable_early_media_from_the_callee(runner: asyncio.Runner) -> None:
    async with calling("--seconds", "1") as (callee, rtp):
        invite = await callee.next("INVITE")
        assert "100rel" in invite.headers["supported"]
        callee.reply(invite, 183, "Require: 100rel", "RSeq: 7", tag="early", rtp=rtp.port)
        prack = await callee.next("PRACK", "early")
        assert prack.headers["rack"].startswith("7 ")
        callee.reply(invite, 200, tag="early", rtp=rtp.port)
        await callee.next("ACK", "early")
        await callee.next("BYE", "early")


async def test_an_answer_that_would_have_ended_the_process(runner: asyncio.Runner) -> None:
    """A 200 with a Record-Route that is no URI is acknowledged, and the call ended."""
    async with calling("--seconds", "1", status=REFUSED) as (callee, rtp):
        invite = await callee.next("INVITE")
        callee.reply(invite, 200, "Record-Route: <127.0.0.1:5060;lr>", tag="bad", rtp=rtp.port)
        await callee.next("ACK", "bad")
        await callee.next("BYE", "bad")


@pytest.mark.parametrize("host", ["239.1.1.1", "nope.invalid", "0.1.2.3"])
async def test_an_answer_with_an_address_that_is_nobodys(runner: asyncio.Runner, host: str) -> None:
    """It is acknowledged, and the call ended: who answered is off the hook."""
    async with calling("--seconds", "1", status=REFUSED) as (callee, rtp):
        invite = await callee.next("INVITE")
        callee.reply(invite, 200, tag="odd", rtp=rtp.port, host=host)
        await callee.next("ACK", "odd")
        await callee.next("BYE", "odd")


async def test_cancel_that_crosses_the_callees_200(runner: asyncio.Runner) -> None:
    """We give up as they answer: the answer is acknowledged, and ended (RFC 3261 section 9.1)."""
    async with calling("--answer-within", "0.5", status=NO_ANSWER) as (callee, rtp):
        invite = await callee.next("INVITE")
        callee.reply(invite, 180, tag="late")
        await callee.next("CANCEL")
        callee.reply(invite, 200, tag="late", rtp=rtp.port)
        await callee.next("ACK", "late")
        await callee.next("BYE", "late")


@pytest.mark.parametrize("code", [491, 500])
async def test_a_refusal_is_told_as_it_came(runner: asyncio.Runner, code: int) -> None:
    """Within a call these two have a session refresh tried again; before it they are its end."""
    async with calling("--seconds", "1", status=REFUSED, told=f" {code} ") as (callee, _rtp):
        callee.reply(await callee.next("INVITE"), code, tag="no")
        await callee.next("ACK", "no")
