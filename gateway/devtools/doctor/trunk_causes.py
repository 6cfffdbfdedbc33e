# SPDX-License-Identifier: GPL-2.0-or-later
"""Judges registration, refused logins, status codes and the media of a test call. Pure."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial

from gateway.devtools import doctor
from gateway.devtools.doctor import Finding
from gateway.devtools.doctor.trunk_call import Attempt, Evidence
from gateway.devtools.doctor.trunk_messages import (
    Audio,
    Packet,
    audio_of,
    has_credentials,
    host_port_of,
    phrase_of,
    realm_of,
    seen_by,
    shown,
    via_of,
)
from gateway.sip import Trunk
from gateway.sip.messages.headers import parameter_of, split_list
from gateway.text import whole_number

SHORT_EXPIRES = 60
"""Seconds: a registration that is granted for less is refreshed all the time."""
NAT_SECONDS = 30
"""Binding of a NAT without traffic, for UDP (RFC 4787 section 4.3 asks for 120, few have it)."""
Place = Callable[[str, str], str]
"""Names a setting of the configuration, or of a trunk, with its file and line."""

ok, warn, bad = partial(doctor.ok, ""), partial(doctor.warn, ""), partial(doctor.bad, "")
"""Findings without a subject: :func:`.trunk_findings.judge` sets the name of the trunk."""


def registration(evidence: Evidence, place: Place) -> Iterator[Finding]:
    packets, trunk = evidence.registration, evidence.trunk
    if evidence.own_port is not None:
        taken, used = evidence.own_port
        fact = f"port {taken} is in use, so a gateway runs: called from port {used}"
        yield ok(f"{fact}; nothing was registered, the gateway's binding stays").of("own_port")
    if evidence.registered is None or not packets:
        return
    asked = next((one for one in packets if one.sent and one.method == "REGISTER"), None)
    final = next(
        (one for one in packets if not one.sent and one.status >= 200 and one.status != 401), None
    )
    if evidence.registered != "registered":
        yield from _login_failed(packets, trunk, place)
        return
    if final is None or asked is None:
        return
    granted = _granted(final)
    fact = f"registered as {trunk.username}"
    if granted is None:
        yield ok(fact).of("registered")
    elif granted < min(SHORT_EXPIRES, trunk.expires):
        yield warn(
            f"registration is granted for {granted} s, {trunk.expires} s were asked: the gateway "
            "registers all the time, and is unreachable whenever one is lost",
            f"raise the longest expiry at the registrar (Asterisk: maximum_expiration of the AOR); "
            f"{place('expires', trunk.name)} asks for more already",
        ).of("register_expires", *shown(asked, final))
    else:
        yield ok(f"{fact} for {granted} s").of("registered")
    yield from _binding(trunk, asked, final, granted)


def _binding(trunk: Trunk, asked: Packet, final: Packet, granted: int | None) -> Iterator[Finding]:
    """Yield that a NAT is in between, where its binding must outlive the time between REGISTERs."""
    seen, own = seen_by(final), host_port_of(via_of(asked))
    if not seen or seen == own or trunk.transport != "udp" or not granted:
        return
    if granted > 2 * NAT_SECONDS:
        yield ok(
            f"a NAT is in between: the registrar sees {seen} for {own}. Its binding outlives "
            f"{NAT_SECONDS} s by the gateway's keep-alives only, every 15 s",
        ).of("nat_binding")


def _login_failed(packets: tuple[Packet, ...], trunk: Trunk, place: Place) -> Iterator[Finding]:
    answers = [one for one in packets if not one.sent and one.method == "REGISTER"]
    requests = [one for one in packets if one.sent and one.method == "REGISTER"]
    if not answers:
        yield bad(
            f"REGISTER was sent {len(requests)} times and nobody answered",
            f"are {place('registrar', trunk.name)} and {place('transport', trunk.name)} right? "
            "Does a firewall drop it?",
        ).of("register_unanswered", *shown(*requests[-1:]))
        return
    yield refused_login(packets, trunk, place)


def refused_login(packets: tuple[Packet, ...], trunk: Trunk, place: Place) -> Finding:
    """Return the finding for a refused REGISTER, or for an INVITE refused with 401 or 407."""
    answers = [one for one in packets if not one.sent and one.status >= 300]
    last = answers[-1]
    method = last.method
    tried = [one for one in packets if one.sent and one.method == method and has_credentials(one)]
    realms = [realm_of(one) for one in answers if one.status in (401, 407)]
    realm = realms[-1] if realms else ""
    said = f"{last.status} {phrase_of(last)}"
    proof = shown(*([*tried, last][-2:]))
    if realms and not tried:
        if "*" not in trunk.realms and realm not in trunk.realms:
            names = ", ".join(trunk.realms)
            return bad(
                f"the password is asked for by realm {realm!r}, and the realm of the configuration "
                f"is {names!r}: nothing was sent",
                f'{place("realm", trunk.name)} has to be {realm!r}, or "*"',
            ).of("realm", *proof)
        if not trunk.password:
            return bad(
                f"{method} is answered {said}: a password is asked for, and there is none",
                f"set {place('username', trunk.name)} and {place('password', trunk.name)}",
            ).of("password", *proof)
        return bad(
            f"{method} is challenged ({said}) and no credentials were sent",
            f"{place('realm', trunk.name)}; the password is sent only to addresses of the trunk "
            f"itself: {place('peers', trunk.name)}, registrar, outbound_proxy",
        ).of("realm", *proof)
    if last.status == 404:
        return bad(
            f"{method} of {trunk.username} is answered {said}: that user is not known there",
            f"{place('username', trunk.name)}, and whether {place('registrar', trunk.name)} is "
            "its domain",
        ).of("user", *proof)
    if last.status in (401, 403, 407) and tried:
        return bad(
            f"the password of {trunk.username} is not accepted: {method} with credentials is "
            f"answered {said}",
            f"{place('password', trunk.name)}, {place('username', trunk.name)}; some carriers have "
            "an authentication name beside the number",
        ).of("password", *proof)
    if last.status == 423:
        least = last.header("min-expires") or "more"
        return bad(
            f"the registrar wants at least {least} s between registrations",
            f"{place('expires', trunk.name)} = {least}",
        ).of("register_expires", *proof)
    meaning, advice = meaning_of(last.status)
    return bad(f"{method} is answered {said}: {meaning}", advice).of("register_refused", *proof)


def _granted(answer: Packet) -> int | None:
    """Return the longest expiry (s) in a 200 to REGISTER; None where it has none."""
    found = [
        parameter_of(one.partition(">")[2].lstrip(";"), "expires")
        for field in answer.headers.get("contact", ())
        for one in split_list(field)
    ]
    numbers = [whole_number(one or "") for one in (*found, answer.header("expires"))]
    return max((one for one in numbers if one is not None), default=None)


MEANINGS = {
    400: (
        "it could not read the request",
        "the message below; a SIP ALG in a router may mangle it",
    ),
    403: (
        "it knows whom it speaks with, and forbids the call",
        "the caller id that it wants (trunk.caller_id), the destinations it permits, and whether "
        "it expects calls from this address and port",
    ),
    404: (
        "the number is not known there",
        "the form of the number: with or without +, country code or a prefix",
    ),
    405: ("it takes no calls at this address", "trunk.registrar, trunk.peers"),
    408: (
        "what is behind the trunk did not answer in time",
        "the far end of this number; the trunk itself answers",
    ),
    410: ("the number exists no more", "another test number"),
    420: ("it does not know an extension that is required", "sip.session_timers"),
    480: (
        "nobody is there for this number now",
        "whether the telephone or service behind it is registered",
    ),
    482: ("the call came back to where it had been: a loop", "the dialplan of the other side"),
    483: ("the call ran in a circle (Max-Forwards)", "the dialplan of the other side"),
    484: ("digits are missing", "the form of the number"),
    486: ("the number is busy", "call again; or calls at a time are limited there"),
    487: ("the call was cancelled", "call again"),
    500: ("an error of the other side", "its log"),
    502: ("what is behind the trunk answered nonsense", "its log"),
    503: (
        "it is overloaded, has no way to this number, or all channels are taken",
        "the number of channels of the contract; its route; [trunk] max_concurrent_calls",
    ),
    504: ("what is behind the trunk did not answer in time", "its route for this number"),
    600: ("the number is busy everywhere", "call again"),
    603: ("the call was declined", "whether this caller id is blocked there"),
}


def meaning_of(code: int) -> tuple[str, str]:
    if code in MEANINGS:
        return MEANINGS[code]
    kind = {3: "the call is sent elsewhere, which is not followed", 5: "an error of its own"}
    return kind.get(code // 100, "it refuses"), "the message below"


LOSS_WARN, LOSS_BAD = 1.0, 5.0
"""Percent of the packets of one direction. Concealment is heard from about 1 % on."""
JITTER_WARN = 20.0
"""ms, as a mean: packets that are 60 ms late are among them (``packet_wait_ms``)."""
LATE_WARN = 2.0
"""Percent that came too late to be heard."""
UNDER_WAY = 0.5
"""Seconds after an ACK in which what was sent before it may still come."""
STALL_MS = 30
"""A machine that lets the doctor wait for so long makes packets late itself."""
_ONE_WAY = {
    "sendonly": "sends, and does not listen",
    "recvonly": "listens, and sends nothing",
    "inactive": "neither sends nor listens",
}
"""What the other side does with such a direction in its answer (RFC 3264 section 6.1)."""
FEW = 5
"""Packets: fewer of them are no share of anything."""
RETURNED_MS = 300
"""Of our tone, to say that it came back."""


class Facts:
    """The SIP messages of a test call, sorted out, and the calls that were tried after it."""

    def __init__(self, evidence: Evidence, attempts: tuple[Attempt, ...], place: Place) -> None:
        self.evidence = evidence
        self.trunk = evidence.trunk
        self.call = attempts[0]
        self.others = attempts[1:]
        self.place_of = place
        packets = self.call.packets
        invites = [one for one in packets if one.sent and one.start.startswith("INVITE ")]
        self.invite = invites[-1] if invites else None
        self.invites = invites
        self.explained = False
        """An address is wrong, of which silence is a consequence."""
        answers = [one for one in packets if not one.sent and one.method == "INVITE" and one.status]
        self.final = next((one for one in reversed(answers) if one.status >= 200), None)
        self.answers = answers
        described = [one for one in answers if 101 <= one.status < 300 and audio_of(one)]
        self.answer = next((one for one in described if one.status >= 200), None)
        self.answer = self.answer or (described[-1] if described else None)
        self.offered, self.agreed = audio_of(self.invite), audio_of(self.answer)

    def place(self, key: str) -> str:
        """Return the name of a key of the trunk, with file and line."""
        return self.place_of(key, self.trunk.name)

    @staticmethod
    def line_of(audio: Audio | None) -> str:
        if audio is None:
            return "nothing that can be read"
        return f"{audio.codecs} as {audio.keyed} at {audio.where}"

    @property
    def acks(self) -> list[Packet]:
        """Return our ACKs of 2xx."""
        return [one for one in self.call.packets if one.sent and one.start.startswith("ACK ")]

    @property
    def repeated(self) -> list[Packet]:
        """Return 200s that came again well after our ACK, and so were not crossing it."""
        acks = self.acks
        if not acks:
            return []
        finals = [one for one in self.answers if 200 <= one.status < 300]
        return [one for one in finals[1:] if one.at > acks[0].at + UNDER_WAY]

    @property
    def bye(self) -> Packet | None:
        """Return a BYE of the other side, or None."""
        packets = self.call.packets
        return next((one for one in packets if not one.sent and one.start.startswith("BYE ")), None)


class MediaFindings(Facts):
    """Judges audio, DTMF and RTP quality of a test call."""

    @property
    def rtp(self) -> str:
        """Counts and addresses of RTP in each direction, in words."""
        quality = self.call.quality
        sent = received = 0
        if quality is not None:
            sent, received = quality.tx_packets, quality.rx_packets
        ours = "?" if self.offered is None else self.offered.where
        theirs = "?" if self.agreed is None else self.agreed.where
        came = f" from {self._elsewhere}" if self._elsewhere else ""
        return f"RTP sent {sent} packets to {theirs}, received {received}{came} at {ours}"

    @property
    def _elsewhere(self) -> str:
        """Where RTP comes from, if that is not the address of the answer's SDP."""
        quality, source = self.call.quality, self.call.rtp_source
        received = quality is not None and quality.rx_packets > 0
        told = self.agreed is not None and self.agreed.where == source
        return source if received and not told else ""

    @property
    def _their_report(self) -> str:
        """Return what the other side reports by RTCP of what it received; "" for nothing."""
        quality = self.call.quality
        if quality is None or not quality.tx_reports or not quality.tx_reported:
            return ""
        got = quality.tx_reported - quality.tx_lost
        return f"by RTCP it has received {got} of {quality.tx_reported} packets"

    @property
    def _reached_them(self) -> bool:
        quality = self.call.quality
        return (
            bool(self._their_report)
            and quality is not None
            and (quality.tx_lost < quality.tx_reported / 2)
        )

    def media(self) -> Iterator[Finding]:
        """Yield findings about audio in each direction."""
        call, sound, quality = self.call, self.call.sound, self.call.quality
        way = "" if self.agreed is None else self.agreed.direction
        if way in _ONE_WAY:
            yield bad(
                f"the answer's SDP has a={way}: the other side {_ONE_WAY[way]}",
                "is the number an announcement, or on hold there? Its log; a number that speaks "
                f"and listens in {self.place('test_number')}",
            ).of("held", *shown(self.invite, self.answer))
            return
        if not sound.sent_ms:
            return
        if self.explained or (self.bye is not None and not call.keys_sent):
            return  # that is said already
        received = 0 if quality is None else quality.rx_packets
        report = f"; {self._their_report}" if self._their_report else ""
        proof = (self.rtp + report, *shown(self.invite, self.answer))
        if sound.tone_ms >= RETURNED_MS:
            after = "" if sound.delay_ms is None else f" after {sound.delay_ms} ms"
            yield ok(f"audio goes both ways: our tone came back{after}").of("audio")
        elif self._elsewhere:
            theirs = "?" if self.agreed is None else self.agreed.where
            yield bad(
                f"RTP comes from {self._elsewhere}, and the answer's SDP names {theirs}. We send "
                f"to where it comes from (symmetric RTP), and our tone did not come back{report}",
                "make the other side receive where it sends from (RFC 4961), or name in its SDP "
                "the address that it sends from",
            ).of("rtp_source", *proof)
        elif received <= FEW and self._reached_them:
            yield bad(
                f"one-way audio: nothing of the other side gets here (downlink), and what we send "
                f"arrives there{report}",
                f"is UDP to {self.place_of('sip.rtp_ports', '')} let in, and forwarded? "
                f"Is the address in our SDP right ({self.place_of('sip.public_address', '')})?",
            ).of("audio_down", *proof)
        elif received <= FEW:
            yield bad(
                f"no audio at all: {self.rtp}{report or '; no RTCP either'}. An echo sends nothing "
                "before it hears something, so the way to it may be the one that is closed",
                f"are the UDP ports of {self.place_of('sip.rtp_ports', '')} open both ways? The "
                "addresses in both descriptions below have to be reachable",
            ).of("audio_none", *proof)
        elif self._reached_them:
            yield warn(
                f"our tone did not come back, but what we send arrives{report}: is "
                f"{call.uri} an echo?",
                f"an echo number in {self.place('test_number')}",
            ).of("no_echo", *proof)
        else:
            heard = "its sound is heard" if sound.other_ms else "it sends silence"
            yield bad(
                f"one-way audio: what we send is not heard there (uplink): {heard}, and our tone "
                f"did not come back{report}",
                "is the address in the answer's SDP reachable, and UDP to it permitted? Does the "
                "other side learn where our RTP comes from (Asterisk: rtp_symmetric = yes)?",
            ).of("audio_up", *proof)

    def keys(self) -> Iterator[Finding]:
        """Yield findings about DTMF by RFC 4733."""
        call, agreed, offered = self.call, self.agreed, self.offered
        if agreed is None:
            return
        if not agreed.events:
            yield warn(
                "keys cannot be sent in RTP: the answer has no telephone-event (RFC 4733), only "
                f"{agreed.codecs}",
                "switch RFC 4733 on at the other side (Asterisk: dtmf_mode = rfc4733); else "
                'route.send_dtmf.mode = "info" and route.dtmf.inband = true',
            ).of("dtmf_not_offered", *shown(self.invite, self.answer))
            return
        if not call.keys_sent or call.sound.tone_ms < RETURNED_MS:
            return  # of a line that brings nothing back, nothing is known
        if call.keys_heard == call.keys_sent:
            yield ok(f"keys come back: {call.keys_heard}").of("dtmf")
            return
        fact = f"keys are lost: sent {call.keys_sent} as telephone-event with payload type "
        fact += f"{agreed.events}, "
        fact += f"came back {call.keys_heard}" if call.keys_heard else "none came back"
        if offered is not None and offered.events != agreed.events:
            fact += (
                f". Offered was payload type {offered.events}, answered {agreed.events}: one side "
                "sends what the other does not listen to"
            )
            advice = "make the other side answer with the payload type of the offer"
            self.explained = True
            yield bad(fact, advice).of("dtmf_payload", *shown(self.invite, self.answer))
            return
        made = warn if call.keys_heard else bad
        yield made(
            fact,
            'DTMF at the other side (Asterisk: dtmf_mode = rfc4733); route.send_dtmf.mode = "info" '
            "where it takes INFO only",
        ).of("dtmf", *shown(self.invite, self.answer))

    def quality(self) -> Iterator[Finding]:
        """Yield findings about loss, jitter and late packets in each direction."""
        quality = self.call.quality
        if quality is None or quality.rx_packets <= FEW or self.explained:
            return  # an echo counts packets that it could not return
        expected = quality.rx_packets + quality.rx_lost
        down = 100 * quality.rx_lost / expected
        proof = (
            self.rtp,
            f"received {quality.rx_packets}, lost {quality.rx_lost}, late "
            f"{quality.rx_discarded}, jitter {quality.rx_jitter_ms:.1f} ms",
        )
        net = "the network on the way: a full line, Wi-Fi, a duplex mismatch; QoS for UDP ports of "
        net += self.place_of("sip.rtp_ports", "")
        if down >= LOSS_WARN and quality.rx_lost > FEW:
            made = bad if down >= LOSS_BAD else warn
            fact = f"{down:.1f} % of the packets to us are lost"
            yield made(fact, net).of("loss_down", *proof)
        up = 100 * quality.tx_lost / quality.tx_reported if quality.tx_reported else 0.0
        if up >= LOSS_WARN and quality.tx_lost > FEW and self._reached_them:
            made = bad if up >= LOSS_BAD else warn
            fact = f"{up:.1f} % of the packets to the other side are lost; {self._their_report}"
            yield made(fact, net).of("loss_up", *proof)
        if quality.rx_jitter_ms >= JITTER_WARN:
            fact = f"the packets to us have a jitter of {quality.rx_jitter_ms:.0f} ms"
            advice = f"{net}; {self.place('packet_wait_ms')} waits longer for late ones"
            if self.evidence.stall_ms >= STALL_MS:
                own = f"this machine let the doctor wait for {self.evidence.stall_ms} ms"
                advice = f"{own}: examine again when it has less to do; else {advice}"
            yield warn(fact, advice).of("jitter", *proof)
        late = 100 * quality.rx_discarded / expected
        if late >= LATE_WARN and quality.rx_discarded > FEW and self.evidence.stall_ms < STALL_MS:
            fact = f"{late:.1f} % of the packets to us come too late to be heard"
            advice = f"{net}; {self.place('packet_wait_ms')} waits longer for them"
            yield warn(fact, advice).of("late", *proof)
