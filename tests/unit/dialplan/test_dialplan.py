# SPDX-License-Identifier: GPL-2.0-or-later
"""Dialplan files: what is read, what is refused, and which route takes which call."""

from __future__ import annotations

import errno
import os
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from zoneinfo import ZoneInfo

import pytest

from gateway.config import Config, ConfigError
from gateway.dialplan import Dialplan, InviteFacts, Match, call_settings, load_dialplan
from tests.support.config import load_config

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


def takes(folder: Path, conditions: str, call: InviteFacts) -> bool:
    return one(folder, conditions).match(call) is not None


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


@pytest.mark.parametrize(
    ("conditions", "call", "taken"),
    [
        ('to = "^100$"', facts("100"), True),
        ('to = "^100$"', facts("1000"), False),
        ('\n\nto = "100"', facts("81009"), True),
        ('from = "^\\\\+49"', facts(from_user="+4930"), True),
        ('from = "^\\\\+49"', facts(from_user="alice"), False),
        ('headers = { X-Queue = "^vip$" }', facts(headers={"x-queue": ("vip",)}), True),
        ('headers = { X-Queue = "^vip$" }', facts(headers={"X-Queue": ("a", "vip")}), True),
        ('headers = { X-Queue = "^vip$" }', facts(headers={"X-Queue": ("vips",)}), False),
        ('headers = { X-Queue = "" }', facts(headers={"X-Queue": ("any",)}), True),
        ('headers = { X-Queue = "" }', facts(), False),
        ('source = "192.0.2.0/24"', facts(), True),
        ('source = "192.0.2.7"', facts(), True),
        ('source = ["10.0.0.0/8", "192.0.2.8"]', facts(), False),
        ('source = "192.0.2.0/24"', facts(source_ip="::ffff:192.0.2.7"), True),
        ('source = "2001:db8::/32"', facts(source_ip="2001:db8::1"), True),
        ('source = "2001:db8::/32"', facts(), False),
        ('source = "0.0.0.0/0"', facts(source_ip="?"), False),
        ('trunk = "isp"', facts(trunk="isp"), True),
        ('trunk = "isp"', facts(), False),
        ('to = "^100$"\nfrom = "^bob$"', facts(), False),
        ('pai = "^\\\\+4930"', facts(pai=("alice", "+4930123")), True),
        ('pai = "^\\\\+4930"', facts(pai=("alice",)), False),
        ('pai = ""', facts(), False),
        ('diversion = "^200$"', facts(diversion=("300", "200")), True),
        ('diversion = "^200$"', facts(), False),
        ("", facts(), True),
    ],
)
def test_conditions(tmp_path: Path, conditions: str, call: InviteFacts, taken: bool) -> None:
    assert takes(tmp_path, conditions, call) is taken


def local(day: int, hour: int, minute: int = 0) -> datetime:
    """In March 2026, of which the 2nd is a Monday, on the wall in Berlin."""
    return datetime(2026, 3, day, hour, minute, tzinfo=ZoneInfo("Europe/Berlin"))


@pytest.mark.parametrize(
    ("hours", "at", "taken"),
    [
        ('"mon-fri 08:00-18:00"', local(2, 8), True),
        ('"mon-fri 08:00-18:00"', local(2, 7, 59), False),
        ('"mon-fri 08:00-18:00"', local(6, 17, 59), True),
        ('"mon-fri 08:00-18:00"', local(6, 18), False),
        ('"mon-fri 08:00-18:00"', local(7, 12), False),
        ('"8:00-18:00"', local(7, 12), True),
        ('"sat, sun 10:00-14:00"', local(8, 10), True),
        ('"sat, sun 10:00-14:00"', local(9, 10), False),
        ('"sat-mon 10:00-14:00"', local(9, 10), True),
        ('"SAT-MON 10:00 - 14:00"', local(10, 10), False),
        ('"fri 22:00-06:00"', local(6, 23), True),
        ('"fri 22:00-06:00"', local(7, 5, 59), True),
        ('"fri 22:00-06:00"', local(7, 6), False),
        ('"fri 22:00-06:00"', local(6, 5), False),
        ('"fri 20:00-24:00"', local(6, 23, 59), True),
        ('"fri 20:00-24:00"', local(7, 0), False),
        ('["mon 08:00-09:00", "mon 10:00-11:00"]', local(2, 10, 30), True),
        ('["mon 08:00-09:00", "mon 10:00-11:00"]', local(2, 9, 30), False),
        # Noon in London is one o'clock in Berlin, and two in July's other zone.
        ('"13:00-13:01"', MONDAY_NOON, True),
        ('"14:00-14:01"', datetime(2026, 7, 6, 12, 0, tzinfo=UTC), True),
    ],
)
def test_hours(tmp_path: Path, hours: str, at: datetime, taken: bool) -> None:
    conditions = f'hours = {hours}\ntimezone = "Europe/Berlin"'
    assert takes(tmp_path, conditions, facts(at=at)) is taken


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
        ('to = "("', "to", "not a valid regular expression: missing ), unterminated subpattern at"),
        ("to = 100", "to", "must be a regular expression, as a string"),
        ('headers = { X-A = "[" }', "headers.X-A", "unterminated character set at position 1"),
        ('headers = { "X A" = "1" }', 'headers."X A"', "not a valid SIP header name"),
        ('headers = { X-A = "1", x-a = "2" }', "headers.X-A", "twice"),
        ('source = "10.0.0.5/8"', "source", "did you mean 10.0.0.0/8?"),
        ('source = "pbx"', "source", "must be an address or network"),
        ("source = []", "source", "matches nobody"),
        ('hours = "mon-fri 08:00-18:00"', "hours", "need a time zone"),
        ('timezone = "UTC"', "timezone", "without hours"),
        ('dtmf.finish_on_key = "##"', "dtmf.finish_on_key", "one key"),
        ('dtmf.text = "You pressed"', "dtmf.text", "must contain {digits}"),
        ('dtmf.text = "{digits!r}"', "dtmf.text", "must contain {digits}"),
        ('dtmf.text = "{digits} {digits.x}"', "dtmf.text", "no variable {digits.x}"),
        ('dtmf.text = "{digits} {room}"', "dtmf.text", "no variable {room}"),
        ('pai = "("', "pai", "not a valid regular expression"),
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


@pytest.mark.parametrize(
    ("hours", "message"),
    [
        ("mon-fry 08:00-18:00", "'fry' is not a weekday"),
        ("08:00", "must be like"),
        ("08:00-08:00", "same minute"),
        ("08:00-25:00", "25:00 is no time of day"),
        ("08:60-09:00", "08:60 is no time of day"),
        ("24:00-01:00", "24:00 can only be an end"),
    ],
)
def test_bad_hours(tmp_path: Path, hours: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        one(tmp_path, f'hours = "{hours}"\ntimezone = "UTC"')


@pytest.mark.parametrize("zone", ["Europe/Berlyn", "../etc/passwd", "/etc/passwd", ""])
def test_bad_timezone(tmp_path: Path, zone: str) -> None:
    with pytest.raises(ConfigError, match="time zone"):
        one(tmp_path, f'hours = "08:00-09:00"\ntimezone = "{zone}"')


@pytest.mark.parametrize("name", ["", "a b", "-a", "a/b", "x" * 65])
def test_bad_names(tmp_path: Path, name: str) -> None:
    with pytest.raises(ConfigError, match="1 to 64 letters"):
        load(tmp_path, f'[[route]]\nname = "{name}"\n')


def test_group_names_must_differ(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="named group a is in more than one"):
        one(tmp_path, 'to = "(?P<a>1)"\nfrom = "(?P<a>1)"')
    for name in ("digits", "from", "time"):
        with pytest.raises(ConfigError, match=f"may not be called {name}: that is a variable"):
            one(tmp_path, f'to = "(?P<{name}>1)"')


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


def test_match_does_not_read_the_clock_or_the_disk(tmp_path: Path) -> None:
    plan = one(tmp_path, 'hours = "mon 08:00-18:00"\ntimezone = "Europe/Berlin"')
    (tmp_path / "0.toml").unlink()
    match = plan.match(facts())
    assert isinstance(match, Match)
    assert match == plan.match(facts())


def test_a_session_that_no_call_could_use_is_found_before_the_first_call(tmp_path: Path) -> None:
    (tmp_path / "a.toml").write_text(
        '[[route]]\nname = "a"\n[route.session]\naudio.input.turn_detection = "off"\n'
    )
    with pytest.raises(ConfigError) as caught:
        load_dialplan(tmp_path)
    [problem] = caught.value.problems
    assert problem.key == "route[0].session.audio.input.turn_detection"
    assert "must be a table" in problem.message


def test_a_folder_that_may_not_be_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without a word of it, every call would get 404."""

    def refused(_folder: Path) -> None:
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))

    monkeypatch.setattr(Path, "iterdir", refused)
    with pytest.raises(ConfigError, match="cannot be read: Permission denied"):
        load_dialplan(tmp_path)
