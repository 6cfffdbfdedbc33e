"""``[route.answer]``: when a call is answered."""

from __future__ import annotations

from typing import Literal, Self

from pydantic import model_validator

from gateway.audio.sounds import BUILT_IN
from gateway.config.problems import MisplacedError
from gateway.config.validate import Section
from gateway.config.values import Flag
from gateway.dialplan.tools import Sound


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
