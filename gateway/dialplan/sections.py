# SPDX-License-Identifier: GPL-2.0-or-later
"""Tables of a route: answer, fallback, guardrails, response failures, context, post-call prompts,
budget and records."""

from __future__ import annotations

import re
from collections.abc import Mapping
from types import MappingProxyType
from typing import Annotated, Literal, Self

from pydantic import AfterValidator, ConfigDict, Field, PlainSerializer, model_validator

from gateway.audio.sounds import BUILT_IN
from gateway.config.limits import Money, Part
from gateway.config.patterns import Regex
from gateway.config.problems import MisplacedError
from gateway.config.validate import Section
from gateway.config.values import Count, Flag, HttpHeaders, HttpUrl, Seconds, Text
from gateway.dialplan.tools import Sound

MAX_PROMPTS = 4
"""Each prompt is one more response to pay for at the end of every call."""


class Guardrail(Section):
    """One ``[[route.guardrail]]``: words that are not to be said, and what is done about them."""

    model_config = ConfigDict(arbitrary_types_allowed=True)

    name: Text
    speaker: Literal["agent", "caller", "both"] = "agent"
    words: tuple[Text, ...] = ()
    pattern: Regex | None = None
    url: HttpUrl | None = None
    headers: HttpHeaders = Field(default_factory=lambda: MappingProxyType({}))
    timeout: Seconds = 1.0
    on_timeout: Literal["allow", "deny"] = "allow"
    action: Literal["replace", "end", "transfer"] = "replace"
    replacement: Text = "Sorry, I cannot talk about that."
    transfer_to: Text | None = None

    @model_validator(mode="after")
    def _belong_together(self) -> Self:
        if self.words and self.pattern is not None:
            raise MisplacedError(
                ("pattern",), "and words exclude each other: one of them is enough"
            )
        if not (self.words or self.pattern or self.url):
            raise MisplacedError(("words",), "is needed, or pattern, or url")
        if self.url is None and self.headers:
            raise MisplacedError(("headers",), "means nothing without url")
        if (self.action == "transfer") != (self.transfer_to is not None):
            needed = self.action == "transfer"
            raise MisplacedError(
                ("transfer_to",),
                'is needed for action = "transfer"'
                if needed
                else 'is for action = "transfer" only',
            )
        if self.pattern is not None and self.pattern.search("") is not None:
            raise MisplacedError(("pattern",), "fits everything: it fits an empty text")
        return self

    def regex(self) -> re.Pattern[str] | None:
        """Return the expression to search for: whole words in any case, or the pattern as it is."""
        if not self.words:
            return self.pattern
        each = (r"\s+".join(map(re.escape, words.split())) for words in self.words)
        return re.compile(rf"(?<!\w)(?:{'|'.join(each)})(?!\w)", re.IGNORECASE)


class ResponseFailure(Section):
    """``[route.response_failure]``: responses that fail or that a content filter stops."""

    retries: Annotated[int, Field(strict=True, ge=0, le=5)] = 1
    message: Text = "Sorry, something went wrong. Could you say that again?"
    content_filter_message: Text = "Sorry, I cannot talk about that."
    continue_incomplete: Flag = False
    sound: Sound = "chime"
    sound_duration: Seconds = 2.0
    max_failures: Count = 3
    max_tool_rounds: Count = 10
    goodbye: Text = "I am sorry, this does not work at the moment. Goodbye."
    transfer_to: Text | None = None


class ContextTrimming(Section):
    """``[route.context]``: how much of a long conversation the session keeps."""

    max_turns: Annotated[int, Field(strict=True, ge=0)] = 0
    strategy: Literal["delete", "summarize"] = "delete"
    instructions: Text = (
        "Summarise this part of the telephone conversation in at most 150 words: what the caller "
        "wants, every name, number and date that was said, and what was agreed."
    )
    timeout: Seconds = 15.0


def _prompts(value: Mapping[str, str]) -> Mapping[str, str]:
    if len(value) > MAX_PROMPTS:
        raise ValueError(f"has {len(value)} prompts; {MAX_PROMPTS} are allowed")
    for name in value:
        if not re.fullmatch(r"[a-z0-9_-]{1,32}", name):
            raise MisplacedError((name,), "must be 1 to 32 of a-z, 0-9, _ and -")
    return MappingProxyType(dict(value))


class PostCall(Section):
    """``[route.post_call]``: what the model is asked about a call at its end."""

    prompts: Annotated[
        Mapping[str, Text], AfterValidator(_prompts), PlainSerializer(lambda value: dict(value))
    ] = Field(default_factory=lambda: MappingProxyType({}))
    timeout: Seconds = 8.0


class Answer(Section):
    """``[route.answer]``: when a call is answered, and what its caller hears before the model."""

    mode: Literal["when_ready", "early_media", "immediate"] = "when_ready"
    sound: Sound = "ringback"
    play_to_end: Flag = False

    @model_validator(mode="after")
    def _of_a_file(self) -> Self:
        if self.play_to_end and (self.mode == "when_ready" or self.sound in BUILT_IN):
            raise MisplacedError(
                ("play_to_end",),
                'needs mode = "early_media" or "immediate", and a .wav file as sound',
            )
        return self


_NEEDS = {"server": "server", "transfer": "to", "redirect": "to", "announcement": "sound"}
_TAKES = {
    "reconnect": ("timeout", "sound"),
    "server": ("timeout", "sound", "server"),
    "announcement": ("timeout", "sound"),
    "transfer": ("to",),
    "redirect": ("to",),
    "busy": (),
    "hangup": (),
}
_ENDS = ("redirect", "busy", "hangup")


class Fallback(Section):
    """One ``[[route.fallback]]``; they are taken in the order in which they stand."""

    action: Literal["reconnect", "server", "announcement", "transfer", "redirect", "busy", "hangup"]
    timeout: Seconds | None = None
    sound: Sound | None = None
    server: Text | None = None
    to: Text | None = None

    @model_validator(mode="after")
    def _belong_together(self) -> Self:
        needed = _NEEDS.get(self.action)
        if needed is not None and getattr(self, needed) is None:
            raise MisplacedError((needed,), f'is needed with action = "{self.action}"')
        for key in ("timeout", "sound", "server", "to"):
            if getattr(self, key) is not None and key not in _TAKES[self.action]:
                raise MisplacedError((key,), f'means nothing with action = "{self.action}"')
        if self.action == "announcement" and self.sound in BUILT_IN:
            raise MisplacedError(("sound",), "must be the path of a .wav file")
        if self.action == "redirect" and not (self.to or "").startswith(("sip:", "sips:", "tel:")):
            raise MisplacedError(("to",), 'must be a URI like "sip:1002@pbx.example"')
        return self


DEFAULT = (Fallback(action="reconnect"),)
"""A call that is up gets another session, if one is to be had."""


def in_order(steps: tuple[Fallback, ...]) -> None:
    """Check that a step which ends the call is the last. Raises MisplacedError, as seen from the
    route."""
    for number, before in enumerate(steps[:-1], 1):
        if before.action in _ENDS:
            raise MisplacedError(
                ("fallback", number, "action"),
                f'is never reached: the "{before.action}" before it ends the call',
            )


class RouteBudget(Section):
    """``[route.budget]``: in place of ``[cost.budget]``; ``per_day`` is for this route."""

    per_call: Money | None = None
    per_caller: Money | None = None
    per_day: Money | None = None
    warning_threshold: Part | None = None
    warning_message: Text | None = None
    warning_response: Flag | None = None
    goodbye: Text | None = None
    transfer_to: Text | None = None


class RouteRecords(Section):
    """``[route.records]``: in place of ``[records]``."""

    events: Flag | None = None
    redact: tuple[Literal["numbers", "dtmf"], ...] | None = None
