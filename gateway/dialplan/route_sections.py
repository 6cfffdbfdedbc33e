# SPDX-License-Identifier: GPL-2.0-or-later
"""Tables of a route: answer, fallback, guardrails, interruptions, idle and silent callers, machine
detection, data fetched before the call, response failures, context, budget, records."""

from __future__ import annotations

import re
from collections.abc import Mapping
from types import MappingProxyType
from typing import Annotated, Any, Literal, Self

from pydantic import AfterValidator, Field, PlainSerializer, model_validator

from gateway.audio.sounds import BUILT_IN
from gateway.config.operations import Redacted, Redaction
from gateway.config.sections import Money, Part
from gateway.config.source import MisplacedError, Section
from gateway.config.values import (
    Count,
    Flag,
    HttpHeaders,
    HttpUrl,
    Milliseconds,
    Regex,
    Seconds,
    SecondsOrOff,
    Text,
    Typed,
)
from gateway.dialplan.tool_sections import Sound
from gateway.text import words_of

MAX_PROMPTS = 4
"""Each prompt is one more response to pay for at the end of every call."""


class Guardrail(Section):
    """One ``[[route.guardrail]]``: words that are not to be said, and what is done about them."""

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
        """Refuse keys of a guardrail that exclude or need each other."""
        if self.words and self.pattern is not None:
            raise MisplacedError(("pattern",), "and words exclude each other: set one of them")
        if not (self.words or self.pattern or self.url):
            raise MisplacedError(("words",), "is needed, or pattern, or url")
        if self.url is None and self.headers:
            raise MisplacedError(("headers",), "has no effect without url")
        if (self.action == "transfer") != (self.transfer_to is not None):
            needed = self.action == "transfer"
            raise MisplacedError(
                ("transfer_to",),
                'is needed for action = "transfer"'
                if needed
                else 'is for action = "transfer" only',
            )
        if self.pattern is not None and self.pattern.search("") is not None:
            raise MisplacedError(("pattern",), "matches everything: it matches an empty text")
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
    """Refuse too many prompts, and malformed names."""
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
        """Refuse ``play_to_end`` without early audio from a file."""
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
        """Refuse keys that a step's action lacks or does not take."""
        needed = _NEEDS.get(self.action)
        if needed is not None and getattr(self, needed) is None:
            raise MisplacedError((needed,), f'is needed with action = "{self.action}"')
        for key in ("timeout", "sound", "server", "to"):
            if getattr(self, key) is not None and key not in _TAKES[self.action]:
                raise MisplacedError((key,), f'has no effect with action = "{self.action}"')
        if self.action == "announcement" and self.sound in BUILT_IN:
            raise MisplacedError(("sound",), "must be the path of a .wav file")
        if self.action == "redirect" and not (self.to or "").startswith(("sip:", "sips:", "tel:")):
            raise MisplacedError(("to",), 'must be a URI like "sip:1002@pbx.example"')
        return self


DEFAULT = (Fallback(action="reconnect"),)
"""A call that is up gets another session, if one is to be had."""


def refuse_unreachable(steps: tuple[Fallback, ...]) -> None:
    """Refuse steps behind one that ends the call. Raises MisplacedError, path from the route."""
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
    redact: tuple[Redacted, ...] | None = None
    redact_patterns: Annotated[tuple[Redaction, ...], Field(max_length=50)] | None = None
    black_box: Literal["off", "on_trouble", "always"] | None = None
    black_box_payload: Flag | None = None


BACKCHANNEL = (
    "mm-hm", "mhm", "mmhm", "mm", "mmm", "hm", "hmm", "uh-huh", "uh", "um", "ah", "oh", "aha",
    "yes", "yeah", "yep", "ok", "okay", "right", "sure", "i see", "got it",
    "ja", "genau", "gut", "oui", "d'accord", "voilà", "sí", "si", "vale", "claro", "certo",
    "va bene", "precies", "sim", "tá",
)  # fmt: skip
"""Words that show that somebody listens, in some languages."""


TURN_DETECTION = ("session", "audio", "input", "turn_detection")


def _turn_detection(session: Mapping[str, Any], needs: str) -> Any:
    """Return the session's turn detection, empty if it is not given.

    Raises MisplacedError where it is off, since the section ``needs`` it.
    """
    found: Any = session
    for part in TURN_DETECTION[1:]:
        if not isinstance(found, Mapping) or part not in found:
            return {}
        found = found[part]
    if found is None:
        raise MisplacedError(
            TURN_DETECTION, f"is off, so speech is not detected; [route.{needs}] needs it"
        )
    return found


class Interruptions(Section):
    """``[route.interruptions]``: what happens when the caller speaks while the agent does."""

    mode: Literal["immediate", "adaptive", "disabled"] = "immediate"
    min_speech_ms: Milliseconds = 250
    force_interrupt_ms: Milliseconds = 1500
    transcript_timeout: Seconds = 1.5
    backchannel_phrases: tuple[Text, ...] = BACKCHANNEL
    uninterruptible_greeting: Flag = False
    uninterruptible_patterns: tuple[Regex, ...] = ()

    @property
    def by_gateway(self) -> bool:
        """Whether the gateway decides on barge-in; the session then turns off the server's."""
        return (
            self.mode != "immediate"
            or self.uninterruptible_greeting
            or bool(self.uninterruptible_patterns)
        )

    def words(self) -> frozenset[str]:
        """Return the backchannel phrases in the spelling of :func:`gateway.text.words_of`."""
        return frozenset(" ".join(words_of(text)) for text in self.backchannel_phrases)

    def agree_with(self, session: Mapping[str, Any]) -> None:
        """Raise MisplacedError where the route's session object contradicts these settings."""
        if not self.by_gateway:
            return
        detection = _turn_detection(session, "interruptions")
        for name in ("interrupt_response", "create_response"):
            if isinstance(detection, Mapping) and detection.get(name) is True:
                raise MisplacedError(
                    (*TURN_DETECTION, name),
                    "must be left out: [route.interruptions] lets the gateway decide",
                )


class UserIdle(Section):
    """``[route.idle]``: a caller who says nothing."""

    timeout: SecondsOrOff = 0.0
    prompt: Text = "Are you still there?"
    max_prompts: Count = 2
    goodbye: Text = "I cannot hear you. Goodbye."
    transfer_to: Text | None = None

    def agree_with(self, session: Mapping[str, Any]) -> None:
        """Raise MisplacedError where the session object has an idle timeout of the server, too."""
        if self.timeout <= 0:
            return
        path = ("session", "audio", "input", "turn_detection", "idle_timeout_ms")
        found: Any = session
        for part in path[1:]:
            found = found.get(part) if isinstance(found, Mapping) else None
        if found is not None:
            raise MisplacedError(
                path, "and [route.idle] would both prompt a silent caller; use one of them"
            )


class Silence(Section):
    """``[route.silence]``: a caller who waits for a response and hears nothing."""

    timeout: SecondsOrOff = 6.0
    filler_sound: Sound | None = None
    filler_delay: Seconds = 2.0


Action = Literal["off", "log", "leave_message", "hangup", "transfer"]

VOICEMAIL = (
    r"(?i)leave (me |us )?(a|your) (message|name)",
    r"(?i)after the (tone|beep|signal)",
    r"(?i)nach dem (signal)?ton",
    r"(?i)après le (bip|signal)",
    r"(?i)después de la señal",
)


class MachineDetection(Section):
    """``[route.machine_detection]``: hold music, voicemail and bots; off by default."""

    music: Action = "off"
    music_threshold: Annotated[Seconds, Field(ge=1)] = 20.0
    music_message: Text = "Goodbye."
    voicemail: Action = "off"
    greeting_threshold: Seconds = 8.0
    voicemail_patterns: tuple[Regex, ...] = tuple(re.compile(one) for one in VOICEMAIL)
    beep_timeout: Annotated[SecondsOrOff, Field(le=60)] = 5.0
    voicemail_message: Text = "We tried to reach you, and will call again. Goodbye."
    bot: Action = "off"
    bot_equal_turns: Annotated[Count, Field(ge=4, le=64)] = 12
    bot_repeats: Annotated[Count, Field(ge=2, le=64)] = 3
    bot_message: Text = "Goodbye."
    transfer_to: Text | None = None

    @property
    def actions(self) -> Mapping[str, str]:
        """Action by what is detected: music, voicemail, bot."""
        return {"music": self.music, "voicemail": self.voicemail, "bot": self.bot}

    def agree_with(self, session: Mapping[str, Any]) -> None:
        """Raise MisplacedError where an action or the turn detection it needs is missing."""
        wanted = [kind for kind, action in self.actions.items() if action == "transfer"]
        if wanted and self.transfer_to is None:
            raise MisplacedError(
                ("machine_detection", wanted[0]), "needs transfer_to in [route.machine_detection]"
            )
        if set(self.actions.values()) != {"off"}:
            _turn_detection(session, "machine_detection")


class Line(Section):
    """``[route.line]``: the model is told when the line is bad, and how to speak then."""

    enabled: Flag = False
    max_loss: Annotated[SecondsOrOff, Field(le=100)] = 5.0
    max_jitter: SecondsOrOff = 60.0
    min_mos: Annotated[SecondsOrOff, Field(le=4.5)] = 3.0
    min_level: Annotated[float, Field(ge=-90, le=0), Typed] = 0.0
    after: Seconds = 5.0
    recovered_after: Seconds = 10.0
    hint: Text = "Keep to short sentences, speak slowly, and repeat numbers and names."
    recovered: str = "The telephone line is good again. Speak as usual."
    max_hints: Count = 1


ANNOUNCEMENTS = (
    r"(?i)(please|kindly) (hold|stay on the line|remain on the line|continue to hold)",
    r"(?i)your call is (very )?important",
    r"(?i)(agents|operators|representatives|lines|colleagues) are (currently |all )*busy",
    r"(?i)(position|number|place) .{0,20}in (the|our) queue",
    r"(?i)bitte (haben sie (etwas |noch )*geduld|warten sie|bleiben sie (am|in der) )",
    r"(?i)nächste(r)? freie(r)? mitarbeiter",
    r"(?i)(veuillez|merci de) (patienter|rester en ligne)",
    r"(?i)(por favor|manténgase) .{0,12}(espere|en (la )?línea)",
)
"""Words of queues. Not among them: "thank you for waiting", with which people begin to speak."""


class HoldKey(Section):
    """One ``[[route.hold_wait.key]]``: keys that are pressed when an announcement asks for them."""

    words: Regex
    digits: Annotated[str, Field(pattern=r"^[0-9*#A-D]{1,32}$"), Typed]


class HoldWait(Section):
    """``[route.hold_wait]``: the agent waits in a queue's music without talking to it."""

    enabled: Flag = False
    music_threshold: Annotated[Seconds, Field(ge=2)] = 4.0
    announcements: tuple[Regex, ...] = tuple(re.compile(one) for one in ANNOUNCEMENTS)
    max_wait: Seconds = 1800.0
    transfer_to: Text | None = None
    key: tuple[HoldKey, ...] = ()

    def agree_with(self, session: Mapping[str, Any], music: str) -> None:
        """Raise MisplacedError where turns are not detected, or music ends the call."""
        if not self.enabled:
            return
        if music not in ("off", "log"):
            raise MisplacedError(
                ("machine_detection", "music"), "ends the call that [route.hold_wait] waits in"
            )
        _turn_detection(session, "hold_wait")


class Application(Section):
    """``[route.application]``: an application decides over the route's calls (OpenAI's SIP API).

    ``timeout`` (s) runs from the INVITE to the application's decision.
    """

    webhook: Text
    timeout: Annotated[Seconds, Field(le=120)] = 10.0
    on_timeout: Literal["session", "reject"] = "session"
