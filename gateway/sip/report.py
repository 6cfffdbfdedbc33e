# SPDX-License-Identifier: GPL-2.0-or-later
"""How the user agent is, in plain values, for who asks. May be called on any thread."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from gateway.sip.agent import UserAgent


def trunk_states(agent: UserAgent) -> list[dict[str, Any]]:
    """One object for each trunk, in the order of the configuration. Times are seconds from now."""
    now = time.monotonic()
    registrations = {} if agent.accounts is None else agent.accounts.registrations
    states = []
    for trunk in agent.trunks.all:
        one = registrations.get(trunk.name)
        states.append(
            {
                "name": trunk.name,
                "state": "static" if one is None else one.state.value,
                "since_seconds": 0.0 if one is None else round(now - one.since, 1),
                "expires_seconds": _until(None if one is None else one.expires_at, now),
                "last_error": "" if one is None else one.last_error,
                "next_try_seconds": _until(None if one is None else one.next_try, now),
                "options": agent.probe_result(trunk.name),
                "calls": agent.calls.of(f"trunk {trunk.name}"),
            }
        )
    return states


def refusals(agent: UserAgent) -> dict[str, int]:
    """Requests refused since the start, by rule."""
    if agent.screen is None or agent.signalling is None:
        return {}
    failures = agent.signalling.failures
    return {**agent.screen.refusals.by_rule, **({"not decided": failures} if failures else {})}


def bans(agent: UserAgent) -> list[dict[str, Any]]:
    """Sources that are banned now: seconds left, and how many of their requests got nothing."""
    return [] if agent.screen is None else agent.screen.bans.as_json(time.monotonic())


def _until(at: float | None, now: float) -> float | None:
    return None if at is None else round(max(0.0, at - now), 1)
