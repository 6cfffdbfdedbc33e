# SPDX-License-Identifier: GPL-2.0-or-later
"""What ``gateway doctor`` finds at a trunk, with a registrar that is a few lines of Python."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import re
import socket
import ssl
import threading
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from ipaddress import ip_address
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from gateway.config import Config
from gateway.devtools.doctor import Finding, Verdict, trunks
from tests.support.config import load_config
from tests.support.harness import closed_port

PASSWORD = "right"


def answer_to(request: str) -> str:
    """Challenge a request without credentials, then check its digest (RFC 2069 form)."""
    method, uri, _ = request.split(" ", 2)
    echoed = [
        line for line in request.split("\r\n") if re.match("(Via|From|To|Call-ID|CSeq):", line)
    ]
    found = dict(re.findall(r'(\w+)="([^"]*)"', request))
    if method == "OPTIONS":
        status, more = "200 OK", []
    elif "response" not in found:
        status, more = "401 Unauthorized", ['WWW-Authenticate: Digest realm="r", nonce="n"']
    else:
        assert "Contact" not in request, "nothing is bound"
        one = hashlib.md5(f"{found['username']}:r:{PASSWORD}".encode()).hexdigest()
        two = hashlib.md5(f"{method}:{uri}".encode()).hexdigest()
        good = hashlib.md5(f"{one}:n:{two}".encode()).hexdigest() == found["response"]
        status, more = ("200 OK" if good else "403 Forbidden"), []
    return "\r\n".join([f"SIP/2.0 {status}", *echoed, *more, "Content-Length: 0", "", ""])


@pytest.fixture
def registrar() -> Iterator[int]:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as server:
        server.bind(("127.0.0.1", 0))

        def serve() -> None:
            while True:
                data, address = server.recvfrom(65535)
                if data == b"end":
                    return
                server.sendto(answer_to(data.decode()).encode(), address)

        thread = threading.Thread(target=serve)
        thread.start()
        yield server.getsockname()[1]
        server.sendto(b"end", server.getsockname())
        thread.join()


def found(folder: Path, trunk: str, listen: str = "udp:127.0.0.1:0", more: str = "") -> Finding:
    (folder / "dialplans").mkdir(exist_ok=True)
    file = folder / "gateway.toml"
    sip = f'[sip]\nlisten = ["{listen}"]\n{more}'
    file.write_text(f'[realtime]\nurl = "ws://127.0.0.1:9"\n{sip}[[trunk]]\nname = "pbx"\n{trunk}')
    config: Config = load_config(file, {})
    (finding,) = trunks.check_trunks(config)
    assert finding.subject == "trunk"
    return finding


def closely(folder: Path, trunk: str, listen: str = "udp:127.0.0.1:0") -> list[Finding]:
    """What ``--trunk`` finds before a call."""
    (folder / "dialplans").mkdir()
    file = folder / "gateway.toml"
    text = f'[realtime]\nurl = "ws://127.0.0.1:9"\n[sip]\nlisten = ["{listen}"]\n'
    file.write_text(f'{text}[[trunk]]\nname = "pbx"\n{trunk}')
    config = load_config(file, {})
    return asyncio.run(trunks.check_closely(config, config.trunk[0]))


def login(port: int, password: str = PASSWORD) -> str:
    return f'registrar = "127.0.0.1:{port}"\nusername = "me"\npassword = "{password}"\n'


def test_a_login_that_works(tmp_path: Path, registrar: int) -> None:
    finding = found(tmp_path, login(registrar))
    assert finding.verdict is Verdict.OK, finding
    assert "accepts the login of me" in finding.fact


def test_a_wrong_password(tmp_path: Path, registrar: int) -> None:
    finding = found(tmp_path, login(registrar, "wrong"))
    assert finding.verdict is Verdict.BAD
    assert "403 Forbidden" in finding.fact
    assert "trunk.password" in finding.advice


def test_a_trunk_by_address(tmp_path: Path, registrar: int) -> None:
    finding = found(tmp_path, f'peers = ["127.0.0.1:{registrar}"]\n')
    assert finding.verdict is Verdict.OK, finding
    assert "answers OPTIONS with 200 OK" in finding.fact


def test_a_trunk_that_does_not_know_our_address(
    tmp_path: Path, registrar: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    answer = answer_to
    monkeypatch.setattr(
        f"{__name__}.answer_to", lambda request: answer(request).replace("200 OK", "401 No", 1)
    )
    finding = found(tmp_path, f'peers = ["127.0.0.1:{registrar}"]\n')
    assert finding.verdict is Verdict.WARN, finding
    assert "401 No" in finding.fact
    assert "does it know our address" in finding.advice


def test_a_trunk_is_asked_from_the_address_that_calls_come_from(
    tmp_path: Path, registrar: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[str] = []
    answer = answer_to

    def noted(request: str) -> str:
        asked.append(request)
        return answer(request)

    monkeypatch.setattr(f"{__name__}.answer_to", noted)
    finding = found(tmp_path, f'peers = ["127.0.0.1:{registrar}"]\n', "udp:127.0.0.7:0")
    assert finding.verdict is Verdict.OK, finding
    assert "Via: SIP/2.0/UDP 127.0.0.7:" in asked[0]


def test_a_trunk_by_address_behind_nat(
    tmp_path: Path, registrar: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As if the trunk were on the internet: 127.0.0.1 counts as public here."""
    monkeypatch.setattr(trunks, "carried_to", lambda _settings, _address: "192.168.1.2")
    monkeypatch.setattr(trunks, "is_inside", lambda address: address.startswith("192.168."))
    finding = found(tmp_path, f'peers = ["127.0.0.1:{registrar}"]\n')
    assert finding.verdict is Verdict.WARN
    assert "sip.public_address" in finding.advice


def test_a_port_that_nobody_has(tmp_path: Path) -> None:
    finding = found(tmp_path, f'peers = ["127.0.0.1:{closed_port()}"]\n')
    assert finding.verdict is Verdict.BAD
    assert "the port of trunk.peers" in finding.advice


def test_a_name_that_nobody_has(tmp_path: Path) -> None:
    trunk = 'registrar = "pbx.invalid"\nusername = "me"\n'
    finding = found(tmp_path, trunk, "udp:0.0.0.0:0")
    assert finding.verdict is Verdict.BAD
    assert "cannot be resolved" in finding.fact
    assert "trunk.registrar" in finding.advice


def test_a_trunk_that_silence_is_all_of(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trunks, "ANSWER_SECONDS", 0.2)
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as silent:
        silent.bind(("127.0.0.1", 0))
        finding = found(tmp_path, f'peers = ["127.0.0.1:{silent.getsockname()[1]}"]\n')
    assert finding.verdict is Verdict.BAD
    assert "no answer within" in finding.fact


def test_a_trunk_away_while_listening_on_this_machine_only(tmp_path: Path) -> None:
    finding = found(tmp_path, 'peers = ["192.0.2.5"]\n')
    assert finding.verdict is Verdict.BAD
    assert "udp:0.0.0.0:" in finding.advice


def certificate(folder: Path, address: str, days: int) -> tuple[Path, Path]:
    """A self-signed certificate of this address, which ends in so many days, and its key."""
    key, now = ec.generate_private_key(ec.SECP256R1()), datetime.now(UTC)
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "localhost")])
    made = x509.CertificateBuilder().subject_name(name).issuer_name(name)
    made = made.public_key(key.public_key()).serial_number(1)
    made = made.not_valid_before(now - timedelta(days=9)).not_valid_after(now + timedelta(days))
    san = x509.SubjectAlternativeName([x509.IPAddress(ip_address(address))])
    pem, plain = serialization.Encoding.PEM, serialization.NoEncryption()
    files = folder / "a.crt", folder / "a.key"
    signed = made.add_extension(san, critical=False).sign(key, hashes.SHA256())
    files[0].write_bytes(signed.public_bytes(pem))
    files[1].write_bytes(key.private_bytes(pem, serialization.PrivateFormat.PKCS8, plain))
    return files


@pytest.mark.parametrize(
    ("name", "days", "trusted", "says"),
    [
        ("127.0.0.1", 3, False, "sip.tls.ca has to hold the CA"),
        ("127.0.0.2", 3, True, "trunk.peers is not the name in its certificate"),
        ("127.0.0.1", -1, True, "the other side renews it"),
    ],
)
def test_a_certificate_that_is_not_trusted(
    tmp_path: Path, name: str, days: int, trusted: bool, says: str
) -> None:
    crt, key = certificate(tmp_path, name, days)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(crt, key)
    with socket.create_server(("127.0.0.1", 0)) as server:

        def serve() -> None:
            connection, _ = server.accept()
            with connection, contextlib.suppress(OSError):
                context.wrap_socket(connection, server_side=True)

        thread = threading.Thread(target=serve)
        thread.start()
        port = server.getsockname()[1]
        more = f'[sip.tls]\ncertificate = "{crt}"\nprivate_key = "{key}"\n'
        more += f'ca = "{crt}"\n' if trusted else ""
        trunk = f'transport = "tls"\npeers = ["127.0.0.1:{port}"]\n'
        finding = found(tmp_path, trunk, "tls:127.0.0.1:0", more)
        thread.join()
    assert finding.verdict is Verdict.BAD
    assert "certificate not trusted" in finding.fact
    assert says in finding.advice


def test_a_trunk_of_networks_only_cannot_be_called(tmp_path: Path) -> None:
    (finding,) = closely(tmp_path, 'peers = ["192.0.2.0/24"]\n')
    assert (finding.verdict, finding.code) == (Verdict.WARN, "no_address")
