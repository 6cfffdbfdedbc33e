# SPDX-License-Identifier: GPL-2.0-or-later
"""Scripts: every behaviour and fault that a test can ask the emulator for."""

from __future__ import annotations

import itertools
import json
import time
from pathlib import Path
from typing import Any

import pytest

from gateway.devtools.emulator import Emulator
from gateway.devtools.emulator.script import (
    BUILT_IN,
    Script,
    ScriptError,
    ScriptFile,
    script_of_query,
)
from gateway.devtools.speech import pattern
from tests.support.emulator_client import END_CALL, phone, session, with_emulator

# Reading scripts


def test_query_reaches_every_field() -> None:
    query = (
        "model=m&script=pattern&answer.seed=7&answer.seconds=2.5&speed=100&vad=scripted"
        "&speech.at_ms=100,200&end.at=response.done&end.nth=2&end.drop=true"
        "&refuse.step=response.create&refuse.code=server_error"
    )
    script = script_of_query(BUILT_IN, Script(), query)
    assert (script.answers[0].kind, script.answers[0].seed, script.answers[0].seconds) == (
        "pattern",
        7,
        2.5,
    )
    assert script.speech.at_ms == [100, 200]
    assert script.end is not None
    assert (script.end.at, script.end.nth, script.end.drop) == ("response.done", 2, True)
    assert script.refuse is not None
    assert script.refuse.close_code is None
    behaviour = json.dumps({"answers": [{"kind": "say", "text": "One."}, {"kind": "silent"}]})
    answers = script_of_query({}, Script(), f"behaviour={behaviour}").answers
    assert [answer.kind for answer in answers] == ["say", "silent"]


@pytest.mark.parametrize(
    ("query", "complaint"),
    [
        ("script=nobody", "no such script"),
        ("colour=red", "query: colour: Extra inputs"),
        ("answer=shout", "query: answers.0.kind"),
        ("answer=say", 'kind "say" needs a text'),
        ("answer.seconds=-1", "query: answers.0.seconds"),
        ("speed=fast", "query: speed"),
        ("end.code=1006&end.after_s=1", "cannot be sent in a close frame"),
        ("end.code=1011", 'needs either "after_s" or "at"'),
        ("behaviour={", "not JSON"),
        ("behaviour=[]", "a JSON object is wanted"),
        ('behaviour={"answers":5}&answer.seed=1', "a list of objects is wanted"),
        ("speech.min_ms=5&speech.max_ms=4", "min_ms is above max_ms"),
        ("answer.seed.deeper=1", "query: answers.0.seed"),
    ],
)
def test_mistakes_name_the_field(query: str, complaint: str) -> None:
    with pytest.raises(ScriptError) as caught:
        script_of_query(BUILT_IN, Script(), query)
    assert complaint in str(caught.value)


def test_files(tmp_path: Path) -> None:
    toml = tmp_path / "scripts.toml"
    toml.write_text(
        """
        speed = 20.0
        [[answers]]
        kind = "say"
        text = "Welcome."
        [scripts.shy]
        answer = "silent"
        """
    )
    file = ScriptFile.load(toml)
    assert file.default.speed == 20
    assert file.named["shy"].answers[0].kind == "silent"
    assert "pattern" in file.named
    as_json = tmp_path / "script.json"
    as_json.write_text('{"answer": {"kind": "tones", "frequencies_hz": [400, 500]}}')
    assert ScriptFile.load(as_json).default.answers[0].frequencies_hz == [400, 500]
    for name, text, complaint in (
        ("a.toml", "speed = ", "a.toml: "),
        ("b.toml", "[scripts.x]\nfoo = 1", "scripts.x: foo"),
        ("c.json", "[]", "a table is wanted"),
        ("d.toml", "scripts = 1", "a table of tables"),
    ):
        (tmp_path / name).write_text(text)
        with pytest.raises(ScriptError, match=complaint):
            ScriptFile.load(tmp_path / name)
    with pytest.raises(ScriptError, match="nowhere"):
        ScriptFile.load(tmp_path / "nowhere.toml")


def test_a_bad_script_in_the_url_is_said_to_the_client() -> None:
    async def bad(emulator: Emulator) -> None:
        async with session(emulator, colour="red") as client:
            error = await client.error()
            assert error["code"] == "invalid_script"
            assert "colour" in error["message"]
            assert await client.closed() == 4000

    with_emulator(bad)


# Answers


def test_pattern_arrives_byte_for_byte_and_faster_than_real_time() -> None:
    async def bytes_(emulator: Emulator) -> None:
        for name in ("audio/pcmu", "audio/pcma"):
            async with session(emulator, "pattern", answer__seed=9, speed=50) as client:
                output = {"output": {"format": {"type": name}}}
                await client.update({"type": "realtime", "audio": output})
                start = time.monotonic()
                await client.answered()
                assert client.audio() == pattern(9, 80_000)
                # Ten seconds of audio at fifty times real time: not in one burst.
                assert time.monotonic() - start >= 0.19

    with_emulator(bytes_)


def test_answers_come_in_turn_and_the_last_again() -> None:
    behaviour = json.dumps(
        {
            "speed": 500,
            "answers": [
                {"kind": "say", "text": "One."},
                {"kind": "nothing", "outcome": "failed", "error_code": "insufficient_quota"},
                {"kind": "say", "text": "Cut.", "outcome": "incomplete"},
                {"kind": "nothing", "tools": [{"name": "look_up", "arguments": '{"a":1}'}]},
            ],
        }
    )

    async def turns(emulator: Emulator) -> None:
        async with phone(emulator, behaviour=behaviour) as client:
            one, failed, cut, tool, again = [await client.answered() for _ in range(5)]
            assert one["output"][0]["content"][0]["transcript"] == "One."
            assert failed["status"] == "failed"
            assert failed["status_details"]["error"]["code"] == "insufficient_quota"
            assert failed["output"] == []
            assert cut["status_details"]["reason"] == "content_filter"
            assert cut["output"][0]["status"] == "incomplete"
            assert tool["output"][0]["arguments"] == '{"a":1}'
            assert [item["name"] for item in again["output"]] == ["look_up"]

    with_emulator(turns)


def test_silent_and_hanging_models() -> None:
    async def silent(emulator: Emulator) -> None:
        async with phone(emulator, "silent") as client:
            await client.send("response.create")
            await client.say("mark")
            await client.until("conversation.item.done")
            assert "response.created" not in client.types()
        async with phone(emulator, "hang") as client:
            await client.send("response.create")
            await client.until("response.created")
            await client.send("response.cancel")
            assert (await client.until("response.done"))["response"]["status"] == "cancelled"
            assert "response.output_item.added" not in client.types()

    with_emulator(silent)


def test_burst_and_stall() -> None:
    async def pace(emulator: Emulator) -> None:
        async with phone(emulator, "burst", speed=0.001) as client:
            await client.answered()
            assert client.audio() == pattern(0, 160_000)
        async with phone(emulator, "stall", answer__stall_s=0.4, speed=100) as client:
            await client.answered()
            record = emulator.sessions[-1]
            times = [event.at for event in record.sent("response.output_audio.delta")]
            gaps = [after - before for before, after in itertools.pairwise(times)]
            assert gaps[4] >= 0.39  # after 1,000 ms in pieces of 200
            assert client.audio() == pattern(0, 40_000)

    with_emulator(pace)


def test_max_output_tokens_cuts_the_answer() -> None:
    async def cut(emulator: Emulator) -> None:
        async with phone(emulator, "pattern", speed=100) as client:
            response = await client.answered(max_output_tokens=20)
            assert response["status_details"]["reason"] == "max_output_tokens"
            assert len(client.audio()) == 20 * 50 * 8

    with_emulator(cut)


@pytest.mark.parametrize(("script", "items"), [("goodbye", 2), ("hang-up", 1)])
def test_end_call_with_and_without_a_spoken_goodbye(script: str, items: int) -> None:
    async def end(emulator: Emulator) -> None:
        async with phone(emulator, script, speed=100) as client:
            output = (await client.answered())["output"]
            assert len(output) == items
            assert output[-1]["name"] == END_CALL["name"]

    with_emulator(end)


# Speech without speech


def test_scripted_interruptions_at_random_moments() -> None:
    async def interrupt(emulator: Emulator) -> None:
        behaviour: dict[str, Any] = {
            "speech__count": 20,
            "speech__min_ms": 5,
            "speech__max_ms": 60,
            "speech__length_ms": 20,
            "answer__seconds": 2,
            "speed": 50,
        }
        async with phone(emulator, "interrupt", **behaviour) as client:
            await client.send("response.create")
            statuses = []
            for _ in range(21):  # twenty are interrupted, during the answer or after it
                done = await client.until("response.done")
                statuses.append(done["response"]["status"])
            assert statuses[-1] == "completed"
            assert "cancelled" in statuses
            assert client.types().count("input_audio_buffer.speech_started") == 20

    with_emulator(interrupt)


def test_speech_at_given_moments_and_from_the_test_itself() -> None:
    async def moments(emulator: Emulator) -> None:
        async with phone(
            emulator, "interrupt", speech__at_ms="40,80", speech__length_ms=20, speed=2
        ) as client:
            await client.send("response.create")
            for _ in range(2):
                await client.until("response.done")
            record = emulator.sessions[-1]
            starts = record.sent("input_audio_buffer.speech_started")
            sent = list(record.server_events)
            first = record.sent("response.output_audio.delta")[0]
            assert sent.index(first) < sent.index(starts[0])
            await client.until("response.output_audio.delta")
            emulator.live[record.id].session.pretend_speech(20)
            await client.until("input_audio_buffer.speech_started")
            done = await client.until("response.done")
            assert done["response"]["status_details"]["reason"] == "turn_detected"

    with_emulator(moments)
