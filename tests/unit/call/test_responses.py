# SPDX-License-Identifier: GPL-2.0-or-later
"""One response at a time, against a server that starts some of its own."""

from __future__ import annotations

from collections import deque

from hypothesis import given
from hypothesis import strategies as st

from gateway.call.conversation.responses import MAX_WAITING, UNANSWERED_SECONDS, ResponseGate
from gateway.realtime.events import CreateResponse


def _wish(number: int) -> CreateResponse:
    return CreateResponse({"instructions": str(number)})


def test_one_at_a_time_in_order() -> None:
    gate = ResponseGate()
    one, two, three = _wish(1), _wish(2), _wish(3)
    assert gate.idle
    assert gate.request(one, 0.0) is one
    assert gate.request(two, 0.0) is None
    gate.created("r1")
    assert gate.request(three, 0.0) is None
    assert gate.done("r1", 1.0) is two
    gate.created("r2")
    assert gate.done("r2", 2.0) is three
    gate.created("r3")
    assert gate.done("r3", 3.0) is None
    assert gate.idle


def test_a_refused_request_is_replaced_and_keeps_its_turn() -> None:
    gate = ResponseGate()
    one, better, two = _wish(1), _wish(11), _wish(2)
    gate.request(one, 0.0)
    gate.request(two, 0.0)
    assert gate.failed(one, 1.0, better) is better
    assert gate.failed(one, 1.0, better) is None, "told twice"
    assert gate.created("r1") is better
    assert gate.done("r1", 2.0) is two


def test_done_of_another_response_changes_nothing() -> None:
    gate = ResponseGate()
    gate.created("r1")
    assert gate.request(_wish(1), 0.0) is None
    assert gate.done("other", 1.0) is None
    assert gate.active == "r1"


def test_too_many_lose_the_oldest() -> None:
    gate = ResponseGate()
    gate.created("r")
    wishes = [_wish(number) for number in range(MAX_WAITING + 3)]
    for wish in wishes:
        gate.request(wish, 0.0)
    assert gate.dropped == 3
    assert gate.done("r", 0.0) is wishes[3]


def test_requests_without_wishes_share_one_answer() -> None:
    gate = ResponseGate()
    gate.created("r")
    first = CreateResponse()
    for create in (first, CreateResponse(), _wish(1), CreateResponse()):
        assert gate.request(create, 0.0) is None
    assert gate.done("r", 0.0) is first
    gate.created("r2")
    second = gate.done("r2", 0.0)
    assert second is not None
    assert second.response == {"instructions": "1"}
    gate.created("r3")
    assert gate.done("r3", 0.0) is None
    assert gate.dropped == 0


def test_the_same_collision_told_twice_asks_once() -> None:
    gate = ResponseGate()
    wish = _wish(1)
    gate.request(wish, 0.0)
    gate.created("auto")
    gate.collided(wish, 0.0)
    gate.collided(wish, 0.0)
    gate.collided(None, 0.0)
    assert gate.done("auto", 1.0) is wish
    gate.created("r")
    assert gate.done("r", 1.0) is None


def test_deadline_of_a_request() -> None:
    gate = ResponseGate()
    gate.request(_wish(1), 5.0)
    assert gate.deadline == 5.0 + UNANSWERED_SECONDS
    gate.created("r")
    assert gate.deadline is None


class _Server:
    """Takes requests in order, refuses one while another runs, starts its own when it likes."""

    def __init__(self) -> None:
        self.wire: deque[CreateResponse] = deque()
        self.active = ""
        self.count = 0
        self.answered: list[CreateResponse] = []

    def begin(self) -> str:
        self.count += 1
        self.active = f"r{self.count}"
        return self.active


@given(st.lists(st.sampled_from(["ask", "serve", "auto", "end"]), max_size=60))
def test_every_request_is_answered_once_whatever_the_server_starts(steps: list[str]) -> None:
    gate, server = ResponseGate(), _Server()
    asked: list[CreateResponse] = []

    def send(create: CreateResponse | None) -> None:
        if create is not None:
            server.wire.append(create)

    def serve() -> None:
        if not server.wire:
            return
        create = server.wire.popleft()
        if server.active:
            gate.collided(create, 0.0)
        else:
            server.answered.append(create)
            gate.created(server.begin())

    def end() -> None:
        if server.active:
            over, server.active = server.active, ""
            send(gate.done(over, 0.0))

    for step in steps:
        if step == "ask" and len(asked) < MAX_WAITING:
            asked.append(_wish(len(asked)))
            send(gate.request(asked[-1], 0.0))
        elif step == "serve":
            serve()
        elif step == "auto" and not server.active:
            gate.created(server.begin())
        elif step == "end":
            end()
    for _ in range(3 * len(asked) + 3):
        serve()
        end()
    assert sorted(map(str, server.answered)) == sorted(map(str, asked))
    assert gate.idle
    assert gate.dropped == 0
