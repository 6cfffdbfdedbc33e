# SPDX-License-Identifier: GPL-2.0-or-later
"""Calls are held until the library has forgotten them, and end alone."""

from __future__ import annotations

from typing import cast

from gateway.sip.active_calls import Calls, HeldCall
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

    def getId(self) -> int:  # noqa: N802
        return self.number

    def poll_quality(self) -> None:
        self.polled += 1
        if self.broken:
            raise ValueError

    def keys_known(self) -> bool:
        self.poll_quality()
        return False

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
