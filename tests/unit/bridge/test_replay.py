# SPDX-License-Identifier: GPL-2.0-or-later
"""Replays: a set of kept calls with every kind of ending, changed rules, files by strangers."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import pytest

from gateway.bridge.replay import BlackBoxError, read_lines, replay
from gateway.ending import EndReason
from tests.support.black_boxes import FOLDER, SUFFIX
from tests.support.call_scene import ACK, BYE, UP, Scene, key

FILES = sorted(FOLDER.glob(f"*{SUFFIX}"))

WITHOUT_A_MACHINE = {
    EndReason.NO_ROUTE, EndReason.OVER_CAPACITY, EndReason.NO_COMMON_CODEC, EndReason.NO_AUDIO,
    EndReason.SRTP_MISMATCH, EndReason.ADDRESS_FAMILY, EndReason.BAD_SDP,
    EndReason.UNSUPPORTED_BODY, EndReason.REFUSED, EndReason.PROCESS_LOST,
}  # fmt: skip
"""Endings of calls that were refused before they had a state machine, or lost with the process."""


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.name.removesuffix(SUFFIX))
def test_a_kept_call_goes_as_it_went(file: Path) -> None:
    found = replay(read_lines(file))
    told = "\n".join(line for one in found.differences for line in one.lines())
    assert told == "", "if this is what you want: make black-boxes"
    assert found.record.ending is not None


def test_classes_that_have_moved_are_found() -> None:
    """Of a call that an older version has kept; a name that is nowhere is told."""
    lines = list(read_lines(FOLDER / f"server_lost_and_replaced{SUFFIX}"))
    for old in ("gateway.call.inputs", "gateway.call.outputs", "gateway.realtime.events"):
        lines = [line.replace(f'"{old}.', f'"{old}_of_old.') for line in lines]
        assert list(replay(lines).differences) == []
    gone = [line.replace("inputs_of_old.SessionReady", "inputs.SessionUp") for line in lines]
    with pytest.raises(BlackBoxError, match=r"this version has no gateway.call.inputs.SessionUp"):
        replay(gone)


def test_every_kind_of_ending_is_kept() -> None:
    records = [replay(read_lines(file)).record for file in FILES]
    kinds = {record.ending.why for record in records if record.ending is not None}
    assert set(EndReason) - kinds == WITHOUT_A_MACHINE
    assert sum(file.stat().st_size for file in FILES) < 512 * 1024


NOTHING: Any = lambda *_given, **_named: []  # noqa: E731

CHANGES = [
    # a rule that is changed, an incident that shows it, the step, and what it shows
    ("call.machine.LegEvents.on_digit", "keys_in_the_greeting", "DigitPressed(", "- Send("),
    (
        "call.conversation.barge_in.Interruptions.on_speech_started",
        "double_barge_in",
        "SpeechStarted(",
        "Truncate",
    ),
    (
        "call.rules.guardrails.Guardrails._enforce",
        "guardrail_cut",
        "ServerEventReceived(",
        "- Send(",
    ),
    (
        "call.interpretation.Interpretation._on_lost",
        "interpreter_lost",
        "InterpreterLost(",
        "- Hear",
    ),
    ("call.transfer.Transfer._fail", "transfer_refused", "ReferProgress(", "- Send("),
]


@pytest.mark.parametrize(("rule", "incident", "step", "shown"), CHANGES)
def test_a_changed_rule_is_shown(
    monkeypatch: pytest.MonkeyPatch, rule: str, incident: str, step: str, shown: str
) -> None:
    monkeypatch.setattr(f"gateway.{rule}", NOTHING)
    found = replay(read_lines(FOLDER / f"{incident}{SUFFIX}"))
    first, *lines = found.differences[0].lines()
    assert step in first, first
    assert any(shown in line for line in lines), lines


def test_a_file_that_is_cut_anywhere_ends_there(tmp_path: Path) -> None:
    scene = Scene()
    scene.do(UP, ACK, key("1"), BYE)
    text = "".join(f"{line}\n" for line in scene.black_box).encode()
    whole = gzip.compress(text)
    head = text.index(b"\n") + 1
    file = tmp_path / "cut"
    refused = []
    for size in range(0, len(text), 97):
        for cut in (text[:size], whole[: len(whole) * size // len(text)]):
            file.write_bytes(cut)
            try:
                found = replay(read_lines(file))
            except BlackBoxError:
                refused.append((size, cut[:2]))
            else:
                assert list(found.differences) == []
    plain = [size for size, begin in refused if begin != b"\x1f\x8b"]
    assert all(size < head for size in plain), "it is read as far as it goes"
    assert 0 < len(refused) - len(plain) < len(text) // 97


def strange(**changes: Any) -> list[str]:
    """A black box of a small call, with values of its second line changed."""
    scene = Scene()
    scene.do(UP, ACK, BYE)
    step = json.dumps({**json.loads(scene.black_box[1]), **changes})
    return [f"{scene.black_box[0]}\n", f"{step}\n"]


@pytest.mark.parametrize(
    ("lines", "why"),
    [
        ([], "line 1: no black box"),
        (["{" * 100_000], "line 1: no JSON"),
        (["[" * 100_000 + "]" * 100_000], "line 1: no JSON"),
        (['{"black_box": 2, "version": "9.9"}'], "format 2, written by version 9.9"),
        (strange(at=float("nan")), "no JSON"),
        (strange(at=1e12), "no time of the call"),
        (strange(at=-5), "no time of the call"),
        (strange(**{"in": {"$": "bytes", "length": 10**12}}), "no length of audio"),
        (strange(**{"in": {"$": "pattern", "pattern": "(a+)+$", "flags": 0}}), "exponential"),
        (strange(**{"in": {"$": "gateway.call.nothing.Nothing"}}), "no gateway.call.nothing"),
        (strange(**{"in": {"$": "os.system", "command": "true"}}), "no class of a call"),
        (strange(**{"in": {"$": "gateway.call.inputs.DigitPressed"}}), "not understood"),
    ],
)
def test_what_a_stranger_wrote_is_refused(lines: list[str], why: str) -> None:
    with pytest.raises(BlackBoxError, match=why):
        replay(lines)


def test_a_bomb_is_not_unpacked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gateway.bridge.replay.MAX_FILE", 1000_000)
    file = tmp_path / "bomb.blackbox.jsonl.gz"
    file.write_bytes(gzip.compress(b"{}\n" * 1000_000))
    with pytest.raises(BlackBoxError, match="longer than any"):
        for _line in read_lines(file):
            pass
