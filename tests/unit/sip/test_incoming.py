# SPDX-License-Identifier: GPL-2.0-or-later
"""How many calls may come at once, and which INVITE has been here already."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from gateway.sip.incoming import (
    HANDLE_REST_SECONDS,
    MAX_REMEMBERED,
    REPEAT_SECONDS,
    RecentInvites,
)

PJLIB_REST_SECONDS = 0.5


@given(st.lists(st.tuples(st.floats(0, 0.2), st.floats(0, 0.3)), min_size=60, max_size=200))
def test_handles_are_never_exhausted(steps: list[tuple[float, float]]) -> None:
    """Calls that come and go as they like: what is open or resting always fits."""
    handles, capacity = 64, 4
    arrivals = RecentInvites(handles, capacity)
    now, ends = 0.0, list[float]()
    for pause, length in steps:
        now += pause
        live = sum(end > now for end in ends)
        if live < capacity and not arrivals.exhausted(now):
            arrivals.admit(now)
            ends.append(now + length)
        held = sum(end > now - PJLIB_REST_SECONDS for end in ends)
        assert 2 * held <= handles


def test_room_comes_back_with_time() -> None:
    arrivals = RecentInvites(64, 4)
    admitted = 0
    while not arrivals.exhausted(0.0):
        arrivals.admit(0.0)
        admitted += 1
    assert admitted > 20
    assert arrivals.exhausted(HANDLE_REST_SECONDS - 0.01)
    assert not arrivals.exhausted(HANDLE_REST_SECONDS)


def test_a_big_library_is_not_held_back() -> None:
    arrivals = RecentInvites(4096, 1280)
    for _ in range(500):
        assert not arrivals.exhausted(0.0)
        arrivals.admit(0.0)


def test_repeats() -> None:
    arrivals = RecentInvites(64, 4)
    assert not arrivals.is_repeat("a", 0.0)
    assert not arrivals.is_repeat("b", 1.0)
    assert arrivals.is_repeat("a", REPEAT_SECONDS - 0.1)
    assert not arrivals.is_repeat("a", REPEAT_SECONDS)
    assert arrivals.is_repeat("b", REPEAT_SECONDS)


def test_memory_is_bounded() -> None:
    arrivals = RecentInvites(64, 4)
    for number in range(MAX_REMEMBERED + 10):
        assert not arrivals.is_repeat(str(number), 0.0)
    assert not arrivals.is_repeat("0", 0.0)
    assert arrivals.is_repeat(str(MAX_REMEMBERED + 9), 0.0)
