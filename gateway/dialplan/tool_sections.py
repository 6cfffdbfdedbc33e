# SPDX-License-Identifier: GPL-2.0-or-later
"""Tools that a route gives the model, and who approves their use."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Annotated, Any, Literal, Self
from urllib.parse import urlsplit

from pydantic import (
    AfterValidator,
    BeforeValidator,
    Field,
    PlainSerializer,
    Strict,
    ValidationInfo,
    model_validator,
)

from gateway.audio.sounds import BUILT_IN, SoundError, check_wav
from gateway.call.tools.definitions import (
    COLLECT_DESCRIPTION,
    DISPOSITION_DESCRIPTION,
    END_CALL,
    HOLD_DESCRIPTION,
    LANGUAGE_DESCRIPTION,
    OWN,
    RECORD_DESCRIPTION,
    SCHEDULE_DESCRIPTION,
    SEND_DTMF_DESCRIPTION,
    TRANSFER_DESCRIPTION,
)
from gateway.config.operations import RecordingFormat, RecordingMode
from gateway.config.sections import on_loopback
from gateway.config.source import (
    KeyPath,
    MisplacedError,
    Section,
    plain,
    suggestion,
)
from gateway.config.values import (
    Count,
    Flag,
    HttpHeaders,
    HttpUrl,
    Regex,
    Seconds,
    SecondsOrOff,
    Text,
    Typed,
    refuse_duplicates,
)
from gateway.dialplan.variables import names_in
from gateway.text import path_of
from gateway.tools.schema import NAME, check_schema

_URI = re.compile(r"(?:sips?|tel):[!-;=?-~]+")


def _sound(value: object, info: ValidationInfo) -> object:
    """Return a built-in sound's name, or the absolute path of a WAV file. Raises ValueError."""
    if not isinstance(value, str) or value in BUILT_IN:
        return value
    folder = (info.context or {}).get("folder")
    path = path_of(value) if folder is None else Path(folder, path_of(value))
    if not value.lower().endswith(".wav"):
        raise ValueError(f"must be one of {', '.join(BUILT_IN)}, or the path of a .wav file")
    try:
        check_wav(path)
    except SoundError as error:
        raise ValueError(str(error)) from None
    return str(path.absolute())


Sound = Annotated[str, BeforeValidator(_sound)]
"""A built-in sound, or a WAV file beside the dialplan."""


def _target(value: str) -> str:
    if not _URI.fullmatch(value):
        raise ValueError('must be a URI like "sip:1002@pbx.example" or "tel:+4930123456"')
    return value


class Briefing(Section):
    """``[route.transfer.briefing]``: what whoever answers hears before they take the call."""

    text: str = ""
    prompt: str = ""
    sound: Sound | None = None
    music: Sound = "music"
    accept_key: Annotated[str, Field(pattern=r"^[0-9*#]$")] = "1"
    decline_key: Annotated[str, Field(pattern=r"^[0-9*#]$")] = "2"
    timeout: Seconds = 30.0
    record: Flag = False

    @model_validator(mode="after")
    def _belong_together(self) -> Self:
        if self.accept_key == self.decline_key:
            raise MisplacedError(("decline_key",), "is accept_key, too")
        return self


class Transfer(Section):
    """One ``[[route.transfer]]``: a destination that the model may name."""

    name: Text
    to: Annotated[str, AfterValidator(_target)]
    allowed_numbers: Regex | None = None
    mode: Literal["blind", "attended", "bridge"] = "blind"
    description: str = ""
    trunk: Text | None = None
    caller_id: str = ""
    ring_timeout: Seconds = 30.0
    briefing: Briefing | None = None

    @model_validator(mode="after")
    def _belong_together(self) -> Self:
        """Refuse keys of a destination that exclude or need each other."""
        if (self.allowed_numbers is not None) != ("{number}" in self.to):
            raise MisplacedError(
                ("to",),
                "must have {number} in it, for what allowed_numbers allows"
                if self.allowed_numbers is not None
                else "has {number} in it, but no allowed_numbers says which",
            )
        for key in ("trunk", "caller_id", "briefing") if self.mode == "blind" else ():
            if getattr(self, key):
                raise MisplacedError(
                    (key,), 'has no effect in mode "blind": the caller\'s side places that call'
                )
        if self.caller_id and self.trunk is None:
            raise MisplacedError(
                ("caller_id",), "needs a trunk, through which the gateway places the call"
            )
        if self.trunk is None and (number := re.fullmatch(r"sips?:([+*#0-9]+)", self.to)):
            said = f'has no host: write "tel:{number[1]}", or "sip:{number[1]}@HOST"'
            raise MisplacedError(("to",), said)
        if self.mode != "blind" and "@" not in self.to and self.trunk is None:
            raise MisplacedError(
                ("to",), f'needs a trunk in mode "{self.mode}", where the gateway places the call'
            )
        return self


class TransferCall(Section):
    """``[route.transfer_call]``: the tool, where there is at least one destination."""

    description: Text = TRANSFER_DESCRIPTION
    sound: Sound = "ringback"
    listen: Flag = False


class SendDtmf(Section):
    """``[route.send_dtmf]``: the tool with which the model presses keys."""

    enabled: Flag = False
    mode: Literal["auto", "rfc4733", "info"] = "auto"
    description: Text = SEND_DTMF_DESCRIPTION


class Hold(Section):
    """``[route.hold]``: while the caller has the gateway on hold, and the tool for the other way
    round.
    """

    session_audio: Literal["silence", "stop"] = "silence"
    release_after: SecondsOrOff = 0.0
    enabled: Flag = False
    sound: Sound = "chime"
    max_duration: Annotated[Seconds, Field(le=600)] = 60.0
    description: Text = HOLD_DESCRIPTION


ARGUMENT = "arg."
"""Prefix of variables that are arguments of the model."""


def _function_name(value: str) -> str:
    if not NAME.fullmatch(value):
        raise ValueError("must be 1 to 64 letters, digits, dashes and underlines")
    if value in OWN:
        raise ValueError("is the name of a built-in tool")
    return value


class WebTool(Section):
    """One ``[[tool]]`` or ``[[route.tool]]``: a function of the model that is an HTTP request."""

    name: Annotated[str, AfterValidator(_function_name)]
    description: Text
    url: HttpUrl
    method: Literal["GET", "POST", "PUT", "PATCH", "DELETE"] = "POST"
    headers: HttpHeaders = Field(default_factory=lambda: MappingProxyType({}))
    fields: Annotated[Mapping[str, Any], PlainSerializer(lambda value: dict(value))] = Field(
        default_factory=lambda: MappingProxyType({})
    )
    parameters: Mapping[str, Any] | None = None
    timeout: Seconds | None = None
    retries: Annotated[int, Strict(), Field(ge=0, le=5), Typed] = 2
    idempotent: Flag = False
    max_result_chars: Annotated[Count, Field(le=200_000)] | None = None
    filler_delay: SecondsOrOff = 0.0
    filler_text: str = ""
    filler_sound: Sound | None = None

    @model_validator(mode="after")
    def _belong_together(self) -> Self:
        """Refuse keys of a tool that exclude or need each other, and an invalid schema."""
        if self.parameters is not None and self.fields:
            raise MisplacedError(("parameters",), "set either fields or parameters, not both")
        key = "fields" if self.parameters is None else "parameters"
        try:
            check_schema(self.json_schema())
        except ValueError as error:
            raise MisplacedError((key,), str(error)) from None
        known = self.json_schema().get("properties", {})
        for name in names_in(self.url):
            if name.startswith(ARGUMENT) and name.removeprefix(ARGUMENT) not in known:
                raise MisplacedError(("url",), f"there is no parameter for {{{name}}}")
        if (self.filler_text or self.filler_sound) and not self.filler_delay:
            raise MisplacedError(
                ("filler_delay",), "filler_text and filler_sound need a time, like 2.0"
            )
        return self

    def json_schema(self) -> dict[str, Any]:
        """Return the JSON Schema of the arguments: ``parameters``, or made of ``fields``."""
        if self.parameters is not None:
            whole: dict[str, Any] = plain(self.parameters)
            return whole
        properties: dict[str, Any] = {}
        required: list[str] = []
        for name, given in plain(self.fields).items():
            one = {"type": given} if isinstance(given, str) else dict(given)
            if not one.pop("optional", False):
                required.append(name)
            properties[name] = one
        return {
            "type": "object",
            "properties": properties,
            "required": required,
            "additionalProperties": False,
        }


def _conditions(value: Mapping[str, Any]) -> Mapping[str, Any]:
    return MappingProxyType(dict(value))


class Approval(Section):
    """One ``[[route.approval]]``: who decides about a tool's use; the first that fits does."""

    tool: Text
    when: Annotated[
        Mapping[str, Regex],
        AfterValidator(_conditions),
        PlainSerializer(lambda value: dict(value)),
    ] = Field(default_factory=lambda: MappingProxyType({}))
    policy: Literal["allow", "deny", "ask_caller", "ask_http"]
    timeout: Seconds = 20.0
    prompt: Text = "Please confirm: {tool}. Press 1 for yes, or 2 for no."
    url: HttpUrl | None = None
    headers: HttpHeaders = Field(default_factory=lambda: MappingProxyType({}))

    @model_validator(mode="after")
    def _belong_together(self) -> Self:
        """Refuse keys of an approval that exclude or need each other."""
        if self.tool == END_CALL:
            raise MisplacedError(("tool",), "needs no approval: see end_call.enabled")
        if (self.policy == "ask_http") != (self.url is not None):
            raise MisplacedError(
                ("url",),
                'is needed for policy = "ask_http"'
                if self.policy == "ask_http"
                else 'is for policy = "ask_http" only',
            )
        return self


def _languages(value: Mapping[str, str]) -> Mapping[str, str]:
    for code in value:
        if not re.fullmatch(r"[a-z]{2,3}(-[A-Za-z0-9]{2,8})*", code):
            raise MisplacedError((code,), 'is not a language code, like "de" (ISO 639-1)')
    return MappingProxyType(dict(value))


class SetLanguage(Section):
    """``[route.set_language]``: the tool with which the model changes the language."""

    languages: Annotated[
        Mapping[str, Text], AfterValidator(_languages), PlainSerializer(lambda value: dict(value))
    ] = Field(default_factory=lambda: MappingProxyType({}))
    instruction: Text = "From now on, speak {language}, and nothing else."
    description: Text = LANGUAGE_DESCRIPTION

    @model_validator(mode="after")
    def _template(self) -> Self:
        if names_in(self.instruction) != ["language"]:
            raise MisplacedError(("instruction",), "must contain {language}, and no other variable")
        return self


class CollectDigits(Section):
    """``[route.collect_digits]``: the tool with which the model asks for keys."""

    enabled: Flag = False
    timeout: Seconds = 15.0
    max_digits: Annotated[Count, Field(le=128)] = 32
    private: Flag = False
    sensitive: Flag = False
    url: HttpUrl | None = None
    headers: HttpHeaders = Field(default_factory=lambda: MappingProxyType({}))
    store_timeout: Annotated[Seconds, Field(le=60)] = 10.0
    description: Text = COLLECT_DESCRIPTION

    @model_validator(mode="after")
    def _belong_together(self) -> Self:
        """Refuse sensitive digits without a service that takes them."""
        if self.sensitive != (self.url is not None):
            why = "is needed for" if self.sensitive else "has no effect without"
            raise MisplacedError(("url",), f"{why} sensitive = true: digits go there")
        if self.headers and self.url is None:
            raise MisplacedError(("headers",), "has no effect without url")
        plain = self.url is not None and urlsplit(self.url).scheme != "https"
        if plain and not on_loopback(self.url or ""):
            raise MisplacedError(("url",), "must begin with https://: digits would go in plain")
        return self


class ScheduleCallback(Section):
    """``[route.schedule_callback]``: the tool with which the model promises to call back."""

    enabled: Flag = False
    allowed_numbers: Regex | None = None
    max_days: Annotated[Count, Field(le=366)] = 14
    route: Text | None = None
    trunk: Text | None = None
    description: Text = SCHEDULE_DESCRIPTION


class EndCall(Section):
    """``[route.end_call]``: the tool with which the model says goodbye and hangs up."""

    enabled: Flag = True
    description: Text = (
        "End the phone call. Use it when the caller says goodbye or asks to hang up, "
        "after you have said a short goodbye yourself."
    )
    goodbye_timeout: Seconds = 10.0


class Disposition(Section):
    """``[route.disposition]``: how calls went, and the tool with which the model says so."""

    default: Annotated[str, Field(max_length=64)] = ""
    values: tuple[Annotated[Text, Field(max_length=64)], ...] = ()
    description: Text = DISPOSITION_DESCRIPTION


def _key(value: str) -> str:
    if not re.fullmatch(r"[0-9*#A-D]", value):
        raise ValueError("must be one key: 0-9, *, #, A-D")
    return value


YES = ("yes", "yeah", "okay", "ok", "sure", "ja", "oui", "sí", "sì", "sim")
NO = (
    "no", "nope", "nein", "non", "nee", "não", "do not record", "don't record", "nicht aufnehmen",
    "nicht aufzeichnen",
)  # fmt: skip
"""Words that agree to a recording, and that object to one."""

CONSENT_PROMPT = "This call is recorded. If you do not want that, please say no, or press 2."
CONSENT_QUESTION = (
    "May we record this call? Please say yes or press 1; say no or press 2 if we may not."
)


class RouteEscape(Section):
    """``[route.escape]``: a key or a word with which the caller reaches a human."""

    key: Annotated[str, AfterValidator(_key)] | None = None
    phrases: tuple[Text, ...] = ()
    to: tuple[Text, ...] = ()

    @model_validator(mode="after")
    def _belong_together(self) -> Self:
        """Refuse an escape without key, phrases or destination."""
        asked = self.key is not None or bool(self.phrases)
        if asked != bool(self.to):
            raise MisplacedError(
                ("to",),
                "is needed: names of [[route.transfer]], in their order"
                if asked
                else "has no effect without key or phrases",
            )
        return self


class RouteRecording(Section):
    """``[route.recording]``: whether calls of the route are recorded, and who is asked before."""

    mode: RecordingMode | None = None
    format: RecordingFormat | None = None
    consent: Literal["none", "announce", "ask"] = "none"
    prompt: Text | None = None
    yes_key: Annotated[str, AfterValidator(_key)] = "1"
    no_key: Annotated[str, AfterValidator(_key)] = "2"
    yes_phrases: tuple[Text, ...] = YES
    no_phrases: tuple[Text, ...] = NO
    consent_timeout: Annotated[Seconds, Field(le=120)] = 10.0
    after_transfer: Flag = False
    tool: Flag = False
    description: Text = RECORD_DESCRIPTION

    @model_validator(mode="after")
    def _belong_together(self) -> Self:
        if self.yes_key == self.no_key:
            raise MisplacedError(("no_key",), "is yes_key, too")
        if self.prompt is not None and self.consent == "none":
            raise MisplacedError(("prompt",), 'has no effect with consent = "none"')
        return self

    @property
    def words(self) -> str:
        """The prompt, by default the one for ``consent``."""
        if self.prompt is not None:
            return self.prompt
        return CONSENT_QUESTION if self.consent == "ask" else CONSENT_PROMPT


class RouteTools(Section):
    """What a route's model can do in the call: its keys of ``[[route]]``."""

    end_call: EndCall = Field(default_factory=EndCall)
    transfer: tuple[Transfer, ...] = ()
    allowed_refer_to: Regex | None = None
    transfer_call: TransferCall = Field(default_factory=TransferCall)
    send_dtmf: SendDtmf = Field(default_factory=SendDtmf)
    hold: Hold = Field(default_factory=Hold)
    tools: tuple[Text, ...] = ()
    mcp: tuple[Text, ...] = ()
    tool: tuple[WebTool, ...] = ()
    delegate: Text | None = None
    approval: tuple[Approval, ...] = ()
    set_language: SetLanguage = Field(default_factory=SetLanguage)
    collect_digits: CollectDigits = Field(default_factory=CollectDigits)
    schedule_callback: ScheduleCallback = Field(default_factory=ScheduleCallback)
    disposition: Disposition = Field(default_factory=Disposition)

    @model_validator(mode="after")
    def _destinations_differ(self) -> Self:
        refuse_duplicates((one.name.casefold() for one in self.transfer), "transfer")
        return self

    def check_transfer_to(self, path: KeyPath, wanted: str | None) -> None:
        """Raise MisplacedError unless ``wanted`` is None or a destination with a fixed number."""
        named = [one.name for one in self.transfer if one.allowed_numbers is None]
        if wanted is not None and wanted.casefold() not in [name.casefold() for name in named]:
            raise MisplacedError(
                path,
                f'there is no [[route.transfer]] "{wanted}" (one without allowed_numbers)'
                + suggestion(wanted, named),
            )
