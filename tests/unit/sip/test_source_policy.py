# SPDX-License-Identifier: GPL-2.0-or-later
"""Digest authentication of calls that come in: RFC 7616, and what forgers send."""

from __future__ import annotations

from collections.abc import Mapping

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.sip import source_policy
from gateway.sip.source_policy import DigestAuth, DigestOutcome, digest_parameters, digest_response
from tests.support.digest_answer import answer

HOST = "192.0.2.7"


def auth() -> DigestAuth:
    return DigestAuth("gateway", ("MD5", "SHA-256"), 32.0, {"desk": "secret", "hall": "other"})


def judged(
    checker: DigestAuth, field: str, now: float = 1.0, source: str = HOST, message: bytes = b"m"
) -> DigestOutcome:
    return checker.check([field], "INVITE", source, message, now).outcome


def test_the_example_of_the_rfc() -> None:
    """RFC 7616 section 3.9.1."""
    given = {
        "username": "Mufasa",
        "realm": "http-auth@example.org",
        "nonce": "7ypf/xlj9XXwfDPEoM4URrv/xwf94BcCAzFZH4GiTo0v",
        "uri": "/dir/index.html",
        "cnonce": "f2/wE4q74E6zIJEtWaHKaf5wv/H5QzzpXusqGemxURZJ",
        "nc": "00000001",
        "qop": "auth",
    }
    assert (
        digest_response(given, "MD5", "GET", "Circle of Life") == "8ca523f5e9506fed4657c9700eebdbec"
    )
    assert digest_response(given, "SHA-256", "GET", "Circle of Life") == (
        "753927fa0e85d155564e2e272a28d1802ca10daf4496794697cf8db5856cb6c1"
    )


@pytest.mark.parametrize("which", [0, 1])
def test_right_password(which: int) -> None:
    checker = auth()
    challenge = checker.challenge(HOST, 1.0)[which]
    assert 'qop="auth"' in challenge
    assert "stale" not in challenge
    found = checker.check([answer(challenge)], "INVITE", HOST, b"m", 2.0)
    assert (found.outcome, found.username) == (DigestOutcome.GOOD, "desk")


def test_nonce_counts() -> None:
    """Each counts once; the same bytes again are a retransmission, for as long as there are any."""
    checker = auth()
    challenge = checker.challenge(HOST, 0.0)[0]
    one, two = answer(challenge), answer(challenge, nc="00000002")
    assert judged(checker, one, 1.0) is DigestOutcome.GOOD
    assert judged(checker, one, 2.0) is DigestOutcome.GOOD
    assert judged(checker, one, 2.0, message=b"another request") is DigestOutcome.STALE
    assert judged(checker, two, 3.0) is DigestOutcome.GOOD
    assert judged(checker, one, 3.0) is DigestOutcome.STALE
    assert judged(checker, two, 34.0) is DigestOutcome.STALE


def test_old_and_foreign_nonces() -> None:
    checker = auth()
    challenge = checker.challenge(HOST, 0.0)[0]
    assert judged(checker, answer(challenge), 32.1) is DigestOutcome.STALE
    assert judged(checker, answer(challenge), 1.0, source="192.0.2.8") is DigestOutcome.STALE
    assert judged(auth(), answer(challenge), 1.0) is DigestOutcome.STALE, (
        "of a gateway before this one"
    )
    assert "stale=true" in checker.challenge(HOST, 0.0, stale=True)[0]


@pytest.mark.parametrize(
    ("changes", "outcome"),
    [
        ({"password": "Secret"}, DigestOutcome.WRONG),
        ({"password": ""}, DigestOutcome.WRONG),
        ({"username": "nobody", "password": ""}, DigestOutcome.WRONG),
        ({"username": "hall"}, DigestOutcome.WRONG),
        ({"response": '""'}, DigestOutcome.WRONG),
        ({"qop": ""}, DigestOutcome.WRONG),
        ({"qop": "auth-int"}, DigestOutcome.WRONG),
        ({"cnonce": ""}, DigestOutcome.WRONG),
        ({"nc": "0000000g"}, DigestOutcome.WRONG),
        ({"nc": "00000000"}, DigestOutcome.WRONG),
        ({"nonce": '"1.2.3"'}, DigestOutcome.FORGED),
        ({"nonce": '"\u00e9"'}, DigestOutcome.FORGED),
        ({"realm": '"elsewhere"'}, DigestOutcome.NONE),
        ({"algorithm": "MD5-sess"}, DigestOutcome.NONE),
        ({"algorithm": "SHA-256"}, DigestOutcome.WRONG),
        ({"more": '"'}, DigestOutcome.NONE),
        ({"more": '"x" y'}, DigestOutcome.NONE),
    ],
)
def test_wrong_credentials(changes: Mapping[str, str], outcome: DigestOutcome) -> None:
    checker = auth()
    challenge = checker.challenge(HOST, 0.0)[0]
    assert judged(checker, answer(challenge, **changes)) is outcome


def test_fields_that_are_none() -> None:
    for text in ("", "Digest", "Basic abc", "Digest a=1, A=2", "Digest =x", "Digest x", "digestx"):
        assert digest_parameters(text) is None, text
    assert digest_parameters("Digest " + "a" * 4000) is None
    assert digest_parameters('DIGEST\tA = "q\\"\\\\x, y" ,b=2') == {"a": 'q"\\x, y', "b": "2"}


@given(st.text(alphabet='Digest ",=\\ab\t', max_size=200))
def test_any_text_is_read(text: str) -> None:
    given = digest_parameters("Digest " + text)
    assert given is None or all(given), "each has a name"
    assert judged(auth(), f"Digest realm=gateway,{text}") is not DigestOutcome.GOOD


def test_nonces_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(source_policy, "MAX_NONCES", 3)
    checker = auth()
    for _ in range(10):
        assert judged(checker, answer(checker.challenge(HOST, 0.0)[0])) is DigestOutcome.GOOD
    assert len(checker._used) == 3
