# SPDX-License-Identifier: GPL-2.0-or-later
"""Black boxes: what cannot be written ends them, and never their call."""

from __future__ import annotations

import contextlib
import json

import pytest

from gateway.bridge import black_box
from gateway.bridge.black_box import BlackBoxError
from gateway.bridge.replay import replay
from tests.support.call_scene import ACK, BYE, SPEECH, UP, Scene, key


def test_what_cannot_be_written_ends_the_black_box_and_not_the_call(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    scene = Scene()
    scene.do(UP, ACK)
    before = len(scene.black_box)
    plain = black_box.plain

    def failing(value: object, *more: object) -> object:
        if value is SPEECH:
            raise TypeError("no form for this")
        return plain(value, *more)  # type: ignore[arg-type]

    monkeypatch.setattr(black_box, "plain", failing)
    scene.do(SPEECH, key("1"), BYE)
    assert scene.ending == ("caller", "remote_hangup", 200)
    assert [line[:8] for line in scene.black_box[before:]] == ['{"ended"']
    with pytest.raises(BlackBoxError, match="no form for this"):
        replay(scene.black_box)


def test_a_line_that_a_kill_has_cut_is_the_end() -> None:
    scene = Scene()
    scene.do(UP, ACK, key("1"), BYE)
    lines = [f"{line}\n" for line in scene.black_box]
    whole = replay(lines)
    cut = replay([*lines[:-1], lines[-1][:20]])
    assert (list(cut.differences), cut.steps) == ([], whole.steps - 1)
    with pytest.raises(BlackBoxError, match="no JSON"):
        replay([*lines[:3], "{\n", *lines[3:]])


def hostile(line: str) -> list[str]:
    """A line with one thing changed for something that a file may hold, too."""
    read = json.loads(line)
    changed: list[str] = []
    for name, inner in read.items():
        for odd in ODD:
            changed.append(json.dumps({**read, name: odd}).replace('"@"', DEEP))
        if isinstance(inner, dict):
            changed += [json.dumps({**read, name: {**inner, "$": odd}}) for odd in ODD[:3]]
    return changed


DEEP = "[" * 50_000 + "]" * 50_000
ODD = (
    None,
    -1,
    1e308,
    "@",
    {"$": "os.system"},
    {"$": "gateway.call.inputs.Nothing"},
    {"$": "bytes", "length": 10**13},
    {"$": "bytes", "length": -1},
    {"$": "pattern", "pattern": "(", "flags": 0},
    {"$": "gateway.ending.Party", "value": "nobody"},
    {"$": "map", "pairs": [[1, 2, 3]]},
    {"$": "map", "pairs": [[[], 1]]},
)


def test_files_that_are_wrong_on_purpose() -> None:
    """Each is replayed, with differences, or is no black box; none takes the memory it names."""
    scene = Scene()
    scene.do(UP, ACK, key("1"), SPEECH, BYE)
    lines = [f"{line}\n" for line in scene.black_box]
    found = 0
    for at in (0, 1, len(lines) - 1):
        for line in hostile(lines[at]):
            with contextlib.suppress(BlackBoxError):
                replay([*lines[:at], line + "\n", *lines[at + 1 :]])
                continue
            found += 1
    assert found > 40
