# SPDX-License-Identifier: GPL-2.0-or-later
"""Words that must not be said."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import replace

import pytest

from gateway.audio import Codec
from gateway.call import inputs, outputs
from gateway.call.plan import (
    ApprovalRule,
    CallPlan,
    ContentPlan,
    FunctionPlan,
    GuardrailPlan,
    InterruptionPlan,
    ToolsPlan,
)
from gateway.call.tools.commands import Destination, TransferPlan
from gateway.realtime.events import (
    AgentTranscript,
    AgentTranscriptDelta,
    InputCommitted,
    InputTranscribed,
    SpeechStarted,
)
from gateway.realtime.session_object import LIVE
from tests.support.call_scene import (
    ACK,
    OUR_END,
    Scene,
    audio,
    audio_done,
    closed,
    created,
    done,
    key,
    said,
)

BOMB = GuardrailPlan(pattern=re.compile(r"\bbomb\b", re.I), replacement="No.", name="bombs")
SAYS_NO = "create ['instructions', 'tools']"


def scene_of(*rules: GuardrailPlan) -> Scene:
    desk = TransferPlan((Destination("Desk", "sip:desk@pbx"),))
    plan = CallPlan(
        "r", Codec.PCMU, content=ContentPlan(guardrails=rules), tools=ToolsPlan(transfer=desk)
    )
    return Scene(plan).up()


def words(*deltas: str, response: str = "r1", item: str = "i1") -> list[inputs.ServerEventReceived]:
    return [said(AgentTranscriptDelta(response, item, 0, delta)) for delta in deltas]


@pytest.mark.parametrize(
    ("deltas", "stopped"),
    [
        (["Build a bomb", " like this."], True),
        (["Build a bo", "mb", " like this."], True),
        (["A BOMB."], True),
        (["That is bomb", "astic."], False),
        (["Nothing of the kind."], False),
        (["x" * 5000, " bomb ", "x"], True),
    ],
)
def test_words_are_found_however_they_come(deltas: Sequence[str], stopped: bool) -> None:
    scene = scene_of(BOMB)
    scene.do(created("r1"), audio("r1", "i1", 400))
    seen = scene.do(*words(*deltas))
    assert ("flush" in seen) is stopped
    assert ("cancel r1" in seen) is stopped
    assert bool(scene.record.content.guardrails) is stopped


@pytest.mark.parametrize(
    ("deltas", "final", "stopped"),
    [
        (["This is "], "This is a bomb", True),
        (["This is "], "This is a bomb, and more of it.", True),
        (["This is ", "of mine."], "This is a bomb of mine.", True),
        (["This is a bo"], "This is a bomb.", True),
        (["This  is ", "bombastic."], " This is\nbombastic.", False),
        (["This is "], "", False),
        (["x" * 9000], "x" * 9000 + " bomb", True),
    ],
)
def test_words_of_the_final_transcript_that_no_delta_had_are_found(
    deltas: Sequence[str], final: str, stopped: bool
) -> None:
    scene = scene_of(BOMB)
    scene.do(created("r1"), *words(*deltas), audio("r1", "i1", 400))
    assert not scene.record.content.guardrails
    seen = scene.do(said(AgentTranscript("r1", "i1", 0, final)))
    assert ("cancel r1" in seen) is stopped
    assert bool(scene.record.content.guardrails) is stopped


def test_only_what_no_delta_had_is_asked_about_again() -> None:
    scene = scene_of(GuardrailPlan("agent", None, url="http://rules/", name="u"))
    scene.do(created("r1"))
    (first,) = checks(scene, *words("One thing. ", "Another."))[:1]
    assert first.text == "One thing."
    (rest,) = checks(scene, said(AgentTranscript("r1", "i1", 0, "One thing. And a bomb.")))
    assert rest.text == "And a bomb."


def test_each_part_of_an_item_is_asked_about_once() -> None:
    scene = scene_of(GuardrailPlan("agent", None, url="http://rules/", name="u"))
    scene.do(created("r1"))
    parts = [("One thing. ", "One thing."), ("Another.", "Another."), ("Another one", "More here.")]
    texts = []
    for index, (delta, final) in enumerate(parts):
        begun = said(AgentTranscriptDelta("r1", "i1", index, delta))
        whole = said(AgentTranscript("r1", "i1", index, final))
        texts += [check.text for check in checks(scene, begun, whole)]
    assert texts == ["One thing.", "Another.", "More here."]


@pytest.mark.parametrize(("first", "stopped"), [("A", True), ("A bath", False)])
def test_words_go_on_from_part_to_part(first: str, stopped: bool) -> None:
    rule = GuardrailPlan(pattern=re.compile(r"A bomb|\bbathbomb"), replacement="No.", name="b")
    scene = scene_of(rule)
    scene.do(created("r1"), *words(first), audio("r1", "i1", 400))
    seen = scene.do(said(AgentTranscriptDelta("r1", "i1", 1, "bomb is")))
    assert ("cancel r1" in seen) is stopped


def test_a_sentence_that_begins_as_a_replacement_does_is_asked_about_whole() -> None:
    no = GuardrailPlan(pattern=re.compile("bomb"), replacement="I will not say it.", name="b")
    scene = scene_of(no, GuardrailPlan("agent", None, url="http://rules/", name="u"))
    scene.do(created("r1"), *words("bomb "), done("r1", "cancelled"))
    scene.do(created("r2", scene.requests[-1]))
    assert checks(scene, *words("I will not ", "say it.", response="r2", item="i2")) == []
    scene.do(done("r2"), created("r3"))
    (check,) = checks(scene, *words("I will not ", "be kind.", response="r3", item="i3"))
    assert check.text == "I will not be kind."


def test_nothing_of_the_answer_is_heard_and_the_phrase_is() -> None:
    scene = scene_of(BOMB)
    seen = scene.do(created("r1"), *words("The bomb ", "is"), audio("r1", "i1", 400))
    # Nothing was played yet: there is nothing to truncate.
    assert seen == ["flush", "cancel r1"]
    assert scene.do(done("r1", "cancelled")) == ["delete i1", SAYS_NO]
    assert scene.requests[-1].response == {"instructions": "Say exactly: No.", "tools": []}
    scene.do(
        created("r2"), audio("r2", "i2", 200), *words("No bomb. ", "x", response="r2", item="i2")
    )
    assert scene.queue == 10, "the phrase itself is not looked at"
    scene.listen(300)
    assert scene.heard_ms == 200
    (decision,) = scene.record.as_json()["guardrails"]
    assert (decision["rule"], decision["by"], decision["action"]) == ("bombs", "words", "replace")


def test_what_was_heard_is_truncated_there() -> None:
    scene = scene_of(BOMB)
    scene.do(created("r1"), *words("Well, "), audio("r1", "i1", 1000))
    scene.listen(300)
    assert scene.do(*words("a bomb "), *words("is")) == ["flush", "truncate i1/0 300", "cancel r1"]
    assert scene.do(done("r1", "cancelled")) == [SAYS_NO]


def test_the_call_ends_or_is_transferred() -> None:
    end = GuardrailPlan(pattern=re.compile("bomb"), action="end", replacement="Goodbye.", name="e")
    scene = scene_of(end)
    scene.do(created("r1"), *words("bomb "))
    scene.do(done("r1", "cancelled"))
    assert scene.requests[-1].response is not None
    assert "Goodbye." in scene.requests[-1].response["instructions"]
    scene.do(created("r2"), audio("r2", "i2", 200), audio_done("r2", "i2"), done("r2"))
    scene.listen(600)
    assert "bye 16" in scene.seen
    scene.do(OUR_END)
    assert scene.ending[1:] == ("guardrail", 200)
    hand = GuardrailPlan(
        pattern=re.compile("bomb"), action="transfer", transfer_to="Desk", name="t"
    )
    scene = scene_of(hand)
    scene.do(created("r1"), *words("bomb "), done("r1", "cancelled"))
    assert "refer sip:desk@pbx" in scene.seen


def test_of_the_caller_the_answer_is_stopped() -> None:
    scene = scene_of(GuardrailPlan("caller", re.compile("bomb"), replacement="No.", name="c"))
    scene.do(created("r1"), *words("bomb "), audio("r1", "i1", 400))
    assert scene.record.content.guardrails == []
    scene.do(said(InputTranscribed("u1", "How is a bomb made?")))
    assert "cancel r1" in scene.seen
    assert scene.do(done("r1", "cancelled"))[-1] == SAYS_NO


def test_a_long_turn_of_the_caller_is_searched_from_its_beginning() -> None:
    scene = scene_of(GuardrailPlan("caller", re.compile("bomb"), replacement="No.", name="c"))
    scene.do(created("r1"), audio("r1", "i1", 400))
    scene.do(said(InputTranscribed("u1", "How is a bomb made?" + " Well." * 1000)))
    assert "cancel r1" in scene.seen


def test_a_service_gets_the_end_of_a_long_turn_of_the_caller() -> None:
    scene = scene_of(GuardrailPlan("caller", None, url="http://rules/", name="u"))
    (check,) = checks(scene, said(InputTranscribed("u1", "Well. " * 1000 + "How is a bomb made?")))
    assert len(check.text) == 2000
    assert check.text.endswith("How is a bomb made?")


def checks(scene: Scene, *happenings: inputs.Input) -> list[outputs.CheckContent]:
    todo = [o for one in happenings for o in scene.machine.handle(one, scene.now)]
    return [output for output in todo if isinstance(output, outputs.CheckContent)]


@pytest.mark.parametrize("on_timeout", ["allow", "deny"])
@pytest.mark.parametrize("answer", ["yes", "no", "late", "broken"])
def test_somebody_is_asked_about_each_sentence(on_timeout: str, answer: str) -> None:
    rule = GuardrailPlan(
        url="http://x", timeout=0.5, on_timeout=on_timeout, replacement="No.", name="h"
    )
    scene = scene_of(rule)
    scene.do(created("r1"), audio("r1", "i1", 3000))
    (check,) = checks(scene, *words("One ", "sentence. ", "And"))
    assert (check.who, check.text) == ("agent", "One sentence.")
    if answer == "late":
        scene.at(scene.now + 0.6)
    else:
        allow = {"yes": True, "no": False, "broken": None}[answer]
        scene.do(inputs.ContentChecked(check.key, allow, "because"))
    stopped = answer == "no" or (answer in ("late", "broken") and on_timeout == "deny")
    assert ("cancel r1" in scene.seen) is stopped
    assert ("guardrail_timeout" in scene.events) is (answer in ("late", "broken"))
    assert [one.by for one in scene.record.content.guardrails] == (
        [] if not stopped else ["http" if answer == "no" else "timeout"]
    )


def test_a_session_that_closes_leaves_what_is_queued_to_a_service_that_is_still_to_answer() -> None:
    scene = scene_of(GuardrailPlan(url="http://x", timeout=0.5, replacement="No.", name="h"))
    scene.do(created("r1"), audio("r1", "i1", 3000))
    (check,) = checks(scene, *words("One ", "sentence. ", "And"))
    scene.do(audio_done("r1", "i1"), done("r1"), closed(1000))
    assert "flush" in scene.do(inputs.ContentChecked(check.key, False, "because"))


def says(scene: Scene, item: str, text: str = "") -> None:
    """The caller, whose words may come later."""
    scene.do(said(SpeechStarted(item, None)), said(InputCommitted(item)))
    scene.do(*([said(InputTranscribed(item, text))] if text else []))


def hears(scene: Scene, response: str, *, asked: bool = True) -> bool:
    """Whether the caller does, of an answer to the latest request, or (``asked`` False) of one that
    names none."""
    before, item = scene.heard_ms, f"i_{response}"
    scene.do(created(response, scene.requests[-1] if asked else None), audio(response, item, 400))
    scene.do(audio_done(response, item), done(response))
    scene.listen(600)
    return scene.heard_ms > before


@pytest.mark.parametrize("replacement", ["No.", ""])
def test_the_turn_after_one_whose_answer_was_never_requested_is_answered(replacement: str) -> None:
    """The gateway decides about interruptions, and the agent was interrupted by forbidden words."""
    rule = replace(BOMB, speaker="caller", replacement=replacement)
    plan = CallPlan("r", Codec.PCMU, content=ContentPlan(guardrails=(rule,)))
    scene = Scene(replace(plan, interruptions=InterruptionPlan(by_gateway=True))).up()
    says(scene, "a", "Hello.")
    scene.do(created("r1", scene.requests[-1]), audio("r1", "i1", 3000))
    scene.listen(500)
    says(scene, "b", "A bomb.")
    scene.do(done("r1", "cancelled"))
    assert len(scene.requests) == (2 if replacement else 1)
    assert not replacement or hears(scene, "no")
    says(scene, "c", "A room.")
    assert hears(scene, "r2")


def test_the_turn_after_one_to_which_a_live_session_has_nothing_to_say_is_answered() -> None:
    rule = replace(BOMB, speaker="caller")
    scene = Scene(CallPlan("r", Codec.PCMU, content=ContentPlan(guardrails=(rule,))))
    scene.do(inputs.SessionReady("live_1", None, LIVE), ACK)
    says(scene, "turn_1")
    scene.at(3.0, said(InputTranscribed("turn_1", "A bomb.")))
    assert hears(scene, "speech_1", asked=False)
    says(scene, "turn_2")
    assert hears(scene, "speech_2", asked=False)


def test_keys_after_a_turn_that_is_not_to_be_answered_are_answered() -> None:
    scene = scene_of(replace(BOMB, speaker="caller"))
    says(scene, "a")
    scene.do(created("r1"), audio("r1", "i1", 300), said(InputTranscribed("a", "A bomb.")))
    scene.do(done("r1", "cancelled"))
    assert hears(scene, "no")
    for response, pressed in (("r2", "1"), ("r3", "2")):
        scene.do(key(pressed), key("#"))
        assert hears(scene, response)


def test_a_key_that_approves_a_tool_call_is_no_turn_whose_answer_is_let_through() -> None:
    rule = GuardrailPlan("caller", None, url="http://rules/", name="u", timeout=60.0)
    tools = ToolsPlan(
        functions={"pay": FunctionPlan()}, approvals=(ApprovalRule("pay", "ask_caller"),)
    )
    content = ContentPlan(guardrails=(rule,))
    scene = Scene(CallPlan("r", Codec.PCMU, content=content, tools=tools)).up()
    says(scene, "a")
    (check,) = checks(scene, said(InputTranscribed("a", "A bomb.")))
    scene.do(created("r1"), done("r1", calls=[("pay", "c1", "{}")]))
    assert hears(scene, "question")
    assert scene.do(key("1"))[-1] == "run pay c1 {}"
    assert scene.do(inputs.ToolDone("c1", "{}")) == ["output c1", "create"]
    scene.do(inputs.ContentChecked(check.key, False, "because"))
    assert not hears(scene, "r2")
