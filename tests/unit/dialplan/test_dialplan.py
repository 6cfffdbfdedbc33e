# SPDX-License-Identifier: GPL-2.0-or-later
"""Dialplan files: what is read, what is refused, and which route takes which call."""

from __future__ import annotations

import errno
import os
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from gateway.config import ConfigError
from gateway.dialplan import Dialplan, InviteFacts, Match, load_dialplan

MONDAY_NOON = datetime(2026, 3, 2, 12, 0, tzinfo=UTC)


def load(folder: Path, *files: str, **environ: str) -> Dialplan:
    for number, text in enumerate(files):
        (folder / f"{number}.toml").write_text(text, encoding="utf-8")
    return load_dialplan(folder, environ)


def facts(to: str = "100", **other: Any) -> InviteFacts:
    from_user = other.pop("from_user", "alice")
    return InviteFacts(
        **{
            "to_user": to,
            "from_user": from_user,
            "to_uri": f"sip:{to}@gateway.example",
            "from_uri": f"sip:{from_user}@pbx.example",
            "source_ip": "192.0.2.7",
            "at": MONDAY_NOON,
            **other,
        }
    )


def route_of(plan: Dialplan, call: InviteFacts) -> str | None:
    match = plan.match(call)
    return match.route.name if match else None


def one(folder: Path, conditions: str, **environ: str) -> Dialplan:
    return load(folder, f'[[route]]\nname = "r"\n{conditions}\n', **environ)


def test_first_match_in_order_of_file_names(tmp_path: Path) -> None:
    (tmp_path / "20-b.toml").write_text('[[route]]\nname = "rest"\n', encoding="utf-8")
    (tmp_path / "10-a.toml").write_text(
        '[[route]]\nname = "off"\nenabled = false\n'
        '[[route]]\nname = "one"\nto = "^1"\n[[route]]\nname = "ten"\nto = "^10"\n',
        encoding="utf-8",
    )
    (tmp_path / ".10-a.toml").write_text("an editor's [", encoding="utf-8")
    (tmp_path / "notes.txt").write_text("not [ TOML", encoding="utf-8")
    plan = load_dialplan(tmp_path)
    assert [route.name for route in plan.routes] == ["off", "one", "ten", "rest"]
    assert route_of(plan, facts("100")) == "one"
    assert route_of(plan, facts("200")) == "rest"
    assert str(plan.origins["one"]) == f"{tmp_path / '10-a.toml'}:4"


def test_no_route_no_match(tmp_path: Path) -> None:
    assert load(tmp_path).match(facts()) is None


def test_named_groups_become_variables(tmp_path: Path) -> None:
    plan = one(
        tmp_path,
        'to = "^(?P<hotel>[0-9])(?P<room>[0-9]{2})?$"\n'
        'headers = { X-Case = "id=(?P<case>[0-9]+)" }\n'
        'dtmf.text = "{case}: {digits} in {hotel}, {{hotel}}"',
    )
    match = plan.match(facts("4", headers={"x-case": ("none", "id=77")}))
    assert match is not None
    assert match.variables == {"hotel": "4", "room": "", "case": "77"}
    text = match.route.dtmf.render("12#", match.variables)
    assert text == "77: 12# in 4, {hotel}"


def test_explain_names_the_first_condition_that_fails(tmp_path: Path) -> None:
    plan = load(
        tmp_path,
        """
[[route]]
name = "off"
enabled = false
[[route]]
name = "number"
to = "^2"
[[route]]
name = "header"
headers = { X-A = "1" }
[[route]]
name = "net"
source = "10.0.0.0/8"
[[route]]
name = "late"
hours = "tue 08:00-09:00"
timezone = "UTC"
[[route]]
name = "this"
[[route]]
name = "too"
""",
    )
    assert [str(verdict) for verdict in plan.explain(facts("100"))] == [
        "off: enabled wants true, is false",
        "number: to wants '^2', is '100'",
        "header: headers.X-A wants '1', is absent",
        "net: source wants 10.0.0.0/8, is 192.0.2.7",
        "late: hours wants tue 08:00-09:00 (UTC), is mon 12:00",
        "this: matches",
        "too: matches",
    ]


@pytest.mark.parametrize("name", ["", "a b", "-a", "a/b", "x" * 65])
def test_bad_names(tmp_path: Path, name: str) -> None:
    with pytest.raises(ConfigError, match="1 to 64 letters"):
        load(tmp_path, f'[[route]]\nname = "{name}"\n')


def test_problems_of_all_files_are_told_together(tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as caught:
        load(
            tmp_path,
            '[[route]]\nname = "a"\n\n[[route]]\nname = "a"\n[[routes]]\nname = "b"\n',
            "[[route]\n",
            '[[route]]\nname = "a"\nto = "${env:NOT_SET}"\n',
            'route = "x"\n',
        )
    assert [
        (problem.file.name, problem.line, problem.key) for problem in caught.value.problems
    ] == [
        ("0.toml", 5, "route[1].name"),
        ("0.toml", 6, "routes"),
        ("1.toml", 1, ""),
        ("2.toml", 2, "route[0].name"),
        ("2.toml", 3, "route[0].to"),
        ("3.toml", 1, "route"),
    ]
    assert f"already taken at {tmp_path / '0.toml'}:1" in str(caught.value)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ('[[route]]\nname = "a"\n[greeting]\nsay = "x"', "[route.greeting], below its [[route]]"),
        ('[[route]]\nname = "a"\n[[transfer]]\nname = "x"', ": [[route.transfer]], below its"),
        ('\n\nto = "100"\n[[route]]\nname = "a"', "it belongs to a route, below its [[route]]"),
        ('[route.greeting]\nsay = "x"\n[[route]]\nname = "a"', "[[route]] comes before its tables"),
    ],
)
def test_what_is_not_in_its_route(tmp_path: Path, text: str, says: str) -> None:
    with pytest.raises(ConfigError) as caught:
        load(tmp_path, text)
    assert says in str(caught.value)
    assert f"{tmp_path}/0.toml:3: " in str(caught.value)


def test_no_folder(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="is no folder"):
        load_dialplan(tmp_path / "gone")


def test_match_does_not_read_the_clock_or_the_disk(tmp_path: Path) -> None:
    plan = one(tmp_path, 'hours = "mon 08:00-18:00"\ntimezone = "Europe/Berlin"')
    (tmp_path / "0.toml").unlink()
    match = plan.match(facts())
    assert isinstance(match, Match)
    assert match == plan.match(facts())


def test_a_folder_that_may_not_be_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without a word of it, every call would get 404."""

    def refused(_folder: Path) -> None:
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))

    monkeypatch.setattr(Path, "iterdir", refused)
    with pytest.raises(ConfigError, match="cannot be read: Permission denied"):
        load_dialplan(tmp_path)
