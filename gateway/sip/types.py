# SPDX-License-Identifier: GPL-2.0-or-later
"""What the SIP side tells the rest of the gateway, in plain values: no pjsua2 object leaves it."""

from __future__ import annotations

import secrets
import time
import uuid
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Protocol

from gateway.audio.codecs import G711, Codec
from gateway.ending import EndReason


class AgentError(Exception):
    """The user agent could not start; the message names the setting and the cause."""


def new_call_id() -> str:
    """The gateway's own id of a call: a UUIDv7 (RFC 9562 section 5.7), sorted by time.

    The SIP Call-ID is the caller's choice: two calls may have the same, and it may be longer, or
    look otherwise, than file names, commands and logs can take.
    """
    bits = time.time_ns() // 1_000_000 << 80 | secrets.randbits(80)
    bits = bits & ~(0xF << 76) | 7 << 76  # the version
    return str(uuid.UUID(int=bits & ~(3 << 62) | 2 << 62))  # the variant


@dataclass(frozen=True, slots=True)
class Invite:
    """An INVITE, as routes and records need it. ``headers`` is keyed by lower-case full name."""

    sip_call_id: str
    """Its Call-ID, which is the caller's choice; empty while a call of ours has none yet."""
    to_uri: str
    from_uri: str
    to_user: str
    from_user: str
    from_name: str
    source: str
    """``address:port`` the request came from."""
    headers: Mapping[str, tuple[str, ...]]
    offered: tuple[Codec, ...] | None
    """G.711 codecs offered, the one to take first; None when the INVITE brought no offer."""
    trunk: str = ""
    """Name of the trunk that it belongs to."""
    attributed_by: str = ""
    """registration, registrar or peer: how that was found."""
    transport: str = ""
    """udp, tcp or tls, as it came."""
    there: bool = False
    """Whoever sent it is known to be where it came from: over UDP anybody can forge that."""
    codecs: tuple[Codec, ...] = G711
    """What we offer where the INVITE brought no offer: its trunk's, in their order."""
    call_id: str = field(default_factory=new_call_id)
    """The gateway's own id of the call."""

    @property
    def trusted(self) -> bool:
        """Whether the source is known, so that a session may be opened before its ACK."""
        return self.there or bool(self.trunk)


@dataclass(frozen=True, slots=True)
class Refused:
    """An INVITE that was answered below the application: no common codec, no free call."""

    invite: Invite | None
    """None where the library no longer had the message."""
    code: int
    reason: str
    why: EndReason | None = None
    """Where it is known; else the code has to say it."""


@dataclass(frozen=True, slots=True)
class LegEnd:
    """How a leg ended, as SIP saw it."""

    code: int
    """Last status code: 200 after a BYE, 487 after a CANCEL, the refusal otherwise; 0 where a call
    of ours reached nobody."""
    reason: str
    """Its reason phrase."""
    method: str
    """BYE or CANCEL when the peer ended the leg with one, else empty."""
    reason_header: str
    """The Reason header (RFC 3326) of that request, else empty."""
    local: bool
    """True when we ended it."""
    undelivered: str = ""
    """What became of a BYE of ours that was not taken: the other side may think the call is up."""


@dataclass(frozen=True, slots=True)
class Heard:
    """Quality of one direction since the last second, or since the other side's last RTCP
    report."""

    loss_percent: float
    """What came too late to be heard included, for what we receive."""
    jitter_ms: float
    mos: float
    """Estimated, 1 to 4.5: see :mod:`gateway.sip.rtp`."""


@dataclass(frozen=True, slots=True)
class RtpQuality:
    """RTP counters of a leg so far, from RTCP's point of view (RFC 3550 section 6.4).

    Those of what we send (``tx``) come from the peer's RTCP reports; ``tx_reports`` is 0 until the
    first one.
    """

    rx_packets: int
    rx_lost: int
    rx_jitter_ms: float
    """Mean of the call so far."""
    tx_packets: int
    rx_discarded: int = 0
    """Came too late for the jitter buffer."""
    rx_reordered: int = 0
    rx_duplicates: int = 0
    tx_lost: int = 0
    tx_reports: int = 0
    tx_reported: int = 0
    """Packets that we had sent by the last report: ``tx_lost`` are of these."""
    buffer_ms: float = 0.0
    """Delay in our jitter buffer."""
    rtt_ms: float | None = None
    """There and back, by RTCP; None before it is known."""
    expected: bool = True
    """False while the peer's description says that it sends nothing (RFC 3264 section 5.1)."""
    rx: Heard | None = None
    """None when nothing came and nothing was to come."""
    tx: Heard | None = None


@dataclass(frozen=True, slots=True)
class UplinkCounts:
    """Counts of what became of a caller's RTP packets; in packets unless the name says
    otherwise."""

    packets: int
    lost: int
    """Not there within the time that they were waited for."""
    late: int
    """Came after their place had been filled; left out."""
    reordered: int
    """Overtaken on the way, and put into their place."""
    duplicates: int
    foreign: int
    """Of a source that was followed before, or with a number far from all others; left out."""
    source_changes: int
    """Times that another SSRC, or sequence numbers that began anew, were followed."""
    timestamp_jumps: int
    """Timestamps that no time explains; the sequence numbers are followed."""
    filled_ms: int
    """Silence in the place of lost packets and of pauses between packets."""
    standing_in_ms: int
    """Silence sent in real time while no packet came."""
    overtaken_ms: int
    """The part of it that was too much: packets came late, and are heard all the same."""
    dropped_ms: int
    """Audio that the event loop did not take in time."""


@dataclass(frozen=True, slots=True)
class BridgeFailure:
    """An operation of the bridge that failed after it was accepted."""

    operation: str
    source: int
    sink: int
    status: int


class LegHandler(Protocol):
    """Interface of the owner of a leg. All calls come on the event loop, in order."""

    def on_ringing(self, code: int) -> None:
        """Handle a provisional response to a call that we placed."""

    def on_media(self, codec: Codec) -> None:
        """Handle media that came up, or changed to this codec."""

    def on_confirmed(self) -> None:
        """Handle the ACK of the dialog, received or sent."""

    def on_hold(self, held: bool) -> None:
        """Handle a hold or resumption by the peer (RFC 3264 section 8.4)."""

    def on_digit(self, digit: str) -> None:
        """Handle a DTMF digit of the peer: one of ``0-9 * # A-D`` (RFC 4733)."""

    def on_quality(self, quality: RtpQuality) -> None:
        """Handle RTP counters, about once a second."""

    def on_ended(self, end: LegEnd) -> None:
        """Handle the end of the leg; nothing is called after this."""


class IgnoringHandler:
    """Handler that ignores everything; a base of those that look at little of a leg."""

    def on_ringing(self, code: int) -> None: ...
    def on_media(self, codec: Codec) -> None: ...
    def on_confirmed(self) -> None: ...
    def on_hold(self, held: bool) -> None: ...
    def on_digit(self, digit: str) -> None: ...
    def on_quality(self, quality: RtpQuality) -> None: ...
    def on_ended(self, end: LegEnd) -> None: ...


@dataclass(frozen=True, slots=True)
class Transition:
    """A start (``playing``) or end of playout at ``at`` (``time.monotonic()``, s)."""

    playing: bool
    at: float


@dataclass(frozen=True, slots=True)
class RecorderCounts:
    """Counts of the frames (20 ms) of a recording."""

    frames: int
    """All that the recording is long."""
    dropped: int
    """In whose place there is silence, since the writer took none for too long."""
    silenced: int
    """Of which nothing is kept, as somebody wanted."""
    shifted_samples: int
    """Of the caller, left out, or of silence put in, to follow the clock of playout."""
