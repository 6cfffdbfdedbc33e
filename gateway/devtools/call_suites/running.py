# SPDX-License-Identifier: GPL-2.0-or-later
"""Runs the calls of suites: one telephone, many calls at a time, evidence and verdicts of each."""

from __future__ import annotations

import asyncio
import functools
import re
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from gateway.audio import G711
from gateway.devtools.call_suites import SuiteCall, TextModel
from gateway.devtools.call_suites.simulated import (
    Conversation,
    Model,
    RealtimeCaller,
    SimulatedCaller,
    marks_of,
)
from gateway.devtools.call_suites.verdicts import (
    POLL_SECONDS,
    CallLookup,
    Evidence,
    Mark,
    Said,
    Verdict,
    judge,
    recogniser_of,
    said_in,
)
from gateway.devtools.scripted_caller import CallReport, Dialling, Noise, Script, Span
from gateway.devtools.scripted_caller.call import ScriptedCall
from gateway.devtools.scripted_caller.run import (
    Phone,
    PhoneError,
    PhoneSettings,
    TalkingCall,
    host_of,
    nobody_listens,
    prepare,
    taking_signals,
)
from gateway.devtools.scripted_caller.sound import write_sound
from gateway.sip import Trunk

_USER_AND_HOST = re.compile(r"(sips?:)(?:[^@;?]*@)?([^@]+)", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class RunOptions:
    """Options of a run of suites.

    Args:
        sounds: folder for a stereo WAV of each call; None keeps none.
    """

    parallel: int = 4
    local: tuple[str, int] | None = None
    sounds: Path | None = None
    pjsip_log_level: int = 0


@dataclass(slots=True)
class CallResult:
    """An ended call of a suite, with its verdicts."""

    call: SuiteCall
    evidence: Evidence
    verdicts: list[Verdict]
    sound: Path | None = None
    """Stereo: the caller left, what was heard right."""
    notes: list[str] = field(default_factory=list)

    @property
    def report(self) -> CallReport:
        return self.evidence.report

    @property
    def failed(self) -> bool:
        return any(one.mark is Mark.FAILED for one in self.verdicts)

    @property
    def seconds(self) -> float:
        """Seconds from the INVITE to the end of the call."""
        return (self.report.ended_ms or self.report.answered_ms or 0.0) / 1000


Models = dict[TextModel, Model]

NO_MODEL = "[model] url is empty"

TRANSCRIPT_SECONDS = 3.0
"""How late the words of what was heard may come."""

Progress = Callable[[SuiteCall, str], None]
"""Told of what happens in a call; with an empty text when it begins."""


def uri_of(target: str, to: str) -> str:
    """Return the URI to call: ``to`` at the target, or ``to`` itself where it is one."""
    if re.match(r"sips?:", to, re.IGNORECASE):
        return to
    match = _USER_AND_HOST.fullmatch(target)
    if match is None:
        raise ValueError(f"{target!r} is no SIP address; write sip:127.0.0.1:5060")
    return f"{match[1]}{to}@{match[2]}"


def trunk_of(call: SuiteCall) -> Trunk | None:
    """Return a trunk with the suite's credentials, sent to the target only; None without them."""
    user, target = call.file.username, _USER_AND_HOST.fullmatch(call.target)
    if not user or target is None:
        return None
    address, _, parameters = target[2].partition(";")
    transport = re.search(r"(?:^|;)transport=(tcp|tls)", parameters, re.IGNORECASE)
    return Trunk(
        name=f"{call.suite} {address}",
        username=user,
        password=call.file.password,
        outbound_proxy=address,
        transport="udp" if transport is None else transport[1].lower(),
    )


async def run_calls(
    calls: Sequence[SuiteCall],
    options: RunOptions,
    lookup: CallLookup,
    on_progress: Progress,
    on_result: Callable[[CallResult], None],
) -> list[CallResult]:
    """Place all calls, ``options.parallel`` at a time; those that are interrupted are left out.

    Raises ValueError for an address that is none, PhoneError when the local address cannot be had
    or nothing listens at the target, SoundError for a sound that cannot be read or written.
    """
    uris = [uri_of(one.target, one.call.to) for one in calls]
    hosts = {host_of(uri) for uri in uris}
    for uri in {re.sub(r":[^@:]*@", ":", uri): uri for uri in uris}.values():
        if nowhere := await asyncio.to_thread(nobody_listens, uri):
            raise PhoneError(f"nothing listens on udp:{nowhere}")
    trunks = {one.name: one for one in map(trunk_of, calls) if one is not None}
    phone = Phone(
        PhoneSettings(
            local=options.local,
            pjsip_log_level=options.pjsip_log_level,
            trunks=tuple(trunks.values()),
        ),
        sorted(hosts)[-1],
    )
    results: dict[int, CallResult] = {}
    settings = {one.file.model for one in calls}
    models: Models = {one: Model(one) for one in settings if one.url}
    scripts = [_with_noise(one) for one in calls]
    # All before the first call: a sound that is missing is told then, and no call waits for one.
    clips = await asyncio.to_thread(lambda: [prepare(one) for one in scripts])
    waiting = list(zip(calls, uris, scripts, clips, strict=True))

    async def work() -> None:
        while waiting and not phone.interrupted:
            call, uri, script, sounds = waiting.pop(0)
            on_progress(call, "")
            place = functools.partial(phone.call, uri, script, sounds)
            result = await _run_call(call, place, options, lookup, models, on_progress)
            results[call.number] = result
            on_result(result)

    async with phone:
        workers = min(options.parallel, len(calls), phone.capacity)
        with taking_signals(phone.interrupt):
            await asyncio.gather(*(work() for _ in range(workers)))
    return [results[number] for number in sorted(results)]


async def _run_call(
    call: SuiteCall,
    place: Callable[..., Awaitable[ScriptedCall]],
    options: RunOptions,
    lookup: CallLookup,
    models: Models,
    on_progress: Progress,
) -> CallResult:
    """Place one call; return its verdicts, and write its recording where that is wanted."""
    follow = call.call.follow_refer
    dialling = Dialling(
        caller_id=call.caller_id,
        trunk="" if (trunk := trunk_of(call)) is None else trunk.name,
        headers=call.call.headers,
        line=call.call.line,
        follow=None if follow is None else re.compile(follow),
    )
    codecs = [call.call.codec, *(one for one in G711 if one is not call.call.codec)]
    simulation = _Simulation(call, models, lookup)
    with lookup.following(call.caller_id):
        made = await place(
            *(codecs, lambda text: on_progress(call, text), dialling), simulation.talk
        )
    assert made.report is not None
    evidence = await _evidence(call, made, lookup)
    result = CallResult(call, evidence, judge(call.call.expect, evidence))
    result.verdicts += await simulation.verdicts(evidence)
    if options.sounds is not None and made.tape.heard_track:
        result.sound = options.sounds / f"{call.number:03}-{slug(call.name)}.wav"
        both = [bytes(made.tape.said_track), bytes(made.tape.heard_track)]
        await asyncio.to_thread(write_sound, result.sound, made.tape.codec, both)
    return result


class _Simulation:
    """The simulated caller and the judge of one call, where it has them.

    Args:
        models: those that may be asked, by their settings.
    """

    def __init__(self, call: SuiteCall, models: Models, lookup: CallLookup) -> None:
        self._call = call
        self._model = models.get(call.file.model)
        self._lookup = lookup
        self._caller: SimulatedCaller | RealtimeCaller | None = None
        self._made: TalkingCall | None = None
        self._known = ""

    async def talk(self, made: TalkingCall) -> None:
        """Have the simulated caller speak, where the call has one."""
        persona, self._made = self._call.call.caller, made
        if persona is None or self._why_silent():
            return
        if persona.by == "realtime":
            self._caller = RealtimeCaller(persona, lambda: made.since_dial)
        else:
            assert self._model is not None
            self._caller = SimulatedCaller(persona, self._model, self._words_of)
        await self._caller.talk(made)

    def _why_silent(self) -> str:
        """Why the simulated caller does not speak; "" where it does, or there is none."""
        persona = self._call.call.caller
        if persona is not None and persona.by == "realtime":
            return "" if persona.url else "[call.caller] url is empty"
        return "" if persona is None or self._model else NO_MODEL

    async def _words_of(self, span: Span) -> str | None:
        """Return what the agent said in ``span``, by transcript or recogniser; None if unknown."""
        assert self._made is not None
        told: list[Said] | None = None
        until = asyncio.get_running_loop().time() + TRANSCRIPT_SECONDS
        while asyncio.get_running_loop().time() < until:
            told = await self._lookup.transcript(self._made.sip_call_id, self._call.caller_id)
            if told is None:
                break
            words = " ".join(one.text for one in told if one.who == "agent")
            if len(words) > len(self._known):
                known, self._known = self._known, words
                return words.removeprefix(known).strip()
            await asyncio.sleep(POLL_SECONDS)
        recogniser, _ = recogniser_of(self._call.file.recogniser)
        if recogniser is None:
            return None if told is None else ""
        tape = self._made.tape
        words, why = await recogniser.words(bytes(tape.heard_track), tape.codec, span)
        return None if why else words

    async def verdicts(self, evidence: Evidence) -> list[Verdict]:
        """Return whether the caller reached the goal, and the marks of the judge."""
        found: list[Verdict] = []
        call = self._call.call
        if why := self._why_silent():
            found.append(Verdict("caller", Mark.SKIPPED, "a model", f"not checked: {why}"))
        elif call.caller is not None:
            talked = Conversation(end="the steps before it were not done")
            if self._caller is not None:
                talked = self._caller.conversation
            if isinstance(self._caller, RealtimeCaller):
                evidence.own = talked.said
            found.append(talked.verdict(call.caller))
        if call.judge is not None and self._model is None:
            found.append(Verdict("judge", Mark.SKIPPED, "a model", f"not checked: {NO_MODEL}"))
        elif call.judge is not None and self._model is not None:
            found += await marks_of(call.judge, self._model, evidence.both_sides())
        return found


def _with_noise(call: SuiteCall) -> Script:
    """Return the script of a call, with the noise of ``[call.line]`` from the answer on."""
    dbfs, steps = call.call.line.noise_dbfs, call.script.steps
    if dbfs is None:
        return call.script
    first = next((at for at, one in enumerate(steps, start=1) if one.do == "wait_answer"), 0)
    noisy = (*steps[:first], Noise(dbfs=dbfs), *steps[first:])
    return call.script.model_copy(update={"steps": noisy})


async def _evidence(call: SuiteCall, made: ScriptedCall, lookup: CallLookup) -> Evidence:
    report = made.report
    assert report is not None
    evidence = Evidence(report)
    record, why = await lookup.record(report.sip_call_id, call.caller_id, report.started_at)
    evidence.record, evidence.no_record = record, why
    if record is not None:
        evidence.transcript = said_in(record.get("transcript") or ())
        evidence.words_by = "the gateway's transcript"
        return evidence
    recogniser, why_not = recogniser_of(call.file.recogniser)
    evidence.no_words = f"{why}; {why_not}" if why_not else why
    if recogniser is not None and report.heard:
        words, why = await recogniser.words(bytes(made.tape.heard_track), made.tape.codec)
        if why:
            evidence.no_words = why
        else:
            evidence.transcript, evidence.words_by = [Said("agent", words)], "the recogniser"
    return evidence


def slug(name: str) -> str:
    """Return ``name`` for a file name: a-z, 0-9 and hyphens, at most 60 characters."""
    return re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")[:60] or "call"
