# SPDX-License-Identifier: GPL-2.0-or-later
"""The digit collector: no key lost, none twice, in order, whatever the timing."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.call.dtmf import Collected, DigitCollector, EndedBy

KEYS = "0123456789*#ABCD"


@given(
    presses=st.lists(
        st.tuples(st.sampled_from(KEYS), st.integers(0, 50).map(lambda n: n / 10)), max_size=40
    ),
    pause=st.sampled_from([0.5, 2.0, 3.0]),
    finish_on_key=st.sampled_from(["", "#", "*"]),
    most=st.integers(1, 6),
    ticks=st.booleans(),
)
def test_runs_are_what_was_pressed(
    presses: list[tuple[str, float]], pause: float, finish_on_key: str, most: int, ticks: bool
) -> None:
    """``ticks``: the deadline is met in time, or only found to have passed at the next key."""
    collector = DigitCollector(pause, finish_on_key, most)
    got: list[tuple[str, EndedBy]] = []
    expected: list[tuple[str, EndedBy]] = []
    run, now, last = "", 0.0, 0.0

    def take(collected: Collected | None) -> None:
        if collected is not None:
            got.append((collected.digits, collected.ended_by))

    for digit, gap in presses:
        now += gap
        if run and now >= last + pause:
            expected.append((run, EndedBy.TIMEOUT))
            run = ""
        if digit == finish_on_key:
            expected.append((run or digit, EndedBy.TERMINATOR))
            run = ""
        else:
            run += digit
            if len(run) == most:
                expected.append((run, EndedBy.FULL))
                run = ""
        last = now
        deadline = collector.deadline
        if ticks and deadline is not None and deadline < now:
            take(collector.expire(deadline))
            assert collector.deadline is None
        take(collector.expire(now))
        take(collector.press(digit, now))
        assert (collector.deadline is not None) == bool(run)
        assert got == expected
    if run:
        assert collector.deadline == last + pause
        assert collector.expire(last + pause - 0.001) is None
        assert collector.expire(last + pause) == Collected(run, EndedBy.TIMEOUT)
    assert collector.expire(now + 1000) is None


def test_what_the_end_cuts_short_is_given_out_once() -> None:
    collector = DigitCollector(3.0, "#", 32)
    collector.press("1", 0.0)
    collector.press("2", 1.0)
    assert collector.abandon() == Collected("12", EndedBy.CALL_END)
    assert collector.abandon() is None
    assert collector.deadline is None


@pytest.mark.parametrize("terminator", ["", "#"])
def test_terminator_alone_is_a_message_only_where_there_is_one(terminator: str) -> None:
    collector = DigitCollector(3.0, terminator, 32)
    collected = collector.press("#", 0.0)
    if terminator:
        assert collected == Collected("#", EndedBy.TERMINATOR)
    else:
        assert collected is None
        assert collector.expire(3.0) == Collected("#", EndedBy.TIMEOUT)
