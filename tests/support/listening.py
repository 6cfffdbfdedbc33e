# SPDX-License-Identifier: GPL-2.0-or-later
"""What was heard: looking for known bytes in what came, and for gaps in the stream."""

from __future__ import annotations

import re
from collections.abc import Sequence
from itertools import pairwise

from gateway.devtools.emulator.session_log import SessionRecord
from gateway.devtools.speech import pattern
from tests.support.rtp_end import FRAME, Packet

SILENCE = {0: b"\xff", 8: b"\xd5"}
"""A byte of silence by RTP payload type."""


def noise(seed: int, seconds: float) -> bytes:
    """Bytes of no order, without u-law's second zero; never the emulator's own."""
    return pattern(1_000_000 + seed, int(seconds * 8000))


def assert_continuous(packets: Sequence[Packet]) -> None:
    """Every packet is there: numbers go up by one and timestamps by 20 ms, all of one law."""
    assert packets
    for before, after in pairwise(packets):
        assert after.sequence == (before.sequence + 1) & 0xFFFF, "a packet is missing"
        assert after.timestamp == (before.timestamp + FRAME) & 0xFFFFFFFF, "the clock jumped"
    assert {len(packet.payload) for packet in packets} == {FRAME}
    assert len({packet.payload_type for packet in packets}) == 1


def is_silence(packet: Packet) -> bool:
    """Whether nothing is in it."""
    return packet.payload == SILENCE[packet.payload_type] * FRAME


def speech(packets: Sequence[Packet]) -> bytes:
    """All that was said, without the silence around it and between."""
    return b"".join(packet.payload for packet in packets if not is_silence(packet))


class Spoken:
    """An item of the agent, found again in what was heard."""

    def __init__(self, audio: bytes) -> None:
        self.audio = audio
        self._at = {audio[i : i + FRAME]: i for i in range(0, len(audio) - FRAME + 1, FRAME)}

    def packets_of(self, packets: Sequence[Packet]) -> list[Packet]:
        """The packets that carry a piece of it."""
        return [packet for packet in packets if packet.payload in self._at]

    def heard_ms(self, packets: Sequence[Packet]) -> int:
        """Up to which millisecond it was heard. Asserts that nothing before was left out."""
        places = [self._at[packet.payload] for packet in self.packets_of(packets)]
        assert places == list(range(0, len(places) * FRAME, FRAME)), places[:20]
        return len(places) * FRAME // 8


def assert_beep(told: str, hz: int, ms: int) -> None:
    """What is told of a tone, of which no packet was lost: measured in windows of 20 ms."""
    found = re.fullmatch(r"(\d+) Hz for (\d+) ms", told)
    assert found, told
    assert abs(int(found[1]) - hz) <= 2, told
    assert abs(int(found[2]) - ms) <= 20, told


MOST_OF_IT = 0.8
"""Share that is heard behind a jitter buffer on a busy machine: what comes 60 ms late is concealed.
With the wrong law, a hole in each frame or anybody else's words it is next to nothing."""


def share_heard(said: bytes, heard: bytes) -> float:
    """How much of what was said is in what was heard, in order, counted in pieces of 5 ms.

    A jitter buffer that shortens or repeats a little keeps the rest recognisable.
    """
    pieces = [said[at : at + 40] for at in range(0, len(said) - 39, 40)]
    found, at = 0, 0
    for piece in pieces:
        place = heard.find(piece, at)
        if place >= 0:
            found, at = found + 1, place + len(piece)
    return found / len(pieces)


def missing_frames(said: bytes, received: bytes) -> list[int]:
    """Which 20 ms of ``said`` did not come, by their numbers, each looked for behind the one
    before. What a late packet's place was filled with, on a machine that is busy, may stand
    between them."""
    at, missing = 0, []
    for start in range(0, len(said), FRAME):
        frame = said[start : start + FRAME]
        found = received.find(frame, at)
        if found < 0:
            missing.append(start // FRAME)
        else:
            at = found + len(frame)
    return missing


def assert_in_step(session: SessionRecord) -> None:
    """A second of audio has gone up each second of a Live session, frame by frame: never more, and
    no less once what a busy machine held up has come."""
    started, sent = session.sent("session.started")[0].at, 0
    ahead: list[tuple[float, float]] = []
    for at, size in session.appends:
        sent += size
        ahead.append((at, sent / 8000 - (at - started)))
    assert max(seconds for _, seconds in ahead) < 0.2, "faster than the time"
    late = max(seconds for at, seconds in ahead if at > ahead[-1][0] - 2)
    assert late > -0.2, "slower than the time"
    assert {size for _, size in session.appends} == {FRAME}


async def all_arrives(session: SessionRecord, said: bytes, within_s: float) -> None:
    """Wait until a session has all of ``said``. Raises ``AssertionError`` that names what lacks."""
    try:
        await session.wait_until(lambda s: not missing_frames(said, bytes(s.received)), within_s)
    except TimeoutError:
        missing = missing_frames(said, bytes(session.received))
        raise AssertionError(
            f"frames {missing} of {len(said) // FRAME} are not in {len(session.received)} bytes"
        ) from None
