# SPDX-License-Identifier: GPL-2.0-or-later
"""Record of a call: its state as it goes on, its timeline, its bounds, and what is masked in it."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

import pytest

from gateway.call import call_record
from gateway.call.call_record import (
    MAX_KEPT,
    MAX_TEXT,
    MAX_TOOL_USES,
    CallRecord,
    CallTimeline,
    ResponseTime,
    ToolUse,
    TransferAttempt,
    append_capped,
)
from gateway.ending import EndReason, ending_of


class Said:
    """A transcript of these entries."""

    def __init__(self, *entries: dict[str, Any]) -> None:
        self._entries = list(entries)

    def as_json(self) -> list[dict[str, Any]]:
        return self._entries


def test_the_state_of_a_call_that_goes_on() -> None:
    """Each of them goes before those that came earlier."""
    record = CallRecord("call-1")
    assert record.state == "ringing"
    assert CallRecord("call-2", direction="outbound").state == "placing"
    record.times.answered = 100.0
    assert record.state == "talking"
    for event, state in (("held", "held"), ("agent_transcript", "held"), ("resumed", "talking")):
        record.mark(200.0, event)
        assert record.state == state
    for begins, ends in (("holding", "hold_ended"), ("held", "resumed")):
        record.mark(300.0, begins)
        assert record.state == "held"
        record.mark(400.0, ends)
        assert record.state == "talking"
    record.mark(500.0, "held")
    record.actions.transfers.append(TransferAttempt(500.0, "a", "sip:a@b", "blind"))
    for outcome, state in (("", "transferring"), ("ringing", "transferring"), ("busy", "held")):
        record.actions.transfers[-1].outcome = outcome
        assert record.state == state
    record.undecided = True
    assert record.state == "incoming"
    record.ending = ending_of(EndReason.REMOTE_HANGUP, answered=True)
    assert record.state == "ended"


def test_what_is_told_of_a_call_that_goes_on() -> None:
    record = CallRecord("call-1", started_at="2026-11-20T14:30:00+00:00")
    told = record.as_live_json(datetime(2026, 11, 20, 14, 31, 30, tzinfo=UTC))
    assert (told["call_id"], told["state"], told["age_seconds"]) == ("call-1", "ringing", 90.0)
    assert told["recording"] == ""


def test_the_timeline_is_read_on_from_a_place() -> None:
    record = CallRecord("call-1")
    record.mark(1.04, "invite")
    first, place = record.timeline_since(0)
    assert first == [{"t_ms": 1.0, "event": "invite"}]
    assert record.timeline_since(place) == ([], place)
    record.mark(2.0, "answered", words="line 1\nline 2")
    assert record.timeline_since(place)[0] == [
        {"t_ms": 2.0, "event": "answered", "words": "line 1\nline 2"}
    ]
    assert [one["event"] for one in record.timeline] == ["invite", "answered"]


def test_who_follows_the_timeline_is_told_of_what_it_has_no_room_for(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(call_record, "MAX_TIMELINE", 1)
    record, told = CallRecord("call-1"), []
    record.on_mark = lambda event, fields: told.append((event, dict(fields)))
    record.times.answered = 1.0
    for event in ("answered", "held"):
        record.mark(1.0, event, n=1)
    assert (len(record.timeline), record.timeline_dropped) == (1, 1)
    assert told == [("answered", {"n": 1}), ("held", {"n": 1})]
    assert record.state == "held"


def test_long_texts_are_cut_in_the_log_and_not_in_the_transcript() -> None:
    record = CallRecord("call-1")
    timeline, long = CallTimeline(record, 10.0), "x" * (MAX_TEXT + 1)
    line = timeline.note(12.5, "error", "warning", text=long, code=5)
    timeline.mark(12.5, "words", text=long)
    assert (line.event, line.level) == ("error", "warning")
    assert line.fields == {"text": "x" * MAX_TEXT, "code": 5}
    noted, marked = record.timeline
    assert (noted["t_ms"], len(noted["text"])) == (2500, MAX_TEXT)
    assert len(marked["text"]) == MAX_TEXT + 1


def test_lists_have_bounds() -> None:
    entries: list[int] = []
    for number in range(MAX_KEPT + 2):
        append_capped(entries, number)
    assert entries == list(range(MAX_KEPT))
    actions = CallRecord("call-1").actions
    for number in range(MAX_TOOL_USES + 2):
        actions.add_tool_use(ToolUse(number, "look"))
    assert (len(actions.tools), actions.tools_dropped) == (MAX_TOOL_USES, 2)


@pytest.mark.parametrize(
    ("entries", "heard"),
    [
        ([{"who": "agent", "text": "Hello, you speak with an AI."}], True),
        ([{"who": "agent", "text": "You speak with an AI.", "heard": "You speak"}], False),
        ([{"who": "caller", "text": "You speak with an AI?"}], False),
        ([{"who": "agent", "text": "You speak"}, {"who": "agent", "text": "with an AI."}], False),
        ([], False),
    ],
)
def test_whether_the_disclosure_was_heard(entries: list[dict[str, Any]], heard: bool) -> None:
    record = CallRecord("call-1", disclosure="You speak with an AI.")
    assert record.summary()["disclosure"] == {"words": record.disclosure, "heard": False}
    record.transcript = Said(*entries)
    assert record.summary()["disclosure"] == {"words": record.disclosure, "heard": heard}
    assert CallRecord("call-2").summary()["disclosure"] is None


def test_private_digits_are_masked_wherever_they_stand() -> None:
    record = CallRecord("call-1")
    record.private.add("4711")
    record.mark(1.0, "caller_transcript", text="It is 4711.")
    record.transcript = Said({"who": "caller", "text": "It is 4711."})
    record.metadata = {"pin": "4711"}
    assert "4711" not in str(record.as_json()) + str(record.summary())
    assert record.as_json()["transcript"] == [{"who": "caller", "text": "It is ****."}]


def test_quantiles_of_a_call() -> None:
    record = CallRecord("c")
    assert record.summary()["response_ms"] == {"count": 0}
    record.response_times = [ResponseTime(0, ms, 0, 0, 0, 0) for ms in range(2000, 0, -100)]
    assert record.summary()["response_ms"] == {"count": 20, "p50": 1000, "p95": 1900}
    assert len(record.as_json()["response_times"]) == 20
