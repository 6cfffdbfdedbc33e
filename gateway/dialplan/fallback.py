"""``[[route.fallback]]``: what is done when a call's session is lost or not to be had."""

from __future__ import annotations

from typing import Literal, Self

from pydantic import model_validator

from gateway.audio.sounds import BUILT_IN
from gateway.config.problems import MisplacedError
from gateway.config.validate import Section
from gateway.config.values import Seconds, Text
from gateway.dialplan.tools import Sound

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
