# SPDX-License-Identifier: GPL-2.0-or-later
"""Lines of a black box that say what was on the wire: SIP messages of both legs, headers of RTP.

A line of SIP has ``sip`` (``in`` or ``out``), ``leg`` (0 is the caller's, others are those of
transfers), ``peer``, ``transport`` and ``text``. A line of RTP has ``rtp`` (``in`` or ``out``),
``leg``, the first packet of up to a second (``seq``, ``ts``, ``ssrc``, ``type``, ``size`` of its
payload), the ``gaps`` between arrivals (0.1 ms), by how much the timestamp rises (``step``), all
``sizes`` where they differ, and those packets that do not follow the one before (``odd``).
"""

from __future__ import annotations

import base64
import json
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from struct import Struct
from typing import TYPE_CHECKING, Any

import orjson

from gateway.audio.codecs import FRAME_BYTES

if TYPE_CHECKING:
    from gateway.sip.leg import Leg
    from gateway.sip.media.ports import CallAudio
    from gateway.sip.message_log import MessageLog

PACKETS_BYTES = 128 * 1024
"""Headers of one leg that wait to be written: a minute of a call in which nothing happens."""
PAYLOAD_BYTES = 1024 * 1024
"""The same with payloads."""
SIP_BYTES = 8 * 1024 * 1024
"""Of the messages of one call; further ones are counted only."""

_PACKET = Struct("=QIIHHHBB")
"""As ``NativeCallAudio::takePackets`` has it."""


@dataclass(frozen=True, slots=True)
class Packet:
    """The header of an RTP packet (RFC 3550 section 5.1), and when it came or was sent."""

    at: float
    """``time.monotonic()`` seconds."""
    ssrc: int
    timestamp: int
    sequence: int
    size: int
    """Bytes of payload."""
    type: int
    marker: bool = False


class WireLog:
    """Collects the SIP messages and RTP headers of a call for its black box.

    Args:
        messages: where the messages of calls wait.
        legs: returns the legs of the call so far, its own first, each with the audio that logs
            its packets, where there is one.
        with_payload: keep the payloads of RTP, too.
        masked: leave out DTMF digits: bodies other than SDP.
    """

    def __init__(
        self,
        messages: MessageLog,
        legs: Callable[[], Iterable[tuple[Leg, CallAudio | None]]],
        *,
        with_payload: bool,
        masked: bool,
    ) -> None:
        self._messages = messages
        self._on_wire = legs
        self._masked = masked
        self._sip_left = SIP_BYTES
        self._payload = with_payload and not masked
        self._legs: dict[Leg, int] = {}

    def log_packets(self, audio: CallAudio) -> None:
        """Have the packets of an audio logged, as far as the black box wants them."""
        audio.log_packets(PAYLOAD_BYTES if self._payload else PACKETS_BYTES, self._payload)

    def lines(self, last: bool = False) -> Iterator[dict[str, Any]]:
        """Yield the lines since the last call; with ``last``, messages are followed no further."""
        streams = list(self._on_wire())
        for leg, _audio in streams:
            self._legs.setdefault(leg, len(self._legs))
        for leg, number in self._legs.items():  # those that others have replaced, too
            if leg.invite.sip_call_id:  # none in a browser
                yield from self._sip(leg.invite.sip_call_id, number, last)
        for leg, audio in streams:
            if audio is not None:
                yield from packet_lines(*audio.take_packets(), self._legs[leg])

    def _sip(self, call_id: str, leg: int, last: bool) -> Iterator[dict[str, Any]]:
        """Yield the SIP messages of one leg, and how many did not fit."""
        messages, lost = self._messages.take(call_id, last=last)
        for one in messages:
            if len(one.data) > self._sip_left:
                lost += 1
                continue
            self._sip_left -= len(one.data)
            yield {
                "at": one.at,
                "sip": "out" if one.sent else "in",
                "leg": leg,
                "peer": one.peer,
                "transport": one.transport,
                "text": one.text(with_body=not self._masked),
            }
        if lost:
            yield {"sip_left_out": lost, "leg": leg}


def packet_lines(data: bytes, lost: int, leg: int = 0) -> Iterator[dict[str, Any]]:
    """Yield the lines of these RTP packets of a leg, one for each direction."""
    ways: tuple[list[_Facts], list[_Facts]] = [], []
    payloads: tuple[list[bytes], list[bytes]] = [], []
    at = 0
    while at < len(data):
        *facts, kept, kind, sent = _PACKET.unpack_from(data, at)
        at += _PACKET.size
        ways[sent].append((*facts, kind))
        if kept:
            payloads[sent].append(data[at : at + kept])
            at += kept
    for name, packets, payload in zip(("in", "out"), ways, payloads, strict=True):
        if packets:
            yield _line(name, leg, packets, b"".join(payload))
    if lost:
        yield {"rtp_left_out": lost, "leg": leg}


_Facts = tuple[int, int, int, int, int, int]
"""Microseconds, SSRC, timestamp, sequence number, size of the payload, marker and type."""


def _line(name: str, leg: int, packets: Sequence[_Facts], payload: bytes) -> dict[str, Any]:
    """Return one line for packets of one direction of a leg."""
    at, ssrc, timestamp, sequence, size, kind = packets[0]
    gaps: list[int] = []
    odd: list[list[int]] = []
    sizes = [one[4] for one in packets]
    differ = any(one != size for one in sizes)  # those of Opus do
    steps = Counter((after[2] - before[2]) & 0xFFFFFFFF for before, after in pairwise(packets))
    step = steps.most_common(1)[0][0] if steps else FRAME_BYTES
    line: dict[str, Any] = {
        "at": at / 1e6,
        "rtp": name,
        "leg": leg,
        "ssrc": ssrc,
        "type": kind & 0x7F,
        "marker": kind > 0x7F,
        "seq": sequence,
        "ts": timestamp,
        "size": size,
        "step": step,
        "gaps": gaps,
        "odd": odd,
    }
    if differ:
        line["sizes"] = sizes
    kind &= 0x7F
    told = 0
    for one in packets[1:]:
        # Counted from the first, so that rounding does not add up.
        now = (one[0] - at + 50) // 100
        gaps.append(now - told)
        told = now
        sequence, timestamp = (sequence + 1) & 0xFFFF, (timestamp + step) & 0xFFFFFFFF
        if one[1:] != (ssrc, timestamp, sequence, one[4] if differ else size, kind):
            _at, ssrc, timestamp, sequence, size, marked = one
            kind = marked & 0x7F
            odd.append([len(gaps), sequence, timestamp, ssrc, kind, size, int(marked > 0x7F)])
    if payload:
        line["payload"] = base64.b64encode(payload).decode()
    return line


def packets_of(line: Mapping[str, Any]) -> list[Packet]:
    """Return the packets of a line of RTP. Raises KeyError, TypeError or ValueError."""
    odd = {index: facts for index, *facts in line["odd"]}
    step = line.get("step", FRAME_BYTES)
    sizes = line.get("sizes")
    if sizes and len(sizes) <= len(line["gaps"]):
        raise ValueError("a line of RTP has fewer sizes than packets")
    one = Packet(
        line["at"], line["ssrc"], line["ts"], line["seq"], line["size"], line["type"],
        bool(line["marker"]),
    )  # fmt: skip
    packets = [one]
    for index, gap in enumerate(line["gaps"], 1):
        sequence, timestamp, ssrc, kind, size, marker = odd.get(index) or (
            (one.sequence + 1) & 0xFFFF,
            (one.timestamp + step) & 0xFFFFFFFF,
            one.ssrc,
            one.type,
            sizes[index] if sizes else one.size,
            0,
        )
        one = Packet(one.at + gap / 10_000, ssrc, timestamp, sequence, size, kind, bool(marker))
        packets.append(one)
    return packets


def as_text(line: Mapping[str, Any]) -> str:
    """Return a line as JSON; characters that UTF-8 does not have are escaped."""
    try:
        return orjson.dumps(line).decode()
    except TypeError:  # a surrogate in what a stranger sent
        return json.dumps(line, separators=(",", ":"))
