# SPDX-License-Identifier: GPL-2.0-or-later
"""Whether what is playing is the last of the call."""

from __future__ import annotations

from gateway.call.call_control import LINGER_SECONDS, HangupAfterPlayout
from gateway.ending import EndReason


def test_no_last_words_no_end() -> None:
    hangup = HangupAfterPlayout(10.0)
    assert hangup.due(1e9, queued_ms=0, responding=False) is None
    assert hangup.deadline is None
    assert hangup.cancel() is None
    assert not hangup.is_queued


def test_said_ends_when_heard() -> None:
    hangup = HangupAfterPlayout(10.0)
    hangup.after_spoken_goodbye("c1", 5.0)
    assert hangup.is_queued
    assert hangup.deadline == 15.0
    assert hangup.due(6.0, queued_ms=1000, responding=True) is None
    assert hangup.due(7.0, queued_ms=0, responding=True) is None
    assert hangup.deadline == 7.0 + LINGER_SECONDS  # the telephone still plays
    assert hangup.due(7.0 + LINGER_SECONDS, queued_ms=0, responding=True) is EndReason.AGENT_HANGUP
    assert hangup.cancel() == "c1"
    assert hangup.cancel() is None
    assert hangup.due(99.0, queued_ms=0, responding=False) is None


def test_asked_for_waits_for_its_response() -> None:
    hangup = HangupAfterPlayout(10.0)
    hangup.after_requested_goodbye(0.0)
    assert not hangup.is_queued
    assert hangup.due(1.0, queued_ms=0, responding=True) is None
    assert hangup.due(2.0, queued_ms=1000, responding=False) is None
    assert hangup.is_queued
    assert hangup.due(3.0, queued_ms=0, responding=False) is None
    assert hangup.due(3.0 + LINGER_SECONDS, queued_ms=0, responding=False) is EndReason.AGENT_HANGUP


def test_a_long_goodbye_is_heard_to_its_end() -> None:
    hangup = HangupAfterPlayout(10.0)
    hangup.after_spoken_goodbye("c1", 0.0)
    assert hangup.due(0.0, queued_ms=20_000, responding=False) is None
    assert hangup.due(0.1, queued_ms=25_000, responding=False) is None
    assert hangup.due(25.0, queued_ms=25_000, responding=False) is None
    # What does not come out of the queue at all does not hold the line for ever.
    assert hangup.deadline == 0.1 + 25.0 + 10.0
    assert hangup.due(35.1, queued_ms=25_000, responding=False) is EndReason.AGENT_HANGUP


def test_asked_for_and_taken_back_has_nothing_to_answer() -> None:
    hangup = HangupAfterPlayout(10.0)
    hangup.after_requested_goodbye(0.0)
    assert hangup.cancel() == ""


def test_a_closed_session_leaves_what_is_queued() -> None:
    hangup = HangupAfterPlayout(10.0)
    hangup.on_session_over(0.0)
    assert hangup.cancel() is None
    assert hangup.due(1.0, queued_ms=1000, responding=False) is None
    assert hangup.due(2.0, queued_ms=0, responding=False) is None
    assert (
        hangup.due(2.0 + LINGER_SECONDS, queued_ms=0, responding=False) is EndReason.SESSION_CLOSED
    )


def test_a_goodbye_under_way_stays_the_reason_when_the_session_closes() -> None:
    hangup = HangupAfterPlayout(10.0)
    hangup.after_spoken_goodbye("c1", 0.0)
    hangup.on_session_over(3.0)
    assert hangup.deadline == 10.0
    assert hangup.due(4.0, queued_ms=0, responding=False) is EndReason.AGENT_HANGUP


def test_a_goodbye_that_had_not_come_will_not_come_from_a_closed_session() -> None:
    hangup = HangupAfterPlayout(10.0)
    hangup.after_requested_goodbye(0.0)
    hangup.on_session_over(3.0)
    assert hangup.due(3.0, queued_ms=0, responding=False) is EndReason.SESSION_CLOSED
