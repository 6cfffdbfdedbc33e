# SPDX-License-Identifier: GPL-2.0-or-later
"""Assertions of a suite's call, from what the caller saw and heard, and what the target tells."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from enum import StrEnum
from math import ceil
from typing import Any

from gateway.devtools.call_suites.suite import Expect
from gateway.devtools.scripted_caller.report import CallReport, Outcome, Span
from gateway.devtools.scripted_caller.sound import PAUSE_MS
from gateway.text import has_words


class Mark(StrEnum):
    """What became of an assertion."""

    PASSED = "passed"
    FAILED = "failed"
    SKIPPED = "skipped"
    """It could not be checked; the reason is told."""


@dataclass(frozen=True, slots=True)
class Verdict:
    """One assertion: what was wanted, what was found (a figure where there is one)."""

    name: str
    mark: Mark
    wanted: str
    found: str

    def __str__(self) -> str:
        return f"{self.name}: {self.found}; wanted {self.wanted}"


@dataclass(frozen=True, slots=True)
class Said:
    """Words of one side; ``at_ms`` since the INVITE, None where that is not known."""

    who: str
    """``agent``, ``caller``, or ``system`` for what the gateway has told the model."""
    text: str
    at_ms: float | None = None


@dataclass(slots=True)
class Evidence:
    """All that is known of one call."""

    report: CallReport
    transcript: list[Said] | None = None
    words_by: str = ""
    """Who told the words: the target's transcript, or a recogniser."""
    no_words: str = "the target tells no transcript, and no recogniser is configured"
    record: dict[str, Any] | None = None
    """The record of the call, where the target is a gateway of ours that tells it."""
    no_record: str = "the target is not the gateway of the configuration"
    own: list[Said] | None = None
    """What the caller has said, where that is not the text of what was spoken."""

    def both_sides(self) -> list[Said]:
        """What was said, by time: words of the agent as told, of the caller as they were spoken."""
        media = self.report.media_ms or 0.0
        said = [Said("caller", one.what, media + one.from_ms) for one in self.report.spoken]
        said = said if self.own is None else list(self.own)
        said += [one for one in self.transcript or () if one.who != "caller"]
        return sorted(said, key=lambda one: one.at_ms or 0.0)

    def words(self, who: str) -> str:
        """All that one side said, as far as the other heard it."""
        return " ".join(one.text for one in self.transcript or () if one.who == who)


def judge(expect: Expect, evidence: Evidence) -> list[Verdict]:
    """Check the steps, and every assertion that was given."""
    report = evidence.report
    done = report.outcome is Outcome.COMPLETED
    verdicts = [_verdict("steps", done, "the call as scripted", report.message)]
    given = expect.model_fields_set
    for name, check in _CHECKS.items():
        if name in given:
            verdicts.append(check(getattr(expect, name), evidence))
    for name in ("hears", "never_hears", "caller_heard_as"):
        verdicts += [_words(name, phrase, evidence) for phrase in getattr(expect, name)]
    return verdicts


def _verdict(name: str, good: bool, wanted: str, found: str) -> Verdict:
    return Verdict(name, Mark.PASSED if good else Mark.FAILED, wanted, found)


def _skipped(name: str, wanted: str, why: str) -> Verdict:
    return Verdict(name, Mark.SKIPPED, wanted, f"not checked: {why}")


# ---- SIP


def _answered_within(wanted: float, evidence: Evidence) -> Verdict:
    took = evidence.report.answered_ms
    found = "not answered" if took is None else f"answered after {took / 1000:.2f} s"
    good = took is not None and took <= wanted * 1000
    return _verdict("answered_within", good, f"within {wanted:g} s", found)


def _code(wanted: int, evidence: Evidence) -> Verdict:
    end = evidence.report.end
    found = "no final response" if end is None else f"{end.code} {end.reason}"
    return _verdict("code", end is not None and end.code == wanted, str(wanted), found)


_SIDES = {"callee": "agent"}


def _ended_by(wanted: str, evidence: Evidence) -> Verdict:
    end = evidence.report.end
    by = "nobody" if end is None else _SIDES.get(end.by, end.by)
    how = "" if end is None or not end.reason_header else f" ({end.reason_header})"
    return _verdict("ended_by", by == wanted, wanted, f"ended by {by}{how}")


def _digits(wanted: str, evidence: Evidence) -> Verdict:
    came = evidence.report.digits_received
    return _verdict("digits", came == wanted, wanted, came or "none came")


def _transfer_to(wanted: str, evidence: Evidence) -> Verdict:
    pattern, seen = re.compile(wanted), list(evidence.report.refers)
    # Through a PBX the REFER ends there, and the record has it.
    seen += [str(one.get("to", "")) for one in (evidence.record or {}).get("transfers", ())]
    good = any(pattern.search(target) for target in seen)
    found = f"transferred to {', '.join(seen)}" if seen else "no transfer was seen"
    return _verdict("transfer_to", good, wanted, found)


# ---- audio, by what was heard over RTP


def _response_p95(wanted: int, evidence: Evidence) -> Verdict:
    times = sorted(response_times(evidence.report))
    if not times:
        found = "no response was heard after anything that was said"
        return _verdict("response_p95_ms", False, f"at most {wanted} ms", found)
    p95 = times[ceil(0.95 * len(times)) - 1]
    found = f"{p95} ms (of {len(times)} responses)"
    return _verdict("response_p95_ms", p95 <= wanted, f"at most {wanted} ms", found)


def response_times(report: CallReport) -> list[int]:
    """From the end of each thing said to the next sound of the agent, ms; where one came before
    the caller spoke again."""
    times = []
    for index, said in enumerate(report.spoken):
        until = [one.from_ms for one in report.spoken[index + 1 :]][:1] or [report.recorded_ms + 1]
        begun = [one.from_ms for one in report.heard if said.to_ms <= one.from_ms < until[0]]
        times += [begun[0] - said.to_ms] if begun else []
    return times


def _cut_within(wanted: int, evidence: Evidence) -> Verdict:
    report = evidence.report
    name, limit = "cut_within_ms", f"silent within {wanted} ms"
    if not report.interruptions:
        return _verdict(name, False, limit, "the call has no interruption: no step interrupt ran")
    cuts = [cut_after(report, one) for one in report.interruptions]
    if any(one is None for one in cuts):
        return _verdict(name, False, limit, "the agent did not speak when it was interrupted")
    longest = max(one for one in cuts if one is not None)
    return _verdict(name, longest <= wanted, limit, f"heard for {longest} ms more")


def cut_after(report: CallReport, interruption: Span) -> int | None:
    """How long the agent was heard after an interruption began, ms; None where it was silent."""
    at = interruption.from_ms
    for one in report.heard:
        if one.from_ms <= at < one.to_ms + PAUSE_MS:
            return max(0, one.to_ms - at)
    return None


def _dead_air(wanted: float, evidence: Evidence) -> Verdict:
    report = evidence.report
    limit = f"at most {wanted:g} s without sound"
    if report.answered_ms is None:
        return _verdict("max_dead_air", False, limit, "not answered")
    gap = longest_gap(report)
    found = f"{(gap.to_ms - gap.from_ms) / 1000:.1f} s from {gap.from_ms / 1000:.1f} s on"
    return _verdict("max_dead_air", gap.to_ms - gap.from_ms <= wanted * 1000, limit, found)


def longest_gap(report: CallReport) -> Span:
    """The longest stretch of the recording in which neither side is heard; holds are none."""
    longest, last = Span(from_ms=0, to_ms=0), 0
    sounds = sorted([*report.heard, *report.spoken, *report.held], key=lambda one: one.from_ms)
    for one in [*sounds, Span(from_ms=report.recorded_ms, to_ms=report.recorded_ms)]:
        if one.from_ms - last > longest.to_ms - longest.from_ms:
            longest = Span(from_ms=last, to_ms=one.from_ms)
        last = max(last, one.to_ms)
    return longest


# ---- what the target tells


def _of_record(key: str, name: str) -> Callable[[str, Evidence], Verdict]:
    def check(wanted: str, evidence: Evidence) -> Verdict:
        if evidence.record is None:
            return _skipped(name, wanted, evidence.no_record)
        found: Any = evidence.record
        for part in key.split("."):
            found = (found or {}).get(part)
        return _verdict(name, found == wanted, wanted, str(found or "none"))

    return check


def _cost(wanted: float, evidence: Evidence) -> Verdict:
    limit = f"at most {wanted:g}"
    if evidence.record is None:
        return _skipped("max_cost", limit, evidence.no_record)
    cost = evidence.record.get("cost") or {}
    total = cost.get("total")
    if total is None:
        unpriced = ", ".join(map(str, cost.get("unpriced") or ())) or "no usage was told"
        return _skipped("max_cost", limit, f"the call has no price ({unpriced})")
    found = f"{float(total):.4f} {cost.get('currency', '')}".strip()
    return _verdict("max_cost", float(total) <= wanted, limit, found)


def _words(name: str, phrase: str, evidence: Evidence) -> Verdict:
    who = "caller" if name == "caller_heard_as" else "agent"
    wanted = f"without {phrase!r}" if name == "never_hears" else repr(phrase)
    if evidence.transcript is None:
        return _skipped(name, wanted, evidence.no_words)
    said = evidence.words(who)
    found = f"{who} said: {shortened(said)}" if said else f"no words of the {who}"
    good = has_words(said, phrase) is (name != "never_hears")
    return _verdict(name, good, wanted, f"{found} (by {evidence.words_by})")


def shortened(text: str, most: int = 300) -> str:
    """A text that fits into a line."""
    text = " ".join(text.split())
    return text if len(text) <= most else f"{text[: most - 1]}…"


_CHECKS: dict[str, Callable[[Any, Evidence], Verdict]] = {
    "answered_within": _answered_within,
    "code": _code,
    "ended_by": _ended_by,
    "ending": _of_record("ending.why", "ending"),
    "response_p95_ms": _response_p95,
    "cut_within_ms": _cut_within,
    "max_dead_air": _dead_air,
    "transfer_to": _transfer_to,
    "digits": _digits,
    "route": _of_record("route", "route"),
    "disposition": _of_record("disposition", "disposition"),
    "max_cost": _cost,
}


def failed(verdicts: Iterable[Verdict]) -> Sequence[Verdict]:
    """Those that failed."""
    return [one for one in verdicts if one.mark is Mark.FAILED]
