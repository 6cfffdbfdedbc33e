# SPDX-License-Identifier: GPL-2.0-or-later
"""What the event loop asks of a leg."""

from __future__ import annotations

import uuid
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any, cast

import pytest

from gateway.audio import Codec
from gateway.sip.call_audio import CallAudio
from gateway.sip.leg import Invite, Leg, ReferProgress, new_call_id


def test_the_sessions_audio_waits_for_the_end_of_a_sound() -> None:
    """The SIP thread ends a sound, and may be late."""
    posted: list[Callable[[], None]] = []
    played: list[str] = []
    leg = Leg(
        cast(Any, SimpleNamespace(post=posted.append)), cast(Any, SimpleNamespace(call_id=""))
    )
    leg.audio = audio = CallAudio(Codec.PCMU, 10)
    leg.call = cast(
        Any, SimpleNamespace(ended=False, run=lambda do: do(leg.call), play=played.append)
    )
    leg.play("ringback")
    leg.play("")
    audio.playout.put(bytes(160))
    assert audio.playout.pull() is None
    for run in posted:
        run()
    assert played == ["ringback", ""]
    assert audio.playout.pull() is not None


class Call:
    """The call behind a leg: writes down what it is told."""

    def __init__(self) -> None:
        self.ended = False
        self.done: list[tuple[Any, ...]] = []

    def run(self, command: Callable[[Any], None]) -> None:
        command(self)

    def __getattr__(self, name: str) -> Callable[..., None]:
        return lambda *given: self.done.append((name, *given))


class Thread:
    """Runs what is posted when it is told to; what is for the loop at once."""

    def __init__(self) -> None:
        self.posted: list[Callable[[], object]] = []

    def post(self, command: Callable[[], object]) -> None:
        self.posted.append(command)

    def to_loop(self, callback: Callable[..., object], *given: Any) -> None:
        callback(*given)

    def turn(self) -> None:
        while self.posted:
            self.posted.pop(0)()


def a_leg(thread: Thread) -> tuple[Leg, Call]:
    leg, call = Leg(cast(Any, thread), cast(Any, SimpleNamespace(call_id="c1"))), Call()
    leg.call = cast(Any, call)
    return leg, call


def test_commands_come_in_order_and_only_to_a_call_that_is_there() -> None:
    thread = Thread()
    leg, call = a_leg(thread)
    leg.call = None
    leg.ring()
    thread.turn()
    leg.call = cast(Any, call)
    leg.ring()
    leg.progress()
    leg.answer()
    leg.press("5")
    leg.hang_up({"Reason": "x"})
    assert call.done == [], "on the SIP thread"
    thread.turn()
    assert call.done == [
        ("respond", 180), ("respond", 183), ("respond", 200), ("press", "5", "auto"),
        ("finish", 0, {"Reason": "x"}),
    ]  # fmt: skip
    assert leg.given_up
    leg.refuse(486)
    call.ended = True
    thread.turn()
    assert call.done[-1][0] == "finish"
    assert len(call.done) == 5, "it had ended by then"


def test_a_transfer_to_a_leg_that_is_over_is_refused_here() -> None:
    thread, told = Thread(), list[ReferProgress]()
    leg, call = a_leg(thread)
    other, there = a_leg(thread)
    leg.refer_to(other, told.append)
    leg.join(other, listen=True)
    thread.turn()
    assert [one[0] for one in call.done] == ["refer_to", "join"]
    there.ended = True
    leg.refer_to(other, told.append)
    leg.join(other, listen=True)
    thread.turn()
    other.call = None
    leg.refer_to(other, told.append)
    thread.turn()
    assert len(call.done) == 2
    assert [(one.code, one.final) for one in told] == [(481, True)] * 2


def test_what_comes_before_its_owner_is_dropped() -> None:
    leg, _call = a_leg(Thread())
    told: list[bool] = []
    leg.tell(lambda handler: handler.on_hold(True))
    leg.handler = cast(Any, SimpleNamespace(on_hold=told.append))
    leg.tell(lambda handler: handler.on_hold(False))
    assert told == [False]


def test_ids_of_calls_are_sorted_by_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """UUIDv7."""
    now = [1_700_000_000_123_456_789]
    monkeypatch.setattr("gateway.sip.leg.time.time_ns", lambda: now[0])
    made = []
    for _ in range(50):
        made.append(new_call_id())
        now[0] += 1_000_000
    assert made == sorted(made)
    found = uuid.UUID(made[0])
    assert (found.version, found.variant) == (7, uuid.RFC_4122)
    assert found.int >> 80 == 1_700_000_000_123
    assert new_call_id() != new_call_id()


@pytest.mark.parametrize(
    ("there", "trunk", "trusted"), [(False, "", False), (True, "", True), (False, "pbx", True)]
)
def test_a_session_waits_for_the_ack_of_a_source_that_may_be_forged(
    there: bool, trunk: str, trusted: bool
) -> None:
    invite = Invite("x", "", "", "", "", "", "192.0.2.1:5060", {}, None, trunk, there=there)
    assert invite.trusted is trusted
