# SPDX-License-Identifier: GPL-2.0-or-later
"""Tables of a route: what a section may not say, and what it may not beside another."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from gateway.config import ConfigError
from gateway.dialplan import load_dialplan
from gateway.planning.route_tools import content_plan
from tests.unit.dialplan.test_route_session import route_of


@pytest.mark.parametrize(
    ("text", "place"),
    [
        ('hold_wait.enabled = true\nmachine_detection.music = "hangup"', "machine_detection.music"),
        (
            'hold_wait.enabled = true\nsession.audio.input.turn_detection = "null"',
            "session.audio.input.turn_detection",
        ),
        ('hold_wait.transfer_to = "nobody"', "hold_wait.transfer_to"),
        ('[[route.hold_wait.key]]\nwords = "1"\ndigits = "one"', "hold_wait.key"),
        ("line.min_level = 3.0", "line.min_level"),
        ("line.max_loss = 101", "line.max_loss"),
    ],
)
def test_settings_that_cannot_be_are_named(tmp_path: Path, text: str, place: str) -> None:
    (tmp_path / "a.toml").write_text(f'[[route]]\nname = "a"\n{text}\n', encoding="utf-8")
    with pytest.raises(ConfigError, match=re.escape(place)):
        load_dialplan(tmp_path, {})


@pytest.mark.parametrize(
    ("text", "fits", "not_fits"),
    [
        ('words = ["a b", "c++"]', ["an A  B, c", "in C++."], ["ab", "xa b", "c+ +"]),
        ("pattern = '\\d{4}'", ["pin 1234"], ["pin 123"]),
        ('words = ["größe"]', ["Die GRÖSSE", "GRÖßE"][1:], ["größen"]),
    ],
)
def test_words_are_whole_and_of_any_case(
    tmp_path: Path, text: str, fits: list[str], not_fits: list[str]
) -> None:
    (rule,) = content_plan(
        route_of(tmp_path, f'[[route.guardrail]]\nname = "g"\n{text}'), {}
    ).guardrails
    assert rule.pattern is not None
    assert [one for one in fits if not rule.pattern.search(one)] == []
    assert [one for one in not_fits if rule.pattern.search(one)] == []


@pytest.mark.parametrize(
    ("text", "key", "message"),
    [
        (
            'guardrail = [{ name = "g", words = ["a"] }, { name = "g", words = ["b"] }]',
            "guardrail[1].name",
            "is used twice",
        ),
        (
            'fallback = [{ action = "busy" }, { action = "reconnect" }]',
            "fallback[1].action",
            'is never reached: the "busy" before it ends the call',
        ),
        ('guardrail = [{ name = "g" }]', "guardrail[0].words", "is needed, or pattern, or url"),
        (
            'guardrail = [{ name = "g", words = ["a"], pattern = "a" }]',
            "guardrail[0].pattern",
            "exclude",
        ),
        (
            'guardrail = [{ name = "g", pattern = "a*" }]',
            "guardrail[0].pattern",
            "matches everything",
        ),
        (
            'guardrail = [{ name = "g", pattern = "(" }]',
            "guardrail[0].pattern",
            "not a valid regular expression",
        ),
        (
            'guardrail = [{ name = "g", words = ["a"], action = "transfer" }]',
            "guardrail[0].transfer_to",
            'is needed for action = "transfer"',
        ),
        (
            'guardrail = [{ name = "g", words = ["a"], action = "transfer", transfer_to = "x" }]',
            "guardrail[0].transfer_to",
            'there is no [[route.transfer]] "x"',
        ),
        (
            'response_failure.transfer_to = "x"',
            "response_failure.transfer_to",
            "there is no [[route.transfer]]",
        ),
        ('response_failure.sound = "hum"', "response_failure.sound", ""),
        ('context.strategy = "forget"', "context.strategy", "'delete' or 'summarize'"),
        ("context.max_turns = -1", "context.max_turns", "greater than or equal to 0"),
        ('post_call.prompts = { "A b" = "x" }', "post_call.prompts.A b", "a-z"),
        ('message = [{ role = "user" }]', "message[0]", "either text or file"),
        ('message = [{ text = "a", file = "b" }]', "message[0]", "either text or file"),
        ('message = [{ role = "tool", text = "a" }]', "message[0].role", "'system'"),
        ('message = [{ text = "{nobody}" }]', "message[0].text", "there is no variable {nobody}"),
        ('message = [{ file = "nothing.txt" }]', "message[0].file", "cannot be read"),
        (
            'message = [{ file = "r.toml" }]  # {nobody}',
            "message[0].file",
            "there is no variable {nobody}",
        ),
    ],
)
def test_mistakes_are_named(tmp_path: Path, text: str, key: str, message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        route_of(tmp_path, text)
    (problem,) = caught.value.problems
    assert problem.key.replace('"', "") == f"route[0].{key}"
    assert message in problem.message


@pytest.mark.parametrize(
    ("text", "key"),
    [
        ('machine_detection.bot = "transfer"', "machine_detection.bot"),
        ('machine_detection.bot = "log"\nsession.audio.input.turn_detection = "null"', "session"),
        ("idle.timeout = 5\nsession.audio.input.turn_detection.idle_timeout_ms = 6000", "session"),
        ("machine_detection.bot_equal_turns = 2", "machine_detection.bot_equal_turns"),
        ("machine_detection.beep_timeout = 61", "machine_detection.beep_timeout"),
        ("machine_detection.music_threshold = 0", "machine_detection.music_threshold"),
    ],
)
def test_what_cannot_work_is_refused(tmp_path: Path, text: str, key: str) -> None:
    (tmp_path / "a.toml").write_text(f'[[route]]\nname = "a"\n{text}\n')
    with pytest.raises(ConfigError) as caught:
        load_dialplan(tmp_path)
    assert caught.value.problems[0].key.startswith(f"route[0].{key}")
