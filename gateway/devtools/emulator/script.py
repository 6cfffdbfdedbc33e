# SPDX-License-Identifier: GPL-2.0-or-later
"""Scripts of the emulator: answers, faults and timing in place of its default conversation.

A script is one declarative object (:class:`Script`). It comes from

- a TOML or JSON file (``gateway emulator --script FILE``): the fields of :class:`Script` at the top
  level are in force for every session; ``[scripts.NAME]`` tables are chosen by a session with
  ``?script=NAME`` in its URL;
- the URL itself, on top of the chosen one: ``?answer.kind=pattern&answer.seconds=10`` (dots reach
  into tables, lists are separated by commas, ``answer=silent`` is short for ``answer.kind=silent``)
  or ``?behaviour={"answers":[{"kind":"say","text":"Hello."}]}`` as JSON.

Built in are the names of :data:`BUILT_IN`. A mistake in a script is a :class:`ScriptError` that
names the field; in a URL it becomes an ``error`` event with code ``invalid_script`` and close 4000.

>>> script_of_query({}, Script(), "answer=pattern&answer.seconds=10&speed=4").answers[0].kind
'pattern'
"""

from __future__ import annotations

import json
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal
from urllib.parse import parse_qsl

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    ValidationError,
    model_validator,
)


class ScriptError(ValueError):
    """A script cannot be used; the text names file or query, field and mistake."""


def _listed(value: object) -> object:
    return [part for part in value.split(",") if part] if isinstance(value, str) else value


CLOSE_CODES = frozenset({1000, 1001, 1002, 1003, 1005, *range(1007, 1015)})
"""Below 3000, the codes that a close frame may carry (RFC 6455, section 7.4); 1005 is a close frame
that carries none."""


def _sendable(code: int) -> int:
    if code in CLOSE_CODES or 3000 <= code <= 4999:
        return code
    raise ValueError(f"{code} cannot be sent in a close frame (to cut the connection: drop = true)")


CloseCode = Annotated[int, AfterValidator(_sendable)]
Seconds = Annotated[float, Field(ge=0, le=3600)]
Milliseconds = Annotated[int, Field(ge=0, le=3_600_000)]
Numbers = Annotated[list[Annotated[float, Field(gt=0, lt=20_000)]], BeforeValidator(_listed)]
Names = Annotated[list[str], BeforeValidator(_listed)]
Moments = Annotated[list[Milliseconds], BeforeValidator(_listed)]


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class ToolCall(_Part):
    """A function call at the end of a response, after what it says."""

    name: str = Field(min_length=1)
    arguments: str = "{}"


class McpCall(_Part):
    """A call of a tool of an MCP server, at the end of a response, and what comes of it."""

    server_label: str = Field(min_length=1)
    name: str = Field(min_length=1)
    arguments: str = "{}"
    output: str = "done"
    error: Literal["protocol_error", "tool_execution_error", "http_error"] | None = None
    """The call fails in this way."""
    error_message: str = "Failed by the emulator's script."
    approval: bool | None = None
    """Ask the client first; by default what ``require_approval`` of the session's tool says."""


class Answer(_Part):
    """One response.

    ``kind``: ``conversation`` (the rules of ``dialogue.py``), ``say`` (``text``),
    ``pattern`` (bytes of :func:`gateway.devtools.speech.pattern` for ``seed``), ``tones``
    (``frequencies_hz`` in turn, ``seconds`` each), ``quiet`` (silence as audio), ``echo`` (the
    caller's last turn), ``nothing`` (a response without a message, say with tool calls only),
    ``silent`` (no response at all), ``hang`` (``response.created``, then nothing more).
    """

    kind: Literal[
        "conversation",
        "say",
        "pattern",
        "tones",
        "quiet",
        "echo",
        "nothing",
        "silent",
        "hang",
    ] = "conversation"
    text: str = ""
    seconds: Annotated[float, Field(gt=0, le=600)] = 5.0
    seed: Annotated[int, Field(ge=0)] = 0
    frequencies_hz: Numbers = [440.0]
    level_dbfs: Annotated[float, Field(ge=-90, le=0)] = -12.0
    first_delay_ms: Milliseconds = 0
    """Between ``response.created`` and the first item: the model thinking."""
    burst: bool = False
    """All audio at once instead of the script's ``speed``."""
    speed: Annotated[float, Field(gt=0, le=1000)] | None = None
    stall_at_ms: Milliseconds | None = None
    """Stop sending at this millisecond of the answer for ``stall_s``."""
    stall_s: Seconds = 0.0
    outcome: Literal["completed", "failed", "incomplete"] = "completed"
    """``response.done.status`` once everything was sent."""
    reason: Literal["max_output_tokens", "content_filter"] = "content_filter"
    error_code: str = "rate_limit_exceeded"
    error_message: str = "Rate limit reached for this emulated model."
    end_call: bool = False
    """Close with the ``end_call`` tool of the session, as a goodbye does."""
    tools: list[ToolCall] = []
    delegate: bool = False
    """In a Live session: hand the task over though no ``tools`` are called (to a client)."""
    mcp: list[McpCall] = []

    @model_validator(mode="after")
    def _text_to_say(self) -> Answer:
        if self.kind == "say" and not self.text:
            raise ValueError('kind "say" needs a text')
        return self


class ScriptedSpeech(_Part):
    """Speech events without speech, with ``vad = "scripted"``: to interrupt at chosen moments.

    ``speech_started`` comes so many milliseconds after the first audio of a response was sent:
    the n-th of ``at_ms``, or, when that is empty, random between ``min_ms`` and ``max_ms``.
    ``speech_stopped`` follows after ``length_ms``, and with it the next turn.
    """

    at_ms: Moments = []
    min_ms: Milliseconds = 200
    max_ms: Milliseconds = 2000
    seed: int = 0
    length_ms: Annotated[int, Field(ge=20, le=60_000)] = 300
    count: Annotated[int, Field(ge=0, le=100_000)] = 1
    """How many times, when ``at_ms`` is empty."""

    @model_validator(mode="after")
    def _ordered(self) -> ScriptedSpeech:
        if self.min_ms > self.max_ms:
            raise ValueError("min_ms is above max_ms")
        return self


class Refusal(_Part):
    """Refuse with an ``error`` event (or, at step ``upgrade``, with an HTTP status).

    Steps other than the first two are client events; all but ``session.update`` and
    ``response.create`` are those of Live sessions.
    """

    step: Literal[
        "upgrade",
        "connect",
        "session.update",
        "response.create",
        "session.start",
        "session.instructions.append",
        "session.thinking.append",
        "session.commentary.append",
        "session.output_audio.fixture.play",
        "response.item.create",
        "session.close",
    ]
    code: str = "server_error"
    message: str = "Refused by the emulator's script."
    type: str = "invalid_request_error"
    param: str | None = None
    http_status: Annotated[int, Field(ge=400, le=599)] = 503
    close: CloseCode | None = None
    """Close code after the error. At step ``connect`` the service's own code is the default."""
    times: Annotated[int, Field(ge=1)] = 1_000_000
    """So many client events of this kind in a session are refused, later ones are served."""
    first_sessions: Annotated[int | None, Field(ge=1)] = None
    """Only the first so many connections to this very URL meet the refusal: a retry succeeds."""

    @property
    def close_code(self) -> int | None:
        """The close code that follows, None when the session goes on."""
        if self.close is not None or self.step != "connect":
            return self.close
        return {"invalid_api_key": 3000, "model_not_found": 4004}.get(self.code, 4000)


ClosedReason = Literal["close_requested", "expired", "content", "remote_hangup", "connection_lost"]


class Ending(_Part):
    """End the connection: ``after_s`` seconds, or at the ``nth`` event of type ``at``.

    ``at`` is a server event (the end follows it) or a client event (the end comes in its stead).
    With ``drop`` the TCP connection is cut without a close frame.
    """

    code: CloseCode = 1011
    reason: Annotated[str, Field(max_length=120)] = ""
    after_s: Seconds | None = None
    at: str | None = None
    nth: Annotated[int, Field(ge=1)] = 1
    drop: bool = False
    closed: ClosedReason | None = None
    """In a Live session: ``session.closed`` with this reason comes before the close."""
    first_sessions: Annotated[int | None, Field(ge=1)] = None
    """Only the first so many connections to this very URL end so: a later one lasts."""

    @model_validator(mode="after")
    def _some_moment(self) -> Ending:
        if (self.after_s is None) == (self.at is None):
            raise ValueError('an ending needs either "after_s" or "at"')
        return self


_DEFAULT_TOKENS = 1_000_000


class Limits(_Part):
    """Requests and tokens that a session may use in ``window_s`` seconds; they refill evenly.

    The service counts them for a whole account; here each session has its own, so a script says
    exactly when they are used up.
    """

    requests: Annotated[int, Field(ge=0)] = 1000
    tokens: Annotated[int, Field(ge=0)] = _DEFAULT_TOKENS
    window_s: Annotated[float, Field(gt=0, le=86_400)] = 60.0


class LiveError(_Part):
    """An ``error`` that no client event of the Live session caused, ``after_s`` of its audio."""

    after_s: Seconds
    code: str = "server_error"
    message: str = "Sent by the emulator's script."
    type: str = "server_error"
    silences: bool = False
    """The rest of what is being said is not sent, as a safety filter does it."""


class Live(_Part):
    """Settings of Live sessions (``/v1/live/sessions``). Times are of the session's clock, which
    runs on the audio that the client sends."""

    chunk_ms: Annotated[int, Field(ge=20, le=1000)] = 100
    """Audio in one ``session.output_audio.delta``."""
    speed: Annotated[float, Field(gt=0, le=1000)] = 1.0
    """How many times faster than real time the session's clock may run."""
    append_delay_ms: Milliseconds = 100
    """Until a text is placed and acknowledged; what it leads to is said from there on."""
    speaks: bool = True
    """False: a session that starts and never says anything but fixtures."""
    commentary: Literal["verbatim", "paraphrased", "unspoken"] = "verbatim"
    turn_silence_ms: Annotated[int, Field(ge=20, le=10_000)] = 500
    """Silence of the caller after which the model answers."""
    interrupt_ms: Annotated[int, Field(ge=20, le=60_000)] = 300
    """How long the caller speaks until the model stops speaking."""
    talks_on: bool = False
    """The model does not stop speaking when the caller speaks."""
    backchannel: str = ""
    """Said in the middle of a caller's turn, after 600 ms of it."""
    transcript_lag_ms: Milliseconds = 2600
    """Between sound and transcript, of both sides."""
    usage_interval_s: Annotated[float, Field(gt=0, le=3600)] = 15.0
    """Between two ``session.usage.updated``."""
    input_timeout_s: Annotated[float, Field(gt=0, le=3600)] = 31.0
    """Without any audio of the client for this time the session ends as ``expired``."""
    close_delay_ms: Milliseconds = 0
    """Between ``session.close`` and ``session.closed``."""
    closes: Literal["normal", "bare", "never"] = "normal"
    """``bare``: the answer to ``session.close`` is a close without ``session.closed``."""
    backend_delay_ms: Milliseconds = 0
    """Until the backend has its answer."""
    errors: list[LiveError] = []
    storage_fails: bool = False
    """``session_storage_failed`` before ``session.closed``."""


class Script(_Part):
    """A script. The defaults are a helpful conversation."""

    answers: list[Answer] = []
    """One for each response in turn, the last of them repeated; none means ``conversation``."""
    out_of_band: Answer = Answer()
    """Each response whose ``conversation`` is "none"."""
    speed: Annotated[float, Field(gt=0, le=1000)] = 8.0
    """How many times faster than real time audio is sent."""
    chunk_ms: Annotated[int, Field(ge=20, le=1000)] = 200
    """Audio in one ``response.output_audio.delta``."""
    vad: Literal["auto", "scripted", "off"] = "auto"
    speech: ScriptedSpeech = ScriptedSpeech()
    created: Literal["normal", "never"] = "normal"
    created_delay_ms: Milliseconds = 0
    updated: Literal["normal", "never"] = "normal"
    updated_delay_ms: Milliseconds = 0
    refuse: Refusal | None = None
    end: Ending | None = None
    cancel_tail: Literal["full", "bare"] = "full"
    """``bare``: after an interruption only ``response.done``, as some servers do."""
    transcripts: list[str] = []
    """Words for the caller's turns, one after the other, the last repeated; by default the emulator
    says that it knows none."""
    transcription_fails: Moments = []
    """Turns of the caller (the first is 0) whose transcription fails."""
    transcription_delays_ms: Moments = []
    """By turn, how late its transcription comes: a turn's may come after the next one's."""
    transcription_segments: bool = False
    rate_limits: Limits | None = None
    """Of each session: with them both limits are told, and ``rate_limit_exceeded`` comes."""
    mcp_tools: Names = ["search"]
    """Names of the tools that every MCP server of a session lists."""
    mcp_listing: Literal["completed", "failed", "never"] = "completed"
    mcp_listing_ms: Milliseconds = 0
    """How long a listing takes."""
    after_approval: Literal["response", "nothing"] = "response"
    """An approved MCP call runs in a response of its own, or with the next ``response.create``."""
    obfuscation: bool = False
    """An extra ``obfuscation`` string in every delta."""
    spaced_types: Names = []
    """Types of events sent with a space before them, as one published example has it."""
    unknown_events: bool = False
    """Events of a type that nobody knows, at the start and in each response."""
    expires_s: Annotated[float, Field(gt=0, le=86_400)] = 3600.0
    live: Live = Live()
    text_replies: list[str] = []
    """What the text model says, one reply after the other of a conversation, the last repeated."""
    text_scores: dict[str, float] = {}
    """Marks that it gives as a judge, by criterion; 8 for those that are not here."""
    beta: bool = False
    """Serves clients that send ``OpenAI-Beta: realtime=v1`` in that dialect, as OpenAI's service
    does no longer; without it they are refused."""

    def answer(self, number: int) -> Answer:
        """Return the answer for a session's response ``number``, counted from 1."""
        return self.answers[min(number, len(self.answers)) - 1] if self.answers else Answer()

    def transcript(self, number: int, spoken_ms: int) -> str:
        """Return the words of the caller's turn ``number``, counted from 0."""
        if not self.transcripts:
            return f"({spoken_ms / 1000:.1f} seconds of speech, not transcribed)"
        return self.transcripts[min(number, len(self.transcripts) - 1)]

    @model_validator(mode="before")
    @classmethod
    def _one_answer(cls, data: Any) -> Any:
        if isinstance(data, dict) and "answer" in data:
            data = dict(data)
            answer = data.pop("answer")
            data["answers"] = [{"kind": answer} if isinstance(answer, str) else answer]
        if isinstance(data, dict) and "transcript" in data:
            data = dict(data)
            data["transcripts"] = [data.pop("transcript")]
        return data


def _no_start(code: str, message: str, type_: str = "invalid_request_error") -> Script:
    return Script(refuse=Refusal(step="session.start", code=code, message=message, type=type_))


def _error(code: str) -> Script:
    error = LiveError(after_s=1, code=code, type="invalid_request_error")
    return Script(live=Live(errors=[error]))


def _closed(reason: ClosedReason) -> Script:
    return Script(end=Ending(at=_LIVE_AUDIO, nth=5, closed=reason))


_LIVE_AUDIO = "session.output_audio.delta"
LIVE_CODES = (
    "unknown_parameter",
    "immutable_field_update",
    "invalid_audio",
    "context_injection_incomplete",
    "decision_already_made",
    "outbound_sip_not_enabled",
    "session_id_not_found",
    "provider_invite_failed",
)
LIVE: Mapping[str, Script] = {
    "live-invalid-model": _no_start("invalid_model", "No such Live model."),
    "live-forbidden-voice": _no_start("forbidden", "This voice is not available."),
    "live-no-quota": _no_start("insufficient_quota", "You exceeded your quota.", "quota_error"),
    "live-deactivated": _no_start("account_deactivated", "The account is deactivated."),
    "live-billing-limit": _no_start("billing_hard_limit_reached", "The hard limit is reached."),
    "live-no-start": Script(created="never"),
    "live-late-start": Script(created_delay_ms=2000),
    "live-mute": Script(live=Live(speaks=False)),
    "live-unspoken": Script(live=Live(commentary="unspoken")),
    "live-paraphrased": Script(live=Live(commentary="paraphrased")),
    "live-talks-on": Script(live=Live(talks_on=True, backchannel="I see.")),
    "live-burst": Script(answers=[Answer(kind="pattern", seconds=3, burst=True)]),
    "live-stall": Script(answers=[Answer(kind="pattern", stall_at_ms=1000, stall_s=2)]),
    "live-filtered": Script(
        live=Live(errors=[LiveError(after_s=2, code="content_filter", silences=True)])
    ),
    "live-unknown-error": _error("never_seen"),
    **{f"live-{code.replace('_', '-')}": _error(code) for code in LIVE_CODES},
    "live-busy": Script(
        refuse=Refusal(step="upgrade", http_status=429, code="rate_limit_exceeded")
    ),
    "live-incomplete": Script(
        answers=[Answer(kind="nothing", outcome="incomplete", reason="max_output_tokens")]
    ),
    "live-backend-failed": Script(
        answers=[Answer(kind="nothing", outcome="failed", error_code="server_error")]
    ),
    "live-expired": _closed("expired"),
    "live-content": _closed("content"),
    "live-hangup": _closed("remote_hangup"),
    "live-connection-lost": _closed("connection_lost"),
    "live-lost": Script(end=Ending(at=_LIVE_AUDIO, nth=5, code=1011)),
    "live-drop": Script(end=Ending(at=_LIVE_AUDIO, nth=5, drop=True)),
    "live-not-stored": Script(live=Live(storage_fails=True)),
    "live-bare-close": Script(live=Live(closes="bare")),
    "live-no-close": Script(live=Live(closes="never")),
}
"""Faults of Live sessions, each by its name."""

BUILT_IN: Mapping[str, Script] = {
    "conversation": Script(),
    "silent": Script(answers=[Answer(kind="silent")]),
    "hang": Script(answers=[Answer(kind="hang")]),
    "burst": Script(answers=[Answer(kind="pattern", seconds=20, burst=True)]),
    "pattern": Script(answers=[Answer(kind="pattern", seconds=10)]),
    "tones": Script(
        answers=[Answer(kind="tones", seconds=1, frequencies_hz=[400, 600, 800, 1000, 1200])]
    ),
    "stall": Script(answers=[Answer(kind="pattern", stall_at_ms=1000, stall_s=3)]),
    "trickle": Script(speed=0.5, answers=[Answer(kind="pattern", seconds=4)]),
    "goodbye": Script(answers=[Answer(kind="say", text="Thank you. Goodbye.", end_call=True)]),
    "hang-up": Script(answers=[Answer(kind="nothing", end_call=True)]),
    "failed": Script(answers=[Answer(kind="nothing", outcome="failed")]),
    "deaf": Script(vad="off"),
    "interrupt": Script(
        vad="scripted",
        answers=[Answer(kind="pattern", seconds=20)],
        speech=ScriptedSpeech(count=100, min_ms=200, max_ms=3000),
    ),
    "no-update": Script(updated="never"),
    "bad-key": Script(
        refuse=Refusal(step="connect", code="invalid_api_key", message="Incorrect API key.")
    ),
    "no-model": Script(
        refuse=Refusal(step="connect", code="model_not_found", message="No such model.")
    ),
    "no-realtime": Script(
        refuse=Refusal(
            step="upgrade",
            http_status=400,
            code="OpperationNotSupported",  # spelt so by Azure
            message="The realtime operation does not work with the specified model.",
        )
    ),
    "drop": Script(end=Ending(at="response.output_audio.delta", nth=5, drop=True)),
    "lost": Script(end=Ending(at="response.output_audio.delta", nth=5, code=1011)),
    "expired": Script(expires_s=3.0),
    **LIVE,
}

# Query keys that belong to the protocol or to Azure, not to a script.
_NOT_OURS = {"model", "intent", "call_id", "api-version", "deployment", "api-key", "script"}


class ScriptFile:
    """The scripts of one file: a default for all sessions, and named ones."""

    def __init__(self, default: Script, named: Mapping[str, Script]) -> None:
        self.default = default
        self.named = {**BUILT_IN, **named}

    @classmethod
    def load(cls, path: Path) -> ScriptFile:
        """Read a TOML or (``*.json``) JSON file. Raises :class:`ScriptError`."""
        try:
            text = path.read_text("utf-8")
            data = json.loads(text) if path.suffix == ".json" else tomllib.loads(text)
        except (OSError, ValueError) as error:
            raise ScriptError(f"{path}: {error}") from error
        if not isinstance(data, dict):
            raise ScriptError(f"{path}: a table is wanted")
        named = data.pop("scripts", {})
        if not isinstance(named, dict):
            raise ScriptError(f"{path}: scripts: a table of tables is wanted")
        scripts = {name: _parsed(table, f"{path}: scripts.{name}") for name, table in named.items()}
        return cls(_parsed(data, str(path)), scripts)


def script_of_query(named: Mapping[str, Script], default: Script, query: str) -> Script:
    """Return the script of a session by the query of its URL. Raises :class:`ScriptError`."""
    pairs = parse_qsl(query, keep_blank_values=True)
    base = default
    changes: dict[str, Any] = {}
    for key, value in pairs:
        if key == "script":
            if value not in named:
                raise ScriptError(f"script={value}: no such script (there are {', '.join(named)})")
            base = named[value]
        elif key == "behaviour":
            try:
                given = json.loads(value)
            except ValueError as error:
                raise ScriptError(f"behaviour: not JSON: {error}") from error
            if not isinstance(given, dict):
                raise ScriptError("behaviour: a JSON object is wanted")
            changes.update(given)
        elif key not in _NOT_OURS:
            _put(changes, key, value)
    if not changes:
        return base
    given = base.model_dump(exclude_unset=True)
    answer = changes.pop("answer", None)
    merged = _over(given, changes)
    if answer is not None:
        fields = answer if isinstance(answer, dict) else {"kind": answer}
        answers = merged.get("answers") or [{}]
        if not isinstance(answers, list) or not all(isinstance(each, dict) for each in answers):
            raise ScriptError("behaviour: answers: a list of objects is wanted")
        merged["answers"] = [_over(each, fields) for each in answers]
    return _parsed(merged, "query")


def _put(changes: dict[str, Any], key: str, value: str) -> None:
    *parents, last = key.split(".")
    table = changes
    for parent in parents:
        inner = table.get(parent, {})
        if not isinstance(inner, dict):
            inner = {"kind": inner}
        table[parent] = table = inner
    if isinstance(table.get(last), dict):
        table[last]["kind"] = value
    else:
        table[last] = value


def _over(base: dict[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    merged = dict(base)
    for key, value in changes.items():
        before = merged.get(key)
        if isinstance(before, dict) and isinstance(value, dict):
            merged[key] = _over(before, value)
        else:
            merged[key] = value
    return merged


def _parsed(data: object, where: str) -> Script:
    try:
        return Script.model_validate(data)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        field = ".".join(str(step) for step in first["loc"])
        raise ScriptError(f"{where}: {field or 'script'}: {first['msg']}") from None
