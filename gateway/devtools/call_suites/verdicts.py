# SPDX-License-Identifier: GPL-2.0-or-later
"""Checks the assertions of a call by its SIP, its audio and the target's record and transcript.

A target that is a gateway of ours tells transcript and record over its control socket
(:class:`CallLookup`); for one that tells nothing there is a recogniser.
"""

from __future__ import annotations

import asyncio
import contextlib
import importlib
import importlib.util
import re
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from enum import StrEnum
from functools import lru_cache
from math import ceil
from pathlib import Path
from typing import Any

from gateway.api.client import NoAnswerError, RefusedError, ask, sockets_at
from gateway.audio import SAMPLE_RATE, Codec
from gateway.devtools.call_suites import Expect, Recogniser
from gateway.devtools.scripted_caller import CallReport, Outcome, Span
from gateway.devtools.scripted_caller.sound import PAUSE_MS, write_sound
from gateway.text import has_words


class Mark(StrEnum):
    """Outcome of an assertion."""

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
    """An utterance; ``at_ms`` counts from the INVITE, None where the time is unknown."""

    who: str
    """``agent``, ``caller``, or ``system`` for what the gateway has told the model."""
    text: str
    at_ms: float | None = None


@dataclass(slots=True)
class Evidence:
    """Report, transcript and record of one call, which its assertions are checked against."""

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
        """Return the utterances of both sides by time.

        The agent's are those of the transcript, the caller's the texts that were spoken.
        """
        media = self.report.media_ms or 0.0
        said = [Said("caller", one.what, media + one.from_ms) for one in self.report.spoken]
        said = said if self.own is None else list(self.own)
        said += [one for one in self.transcript or () if one.who != "caller"]
        return sorted(said, key=lambda one: one.at_ms or 0.0)

    def words(self, who: str) -> str:
        """Return the transcript of one side (``agent`` or ``caller``) as one text."""
        return " ".join(one.text for one in self.transcript or () if one.who == who)


def judge(expect: Expect, evidence: Evidence) -> list[Verdict]:
    """Check that the script was followed, and each assertion that was given."""
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
    """Judge ``transfer_to`` by REFERs seen and transfers in the record."""
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
    """Return the delay (ms) from the end of each utterance of the caller to the agent's next sound.

    Those that the agent did not answer before the caller spoke again are left out.
    """
    times = []
    for index, said in enumerate(report.spoken):
        until = [one.from_ms for one in report.spoken[index + 1 :]][:1] or [report.recorded_ms + 1]
        begun = [one.from_ms for one in report.heard if said.to_ms <= one.from_ms < until[0]]
        times += [begun[0] - said.to_ms] if begun else []
    return times


def _barge_in_latency(wanted: int, evidence: Evidence) -> Verdict:
    report = evidence.report
    name, limit = "barge_in_latency_ms", f"silent within {wanted} ms"
    if not report.interruptions:
        return _verdict(name, False, limit, "the call has no interruption: no step interrupt ran")
    latencies = [heard_after_interruption(report, one) for one in report.interruptions]
    if any(one is None for one in latencies):
        return _verdict(name, False, limit, "the agent did not speak when it was interrupted")
    longest = max(one for one in latencies if one is not None)
    return _verdict(name, longest <= wanted, limit, f"heard for {longest} ms more")


def heard_after_interruption(report: CallReport, interruption: Span) -> int | None:
    """Return how long (ms) the agent was heard after an interruption began.

    None where it was silent at that moment.
    """
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
    """Return the longest silence of both sides in the recording; a hold is no silence."""
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
    """Return ``text`` on one line, with an ellipsis after ``most`` characters."""
    text = " ".join(text.split())
    return text if len(text) <= most else f"{text[: most - 1]}…"


_CHECKS: dict[str, Callable[[Any, Evidence], Verdict]] = {
    "answered_within": _answered_within,
    "code": _code,
    "ended_by": _ended_by,
    "ending": _of_record("ending.why", "ending"),
    "response_p95_ms": _response_p95,
    "barge_in_latency_ms": _barge_in_latency,
    "max_dead_air": _dead_air,
    "transfer_to": _transfer_to,
    "digits": _digits,
    "route": _of_record("route", "route"),
    "disposition": _of_record("disposition", "disposition"),
    "max_cost": _cost,
}


RECORD_SECONDS = 8.0
"""For the record of an ended call to be there: a transfer, a recording may end after the BYE."""

UNKNOWN_SECONDS = 2.0
"""For a call that the gateway has never heard of, as it went elsewhere."""

POLL_SECONDS = 0.1
FOLLOW_SECONDS = 0.5
"""Between two looks at a call in progress."""
RECOGNISER_SECONDS = 120.0
CLOCKS = timedelta(seconds=2)
"""By how much the clocks of caller and target may differ."""


class CallLookup:
    """Asks the gateway behind a control socket about calls, by their Call-ID or caller.

    Args:
        socket: its control socket; None where the target is no gateway of ours.
        why_not: told where there is no socket.
        keeps_records: the gateway tells of ended calls. Else calls are looked at while they last.
    """

    def __init__(
        self, socket: Path | None, why_not: str = "", *, keeps_records: bool = False
    ) -> None:
        self._socket = socket
        self._keeps_records = keeps_records
        self._seen: dict[str, dict[str, Any]] = {}
        """The last look at the record of each caller's call."""
        self.why_not = why_not
        """Why nothing is told; empty while something may be."""

    async def transcript(self, sip_call_id: str, caller: str) -> list[Said] | None:
        """Return the transcript so far of a call in progress; None where the gateway has none."""
        name = await self._name(sip_call_id, caller, None)
        told = None if name is None else await self._ask("transcript", call=name)
        return None if told is None else said_in(told["transcript"])

    async def record(
        self, sip_call_id: str, caller: str, since: datetime
    ) -> tuple[dict[str, Any] | None, str]:
        """Wait for the record of an ended call; return it, or None and why."""
        if self._socket is None:
            return None, self.why_not
        if not self._keeps_records:
            seen = self._seen.pop(caller, None)
            return seen, "" if seen else self.why_not or "the gateway told nothing of it"
        now, latest = time.monotonic(), None
        until, unknown_until = now + RECORD_SECONDS, now + UNKNOWN_SECONDS
        while time.monotonic() < until:
            name = await self._name(sip_call_id, caller, since)
            if name is None and time.monotonic() >= unknown_until:
                break
            row = None if name is None else await self._ask("record", call=name)
            if row is not None:
                latest = row["record"] or latest
                if row.get("ended_at") and row["record"]:
                    return dict(row["record"]), ""
            if self.why_not:
                break
            await asyncio.sleep(POLL_SECONDS)
        if latest is not None:
            return None, "its record had no end yet"
        return None, self.why_not or "the gateway has no record of it"

    @contextlib.contextmanager
    def following(self, caller: str) -> Iterator[None]:
        """Poll the record of this caller's call meanwhile, where ended calls are not kept."""
        if self._socket is None or self._keeps_records:
            yield
            return
        task = asyncio.create_task(self._follow(caller), name=f"look at the call of {caller}")
        try:
            yield
        finally:
            task.cancel()

    async def _follow(self, caller: str) -> None:
        while True:
            await asyncio.sleep(FOLLOW_SECONDS)
            name = await self._name("", caller, None)
            row = None if name is None else await self._ask("record", call=name)
            if row is not None and row["record"]:
                self._seen[caller] = row["record"]

    async def _name(self, sip_call_id: str, caller: str, since: datetime | None) -> str | None:
        """Return the gateway's id of this call, found by Call-ID, else by caller.

        A PBX in between changes the Call-ID.
        """
        told = await self._ask("calls", sip_call_id=sip_call_id) if sip_call_id else None
        if told is not None and told["calls"]:
            return str(told["calls"][0]["id"])
        fields: dict[str, Any] = {"number": caller}
        if since is not None:
            fields["since"] = (since - CLOCKS).isoformat()
        else:
            fields["live"] = "true"
        told = await self._ask("calls", **fields)
        found = [row for row in (told or {}).get("calls", ()) if row["from_number"] == caller]
        return str(found[0]["id"]) if len(found) == 1 else None

    async def _ask(self, command: str, **fields: Any) -> dict[str, Any] | None:
        if self._socket is None:
            return None

        def asked() -> dict[str, Any] | None:
            assert self._socket is not None
            refused = None
            for one in sockets_at(self._socket):
                try:
                    answer = ask(one, command, **fields)
                except (NoAnswerError, RefusedError) as error:
                    refused = error
                    continue
                self.why_not = ""
                if answer.get("calls") != []:
                    return answer
            if isinstance(refused, NoAnswerError):
                self.why_not = str(refused)
            return None

        return await asyncio.to_thread(asked)


def said_in(transcript: Sequence[Mapping[str, Any]]) -> list[Said]:
    """Return the words of a record's transcript, the agent's as far as the caller heard them."""
    said = []
    for one in transcript:
        text = one.get("heard", one.get("text")) or ""
        if text:
            said.append(Said(str(one.get("who", "")), str(text), one.get("at_ms")))
    return said


def recogniser_of(settings: Recogniser) -> tuple[Recognise | None, str]:
    """Return the speech recogniser that is configured; or None, and the reason."""
    if settings.command:
        return Recognise(settings), ""
    if settings.model:
        if importlib.util.find_spec("faster_whisper") is None:
            return None, "recogniser.model needs the package faster-whisper"
        return Recognise(settings), ""
    return None, "no [recogniser] is configured"


class Recognise:
    """Recognises speech in G.711, by a command or faster-whisper, off the event loop."""

    def __init__(self, settings: Recogniser) -> None:
        self._settings = settings

    async def words(self, track: bytes, codec: Codec, span: Span | None = None) -> tuple[str, str]:
        """Return the words in a span of a recording and ""; or "" and the reason of a failure."""
        if span is not None:
            per_ms = SAMPLE_RATE // 1000
            track = track[span.from_ms * per_ms : span.to_ms * per_ms]
        with tempfile.TemporaryDirectory(prefix="gateway-test-") as folder:
            wav = Path(folder, "heard.wav")
            await asyncio.to_thread(write_sound, wav, codec, [track])
            if self._settings.command:
                return await self._by_command(wav)
            return await asyncio.to_thread(_by_whisper, self._settings.model, str(wav))

    async def _by_command(self, wav: Path) -> tuple[str, str]:
        command = [part.replace("{wav}", str(wav)) for part in self._settings.command]
        pipe = asyncio.subprocess.PIPE
        try:
            process = await asyncio.create_subprocess_exec(
                *command, stdin=asyncio.subprocess.DEVNULL, stdout=pipe, stderr=pipe
            )
        except OSError as error:
            return "", f"{command[0]}: {error.strerror or error}"
        try:
            async with asyncio.timeout(RECOGNISER_SECONDS):
                out, err = await process.communicate()
        except TimeoutError:
            process.kill()
            await process.wait()
            return "", f"{command[0]} took longer than {RECOGNISER_SECONDS:g} s"
        if process.returncode:
            last = err.decode("utf-8", "replace").strip().rpartition("\n")[2]
            return "", f"{command[0]} failed ({process.returncode}): {last[:200]}"
        return out.decode("utf-8", "replace").strip(), ""


@lru_cache(maxsize=1)
def _whisper(model: str) -> Any:
    package = importlib.import_module("faster_whisper")
    return package.WhisperModel(model, device="cpu", compute_type="int8", local_files_only=True)


def _by_whisper(model: str, wav: str) -> tuple[str, str]:
    try:
        segments, _info = _whisper(model).transcribe(wav)
        return " ".join(one.text.strip() for one in segments), ""
    except Exception as error:  # of a package that we do not know
        return "", f"faster-whisper: {type(error).__name__}: {error}"
