# SPDX-License-Identifier: GPL-2.0-or-later
"""The session object of a route: each setting of the protocol is taken, each mistake named."""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import Any

import pytest

from gateway.config import ConfigError
from gateway.devtools.emulator.client_events import default_session, updated_session
from gateway.dialplan import load_dialplan
from gateway.dialplan.session_settings import judge_session, nulled
from gateway.planning.check import check
from gateway.realtime.session_object import session_object

WHOLE = """
instructions = "Be short."
output_modalities = ["audio"]
tool_choice = { type = "function", name = "lookup" }
parallel_tool_calls = true
max_output_tokens = 900
truncation = { type = "retention_ratio", retention_ratio = 0.8, token_limits.post_instructions = 9 }
reasoning.effort = "low"
prompt = { id = "pmpt_1", version = "3", variables = { city = "Bonn" } }
tracing = { workflow_name = "desk", group_id = "g", metadata = { caller = "{from}" } }
include = ["item.input_audio_transcription.logprobs"]
[audio.output]
voice = "marin"
speed = 1.1
[audio.input]
noise_reduction = { type = "far_field", strength = 0.5 }
[audio.input.transcription]
model = "gpt-transcribe"
language = "de"
languages = ["de", "en"]
keywords = ["Bonn"]
prompt = "A desk."
[audio.input.turn_detection]
type = "server_vad"
threshold = 0.6
prefix_padding_ms = 200
silence_duration_ms = 400
idle_timeout_ms = 9000
create_response = true
interrupt_response = false
[[tools]]
type = "function"
name = "lookup"
description = "Looks it up."
parameters = { type = "object" }
[[tools]]
type = "mcp"
server_label = "crm"
server_url = "https://crm.example/mcp"
authorization = "t"
headers = { X-A = "b" }
allowed_tools = ["find"]
require_approval = { never = { tool_names = ["find"] } }
"""

SEMANTIC = 'audio.input.turn_detection = { type = "semantic_vad", eagerness = "low" }'
ALL_OFF = """
prompt = false
tracing = false
[audio.input]
turn_detection = false
noise_reduction = false
transcription = false
"""


@pytest.mark.parametrize("written", [WHOLE, SEMANTIC, ALL_OFF], ids=["whole", "semantic", "off"])
def test_what_the_protocol_has_is_taken_here_and_by_a_strict_server(written: str) -> None:
    given = tomllib.loads(written)
    assert judge_session(given) == []
    asked = session_object(nulled(given), "PCMU", [])
    in_force = updated_session(default_session("m"), asked, voice_locked=False)
    for key in given.keys() - {"audio"}:
        assert in_force[key] == (None if given[key] is False else given[key])
    for side in given.get("audio", {}):
        for key, value in given["audio"][side].items():
            if isinstance(value, dict):
                assert value.items() <= in_force["audio"][side][key].items()
            else:
                assert in_force["audio"][side][key] == (None if value is False else value)


MISTAKES: list[tuple[str, str, str, bool]] = [
    # what is written; where the mistake is; part of the message; may it only be new?
    ("instructions = 3", "instructions", "string", False),
    ('instrutions = "x"', "instrutions", 'did you mean "instructions"', True),
    ('voice = "marin"', "voice", "it is audio.output.voice", True),
    ("turn_detection.type = 'server_vad'", "turn_detection", "it is audio.input.turn", True),
    ('output_modalities = ["audio", "text"]', "output_modalities", '["audio"]', False),
    ('output_modalities = ["text"]', "output_modalities", "has no text", False),
    ('audio.output.voice = "tomorrow"', "audio.output.voice", "not a voice known", True),
    ('audio.output.voice = "marine"', "audio.output.voice", 'did you mean "marin"', True),
    ("audio.output.voice = { name = 'x' }", "audio.output.voice", "id =", False),
    ("audio.output.speed = 1.6", "audio.output.speed", "less than or equal to 1.5", False),
    ("audio.output.pitch = 2", "audio.output.pitch", "no setting", True),
    ("audio.input.turn_detection = 'on'", "audio.input.turn_detection", "a table", False),
    (
        "audio.input.turn_detection.type = 'clever_vad'",
        "audio.input.turn_detection",
        "type that this gateway does not know",
        True,
    ),
    (
        "audio.input.turn_detection.threshold = 1.5",
        "audio.input.turn_detection.threshold",
        "less than or equal to 1",
        False,
    ),
    (
        "audio.input.turn_detection.silence_duration_ms = '500'",
        "audio.input.turn_detection.silence_duration_ms",
        "integer",
        False,
    ),
    (
        "audio.input.turn_detection.prefix_padding_ms = -1",
        "audio.input.turn_detection.prefix_padding_ms",
        "greater than or equal to 0",
        False,
    ),
    (
        "audio.input.turn_detection = { type = 'semantic_vad', idle_timeout_ms = 5 }",
        "audio.input.turn_detection.idle_timeout_ms",
        "belongs to server_vad",
        False,
    ),
    (
        "audio.input.turn_detection = { eagerness = 'low' }",
        "audio.input.turn_detection.eagerness",
        "belongs to semantic_vad",
        False,
    ),
    (
        "audio.input.turn_detection = { type = 'semantic_vad', eagerness = 'wild' }",
        "audio.input.turn_detection.eagerness",
        "not known to this gateway",
        True,
    ),
    (
        "audio.input.noise_reduction.type = 'mid_field'",
        "audio.input.noise_reduction.type",
        "far_field",
        True,
    ),
    (
        "audio.input.transcription.language = 'de'",
        "audio.input.transcription.model",
        "required",
        False,
    ),
    (
        "audio.input.transcription = { model = 'whisper-1', keywords = ['x'] }",
        "audio.input.transcription.keywords",
        "not accepted by the model whisper-1",
        False,
    ),
    ("tools = [{ type = 'function' }]", "tools[0].name", "required", False),
    ("tools = [{ type = 'function', name = 'a b' }]", "tools[0].name", "letters, digits", False),
    ("tools = [{ type = 'web_search' }]", "tools[0]", "type that this gateway does not", True),
    ("tools = [{ type = 'mcp', server_label = 'x' }]", "tools[0]", "one of server_url", False),
    ("tool_choice = 'any'", "tool_choice", "not known to this gateway", True),
    ("tool_choice = { type = 'function' }", "tool_choice", "must be", False),
    ("max_output_tokens = 0", "max_output_tokens", "from 1", False),
    ("truncation = 'oldest'", "truncation", "retention_ratio", False),
    (
        "truncation = { type = 'retention_ratio', retention_ratio = 2.0 }",
        "truncation.retention_ratio",
        "less than or equal to 1",
        False,
    ),
    (
        "truncation = { type = 'retention_ratio', retention_ratio = 0.5, token_limits.all = 3 }",
        "truncation.token_limits.all",
        "no setting",
        True,
    ),
    ("reasoning.effort = 'max'", "reasoning.effort", "not known to this gateway", True),
    ("prompt.version = '2'", "prompt.id", "required", False),
    ("prompt = { id = 'p', variables = { a = 3 } }", "prompt.variables.a", "must be a text", False),
    ("tracing = true", "tracing", '"auto"', False),
    ("include = ['everything']", "include[0]", "not known to this gateway", True),
]


@pytest.mark.parametrize(
    ("written", "key", "message", "is_new"), MISTAKES, ids=[row[0] for row in MISTAKES]
)
def test_mistakes(tmp_path: Path, written: str, key: str, message: str, is_new: bool) -> None:
    """With file, line and key. What may only be newer than the gateway is a matter of a setting."""
    file = tmp_path / "a.toml"
    file.write_text(f'[[route]]\nname = "a"\n\n[route.session]\n{written}\n')
    with pytest.raises(ConfigError) as caught:
        load_dialplan(tmp_path, unknown="error")
    (problem,) = caught.value.problems
    assert (problem.file, problem.key) == (file, f"route[0].session.{key}")
    assert problem.line in (4, 5)
    assert message in problem.message
    if is_new:
        assert load_dialplan(tmp_path).unsure == (problem,)
    else:
        with pytest.raises(ConfigError):
            load_dialplan(tmp_path)


def test_a_choice_that_a_call_makes_is_not_judged_before() -> None:
    given: dict[str, Any] = {
        "audio": {
            "input": {"transcription": {"model": "whisper-1", "language": "{header.X-Lang|de}"}},
            "output": {"voice": "{header.X-Voice|marin}"},
        }
    }
    assert judge_session(given) == []


CONFIG = '[realtime]\nurl = "ws://127.0.0.1:1/v1"\n'


def checked(folder: Path, more: str, route: str) -> tuple[int, str]:
    (folder / "dialplans").mkdir()
    (folder / "dialplans" / "a.toml").write_text(f'[[route]]\nname = "a"\n{route}\n')
    (folder / "gateway.toml").write_text(CONFIG + more)
    status, lines = check(folder / "gateway.toml")
    return status, "\n".join(lines)


PROMPT = 'session.prompt.id = "pmpt_1"\n'


@pytest.mark.parametrize(
    ("route", "noted"),
    [
        (PROMPT, False),
        (PROMPT + "end_call.enabled = true", True),
        (PROMPT + "hold.enabled = true", True),
        (PROMPT + 'session.tools = [{ type = "function", name = "f" }]', True),
        ("hold.enabled = true", False),
    ],
)
def test_tools_that_replace_those_of_a_hosted_prompt_are_noted(
    tmp_path: Path, route: str, noted: bool
) -> None:
    status, said = checked(tmp_path, "", route)
    assert status == 0
    assert ("take the place of those of the hosted prompt" in said) is noted


@pytest.mark.parametrize(
    ("home", "fallback", "noted"),
    [
        ("eu.api.openai.com", "api.openai.com", True),
        ("eu.api.openai.com", "us.api.openai.com", True),
        ("eu.api.openai.com", "elsewhere.example", True),
        ("eu.api.openai.com", "EU.api.openai.com", False),
        ("api.openai.com", "eu.api.openai.com", False),
    ],
)
def test_a_fallback_in_another_region_is_noted(
    tmp_path: Path, home: str, fallback: str, noted: bool
) -> None:
    more = 'api_key = "k"\n[[realtime_server]]\nname = "other"\n'
    more += f'url = "wss://{fallback}/v1"\napi_key = "k"\n'
    route = (
        f'realtime.url = "wss://{home}/v1"\nrealtime.api_key = "k"\n'
        'fallback = [{ action = "server", server = "other" }]'
    )
    status, said = checked(tmp_path, more, route)
    assert status == 0, said
    assert ("keeps data in" in said) is noted


def test_gateway_check_notes_what_it_does_not_know_or_refuses_it(tmp_path: Path) -> None:
    route = 'session.audio.output.voice = "tomorrow"'
    (tmp_path / "warn").mkdir()
    status, said = checked(tmp_path / "warn", "", route)
    assert status == 0
    assert "a.toml:3: route[0].session.audio.output.voice: 'tomorrow' is not a voice" in said
    (tmp_path / "refuse").mkdir()
    more = '[dialplan]\nunknown_session_fields = "error"\n'
    status, said = checked(tmp_path / "refuse", more, route)
    assert status == 2
    assert "'tomorrow' is not a voice" in said


@pytest.mark.parametrize(("dialect", "status"), [("ga", 2), ("beta", 0)])
def test_temperature_is_for_servers_with_the_beta_protocol(
    tmp_path: Path, dialect: str, status: int
) -> None:
    route = f'session.temperature = 0.8\nrealtime.dialect = "{dialect}"'
    found, said = checked(tmp_path, "", route)
    assert found == status
    assert ("GA has none" in said) == (status == 2)
