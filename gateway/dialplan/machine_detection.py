"""``[route.machine_detection]``: what is done about a caller that is a machine."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import Field

from gateway.config.patterns import Regex
from gateway.config.problems import MisplacedError
from gateway.config.validate import Section
from gateway.config.values import Count, Seconds, SecondsOrOff, Text

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
        """What is done about each kind."""
        return {"music": self.music, "voicemail": self.voicemail, "bot": self.bot}

    def agree_with(self, session: Mapping[str, Any]) -> None:
        """Raises MisplacedError where this could not work."""
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
