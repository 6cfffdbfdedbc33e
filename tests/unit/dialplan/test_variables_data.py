# SPDX-License-Identifier: GPL-2.0-or-later
"""What fetched data become in a route's texts, and how a test of a route has them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from hypothesis import given
from hypothesis import strategies as st

from gateway.cli import main
from gateway.config import ConfigError
from gateway.dialplan import load_dialplan
from gateway.dialplan.variables import RouteData
from gateway.planning.check import check
from tests.support.http_service import Answer, http_service

ANSWER: dict[str, Any] = {
    "name": 'Ann "Dr"\u202e \x07 Lee {to}',
    "n": 7,
    "f": 1.5,
    "yes": True,
    "no": None,
    "empty": "",
    "deep": {"er": {"list": ["a", {"b": "c"}]}},
    "long": "x" * 5000,
    "lines": 'one\r\n"two"\x00',
}


def data(**more: Any) -> RouteData:
    return RouteData.model_validate({"url": "https://crm.example/{from}?q={to}", **more})


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ("name", "Ann 'Dr' Lee {to}"),
        ("n", "7"),
        ("f", "1.5"),
        ("yes", "true"),
        ("no", ""),
        ("empty", ""),
        ("nothing.at.all", ""),
        ("deep.er.list.0", "a"),
        ("deep.er.list.1.b", "c"),
        ("deep.er.list.2", ""),
        ("deep.er.list.x", ""),
        ("deep.er", '{"list":["a",{"b":"c"}]}'),
        ("n.more", ""),
        ("long", "x" * 1999 + "…"),
        ("lines", "one 'two'"),
    ],
)
def test_values(path: str, value: str) -> None:
    assert data().values([f"data.{path}"], ANSWER) == {f"data.{path}": value}


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: (
        st.lists(inner, max_size=4) | st.dictionaries(st.text("ab01.", max_size=3), inner)
    ),
)


@given(JSON, st.text("ab01.", max_size=9), st.integers(1, 40), st.booleans())
def test_whatever_the_service_answers_is_a_text_of_bounded_length(
    answer: Any, path: str, limit: int, lines: bool
) -> None:
    (value,) = (
        data(max_value_chars=limit, preserve_newlines=lines)
        .values([f"data.{path}"], answer)
        .values()
    )
    assert len(value) <= limit
    assert lines or "\n" not in value


def test_defaults_stand_for_what_is_not_there_or_empty() -> None:
    names = ["data.no", "data.empty", "data.n", "data.deep.er.x", "data.flag"]
    defaults = {"no": "a", "empty": "b", "n": 1, "deep": {"er": {"x": "c"}}, "flag": False}
    route = data(defaults=defaults)
    assert list(route.values(names, ANSWER).values()) == ["a", "b", "7", "c", "false"]
    assert list(route.values(names, None).values()) == ["a", "b", "1", "c", "false"]


def test_lines_are_kept_where_the_service_is_trusted() -> None:
    assert data(preserve_newlines=True).values(["data.lines"], ANSWER) == {
        "data.lines": 'one\n"two"'
    }
    (short,) = (
        data(preserve_newlines=True, max_value_chars=10).values(["data.long"], ANSWER).values()
    )
    assert short == "x" * 9 + "…"


def test_a_callers_text_stays_where_it_was_put_in_the_address() -> None:
    values = {"from": "../admin?x=1&", "to": "a#b c"}
    assert data().address(values) == ("https://crm.example/..%2Fadmin%3Fx%3D1%26?q=a%23b%20c")


@pytest.mark.parametrize(
    ("lines", "key", "message"),
    [
        ('session.instructions = "{data.name}"', "session.instructions", "[route.data]"),
        ('data.url = "ftp://x"', "data.url", "http"),
        ('data.url = "https://{from}/x"', "data.url", "callers would choose it"),
        ('data.url = "https://x/{data.a}"', "data.url", "{data.a}"),
        ('data.url = "https://x/{nobody}"', "data.url", "{nobody}"),
        ('data = { url = "https://x", timeout = 60.0 }', "data.timeout", "30"),
        ('data = { url = "https://x", on_failure = "panic" }', "data.on_failure", "continue"),
        ('data = { url = "https://x", headers = { "a b" = "c" } }', 'data.headers."a b"', "HTTP"),
        (
            'data = { url = "https://x", defaults = { a.b = 2026-01-01 } }',
            "data.defaults.a.b",
            "text",
        ),
        ('metadata = { a = "{nobody}" }', "metadata.a", "{nobody}"),
    ],
)
def test_mistakes(tmp_path: Path, lines: str, key: str, message: str) -> None:
    (tmp_path / "a.toml").write_text(f'[[route]]\nname = "a"\n{lines}\n')
    with pytest.raises(ConfigError) as caught:
        load_dialplan(tmp_path)
    (problem,) = caught.value.problems
    assert (problem.line, problem.key) == (3, f"route[0].{key}")
    assert message in problem.message


def route_test(folder: Path, url: str, *options: str) -> dict[str, Any]:
    (folder / "dialplans").mkdir(exist_ok=True)
    (folder / "dialplans" / "a.toml").write_text(
        '[[route]]\nname = "a"\n'
        f'data = {{ url = "{url}/{{from}}", headers = {{ K = "key-99" }} }}\n'
        'metadata.name = "{data.name|nobody}"\n'
        'session.instructions = "Speak with {data.name|somebody}."\n'
        'greeting.say = "Hello {data.name|you}."\n'
    )
    (folder / "gateway.toml").write_text('[realtime]\nurl = "ws://127.0.0.1:1/v1"\n')
    config = str(folder / "gateway.toml")
    result = CliRunner().invoke(
        main, ["route-test", "-c", config, "--to", "1", "--from", "77", "--json", *options]
    )
    assert result.exit_code == 0, result.output
    assert "key-99" not in result.output
    found: dict[str, Any] = json.loads(result.output)
    return found


def test_route_test_shows_the_texts_with_data(tmp_path: Path) -> None:
    given = route_test(tmp_path, "https://crm.example", "--data", '{"name": "Ann"}')
    assert given["session"]["instructions"] == "Speak with Ann."
    assert given["response"]["instructions"] == "Say exactly: Hello Ann."
    assert given["metadata"] == given["response"]["metadata"] == {"name": "Ann"}
    without = route_test(tmp_path, "https://crm.example")
    assert without["session"]["instructions"] == "Speak with somebody."
    assert "not fetched" in without["data"]


def test_route_test_can_ask_the_service(tmp_path: Path) -> None:
    with http_service() as service:
        service.answers = [Answer(body='{"name": "Bob"}'), Answer(status=403, body="no")]
        fetched = route_test(tmp_path, service.url, "--fetch")
        refused = route_test(tmp_path, service.url, "--fetch")
    assert service.asked[0].path == "/77"
    assert service.asked[0].headers["k"] == "key-99"
    assert fetched["session"]["instructions"] == "Speak with Bob."
    assert refused["session"]["instructions"] == "Speak with somebody."
    assert "403" in refused["data"]


@pytest.mark.parametrize("text", ["[]", "{", "@/nowhere"])
def test_data_that_are_none(tmp_path: Path, text: str) -> None:
    route_test(tmp_path, "https://x")
    result = CliRunner().invoke(
        main, ["route-test", "-c", str(tmp_path / "gateway.toml"), "--to", "1", "--data", text]
    )
    assert result.exit_code == 2
    assert "--data" in result.output


@pytest.mark.parametrize(("seconds", "status"), [("2.9", 0), ("3.0", 2)])
def test_data_leave_time_for_the_session(tmp_path: Path, seconds: str, status: int) -> None:
    route_test(tmp_path, "https://x")
    (tmp_path / "dialplans" / "a.toml").write_text(
        f'[[route]]\nname = "a"\ndata = {{ url = "https://x", timeout = {seconds} }}\n'
        "realtime.connect_timeout = 3.0\n"
    )
    found, lines = check(tmp_path / "gateway.toml")
    assert found == status
    assert ("connect_timeout (3 s)" in "\n".join(lines)) == (status == 2)
