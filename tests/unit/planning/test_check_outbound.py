# SPDX-License-Identifier: GPL-2.0-or-later
"""What `gateway check` says of calls that would cost money, and who may ask for a password."""

from __future__ import annotations

import ipaddress
from pathlib import Path

import pytest

from gateway.planning.check import check
from gateway.sip import Peer, Trunk
from gateway.sip.messages.headers import refer_to_of, sip_target
from gateway.sip.trunks import ChallengedCall, Challenges, Trunks

BASE = '[realtime]\nurl = "ws://127.0.0.1:1"\n[dialplan]\nfolder = "routes"\n'


def checked(folder: Path, config: str, route: str = "") -> tuple[int, str]:
    (folder / "routes").mkdir()
    (folder / "routes" / "r.toml").write_text("[[route]]\nname = 'r'\n" + route)
    (folder / "gateway.toml").write_text(BASE + config)
    status, lines = check(folder / "gateway.toml", {})
    return status, "\n".join(lines)


@pytest.mark.parametrize(
    ("config", "route", "words"),
    [
        ("[outbound]\nenabled = true", "", "gateway.toml:5: outbound.allowed_prefixes: missing"),
        ("[outbound]\ncountry = 'XX'", "", "'XX' is not an ISO 3166 country code"),
        ("[outbound]\ncountry = 'de'", "", "'de' is not an ISO 3166 country code"),
        ("[outbound]\nallowed_classes = ['premium']", "", 'did you mean "premium_rate"?'),
        (
            "[callbacks]\nurl = 'http://127.0.0.1:1'",
            "[route.schedule_callback]\nenabled = true",
            "schedule_callback: needs outbound.allowed_prefixes",
        ),
    ],
)
def test_refused(tmp_path: Path, config: str, route: str, words: str) -> None:
    status, told = checked(tmp_path, config, route)
    assert status == 2
    assert words in told


@pytest.mark.parametrize(
    ("config", "route", "words"),
    [
        ("", "allowed_refer_to = '.*'", "allowed_refer_to: matches every address"),
        ("", "allowed_refer_to = 'sips?:.+'", "allowed_refer_to: matches every address"),
        (
            "",
            "allowed_refer_to = 'sip:.*@203.0.113.9(:.*)?'",
            "allowed_refer_to: matches every address",
        ),
        ("", "allowed_refer_to = 'sip:1[0-9]+@pbx.example'", ""),
        (
            "",
            "[[route.transfer]]\nname='a'\nto='sip:{number}@x'\nallowed_numbers='.*'",
            "every number",
        ),
        (
            "",
            "[[route.transfer]]\nname='a'\nto='sip:{number}@x'\nallowed_numbers='[+]?[0-9]+'",
            "every number",
        ),
        ("", "[[route.transfer]]\nname='a'\nto='sip:{number}@x'\nallowed_numbers='1[0-9]+'", ""),
        ("[outbound]\ncountry = 'DE'\nallowed_prefixes = ['+']", "", "matches every number"),
        ("[outbound]\nallowed_prefixes = ['+49']", "", "outbound.country is not set"),
        ("[outbound]\ncountry = 'DE'\nallowed_prefixes = ['+49']\nenabled = true", "", ""),
    ],
)
def test_advised(tmp_path: Path, config: str, route: str, words: str) -> None:
    status, told = checked(tmp_path, config, route)
    assert status == 0, told
    if words:
        assert words in told
    else:
        assert "every" not in told.replace("takes every call", "")
        assert "outbound." not in told


@pytest.mark.parametrize(
    ("field", "uri", "fine"),
    [
        ("<sip:1002@pbx.example>", "sip:1002@pbx.example", True),
        ('"Front desk" <sip:1002@pbx.example;user=phone>', "sip:1002@pbx.example;user=phone", True),
        ("sip:1002@[2001:db8::1]:5070", "sip:1002@[2001:db8::1]:5070", True),
        ("<sip:pbx.example>", "sip:pbx.example", True),
        ("<tel:+4930123456>", "tel:+4930123456", True),
        ("<sip:a@b?Replaces=x%40y%3Bto-tag%3D1%3Bfrom-tag%3D2%3Bearly-only>", "sip:a@b", True),
        ("<sip:a@b?replaces=x%3Bfrom-tag%3D1%3Bto-tag%3D2&Require=replaces>", "sip:a@b", True),
        ("<sip:a@b?Subject=x>", "sip:a@b", False),
        ("<sip:a@b;maddr=c>", "sip:a@b;maddr=c", False),
        ("sip:a@b;maddr=c", "", False),
        ("<sip:a@b>;x=<sip:c@d>", "", False),
        ("<http://b>", "", False),
        ("<sip:a@b@c>", "", False),
        ("<sip:" + "a" * 2000 + "@b>", "", False),
        ("", "", False),
    ],
)
def test_where_a_refer_sends_us(field: str, uri: str, fine: bool) -> None:
    found = refer_to_of(field)
    assert (found.uri, not found.flaw) == (uri, fine), found


def _trunk(**fields: object) -> Trunk:
    return Trunk("t", username="us", password="x", **fields)  # type: ignore[arg-type]


def _peer(text: str, port: int = 0) -> Peer:
    return Peer(ipaddress.ip_network(text), port)


@pytest.mark.parametrize(
    ("trunk", "target"),
    [
        (_trunk(registrar="sip.example:5070"), "sip:+4930@sip.example:5070;user=phone"),
        (_trunk(peers=(_peer("192.0.2.1", 5080),)), "sip:+4930@192.0.2.1:5080;user=phone"),
        (_trunk(peers=(_peer("2001:db8::1"),)), "sip:+4930@[2001:db8::1];user=phone"),
        (_trunk(peers=(_peer("192.0.2.0/24"),)), "sip:+4930@192.0.2.7:5060;user=phone"),
        (
            _trunk(peers=(_peer("192.0.2.1"),), transport="tls"),
            "sip:+4930@192.0.2.1;transport=tls;user=phone",
        ),
    ],
)
def test_a_tel_uri_at_a_trunk(trunk: Trunk, target: str) -> None:
    assert sip_target("tel:+49-(30)", trunk, "192.0.2.7:5060") == target
    assert sip_target("sip:1@x", trunk, "") == "sip:1@x"


def challenge(realm: str, cseq: str, call_id: str = "c1") -> dict[str, tuple[str, ...]]:
    fields = (f'Digest realm="{realm}", nonce="n"',)
    return {"www-authenticate": fields, "cseq": (cseq,), "call-id": (call_id,)}


def test_whose_challenges_get_a_digest() -> None:
    away = _trunk(registrar="sip.example")
    trunks = Trunks((away,))
    call = ChallengedCall(away, "sip:1@sip.example", followed=False)
    calls = {"c1": call, "c2": ChallengedCall(away, "sip:1@sip.example", followed=True)}
    challenges = Challenges(trunks, calls.get)
    invite = challenge("home", "1 INVITE")
    # Nothing is known of its addresses yet: what goes there by name is answered by it.
    assert not challenges.is_foreign(407, invite, "192.0.2.1")
    assert challenges.is_foreign(407, challenge("home", "1 INVITE", "c2"), "192.0.2.1")
    calls["c1"] = ChallengedCall(away, "sip:1@elsewhere", followed=False)
    assert challenges.is_foreign(407, invite, "192.0.2.1")
    # It takes our registration: its address and its realm are known.
    assert not challenges.is_foreign(401, challenge("home", "1 REGISTER", "r1"), "192.0.2.1")
    trunks.learn_registrar("t", "192.0.2.1")
    challenges.registered("t", "r1")
    assert not challenges.is_foreign(407, invite, "192.0.2.1")
    assert challenges.is_foreign(407, invite, "192.0.2.2")
    assert challenges.is_foreign(407, challenge("other", "1 INVITE"), "192.0.2.1")
    assert not challenges.is_foreign(486, invite, "192.0.2.2")
    assert challenges.is_foreign(407, challenge("x", "1 INVITE", "of nobody"), "192.0.2.2")
