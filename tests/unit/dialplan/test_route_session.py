# SPDX-License-Identifier: GPL-2.0-or-later
"""What a route says of its sessions beside their objects: messages, and mere transcription."""

from __future__ import annotations

from pathlib import Path

import pytest

from gateway.config import ConfigError
from gateway.dialplan import Route, load_dialplan
from gateway.planning.route_tools import content_plan
from tests.unit.planning.test_check import BASE, checked


def route_of(folder: Path, text: str) -> Route:
    (folder / "r.toml").write_text(f'[[route]]\nname = "r"\n{text}', encoding="utf-8")
    (route,) = load_dialplan(folder, {}).routes
    return route


def test_messages_at_the_start_are_texts_or_files_with_variables(tmp_path: Path) -> None:
    (tmp_path / "rules.txt").write_text(
        "\nYou speak with {from_name|somebody}.\n", encoding="utf-8"
    )
    messages = (
        'message = [{ file = "rules.txt" }, { role = "user", text = "Hi." },'
        ' { role = "assistant", text = "Hello." }]'
    )
    plan = content_plan(route_of(tmp_path, messages), {"from_name": "Ann"})
    assert plan.messages == (
        ("system", "You speak with Ann."), ("user", "Hi."), ("assistant", "Hello."),
    )  # fmt: skip
    (tmp_path / "rules.txt").write_bytes(b"x" * 16_001)
    with pytest.raises(ConfigError, match="1 to 16000 characters"):
        route_of(tmp_path, messages)


LISTENS = (
    "[[route]]\nname = 'r'\ntranscription.enabled = true\n"
    "session.audio.input.transcription.model = 'gpt-transcribe'\n"
)


@pytest.mark.parametrize(
    ("routes", "says"),
    [
        (LISTENS, "gateway.toml: good"),
        (LISTENS + "realtime.dialect = 'beta'\n", 'transcription: needs realtime.dialect = "ga"'),
        (LISTENS + "realtime.dialect = 'azure-preview'\n", 'needs realtime.dialect = "ga"'),
        (
            LISTENS + "realtime.url = 'ws://127.0.0.1:1/v1/live'\n",
            "transcription: needs servers with Realtime sessions",
        ),
        (LISTENS + "greeting.say = 'Hi.'\n", "greeting: has no effect with"),
        (LISTENS + "session.instructions = 'Hi.'\n", "session.instructions: has no effect with"),
        (LISTENS + "session.audio.output.voice = 'cedar'\n", "session.audio.output: has no"),
        (LISTENS.replace("transcribe", "realtime-whisper"), "transcription.model: cannot be used"),
        (LISTENS + "session.audio.input.turn_detection = false\n", "turn_detection: is needed"),
        (LISTENS[: LISTENS.index("session")], "needs session.audio.input.transcription.model"),
        (LISTENS.replace("enabled = true", "end_phrases = ['bye']"), "needs enabled = true"),
    ],
)
def test_what_transcribed_calls_need(tmp_path: Path, routes: str, says: str) -> None:
    assert says in checked(tmp_path, BASE, routes)
