# SPDX-License-Identifier: GPL-2.0-or-later
"""A caller who waits for a response and hears nothing: every way to silence, on a virtual clock."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest

from gateway.audio import Codec
from gateway.call import inputs
from gateway.call.plan import (
    CallPlan,
    ContentPlan,
    FallbackStep,
    FunctionPlan,
    InterruptionPlan,
    ResponseFailurePlan,
    ServerPlan,
    SilencePlan,
    ToolsPlan,
)
from gateway.call.tools.commands import SendDtmfPlan
from gateway.realtime.events import (
    AudioDelta,
    InputCommitted,
    OtherEvent,
    ResponseDone,
    SessionUpdated,
    SpeechStopped,
)
from tests.support.call_scene import (
    ACK,
    BYE,
    SPEECH,
    UP,
    Scene,
    audio,
    closed,
    created,
    done,
    error,
    failed,
    key,
    said,
    scenes,
)

STOPPED = said(SpeechStopped("item_user", 2000))
COMMITTED = said(InputCommitted("item_user"))
LOUD, FAINT = inputs.CallerSounds(), inputs.CallerSounds(faint=True)
RECONNECT = FallbackStep("reconnect", 10.0, "chime")
PLAN = CallPlan(
    "route",
    Codec.PCMU,
    greeting={"instructions": "Say exactly: Hello."},
    silence=SilencePlan(6.0),
    server=ServerPlan(fallback=(RECONNECT,)),
    tools=ToolsPlan(functions={"search": FunctionPlan(timeout=60.0)}),
)
QUIET = replace(PLAN, greeting=None)


def scene_of(plan: CallPlan = QUIET) -> Scene:
    return Scene(plan).up()


def rule_of(scene: Scene) -> str:
    (note,) = [note for note in scene.notes if note.event == "silence_detected"]
    return str(note.fields["rule"])


def answer(scene: Scene, response: str, ms: int = 200) -> list[str]:
    scene.do(created(response), audio(response, f"i-{response}", ms), done(response))
    return scene.listen(ms + 100)


def speak(scene: Scene, seconds: int) -> list[list[str]]:
    """The caller is loud, and the server sends events meanwhile."""
    event = said(OtherEvent("rate_limits.updated", {}))
    return [scene.at(scene.now + 1.0, LOUD, event) for _ in range(seconds)]


def silent(response: str, ms: int) -> inputs.ServerEventReceived:
    """A delta of digital silence."""
    return said(AudioDelta(response, f"i-{response}", 0, b"\xff" * (ms * 8), silent=True))


Begin = Callable[[Scene], object]

WAYS: dict[str, tuple[CallPlan, Begin, str]] = {
    "a greeting that is never created": (PLAN, lambda _s: None, "response_not_created"),
    "a key, and no response": (QUIET, lambda s: s.do(key("#")), "response_not_created"),
    "created, then nothing": (QUIET, lambda s: s.do(created("r1")), "response_without_audio"),
    "an error without response.done": (
        QUIET,
        lambda s: s.do(created("r1"), error("server_error")),
        "response_without_audio",
    ),
    "audio of no length": (
        QUIET,
        lambda s: s.do(created("r1"), said(AudioDelta("r1", "i1", 0, b""))),
        "response_without_audio",
    ),
    "a turn, and no response": (
        QUIET,
        lambda s: s.do(SPEECH, STOPPED, COMMITTED),
        "turn_not_answered",
    ),
    "a turn that is not even committed": (
        QUIET,
        lambda s: s.do(SPEECH, STOPPED),
        "turn_not_answered",
    ),
    "a turn that is committed, and was never said to be over": (
        QUIET,
        lambda s: s.do(SPEECH, COMMITTED),
        "turn_not_answered",
    ),
    "a second turn": (
        QUIET,
        lambda s: (s.do(SPEECH, STOPPED, COMMITTED), answer(s, "r1"), s.do(SPEECH, STOPPED)),
        "turn_not_answered",
    ),
    "a cut response that never ends, and the turn that cut it": (
        QUIET,
        lambda s: s.do(created("r1"), audio("r1", "i1", 900), SPEECH, STOPPED, COMMITTED),
        "audio_stalled",
    ),
    "a turn that the gateway is to answer, and that is not committed": (
        replace(QUIET, interruptions=InterruptionPlan("disabled", by_gateway=True)),
        lambda s: s.do(SPEECH, STOPPED),
        "turn_not_answered",
    ),
    "a tool's result": (
        QUIET,
        lambda s: (
            s.do(created("r1"), done("r1", calls=[("search", "c1")])),
            s.at(20.0, inputs.ToolDone("c1", "found")),
        ),
        "response_not_created",
    ),
    "a server that stops sending anything, and a caller who speaks": (
        QUIET,
        lambda s: (
            s.do(SPEECH, STOPPED, COMMITTED),
            answer(s, "r1"),
            s.do(LOUD),
            s.at(s.now + 1.0, LOUD),
        ),
        "no_events",
    ),
    "a server that stops in the caller's turn": (
        QUIET,
        lambda s: (s.do(SPEECH, LOUD), s.at(s.now + 1.0, LOUD), s.at(s.now + 5.0, LOUD)),
        "no_events",
    ),
    "a response that the server cancels by itself": (
        QUIET,
        lambda s: s.do(SPEECH, STOPPED, COMMITTED, created("r1"), done("r1", "cancelled")),
        "turn_not_answered",
    ),
    "a call of a function without a name": (
        QUIET,
        lambda s: s.do(created("r1"), done("r1", calls=[("", "c1")])),
        "response_not_created",
    ),
    "a response that is done under another name": (
        QUIET,
        lambda s: s.do(created("r1"), done("r2", "cancelled")),
        "response_without_audio",
    ),
    "a server's tool that is over": (
        QUIET,
        lambda s: s.do(
            created("r1"),
            said(OtherEvent("response.mcp_call.in_progress", {"item_id": "m1"})),
            said(OtherEvent("response.mcp_call.completed", {"item_id": "m1"})),
        ),
        "response_without_audio",
    ),
}


@pytest.mark.parametrize(("plan", "begin", "rule"), WAYS.values(), ids=WAYS.keys())
def test_silence_begins_the_fallback_steps(plan: CallPlan, begin: Begin, rule: str) -> None:
    scene = scene_of(plan)
    begin(scene)
    since = scene.now
    assert "open" not in scene.at(since + 5.9)[-3:]
    seen = scene.at(since + 6.0)
    assert seen[-2:] == ["sound chime", "open"], seen
    assert rule_of(scene) == rule
    assert scene.record.session.failovers[-1].why == "session_silent"
    # The session that takes over is asked for what is due.
    seen = scene.do(UP)
    assert seen[0] == "sound"
    assert seen[-1].startswith("create"), seen
    answer(scene, "r9")
    assert scene.record.session.failovers[-1].outcome == "recovered"


LONG: dict[str, tuple[Callable[[Scene], object], float, str]] = {
    "a turn that never ends": (lambda s: s.do(SPEECH), 12.0, "turn_not_ended"),
    "a turn that never ends, of a caller who has spoken": (
        lambda s: (s.do(SPEECH), speak(s, 20)),
        12.0,
        "turn_not_ended",
    ),
    "a turn that never ends, of a caller who is thought to speak softly for a minute": (
        lambda s: (s.do(SPEECH), [s.at(s.now + 1.0, FAINT) for _ in range(65)]),
        12.0 - 6.0,
        "turn_not_ended",
    ),
    "turns that begin again and again": (
        lambda s: [s.at(s.now + 3.0, *turn) for turn in [(SPEECH, STOPPED)] * 4],
        3.0,
        "turn_not_ended",
    ),
    "responses that are cancelled again and again": (
        lambda s: [
            s.at(s.now + 3.0, SPEECH, STOPPED, created(f"r{n}"), done(f"r{n}", "cancelled"))
            for n in range(4)
        ],
        3.0,
        "turn_not_ended",
    ),
    "tools of the server's without end": (
        lambda s: (
            s.do(created("r1")),
            [
                s.do(
                    said(OtherEvent("response.mcp_call.in_progress", {"item_id": f"m{n}"})),
                )
                or s.at(s.now + 10.0)
                for n in range(12)
            ],
        ),
        6.0,
        "response_without_audio",
    ),
    "audio that is silence": (
        lambda s: (s.do(created("r1"), silent("r1", 5980)), s.listen(5000)),
        0.0,
        "audio_is_silence",
    ),
    "audio that is silence, now and then": (
        lambda s: (s.do(created("r1")), [(s.do(silent("r1", 20)), s.listen(700)) for _ in "1" * 9]),
        0.0,
        "audio_is_silence",
    ),
}


@pytest.mark.parametrize(("begin", "seconds", "rule"), LONG.values(), ids=LONG.keys())
def test_silence_that_looks_like_something(begin: Begin, seconds: float, rule: str) -> None:
    scene = scene_of(replace(QUIET, limits=replace(QUIET.limits, rtp_timeout=0)))
    begin(scene)
    if seconds:
        assert "silence_detected" not in scene.events
        scene.at(scene.now + seconds - 0.1)
        assert "silence_detected" not in scene.events
        seen = scene.at(scene.now + 0.1)
    else:
        assert "silence_detected" not in scene.events
        seen = scene.do(silent("r1", 20))
    assert seen[-1] == "open", seen
    assert rule_of(scene) == rule
    assert scene.do(UP)[-1].startswith("create"), "of the session that takes over"


def test_audio_that_stalls() -> None:
    scene = scene_of()
    scene.do(created("r1"), audio("r1", "i1", 1000))
    scene.listen(1000)
    assert "open" not in scene.listen(5900)
    assert "open" in scene.listen(400)
    assert rule_of(scene) == "audio_stalled"


def test_audio_that_trickles_is_no_silence() -> None:
    scene = scene_of()
    scene.do(created("r1"))
    for _ in range(10):
        scene.do(audio("r1", "i1", 100))
        scene.listen(5000)
    assert "silence_detected" not in scene.events


NO_SILENCE: dict[str, tuple[CallPlan, Begin]] = {
    "nobody waits": (QUIET, lambda s: answer(s, "r1")),
    "the caller speaks": (QUIET, lambda s: (s.do(key("#"), SPEECH), speak(s, 25))),
    "the caller speaks softly": (
        QUIET,
        lambda s: (
            s.do(SPEECH),
            [s.at(s.now + 1.0, FAINT) for _ in range(35)],
            s.do(STOPPED),
            answer(s, "r1"),
        ),
    ),
    "soft voices in the caller's room, and a server that says nothing of them": (
        QUIET,
        lambda s: (s.do(SPEECH, STOPPED, COMMITTED), answer(s, "r1"), s.do(*[FAINT] * 20)),
    ),
    "the response to a turn is cut, and what comes then is no speech": (
        QUIET,
        lambda s: (
            s.do(SPEECH, STOPPED, COMMITTED, created("r1"), audio("r1", "i1", 900)),
            s.do(SPEECH, done("r1", "cancelled"), STOPPED, COMMITTED),
            answer(s, "r2"),
        ),
    ),
    "a pause in what is said": (
        QUIET,
        lambda s: (
            s.do(created("r1"), audio("r1", "i1", 900), silent("r1", 4000)),
            s.do(audio("r1", "i1", 900), silent("r1", 4000), audio("r1", "i1", 20), done("r1")),
            s.listen(11000),
        ),
    ),
    "the caller has us on hold": (QUIET, lambda s: s.do(key("#"), inputs.HoldChanged(True))),
    "a tool runs": (QUIET, lambda s: s.do(created("r1"), done("r1", calls=[("search", "c1")]))),
    "a tool of the server's runs": (
        QUIET,
        lambda s: s.do(
            created("r1"), said(OtherEvent("response.mcp_call.in_progress", {"item_id": "m1"}))
        ),
    ),
    "nothing responds to turns by itself": (
        replace(QUIET, server=replace(QUIET.server, responds=False)),
        lambda s: s.do(SPEECH, STOPPED, COMMITTED),
    ),
    "the response began before the turn was said to be over": (
        QUIET,
        lambda s: (s.do(SPEECH), answer(s, "r1"), s.do(STOPPED, COMMITTED)),
    ),
    "a server that has never heard this caller, and is asked": (
        QUIET,
        lambda s: s.do(LOUD, LOUD, said(SessionUpdated({})), LOUD, LOUD, LOUD),
    ),
    "a noise of one second": (QUIET, lambda s: s.do(LOUD)),
    "the caller was loud, and the server says something": (
        QUIET,
        lambda s: (
            s.do(SPEECH, STOPPED, COMMITTED),
            answer(s, "r1"),
            s.do(LOUD, LOUD, said(OtherEvent("rate_limits.updated", {}))),
        ),
    ),
    "off": (replace(QUIET, silence=SilencePlan(0.0)), lambda s: s.do(created("r1"))),
}


@pytest.mark.parametrize(("plan", "begin"), NO_SILENCE.values(), ids=NO_SILENCE.keys())
def test_what_is_no_silence(plan: CallPlan, begin: Begin) -> None:
    scene = scene_of(plan)
    begin(scene)
    scene.at(scene.now + 25.0)
    assert "silence_detected" not in scene.events


def test_a_server_that_has_never_heard_this_caller_is_asked() -> None:
    """Ever more seldom while it answers; where nothing comes, it is silent."""
    scene = scene_of()
    asked = []
    for second in range(120):
        if any("update" in one for one in scene.do(LOUD)):
            asked.append(second)
            scene.do(said(SessionUpdated({})))
    assert len(asked) == 5, asked
    scene = scene_of()
    scene.do(LOUD, LOUD)
    assert "open" not in scene.at(scene.now + 5.9)
    assert "open" in scene.at(scene.now + 0.1)
    assert rule_of(scene) == "update_not_answered"


def test_an_update_that_is_not_answered() -> None:
    """The caller waits for nothing, so the new session is asked for nothing."""
    scene = scene_of()
    scene.machine._call.conversation.silence.on_update_sent(scene.now)
    scenes.clear()  # what is done past the inputs is in no black box
    since = scene.now
    assert "open" not in scene.at(since + 5.9)
    assert "open" in scene.at(since + 6.0)
    assert rule_of(scene) == "update_not_answered"
    assert not any(one.startswith("create") for one in scene.do(UP))
    scene.machine._call.conversation.silence.on_update_sent(scene.now)
    scene.do(said(SessionUpdated({})))
    assert "open" not in scene.at(scene.now + 20.0)


def test_nothing_counts_before_the_ack() -> None:
    scene = Scene(PLAN)
    scene.do(UP)
    scene.at(30.0)
    assert "silence_detected" not in scene.events
    scene.at(31.0, ACK)
    assert "open" in scene.at(37.0)


def test_a_filler_is_heard_before_and_ends_with_the_response() -> None:
    scene = scene_of(replace(QUIET, silence=SilencePlan(6.0, "typing", 2.0)))
    scene.do(key("#"))
    assert scene.at(1.9) == []
    assert scene.at(2.0) == ["sound typing"]
    assert scene.do(created("r1"), audio("r1", "i1", 100)) == ["play 100", "sound"]
    scene.do(done("r1"))
    scene.listen(200)
    scene.do(key("#"))
    scene.at(scene.now + 2.0)
    seen = scene.at(scene.now + 4.0)
    assert seen[0] == "sound"
    assert seen[-2:] == ["sound chime", "open"]


def test_a_filler_ends_when_the_model_presses_keys_without_a_word() -> None:
    tools = ToolsPlan(send_dtmf=SendDtmfPlan(enabled=True))
    scene = scene_of(replace(QUIET, tools=tools, silence=SilencePlan(6.0, "typing", 2.0)))
    scene.do(key("#"))
    assert scene.at(2.0) == ["sound typing"]
    press = ("send_dtmf", "c1", '{"digits": "1"}')
    assert scene.do(created("r1"), done("r1", calls=[press])) == ["press 1 auto", "sound"]


def test_a_silent_server_that_gives_sessions_does_not_go_on_for_ever() -> None:
    scene = scene_of(
        replace(QUIET, server=replace(QUIET.server, fallback=(RECONNECT, FallbackStep("hangup"))))
    )
    scene.do(key("#"))
    sessions = 0
    for _ in range(100):
        if scene.record.ending is not None:
            break
        if "open" in scene.at(scene.now + 1.0):
            sessions += 1
            scene.do(UP)
        if scene.seen[-1].startswith("bye"):
            scene.do(inputs.LegEnded(200, "OK", "", "", True))
    assert sessions == 2
    assert scene.ending[1] == "session_silent"


def test_a_server_that_closes_each_session_at_once_is_left_after_a_while() -> None:
    scene = scene_of(QUIET)
    sessions = 0
    scene.do(closed(1011))
    for _ in range(100):
        if scene.seen[-1].startswith("bye"):
            scene.do(inputs.LegEnded(200, "OK", "", "", True))
            break
        if "open" in scene.at(scene.now + 0.25) or sessions == 0:
            sessions += 1
            scene.do(UP, closed(1011))
    assert sessions <= 6
    assert scene.now < 15
    assert scene.ending[1] == "session_lost"


def test_a_server_that_says_a_word_and_closes_is_left_too() -> None:
    scene = scene_of(QUIET)
    sessions = 0
    while scene.record.ending is None and sessions < 50:
        answer(scene, f"r{sessions}")
        scene.do(closed(1011))
        if scene.seen[-1].startswith("bye"):
            scene.do(inputs.LegEnded(200, "OK", "", "", True))
        else:
            sessions += 1
            scene.do(UP)
    assert sessions == 3


def test_lost_now_and_then_the_call_goes_on() -> None:
    scene = scene_of(replace(QUIET, limits=replace(QUIET.limits, rtp_timeout=0)))
    for number in range(20):
        scene.at(number * 60.0 + 1)
        scene.do(closed(1011), UP)
        answer(scene, f"r{number}")
    assert scene.record.ending is None
    scene.at(scene.now + 60, closed(1011))
    assert scene.seen[-1].startswith("bye"), "the twenty-first"


def test_without_fallback_steps_a_sound_and_another_attempt() -> None:
    rescue = ResponseFailurePlan(sound="chime", max_failures=2, goodbye="Bye.")
    scene = scene_of(
        replace(
            QUIET,
            server=replace(QUIET.server, fallback=()),
            content=ContentPlan(response_failure=rescue),
        )
    )
    scene.do(key("#"), created("r1"))
    assert scene.at(6.0) == ["flush", "cancel r1", "sound chime", "create"]
    assert scene.do(audio("r1", "i1", 100)) == [], "too late"
    assert "sound chime" in scene.at(12.1)
    assert "response_failures_exceeded" in scene.events
    scene.at(40.0)
    assert "bye 41" in scene.seen


def test_the_end_of_a_call_is_no_silence() -> None:
    scene = scene_of()
    scene.do(key("#"), BYE)
    assert scene.record.ending is not None
    assert scene.machine.deadline is None


# ---- responses that complete and are not heard


def completed(response: str, *content: dict[str, str]) -> inputs.ServerEventReceived:
    output = ({"type": "message", "role": "assistant", "content": list(content)},)
    return said(ResponseDone(response, "completed", None, None, None, output, None))


@pytest.mark.parametrize(
    ("happenings", "content"),
    [
        ([completed("r1", {"type": "output_text", "text": "Hello."})], "text"),
        ([completed("r1")], "empty"),
        ([said(ResponseDone("r1", "completed", None, None, None, (), None))], "empty"),
        (
            [
                said(AudioDelta("r1", "i1", 0, b"")),
                completed("r1", {"type": "output_audio", "transcript": "Hello."}),
            ],
            "audio of zero length",
        ),
    ],
)
def test_a_response_without_audio_is_one_that_failed(
    happenings: list[inputs.Input], content: str
) -> None:
    scene = scene_of()
    scene.do(key("#"), created("r1"))
    assert scene.do(*happenings) == ["create"]
    (note,) = [note for note in scene.notes if note.event == "response_without_audio"]
    assert (note.level, note.fields["content"]) == ("warning", content)
    assert scene.do(created("r2"), failed("r2")) == ["create ['instructions', 'tools']"]


def test_a_response_of_tools_only_is_no_failure() -> None:
    scene = scene_of()
    assert scene.do(created("r1"), done("r1", calls=[("search", "c1")])) == ["run search c1 {}"]
    assert "response_without_audio" not in scene.events
