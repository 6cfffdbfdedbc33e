# SPDX-License-Identifier: GPL-2.0-or-later
"""Calls that the gateway places are counted from the question to the end of the leg."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any, cast

import pytest

from gateway.bridge.legs import DialRefusedError
from gateway.config.sections import OutboundSettings
from gateway.outbound.limits import OutboundLimiter
from gateway.sip.types import LegEnd

SETTINGS: dict[str, Any] = {
    "enabled": True,
    "allowed_prefixes": ["+49"],
    "country": "DE",
    "max_concurrent_calls": 1,
    "max_calls_per_minute": 100,
}
URI = "sip:+4930123456@x"


class Agent:
    """Dials, where it knows the trunk."""

    def __init__(self) -> None:
        self.calls = SimpleNamespace(followed=0)
        self.handlers: list[Any] = []

    def dial(self, _uri: str, handler: Any, _audio: Any, _codecs: Any, trunk: str, _id: str) -> str:
        """Place it."""
        if trunk == "unknown":
            raise KeyError(trunk)
        self.handlers.append(handler)
        return "leg"


class Handler:
    """Of a leg."""

    def __init__(self) -> None:
        self.told: list[str] = []

    def on_digit(self, digit: str) -> None:
        """A key."""
        self.told.append(digit)

    def on_ended(self, _end: LegEnd) -> None:
        """It is over."""
        self.told.append("ended")


def limiter_of(agent: Agent, **more: Any) -> OutboundLimiter:
    settings = OutboundSettings.model_validate({**SETTINGS, **more})
    return OutboundLimiter(settings, cast(Any, agent))


def test_a_call_counts_from_its_admission_until_its_place_is_given_back() -> None:
    limiter = limiter_of(Agent())
    give_back = limiter.admit(URI)
    assert limiter.active == 1
    with pytest.raises(DialRefusedError, match="max_concurrent_calls = 1"):
        limiter.admit(URI)
    give_back()
    give_back()
    assert limiter.active == 0
    limiter.admit(URI)


def test_a_leg_counts_until_it_ends_and_its_handler_hears_everything() -> None:
    agent, handler = Agent(), Handler()
    limiter = limiter_of(agent)
    assert cast(str, limiter.dial(URI, cast(Any, handler), None, [], "")) == "leg"
    assert limiter.active == 1
    (counted,) = agent.handlers
    counted.on_digit("5")
    counted.on_ended(LegEnd(200, "OK", "BYE", "", False))
    assert handler.told == ["5", "ended"]
    assert limiter.active == 0


def test_a_leg_through_a_trunk_that_is_not_there_counts_for_nothing() -> None:
    limiter = limiter_of(Agent())
    with pytest.raises(DialRefusedError, match="no trunk 'unknown'"):
        limiter.dial(URI, cast(Any, Handler()), None, [], "unknown")
    assert limiter.active == 0


def test_a_referral_by_a_pattern_counts_as_a_call_and_one_of_the_dialplan_does_not() -> None:
    limiter = limiter_of(Agent(), max_calls_per_minute=1)
    for _ in range(3):
        limiter.permit_refer(URI, False)
    limiter.permit_refer(URI, True)
    with pytest.raises(DialRefusedError, match="max_calls_per_minute = 1"):
        limiter.permit_refer(URI, True)


@pytest.mark.parametrize(("places", "most"), [(1, 1), (4, 2), (5, 2)])
def test_followed_refers_take_half_of_the_places_at_most(places: int, most: int) -> None:
    agent = Agent()
    limiter = limiter_of(agent, max_concurrent_calls=places)
    for _ in range(most):
        assert agent.calls.may_follow_refer(URI)
        agent.calls.followed += 1
    assert not agent.calls.may_follow_refer(URI)
    for _ in range(places - most):
        limiter.admit(URI)


def test_a_refer_that_would_call_a_forbidden_number_is_not_followed() -> None:
    agent = Agent()
    limiter_of(agent)
    assert agent.calls.may_follow_refer(URI)
    assert not agent.calls.may_follow_refer("sip:+19005551234@x")
