# SPDX-License-Identifier: GPL-2.0-or-later
"""The bench's own parts, where a mistake would give figures that look right."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from gateway.audio import Codec
from gateway.sip.call_audio import CallAudio, Source

from . import figures, marks, proc, report, wire
from .sip_call import SipCall


@pytest.mark.parametrize("piece", [1, 7, 40, 160, 161, 1000])
def test_marks_are_found_in_pieces_of_any_size(piece: int) -> None:
    frames = [(3, 0), (3, 1), (4095, 0xFFFFF), (7, 65536)]
    shift = b"\xff" * 40
    audio = shift + b"".join(marks.frame(*mark) for mark in frames)
    finder = marks.Finder()
    found = [
        mark
        for start in range(0, len(audio), piece)
        for mark in finder.feed(audio[start : start + piece])
    ]
    assert found == frames


def test_frames_are_20_ms_and_speech_and_silence_have_no_marks() -> None:
    assert len(marks.frame(1, 1)) == len(marks.speech(1)) == len(marks.SILENCE) == marks.FRAME
    assert list(marks.find(marks.speech(50) + marks.SILENCE)) == []
    assert b"\x7f" not in marks.frame(1, 1) + marks.speech(1)


def _masked(payload: bytes, opcode: int = wire.TEXT) -> bytes:
    mask = os.urandom(4)
    mixed = bytes(byte ^ mask[index % 4] for index, byte in enumerate(payload))
    size = len(payload)
    if size < 126:
        head = bytes((0x80 | opcode, 0x80 | size))
    elif size < 65536:
        head = bytes((0x80 | opcode, 0x80 | 126)) + size.to_bytes(2, "big")
    else:
        head = bytes((0x80 | opcode, 0x80 | 127)) + size.to_bytes(8, "big")
    return head + mask + mixed


@pytest.mark.parametrize("size", [0, 1, 125, 126, 300, 65535, 65536])
def test_client_frames_are_cut_and_unmasked(size: int) -> None:
    payloads = [os.urandom(size), b"x", os.urandom(size)]
    data = b"".join(_masked(payload) for payload in payloads)
    # The last frame has not come wholly: it is left for later.
    frames = list(wire.client_frames(data[:-1]))
    assert [wire.unmasked(data, start, end) for _code, start, end in frames] == payloads[:2]
    assert len(list(wire.client_frames(data))) == 3


@pytest.mark.parametrize("size", [0, 125, 126, 65535, 65536])
def test_server_frames_say_their_length(size: int) -> None:
    framed = wire.frame(bytes(size))
    head = {0: 2, 125: 2, 126: 4, 65535: 4, 65536: 10}[size]
    assert len(framed) == head + size
    assert framed[0] == 0x81


def test_delays_count_what_never_came_and_only_the_window() -> None:
    sent = [(1, 0, 0), (1, 1, 20_000_000), (1, 2, 40_000_000), (2, 1, 60_000_000)]
    heard = [(1, 0, 5_000_000), (1, 1, 50_000_000), (2, 1, 75_000_000)]
    delays, lost, total = figures.delays_ms(sent, heard, (10_000_000, 70_000_000))
    assert (delays, lost, total) == ([30.0, 15.0], 1, 3)


def test_spacing_is_by_call() -> None:
    heard = [(1, 0, 0), (2, 1_000_000, 0), (1, 20_000_000, 0), (2, 26_000_000, 0)]
    assert figures.spacing_ms(heard, (0, 1 << 62)) == [20.0, 25.0]


def test_interruptions_tell_speech_after_it_and_a_wrong_truncation() -> None:
    # Ten frames said; three heard before the interruption at 100 ms, one 12 ms after it.
    heard = [(5, 20_000_000 * n, n, n) for n in range(3)] + [(5, 112_000_000, 3, 3)]
    commands = [(5, "conversation.item.truncate", 0, {"item_id": "i", "audio_end_ms": 60})]
    cut = figures.interruptions([(5, 0, 10, 100_000_000, "i")], heard, commands)
    assert (cut.last_ms, cut.packets, cut.late_heard) == ([12.0], [1], 0)
    assert cut.truncation_error_ms == [20]


def test_spread_is_by_rank() -> None:
    spread = figures.Spread.of(float(n) for n in range(1, 101))
    assert (spread.p50, spread.p95, spread.p99, spread.highest) == (51.0, 96.0, 100.0, 100.0)
    assert figures.Spread.of([]) == figures.NONE


class _Wire:
    """A call and what it sent, first lines only."""

    def __init__(self) -> None:
        self.sent: list[str] = []
        self.call = SipCall(self._send, ("127.0.0.1", 5060), "127.0.0.1:9", "x", 4000)
        self.call.invite(0)

    def _send(self, data: bytes) -> None:
        self.sent.append(data.decode().split(" ")[0])

    def receive(self, start: str, method: str, *headers: str, body: str = "") -> None:
        lines = [start, f"CSeq: 1 {method}", "To: <sip:x@y>;tag=1", *headers]
        self.call.receive("\r\n".join(lines) + "\r\n\r\n" + body, 1000)


def test_a_call_is_answered_and_hung_up() -> None:
    wires = _Wire()
    wires.receive("SIP/2.0 100 Trying", "INVITE")
    wires.receive("SIP/2.0 200 OK", "INVITE", body="m=audio 4002 RTP/AVP 0")
    assert wires.call.up
    assert wires.call.media == ("127.0.0.1", 4002)
    wires.call.hang_up(2000)
    wires.receive("SIP/2.0 200 OK", "BYE")
    assert wires.call.outcome == "remote_hangup"
    assert wires.sent == ["INVITE", "ACK", "BYE"]


def test_a_cancel_waits_for_a_provisional_response_and_may_cross_the_answer() -> None:
    wires = _Wire()
    wires.call.hang_up(1)
    assert wires.sent == ["INVITE"]
    wires.receive("SIP/2.0 180 Ringing", "INVITE")
    wires.receive("SIP/2.0 200 OK", "CANCEL")
    wires.receive("SIP/2.0 200 OK", "INVITE")
    wires.receive("SIP/2.0 200 OK", "BYE")
    assert wires.sent == ["INVITE", "CANCEL", "ACK", "BYE"]
    assert wires.call.outcome == "crossed"


def test_a_refusal_and_its_retry_after_are_kept() -> None:
    wires = _Wire()
    wires.receive("SIP/2.0 503 Service Unavailable", "INVITE", "Retry-After: 5")
    assert (wires.call.outcome, wires.call.retry_after) == ("refused_503", "5")


def test_an_unanswered_request_is_sent_again_and_then_given_up() -> None:
    wires = _Wire()
    wires.call.on_time(500_000_000)
    assert wires.sent == ["INVITE", "INVITE"]
    wires.call.on_time(33_000_000_000)
    assert wires.call.outcome == "silent_INVITE"


def test_this_process_is_seen() -> None:
    usage = proc.look(os.getpid())
    assert usage.rss_kib > 1000
    assert usage.threads >= 1
    assert usage.descriptors >= 3
    assert usage.names[os.getpid()]


def test_figures_are_renewed_between_their_marks(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text(f"before\n{report.BEGIN}\nold\n{report.END}\nafter\n")
    report.renew(page, "new\n")
    assert page.read_text() == f"before\n{report.BEGIN}\nnew\n{report.END}\nafter\n"
    page.write_text("nothing")
    with pytest.raises(ValueError, match="no place for figures"):
        report.renew(page, "new\n")


def test_the_page_has_a_place_for_figures() -> None:
    text = report.DOCS.read_text()
    assert text.index(report.BEGIN) < text.index(report.END)


def test_events_are_json() -> None:
    framed = wire.delta("r", "i", marks.speech(1))
    event = json.loads(framed[4:])
    assert event["type"] == "response.output_audio.delta"
    assert marks.decoded(event["delta"]) == marks.speech(1)


def test_chords_are_found_behind_g722_and_24_khz() -> None:
    phone, session, sent = marks.G722(), marks.Wide(24000), range(1000)
    queues = CallAudio(Codec.G722, 10).uplink
    queues.listen(Source.PACKETS)
    up = b""
    for number in sent:
        queues._queues.receive(number * 20000, 1, number, number * 160, phone.frame(3, number), 2)
        up += queues.drain()
    assert session.feed(up) == [(3, number) for number in sent]
    assert list(marks.G722().find(marks.G722().speech(50))) == []
