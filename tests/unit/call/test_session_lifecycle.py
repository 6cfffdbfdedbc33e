# SPDX-License-Identifier: GPL-2.0-or-later
"""How a call is answered, as a table of what happens and what is done."""

from __future__ import annotations

from gateway.call.call_record import CallRecord, CallTimeline
from gateway.call.outputs import Answer, LogEvent, Output, PlaySound, Progress, Ring
from gateway.call.plan import AnswerPlan
from gateway.call.session_lifecycle import AnswerPolicy


def opening(when: str, sound: str = "", whole: float = 0.0) -> AnswerPolicy:
    record = CallRecord(call_id="1", route="r", from_uri="", to_uri="")
    return AnswerPolicy(AnswerPlan(when, sound, whole), CallTimeline(record, 100.0))


def acts(outputs: list[Output]) -> list[Output]:
    return [output for output in outputs if not isinstance(output, LogEvent)]


def test_when_the_model_is_ready() -> None:
    one = opening("when_ready")
    assert acts(one.begin(100.0)) == [Ring()]
    assert one.check_sound(101.0)
    assert acts(one.answer(101.0)) == [Answer()]


def test_early_media() -> None:
    one = opening("early_media", "chime")
    assert acts(one.begin(100.0)) == [Progress(), PlaySound("chime")]
    assert one.check_sound(100.1)
    assert acts(one.answer(100.1)) == [PlaySound(""), Answer()]


def test_early_media_that_is_heard_to_its_end() -> None:
    one = opening("early_media", "a.wav", 2.0)
    one.begin(100.0)
    assert not one.check_sound(101.9)
    assert one.waiting
    assert one.deadline == 102.0
    assert one.check_sound(102.0)
    assert not one.waiting


def test_at_once() -> None:
    """What is heard begins with the ACK; before, there is nothing to wait for but that."""
    one = opening("immediate", "a.wav", 2.0)
    assert acts(one.begin(100.0)) == [Answer(), PlaySound("a.wav")]
    assert not one.check_sound(100.1)
    assert one.deadline is None
    one.on_confirmed(100.5)
    assert one.deadline == 102.5
    assert one.check_sound(102.5)
    assert acts(one.answer(102.5)) == [PlaySound("")]
