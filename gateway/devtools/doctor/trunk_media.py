# SPDX-License-Identifier: GPL-2.0-or-later
"""What the RTP of a test call means: audio each way, keys, quality. Pure."""

from __future__ import annotations

from collections.abc import Iterator

from gateway.devtools.doctor import Finding, bad, ok, warn
from gateway.devtools.doctor.trunk_call import Attempt, Evidence
from gateway.devtools.doctor.trunk_login import Place
from gateway.devtools.doctor.trunk_messages import Audio, Packet, audio_of, shown

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
FEW = 5
"""Packets: fewer of them are no share of anything."""
RETURNED_MS = 300
"""Of our tone, to say that it came back."""


class Facts:
    """What the messages of one call say, and of those that were tried after it."""

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
        """A setting of the trunk, with file and line."""
        return self.place_of(key, self.trunk.name)

    @staticmethod
    def line_of(audio: Audio | None) -> str:
        if audio is None:
            return "nothing that can be read"
        return f"{audio.codecs} as {audio.keyed} at {audio.where}"

    @property
    def acks(self) -> list[Packet]:
        """Our ACKs of 2xx."""
        return [one for one in self.call.packets if one.sent and one.start.startswith("ACK ")]

    @property
    def repeated(self) -> list[Packet]:
        """200s that came again well after our ACK; some were under way with it."""
        acks = self.acks
        if not acks:
            return []
        finals = [one for one in self.answers if 200 <= one.status < 300]
        return [one for one in finals[1:] if one.at > acks[0].at + UNDER_WAY]

    @property
    def bye(self) -> Packet | None:
        """A BYE of the other side."""
        packets = self.call.packets
        return next((one for one in packets if not one.sent and one.start.startswith("BYE ")), None)


class MediaFindings(Facts):
    """Findings of the audio of one call."""

    @property
    def rtp(self) -> str:
        """Counts and addresses of RTP, each way."""
        quality = self.call.quality
        sent = received = 0
        if quality is not None:
            sent, received = quality.tx_packets, quality.rx_packets
        ours = "?" if self.offered is None else self.offered.where
        theirs = "?" if self.agreed is None else self.agreed.where
        source = self.call.rtp_source if received else ""
        came = f" from {source}" if source and source != theirs else ""
        return f"RTP sent {sent} packets to {theirs}, received {received}{came} at {ours}"

    @property
    def _their_report(self) -> str:
        """What the other side says by RTCP of what it has received; empty where nothing."""
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
        """Audio, each way."""
        call, sound, quality = self.call, self.call.sound, self.call.quality
        if not sound.sent_ms:
            return
        if self.explained or (self.bye is not None and not call.keys_sent):
            return  # that is said already
        received = 0 if quality is None else quality.rx_packets
        report = f"; {self._their_report}" if self._their_report else ""
        proof = (self.rtp + report, *shown(self.invite, self.answer))
        if sound.tone_ms >= RETURNED_MS:
            after = "" if sound.delay_ms is None else f" after {sound.delay_ms} ms"
            yield ok("", f"audio goes both ways: our tone came back{after}").of("audio")
        elif received <= FEW and self._reached_them:
            yield bad(
                "",
                f"one-way audio: nothing of the other side gets here (downlink), and what we send "
                f"arrives there{report}",
                f"is UDP to {self.place_of('sip.rtp_ports', '')} let in, and forwarded? "
                f"Is the address in our SDP right ({self.place_of('sip.public_address', '')})?",
            ).of("audio_down", *proof)
        elif received <= FEW:
            yield bad(
                "",
                f"no audio at all: {self.rtp}{report or '; no RTCP either'}. An echo sends nothing "
                "before it hears something, so the way to it may be the one that is closed",
                f"are the UDP ports of {self.place_of('sip.rtp_ports', '')} open both ways? The "
                "addresses in both descriptions below have to be reachable",
            ).of("audio_none", *proof)
        elif self._reached_them:
            yield warn(
                "",
                f"our tone did not come back, but what we send arrives{report}: is "
                f"{call.uri} an echo?",
                f"an echo number in {self.place('test_number')}",
            ).of("no_echo", *proof)
        else:
            heard = "its sound is heard" if sound.other_ms else "it sends silence"
            yield bad(
                "",
                f"one-way audio: what we send is not heard there (uplink): {heard}, and our tone "
                f"did not come back{report}",
                "is the address in the answer's SDP reachable, and UDP to it permitted? Does the "
                "other side learn where our RTP comes from (Asterisk: rtp_symmetric = yes)?",
            ).of("audio_up", *proof)

    def keys(self) -> Iterator[Finding]:
        """DTMF by RFC 4733."""
        call, agreed, offered = self.call, self.agreed, self.offered
        if agreed is None:
            return
        if not agreed.events:
            yield warn(
                "",
                "keys cannot be sent in RTP: the answer has no telephone-event (RFC 4733), only "
                f"{agreed.codecs}",
                "switch RFC 4733 on at the other side (Asterisk: dtmf_mode = rfc4733); else "
                'route.send_dtmf.mode = "info" and route.dtmf.inband = true',
            ).of("dtmf_not_offered", *shown(self.invite, self.answer))
            return
        if not call.keys_sent or call.sound.tone_ms < RETURNED_MS:
            return  # of a line that brings nothing back, nothing is known
        if call.keys_heard == call.keys_sent:
            yield ok("", f"keys come back: {call.keys_heard}").of("dtmf")
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
            yield bad("", fact, advice).of("dtmf_payload", *shown(self.invite, self.answer))
            return
        made = warn if call.keys_heard else bad
        yield made(
            "",
            fact,
            'DTMF at the other side (Asterisk: dtmf_mode = rfc4733); route.send_dtmf.mode = "info" '
            "where it takes INFO only",
        ).of("dtmf", *shown(self.invite, self.answer))

    def quality(self) -> Iterator[Finding]:
        """Loss, jitter and late packets, each way."""
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
            yield made("", fact, net).of("loss_down", *proof)
        up = 100 * quality.tx_lost / quality.tx_reported if quality.tx_reported else 0.0
        if up >= LOSS_WARN and quality.tx_lost > FEW and self._reached_them:
            made = bad if up >= LOSS_BAD else warn
            fact = f"{up:.1f} % of the packets to the other side are lost; {self._their_report}"
            yield made("", fact, net).of("loss_up", *proof)
        if quality.rx_jitter_ms >= JITTER_WARN:
            fact = f"the packets to us have a jitter of {quality.rx_jitter_ms:.0f} ms"
            advice = f"{net}; {self.place('packet_wait_ms')} waits longer for late ones"
            yield warn("", fact, advice).of("jitter", *proof)
        late = 100 * quality.rx_discarded / expected
        if late >= LATE_WARN and quality.rx_discarded > FEW and self.evidence.stall_ms < STALL_MS:
            fact = f"{late:.1f} % of the packets to us come too late to be heard"
            advice = f"{net}; {self.place('packet_wait_ms')} waits longer for them"
            yield warn("", fact, advice).of("late", *proof)
