# SPDX-License-Identifier: GPL-2.0-or-later
"""TLS between gateway and trunks: whose certificate, by which name, with which ciphers."""

from __future__ import annotations

import asyncio
import contextlib
import ssl
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from tests.calls.test_connections import options
from tests.support.site_under_test import ANYBODY, Site, site

CIPHER, OTHER = "ECDHE-ECDSA-AES256-GCM-SHA384", "ECDHE-ECDSA-AES128-GCM-SHA256"
EC_KEY = ("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1")


class Authority:
    """A certificate authority of the test's own."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.ca = str(folder / "ca.pem")
        self.key = str(folder / "ca.key")
        self._run(
            *("req", "-x509", *EC_KEY, "-nodes", "-days", "2", "-subj", "/CN=Test"),
            *("-keyout", self.key, "-out", self.ca),
        )

    def certificate(self, name: str, cn: str, san: str) -> tuple[str, str]:
        """A certificate with its key; ``san`` is a subjectAltName, or empty for none."""
        key, request, made = (str(self.folder / f"{name}.{end}") for end in ("key", "csr", "pem"))
        self._run(
            *("req", *EC_KEY, "-nodes", "-keyout", key, "-out", request, "-subj", f"/CN={cn}"),
        )
        more = self.folder / f"{name}.ext"
        more.write_text(f"subjectAltName={san}\n" if san else "basicConstraints=CA:FALSE\n")
        self._run(
            *("x509", "-req", "-in", request, "-CA", self.ca, "-days", "2", "-out", made),
            *("-CAkey", self.key, "-CAcreateserial", "-extfile", str(more)),
        )
        return made, key

    def _run(self, *arguments: str) -> None:
        subprocess.run(["openssl", *arguments], check=True, capture_output=True)


@dataclass
class Registrar:
    """Takes REGISTER over TLS, and answers 200."""

    certificate: tuple[str, str]
    ciphers: str = ""
    port: int = 0
    registered: asyncio.Event = field(default_factory=asyncio.Event)
    refused: asyncio.Event = field(default_factory=asyncio.Event)
    """Somebody connected and went without a REGISTER."""
    _server: asyncio.Server | None = None

    async def start(self) -> None:
        """Listen on a free port."""
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(*self.certificate)
        if self.ciphers:
            context.maximum_version = ssl.TLSVersion.TLSv1_2
            context.set_ciphers(self.ciphers)
        # The handshake is the handler's, which sees it fail.
        self._server = await asyncio.start_server(
            lambda reader, writer: self._serve(reader, writer, context), "127.0.0.1", 0
        )
        self.port = self._server.sockets[0].getsockname()[1]

    def stop(self) -> None:
        """Listen no more."""
        assert self._server is not None
        self._server.close()

    async def _serve(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, context: ssl.SSLContext
    ) -> None:
        try:
            await writer.start_tls(context)
            while head := await reader.readuntil(b"\r\n\r\n"):
                fields = head.decode().split("\r\n")
                names = ("via", "from", "call-id", "cseq", "contact", "expires")
                kept = [one for one in fields if one.lower().partition(":")[0] in names]
                to = next(one for one in fields if one.lower().startswith("to:"))
                lines = ["SIP/2.0 200 OK", *kept, f"{to};tag=r", "Content-Length: 0"]
                writer.write(("\r\n".join(lines) + "\r\n\r\n").encode())
                self.registered.set()
        except (OSError, asyncio.IncompleteReadError):
            if not self.registered.is_set():
                self.refused.set()
        finally:
            writer.close()


CLIENTS = {
    # certificate's CN and subjectAltName, and what the trunk that wants pbx.example.net answers
    "right name": ("anything", "DNS:pbx.example.net", "200"),
    "right name in capitals": ("anything", "DNS:PBX.example.NET", "200"),
    "one of two names": ("anything", "DNS:other.example.net,DNS:pbx.example.net", "200"),
    "wrong name": ("anything", "DNS:other.example.net", "403"),
    "CN only": ("pbx.example.net", "", "403"),
    "CN beside a wrong name": ("pbx.example.net", "DNS:other.example.net", "403"),
    "part of the name": ("anything", "DNS:example.net", "403"),
    "the name and more": ("anything", "DNS:pbx.example.net.evil.test", "403"),
}
REGISTRARS = {
    # certificate's CN and subjectAltName, ciphers, and whether "localhost" registers there
    "san": ("anything", "DNS:localhost", "", True),
    "cn-only": ("localhost", "", "", False),
    "cn-and-wrong-san": ("localhost", "DNS:other.example.net", "", False),
    "wrong-san": ("anything", "DNS:other.example.net", "", False),
    "address": ("anything", "IP:127.0.0.1", "", False),
    "our-cipher": ("anything", "DNS:localhost", CIPHER, True),
    "other-cipher": ("anything", "DNS:localhost", OTHER, False),
}


@dataclass
class Bound:
    """What the tests share."""

    gateway: Site
    authority: Authority
    registrars: dict[str, Registrar]


@pytest.fixture(scope="module")
def bound(runner: asyncio.Runner, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Bound]:
    """A gateway with a trunk that is bound to a name, and one for each kind of registrar."""
    folder = tmp_path_factory.mktemp("tls")
    authority = Authority(folder)
    certificate, key = authority.certificate("own", "gateway", "IP:127.0.0.1")
    sip = f"""
[sip.tls]
certificate = "{certificate}"
private_key = "{key}"
ca = "{authority.ca}"
client_certificates = "optional"
ciphers = "{CIPHER}"
"""
    more = """
[[trunk]]
name = "bound"
peers = ["127.0.0.1"]
transport = "tls"
certificate_names = ["pbx.example.net"]
[[trunk]]
name = "unbound"
peers = ["127.0.0.2"]
transport = "tls"
"""
    registrars = {}
    stack = contextlib.AsyncExitStack()

    async def start() -> Site:
        nonlocal more
        for name, (cn, san, ciphers, _taken) in REGISTRARS.items():
            one = Registrar(authority.certificate(name, cn, san), ciphers)
            await one.start()
            stack.callback(one.stop)
            registrars[name] = one
            more += (
                f'[[trunk]]\nname = "{name}"\nregistrar = "localhost:{one.port}"\n'
                'transport = "tls"\nusername = "u"\npassword = "p"\n'
            )
        up = site(folder, listen=("tls:127.0.0.1:0",), sip=sip, more=more, routes=ANYBODY)
        return await stack.enter_async_context(up)

    yield Bound(runner.run(start()), authority, registrars)
    runner.run(stack.aclose())


async def asked(
    bound: Bound, certificate: tuple[str, str] | None, source: str = "127.0.0.1", ciphers: str = ""
) -> str:
    """Status of the answer to OPTIONS over TLS with this client certificate."""
    context = ssl.create_default_context(cafile=bound.authority.ca)
    if certificate is not None:
        context.load_cert_chain(*certificate)
    if ciphers:
        context.maximum_version = ssl.TLSVersion.TLSv1_2
        context.set_ciphers(ciphers)
    port = bound.gateway.port("tls")
    reader, writer = await asyncio.open_connection(
        "127.0.0.1", port, ssl=context, local_addr=(source, 0)
    )
    try:
        writer.write(options("127.0.0.1", port, 1).replace(b"SIP/2.0/TCP", b"SIP/2.0/TLS"))
        async with asyncio.timeout(20):
            return (await reader.readuntil(b"\r\n")).decode().split(" ")[1]
    finally:
        writer.close()


@pytest.mark.parametrize("kind", CLIENTS)
async def test_a_trunk_is_known_by_a_name_of_its_certificate(bound: Bound, kind: str) -> None:
    cn, san, code = CLIENTS[kind]
    name = kind.replace(" ", "-")
    assert await asked(bound, bound.authority.certificate(f"client-{name}", cn, san)) == code


async def test_a_trunk_with_no_certificate_or_another_authority_s(
    bound: Bound, own_folder: Path
) -> None:
    assert await asked(bound, None) == "403"
    assert await asked(bound, None, "127.0.0.2") == "200", "which wants no name"
    told = await bound.gateway.gateway.wait("sip.rejected", source="127.0.0.1")
    assert told["rule"] == "trunk bound: certificate_names"
    foreign = Authority(own_folder).certificate("client", "anything", "DNS:pbx.example.net")
    with pytest.raises((OSError, asyncio.IncompleteReadError)):
        await asked(bound, foreign)


@pytest.mark.parametrize("kind", REGISTRARS)
async def test_whom_we_connect_to_has_its_name_in_subject_alt_name(bound: Bound, kind: str) -> None:
    registrar, taken = bound.registrars[kind], REGISTRARS[kind][3]
    if taken:
        await bound.gateway.gateway.wait("trunk.registered", trunk=kind)
        assert registrar.registered.is_set()
        return
    line = await bound.gateway.gateway.wait("trunk.registration_failed", trunk=kind)
    assert "sip.tls.ca" in line["check"]
    async with asyncio.timeout(20):
        await registrar.refused.wait()
    assert not registrar.registered.is_set()


async def test_ciphers_of_who_connects_to_us(bound: Bound) -> None:
    assert await asked(bound, None, "127.0.0.2", CIPHER) == "200"
    with pytest.raises(OSError, match=r"alert|reset|EOF"):
        await asked(bound, None, "127.0.0.2", OTHER)
