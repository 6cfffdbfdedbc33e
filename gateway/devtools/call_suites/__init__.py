# SPDX-License-Identifier: GPL-2.0-or-later
"""Call suites as files: calls with their steps, and what each of them has to show.

A file holds one or many calls::

    target = "sip:127.0.0.1:5060"

    [[call]]
    name = "greets and can be interrupted"
    to = "100"

    [[call.step]]
    do = "wait_answer"

    [[call.step]]
    do = "interrupt"
    after_ms = 1500
    text = "Wait, one question."

    [call.expect]
    answered_within = 2
    barge_in_latency_ms = 700
    hears = ["reception"]

Steps are those of the scripted caller (:mod:`gateway.devtools.scripted_caller`). A table
``[call.caller]`` has a text model or a realtime session speak in place of, or after, the steps;
``[call.judge]`` has a text model mark the conversation.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Field, Strict, ValidationError, model_validator

from gateway.audio import Codec
from gateway.config.source import ConfigError, Problem, Section, problems_of, read_toml
from gateway.devtools.scripted_caller import (
    BadLine,
    Count,
    Level,
    Script,
    Seconds,
    Text,
    WaitAnswer,
    script_of,
)

MAX_CALLS = 1000

_URI = re.compile(r"sips?:\S+", re.IGNORECASE)
_OWN_HEADERS = (
    *("via", "from", "to", "call-id", "cseq", "contact", "max-forwards", "content-type"),
    *("content-length", "route", "record-route", "require", "authorization", "proxy-authorization"),
)


def _header(name: str) -> str:
    if not re.fullmatch(r"[A-Za-z0-9!%*_+`'~.-]{1,64}", name):
        raise ValueError(f"{name!r} is no name of a header")
    if name.lower() in _OWN_HEADERS:
        raise ValueError(f"{name} is set by the caller itself")
    return name


def _one_line(text: str) -> str:
    if not text.isprintable():
        raise ValueError("must be one line of printable characters")
    return text


def _pattern(text: str) -> re.Pattern[str]:
    try:
        return re.compile(text)
    except re.error as error:
        raise ValueError(f"is no regular expression: {error}") from None


def _target(text: str) -> str:
    if text and not _URI.fullmatch(text):
        raise ValueError("must be a SIP address, as sip:127.0.0.1:5060")
    return text


Line = Annotated[str, Field(min_length=1, max_length=2000), AfterValidator(_one_line)]
Phrases = tuple[Text, ...]
Milliseconds = Annotated[int, Strict(), Field(ge=0, le=3_600_000)]
Pattern = Annotated[str, Field(min_length=1), AfterValidator(lambda text: _pattern(text) and text)]


class TextModel(Section):
    """``[model]``: who plays the simulated callers, and judges. Off without a ``url``."""

    url: str = ""
    """Base of an OpenAI-compatible API, as ``https://api.openai.com/v1``."""
    api: Literal["chat", "responses"] = "chat"
    name: str = "gpt-5-mini"
    api_key: str = ""
    timeout: Annotated[Seconds, Field(le=600)] = 30.0
    max_tokens: Annotated[int, Strict(), Field(ge=1)] = 50_000
    """Tokens of all calls of one run together; calls that would need more are not made."""

    @model_validator(mode="after")
    def _http(self) -> TextModel:
        if self.url and not self.url.startswith(("http://", "https://")):
            raise ValueError("url must begin with http:// or https://")
        return self


class Recogniser(Section):
    """``[recogniser]``: turns what was heard into words where the target tells none."""

    command: tuple[Text, ...] = ()
    """A program that prints the words of a WAV file; ``{wav}`` stands for its path."""
    model: str = ""
    """Name or folder of a model for faster-whisper, if that is installed."""


class Expect(Section):
    """``[call.expect]``: assertions. Those that are not given are not checked."""

    answered_within: Seconds | None = None
    code: Annotated[int | None, Field(ge=200, le=699)] = None
    """Final SIP status: 200 for a call that was answered and hung up."""
    ended_by: Literal["caller", "agent", "network"] | None = None
    ending: str = ""
    """End reason in the record, as ``agent_hangup``."""
    response_p95_ms: Milliseconds | None = None
    barge_in_latency_ms: Milliseconds | None = None
    max_dead_air: Seconds | None = None
    hears: Phrases = ()
    never_hears: Phrases = ()
    caller_heard_as: Phrases = ()
    """Words of the caller that the agent's side has understood."""
    transfer_to: Pattern | None = None
    digits: str = ""
    """DTMF digits that came from the agent."""
    route: str = ""
    disposition: str = ""
    max_cost: Annotated[float | None, Field(ge=0)] = None


class Persona(Section):
    """``[call.caller]``: a simulated caller, who speaks after the steps of the call."""

    persona: Text
    goal: Text
    by: Literal["model", "realtime"] = "model"
    """Who plays: the text model of ``[model]``, or a realtime session at ``url``."""
    url: str = ""
    """Of the realtime session, as ``wss://api.openai.com/v1/realtime``; off without one."""
    model: str = "gpt-realtime"
    api_key: str = ""
    voice: Text = "marin"
    max_turns: Annotated[int, Strict(), Field(ge=1, le=100)] = 10
    max_seconds: Annotated[Seconds, Field(le=1800)] = 120.0
    max_tokens: Annotated[int, Strict(), Field(ge=1)] = 10_000
    """Tokens of this call."""
    pause_ms: Annotated[int, Strict(), Field(ge=100, le=10_000)] = 700
    """Silence of the agent after which it is the caller's turn; of the text model."""


class Criterion(Section):
    """One line of a rubric, marked from 0 to 10."""

    question: Text
    at_least: Annotated[float, Field(ge=0, le=10)] = 7.0


class Judge(Section):
    """``[call.judge]``: a text model marks the transcript."""

    criteria: Annotated[dict[str, Criterion], Field(min_length=1, max_length=20)]
    instructions: str = ""
    max_tokens: Annotated[int, Strict(), Field(ge=1)] = 4000


class Network(BadLine):
    """``[call.line]``: the way between the caller and the target."""

    noise_dbfs: Level | None = None
    """White noise under all that the caller sends."""


class Call(Section):
    """One call; its steps are in ``script``, which the file calls ``[[call.step]]``."""

    name: Line
    to: Line = "100"
    caller: Persona | None = None
    from_: Annotated[str, Field(alias="from", pattern=r"^[A-Za-z0-9+_.~*#-]{0,64}$")] = ""
    headers: dict[Annotated[str, AfterValidator(_header)], Line] = Field(default_factory=dict)
    codec: Codec = Codec.PCMU
    follow_refer: Pattern | None = None
    """Targets of REFERs that the caller follows; others it declines with 603."""
    repeat: Annotated[Count, Field(le=1000)] = 1
    line: Network = Field(default_factory=Network)
    expect: Expect = Field(default_factory=Expect)
    judge: Judge | None = None


class SuiteFile(Section):
    """The keys of a suite file that hold for all its calls."""

    target: Annotated[str, AfterValidator(_target)] = ""
    username: Annotated[str, Field(pattern=r"^[A-Za-z0-9+_.~*#-]{0,64}$")] = ""
    password: str = ""
    """Told to the target where it asks for digest authentication (RFC 3261 section 22)."""
    model: TextModel = Field(default_factory=TextModel)
    recogniser: Recogniser = Field(default_factory=Recogniser)


@dataclass(frozen=True, slots=True)
class SuiteCall:
    """One call to place: its table in a suite file, its script, and the keys of the file."""

    suite: str
    """Name of the file, without its ending."""
    number: int
    """Of all calls of the run, from 1."""
    name: str
    call: Call
    script: Script
    target: str
    file: SuiteFile

    @property
    def caller_id(self) -> str:
        """User part of From; by default ``callerN``, by which the target's record is found."""
        return self.call.from_ or self.file.username or f"caller{self.number}"


def files_of(paths: Sequence[Path]) -> list[Path]:
    """Return the suite files at ``paths``: each file, and ``*.toml`` of each folder by name.

    Raises ConfigError where there is none.
    """
    found: list[Path] = []
    for path in paths:
        here = sorted(path.glob("*.toml")) if path.is_dir() else [path]
        if not here:
            raise ConfigError([Problem(path, 1, "", "no suite (*.toml) is in this folder")])
        found += here
    return list(dict.fromkeys(found))


def load_suites(paths: Sequence[Path]) -> list[SuiteCall]:
    """Read the suite files at ``paths`` into the calls to place, numbered from 1.

    Raises ConfigError with every mistake: file, line, key.
    """
    calls: list[SuiteCall] = []
    problems: list[Problem] = []
    for file in files_of(paths):
        try:
            calls += _load(file)
        except ConfigError as error:
            problems += error.problems
    if problems:
        raise ConfigError(problems)
    return [replace(call, number=number) for number, call in enumerate(calls, start=1)]


def _load(file: Path) -> list[SuiteCall]:
    source = read_toml(file)
    data = dict(source.data)
    tables: Any = data.pop("call", None)
    shared = SuiteFile()
    try:
        shared = SuiteFile.model_validate(data)
    except ValidationError as error:
        source.problems.extend(problems_of(error, SuiteFile, source))
    if not isinstance(tables, list) or not tables:
        source.report(("call",), "a suite needs calls: write [[call]] and name = ...")
        raise ConfigError(source.problems)
    made: list[SuiteCall] = []
    names: set[str] = set()
    for index, table in enumerate(tables[:MAX_CALLS]):
        path = ("call", index)
        if not isinstance(table, dict):
            source.report(path, "must be a table: write [[call]]")
            continue
        script = script_of(source, table, path)
        rest = {key: one for key, one in table.items() if key not in ("step", "max_seconds")}
        try:
            call = Call.model_validate(rest)
        except ValidationError as error:
            source.problems.extend(problems_of(error, Call, source, path))
            continue
        if call.name in names:
            source.report((*path, "name"), f"another call is named {call.name!r}")
        names.add(call.name)
        if not table.get("step") and call.caller is None:
            source.report(path, "needs steps, [[call.step]], or a [call.caller]")
        if script is None:
            continue
        if not script.steps:
            script = script.model_copy(update={"steps": (WaitAnswer(),)})
        for number in range(1, call.repeat + 1):
            name = call.name if call.repeat == 1 else f"{call.name} ({number})"
            one = SuiteCall(file.stem, 0, name, call, script, shared.target, shared)
            made.append(one)
    if len(tables) > MAX_CALLS:
        source.report(("call",), f"more than {MAX_CALLS} calls")
    if source.problems:
        raise ConfigError(source.problems)
    return made
