# SPDX-License-Identifier: GPL-2.0-or-later
"""Digest authentication of calls that come in, bans, and scanners, on the wire (RFC 3261 22)."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from gateway.devtools.emulator.script import Script
from tests.calls.test_access import Stranger, settled
from tests.support.digest_answer import answer
from tests.support.harness import contents, eventually
from tests.support.sip_phone import PhoneCall
from tests.support.site_under_test import Site, site

PASSWORD = "correct horse"
DESK = """
[[trunk]]
name = "provider"
inbound_auth = { username = "desk", password = "${file:desk.secret}" }
"""


def challenges(call: PhoneCall) -> dict[str, str]:
    """What the gateway asks for, by algorithm."""
    assert call.final is not None
    lines = call.final.text.split("\r\n")
    found = [line.partition(": ")[2] for line in lines if line.startswith("WWW-Authenticate: ")]
    return {one.partition("algorithm=")[2].partition(",")[0]: one for one in found}


async def challenged(gateway: Site, *headers: str) -> dict[str, str]:
    """Call, and get 401; the challenges."""
    call = gateway.phone.call("1", headers=headers)
    call.invite()
    refused = await call.refused()
    assert refused.code == 401
    return challenges(call)


def authorized(gateway: Site, challenge: str, **changes: str) -> PhoneCall:
    """A call with credentials, not sent yet."""
    host, port = gateway.phone.gateway
    changes = {"password": PASSWORD, "uri": f"sip:1@{host}:{port}", **changes}
    return gateway.phone.call("1", headers=(f"Authorization: {answer(challenge, **changes)}",))


async def test_calls_with_credentials(runner: object, own_folder: Path) -> None:
    """No session before them; MD5 and SHA-256; each nonce count once; CANCEL without any."""
    (own_folder / "desk.secret").write_text(PASSWORD + "\n")
    async with site(own_folder, more=DESK) as gateway:
        asked = await challenged(gateway)
        assert list(asked) == ["MD5", "SHA-256"]
        assert all('qop="auth"' in one and "stale" not in one for one in asked.values())
        for algorithm, challenge in asked.items():
            call = authorized(gateway, challenge, nc=f"0000000{1 + list(asked).index(algorithm)}")
            call.invite()
            call.invite()  # the same bytes again are no replay
            await call.answered()
            await gateway.gateway.wait("call.confirmed", call=call.call_id)
            await call.hang_up()
            summary = await gateway.gateway.wait("call.summary", call=call.call_id)
            assert (summary["trunk"], summary["route"]) == ("provider", "by-trunk")
        replayed = authorized(gateway, asked["MD5"])
        replayed.invite()
        assert (await replayed.refused()).code == 401
        assert "stale=true" in challenges(replayed)["MD5"]
        for changes in ({"password": "wrong"}, {"username": "nobody"}, {"qop": ""}):
            wrong = authorized(gateway, asked["MD5"], nc="00000009", **changes)
            wrong.invite()
            assert (await wrong.refused()).code == 401
            assert "stale" not in challenges(wrong)["MD5"]
        await gateway.gateway.wait("sip.rejected", rule="digest: wrong credentials")
        assert len(gateway.emulator.sessions) == 2
        files = contents(own_folder / "records")
        assert PASSWORD.encode() not in b"".join([str(gateway.gateway.lines).encode(), *files])


async def test_cancel_of_a_call_with_credentials(runner: object, own_folder: Path) -> None:
    (own_folder / "desk.secret").write_text(PASSWORD)
    async with site(own_folder, more=DESK) as gateway:
        gateway.emulator.script = Script(updated="never")
        call = authorized(gateway, (await challenged(gateway))["MD5"])
        call.invite()
        await call.until(lambda one: 180 in one.responses)
        call.cancel()
        assert (await call.refused()).code == 487


@pytest.mark.parametrize(
    ("peers", "code"), [('["127.0.0.1"]', 200), ('["127.0.0.9"]', 403)], ids=["peer", "elsewhere"]
)
async def test_peers_with_credentials(
    runner: object, own_folder: Path, peers: str, code: int
) -> None:
    """With both, a call needs both."""
    (own_folder / "desk.secret").write_text(PASSWORD)
    async with site(own_folder, more=DESK + f"peers = {peers}\n") as gateway:
        if code == 200:
            call = authorized(gateway, (await challenged(gateway))["SHA-256"])
            call.invite()
            await call.answered()
            await gateway.gateway.wait("call.confirmed", call=call.call_id)
            await call.hang_up()
        else:
            call = gateway.phone.call("1")
            call.invite()
            assert (await call.refused()).code == code


async def test_old_nonces(runner: object, own_folder: Path) -> None:
    (own_folder / "desk.secret").write_text(PASSWORD)
    more = DESK + '[access]\nnonce_lifetime = 0.001\nauth_algorithms = ["SHA-256"]\n'
    async with site(own_folder, more=more) as gateway:
        asked = await challenged(gateway)
        assert list(asked) == ["SHA-256"]
        await asyncio.sleep(0.05)  # the answer may be there within a millisecond
        again = authorized(gateway, asked["SHA-256"])
        again.invite()
        assert (await again.refused()).code == 401
        assert "stale=true" in challenges(again)["SHA-256"]


async def test_bans(runner: object, own_folder: Path) -> None:
    """Whoever is refused too often gets nothing; a trunk's address is not banned by forgers."""
    more = """
[[trunk]]
name = "provider"
peers = ["127.0.0.1"]
[access]
ban_after = 3
ban_seconds = 1000
"""
    async with site(own_folder, more=more) as gateway:
        with Stranger(gateway.phone.gateway) as stranger:
            for _ in range(5):
                stranger.send("REGISTER")
            await settled(gateway)
            assert len(stranger.waiting()) == 2 + 1
        banned = await gateway.gateway.wait("sip.banned")
        assert (banned["source"], banned["refusals"], banned["seconds"]) == ("127.0.0.2", 3, 1000)
        status = await gateway.status()
        (ban,) = status["banned"]
        assert (ban["source"], ban["dropped"]) == ("127.0.0.2", 2)
        assert 900 < ban["seconds"] <= 1000
        assert status["refused"]["banned"] == 2
        for _ in range(5):
            gateway.phone.send(b"REGISTER sip:h SIP/2.0\r\nbroken\r\n\r\n")
        call = gateway.phone.call("1")
        call.invite()
        await call.answered()
        await gateway.gateway.wait("call.confirmed", call=call.call_id)
        await call.hang_up()


async def test_forgers_do_not_ban_a_peer_with_a_port(runner: object, own_folder: Path) -> None:
    """Whoever writes a trunk's address into UDP packets knows its port or not."""
    more = '[[trunk]]\nname = "provider"\npeers = ["127.0.0.1:9"]\n[access]\nban_after = 3\n'
    async with site(own_folder, more=more) as gateway:
        for _ in range(5):
            call = gateway.phone.call("1")
            call.invite()
            assert (await call.refused()).code == 403
        assert (await gateway.status())["banned"] == []


async def test_forgers_do_not_ban_who_has_credentials(runner: object, own_folder: Path) -> None:
    """INVITEs without credentials bring a ban that good ones pass, and wrong ones one for all."""
    (own_folder / "desk.secret").write_text(PASSWORD)
    async with site(own_folder, more=DESK + "[access]\nban_after = 3\n") as gateway:
        asked = [await challenged(gateway) for _ in range(5)]
        await gateway.gateway.wait("sip.banned", source="127.0.0.1")
        gateway.phone.send(b"REGISTER sip:h SIP/2.0\r\nbroken\r\n\r\n")
        call = authorized(gateway, asked[4]["MD5"])
        call.invite()
        await call.answered()
        await gateway.gateway.wait("call.confirmed", call=call.call_id)
        await call.hang_up()
        for guess in ("1", "2", "3"):
            call = authorized(gateway, asked[4]["MD5"], nc="00000009", password=guess)
            call.invite()
            assert (await call.refused()).code == 401
        dropped = (await gateway.status())["banned"][0]["dropped"]
        call = authorized(gateway, asked[4]["MD5"], nc="0000000a")
        call.invite()

        async def was_dropped() -> bool:
            return bool((await gateway.status())["banned"][0]["dropped"] > dropped)

        await eventually(was_dropped, "good credentials after wrong ones get no answer")
        assert not call.responses


async def test_guessing_passwords_bans(runner: object, own_folder: Path) -> None:
    (own_folder / "desk.secret").write_text(PASSWORD)
    more = DESK + 'peers = ["127.0.0.1"]\n[access]\nban_after = 3\n'
    async with site(own_folder, more=more) as gateway:
        asked = await challenged(gateway)
        for guess in ("1", "2", "3"):
            call = authorized(gateway, asked["MD5"], password=guess)
            call.invite()
            assert (await call.refused()).code == 401
        await gateway.gateway.wait("sip.banned", source="127.0.0.1")


async def test_scanners_are_told_nothing(runner: object, own_folder: Path) -> None:
    """Wherever they are, unless it is a trunk's address."""
    async with site(own_folder, routes='[[route]]\nname = "anybody"\n') as gateway:
        with Stranger(gateway.phone.gateway) as stranger:
            stranger.agent = "friendly-scanner"
            for method in ("OPTIONS", "REGISTER", "INVITE"):
                stranger.send(method)
            await settled(gateway)
            assert stranger.waiting() == []
        await gateway.gateway.wait("sip.rejected", rule="known scanner")
