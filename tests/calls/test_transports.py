# SPDX-License-Identifier: GPL-2.0-or-later
"""TCP, TLS, IPv6, SRTP, certificates and NAT, with another pjsua2 or openssl at the other end."""

from __future__ import annotations

import asyncio
import contextlib
import signal
import socket
import ssl
import struct
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from gateway.api.client import ask
from tests.support.forked import Forked
from tests.support.gateway_process import Line
from tests.support.site_under_test import ANYBODY, CONFIG, Peer, Site, certificate, site

TLS = """
[sip.tls]
certificate = "cert.pem"
private_key = "key.pem"
"""
DSCP = 'dscp = "cs3"\nrtp_dscp = "EF"\n'
OPEN = '[access]\nunknown_sources = "allow"\n'


Everywhere = tuple[Site, dict[str, str]]
"""A gateway and the files of its certificate."""


@pytest.fixture(scope="module")
def everywhere(
    runner: asyncio.Runner, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Everywhere]:
    """One gateway with every transport, in both families."""
    folder = tmp_path_factory.mktemp("site")
    files = certificate(folder, "first")
    listen = ("udp:127.0.0.1:0", "tcp:127.0.0.1:0", "tls:127.0.0.1:0", "udp:[::1]:0", "tls:[::1]:0")
    opened = site(folder, listen=listen, sip=DSCP + TLS, routes=ANYBODY)
    yield runner.run(opened.__aenter__()), {**files, "ca": files["certificate"]}
    runner.run(opened.__aexit__(None, None, None))


async def call_of_a_peer(
    gateway: Site, uri: str, listen: tuple[str, str], **order: Any
) -> tuple[dict[str, Any], Line]:
    """One call from its beginning to its end; its result at the peer, and its summary."""
    before = len(gateway.gateway.all("call.summary"))
    result = await (await Peer.call(uri, listen, **order)).result()
    return result, await gateway.gateway.wait("call.summary", count=before + 1)


@pytest.mark.parametrize(
    ("transport", "srtp", "security"),
    [
        ("tcp", "off", "rtp"),
        ("tls", "off", "rtp"),
        ("tls", "required", "srtp sdes AES_"),
        ("udp", "optional", "srtp sdes AES_"),
    ],
)
async def test_calls_by_transport(
    runner: object, everywhere: Everywhere, transport: str, srtp: str, security: str
) -> None:
    gateway, tls = everywhere  # verified, by the address in it
    uri = f"sip:1@127.0.0.1:{gateway.port(transport)};transport={transport}"
    listen = (transport, "127.0.0.1")
    result, summary = await call_of_a_peer(gateway, uri, listen, srtp=srtp, tls=tls)
    assert result["heard"], result
    assert result["security"].startswith(security)
    assert summary["transport"] == transport
    assert summary["security"] == result["security"]


@pytest.mark.parametrize("transport", ["udp", "tls"])
async def test_ipv6(runner: object, everywhere: Everywhere, transport: str) -> None:
    """Both families at once; SDP has the caller's."""
    gateway, tls = everywhere
    uri = f"sip:1@[::1]:{gateway.port(transport, '[::1]')};transport={transport}"
    result, summary = await call_of_a_peer(gateway, uri, (transport, "::1"), tls=tls)
    assert result["heard"], result
    assert summary["source"].startswith("[::1]:")
    call = gateway.phone.call("1")
    call.invite()
    answer = (await call.answered()).final
    assert answer is not None
    assert "IN IP4 127.0.0.1" in answer.body
    await gateway.gateway.wait("call.confirmed", call=call.call_id)
    await call.hang_up()
    await gateway.gateway.wait("call.summary", call=call.call_id)


async def test_packets_are_marked(runner: object, everywhere: Everywhere) -> None:
    """By both families, as ``sip.dscp`` and ``sip.rtp_dscp`` say."""
    gateway, _tls = everywhere
    call = gateway.phone.call("1")
    call.invite()
    await call.answered()
    await call.rtp.until(lambda: len(call.rtp.packets) > 5)
    assert {packet.tos >> 2 for packet in call.rtp.packets} == {46}
    await call.hang_up()
    await gateway.gateway.wait("call.summary", call=call.call_id)
    assert await asyncio.to_thread(dscp_of_an_answer, "127.0.0.1", gateway.port("udp")) == 24
    assert await asyncio.to_thread(dscp_of_an_answer, "::1", gateway.port("udp", "[::1]")) == 24


def dscp_of_an_answer(host: str, port: int) -> int:
    """Ask the gateway for its OPTIONS, over UDP, and return the DSCP of what it answers."""
    six = ":" in host
    with socket.socket(socket.AF_INET6 if six else socket.AF_INET, socket.SOCK_DGRAM) as end:
        if six:
            end.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_RECVTCLASS, 1)
        else:
            end.setsockopt(socket.IPPROTO_IP, socket.IP_RECVTOS, 1)
        end.bind((host, 0))
        end.settimeout(0.5)
        shown = f"[{host}]" if six else host
        here = f"{shown}:{end.getsockname()[1]}"
        lines = (
            f"OPTIONS sip:{shown}:{port} SIP/2.0",
            f"Via: SIP/2.0/UDP {here};branch=z9hG4bK{time.time_ns()};rport",
            f"From: <sip:probe@{here}>;tag=1",
            f"To: <sip:{shown}:{port}>",
            f"Call-ID: {time.time_ns()}@test",
            "CSeq: 1 OPTIONS",
            "Max-Forwards: 70",
            "Content-Length: 0",
        )
        for _ in range(60):
            end.sendto(("\r\n".join(lines) + "\r\n\r\n").encode(), (host, port))
            with contextlib.suppress(TimeoutError):
                data, ((_level, _kind, told),), _flags, _peer = end.recvmsg(4096, 64)
                break
    assert data.startswith(b"SIP/2.0 200 ")
    return told[0] >> 2


async def test_srtp_required_and_off(runner: object, own_folder: Path) -> None:
    """488 for an offer that has what is not taken, or lacks what is."""
    more = (
        OPEN
        + """
[[trunk]]
name = "provider"
peers = ["127.0.0.1"]
srtp = "required"
sdes_without_tls = true
"""
    )
    async with site(own_folder, more=more) as gateway:
        plain = gateway.phone.call("1")
        plain.invite()
        assert (await plain.refused()).code == 488
        summary = await gateway.gateway.wait("call.summary", call=plain.call_id)
        assert summary["trunk"] == "provider"
    other = own_folder / "off"
    other.mkdir()
    async with site(other, more=more.replace('"required"', '"off"')) as gateway:
        uri = f"sip:1@127.0.0.1:{gateway.port('udp')}"
        peer = await Peer.call(uri, ("udp", "127.0.0.1"), srtp="required")
        result = await peer.result()
        assert result["end"]["code"] == 488


async def test_srtp_by_dtls(runner: object, own_folder: Path) -> None:
    more = '[media]\nsrtp_keying = ["dtls", "sdes"]\n'
    async with site(own_folder, more=more, routes=ANYBODY) as gateway:
        uri = f"sip:1@127.0.0.1:{gateway.port('udp')}"
        peer = await Peer.call(
            uri, ("udp", "127.0.0.1"), srtp="required", keying=("dtls",), until="told"
        )
        await peer.up()
        result = await peer.result()
        assert result["heard"], result
        summary = await gateway.gateway.wait("call.summary")
        assert summary["security"].startswith("srtp dtls AES_")


async def test_a_trunk_by_tls_is_not_taken_by_udp(runner: object, own_folder: Path) -> None:
    """Its address alone, in a datagram, is nobody's proof."""
    certificate(own_folder, "six")
    listen = ("udp:127.0.0.1:0", "tls:127.0.0.1:0")
    more = '[[trunk]]\nname = "provider"\npeers = ["127.0.0.1"]\ntransport = "tls"\n'
    async with site(own_folder, listen=listen, sip=TLS, more=more, routes=ANYBODY) as gateway:
        call = gateway.phone.call("1")
        call.invite()
        assert (await call.refused()).code == 403
        await gateway.gateway.wait("sip.rejected", source="127.0.0.1", code=403)


def handshake(port: int, version: ssl.TLSVersion, client: dict[str, str] | None = None) -> Any:
    """Connect by TLS of this version at most; returns the server's certificate (DER). One that asks
    for ours refuses within the handshake up to TLS 1.2."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    context.set_ciphers("DEFAULT@SECLEVEL=0")
    context.minimum_version, context.maximum_version = ssl.TLSVersion.MINIMUM_SUPPORTED, version
    if client is not None:
        context.load_cert_chain(client["certificate"], client["private_key"])
    with (
        socket.create_connection(("127.0.0.1", port), timeout=10) as raw,
        context.wrap_socket(raw) as secure,
    ):
        return secure.getpeercert(binary_form=True)


def text_of(file: str) -> str:
    return Path(file).read_text().strip()


def spoil(file: str) -> None:
    Path(file).write_text("no key")


async def test_certificates_are_taken_anew(runner: object, own_folder: Path) -> None:
    """SIGHUP: new connections see the new one, a call on the old one goes on; bad files change
    nothing."""
    files = certificate(own_folder, "first")
    async with site(own_folder, listen=("tls:127.0.0.1:0",), sip=TLS, routes=ANYBODY) as gateway:
        port = gateway.port("tls")
        loop = asyncio.get_running_loop()

        async def seen() -> str:
            found = await loop.run_in_executor(None, handshake, port, ssl.TLSVersion.TLSv1_3)
            return ssl.DER_cert_to_PEM_cert(found).strip()

        old = text_of(files["certificate"])
        assert await seen() == old
        tls = {**files, "verify_server": False}
        uri = f"sip:1@127.0.0.1:{port};transport=tls"
        peer = await Peer.call(uri, ("tls", "127.0.0.1"), tls=tls, until="told")
        await peer.up()

        spoil(files["private_key"])
        gateway.gateway.signal(signal.SIGHUP)
        kept = await gateway.gateway.wait("gateway.reload_failed")
        assert "sip.tls.private_key" in kept["problems"][0]
        assert await seen() == old

        certificate(own_folder, "second")
        config = gateway.gateway.config
        text = config.read_text()
        config.write_text(text + "\n[nonsense]\n")
        gateway.gateway.signal(signal.SIGHUP)
        await gateway.gateway.wait("gateway.reload_failed", count=2)
        assert await seen() == old, "all of the old is kept where one file is wrong"
        config.write_text(text)
        gateway.gateway.signal(signal.SIGHUP)
        await gateway.gateway.wait("sip.certificates_reloaded", listeners=1)
        new = await seen()
        assert new == text_of(files["certificate"]) != old

        result = await peer.result()  # it listens once more, then says BYE on its connection
        assert result["heard"], result
        summary = await gateway.gateway.wait("call.summary")
        assert summary["ending"]["why"] == "remote_hangup"


@pytest.mark.filterwarnings("ignore:ssl.TLSVersion:DeprecationWarning")
async def test_old_tls_and_clients_without_a_certificate(runner: object, own_folder: Path) -> None:
    files = certificate(own_folder, "own")
    sip = TLS + 'ca = "cert.pem"\nclient_certificates = "required"\n'
    async with site(own_folder, listen=("tls:127.0.0.1:0",), sip=sip, routes=ANYBODY) as gateway:
        port = gateway.port("tls")
        loop = asyncio.get_running_loop()

        def reaches(version: ssl.TLSVersion, client: dict[str, str] | None) -> bool:
            try:
                return bool(handshake(port, version, client))
            except OSError:
                return False

        for version, client, good in (
            (ssl.TLSVersion.TLSv1_2, files, True),
            (ssl.TLSVersion.TLSv1_1, files, False),
            (ssl.TLSVersion.TLSv1_2, None, False),
        ):
            found = await loop.run_in_executor(None, reaches, version, client)
            assert found is good, (version, client)


MANY_TRUNKS = "".join(f'[[trunk]]\nname = "t{n}"\npeers = ["10.0.0.{n}"]\n' for n in range(128))


async def test_more_trunks_than_the_library_has_accounts_is_an_error_at_start(
    own_folder: Path,
) -> None:
    (own_folder / "routes").mkdir()
    (own_folder / "routes" / "10.toml").write_text(ANYBODY)
    config = own_folder / "gateway.toml"
    config.write_text(
        CONFIG.format(
            listen='["udp:127.0.0.1:0"]',
            low=38000,
            high=38399,
            sip="",
            url="ws://127.0.0.1:1/",
            more=MANY_TRUNKS,
        )
    )
    process = await Forked.command("run", "-c", config, "--no-supervisor")
    _, error = await process.communicate()
    assert process.returncode == 1, error
    assert "no place for more than 127, and there are 128" in error.decode().splitlines()[-1]


async def test_public_address_in_contact_and_sdp(runner: object, own_folder: Path) -> None:
    sip = 'public_address = "127.0.0.77"'
    async with site(own_folder, sip=sip, routes=ANYBODY) as gateway:
        call = gateway.phone.call("1", headers=())
        call.invite()
        answer = (await call.answered()).final
        assert answer is not None
        assert "c=IN IP4 127.0.0.77" in answer.body
        assert "@127.0.0.77:" in answer.headers["contact"]
        assert f"rport={gateway.phone.address[1]}" in answer.headers["via"]
        call.bye()
        await gateway.gateway.wait("call.summary", call=call.call_id)


async def test_sdp_that_a_trunk_cannot_reach_is_said(runner: object, own_folder: Path) -> None:
    more = '[[trunk]]\nname = "provider"\npeers = ["203.0.113.9"]\n'
    async with site(own_folder, more=more) as gateway:
        line = await gateway.gateway.wait("sip.nat")
        assert "trunk provider is at 203.0.113.9" in line["advice"]
        assert "sip.listen is reached from this machine only" in line["advice"]
    other = own_folder / "public"
    other.mkdir()
    async with site(
        other, listen=("udp:0.0.0.0:0",), more=more, sip='public_address = "198.51.100.1"'
    ) as gateway:
        await gateway.status()
        assert not gateway.gateway.all("sip.nat")


class Stun(asyncio.DatagramProtocol):
    """Answers Binding requests (RFC 5389) with an address of its own choice."""

    def __init__(self, address: str) -> None:
        self._address = address
        self._transport: Any = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = transport

    def datagram_received(self, data: bytes, addr: tuple[str | Any, int]) -> None:
        mapped = struct.pack("!BBH4s", 0, 1, addr[1], socket.inet_aton(self._address))
        attribute = struct.pack("!HH", 1, len(mapped)) + mapped
        head = struct.pack("!HH", 0x0101, len(attribute)) + data[4:20]
        self._transport.sendto(head + attribute, addr)


async def test_stun_says_who_we_are(runner: object, own_folder: Path) -> None:
    loop = asyncio.get_running_loop()
    transport, _ = await loop.create_datagram_endpoint(lambda: Stun("127.0.0.88"), ("127.0.0.1", 0))
    port = transport.get_extra_info("sockname")[1]
    try:
        sip = f'stun_server = "127.0.0.1:{port}"'
        async with site(own_folder, sip=sip, routes=ANYBODY) as gateway:
            call = gateway.phone.call("1")
            call.invite()
            answer = (await call.answered()).final
            assert answer is not None
            assert "c=IN IP4 127.0.0.88" in answer.body
            call.bye()
            await gateway.gateway.wait("call.summary", call=call.call_id)
    finally:
        transport.close()


async def test_a_server_whose_certificate_is_not_trusted_is_named_with_the_key(
    runner: object, own_folder: Path
) -> None:
    """Nobody has answered, so no code is told, but the TLS failure, with ``sip.tls.ca``."""
    other = own_folder / "other"
    other.mkdir()
    files = certificate(other, "stranger")
    certificate(own_folder, "own")
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(files["certificate"], files["private_key"])
    server = await asyncio.start_server(lambda _in, out: out.close(), "127.0.0.1", 0, ssl=context)
    more = f"""
[[trunk]]
name = "provider"
registrar = "127.0.0.1:{server.sockets[0].getsockname()[1]}"
transport = "tls"
username = "me"
password = "secret"
options_interval = 10
[outbound]
enabled = true
allowed_prefixes = ["+"]
"""
    listen = ("udp:127.0.0.1:0", "tls:127.0.0.1:0")
    async with server, site(own_folder, listen=listen, sip=TLS, more=more) as gateway:
        path = own_folder / "control"
        dialled = {"to": "+4930123", "route": "anybody", "trunk": "provider"}
        await asyncio.to_thread(ask, path, "dial", **dialled)
        for event in ("trunk.registration_failed", "trunk.unreachable"):
            line = await gateway.gateway.wait(event, trunk="provider")
            assert "sip.tls.ca" in line["check"], line
        detail = (await gateway.gateway.wait("call.summary"))["ending"]["detail"]
        assert detail.startswith("SSL certificate verification error")
        assert "sip.tls.ca" in detail
        (trunk,) = (await gateway.status())["trunks"]
        assert trunk["last_error"].startswith("SSL certificate verification error")
