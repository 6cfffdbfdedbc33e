# SPDX-License-Identifier: GPL-2.0-or-later
"""Each assertion passes, fails, and says what it has measured."""

from __future__ import annotations

import asyncio
import sys
from datetime import UTC, datetime
from typing import Any

import pytest

from gateway.audio import Codec
from gateway.devtools.call_suites import Expect, Recogniser
from gateway.devtools.call_suites.verdicts import Evidence, Mark, Said, judge, recogniser_of
from gateway.devtools.scripted_caller import CallReport, EndReport, Outcome, Span


def span(first: int, last: int) -> Span:
    return Span(from_ms=first, to_ms=last)


def report(**fields: Any) -> CallReport:
    """A call of 20 s: a greeting, a question, its answer, an interruption of it, the end."""
    return CallReport(
        **{
            "uri": "sip:100@127.0.0.1",
            "outcome": Outcome.COMPLETED,
            "message": "as scripted",
            "exit_code": 0,
            "started_at": datetime(2026, 11, 1, tzinfo=UTC),
            "answered_ms": 400.0,
            "media_ms": 450.0,
            "ended_ms": 20_450.0,
            "recorded_ms": 20_000,
            "heard": [span(500, 3000), span(6800, 10_500), span(14_000, 18_000)],
            "spoken": [span(4000, 6000), span(10_000, 12_000)],
            "interruptions": [span(10_000, 12_000)],
            "digits_received": "12",
            "refers": ["sip:sales@example.com"],
            "end": EndReport(by="callee", code=200, reason="OK", method="BYE"),
            **fields,
        }
    )


RECORD = {
    "route": "reception",
    "disposition": "booked",
    "ending": {"why": "agent_hangup"},
    "cost": {"total": 0.25, "currency": "USD"},
    "transfers": [{"to": "sip:201@pbx"}],
}


def evidence(record: Any = RECORD, **fields: Any) -> Evidence:
    said = [Said("agent", "Good morning, how can I help?"), Said("caller", "A room, please.")]
    return Evidence(report(**fields), said, "the gateway's transcript", record=record)


GOOD_AND_BAD: dict[str, tuple[Any, Any, str]] = {
    "answered_within": (0.4, 0.3, "answered after 0.40 s"),
    "code": (200, 486, "200 OK"),
    "ended_by": ("agent", "caller", "ended by agent"),
    "ending": ("agent_hangup", "transferred", "agent_hangup"),
    "response_p95_ms": (2000, 1999, "2000 ms (of 2 responses)"),
    "barge_in_latency_ms": (500, 499, "heard for 500 ms more"),
    "max_dead_air": (2.0, 1.9, "2.0 s from 12.0 s on"),
    "transfer_to": ("^sip:sales@", "support", "transferred to sip:sales@example.com, sip:201@pbx"),
    "digits": ("12", "1", "12"),
    "route": ("reception", "sales", "reception"),
    "disposition": ("booked", "lost", "booked"),
    "max_cost": (0.25, 0.24, "0.2500 USD"),
    "hears": (("HOW can I",), ("can how I",), "agent said: Good morning, how can I help?"),
    "never_hears": (("pizza",), ("good morning",), "agent said: Good morning, how can I help?"),
    "caller_heard_as": (("a room",), ("good morning",), "caller said: A room, please."),
}


def test_every_assertion_is_in_the_table() -> None:
    assert GOOD_AND_BAD.keys() == Expect.model_fields.keys()


@pytest.mark.parametrize("name", GOOD_AND_BAD)
def test_an_assertion_holds_and_fails(name: str) -> None:
    good, bad, found = GOOD_AND_BAD[name]
    for value, mark in ((good, Mark.PASSED), (bad, Mark.FAILED)):
        steps, verdict = judge(Expect.model_validate({name: value}), evidence())
        assert steps.mark is Mark.PASSED
        assert (verdict.name, verdict.mark) == (name, mark), str(verdict)
        assert verdict.found.startswith(found)


@pytest.mark.parametrize("name", ["ending", "route", "disposition", "max_cost"])
def test_what_nobody_tells_is_not_checked(name: str) -> None:
    expect = Expect.model_validate({name: GOOD_AND_BAD[name][0]})
    verdict = judge(expect, Evidence(report(), no_record="records.folder is not set"))[1]
    assert verdict.mark is Mark.SKIPPED
    assert verdict.found == "not checked: records.folder is not set"


def test_words_without_a_transcript_are_not_checked() -> None:
    verdict = judge(Expect(hears=("x",)), Evidence(report(), no_words="nothing hears"))[1]
    assert (verdict.mark, verdict.found) == (Mark.SKIPPED, "not checked: nothing hears")


def test_a_cost_without_a_price_is_not_checked() -> None:
    record = {"cost": {"total": None, "unpriced": ["gpt-x"]}}
    verdict = judge(Expect(max_cost=1), evidence(record))[1]
    assert verdict.mark is Mark.SKIPPED
    assert "gpt-x" in verdict.found


FAILING: dict[str, tuple[dict[str, Any], dict[str, Any], str]] = {
    "refused": ({"answered_within": 9}, {"answered_ms": None}, "not answered"),
    "silent after the question": ({"response_p95_ms": 9000}, {"heard": []}, "no response"),
    "no interruption": ({"barge_in_latency_ms": 9000}, {"interruptions": []}, "no interruption"),
    "interrupted in a pause": (
        {"barge_in_latency_ms": 9000},
        {"heard": [span(0, 9000)]},
        "did not speak",
    ),
    "silent from the start": (
        {"max_dead_air": 5},
        {"heard": [span(6000, 20_000)], "spoken": []},
        "6.0 s from 0.0 s on",
    ),
    "silent to the end": (
        {"max_dead_air": 5},
        {"heard": [span(0, 12_000)], "spoken": []},
        "8.0 s from 12.0 s on",
    ),
    "ended by the network": (
        {"ended_by": "agent"},
        {"end": EndReport(by="network", code=408, reason="Timeout")},
        "ended by network",
    ),
    "no transfer": ({"transfer_to": "sales"}, {"refers": []}, "transferred to sip:201@pbx"),
}


@pytest.mark.parametrize("name", FAILING)
def test_what_did_not_happen_fails(name: str) -> None:
    expect, fields, found = FAILING[name]
    verdict = judge(Expect.model_validate(expect), evidence(**fields))[1]
    assert verdict.mark is Mark.FAILED
    assert found in verdict.found


def test_a_step_that_was_missed_fails_the_call() -> None:
    late = evidence(outcome=Outcome.STEP_MISSED, message="step 2 (wait_speech): its 5 s passed")
    (steps,) = judge(Expect(), late)
    assert (steps.mark, steps.found) == (Mark.FAILED, "step 2 (wait_speech): its 5 s passed")


def test_a_hold_is_no_dead_air() -> None:
    quiet = evidence(heard=[span(0, 9000), span(19_000, 20_000)], held=[span(9500, 18_900)])
    assert judge(Expect(max_dead_air=3), quiet)[1].mark is Mark.PASSED


# ---- recognisers


def recognised(code: str) -> tuple[str, str]:
    settings = Recogniser(command=(sys.executable, "-c", code, "{wav}"))
    recogniser, why = recogniser_of(settings)
    assert recogniser is not None, why
    return asyncio.run(recogniser.words(b"\xff" * 16_000, Codec.PCMU, span(500, 1500)))


def test_a_program_hears_the_stretch_that_is_asked_for() -> None:
    code = "import sys, wave; print(wave.open(sys.argv[1]).getnframes(), 'hello')"
    assert recognised(code) == ("8000 hello", "")


def test_a_program_that_fails_is_told() -> None:
    assert recognised("raise SystemExit('no model')") == (
        "",
        f"{sys.executable} failed (1): no model",
    )


def test_no_recogniser_is_told() -> None:
    assert recogniser_of(Recogniser()) == (None, "no [recogniser] is configured")
    assert recogniser_of(Recogniser(model="tiny"))[1].endswith("faster-whisper")
