# SPDX-License-Identifier: GPL-2.0-or-later
"""A long conversation is kept in bounds."""

from __future__ import annotations

from typing import Any

import pytest

from gateway.audio import Codec
from gateway.call.conversation.out_of_band import KEY
from gateway.call.inputs import SessionReady
from gateway.call.plan import (
    CallPlan,
    ContentPlan,
    ContextPlan,
    FallbackStep,
    LimitsPlan,
    ServerPlan,
)
from gateway.realtime.events import (
    CreateItem,
    DeleteItem,
    InputCommitted,
    InputTranscribed,
    ItemAdded,
    ItemDeleted,
    ResponseCreated,
    ResponseDone,
)
from tests.support.call_scene import Scene, audio, closed, created, done, said


class Server:
    """The items of a session, as its server keeps them."""

    def __init__(self, keep: ContextPlan) -> None:
        plan = CallPlan(
            "r",
            Codec.PCMU,
            server=ServerPlan(fallback=(FallbackStep("reconnect", 10.0, "chime"),)),
            limits=LimitsPlan(rtp_timeout=0),
            content=ContentPlan(context=keep),
        )
        self.scene = Scene(plan).up()
        self.items: list[str] = []
        self._taken = 0
        self.most = 0

    def add(self, **item: Any) -> None:
        self.items.append(item["id"])
        self.scene.do(said(ItemAdded(item)))

    def turn(self, number: int) -> None:
        self.scene.do(said(InputCommitted(f"u{number}")))
        self.add(id=f"u{number}", type="message", role="user")
        self.scene.do(said(InputTranscribed(f"u{number}", f"Turn {number}.")))
        self.scene.do(created(f"r{number}"))
        self.add(id=f"a{number}", type="message", role="assistant")
        self.scene.do(audio(f"r{number}", f"a{number}", 20))
        self.scene.at(self.scene.now + 1.0, done(f"r{number}"))
        self.settle()
        self.most = max(self.most, len(self.items))

    def settle(self) -> None:
        """Do what was sent."""
        sent, self._taken = self.scene.sent[self._taken :], len(self.scene.sent)
        for command in sent:
            if isinstance(command, DeleteItem):
                assert command.item_id in self.items
                self.items.remove(command.item_id)
                self.scene.do(said(ItemDeleted(command.item_id)))
            elif isinstance(command, CreateItem) and command.after == "root":
                self.items.insert(0, command.item["id"])
                self.scene.do(said(ItemAdded(command.item)))

    def summarise(self, text: str, status: str = "completed") -> None:
        key = (self.scene.requests[-1].response or {})["metadata"][KEY]
        output = ({"type": "message", "content": [{"type": "output_text", "text": text}]},)
        self.scene.do(
            said(ResponseCreated("side", {KEY: key})),
            said(ResponseDone("side", status, None, None, None, output, None)),
        )
        self.settle()


def test_old_turns_are_deleted_in_a_call_of_hundreds() -> None:
    server = Server(ContextPlan(max_turns=10))
    server.add(id="notice", type="message", role="system")
    for number in range(300):
        server.turn(number)
    assert server.most <= 2 * 16 + 1
    assert server.items[0] == "notice", "system messages stay"
    assert server.items[-2:] == ["u299", "a299"]
    record = server.scene.record.as_json()
    assert (
        sum(trim["turns"] for trim in record["context_trims"]) == 300 - (len(server.items) - 1) // 2
    )
    assert "context_trimmed" in server.scene.events
    told = [one["text"] for one in record["transcript"] if one["who"] == "caller"]
    assert told == [f"Turn {number}." for number in range(300)], "the record has all of it"


def test_a_result_goes_with_its_call() -> None:
    server = Server(ContextPlan(max_turns=2))
    server.turn(0)
    server.add(id="c", type="function_call", call_id="k")
    server.turn(1)
    server.add(id="o", type="function_call_output", call_id="k")
    server.turn(2)
    assert server.items == ["u1", "a1", "u2", "a2"]


@pytest.mark.parametrize(("turns", "most"), [(1, 2), (2, 3), (3, 4), (4, 6), (10, 15)])
def test_they_go_when_there_are_half_as_many_again(turns: int, most: int) -> None:
    server = Server(ContextPlan(max_turns=turns))
    for number in range(most - 1):
        server.turn(number)
    assert server.scene.record.content.context_trims == []
    server.turn(most - 1)
    assert [trim.turns for trim in server.scene.record.content.context_trims] == [most - turns]
    assert len(server.items) == 2 * turns


def test_a_summary_takes_their_place_and_the_next_one_takes_its_place() -> None:
    server = Server(ContextPlan(max_turns=2, strategy="summarize", instructions="Sum up."))
    for number in range(3):
        server.turn(number)
    response = server.scene.requests[-1].response
    assert response is not None
    assert response["instructions"] == "Sum up."
    assert [one["id"] for one in response["input"]] == ["u0", "a0"]
    assert len(server.items) == 6, "nothing goes before the summary is there"
    server.summarise("They want a room.")
    assert server.items == ["item_gw_summary_1", "u1", "a1", "u2", "a2"]
    server.turn(3)
    server.summarise("They want a room, for two.")
    assert server.items == ["item_gw_summary_2", "u2", "a2", "u3", "a3"]
    trims = server.scene.record.as_json()["context_trims"]
    assert [(trim["how"], trim["turns"]) for trim in trims] == [("summarize", 1), ("summarize", 1)]


def test_without_a_summary_they_are_deleted() -> None:
    server = Server(ContextPlan(max_turns=2, strategy="summarize", timeout=15.0))
    for number in range(3):
        server.turn(number)
    server.scene.at(server.scene.now + 15.1)
    server.settle()
    assert server.items == ["u1", "a1", "u2", "a2"]
    assert [one.how for one in server.scene.record.content.context_trims] == ["delete"]
    assert [one.status for one in server.scene.record.content.out_of_band] == ["late"]


def test_the_answer_beside_is_nobody_elses_business() -> None:
    """While it runs, an answer of the conversation is asked for as if it were not there."""
    server = Server(ContextPlan(max_turns=2, strategy="summarize"))
    for number in range(3):
        server.turn(number)
    scene = server.scene
    key = (scene.requests[-1].response or {})["metadata"][KEY]
    scene.do(said(ResponseCreated("side", {KEY: key})))
    assert scene.do(created("r9"), done("r9", "failed")) == ["create"], "r9 is seen to"
    scene.do(said(ResponseDone("side", "failed", None, None, "No.", (), None)))
    assert scene.requests[-1].response is None, "a failed one beside is not told to the caller"
    assert scene.record.content.out_of_band[0].status == "failed"


@pytest.mark.parametrize("session_id", ["sess_2", "sess_1"])
def test_a_late_summary_of_a_lost_session_deletes_nothing_of_the_next(session_id: str) -> None:
    """Also where a server gives its sessions one id, and their items the same ones."""
    server = Server(ContextPlan(max_turns=2, strategy="summarize", timeout=15.0))
    for number in range(3):
        server.turn(number)
    server.scene.do(closed(1011, "oops"), SessionReady(session_id))
    server.scene.at(server.scene.now + 15.1)
    server.items.clear()
    for number in range(2):
        server.turn(number)
    assert server.items == ["u0", "a0", "u1", "a1"]
    assert server.scene.record.content.context_trims == []


def test_a_late_summary_of_a_lost_session_does_not_ask_for_another() -> None:
    server = Server(ContextPlan(max_turns=2, strategy="summarize", timeout=3.5))
    for number in range(3):
        server.turn(number)
    server.scene.do(closed(1011, "oops"))
    server.scene.do(SessionReady("sess_2"))
    server.items.clear()
    for number in range(3, 7):
        server.turn(number)
    kept = server.scene.record.content.out_of_band
    assert [(one.key, one.status == "late") for one in kept] == [
        ("summary-1", True),
        ("summary-2", False),
    ]
