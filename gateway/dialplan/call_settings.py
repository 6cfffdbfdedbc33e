# SPDX-License-Identifier: GPL-2.0-or-later
"""Settings of a call: those of the configuration, overridden by those of its route."""

from __future__ import annotations

from dataclasses import dataclass
from urllib.parse import urlsplit

from gateway.config import Config, RealtimeSettings
from gateway.dialplan.models import Route


@dataclass(frozen=True, slots=True)
class CallSettings:
    """Settings of one call; times in seconds, ``rtp_timeout`` 0 means never."""

    realtime: RealtimeSettings
    max_call_duration: float
    rtp_timeout: float


def call_settings(config: Config, route: Route) -> CallSettings:
    """Join ``config`` and ``route``; what the route says wins."""
    limits = route.limits
    return CallSettings(
        realtime=_realtime(config.realtime, route),
        max_call_duration=_either(limits.max_call_duration, config.limits.max_call_duration),
        rtp_timeout=_either(limits.rtp_timeout, config.media.rtp_timeout),
    )


def _realtime(base: RealtimeSettings, route: Route) -> RealtimeSettings:
    over = route.realtime
    update = {
        name: value
        for name in (
            "url",
            "api_key",
            "api_key_header",
            "model",
            "connect_timeout",
            "dialect",
            "audio",
            "safety_identifier",
        )
        if (value := getattr(over, name)) is not None
    }
    if over.url is not None and _origin(over.url) != _origin(base.url):
        # Secrets go to the server that they were written for, and to no other.
        update = {"api_key": None, "headers": {}, **update}
    if over.headers:
        update["headers"] = {**update.get("headers", base.headers), **over.headers}
    return base.model_copy(update=update)


def _origin(url: str) -> tuple[bool, str | None, int | None]:
    parts = urlsplit(url)
    secure = parts.scheme in ("wss", "https")
    return secure, parts.hostname, parts.port or (443 if secure else 80)


def _either(first: float | None, second: float) -> float:
    return second if first is None else first
