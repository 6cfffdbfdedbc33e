# SPDX-License-Identifier: GPL-2.0-or-later
"""What each message gets before pjsip has it: passed, dropped, answered, or replaced by another."""

from __future__ import annotations

import ipaddress
from dataclasses import replace
from types import SimpleNamespace
from typing import Any, cast

import pytest

from gateway.sip import Access, BanPolicy, Limits, Peer, Trunk, access_control
from gateway.sip.access_control import (
    ANSWERS_AT_ONCE,
    REQUESTS_AT_ONCE,
    REQUESTS_PER_SECOND,
    AccessControl,
    party_of,
)
from gateway.sip.messages.sdp import SdpRejection
from gateway.sip.signalling import DROP, PASS, Decision, ReceivedMessage, UnparsedMessage
from gateway.sip.source_limits import FIRST_MESSAGE_SECONDS, OF_A_PEER, PER_SOURCE
from gateway.sip.trunks import Attribution, Trunks

STRANGER, PBX = "192.0.2.9", "10.0.0.1"
TRUNK = Trunk(
    "pbx",
    peers=(Peer(ipaddress.ip_network(PBX), 0),),
    limits=Limits(calls_per_second=1.0, burst=1, concurrent_calls=3, unacknowledged_calls=2),
)


class Negotiation:
    """Judges no SDP."""

    def __init__(self) -> None:
        self.chosen: Any = None
        self.done: list[Any] = []

    def repair(self, *given: Any) -> Any:
        self.done.append(given)
        return self.chosen

    def blank(self) -> None:
        self.done.append("blank")


class Gate:
    """Access control on a clock of its own, with what it asks others."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, access: Access | None = None) -> None:
        self.now = 1000.0
        clock = SimpleNamespace(monotonic=lambda: self.now)
        monkeypatch.setattr(access_control, "time", clock)
        monkeypatch.setattr("gateway.sip.source_policy.time", clock)
        self.calls: dict[str, int] = {}
        self.unacknowledged: dict[str, int] = {}
        self.established: set[str] = set()
        self.foreign = self.delays = False
        self.negotiation = Negotiation()
        self.instead: list[tuple[bytes, bool]] = []
        self.takes_instead: Any = lambda _message, _known_only: False
        self.rejected: list[Any] = []
        self.closed: list[int] = []
        challenges: Any = SimpleNamespace(is_foreign=lambda *_given: self.foreign)
        self.control = AccessControl(
            access or Access("allow", Limits(unacknowledged_calls=50)),
            Trunks((TRUNK,)),
            7,
            lambda party: self.calls.get(party, 0),
            lambda trunk: self.unacknowledged.get(trunk, 0),
            self.established.__contains__,
            90,
            cast(Any, self.negotiation),
            lambda received, why: self.rejected.append((received.method, why)),
            lambda _connection: (),
            challenges,
            self._receive_instead,
            lambda _headers: self.delays,
        )

    def _receive_instead(self, message: bytes, known_only: bool) -> bool:
        self.instead.append((message, known_only))
        return bool(self.takes_instead(message, known_only))

    @property
    def rules(self) -> dict[str, int]:
        return dict(self.control.refusals.by_rule)


@pytest.fixture
def gate(monkeypatch: pytest.MonkeyPatch) -> Gate:
    return Gate(monkeypatch)


def request(method: str = "INVITE", call: str = "c1", more: str = "", **facts: Any) -> Any:
    to_tag = ";tag=2" if facts.get("in_dialog") else ""
    head = (
        f"{method} sip:100@192.0.2.1 SIP/2.0\r\nVia: SIP/2.0/UDP {STRANGER};branch=z9hG4bK1\r\n"
        f"Max-Forwards: 70\r\nFrom: <sip:200@x.example>;tag=1\r\nTo: <sip:100@x.example>{to_tag}"
        f"\r\nCall-ID: {call}\r\nCSeq: 1 {method}\r\nContact: <sip:200@{STRANGER}>\r\n{more}\r\n"
    )
    plain = ReceivedMessage(
        STRANGER, 5060, "udp", "192.0.2.1", 1, method, 0, head.encode(), b"", False, call
    )
    return replace(plain, **facts)


def response(status: int, method: str = "INVITE", body: str = "", call: str = "c1") -> Any:
    message = (
        f"SIP/2.0 {status} X\r\nVia: SIP/2.0/UDP 192.0.2.1;branch=z9hG4bK1\r\n"
        f"From: <sip:100@x.example>;tag=1\r\nTo: <sip:200@x.example>;tag=2\r\nCall-ID: {call}\r\n"
        f"CSeq: 1 {method}\r\nContent-Type: application/sdp\r\n\r\n{body}"
    )
    return request(method, call, status=status, message=message.encode(), body=body.encode())


# ---- requests


def test_an_ordinary_invite_gets_in_and_its_offer_is_judged(gate: Gate) -> None:
    line: Any = object()
    gate.negotiation.chosen = line
    assert gate.control.on_message(request()) == PASS
    assert gate.negotiation.done == [("INVITE", None, "192.0.2.1")]
    assert (gate.control.chosen, gate.control.found) == (line, None)
    assert gate.control.on_request(request()) == PASS
    assert gate.control.current is not None
    gate.control.on_message(request(source=PBX))
    assert gate.control.found == Attribution(TRUNK, "peer")
    assert gate.negotiation.done[-1] == ("INVITE", TRUNK, "192.0.2.1")


def test_a_source_gets_so_many_answers_and_then_none(monkeypatch: pytest.MonkeyPatch) -> None:
    """Else others were flooded through us with what a forged address asks for."""
    gate = Gate(monkeypatch, Access("deny"))
    found = [gate.control.on_message(request(call=str(n))).code for n in range(ANSWERS_AT_ONCE + 9)]
    assert found == [403] * ANSWERS_AT_ONCE + [0] * 9
    assert gate.control.refusals.unanswered == 9
    assert gate.rules == {'access.unknown_sources = "deny"': ANSWERS_AT_ONCE + 9}
    assert gate.control.on_message(request(source="192.0.2.77")).code == 403
    gate.now += 1.0
    assert gate.control.on_message(request()).code == 403, "a second later some more"
    assert gate.control.on_message(request("ACK")) == DROP, "the one of a refusal"
    gate.control.on_message(request("INFO", "later"))
    assert gate.control.refusals.invites["3"]["code"] == 403
    assert "later" not in gate.control.refusals.invites


def test_a_banned_source_gets_nothing_but_within_its_dialogs(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    gate = Gate(monkeypatch, Access("deny", bans=BanPolicy(after=2)))
    assert [gate.control.on_message(request()).code for _ in range(3)] == [403, 403, 0]
    assert gate.control.refusals.invites["c1"]["rule"] == "access.ban_after"
    assert gate.rules["banned"] == 1
    assert gate.control.on_message(request("INFO", in_dialog=True)) == PASS
    unread = UnparsedMessage(STRANGER, 5060, "udp", 400, request().message)
    assert gate.control.on_unread(unread) == b""
    assert gate.control.on_message(request(source=PBX)) == PASS
    gate.now += BanPolicy().seconds + 1
    gate.control.tick(gate.now)
    assert gate.control.on_message(request()).code == 403


def test_requests_within_a_call_have_a_rate_of_their_own(gate: Gate) -> None:
    def ask(method: str, call: str = "c1") -> Decision:
        return gate.control.on_message(request(method, call, in_dialog=True))

    found = [ask("INFO").code for _ in range(REQUESTS_AT_ONCE + 2)]
    assert found == [PASS.code] * REQUESTS_AT_ONCE + [503] * 2
    assert dict(ask("UPDATE").headers) == {"Retry-After": "7"}
    assert ask("INFO", "c2") == PASS
    assert [ask(method) for method in ("BYE", "ACK", "CANCEL", "PRACK")] == [PASS] * 4
    gate.now += 1.5 / REQUESTS_PER_SECOND
    assert [ask("INFO").code for _ in range(2)] == [PASS.code, 503]


def test_what_pjsua_cannot_answer_is_answered_here(gate: Gate) -> None:
    inside = gate.control.on_message(request("INFO", more="Require: x\r\n", in_dialog=True))
    assert inside == Decision(420, (("Unsupported", "x"),))
    assert gate.control.on_message(request("MESSAGE", in_dialog=True)).code == 405
    assert gate.control.on_message(request("OPTIONS", more="Require: x\r\n")).code == 420
    assert gate.control.on_message(request(more="Require: x\r\n")) == PASS, "pjsip does"
    assert gate.control.on_request(request("BYE")).code == 481
    assert gate.control.on_request(request("OPTIONS")) == PASS
    assert gate.rules == {"no BYE outside of a call": 1}


def test_a_refer_waits_where_others_have_to_be_asked(gate: Gate) -> None:
    refer = request("REFER", more="Refer-To: <sip:1@x.example>\r\n", in_dialog=True)
    assert gate.control.on_message(refer) == PASS
    gate.delays = True
    assert gate.control.on_message(refer) == DROP
    assert gate.control.on_message(request("INFO", in_dialog=True)) == PASS


@pytest.mark.parametrize(("method", "code"), [("INVITE", 400), ("BYE", 400), ("ACK", 0)])
def test_a_malformed_request_is_refused_but_what_ends_a_call_is_tried_without(
    gate: Gate, method: str, code: int
) -> None:
    bad = request(method, more="Record-Route: <127.0.0.1>\r\n", in_dialog=True)
    assert gate.control.on_message(bad).code == code
    assert gate.rules == {"malformed: no URI in record-route": 1}
    assert bool(gate.instead) is (method != "INVITE")
    assert all(known_only for _message, known_only in gate.instead)
    gate.takes_instead = lambda message, _known_only: b"Record-Route" not in message
    refused = method == "INVITE"
    assert gate.control.on_message(bad).code == (code if refused else DROP.code)
    assert gate.rules == {"malformed: no URI in record-route": 1 + refused}


def test_what_is_taken_in_place_of_another_is_not_replaced_again(gate: Gate) -> None:
    bad = request("BYE", more="Record-Route: <127.0.0.1>\r\n", in_dialog=True)
    inner: list[Decision] = []

    def within(_message: bytes, _known_only: bool) -> bool:
        inner.append(gate.control.on_message(bad))
        return True

    gate.takes_instead = within
    assert gate.control.on_message(bad) == DROP
    assert [one.code for one in inner] == [400]
    assert len(gate.instead) == 1


@pytest.mark.parametrize(
    ("length", "transport", "code"),
    [
        ("9", "udp", 400),
        ("3", "udp", -1),
        ("2", "udp", -1),
        ("9", "tcp", -1),
        ("9" * 99, "udp", 400),
    ],
)
def test_a_datagram_that_is_cut_off(gate: Gate, length: str, transport: str, code: int) -> None:
    made = request("INFO", more=f"Content-Length: {length}\r\n", in_dialog=True)
    sent = replace(made, message=made.message + b"abc", transport=transport)
    assert gate.control.on_message(sent).code == code


def test_an_offer_that_cannot_be_taken_is_told_and_refused(gate: Gate) -> None:
    gate.negotiation.chosen = SdpRejection.KEYS
    assert gate.control.on_message(request()) == PASS
    found = gate.control.on_request(request())
    assert found.code == 488
    assert [name for name, _value in found.headers] == ["Reason"]
    assert gate.rejected == [("INVITE", SdpRejection.KEYS)]


# ---- limits of new calls


def begun(gate: Gate, source: str = STRANGER, **facts: Any) -> Decision:
    invite = request(source=source, **facts)
    assert gate.control.on_message(invite) == PASS
    return gate.control.on_request(invite)


def test_a_session_that_is_too_short(gate: Gate) -> None:
    timer = "Supported: timer\r\nSession-Expires: "
    assert begun(gate, more=f"{timer}89\r\n") == Decision(422, (("Min-SE", "90"),))
    assert begun(gate, more=f"{timer}90\r\n") == PASS
    assert begun(gate, more="Session-Expires: 89\r\n") == PASS, "a 422 would be of no help"


def test_limits_of_a_trunk_are_its_own(gate: Gate) -> None:
    gate.unacknowledged[""] = 99
    assert begun(gate, PBX) == PASS
    assert begun(gate, PBX).code == 503
    gate.now += 1.0
    gate.calls["trunk pbx"] = 3
    assert begun(gate, PBX).code == 486
    gate.calls["trunk pbx"], gate.unacknowledged["pbx"] = 2, 2
    assert begun(gate, PBX).code == 503
    gate.unacknowledged["pbx"] = 1
    assert begun(gate, PBX) == PASS, "what was refused has used up nothing"
    assert gate.rules == {
        "trunk pbx: calls_per_second = 1": 1,
        "trunk pbx: max_concurrent_calls = 3": 1,
        "trunk pbx: max_unacknowledged_calls = 2": 1,
    }


def test_strangers_are_counted_each_by_itself_but_without_an_ack_together(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    limits = Limits(calls_per_second=1.0, burst=1, concurrent_calls=2, unacknowledged_calls=5)
    gate = Gate(monkeypatch, Access("allow", limits))
    one, other = "2a00:1450:4001:81b::7", "2a00:1450:4001:81b::9"
    assert begun(gate, one) == PASS
    assert begun(gate, other).code == 503, "an IPv6 host is counted by its network"
    assert begun(gate, STRANGER) == PASS
    gate.now += 1.0
    gate.calls["source 2a00:1450:4001:81b::/64"] = 2
    assert begun(gate, other).code == 486
    assert begun(gate, STRANGER) == PASS
    gate.now += 1.0
    gate.unacknowledged[""] = 5
    assert begun(gate, STRANGER).code == 503


def test_who_calls_are_counted_with() -> None:
    assert party_of(None, STRANGER) == f"source {STRANGER}"
    assert party_of(None, "2a00:1450:4001:81b::7") == "source 2a00:1450:4001:81b::/64"
    assert party_of(Attribution(TRUNK, "peer"), PBX) == "trunk pbx"


# ---- responses


@pytest.mark.parametrize(
    ("status", "method", "established", "foreign", "decision"),
    [
        (200, "INVITE", True, False, PASS),
        (491, "INVITE", True, False, Decision(503)),
        (500, "UPDATE", True, False, Decision(503)),
        (491, "INVITE", False, False, PASS),
        (500, "BYE", True, False, PASS),
        (488, "INVITE", True, False, PASS),
        (401, "INVITE", True, False, PASS),
        (407, "INVITE", True, True, Decision(403)),
    ],
)
def test_responses_that_pjsip_is_told_otherwise(
    gate: Gate, status: int, method: str, established: bool, foreign: bool, decision: Decision
) -> None:
    """So that a session refresh is tried again, and no stranger gets a digest."""
    gate.established |= {"c1"} if established else set()
    gate.foreign = foreign
    assert gate.control.on_message(response(status, method)) == decision
    assert gate.negotiation.done == [("", None, "192.0.2.1")]


def test_an_answer_that_would_send_audio_to_ourselves_is_emptied(gate: Gate) -> None:
    body = "v=0\r\no=- 0 0 IN IP4 127.0.0.1\r\ns=-\r\nc=IN IP4 127.0.0.1\r\nt=0 0\r\n"
    sent = response(200, body=body + "m=audio 4000 RTP/AVP 0\r\n")
    assert gate.control.on_message(sent) == PASS, "whoever has answered needs ACK and BYE"
    assert gate.negotiation.done == ["blank"]
    assert sum(gate.rules.values()) == 1


def test_a_malformed_response_is_taken_reduced_or_dropped(gate: Gate) -> None:
    good = response(200)
    bad = replace(good, message=good.message.replace(b"CSeq: 1", b"Route: <x>\r\nCSeq: 1"))
    assert gate.control.on_message(bad) == DROP
    assert gate.rules == {"malformed response: no URI in route": 1}
    gate.takes_instead = lambda message, _known_only: b"Route" not in message
    assert gate.control.on_message(bad) == DROP
    assert sum(gate.rules.values()) == 1
    assert gate.negotiation.done == []


# ---- what cannot be read


@pytest.mark.parametrize(
    ("access", "source", "code", "answered", "rule"),
    [
        ("allow", STRANGER, 400, b"SIP/2.0 400 ", "malformed: cannot be read"),
        ("allow", STRANGER, 513, b"SIP/2.0 513 ", "message too large"),
        ("deny", STRANGER, 400, b"SIP/2.0 403 ", 'access.unknown_sources = "deny"'),
        ("drop", STRANGER, 400, b"", 'access.unknown_sources = "drop"'),
        ("drop", PBX, 400, b"SIP/2.0 400 ", "malformed: cannot be read"),
    ],
)
def test_bytes_that_are_no_message(
    monkeypatch: pytest.MonkeyPatch,
    access: str,
    source: str,
    code: int,
    answered: bytes,
    rule: str,
) -> None:
    gate = Gate(monkeypatch, Access(access))
    unread = UnparsedMessage(source, 5060, "udp", code, request().message)
    found = gate.control.on_unread(unread)
    assert found.startswith(answered)
    assert bool(found) is bool(answered)
    assert gate.rules == {rule: 1}


def test_what_can_be_read_after_a_repair_has_no_answer(gate: Gate) -> None:
    gate.takes_instead = lambda message, _known_only: b"Expires: x" not in message
    odd = request(more="Expires: x\r\n").message
    assert gate.control.on_unread(UnparsedMessage(STRANGER, 5060, "udp", 400, odd)) == b""
    assert gate.rules == {}
    found = gate.control.on_unread(UnparsedMessage(STRANGER, 5060, "udp", 513, odd))
    assert found.startswith(b"SIP/2.0 513 "), "what did not fit is not here to be repaired"


def test_bytes_use_up_no_answers_to_messages(gate: Gate) -> None:
    unread = UnparsedMessage(STRANGER, 5060, "udp", 400, request().message)
    found = [gate.control.on_unread(unread) for _ in range(ANSWERS_AT_ONCE + 1)]
    assert [bool(one) for one in found] == [True] * ANSWERS_AT_ONCE + [False]
    assert gate.control.refusals.unanswered == 1
    assert gate.control.on_request(request("BYE")).code == 481


# ---- connections


def test_one_connection_too_many(gate: Gate) -> None:
    """A stranger's is closed; of a trunk's the one that was silent for longest."""
    for number in range(PER_SOURCE + 1):
        gate.control.on_connection(number, STRANGER, gate.closed.append)
    assert gate.closed == [PER_SOURCE]
    for number in range(1000, 1000 + OF_A_PEER):
        gate.control.on_connection(number, PBX, gate.closed.append)
    gate.now += 1.0
    heard = request(source=PBX, transport="tcp", connection=1000)
    assert gate.control.on_message(heard) == PASS
    gate.control.on_connection(2000, f"::ffff:{PBX}", gate.closed.append)
    gate.control.on_connection(2001, PBX, gate.closed.append)
    assert gate.closed == [PER_SOURCE, 1001, 1002]
    assert gate.rules == {
        f"more than {PER_SOURCE} connections": 1,
        f"more than {OF_A_PEER} connections": 2,
    }


def test_a_stranger_who_says_nothing_is_closed(gate: Gate) -> None:
    for number, source in enumerate((STRANGER, "192.0.2.77", "192.0.2.78", PBX, "192.0.2.79")):
        gate.control.on_connection(number, source, gate.closed.append)
    gate.control.on_message(request(transport="tcp", connection=0))
    malformed = request(more="Route: <x>\r\n", transport="tcp", connection=4)
    assert gate.control.on_message(malformed).code == 400
    gate.calls["source 192.0.2.78"] = 1
    gate.control.close_idle(gate.now + FIRST_MESSAGE_SECONDS - 0.1, gate.closed.append)
    assert gate.closed == []
    for _ in range(2):
        gate.control.close_idle(gate.now + FIRST_MESSAGE_SECONDS, gate.closed.append)
    assert gate.closed == [1, 4]
