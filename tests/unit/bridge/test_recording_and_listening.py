# SPDX-License-Identifier: GPL-2.0-or-later
"""Those who listen in to a call: what each gets, and what is dropped."""

from __future__ import annotations

import asyncio
from typing import Any, cast

import pytest

from gateway.audio import Codec
from gateway.bridge import recording_and_listening
from gateway.bridge.recording_and_listening import (
    MAX_LISTENERS,
    QUEUED_FRAMES,
    STEREO_FRAME_BYTES,
    FullError,
    Listeners,
)
from gateway.sip.call_audio import RecorderCounts


class Monitor:
    """Both sides of a call: what a test puts there."""

    def __init__(self) -> None:
        self.sound = b""
        self.dropped = 0
        self.did: list[Any] = []

    def start(self, frames: int) -> None:
        self.did.append("start")

    def end(self) -> None:
        self.did.append("end")

    def silence(self, silent: bool) -> None:
        self.did.append(silent)

    def take(self) -> bytes:
        found, self.sound = self.sound, b""
        return found

    @property
    def counts(self) -> RecorderCounts:
        return RecorderCounts(0, self.dropped, 0, 0)


def frame(number: int) -> bytes:
    return bytes([number % 256]) * STEREO_FRAME_BYTES


def test_each_gets_all_until_the_call_is_over(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(recording_and_listening, "LOOK_SECONDS", 0.001)
    monitor = Monitor()
    made = Listeners(cast(Any, monitor), lambda: Codec.PCMA)

    async def run() -> None:
        made.conceal(True)
        one, other = made.join(), made.join()
        assert one.codec is Codec.PCMA
        assert monitor.did == [True, "start", True], "what is concealed stays so"
        monitor.sound = frame(1) + frame(2)
        assert [await one.next(), await other.next()] == [(0, frame(1) + frame(2))] * 2
        made.leave(other)
        monitor.sound, monitor.dropped = frame(3), 7
        assert await one.next() == (7, frame(3))
        made.leave(one)
        assert monitor.did[-1] == "end"
        again = made.join()  # before the first task has noticed that nobody was there
        monitor.sound, monitor.dropped = frame(4), 0
        assert await again.next() == (0, frame(4))
        made.end()
        assert await again.next() is None
        assert await made.join().next() is None

    asyncio.run(run())


def test_a_slow_one_loses_the_oldest_and_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monitor = Monitor()
    made = Listeners(cast(Any, monitor), lambda: Codec.PCMU)

    async def run() -> None:
        there = [made.join() for _ in range(MAX_LISTENERS)]
        with pytest.raises(FullError):
            made.join()
        there[0].put([frame(number) for number in range(QUEUED_FRAMES + 5)])
        found = await there[0].next()
        assert found is not None
        assert (found[0], found[1][:1], len(found[1])) == (
            5,
            b"\x05",
            QUEUED_FRAMES * STEREO_FRAME_BYTES,
        )
        made.end()

    asyncio.run(run())
