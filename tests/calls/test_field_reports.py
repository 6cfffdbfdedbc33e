# SPDX-License-Identifier: GPL-2.0-or-later
"""Inputs after reports in public trackers of SIP servers, PBXs, gateways and telephones.

Each row is one call: what is odd about it, where somebody met it (or the RFC that has it so), and
the lines or packets, made anew. Unless it says otherwise the caller hears the greeting, a key of
the caller's is heard, and the call ends with its BYE.
"""

from __future__ import annotations

import asyncio
import random
import re
import struct
from collections.abc import Awaitable, Callable, Iterable
from dataclasses import dataclass
from typing import Any

import pytest

from tests.support.dialog import DialogCall, Sdp
from tests.support.harness import GatewayStack
from tests.support.listening import is_silence, noise
from tests.support.rtp_end import FRAME, Packet, RtpEnd

WORLD = {
    "listen": ("udp:127.0.0.1:0", "tcp:127.0.0.1:0"),
    "more": """
[media]
srtp = "optional"
packet_wait_ms = 500
""",
}
AT_ONCE = 8
"""Calls of one test."""
WITHIN_S = 30.0

OFFER = """v=0
o=- 1 1 IN IP4 127.0.0.1
s=-
c=IN IP4 127.0.0.1
t=0 0
m=audio {port} RTP/AVP 0 8 101
a=rtpmap:0 PCMU/8000
a=rtpmap:8 PCMA/8000
a=rtpmap:101 telephone-event/8000
a=fmtp:101 0-16
a=ptime:20
a=sendrecv
"""
M = "m=audio {port} RTP/AVP 0 8 101\n"
C = "c=IN IP4 127.0.0.1\n"
END = "a=sendrecv\n"
CRYPTO = (
    "a=crypto:1 AES_CM_128_HMAC_SHA1_80 inline:WVNfX19zZW1jdGwgKCkgewkyMjA7fQp9CnVubGVz{more}\n"
)
CANDIDATES = "".join(
    f"a=candidate:{n} 1 UDP {2130706431 - n} 192.0.2.{n} {20000 + n} typ host\n" for n in range(80)
)
Change = tuple[str, str]


@dataclass(frozen=True)
class Report:
    """An INVITE that is the usual one but for what its row says."""

    source: str
    what: str
    sdp: tuple[Change, ...] = ()
    """What of ``OFFER`` is replaced by what."""
    head: tuple[Change, ...] = ()
    """Header fields whose lines are replaced; an empty name adds lines."""
    code: int = 200
    reason: str = ""
    """Of the ending, for a call that is refused by more than its syntax."""
    answer: str = ""
    """What matches a line of the answer."""
    hears: bool = True
    """Whether the caller wants to hear anything, and sends keys."""
    body: str = "{sdp}"


def line(old: str, *new: str) -> Change:
    """Replaces one line by some."""
    return old, "".join(one if one.endswith("\n") else f"{one}\n" for one in new)


def behind(*lines: str) -> Change:
    """More lines behind the description."""
    return line(END, END, *lines)


def before_audio(*lines: str) -> Change:
    """More lines before the audio's."""
    return line(M, *lines, M)


def attributes(*lines: str) -> Change:
    """More attributes of the audio."""
    return line("a=ptime:20\n", *lines, "a=ptime:20")


def keys_at(number: int) -> tuple[Change, ...]:
    """Keys on another payload number."""
    return (
        ("0 8 101", f"0 8 {number}"),
        (":101 tel", f":{number} tel"),
        (":101 0", f":{number} 0"),
    )


def contact(value: str) -> tuple[Change, ...]:
    return (("Contact", f"Contact: {value}"),)


def sender(value: str) -> tuple[Change, ...]:
    return (("From", f"From: {value};tag={{tag}}"),)


def more(*lines: str) -> tuple[Change, ...]:
    """More header fields."""
    return (("", "\r\n".join(lines)),)


OFFERS: dict[str, tuple[Report, ...]] = {
    "lines of the session": (
        Report("rtpengine #1958", "v= twice, empty at first", (line("v=0\n", "v=", "v=0"),)),
        Report("opensips #51", "i= looks like o=",
               (line("s=-\n", "s=-", "i=(o=IN IP4 10.0.0.1)"),)),
        Report("sipe #76", "an empty line", (line("t=0 0\n", "b=CT:99980", "t=0 0", "\n"),)),
        Report("RFC 4566", "a name of blanks, u=, e=, p=",
               (line("s=-\n", "s= ", "u=http://example.net", "e=a@example.net", "p=+49 30 1"),)),
        Report("RFC 4566", "two blanks in o=", (("o=- 1 1", "o=-  1  1"),)),
        Report("RFC 4566 5.10", "repeat times and time zones",
               (line("t=0 0\n", "t=0 0", "r=604800 3600 0 90000", "z=2882844526 -1h 0 0"),)),
        Report("RFC 4566 5.9", "two times", (line("t=0 0\n", "t=0 0", "t=1 2"),)),
        Report("RFC 4566 5.12", "a key in k=", (line("t=0 0\n", "t=0 0", "k=clear:none"),)),
        Report("RFC 4566 5.2", "a host name in o=",
               (("1 1 IN IP4 127.0.0.1", "1 1 IN IP4 pbx.example.invalid"),)),
        Report("RFC 4566", "a session id beyond 64 bits", (("o=- 1", f"o=- {'9' * 23}"),)),
        Report("captagent #4", "c= behind m= only", (line(C), line(M, M, C))),
        Report("baresip #769", "c= twice", (line(C, C, C),)),
        Report("diago #125", "the last line has no end", ((END, "a=sendonly"),),
               answer="a=recvonly", hears=False),
        Report("linphone-desktop #7", "LF only", body="{lf}"),
        Report("freeswitch #2383", "a direction for the session only",
               (line("t=0 0\n", "t=0 0", "a=recvonly"), line(END)), hears=False),
        Report("RFC 4566 5", "o= behind s=, of a user with blanks, no t=",
               (line("o=- 1 1 IN IP4 127.0.0.1\n"),
                line("s=-\n", "s=-", "o=John Doe -1 -1 IN IP4 127.0.0.1"), line("t=0 0\n"))),
        Report("RFC 4566 9", "keywords in capitals and not, blanks behind",
               (("m=audio", "m=AUDIO"), ("RTP/AVP 0 8 101", "rtp/avp  0 8 101 "),
                ("c=IN IP4 127.0.0.1\n", "c=in ip4 127.0.0.1/127\n"),
                ("a=ptime:20", "a=ptime:20 "))),
        Report("Telephone #569", "audio at an IPv6 address", (("IP4 127.0.0.1\nt", "IP6 ::1\nt"),),
               code=488, reason="address_family"),
    ),
    "other media": (
        Report("pjproject #1233", "a disabled line without formats before the audio",
               (before_audio("m=audio 0 RTP/AVP"),)),
        Report("pjproject #964", "disabled video of an unnamed payload before",
               (before_audio("m=video 0 RTP/AVP 100"),)),
        Report("pjproject #1088", "the same behind", (behind("m=video 0 RTP/AVP 100"),)),
        Report("pjproject #1625", "disabled video without c=",
               (line(C), line(M, "m=video 0 RTP/AVP 31", M, C))),
        Report("pjproject #448", "video, silenceSupp", (attributes("a=silenceSupp:off - - - -"),
               behind("m=video {other} RTP/AVP 31", "a=rtpmap:31 H261/90000"))),
        Report("janus-gateway #614", "MSRP only", (line(M, "m=message 2855 TCP/TLS/MSRP *"),),
               code=488, reason="no_audio"),
        Report("sipp #230", "two disabled lines before, PCMA/8000/1",
               (line(M, "m=audio 0 RTP/AVP 8", C, "m=video 0 RTP/AVP 34", C,
                     "m=audio {port} RTP/AVP 8 101"), line("a=rtpmap:0 PCMU/8000\n"),
                ("PCMA/8000", "PCMA/8000/1"))),
        Report("freeswitch #1297", "fax besides, a=direction",
               (behind("a=direction:both", "m=image {other} udptl t38", C, "a=T38FaxVersion:0"),)),
        Report("mrcp_server #32", "MRCP besides, codecs in lower case", (("PCMU", "pcmu"),
               behind("a=mid:1", "m=application 9 TCP/MRCPv2", "a=setup:active", "a=cmid:1"))),
        Report("drachtio-server #182", "BFCP, slides and a closed line", (
               behind("m=application 0 RTP/AVP 100", "a=inactive",
                      "m=application {other} UDP/BFCP *", "a=floorctrl:c-only",
                      "m=video {other} RTP/AVP 110", "a=rtpmap:110 H264/90000"),)),
        Report("rtpengine #1201", "an image line with an RTP profile",
               (behind("m=image {other} RTP/AVP t38", "a=rtcp:{other}"),)),
        Report("sipe #76", "application sharing over TCP",
               (behind("m=applicationsharing {other} TCP/RTP/AVP 127",
                       "a=candidate:1 1 TCP-ACT 2020212991 192.0.2.1 50006 typ host "),)),
        Report("SIP.js #336", "imageattr of no grammar",
               (behind("m=video {other} RTP/AVP 31", "a=imageattr:31 send * recv [x=[0-1920]]"),)),
        Report("linphone-desktop #7", "bandwidth behind attributes",
               (behind("m=video 0 RTP/AVP 102", "a=rtpmap:102 H264/90000", "b=AS:1024",
                       "a=rtcp-fb:102 ccm fir"),)),
        Report("rtpengine #638", "rtpmap without a codec, disabled video",
               (behind("m=video 0 RTP/AVP 96", "a=rtpmap:96"),)),
    ),
    "profiles": (
        Report("pjproject #433", "SAVP and AVP at one port",
               (before_audio("m=audio {port} RTP/SAVP 0 101", CRYPTO),), hears=False),
        Report("linphone-sdk #334", "AVP, then SAVPF",
               (behind("m=audio {other} RTP/SAVPF 0", CRYPTO),), answer="m=audio 0 RTP/SAVPF"),
        Report("rtpengine #966", "a key with lifetime and MKI",
               (("AVP", "SAVP"), attributes(CRYPTO.replace("{more}", "|2^31|1:1"))),
               code=488, reason="srtp_mismatch"),
        Report("rtpengine #966", "a key with a lifetime",
               (("AVP", "SAVP"), attributes(CRYPTO.replace("{more}", "|2^31"))), hears=False),
        Report("pjsip-android #136", "a fingerprint, where keys come by SDES",
               (("AVP", "SAVPF"), attributes("a=setup:actpass",
                "a=fingerprint:SHA-256 " + ":".join(["ED"] * 32))),
               code=488, reason="srtp_mismatch"),
        Report("rtpengine #1494", "ice-lite and rtcp-mux",
               (attributes("a=ice-lite", "a=ice-ufrag:abcd", "a=ice-pwd:abcdefghijklmnopqrstuvwx",
                           "a=rtcp-mux", "a=rtcp:{port}"),)),
    ),
    "attributes": (
        Report("pjproject #5123", "ssrc without an attribute, rtpmap before m=",
               (line(M, "a=rtpmap:8 PCMA/8000", M, "a=ssrc:900323067"),)),
        Report("pjproject #926", "a name with + and dots", (attributes("a=+g.poc.talkburst"),)),
        Report("pjproject #2092", "a zero byte in a name", (("a=fmtp:", "a=fmtp\0:"),)),
        Report("janus-gateway #1662", "two kinds of bandwidth",
               (line(M, M, "b=RR:3000", "b=RS:1000"),)),
        Report("rtpengine #686", "rtpmap without a codec",
               (("0 8 101", "0 8 18 101"), attributes("a=rtpmap:18 "))),
        Report("rtcninja.js #35", "fmtp without parameters",
               (("0 8 101", "111 0 8 101"), attributes("a=rtpmap:111 opus/48000/2", "a=fmtp:111"))),
        Report("FreePBX #294", "maxptime 150", (attributes("a=maxptime:150"),)),
        Report("Browser-Phone #429", "80 candidates before the rtpmaps", (line(M, M, CANDIDATES),)),
        Report("Browser-Phone #429", "80 candidates before the keys' rtpmap",
               (("a=rtpmap:101", CANDIDATES + "a=rtpmap:101"),)),
        Report("pjproject #2967", "preconditions, sendrecv twice",
               (line("t=0 0\n", "t=0 0", END), attributes("a=curr:qos local none",
                "a=des:qos mandatory local sendrecv"))),
        Report("RFC 3605", "RTCP at a port of its own",
               (attributes("a=rtcp:40001 IN IP4 127.0.0.1"),)),
        Report("RFC 4567", "MIKEY in both places",
               (line("t=0 0\n", "t=0 0", "a=key-mgmt:mikey AQAFgM0A"),
                attributes("a=key-mgmt:mikey AQAFgM0A"))),
        Report("RFC 6189", "a hash of ZRTP", (attributes("a=zrtp-hash:1.10 fe30efd02423cb05"),)),
        Report("RFC 4574, 4796, 5506", "label, content, rtcp-rsize, silenceSupp",
               (attributes("a=label:1", "a=content:speech", "a=rtcp-rsize",
                           "a=silenceSupp:off - - - -"),)),
        Report("RFC 5939", "capabilities and configurations",
               (attributes("a=tcap:1 RTP/SAVP RTP/AVP", "a=acap:1 crypto:1 x inline:y",
                           "a=pcfg:1 t=1 a=1"),)),
        Report("rtpengine #1266", "msid, mid, ssrc, BUNDLE",
               (line("t=0 0\n", "t=0 0", "a=msid-semantic:WMS *", "a=group:BUNDLE 0"),
                attributes("a=msid:{92177f93} {71c188ed}", "a=ssrc:1101184494 cname:{5a8f}",
                           "a=mid:0"))),
    ),
    "payload numbers": (
        Report("pjproject #2093", "a format beyond 32 bits", (("0 8", "0 4294967296 8"),)),
        Report("baresip #3258", "keys on 10", keys_at(10), answer="a=rtpmap:10 telephone-event"),
        Report("baresip #72", "keys on 102", keys_at(102), answer="a=rtpmap:102 telephone-event"),
        Report("baresip #718", "keys before the codecs", (("0 8 101", "101 8 0"),),
               answer=r"m=audio \d+ RTP/AVP [08] 101"),
        Report("rtpengine #1530", "G.722 first",
               (("0 8 101", "9 0 8 101"), attributes("a=rtpmap:9 G722/8000/1"))),
        Report("freeswitch #2812", "keys at 16 and at 8 kHz",
               (("0 8 101", "102 0 8 104 105 101 13"),
                line(M.replace("0 8 101", "102 0 8 104 105 101 13"),
                     M.replace("0 8 101", "102 0 8 104 105 101 13"), "a=rtpmap:102 AMR-WB/16000",
                     "a=rtpmap:104 telephone-event/16000", "a=fmtp:104 0-16",
                     "a=rtpmap:105 CN/16000"))),
        Report("rtpengine #1053", "comfort noise of three clocks",
               (("0 8 101", "0 13 118 119 101"),
                attributes("a=rtpmap:13 CN/8000", "a=rtpmap:118 CN/16000",
                           "a=rtpmap:119 CN/24000"))),
        Report("RFC 4733 2.4.1", "more events than keys, in capitals, twice",
               (("0-16", "0-15,66,70"), ("telephone-event", "TELEPHONE-EVENT"),
                ("0 8 101", "0 8 101 100"), attributes("a=rtpmap:100 telephone-event/8000"))),
        Report("liblinphone #83", "ptime between rtpmaps",
               (("a=rtpmap:8 PCMA/8000", "a=ptime:20"),)),
        Report("pjproject #1411", "a payload without a name", (("0 8 101", "0 8 101 100"),)),
    ),
}  # fmt: skip

HEADERS: dict[str, tuple[Report, ...]] = {
    "addresses": (
        Report("SIP.js #560", "# in Contact's user", head=contact("<sip:PBX#1000#90544@{me}>")),
        Report("freeswitch #2824", "; in Contact's user",
               head=contact("<sip:+358-555-1234567;postd=pp22@{me};user=phone>")),
        Report("kamailio #3682", "a parameter with ! and dots",
               head=contact('<sip:8595@{me}>;+u.sip!devicename.ccm.cisco.com="SEP5486BC7F2BBC"')),
        Report("open5gs #1762", "a feature tag without quotes",
               head=contact("<sip:{me}>;+g.3gpp.icsi-ref=urn%3Aurn-7%3A3gpp-service.ims.icsi.mmtel")),
        Report("sip-js #3", "an empty name",
               head=(("To", 'To: "" <sip:greeted@{gw}>;epid=a22edc'),)),
        Report("pyVoIP #154", "no blank before <", head=sender('"caller"<sip:100@{me}>')),
        Report("janus-gateway #3164", "no user in From", head=sender("<sip:{me}>")),
        Report("ersip #26", "a comma in a bare name", head=sender("Bond, James <sip:bond@{me}>")),
        Report("Restcomm-Connect #286", "tel URIs", head=(*sender("<tel:+4930123456>"),
               *more('P-Asserted-Identity: "A B" <tel:+4930123456>, <sip:+4930123456@{me}>'))),
        Report("doubango #333", "Latin-1 in PAI",
               head=more('P-Asserted-Identity: "\xe4\xb8" <sip:1@{me}>')),
        Report("doubango #333", "UTF-8 in a bare name", head=sender("\xe4\xb8\xad <sip:1@{me}>")),
        Report("RFC 3261 19.1.2", "escapes in users",
               head=(*sender("<sip:a%40b%3Bc@{me}>"), *contact("<sip:a%23b%2B@{me}>"))),
        Report("RFC 3966 5.1.5", "a tel URI with its context",
               head=sender("<tel:7042;phone-context=example.com>")),
        Report("RFC 4967", "a dial string", head=sender("<sip:9,,1234%23@{me};user=dialstring>")),
        Report("SIP.js #100", "a quoted name and no <>", head=sender('"A" sip:a@e164-x'), code=400),
        Report("pjproject #747", "no Contact", head=(("Contact", ""),), code=400),
        Report("baresip-studio #654", "Record-Route of UDP and TLS",
               head=more("Record-Route: <sip:{me};r2=on;lr;ftag=Dc>",
                         "Record-Route: <sip:192.0.2.9;transport=tls;r2=on;lr>",
                         "Record-Route: <sip:192.0.2.8:6050;lr;tnx=ac1.c922>")),
        Report("livekit/sip #730", "Contact by TLS behind a proxy by UDP",
               head=(*more("Record-Route: <sip:{me};lr>"),
                     *contact("<sip:192.0.2.4:5070;transport=tls>"))),
        Report("opensips #1290", "a comma in a quoted name",
               head=sender('"Smith, \\"Bob\\" John" <sip:100@{me};cpc=ordinary>;epid=0')),
        Report("ringcentral-web-phone #135", "# in From's user", head=sender("<sip:#8972@{me}>")),
        Report("asterisk-i #97", "a Contact without <> whose parameters have them", head=contact(
               'sip:t@{me};+sip.instance="<urn:gsma:imei:A-B-0>";+g.3gpp.icsi-ref="urn%3Aa";audio')),
        Report("linphone-android #1366", "a token for pushes in Contact", head=contact(
               '"T" <sip:t@{me};pn-tok=fmoXY:APA91bHy9_i-u;pn-silent=1>;q=1.0;expires=3396')),
        Report("imsdroid #17", "a Contact over lines, a comma in a parameter",
               head=contact('\r\n <sip:t@{me}>;expires=600\r\n ;language="en,fr";+g.oma.sip-im')),
        Report("sipgo #304", "two Contacts in one field",
               head=contact("<sip:t@{me}>;q=1, <sip:u@{me}>;q=0.5")),
        Report("pjproject #2724", "From with a line end in it", head=sender("<sip:100@{me}\n>"),
               code=400),
        Report("kamailio #841", "diversions with parameters of no value", head=more(
               'Diversion: "Foo Bar"<sip:+98@{me};user=phone>;privacy=off;counter=1;answered'
               ';reason=deflection,"_somewhere"<sip:+99@{me}>;counter=1;answered')),
        Report("kamailio #2837", "PAI over lines",
               head=more("P-Asserted-Identity: <sip:+700@test.example>,\r\n\t<tel:+792>")),
        Report("drachtio-server #486", "Contact at another host, by TLS",
               head=contact("<sip:a@sip-1.example.com:5061;transport=tls>")),
    ),
    "other fields": (
        Report("sofia-sip #304", "a Via of 0.0.0.0",
               head=(("Via", "Via: SIP/2.0/UDP {me};branch={branch};rport\r\n"
                      "Via: SIP/2.0/UDP 0.0.0.0:64135;received=192.0.2.6;branch=z9hG4bK1"),)),
        Report("heplify-server #32", "two Vias in one field",
               head=(("Via", "Via: SIP/2.0/UDP {me};branch={branch};rport;Role=3;TRC=ff-ff,"
                      "SIP/2.0/UDP 192.0.2.5;branch=z9hG4bK2"),)),
        Report("pjproject #188", "short names",
               head=(("Via", "v: SIP/2.0/UDP {me};branch={branch}"),
               ("From", "f: <sip:t@{me}>;tag={tag}"), ("To", "t: <sip:greeted@{gw}>"),
               ("Call-ID", "i: {id}"), ("Contact", "m: <sip:t@{me}>"),
               ("Content-Type", "c: application/sdp"), ("Content-Length", "l: {len}"))),
        Report("doubango #27", "fields over lines",
               head=more("X-A: a,\r\n b\r\n\tc", 'Authorization: Digest realm="ims",\r\n '
                         'nonce="2dKT",qop="auth",username="a",uri="sip:a",response="0"')),
        Report("drachtio-server #105", "Alert-Info of words", head=more("Alert-Info: Ring Answer")),
        Report("jambonz/sbc-inbound #226", "Authorization of a name only",
               head=more('Authorization: Digest username="carrier"')),
        Report("mrcp_server #32", "; and = within quotes",
               head=more('Call-Info: <sip:{me}>;method="NOTIFY;Event=key;Duration=2000"')),
        Report("pjproject #2967", "each option in a Supported of its own",
               head=more("Supported: timer", "Supported: 100rel", "Supported: precondition",
                         "Session-Expires: 1800", "Min-Se: 900", "P-Early-Media: supported")),
        Report("pjproject #747", "a date of another zone, empty fields, no Max-Forwards",
               head=(*more("Date: Fri, 01 Jan 2010 16:00:00 EST", "Subject:"),
                     ("Max-Forwards", ""))),
        Report("RFC 8224", "an Identity of 2 kB",
               head=more("Identity: " + "eyJhbGciOiJF" * 170 + ";info=<https://a.example/p>;ppt=shaken")),
        Report("RFC 3841", "caller preferences",
               head=more('Accept-Contact: *;audio;require', 'Reject-Contact: *;video',
                         "Request-Disposition: no-fork, queue")),
        Report("RFC 7315, 3325, 7433", "fields of an IMS core",
               head=more("P-Charging-Vector: icid-value=1234bc98;icid-generated-at=192.0.2.6",
                         'P-Access-Network-Info: 3GPP-UTRAN-TDD;utran-cell-id-3gpp=23456789ABCDE',
                         "P-Visited-Network-ID: other.example", "Privacy: id;critical",
                         "User-to-User: 56a390f3d2b7310023a2;encoding=hex;purpose=isdn-uui")),
        Report("RFC 4412, 5373, 3326", "priority, answer mode, a reason",
               head=more("Resource-Priority: ets.0, wps.3", "Answer-Mode: Auto",
                         'Reason: Q.850;cause=16;text="x", SIP;cause=302')),
        Report("RFC 3261 8.2", "optional numbers that are none",
               head=more("Expires: never", "Min-SE: abc", "x: ;refresher=uas", "Retry-After:")),
        Report("RFC 3261 8.2", "lines that are no field",
               head=more("X-Broken", ": x", "Min-SE: a\r\n b")),
        Report("livekit/sip #251", "quoted parameters, and one with a comma",
               head=more('P-Charging-Vector: icid-value="a;b=c";orig-ioi=x;term-ioi=y,z')),
        Report("RFC 3261 25.1", "blanks in Via and before colons",
               head=(("Via", "Via  : SIP / 2.0 / UDP {me} ; branch={branch} ; rport (a comment)"),
                     ("Max-Forwards", "Max-Forwards :   70  "))),
        Report("RFC 4244", "a history with reasons in its URIs", head=more(
               "History-Info: <sip:+49@x?Reason=SIP%3Bcause%3D302&Privacy=history>;index=1,"
               "<sip:b@y;cause=302>;index=1.1")),
        Report("RFC 3261 20.22", "no hop left", head=(("Max-Forwards", "Max-Forwards: 0"),)),
        Report("RFC 3261 8.2.2.3", "an extension that is required and unknown", code=420,
               head=more("Require: nothing-such")),
        Report("RFC 3261 21.4.13", "a coding that nobody reads", code=415,
               head=more("Content-Encoding: gzip")),
        Report("RFC 3261 20.12", "no coding", head=more("e: identity")),
        Report("RFC 3261 21.4.7", "no description is accepted", code=406,
               head=more("Accept: text/plain")),
        Report("RFC 3261 20.1", "nothing is accepted", code=406, head=more("Accept:")),
        Report("RFC 3261 20.1", "anything is accepted", head=more("Accept: text/html, */*;q=0.1")),
        Report("RFC 3261 20.1", "two fields of what is accepted",
               head=more("Accept: application/isup", "Accept: Application/SDP;level=1")),
        Report("SIP.js #666", "Replaces of no call, escaped", code=481,
               head=more("Replaces: 12345%40192.0.2.3;to-tag=12345;from-tag=5FFE-3994")),
    ),
    "bodies": (
        Report("freeswitch #1816", "ISUP behind the SDP",
               head=(("Content-Type", "Content-Type: multipart/mixed;boundary=sonus-delim"),),
               body="--sonus-delim\r\nContent-Disposition: session; handling=required\r\n"
               "Content-Type: application/sdp\r\n\r\n{sdp}\r\n--sonus-delim\r\n"
               "Content-Disposition: signal; handling=optional\r\n"
               "Content-Type: application/isup; version=itu-t92+\r\n\r\n\t-\x01\r\n"
               "--sonus-delim--\r\n"),
        Report("drachtio-server #67", "ISUP before the SDP",
               head=(("Content-Type", 'Content-Type: multipart/mixed; boundary="unique-1"'),),
               body="--unique-1\r\nContent-Type: application/ISUP; version=nxv3\r\n\r\n\x01\x02\r\n"
               "--unique-1\r\nContent-Type: application/sdp\r\n\r\n{sdp}\r\n--unique-1--\r\n"),
        Report("CVE-2022-21723", "a boundary that never comes", code=400,
               head=(("Content-Type", "Content-Type: multipart/mixed;boundary=xyz"),)),
        Report("CVE-2022-21723", "no boundary", code=400,
               head=(("Content-Type", "Content-Type: multipart/mixed"),)),
        Report("livekit/sip #402", "no offer", body=""),
        Report("jambonz/sbc-inbound #179", "a type, and nothing of it", body="",
               head=more("Content-Type: application/sdp")),
    ),
}  # fmt: skip


class FieldCall(DialogCall):
    """A call whose INVITE is a report's, and whose RTP the test may send itself."""

    report: Report
    taken: str = ""
    """The gateway's description."""

    def invite(self) -> None:
        """Send the report's INVITE."""
        self._to, self._target = f"<{self.uri}>", self.uri
        sdp = OFFER
        for old, new in self.report.sdp:
            assert old in sdp, old
            sdp = sdp.replace(old, new, 1)
        sdp = sdp.replace("{more}", "")
        body = self.report.body.replace("{lf}", sdp)
        body = body.replace("{sdp}", sdp.replace("\n", "\r\n"))
        body = body.replace("{port}", str(self.rtp.port)).replace("{other}", str(self.rtp.port + 2))
        self.offer = bool(body)
        kind = ["Content-Type: application/sdp"] if body else []
        text = self._request("INVITE", self._branch, 1, [*self.headers, *kind], body).decode()
        head, _, rest = text.partition("\r\n\r\n")
        lines = head.split("\r\n")
        for name, new in self.report.head:
            for mark, value in {
                "{me}": "{}:{}".format(*self.phone.address),
                "{gw}": "{}:{}".format(*self.phone.gateway),
                "{tag}": self._tag,
                "{id}": self.call_id,
                "{branch}": self._branch,
                "{len}": str(len(body)),
            }.items():
                new = new.replace(mark, value)
            at = 1
            if name:
                at = next(n for n, one in enumerate(lines) if one.startswith(name + ":"))
                del lines[at]
            if new:
                lines.insert(at, new)
        self.phone.send(("\r\n".join(lines) + "\r\n\r\n" + rest).encode("latin-1"))

    def _take(self, body: str) -> None:
        self.taken = body
        host = re.search(r"^c=IN IP4 (\S+)", body, re.M)
        media = re.search(r"^m=audio ([1-9]\d*) RTP/AVPF? (\d+)", body, re.M)
        if host and media:
            self.rtp.payload_type = int(media[2])
            self.rtp._silence = {0: b"\xff", 8: b"\xd5"}[self.rtp.payload_type] * FRAME
            self.rtp.connect(host[1], int(media[1]))

    @property
    def keys_on(self) -> int:
        """The payload number of keys, of the gateway's choice."""
        found = re.search(r"^a=rtpmap:(\d+) telephone-event/8000", self.taken, re.M)
        assert found is not None, self.taken
        return int(found[1])


def field_call(
    world: GatewayStack, report: Report, user: str = "greeted", *headers: str
) -> FieldCall:
    """A call that is not sent yet."""
    call = FieldCall(world.phone, user, ("PCMU",), headers, RtpEnd(0, b"\xff"), sdp=Sdp())
    call.report = report
    world.phone.calls[call.call_id] = call
    return call


class Stream:
    """RTP by hand: every field of a packet is the test's."""

    def __init__(self, call: FieldCall) -> None:
        call.rtp.sending = False
        self.end = call.rtp
        self.events = call.keys_on
        self.ssrc = random.getrandbits(32)
        # Elsewhere than those before: RFC 3550 appendix A.1 takes what is a little lower for late.
        self.sequence = call.rtp.sequence + 20_000
        self.timestamp = random.getrandbits(30)

    def put(
        self,
        payload: bytes,
        kind: int = 0,
        *,
        marker: bool = False,
        first: int = 0x80,
        extra: bytes = b"",
        at: int | None = None,
        sequence: int | None = None,
    ) -> None:
        """One packet. The sequence goes on by one, unless it is given; the clock stands still."""
        stamp = (self.timestamp if at is None else at) & 0xFFFFFFFF
        number = (self.sequence if sequence is None else sequence) & 0xFFFF
        second = kind | (0x80 if marker else 0)
        header = struct.pack("!BBHII", first, second, number, stamp, self.ssrc & 0xFFFFFFFF)
        self.raw(header + extra + payload)
        if sequence is None:
            self.sequence += 1

    def raw(self, data: bytes) -> None:
        """Any bytes."""
        assert self.end._peer is not None
        self.end._socket.sendto(data, self.end._peer)

    async def say(
        self, audio: bytes, size: int = FRAME, step: int | None = None, **fields: Any
    ) -> None:
        """Audio in real time, ``size`` samples in a packet; the clock goes on by ``step``."""
        loop = asyncio.get_running_loop()
        start = loop.time()
        for number, at in enumerate(range(0, len(audio), size)):
            await at_time(start + number * size / 8000)
            self.put(audio[at : at + size], **fields)
            self.timestamp += size if step is None else step

    def press(self, digit: int) -> None:
        """A key of 80 ms, sent at once."""
        for number in range(1, 5):
            self.key(digit, number * FRAME, marker=number == 1)
        for _ in range(3):
            self.key(digit, 4 * FRAME, ends=True)

    def key(
        self, digit: int, samples: int, *, ends: bool = False, after: int = 0, marker: bool = False
    ) -> None:
        """One packet of a key, ``after`` samples later by its timestamp."""
        body = struct.pack("!BBH", digit, 0x8A if ends else 10, samples)
        self.put(body, self.events, marker=marker, at=self.timestamp + after)


async def at_time(when: float) -> None:
    """Wait for a time of the loop's clock, at which something is to leave."""
    await asyncio.sleep(max(0.0, when - asyncio.get_running_loop().time()))


async def each(rows: Iterable[Any], one: Callable[[Any], Awaitable[None]]) -> None:
    """Some rows at a time; what fails is told by row."""
    rest, failed = list(rows), {}
    while rest:
        now, rest = rest[:AT_ONCE], rest[AT_ONCE:]
        for row, found in zip(
            now, await asyncio.gather(*map(one, now), return_exceptions=True), strict=True
        ):
            if found is not None:
                failed[str(row)[:120]] = f"{type(found).__name__}: {str(found)[:400]}"
    assert not failed, failed


# ---- INVITEs


def _sounds(packet: Packet) -> bool:
    return packet.payload_type in (0, 8) and not is_silence(packet)


@pytest.mark.parametrize("kind", [*OFFERS, *HEADERS])
async def test_an_invite(world: GatewayStack, kind: str) -> None:
    world.behave(vad="off", answer={"kind": "pattern", "seconds": 5, "burst": True})

    async def one(report: Report) -> None:
        call = field_call(world, report)
        call.invite()
        await call.until(lambda c: c.final is not None, WITHIN_S, "a final response")
        assert call.final is not None
        assert call.final.code == report.code, call.final.text
        if report.code != 200:
            if report.reason:
                summary = await world.summary(call, WITHIN_S)
                assert summary["ending"]["why"] == report.reason, summary["ending"]
            await world.phone.forget(call)
            return
        await world.gateway.wait("call.confirmed", WITHIN_S, call=call.call_id)
        assert re.search(f"^{report.answer}", call.taken, re.M), call.taken
        if report.hears:
            await call.rtp.until(lambda: any(map(_sounds, call.rtp.packets)), WITHIN_S)
            Stream(call).press(5)
            await world.gateway.wait("call.dtmf", WITHIN_S, call=call.call_id)
        await world.summary_at_end(call)

    await each((OFFERS | HEADERS)[kind], one)


# ---- RTP

SILENCE = b"\xff" * FRAME * 5
TAIL = b"\xff" * FRAME * 40


@dataclass
class Speech:
    """What the caller says, in two halves."""

    stream: Stream
    first: bytes
    second: bytes
    keys: str = ""
    """Pressed besides."""

    async def say(self, **fields: Any) -> None:
        """All of it."""
        await self.stream.say(self.first + self.second, **fields)


def jump(timestamp: int, sequence: int = 0) -> Callable[[Speech], Awaitable[None]]:
    """Clock and numbers go elsewhere before it speaks."""

    async def said(speech: Speech) -> None:
        speech.stream.timestamp += timestamp
        speech.stream.sequence += sequence
        if sequence:
            await speech.stream.say(SILENCE)
        await speech.say()

    return said


def sent(**fields: Any) -> Callable[[Speech], Awaitable[None]]:
    """Each packet with these fields."""

    async def said(speech: Speech) -> None:
        await speech.say(**fields)

    return said


async def _begins_anew(speech: Speech) -> None:
    speech.stream.sequence = speech.stream.timestamp = 0
    await speech.stream.say(SILENCE)
    await speech.say()


async def _numbers_wrap(speech: Speech) -> None:
    speech.stream.sequence, speech.stream.timestamp = 0xFFFD, 0xFFFFFFFF - 3 * FRAME
    await speech.stream.say(SILENCE)
    await speech.say()


async def _another_source(speech: Speech) -> None:
    speech.stream.ssrc += 1
    speech.stream.sequence += 30000
    speech.stream.timestamp += 123456789
    await speech.stream.say(SILENCE)
    await speech.say()


async def _another_source_of_the_same_numbers(speech: Speech) -> None:
    speech.stream.ssrc += 1
    await speech.say()


async def _longer_then_shorter(speech: Speech) -> None:
    await speech.stream.say(SILENCE * 2, 2 * FRAME)
    await speech.stream.say(speech.first, 2 * FRAME)
    await speech.stream.say(speech.second)


async def _padded(speech: Speech) -> None:
    loop = asyncio.get_running_loop()
    start, all_of_it = loop.time(), speech.first + speech.second
    for number, at in enumerate(range(0, len(all_of_it), FRAME)):
        await at_time(start + number * 0.02)
        speech.stream.put(all_of_it[at : at + FRAME] + b"\0\0\0\4", first=0xA0)
        speech.stream.timestamp += FRAME


def between(*packets: tuple[bytes, int, int]) -> Callable[[Speech], Awaitable[None]]:
    """Packets (payload, payload number, first byte) between two halves of what is said."""

    async def said(speech: Speech) -> None:
        await speech.stream.say(speech.first + SILENCE)
        for payload, kind, first in packets:
            speech.stream.put(payload, kind, first=first)
        await speech.stream.say(SILENCE + speech.second)

    return said


async def _comfort_noise(speech: Speech) -> None:
    await speech.stream.say(speech.first + SILENCE)
    for _ in range(3):
        speech.stream.put(b"\x40", 13)
        speech.stream.timestamp += 800
        await asyncio.sleep(0.1)
    await speech.stream.say(SILENCE + speech.second)


async def _clock_stops_for_a_key(speech: Speech) -> None:
    speech.keys = "5"
    speech.stream.press(5)
    await speech.say()


async def _other_protocols(speech: Speech) -> None:
    for junk in (
        struct.pack("!BBHIIIIII", 0x80, 200, 6, speech.stream.ssrc, 0, 0, 0, 0, 0),
        struct.pack("!BBHI", 0x81, 203, 1, speech.stream.ssrc),
        b"\0\1\0\0\x21\x12\xa4\x42" + b"a" * 12,
        b"\x16\xfe\xfd" + b"\0" * 30,
        b"\0",
        b"",
        b"\r\n",
        b"\x80",
        b"\x9f" + b"\0" * 11,
    ):
        speech.stream.raw(junk)
    await speech.say()


async def _each_twice(speech: Speech) -> None:
    loop = asyncio.get_running_loop()
    start, all_of_it = loop.time(), speech.first + speech.second
    for number, at in enumerate(range(0, len(all_of_it), FRAME)):
        await at_time(start + number * 0.02)
        speech.stream.put(all_of_it[at : at + FRAME], sequence=speech.stream.sequence)
        speech.stream.put(all_of_it[at : at + FRAME])
        speech.stream.timestamp += FRAME


async def _pairs_swapped(speech: Speech) -> None:
    all_of_it, stream = speech.first + speech.second, speech.stream
    frames = [all_of_it[at : at + FRAME] for at in range(0, len(all_of_it), FRAME)]
    for number in range(0, len(frames), 2):
        for one in (number + 1, number) if number else (0, 1):
            at = stream.timestamp + one * FRAME
            stream.put(frames[one], sequence=stream.sequence + one, at=at)
        await asyncio.sleep(0.04)
    stream.sequence += len(frames)
    stream.timestamp += len(frames) * FRAME


STREAMS: dict[str, dict[str, Callable[[Speech], Awaitable[None]]]] = {
    "clocks": {
        "asterisk #927: 30 s ahead, same source": jump(240_000),
        "asterisk #927: ten minutes ahead": jump(8000 * 600),
        "asterisk #927: half of all timestamps ahead": jump(1 << 31),
        "asterisk #1277: 0.1 s back": jump(-800),
        "asterisk #1277: 0.5 s back": jump(-4000),
        "asterisk #1277: a minute back": jump(-480_000),
        "rtpengine #1483: numbers and clock begin anew, same source": _begins_anew,
        "rtpengine #1483: numbers jump, the clock goes on": jump(0, 2000),
        "rtpengine #1483: both wrap": _numbers_wrap,
        "asterisk #1324: another source": _another_source,
        "rtpengine #1266: another source, the numbers go on": _another_source_of_the_same_numbers,
        "sipsorcery #669: the clock stands still during a key": _clock_stops_for_a_key,
        "RFC 3550: the clock stands still": sent(step=0),
        "RFC 3550: the clock counts milliseconds": sent(step=20),
    },
    "packets": {
        "freeswitch #3150: 40 ms, then 20 ms": _longer_then_shorter,
        "RFC 3551 4.2: 120 ms": sent(size=6 * FRAME),
        "rtpengine #944: 10 ms": sent(size=FRAME // 2),
        "pjproject #1135: padding": _padded,
        "disgo #594: an extension of the header": sent(
            first=0x90, extra=struct.pack("!HHI", 0xBEDE, 1, 0x10FF0000)
        ),
        "disgo #594: two contributing sources": sent(first=0x82, extra=b"\1\2\3\4\5\6\7\x08"),
        "Discord.Net #3262: nothing but padding": between((b"\0\0\0\4", 0, 0xA0), (b"\1", 0, 0xA0)),
        "Discord.Net #3262: more padding than packet": between((b"\xff" * 20, 0, 0xA0)),
        "RFC 3550: no payload": between((b"", 0, 0x80), (b"", 0, 0x80)),
        "asterisk #927: a marker in each": sent(marker=True),
        "rtpengine #1475: comfort noise that was not offered": _comfort_noise,
        "RFC 3551: comfort noise on 19": between((b"\x40", 19, 0x80)),
        "rtpengine #1494: RTCP, STUN, DTLS and scraps at the RTP port": _other_protocols,
        "RFC 3550: RTP version 1": between((b"\x55" * FRAME, 0, 0x40)),
        "RFC 3550: each packet twice": _each_twice,
        "RFC 3550: every second one before the first": _pairs_swapped,
    },
}


@pytest.mark.parametrize("kind", STREAMS)
async def test_a_stream(world: GatewayStack, kind: str) -> None:
    """What the caller says arrives as it was."""
    world.behave(vad="off", answer={"kind": "silent"})

    async def one(name: str) -> None:
        call = field_call(world, Report(name, ""), "plain")
        call.invite()
        await call.answered()
        await world.gateway.wait("call.confirmed", call=call.call_id)
        session = await world.session_of(call)
        seed = sum(name.encode())
        speech = Speech(Stream(call), noise(seed, 0.24), noise(seed + 1, 0.24))
        await speech.stream.say(SILENCE)
        await STREAMS[kind][name](speech)
        await speech.stream.say(TAIL)
        summary = await world.summary_at_end(call)
        received = bytes(session.received)
        heard = speech.first[:-FRAME] in received and speech.second in received
        assert heard
        assert "".join(run["digits"] for run in summary["digits"]) == speech.keys

    await each(STREAMS[kind], one)


# ---- keys

PAUSE = (-1, 0)
Step = tuple[Any, ...]
"""Key, duration, "end" or nothing, how much later by its timestamp. PAUSE: 100 ms of audio."""

KEYS: dict[str, tuple[str, tuple[Step, ...]]] = {
    "hass-sip #24: no marker": ("5", ((5, 160), (5, 640, "end"), (5, 640, "end"))),
    "livekit/sip #742: only the ends came": ("5", ((5, 640, "end"), (5, 640, "end"))),
    "livekit/sip #742: twice, of the second only the ends": (
        "55",
        ((5, 160), (5, 640, "end"), PAUSE, (5, 640, "end", 3000), (5, 640, "end", 3000)),
    ),
    "RestComm #62: no end": ("56", ((5, 160), (5, 320), PAUSE, (6, 160, "", 3000))),
    "RFC 4733 2.3: twice, the second longer at once": (
        "55",
        ((5, 160), (5, 320, "end"), PAUSE, (5, 400, "", 3000), (5, 640, "end", 3000)),
    ),
    "livekit/sip #742: twice, in one packet each": (
        "55",
        ((5, 800, "end"), PAUSE, (5, 800, "end", 3000)),
    ),
    "RestComm #62: the clock goes on during a key": (
        "5",
        ((5, 160), (5, 320, "", 160), (5, 480, "", 320), (5, 640, "end", 480)),
    ),
    "rtpengine #1812: the clock goes on in the ends": (
        "5",
        ((5, 160), (5, 640, "end"), (5, 640, "end", 160), (5, 640, "end", 320)),
    ),
    "asterisk-unimrcp #44: a long key with a gap": (
        "5",
        ((5, 1280), (5, 2560), PAUSE, PAUSE, (5, 13568, "end"), (5, 13568, "end")),
    ),
    "RFC 4733 2.5.1.3: segments of a long key": (
        "5",
        ((5, 160), (5, 65535), (5, 160, "", 65535), (5, 640, "end", 65535)),
    ),
    "doubango #374: all keys of one timestamp": (
        "565",
        ((5, 160), (5, 640, "end"), (6, 160), (6, 640, "end"), (5, 160), (5, 640, "end")),
    ),
    "RFC 4733 2.3: durations of 0": (
        "55",
        ((5, 0), (5, 0, "end"), PAUSE, (5, 0, "", 3000), (5, 0, "end", 3000)),
    ),
    "RFC 4733 2.3: shorter at the end": (
        "5",
        ((5, 160), (5, 480), (5, 400, "end"), (5, 0, "end")),
    ),
    "pjproject #1734: a hook flash": ("5", ((16, 160), (16, 640, "end"), (5, 640, "end", 3000))),
    "RFC 4733 7: events that are no keys": (
        "5",
        ((32, 160), (255, 1, "end"), (5, 640, "end", 3000)),
    ),
    "RFC 4733 3.2: A and D": ("AD", ((12, 640, "end"), (15, 640, "end", 900))),
}


async def test_keys(world: GatewayStack) -> None:
    world.behave(vad="off", answer={"kind": "silent"})

    async def one(name: str) -> None:
        wanted, steps = KEYS[name]
        call = field_call(world, Report(name, ""), "plain")
        call.invite()
        await call.answered()
        await world.gateway.wait("call.confirmed", call=call.call_id)
        stream = Stream(call)
        await stream.say(SILENCE)
        for step in steps:
            if step == PAUSE:
                clock = stream.timestamp
                await stream.say(SILENCE)
                stream.timestamp = clock
            else:
                digit, duration = step[:2]
                ends = "end" in step
                after = step[3] if len(step) > 3 else 0
                stream.key(digit, duration, ends=ends, after=after)
        await world.gateway.wait("call.dtmf", WITHIN_S, count=len(wanted), call=call.call_id)
        stream.timestamp += 20_000
        await stream.say(SILENCE)  # what comes twice comes now
        summary = await world.summary_at_end(call)
        assert "".join(run["digits"] for run in summary["digits"]) == wanted

    await each(KEYS, one)


# ---- dialogs


def offer_of(call: FieldCall, *changes: Change) -> str:
    """An offer for inside the call."""
    sdp = OFFER.replace("{port}", str(call.rtp.port))
    for old, new in changes:
        assert old in sdp, old
        sdp = sdp.replace(old, new)
    return sdp.replace("\n", "\r\n")


async def _keys_move(world: GatewayStack, call: FieldCall) -> None:
    answer = await call.ask("INVITE", body=offer_of(call, *keys_at(96)))
    call._take(answer.body)
    assert call.keys_on == 96


async def _held_at_nobody(world: GatewayStack, call: FieldCall) -> None:
    port = f"audio {call.rtp.port}"
    held = ((C, C.replace("127.0.0.1", "0.0.0.0")), (port, "audio 9"), (END, "a=sendonly\n"))
    assert (await call.ask("INVITE", body=offer_of(call, *held))).code == 200
    assert (await call.ask("INVITE", body=offer_of(call))).code == 200


async def _the_same_version_elsewhere(world: GatewayStack, call: FieldCall) -> None:
    was, call.rtp = call.rtp, RtpEnd(0, b"\xff")
    await was.close()
    answer = await call.ask("INVITE", body=offer_of(call))
    call._take(answer.body)


async def _no_offer_inside(world: GatewayStack, call: FieldCall) -> None:
    call.sdp = Sdp(version=2)
    number, _ = call.put("INVITE")
    cseq = f"{number} INVITE"
    await call.until(
        lambda c: any(m.code == 200 and m.headers["cseq"] == cseq for m in c.messages), WITHIN_S
    )
    offered = next(m for m in call.messages if m.code == 200 and m.headers["cseq"] == cseq)
    assert re.search(r"^m=audio [1-9]\d* RTP/AVP ", offered.body, re.M), offered.body
    call.phone.send(call._inside("ACK", number, (), call.sdp.text(call.rtp.port)))
    call._take(offered.body)


async def _fax_with_the_audio_disabled(world: GatewayStack, call: FieldCall) -> None:
    fax = line(
        M.replace("{port}", str(call.rtp.port)),
        "m=audio 0 RTP/AVP 8 101",
        f"m=image {call.rtp.port} udptl t38",
    )
    assert (await call.ask("INVITE", body=offer_of(call, fax))).code == 488


async def _bytes_that_are_no_text(world: GatewayStack, call: FieldCall) -> None:
    update = call._inside("UPDATE", 7, ('P-Asserted-Identity: "X" <sip:1@x>',))
    call.phone.send(update.replace(b'"X"', b'"\xe4\xb8\xff"'))
    call._sequence = 7
    await call.until(lambda c: any(m.code and m.method == "UPDATE" for m in c.messages), WITHIN_S)
    assert next(m for m in call.messages if m.code and m.method == "UPDATE").code == 200


Ask = tuple[str, tuple[str, ...], str, str]
"""Method, header fields, body and its type of a request inside the call."""

ASKED: dict[str, tuple[Ask, set[int]]] = {
    "RFC 6665 4.1.2: a subscription inside the call": (
        ("SUBSCRIBE", ("Event: dialog", "Expires: 60"), "", ""),
        {405, 481, 489, 501},
    ),
    "RFC 3842: message waiting that nobody asked for": (
        (
            "NOTIFY",
            ("Event: message-summary", "Subscription-State: active"),
            "Messages-Waiting: no\r\n",
            "application/simple-message-summary",
        ),
        {200, 405, 481, 489},
    ),
    "RFC 6665 8.2.1: a NOTIFY without an Event": (
        ("NOTIFY", ("Subscription-State: active",), "", ""),
        {200, 400, 481, 489},
    ),
    "RFC 3428: a text": (("MESSAGE", (), "hello", "text/plain"), {200, 405, 415}),
    "RFC 6086: an INFO without a body": (("INFO", (), "", ""), {200}),
    "RFC 6086 4.2.2: an INFO of a package that nobody offered": (
        ("INFO", ("Info-Package: nothing-such",), "x", "text/plain"),
        {200, 415, 469},
    ),
    "RFC 3903: a PUBLISH": (
        ("PUBLISH", ("Event: presence", "Expires: 60"), "", ""),
        {405, 489, 501},
    ),
    "RFC 3515 2.4.1: a REFER without Refer-To": (("REFER", (), "", ""), {400, 405, 603}),
    "RFC 3515: a REFER with two": (
        ("REFER", ("Refer-To: <sip:a@192.0.2.1>", "Refer-To: <sip:b@192.0.2.1>"), "", ""),
        {400, 603},
    ),
    "RFC 3262 3: a PRACK of nothing": (("PRACK", ("RAck: 1 1 INVITE",), "", ""), {400, 481}),
    "RFC 3311: an UPDATE without a description": (("UPDATE", (), "", ""), {200}),
    "RFC 4028 7.4: an UPDATE that asks for too short a session": (
        ("UPDATE", ("Supported: timer", "Session-Expires: 30", "Min-SE: 30"), "", ""),
        {200, 422},
    ),
    "RFC 3261 8.2.3: a re-INVITE with a body of another type": (
        ("INVITE", (), "x", "application/nothing-such"),
        {200, 400, 415, 488},
    ),
    "RFC 3261 8.2.1: a method that does not exist": (("NOTHING", (), "", ""), {405, 501}),
    "RFC 3261 11: OPTIONS inside the call": (
        ("OPTIONS", ("Accept: application/sdp",), "", ""),
        {200},
    ),
}


def _asked(name: str) -> Callable[[GatewayStack, FieldCall], Awaitable[None]]:
    (method, headers, body, kind), codes = ASKED[name]

    async def play(_world: GatewayStack, call: FieldCall) -> None:
        answer = await call.ask(method, *headers, body=body, kind=kind or "application/sdp")
        assert answer.code in codes, answer.start

    return play


DIALOGS = {
    **{name: _asked(name) for name in ASKED},
    "freeswitch #2617: keys on another payload number": _keys_move,
    "dart-sip-ua #487: held by 0.0.0.0 and port 9, and back": _held_at_nobody,
    "JsSIP #312: another port under the same version": _the_same_version_elsewhere,
    "freeswitch #3158: a re-INVITE without an offer": _no_offer_inside,
    "rtpengine #686: fax, and the audio disabled": _fax_with_the_audio_disabled,
    "doubango #333: an UPDATE whose name is no text": _bytes_that_are_no_text,
}


async def test_dialogs(world: GatewayStack) -> None:
    """The call goes on, both ways, after what happens inside it."""
    world.behave(vad="off", answer={"kind": "pattern", "seconds": 20, "burst": True})

    async def one(name: str) -> None:
        call = field_call(world, Report(name, ""))
        call.invite()
        await call.answered()
        await world.gateway.wait("call.confirmed", call=call.call_id)
        await call.rtp.until(lambda: any(map(_sounds, call.rtp.packets)), WITHIN_S)
        await DIALOGS[name](world, call)
        heard = len(call.rtp.packets)
        await call.rtp.until(lambda: any(map(_sounds, call.rtp.packets[heard:])), WITHIN_S)
        Stream(call).press(5)
        await world.gateway.wait("call.dtmf", WITHIN_S, call=call.call_id)
        await world.summary_at_end(call)

    await each(DIALOGS, one)


async def test_a_re_invite_before_the_ack(world: GatewayStack) -> None:
    """SIP.js #798, pjproject #1725: it is answered, and the call goes on with the ACK."""
    world.behave(vad="off", answer={"kind": "pattern", "seconds": 20, "burst": True})
    call = field_call(world, Report("SIP.js #798", ""))
    call.acknowledge = False
    call.invite()
    await call.answered()
    assert (await call.ask("INVITE", body=offer_of(call))).code in (200, 491, 500)
    call.ack()
    await call.rtp.until(lambda: any(map(_sounds, call.rtp.packets)), WITHIN_S)
    await world.summary_at_end(call)


async def test_one_request_by_two_ways(world: GatewayStack) -> None:
    """RFC 3261 section 8.2.2.2: the second gets 482, and the call goes on."""
    world.behave(vad="off", updated="never")
    call = field_call(world, Report("RFC 3261 8.2.2.2", ""))
    call.invite()
    await call.until(lambda c: c.messages, WITHIN_S, "a response")
    way, call._branch = call._branch, f"{call._branch}x"
    call.invite()
    await call.until(lambda c: 482 in c.responses, WITHIN_S, "482")
    call._branch = way
    await world.updated()
    await call.until(lambda c: 200 in c.responses, WITHIN_S, "200")
    await world.gateway.wait("call.confirmed", WITHIN_S, call=call.call_id)
    await world.summary_at_end(call)


async def test_cancel_and_bye_before_the_ack(world: GatewayStack) -> None:
    """JsSIP #597: CANCEL is too late, and BYE ends the call."""
    call = field_call(world, Report("JsSIP #597", ""))
    call.acknowledge = False
    call.invite()
    await call.answered()
    call.cancel()
    await call.until(lambda c: any(m.code and m.method == "CANCEL" for m in c.messages), WITHIN_S)
    await world.summary_at_end(call)


async def test_prack_after_cancel(world: GatewayStack) -> None:
    """pjproject #845: the PRACK of a call that is gone harms nobody."""
    world.behave(vad="off", updated_delay_ms=3000)
    call = field_call(world, Report("pjproject #845", ""), "greeted", "Require: 100rel")
    call.prack = False
    call.invite()
    await call.until(lambda c: 180 in c.responses, WITHIN_S, "180")
    call.cancel()
    await call.until(lambda c: 487 in c.responses, WITHIN_S, "487")
    ringing = next(m for m in call.messages if m.code == 180)
    call._acknowledge_progress(ringing)
    await call.until(lambda c: any(m.code and m.method == "PRACK" for m in c.messages), WITHIN_S)
    assert (await world.phone.options()).code == 200


async def test_scraps_at_the_sip_port(world: GatewayStack) -> None:
    """Keep-alives, STUN and pieces of messages get no answer, and do no harm."""
    for scrap in (
        b"",
        b"\r\n",
        b"\r\n\r\n",
        b"\0\0\0\0",
        b"\0\1\0\0\x21\x12\xa4\x42" + b"a" * 12,
        b"SIP/2.0",
        b"INVITE",
        b"SIP/2.0 200 OK\r\n\r\n",
        b"SIP/2.0 603 Decline\r\nVia: SIP/2.0/UDP 127.0.0.1;branch=z9hG4bK0\r\n"
        b"From: <sip:a@x>;tag=1\r\nTo: <sip:b@x>;tag=2\r\nCall-ID: gone\r\nCSeq: 1 INVITE\r\n\r\n",
        b"OPTIONS sip:x SIP/2.0\r\n" + b"Via: " * 500,
        b"INVITE sip:100@127.0.0.1 SIP/2.0\r\nCall-ID: " + b"A" * 4096 + b"\r\n\r\n",
    ):
        world.phone.send(scrap)
    assert (await world.phone.options()).code == 200


# ---- connections


def _probe(via: str = "TCP", length: str = "Content-Length: 0") -> bytes:
    lines = [
        "OPTIONS sip:127.0.0.1 SIP/2.0",
        f"Via: SIP/2.0/{via} 127.0.0.1:5;branch=z9hG4bK{random.getrandbits(40):x};rport",
        "From: <sip:a@127.0.0.1>;tag=1",
        "To: <sip:b@127.0.0.1>",
        f"Call-ID: {random.getrandbits(40):x}",
        "CSeq: 1 OPTIONS",
        *([length] if length else []),
        "",
        "",
    ]
    return "\r\n".join(lines).encode()


CONNECTIONS: dict[str, tuple[bytes, int, int]] = {
    "drachtio-server #438: a Via of UDP": (_probe("UDP"), 4096, 1),
    "pjproject #747: empty lines before a message": (b"\r\n\r\n" + _probe(), 4096, 1),
    "RFC 5626 4.4.1: keep-alives between messages": (
        _probe() + b"\r\n\r\n" + _probe() + b"\r\n\r\n\r\n" + _probe(),
        4096,
        3,
    ),
    "RFC 3261 18.3: two messages in one segment": (_probe() + _probe(), 4096, 2),
    "RFC 3261 18.3: three bytes in each segment": (_probe() + _probe(), 3, 2),
    "pjproject #188: a short Content-Length": (_probe(length="l:0"), 4096, 1),
    "RFC 3261 7.3.1: blanks around the length": (_probe(length="Content-Length :  0 "), 4096, 1),
    "RFC 3261 18.3: a body, and what follows it": (
        _probe(length="Content-Type: text/plain\r\nContent-Length: 5") + b"hello" + _probe(),
        4096,
        2,
    ),
}
"""Bytes, how many in a segment, and how many answers of 200 there are to be."""


async def test_connections(world: GatewayStack) -> None:
    """What comes over TCP is taken apart into its messages."""
    listening = world.gateway.all("gateway.started")[0]["listen"]
    port = int(next(one for one in listening if one.startswith("tcp:")).rpartition(":")[2])

    async def one(name: str) -> None:
        data, size, answers = CONNECTIONS[name]
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        try:
            for at in range(0, len(data), size):
                writer.write(data[at : at + size])
                await writer.drain()
                await asyncio.sleep(0)
            came = b""
            async with asyncio.timeout(WITHIN_S):
                while came.count(b"SIP/2.0 200") < answers:
                    more_of_it = await reader.read(4096)
                    assert more_of_it, came
                    came += more_of_it
        finally:
            writer.close()

    await each(CONNECTIONS, one)
