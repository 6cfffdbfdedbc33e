# SPDX-License-Identifier: GPL-2.0-or-later
"""pjsip's own log in ours, with a bound: what strangers send must not fill the disk."""

from __future__ import annotations

import time
from typing import Any

import pjsua2 as pj
import structlog

from gateway.sip.ingress.rate_limits import TokenBucket
from gateway.text import unicode_of

log = structlog.get_logger("sip")

LINES_PER_SECOND = 1.0
LINES_AT_ONCE = 20
"""Of warnings and errors. pjsip writes one for each packet that it cannot read."""

MAX_TEXT = 2000
"""Characters of one line; it may quote a packet."""


def _says_port_taken(text: str) -> bool:
    """Ports that are held quiet after their call are found taken; pjsua tries the next."""
    return "P socket bind() at " in text and " in use" in text


class LogWriter(pj.LogWriter):  # type: ignore[misc]
    """Takes each line of pjsip's log, on any of its threads."""

    def __init__(self) -> None:
        super().__init__()
        self._bucket = TokenBucket(LINES_PER_SECOND, LINES_AT_ONCE, time.monotonic())
        self._dropped = 0

    def write(self, entry: Any) -> None:
        """One line."""
        try:
            text = unicode_of(str(entry.msg)).strip()[:MAX_TEXT]
            if entry.level > 2 or _says_port_taken(text):
                log.debug("pjsip", text=text)
                return
            if not self._bucket.take(time.monotonic()):
                self._dropped += 1
                return
            dropped, self._dropped = self._dropped, 0
            more = {"lines_left_out": dropped} if dropped else {}
            log.warning("pjsip", text=text, **more)
        except Exception:  # a log line is never worth a call
            return
