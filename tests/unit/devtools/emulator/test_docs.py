# SPDX-License-Identifier: GPL-2.0-or-later
"""docs/emulator.md says what is so."""

from __future__ import annotations

import re
from pathlib import Path

from gateway.devtools.emulator.script import BUILT_IN, Script, ScriptFile, script_of_query

TEXT = (Path(__file__).parents[4] / "docs" / "emulator.md").read_text("utf-8")


def test_examples_can_be_used(tmp_path: Path) -> None:
    queries = re.findall(r"^\?(\S+)$", TEXT, re.M)
    assert len(queries) >= 5
    for query in queries:
        assert script_of_query(BUILT_IN, Script(), query) != Script()
    path = tmp_path / "script.toml"
    named: set[str] = set()
    for block in re.findall(r"```toml\n(.*?)```", TEXT, re.S):
        path.write_text(block)
        file = ScriptFile.load(path)
        assert file.default != Script()
        named |= set(file.named)
    assert {"rude", "busy"} <= named


def test_every_built_in_script_is_listed() -> None:
    table = "\n".join(part.split("\n\n")[0] for part in TEXT.split("| `?script=` |")[1:])
    assert set(re.findall(r"^\| (.*?) \|", table, re.M)) >= {"`conversation`"}
    names = {name for row in table.splitlines() for name in re.findall(r"`([\w-]+)`", row)}
    assert set(BUILT_IN) <= names
