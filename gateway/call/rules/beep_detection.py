# SPDX-License-Identifier: GPL-2.0-or-later
"""A message for a voicemail box waits for the beep."""

from __future__ import annotations

RECENT_SECONDS = 4.0
"""So long after a beep the box still records, and has not given up on us."""

GREETING_SECONDS = 2.5
"""A caller who began to speak so long before a beep, and speaks no more, is a greeting."""

LONGEST_SECONDS = 60.0
"""A greeting that goes on for longer than this after it was known as one is not waited for."""


class BeepWaiter:
    """Knows the last beep, and what waits for one. Times in s.

    Args:
        seconds: how long after the greeting a beep is waited for; 0 waits for none.
    """

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds
        self._last: tuple[float, str] | None = None
        self._began: float | None = None
        self._stopped: float | None = None
        """When the first stretch of speech did."""
        self._quiet_since: float | None = None
        self._since: float | None = None

    @property
    def waiting(self) -> bool:
        """Something waits for the beep."""
        return self._since is not None

    def spoke(self, now: float) -> None:
        """They begin to speak. A box may take its own beep for speech, and so may the server."""
        if self._began is None:
            self._began = now
        self._quiet_since = None

    def stopped(self, now: float) -> None:
        """They are silent."""
        if self._stopped is None:
            self._stopped = now
        self._quiet_since = now

    def beep(self, evidence: str, now: float) -> bool:
        """There is one; returns whether what came before it was a greeting."""
        self._last = now, evidence
        if self._began is None or now - self._began < GREETING_SECONDS:
            return False
        return self._stopped is None or now - self._stopped <= RECENT_SECONDS

    def wait(self, now: float) -> str:
        """A message is to be said: what there is to be said about the beep if it need not wait,
        empty if it has to."""
        if self._last is not None and now - self._last[0] <= RECENT_SECONDS:
            return self._last[1]
        if not self._seconds:
            return "not waited for"
        self._since = now
        return ""

    def over(self) -> None:
        """It waits no more."""
        self._since = None

    @property
    def deadline(self) -> float | None:
        """When the message is said without a beep (s)."""
        if self._since is None:
            return None
        latest = self._since + LONGEST_SECONDS
        if self._quiet_since is None:
            return latest
        return min(latest, max(self._since, self._quiet_since) + self._seconds)
