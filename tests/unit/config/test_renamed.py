# SPDX-License-Identifier: GPL-2.0-or-later
"""Keys and values that had another name: the check answers each with its name of today."""

from __future__ import annotations

from pathlib import Path

import pytest

from gateway.config import Config
from gateway.config.renamed import RENAMED_KEYS as ALL_RENAMED_KEYS
from gateway.config.renamed import RENAMED_VALUES
from gateway.config.source import section_in
from gateway.dialplan.route import Route
from gateway.planning.check import check

RENAMED_KEYS = {old: new for old, new in ALL_RENAMED_KEYS.items() if not old.startswith("call.")}
"""Those of a configuration and of dialplans, without those of call suites."""

SERVER = '[realtime]\nurl = "ws://127.0.0.1:8765/v1/realtime"\n'
ARRAYS = {
    *("trunk", "endpoint", "tool", "tools.mcp", "route.transfer", "route.tool", "route.approval"),
    *("route.fallback", "route.on_trouble", "route.guardrail", "route.guard"),
}
"""Arrays of tables, by their names of today and of before."""


def said(folder: Path, text: str, of_dialplan: bool) -> list[str]:
    """What the check says of a configuration or a dialplan with these lines, without the file."""
    (folder / "dialplans").mkdir()
    config, dialplan = folder / "gateway.toml", folder / "dialplans" / "a.toml"
    config.write_text(SERVER if of_dialplan else text, encoding="utf-8")
    dialplan.write_text(text if of_dialplan else "", encoding="utf-8")
    status, lines = check(config, {})
    assert status == 2
    return [line.removeprefix(f"{dialplan if of_dialplan else config}:") for line in lines]


def header(path: list[str]) -> str:
    """The line that opens a table or an array of tables."""
    dotted = ".".join(path)
    return f"[[{dotted}]]" if dotted in ARRAYS else f"[{dotted}]"


def begun(path: list[str]) -> list[str]:
    """The lines before a table of a configuration or a dialplan file."""
    if path[0] == "route":
        return ["[[route]]", 'name = "a"']
    return [] if path[0] in ("realtime", "tool") else SERVER.splitlines()


def shown(path: list[str], key: str) -> str:
    """A key as the check shows it: with the index of each array."""
    indexed = [
        name + ("[0]" if name == "route" or ".".join(path[: at + 1]) in ARRAYS else "")
        for at, name in enumerate(path)
    ]
    return ".".join([*indexed, key])


def written(path: list[str], key: str, value: str, form: str) -> tuple[list[str], str]:
    """A file with the key in one of TOML's forms, and the line and key that the check names."""
    lines = begun(path)
    name = shown(path, key)
    if form == "header":
        if path != ["route"]:
            lines += [header(path)]
        lines += [f"{key} = {value}"]
    else:
        top, *rest = path
        if top == "route":
            assert rest
        inner = f"{{ {key} = {value} }}"
        if ".".join(path) in ARRAYS:
            inner = f"[{inner}]"
        target = ".".join(rest) if top == "route" else ".".join(path)
        dotted = f"{target}.{key} = {value}"
        line = dotted if form == "dotted" else f"{target} = {inner}"
        lines = [*lines, line] if top == "route" else [line, *lines]
        return lines, f"{lines.index(line) + 1}: {name}"
    return lines, f"{len(lines)}: {name}"


def forms(path: list[str]) -> list[str]:
    """The forms in which a key of this table can be written."""
    if path == ["route"] or path == ["realtime"]:
        return ["header"]
    return ["header", "inline"] if ".".join(path) in ARRAYS else ["header", "dotted", "inline"]


SECTIONS = [old for old in RENAMED_KEYS if old.count(".") == 0 or old in ARRAYS] + [
    f"route.{name}" for name in ("digits", "machines", "rescue", "keep", "afterwards")
]


@pytest.mark.parametrize(
    ("old", "form"),
    [
        (old, form)
        for old in RENAMED_KEYS
        if old not in SECTIONS
        for form in forms(old.split(".")[:-1])
    ],
)
def test_an_old_key_is_answered_with_the_new(tmp_path: Path, old: str, form: str) -> None:
    *path, key = old.split(".")
    lines, where = written(path, key, "1", form)
    found = said(tmp_path, "\n".join(lines) + "\n", path[0] in ("route", "tool"))
    assert f'{where}: unknown key; it is called "{RENAMED_KEYS[old]}" now' in found


@pytest.mark.parametrize("old", SECTIONS)
@pytest.mark.parametrize("form", ["header", "inline"])
def test_an_old_section_is_answered_with_the_new(tmp_path: Path, old: str, form: str) -> None:
    *path, key = old.split(".")
    line = header([*path, key]) if form == "header" else f"{key} = {{ a = 1 }}"
    lines = [*begun([*path, key]), line] if path or form == "header" else [line, *begun([key])]
    found = said(tmp_path, "\n".join(lines) + "\n", bool(path))
    where = f"{lines.index(line) + 1}: {shown(path, key) if path else key}"
    assert f'{where}: unknown key; it is called "{RENAMED_KEYS[old]}" now' in found


@pytest.mark.parametrize(
    ("section", "old", "form"),
    [
        (section, old, form)
        for section, old in RENAMED_VALUES
        for form in forms(section.split(".")[:-1])
    ],
)
def test_an_old_value_is_answered_with_the_new(
    tmp_path: Path, section: str, old: str, form: str
) -> None:
    *path, key = section.split(".")
    lines, where = written(path, key, f'"{old}"', form)
    found = said(tmp_path, "\n".join(lines) + "\n", path[0] == "route")
    (line,) = (one for one in found if one.startswith(where + ": "))
    new = RENAMED_VALUES[section, old]
    assert f"'{new}'" in line.partition(";")[0]
    assert line.endswith(f'; "{old}" is called "{new}" now')


def test_every_new_name_is_there() -> None:
    for old, new in RENAMED_KEYS.items():
        *path, key = old.split(".")
        if path[:1] == ["tool"]:
            path = ["route", "tool"]
        model = Route if path[:1] == ["route"] else Config
        for name in path[model is Route :]:
            inner = section_in(model.model_fields[name].annotation)
            assert inner is not None, old
            model = inner  # type: ignore[assignment]
        assert new in model.model_fields, old
        assert key not in model.model_fields, old
