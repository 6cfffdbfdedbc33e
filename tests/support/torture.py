# SPDX-License-Identifier: GPL-2.0-or-later
"""Messages after RFC 4475 ("SIP torture test messages"), made to be answered on loopback.

Each keeps what its section is about; addresses are replaced so that responses come back to the
sender. ``codes`` are the final responses that may come, empty where none has to come.
"""

from __future__ import annotations

from dataclasses import dataclass

SDP = (
    "v=0\r\no=mhandley 29739 7272939 IN IP4 127.0.0.1\r\ns=-\r\nc=IN IP4 127.0.0.1\r\n"
    "t=0 0\r\nm=audio 49217 RTP/AVP 0\r\na=rtpmap:0 PCMU/8000\r\n"
)


@dataclass(frozen=True, slots=True)
class Torture:
    """One message; ``{via}``, ``{me}`` (host:port of the sender) and ``{gw}`` are filled in."""

    section: str
    text: str
    codes: frozenset[int]

    @property
    def unreadable(self) -> bool:
        """Whether pjsip's parser gives it up, and no layer of ours sees it: it gets no answer."""
        return self.section in _UNREADABLE

    def message(self, me: tuple[str, int], gateway: tuple[str, int]) -> bytes:
        """The bytes to send; Call-ID begins with the section's name."""
        host = f"{me[0]}:{me[1]}"
        text = self.text.replace("{me}", host).replace("{gw}", f"{gateway[0]}:{gateway[1]}")
        return text.replace("{via}", f"SIP/2.0/UDP {host}").encode("latin-1")


_UNREADABLE = frozenset(
    {"badinv01", "ncl", "scalar02", "quotbal", "ltgtruri", "lwsruri", "regbadct", "badvers"}
    | {"unkscm", "novelsc", "regaut01", "insuf"}
)


def _message(
    name: str,
    start: str,
    *lines: str,
    body: str = "",
    codes: tuple[int, ...] = (),
    drop: tuple[str, ...] = (),
) -> Torture:
    """A message with the usual fields, of which ``lines`` take the place."""
    method = start.split(" ")[0]
    usual = {
        "Via": f"{{via}};rport;branch=z9hG4bK.{name}",
        "From": f"<sip:tester@{{me}}>;tag={name}",
        "To": "<sip:nowhere@{gw}>",
        "Call-ID": f"{name}.torture",
        "CSeq": f"1 {method}",
        "Max-Forwards": "70",
        "Contact": "<sip:tester@{me}>",
    }
    given = [line.partition(":")[0].strip().lower() for line in lines]
    kept = [
        f"{key}: {value}"
        for key, value in usual.items()
        if key.lower() not in given and key not in drop
    ]
    head = [start, *kept, *lines]
    if body and "content-type" not in given:
        head.append("Content-Type: application/sdp")
    if not {"content-length", "l"} & set(given) and "Content-Length" not in drop:
        head.append(f"Content-Length: {len(body)}")
    return Torture(name, "\r\n".join(head) + "\r\n\r\n" + body, frozenset(codes))


_INVITE = "INVITE sip:nowhere@{gw} SIP/2.0"
_OPTIONS = "OPTIONS sip:nowhere@{gw} SIP/2.0"
_NOT_FOUND = (404,)
_BAD = (400,)

MESSAGES: tuple[Torture, ...] = (
    # 3.1.1: valid messages
    Torture(
        "wsinv",
        "INVITE sip:nowhere@{gw};unknownparam SIP/2.0\r\n"
        "TO :\r\n sip:nowhere@{gw} ;   tag    = 1918181833n\r\n"
        'from   : "J Rosenberg \\\\\\""       <sip:jdrosen@{me}>\r\n  ;\r\n  tag = 98asjd8\r\n'
        "MaX-fOrWaRdS: 0068\r\nCall-ID: wsinv.torture\r\nContent-Length   : 0\r\n"
        "cseq: 0009\r\n  INVITE\r\n"
        "Via  : SIP  /   2.0\r\n /UDP\r\n    {me};rport;branch=390skdjuw\r\n"
        "s :\r\nNewFangledHeader:   newfangled value\r\n continued newfangled value\r\n"
        "UnknownHeaderWithUnusualValue: ;;,,;;,;\r\n"
        'm:"Quoted string \\"\\"" <sip:jdrosen@{me}> ; newparam =\r\n      newvalue ;\r\n'
        "  secondparam ; q = 0.33\r\n\r\n",
        frozenset((404, 481, 400)),
    ),
    Torture(
        "intmeth",
        "!interesting-Method0123456789_*+`.%indeed'~ sip:1_unusual.URI~(to-be!sure)&isn't+it$/"
        "crazy?,/;;*:&it+has=1,weird!*pas$wo~d_too.(doesn't-it)@{gw} SIP/2.0\r\n"
        "Via: {via};rport;branch=z9hG4bK-.!%66*_+`'~\r\n"
        'To: "BEL:\\\x07 NUL:\\\x01 DEL:\\\x7f" <sip:1_unusual.URI~(to-be!sure)&isn\'t+it$/'
        "crazy?,/;;*@{gw}>\r\n"
        "From: token1~` token2'+_ token3*%!.- <sip:mundane@{me}>"
        ";fromParam''~+*_!.-%=\"work\\ing\";tag=_token~1'+`*%!-.\r\n"
        "Call-ID: intmeth.torture-_+!*`'.%~\r\n"
        "CSeq: 139122385 !interesting-Method0123456789_*+`.%indeed'~\r\n"
        "Max-Forwards: 255\r\nextensionHeader-!.%*+_`'~:\xe5\xa4\xa7\xe5\x81\x9c\xe9\x9b\xbb\r\n"
        "Content-Length: 0\r\n\r\n",
        frozenset((501, 405, 400)),
    ),
    _message(
        "esc01",
        "INVITE sip:sips%3Auser%40example.com@{gw} SIP/2.0",
        "To: <sip:%75se%72@{gw}>",
        "From: <sip:I%20have%20spaces@{me}>;tag=esc01",
        "Contact: <sip:cal%6Cer@{me};%6C%72;n%61me=v%61lue%25%34%31>",
        body=SDP,
        codes=_NOT_FOUND,
    ),
    _message(
        "escnull",
        "REGISTER sip:{gw} SIP/2.0",
        "To: <sip:null-%00-null@{gw}>",
        "From: <sip:null-%00-null@{me}>;tag=escnull",
        "Contact: <sip:%00@{me}>, <sip:%00%00@{me}>",
        codes=(405,),
    ),
    _message(
        "esc02", "RE%47IST%45R sip:{gw} SIP/2.0", "CSeq: 29344 RE%47IST%45R", codes=(501, 405)
    ),
    _message(
        "lwsdisp",
        _OPTIONS,
        "From: caller<sip:caller@{me}>;tag=lwsdisp",
        codes=(200, 404),
    ),
    _message(
        "longreq",
        _INVITE,
        'To: "I have a user name of extreme proportion'
        + " and more of it" * 20
        + '" <sip:nowhere@{gw};unknownparam1=very'
        + "long" * 60
        + "value;shortparam=shortvalue>",
        "From: sip:"
        + "amazinglylongcallername" * 6
        + "@{me};tag=12"
        + "982424" * 20
        + ";unknownheaderparam"
        + "name" * 30
        + "=value",
        "Unknown-" + "Long" * 40 + "-Name: unknown-" + "long" * 60 + "-value",
        body=SDP,
        codes=(404, 400),
    ),
    _message("dblreq", "REGISTER sip:{gw} SIP/2.0", codes=(405,)),
    _message("semiuri", "OPTIONS sip:user;par=u%40example.net@{gw} SIP/2.0", codes=(200, 404)),
    _message("transports", _OPTIONS, "Route: <sip:{gw};transport=udp;lr>", codes=(200, 404)),
    _message(
        "mpart01",
        "MESSAGE sip:kumiko@{gw} SIP/2.0",
        'Content-Type: multipart/mixed;boundary="7a9cbec02ceef655"',
        body="--7a9cbec02ceef655\r\nContent-Type: text/plain\r\n\r\nHi\r\n"
        "--7a9cbec02ceef655\r\nContent-Type: application/octet-stream\r\n\r\n\x80\xff\x01\r\n"
        "--7a9cbec02ceef655--",
        codes=(405,),
    ),
    _message("unreason", "SIP/2.0 200 = 2**3 * 5**2 \xd0\xbd\xd0\xbe", "CSeq: 35 INVITE"),
    _message("noreason", "SIP/2.0 100 ", "CSeq: 35 INVITE"),
    # 3.1.2: invalid messages
    _message(
        "badinv01",
        _INVITE,
        "To: <sip:j.user@{gw}>",
        "Contact: <sip:j.user@{me}>;;,;,,",
        'From: "unmatched <sip:tester@{me}>;;;;=tag',
        codes=_BAD,
    ),
    _message("clerr", _INVITE, "Content-Length: 9999", body=SDP, codes=(400, 404)),
    _message("ncl", _INVITE, "Content-Length: -999", body=SDP, codes=(400, 404, 500)),
    _message(
        "scalar02",
        "REGISTER sip:{gw} SIP/2.0",
        "CSeq: 36893488147419103232 REGISTER",
        "Max-Forwards: 300",
        "Expires: 10000000000000000000000",
        "Contact: <sip:user@{me}>;expires=280297596632815",
        codes=(400, 405),
    ),
    _message(
        "scalarlg",
        "SIP/2.0 503 Service Unavailable",
        "CSeq: 9292394834772304023312 OPTIONS",
        "Retry-After: 949302838503028349304023988",
        'Warning: 1812 overture "In Progress"',
    ),
    _message("quotbal", _INVITE, 'To: "Mr. J. User <sip:j.user@{gw}>', body=SDP, codes=(400, 404)),
    _message("ltgtruri", "INVITE <sip:user@{gw}> SIP/2.0", body=SDP, codes=(400, 416)),
    _message("lwsruri", "INVITE sip:user@{gw}; lr SIP/2.0", body=SDP, codes=(400, 404)),
    _message("lwsstart", "INVITE  sip:user@{gw}  SIP/2.0", body=SDP, codes=(400, 404, 416)),
    _message("trws", "OPTIONS sip:remote-target@{gw} SIP/2.0  ", codes=(200, 400, 404)),
    _message("escruri", "INVITE sip:user@{gw}?Route=%3Csip:{gw}%3E SIP/2.0", codes=(400, 404)),
    _message("baddate", _INVITE, "Date: Fri, 01 Jan 2010 16:00:00 EST", body=SDP, codes=_NOT_FOUND),
    _message(
        "regbadct",
        "REGISTER sip:{gw} SIP/2.0",
        "Contact: sip:user@{me}?Route=%3Csip:{gw}%3E",
        codes=(400, 405),
    ),
    _message("badaspec", _OPTIONS, 'To: "Watson, Thomas" < sip:t.watson@{gw} >', codes=(200, 400)),
    _message(
        "baddn", _OPTIONS, "From: Bell, Alexander <sip:a.g.bell@{me}>;tag=43", codes=(200, 400)
    ),
    _message("badvers", "OPTIONS sip:t.watson@{gw} SIP/7.0", codes=(505, 400)),
    _message("mismatch01", _OPTIONS, "CSeq: 8 INVITE", codes=(400,)),
    _message("mismatch02", "NEWMETHOD sip:user@{gw} SIP/2.0", "CSeq: 8 INVITE", codes=(400, 501)),
    _message("bigcode", "SIP/2.0 4294967301 better not break the receiver", "CSeq: 35 INVITE"),
    # 3.2: transaction layer
    _message("badbranch", _OPTIONS, "Via: {via};rport;branch=z9hG4bK", codes=(200, 400, 404)),
    # 3.3: application layer
    Torture(
        "insuf",
        "INVITE sip:user@{gw} SIP/2.0\r\nCSeq: 193942 INVITE\r\n"
        "Via: {via};rport;branch=z9hG4bKkdj.insuf\r\nContent-Type: application/sdp\r\nl: 0\r\n\r\n",
        frozenset({400}),
    ),
    _message(
        "unkscm", "OPTIONS nobodyKnowsThisScheme:totallyopaquecontent SIP/2.0", codes=(416, 400)
    ),
    _message("novelsc", "OPTIONS soap.beep://192.0.2.103:3002 SIP/2.0", codes=(416, 400)),
    _message(
        "unksm2",
        "REGISTER sip:{gw} SIP/2.0",
        "To: isbn:2983792873",
        "From: <http://www.example.com>;tag=3234233",
        codes=(400, 405, 416),
    ),
    _message(
        "bext01",
        _OPTIONS,
        "Require: nothingSupportsThis, nothingSupportsThisEither",
        codes=(420, 200),
    ),
    _message(
        "invut", _INVITE, "Content-Type: application/unknownformat", body="<audio/>", codes=(415,)
    ),
    _message(
        "regaut01",
        "REGISTER sip:{gw} SIP/2.0",
        "Authorization: NoOneKnowsThisScheme opaque-data=here",
        codes=(400, 405),
    ),
    _message(
        "multi01",
        _INVITE,
        "CSeq: 59 INVITE",
        "CSeq: 60 INVITE",
        "To: sip:nowhere@{gw}",
        "To: sip:other@{gw}",
        "From: other <sip:tester@{me}>;tag=1",
        "From: other <sip:tester@{me}>;tag=2",
        "Call-ID: multi01.torture",
        "Call-ID: multi01.other",
        "Contact: <sip:caller@{me}>",
        body=SDP,
        codes=_BAD,
    ),
    _message(
        "mcl01",
        _OPTIONS,
        "Content-Length: 13",
        "Content-Length: 5",
        body="There's no way to know",
        codes=(400, 200, 404),
    ),
    _message(
        "bcast",
        "SIP/2.0 200 OK",
        "Via: SIP/2.0/UDP 192.0.2.198;branch=z9hG4bK1324923",
        "Via: SIP/2.0/UDP 255.255.255.255;branch=z9hG4bK1saber23",
        "CSeq: 14 INVITE",
    ),
    _message("zeromf", _OPTIONS, "Max-Forwards: 0", codes=(200, 483, 404)),
    _message(
        "cparam01",
        "REGISTER sip:{gw} SIP/2.0",
        "Contact: sip:+19725552222@{me};unknownparam",
        codes=(405,),
    ),
    _message(
        "cparam02",
        "REGISTER sip:{gw} SIP/2.0",
        "Contact: <sip:+19725552222@{me};unknownparam>",
        codes=(405,),
    ),
    _message(
        "regescrt",
        "REGISTER sip:{gw} SIP/2.0",
        "Contact: <sip:user@{me}?Route=%3Csip:sip.example.com%3E>",
        codes=(405,),
    ),
    _message("sdp01", _INVITE, "Accept: text/nobodyKnowsThis", body=SDP, codes=(404, 406)),
    # 3.4: backward compatibility
    Torture(
        "inv2543",
        "INVITE sip:nowhere@{gw} SIP/2.0\r\nVia: {via};rport\r\n"
        "From: <sip:iuser@{me};user=phone>\r\n"
        "To: <sip:nowhere@{gw};user=phone>\r\nCall-ID: inv2543.torture\r\nCSeq: 56 INVITE\r\n"
        "Contact: <sip:iuser@{me}>\r\nContent-Type: application/sdp\r\nContent-Length: "
        f"{len(SDP)}\r\n\r\n{SDP}",
        frozenset((404, 400)),
    ),
    # What ended the process, or would
    _message("rr-no-scheme", _INVITE, "Record-Route: <127.0.0.1:5060;lr>", body=SDP, codes=_BAD),
    _message("route-no-scheme", _INVITE, "Route: <127.0.0.1:5060;lr>", body=SDP, codes=_BAD),
    _message("contact-tel", _INVITE, "Contact: <tel:+4930123>", body=SDP, codes=_BAD),
    _message(
        "sdp-long-host",
        _INVITE,
        body=SDP.replace("c=IN IP4 127.0.0.1", "c=IN IP4 " + "a" * 300),
        codes=(488,),
    ),
)
