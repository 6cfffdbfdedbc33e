# SPDX-License-Identifier: GPL-2.0-or-later
"""Black boxes of real calls: replayed they do the same, a change of the rules shows, and SIP and
RTP are in them without secrets."""

from __future__ import annotations

import asyncio
import base64
import json
import re
import runpy
from collections.abc import Iterator
from pathlib import Path

import pytest
from click.testing import CliRunner

from gateway.bridge.replay import read_lines, replay
from gateway.cli import main
from gateway.devtools.timeline.black_box import read_black_box
from gateway.records.black_boxes import SUFFIX
from tests.support.black_boxes import written
from tests.support.harness import GatewayStack, eventually
from tests.support.listening import noise
from tests.support.sip_phone import PhoneCall

WORLD = {
    "more": '[control]\nsocket = "control"\n',
    "routes": """
[[route]]
name = "unboxed"
to = "^unboxed$"
[route.greeting]
say = "Hello."

[[route]]
name = "boxed"
to = "^boxed$"
records = { black_box = "always", black_box_payload = true }
[route.greeting]
say = "Hello."

[[route]]
name = "masked"
to = "^masked$"
[route.records]
black_box = "always"
events = true
redact = ["numbers", "dtmf"]
redact_patterns = ["(?i)sesame"]
[route.session]
instructions = "The word is sesame, the caller +493012345678."
audio.input.transcription.model = "whisper-1"
[route.greeting]
say = "Hello."

[[route]]
name = "judged"
to = "^judged$"
records.black_box = "on_trouble"
fallback = []
[route.greeting]
say = "Hello."

[[route]]
name = "collecting"
to = "^collecting$"
[route.records]
black_box = "always"
[route.greeting]
say = "Hello."
[route.collect_digits]
enabled = true
private = true
""",
}


async def kept(world: GatewayStack, call: PhoneCall) -> Path:
    """The file, once its last step is in it."""
    record = await world.record(call)
    assert record["black_box"].endswith(SUFFIX)
    path = Path(world.records_folder, record["black_box"])
    await eventually(lambda: "outputs.Finished" in written(path), "its end")
    return path


async def talked(world: GatewayStack, user: str) -> PhoneCall:
    """A call with a greeting, an interruption, keys and a BYE."""
    world.behave(answer={"kind": "pattern", "seconds": 10})
    call = await world.dial(user)
    await call.rtp.heard_bytes(4000)
    call.rtp.say(noise(1, 0.5))
    await world.gateway.wait("call.interruption", call=call.call_id)
    call.rtp.press("42#")
    await world.gateway.wait("call.dtmf_collected", call=call.call_id)
    await call.hang_up()
    return call


async def test_a_call_is_replayed_as_it_went(
    world: GatewayStack, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    call = await talked(world, "boxed")
    path = await kept(world, call)
    where = ["blackbox", call.call_id, "-c", str(world.gateway.config)]
    copy = tmp_path / "copy.jsonl"
    await eventually(
        lambda: CliRunner().invoke(main, [*where, "-o", str(copy)]).output == f"{copy}\n", "a copy"
    )
    assert copy.read_bytes() == path.read_bytes()
    assert path.stat().st_mode & 0o777 == 0o600
    lines = path.read_text().splitlines()
    assert '"digit":"4"' in path.read_text()
    again = replay(lines)
    steps = sum('"in":' in line or '"more":' in line for line in lines)
    assert any('"more":' in line for line in lines), "audio that follows is handled as ever"
    assert (again.steps, list(again.differences)) == (steps, [])
    test = tmp_path / "incidents" / "test_incident.py"
    run = CliRunner().invoke(main, ["replay", str(path), "--as-test", str(test)])
    assert run.exit_code == 0
    assert f": {again.steps} steps in " in run.output
    assert run.output.endswith(" s, no difference\n")
    box = test.parent / "incident.blackbox.jsonl.gz"
    assert f"written: {test}\nwritten: {box}\n" in run.output
    assert box.stat().st_size < path.stat().st_size / 3
    run = CliRunner().invoke(main, ["replay", str(path), "--as-test", str(test)])
    assert (run.exit_code, run.output) == (2, f"{test}: is there already\n")
    assert "A call of 20" in test.read_text()
    runpy.run_path(str(test))["test_incident"]()
    # A rule that is changed: keys no longer make an item.
    monkeypatch.setattr("gateway.call.machine.LegEvents.on_digit", lambda *_given: [])
    run = CliRunner().invoke(main, ["replay", str(path)])
    assert run.exit_code == 1
    assert re.search(r"^0:0\d\.\d{3}  DigitPressed\(digit='4'", run.output, re.M), run.output
    with pytest.raises(AssertionError):
        runpy.run_path(str(test))["test_incident"]()


def cseq_of(message: str) -> str:
    return next(line for line in message.split("\n") if line.lower().startswith("cseq:"))


async def test_what_was_on_the_wire_is_in_it(world: GatewayStack) -> None:
    call = await talked(world, "boxed")
    path = await kept(world, call)
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    (facts,) = (line["facts"] for line in lines if "facts" in line)
    assert facts["route"]["name"] == "boxed"
    assert facts["configuration"]["realtime"]["url"] == world.emulator.url()
    assert set(facts["configuration"]["realtime"]["api_key"]) == {"*"}
    assert facts["versions"]["pjsua2"]["distribution"].startswith("pjsua2")
    sip = sorted((line for line in lines if "sip" in line), key=lambda line: line["at"])
    # A 200 that is acknowledged late is sent again, and so is its ACK.
    first = {
        (one["sip"], one["text"].split("\n")[0], cseq_of(one["text"])): one for one in sip[::-1]
    }
    sip = sorted(first.values(), key=lambda line: line["at"])
    told = [(one["sip"], one["text"].split(" SIP/2.0")[0].split("\n")[0]) for one in sip]
    assert told[0] == ("in", f"INVITE sip:boxed@{world.phone.gateway[0]}:{world.phone.gateway[1]}")
    assert told[1:4] == [
        ("out", "SIP/2.0 100 Trying"), ("out", "SIP/2.0 180 Ringing"), ("out", "SIP/2.0 200 OK"),
    ]  # fmt: skip
    assert [way for way, text in told[4:]] == ["in", "in", "out"]
    assert [text.split(" ")[0] for way, text in told[4:]] == ["ACK", "BYE", "SIP/2.0"]
    host, port = world.phone.address
    assert {one["peer"] for one in sip} == {f"{host}:{port}"}
    found = read_black_box(path)
    told_of = {way: found.streams[0, way].packets for way in ("in", "out")}
    record = await world.record(call)
    assert found.record.ending is not None
    assert abs(told_of["in"] - record["uplink"]["packets"]) <= 2, "but for the last of them"
    assert len(call.rtp.packets) - 5 <= told_of["out"] <= len(call.rtp.packets) + 5
    assert found.streams[0, "in"].lost == 0
    heard = b"".join(base64.b64decode(one["payload"]) for one in lines if one.get("rtp") == "out")
    assert bytes(call.rtp.heard)[1600:4000] in heard, "what the caller heard"
    copy = path.parent.with_name("incident.jsonl")
    copy.write_bytes(path.read_bytes())
    shown = CliRunner().invoke(main, ["timeline", str(copy)], env={"COLUMNS": "150"})
    assert shown.exit_code == 0, shown.output
    for words in ("INVITE sip:boxed@", "types 0 8 101]", "◀── 200 OK (BYE)", "RTP to the caller"):
        assert words in shown.output


async def test_one_of_a_call_in_progress_is_kept_for_whoever_asks(world: GatewayStack) -> None:
    world.behave(answer={"kind": "pattern", "seconds": 0.2})
    calls = [await world.dial(user) for user in ("judged", "unboxed")]
    asked = []
    for call in calls:
        where = ["blackbox", call.call_id, "--keep", "-c", str(world.gateway.config)]
        asked.append(await asyncio.to_thread(CliRunner().invoke, main, where))
        await call.hang_up()
    assert [one.exit_code for one in asked] == [0, 1]
    assert "is kept when the call ends" in asked[0].output
    assert "records.black_box off" in asked[1].output
    path = await kept(world, calls[0])
    assert list(replay(path.read_text().splitlines()).differences) == []
    assert (await world.record(calls[1]))["black_box"] == ""


async def test_only_what_went_wrong_is_kept(world: GatewayStack) -> None:
    call = await world.dial("judged")
    await call.rtp.heard_bytes(800)
    await call.hang_up()
    record = await world.record(call)
    assert record["black_box"] == ""
    where = ["blackbox", call.call_id, "-c", str(world.gateway.config)]
    await eventually(
        lambda: "no black box" in CliRunner().invoke(main, where).output, "the row of the call"
    )
    name = f"*{record['call_id']}{SUFFIX}"
    await eventually(lambda: not list(world.records_folder.glob(name)), "gone")
    world.behave(end={"at": "response.output_audio.delta", "nth": 1, "drop": True})
    call = await world.dial("judged")
    await call.hung_up()
    path = await kept(world, call)
    assert list(replay(path.read_text().splitlines()).differences) == []


async def test_private_keys_are_in_none(world: GatewayStack) -> None:
    path = await kept(world, await talked(world, "collecting"))
    text = path.read_text()
    digits = [
        step["in"]["digit"]
        for step in map(json.loads, text.splitlines()[1:])
        if step.get("in") and "digit" in step["in"]
    ]
    assert digits == ["0", "0", "#"]
    assert list(replay(text.splitlines()).differences) == []


def words_in(value: object) -> Iterator[str]:
    """All texts and names in what JSON holds."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict | list):
        for inner in [*value, *value.values()] if isinstance(value, dict) else value:
            yield from words_in(inner)


async def test_what_is_masked_is_in_no_file_and_the_replay_is_the_same(world: GatewayStack) -> None:
    said = "Sesame, +493012345678, and 4 7 1 1."
    tool = {"name": "nothing", "arguments": json.dumps({"word": said, "digits": "4711"})}
    answers = [{"kind": "pattern"}, {"kind": "say", "text": said, "tools": [tool]}]
    world.behave(vad="off", answers=answers, transcripts=[said])
    call = await world.dial("masked")
    session = await world.session_of(call)
    call.rtp.press("4711#")
    await world.gateway.wait("call.dtmf_collected", call=call.call_id)
    world.emulator.live[session.id].session.pretend_speech(300)
    await session.wait_until(
        lambda s: bool(s.sent("conversation.item.input_audio_transcription.completed")), 20
    )
    await session.wait_until(lambda s: len(s.sent("response.done")) >= 3, 20)
    await call.hang_up()
    path = await kept(world, call)
    found = replay(read_lines(path))
    assert [list(one.lines()) for one in found.differences] == []
    events = world.records_folder / (await world.record(call))["event_log"]["file"]
    for file in (path, events):
        # Of numbers (of RTP, times) and of parts of UUIDs any may be 4711.
        lines = map(json.loads, file.read_text().splitlines())
        text = "\n".join(word for line in lines if "rtp" not in line for word in words_in(line))
        text = re.sub(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}", "", text.lower())
        assert "the word is " in text
        leaks = re.findall(r".{0,99}(?:sesame|3012345|(?<![\w.])4 ?7 ?1 ?1(?!\w))", text)
        assert leaks == [], file


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("", "line 1"),
        ("hello", "line 1: no JSON"),
        ("[]", "line 1: no object"),
        ('{"black_box": 99}', "line 1: a black box of format 99"),
        ('{"black_box": 1}', "not understood"),
        ('{"black_box": 1, "at": 0, "plan": {"$": "os.system"}, "record": {}}', "no class"),
        (
            '{"black_box": 1, "at": 0, "plan": {"$": "gateway.call.machine.CallMachine"},'
            ' "record": {}}',
            "no class of a call",
        ),
    ],
)
def test_what_is_no_black_box_is_said(tmp_path: Path, text: str, why: str) -> None:
    file = tmp_path / "x.jsonl"
    file.write_text(text)
    run = CliRunner().invoke(main, ["replay", str(file)])
    assert run.exit_code == 2
    assert why in run.output
