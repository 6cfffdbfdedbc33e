# SPDX-License-Identifier: GPL-2.0-or-later
"""Black boxes: what cannot be written ends them and never their call; what they have of the wire is
SIP without secrets and RTP headers in few bytes, within bounds."""

from __future__ import annotations

import contextlib
import json
import random
from typing import Any

import pytest

from gateway.bridge import black_box
from gateway.bridge.black_box import WireLog, packet_lines
from gateway.bridge.replay import BlackBoxError, Packet, packets_of, replay
from gateway.devtools.timeline.black_box import Stream
from gateway.sip.signalling import MessageLog
from gateway.text import json_text
from tests.support.call_fakes import FakeLeg
from tests.support.call_scene import ACK, BYE, SPEECH, UP, Scene, key


def test_what_cannot_be_written_ends_the_black_box_and_not_the_call(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    scene = Scene()
    scene.do(UP, ACK)
    before = len(scene.black_box)
    plain = black_box.plain

    def failing(value: object, *more: object) -> object:
        if value is SPEECH:
            raise TypeError("no form for this")
        return plain(value, *more)  # type: ignore[arg-type]

    monkeypatch.setattr(black_box, "plain", failing)
    scene.do(SPEECH, key("1"), BYE)
    assert scene.ending == ("caller", "remote_hangup", 200)
    assert [line[:8] for line in scene.black_box[before:]] == ['{"ended"']
    with pytest.raises(BlackBoxError, match="no form for this"):
        replay(scene.black_box)


def test_a_line_that_a_kill_has_cut_is_the_end() -> None:
    scene = Scene()
    scene.do(UP, ACK, key("1"), BYE)
    lines = [f"{line}\n" for line in scene.black_box]
    whole = replay(lines)
    cut = replay([*lines[:-1], lines[-1][:20]])
    assert (list(cut.differences), cut.steps) == ([], whole.steps - 1)
    with pytest.raises(BlackBoxError, match="no JSON"):
        replay([*lines[:3], "{\n", *lines[3:]])


def hostile(line: str) -> list[str]:
    """A line with one thing changed for something that a file may hold, too."""
    read = json.loads(line)
    changed: list[str] = []
    for name, inner in read.items():
        for odd in ODD:
            changed.append(json.dumps({**read, name: odd}).replace('"@"', DEEP))
        if isinstance(inner, dict):
            changed += [json.dumps({**read, name: {**inner, "$": odd}}) for odd in ODD[:3]]
    return changed


DEEP = "[" * 50_000 + "]" * 50_000
ODD = (
    None,
    -1,
    1e308,
    "@",
    {"$": "os.system"},
    {"$": "gateway.call.inputs.Nothing"},
    {"$": "bytes", "length": 10**13},
    {"$": "bytes", "length": -1},
    {"$": "pattern", "pattern": "(", "flags": 0},
    {"$": "gateway.ending.Party", "value": "nobody"},
    {"$": "map", "pairs": [[1, 2, 3]]},
    {"$": "map", "pairs": [[[], 1]]},
)


def test_files_that_are_wrong_on_purpose() -> None:
    """Each is replayed, with differences, or is no black box; none takes the memory it names."""
    scene = Scene()
    scene.do(UP, ACK, key("1"), SPEECH, BYE)
    lines = [f"{line}\n" for line in scene.black_box]
    found = 0
    for at in (0, 1, len(lines) - 1):
        for line in hostile(lines[at]):
            with contextlib.suppress(BlackBoxError):
                replay([*lines[:at], line + "\n", *lines[at + 1 :]])
                continue
            found += 1
    assert found > 40


INFO = b"INFO sip:100@gw SIP/2.0\nContent-Type: application/dtmf-relay\n\nSignal=7\nDuration=160\n"


def add(log: MessageLog, call_id: str, data: bytes = b"x", method: str = "INVITE") -> None:
    log.add(call_id, method, "2001:db8::1", 5060, "udp", data, sent=False)


class Audio:
    """RTP of a call, made up."""

    def __init__(self) -> None:
        self.data = b""
        self.asked: tuple[int, bool] | None = None

    def log_packets(self, max_bytes: int, payload: bool) -> None:
        self.asked = max_bytes, payload

    def take_packets(self) -> tuple[bytes, int]:
        data, self.data = self.data, b""
        return data, 0


def test_legs_have_numbers_and_a_call_that_is_replaced_keeps_its_own() -> None:
    log, audio, other = MessageLog(), Audio(), Audio()
    first, successor, second = (FakeLeg(name).leg for name in "acb")
    log.wanted = True
    legs: list[Any] = [(first, audio)]
    wire = WireLog(log, lambda: legs, with_payload=True, masked=True)
    wire.log_packets(audio)  # type: ignore[arg-type]
    assert audio.asked == (black_box.PACKETS_BYTES, False), "no payload where keys are masked"
    add(log, "a", INFO)
    assert [(one["leg"], one["sip"]) for one in wire.lines()] == [(0, "in")]
    legs[:] = [(successor, audio), (second, other)]
    for one in ("a", "b", "c"):
        add(log, one)
    audio.data = other.data = native(Packet(100.0, 7, 0, 1, 160, 0), sent=False)
    lines = list(wire.lines())
    assert [one["leg"] for one in lines if "sip" in one] == [0, 1, 2]
    assert [one["leg"] for one in lines if "rtp" in one] == [1, 2]
    assert "Signal" not in json.dumps(list(wire.lines()))


def test_a_leg_that_a_browser_has_called_is_no_callers() -> None:
    log = MessageLog()
    log.wanted = True
    legs: list[Any] = [(FakeLeg("").leg, None), (FakeLeg("b").leg, None)]
    add(log, "b")
    assert [
        one["leg"] for one in WireLog(log, lambda: legs, with_payload=False, masked=False).lines()
    ] == [1]


def test_sip_of_one_call_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(black_box, "SIP_BYTES", 10)
    log = MessageLog()
    log.wanted = True
    legs: list[Any] = [(FakeLeg("a").leg, None)]
    wire = WireLog(log, lambda: legs, with_payload=False, masked=False)
    for _ in range(3):
        add(log, "a", b"12345")
    *_messages, last = wire.lines()
    assert last == {"sip_left_out": 1, "leg": 0}


def native(one: Packet, sent: bool, payload: bytes = b"") -> bytes:
    facts = (round(one.at * 1e6), one.ssrc, one.timestamp, one.sequence, one.size, len(payload))
    return black_box._PACKET.pack(*facts, one.type | one.marker << 7, sent) + payload


@pytest.mark.parametrize("step", [160, 960])
def test_packets_are_the_same_when_they_are_read(step: int) -> None:
    rng = random.Random(1)
    packets = [Packet(100.0, 7, 0xFFFFFF00, 0xFFFE, 160, 0, True)]
    for number in range(200):
        last = packets[-1]
        odd = rng.random() < 0.1
        packets.append(
            Packet(
                round(last.at + rng.choice([0.02, 0.0195, 0.3]), 4),
                rng.choice([7, 8]) if odd else last.ssrc,
                (last.timestamp + step) & 0xFFFFFFFF,
                (last.sequence + (rng.choice([2, 3, 65535]) if odd else 1)) & 0xFFFF,
                4 if number % 50 == 7 else 160,
                101 if number % 50 == 7 else 0,
            )
        )
    data = b"".join(native(one, number % 2 == 1, b"ab") for number, one in enumerate(packets))
    back, out = packet_lines(data, 0)
    assert (back["rtp"], out["rtp"]) == ("in", "out")
    read = packets_of(json.loads(json.dumps(back)))
    for one, was in zip(read, packets[::2], strict=True):
        assert abs(one.at - was.at) < 0.0002
        same = ("ssrc", "timestamp", "sequence", "size", "type", "marker")
        assert [getattr(one, name) for name in same] == [getattr(was, name) for name in same]
    assert list(packet_lines(b"", 3)) == [{"rtp_left_out": 3, "leg": 0}]


@pytest.mark.parametrize(("step", "differ", "most"), [(160, 0, 410), (960, 9, 600)])
def test_a_second_of_rtp_takes_few_bytes(step: int, differ: int, most: int) -> None:
    data = b"".join(
        native(Packet(100 + n / 50, 7, n * step, n, 60 + n % 7 * differ, 0), sent=False)
        for n in range(50)
    )
    (line,) = packet_lines(data, 0)
    assert len(json_text(line)) < most
    assert [one.size for one in packets_of(line)] == [60 + n % 7 * differ for n in range(50)]


def test_loss_order_repeats_and_sources_of_rtp_are_counted() -> None:
    stream = Stream()
    numbers = [1, 2, 5, 4, 4, 6, 65535]
    packets = [Packet(10 + n / 50, 1, 0, number, 160, 0) for n, number in enumerate(numbers[:6])]
    packets.append(Packet(11.0, 2, 0, 9, 160, 0))
    packets.append(Packet(11.5, 2, 0, 10, 160, 0))
    stream.add(packets[:3], 10.0)
    stream.add(packets[3:], 10.0)
    assert (stream.packets, stream.lost, stream.reordered, stream.repeated) == (8, 1, 1, 1)
    words = [words for _at, words, _trouble in stream.happenings]
    assert words[0] == "begins: SSRC 00000001, type 0"
    assert words[1] == "2 packets missing"
    assert "has another source: SSRC 00000002, type 0" in words
    assert words[-1] == "goes on after 500 ms without a packet"
