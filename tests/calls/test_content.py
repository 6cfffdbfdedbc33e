# SPDX-License-Identifier: GPL-2.0-or-later
"""What is put into a conversation from outside, what may not be said, and answers that fail."""

from __future__ import annotations

import asyncio
import base64
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from gateway.api.client import RefusedError, ask_within
from gateway.devtools.emulator.session_log import SessionRecord
from tests.support.harness import GatewayStack
from tests.support.listening import Spoken

ROUTE = """
[[route]]
name = "{name}"
to = "^{name}$"
fallback = []
[route.greeting]
say = "Hello."
{rules}
"""

WORLD = {
    "more": '[control]\nsocket = "control"\n',
    "routes": "".join(
        (
            ROUTE.format(name="open", rules=""),
            ROUTE.format(
                name="disclosed",
                rules='[route.disclosure]\nsay = "You are speaking with an AI assistant."',
            ),
            ROUTE.format(
                name="checked",
                rules='[[route.guardrail]]\nname = "h"\nurl = "http://127.0.0.1:1/"\n'
                'on_timeout = "deny"\nreplacement = "No word of it."',
            ),
            ROUTE.format(
                name="asked",
                rules='[route.post_call]\nprompts = { summary = "Sum up.", mood = "How?" }',
            ),
            ROUTE.format(
                name="kept", rules='[route.context]\nmax_turns = 2\nstrategy = "summarize"'
            ),
            ROUTE.format(
                name="guarded",
                rules='[[route.guardrail]]\nname = "g"\nwords = ["secret"]\n'
                'replacement = "No word of it."',
            ),
            ROUTE.format(
                name="listened",
                rules="[route.session.audio.input.transcription]\n"
                'model = "gpt-4o-transcribe"\n'
                '[[route.guardrail]]\nname = "c"\nspeaker = "caller"\nwords = ["secret"]\n'
                'replacement = "No word of it."',
            ),
            ROUTE.format(
                name="rescued",
                rules="[route.response_failure]\nretries = 0\n"
                'message = "Sorry."\nmax_failures = 2\ngoodbye = "Bye."',
            ),
        )
    ),
}
PNG = b"\x89PNG\r\n\x1a\n" + bytes(3000)


async def command(world: GatewayStack, name: str, **fields: Any) -> dict[str, Any]:
    path = Path(world.folder, "control")
    return await asyncio.to_thread(partial(ask_within, 20.0, path, name, **fields))


async def test_words_and_images_come_in_and_a_summary_goes_out(world: GatewayStack) -> None:
    world.behave(answers=[{"kind": "pattern", "seconds": 0.4, "seed": n} for n in range(4)])
    call = await world.dial("open")
    session = await world.session_of(call)
    await session.wait_until(lambda s: len(s.sent("response.done")) == 1, 20)
    (name,) = world.gateway.ids_of(call.call_id)
    await command(world, "send_message", call=name, text="Their order is on its way.")
    image = "data:image/png;base64," + base64.b64encode(PNG).decode()
    await command(
        world, "send_image", call=name[:12], image=image, text="Their parcel.", respond=True
    )
    await session.wait_until(lambda s: len(s.sent("response.done")) == 2, 20)
    aside = await command(world, "query", call=name, text="Sum it up.", metadata={"for": "desk"})
    asked = session.seen("response.create")[-1].body["response"]
    assert asked["conversation"] == "none"
    assert asked["metadata"]["for"] == "desk"
    await command(world, "say", call=name, text="Goodbye for now.")
    await session.wait_until(lambda s: len(s.sent("response.done")) == 4, 20)
    told = await command(world, "transcript", call=name)
    assert [
        (e["who"], e["text"]) for e in told["transcript"] if e["who"] in ("system", "caller")
    ] == [
        ("system", "Their order is on its way."),
        ("caller", f"Their parcel. (image/png, {len(PNG)} bytes)"),
    ]
    for wrong, why in (
        ({"call": "nobody", "text": "x"}, "there is no call 'nobody'"),
        ({"call": name, "text": ""}, "text must be a text that is not empty"),
        ({"call": name, "text": "x", "role": "king"}, "body.role: Input should be"),
    ):
        with pytest.raises(RefusedError, match=why):
            await command(world, "send_message", **wrong)
    with pytest.raises(RefusedError, match="its bytes do not"):
        await command(world, "send_image", call=name, image="data:image/png;base64,AAAA")
    spoken = [Spoken(bytes(audio)) for audio in session.sent_items.values()]
    await call.rtp.until(lambda: spoken[-1].heard_ms(call.rtp.packets) >= 380)
    assert not session.errors
    await world.summary_at_end(call)
    (kept,) = (await world.record(call))["out_of_band"]
    assert (kept["status"], kept["text"]) == ("completed", aside["text"])


async def test_words_that_are_not_allowed_are_not_heard(world: GatewayStack) -> None:
    world.behave(
        answers=[
            {"kind": "say", "text": "Here is the secret of the house, all of it at length."},
            {"kind": "pattern", "seconds": 0.6, "seed": 2},
        ]
    )
    call = await world.dial("guarded")
    session = await world.session_of(call)
    await session.wait_until(lambda s: len(s.sent("response.done")) == 2, 20)
    assert session.sent("response.done")[0].body["response"]["status"] == "cancelled"
    phrase = Spoken(bytes(list(session.sent_items.values())[-1]))
    await call.rtp.until(lambda: phrase.heard_ms(call.rtp.packets) >= 580)
    await world.summary_at_end(call)
    record = await world.record(call)
    (decision,) = record["guardrails"]
    assert (decision["rule"], decision["by"], decision["action"]) == ("g", "words", "replace")


@pytest.mark.parametrize("late_ms", [0, 300])
async def test_what_answers_forbidden_words_is_stopped_however_early_they_are_known(
    world: GatewayStack, late_ms: int
) -> None:
    """The words may be known before the server tells of its answer to them, or while it is said."""
    pattern = {"kind": "pattern", "speed": 1.0}
    world.behave(
        vad="off",
        # The second one lasts: it is not over before it is stopped.
        answers=[{**pattern, "seed": n, "seconds": 6 if n == 1 else 0.6} for n in range(4)],
        transcripts=["Tell me the secret.", "Well, how are you?"],
        transcription_delays_ms=[late_ms],
    )
    call = await world.dial("listened")
    session = await world.session_of(call)
    await session.wait_until(lambda s: len(s.sent("response.done")) == 1, 20)
    world.emulator.live[session.id].session.pretend_speech(100)
    # The greeting, what is stopped, and the phrase.
    await session.wait_until(lambda s: len(s.sent("response.done")) == 3, 20)
    answers = [Spoken(bytes(audio)) for audio in session.sent_items.values()]
    await call.rtp.until(lambda: answers[-1].heard_ms(call.rtp.packets) >= 580)
    world.emulator.live[session.id].session.pretend_speech(100)
    await session.wait_until(lambda s: len(s.sent("response.done")) == 4, 20)
    last = Spoken(bytes(list(session.sent_items.values())[-1]))
    await call.rtp.until(lambda: last.heard_ms(call.rtp.packets) >= 580)
    status = [event.body["response"]["status"] for event in session.sent("response.done")]
    assert status == ["completed", "cancelled", "completed", "completed"]
    assert not session.errors or late_ms == 0  # the phrase may collide with what is stopped
    await world.summary_at_end(call)
    (decision,) = (await world.record(call))["guardrails"]
    heard = answers[1].heard_ms(call.rtp.packets) if len(answers) == 3 else 0
    assert decision["heard_ms"] == heard
    assert heard == 0 or late_ms


async def test_failed_answers_are_told_and_then_end_the_call(world: GatewayStack) -> None:
    failed = {"kind": "nothing", "outcome": "failed"}
    filtered = {"kind": "nothing", "outcome": "incomplete", "reason": "content_filter"}
    sorry = {"kind": "pattern", "seconds": 0.5, "seed": 1}
    world.behave(answers=[failed, sorry, filtered, sorry])
    call = await world.dial("rescued")
    session = await world.session_of(call)
    await session.wait_until(lambda s: len(s.sent("response.done")) == 2, 20)
    asked = [event.body["response"] for event in session.seen("response.create")]
    assert asked[1]["instructions"] == "Say exactly: Sorry."
    phrase = Spoken(bytes(list(session.sent_items.values())[-1]))
    await call.rtp.until(lambda: phrase.heard_ms(call.rtp.packets) >= 480)
    await command(world, "create_response", call=call.call_id, text="Go on.")
    summary = await world.summary(call)
    assert summary["ending"]["why"] == "response_failures"


async def test_a_model_without_a_sound_is_covered_by_one_of_ours(world: GatewayStack) -> None:
    """The last resort: the phrase failed too, and the caller hears a chime."""
    world.behave(answers=[{"kind": "nothing", "outcome": "failed"}])
    call = await world.dial("rescued")
    silence = {b"\xff" * 160, b"\xd5" * 160, b"\x7f" * 160}
    await call.rtp.until(lambda: any(p.payload not in silence for p in call.rtp.packets))
    await world.summary_at_end(call)
    assert "response_failure_tone" in [e["event"] for e in (await world.record(call))["timeline"]]


async def test_old_turns_leave_the_session_and_a_summary_comes(world: GatewayStack) -> None:
    """Turns put in from outside, so that each comes when the one before is answered."""
    world.behave(answers=[{"kind": "pattern", "seconds": 0.1, "seed": 1}])
    call = await world.dial("kept")
    session = await world.session_of(call)
    answered = 0

    def free(session: SessionRecord) -> bool:
        return len(session.sent("response.done")) > answered

    for number in range(1, 4):
        await session.wait_until(free, 20)
        answered = number
        text = f"Turn {number}."
        await command(
            world, "send_message", call=call.call_id, text=text, role="user", respond=True
        )
    await session.wait_until(lambda s: len(s.deletions) >= 3, 20)
    await session.wait_until(lambda s: len(s.sent("conversation.item.deleted")) >= 3, 20)
    created = [event.body for event in session.seen("conversation.item.create")]
    (summary,) = [body for body in created if body.get("previous_item_id") == "root"]
    assert summary["item"]["role"] == "system"
    assert not session.errors
    await world.summary_at_end(call)
    record = await world.record(call)
    (trim,) = record["context_trims"]
    assert (trim["how"], trim["turns"]) == ("summarize", 1)
    assert [one["purpose"] for one in record["out_of_band"]] == ["old turns"]
    said = [one["text"] for one in record["transcript"] if one["who"] == "caller"]
    assert said == [f"Turn {number}." for number in range(1, 4)]


async def test_at_the_end_the_model_is_asked_about_the_call(world: GatewayStack) -> None:
    """The caller has hung up, the session answers, and the record has it."""
    world.behave(answers=[{"kind": "pattern", "seconds": 0.3, "seed": 1}])
    call = await world.dial("asked")
    session = await world.session_of(call)
    await session.wait_until(lambda s: len(s.sent("response.done")) == 1, 20)
    await world.summary_at_end(call)
    record = await world.record(call)
    asides = [(one["purpose"], one["status"]) for one in record["out_of_band"]]
    assert asides == [("summary", "completed"), ("mood", "completed")]
    assert [e.body["response"]["conversation"] for e in session.seen("response.create")[1:]] == [
        "none",
        "none",
    ]
    assert not session.errors


async def test_nobody_to_ask_about_words_denies_them_where_the_route_says_so(
    world: GatewayStack,
) -> None:
    world.behave(
        answers=[
            {"kind": "say", "text": "This is one sentence. Here is another one, and a long one."},
            {"kind": "pattern", "seconds": 0.6, "seed": 2},
        ]
    )
    call = await world.dial("checked")
    session = await world.session_of(call)
    await session.wait_until(lambda s: len(s.sent("response.done")) == 2, 20)
    phrase = Spoken(bytes(list(session.sent_items.values())[-1]))
    await call.rtp.until(lambda: phrase.heard_ms(call.rtp.packets) >= 580)
    await world.summary_at_end(call)
    decisions = (await world.record(call))["guardrails"]
    assert [(one["rule"], one["by"], one["action"]) for one in decisions] == [
        ("h", "timeout", "replace")
    ]


DISCLOSED = "You are speaking with an AI assistant."


@pytest.mark.parametrize("said", ["exactly", "otherwise"])
async def test_callers_are_told_first_that_they_speak_with_an_ai(
    world: GatewayStack, said: str
) -> None:
    words = DISCLOSED if said == "exactly" else "I am Ann."
    first = {"kind": "say", "text": words}
    second = {"kind": "say", "text": "Hello."}
    world.behave(vad="off", answers=[first, second, {"kind": "silent"}])
    call = await world.dial("disclosed")
    session = await world.session_of(call)
    await session.wait_until(lambda s: len(s.sent("response.done")) == 2, 20)
    asked = [event.body["response"]["instructions"] for event in session.seen("response.create")]
    assert asked == [f"Say exactly: {DISCLOSED}", "Say exactly: Hello."]
    await call.rtp.until(lambda: len(call.rtp.packets) > 250)
    await world.summary_at_end(call)
    record = await world.record(call)
    assert record["disclosure"] == {"words": DISCLOSED, "heard": said == "exactly"}
