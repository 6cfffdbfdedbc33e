# SPDX-License-Identifier: GPL-2.0-or-later
"""Data that come while it rings; requests refused for one field. On a virtual clock."""

from __future__ import annotations

from dataclasses import replace

import pytest

from gateway.audio import Codec
from gateway.call import inputs
from gateway.call.plan import ApprovalRule, CallPlan, DtmfPlan, Prepared, ToolsPlan
from gateway.call.tools.commands import LanguagePlan
from gateway.realtime.events import CreateItem, CreateResponse, ServerError, UpdateSession
from tests.support.call_scene import (
    ACK,
    CANCEL,
    SPEECH,
    UP,
    Scene,
    audio,
    created,
    done,
    error,
    key,
)

BARE = CallPlan(
    "route",
    Codec.PCMU,
    greeting={"instructions": "Hello you."},
    dtmf=DtmfPlan(max_digits=1),
    tools=ToolsPlan(
        language=LanguagePlan({"de": "German"}, {"de": {"instructions": "In German."}})
    ),
)
FULL = replace(
    BARE,
    greeting={"instructions": "Hello Ann.", "metadata": {"tier": "gold"}},
    metadata={"tier": "gold"},
    dtmf=DtmfPlan(max_digits=1, text=lambda keys: f"Ann pressed {keys}."),
    tools=replace(
        BARE.tools,
        language=LanguagePlan({"de": "German"}, {"de": {"instructions": "Ann, in German."}}),
        approvals=(ApprovalRule("*", "allow"),),
    ),
    variables={"data.name": "Ann"},
)


def prepared(failure: str = "") -> Prepared:
    return Prepared(FULL, 80, failure)


@pytest.mark.parametrize("failure", ["", "no answer within 2 s"])
def test_all_that_is_said_is_of_the_plan_that_came(failure: str) -> None:
    scene = Scene(BARE)
    scene.at(0.1, prepared(failure))
    assert scene.record.timeline[-1]["event"] == "data"
    assert scene.record.timeline[-1].get("failed", "") == failure
    scene.at(0.3, UP, ACK)
    (greeting,) = scene.requests
    assert greeting.response == FULL.greeting
    scene.do(created("r1"), done("r1"))
    scene.at(1.0, key("5"))
    (item,) = [one for one in scene.sent if isinstance(one, CreateItem)]
    assert "Ann pressed 5." in str(item.item)
    scene.do(created("r2"), done("r2", calls=[("set_language", "c1", '{"language": "de"}')]))
    assert UpdateSession({"instructions": "Ann, in German."}) in scene.sent
    assert scene.record.metadata == {"tier": "gold"}
    assert scene.machine.variables == {"data.name": "Ann"}


def test_data_of_a_call_that_was_given_up_change_nothing() -> None:
    scene = Scene(BARE)
    scene.at(0.1, CANCEL)
    assert scene.ending[1] == "cancelled"
    assert scene.do(prepared()) == []


def refused(param: str, command: CreateResponse) -> inputs.ServerErrorReceived:
    return inputs.ServerErrorReceived(
        ServerError("unknown_parameter", "No.", "invalid_request_error", param), command
    )


@pytest.mark.parametrize("protected", [True, False])
def test_a_greeting_that_is_refused_for_a_field_is_asked_for_without_it(protected: bool) -> None:
    """And is still the greeting: its protection from interruptions holds."""
    interruptions = replace(
        FULL.interruptions,
        mode="immediate",
        by_gateway=True,
        uninterruptible_greeting=protected,
        force_interrupt_ms=0,
    )
    scene = Scene(
        replace(FULL, interruptions=interruptions, server=replace(FULL.server, interrupts=False))
    ).up()
    (first,) = scene.requests
    scene.do(refused("response.metadata", first))
    _, second = scene.requests
    assert second.response == {"instructions": "Hello Ann."}
    scene.do(refused("response.metadata", first))
    assert len(scene.requests) == 2, "told twice"
    scene.do(created("r1"), audio("r1", "i1", 4000))
    scene.listen(400)
    scene.do(SPEECH)
    scene.listen(1000)
    assert (scene.heard_ms > 1000) == protected


def test_words_that_are_refused_are_not_replaced_by_others() -> None:
    scene = Scene(FULL).up()
    (first,) = scene.requests
    scene.do(refused("response.instructions", first))
    assert scene.requests == [first, first], "asked for once more"
    scene.do(error("invalid_value", None))
    assert scene.requests == [first, first]
    scene.do(error("invalid_value", first))
    assert scene.requests[2].response is not None
    assert "something went wrong" in scene.requests[2].response["instructions"], "told so"
