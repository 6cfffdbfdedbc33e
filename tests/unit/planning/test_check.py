# SPDX-License-Identifier: GPL-2.0-or-later
"""Mistakes that ``gateway check`` names, and where each stands."""

from __future__ import annotations

from pathlib import Path

import pytest

from gateway.planning.check import check

BASE = '[realtime]\nurl = "ws://127.0.0.1:1"\n'


def checked(
    folder: Path,
    config: str = BASE,
    routes: str = "[[route]]\nname = 'r'\n",
    environ: dict[str, str] | None = None,
) -> str:
    (folder / "dialplans").mkdir()
    (folder / "dialplans" / "r.toml").write_text(routes)
    (folder / "gateway.toml").write_text(config)
    return "\n".join(check(folder / "gateway.toml", environ or {})[1])


HOOK = f'[[webhook]]\nname = "app"\nurl = "https://a"\nsecret = "whsec_{"QUFB" * 8}"\n'
TOKEN = f'[[api.token]]\nname = "a"\nrole = "application"\nhash = "sha256:{"0" * 64}"\n'
API = '[api]\nlisten = "127.0.0.1:0"\n' + TOKEN
ASKED = "[[route]]\nname = 'r'\n[route.application]\nwebhook = 'app'\n"


@pytest.mark.parametrize(
    ("config", "routes", "says"),
    [
        (API, ASKED, 'r.toml:4: route r, application.webhook: there is no [[webhook]] "app"'),
        (HOOK, ASKED, "route r, application: needs api.listen and an [[api.token]] with role"),
        (
            API + HOOK,
            ASKED + "[route.realtime]\ndialect = 'beta'\n",
            'needs realtime.dialect = "ga"',
        ),
        (API + HOOK, ASKED + "[route.interruptions]\nmode = 'disabled'\n", "its session decides"),
        (
            API + 'routes = ["s"]\n' + HOOK,
            ASKED,
            "gateway.toml:11: api.token[0].routes: there is no",
        ),
        (
            API.replace("application", "admin") + 'routes = ["r"]\n',
            "",
            "has no effect without role",
        ),
        (API + HOOK, ASKED + "timeout = 121\n", "less than or equal to 120"),
    ],
)
def test_what_an_application_needs(tmp_path: Path, config: str, routes: str, says: str) -> None:
    records = '[records]\nfolder = "records"\n'
    assert says in checked(tmp_path, BASE + records + config, routes)
    (tmp_path / "right").mkdir()
    right = checked(tmp_path / "right", BASE + records + API + HOOK, ASKED)
    assert ": good" in right


CANARY = "[[route]]\nname = 'r'\n[route.canary]\nshare = 5\n"
RECORDS = '[records]\nfolder = "records"\n'


@pytest.mark.parametrize(
    ("config", "routes", "says"),
    [
        ("", CANARY + "session.instructions = 'x'\n", "canary: needs records.folder or"),
        (RECORDS, CANARY, "r.toml:3: route[0].canary: changes nothing"),
        (RECORDS, CANARY + "session.temprature = 1\n", "canary.session.temprature"),
        (RECORDS, CANARY + "session.type = 'x'\n", "set by the gateway"),
        (
            RECORDS,
            CANARY + "realtime.url = 'wss://api.openai.com/v1/realtime'\n",
            "r.toml:5: route r, canary.realtime.api_key",
        ),
        ('[[synthetic_call]]\nname = "a"\n', "", "must have either route"),
        (
            '[[synthetic_call]]\nname = "a"\nroute = "s"\n',
            "",
            'gateway.toml:5: synthetic_call[0].route: there is no route "s"',
        ),
        (
            '[[synthetic_call]]\nname = "a"\nto = "1"\n' * 2,
            "",
            "gateway.toml:7: synthetic_call[1].name: is used twice",
        ),
    ],
)
def test_what_canaries_and_synthetic_calls_need(
    tmp_path: Path, config: str, routes: str, says: str
) -> None:
    assert says in checked(tmp_path, BASE + config, routes or "[[route]]\nname = 'r'\n")


@pytest.mark.parametrize(
    ("config", "routes", "says"),
    [
        (BASE, "[[route]]\nname = 'r'\n\nto = '_1XX'\n", "r.toml:4: route r, to: "),
        (BASE, "[[route]]\nname = 'r'\n[[route]]\nname = 's'\n", "r.toml:1: route r takes every"),
        (
            '[realtime]\nmodel = "gpt-realtim"\nurl = "wss://api.openai.com"\napi_key = "k"\n',
            "",
            "gateway.toml:2: realtime.model: ",
        ),
        (
            BASE + '[[trunk]]\nname = "a"\npeers = ["192.0.2.1"]\n',
            "",
            "gateway.toml:3: trunk a is at",
        ),
        (BASE, "", "note: dialplan.folder: no route in /"),
        (
            BASE + '[sip]\nlisten = ["udp:0.0.0.0:5060"]\npublic_address = "127.0.0.1"\n',
            "",
            "gateway.toml:5: sip.public_address: 127.0.0.1 is reached from this machine only",
        ),
    ],
)
def test_a_note_says_where_its_subject_stands(
    tmp_path: Path, config: str, routes: str, says: str
) -> None:
    assert says in checked(tmp_path, config, routes)


@pytest.mark.parametrize(
    ("config", "routes", "line", "says"),
    [
        ("", 'instructions = "x"', 3, "route[0].instructions: unknown key; it belongs in the sess"),
        ("", 'voice = "marin"', 3, "[route.session] audio.output.voice = ..."),
        ("[sip]\nport = 5060\n", "", 2, "sip.port: unknown key; listen has it"),
        (
            "[[trunk]]\nname = 'c'\nhost = '192.0.2.1'\n",
            "",
            3,
            "trunk[0].host: unknown key; peers has",
        ),
        ("[[route]]\nname = 'r'\n", "", 1, "route: unknown key; routes stand in files of dialplan"),
        ("", "greeting.text = 'Hello.'", 3, "greeting.text: unknown key; words: say ="),
        ("", "to = '+49'", 3, "the + of a number is written \\+, in single quotes: '^\\+49'"),
        ("", "to = '^(100|+49)$'", 3, "the + of a number is written \\+, in single quotes"),
        ("", "to = “100”", 3, '“ is no quotation mark of TOML: write "'),
        ("", 'to = "^\\+49"', 3, "put the text in single quotes"),
        ("", 'to = "100', 3, 'the closing " is missing'),
        ("", "to: '100'", 3, '; write name = "value"'),
        ("", "hours = ['22:00-06:00' '07:00-08:00']", 3, "commas stand between elements"),
        ("", 'session.instructions = """Hi.', 3, 'the closing """ is missing'),
        ("", "// reception", 3, "; a comment begins with #"),
        ("", "enabled = True", 3, "; write true or false"),
        ("[sip]\ncodecs = ['PCMU']\n", "", 2, "a trunk has it: trunk.codecs"),
        ("", 'trunk = "x"', 3, 'route r, trunk: there is no trunk "x"'),
        ("", "tools = ['x']", 3, 'route r, tools: there is no tool "x"'),
        ("[[trunk]]\nname = 'a'\npeers = ['0.0.0.0']\n", "", 3, "0.0.0.0/0 is everybody's"),
        ("", "fallback = [{ action = 'server', server = 'x' }]", 3, "route r, fallback[0].server"),
        ("", "[[route.transfer]]\nname = 'a'\nto = 'tel:+1'\ntrunk = 'x'", 6, "transfer[0].trunk"),
    ],
)
def test_mistakes_are_at_the_line_of_their_key(
    tmp_path: Path, config: str, routes: str, line: int, says: str
) -> None:
    told = checked(tmp_path, config + BASE, f"[[route]]\nname = 'r'\n{routes}\n")
    assert any(says in one and f":{line}: " in one for one in told.splitlines())


def test_a_key_of_the_route_below_its_session(tmp_path: Path) -> None:
    told = checked(tmp_path, routes="[[route]]\nname = 'r'\n[route.session]\nto = '^1$'\n")
    assert "r.toml:4: route[0].session.to: is a key of the route, and stands above" in told


def test_codecs_by_the_names_of_asterisk(tmp_path: Path) -> None:
    trunk = '[[trunk]]\nname = "a"\npeers = ["127.0.0.1"]\ncodecs = ["ulaw"]\n'
    assert '"ulaw" is written "PCMU" here' in checked(tmp_path, BASE + trunk)


def test_a_tool_choice_that_names_no_tool(tmp_path: Path) -> None:
    choice = "tool_choice = { type = 'function', name = 'end_cal' }"
    told = checked(tmp_path, routes=f"[[route]]\nname = 'r'\n[route.session]\n{choice}\n")
    assert 'session.tool_choice: there is no function "end_cal"; did you mean "end_call"?' in told


def test_a_tool_choice_that_names_no_mcp_server(tmp_path: Path) -> None:
    for folder, label, found in (("a", "crm", True), ("b", "shop", False)):
        (tmp_path / folder).mkdir()
        route = (
            "[[route]]\nname = 'r'\n[route.session]\n"
            "tools = [{ type = 'mcp', server_label = 'crm', server_url = 'https://h/' }]\n"
            f"tool_choice = {{ type = 'mcp', server_label = '{label}' }}\n"
        )
        told = checked(tmp_path / folder, BASE, route)
        assert ("there is no MCP server of the session" in told) is not found


def test_a_program_that_this_machine_lacks(tmp_path: Path) -> None:
    tools = "[[tools.mcp]]\nname = 'm'\ncommand = ['no-such-program', 'x']\n"
    told = checked(tmp_path, BASE + tools)
    assert "gateway.toml:3: tools.mcp: m: this machine has no program no-such-program" in told


def test_records_that_are_kept_nowhere(tmp_path: Path) -> None:
    told = checked(tmp_path, BASE + "[records]\nevents = true\n")
    assert "gateway.toml:4: records.events: has no effect without records.folder" in told


def test_files_beside_the_configuration_are_named_as_it_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    checked(tmp_path, routes="[[route]]\nnam = 'r'\n")
    monkeypatch.chdir(tmp_path)
    assert check(Path("gateway.toml"), {})[1][0].startswith("dialplans/r.toml:")
    assert check(tmp_path / "gateway.toml", {})[1][0].startswith(f"{tmp_path}/dialplans/r.toml:")
    monkeypatch.chdir(tmp_path / "dialplans")
    assert check(Path("../gateway.toml"), {})[1][0].startswith("../dialplans/r.toml:")


@pytest.mark.parametrize(
    ("sip", "says"),
    [
        ("rtp_ports = [29999, 20000]", "the highest port must be above the lowest"),
        ('public_address = "203.0.113.9:5060"', "must be an address alone, without a port"),
    ],
)
def test_addresses_and_ports_of_sip(tmp_path: Path, sip: str, says: str) -> None:
    assert says in checked(tmp_path, f"{BASE}[sip]\n{sip}\n")


def test_keys_of_an_asterisk(tmp_path: Path) -> None:
    keys = (
        'type = "endpoint"\ncontext = "from-pbx"\nfromuser = "100"\nallow = "alaw"\nqualify = 30\n'
    )
    told = checked(tmp_path, f'{BASE}[[trunk]]\nname = "t"\npeers = ["192.0.2.1"]\n{keys}')
    for says in (
        "trunk[0].type: unknown key; a trunk has no type",
        'trunk[0].context: unknown key; routes say whose calls they take: [[route]] trunk = "pbx"',
        "trunk[0].fromuser: unknown key; it is called caller_id",
        'trunk[0].allow: unknown key; codecs has it: codecs = ["PCMA"]',
        "trunk[0].qualify: unknown key; options_interval has it",
    ):
        assert says in told


@pytest.mark.parametrize(
    ("config", "route", "says"),
    [
        (
            "",
            '[route.recording]\nmode = "always"\n',
            "recording.mode: needs recording",
        ),
        (
            f'[recording]\nfolder = "r"\nrecipients = ["age1{"q" * 58}"]\n',
            "",
            "recording.recipients: 'age1qqqqqqqqqqqqqqqqqqqq' is no public key",
        ),
        ('[recording]\nmode = "always"\n', "", "recording.folder: missing"),
        ("", '[route.escape]\nkey = "0"\n', "escape.to: is needed"),
        ("", '[route.escape]\nkey = "0"\nto = ["anna"]\n', 'no [[route.transfer]] "anna"'),
        ("", "[route.collect_digits]\nsensitive = true\n", "collect_digits.url: is needed"),
        (
            "",
            '[route.collect_digits]\nsensitive = true\nurl = "http://vault.example/"\n',
            "collect_digits.url: must begin with https://",
        ),
    ],
)
def test_recordings_digits_and_escapes_that_cannot_work(
    tmp_path: Path, config: str, route: str, says: str
) -> None:
    (tmp_path / "dialplans").mkdir()
    (tmp_path / "dialplans" / "route.toml").write_text(f'[[route]]\nname = "r"\n{route}')
    file = tmp_path / "gateway.toml"
    file.write_text(f'[realtime]\nurl = "ws://127.0.0.1:1"\napi_key = ""\n{config}')
    status, lines = check(file, {})
    assert status == 2
    assert any(says in line for line in lines), lines


OPENAI = '[realtime]\nurl = "wss://api.openai.com/v1/realtime"\napi_key = "sk-1"\n'


@pytest.mark.parametrize(
    ("value", "says"),
    [
        ('"nowhere.toml"', "gateway.toml:5: cost.prices: there is no file "),
        ("3", "gateway.toml:5: cost.prices: must be the path of a file (is 3)"),
    ],
)
def test_a_price_file_that_is_none_is_named_where_it_is_set(
    tmp_path: Path, value: str, says: str
) -> None:
    assert says in checked(tmp_path, f"{OPENAI}[cost]\nprices = {value}\n")
