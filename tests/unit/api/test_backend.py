# SPDX-License-Identifier: GPL-2.0-or-later
"""Tokens; the feed of events, whose followers resume, fall behind and come from other processes."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Mapping
from typing import Any

import pytest

from gateway.api import backend
from gateway.api.backend import (
    EventFeed,
    RequestTimes,
    Role,
    Token,
    hash_of,
    new_token,
    not_found,
    recognized,
)

TOKENS = (Token("a", Role.ADMIN, hash_of("gw_a")), Token("b", Role.READONLY, hash_of("gw_b")))


@pytest.mark.parametrize(
    ("field", "name"),
    [
        ("Bearer gw_a", "a"),
        ("bearer  gw_b ", "b"),
        ("Basic gw_a", ""),
        ("Bearer gw_c", ""),
        ("Bearer", ""),
        ("gw_a", ""),
        ("", ""),
        (f"Bearer {hash_of('gw_a')}", ""),
    ],
)
def test_only_a_bearer_of_the_token_itself_is_recognized(field: str, name: str) -> None:
    found = recognized(field, TOKENS)
    assert (found.name if found else "") == name


def test_a_new_token_is_told_from_every_other() -> None:
    one, two = new_token(), new_token()
    assert one != two
    assert recognized(f"Bearer {one}", [Token("x", Role.ADMIN, hash_of(one))]) is not None
    assert recognized(f"Bearer {two}", [Token("x", Role.ADMIN, hash_of(one))]) is None


Follower = AsyncGenerator[tuple[str, Mapping[str, Any]], None]


async def taken(follower: Follower, count: int) -> list[tuple[str, Any]]:
    """Id and number (of a gap: what was missed) of the next events."""
    found = [await anext(follower) for _ in range(count)]
    return [(number, event.get("n", event.get("missed"))) for number, event in found]


def filled(count: int) -> EventFeed:
    feed = EventFeed("boot")
    for number in range(1, count + 1):
        feed.add({"type": "x", "n": number})
    return feed


async def test_a_follower_gets_what_comes_from_now_on() -> None:
    feed = filled(2)
    follower = feed.follow()
    coming = asyncio.ensure_future(anext(follower))
    await asyncio.sleep(0)
    feed.add({"type": "x", "n": 3})
    feed.add({"type": "x", "n": 4})
    assert await coming == ("boot.3", {"type": "x", "n": 3})
    assert await taken(follower, 1) == [("boot.4", 4)]
    await follower.aclose()


@pytest.mark.parametrize(
    ("after", "events"),
    [
        ("boot.1", [("boot.2", 2), ("boot.3", 3)]),
        ("other.7,boot.2", [("boot.3", 3), ("boot.4", 4)]),
        ("boot.0", [("boot.1", 1), ("boot.2", 2)]),
        # Of another process, one that is not there yet, and none at all: from the oldest.
        ("before.2", [("boot.0", None), ("boot.1", 1)]),
        ("boot.9", [("boot.0", None), ("boot.1", 1)]),
        ("boot.-1", [("boot.0", None), ("boot.1", 1)]),
        ("boot.²", [("boot.0", None), ("boot.1", 1)]),
        ("boot." + "9" * 5000, [("boot.0", None), ("boot.1", 1)]),
        ("nonsense", [("boot.0", None), ("boot.1", 1)]),
    ],
)
async def test_a_follower_resumes_behind_an_id(after: str, events: list[tuple[str, Any]]) -> None:
    feed = filled(3)
    assert feed.position(after) == f"boot.{int(events[0][0][5:]) - (events[0][1] is not None)}"
    follower = feed.follow(after)
    feed.add({"type": "x", "n": 4})
    assert await taken(follower, 2) == events


async def test_one_that_is_too_far_behind_is_told_how_many_are_missing(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(backend, "MAX_EVENTS", 3)
    feed = filled(2)
    follower = feed.follow("boot.1")
    assert await taken(follower, 1) == [("boot.2", 2)]
    for number in range(3, 8):
        feed.add({"type": "x", "n": number})
    assert await taken(follower, 3) == [("boot.4", 2), ("boot.5", 5), ("boot.6", 6)]
    assert await taken(feed.follow("boot.1"), 2) == [("boot.4", 3), ("boot.5", 5)]
    assert feed.position("boot.1") == "boot.1"
    assert feed.position() == "boot.7"


def test_places_of_followers_are_taken_and_given_back(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(backend, "MAX_FOLLOWERS", 2)
    feed = EventFeed("boot")
    assert [feed.join() for _ in range(3)] == [True, True, False]
    feed.leave()
    assert feed.join()


def test_methods_that_anybody_can_make_up_are_one() -> None:
    times = RequestTimes()
    for method in ("GET", "BREW", "PROPFIND"):
        times.observe("", method, 404, 0.1)
    times.observe("/api/v1/calls", "GET", 204, 0.1)
    assert {key: sum(one.counts) for key, one in times.seconds.items()} == {
        ("other", "GET", "4xx"): 1,
        ("other", "other", "4xx"): 2,
        ("/api/v1/calls", "GET", "2xx"): 1,
    }


def test_an_application_is_told_by_the_name_that_it_knows() -> None:
    assert not_found("live_1").body["error"]["code"] == "session_id_not_found"
    assert not_found("rtc_1").body["error"]["code"] == "call_id_not_found"
