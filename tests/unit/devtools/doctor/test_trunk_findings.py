# SPDX-License-Identifier: GPL-2.0-or-later
"""What ``gateway doctor --trunk`` makes of SIP messages and RTP counts, with messages in writing.

Faults on the wire are in ``tests/interop/test_trunk_doctor.py``.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from gateway.audio import G711, Codec
from gateway.devtools.doctor import Finding, lines
from gateway.devtools.doctor.trunk_call import (
    TONE_MS,
    Attempt,
    Evidence,
    Sound,
    heard_in,
    tone,
    variants_of,
)
from gateway.devtools.doctor.trunk_findings import judge
from gateway.devtools.doctor.trunk_messages import Packet, Trace, redacted
from gateway.sip import Security, SipSettings, Trunk
from gateway.sip.leg import LegEnd
from gateway.sip.rtp import RtpQuality

PBX = "198.51.100.5"
SEEN = "203.0.113.7"
URI = f"sip:600@{PBX}"
TRUNK = Trunk("carrier", username="me", password="secret")
SETTINGS = SipSettings(())
GOOD = RtpQuality(rx_packets=400, rx_lost=0, rx_jitter_ms=1.0, tx_packets=400)
RETURNED = Sound(tone_ms=TONE_MS, sent_ms=TONE_MS, delay_ms=80)
SILENT = Sound(sent_ms=TONE_MS)


def sdp(address: str, events: int | None = 101, profile: str = "RTP/AVP") -> str:
    formats = "0 8" if events is None else f"0 8 {events}"
    named = "" if events is None else f"a=rtpmap:{events} telephone-event/8000\n"
    head = f"v=0\no=- 1 1 IN IP4 {address}\ns=-\nc=IN IP4 {address}\nt=0 0\n"
    return f"{head}m=audio 4000 {profile} {formats}\n{named}"


def message(
    at: float,
    start: str,
    *more: str,
    sent: bool = False,
    body: str = "",
    peer: str = f"{PBX}:5060",
    cseq: str = "1 INVITE",
) -> Packet:
    """Write a message, with the Via of a request of ours that came from SEEN."""
    via = f"Via: SIP/2.0/UDP {SEEN}:5060;rport=5060;received={SEEN};branch=z9hG4bK1"
    text = "\n".join([start, via, "Call-ID: 1", f"CSeq: {cseq}", *more, "", body])
    return Packet(at, sent, "udp", peer, text)


def invite(at: float = 0.0, address: str = SEEN, *more: str, events: int | None = 101) -> Packet:
    contact = f"Contact: <sip:me@{address}>"
    start = f"INVITE {URI} SIP/2.0"
    return message(at, start, contact, *more, sent=True, body=sdp(address, events))


def answer(at: float = 1.0, address: str = PBX, *more: str, events: int | None = 101) -> Packet:
    contact = f"Contact: <sip:{PBX}>"
    return message(at, "SIP/2.0 200 OK", contact, *more, body=sdp(address, events))


def ack(at: float = 1.05, peer: str = f"{PBX}:5060") -> Packet:
    return message(at, f"ACK sip:{PBX} SIP/2.0", sent=True, peer=peer, cseq="1 ACK")


def bye(at: float, *more: str) -> Packet:
    return message(at, "BYE sip:me@x SIP/2.0", *more, cseq="9 BYE")


def answered(*packets: Packet, **more: Any) -> Attempt:
    local = not any(one.start.startswith("BYE") for one in packets)
    given: dict[str, Any] = {
        "end": LegEnd(200, "OK", "" if local else "BYE", "", local),
        "answered": 1.0,
        "ended": 9.0,
        "codec": Codec.PCMU,
        "security": "rtp",
        "quality": GOOD,
        "sound": RETURNED,
        "keys_sent": "1590",
        "keys_heard": "1590",
    }
    return Attempt(TRUNK, URI, packets or (invite(), answer(), ack()), **given | more)


def refused(start: str, *more: str, first: Packet | None = None) -> Attempt:
    code = int(start.split()[1])
    packets = (first or invite(), message(0.5, start, *more))
    return Attempt(TRUNK, URI, packets, LegEnd(code, "", "", "", False))


def found(*attempts: Attempt, settings: SipSettings = SETTINGS, **more: Any) -> list[Finding]:
    evidence = Evidence(TRUNK, settings, attempts=attempts, **more)
    return judge(evidence, lambda key, trunk: f"{trunk}:{key}" if trunk else key)


def codes(findings: list[Finding]) -> set[str]:
    return {f"{one.verdict}:{one.code}" for one in findings if one.verdict != "ok"}


held_answer = replace(answer(), text=f"{answer().text}a=sendonly\n")
REPEATED = (invite(), answer(), ack(), answer(1.6), ack(1.61), answer(2.6), ack(2.61))
ELSEWHERE = (invite(), answer(), ack(peer="10.0.0.9:5060"), answer(1.6), answer(2.6))
NOTHING = RtpQuality(rx_packets=0, rx_lost=0, rx_jitter_ms=0, tx_packets=400)
THEY_HEAR = replace(NOTHING, tx_reports=3, tx_reported=380, tx_lost=0)
WE_HEAR = replace(GOOD, tx_reports=3, tx_reported=380, tx_lost=380)
TIMER = "Session-Expires: 1800;refresher=uac"
LATE = replace(GOOD, rx_discarded=60)

CASES = {
    "nothing wrong": (answered(), set()),
    "private SDP of ours": (
        answered(invite(0, "192.168.1.2"), answer(), ack()),
        {"bad:nat"},
    ),
    "private SDP of theirs": (
        answered(invite(), answer(1, "10.0.0.5"), ack(), sound=SILENT, quality=NOTHING),
        {"bad:sdp_address"},
    ),
    "private SDP of theirs, symmetric": (
        answered(invite(), answer(1, "10.0.0.5"), ack()),
        {"warn:sdp_address"},
    ),
    "another media server": (answered(invite(), answer(1, "198.51.100.77"), ack()), set()),
    "on hold": (
        answered(invite(), held_answer, ack(), codec=None, sound=Sound(), quality=None),
        {"bad:held"},
    ),
    "ACK lost on the way": (answered(*REPEATED), {"bad:ack_lost"}),
    "ACK sent elsewhere": (answered(*ELSEWHERE), {"bad:ack_lost"}),
    "a 200 that crossed the ACK": (answered(*REPEATED[:5]), set()),
    "BYE after 32 s": (
        answered(invite(), answer(), ack(), bye(33.2), sound=SILENT),
        {"warn:bye", "bad:audio_up"},
    ),
    "one-way down": (answered(sound=SILENT, quality=THEY_HEAR), {"bad:audio_down"}),
    "one-way up": (answered(sound=SILENT, quality=WE_HEAR), {"bad:audio_up"}),
    "RTP from elsewhere": (
        answered(
            sound=SILENT, quality=replace(NOTHING, rx_packets=1), rtp_source="203.0.113.9:41000"
        ),
        {"bad:rtp_source"},
    ),
    "RTP from elsewhere, which is heard": (answered(rtp_source="203.0.113.9:41000"), set()),
    "no audio": (answered(sound=SILENT, quality=NOTHING), {"bad:audio_none"}),
    "no echo": (
        answered(sound=SILENT, quality=replace(GOOD, tx_reports=1, tx_reported=300)),
        {"warn:no_echo"},
    ),
    "keys lost": (answered(keys_heard=""), {"bad:dtmf"}),
    "some keys lost": (answered(keys_heard="19"), {"warn:dtmf"}),
    "keys on another payload type": (
        answered(invite(), answer(events=97), ack(), keys_heard=""),
        {"bad:dtmf_payload"},
    ),
    "another payload type that works": (answered(invite(), answer(events=97), ack()), set()),
    "no telephone-event": (
        answered(invite(), answer(events=None), ack(), keys_sent="", keys_heard=""),
        {"warn:dtmf_not_offered"},
    ),
    "loss down": (answered(quality=replace(GOOD, rx_lost=10)), {"warn:loss_down"}),
    "loss up": (
        answered(quality=replace(GOOD, tx_reports=1, tx_reported=400, tx_lost=60)),
        {"bad:loss_up"},
    ),
    "jitter": (answered(quality=replace(GOOD, rx_jitter_ms=45.0)), {"warn:jitter"}),
    "late": (answered(quality=LATE), {"warn:late"}),
    "422 taken the second time": (
        answered(
            invite(),
            message(0.3, "SIP/2.0 422 Small", "Min-SE: 3600"),
            invite(0.4),
            answer(),
            ack(),
        ),
        {"warn:session_timer"},
    ),
    "422": (refused("SIP/2.0 422 Small", "Min-SE: 3600"), {"bad:session_timer"}),
    "421": (refused("SIP/2.0 421 No", "Require: timer"), {"bad:session_timer"}),
    "420": (refused("SIP/2.0 420 No", "Unsupported: timer"), {"bad:session_timer"}),
    "403": (refused("SIP/2.0 403 No"), {"bad:refused_403"}),
    "604": (refused("SIP/2.0 604 No"), {"bad:refused_604"}),
    "302": (refused("SIP/2.0 302 There"), {"bad:refused_302"}),
    "488": (refused("SIP/2.0 488 No"), {"bad:codec"}),
    "another realm": (
        replace(
            refused("SIP/2.0 401 No", 'WWW-Authenticate: Digest realm="x"'),
            trunk=replace(TRUNK, realms=("y",)),
        ),
        {"bad:realm"},
    ),
    "rings": (
        Attempt(TRUNK, URI, (invite(), message(1, "SIP/2.0 180 Ringing"))),
        {"warn:no_answer"},
    ),
    "silence": (Attempt(TRUNK, URI, (invite(), invite(0.5))), {"bad:invite_unanswered"}),
    "not sent": (Attempt(TRUNK, URI), {"bad:not_sent"}),
}


@pytest.mark.parametrize("case", CASES)
def test_what_a_call_means(case: str) -> None:
    attempt, wanted = CASES[case]
    evidence = Evidence(attempt.trunk, SETTINGS, attempts=(attempt,))
    findings = judge(evidence, lambda key, _trunk: key)
    assert codes(findings) == wanted, findings
    assert all(one.advice for one in findings if one.verdict != "ok")
    assert all(one.subject == "trunk carrier" for one in findings)


def test_whose_fault_a_lost_ack_is() -> None:
    (theirs,) = [one for one in found(answered(*ELSEWHERE)) if one.code == "ack_lost"]
    assert "10.0.0.9:5060" in theirs.fact
    assert "on the other side" in theirs.fact
    (way,) = [one for one in found(answered(*REPEATED)) if one.code == "ack_lost"]
    assert "ALG" in way.advice


def test_session_timers_that_we_would_have_to_refresh() -> None:
    call = answered(invite(), answer(1, PBX, TIMER), ack())
    off = replace(SETTINGS, session_timers="off")
    assert codes(found(call, settings=off)) == {"bad:session_timer"}
    assert codes(found(call)) == set()


def test_a_busy_machine_makes_no_packets_late() -> None:
    assert codes(found(answered(quality=LATE), stall_ms=80)) == set()


def test_a_busy_machine_may_have_made_the_jitter() -> None:
    shaky = answered(quality=replace(GOOD, rx_jitter_ms=45.0))
    for stall_ms, own in ((80, True), (5, False)):
        (jitter,) = (one for one in found(shaky, stall_ms=stall_ms) if one.code == "jitter")
        assert ("let the doctor wait for 80 ms" in jitter.advice) is own


def test_the_port_matters_where_a_call_is_refused_from_another_one() -> None:
    call = refused("SIP/2.0 403 No")
    assert "warn:port_matters" in codes(found(call, own_port=(5060, 40000)))
    assert codes(found(answered(), own_port=(5060, 40000))) == set()


def register(*answers: tuple[str, str], credentials: bool = True) -> tuple[Packet, ...]:
    start = f"REGISTER sip:{PBX} SIP/2.0"
    packets = [message(0, start, sent=True, cseq="1 REGISTER")]
    for number, (status, more) in enumerate(answers):
        packets.append(message(number + 0.1, status, more, cseq=f"{number + 1} REGISTER"))
        if number == 0 and credentials:
            given = "Authorization: Digest username=me"
            packets.append(message(0.2, start, given, sent=True, cseq="2 REGISTER"))
    return tuple(packets)


CHALLENGE = ("SIP/2.0 401 Unauthorized", 'WWW-Authenticate: Digest realm="carrier"')


@pytest.mark.parametrize(
    ("packets", "state", "wanted"),
    [
        (register(CHALLENGE, ("SIP/2.0 200 OK", "Contact: <sip:me>;expires=300")), "", set()),
        (
            register(CHALLENGE, ("SIP/2.0 200 OK", "Contact: <sip:me>;expires=20")),
            "",
            {"warn:register_expires"},
        ),
        (register(CHALLENGE, CHALLENGE), "failed", {"bad:password"}),
        (register(CHALLENGE, ("SIP/2.0 403 No", "")), "failed", {"bad:password"}),
        (register(CHALLENGE, ("SIP/2.0 404 No", "")), "failed", {"bad:user"}),
        (
            register(CHALLENGE, ("SIP/2.0 423 Brief", "Min-Expires: 600")),
            "failed",
            {"bad:register_expires"},
        ),
        (register(("SIP/2.0 503 No", ""), credentials=False), "failed", {"bad:register_refused"}),
        (register(credentials=False), "failed", {"bad:register_unanswered"}),
    ],
)
def test_what_a_registration_means(
    packets: tuple[Packet, ...], state: str, wanted: set[str]
) -> None:
    findings = found(registration=packets, registered=state or "registered")
    assert codes(findings) == wanted, findings


def test_a_nat_before_the_registrar() -> None:
    ours = message(0, f"REGISTER sip:{PBX} SIP/2.0", sent=True, cseq="1 REGISTER")
    ours = replace(ours, text=ours.text.replace(f"{SEEN}:5060", "192.168.1.2:5060", 1))
    granted = message(1, "SIP/2.0 200 OK", "Contact: <sip:me>;expires=300", cseq="1 REGISTER")
    findings = found(registration=(ours, granted), registered="registered")
    (nat,) = [one for one in findings if one.code == "nat_binding"]
    assert f"sees {SEEN}:5060 for 192.168.1.2:5060" in nat.fact


def test_what_others_write_is_not_believed() -> None:
    strange = message(1, "SIP/2.0 200 OK", "Contact: <sip:me>;expires=\u00b2", cseq="1 REGISTER")
    assert found(registration=(register()[0], strange), registered="registered")
    refusal = refused("SIP/2.0 403 \x1b[2J", "Warning: \x1b[2J", "Reason: \u202e")
    shown = lines(found(refusal))
    assert all(line.isprintable() for line in shown)


def test_srtp_and_codecs_are_told_apart_by_the_call_that_works() -> None:
    first = refused("SIP/2.0 488 No")
    second = answered(changed='srtp = "required"')
    assert codes(found(first, second)) == {"bad:srtp"}
    second = answered(changed='codecs = ["PCMU", "PCMA"]')
    assert codes(found(first, second)) == {"bad:codec"}
    tried = [text for text, _trunk in variants_of(replace(TRUNK, codecs=(Codec.PCMA,)))]
    assert tried[:2] == ['codecs = ["PCMA", "PCMU"]', 'srtp = "required"']
    required = replace(TRUNK, security=Security("required"))
    assert 'srtp = "off"' in [text for text, _trunk in variants_of(required)]
    assert not any(trunk.registers for _text, trunk in variants_of(TRUNK))


def test_secrets_are_taken_out_of_messages() -> None:
    text = (
        "INVITE sip:1@x SIP/2.0\r\n"
        'Proxy-Authorization: Digest username="me", realm="r", nonce="NONCE", '
        'response="RESPONSE"\r\n'
        'WWW-Authenticate: Digest realm="r", nonce="NONCE"\r\n'
        "X-Token: TOKEN\r\n\r\n"
        "a=crypto:1 AES_CM_128_HMAC_SHA1_80 inline:KEY|2^31\r\na=ice-pwd:PASSWORD\r\n"
    )
    kept = redacted(text, ["TOKEN"])
    for secret in ("NONCE", "RESPONSE", "KEY", "PASSWORD", "TOKEN"):
        assert secret not in kept
    assert 'username="me", realm="r"' in kept
    assert "AES_CM_128_HMAC_SHA1_80" in kept


def test_messages_are_taken_from_the_log() -> None:
    trace = Trace()
    head = "12:00:00.000 pjsua_core.c  .TX 400 bytes Request msg INVITE/cseq=1 (tdta0x1) to UDP "
    trace.line(f"{head}[2001:db8::1]:5060:\nINVITE sip:1@x SIP/2.0\nCall-ID: 7\n\n--end msg--")
    trace.line("12:00:00.001 anything else")
    (packet,) = trace.of({"7"})
    assert (packet.sent, packet.transport, packet.peer) == (True, "udp", "[2001:db8::1]:5060")


@pytest.mark.parametrize("codec", list(G711))
def test_the_tone_is_known_again(codec: Codec) -> None:
    silence = codec.silence * 1600
    track = silence + tone().frames(codec) + silence
    sound = heard_in(track, codec, began_ms=120)
    assert sound.tone_ms == TONE_MS
    assert sound.delay_ms == 80
    assert sound.other_ms == sound.before_ms == 0
    other = (8000 * np.sin(2 * np.pi * 1004 / 8000 * np.arange(8000))).astype("<i2").tobytes()
    sound = heard_in(codec.from_linear(other), codec, began_ms=400)
    assert (sound.tone_ms, sound.other_ms, sound.before_ms) == (0, 1000, 400)


def test_people_see_the_messages() -> None:
    shown = "\n".join(lines(found(answered(keys_heard=""))))
    assert "| INVITE sip:600@" in shown
    assert "-> DTMF at the other side" in shown
