# SPDX-License-Identifier: GPL-2.0-or-later
"""What ``gateway.toml`` may say, and what is said of every way to get it wrong."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from gateway.config import Config, ConfigError
from gateway.config.sip import ListenAddress, PortRange
from gateway.config.source import Problem, read_toml
from gateway.planning.check import check, load_all
from tests.support.config import load_config

ROOT = Path(__file__).parents[3]
LOCAL = '[realtime]\nurl = "ws://127.0.0.1:8765/v1/realtime"\n'


def write(folder: Path, text: str) -> Path:
    (folder / "dialplans").mkdir(exist_ok=True)
    file = folder / "gateway.toml"
    file.write_text(text, encoding="utf-8")
    return file


def load(folder: Path, text: str, **environ: str) -> Config:
    return load_config(write(folder, text), environ)


def problems(folder: Path, text: str, **environ: str) -> list[tuple[int, str, str]]:
    with pytest.raises(ConfigError) as caught:
        load(folder, text, **environ)
    found = caught.value.problems
    assert all(problem.file == folder / "gateway.toml" for problem in found)
    return [(problem.line, problem.key, problem.message) for problem in found]


def the_problem(folder: Path, text: str, **environ: str) -> tuple[int, str, str]:
    (found,) = problems(folder, text, **environ)
    return found


def test_the_example_needs_no_key_against_the_emulator() -> None:
    config, dialplan = load_all(ROOT / "gateway.toml", {})
    assert config.sip.listen == (ListenAddress("udp", "127.0.0.1", 5060),)
    assert config.sip.rtp_ports == PortRange(20000, 29999)
    assert config.sip.max_calls == 100
    assert config.realtime.api_key is None
    assert config.realtime.on_loopback
    assert config.dialplan.folder == ROOT / "dialplans"
    assert config.log.format == "json"
    assert (config.api.listen, config.api.browser_calls) == (None, 0)
    assert dialplan.routes


def test_the_example_with_the_live_service(tmp_path: Path) -> None:
    text = (ROOT / "gateway.toml").read_text(encoding="utf-8")
    live = text.replace("ws://127.0.0.1:8765/v1/realtime", "wss://api.example.com/v1/realtime")
    line, key, message = the_problem(tmp_path, live)
    assert live.splitlines()[line - 1].startswith("api_key")
    assert (key, message) == (
        "realtime.api_key",
        "environment variable OPENAI_API_KEY is not set",
    )
    config = load(tmp_path, live, OPENAI_API_KEY="sk-1")
    assert config.realtime.api_key is not None
    assert config.realtime.api_key.get_secret_value() == "sk-1"


def test_defaults(tmp_path: Path) -> None:
    config = load(tmp_path, LOCAL)
    assert config.realtime.connect_timeout == 8
    assert config.realtime.max_playout_seconds == 600
    assert config.limits.max_call_duration == 3600
    assert config.media.rtp_timeout == 30
    assert config.records.folder is None
    assert config.dialplan.folder == tmp_path / "dialplans"


def test_every_mistake_is_told_at_once(tmp_path: Path) -> None:
    text = """\
[sip]
listen = [
  "udp:127.0.0.1:5060",
  "sctp:127.0.0.1:5060",
]
max_call = 3
max_calls = true
[realtime]
url = "ftp://x"
api_key = "${env:NOPE}"
headers = { "X A" = "1", Host = "x" }
connect_timeout = 0
[lgo]
[log]
format = "xml"
[[media]]
"""
    assert problems(tmp_path, text) == [
        (4, "sip.listen[1]", "the transport must be udp, tcp or tls"),
        (6, "sip.max_call", 'unknown key; did you mean "max_calls"?'),
        (7, "sip.max_calls", "must be an integer (is true)"),
        (9, "realtime.url", "must begin with wss:// or https:// (or ws://, http://)"),
        (10, "realtime.api_key", "environment variable NOPE is not set"),
        (11, 'realtime.headers."X A"', "is not a valid HTTP header name"),
        (12, "realtime.connect_timeout", "must be greater than 0 (is 0)"),
        (13, "lgo", 'unknown key; did you mean "log"?'),
        (15, "log.format", "must be 'json' or 'console' (is 'xml')"),
        (16, "media", "must be a table: write [media]"),
    ]


@pytest.mark.parametrize(
    ("section", "line", "key", "message"),
    [
        ("sip", 'listen = ["udp:localhost:5060"]', "listen[0]", "not a name"),
        ("sip", 'listen = ["5060"]', "listen[0]", "transport:address:port"),
        ("sip", 'public_address = "0.0.0.0"', "public_address", "puts them on hold"),
        ("log", 'file = "."', "file", "is a folder"),
        ("records", 'folder = "gateway.toml/x"', "folder", "gateway.toml is no folder"),
        ("recording", 'folder = "gateway.toml"', "folder", "gateway.toml is no folder"),
        ("control", 'socket = "."', "socket", "is there and is no socket"),
        ("records", 'folder = "~no-such-user/x"', "folder", "no such home folder is known"),
        ("records", 'database = "sqlite:///~no-such-user/x"', "database", "no such home folder"),
        ("records", 'database = "postgresql://u:p@h:port/db"', "database", "@HOST:PORT/NAME"),
        ("records", 'database = "postgresql://u:p@h:70000/db"', "database", "@HOST:PORT/NAME"),
        ("records", 'database = "postgresql://u:p@ss@h/db"', "database", "%40 for an @"),
        ("records", 'database = "postgresql://u:p@::1/db"', "database", "[ ] around an IPv6"),
        ("sip", 'max_calls = "100"', "max_calls", "an integer, without quotation marks"),
        ("sip", 'listen = ["udp: 0.0.0.0:5060"]', "listen[0]", "transport:address:port"),
        ("sip", 'listen = ["udp://0.0.0.0:5060"]', "listen[0]", "transport:address:port"),
        ("control", 'socket = "a\\u0000b"', "socket", "has a character that no path has"),
        ("dialplan", "workers = 4", "workers", "unknown key; workers stands in a table of its own"),
        ("sip", 'listen = ["udp:0.0.0.0:65536"]', "listen[0]", "between 0 and 65535"),
        ("sip", 'listen = ["sctp:0.0.0.0:1"]', "listen[0]", "must be udp"),
        ("sip", 'listen = ["tls:0.0.0.0:5061"]', "listen[0]", "needs sip.tls.certificate"),
        ("sip", "listen = []", "listen", "at least 1 item"),
        ("sip", 'listen = "udp:0.0.0.0:1"', "listen", "array"),
        ("sip", 'listen = ["udp:[::1]:1", "udp:[0::1]:1"]', "listen[1]", "collides"),
        ("sip", 'listen = ["udp:1.2.3.4:1", "udp:0.0.0.0:1"]', "listen[1]", "udp:1.2.3.4:1"),
        ("sip", 'listen = ["tcp:0.0.0.0:1", "tls:1.2.3.4:1"]', "listen[1]", "tcp:0.0.0.0:1"),
        ("control", f'socket = "/run/{"x" * 103}"', "socket", "107 are allowed"),
        ("sip", 'listen = ["udp:0.0.0.0:20000"]', "listen[0]", "one of rtp_ports"),
        ("sip", "rtp_ports = [20001, 29999]", "rtp_ports", "even"),
        ("sip", "rtp_ports = [20000, 20000]", "rtp_ports", "above the lowest"),
        ("sip", "rtp_ports = [20000]", "rtp_ports", "two integers"),
        ("sip", "rtp_ports = [80, 70000]", "rtp_ports", "between 1024 and 65535"),
        ("sip", "rtp_ports = [20000, 20197]", "rtp_ports", "room for 99 calls"),
        ("sip", 'rtp_dscp = "voice"', "rtp_dscp", 'a name like "ef"'),
        ("sip", "rtp_dscp = 184", "rtp_dscp", "0 to 63"),
        ("sip", "dscp = true", "dscp", "0 to 63"),
        ("sip", 'tos_audio = "ef"', "tos_audio", 'sip.rtp_dscp has it: rtp_dscp = "ef"'),
        ("sip", "max_calls = 0", "max_calls", "greater than or equal to 1 (is 0)"),
        ("sip", 'max_calls = "100"', "max_calls", "an integer"),
        ("sip", "max_calls = 1.0", "max_calls", "an integer"),
        ("sip", 'public_address = "pbx.example.com"', "public_address", "not a name"),
        (
            "access",
            'unknown_sources = "maybe"',
            "unknown_sources",
            "'auto', 'allow', 'reject' or 'drop'",
        ),
        ("access", "burst = 0", "burst", "greater than or equal to 1"),
        ("sip.tls", 'client_certificates = "required"', "client_certificates", "needs ca"),
        ("media", 'srtp = "on"', "srtp", "'off', 'optional' or 'required'"),
        ("media", 'srtp = "required"', "srtp", "sdes_without_tls = true"),
        ("sip", 'user_agent = "a\\r\\nX: y"', "user_agent", "printable ASCII"),
        ("media", "packet_wait_ms = 501", "packet_wait_ms", "less than or equal to 500"),
        ("media", "rtp_timeout = -1", "rtp_timeout", "greater than or equal to 0"),
        ("limits", "max_call_duration = inf", "max_call_duration", "finite"),
        ("limits", "drain_timeout = '5'", "drain_timeout", "a number"),
        ("dialplan", 'folder = "nowhere"', "folder", "is no folder"),
        ("dialplan", 'folder = ""', "folder", "must not be empty"),
        ("log", 'level = "INFO"', "level", "is 'INFO'"),
        ("log", 'file = "no/such/gateway.log"', "file", "does not exist"),
    ],
)
def test_bad_values(tmp_path: Path, section: str, line: str, key: str, message: str) -> None:
    number, at, said = the_problem(tmp_path, f"{LOCAL}[{section}]\n{line}\n")
    assert (number, at) == (4, f"{section}.{key}")
    assert message in said


def test_ipv6(tmp_path: Path) -> None:
    text = f'{LOCAL}[sip]\nlisten = ["udp:[::1]:5060"]\npublic_address = "2001:db8::1"\n'
    config = load(tmp_path, text)
    assert config.sip.listen == (ListenAddress("udp", "::1", 5060),)
    assert str(config.sip.listen[0]) == "udp:[::1]:5060"
    assert config.sip.public_address == "2001:db8::1"


def test_references(tmp_path: Path) -> None:
    (tmp_path / "secret").write_text("from file\r\n\n", encoding="utf-8")
    text = """\
[realtime]
url = "ws://127.0.0.1/${env:A}/${env:B:-b}/${env:EMPTY:-c}/$${env:A}"
headers.X-File = "${file:secret}"
[sip]
max_calls = "${env:CALLS:-7}"
[limits]
drain_timeout = "${env:DRAIN}"
"""
    config = load(tmp_path, text, A="a", EMPTY="", DRAIN="2.5")
    assert config.realtime.url == "ws://127.0.0.1/a/b/c/${env:A}"
    assert config.realtime.headers["X-File"].get_secret_value() == "from file"
    assert config.sip.max_calls == 7
    assert config.limits.drain_timeout == 2.5


@pytest.mark.parametrize(
    ("reference", "message"),
    [
        ("${env:X}", "environment variable X is not set"),
        ("${env:}", "environment variable (no name) is not set"),
        ("${file:gone}", "file gone cannot be read: No such file or directory"),
        ("${file:.}", "file . cannot be read: Is a directory"),
        ("${file:/dev/zero}", "file /dev/zero cannot be read: it is no regular file"),
        ("${file:binary}", "file binary is not UTF-8 text"),
        ("${file:large}", "it is larger than 1048576 bytes"),
        ("${vault:x}", "unknown reference ${vault:...}"),
        ("${HOME}", "write ${env:HOME}"),
        ("${env.HOME}", "write ${env:HOME}"),
        ("${sk-proj-1}", "is no reference; write ${env:NAME}"),
    ],
)
def test_bad_references(tmp_path: Path, reference: str, message: str) -> None:
    (tmp_path / "binary").write_bytes(b"\xff\xfe")
    (tmp_path / "large").write_bytes(b"x" * (1024 * 1024 + 1))
    line, key, said = the_problem(tmp_path, f'{LOCAL}model = "{reference}"\n')
    assert (line, key) == (3, "realtime.model")
    assert message in said


def test_a_reference_that_gives_no_number(tmp_path: Path) -> None:
    text = LOCAL + '[sip]\nmax_calls = "${env:CALLS}"\n'
    assert load(tmp_path, text, CALLS="50").sip.max_calls == 50
    _, key, message = the_problem(tmp_path, text, CALLS="fifty")
    assert (key, message) == ("sip.max_calls", "must be an integer (is '${env:CALLS}')")


def test_secrets_of_every_section_are_listed(tmp_path: Path) -> None:
    text = """
[realtime]
url = "ws://127.0.0.1:1/"
api_key = ""
[[realtime_server]]
name = "other"
url = "wss://h/"
api_key = "server"
[records]
folder = "records"
[recording]
folder = "recordings"
upload = { endpoint = "https://h", bucket = "calls", access_key = "access", secret_key = "upload" }
[[webhook]]
name = "hook"
url = "https://h/"
secret = "whsec_MDEyMzQ1Njc4OTAxMjM0NTY3ODkwMTIz"
headers = { X-Y = "hook" }
[[tools.mcp]]
name = "crm"
client = "provider"
url = "https://h/"
authorization = "mcp"
[callbacks]
headers = { X-Y = "callback" }
[tracing]
headers = { X-Y = "tracing" }
[[trunk]]
name = "pbx"
username = "u"
password = "trunk"
peers = ["192.0.2.1"]
inbound_auth = { username = "u", password = "inbound" }
"""
    key = "whsec_MDEyMzQ1Njc4OTAxMjM0NTY3ODkwMTIz"
    listed = {"server", "access", "upload", key, "hook", "mcp", "callback", "tracing", "trunk"}
    assert {*load(tmp_path, text).secrets()} == {*listed, "inbound"}


def test_secrets_are_never_shown(tmp_path: Path) -> None:
    secret = "sk-very-secret"
    text = (
        '[realtime]\nurl = "wss://h/"\napi_key = "${env:KEY}"\nheaders = { X-Y = "${env:KEY}" }\n'
    )
    config = load(tmp_path, text, KEY=secret)
    assert config.secrets() == (secret, secret)
    for shown in (repr(config), str(config), config.model_dump_json(), str(config.model_dump())):
        assert secret not in shown
    # In the wrong place, of the wrong kind, or broken: still not.
    bad = text + 'connect_timeout = "${env:KEY}"\nmodel = 7\napi_key_header = "${env:KEY}"\n'
    for key in (secret, f"{secret}\n", f"{secret} é"):
        said = str(problems(tmp_path, bad, KEY=key))
        assert "realtime.connect_timeout" in said
        assert secret not in said


@pytest.mark.parametrize(
    ("text", "line", "message"),
    [
        ("[sip]\nlisten = \n", 2, "TOML syntax: Invalid value (column 10)"),
        (
            "a = 1\na = 2\n",
            2,
            "TOML syntax: Cannot overwrite a value (column 6); no key may be set",
        ),
        (
            "[a]\nb = 1\n[a]\n",
            3,
            "TOML syntax: Cannot declare ('a',) twice (column 3); put the keys",
        ),
        (
            "a = 1\n\u00a0b = 2\n",
            2,
            "TOML syntax: Invalid statement (column 1); no-break space (U+00A0)",
        ),
        ("a = 1\n\u200bb = 2\n", 2, "TOML syntax: Invalid statement (column 1); zero width space"),
        ("a = [\n1,\n", 2, "TOML syntax"),
    ],
)
def test_syntax(tmp_path: Path, text: str, line: int, message: str) -> None:
    number, key, said = the_problem(tmp_path, text)
    assert (number, key) == (line, "")
    assert said.startswith(message)


def test_unreadable(tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as caught:
        load_config(tmp_path / "gone.toml")
    assert str(caught.value) == f"{tmp_path}/gone.toml:1: cannot be read: No such file or directory"
    latin = tmp_path / "latin.toml"
    latin.write_bytes("a = 1\nb = '\xfc'\n".encode("latin-1"))
    with pytest.raises(ConfigError) as caught:
        load_config(latin)
    assert caught.value.problems == (Problem(latin, 2, "", "is not UTF-8 text"),)


def test_a_byte_order_mark_is_no_mistake(tmp_path: Path) -> None:
    assert load(tmp_path, "\ufeff" + LOCAL).realtime.on_loopback


def test_config_is_immutable(tmp_path: Path) -> None:
    config = load(tmp_path, LOCAL + 'headers.X-Y = "1"\n')
    with pytest.raises(ValueError, match="frozen"):
        config.sip.max_calls = 1
    with pytest.raises(TypeError):
        config.realtime.headers["X-Z"] = config.realtime.headers["X-Y"]  # type: ignore[index]


def test_check(tmp_path: Path) -> None:
    status, lines = check(ROOT / "gateway.toml", {})
    assert status == 0
    assert "reception" in "\n".join(lines)
    assert not [line for line in lines if "note" in line]


def test_check_tells_of_both_kinds_of_files(tmp_path: Path) -> None:
    file = write(tmp_path, '[realtime]\nurl = "x"\n')
    route = tmp_path / "dialplans" / "1.toml"
    route.write_text("[[route]]\nto = '('\n", encoding="utf-8")
    assert check(file, {}) == (
        2,
        [
            f"{route}:1: route[0].name: missing, and it has no default",
            f"{route}:2: route[0].to: is not a valid regular expression: missing ), unterminated "
            "subpattern at position 1",
            f"{file}:2: realtime.url: must begin with wss:// or https:// (or ws://, http://)",
        ],
    )


@pytest.mark.parametrize("folder", ["a\\u0000b", "~no-such-user/x", ""])
def test_check_of_a_folder_that_is_no_path(tmp_path: Path, folder: str) -> None:
    status, lines = check(write(tmp_path, f'{LOCAL}[dialplan]\nfolder = "{folder}"\n'), {})
    assert status == 2
    assert [line.partition("dialplan.folder: ")[0] for line in lines] == [
        f"{tmp_path}/gateway.toml:4: "
    ]


def test_check_of_a_folder_that_has_the_configuration_in_it(tmp_path: Path) -> None:
    file = write(tmp_path, f'{LOCAL}[dialplan]\nfolder = "."\n')
    said = "dialplan.folder: has gateway.toml in it: dialplans need a folder of their own"
    assert check(file, {}) == (2, [f"{file}:4: {said}"])


def test_check_gives_advice(tmp_path: Path) -> None:
    file = write(tmp_path, '[realtime]\nurl = "ws://example.com/"\napi_key = ""\n')
    assert "every call is refused" in "\n".join(check(file, {})[1])
    (tmp_path / "dialplans" / "1.toml").write_text(
        '[[route]]\nname = "all"\n[[route]]\nname = "rest"\nto = "^1$"\n', encoding="utf-8"
    )
    status, lines = check(file, {})
    assert status == 0
    advice = [line for line in lines if "note" in line]
    assert len(advice) == 2
    assert "none is left for rest" in advice[0]
    assert "not encrypted" in advice[1]


def test_files_that_never_end(tmp_path: Path) -> None:
    """Links to pipes and devices, and files of any length: said at once, and not read."""
    os.mkfifo(tmp_path / "pipe.toml")
    (tmp_path / "device.toml").symlink_to("/dev/zero")
    (tmp_path / "loop.toml").symlink_to("loop.toml")
    (tmp_path / "deep.toml").write_text("a = " + "[" * 100_000)
    (tmp_path / "dots.toml").write_text(".".join("a" * 100_000) + " = 1")
    (tmp_path / "digits.toml").write_text("a = " + "9" * 6000)
    with (tmp_path / "long.toml").open("wb") as file:
        file.truncate(10**12)
    for name, said in (
        ("pipe", "it is no regular file"),
        ("device", "is no regular file"),
        ("loop", "Too many levels of symbolic links"),
        ("deep", "nested too deeply"),
        ("dots", "nested too deeply"),
        ("digits", "a number is too long"),
        ("long", "it is larger than 8388608 bytes"),
    ):
        with pytest.raises(ConfigError, match=said):
            read_toml(tmp_path / f"{name}.toml")
