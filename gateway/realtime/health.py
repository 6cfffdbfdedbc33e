# SPDX-License-Identifier: GPL-2.0-or-later
"""Health of realtime servers, so that no call waits for one that is known to be unavailable.

Pure: probes and calls tell what they met, with the time.
"""

from __future__ import annotations

from dataclasses import dataclass

CALLS_IN_A_ROW = 3
"""Successive calls without a session after which a server counts as unavailable."""


@dataclass(slots=True)
class _Server:
    failures: int = 0
    since: float | None = None
    """Since when it is in trouble (s); None while it is not."""
    detail: str = ""


@dataclass(frozen=True, slots=True)
class Changed:
    """A server came into trouble, or out of it."""

    url: str
    down: bool
    detail: str
    lasted: float
    """Seconds that it was in trouble."""


class Health:
    """Knows of each server by its URL. Times in s, of any one clock."""

    def __init__(self) -> None:
        self._servers: dict[str, _Server] = {}

    def worked(self, url: str, now: float) -> Changed | None:
        """A session was had there."""
        server = self._servers.setdefault(url, _Server())
        since, server.since = server.since, None
        server.failures, server.detail = 0, ""
        return None if since is None else Changed(url, False, "", now - since)

    def probe_failed(self, url: str, detail: str, now: float) -> Changed | None:
        """A probe could have none."""
        return self._fail(url, detail, now, at_once=True)

    def call_failed(self, url: str, detail: str, now: float) -> Changed | None:
        """A call could have none."""
        return self._fail(url, detail, now, at_once=False)

    def trouble(self, url: str) -> str | None:
        """Return the failure of a server that is known to be unavailable."""
        server = self._servers.get(url)
        return None if server is None or server.since is None else server.detail

    def as_json(self, now: float) -> list[dict[str, object]]:
        """Return the state for ``gateway status``."""
        return [
            {
                "url": url,
                "state": "up" if server.since is None else "in trouble",
                "seconds": None if server.since is None else round(now - server.since, 1),
                "detail": server.detail,
            }
            for url, server in self._servers.items()
        ]

    def _fail(self, url: str, detail: str, now: float, *, at_once: bool) -> Changed | None:
        server = self._servers.setdefault(url, _Server())
        server.failures += 1
        server.detail = detail
        if server.since is not None or not (at_once or server.failures >= CALLS_IN_A_ROW):
            return None
        server.since = now
        return Changed(url, True, detail, 0.0)
