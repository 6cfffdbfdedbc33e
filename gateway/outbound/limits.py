# SPDX-License-Identifier: GPL-2.0-or-later
"""Limits on calls that the gateway places: each is checked first, and counted until it is over."""

from __future__ import annotations

import re
import time
from collections.abc import Callable
from threading import Lock
from typing import Any, NoReturn, cast

import structlog

from gateway.audio.g711 import Codec
from gateway.bridge.legs import DialRefusedError
from gateway.config import OutboundSettings
from gateway.planning.destinations import OutboundCaps
from gateway.sip.agent import UserAgent
from gateway.sip.leg import Leg
from gateway.sip.media.ports import CallAudio
from gateway.sip.types import LegEnd, LegHandler

log = structlog.get_logger("gateway")


class OutboundLimiter:
    """Checks, counts and dials every leg that the gateway places. Lives on the event loop."""

    def __init__(self, settings: OutboundSettings, agent: UserAgent) -> None:
        self._caps = OutboundCaps(settings)
        self._most_followed = max(1, settings.max_concurrent_calls // 2)
        self._agent = agent
        self._legs: set[_Counted] = set()
        self._admitted = 0
        self._asking = Lock()
        agent.calls.may_follow_refer = self._may_follow_refer

    @property
    def active(self) -> int:
        """Return how many placed calls are in progress, or admitted and about to be dialled."""
        return len(self._legs) + self._admitted + self._agent.calls.followed

    def admit(self, uri: str) -> Callable[[], None]:
        """Admit a call that somebody has requested; return a function that frees its place.

        Raises DialRefusedError, naming the rule.
        """
        self._ask(uri, on_demand=True)
        self._admitted += 1
        held = True

        def give_back() -> None:
            nonlocal held
            if held:
                held = False
                self._admitted -= 1

        return give_back

    def permit_refer(self, uri: str, by_pattern: bool) -> None:
        """Check whether the other side may be sent to ``uri``. Raises DialRefusedError.

        A destination of the dialplan itself takes no place of ours, and is not counted.
        """
        if by_pattern:
            self._ask(uri, on_demand=False, by_pattern=True)
        elif (rule := self._caps.destination_refusal(uri, False, False)) is not None:
            self._refuse(uri, rule)

    def callback_refusal(self, number: str, allow: re.Pattern[str] | None) -> str | None:
        """Return why a callback to this number may not be scheduled; None when it may."""
        rule = self._caps.callback_refusal(number, allow)
        if rule is not None:
            log.warning("gateway.call_not_placed", to=number, rule=rule)
        return rule

    def dial(
        self,
        uri: str,
        handler: LegHandler,
        audio: CallAudio | None,
        codecs: list[Codec],
        trunk: str,
        by_pattern: bool = False,
        caller_id: str = "",
    ) -> Leg:
        """Place a call to a destination of a route. Raises DialRefusedError."""
        self._ask(uri, on_demand=False, by_pattern=by_pattern)
        return self.dial_admitted(uri, handler, audio, codecs, trunk, caller_id)

    def dial_admitted(
        self,
        uri: str,
        handler: LegHandler,
        audio: CallAudio | None,
        codecs: list[Codec],
        trunk: str,
        caller_id: str = "",
    ) -> Leg:
        """Place a call that :meth:`admit` has let pass. Raises DialRefusedError."""
        counted = _Counted(handler, self._legs)
        try:
            return self._agent.dial(uri, cast(LegHandler, counted), audio, codecs, trunk, caller_id)
        except KeyError:
            counted.forget()
            raise DialRefusedError(f"there is no trunk {trunk!r}") from None

    def _ask(self, uri: str, *, on_demand: bool, by_pattern: bool = False) -> None:
        with self._asking:
            rule = self._caps.refusal(
                uri, self.active, time.monotonic(), on_demand=on_demand, by_pattern=by_pattern
            )
        if rule is not None:
            self._refuse(uri, rule)

    def _refuse(self, uri: str, rule: str) -> NoReturn:
        log.warning("gateway.call_not_placed", to=uri, rule=rule)
        raise DialRefusedError(rule)

    def _may_follow_refer(self, uri: str) -> bool:
        """Return whether following a REFER may place a call. Runs on the SIP thread.

        Callers decide when such calls are placed, so half of the places are kept for others.
        """
        if self._agent.calls.followed >= self._most_followed:
            rule = f"half of outbound.max_concurrent_calls: {self._most_followed} followed REFERs"
            log.warning("gateway.call_not_placed", to=uri, rule=rule)
            return False
        try:
            self._ask(uri, on_demand=False, by_pattern=True)
        except DialRefusedError:
            return False
        return True


class _Counted:
    """Handler that forwards everything to the leg's own, and counts the leg until its end."""

    def __init__(self, handler: LegHandler, legs: set[_Counted]) -> None:
        self._handler = handler
        self._legs = legs
        legs.add(self)

    def forget(self) -> None:
        """Stop counting the leg."""
        self._legs.discard(self)

    def on_ended(self, end: LegEnd) -> None:
        """Stop counting the leg, and forward its end."""
        self.forget()
        self._handler.on_ended(end)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._handler, name)
