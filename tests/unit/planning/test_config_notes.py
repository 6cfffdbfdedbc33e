# SPDX-License-Identifier: GPL-2.0-or-later
"""What ``gateway check`` notes of the configuration: addresses, models, keys and certificates."""

from __future__ import annotations

import subprocess
import time
from datetime import date
from pathlib import Path

import pytest

from gateway.planning.check import check, load_all
from gateway.planning.config_notes import retirements
from tests.unit.planning.test_check import BASE, OPENAI, checked


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


def test_the_port_of_tls_without_tls(tmp_path: Path) -> None:
    trunk = '[sip]\nlisten = ["udp:0.0.0.0:5060"]\n[[trunk]]\nname = "c"\npeers = ["192.0.2.1"]\n'
    told = checked(tmp_path, f'{BASE}{trunk}outbound_proxy = "192.0.2.1:5061"\n')
    assert 'and transport is udp: transport = "tls"' in told


def test_a_registrar_without_a_password(tmp_path: Path) -> None:
    trunk = '[sip]\nlisten = ["udp:0.0.0.0:5060"]\n[[trunk]]\nname = "c"\n'
    told = checked(tmp_path, f'{BASE}{trunk}registrar = "sip.example.net"\nusername = "me"\n')
    assert "trunk c registers without a password" in told


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


def test_a_certificate_that_no_address_uses(tmp_path: Path) -> None:
    told = checked(tmp_path, tls(*certificate(tmp_path)).replace("tls:127", "tcp:127"))
    assert 'sip.tls.certificate: has no effect, as sip.listen has no "tls:" address' in told


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


HEARD = '[route.session.audio.input.transcription]\nmodel = "{}"\n'
PROMPT = "[route.session.prompt]\nid = 'pmpt_1'\n"
OLD = "[route.realtime]\nmodel = 'gpt-realtime'\n"


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


def test_a_live_server_of_openai_is_as_it_should_be(tmp_path: Path) -> None:
    url = "wss://api.openai.com/v1/live/sessions"
    config = f'[realtime]\nurl = "{url}"\nmodel = "gpt-live-1.1"\napi_key = "k"\n'
    said = checked(tmp_path, config, "[[route]]\nname = 'r'\nto = '^1$'\n")
    assert "realtime.url" not in said
    assert "realtime.model" not in said
