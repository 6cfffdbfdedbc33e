# SPDX-License-Identifier: GPL-2.0-or-later
"""Calls are held until the library has forgotten them, and end alone; what became of our BYEs."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any, cast

import pytest

from gateway.sip import active_calls
from gateway.sip.active_calls import (
    ANSWER_SECONDS,
    KEYS_SECONDS,
    NO_ANSWER,
    NOT_SENT,
    TIMED_OUT,
    ByeTracker,
    Calls,
    HeldCall,
)
from gateway.sip.trunks import ChallengedCall


class Call:
    """As much of a call as :class:`Calls` asks for."""

    def __init__(self, number: int, *, broken: bool = False) -> None:
        self.number, self.broken = number, broken
        self.party, self.name = "", str(number)
        self.released, self.sip_call_id = False, str(number)
        self.ended = self.followed = self.failed = False
        self.given_back, self.leg = 0, None
        self.polled = 0
        self.answered = self.acknowledged = False
        self.keys = False
        self.link = SimpleNamespace(at=lambda slot: slot == 10 + number)

    def getId(self) -> int:  # noqa: N802
        return self.number

    def poll_quality(self) -> None:
        self.polled += 1
        if self.broken:
            raise ValueError

    def keys_known(self) -> bool:
        self.poll_quality()
        return self.keys

    def challenged(self) -> ChallengedCall:
        return ChallengedCall(None, f"sip:{self.number}", followed=False)

    def fail(self) -> None:
        self.failed = True

    def release(self) -> None:
        self.released = True

    def give_back(self) -> None:
        self.given_back += 1


def held(calls: Calls, *some: Call) -> list[HeldCall]:
    found = [cast(HeldCall, call) for call in some]
    for call in found:
        calls.add(call, "source 192.0.2.1")
    return found


def test_a_call_is_retired_once() -> None:
    calls = Calls()
    first, second = held(calls, Call(0), Call(1))
    calls.count_followed(first)
    assert calls.followed == 1
    for _ in range(3):
        first.ended = True
        calls.retire(first)
    assert calls.followed == 0
    assert cast(Call, first).given_back == 1
    calls.release_all()
    calls.retire(first)
    calls.release_all()
    assert calls.of("source 192.0.2.1") == 1
    second.ended = True
    calls.retire(second)
    calls.release_all()
    assert not calls
    # Its BYE may still be challenged.
    assert calls.challenged("0") == ChallengedCall(None, "sip:0", followed=False)
    assert calls.challenged("3") is None


def test_one_call_that_raises_ends_alone() -> None:
    calls = Calls()
    broken, good = Call(0, broken=True), Call(1)
    calls.awaiting_keys = held(calls, broken, good)
    calls.poll_quality()
    calls.poll_keys(1.0)
    assert (broken.failed, good.failed, good.polled) == (True, False, 2)
    assert calls.awaiting_keys == [cast(HeldCall, good)]


def test_a_call_is_held_while_a_newer_one_has_its_slot() -> None:
    """Its destructor would hang that one up."""
    calls = Calls()
    old, new = held(calls, Call(0), Call(0))
    old.ended = True
    calls.retire(old)
    calls.release_all()
    assert (cast(Call, old).released, calls.of("source 192.0.2.1"), calls.live) == (False, 2, 1)
    new.ended = True
    calls.retire(new)
    calls.release_all()
    assert (cast(Call, old).released, cast(Call, new).released, bool(calls)) == (True, True, False)
    assert calls.of("source 192.0.2.1") == 0


def test_calls_without_an_ack_are_those_of_strangers_or_of_a_trunk() -> None:
    calls = Calls()
    some = [cast(HeldCall, Call(number)) for number in range(5)]
    for call, party in zip(
        some, ["source a", "source b", "trunk t", "trunk t", "trunk u"], strict=True
    ):
        calls.add(call, party)
    assert (calls.unacknowledged(""), calls.unacknowledged("t")) == (2, 0), "a trunk's ring"
    for call in some:
        call.answered = True
    assert (calls.unacknowledged(""), calls.unacknowledged("t")) == (2, 2)
    some[0].acknowledged = True
    some[2].ended = True
    assert (calls.unacknowledged(""), calls.unacknowledged("t")) == (1, 1)


def test_keys_are_asked_for_every_so_often_until_they_are_there() -> None:
    calls = Calls()
    first, second = Call(0), Call(1)
    calls.awaiting_keys = held(calls, first, second)
    calls.poll_keys(1.0)
    calls.poll_keys(1.0 + KEYS_SECONDS / 2)
    first.keys = True
    calls.poll_keys(1.0 + KEYS_SECONDS)
    calls.poll_keys(1.0 + 2 * KEYS_SECONDS)
    assert (first.polled, second.polled) == (2, 3)


def test_a_slot_that_fails_ends_its_call() -> None:
    calls = Calls()
    some = [Call(number) for number in range(3)]
    held(calls, *some)
    some[1].ended = True
    calls.fail_at({11, 12, 99})
    assert [call.failed for call in some] == [False, False, True]


def test_a_call_is_found_by_its_call_id() -> None:
    calls = Calls()
    (call,) = held(calls, Call(0))
    assert (calls.live_call("0"), calls.live_call("1")) == (call, None)
    assert not calls.is_established("0")
    call.acknowledged = True
    assert calls.is_established("0")
    call.ended = True
    assert (calls.live_call("0"), calls.is_established("0")) == (None, False)
    assert calls.challenged("0") is not None, "its BYE may be challenged"


# ---- BYEs


class Byes:
    """A tracker on a clock of its own, and what it has told."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now, self.number = 100.0, 7
        clock = SimpleNamespace(monotonic=lambda: self.now)
        monkeypatch.setattr(active_calls, "time", clock)
        self.signalling = SimpleNamespace(watch_bye=lambda _call: self.number, on_bye=None)
        self.tracker = ByeTracker(cast(Any, self.signalling))
        self.told: list[str] = []

    def watch(self) -> int:
        return self.tracker.watch(None)


@pytest.fixture
def byes(monkeypatch: pytest.MonkeyPatch) -> Byes:
    return Byes(monkeypatch)


OUTCOMES = {
    200: "", 202: "", 481: "", 0: NOT_SENT, 408: TIMED_OUT, 401: "401, unanswered challenge",
    407: "407, unanswered challenge", 302: "refused with 302", 500: "refused with 500",
}  # fmt: skip


@pytest.mark.parametrize(("status", "outcome"), OUTCOMES.items())
@pytest.mark.parametrize("first", ["answer", "wait"])
def test_what_became_of_a_bye(byes: Byes, status: int, outcome: str, first: str) -> None:
    number = byes.watch()
    if first == "wait":
        byes.tracker.wait(number, byes.told.append)
        assert byes.told == []
    byes.signalling.on_bye(number, status)
    byes.signalling.on_bye(number, 503)
    if first == "answer":
        byes.tracker.wait(number, byes.told.append)
    assert byes.told == [outcome], "once"
    byes.tracker.wait(number, byes.told.append)
    assert byes.told == [outcome, ""]


def test_a_bye_that_nobody_answers_is_given_up(byes: Byes) -> None:
    number = byes.watch()
    byes.tracker.wait(number, byes.told.append)
    byes.tracker.tick(byes.now + ANSWER_SECONDS - 0.1)
    assert byes.told == []
    byes.tracker.tick(byes.now + ANSWER_SECONDS)
    byes.signalling.on_bye(number, 200)
    byes.tracker.tick(byes.now + 2 * ANSWER_SECONDS)
    assert byes.told == [NO_ANSWER]


def test_a_bye_that_nobody_waits_for_is_forgotten(byes: Byes) -> None:
    number = byes.watch()
    byes.signalling.on_bye(number, 500)
    byes.tracker.tick(byes.now + ANSWER_SECONDS)
    byes.tracker.wait(number, byes.told.append)
    assert byes.told == [""]


def test_a_call_without_a_dialog_has_no_bye(byes: Byes) -> None:
    byes.number = 0
    byes.tracker.wait(byes.watch(), byes.told.append)
    assert byes.told == [""]
