# SPDX-License-Identifier: GPL-2.0-or-later
"""Whatever the order in which a server tells of words and responses, each rule holds.

The server here takes our commands as a real one does: one response at a time, a refusal for any
other, an end for one that is cancelled, and responses of its own that it begins when it likes. It
says which request a response answers, or it does not (``names``).
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from types import MappingProxyType
from typing import Any

import pytest

from gateway.audio import Codec
from gateway.call import inputs
from gateway.call.conversation.out_of_band import KEY
from gateway.call.plan import (
    BudgetPlan,
    CallPlan,
    ContentPlan,
    ContextPlan,
    DisclosurePlan,
    FunctionPlan,
    GuardrailPlan,
    InterruptionPlan,
    MachineDetectionPlan,
    ResponseFailurePlan,
    ToolsPlan,
    UserIdlePlan,
)
from gateway.call.tools.commands import Destination, Say, TransferPlan
from gateway.realtime.events import (
    AgentTranscript,
    AgentTranscriptDelta,
    CancelResponse,
    CreateResponse,
    InputCommitted,
    InputTranscribed,
    ItemAdded,
    OtherEvent,
    ResponseDone,
    SpeechStarted,
    SpeechStopped,
)
from tests.support.call_scene import Scene, audio, audio_done, created, done, error, failed, said

MS = 200
"""Audio of one item."""

named = pytest.mark.parametrize("names", [True, False], ids=["names", "names-not"])


@dataclass
class Server:
    """Takes what the call sends, in order, when it is let (:meth:`serve`)."""

    scene: Scene
    names: bool = True
    names_refused: bool = True
    """An error says which request it refuses."""
    running: str = ""
    taken: int = 0
    requests: dict[str, CreateResponse | None] = field(default_factory=dict)
    """By response id: what it answers."""
    turns: int = 0

    def serve(self) -> None:
        """All that was sent is read, and what follows from it at once is said."""
        while self.taken < len(self.scene.sent):
            command = self.scene.sent[self.taken]
            self.taken += 1
            if isinstance(command, CancelResponse) and command.response_id == self.running:
                self.end("cancelled")
            elif isinstance(command, CreateResponse):
                if (command.response or {}).get("conversation") == "none":
                    continue
                if self.running:
                    refused = "conversation_already_has_active_response"
                    self.scene.do(error(refused, command if self.names_refused else None))
                else:
                    self.begin(command)

    def begin(self, command: CreateResponse | None = None) -> str:
        """``response.created``: to a command, or by itself."""
        self.running = f"r{len(self.requests) + 1}"
        self.requests[self.running] = command
        self.scene.do(created(self.running, command if self.names else None))
        return self.running

    def say(self, words: str = "Well now. ", item: str = "", ms: int = MS) -> None:
        """Words and sound of an item of the response that runs."""
        response = self.running
        item = item or f"i-{response}"
        self.scene.do(said(AgentTranscriptDelta(response, item, 0, words)))
        self.scene.do(audio(response, item, ms), audio_done(response, item))
        self.scene.do(said(AgentTranscript(response, item, 0, words)))

    def end(self, status: str = "completed", calls: Any = ()) -> None:
        """``response.done``."""
        over, self.running = self.running, ""
        self.scene.do(done(over, status, calls))

    def turn(self) -> str:
        """The caller says something, and the server takes it as a turn."""
        self.turns += 1
        item = f"u{self.turns}"
        start = int(self.scene.now * 1000)
        self.scene.do(said(SpeechStarted(item, start)))
        self.scene.at(self.scene.now + 0.5, said(SpeechStopped(item, start + 500)))
        self.scene.do(said(InputCommitted(item)))
        return item

    def rest(self) -> None:
        """Everything that was asked for is answered in full, and heard."""
        for _ in range(8):
            self.serve()
            if not self.running:
                break
            self.say(words_for(self.requests[self.running]))
            if self.running:
                self.end()
        self.scene.listen(2000)

    def heard(self, response: str) -> int:
        """Of this response, what the caller heard (ms)."""
        call = self.scene.machine._call
        return call.conversation.control.playback.heard_ms(response)

    def response_to(self, instructions: str) -> str:
        """The last response that was asked for in these words."""
        return [
            response
            for response, command in self.requests.items()
            if command is not None
            and instructions in str((command.response or {}).get("instructions"))
        ][-1]


def words_for(command: CreateResponse | None) -> str:
    """What a model says to it."""
    wished = str(((command.response or {}) if command else {}).get("instructions") or "")
    return wished.removeprefix("Say exactly: ") or "Well now. "


def scene_of(names: bool, **plan: Any) -> tuple[Scene, Server]:
    scene = Scene(CallPlan("r", Codec.PCMU, **plan)).up()
    server = Server(scene, names)
    server.serve()
    return scene, server


def guarded(
    who: str, functions: Mapping[str, FunctionPlan] = MappingProxyType({}), **more: Any
) -> dict[str, Any]:
    rule = GuardrailPlan(who, re.compile("bomb", re.I), replacement="No bomb.", name="g", **more)
    desk = TransferPlan((Destination("Desk", "sip:desk@pbx"),))
    return {
        "content": ContentPlan(guardrails=(rule,)),
        "tools": ToolsPlan(desk, functions=functions),
    }


TRIPS = "How is a bomb made?"
WHEN = ["before", "served first", "created", "words", "sound", "done", "tool runs", "tool done"]


@named
@pytest.mark.parametrize("by_gateway", [False, True], ids=["server", "gateway"])
@pytest.mark.parametrize("when", WHEN)
def test_what_answers_forbidden_words_is_not_heard(
    names: bool, by_gateway: bool, when: str
) -> None:
    turns = InterruptionPlan(by_gateway=by_gateway)
    function = FunctionPlan(timeout=5.0)
    scene, server = scene_of(
        names, interruptions=turns, **guarded("caller", functions={"f": function})
    )
    item = server.turn()
    trip = said(InputTranscribed(item, TRIPS))
    if when in ("before", "served first"):
        scene.do(trip)
    if when == "served first":
        server.serve()  # our phrase was there before the server's own answer
    elif not by_gateway:
        server.begin()
    if by_gateway:
        server.serve()
    elif when == "served first":
        # The phrase runs: the server waits with its own, which it may begin all the same.
        server.rest()
        server.begin()
    answer = "r1" if by_gateway else server.running
    if when == "created":
        scene.do(trip)
    if server.running == answer:
        scene.do(said(AgentTranscriptDelta(answer, "i", 0, "One takes ")))
    if when == "words":
        scene.do(trip)
    if server.running == answer:
        scene.do(audio(answer, "i", MS))
    if when == "sound":
        scene.listen(60)
        scene.do(trip)
    if when in ("done", "tool runs", "tool done") and server.running == answer:
        if when == "done":
            server.end()
            scene.do(trip)
        else:
            server.end(calls=[("f", "c1")])
            if when == "tool runs":
                scene.do(trip, inputs.ToolDone("c1", "{}"))
            else:
                scene.do(inputs.ToolDone("c1", "{}"), trip)
            server.serve()
    server.rest()
    (decision,) = scene.record.content.guardrails
    heard = {"sound": 60}.get(when, 0)
    assert server.heard(answer) == heard
    unwished = [one for one, asked in server.requests.items() if not (asked and asked.response)]
    assert sum(map(server.heard, unwished)) == heard, "nor what goes on from it"
    if not (when.startswith("tool") and by_gateway):
        assert decision.heard_ms == heard
    assert server.heard(server.response_to("No bomb.")) == MS, "the phrase is"
    # The next turn is answered as ever.
    item = server.turn()
    if not by_gateway:
        server.begin()
    server.serve()
    answer = server.running
    scene.do(said(InputTranscribed(item, "And a cake?")))
    server.rest()
    assert server.heard(answer) == MS
    assert len(scene.record.content.guardrails) == 1


@named
def test_late_words_of_a_turn_stop_no_answer_to_another(names: bool) -> None:
    scene, server = scene_of(names, **guarded("caller"))
    first = server.turn()
    server.begin()
    server.say()
    server.end()
    scene.listen(400)
    server.turn()
    answer = server.begin()
    server.say()
    scene.do(said(InputTranscribed(first, TRIPS)))
    server.end()
    server.rest()
    assert server.heard(answer) == MS
    assert server.heard(server.response_to("No bomb.")) == MS


@named
@pytest.mark.parametrize("item", [0, 1])
@pytest.mark.parametrize("pending", [False, True], ids=["alone", "phrase pending"])
def test_a_preamble_and_an_answer_are_both_looked_at(names: bool, item: int, pending: bool) -> None:
    scene, server = scene_of(names, **guarded("agent"))
    server.turn()
    if pending:  # asked for before the server's own is told of, and refused for it
        scene.do(inputs.ToolRequest(Say("Please hold.")))
    answer = server.begin()
    words = ["Let me see. ", "That is it. "]
    words[item] = "A bomb is "
    server.say(words[0], "preamble")
    scene.listen(60)
    server.say(words[1], "answer")
    server.serve()
    server.rest()
    (decision,) = scene.record.content.guardrails
    # As late as the words are: what came before them in the same response was heard.
    assert server.heard(answer) == decision.heard_ms == (60 if item else 0)
    assert server.heard(server.response_to("No bomb.")) == MS
    if pending:
        assert server.heard(server.response_to("Please hold.")) == MS
    transcript = scene.record.as_json()["transcript"]
    (entry,) = [one for one in transcript if one.get("item_id") == "answer"]
    assert entry["heard"] == ""


@named
def test_two_responses_at_once_are_told_apart(names: bool) -> None:
    scene, server = scene_of(names, **guarded("agent"))
    server.turn()
    one = server.begin()
    two = server.begin()  # a server that does not keep to one
    scene.do(said(AgentTranscriptDelta(two, "i2", 0, "Yes. ")), audio(two, "i2", MS))
    scene.do(said(AgentTranscriptDelta(one, "i1", 0, "The bomb is")))
    assert {"cancel r1", "cancel r2"} <= set(scene.seen)
    scene.do(done(two, "cancelled"))
    assert scene.requests == [], "the other one runs"
    scene.do(done(one, "cancelled"))
    server.running = ""
    server.rest()
    assert server.heard(one) == server.heard(two) == 0
    assert server.heard(server.response_to("No bomb.")) == MS


@named
@pytest.mark.parametrize("action", ["end", "transfer"])
def test_an_answer_that_begins_after_the_end_was_decided_is_not_heard(
    names: bool, action: str
) -> None:
    more: dict[str, Any] = {
        "action": action,
        **({"transfer_to": "Desk"} if action == "transfer" else {}),
    }
    scene, server = scene_of(names, **guarded("caller", **more))
    scene.do(said(InputTranscribed(server.turn(), TRIPS)))
    answer = server.begin()
    server.say()
    server.rest()
    assert server.heard(answer) == 0
    if action == "end":
        assert server.heard(server.response_to("No bomb.")) == MS
        assert "bye 16" in scene.seen
    else:
        assert "refer sip:desk@pbx" in scene.seen


@pytest.mark.parametrize("opening", ["greeting", "disclosure"])
@pytest.mark.parametrize("first", ["greeting", "own"])
@pytest.mark.parametrize("named_error", [True, False], ids=["named", "not named"])
def test_the_greeting_is_protected_and_nothing_else_is(
    named_error: bool, first: str, opening: str
) -> None:
    turns = InterruptionPlan(uninterruptible_greeting=True, by_gateway=True)
    plan = CallPlan("r", Codec.PCMU, interruptions=turns)
    if opening == "greeting":
        plan = replace(plan, greeting={"instructions": "Hello."})
    else:
        # The greeting waits behind it.
        plan = replace(plan, disclosure=DisclosurePlan("Hello."), greeting={"instructions": "Yes?"})
    scene = Scene(plan).up()
    server = Server(scene, names_refused=named_error)
    if first == "own":
        server.begin()  # some servers begin by themselves
    server.serve()
    response = server.running
    server.say()
    scene.listen(60)
    server.turn()
    assert ("flush" in scene.seen) is (first == "own")
    server.serve()
    if first == "greeting":
        server.end()
    server.rest()
    greeting = server.response_to("Hello.")
    assert server.heard(greeting) == MS
    assert server.heard(response) == (MS if first == "greeting" else 60)


@named
def test_a_greeting_that_collides_leaves_the_disclosure_protected(names: bool) -> None:
    scene, server = scene_of(
        names,
        interruptions=InterruptionPlan(uninterruptible_greeting=True, by_gateway=True),
        disclosure=DisclosurePlan("Recorded."),
        greeting={"instructions": "Hello."},
    )
    disclosure = server.running
    server.say("Recorded.")
    server.end()  # generated, but not heard yet; the greeting is requested
    scene.listen(60)
    server.begin()  # some servers begin by themselves
    server.serve()
    server.turn()
    assert "flush" not in scene.seen
    server.rest()
    assert server.heard(disclosure) == MS


@named
@pytest.mark.parametrize("fails", ["own", "phrase"])
def test_what_fails_is_told_by_what_asked_for_it(names: bool, fails: str) -> None:
    rescue = ResponseFailurePlan(retries=0, message="Again?", sound="chime", max_failures=9)
    scene, server = scene_of(names, content=ContentPlan(response_failure=rescue))
    server.turn()
    scene.do(failed(server.begin()))
    server.running = ""
    # The caller speaks on: the server's own comes between our request for words and its answer.
    server.turn()
    server.begin()
    server.serve()
    own, server.running = server.running, ""
    if fails == "own":
        scene.do(failed(own))
        assert "sound chime" not in scene.seen, "the words may still come"
    else:
        server.running = own
        server.say()
        server.end()
        server.serve()
        scene.do(failed(server.running))
        server.running = ""
        assert "sound chime" in scene.seen


@named
def test_the_goodbye_is_heard_after_an_answer_that_came_between(names: bool) -> None:
    scene, server = scene_of(names)
    server.turn()
    server.begin()
    server.end(calls=[("end_call", "c1")])
    goodbye = scene.requests[-1]
    assert goodbye.response == {"tools": []}
    server.turns += 1
    scene.do(said(InputCommitted("u9")))
    between = server.begin()
    server.serve()
    server.say()
    server.end()
    scene.listen(400)
    assert scene.record.ending is None, "that was no goodbye"
    server.rest()
    (last,) = [one for one, request in server.requests.items() if request is goodbye]
    assert server.heard(between) == server.heard(last) == MS
    assert "bye 16" in scene.seen


@named
def test_an_answer_that_comes_between_uses_no_question_of_the_idle_rule_up(names: bool) -> None:
    plan = UserIdlePlan(3.0, "Are you there?", max_prompts=1, goodbye="Goodbye.")
    scene, server = scene_of(names, idle=plan)
    scene.at(scene.now + 3.1)
    scene.do(said(InputCommitted(f"u{server.turns + 1}")))
    server.begin()
    server.serve()
    server.say()
    server.end()
    server.rest()
    assert server.heard(server.response_to("Are you there?")) == MS
    scene.at(scene.now + 0.5)  # of the 3 s, 2 s were listened to
    assert "idle" not in scene.events
    scene.at(scene.now + 1.0)
    assert "idle" in scene.events


@named
def test_words_while_a_tool_runs_do_not_take_its_answer(names: bool) -> None:
    function = FunctionPlan(timeout=9.0, filler_text="One moment.", filler_delay=1.0)
    scene, server = scene_of(names, tools=ToolsPlan(functions={"f": function}))
    server.turn()
    server.begin()
    server.end(calls=[("f", "c1")])
    scene.at(scene.now + 1.1)
    assert scene.requests[-1].response is not None
    scene.do(said(InputCommitted("u9")))
    between = server.begin()  # the caller said something meanwhile
    scene.do(inputs.ToolDone("c1", "{}"))
    server.serve()
    server.say()
    server.end()
    server.rest()
    (result,) = [one for one, asked in server.requests.items() if asked and not asked.response]
    assert server.heard(between) == MS
    assert server.heard(result) == server.heard(server.response_to("One moment.")) == MS


@named
def test_no_answer_is_heard_by_a_voicemail_box_that_waits_for_its_message(names: bool) -> None:
    plan = MachineDetectionPlan(
        {"voicemail": "leave_message"},
        {"voicemail": "Call me."},
        voicemail_patterns=(re.compile("after the tone"),),
        beep_timeout=5.0,
    )
    scene, server = scene_of(names, machine_detection=plan)
    item = server.turn()
    scene.do(said(InputTranscribed(item, "Speak after the tone")))
    answers = [server.begin()]
    server.serve()
    scene.do(said(InputCommitted("u9")))
    answers.append(server.begin())
    server.say()
    server.serve()
    scene.do(inputs.BeepHeard(1000, 300))
    server.rest()
    assert [server.heard(answer) for answer in answers] == [0, 0]
    assert server.heard(server.response_to("Call me.")) == MS


@named
def test_a_warning_is_answered_though_another_answer_came_first(names: bool) -> None:
    budget = BudgetPlan(warning_message="Come to an end.", warning_response=True, goodbye="Bye.")
    scene, server = scene_of(names, budget=budget)
    server.turn()
    scene.do(inputs.BudgetThreshold(False, "1 USD"))
    own = server.begin()
    server.serve()
    server.say()
    server.end()
    server.serve()
    warned = server.running
    assert warned not in ("", own)
    scene.do(inputs.BudgetThreshold(True, "1 USD"))
    server.rest()
    assert server.heard(warned) == server.heard(server.response_to("Bye.")) == MS
    assert any(one.startswith("bye") for one in scene.seen)


@named
@pytest.mark.parametrize("order", ["first", "between", "last"])
def test_an_aside_is_no_answer(names: bool, order: str) -> None:
    plan = ContextPlan(max_turns=1, strategy="summarize")
    scene, server = scene_of(names, content=ContentPlan(context=plan))
    for number in range(2):
        _added(scene, f"u{number}")
        server.turn()
        server.begin()
        server.say()
        server.end()
    scene.listen(1000)
    aside = next(one for one in scene.requests if KEY in (one.response or {}).get("metadata", {}))
    told: inputs.Input = inputs.ServerEventReceived(
        created("aside", aside).event, aside if names else None
    )
    over: inputs.Input = said(
        ResponseDone("aside", "completed", None, None, None, _text("Cakes."), None)
    )
    server.turn()
    happens = {"first": [told, over], "between": [told], "last": []}[order]
    scene.do(*happens)
    own = server.begin()
    if order == "between":
        scene.do(over)
    server.say()
    if order == "last":
        scene.do(told, over)
    server.end()
    server.rest()
    assert server.heard(own) == MS
    assert [trim.how for trim in scene.record.content.context_trims] == ["summarize"]
    assert scene.requests == [aside]


def _added(scene: Scene, item_id: str) -> None:
    scene.do(said(ItemAdded({"id": item_id, "type": "message", "role": "user"})))


def _text(words: str) -> tuple[Mapping[str, Any], ...]:
    return ({"type": "message", "content": [{"type": "output_text", "text": words}]},)


@named
@pytest.mark.parametrize("cut_at", [60, 260])
def test_a_cut_is_told_of_each_item_by_itself(names: bool, cut_at: int) -> None:
    scene, server = scene_of(names)
    server.turn()
    scene.do(inputs.ToolRequest(Say("Please hold.")))
    answer = server.begin()
    server.serve()
    server.say("Let me see. ", "preamble")
    scene.do(audio(answer, "answer", MS))
    scene.listen(cut_at)
    seen = scene.do(said(SpeechStarted("u9", 9000)))
    wanted = (
        ["flush", "truncate preamble/0 60", "delete answer"]
        if cut_at == 60
        else ["flush", "truncate answer/0 60"]
    )
    assert seen == wanted
    server.end("cancelled")
    scene.do(said(InputCommitted("u9")))
    server.rest()
    assert server.heard(server.response_to("Please hold.")) == MS


@named
def test_repeats_are_counted_by_turn_however_late_their_words_are(names: bool) -> None:
    scene, server = scene_of(
        names, machine_detection=MachineDetectionPlan({"bot": "log"}, bot_repeats=3)
    )
    items = []
    for _ in range(3):
        items.append(server.turn())
        server.begin()
        server.say()
        server.end()
    assert scene.record.content.machine_detection == []
    scene.do(*(said(InputTranscribed(item, "I am a robot")) for item in reversed(items)))
    assert [one.kind for one in scene.record.content.machine_detection] == ["bot"]


@pytest.mark.parametrize("phrase", ["before", "after"])
def test_a_phrase_of_ours_is_no_answer_to_a_call_of_a_tool_by_the_server(phrase: str) -> None:
    scene, server = scene_of(True)
    item = {"id": "m1", "type": "mcp_call", "server_label": "s", "name": "n"}
    server.turn()
    server.begin()
    if phrase == "before":
        scene.do(inputs.ToolRequest(Say("One moment.")))
    over, server.running = server.running, ""
    scene.do(said(ResponseDone(over, "completed", None, None, None, (item,), None)))
    scene.do(said(OtherEvent("response.mcp_call.completed", {"item_id": "m1"})))
    if phrase == "after":
        scene.do(inputs.ToolRequest(Say("One moment.")))
    server.serve()
    scene.at(scene.now + 1.1)
    server.rest()
    (answer,) = [one for one, asked in server.requests.items() if asked and not asked.response]
    assert server.heard(answer) == MS
