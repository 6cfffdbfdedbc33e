"""``[[route.on_trouble]]``: what is done when a call's session is lost or not to be had."""

from __future__ import annotations

from typing import Literal, Self

from pydantic import model_validator

from gateway.audio.sounds import BUILT_IN
from gateway.config.problems import MisplacedError
from gateway.config.validate import Section
from gateway.config.values import Seconds, Text
from gateway.dialplan.tools import Sound

_NEEDS = {"endpoint": "endpoint", "transfer": "to", "redirect": "to", "announcement": "sound"}
_TAKES = {
    "reconnect": ("seconds", "sound"),
    "endpoint": ("seconds", "sound", "endpoint"),
    "announcement": ("seconds", "sound"),
    "transfer": ("to",),
    "redirect": ("to",),
    "busy": (),
    "hang_up": (),
}
_ENDS = ("redirect", "busy", "hang_up")


class Rung(Section):
    """One ``[[route.on_trouble]]``; they are taken in the order in which they stand."""

    do: Literal["reconnect", "endpoint", "announcement", "transfer", "redirect", "busy", "hang_up"]
    seconds: Seconds | None = None
    sound: Sound | None = None
    endpoint: Text | None = None
    to: Text | None = None

    @model_validator(mode="after")
    def _belong_together(self) -> Self:
        needed = _NEEDS.get(self.do)
        if needed is not None and getattr(self, needed) is None:
            raise MisplacedError((needed,), f'is needed with do = "{self.do}"')
        for key in ("seconds", "sound", "endpoint", "to"):
            if getattr(self, key) is not None and key not in _TAKES[self.do]:
                raise MisplacedError((key,), f'means nothing with do = "{self.do}"')
        if self.do == "announcement" and self.sound in BUILT_IN:
            raise MisplacedError(("sound",), "must be the path of a .wav file")
        if self.do == "redirect" and not (self.to or "").startswith(("sip:", "sips:", "tel:")):
            raise MisplacedError(("to",), 'must be a URI like "sip:1002@pbx.example"')
        return self


DEFAULT = (Rung(do="reconnect"),)
"""A call that is up gets another session, if one is to be had."""


def in_order(rungs: tuple[Rung, ...]) -> None:
    """A rung that ends the call is the last. Raises MisplacedError, as seen from the route."""
    for number, before in enumerate(rungs[:-1], 1):
        if before.do in _ENDS:
            raise MisplacedError(
                ("on_trouble", number, "do"),
                f'is never reached: the "{before.do}" before it ends the call',
            )
