# SPDX-License-Identifier: GPL-2.0-or-later
"""Black boxes of real calls: replayed they do the same, and a change of the rules shows."""

from __future__ import annotations

import json
import runpy
from pathlib import Path

import pytest
from click.testing import CliRunner

from gateway.bridge.replay import replay
from gateway.cli.main import main
from gateway.records.black_boxes import SUFFIX
from tests.support.harness import GatewayStack, eventually
from tests.support.listening import noise
from tests.support.sip_phone import PhoneCall

WORLD = {
    "routes": """
[[route]]
name = "boxed"
to = "^boxed$"
records.black_box = "always"
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
    await eventually(lambda: path.exists() and "outputs.Finished" in path.read_text(), "its end")
    return path


async def talked(world: GatewayStack, user: str) -> PhoneCall:
    """A call with a greeting, an interruption, keys and a BYE."""
    world.behave(answer={"kind": "pattern", "seconds": 3})
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
    assert (again.steps, list(again.differences)) == (len(lines) - 1, [])
    test = tmp_path / "test_incident.py"
    run = CliRunner().invoke(main, ["replay", str(path), "--as-test", str(test)])
    assert run.exit_code == 0
    assert run.output.endswith(f": {again.steps} steps, no difference\n")
    assert f"written: {test} and {test.with_suffix('.blackbox.jsonl')}\n" in run.output
    run = CliRunner().invoke(main, ["replay", str(path), "--as-test", str(test)])
    assert (run.exit_code, "is there already" in run.output) == (2, True)
    runpy.run_path(str(test))["test_the_call_goes_as_it_went"]()
    # A rule that is changed: keys no longer make an item.
    monkeypatch.setattr("gateway.call.machine.LegEvents.on_digit", lambda *_given: [])
    run = CliRunner().invoke(main, ["replay", str(path)])
    assert run.exit_code == 1
    assert "DigitPressed" in run.output


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
        if step["in"] and "digit" in step["in"]
    ]
    assert digits == ["0", "0", "#"]
    assert list(replay(text.splitlines()).differences) == []


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("", "line 1"),
        ("hello", "line 1: no JSON"),
        ("[]", "line 1: no object"),
        ('{"black_box": 99}', "line 1: no black box"),
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
