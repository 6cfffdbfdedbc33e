# SPDX-License-Identifier: GPL-2.0-or-later
"""Judges the test call of a trunk: faults, the messages that prove them, remedies.

Pure: everything is read from :class:`.trunk_call.Evidence`.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from gateway.addresses import host_of, is_inside, is_loopback, is_name
from gateway.devtools.doctor import Finding
from gateway.devtools.doctor.trunk_call import Evidence
from gateway.devtools.doctor.trunk_causes import (
    RETURNED_MS,
    MediaFindings,
    Place,
    bad,
    meaning_of,
    ok,
    refused_login,
    registration,
    warn,
)
from gateway.devtools.doctor.trunk_messages import Packet, phrase_of, seen_by, shown, via_of
from gateway.sip.messages.headers import parameter_of, uri_of

TIMER_H = (29.0, 34.0)
"""Seconds after the answer: 64 * T1 (RFC 3261 section 13.3.1.4), with what delays it."""
RTP_TIMEOUT = 4.0
"""Seconds: the shortest silence that anybody ends a call for."""


def judge(evidence: Evidence, place: Place) -> list[Finding]:
    """Return all findings about one trunk: registration first, then the test call."""
    return [replace(one, subject=f"trunk {evidence.trunk.name}") for one in _judge(evidence, place)]


def _judge(evidence: Evidence, place: Place) -> Iterator[Finding]:
    if evidence.failed:
        yield bad(evidence.failed, "sip.listen and sip.tls are those of the gateway").of("start")
        return
    yield from registration(evidence, place)
    if evidence.attempts:
        yield from _Judge(evidence, evidence.attempts, place).all()


class _Judge(MediaFindings):
    """Judges signalling and addresses of a test call, and calls :class:`MediaFindings`."""

    def all(self) -> Iterator[Finding]:
        yield from self.timers()
        if self.call.answered is None:
            yield from self.own_address()
            yield from self.not_answered()
            return
        took = f"answered {self.call.uri} after {self.call.answered:.1f} s"
        codec = "no audio" if self.call.codec is None else self.call.codec.value
        rest = f"{codec}, {self.call.security or 'no media'}, {self.rtp}"
        yield ok(f"{took}: {rest}").of("answered")
        yield from self.own_address()
        yield from self.their_address()
        yield from self.acknowledged()
        yield from self.ended()
        yield from self.media()
        yield from self.keys()
        yield from self.quality()

    # -- no answer

    def not_answered(self) -> Iterator[Finding]:
        call, final, end = self.call, self.final, self.call.end
        if final is None:
            yield from self.unanswered()
            return
        said = f"{final.status} {phrase_of(final)}"
        if final.status in (401, 407):
            yield refused_login(call.packets, self.trunk, self.place_of)
        elif final.status in (415, 488, 606):
            yield from self.not_acceptable(final, said)
        elif final.status in (420, 421, 422):
            return  # timers() has it
        elif final.status < 300:
            why = "" if end is None else end.reason
            if self.agreed is not None and not self.agreed.media.port:
                why = "its audio line has port 0, which declines audio"
            yield bad(
                f"the answer cannot be used: {why}. Offered {self.line_of(self.offered)}; answered "
                f"{self.line_of(self.agreed)}",
                f"{self.place('codecs')}, {self.place('srtp')}, and what the other side permits",
            ).of("answer_unusable", *shown(self.invite, final))
        else:
            meaning, advice = meaning_of(final.status)
            known = f"; Reason: {final.header('reason')}" if final.header("reason") else ""
            if final.header("warning"):
                known += f"; Warning: {final.header('warning')}"
            yield bad(
                f"the call to {call.uri} is refused with {said}: {meaning}{known}", advice
            ).of(f"refused_{final.status}", *shown(self.invite, final))
            yield from self.port_matters()

    def unanswered(self) -> Iterator[Finding]:
        """Yield why no final response came."""
        end = self.call.end
        provisional = [one for one in self.answers if one.status > 100]
        if not self.invites:
            why = "" if end is None else end.reason
            yield bad(
                f"the call could not be sent: {why}",
                f"{self.place('outbound_proxy')}, {self.place('registrar')}, "
                f"{self.place('transport')}",
            ).of("not_sent")
            return
        times = len(self.invites)
        if provisional:
            yield warn(
                f"{provisional[-1].start} and no answer: the number rings, and nobody is there",
                "a test number that answers by itself",
            ).of("no_answer", *shown(self.invite, provisional[-1]))
            return
        size = len(self.invites[0].text.replace("\n", "\r\n").encode())
        big = size > 1300 and self.trunk.transport == "udp"
        advice = "does a firewall or SIP ALG drop INVITEs? Is it the address that takes calls?"
        if big:
            advice += f' It has {size} bytes, and UDP fragments may be lost: transport = "tcp"'
        trying = ", only with 100 Trying" if self.answers else ""
        yield bad(
            f"INVITE was sent {times} times to {self.invites[0].transport}:{self.invites[0].peer}, "
            f"and not answered{trying}",
            f"{advice} {self.place('peers')}, {self.place('outbound_proxy')}",
        ).of("invite_unanswered", *shown(self.invite))
        yield from self.port_matters()

    def port_matters(self) -> Iterator[Finding]:
        """Yield that the trunk may want the gateway's own port."""
        if self.evidence.own_port is not None and self.trunk.transport == "udp":
            taken, used = self.evidence.own_port
            yield warn(
                f"the call came from port {used} as a gateway has {taken}: a trunk that knows us "
                "by address and port refuses it for that alone",
                "stop the gateway and run the doctor again to be sure",
            ).of("port_matters")

    def not_acceptable(self, final: Packet, said: str) -> Iterator[Finding]:
        """Yield why 488 came: codecs or SRTP, as calls with other settings showed."""
        worked = next((one for one in self.others if one.code not in (0, 415, 488, 606)), None)
        warning = f"; Warning: {final.header('warning')}" if final.header("warning") else ""
        offered = self.line_of(self.offered)
        if worked is not None:
            kind = "srtp" if "srtp" in worked.changed else "codec"
            code = f"{worked.code}" if worked.code else "an answer"
            proof = [one for one in worked.packets if one.method == "INVITE" and not one.sent]
            proof = [one for one in proof if one.status >= 180][:1]
            if kind == "srtp":
                off = worked.changed == 'srtp = "off"'
                want = "takes no SRTP, only plain RTP" if off else "wants SRTP"
                fact = f"{said}: the other side {want}. Offered {offered}; with {worked.changed} "
                fact += f"the same call gets {code}"
                advice = f"{self.place('srtp')}: {worked.changed}"
                if not off and self.trunk.transport != "tls" and "dtls" not in worked.changed:
                    advice += '; keys would go in clear: transport = "tls" too'
            else:
                fact = (
                    f"{said}: no common codec. Offered {offered}; with {worked.changed} the same "
                )
                fact += f"call gets {code}"
                advice = f"{self.place('codecs')}: {worked.changed}"
            yield bad(f"{fact}{warning}", advice).of(kind, *shown(self.invite, final, *proof))
            return
        tried = ", ".join(one.changed for one in self.others)
        yield bad(
            f"{said}: no common codec. Offered {offered}{warning}; refused as well with {tried}",
            "permit G.711 (ulaw or alaw) for this trunk at the other side (Asterisk: allow = "
            "ulaw,alaw), or transcoding there",
        ).of("codec", *shown(self.invite, final))

    # -- session timers

    def timers(self) -> Iterator[Finding]:
        """Yield findings about session timers (RFC 4028): 420, 421, 422."""
        place = self.place_of("sip.session_timers", "")
        for one in self.answers:
            if one.status == 422:
                least = one.header("min-se") or "more"
                fact = f"422: its shortest session interval (Min-SE) is {least} s"
                mine = self.invites[0].header("session-expires").partition(";")[0]
                fact += f", {mine} s were asked" if mine else ""
                advice = f"{self.place_of('sip.session_expires', '')}: at least {least}"
                proof = shown(self.invites[0], one)
                if self.call.answered is None:
                    yield bad(fact, advice).of("session_timer", *proof)
                else:
                    yield warn(f"{fact}; the second INVITE, with {least} s, was taken", advice).of(
                        "session_timer", *proof
                    )
                return
            fact = ""
            if one.status == 421 and "timer" in one.header("require").lower():
                fact = "421: it takes no call without session timers (RFC 4028), which are off here"
            if one.status == 420 and "timer" in one.header("unsupported").lower():
                fact = "420: it knows no session timers (RFC 4028), which are required here"
            if fact:
                proof = shown(self.invites[0], one)
                yield bad(fact, f'{place}: "optional"').of("session_timer", *proof)
                return
        final = self.final
        if final is None or final.status >= 300 or self.call.answered is None:
            return
        refresher = parameter_of(final.header("session-expires").partition(";")[2], "refresher")
        if refresher == "uac" and self.evidence.settings.session_timers == "off":
            yield bad(
                "the answer makes us refresh the session, and session timers are off here: the "
                "other side ends the call when the interval is over",
                f'{place}: "optional"',
            ).of("session_timer", *shown(final))

    # -- addresses

    def own_address(self) -> Iterator[Finding]:
        """Yield where our SDP and Contact have another address than the other side sees."""
        offered, invite = self.offered, self.invite
        answer = next((one for one in self.answers if via_of(one)), None)
        if offered is None or invite is None or answer is None:
            return
        seen = host_of(seen_by(answer))
        mine = offered.address
        contact = host_of(uri_of(invite.header("contact")))
        if not seen or is_name(seen):
            return
        sip = self.place_of("sip.public_address", "")
        wrong = [
            (name, host) for name, host in (("SDP", mine), ("Contact", contact)) if host != seen
        ]
        wrong = [(name, host) for name, host in wrong if host and not is_name(host)]
        if not wrong:
            return
        what = " and ".join(f"{name} {host}" for name, host in wrong)
        private = any(is_inside(host) for _name, host in wrong) and not is_inside(seen)
        kind = "a private address, which nobody outside can send to" if private else "another one"
        fact = f"the other side sees us at {seen}, and we name in {what}: {kind}"
        advice = f"{sip} = {seen!r}"
        if self.evidence.settings.public_address:
            advice = f"{sip} is {self.evidence.settings.public_address!r}; it has to be {seen!r}"
        advice += ", with the RTP ports forwarded"
        silent = self.call.answered is not None and self.call.sound.tone_ms < RETURNED_MS
        made = bad if silent or self.call.answered is None or private else warn
        self.explained = self.explained or silent
        yield made(fact, advice).of("nat", *shown(invite, answer))

    def their_address(self) -> Iterator[Finding]:
        """Yield where the answer's SDP has another address than the answer came from."""
        agreed, answer = self.agreed, self.answer
        if agreed is None or answer is None or is_name(agreed.address):
            return
        source = answer.peer.rpartition(":")[0].strip("[]")
        theirs = agreed.address
        if theirs in ("0.0.0.0", "::"):
            return
        unreachable = is_inside(theirs) and not is_inside(source)
        unreachable |= is_loopback(theirs) is not is_loopback(source)
        if not unreachable:
            return
        returned = self.call.sound.tone_ms >= RETURNED_MS
        so = "what we send goes nowhere"
        if returned:
            so = "heard all the same, as RTP is sent to where theirs comes from once it has come: "
            so += "until then, and where they do not speak first, nothing of us is heard"
        self.explained = self.explained or not returned
        yield (warn if returned else bad)(
            f"the answer's SDP names {agreed.where}, an address that cannot be reached from here "
            f"(the answer itself came from {source}): {so}",
            "the other side's NAT settings (Asterisk: external_media_address and local_net of the "
            "transport, direct_media = no; a carrier's SBC: symmetric RTP)",
        ).of("sdp_address", *shown(answer))

    # -- ACK and BYE

    def acknowledged(self) -> Iterator[Finding]:
        """Yield where repeated 200s show that our ACK is lost (RFC 3261 section 13.3.1.4)."""
        repeated, acks = self.repeated, self.acks
        # That which was acknowledged: a proxy may repeat another one.
        answer = next((one for one in self.answers if 200 <= one.status < 300), None)
        if len(repeated) < 2 or answer is None:
            return
        ack = acks[0]
        times = f"200 OK came {len(repeated) + 1} times although it was acknowledged each time"
        bye = self.bye
        when = (
            f"; {self._after(bye)} it sent BYE"
            if bye is not None
            else ("; after 64 * T1 (32 s) it will send BYE")
        )
        contact = uri_of(answer.header("contact"))
        route = answer.header("record-route")
        named = f"Record-Route {route}" if route else f"Contact {contact}"
        if ack.peer != answer.peer:
            fact = (
                f"our ACK does not reach them: {times}{when}. The ACK goes to {ack.peer}, "
                f"which the {named} of its answer names, and the answer came from {answer.peer}: "
                "the fault is on the other side, that address is not reachable from here"
            )
            advice = (
                "its address in Contact (Asterisk: external_signaling_address), or "
                f"a proxy that stays in the call: {self.place('outbound_proxy')}"
            )
        else:
            fact = (
                f"our ACK does not reach them: {times}{when}. The ACK went to {ack.peer}, "
                f"where the answer came from, as {named} says: it is lost on the way or not known "
                "there"
            )
            advice = (
                "a firewall or SIP ALG in between (switch the ALG off), or the other side's log"
            )
        yield bad(fact, advice).of("ack_lost", *shown(answer, ack, bye))

    def _after(self, bye: Packet) -> str:
        began = self.answers[-1].at if not self.acks else self.acks[0].at
        return f"{bye.at - began:.1f} s after the answer"

    def ended(self) -> Iterator[Finding]:
        """Yield who ended the call before the doctor did."""
        call, bye, end = self.call, self.bye, self.call.end
        if bye is None or end is None or end.local or len(self.repeated) >= 2:
            return
        reason = bye.header("reason")
        said = f", Reason: {reason}" if reason else ", without a Reason"
        fact = f"the other side ended the call with BYE {self._after(bye)}{said}"
        advice = "is it a number that stays in the call? Its log says why it hung up"
        held = bye.at - (self.acks[0].at if self.acks else bye.at)
        if TIMER_H[0] <= held <= TIMER_H[1]:
            fact += "; that is its timer for an ACK that has not come, or for RTP that has not"
            advice = "whether RTP of ours gets there, and its RTP timeout"
        elif held > RTP_TIMEOUT and call.sound.tone_ms < RETURNED_MS:
            advice = f"{advice}; it may have heard nothing of us (RTP timeout)"
        yield warn(fact, advice).of("bye", *shown(bye))
