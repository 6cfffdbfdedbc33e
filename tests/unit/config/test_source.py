# SPDX-License-Identifier: GPL-2.0-or-later
"""The line of each key, against files that were written with the lines known."""

from __future__ import annotations

import json
import tomllib
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.config.source import KeyPath, key_lines

EVERY_SHAPE = """\
top = 1
a.dotted."key with . dot" = 2   # line 2
'quoted' = 3

# a comment with [brackets] and "quotes"
[sip]
listen = [
    "udp:1.2.3.4:5060",   # ] not the end
    # "commented:out"
    "udp:[::1]:5061", "third",
    [
        "nested",
    ],
    { table = 1, list = [
        2,
    ] },
]
text = '''
[not.a.header]
not_a_key = 1
'''
inline = { x = 1, y.z = [1, 2] }

[[route]]
name = "one"
  [route.session]
  audio.output.voice = "v"
  [[route.session.tools]]
  name = "t0"
  [[route.session.tools]]
  name = "t1"

[[route]]
name = "two"
[[route.session.tools]]
name = "t2"
[route.session.tools.deep]
key = 1
[sip.late]
key = 2
"""


@pytest.mark.parametrize(
    ("path", "marker"),
    [
        (("top",), "top"),
        (("a", "dotted", "key with . dot"), "a.dotted"),
        (("quoted",), "'quoted'"),
        (("sip",), "[sip]"),
        (("sip", "listen"), "listen"),
        (("sip", "listen", 0), '    "udp:1.2.3.4'),
        (("sip", "listen", 1), '    "udp:[::1]'),
        (("sip", "listen", 2), '    "udp:[::1]'),
        (("sip", "listen", 3), "    ["),
        (("sip", "listen", 4, "table"), "    { table"),
        (("sip", "text"), "text"),
        (("sip", "inline", "y", "z", 1), "inline"),
        (("route", 0), "[[route]]"),
        (("route", 0, "name"), 'name = "one"'),
        (("route", 0, "session", "audio", "output", "voice"), "  audio.output"),
        (("route", 0, "session", "tools", 0, "name"), '  name = "t0"'),
        (("route", 0, "session", "tools", 1, "name"), '  name = "t1"'),
        (("route", 1, "name"), 'name = "two"'),
        (("route", 1, "session", "tools", 0, "name"), 'name = "t2"'),
        (("route", 1, "session", "tools", 0, "deep", "key"), "key = 1"),
        (("sip", "late", "key"), "key = 2"),
    ],
)
@pytest.mark.parametrize("newline", ["\n", "\r\n"])
def test_every_shape(path: KeyPath, marker: str, newline: str) -> None:
    text = EVERY_SHAPE.replace("\n", newline)
    tomllib.loads(text)
    wanted = next(
        number
        for number, line in enumerate(EVERY_SHAPE.split("\n"), start=1)
        if line.startswith(marker)
    )
    assert key_lines(text)[path] == wanted


def test_no_key_is_forgotten() -> None:
    found = key_lines(EVERY_SHAPE)

    def visit(value: Any, path: KeyPath) -> None:
        assert path in found
        if isinstance(value, dict):
            for name, inner in value.items():
                visit(inner, (*path, name))
        elif isinstance(value, list):
            for index, inner in enumerate(value):
                visit(inner, (*path, index))

    visit(tomllib.loads(EVERY_SHAPE), ())


values = st.one_of(
    st.integers(0, 9).map(str),
    st.text(alphabet="ab#[]{}='\\\"\n\t", max_size=6).map(json.dumps),
    st.just("'''\n[x]\n y = 1\n'''"),
    st.lists(st.sampled_from(["1", '"]"', "[2]", "{ a = 1 }", '"# no"']), max_size=4).map(
        lambda items: "[\n" + "".join(f"  {item}, # ] {{\n" for item in items) + "]"
    ),
)
noise = st.sampled_from(["", "\n", "# [x]\n", "   # y = 1\n\n"])


@given(st.lists(st.tuples(noise, st.booleans(), values), max_size=12))
def test_lines_survive_whatever_stands_between(
    statements: list[tuple[str, bool, str]],
) -> None:
    """Tables and keys in a random order, with comments and values that look like either."""
    text = ""
    wanted: dict[KeyPath, int] = {}
    table: KeyPath = ()
    for number, (before, opens, value) in enumerate(statements):
        text += before
        line = text.count("\n") + 1
        if opens:
            table = ("t", len([path for path in wanted if path[:-1] == ("t",)]))
            wanted[table] = line
            text += "[[t]]\n"
            line += 1
        wanted[(*table, f"k{number}")] = line
        text += f"k{number} = {value}\n"
    tomllib.loads(text)
    found = key_lines(text)
    assert {path: found[path] for path in wanted} == wanted
