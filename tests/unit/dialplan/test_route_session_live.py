# SPDX-License-Identifier: GPL-2.0-or-later
"""``[route.live]``: each setting of a Live session is taken, each mistake named with its place."""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import Any

import pytest

from gateway.config import ConfigError
from gateway.dialplan import load_dialplan
from gateway.dialplan.route_session import judge_live
from gateway.planning.check import check
from gateway.realtime.session_object import MAX_INPUT_MESSAGES, live_object, with_history
from tests.support.official_types import check_live_client_event

WHOLE = """
model = "gpt-live-1.1"
instructions = "You speak with {from}."
store = true
safety_identifier = "caller-1"
audio.output.voice = "cedar"
[[input]]
role = "developer"
content = [{ type = "input_text", text = "The caller is {from_name|a stranger}." }]
[[input]]
role = "assistant"
content = [{ type = "output_text", text = "Good morning." }]
[delegation]
type = "responses"
acknowledgement_delay_ms = 300
[delegation.responses]
model = "gpt-5.5-mini"
instructions = "Use the tools."
max_output_tokens = 400
parallel_tool_calls = false
reasoning = { effort = "low", summary = "auto" }
service_tier = "priority"
text.verbosity = "low"
tool_choice = "auto"
[[delegation.responses.tools]]
type = "function"
name = "lookup"
description = "Looks it up."
parameters = { type = "object", properties = {} }
[[triggers]]
type = "decisions"
event_type = "session.input_transcript.delta"
[[triggers.decisions.questions]]
type = "predicate"
instructions = "Does the caller ask for a person?"
"""

MISTAKES: dict[str, tuple[str, str]] = {
    "audio.output.voise = 'cedar'": ("audio.output.voise", "no setting"),
    "audio.output.voice = 'cedr'": ("audio.output.voice", "cedar"),
    "audio.format.type = 'audio/pcmu'": ("audio.format", "set by the gateway"),
    "client.idle_timeout_s = 3": ("client", "set by the gateway"),
    "turn_detection.type = 'server_vad'": ("turn_detection", "no setting"),
    "store = 'yes'": ("store", "must be"),
    "delegation.type = 'response'": ("delegation", "responses"),
    "delegation = { type = 'responses' }": ("delegation.responses", "required"),
    "delegation = { type = 'responses', responses = { model = 'm', max_output_tokens = 3 } }": (
        "delegation.responses.max_output_tokens",
        "16",
    ),
    "input = [{ role = 'user', content = [] }]": ("input[0].content", "at least 1"),
    "input = [{ role = 'tool', content = [{ text = 'x' }] }]": ("input[0].role", "developer"),
    "triggers = [{ event_type = 'session.closed', decisions = { questions = [{}] } }]": (
        "triggers[0].event_type",
        "not known",
    ),
    "instructions = 'Hello {nobody}.'": ("instructions", "no variable {nobody}"),
}


def route(tmp_path: Path, live: str, before: str = "") -> Path:
    folder = tmp_path / "dialplans"
    folder.mkdir()
    text = f'[[route]]\nname = "r"\n{before}[route.live]\n{live}\n'
    (folder / "r.toml").write_text(text)
    return folder


def test_the_whole_object_is_taken_and_is_one_of_the_official_types(tmp_path: Path) -> None:
    given: dict[str, Any] = tomllib.loads(WHOLE)
    assert judge_live(given) == []
    check_live_client_event({"type": "session.start", "session": live_object(given, "PCMA")})
    assert live_object(given, "PCMA")["audio"] == {
        "output": {"voice": "cedar"},
        "format": {"type": "audio/pcma", "rate": 8000},
    }


@pytest.mark.parametrize("line", MISTAKES)
def test_a_mistake_is_named_with_file_line_and_key(tmp_path: Path, line: str) -> None:
    folder = route(tmp_path, f"model = 'gpt-live-1'\n{line}")
    with pytest.raises(ConfigError) as raised:
        load_dialplan(folder, {}, unknown="error")
    key, words = MISTAKES[line]
    told = [str(problem) for problem in raised.value.problems]
    found = [one for one in told if f"live.{key}" in one]
    assert found, told
    assert "r.toml:5" in found[0], found
    assert words in found[0], found


CONFIG = """
[realtime]
url = "ws://127.0.0.1:8765/v1/{path}"
model = "{model}"
[dialplan]
folder = "dialplans"
"""


@pytest.mark.parametrize(
    ("path", "model", "tables", "wrong"),
    [
        ("live/sessions", "gpt-live-1.1", "live", ""),
        ("realtime", "gpt-live-1.1", "live", ""),
        ("live/sessions", "gpt-live-1.1", "live session", ""),
        ("realtime", "gpt-realtime-2.1", "live session", ""),
        ("live/sessions", "gpt-live-1.1", "session", "there is no [route.live]"),
        ("realtime", "gpt-realtime-2.1", "live", "there is no [route.session]"),
        ("live/sessions", "gpt-realtime-2.1", "live", "needs a Live model"),
    ],
)
def test_a_route_has_the_object_for_its_server(
    tmp_path: Path, path: str, model: str, tables: str, wrong: str
) -> None:
    folder = tmp_path / "dialplans"
    folder.mkdir()
    given = "".join(f'[route.{table}]\ninstructions = "Hello."\n' for table in tables.split())
    (folder / "r.toml").write_text(f'[[route]]\nname = "r"\n{given}')
    (tmp_path / "gateway.toml").write_text(CONFIG.format(path=path, model=model))
    status, lines = check(tmp_path / "gateway.toml", {})
    assert status == (2 if wrong else 0), lines
    if wrong:
        assert any(wrong in line and "r.toml:" in line for line in lines), lines


def test_settings_that_a_live_session_has_nothing_for_are_noted(tmp_path: Path) -> None:
    route(
        tmp_path,
        'instructions = "Hello."\n[route.interruptions]\nmode = "disabled"\n'
        '[[route.guardrail]]\nname = "g"\nspeaker = "both"\npattern = "x"\nreplacement = "y"',
    )
    config = CONFIG.format(path="live/sessions", model="gpt-live-1.1")
    (tmp_path / "gateway.toml").write_text(config)
    status, lines = check(tmp_path / "gateway.toml", {})
    assert status == 0, lines
    noted = [line for line in lines if "note: " in line]
    assert [("no effect" in one, "seconds after" in one) for one in noted] == [
        (True, False),
        (False, True),
    ], noted


def test_a_conversation_is_told_as_far_as_it_fits() -> None:
    said = [
        {"type": "message", "role": "user", "content": [{"type": "input_text", "text": f"{n}"}]}
        for n in range(300)
    ]
    call = {"type": "function_call", "call_id": "c", "name": "look", "arguments": "{}"}
    result = {"type": "function_call_output", "call_id": "c", "output": "two"}
    made = with_history(live_object({"model": "m"}, "PCMU"), [*said, call, result])
    check_live_client_event({"type": "session.start", "session": made})
    assert len(made["input"]) == MAX_INPUT_MESSAGES
    assert [one["content"][0]["text"] for one in made["input"][-3:]] == [
        "299",
        "Called look with {}",
        "The result: two",
    ]
    long = [{**said[0], "content": [{"type": "input_text", "text": "x" * 10_000}]}] * 5
    assert len(with_history(live_object({}, "PCMU"), long)["input"]) == 2


def test_types_that_a_route_may_leave_out_are_sent() -> None:
    question = {"type": "predicate", "name": "angry", "instructions": "Are they angry?"}
    tool = {"name": "look", "parameters": {}, "strict": True}
    given = {
        "model": "gpt-live-1",
        "input": [
            {"role": role, "content": [{"text": "Hello."}]} for role in ("user", "assistant")
        ],
        "triggers": [
            {
                "event_type": "session.input_transcript.delta",
                "decisions": {"questions": [question]},
            }
        ],
        "delegation": {"type": "responses", "responses": {"model": "m", "tools": [tool]}},
    }
    assert not judge_live(given)
    made = live_object(given, "PCMU")
    check_live_client_event({"type": "session.start", "session": made})
    assert made["triggers"][0]["type"] == "decisions"
    assert [one["content"][0]["type"] for one in made["input"]] == ["input_text", "output_text"]
