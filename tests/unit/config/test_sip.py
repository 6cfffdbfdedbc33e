# SPDX-License-Identifier: GPL-2.0-or-later
"""Mistakes in ``[[trunk]]`` and ``[sip.tls]``, and what good ones become."""

from __future__ import annotations

from pathlib import Path

import pytest

from gateway.config import ConfigError
from gateway.planning.check import check
from tests.support.config import load_config

BASE = """\
[realtime]
url = "ws://127.0.0.1/"
[sip]
listen = ["udp:127.0.0.1:5060", "udp:[::1]:5060"]
"""


def written(folder: Path, text: str) -> Path:
    (folder / "dialplans").mkdir(exist_ok=True)
    file = folder / "gateway.toml"
    file.write_text(BASE + text, encoding="utf-8")
    return file


def problem(folder: Path, text: str) -> tuple[int, str, str]:
    with pytest.raises(ConfigError) as caught:
        load_config(written(folder, text), {})
    (found,) = caught.value.problems
    return found.line - BASE.count("\n"), found.key, found.message


@pytest.mark.parametrize(
    ("lines", "line", "key", "message"),
    [
        ('name = "a"', 1, "peers", "without peers or a registrar"),
        ('name = "a b"\npeers = ["::1"]', 2, "name", "letters, digits"),
        ('name = "a"\npeers = ["x.example"]', 3, "peers[0]", "an address"),
        ('name = "a"\npeers = ["10.0.0.1/8"]', 3, "peers[0]", "did you mean 10.0.0.0/8?"),
        ('name = "a"\npeers = ["10.0.0.1:0"]', 3, "peers[0]", "between 1 and 65535"),
        ('name = "a"\nregistrar = "h"', 1, "username", "needed to register"),
        ('name = "a"\nusername = "u"\nregistrar = "h x"', 4, "registrar", "a host with or"),
        ('name = "a"\nusername = "u"\nregistrar = "h:99999"', 4, "registrar", "the port"),
        ('name = "a"\npeers = ["::1"]\npassword = "x"', 4, "password", "needs a username"),
        ('name = "a"\npeers = ["::1"]\nusername = "u v"', 4, "username", "no space"),
        ('name = "a"\npeers = ["::1"]\nheaders.Via = "x"', 4, "headers.Via", "set by the gateway"),
        ('name = "a"\npeers = ["::1"]\nheaders.X = "a\\nb"', 4, "headers.X", "printable"),
        (
            'name = "a"\npeers = ["::1"]\ncodecs = ["GSM"]',
            4,
            "codecs[0]",
            "'PCMU', 'PCMA', 'G722' or 'opus'",
        ),
        ('name = "a"\npeers = ["::1"]\ncodecs = ["PCMU", "PCMU"]', 4, "codecs", "twice"),
        ('name = "a"\npeers = ["::1"]\nexpires = 5', 4, "expires", "equal to 30"),
        (
            'name = "a"\nusername = "u"\nregistrar = "h"\ntransport = "tcp"',
            5,
            "transport",
            "sip.listen has no tcp: address",
        ),
    ],
)
def test_bad_trunks(tmp_path: Path, lines: str, line: int, key: str, message: str) -> None:
    at, name, said = problem(tmp_path, f"[[trunk]]\n{lines}\n")
    assert (at, name) == (line, f"trunk[0].{key}")
    assert message in said


def test_srtp_with_keys_in_clear(tmp_path: Path) -> None:
    """Required SRTP by SDES needs TLS, other keys, or a word."""
    trunk = '[[trunk]]\nname = "a"\npeers = ["::1"]\nsrtp = "required"\n'
    line, key, message = problem(tmp_path, trunk)
    assert (line, key) == (4, "trunk[0].srtp")
    assert "sdes_without_tls" in message
    assert problem(tmp_path, trunk + 'srtp_keying = ["dtls", "sdes"]\n')[:2] == (4, "trunk[0].srtp")
    for more in ('srtp_keying = ["dtls"]', "sdes_without_tls = true"):
        load_config(written(tmp_path, f"{trunk}{more}\n"), {})


def test_trunks_against_each_other(tmp_path: Path) -> None:
    first = '[[trunk]]\nname = "a"\npeers = ["10.0.0.0/8"]\n'
    assert problem(tmp_path, first + '[[trunk]]\nname = "a"\npeers = ["::1"]\n') == (
        5,
        "trunk[1].name",
        "is used twice",
    )
    assert problem(tmp_path, first + '[[trunk]]\nname = "b"\npeers = ["10.0.0.0/8"]\n') == (
        6,
        "trunk[1].peers",
        "10.0.0.0/8 is a peer of trunk a already",
    )


def test_tls_files_need_each_other(tmp_path: Path) -> None:
    assert problem(tmp_path, '[sip.tls]\ncertificate = "c.pem"\n')[1:] == (
        "sip.tls.private_key",
        "certificate and private_key must be set together",
    )


def test_tls_files_that_are_not_there(tmp_path: Path) -> None:
    text = '[sip.tls]\ncertificate = "c.pem"\nprivate_key = "k.pem"\nca = "a.pem"\n'
    file = written(tmp_path, text)
    load_config(file, {})  # nothing would read them
    file.write_text(file.read_text().replace("udp:127.0.0.1:5060", "tls:127.0.0.1:5061"))
    (tmp_path / "k.pem").touch()
    with pytest.raises(ConfigError) as caught:
        load_config(file, {})
    assert [(found.line, found.key) for found in caught.value.problems] == [
        (6, "sip.tls.certificate"),
        (8, "sip.tls.ca"),
    ]
    assert str(tmp_path / "a.pem") in caught.value.problems[1].message


def test_a_trunk_in_single_brackets(tmp_path: Path) -> None:
    found = problem(tmp_path, '[trunk]\nname = "a"\npeers = ["::1"]\n')
    assert found == (1, "trunk", "must be an array of tables: write [[trunk]]")
    text = '[[trunk]]\nname = "a"\npeers = "::1"\n'
    assert problem(tmp_path, text) == (3, "trunk[0].peers", "must be an array, in [ ]")


@pytest.mark.parametrize(
    ("text", "others"),
    [
        ("", "auto (from private networks only)"),
        ('[[trunk]]\nname = "a"\npeers = ["::1"]\n', "auto (refused)"),
        ('[access]\nunknown_sources = "drop"\n', "drop"),
    ],
)
def test_what_the_check_says_of_strangers(tmp_path: Path, text: str, others: str) -> None:
    status, lines = check(written(tmp_path, text), {})
    assert status == 0
    assert any(line.endswith(f"other calls: {others}") for line in lines)


def test_a_transfer_that_no_listener_can_carry_is_noted(tmp_path: Path) -> None:
    file = written(tmp_path, '[[trunk]]\nname = "pbx"\npeers = ["192.0.2.1"]\n')
    route = tmp_path / "dialplans" / "10.toml"
    target = '[[route]]\nname = "in"\n[[route.transfer]]\nname = "desk"\nmode = "attended"\n'

    def notes(to: str) -> list[str]:
        route.write_text(target + to)
        return [line for line in check(file, {})[1] if "transfer desk" in line]

    assert notes('to = "sip:1@192.0.2.1"\n') == []
    assert notes('to = "sip:1@192.0.2.1;transport=tls"\ntrunk = "pbx"\n') == []
    (line,) = notes('to = "sip:1@192.0.2.1;transport=tls"\n')
    assert line.endswith("it goes by tls, for which sip.listen has no address")


def test_a_trunk_of_everybody_is_noted(tmp_path: Path) -> None:
    text = '[[trunk]]\nname = "a"\npeers = ["0.0.0.0/0"]\n'
    _, lines = check(written(tmp_path, text), {})
    told = "trunk a: with 0.0.0.0/0 every call counts as this trunk's"
    assert any(line.endswith(told) for line in lines)


def test_good_trunks(tmp_path: Path) -> None:
    text = """
[[trunk]]
name = "pbx"
peers = ["192.0.2.10", "192.0.2.11:5070", "[2001:db8::1]:5060", "2001:db8:1::/48"]
[[trunk]]
name = "carrier"
registrar = "sip:[2001:db8::2]:5061"
username = "4930123"
password = "${env:CARRIER}"
codecs = ["PCMA"]
headers = { X-Account = "7" }
"""
    config = load_config(written(tmp_path, text), {"CARRIER": "s3cret"})
    pbx, carrier = config.trunk
    assert list(map(str, pbx.peers)) == [
        "192.0.2.10",
        "192.0.2.11:5070",
        "[2001:db8::1]:5060",
        "2001:db8:1::/48",
    ]
    assert str(carrier.registrar) == "[2001:db8::2]:5061"
    assert config.secrets() == ("s3cret",)
    assert "s3cret" not in repr(config)


def test_a_route_names_a_trunk_that_is_there(tmp_path: Path) -> None:
    file = written(tmp_path, '[[trunk]]\nname = "pbx"\npeers = ["192.0.2.10"]\n')
    route = tmp_path / "dialplans" / "10.toml"
    route.write_text('[[route]]\nname = "in"\ntrunk = "pxb"\n')
    status, lines = check(file, {})
    assert status == 2
    assert lines == [f'{route}:3: route in, trunk: there is no trunk "pxb"; did you mean "pbx"?']
    route.write_text('[[route]]\nname = "in"\ntrunk = "pbx"\n')
    status, lines = check(file, {})
    assert status == 0
    assert any("pbx" in line for line in lines)


@pytest.mark.parametrize(
    ("caller_ids", "mode", "fault"),
    [
        ('caller_ids = "[+0-9]+"', "attended", None),
        ("", "bridge", "transfer[0].caller_id: trunk pbx allows none: set its caller_ids"),
        ("", "blind", "has no effect in mode"),
    ],
)
def test_a_caller_id_of_a_transfer_needs_a_trunk_that_allows_it(
    tmp_path: Path, caller_ids: str, mode: str, fault: str | None
) -> None:
    file = tmp_path / "gateway.toml"
    file.write_text(
        '[realtime]\nurl = "ws://127.0.0.1:1/v1/realtime"\n'
        f'[[trunk]]\nname = "pbx"\npeers = ["192.0.2.1"]\n{caller_ids}\n'
    )
    (tmp_path / "dialplans").mkdir()
    (tmp_path / "dialplans" / "a.toml").write_text(
        '[[route]]\nname = "in"\nto = "^1$"\n[[route.transfer]]\nname = "boss"\n'
        f'to = "sip:1@192.0.2.1"\nmode = "{mode}"\ncaller_id = "{{from}}"\n'
        + ('trunk = "pbx"\n' if mode != "blind" else "")
    )
    status, lines = check(file)
    assert (status, fault is None or fault in lines[0]) == (0 if fault is None else 2, True)


@pytest.mark.parametrize(
    "text",
    [
        "[media]\njb_init_ms = 60\n",
        '[[trunk]]\nname = "a"\npeers = ["192.0.2.1"]\njb_catch_up = false\n',
    ],
)
def test_keys_of_the_jitter_buffer_are_answered(tmp_path: Path, text: str) -> None:
    assert "packet_wait_ms says how long" in problem(tmp_path, text)[2]
