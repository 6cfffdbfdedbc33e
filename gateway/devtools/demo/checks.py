"""Whether the demo's call went as scripted, one named check after the other."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from gateway.devtools.demo.evidence import EventLog, HeardAudio, heard_of
from gateway.devtools.demo.stage import DIGITS
from gateway.devtools.scripted_caller.report import CallReport, Outcome
from gateway.devtools.timeline.record import Record
from gateway.devtools.timeline.story import tell

GREETING_WITHIN_MS = 3000
"""After the answer; the emulator takes tens of ms, a busy machine some more."""


PHONE_BUFFER_MS = 80
"""Of the very end, what may still be in the caller's jitter buffer when the BYE comes."""


@dataclass(frozen=True, slots=True)
class Check:
    """One check: what was to be, whether it was, and what was found."""

    name: str
    passed: bool
    found: str


@dataclass(frozen=True, slots=True)
class Evidence:
    """Everything that the demo left behind."""

    report: CallReport
    record: Record
    events: EventLog
    heard_audio: HeardAudio
    """The recording at the caller's end."""
    exits: dict[str, int | None]
    """Exit status of each process."""


def judge(evidence: Evidence) -> list[Check]:
    """All checks, failed ones too."""
    return [
        *_caller(evidence),
        *_greeting(evidence),
        *_interruption(evidence),
        *_digits(evidence),
        *_ending(evidence),
        *_processes(evidence),
    ]


def _caller(evidence: Evidence) -> Iterator[Check]:
    report = evidence.report
    done = f"{sum(step.done for step in report.steps)} steps done"
    found = done if report.outcome is Outcome.COMPLETED else report.message
    yield Check("the caller went through its script", report.outcome is Outcome.COMPLETED, found)


def _greeting(evidence: Evidence) -> Iterator[Check]:
    report, story = evidence.report, tell(evidence.record)
    name = "the greeting was heard, whole"
    if not report.heard or report.answered_ms is None or not story.agent:
        yield Check(name, False, "nothing was heard")
        return
    begins = report.heard[0].from_ms + (report.media_ms or 0.0) - report.answered_ms
    item = evidence.events.items.get(story.agent[0].item_id)
    if item is None:
        yield Check(name, False, "the emulator sent no such item")
        return
    heard = heard_of(item, evidence.heard_audio)
    passed = begins <= GREETING_WITHIN_MS and heard.agrees(item.ms)
    found = f"{heard} of {item.ms:,} ms, {begins:,.0f} ms after the answer"
    yield Check(name, passed, found)


def _interruption(evidence: Evidence) -> Iterator[Check]:
    cuts = [cut for cut in evidence.record.interruptions if cut.action != "none"]
    told = [f"{cut.trigger}: {cut.action} at {cut.played_ms:,} ms" for cut in cuts]
    one = len(cuts) == 1 and (cuts[0].trigger, cuts[0].action) == ("speech", "truncate")
    yield Check("speech interrupted the answer, once", one, ", ".join(told) or "no interruption")
    if not one:
        return
    cut = cuts[0]
    confirmed = evidence.events.truncated.get(cut.item_id)
    found = "not confirmed" if confirmed is None else f"truncated at {confirmed:,} ms"
    yield Check("the server truncated it there", confirmed == cut.played_ms, found)
    item = evidence.events.items.get(cut.item_id)
    name = "what was truncated is what the caller had heard"
    if item is None:
        yield Check(name, False, "the emulator sent no such item")
        return
    heard = heard_of(item, evidence.heard_audio)
    found = f"heard {heard}, counted {cut.played_ms:,} ms, sent {item.ms:,} ms"
    yield Check(name, heard.agrees(cut.played_ms) and cut.played_ms < item.ms, found)


def _digits(evidence: Evidence) -> Iterator[Check]:
    runs = [run.digits for run in evidence.record.digits]
    told = any(DIGITS in text.replace(" ", "") for text in evidence.events.said)
    found = f"collected {' '.join(runs) or 'none'}, {'' if told else 'not '}told to the model"
    yield Check(f"the digits {DIGITS} arrived", runs[:1] == [DIGITS] and told, found)


def _ending(evidence: Evidence) -> Iterator[Check]:
    ending, end = evidence.record.ending, evidence.report.end
    found = "no ending" if ending is None else f"{ending.by}, {ending.why}"
    planned = ending is not None and (ending.by, ending.why) == ("model", "agent_hangup")
    yield Check("the model ended the call with a farewell", planned, found)
    heard_it = end is not None and (end.by, end.method) == ("callee", "BYE")
    story = tell(evidence.record)
    item = evidence.events.items.get(story.agent[-1].item_id) if story.agent else None
    name = "the goodbye was heard to its end, then came the BYE"
    if item is None or end is None:
        yield Check(name, False, "no goodbye")
        return
    heard = heard_of(item, evidence.heard_audio)
    found = f"{heard} of {item.ms:,} ms, then {end.method or end.reason} by {end.by}"
    yield Check(name, heard_it and heard.most_ms >= item.ms - PHONE_BUFFER_MS, found)


def _processes(evidence: Evidence) -> Iterator[Check]:
    found = ", ".join(f"{name} {status}" for name, status in evidence.exits.items())
    passed = all(status == 0 for status in evidence.exits.values())
    yield Check("every process ended with status 0", passed, found)
    errors = evidence.events.errors
    yield Check("the server sent no error", not errors, ", ".join(errors) or "none")
