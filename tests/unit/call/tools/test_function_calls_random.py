# SPDX-License-Identifier: GPL-2.0-or-later
"""Whatever comes in between: every call of a completed response is answered once, none else is."""

from __future__ import annotations

from collections import Counter
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from gateway.audio import Codec
from gateway.call import inputs
from gateway.call.plan import ApprovalRule, CallPlan, FunctionPlan, LimitsPlan, ToolsPlan
from gateway.call.tools.commands import CollectPlan, HoldPlan, LanguagePlan
from gateway.realtime.events import CreateItem, CreateResponse
from tests.support.call_scene import SPEECH, Scene, audio, audio_done, created, done, key


def _never(_arguments: str) -> str:
    return "no"


PLAN = CallPlan(
    "route",
    Codec.PCMU,
    tools=ToolsPlan(
        functions={
            "plain": FunctionPlan(timeout=5.0),
            "slow": FunctionPlan(timeout=9.0, filler_delay=1.0, filler_text="Wait."),
            "music": FunctionPlan(timeout=9.0, filler_delay=1.0, filler_sound="chime"),
            "picky": FunctionPlan(check=_never),
            "by_http": FunctionPlan(timeout=3.0),
            "by_caller": FunctionPlan(timeout=3.0),
            "by_nobody": FunctionPlan(approval=True),
        },
        approvals=(
            ApprovalRule("by_http", "ask_http", timeout=4.0),
            ApprovalRule("by_caller", "ask_caller", timeout=4.0),
            ApprovalRule("hold", "ask_caller", timeout=4.0),
        ),
        hold=HoldPlan(True, max_duration=5.0),
        collect_digits=CollectPlan(True, timeout=2.0),
        language=LanguagePlan({"de": "German"}, {"de": {"instructions": "x"}}),
    ),
    limits=LimitsPlan(rtp_timeout=0.0, max_call_duration=36000.0),
)
ARGUMENTS = {"hold": '{"seconds": 3}', "set_language": '{"language": "de"}'}
NAMES = st.sampled_from(
    [*PLAN.tools.functions, "hold", "collect_digits", "set_language", "unknown"]
)
STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("response"), st.lists(NAMES, min_size=1, max_size=4)),
        st.tuples(st.just("cancelled"), st.lists(NAMES, min_size=1, max_size=2)),
        st.tuples(st.just("result"), st.integers(0, 11)),
        st.tuples(st.just("operator"), st.tuples(st.integers(0, 11), st.booleans())),
        st.tuples(st.just("key"), st.sampled_from("12#5")),
        st.tuples(st.just("speech"), st.none()),
        st.tuples(st.just("time"), st.sampled_from([0.1, 0.7, 2.5, 6.0])),
    ),
    max_size=14,
)


class _Server:
    """A realtime server that makes each response it is asked for."""

    def __init__(self) -> None:
        self.scene = Scene(PLAN).up()
        self.responses = 0
        self.called = 0
        self.owed: list[str] = []
        self.music: set[str] = set()
        """Ends without a request when the model speaks of itself."""
        self.answered_requests = 0

    def respond(self, names: list[str], status: str = "completed") -> None:
        """A response of some sound that ends with these calls."""
        self.responses += 1
        response = f"r{self.responses}"
        calls = []
        for name in names:
            self.called += 1
            if name == "hold":
                self.music.add(f"c{self.called}")
            calls.append((name, f"c{self.called}", ARGUMENTS.get(name, "{}")))
        self.scene.do(created(response), audio(response, f"i{self.responses}", 200))
        self.scene.do(audio_done(response, f"i{self.responses}"))
        self.scene.do(done(response, status, calls))
        if status == "completed":
            self.owed += [call_id for _, call_id, _ in calls]

    def serve(self) -> None:
        """Answer what was asked for, and let it be heard."""
        while self.answered_requests < len(self.scene.requests):
            self.answered_requests += 1
            self.respond([])
            self.scene.listen(300)


@settings(max_examples=150)
@given(STEPS)
def test_each_call_is_answered_once(steps: list[tuple[str, Any]]) -> None:
    server = _Server()
    scene = server.scene
    for kind, what in steps:
        match kind:
            case "response":
                server.respond(what)
                scene.listen(300)
            case "cancelled":
                server.respond(what, "cancelled")
                scene.listen(300)
            case "result":
                scene.do(inputs.ToolDone(f"c{what}", "{}"))
            case "operator":
                scene.do(inputs.ApprovalResult(f"c{what[0]}", what[1]))
            case "key":
                scene.do(key(what))
            case "speech":
                scene.do(SPEECH)
            case "time":
                scene.at(scene.now + what)
        server.serve()
    for _ in range(12):
        scene.at(scene.now + 8.0)
        server.serve()
    items = [one.item for one in scene.sent if isinstance(one, CreateItem)]
    told = Counter(one["call_id"] for one in items if one["type"] == "function_call_output")
    assert told == Counter(server.owed)
    # Results never come after the last request: the model is asked about all of them.
    asked = [n for n, one in enumerate(scene.sent) if isinstance(one, CreateResponse)]
    outputs = [
        n
        for n, one in enumerate(scene.sent)
        if isinstance(one, CreateItem)
        and one.item["type"] == "function_call_output"
        and one.item["call_id"] not in server.music
    ]
    assert not outputs or outputs[-1] < asked[-1]
    sounds = [words for words in scene.seen if words.startswith("sound")]
    assert not sounds or sounds[-1] == "sound", "nobody hears music for ever"
