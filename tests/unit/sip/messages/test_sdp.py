# SPDX-License-Identifier: GPL-2.0-or-later
"""Session descriptions: what is understood, what is mended, and which line is answered."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.audio import G711, Codec
from gateway.ending import EndReason, refusal_code
from gateway.sip import Security
from gateway.sip.messages.sdp import (
    MediaLine,
    SdpRejection,
    description_in,
    offered_codecs,
    parse,
    sdp_text,
)

INVITE = (
    "INVITE sip:100@192.0.2.1:5060;transport=udp SIP/2.0\r\n"
    "Via: SIP/2.0/UDP 192.0.2.9:5060;branch=z9hG4bK1;rport\r\n"
    "v: SIP/2.0/UDP 192.0.2.10:5060;branch=z9hG4bK2\r\n"
    'From : "Smith \\"Al\\" <x>" <sip:alice@192.0.2.9>;tag=1\r\n'
    "t: <sip:100@192.0.2.1>\r\n"
    "Call-ID: abc@192.0.2.9\r\n"
    "CSeq: 1 INVITE\r\n"
    "Subject: a long\r\n"
    "\t subject\r\n"
    "this line is no field\r\n"
    "X-Account: 7: seven\r\n"
    "X-Empty:\r\n"
    "Content-Length: 0\r\n"
    "\r\n"
)


def _offer(*lines: str) -> str:
    head = "INVITE sip:1@h SIP/2.0\r\nContent-Type: application/sdp\r\n\r\n"
    return head + "\r\n".join(("v=0", "o=- 1 1 IN IP4 h", "s=-", "t=0 0", *lines)) + "\r\n"


U, A, W, X = Codec


@pytest.mark.parametrize(
    ("lines", "codecs"),
    [
        (["m=audio 4000 RTP/AVP 0 8 101"], (U, A)),
        (["m=audio 4000 RTP/AVP 8 0"], (A, U)),
        (["m=audio 4000 RTP/AVP 8"], (A,)),
        (["m=audio 4000 RTP/AVP 9 18 8 0", "a=rtpmap:9 G722/8000"], (W, A, U)),
        (
            ["m=audio 4000 RTP/AVP 96 97", "a=rtpmap:96 pcma/8000/1", "a=rtpmap:97 PCMU/8000"],
            (A, U),
        ),
        (["m=audio 4000 RTP/AVP 96 0", "a=rtpmap:96 PCMU/8000", "a=rtpmap:0 PCMU/8000"], (U,)),
        (
            ["m=audio 4000 RTP/AVP 96 97", "a=rtpmap:96 PCMU/16000", "a=rtpmap:97 opus/48000/2"],
            (X,),
        ),
        (["m=audio 4000 RTP/AVP 96 0", "a=rtpmap:96 OPUS/48000/2"], (X, U)),
        (["m=audio 4000 RTP/AVP 96", "a=rtpmap:96 opus/48000"], ()),
        (["m=audio 4000 RTP/AVP 96 0", "a=rtpmap:96 opus/8000/2"], (U,)),
        (["m=audio 4000 RTP/AVP 96 0", "a=rtpmap:96 opus"], (U,)),
        (["m=audio 4000 RTP/AVP 0 8", "a=rtpmap:0 PCMU/16000"], (A,)),
        (["m=audio 4000 RTP/AVP 9"], (W,)),
        (["m=audio 4000 RTP/AVP 9", "a=rtpmap:9 G722"], (W,)),
        (["m=audio 4000 RTP/AVP 9 8", "a=rtpmap:9 G722/16000"], (A,)),
        (["m=audio 4000 RTP/AVP 96", "a=rtpmap:96 g722/8000/1"], (W,)),
        (["m=audio 0 RTP/AVP 0", "m=audio 4002 RTP/AVP 8"], (A,)),
        (["m=video 4000 RTP/AVP 31", "a=rtpmap:0 x/1", "m=audio 4002 RTP/AVP 0"], (U,)),
        (["m=audio 4000 RTP/AVP 0", "m=audio 4002 RTP/AVP 8"], (U,)),
        (["m=audio 4000/2 RTP/AVP 0"], (U,)),
        (["m=video 4000 RTP/AVP 31"], ()),
        (["m=audio"], ()),
        (["m="], ()),
    ],
)
def test_codecs_offered_in_the_callers_order(lines: list[str], codecs: tuple[Codec, ...]) -> None:
    assert offered_codecs(_offer(*lines)) == codecs


def test_an_offer_inside_a_multipart_body() -> None:
    part = _offer("m=audio 4000 RTP/AVP 8").partition("\r\n\r\n")[2]
    message = (
        "INVITE sip:1@h SIP/2.0\r\nContent-Type: multipart/mixed;boundary=b\r\n\r\n"
        f"--b\r\nContent-Type: application/sdp\r\n\r\n{part}\r\n--b--\r\n"
    )
    assert offered_codecs(message) == (A,)


@pytest.mark.parametrize(
    "message", [INVITE, "", "INVITE sip:1@h SIP/2.0\r\n\r\nplain text with m= in it"]
)
def test_no_offer(message: str) -> None:
    assert offered_codecs(message) is None


GOOD = """v=0\r
o=- 1 2 IN IP4 192.0.2.1\r
s=-\r
c=IN IP4 192.0.2.1\r
t=0 0\r
m=audio 4000 RTP/AVP 0 8 101\r
a=rtpmap:0 PCMU/8000\r
a=rtpmap:8 PCMA/8000\r
a=rtpmap:101 telephone-event/8000\r
a=fmtp:101 0-16\r
a=ptime:20\r
a=sendrecv\r
"""


def line_of(text: str, begin: str) -> list[str]:
    return [line for line in text.split("\r\n") if line.startswith(begin)]


def test_a_good_description_stays_as_it_came() -> None:
    assert sdp_text(parse(GOOD)) == GOOD


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("s=-\r\n", "s=\r\n"),
        ("s=-\r\n", "s= \r\n"),
        ("s=-\r\n", ""),
        ("t=0 0\r\n", ""),
        ("t=0 0\r\n", "t=0\r\n"),
        ("v=0\r\n", ""),
        ("\r\n", "\n"),
        ("\r\n", "\r"),
        ("a=ptime:20\r\n", "a=ptime:20\r\nX-Vendor: yes\r\n"),
        ("a=ptime:20", "a=ptime: 20.0"),
        ("a=ptime:20\r\n", "a=ptime:20\r\na=\r\na=:x\r\n"),
        ("a=ptime:20\r\n", "a=ptime:20\r\nb=AS:sixty-four\r\n"),
        ("c=IN IP4 192.0.2.1", "c=in ip4 192.0.2.1 "),
        ("a=rtpmap:8 PCMA/8000", "a=rtpmap:8  PCMA / 8000"),
        ("a=rtpmap:8 PCMA/8000", "A = rtpmap: 8 PCMA/8000"),
        ("a=rtpmap:8 PCMA/8000", "a=RTPMAP:8 PCMA"),
        ("m=audio 4000 RTP/AVP 0 8 101", "m=audio  4000 rtp/avp 0 8 101 101 "),
        ("a=sendrecv\r\n", "a=sendrecv\r\n\0\0"),
        ("a=sendrecv\r\n", "a=sendrecv\r\n\r\ntrailing garbage\r\n"),
        (
            "a=rtpmap:101 telephone-event/8000",
            "a=rtpmap:101 telephone-event/16000\r\na=rtpmap:101 telephone-event/8000",
        ),
        ("RTP/AVP 0 8 101", "RTP/AVP 0 8 97 101"),
        ("a=fmtp:101 0-16\r\n", "a=fmtp:101 0-16\r\na=fmtp:\r\na=fmtp:101\r\n"),
    ],
)
def test_what_is_mended(old: str, new: str) -> None:
    assert old in GOOD
    found = sdp_text(parse(GOOD.replace(old, new)))
    assert sorted(found.split("\r\n")) == sorted(GOOD.split("\r\n"))


@pytest.mark.parametrize(
    ("origin", "found"),
    [
        ("", "- 0 0 IN IP4 0.0.0.0"),
        ("PBX", "PBX 0 0 IN IP4 0.0.0.0"),
        ("- 1 2 in ip4 pbx.example", "- 1 2 IN IP4 pbx.example"),
        ("- 99999999999999999999999 -5 IN IP4 h", "- 999999999999999999 0 IN IP4 h"),
    ],
)
def test_origins(origin: str, found: str) -> None:
    text = GOOD.replace("o=- 1 2 IN IP4 192.0.2.1", f"o={origin}")
    assert line_of(sdp_text(parse(text)), "o=") == [f"o={found}"]


def test_the_library_gets_what_it_understands() -> None:
    """Formats of ours only, speech before keys; no attribute of what is not spoken here."""
    text = (
        "v=\nv=0\no=- 1 1 IN IP4 192.0.2.1\ns=-\nc=IN IP4 192.0.2.1\nt=0 0\na=group:BUNDLE 0\n"
        "m=audio 4000 RTP/AVP 101 9 111 8 13 0\na=ssrc:1\na=rtpmap:111 opus/48000/2\n"
        "a=fmtp:111 useinbandfec=1\na=rtpmap:101 telephone-event/8000\n"
    ) + "".join(f"a=candidate:{n} 1 UDP 1 192.0.2.1 5 typ host\n" for n in range(80))
    assert sdp_text(parse(text)).split("\r\n")[5:-1] == [
        "m=audio 4000 RTP/AVP 8 0 101",
        "a=rtpmap:101 telephone-event/8000",
    ]


def test_a_fixed_payload_number_means_what_it_means() -> None:
    """PCMU under PCMA's number would be heard as PCMA."""
    media = "m=audio 4000 RTP/AVP 8\na=rtpmap:8 PCMU/8000\n"
    assert parse(f"v=0\nc=IN IP4 192.0.2.1\n{media}").media[0].codecs == ()


def test_telephone_events_at_the_clock_of_the_audio() -> None:
    text = GOOD.replace("0 8 101", "0 8 96 110").replace(
        "a=rtpmap:101 telephone-event/8000",
        "a=rtpmap:96 telephone-event/48000\r\na=rtpmap:110 telephone-event/8000",
    )
    found = sdp_text(parse(text.replace("fmtp:101", "fmtp:110")))
    assert line_of(found, "m=") == ["m=audio 4000 RTP/AVP 0 8 110"]
    assert line_of(found, "a=rtpmap:96") == []


AVP, SAVP, DTLS = "RTP/AVP", "RTP/SAVP", "UDP/TLS/RTP/SAVPF"
CRYPTO = "a=crypto:1 AES_CM_128_HMAC_SHA1_80 inline:" + "A" * 40
PRINT = "a=setup:actpass\r\na=fingerprint:sha-256 " + ":".join(["AB"] * 32)


def choice(text: str, srtp: str = "off", *keying: str, six: bool | None = False) -> object:
    found = parse(text).choose(Security(srtp, keying or ("sdes",)), G711, six)
    return found.port if isinstance(found, MediaLine) else found.name


@pytest.mark.parametrize(
    ("profile", "lines", "srtp", "keying", "found"),
    [
        (AVP, "", "off", "sdes", 4000),
        ("RTP/AVPF", "", "off", "sdes", 4000),
        (AVP, "", "optional", "dtls", 4000),
        (AVP, CRYPTO, "optional", "sdes", 4000),
        (AVP, CRYPTO, "required", "sdes", "SRTP_REQUIRED"),
        (SAVP, CRYPTO, "off", "sdes", "SRTP_OFF"),
        (SAVP, CRYPTO, "optional", "sdes", 4000),
        (SAVP, CRYPTO.lower().replace("a=", "a=", 1), "required", "sdes", 4000),
        (SAVP, CRYPTO, "optional", "dtls", "KEYING"),
        (SAVP, "", "optional", "sdes", "KEYS"),
        (SAVP, CRYPTO[:-1], "optional", "sdes", "KEYS"),
        (SAVP, CRYPTO.replace("AES", "XES"), "optional", "sdes", "KEYS"),
        (SAVP, CRYPTO.replace("1 ", "x "), "optional", "sdes", "KEYS"),
        (SAVP, CRYPTO + "|2^20 -X=1 WSH=64", "optional", "sdes", 4000),
        (SAVP, CRYPTO + "|2^20 UNENCRYPTED_SRTCP", "optional", "sdes", 4000),
        (SAVP, CRYPTO + "|2^20|1:4", "optional", "sdes", "KEYS"),
        (SAVP, CRYPTO + "|1:1", "optional", "sdes", "KEYS"),
        (SAVP, CRYPTO + " UNENCRYPTED_SRTP", "optional", "sdes", "KEYS"),
        (SAVP, CRYPTO + " WSH=64 unauthenticated_srtp", "optional", "sdes", "KEYS"),
        (SAVP, CRYPTO + " KDR=1", "optional", "sdes", "KEYS"),
        (SAVP, f"{CRYPTO}|2^20|1:4\r\n{CRYPTO}".replace(":1", ":2", 1), "required", "sdes", 4000),
        (SAVP, PRINT, "optional", "dtls", 4000),
        (DTLS, PRINT, "off", "sdes", "SRTP_OFF"),
        (DTLS, PRINT, "optional", "sdes", "KEYING"),
        (DTLS, PRINT, "optional", "dtls", 4000),
        (DTLS, "", "optional", "dtls", "KEYS"),
        (DTLS, PRINT[:-3], "optional", "dtls", "KEYS"),
        (DTLS, PRINT.replace("sha-256", "md5"), "optional", "dtls", "KEYS"),
        (DTLS, PRINT.partition("\r\n")[2], "optional", "dtls", "KEYS"),
        (DTLS, PRINT.replace("actpass", "holdconn"), "optional", "dtls", "KEYS"),
        (DTLS, PRINT.replace("actpass", "ActPass"), "optional", "dtls", 4000),
        ("RTP/XYZ", "", "optional", "sdes", "PROFILE"),
        ("UDPTL", "", "off", "sdes", "PROFILE"),
    ],
)
def test_profiles(profile: str, lines: str, srtp: str, keying: str, found: object) -> None:
    text = GOOD.replace(AVP, profile)
    assert choice(text + (f"{lines}\r\n" if lines else ""), srtp, keying) == found


AUDIO = "m=audio 4000 RTP/AVP 0\r\n"


@pytest.mark.parametrize(
    ("media", "found"),
    [
        ("m=video 4002 RTP/AVP 31\r\n" + AUDIO, 4000),
        ("m=audio 0 RTP/AVP 0\r\n" + AUDIO, 4000),
        ("m=audio 4002 RTP/AVP 9\r\n" + AUDIO, 4000),
        ("m=audio 4002 RTP/SAVP 0\r\n" + AUDIO, 4000),
        (AUDIO + "m=audio 4004 RTP/AVP 0\r\n", 4000),
        ("m=audio 4002 RTP/SAVP 9\r\nm=audio 4004 RTP/SAVP 0\r\n", "SRTP_OFF"),
        ("m=audio 0 RTP/AVP 0\r\n", "NO_AUDIO"),
        ("m=image 4002 udptl t38\r\n", "NO_AUDIO"),
        ("m=audio 4000 RTP/AVP 9\r\n", "CODEC"),
        ("c=IN IP6 2001:db8::1\r\n" + AUDIO, "ADDRESS_FAMILY"),
        (AUDIO + "c=IN IP6 2001:db8::1\r\nm=audio 4006 RTP/AVP 8\r\n", 4006),
        (AUDIO + "c=IN IP4 0.0.0.0\r\n", 4000),
        (AUDIO * 9, "TOO_MANY_STREAMS"),
        ("", "MALFORMED"),
    ],
)
def test_lines(media: str, found: object) -> None:
    assert choice("v=0\r\nc=IN IP4 192.0.2.1\r\n" + media) == found


def test_only_the_chosen_audio_line_stays() -> None:
    text = "v=0\r\nc=IN IP4 192.0.2.1\r\nm=audio 4002 RTP/SAVP 0\r\nm=video 5000 RTP/AVP 31\r\n"
    description = parse(text + AUDIO + "m=audio 4004 RTP/AVP 8\r\n")
    chosen = description.choose(Security())
    assert isinstance(chosen, MediaLine)
    ports = [line.split(" ")[1] for line in line_of(sdp_text(description, chosen), "m=")]
    assert ports == ["0", "5000", "4000", "0"]


@pytest.mark.parametrize("rejection", SdpRejection)
def test_every_rejection_has_a_code(rejection: SdpRejection) -> None:
    assert refusal_code(rejection.why) == 488
    assert rejection.why is not EndReason.REFUSED
    assert rejection.text


@pytest.mark.parametrize(
    "line",
    [
        "c=IN IP4 " + "a" * 300,
        "c=IN IP4 pbx.example.net",
        "c=IN IP6 192.0.2.1",
        "c=",
        "a=rtcp:9 IN IP4 host.example",
        "m=",
    ],
)
def test_what_must_not_reach_the_library(line: str) -> None:
    assert parse(GOOD + line + "\r\n").flaw is SdpRejection.MALFORMED


@pytest.mark.parametrize("kind", ["audio", "video"])
@pytest.mark.parametrize(
    ("port", "more"),
    [(65536, ""), (-1, ""), (5000, "c=IN IP4 h.example\r\n"), (5000, "a=rtcp:9 IN IP4 h\r\n")],
)
def test_another_line_that_cannot_be_used(kind: str, port: int, more: str) -> None:
    """It is declined in its place; the audio beside it is taken, alone it is no audio."""
    line = f"m={kind} {port} RTP/AVP 0\r\n{more}"
    description = parse(GOOD + line)
    assert isinstance(description.choose(Security()), MediaLine)
    text = sdp_text(description, None)
    assert f"m={kind} 0 RTP/AVP 0\r\n" in text
    assert "IN IP4 h" not in text
    alone = parse(
        "v=0\r\no=- 1 1 IN IP4 192.0.2.1\r\ns=-\r\nc=IN IP4 192.0.2.1\r\nt=0 0\r\n" + line
    )
    assert alone.choose(Security()) is (
        SdpRejection.MALFORMED if kind == "audio" else SdpRejection.NO_AUDIO
    )


_TEXT = st.lists(
    st.sampled_from([*'abm=:;<>@"\\ \t\r\n09%/[]', "audio ", "a=rtpmap:", "%2", "\r\n\r\n"])
).map("".join)


@given(_TEXT)
def test_nothing_that_comes_raises(text: str) -> None:
    for body in (text, GOOD + text, "v=0\r\nm=audio 1 x " + text):
        description = parse(body)
        chosen = description.choose(Security("optional", ("sdes", "dtls")))
        again = sdp_text(description, chosen if isinstance(chosen, MediaLine) else None)
        assert sdp_text(parse(again)) == again
        description_in("INVITE sip:1@h SIP/2.0\r\n\r\n" + body)
