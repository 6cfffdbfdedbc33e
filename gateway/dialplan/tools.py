"""What a route lets the model do besides talking: transfer, hold, press keys."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import (
    AfterValidator,
    BeforeValidator,
    ConfigDict,
    Field,
    ValidationInfo,
    model_validator,
)

from gateway.audio.sounds import BUILT_IN, SoundError, check_wav
from gateway.call.tools.definitions import (
    HOLD_DESCRIPTION,
    SEND_DTMF_DESCRIPTION,
    TRANSFER_DESCRIPTION,
)
from gateway.config.patterns import Regex
from gateway.config.problems import MisplacedError
from gateway.config.validate import Section
from gateway.config.values import Flag, Seconds, Text

_URI = re.compile(r"(?:sips?|tel):[!-;=?-~]+")


def _sound(value: object, info: ValidationInfo) -> object:
    if not isinstance(value, str) or value in BUILT_IN:
        return value
    folder = (info.context or {}).get("folder")
    path = Path(value).expanduser() if folder is None else Path(folder, Path(value).expanduser())
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


class Transfer(Section):
    """One ``[[route.transfer]]``: a destination that the model may name."""

    model_config = ConfigDict(arbitrary_types_allowed=True)

    name: Text
    to: Annotated[str, AfterValidator(_target)]
    allowed_numbers: Regex | None = None
    mode: Literal["blind", "attended", "bridge"] = "blind"
    description: str = ""
    trunk: Text | None = None
    ring_timeout: Seconds = 30.0

    @model_validator(mode="after")
    def _belong_together(self) -> Self:
        if (self.allowed_numbers is not None) != ("{number}" in self.to):
            raise MisplacedError(
                ("to",),
                "must have {number} in it, for what allowed_numbers allows"
                if self.allowed_numbers is not None
                else "has {number} in it, but no allowed_numbers says which",
            )
        if self.mode == "blind" and self.trunk is not None:
            raise MisplacedError(
                ("trunk",), 'means nothing in mode "blind": the caller\'s side places that call'
            )
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
    enabled: Flag = False
    sound: Sound = "chime"
    max_duration: Annotated[Seconds, Field(le=600)] = 60.0
    description: Text = HOLD_DESCRIPTION
