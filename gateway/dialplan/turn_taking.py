# SPDX-License-Identifier: GPL-2.0-or-later
"""Interruptions, idle callers, silence of the model, and detection of machines."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import Field

from gateway.call.playout.barge_in import words_of
from gateway.config.patterns import Regex
from gateway.config.problems import MisplacedError
from gateway.config.validate import Section
from gateway.config.values import Count, Flag, Milliseconds, Seconds, SecondsOrOff, Text
from gateway.dialplan.tools import Sound

BACKCHANNEL = (
    "mm-hm", "mhm", "mmhm", "mm", "mmm", "hm", "hmm", "uh-huh", "uh", "um", "ah", "oh", "aha",
    "yes", "yeah", "yep", "ok", "okay", "right", "sure", "i see", "got it",
    "ja", "genau", "gut", "oui", "d'accord", "voilà", "sí", "si", "vale", "claro", "certo",
    "va bene", "precies", "sim", "tá",
)  # fmt: skip
"""Words that show that somebody listens, in some languages."""


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
        """The gateway decides, and the server is told to leave it."""
        return (
            self.mode != "immediate"
            or self.uninterruptible_greeting
            or bool(self.uninterruptible_patterns)
        )

    def words(self) -> frozenset[str]:
        """The phrases, split as :func:`gateway.call.playout.barge_in.words_of` splits texts."""
        return frozenset(" ".join(words_of(text)) for text in self.backchannel_phrases)

    def agree_with(self, session: Mapping[str, Any]) -> None:
        """Raise MisplacedError where the route's session object contradicts these settings."""
        if not self.by_gateway:
            return
        path = ("session", "audio", "input", "turn_detection")
        detection: Any = session
        for part in path[1:]:
            if not isinstance(detection, Mapping) or part not in detection:
                return
            detection = detection[part]
        if detection is None:
            raise MisplacedError(
                path,
                "is off, so nobody tells when the caller speaks; [route.interruptions] needs it",
            )
        for name in ("interrupt_response", "create_response"):
            if isinstance(detection, Mapping) and detection.get(name) is True:
                raise MisplacedError(
                    (*path, name), "must be left out: [route.interruptions] lets the gateway decide"
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
            raise MisplacedError(path, "and [route.idle] would both ask a silent caller; use one")


class Silence(Section):
    """``[route.silence]``: a caller who waits for a response and hears nothing."""

    seconds: SecondsOrOff = 6.0
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
        """Action for each kind of machine."""
        return {"music": self.music, "voicemail": self.voicemail, "bot": self.bot}

    def agree_with(self, session: Mapping[str, Any]) -> None:
        """Raise MisplacedError where an action or the turn detection it needs is missing."""
        wanted = [kind for kind, action in self.actions.items() if action == "transfer"]
        if wanted and self.transfer_to is None:
            raise MisplacedError(
                ("machine_detection", wanted[0]), "needs transfer_to in [route.machine_detection]"
            )
        path = ("session", "audio", "input", "turn_detection")
        found: Any = session
        for part in path[1:]:
            if not isinstance(found, Mapping) or part not in found:
                return
            found = found[part]
        if found is None and set(self.actions.values()) != {"off"}:
            raise MisplacedError(
                path, "is off, so there are no turns; [route.machine_detection] needs them"
            )
