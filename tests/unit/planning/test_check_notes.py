# SPDX-License-Identifier: GPL-2.0-or-later
"""Mistakes of the first hour that ``gateway check`` names."""

from __future__ import annotations

import subprocess
import time
from datetime import date
from pathlib import Path

import pytest

from gateway.planning.check import check, load_all
from gateway.planning.config_notes import retirements
from gateway.planning.route_notes import pattern_note

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


LISTENS = (
    "[[route]]\nname = 'r'\ntranscription.enabled = true\n"
    "session.audio.input.transcription.model = 'gpt-transcribe'\n"
)


@pytest.mark.parametrize(
    ("routes", "says"),
    [
        (LISTENS, "gateway.toml: good"),
        (LISTENS + "realtime.dialect = 'beta'\n", 'transcription: needs realtime.dialect = "ga"'),
        (LISTENS + "realtime.dialect = 'azure-preview'\n", 'needs realtime.dialect = "ga"'),
        (
            LISTENS + "realtime.url = 'ws://127.0.0.1:1/v1/live'\n",
            "transcription: needs servers with Realtime sessions",
        ),
        (LISTENS + "greeting.say = 'Hi.'\n", "greeting: has no effect with"),
        (LISTENS + "session.instructions = 'Hi.'\n", "session.instructions: has no effect with"),
        (LISTENS + "session.audio.output.voice = 'cedar'\n", "session.audio.output: has no"),
        (LISTENS.replace("transcribe", "realtime-whisper"), "transcription.model: cannot be used"),
        (LISTENS + "session.audio.input.turn_detection = false\n", "turn_detection: is needed"),
        (LISTENS[: LISTENS.index("session")], "needs session.audio.input.transcription.model"),
        (LISTENS.replace("enabled = true", "end_phrases = ['bye']"), "needs enabled = true"),
    ],
)
def test_what_transcribed_calls_need(tmp_path: Path, routes: str, says: str) -> None:
    assert says in checked(tmp_path, BASE, routes)


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
    ("pattern", "says"),
    [
        ("_1XX", 'looks like an Asterisk pattern; as a regular expression: "^1[0-9][0-9]$"'),
        ("^_0N.$", '"^0[2-9].+$"'),
        ("^1XX$", 'an Asterisk pattern; as a regular expression: "^1[0-9][0-9]$"'),
        ("1xx", 'looks like an Asterisk pattern; as a regular expression: "^1[0-9][0-9]$"'),
        ("sip:100@pbx.example", "is compared with the user"),
        ("^tel:[+]49", "is compared with the user"),
        (r"^\+49 30 123$", r'matches no number, since none has spaces or slashes: "^\+4930123$"'),
        ("/^100$/", '"^100$"'),
        ("^100$ ", '"^100$"'),
        ("100|200", 'matches longer numbers, too; only these: "^(100|200)$"'),
        ("^100|200$", 'only these: "^(100|200)$"'),
        ("^100|^200", None),
        ("^100$|^200$", None),
        ("1[0-9]{2}", 'only these: "^1[0-9]{2}$"'),
        (r"\d{3}", r'only these: "^\d{3}$"'),
        ("^1[0-9]", None),
        ("[0-9]+", None),
        ("0ZX.", 'looks like an Asterisk pattern; as a regular expression: "^0[1-9][0-9].+$"'),
        ("100*", 'matches 10 and then any number of 0; numbers that begin with 100: "^100"'),
        ("100", 'matches 11002, too; only this number: "^100$"'),
        ("^100", "begins so"),
        ("100$", "ends so"),
        ("^100$", None),
        ("^1[0-9]*$", None),
        (".*", None),
        ("^sales", None),
        ("^(100|200)$", None),
    ],
)
def test_patterns_that_mean_something_else(pattern: str, says: str | None) -> None:
    note = pattern_note(pattern)
    assert note is None if says is None else says in (note or "")


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
    ("first", "second", "hidden"),
    [
        ("", "to = '^100$'", "r takes every call, none is left for s"),
        ("to = '^1'", "to = '^100$'", "r comes first and takes every call of s"),
        ("to = '^100$'", "to = '^100$'\nfrom = '^\\+49'", "takes every call of s"),
        ("to = '^100$'\nfrom = '^\\+49'", "to = '^100$'", ""),
        ("to = '^200$'", "to = '^100$'", ""),
        ("to = '^1'\ntrunk = 'a'", "to = '^100$'", ""),
    ],
)
def test_routes_that_an_earlier_one_hides(
    tmp_path: Path, first: str, second: str, hidden: str
) -> None:
    trunk = '[[trunk]]\nname = "a"\npeers = ["127.0.0.1"]\n'
    routes = f"[[route]]\nname = 'r'\n{first}\n[[route]]\nname = 's'\n{second}\n"
    told = checked(tmp_path, BASE + trunk, routes)
    assert hidden in told
    assert ("takes every call" in told) is bool(hidden)


@pytest.mark.parametrize(
    ("listen", "peer", "more", "says"),
    [
        ("127.0.0.1", "192.0.2.5", "", 'listen = ["udp:0.0.0.0:5060"]'),
        ("127.0.0.1", "192.168.1.5", "", "is reached from this machine only"),
        ("192.168.1.2", "198.51.100.7", "", "private address 192.168.1.2: set sip.public_address"),
        ("192.168.1.2", "198.51.100.7", 'public_address = "203.0.113.1"\n', None),
        ("0.0.0.0", "198.51.100.7", 'public_address = "10.0.0.1"\n', "10.0.0.1 is private, and"),
        ("192.168.1.2", "192.168.1.5", "", None),
        ("127.0.0.1", "127.0.0.2", "", None),
        ("127.0.0.1", "sip.example.net", "", "is at sip.example.net, and sip.listen"),
        ("192.168.1.2", "sip.example.net", "", None),
        ("127.0.0.1", "localhost", "", None),
        ("127.0.0.1", "2001:db8::5", "", 'listen = ["udp:[::]:5060"]'),
        ("0.0.0.0", "2001:db8::5", "", "is not reached by IPv6: listen"),
        ("[::]", "2001:db8::5", "", None),
    ],
)
def test_trunks_that_listen_does_not_reach(
    tmp_path: Path, listen: str, peer: str, more: str, says: str | None
) -> None:
    sip = f'[sip]\nlisten = ["udp:{listen}:5060"]\n{more}'
    where = f'peers = ["{peer}"]' if peer[0].isdigit() else f'registrar = "{peer}"'
    where += '\nusername = "me"\npassword = "p"\n'
    told = checked(tmp_path, f'{BASE}{sip}[[trunk]]\nname = "pbx"\n{where}')
    if says is None:
        assert "trunk pbx is at" not in told
        assert "sip.public_address" not in told
    else:
        assert says in told


@pytest.mark.parametrize(
    ("url", "model", "says"),
    [
        ("wss://api.openai.com/v1/realtime", "gpt-realtime-2.1", None),
        ("wss://api.openai.com/v1/realtime", "gpt-realtme-2.1", 'did you mean "gpt-realtime-2.1"'),
        ("wss://api.openai.com/v1/realtime", "gpt-realtime2", 'did you mean "gpt-realtime-2"'),
        ("wss://R.openai.azure.com", "mine", 'needs api_key_header = "api-key"'),
        ("wss://api.openai.com/v1/realtim", "gpt-realtime-2.1", "OpenAI's is /v1/realtime"),
        ("wss://voice.example/anything", "mine", None),
        ("wss://voice.example/v1/realtim", "mine", "ends in realtim; most servers' ends in"),
    ],
)
def test_models_and_paths_that_nobody_has(
    tmp_path: Path, url: str, model: str, says: str | None
) -> None:
    config = f'[realtime]\nurl = "{url}"\nmodel = "{model}"\napi_key = "k"\n'
    told = checked(tmp_path, config)
    assert (says in told) if says else ("realtime.model" not in told and "realtime.url" not in told)


REMOTE = '[realtime]\nurl = "wss://voice.example"\napi_key = '


@pytest.mark.parametrize(
    ("config", "environ", "says"),
    [
        (REMOTE + '"sk-123"\n', {}, ":3: realtime.api_key: stands in the file; write ${env:NAME}"),
        (REMOTE + '"${env:KEY}"\n', {"KEY": "sk-123"}, ": good"),
        (REMOTE + '"${env:KEY}"\n', {"KEY": ""}, ":3: realtime.api_key: ${env:KEY} is empty"),
        (
            REMOTE + '"$KEY"\n',
            {},
            ":3: realtime.api_key: is the name of a variable; write ${env:KEY}",
        ),
        (BASE + 'api_key = "${env:KEY}"\n', {}, "without a key (${env:KEY} is not set)"),
        (
            REMOTE.replace("voice.example", "api.openai.com") + '"${env:KEY}"\n',
            {"KEY": "sk-ant-1"},
            ":3: realtime.api_key: is a key of Anthropic",
        ),
    ],
)
def test_keys_that_are_not_what_they_should_be(
    tmp_path: Path, config: str, environ: dict[str, str], says: str
) -> None:
    told = checked(tmp_path, config, environ=environ)
    assert says in told
    assert ("stands in the file" in says) == ("stands in the file" in told)
    assert "sk-123" not in told


@pytest.mark.parametrize(
    ("prefix", "noted"), [("49", True), ("+49", False), ("0049", False), ("10", False)]
)
def test_a_prefix_without_its_plus(tmp_path: Path, prefix: str, noted: bool) -> None:
    outbound = f'[outbound]\nenabled = true\ncountry = "DE"\nallowed_prefixes = ["{prefix}"]\n'
    told = checked(tmp_path, BASE + outbound)
    assert ('write "+49"' in told) is noted


@pytest.mark.parametrize("shared", [False, True])
def test_caps_that_workers_do_not_share(tmp_path: Path, shared: bool) -> None:
    config = f'{BASE}[workers]\ncount = 2\n[outbound]\nenabled = true\ncountry = "DE"\n'
    config += 'allowed_prefixes = ["+49"]\n' + '[records]\nfolder = "r"\n' * shared
    told = checked(tmp_path, config)
    assert ("the caps in [outbound] hold for each worker by itself" in told) is not shared


def test_a_registrar_without_a_password(tmp_path: Path) -> None:
    trunk = '[sip]\nlisten = ["udp:0.0.0.0:5060"]\n[[trunk]]\nname = "c"\n'
    told = checked(tmp_path, f'{BASE}{trunk}registrar = "sip.example.net"\nusername = "me"\n')
    assert "trunk c registers without a password" in told


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
        ("", "to = “100”", 3, '“ is no quotation mark of TOML: write "'),
        ("", 'to = "^\\+49"', 3, "put the text in single quotes"),
        ("", 'to = "100', 3, 'the closing " is missing'),
        ("", "to: '100'", 3, '; write name = "value"'),
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


def test_an_approval_for_an_mcp_server_of_the_session(tmp_path: Path) -> None:
    tool = "{ type = 'mcp', server_label = 'crm', server_url = 'https://x.example/mcp' }"
    routes = f"[[route]]\nname = 'r'\nsession.tools = [{tool}]\n"
    routes += "[[route.approval]]\ntool = 'crm_*'\npolicy = 'allow'\n"
    assert "no tool fits" not in checked(tmp_path, routes=routes)


def certificate(folder: Path, days: int = 365, name: str = "a") -> tuple[Path, Path]:
    """A self-signed certificate and its key, made with openssl."""
    crt, key = folder / f"{name}.crt", folder / f"{name}.key"
    subprocess.run(
        ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-subj", "/CN=gateway",
         "-days", str(days), "-keyout", key, "-out", crt],
        check=True, capture_output=True,
    )  # fmt: skip
    return crt, key


def tls(crt: Path, key: Path) -> str:
    return (
        f'{BASE}[sip]\nlisten = ["tls:127.0.0.1:5061"]\n[sip.tls]\ncertificate = "{crt}"\n'
        f'private_key = "{key}"\n'
    )


def test_a_good_certificate(tmp_path: Path) -> None:
    told = checked(tmp_path, tls(*certificate(tmp_path)))
    assert "good" in told
    assert "sip.tls" not in told


def test_a_certificate_that_ends_soon(tmp_path: Path) -> None:
    assert "expires on" in checked(tmp_path, tls(*certificate(tmp_path, days=3)))


def test_a_key_that_every_user_can_read(tmp_path: Path) -> None:
    crt, key = certificate(tmp_path)
    key.chmod(0o644)
    assert f"sip.tls.private_key: every user of this machine can read {key}" in checked(
        tmp_path, tls(crt, key)
    )
    trunk = '[[trunk]]\nname = "a"\nregistrar = "localhost"\nusername = "u"\n'
    trunk += 'password = "${file:pw}"\n'
    for mode, noted in ((0o644, True), (0o600, False)):
        folder = tmp_path / f"{mode:o}"
        folder.mkdir()
        (folder / "pw").write_text("x")
        (folder / "pw").chmod(mode)
        told = checked(folder, BASE + trunk)
        assert ("every user of this machine can read pw" in told) is noted


@pytest.mark.parametrize("which", ["certificate", "ca"])
def test_a_file_of_certificates_that_is_cut_off(tmp_path: Path, which: str) -> None:
    crt, key = certificate(tmp_path)
    half = tmp_path / "half.pem"
    half.write_text("\n".join(crt.read_text().splitlines()[:5]))
    text = tls(half if which == "certificate" else crt, key)
    told = checked(tmp_path, text + (f'ca = "{half}"\n' if which == "ca" else ""))
    assert f"sip.tls.{which}: {half} " in told
    assert "cut off or damaged" in told


def test_an_expired_certificate(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    in_two_days = time.time() + 2 * 86400
    monkeypatch.setattr("gateway.planning.config_notes.time.time", lambda: in_two_days)
    assert "expired on" in checked(tmp_path, tls(*certificate(tmp_path, days=1)))


def test_a_key_of_another_certificate(tmp_path: Path) -> None:
    crt, _ = certificate(tmp_path)
    _, other = certificate(tmp_path, name="b")
    told = checked(tmp_path, tls(crt, other))
    assert f"sip.tls.private_key: {other} is not the key of {crt}" in told


def test_a_key_with_a_passphrase(tmp_path: Path) -> None:
    crt, key = certificate(tmp_path)
    locked = tmp_path / "locked.key"
    command: list[str | Path] = [
        "openssl",
        "pkey",
        "-in",
        key,
        "-aes128",
        "-passout",
        "pass:secret",
        "-out",
        locked,
    ]
    subprocess.run(command, check=True, capture_output=True)
    told = checked(tmp_path, tls(crt, locked))
    assert f"sip.tls.private_key: {locked} is protected by a passphrase" in told


def test_a_chain_without_its_intermediate(tmp_path: Path) -> None:
    key = tmp_path / "k.pem"
    subprocess.run(
        ["openssl", "genpkey", "-algorithm", "EC", "-pkeyopt", "ec_paramgen_curve:P-256",
         "-out", key],
        check=True, capture_output=True,
    )  # fmt: skip
    made: list[Path] = []
    for name in ("root", "between", "gateway"):
        signed: list[str | Path] = ["-CA", made[-1], "-CAkey", key] if made else []
        made.append(tmp_path / f"{name}.pem")
        subprocess.run(
            ["openssl", "req", "-x509", "-key", key, "-subj", f"/CN={name}", *signed,
             "-out", made[-1]],
            check=True, capture_output=True,
        )  # fmt: skip
    root, between, leaf = made
    both = tmp_path / "both.pem"
    both.write_bytes(leaf.read_bytes() + between.read_bytes())
    gap = "does not lead to a CA"
    for number, (chain, ca, says) in enumerate(
        [(leaf, root, True), (leaf, between, False), (both, root, False), (both, leaf, True)]
    ):
        folder = tmp_path / str(number)
        folder.mkdir()
        told = checked(folder, f'{tls(chain, key)}ca = "{ca}"\n')
        assert (gap in told) is says, (chain, ca, told)


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


def test_tls_at_the_port_of_udp(tmp_path: Path) -> None:
    trunk = (
        '[[trunk]]\nname = "t"\ntransport = "tls"\nregistrar = "192.0.2.1:5060"\nusername = "u"\n'
    )
    config = tls(*certificate(tmp_path)).replace("127.0.0.1:5061", "0.0.0.0:5061")
    told = checked(tmp_path, config + trunk)
    assert "gateway.toml:11: trunk t, registrar: 192.0.2.1:5060 is no port of TLS" in told


def test_a_certificate_that_is_no_pem(tmp_path: Path) -> None:
    crt, key = certificate(tmp_path)
    crt.write_bytes(b"\x30\x82")
    assert "is no PEM file with a certificate" in checked(tmp_path, tls(crt, key))


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
PROMPT = "[route.session.prompt]\nid = 'pmpt_1'\n"
OLD = "[route.realtime]\nmodel = 'gpt-realtime'\n"
HEARD = '[route.session.audio.input.transcription]\nmodel = "{}"\n'


@pytest.mark.parametrize(
    ("more", "route", "day", "says"),
    [
        (
            'model = "gpt-realtime"',
            "",
            "2026-10-22",
            "realtime.model: gpt-realtime ends on",
        ),
        ('model = "gpt-realtime"', "", "2026-10-21", ""),
        (
            'model = "gpt-realtime"',
            "",
            "2027-01-19",
            "in 1 days at api.openai.com; use gpt",
        ),
        ('model = "gpt-realtime"', "", "2027-01-20", "!ended on 2027-01-20 at api.openai.com; use"),
        ('model = "gpt-realtime-mini-2025-10-06"', "", "2027-02-01", "!use gpt-realtime-2.1-mini"),
        ("", "", "2030-01-01", ""),
        (
            "",
            HEARD.format("whisper-1"),
            "2027-03-01",
            "!route r, session.audio.input.",
        ),
        ("", HEARD.format("gpt-4o-mini-transcribe"), "2027-02-01", "use gpt-transcribe"),
        ("", HEARD.format("gpt-live-transcribe"), "2030-01-01", ""),
        (
            "",
            "[route.session.prompt]\nid = 'pmpt_1'\n",
            "2026-11-29",
            "prompt:pmpt_1 ends on 2026-1",
        ),
        ("", PROMPT, "2026-12-01", "!route r, session.prompt:"),
        (
            "",
            "[route.realtime]\nmodel = 'gpt-realtime'\n",
            "2028-01-01",
            "!route r, realtime.model",
        ),
        ("", "enabled = false\n" + OLD, "2028-01-01", ""),
        (
            "[[realtime_server]]\nname = 'b'\nurl = 'wss://eu.api.openai.com/v1/realtime'\n"
            "api_key = 'sk-2'\nmodel = 'gpt-realtime'",
            "[[route.fallback]]\naction = 'server'\nserver = 'b'\n",
            "2028-01-01",
            "!route r, fallback: realtime_server b: gpt-realtime ended",
        ),
        (
            "[[realtime_server]]\nname = 'b'\nurl = 'wss://eu.api.openai.com/v1/realtime'\n"
            "api_key = 'sk-2'\nmodel = 'gpt-realtime-2.1'",
            "session.audio.input.transcription.model = 'whisper-1'\n[route.realtime]\n"
            "url = 'wss://elsewhere.example/v1/realtime'\napi_key = 'sk-1'\n"
            "[[route.fallback]]\naction = 'server'\nserver = 'b'\n",
            "2027-02-01",
            "route r, session.audio.input.transcription.model: whisper-1 ends on 2027-02-26",
        ),
    ],
)
def test_models_that_end(tmp_path: Path, more: str, route: str, day: str, says: str) -> None:
    checked(tmp_path, OPENAI + more, f"[[route]]\nname = 'r'\n{route}")
    config, dialplan = load_all(tmp_path / "gateway.toml", {})
    found = list(retirements(config, dialplan, date.fromisoformat(day)))
    assert [served for served, _ in found] == ([] if not says else [not says.startswith("!")])
    assert says.lstrip("!") in "".join(text for _, text in found)


@pytest.mark.parametrize(
    ("host", "entry", "status", "says"),
    [
        ("sip.example", None, 0, ""),
        ("api.openai.com", None, 2, "gateway.toml:4: realtime.model: gpt-old ended on"),
        ("api.openai.com", 'hosts = ["*"]', 0, ""),
        (
            "sip.example",
            'hosts = ["sip.example"]\non = 2020-02-02',
            2,
            "gpt-old ended on 2020-02-02",
        ),
    ],
)
def test_a_price_file_decides_about_the_end(
    tmp_path: Path, host: str, entry: str | None, status: int, says: str
) -> None:
    """The gateway's own dates are for OpenAI's servers, and can be overruled for any."""
    ended = '[[retirement]]\nmatch = ["gpt-old"]\n'
    own = ended + 'hosts = ["api.openai.com"]\non = 2020-01-01\n'
    prices = own if entry is None else f"{ended}{entry}\n{own}"
    (tmp_path / "prices.toml").write_text('currency = "EUR"\n' + prices)
    where = OPENAI.replace("api.openai.com", host)
    told = checked(tmp_path, where + 'model = "gpt-old"\n[cost]\nprices = "prices.toml"\n')
    assert check(tmp_path / "gateway.toml", {})[0] == status
    assert says in told
    load_all(tmp_path / "gateway.toml", {})  # a running gateway is not refused its start


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


def test_words_of_callers_are_waited_for_where_they_are_transcribed(tmp_path: Path) -> None:
    route = "[[route]]\nname = 'r'\n[[route.transfer]]\nname = 'a'\nto = 'sip:a@b'\n"
    route += "[route.escape]\nphrases = ['human']\nto = ['a']\n"
    assert "escape.phrases are not understood" in checked(tmp_path, routes=route)
    (tmp_path / "heard").mkdir()
    heard = checked(tmp_path / "heard", routes=route + HEARD.format("gpt-transcribe"))
    assert "not understood" not in heard


LIVE_SERVER = BASE.replace("[realtime]\n", '[realtime]\nmodel = "gpt-live-1.1"\n')
BACKEND = 'live.delegation = { type = "responses", responses = { model = "m" } }\n'
EXACT = 'greeting = { say = "Hello.", exact = true }\n'


@pytest.mark.parametrize(
    ("config", "route", "note"),
    [
        ("", 'post_call.prompts.sum = "Sum up."\n', "post_call: has no effect with Live sessions"),
        ("", 'post_call.prompts.sum = "Sum up."\n' + BACKEND, ""),
        ("", "set_language.languages = { de = 'German' }\ntools = []\n", ""),
        ("", EXACT, "greeting.exact: has no effect without media.speech_command"),
        ('[media]\nspeech_command = ["espeak-ng"]\n', EXACT, ""),
    ],
)
def test_what_live_sessions_have_nothing_for(
    tmp_path: Path, config: str, route: str, note: str
) -> None:
    said = checked(tmp_path, LIVE_SERVER + config, f"[[route]]\nname = 'r'\nto = '^1$'\n{route}")
    assert (note or ": good") in said
    assert ("no effect" in said) == bool(note)


def test_a_live_server_of_openai_is_as_it_should_be(tmp_path: Path) -> None:
    url = "wss://api.openai.com/v1/live/sessions"
    config = f'[realtime]\nurl = "{url}"\nmodel = "gpt-live-1.1"\napi_key = "k"\n'
    said = checked(tmp_path, config, "[[route]]\nname = 'r'\nto = '^1$'\n")
    assert "realtime.url" not in said
    assert "realtime.model" not in said


def test_a_history_that_finds_nothing_is_named(tmp_path: Path) -> None:
    table = "[route.caller_history]\nenabled = true\nroutes = ['s']\ntrust = 'any'\n"
    config = BASE + "[records]\nfolder = 'records'\nredact = ['numbers']\n"
    said = checked(tmp_path, config, f"[[route]]\nname = 'r'\n{table}")
    assert 'route r, caller_history.routes: there is no route "s"' in said
    assert "finds no calls of this route" in said
    assert "anybody who sends a number" in said
