# SPDX-License-Identifier: GPL-2.0-or-later
"""What becomes of the BYEs that we send.

pjsua tells that a call is over before they are answered.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from gateway.sip.signalling import Signalling

ANSWER_SECONDS = 3.0
"""How long the end of a call waits for the answer to its BYE: over UDP it is sent three times in
that (RFC 3261 section 17.1.2.2). What is as slow as that counts as lost."""

NO_ANSWER = f"no answer within {ANSWER_SECONDS:g} s"
NOT_SENT = "cannot be sent"
TIMED_OUT = "408 no answer"

_CHALLENGES = (401, 407)
_TIMED_OUT, _NO_SUCH_CALL = 408, 481


@dataclass(slots=True)
class _Watch:
    until: float
    told: Callable[[str], None] | None = None
    outcome: str | None = None


class ByeTracker:
    """Made and used on the SIP thread."""

    def __init__(self, signalling: Signalling) -> None:
        self._signalling = signalling
        self._watches: dict[int, _Watch] = {}
        signalling.on_bye = self._on_bye

    def watch(self, call: Any) -> int:
        """A BYE is about to be sent for this ``pj.Call``; the number for :meth:`wait`."""
        number = self._signalling.watch_bye(call)
        if number:
            self._watches[number] = _Watch(time.monotonic() + ANSWER_SECONDS)
        return number

    def wait(self, number: int, told: Callable[[str], None]) -> None:
        """Tell what became of the BYE, once: empty for taken, else why it was not.

        At once where it is known, or no BYE is watched; by ``tick`` at the latest.
        """
        watch = self._watches.get(number)
        if watch is None:
            told("")
        elif watch.outcome is None:
            watch.told = told
        else:
            del self._watches[number]
            told(watch.outcome)

    def tick(self, now: float) -> None:
        """Give up waiting where it took too long."""
        for number in [n for n, watch in self._watches.items() if now >= watch.until]:
            self._settle(number, NO_ANSWER)
            self._watches.pop(number, None)

    def _settle(self, number: int, outcome: str) -> None:
        watch = self._watches.get(number)
        if watch is None or watch.outcome is not None:
            return
        watch.outcome = outcome
        if watch.told is not None:
            del self._watches[number]
            watch.told(outcome)

    def _on_bye(self, number: int, status: int) -> None:
        if status == 0:
            outcome = NOT_SENT
        elif status == _TIMED_OUT:
            outcome = TIMED_OUT
        elif status in _CHALLENGES:
            outcome = f"{status}, unanswered challenge"
        elif status < 300 or status == _NO_SUCH_CALL:
            # A 481 says that the other side has no such call any more, which is as good.
            outcome = ""
        else:
            outcome = f"refused with {status}"
        self._settle(number, outcome)
