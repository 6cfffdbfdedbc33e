# SPDX-License-Identifier: GPL-2.0-or-later
"""One response at a time, against a server that starts some of its own."""

from __future__ import annotations

from collections import deque

from hypothesis import given
from hypothesis import strategies as st

from gateway.call.conversation.responses import MAX_WAITING, UNANSWERED_SECONDS, ResponseQueue
from gateway.realtime.events import CreateResponse


def _wish(number: int) -> CreateResponse:
    return CreateResponse({"instructions": str(number)})


def test_one_at_a_time_in_order() -> None:
    responses = ResponseQueue()
    one, two, three = _wish(1), _wish(2), _wish(3)
    assert responses.idle
    assert responses.request(one, 0.0) is one
    assert responses.request(two, 0.0) is None
    responses.on_created("r1")
    assert responses.request(three, 0.0) is None
    assert responses.on_done("r1", 1.0) is two
    responses.on_created("r2")
    assert responses.on_done("r2", 2.0) is three
    responses.on_created("r3")
    assert responses.on_done("r3", 3.0) is None
    assert responses.idle


def test_a_refused_request_is_replaced_and_keeps_its_turn() -> None:
    responses = ResponseQueue()
    one, better, two = _wish(1), _wish(11), _wish(2)
    responses.request(one, 0.0)
    responses.request(two, 0.0)
    assert responses.on_refused(one, 1.0, better) is better
    assert responses.on_refused(one, 1.0, better) is None, "told twice"
    assert responses.on_created("r1") is better
    assert responses.on_done("r1", 2.0) is two


def test_done_of_another_response_changes_nothing() -> None:
    responses = ResponseQueue()
    responses.on_created("r1")
    assert responses.request(_wish(1), 0.0) is None
    assert responses.on_done("other", 1.0) is None
    assert responses.active == "r1"


def test_too_many_lose_the_oldest() -> None:
    responses = ResponseQueue()
    responses.on_created("r")
    wishes = [_wish(number) for number in range(MAX_WAITING + 3)]
    for wish in wishes:
        responses.request(wish, 0.0)
    assert responses.dropped == 3
    assert responses.on_done("r", 0.0) is wishes[3]


def test_requests_without_wishes_share_one_answer() -> None:
    responses = ResponseQueue()
    responses.on_created("r")
    first = CreateResponse()
    for create in (first, CreateResponse(), _wish(1), CreateResponse()):
        assert responses.request(create, 0.0) is None
    assert responses.on_done("r", 0.0) is first
    responses.on_created("r2")
    second = responses.on_done("r2", 0.0)
    assert second is not None
    assert second.response == {"instructions": "1"}
    responses.on_created("r3")
    assert responses.on_done("r3", 0.0) is None
    assert responses.dropped == 0


def test_the_same_collision_told_twice_asks_once() -> None:
    responses = ResponseQueue()
    wish = _wish(1)
    responses.request(wish, 0.0)
    responses.on_created("auto")
    responses.on_collision(wish, 0.0)
    responses.on_collision(wish, 0.0)
    responses.on_collision(None, 0.0)
    assert responses.on_done("auto", 1.0) is wish
    responses.on_created("r")
    assert responses.on_done("r", 1.0) is None


def test_deadline_of_a_request() -> None:
    responses = ResponseQueue()
    responses.request(_wish(1), 5.0)
    assert responses.deadline == 5.0 + UNANSWERED_SECONDS
    responses.on_created("r")
    assert responses.deadline is None


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
    responses, server = ResponseQueue(), _Server()
    asked: list[CreateResponse] = []

    def send(create: CreateResponse | None) -> None:
        if create is not None:
            server.wire.append(create)

    def serve() -> None:
        if not server.wire:
            return
        create = server.wire.popleft()
        if server.active:
            responses.on_collision(create, 0.0)
        else:
            server.answered.append(create)
            responses.on_created(server.begin())

    def end() -> None:
        if server.active:
            over, server.active = server.active, ""
            send(responses.on_done(over, 0.0))

    for step in steps:
        if step == "ask" and len(asked) < MAX_WAITING:
            asked.append(_wish(len(asked)))
            send(responses.request(asked[-1], 0.0))
        elif step == "serve":
            serve()
        elif step == "auto" and not server.active:
            responses.on_created(server.begin())
        elif step == "end":
            end()
    for _ in range(3 * len(asked) + 3):
        serve()
        end()
    assert sorted(map(str, server.answered)) == sorted(map(str, asked))
    assert responses.idle
    assert responses.dropped == 0
