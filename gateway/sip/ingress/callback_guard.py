"""What a pjsua2 callback raises ends its call, and no other."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, TypeVar

import structlog

log = structlog.get_logger("sip")

_F = TypeVar("_F", bound=Callable[..., None])


def guarded(callback: _F) -> _F:
    """Log what a pjsua2 callback raises, with its call, and end that call only.

    SWIG prints such an exception and forgets it; the call would stay up, deaf.
    """

    @functools.wraps(callback)
    def run(self: Any, *args: Any) -> None:
        try:
            callback(self, *args)
        except Exception:
            log.exception("sip.callback_failed", callback=callback.__name__, call=self.name)
            self.fail()

    return run  # type: ignore[return-value]
