# SPDX-License-Identifier: GPL-2.0-or-later
"""A route: what it may not say, its session, and the settings of its calls."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from gateway.config import Config, ConfigError
from gateway.dialplan import call_settings, load_dialplan
from tests.support.config import load_config
from tests.unit.dialplan.test_dialplan import one


def test_session_is_passed_on_as_it_is(tmp_path: Path) -> None:
    plan = one(
        tmp_path,
        """
[route.session]
instructions = "${env:HOTEL:-Ritz}"
unknown_key = [1, 2.5, true, { a = "b" }]
audio.input.turn_detection.type = "semantic_vad"
""",
    )
    session = plan.routes[0].session_settings()
    assert session == {
        "instructions": "Ritz",
        "unknown_key": [1, 2.5, True, {"a": "b"}],
        "audio": {"input": {"turn_detection": {"type": "semantic_vad"}}},
    }
    session["audio"]["input"]["format"] = {"type": "audio/pcmu"}
    assert "format" not in plan.routes[0].session_settings()["audio"]["input"]


@pytest.mark.parametrize(
    ("line", "key", "message"),
    [
        ('hours = "mon-fri 08:00-18:00"', "hours", "need a time zone"),
        ('timezone = "UTC"', "timezone", "without hours"),
        ('dtmf.finish_on_key = "##"', "dtmf.finish_on_key", "one key"),
        ('dtmf.text = "You pressed"', "dtmf.text", "must contain {digits}"),
        ('dtmf.text = "{digits!r}"', "dtmf.text", "must contain {digits}"),
        ('dtmf.text = "{digits} {digits.x}"', "dtmf.text", "no variable {digits.x}"),
        ('dtmf.text = "{digits} {room}"', "dtmf.text", "no variable {room}"),
        ("dtmf.inter_digit_timeout = 0", "dtmf.inter_digit_timeout", "greater than 0"),
        ("dtmf.max_digits = 1000", "dtmf.max_digits", "less than or equal to 128"),
        ('dtmf.interrupt = "no"', "dtmf.interrupt", "boolean"),
        ('greeting.say = ""', "greeting.say", "must not be empty"),
        ('transfer = { name = "a" }', "transfer", "write [[route.transfer]]"),
        ("answer.sound = '~no-such-user/x.wav'", "answer.sound", "no such home folder is known"),
        ("dtmf.recording = true", "dtmf.recording", "route.recording stands above [route.dtmf]"),
        ("greeting = {}", "greeting", "either say"),
        ('greeting = { say = "a", instructions = "b" }', "greeting", "either say"),
        ('greeting.says = "a"', "greeting.says", 'did you mean "say"?'),
        ("greeting = 'Hello'", "greeting", "must be a table"),
        ("limits.max_call_duration = -1", "limits.max_call_duration", "greater than 0"),
        ('realtime.url = "ftp://h/"', "realtime.url", "wss:// or https://"),
        ('session.type = "realtime"', "session.type", "set by the gateway"),
        ('session.model = "m"', "session.model", "route.realtime.model"),
        ("session.audio.input.format.type = 'x'", "session.audio.input.format", "codec"),
        ("session.audio.output.format = {}", "session.audio.output.format", "codec"),
        ("session.a.b = [1, 2020-01-01]", "session.a.b[1]", "cannot be sent as JSON"),
        ("session.a = nan", "session.a", "cannot be sent as JSON"),
        ('form = "^1"', "form", 'did you mean "from"?'),
        (
            "hue_of_it = 1",
            "hue_of_it",
            "known here: allowed_refer_to, answer, application, approval, budget",
        ),
    ],
)
def test_mistakes(tmp_path: Path, line: str, key: str, message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        one(tmp_path, line)
    (problem,) = caught.value.problems
    assert (problem.file, problem.line) == (tmp_path / "0.toml", 3)
    assert problem.key == f"route[0].{key}"
    assert message in problem.message


def test_group_names_must_differ(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="named group a is in more than one"):
        one(tmp_path, 'to = "(?P<a>1)"\nfrom = "(?P<a>1)"')
    for name in ("digits", "from", "time"):
        with pytest.raises(ConfigError, match=f"may not be called {name}: that is a variable"):
            one(tmp_path, f'to = "(?P<{name}>1)"')


def config(folder: Path) -> Config:
    (folder / "plans").mkdir(exist_ok=True)
    file = folder / "gateway.toml"
    file.write_text(
        '[realtime]\nurl = "wss://one.example/v1"\napi_key = "secret"\nheaders.X-A = "too"\n'
        'connect_timeout = 5\n[dialplan]\nfolder = "plans"\n[media]\nrtp_timeout = 20\n',
        encoding="utf-8",
    )
    return load_config(file, {})


def settings_for(folder: Path, lines: str) -> Any:
    base = config(folder)
    return call_settings(base, one(folder / "plans", lines).routes[0])


def test_route_wins_over_configuration(tmp_path: Path) -> None:
    plain = settings_for(tmp_path, "")
    assert plain.realtime == config(tmp_path).realtime
    assert (plain.max_call_duration, plain.rtp_timeout) == (3600, 20)
    own = settings_for(
        tmp_path,
        'realtime = { model = "m", connect_timeout = 2 }\n'
        "limits = { max_call_duration = 60, rtp_timeout = 0 }",
    )
    assert (own.realtime.model, own.realtime.connect_timeout) == ("m", 2)
    assert own.realtime.api_key.get_secret_value() == "secret"
    assert (own.max_call_duration, own.rtp_timeout) == (60, 0)


def test_secrets_go_to_their_own_server_only(tmp_path: Path) -> None:
    same = settings_for(tmp_path, 'realtime.url = "wss://one.example:443/v2"').realtime
    assert same.url == "wss://one.example:443/v2"
    assert same.api_key.get_secret_value() == "secret"
    assert list(same.headers) == ["X-A"]
    for url in ("wss://two.example/v1", "ws://one.example/v1", "wss://one.example:444/v1"):
        other = settings_for(tmp_path, f'realtime.url = "{url}"').realtime
        assert other.api_key is None
        assert not other.headers
    keyed = settings_for(
        tmp_path, 'realtime = { url = "wss://two.example/v1", api_key = "other" }'
    ).realtime
    assert keyed.api_key.get_secret_value() == "other"
    assert "other" not in repr(keyed)


def test_secrets_of_routes_are_listed(tmp_path: Path) -> None:
    plan = one(
        tmp_path,
        'realtime.api_key = "${env:KEY}"\n'
        'session.tools = [{ type = "mcp", authorization = "${env:TOKEN}", '
        'server_label = "l", server_url = "https://x", headers = { X-A = "h" } }, '
        '{ type = "function", name = "f" }]',
        KEY="k",
        TOKEN="t",
    )
    assert sorted(plan.secrets()) == ["h", "k", "t"]
    assert "'k'" not in repr(plan.routes[0].realtime)


def test_a_session_that_no_call_could_use_is_found_before_the_first_call(tmp_path: Path) -> None:
    (tmp_path / "a.toml").write_text(
        '[[route]]\nname = "a"\n[route.session]\naudio.input.turn_detection = "off"\n'
    )
    with pytest.raises(ConfigError) as caught:
        load_dialplan(tmp_path)
    [problem] = caught.value.problems
    assert problem.key == "route[0].session.audio.input.turn_detection"
    assert "must be a table" in problem.message
