# SPDX-License-Identifier: GPL-2.0-or-later
"""Calls that the gateway places: their limits, records, and the commands that place them."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from gateway.api.backend import NoCallError
from gateway.api.client import RefusedError
from gateway.app import outbound_calls as calls_module
from gateway.app.api_commands import DialCommands
from gateway.app.outbound_calls import OutboundCalls, OutboundLimiter
from gateway.audio import Codec
from gateway.bridge.legs import DialRefusedError, Legs, OutboundTarget
from gateway.call import inputs, outputs
from gateway.call.call_record import CallRecord
from gateway.config.sections import OutboundSettings
from gateway.dialplan import load_dialplan
from gateway.ending import EndReason, ending_of
from gateway.sip.call_audio import CallAudio
from gateway.sip.leg import LegEnd
from tests.support.call_fakes import FakeLeg, Fed
from tests.support.config import load_config

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
        self.legs: list[FakeLeg] = []
        self.caller_ids: list[str] = []

    def dial(
        self, _uri: str, handler: Any, _audio: Any, _codecs: Any, trunk: str, caller_id: str
    ) -> FakeLeg:
        """Place it."""
        if trunk == "unknown":
            raise KeyError(trunk)
        leg = FakeLeg()
        leg.handler = handler
        self.legs.append(leg)
        self.caller_ids.append(caller_id)
        return leg


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
    leg = limiter.dial(URI, cast(Any, handler), None, [], "")
    assert limiter.active == 1
    assert leg is agent.legs[0].leg
    counted: Any = leg.handler
    counted.on_digit("5")
    counted.on_ended(LegEnd(200, "OK", "BYE", "", False))
    assert handler.told == ["5", "ended"]
    assert limiter.active == 0


def test_a_leg_that_is_replaced_leaves_its_place_to_its_successor() -> None:
    agent, fed = Agent(), Fed()
    limiter = limiter_of(agent)
    target = OutboundTarget(URI, "", (Codec.PCMU,))
    legs = Legs(fed.host, target, CallAudio(Codec.PCMU, 1), dial=limiter.dial)
    legs.executors[outputs.Dial](outputs.Dial())
    leg = agent.legs[0]
    for _ in range(2):
        successor = FakeLeg("sip-2")
        leg.on_replaced(successor)
        assert (leg.handler, limiter.active) == (None, 1)
        leg = successor
    fed.take()
    leg.handler.on_ended(LegEnd(200, "OK", "BYE", "", False))
    assert fed.take() == [inputs.LegEnded(200, "OK", "BYE", "", False)]
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
    limiter.permit_refer(URI, True, count=False)
    limiter.permit_refer(URI, True)
    for count in (True, False):
        with pytest.raises(DialRefusedError, match="max_calls_per_minute = 1"):
            limiter.permit_refer(URI, True, count=count)


async def test_nobody_is_asked_about_a_referral_after_the_stop(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    asked: list[asyncio.Task[Any] | None] = []

    async def permit(_call_id: str, *, followed: bool) -> None:
        assert followed
        asked.append(asyncio.current_task())
        await asyncio.Event().wait()

    agent, shared = Agent(), cast(Any, SimpleNamespace(active=True))
    settings = OutboundSettings.model_validate(SETTINGS)
    limiter = OutboundLimiter(settings, cast(Any, agent), shared)
    monkeypatch.setattr(limiter, "permit", permit)
    agent.calls.permit_followed("call-1", lambda _permit: None)
    await asyncio.sleep(0)
    (task,) = asked
    assert task is not None
    async with asyncio.timeout(15):
        await limiter.stop()
    assert task.cancelled()


async def test_a_referral_is_answered_where_the_database_cannot_be_asked() -> None:
    async def admit(_wanted: Any) -> str:
        raise ValueError("no such value")

    agent, told = Agent(), asyncio.get_running_loop().create_future()
    shared = SimpleNamespace(active=True, admit=admit, outbound_wanted=lambda *_, **__: "a lease")
    OutboundLimiter(OutboundSettings.model_validate(SETTINGS), cast(Any, agent), cast(Any, shared))
    agent.calls.permit_followed("call-1", told.set_result)
    async with asyncio.timeout(15):
        assert "no such value" in (await told)[0]


@pytest.mark.parametrize(
    ("places", "workers", "most"),
    [(1, 1, 1), (4, 1, 2), (5, 1, 2), (10, 2, 2), (10, 5, 1), (4, 4, 0)],
)
def test_followed_refers_of_all_workers_take_half_of_the_places_at_most(
    places: int, workers: int, most: int
) -> None:
    agent = Agent()
    settings = OutboundSettings.model_validate({**SETTINGS, "max_concurrent_calls": places})
    limiter = OutboundLimiter(settings, cast(Any, agent), None, workers)
    for _ in range(most):
        free = agent.calls.may_follow_refer(URI)
        agent.calls.followed += 1
        free()
    assert not agent.calls.may_follow_refer(URI)
    for _ in range(places - most):
        limiter.admit(URI)


class Lock:
    """Has somebody else ask as soon as it is released for the first time."""

    def __init__(self, then: Callable[[], object]) -> None:
        self.then: Callable[[], object] | None = then

    def __enter__(self) -> None:
        pass

    def __exit__(self, *_: object) -> None:
        then, self.then = self.then, None
        if then is not None:
            then()


@pytest.mark.parametrize("way", ["admit", "dial", "follow"])
def test_the_last_place_is_taken_before_another_thread_asks(way: str) -> None:
    """REFERs are decided on the SIP thread, all else on the event loop."""
    agent = Agent()
    limiter = limiter_of(agent)
    took: list[object] = []
    ways: dict[str, Callable[[], object]] = {
        "admit": lambda: limiter.admit(URI),
        "dial": lambda: limiter.dial(URI, cast(Any, Handler()), None, [], ""),
        "follow": lambda: agent.calls.may_follow_refer(URI),
    }

    def ask() -> None:
        with contextlib.suppress(DialRefusedError):
            took.append(limiter.admit(URI))

    limiter._asking = cast(Any, Lock(ask))
    assert ways[way]()
    assert not took
    assert limiter.active == 1


def test_a_refer_that_would_call_a_forbidden_number_is_not_followed() -> None:
    agent = Agent()
    limiter_of(agent)
    assert agent.calls.may_follow_refer(URI)
    assert not agent.calls.may_follow_refer("sip:+19005551234@x")


DIAL = {"to": "sip:b@example.org", "route": "r"}


class Placing:
    """Places calls between a registry and a limiter that are stand-ins."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        (folder / "dialplans").mkdir()
        file = folder / "gateway.toml"
        file.write_text('[realtime]\nurl = "ws://127.0.0.1:1/v1/realtime"\n')
        (folder / "dialplans" / "a.toml").write_text("[[route]]\nname = 'r'\n")
        self.room: str | None = None
        self.refusal = ""
        self.places = 0
        self.written: list[tuple[EndReason, int, str]] = []
        self.begun: list[Any] = []
        self.finish: Callable[[Any], None] = lambda _call: None
        self.dial: Any = None
        self.plans: tuple[Any, ...] = ()
        calls = SimpleNamespace(
            no_room=lambda: self.room,
            spent=lambda _route, _number: None,
            begin=self.begun.append,
            finished=lambda _call: None,
        )
        limiter = SimpleNamespace(
            admit=self._admit, permit_refer=None, permit=None, asks_first=False
        )
        monkeypatch.setattr(calls_module, "CallController", self._made)
        self.outbound = OutboundCalls(
            load_config(file, {}),
            load_dialplan(folder / "dialplans", {}),
            cast(Any, None),
            cast(Any, limiter),
            cast(Any, calls),
            lambda _record, why, code, detail: self.written.append((why, code, detail)),
            cast(Any, SimpleNamespace(inform=self._inform)),
        )

    def _admit(self, _uri: str) -> Callable[[], None]:
        if self.refusal:
            raise DialRefusedError(self.refusal)
        self.places += 1

        def give_back() -> None:
            self.places -= 1

        return give_back

    def _inform(self, *_plans: Any) -> tuple[str, str]:
        return "informed plan", "informed session"

    def _made(
        self,
        _target: Any,
        plan: Any,
        session: Any,
        record: CallRecord,
        _pump: Any,
        finished: Callable[[Any], None],
        *,
        dial: Any,
        **_more: Any,
    ) -> Any:
        self.finish, self.dial, self.plans = finished, dial, (plan, session)
        return SimpleNamespace(record=record)


@pytest.fixture
def placing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Placing:
    return Placing(tmp_path, monkeypatch)


async def test_a_call_that_is_placed_and_its_record(placing: Placing) -> None:
    over = placing.outbound.dial("sip:b@example.org", "r")
    (call,) = placing.begun
    assert (call.record.direction, call.record.to_uri) == ("outbound", "sip:b@example.org")
    assert placing.places == 1
    placing.finish(call)
    assert placing.places == 0
    assert await over is call.record


async def test_a_placed_call_knows_of_its_server_s_trouble_and_reports_to_it(
    placing: Placing,
) -> None:
    placing.outbound.dial("sip:b@example.org", "r")
    assert placing.plans == ("informed plan", "informed session")


@pytest.mark.parametrize("audio", [None, CallAudio(Codec.PCMU, 1)])
async def test_a_b_leg_of_a_placed_call_is_checked_with_audio_of_its_own_too(
    placing: Placing, audio: CallAudio | None
) -> None:
    agent = Agent()
    limiter = limiter_of(agent, max_concurrent_calls=2, denied_prefixes=["+49900"])
    placing.outbound.limiter = limiter
    placing.outbound.dial(URI, "r")
    placing.dial(URI, Handler(), CallAudio(Codec.PCMU, 1), [Codec.PCMU], "")
    assert limiter.active == 1
    with pytest.raises(DialRefusedError, match="denied_prefixes"):
        placing.dial("sip:+49900666@x", Handler(), audio, [Codec.PCMU], "", True, "4711")
    placing.dial(URI, Handler(), audio, [Codec.PCMU], "", True, "4711")
    assert agent.caller_ids == ["", "4711"]
    with pytest.raises(DialRefusedError, match="max_concurrent_calls = 2"):
        placing.dial(URI, Handler(), audio, [Codec.PCMU], "", True, "4711")


async def test_a_placed_call_has_its_place_also_while_it_is_dialled(placing: Placing) -> None:
    agent = Agent()
    limiter = placing.outbound.limiter = limiter_of(agent)
    placing.outbound.dial(URI, "r")
    took: list[object] = []
    limiter._asking = cast(Any, Lock(lambda: took.append(agent.calls.may_follow_refer(URI))))
    placing.dial(URI, Handler(), CallAudio(Codec.PCMU, 1), [Codec.PCMU], "")
    assert took == [None]
    assert limiter.active == 1


@pytest.mark.parametrize("rule", ["room", "limit"])
async def test_a_call_that_a_rule_forbids_has_a_record(placing: Placing, rule: str) -> None:
    if rule == "room":
        placing.room = "sip.max_calls: 2 calls in progress"
    else:
        placing.refusal = "outbound.max_concurrent_calls = 4"
    with pytest.raises(DialRefusedError):
        placing.outbound.dial("sip:b@example.org", "r")
    ((why, code, detail),) = placing.written
    assert (why, code) == (EndReason.REFUSED, 403)
    assert detail == (placing.room if rule == "room" else placing.refusal)
    assert placing.begun == []


async def test_a_defect_frees_the_place(placing: Placing, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(calls_module, "plans", None)
    with pytest.raises(DialRefusedError, match="a defect of the gateway: TypeError"):
        placing.outbound.dial("sip:b@example.org", "r")
    assert placing.places == 0
    assert placing.written[0][:2] == (EndReason.INTERNAL_ERROR, 500)


async def test_a_command_places_a_call_and_another_asks_for_its_outcome(placing: Placing) -> None:
    commands: dict[str, Any] = DialCommands(placing.outbound).commands
    call = (await commands["dial"](DIAL))["call"]
    assert commands["call"]({"call": call})["over"] is False
    placing.begun[0].record.ending = ending_of(EndReason.BUSY, answered=False)
    assert commands["call"]({"call": call})["over"] is True
    with pytest.raises(NoCallError, match="no such call"):
        commands["call"]({"call": "other"})


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        ({"route": "nowhere"}, "there is no route 'nowhere'"),
        ({"trunk": "nowhere"}, "there is no trunk 'nowhere'"),
    ],
)
async def test_a_request_that_makes_no_sense(
    placing: Placing, wrong: dict[str, Any], words: str
) -> None:
    with pytest.raises(RefusedError, match=words):
        await cast(Any, DialCommands(placing.outbound).commands["dial"]({**DIAL, **wrong}))
    assert placing.written == []
