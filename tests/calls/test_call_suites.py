# SPDX-License-Identifier: GPL-2.0-or-later
"""``gateway test`` on the wire: a good agent passes each assertion, a wrong one fails each."""

from __future__ import annotations

import asyncio
import sys
import wave
from pathlib import Path

from junitparser import JUnitXml, TestSuite

from gateway.devtools.emulator.script import Script
from gateway.devtools.emulator.text_model import TextModel
from tests.support.harness import GatewayStack

ROUTES = """
[[route]]
name = "good"
to = "^good$"
[route.greeting]
say = "Good morning, this is the reception. How can I help you today?"

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
url = "ws://127.0.0.1:{port}/v1/realtime?script=silent"
api_key = "{key}"
"""

WORLD = {
    "routes": ROUTES,
    "more": '[control]\nsocket = "gateway.sock"\n',
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
        "good",
        ANSWER + CUT + '[[call.step]]\ndo = "wait_silence"\n',
        "cut_within_ms = 1400",
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
        + '[[call.step]]\ndo = "digits"\nkeys = "7#"\n'
        + REPLY,
        'hears = ["you pressed 4, 2", "you pressed 7"]',
        "line = { noise_dbfs = -60 }\n",
    )
    + call("is not there", "nowhere", '[[call.step]]\ndo = "expect_end"\n', "code = 404")
)

WRONG = (
    call("answered_within", "good", ANSWER, "answered_within = 0.001")
    + call("code", "good", ANSWER, "code = 486")
    + call("ended_by", "good", ANSWER, 'ended_by = "agent"')
    + call("ending", "good", ANSWER, 'ending = "agent_hangup"')
    + call("response_p95_ms", "mute", ANSWER + ASK + PAUSE, "response_p95_ms = 30000")
    + call("cut_within_ms", "deaf", ANSWER + CUT + '[[call.step]]\ndo = "wait_silence"\n',
           "cut_within_ms = 1400")
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
    host, port = world.gateway.sip
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "gateway", "test", file),
        *("-c", world.gateway.config, "--target", f"sip:{host}:{port}", "--parallel", "16"),
        *("--junit", folder / "out.xml", "--report", folder / "report"),
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    told, _ = await process.communicate()
    assert process.returncode in (0, 1), told.decode()
    (found,) = JUnitXml.fromfile(str(folder / "out.xml"))
    return process.returncode, told.decode(), found


async def test_a_good_agent_passes(world: GatewayStack, tmp_path: Path) -> None:
    status, told, results = await run(world, tmp_path, GOOD)
    assert status == 0, told
    assert (results.tests, results.failures) == (4, 0)
    assert ["suite", "4", "4", "0", "19", "0"] in [line.split() for line in told.splitlines()]
    page = (tmp_path / "report" / "index.html").read_text()
    assert "4 of 4 calls passed" in page
    assert "How can I help you today?" in page
    with wave.open(str(tmp_path / "report" / "001-talks.wav")) as sound:
        assert (sound.getnchannels(), sound.getframerate()) == (2, 8000)
        assert sound.getnframes() > 4 * 8000
    invites = world.gateway.all("call.invite")
    assert any(line["from"].startswith("sip:+49301234@") for line in invites), invites


async def test_a_wrong_agent_fails_each_assertion(world: GatewayStack, tmp_path: Path) -> None:
    status, told, results = await run(world, tmp_path, WRONG)
    assert status == 1, told
    for case in results:
        (failure,) = case.result
        assert failure.text.startswith(f"{case.name}: "), (case.name, failure.text)
        assert "\n" not in failure.text, failure.text
    assert results.failures == results.tests == 16


CALLER = """
[call.caller]
persona = "Vera, in a hurry"
goal = "a room"
max_turns = 2
[call.judge.criteria.kindness]
question = "Was the agent kind?"
[call.judge.criteria.brevity]
question = "Was the agent brief?"
"""


async def test_a_simulated_caller_talks_and_a_judge_marks(
    world: GatewayStack, tmp_path: Path
) -> None:
    script = {
        "text_replies": ["I need a room, please.", "Goodbye. [DONE]"],
        "text_scores": {"brevity": 2},
    }
    model = TextModel(lambda: Script.model_validate(script))
    url = f"http://127.0.0.1:{await model.start()}/v1"
    try:
        suite = f'[model]\nurl = "{url}"\n[[call]]\nname = "one"\nto = "good"\n{CALLER}'
        status, told, results = await run(world, tmp_path, suite)
    finally:
        await model.stop()
    assert status == 1, told
    (case,) = results
    lines = [line.split("  ", 1) for line in str(case.system_out).splitlines()]
    marks = {line[1].partition(": ")[0]: line[0] for line in lines if len(line) == 2}
    assert marks["steps"] == marks["caller"] == "passed", told
    found = [one.text for one in case.result]
    assert found == ["judge: brevity: 2: by the script; wanted at least 7 of 10"]
    assert "agent: You spoke for" in case.system_out
    assert "caller: I need a room, please." in case.system_out
    assert model.requests == 3
