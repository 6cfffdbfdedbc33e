# SPDX-License-Identifier: GPL-2.0-or-later
"""``gateway test`` on the wire: a good agent passes each assertion, a wrong one fails each."""

from __future__ import annotations

import json
import wave
from pathlib import Path
from urllib.parse import quote

from junitparser import JUnitXml, TestSuite

from gateway.devtools.emulator import Emulator
from gateway.devtools.emulator.dialogue import TextModel
from gateway.devtools.emulator.script import Script
from tests.interop.lab.ports import free_port
from tests.support.forked import Forked
from tests.support.harness import GatewayStack

PORT = free_port("127.0.0.1")
TRANSFER = {"name": "transfer_call", "arguments": json.dumps({"destination": "good"})}
BEHAVIOUR = quote(json.dumps({"answers": [{"kind": "say", "text": "Yes.", "tools": [TRANSFER]}]}))

ROUTES = f"""
[[route]]
name = "transfers"
to = "^transfers$"
[route.realtime]
url = "ws://127.0.0.1:{{port}}/v1/realtime?behaviour={BEHAVIOUR}"
api_key = "{{key}}"
[route.greeting]
say = "One moment."
[[route.transfer]]
name = "good"
to = "sip:good@127.0.0.1:{PORT}"
mode = "blind"

[[route]]
name = "good"
to = "^good$"
[route.greeting]
say = "Good morning, this is the reception. How can I help you today?"

[[route]]
name = "talkative"
to = "^talkative$"
[route.greeting]
say = "Good morning, this is the reception of the hotel by the lake. All our rooms have a balcony, \
breakfast is from seven to ten, and the bar is open until midnight. How can I help you today?"

[[route]]
name = "deaf"
to = "^deaf$"
[route.greeting]
say = "Good morning, this is the reception, and nothing that you say will stop me at all."
[route.interruptions]
mode = "disabled"

[[route]]
name = "mute"
to = "^mute$"
[route.realtime]
url = "ws://127.0.0.1:{{port}}/v1/realtime?script=silent"
api_key = "{{key}}"
"""

WORLD = {
    "routes": ROUTES,
    "listen": (f"udp:127.0.0.1:{PORT}",),
    "more": '[control]\nsocket = "gateway.sock"\n[[trunk]]\nname = "suites"\n'
    'peers = ["127.0.0.1"]\ncodecs = ["PCMU", "PCMA", "G722", "opus"]\n',
}

ANSWER = '[[call.step]]\ndo = "wait_answer"\n'
GREETING = ANSWER + '[[call.step]]\ndo = "wait_speech"\n[[call.step]]\ndo = "wait_silence"\n'
ASK = '[[call.step]]\ndo = "say"\ntext = "Do you have a room?"\n'
REPLY = '[[call.step]]\ndo = "wait_speech"\n[[call.step]]\ndo = "wait_silence"\n'
CUT = '[[call.step]]\ndo = "interrupt"\nafter_ms = 600\ntext = "Wait, wait a moment please."\n'
PAUSE = '[[call.step]]\ndo = "wait"\nseconds = 2.2\n'


def call(name: str, to: str, steps: str, expect: str, more: str = "") -> str:
    return f'[[call]]\nname = "{name}"\nto = "{to}"\n{more}{steps}[call.expect]\n{expect}\n'


GOOD = (
    call(
        "talks",
        "good",
        GREETING + ASK + REPLY,
        'answered_within = 20\nroute = "good"\nhears = ["how can I help", "you spoke for"]\n'
        'never_hears = ["pizza"]\nresponse_p95_ms = 15000\nmax_dead_air = 15\ncode = 200\n'
        'ended_by = "caller"\nending = "remote_hangup"\nmax_cost = 5',
    )
    + call(
        "is cut",
        "talkative",
        ANSWER + CUT + '[[call.step]]\ndo = "wait_silence"\n',
        # Less than there is to say, and more than a machine stands still.
        "barge_in_latency_ms = 6000",
        'from = "+49301234"\nheaders = { X-Customer = "42" }\ncodec = "PCMA"\n',
    )
    + call(
        "presses keys",
        "good",
        GREETING
        + '[[call.step]]\ndo = "hold"\n[[call.step]]\ndo = "wait"\nseconds = 0.4\n'
        + '[[call.step]]\ndo = "resume"\n'
        + '[[call.step]]\ndo = "digits"\nkeys = "42#"\nhow = "info"\n'
        + REPLY
        + '[[call.step]]\ndo = "codec"\ncodec = "PCMA"\n'
        + '[[call.step]]\ndo = "digits"\nkeys = "7#"\n'
        + REPLY,
        'hears = ["you pressed 4, 2", "you pressed 7"]',
        "line = { noise_dbfs = -60 }\n",
    )
    + call(
        "is transferred, and follows",
        "transfers",
        # More sound than "Yes." is: the greeting of the agent that it is sent to.
        ANSWER + '[[call.step]]\ndo = "wait_speech"\nms = 2000\n',
        'transfer_to = "^sip:good@"\nending = "transferred"\nmax_dead_air = 20',
        'follow_refer = "sip:good@127.*"\n',
    )
    + call(
        "loses packets, and later has them late too",
        "good",
        GREETING + '[[call.step]]\ndo = "line"\nloss_percent = 20\njitter_ms = 80\n' + ASK + REPLY,
        'hears = ["you spoke for"]',
        'from = "lossy"\nline = { loss_percent = 20 }\n',
    )
    + call(
        "speaks in G.722, then in PCMA and in Opus",
        "good",
        GREETING
        + '[[call.step]]\ndo = "codec"\ncodec = "PCMA"\n'
        + '[[call.step]]\ndo = "codec"\ncodec = "opus"\n'
        + ASK
        + REPLY,
        'hears = ["you spoke for"]',
        'codec = "G722"\n',
    )
    + call("is not there", "nowhere", '[[call.step]]\ndo = "expect_end"\n', "code = 404")
)

WRONG = (
    call("answered_within", "good", ANSWER, "answered_within = 0.001")
    + call("code", "good", ANSWER, "code = 486")
    + call("ended_by", "good", ANSWER, 'ended_by = "agent"')
    + call("ending", "good", ANSWER, 'ending = "agent_hangup"')
    + call("response_p95_ms", "mute", ANSWER + ASK + PAUSE, "response_p95_ms = 30000")
    + call("barge_in_latency_ms", "deaf", ANSWER + CUT + '[[call.step]]\ndo = "wait_silence"\n',
           "barge_in_latency_ms = 500")
    + call("max_dead_air", "mute", ANSWER + PAUSE, "max_dead_air = 2")
    + call("hears", "good", GREETING, 'hears = ["pizza"]')
    + call("never_hears", "good", GREETING, 'never_hears = ["reception"]')
    + call("caller_heard_as", "good", ANSWER, 'caller_heard_as = ["a room"]')
    + call("transfer_to", "good", ANSWER, 'transfer_to = "sales"')
    + call("digits", "good", ANSWER, 'digits = "1"')
    + call("route", "good", ANSWER, 'route = "deaf"')
    + call("disposition", "good", ANSWER, 'disposition = "booked"')
    + call("max_cost", "good", GREETING, "max_cost = 0.0000001")
    + call("steps", "mute", ANSWER + '[[call.step]]\ndo = "wait_speech"\nwithin = 1\n', "")
)  # fmt: skip


async def run(world: GatewayStack, folder: Path, suite: str) -> tuple[int, str, TestSuite]:
    """Run a suite's text; the exit status, what was printed, and its results."""
    (file := folder / "suite.toml").write_text(suite)
    process = await Forked.command(
        *("test", file, "-c", world.gateway.config, "--parallel", "16"),
        *("--junit", folder / "out.xml", "--report", folder / "report"),
    )
    told, error = await process.communicate()
    assert process.returncode in (0, 1), (told + error).decode()
    (found,) = JUnitXml.fromfile(str(folder / "out.xml"))
    return process.returncode, told.decode(), found


async def test_a_good_agent_passes(world: GatewayStack, tmp_path: Path) -> None:
    status, told, results = await run(world, tmp_path, GOOD)
    assert status == 0, told
    assert (results.tests, results.failures) == (7, 0)
    assert ["suite", "7", "7", "0", "27", "0"] in [line.split() for line in told.splitlines()]
    page = (tmp_path / "report" / "index.html").read_text()
    assert "7 of 7 calls passed" in page
    assert "How can I help you today?" in page
    with wave.open(str(tmp_path / "report" / "001-talks.wav")) as sound:
        assert (sound.getnchannels(), sound.getframerate()) == (2, 8000)
        assert sound.getnframes() > 4 * 8000
    invites = world.gateway.all("call.invite")
    assert any(line["from"].startswith("sip:+49301234@") for line in invites), invites
    changed = [one["codec"] for one in world.gateway.all("call.codec_changed")]
    assert sorted(changed) == ["PCMA", "PCMA", "opus"]
    ends = world.gateway.all("call.summary")
    (lossy,) = [one for one in ends if one["from"].startswith("sip:lossy@")]
    assert lossy["uplink"]["lost"] > lossy["uplink"]["packets"] / 20
    jitter = lossy["quality"]["rx"]["jitter_ms"]
    assert jitter["min"] < jitter["max"] / 2, "packets are late from the step on"


async def test_a_wrong_agent_fails_each_assertion(world: GatewayStack, tmp_path: Path) -> None:
    status, told, results = await run(world, tmp_path, WRONG)
    assert status == 1, told
    for case in results:
        (failure,) = case.result
        assert failure.text.startswith(f"{case.name}: "), (case.name, failure.text)
        assert "\n" not in failure.text, failure.text
    assert results.failures == results.tests == 16


JUDGE = """
[call.judge.criteria.kindness]
question = "Was the agent kind?"
[call.judge.criteria.brevity]
question = "Was the agent brief?"
"""


async def test_simulated_callers_talk_and_a_judge_marks(
    world: GatewayStack, tmp_path: Path
) -> None:
    """One is played by a text model, one by a realtime session; both are the emulator's."""
    script = Script.model_validate(
        {
            "text_replies": ["I need a room, please.", "Goodbye. [DONE]"],
            "text_scores": {"brevity": 2},
            "answers": [
                {"kind": "say", "text": "I need a room for two nights, please."},
                {"kind": "say", "text": "Goodbye.", "end_call": True},
            ],
        }
    )
    model, session = TextModel(lambda: script), Emulator(script=script)
    url = f"http://127.0.0.1:{await model.start()}/v1"
    await session.start()
    by = f'by = "realtime"\nurl = "{session.url()}"\n'
    persona = '[call.caller]\npersona = "Vera"\ngoal = "a room"\nmax_turns = 4\n'
    suite = f'[model]\nurl = "{url}"\n[[call]]\nname = "model"\nto = "good"\n{persona}{JUDGE}'
    suite += f'[[call]]\nname = "session"\nto = "good"\n{persona}{by}'
    suite += f'[[call]]\nname = "late"\nto = "mute"\n{persona}{by}max_seconds = 1.5\n'
    try:
        status, told, (first, second, third) = await run(world, tmp_path, suite)
    finally:
        await model.stop()
        await session.stop()
    assert status == 1, told
    found = [one.text for one in first.result]
    assert found == ["judge: brevity: 2: by the script; wanted at least 7 of 10"]
    assert "passed  judge: kindness: 8" in first.system_out
    assert "passed  caller: reached; 2 turns" in first.system_out
    assert "agent: You spoke for" in first.system_out
    assert "caller: I need a room, please." in first.system_out
    assert model.requests == 3
    assert [one.text for one in third.result] == [
        "caller: max_seconds, 1.5, were over; 0 turns, 0 tokens; wanted a room"
    ]
    assert second.is_passed, second.system_out
    assert "passed  caller: reached; 2 turns" in second.system_out
    assert "agent: You spoke for" in second.system_out
    assert "caller: I need a room for two nights, please." in second.system_out
