# SPDX-License-Identifier: GPL-2.0-or-later
"""What ``gateway check`` notes of routes: patterns, hidden routes, and what has no effect."""

from __future__ import annotations

from pathlib import Path

import pytest

from gateway.planning.route_notes import pattern_note
from tests.unit.planning.test_check import BASE, checked
from tests.unit.planning.test_config_notes import HEARD


@pytest.mark.parametrize(
    ("pattern", "says"),
    [
        ("_1XX", 'looks like an Asterisk pattern; as a regular expression: "^1[0-9][0-9]$"'),
        ("^_0N.$", '"^0[2-9].+$"'),
        ("^1XX$", 'an Asterisk pattern; as a regular expression: "^1[0-9][0-9]$"'),
        ("1xx", 'looks like an Asterisk pattern; as a regular expression: "^1[0-9][0-9]$"'),
        ("sip:100@pbx.example", "is compared with the user"),
        ("^tel:[+]49", "is compared with the user"),
        (r"^\+49 30 123$", r'matches no number, since none has spaces or slashes: "^\+4930123$"'),
        ("/^100$/", '"^100$"'),
        ("^100$ ", '"^100$"'),
        ("100|200", 'matches longer numbers, too; only these: "^(100|200)$"'),
        ("^100|200$", 'only these: "^(100|200)$"'),
        ("^100|^200", None),
        ("^100$|^200$", None),
        ("1[0-9]{2}", 'only these: "^1[0-9]{2}$"'),
        (r"\d{3}", r'only these: "^\d{3}$"'),
        ("10.", 'only these: "^10.$"'),
        ("0?30", 'only these: "^0?30$"'),
        ("(100|200)", 'only these: "^(100|200)$"'),
        ("^10.$", None),
        ("^1[0-9]", None),
        ("[0-9]+", None),
        ("0ZX.", 'looks like an Asterisk pattern; as a regular expression: "^0[1-9][0-9].+$"'),
        ("100*", 'matches 10 and then any number of 0; numbers that begin with 100: "^100"'),
        ("100", 'matches 11002, too; only this number: "^100$"'),
        ("^100", "begins so"),
        ("100$", "ends so"),
        ("^100$", None),
        ("^1[0-9]*$", None),
        (".*", None),
        (".", None),
        ("^sales", None),
        ("^(100|200)$", None),
    ],
)
def test_patterns_that_mean_something_else(pattern: str, says: str | None) -> None:
    note = pattern_note(pattern)
    assert note is None if says is None else says in (note or "")


@pytest.mark.parametrize(
    ("first", "second", "hidden"),
    [
        ("", "to = '^100$'", "r takes every call, none is left for s"),
        ("to = '^1'", "to = '^100$'", "r comes first and takes every call of s"),
        ("to = '^100$'", "to = '^100$'\nfrom = '^\\+49'", "takes every call of s"),
        ("to = '^100$'\nfrom = '^\\+49'", "to = '^100$'", ""),
        ("to = '^200$'", "to = '^100$'", ""),
        ("to = '^1'\ntrunk = 'a'", "to = '^100$'", ""),
    ],
)
def test_routes_that_an_earlier_one_hides(
    tmp_path: Path, first: str, second: str, hidden: str
) -> None:
    trunk = '[[trunk]]\nname = "a"\npeers = ["127.0.0.1"]\n'
    routes = f"[[route]]\nname = 'r'\n{first}\n[[route]]\nname = 's'\n{second}\n"
    told = checked(tmp_path, BASE + trunk, routes)
    assert hidden in told
    assert ("takes every call" in told) is bool(hidden)


def test_an_approval_for_an_mcp_server_of_the_session(tmp_path: Path) -> None:
    tool = "{ type = 'mcp', server_label = 'crm', server_url = 'https://x.example/mcp' }"
    routes = f"[[route]]\nname = 'r'\nsession.tools = [{tool}]\n"
    routes += "[[route.approval]]\ntool = 'crm_*'\npolicy = 'allow'\n"
    assert "no tool fits" not in checked(tmp_path, routes=routes)


def test_words_of_callers_are_waited_for_where_they_are_transcribed(tmp_path: Path) -> None:
    route = "[[route]]\nname = 'r'\n[[route.transfer]]\nname = 'a'\nto = 'sip:a@b'\n"
    route += "[route.escape]\nphrases = ['human']\nto = ['a']\n"
    assert "escape.phrases are not understood" in checked(tmp_path, routes=route)
    (tmp_path / "heard").mkdir()
    heard = checked(tmp_path / "heard", routes=route + HEARD.format("gpt-transcribe"))
    assert "not understood" not in heard


LIVE_SERVER = BASE.replace("[realtime]\n", '[realtime]\nmodel = "gpt-live-1.1"\n')
BACKEND = 'live.delegation = { type = "responses", responses = { model = "m" } }\n'
EXACT = 'greeting = { say = "Hello.", exact = true }\n'


@pytest.mark.parametrize(
    ("config", "route", "note"),
    [
        ("", 'post_call.prompts.sum = "Sum up."\n', "post_call: has no effect with Live sessions"),
        ("", 'post_call.prompts.sum = "Sum up."\n' + BACKEND, ""),
        ("", "set_language.languages = { de = 'German' }\ntools = []\n", ""),
        ("", EXACT, "greeting.exact: has no effect without media.speech_command"),
        ('[media]\nspeech_command = ["espeak-ng"]\n', EXACT, ""),
    ],
)
def test_what_live_sessions_have_nothing_for(
    tmp_path: Path, config: str, route: str, note: str
) -> None:
    said = checked(tmp_path, LIVE_SERVER + config, f"[[route]]\nname = 'r'\nto = '^1$'\n{route}")
    assert (note or ": good") in said
    assert ("no effect" in said) == bool(note)


def test_a_history_that_finds_nothing_is_named(tmp_path: Path) -> None:
    table = "[route.caller_history]\nenabled = true\nroutes = ['s']\ntrust = 'any'\n"
    config = BASE + "[records]\nfolder = 'records'\nredact = ['numbers']\n"
    said = checked(tmp_path, config, f"[[route]]\nname = 'r'\n{table}")
    assert 'route r, caller_history.routes: there is no route "s"' in said
    assert "finds no calls of this route" in said
    assert "anybody who sends a number" in said
