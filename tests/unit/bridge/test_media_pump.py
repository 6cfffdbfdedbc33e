# SPDX-License-Identifier: GPL-2.0-or-later
"""One turn of the event loop serves every call that has audio, and no call is in another's way."""

from __future__ import annotations

from collections.abc import Callable

from structlog.testing import capture_logs

from gateway.audio import Codec
from gateway.bridge.media import MediaPump
from gateway.sip.call_audio import CallAudio


class Call:
    """A call that counts how often it is served."""

    def __init__(self, pump: MediaPump, move: Callable[[], None] | None = None) -> None:
        self.audio = CallAudio(Codec.PCMU, 1)
        self.served = 0
        self._move = move
        pump.add(self.audio, self.serve)

    @property
    def id(self) -> int:
        """Of its uplink."""
        return self.audio.uplink.id

    def serve(self) -> None:
        """As the call's media does."""
        self.served += 1
        if self._move is not None:
            self._move()


def test_only_the_calls_that_have_something_are_served() -> None:
    pump = MediaPump()
    calls = [Call(pump) for _ in range(3)]
    pump.serve([calls[0].id, calls[2].id])
    pump.serve([calls[2].id, max(call.id for call in calls) + 1])
    assert [call.served for call in calls] == [1, 0, 2]


def test_one_call_that_fails_leaves_the_others_their_audio() -> None:
    pump = MediaPump()

    def failing() -> None:
        raise ValueError("odd audio")

    def failing_too() -> None:
        raise KeyError("no such call")

    calls = [Call(pump, move) for move in (failing, None, failing_too, None)]
    with capture_logs() as logs:
        for _ in range(3):
            pump.serve([call.id for call in calls])
    assert [call.served for call in calls] == [3] * 4
    assert pump.faults == 6
    # Fifty lines a second would help nobody.
    assert [line["event"] for line in logs] == ["media.fault"] * 2


def test_a_call_that_ends_in_a_turn_gets_no_more_of_it() -> None:
    pump = MediaPump()
    second = Call(pump)
    first = Call(pump, lambda: pump.remove(second.audio))
    pump.serve([first.id, second.id])
    assert (first.served, second.served) == (1, 0)
