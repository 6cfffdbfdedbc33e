# SPDX-License-Identifier: GPL-2.0-or-later
"""Suites as files: what they may say, and mistakes with file, line and key."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from gateway.config.source import ConfigError, Section, known_keys
from gateway.devtools.call_suites import (
    Call,
    Expect,
    Judge,
    Network,
    Persona,
    Recogniser,
    SuiteFile,
    TextModel,
    load_suites,
)
from gateway.devtools.call_suites.running import slug, uri_of

STEP = '[[call.step]]\ndo = "wait_answer"\n'
CALL = f'[[call]]\nname = "one"\n{STEP}'


def write(tmp_path: Path, text: str, name: str = "a.toml") -> Path:
    file = tmp_path / name
    file.write_text(text)
    return file


def test_calls_of_a_folder_are_numbered_through(tmp_path: Path) -> None:
    write(tmp_path, CALL, "b.toml")
    write(tmp_path, CALL + '[[call]]\nname = "two"\nfrom = "+4930"\n' + STEP, "a.toml")
    found = load_suites([tmp_path])
    assert [(one.suite, one.name, one.number) for one in found] == [
        ("a", "one", 1),
        ("a", "two", 2),
        ("b", "one", 3),
    ]
    assert [one.caller_id for one in found] == ["caller1", "+4930", "caller3"]


def test_a_call_is_repeated_under_names_of_its_own(tmp_path: Path) -> None:
    found = load_suites([write(tmp_path, f'[[call]]\nname = "x"\nrepeat = 2\n{STEP}')])
    assert [one.name for one in found] == ["x (1)", "x (2)"]


def test_a_simulated_caller_needs_no_steps(tmp_path: Path) -> None:
    text = '[[call]]\nname = "x"\n[call.caller]\npersona = "old"\ngoal = "a room"\n'
    (found,) = load_suites([write(tmp_path, text)])
    assert [step.do for step in found.script.steps] == ["wait_answer"]


MISTAKES = {
    "": "{f}:1: call: a suite needs calls: write [[call]] and name = ...",
    '[[call]]\nname = "x"\n': "{f}:1: call[0]: needs steps, [[call.step]], or a [call.caller]",
    CALL + CALL: "{f}:6: call[1].name: another call is named 'one'",
    CALL + "[call.expect]\nanswered_withn = 3\n": "{f}:6: call[0].expect.answered_withn: unknown "
    'key; did you mean "answered_within"?',
    CALL + "[call.expect]\ncut_within_ms = 3\n": "{f}:6: call[0].expect.cut_within_ms: unknown "
    'key; it is called "barge_in_latency_ms" now',
    CALL + '[[call.step]]\ndo = "sing"\n': "{f}:6: call[0].step[1].do: unknown step 'sing'",
    CALL + '[[call.step]]\ndo = "interrupt"\n': "{f}:5: call[0].step[1]: an interruption has "
    "either a text or a file",
    CALL + '[call.expect]\ntransfer_to = "("\n': "{f}:6: call[0].expect.transfer_to: is no regular "
    "expression",
    '[[call]]\nname = "x"\nheaders = { Via = "1" }\n' + STEP: "{f}:3: call[0].headers.Via: Via is "
    "set by the caller itself",
    '[[call]]\nname = "x"\nheaders = { X-A = "1\\r\\nX-B: 2" }\n' + STEP: "{f}:3: "
    "call[0].headers.X-A: must be one line of printable characters",
    '[[call]]\nname = "x"\nfrom = "a@b"\n' + STEP: "{f}:3: call[0].from: must match",
    'target = "127.0.0.1"\n' + CALL: "{f}:1: target: must be a SIP address",
    '[model]\nurl = "ftp://x"\n' + CALL: "{f}:1: model: url must begin with http:// or https://",
    '[[call]]\nname = "x"\n[[call.step]]\ndo = "say"\ntext = "x"\n': "{f}:4: call[0].step[0].do: "
    'say needs a step do = "wait_answer" before it',
}


@pytest.mark.parametrize("text", MISTAKES, ids=lambda text: str(text)[-40:])
def test_a_mistake_names_file_line_and_key(text: str, tmp_path: Path) -> None:
    file = write(tmp_path, text)
    with pytest.raises(ConfigError) as raised:
        load_suites([file])
    assert str(raised.value).startswith(MISTAKES[text].format(f=file)), str(raised.value)


def test_mistakes_of_all_files_are_told_at_once(tmp_path: Path) -> None:
    write(tmp_path, "", "a.toml")
    write(tmp_path, "call = 3", "b.toml")
    with pytest.raises(ConfigError) as raised:
        load_suites([tmp_path])
    assert len(raised.value.problems) == 2


def test_an_empty_folder_is_a_mistake(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no suite"):
        load_suites([tmp_path])


@pytest.mark.parametrize(
    ("target", "to", "uri"),
    [
        ("sip:127.0.0.1:5060", "100", "sip:100@127.0.0.1:5060"),
        ("sip:x@[::1]:5060;transport=tcp", "+49", "sip:+49@[::1]:5060;transport=tcp"),
        ("", "sip:a@b", "sip:a@b"),
    ],
)
def test_whom_is_called(target: str, to: str, uri: str) -> None:
    assert uri_of(target, to) == uri


DOCS = Path(__file__).parents[4] / "docs" / "testing-calls.md"


@pytest.mark.parametrize(
    "section", [Call, Expect, Judge, Network, Persona, Recogniser, SuiteFile, TextModel]
)
def test_every_key_is_in_the_manual(section: type[Section]) -> None:
    page = DOCS.read_text("utf-8")
    for key in known_keys(section):
        assert re.search(rf"`\[?(\[?call\.|line\.)?{key}\b", page), key


def test_the_example_of_the_manual_and_the_shipped_suites_are_good(tmp_path: Path) -> None:
    examples = re.findall(r"```toml\n(.*?)```", DOCS.read_text("utf-8"), re.S)
    files = [write(tmp_path, text, f"{name}.toml") for name, text in enumerate(examples)]
    assert len(load_suites([*files, DOCS.parents[1] / "suites"])) >= 5


def test_names_become_file_names() -> None:
    assert slug("../../Ä: it's <b>") == "it-s-b"
