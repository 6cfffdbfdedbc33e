# SPDX-License-Identifier: GPL-2.0-or-later
"""A route of the dialplan: its conditions and tables, and the settings of a call that takes it."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Annotated, Any, Literal, Self
from urllib.parse import urlsplit

from pydantic import (
    AfterValidator,
    ConfigDict,
    Field,
    PlainSerializer,
    PrivateAttr,
    model_validator,
)

from gateway.audio.sounds import BUILT_IN as BUILT_IN_SOUNDS
from gateway.audio.sounds import wav_seconds
from gateway.config import Config
from gateway.config.sections import RealtimeSettings
from gateway.config.source import KeyPath, MisplacedError, Section, suggestion
from gateway.config.values import (
    Count,
    Flag,
    Name,
    Seconds,
    SecondsOrOff,
    Text,
    Typed,
    refuse_duplicates,
)
from gateway.dialplan.conditions import RouteConditions
from gateway.dialplan.route_sections import (
    DEFAULT,
    Answer,
    Application,
    ContextTrimming,
    Fallback,
    Guardrail,
    HoldWait,
    Interruptions,
    Line,
    MachineDetection,
    PostCall,
    ResponseFailure,
    RouteBudget,
    RouteRecords,
    Silence,
    UserIdle,
    refuse_unreachable,
)
from gateway.dialplan.route_session import (
    CallerHistory,
    Canary,
    LiveTable,
    Message,
    RouteRealtime,
    SessionTable,
    Transcription,
    credentials,
    merged,
)
from gateway.dialplan.tool_sections import (
    ARGUMENT,
    RouteEscape,
    RouteRecording,
    RouteTools,
    Sound,
)
from gateway.dialplan.variables import (
    BUILT_IN,
    CLOCK,
    DATA,
    HEADER,
    LAST_CALL,
    RouteData,
    is_known,
    key_of,
    names_in,
    render,
    render_all,
    texts_in,
)

DIGITS, RESPONSE_MS = "digits", "response_ms"
"""The variables that only the text for keys has."""


def _metadata(value: Mapping[str, str]) -> Mapping[str, str]:
    """Refuse metadata beyond the protocol's limits."""
    if len(value) > 16:
        raise ValueError("may have 16 keys at most")
    for name in value:
        if not 1 <= len(name) <= 64:
            raise MisplacedError((name,), "must be 1 to 64 characters long")
    return MappingProxyType(dict(value))


MAX_CLIP_SECONDS = 30
"""Of a clip that a Live session plays."""


class Greeting(Section):
    """``[route.greeting]``: what the model says first, before the caller speaks."""

    say: Text | None = None
    instructions: Text | None = None
    clip: Sound | None = None
    exact: Flag = False

    @model_validator(mode="after")
    def _one_of_them(self) -> Self:
        """Refuse a greeting without words or with two kinds of them, and read its clip."""
        if (self.say is None) == (self.instructions is None):
            raise ValueError("must have either say (the words) or instructions (what to do)")
        if self.exact and (self.say is None or self.clip is not None):
            raise MisplacedError(("exact",), "needs say beside it, and no clip of its words")
        if self.clip is None:
            return self
        if self.say is None:
            raise MisplacedError(("clip",), "needs say beside it: the words that are in it")
        if self.clip in BUILT_IN_SOUNDS:
            raise MisplacedError(("clip",), "must be the path of a .wav file")
        if wav_seconds(Path(self.clip)) > MAX_CLIP_SECONDS:
            raise MisplacedError(("clip",), f"is longer than {MAX_CLIP_SECONDS} s")
        return self


class Disclosure(Section):
    """``[route.disclosure]``: that the caller speaks with an AI, said at the start of each call."""

    say: Text
    mode: Literal["before", "within"] = "before"
    interruptible: Flag = False
    exact: Flag = False


def _one_key(value: str) -> str:
    if not re.fullmatch(r"[0-9*#A-D]?", value):
        raise ValueError('must be one key (0-9, *, #, A-D), or "" for none')
    return value


class Dtmf(Section):
    """``[route.dtmf]``: how keys that the caller presses become a message to the model."""

    enabled: Flag = True
    finish_on_key: Annotated[str, AfterValidator(_one_key)] = "#"
    inband: Flag = False
    inter_digit_timeout: Seconds = 3.0
    max_digits: Annotated[Count, Field(le=128)] = 32
    interrupt: Flag = True
    text: Text = "The caller pressed {digits} on the telephone keypad."

    @model_validator(mode="after")
    def _template(self) -> Self:
        if DIGITS not in names_in(self.text):
            raise MisplacedError(("text",), "must contain {digits}")
        return self

    def render(self, digits: str, variables: Mapping[str, str]) -> str:
        """Return the user message for DTMF ``digits``, with the call's variables filled in."""
        later = {RESPONSE_MS: f"{{{RESPONSE_MS}}}"}  # known when the keys are sent
        return render(self.text, {**variables, **later, DIGITS: digits})


class InterpreterSide(Section):
    """``[route.interpreter.caller]`` and ``.callee``: one of the two, and what they hear."""

    language: Text
    voice: Text | None = None
    instructions: Text | None = None


class Interpreter(Section):
    """``[route.interpreter]``: interprets between the caller and one transfer destination."""

    to: Text
    caller: InterpreterSide
    callee: InterpreterSide
    original_db: Annotated[float, Field(ge=-60, le=0), Typed] = -18.0
    at_once: Flag = True


class RouteLimits(Section):
    """``[route.limits]``: in place of ``[limits]`` and ``[media]``, for this route (s)."""

    max_call_duration: Seconds | None = None
    rtp_timeout: SecondsOrOff | None = None


class RouteConversation(Section):
    """How the conversation of a route's calls goes: its keys of ``[[route]]``."""

    greeting: Greeting | None = None
    disclosure: Disclosure | None = None
    dtmf: Dtmf = Field(default_factory=Dtmf)
    interruptions: Interruptions = Field(default_factory=Interruptions)
    idle: UserIdle = Field(default_factory=UserIdle)
    silence: Silence = Field(default_factory=Silence)
    machine_detection: MachineDetection = Field(default_factory=MachineDetection)
    line: Line = Field(default_factory=Line)
    hold_wait: HoldWait = Field(default_factory=HoldWait)
    guardrail: tuple[Guardrail, ...] = ()
    response_failure: ResponseFailure = Field(default_factory=ResponseFailure)
    escape: RouteEscape = Field(default_factory=RouteEscape)
    context: ContextTrimming = Field(default_factory=ContextTrimming)
    post_call: PostCall = Field(default_factory=PostCall)


MAX_MESSAGES = 50
"""Of ``[[route.message]]``: each is paid for again with every response."""


class Route(RouteConditions, RouteTools, RouteConversation):
    """``[[route]]``: which calls it takes, and what happens to them.

    Every condition that is given must hold; a route without conditions takes every call.
    """

    model_config = ConfigDict(arbitrary_types_allowed=True)

    name: Name
    enabled: Flag = True
    session: SessionTable = Field(default_factory=lambda: MappingProxyType({}))
    live: LiveTable = Field(default_factory=lambda: MappingProxyType({}))
    message: Annotated[tuple[Message, ...], Field(max_length=MAX_MESSAGES)] = ()
    caller_history: CallerHistory = Field(default_factory=CallerHistory)
    transcription: Transcription = Field(default_factory=Transcription)
    metadata: Annotated[
        Mapping[str, Text], AfterValidator(_metadata), PlainSerializer(lambda value: dict(value))
    ] = Field(default_factory=lambda: MappingProxyType({}))
    data: RouteData | None = None
    application: Application | None = None
    test_line: Literal["", "echo", "milliwatt"] = ""
    limits: RouteLimits = Field(default_factory=RouteLimits)
    answer: Answer = Field(default_factory=Answer)
    budget: RouteBudget = Field(default_factory=RouteBudget)
    fallback: tuple[Fallback, ...] = DEFAULT
    records: RouteRecords = Field(default_factory=RouteRecords)
    recording: RouteRecording = Field(default_factory=RouteRecording)
    realtime: RouteRealtime = Field(default_factory=RouteRealtime)
    canary: Canary | None = None
    interpreter: Interpreter | None = None
    _as_written: bool = PrivateAttr(False)
    """No variables are filled in."""

    @model_validator(mode="after")
    def _belong_together(self) -> Self:
        """Refuse keys of a route that exclude or need each other."""
        if self.test_line and self.application is not None:
            raise MisplacedError(("application",), "has no effect beside test_line")
        if self.hours and self.timezone is None:
            raise MisplacedError(
                ("hours",), 'need a time zone beside them, like timezone = "Europe/Berlin"'
            )
        asked = self.schedule_callback.enabled or self.caller_history.enabled
        asked = asked or not self._names_used().isdisjoint(CLOCK)
        if self.timezone is not None and not self.hours and not asked:
            raise MisplacedError(
                ("timezone",), "has no effect without hours, and no {time} is used"
            )
        for key in ("budget", "hold_wait", "idle", "machine_detection", "response_failure"):
            self.check_transfer_to((key, "transfer_to"), getattr(self, key).transfer_to)
        refuse_unreachable(self.fallback)
        for number, step in enumerate(self.fallback):
            if step.action == "transfer":
                self.check_transfer_to(("fallback", number, "to"), step.to)
        for number, name in enumerate(self.escape.to):
            self.check_transfer_to(("escape", "to", number), name)
        refuse_duplicates((one.name for one in self.guardrail), "guardrail")
        for index, guard in enumerate(self.guardrail):
            self.check_transfer_to(("guardrail", index, "transfer_to"), guard.transfer_to)
        self._interpreter_can_work()
        self.interruptions.agree_with(self.session)
        self.idle.agree_with(self.session)
        self.machine_detection.agree_with(self.session)
        self.hold_wait.agree_with(self.session, self.machine_detection.music)
        given = [name for name in self.model_fields_set if getattr(self, name)]
        self.transcription.agree_with(self.session, given)
        names = self.variable_names()
        twice = sorted({name for name in names if names.count(name) > 1})
        if twice:
            raise ValueError(f"the named group {twice[0]} is in more than one regular expression")
        for name in names:
            if name in (DIGITS, RESPONSE_MS) or name in BUILT_IN:
                raise ValueError(f"a named group may not be called {name}: that is a variable")
        groups = frozenset(names)
        for path, text in self.templates():
            own = {"dtmf": {DIGITS, RESPONSE_MS}, "approval": {"tool"}}.get(str(path[0]), set())
            of_tools = path[0] in ("tool", "approval")
            for name in names_in(text):
                if name in own or (of_tools and name.startswith(ARGUMENT)):
                    continue
                if name.startswith(DATA) and path[0] != "data" and self.data is not None:
                    continue
                if name in LAST_CALL and path[0] != "data" and self.caller_history.enabled:
                    continue
                if not is_known(name, groups):
                    hint = suggestion(name, [*BUILT_IN, *groups, *own])
                    if name.startswith(DATA) and self.data is None:
                        hint = " without [route.data]"
                    if name in LAST_CALL:
                        hint = " here" if path[0] == "data" else " without [route.caller_history]"
                    raise MisplacedError(
                        path,
                        f"there is no variable {{{name}}}{hint}; "
                        f"write {{{{{name}}}}} for these characters",
                    )
        return self

    def _interpreter_can_work(self) -> None:
        """Refuse an interpreter whose destination is missing or cannot be bridged."""
        given = self.interpreter
        if given is None:
            return
        path = ("interpreter", "to")
        self.check_transfer_to(path, given.to)
        for one in self.transfer:
            if one.name.casefold() == given.to.casefold() and one.mode != "bridge":
                raise MisplacedError(path, 'needs a [[route.transfer]] of mode "bridge"')
        if self.transfer_call.listen:
            raise MisplacedError(("transfer_call", "listen"), "has no effect beside interpreter")
        if self.application is not None:
            raise MisplacedError(("interpreter",), "has no effect beside application")

    def _names_used(self) -> set[str]:
        """Return the names of all variables in the texts of the route."""
        return {name for _, text in self.templates() for name in names_in(text)}

    def templates(self) -> Iterator[tuple[KeyPath, str]]:
        """Yield each text with variables, and its path in the route."""
        yield from texts_in(self.session, ("session",))
        yield from texts_in(self.live, ("live",))
        for index, message in enumerate(self.message):
            yield ("message", index, "text" if message.file is None else "file"), message.words
        if self.greeting is not None:
            given = self.greeting.model_dump(exclude_none=True, exclude={"clip", "exact"})
            yield from texts_in(given, ("greeting",))
        if self.interpreter is not None:
            for side in ("caller", "callee"):
                words = getattr(self.interpreter, side).instructions or ""
                yield ("interpreter", side, "instructions"), words
        if self.disclosure is not None:
            yield ("disclosure", "say"), self.disclosure.say
        yield ("dtmf", "text"), self.dtmf.text
        for key in ("prompt", "goodbye"):
            yield ("idle", key), getattr(self.idle, key)
        for name, text in self.metadata.items():
            yield ("metadata", name), text
        if self.data is not None:
            yield ("data", "url"), self.data.url
        for index, target in enumerate(self.transfer):
            yield ("transfer", index, "caller_id"), target.caller_id
        for index, tool in enumerate(self.tool):
            yield ("tool", index, "url"), tool.url
        for index, rule in enumerate(self.approval):
            yield ("approval", index, "prompt"), rule.prompt

    def header_variables(self) -> frozenset[str]:
        """Return the variables ``header.…`` in the texts, in the spelling of :func:`key_of`."""
        return frozenset(key_of(name) for name in self._names_used() if name.startswith(HEADER))

    def data_variables(self) -> frozenset[str]:
        """Return the variables ``data.…`` in the texts, which ``[route.data]`` is asked for."""
        return frozenset(name for name in self._names_used() if name.startswith(DATA))

    def session_settings(self, values: Mapping[str, str] | None = None) -> dict[str, Any]:
        """Return a copy of the Realtime session object with a call's variables filled in.

        Args:
            values: variables of the call; None leaves placeholders as written.
        """
        return self._filled(self.session, values)

    def live_settings(self, values: Mapping[str, str] | None = None) -> dict[str, Any]:
        """Do the same with the Live session object."""
        return self._filled(self.live, values)

    def _filled(
        self, session: Mapping[str, Any], values: Mapping[str, str] | None
    ) -> dict[str, Any]:
        settings = deepcopy(dict(session))
        if values is None or self._as_written:
            return settings
        filled: dict[str, Any] = render_all(settings, values)
        return filled

    def with_session(self, session: Mapping[str, Any], model: str, *, live: bool = False) -> Route:
        """Return this route with the session object of an application, not rendered any more.

        ``model`` "" leaves the route's. The application greets, and has its own fallback.
        ``live``: it is the session object of the Live API.
        """
        realtime = self.realtime.model_copy(update={"model": model}) if model else self.realtime
        given = {"live" if live else "session": session}
        made = self.model_copy(update={**given, "greeting": None, "realtime": realtime})
        made._as_written = True
        return made

    def with_canary(self) -> Route:
        """Return this route with session objects and server of ``[route.canary]``."""
        if self.canary is None:
            return self
        given = self.canary.realtime
        changes = {name: getattr(given, name) for name in given.model_fields_set}
        if given.url is not None:
            # Secrets go to the server that they were written for, and to no other.
            changes = {"api_key": None, "headers": given.headers, **changes}
        made = self.model_copy(
            update={
                "session": merged(self.session, self.canary.session),
                "live": merged(self.live, self.canary.live),
                "realtime": self.realtime.model_copy(update=changes),
            }
        )
        made._as_written = self._as_written
        return made

    def secrets(self) -> tuple[str, ...]:
        """Return the secret texts of its tables, and the credentials in its session objects."""
        return (*super().secrets(), *credentials(self.session), *credentials(self.live))


@dataclass(frozen=True, slots=True)
class CallSettings:
    """Settings of one call; times in seconds, ``rtp_timeout`` 0 means never."""

    realtime: RealtimeSettings
    max_call_duration: float
    rtp_timeout: float


def call_settings(config: Config, route: Route) -> CallSettings:
    """Return the settings of the configuration, overridden by those of the route."""
    limits = route.limits
    return CallSettings(
        realtime=_realtime(config.realtime, route),
        max_call_duration=_either(limits.max_call_duration, config.limits.max_call_duration),
        rtp_timeout=_either(limits.rtp_timeout, config.media.rtp_timeout),
    )


def _realtime(base: RealtimeSettings, route: Route) -> RealtimeSettings:
    """Return ``[realtime]``, overridden by ``[route.realtime]``."""
    over = route.realtime
    update = {
        name: value
        for name in (
            "url",
            "api_key",
            "api_key_header",
            "model",
            "connect_timeout",
            "dialect",
            "audio",
            "safety_identifier",
        )
        if (value := getattr(over, name)) is not None
    }
    if over.url is not None and _origin(over.url) != _origin(base.url):
        # Secrets go to the server that they were written for, and to no other.
        update = {"api_key": None, "headers": {}, **update}
    if over.headers:
        update["headers"] = {**update.get("headers", base.headers), **over.headers}
    return base.model_copy(update=update)


def _origin(url: str) -> tuple[bool, str | None, int | None]:
    parts = urlsplit(url)
    secure = parts.scheme in ("wss", "https")
    return secure, parts.hostname, parts.port or (443 if secure else 80)


def _either(first: float | None, second: float) -> float:
    return second if first is None else first
