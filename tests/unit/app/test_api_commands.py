# SPDX-License-Identifier: GPL-2.0-or-later
"""Commands that work on a conversation: which call they mean, and what they show."""

from __future__ import annotations

import time
import uuid
from collections.abc import Awaitable, Mapping
from types import SimpleNamespace
from typing import Any, cast

import pytest

from gateway.api.client import RefusedError
from gateway.app.api_commands import ContentCommands, OperatorCommands, call_named
from gateway.bridge.call_controller import OutOfBandWaiters
from gateway.call.call_record import CallRecord
from gateway.call.outputs import OutOfBandDone
from gateway.call.plan import ToolsPlan
from gateway.call.tools.commands import Destination, Interrupt, RequestOutOfBand, Say, TransferPlan
from gateway.realtime.events import AudioDelta, ResponseCreated
from gateway.sip.leg import ReferProgress, new_call_id
from tests.support.call_fakes import FakeCall, settle


class Call:
    """A call that is up."""

    def __init__(self, call_id: str, sip_call_id: str = "") -> None:
        self.record = CallRecord(call_id, sip_call_id)
        self.out_of_band = OutOfBandWaiters()
        self.conversing = True
        self.acts: list[Any] = []

    def act(self, act: Any) -> None:
        """Do it."""
        self.acts.append(act)


def commands_of(*calls: Call) -> Mapping[str, Any]:
    return ContentCommands(lambda: calls).commands


def test_which_call_is_meant() -> None:
    calls = [Call("abc1", "x@pbx"), Call("abd2", "y@pbx"), Call("abc", "z@pbx")]
    assert call_named({"call": "abd"}, calls) is calls[1]
    assert call_named({"call": "abc"}, calls) is calls[2]
    assert call_named({"call": "d2"}, calls) is calls[1], "ids differ at their end"
    assert call_named({"call": "x@pbx"}, calls) is calls[0]
    with pytest.raises(RefusedError, match="'ab' is 3 calls: abc, abc1, abd2"):
        call_named({"call": "ab"}, calls)
    with pytest.raises(RefusedError, match="there is no call 'q'"):
        call_named({"call": "q"}, calls)


def test_ids_are_sorted_by_time() -> None:
    before = time.time_ns() // 1_000_000
    made = [uuid.UUID(new_call_id()) for _ in range(100)]
    assert {(one.version, one.variant) for one in made} == {(7, uuid.RFC_4122)}
    assert len(set(made)) == 100
    times = [one.int >> 80 for one in made]
    assert times == sorted(times)
    assert before <= times[0] <= times[-1] <= time.time_ns() // 1_000_000


def test_something_is_said_where_somebody_talks() -> None:
    call = Call("c1")
    say = commands_of(call)["say"]
    assert say({"call": "c1", "text": "One moment."}) == {"call": "c1"}
    assert call.acts == [Say("One moment.")]
    call.conversing = False
    with pytest.raises(RefusedError, match="nobody talks"):
        say({"call": "c1", "text": "Still there?"})


async def test_operators_who_transfer_one_call_learn_what_became_of_their_own(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    destinations = (Destination("sales", "sip:sales@x"), Destination("support", "sip:support@x"))
    call = FakeCall(monkeypatch, tools=ToolsPlan(transfer=TransferPlan(destinations)))
    await call.up()
    # Speech in the playout queue, which nothing plays: the transfer waits for it.
    call.session.commands.request_of = lambda _event: None
    call.session.says(ResponseCreated("resp_1", {}))
    call.session.says(AudioDelta("resp_1", "item_1", 0, bytes(4000)))
    commands = OperatorCommands([call.controller]).commands

    def ask(destination: str) -> Mapping[str, Any]:
        return commands["transfer"]({"call": "call-1", "destination": destination})

    def outcome(asked: Mapping[str, Any]) -> str:
        return str(commands["transfer_outcome"](asked)["outcome"])

    first = ask("sales")
    assert call.record.actions.transfers == []
    with pytest.raises(RefusedError, match="something else is being done for this call"):
        ask("support")
    assert outcome(first) == "not begun"
    call.controller.act(Interrupt())
    await settle()
    assert outcome(first) == "asked for"
    on_progress = next(done[-1] for done in call.leg.done if done[0] == "refer")
    on_progress(ReferProgress(403, "Forbidden", final=True))
    await settle()
    assert outcome(first) == "refused, SIP 403"
    second = ask("support")
    assert second["transfer"] != first["transfer"]
    assert outcome(first) == "refused, SIP 403"
    call.controller.give_up("over")


def test_a_transcript_is_masked_as_the_record_is_unless_asked_otherwise() -> None:
    call = Call("c1")
    call.record.private.add("4242")
    entries = [{"at_ms": 1.0, "who": "agent", "text": "Your PIN is four two 42."}]
    call.record.transcript = cast(Any, SimpleNamespace(as_json=lambda: entries))
    transcript = commands_of(call)["transcript"]
    assert transcript({"call": "c1"})["transcript"][0]["text"] == "Your PIN is ****."
    assert transcript({"call": "c1", "unmasked": True})["transcript"] == entries
    assert transcript({"call": "c1", "after": 1})["transcript"] == []


async def test_an_out_of_band_question_is_answered() -> None:
    call = Call("c1")
    answer: Awaitable[Mapping[str, Any]] = commands_of(call)["query"](
        {"call": "c1", "text": "Mood?"}
    )
    (request,) = call.acts
    assert isinstance(request, RequestOutOfBand)
    call.out_of_band.done(OutOfBandDone(request.key, "completed", "calm"))
    assert (await answer)["text"] == "calm"


async def test_a_question_whose_call_ends_is_refused() -> None:
    call = Call("c1")
    answer: Awaitable[Mapping[str, Any]] = commands_of(call)["query"](
        {"call": "c1", "text": "Mood?"}
    )
    call.out_of_band.close()
    with pytest.raises(RefusedError, match="ended as over"):
        await answer
