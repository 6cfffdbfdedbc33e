# SPDX-License-Identifier: GPL-2.0-or-later
"""The beat: one for all calls, and no call in another's way."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable

from structlog.testing import capture_logs

from gateway.bridge.media import MediaClock


def _run(scenario: Callable[[MediaClock], object]) -> None:
    async def main() -> None:
        pump = MediaClock()
        steps = scenario(pump)
        assert hasattr(steps, "__await__")
        await steps

    asyncio.run(main())


async def _turns(count: int = 3) -> None:
    for _ in range(count):
        await asyncio.sleep(0)


def test_many_frames_make_one_beat() -> None:
    async def scenario(pump: MediaClock) -> None:
        beats: list[str] = []
        pump.add(lambda: beats.append("a"))
        pump.add(lambda: beats.append("b"))
        for _ in range(100):
            pump.wake()
        await _turns()
        assert sorted(beats) == ["a", "b"]
        pump.wake()
        await _turns()
        assert sorted(beats) == ["a", "a", "b", "b"]

    _run(scenario)


def test_a_wake_during_a_beat_makes_another() -> None:
    async def scenario(pump: MediaClock) -> None:
        beats: list[int] = []

        def move() -> None:
            beats.append(len(beats))
            if len(beats) == 1:
                pump.wake()

        pump.add(move)
        pump.wake()
        await _turns(5)
        assert beats == [0, 1]

    _run(scenario)


def test_one_call_that_fails_leaves_the_others_their_audio() -> None:
    async def scenario(pump: MediaClock) -> None:
        beats = [0] * 5

        def working(index: int) -> Callable[[], None]:
            def move() -> None:
                beats[index] += 1

            return move

        def failing() -> None:
            raise ValueError("odd audio")

        def failing_too() -> None:
            raise KeyError("no such call")

        for index in range(5):
            pump.add(working(index))
            pump.add((failing, failing_too)[index % 2])
        for _ in range(3):
            pump.wake()
            await _turns()
        assert beats == [3] * 5
        assert pump.faults == 6

    with capture_logs() as logs:
        _run(scenario)
    # Fifty lines a second would help nobody.
    assert [line["event"] for line in logs] == ["media.fault"] * 2


def test_a_call_that_ends_in_a_beat_gets_no_more_of_it() -> None:
    async def scenario(pump: MediaClock) -> None:
        beats: list[str] = []

        def first() -> None:
            beats.append("first")
            pump.remove(second)

        def second() -> None:
            beats.append("second")
            pump.remove(first)

        pump.add(first)
        pump.add(second)
        pump.wake()
        await _turns()
        assert len(beats) == 1

    _run(scenario)


def test_wakes_from_the_clock_thread_arrive_and_none_comes_after_the_loop() -> None:
    pumps: list[MediaClock] = []

    async def scenario(pump: MediaClock) -> None:
        pumps.append(pump)
        beaten = asyncio.Event()
        pump.add(beaten.set)
        thread = threading.Thread(target=pump.wake)
        thread.start()
        async with asyncio.timeout(10):
            await beaten.wait()
        thread.join()

    _run(scenario)
    pumps[0].wake()  # the clock may outlive the loop by a frame
