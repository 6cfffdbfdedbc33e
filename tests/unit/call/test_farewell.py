"""Whether what is playing is the last of the call."""

from __future__ import annotations

from gateway.call.ending import EndReason
from gateway.call.leg.graceful_hangup import LINGER_SECONDS, HangupAfterPlayout


def test_no_last_words_no_end() -> None:
    farewell = HangupAfterPlayout(10.0)
    assert farewell.over(1e9, queued_ms=0, responding=False) is None
    assert farewell.deadline is None
    assert farewell.take_back() is None
    assert not farewell.being_said


def test_said_ends_when_heard() -> None:
    farewell = HangupAfterPlayout(10.0)
    farewell.said("c1", 5.0)
    assert farewell.being_said
    assert farewell.deadline == 15.0
    assert farewell.over(6.0, queued_ms=1000, responding=True) is None
    assert farewell.over(7.0, queued_ms=0, responding=True) is None
    assert farewell.deadline == 7.0 + LINGER_SECONDS  # the telephone still plays
    assert (
        farewell.over(7.0 + LINGER_SECONDS, queued_ms=0, responding=True) is EndReason.AGENT_HANGUP
    )
    assert farewell.take_back() == "c1"
    assert farewell.take_back() is None
    assert farewell.over(99.0, queued_ms=0, responding=False) is None


def test_asked_for_waits_for_its_response() -> None:
    farewell = HangupAfterPlayout(10.0)
    farewell.asked_for(0.0)
    assert not farewell.being_said
    assert farewell.over(1.0, queued_ms=0, responding=True) is None
    assert farewell.over(2.0, queued_ms=1000, responding=False) is None
    assert farewell.being_said
    assert farewell.over(3.0, queued_ms=0, responding=False) is None
    assert (
        farewell.over(3.0 + LINGER_SECONDS, queued_ms=0, responding=False) is EndReason.AGENT_HANGUP
    )


def test_a_long_goodbye_is_heard_to_its_end() -> None:
    farewell = HangupAfterPlayout(10.0)
    farewell.said("c1", 0.0)
    assert farewell.over(0.0, queued_ms=20_000, responding=False) is None
    assert farewell.over(0.1, queued_ms=25_000, responding=False) is None
    assert farewell.over(25.0, queued_ms=25_000, responding=False) is None
    # What does not come out of the queue at all does not hold the line for ever.
    assert farewell.deadline == 0.1 + 25.0 + 10.0
    assert farewell.over(35.1, queued_ms=25_000, responding=False) is EndReason.AGENT_HANGUP


def test_asked_for_and_taken_back_has_nothing_to_answer() -> None:
    farewell = HangupAfterPlayout(10.0)
    farewell.asked_for(0.0)
    assert farewell.take_back() == ""


def test_a_closed_session_leaves_what_is_queued() -> None:
    farewell = HangupAfterPlayout(10.0)
    farewell.session_over(0.0)
    assert farewell.take_back() is None
    assert farewell.over(1.0, queued_ms=1000, responding=False) is None
    assert farewell.over(2.0, queued_ms=0, responding=False) is None
    assert (
        farewell.over(2.0 + LINGER_SECONDS, queued_ms=0, responding=False)
        is EndReason.SESSION_CLOSED
    )


def test_a_goodbye_under_way_stays_the_reason_when_the_session_closes() -> None:
    farewell = HangupAfterPlayout(10.0)
    farewell.said("c1", 0.0)
    farewell.session_over(3.0)
    assert farewell.deadline == 10.0
    assert farewell.over(4.0, queued_ms=0, responding=False) is EndReason.AGENT_HANGUP


def test_a_goodbye_that_had_not_come_will_not_come_from_a_closed_session() -> None:
    farewell = HangupAfterPlayout(10.0)
    farewell.asked_for(0.0)
    farewell.session_over(3.0)
    assert farewell.over(3.0, queued_ms=0, responding=False) is EndReason.SESSION_CLOSED
