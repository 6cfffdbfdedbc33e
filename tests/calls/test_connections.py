# SPDX-License-Identifier: GPL-2.0-or-later
"""Connections and descriptors: strangers take none that others need."""

from __future__ import annotations

import asyncio
import contextlib
import re
import resource
import socket
import ssl
from collections.abc import AsyncIterator, Iterator
from functools import partial
from pathlib import Path

import pytest

from gateway.api.client import ask
from gateway.sip import BanPolicy
from gateway.sip.source_limits import (
    FIRST_MESSAGE_SECONDS,
    IDLE_SECONDS,
    OF_A_PEER,
    OF_STRANGERS,
    PER_SOURCE,
    Bans,
    Connections,
)
from gateway.sip.transports import Listeners
from tests.support.dialog import dialog_call
from tests.support.harness import eventually
from tests.support.rtp_end import RtpEnd
from tests.support.site_under_test import ANYBODY, Site, certificate, site

TRUNK = """
[[trunk]]
name = "provider"
peers = ["127.0.0.1"]
transport = "tcp"
"""
ALLOW = '[access]\nunknown_sources = "allow"\n'
NO_RATE = "calls_per_second = 0\nmax_concurrent_calls = 0\n"
MANY = 2000


def options(host: str, port: int, number: int) -> bytes:
    """A probe over TCP."""
    lines = [
        f"OPTIONS sip:{host}:{port} SIP/2.0",
        f"Via: SIP/2.0/TCP 127.0.0.1:1;branch=z9hG4bKtcp{number};rport",
        "From: <sip:probe@127.0.0.1>;tag=1",
        "To: <sip:gateway@127.0.0.1>",
        f"Call-ID: tcp{number}",
        "CSeq: 1 OPTIONS",
        "Max-Forwards: 70",
        "Content-Length: 0",
    ]
    return ("\r\n".join(lines) + "\r\n\r\n").encode()


def highest_descriptor(pid: int) -> int:
    return max(int(one.name) for one in Path(f"/proc/{pid}/fd").iterdir())


@contextlib.contextmanager
def room_for(descriptors: int) -> Iterator[None]:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(descriptors, hard), hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


@contextlib.asynccontextmanager
async def connection(
    gateway: Site,
) -> AsyncIterator[tuple[asyncio.StreamReader, asyncio.StreamWriter]]:
    """The trunk's own connection."""
    reader, writer = await asyncio.open_connection(
        "127.0.0.1", gateway.port("tcp"), local_addr=("127.0.0.1", 0)
    )
    try:
        yield reader, writer
    finally:
        writer.close()


def connect_all(strangers: list[socket.socket], port: int) -> None:
    for _ in range(MANY):
        one = socket.socket()
        strangers.append(one)
        one.bind(("127.0.0.2", 0))
        one.connect(("127.0.0.1", port))


async def probed(
    stream: tuple[asyncio.StreamReader, asyncio.StreamWriter], port: int, number: int
) -> str:
    reader, writer = stream
    writer.write(options("127.0.0.1", port, number))
    async with asyncio.timeout(20):
        head = (await reader.readuntil(b"\r\n\r\n")).decode()
    length = int(head.lower().partition("content-length:")[2].split("\r\n")[0])
    await reader.readexactly(length)
    return head.split(" ")[1]


@pytest.mark.parametrize(
    ("access", "kept"), [("reject", 0), ("allow", PER_SOURCE)], ids=["refused", "allowed"]
)
async def test_idle_connections_of_a_stranger(
    runner: object, own_folder: Path, access: str, kept: int
) -> None:
    """Thousands of them beside a trunk's own, which lives on and answers."""
    listen = ("udp:127.0.0.1:0", "tcp:127.0.0.1:0")
    more = TRUNK + f'[access]\nunknown_sources = "{access}"\n'
    async with site(own_folder, listen=listen, more=more) as gateway:
        port = gateway.port("tcp")
        before = gateway.gateway.resources()["sockets"]
        with room_for(MANY + 500):
            async with connection(gateway) as own:
                assert await probed(own, port, 1) == "200"
                strangers: list[socket.socket] = []
                try:
                    await asyncio.to_thread(connect_all, strangers, port)
                    await eventually(
                        lambda: gateway.gateway.resources()["sockets"] <= before + 1 + kept,
                        "connections closed",
                    )
                    assert await probed(own, port, 2) == "200"
                    await gateway.status()
                finally:
                    for one in strangers:
                        one.close()
        await gateway.gateway.wait("sip.rejected", source="127.0.0.2")


async def test_no_descriptor_left(runner: object, own_folder: Path) -> None:
    """503 with Retry-After; calls that are up go on, and the control socket answers."""
    async with site(own_folder, routes=ANYBODY) as gateway:
        first = gateway.phone.call("1")
        first.invite()
        await first.answered()
        await gateway.gateway.wait("call.confirmed", call=first.call_id)
        pid = gateway.gateway.pid
        highest = highest_descriptor(pid)
        soft, hard = resource.prlimit(pid, resource.RLIMIT_NOFILE)
        resource.prlimit(pid, resource.RLIMIT_NOFILE, (highest + 8, hard))
        call = gateway.phone.call("1")
        call.invite()
        refused = await call.refused()
        assert (refused.code, refused.headers["retry-after"]) == (503, "5")
        assert len((await gateway.status())["calls"]) == 1
        await first.hang_up()
        ending = (await gateway.gateway.wait("call.summary", call=first.call_id))["ending"]
        assert ending["why"] == "remote_hangup"
        resource.prlimit(pid, resource.RLIMIT_NOFILE, (soft, hard))
        again = gateway.phone.call("1")
        again.invite()
        await again.answered()
        await gateway.gateway.wait("call.confirmed", call=again.call_id)
        await again.hang_up()


def first_free_descriptor(pid: int) -> int:
    used = {int(one.name) for one in Path(f"/proc/{pid}/fd").iterdir()}
    return next(number for number in range(10_000) if number not in used)


async def test_not_one_descriptor_left(runner: object, own_folder: Path) -> None:
    """A control client gets the one that is kept for it; the call that is up goes on."""
    async with site(own_folder, routes=ANYBODY) as gateway:
        first = gateway.phone.call("1")
        first.invite()
        await first.answered()
        await gateway.gateway.wait("call.confirmed", call=first.call_id)
        pid = gateway.gateway.pid
        soft, hard = resource.prlimit(pid, resource.RLIMIT_NOFILE)
        resource.prlimit(pid, resource.RLIMIT_NOFILE, (first_free_descriptor(pid), hard))
        for _ in range(3):
            assert len((await gateway.status())["calls"]) == 1
        # Two at a time: one is served after the other.
        answers = await asyncio.gather(gateway.status(), gateway.status())
        assert [len(answer["calls"]) for answer in answers] == [1, 1]
        call = gateway.phone.call("1")
        call.invite()
        refused = await call.refused()
        assert (refused.code, refused.headers["retry-after"]) == (503, "5")
        heard = len(first.rtp.packets)
        await first.rtp.until(lambda: len(first.rtp.packets) > heard + 20)
        resource.prlimit(pid, resource.RLIMIT_NOFILE, (soft, hard))
        await first.hang_up()
        await gateway.gateway.wait("call.summary", sip_call_id=first.call_id)


UNASKED = (
    "from gateway.sip import stack; stack.descriptors_left = lambda _count: True; "
    "from gateway.cli import main; main()"
)
"""A gateway whose admission finds that all is well."""


@pytest.fixture(scope="module")
def unasked(runner: asyncio.Runner, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    folder = tmp_path_factory.mktemp("unasked")
    opened = site(folder, routes=ANYBODY, more=ALLOW + NO_RATE, entry=("-c", UNASKED))
    yield runner.run(opened.__aenter__())
    runner.run(opened.__aexit__(None, None, None))


@contextlib.contextmanager
def none_left(gateway: Site) -> Iterator[None]:
    """Let the gateway open nothing, whatever it closes meanwhile."""
    pid = gateway.gateway.pid
    soft, hard = resource.prlimit(pid, resource.RLIMIT_NOFILE)
    resource.prlimit(pid, resource.RLIMIT_NOFILE, (3, hard))
    try:
        yield
    finally:
        resource.prlimit(pid, resource.RLIMIT_NOFILE, (soft, hard))


@pytest.mark.parametrize("offer", [True, False])
async def test_descriptors_gone_behind_admission(unasked: Site, offer: bool) -> None:
    """In the set-up of media: 503 with Retry-After and a record, and nothing stays behind."""
    before = unasked.gateway.resources()["sockets"]
    for _ in range(3):
        call = dialog_call(unasked.phone, "1")
        call.offer = offer
        with none_left(unasked):
            call.invite()
            refused = await call.refused()
        assert (refused.code, refused.headers.get("retry-after")) == (503, "5")
        ending = (await unasked.gateway.wait("call.summary", sip_call_id=call.call_id))["ending"]
        assert ending["sip_code"] == 503
    call = dialog_call(unasked.phone, "1")
    call.invite()
    await call.answered()
    await unasked.gateway.wait("call.confirmed", call=call.call_id)
    await call.hang_up()
    await unasked.gateway.wait("call.summary", sip_call_id=call.call_id)
    await unasked.phone.forget(call)  # its ports rest until it is silent
    await eventually(
        lambda: unasked.gateway.resources()["sockets"] <= before, f"{before} sockets, as before"
    )


@pytest.mark.parametrize("method", ["INVITE", "UPDATE"])
async def test_descriptors_gone_within_a_call(unasked: Site, method: str) -> None:
    """An offer that needs new sockets, for audio in another line, is refused; the call goes on."""
    call = dialog_call(unasked.phone, "1")
    call.invite()
    await call.answered()
    await unasked.gateway.wait("call.confirmed", call=call.call_id)
    good = call.sdp.text(call.rtp.port)
    other = good.replace("m=audio", "m=audio 0 RTP/AVP 8\r\nm=audio")
    with none_left(unasked):
        refused = await call.ask(method, body=other)
    assert refused.code in (488, 503), refused.text
    assert "reason" in refused.headers or "retry-after" in refused.headers
    for body in (good, other, good):
        heard = len(call.rtp.packets)
        answer = await call.ask(method, body=body)
        assert answer.code == 200
        port = re.search(r"^m=audio ([1-9]\d*)", answer.body, re.M)
        assert port
        call.rtp.connect("127.0.0.1", int(port[1]))
        await call.rtp.until(partial(_hears_more, call.rtp, heard))
    await call.hang_up()
    await unasked.gateway.wait("call.summary", sip_call_id=call.call_id)


def _hears_more(end: RtpEnd, heard: int) -> bool:
    return len(end.packets) > heard + 10


OUTBOUND = """
[outbound]
enabled = true
allowed_prefixes = ["answer"]
"""


async def test_every_rtp_port_is_somebody_elses(runner: object, own_folder: Path) -> None:
    """503 with Retry-After to a caller, an outcome for a call of ours; then all is as before."""
    async with site(own_folder, routes=ANYBODY, more=ALLOW + OUTBOUND) as gateway:
        config = (own_folder / "gateway.toml").read_text()
        found = re.search(r"rtp_ports = \[(\d+), (\d+)\]", config)
        assert found
        taken = []
        try:
            for port in range(int(found[1]), int(found[2]) + 1):
                one = socket.socket(type=socket.SOCK_DGRAM)
                taken.append(one)
                with contextlib.suppress(OSError):  # it is somebody else's already
                    one.bind(("127.0.0.1", port))
            call = gateway.phone.call("1")
            call.invite()
            refused = await call.refused()
            assert (refused.code, refused.headers["retry-after"]) == (503, "5")
            summary = await gateway.gateway.wait("call.summary", sip_call_id=call.call_id)
            assert summary["ending"]["why"] == "over_capacity"
            assert not gateway.gateway.all("sip.rejected")
            host, port = gateway.phone.address
            answer = await asyncio.to_thread(
                ask,
                own_folder / "control",
                "dial",
                to=f"sip:answer@{host}:{port}",
                route="anybody",
                trunk="",
            )
            summary = await gateway.gateway.wait("call.summary", call=str(answer["call"]))
            assert summary["ending"]["why"] == "call_failed"
        finally:
            for one in taken:
                one.close()
        call = gateway.phone.call("1")
        call.invite()
        await call.answered()
        await gateway.gateway.wait("call.confirmed", call=call.call_id)
        await call.hang_up()


def test_whose_connections_are_kept() -> None:
    calls: set[str] = set()
    kept = Connections(lambda s: s == "trunk", lambda s: s != "banned", lambda s: s in calls)
    assert kept.opened(1, "banned", 0.0) == "connection of a stranger"
    assert [kept.opened(n, "trunk", 0.0) for n in range(100, 100 + OF_A_PEER)] == [""] * OF_A_PEER
    kept.heard(100, 1.0)
    assert kept.surplus_connection("trunk") is None
    assert kept.opened(999, "trunk", 2.0) == ""
    assert kept.surplus_connection("trunk") == 101, "the one that was silent for longest"
    kept.closed(101)
    assert kept.surplus_connection("trunk") is None
    assert [kept.opened(n, "a", 0.0) for n in range(PER_SOURCE)] == [""] * PER_SOURCE
    assert kept.opened(99, "a", 0.0) == f"more than {PER_SOURCE} connections"
    kept.closed(0)
    assert kept.opened(99, "a", 0.0) == ""
    kept.heard(99, 5.0)
    assert {one for one, _, _ in kept.overdue(FIRST_MESSAGE_SECONDS)} == set(range(1, PER_SOURCE))
    assert (99, "a", "idle connection") in kept.overdue(5.0 + IDLE_SECONDS)
    calls.add("a")
    assert kept.overdue(5.0 + IDLE_SECONDS) == []
    for number in range(PER_SOURCE, OF_STRANGERS):
        assert kept.opened(1000 + number, f"s{number}", 0.0) == ""
    assert kept.opened(5000, "last", 0.0).startswith(f"more than {OF_STRANGERS}")


def test_an_ipv6_host_is_one_source_by_all_its_addresses() -> None:
    """Whoever has one address on the Internet has the other 2**64 - 1 as well."""
    kept = Connections(lambda _: False, lambda _: True, lambda _: False)
    bans = Bans(BanPolicy(after=PER_SOURCE))
    for number in range(PER_SOURCE):
        assert kept.opened(number, f"2001:db8::{number:x}", 0.0) == ""
        bans.refused(f"2001:db8::{number:x}", 0.0, surely=False)
    assert kept.opened(99, "2001:db8::99", 0.0) == f"more than {PER_SOURCE} connections"
    assert bans.drops("2001:db8::99", 1.0)
    assert not bans.drops("2001:db8:0:1::", 1.0)
    assert bans.as_json(1.0)[0]["source"] == "2001:db8::/64"
    for number in range(2 * PER_SOURCE):
        assert kept.opened(1000 + number, f"fd00::{number:x}", 0.0) == ""


SHORT = (
    "-c",
    f"""
import {Connections.__module__} as sources, {Listeners.__module__} as transports
sources.FIRST_MESSAGE_SECONDS, sources.IDLE_SECONDS = 5.0, 5.0
sources.PER_SOURCE, sources.OF_A_PEER, transports.HANDSHAKE_MS = 3, 8, 5000
from gateway.__main__ import main
main()
""",
)
"""A gateway whose deadlines are short, though long enough for who keeps them on a busy machine."""


@pytest.fixture(scope="module")
def hurried(runner: asyncio.Runner, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    folder = tmp_path_factory.mktemp("hurried")
    files = certificate(folder, "gateway")
    tls = "[sip.tls]\n" + "".join(f'{key} = "{value}"\n' for key, value in files.items())
    more = TRUNK + '[access]\nunknown_sources = "allow"\n'
    listen = ("udp:127.0.0.1:0", "tcp:127.0.0.1:0", "tls:127.0.0.1:0")
    stack = contextlib.AsyncExitStack()
    up = site(folder, listen=listen, sip=tls, more=more, routes=ANYBODY, entry=SHORT)
    yield runner.run(stack.enter_async_context(up))
    runner.run(stack.aclose())


async def stranger(gateway: Site, transport: str, host: str) -> socket.socket:
    """A connection from this address, with nothing said yet."""
    made = socket.socket()
    made.bind((host, 0))
    await asyncio.to_thread(made.connect, ("127.0.0.1", gateway.port(transport)))
    made.setblocking(False)
    return made


async def is_closed(one: socket.socket, said: bytes = b"", every_s: float = 0.2) -> None:
    """Wait until the gateway closes a connection, on which ``said`` goes out byte by byte."""
    loop = asyncio.get_running_loop()
    async with asyncio.timeout(30):
        with contextlib.suppress(ConnectionError):
            for number in range(10_000):
                if said:
                    await loop.sock_sendall(one, said[number % len(said)].to_bytes())
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(every_s):
                        if not await loop.sock_recv(one, 4096):
                            return


HALF = b"OPTIONS sip:127.0.0.1 SIP/2.0\r\nVia: SIP/2.0/TCP 127.0.0.1\r\nX-Long: " + b"x" * 400


HELLO = b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(500)
MUTE = (("tcp", b""), ("tcp", HALF), ("tcp", b"\r\n\r\n"), ("tls", b""), ("tls", HELLO))
"""Nothing, half a message, keep-alives; no hello, half of one: by transport, a byte at a time."""


async def test_who_says_nothing_is_closed(hurried: Site) -> None:
    """Beside a trunk's connection that is as silent, and lives on."""

    async def mute(host: str, transport: str, said: bytes) -> None:
        one = await stranger(hurried, transport, host)
        await is_closed(one, said)
        one.close()
        if transport == "tcp":
            line = await hurried.gateway.wait("sip.rejected", source=host)
            assert line["rule"] == "connection without a message"

    async with connection(hurried) as own:
        assert await probed(own, hurried.port("tcp"), 1) == "200"
        await asyncio.gather(*(mute(f"127.0.0.3{n}", *one) for n, one in enumerate(MUTE)))
        assert await probed(own, hurried.port("tcp"), 2) == "200"


async def test_an_idle_stranger_is_closed_and_a_trunk_is_not(hurried: Site) -> None:
    port = hurried.port("tcp")
    async with connection(hurried) as own:
        assert await probed(own, port, 1) == "200"
        reader, writer = await asyncio.open_connection(
            "127.0.0.1", port, local_addr=("127.0.0.4", 0)
        )
        assert await probed((reader, writer), port, 2) == "200"
        async with asyncio.timeout(30):
            assert await reader.read() == b""
        writer.close()
        await hurried.gateway.wait("sip.rejected", source="127.0.0.4", rule="idle connection")
        assert await probed(own, port, 3) == "200"


@pytest.mark.parametrize("transport", ["tcp", "tls"])
async def test_a_source_has_so_many_connections(hurried: Site, transport: str) -> None:
    """Three are kept; half-open TLS handshakes end by their own deadline."""
    before = hurried.gateway.resources()["sockets"]
    async with connection(hurried) as own:
        assert await probed(own, hurried.port("tcp"), 1) == "200"
        many = [await stranger(hurried, transport, "127.0.0.5") for _ in range(60)]
        await asyncio.gather(*(is_closed(one) for one in many))
        for one in many:
            one.close()
        await eventually(
            lambda: hurried.gateway.resources()["sockets"] <= before + 1, "connections closed"
        )
        assert await probed(own, hurried.port("tcp"), 2) == "200"
        if transport == "tcp":
            line = await hurried.gateway.wait("sip.rejected", source="127.0.0.5")
            assert line["rule"] == "more than 3 connections"


async def test_a_trunk_has_no_descriptors_of_others(hurried: Site) -> None:
    """Of a trunk's address that opens one connection after another, the silent ones are closed."""
    async with connection(hurried) as own:
        opened = [await stranger(hurried, "tcp", "127.0.0.1") for _ in range(7)]
        assert await probed(own, hurried.port("tcp"), 1) == "200"
        opened += [await stranger(hurried, "tcp", "127.0.0.1") for _ in range(5)]
        for one in opened[:5]:
            await is_closed(one)
        await hurried.gateway.wait("sip.rejected", source="127.0.0.1")
        assert await probed(own, hurried.port("tcp"), 2) == "200"
        for one in opened:
            one.close()


async def test_handshakes_that_are_not_begun(hurried: Site) -> None:
    """A source has so many under way at a time; others' connections are made meanwhile."""
    before = hurried.gateway.resources()["sockets"]
    many, most = [], 0
    for number in range(400):
        many.append(await stranger(hurried, "tls", "127.0.0.6"))
        if number % 20 == 19:
            most = max(most, hurried.gateway.resources()["sockets"] - before)
    context = ssl.create_default_context()
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    _reader, writer = await asyncio.open_connection(
        "127.0.0.1", hurried.port("tls"), ssl=context, local_addr=("127.0.0.7", 0)
    )
    writer.close()
    assert 0 < most <= 105
    await asyncio.gather(*(is_closed(one) for one in many))
    for one in many:
        one.close()


def invite(site: Site, transport: str, headers: int, body: int) -> tuple[str, bytes]:
    """Call-ID and bytes of one over a connection, that much longer than it has to be."""
    call = dialog_call(site.phone, "1")
    site.phone.calls.pop(call.call_id)
    call._to = f"<{call.uri}>"
    sdp = call.sdp.text(call.rtp.port) + "a=x-pad:" * (body > 0) + "y" * body + "\r\n" * (body > 0)
    pads = ["X-Pad: " + "z" * 900] * (headers // 909)
    made = call._request("INVITE", call._branch, 1, [*pads, "Content-Type: application/sdp"], sdp)
    return call.call_id, made.replace(b"SIP/2.0/UDP", b"SIP/2.0/" + transport.upper().encode())


@pytest.mark.parametrize("length", ["70000", "2147483647", "4294967400", "9" * 30, "-1", "x"])
async def test_a_content_length_is_not_believed(hurried: Site, length: str) -> None:
    """What has come is read, and nothing behind it, however long the message says it is."""
    reader, writer = await asyncio.open_connection("127.0.0.1", hurried.port("tcp"))
    call_id, request = invite(hurried, "tcp", 0, 9_300)
    head, _, body = request.partition(b"\r\n\r\n")
    lines = [line for line in head.split(b"\r\n") if not line.startswith(b"Content-Length")]
    try:
        writer.write(b"\r\n".join([*lines, b"Content-Length: " + length.encode()]))
        writer.write(b"\r\n\r\n" + body)
        async with asyncio.timeout(20):
            answer = (await reader.readuntil(b"\r\n\r\n")).decode()
    finally:
        writer.close()
    assert answer.split(" ")[1] in ("400", "513")
    assert not hurried.gateway.ids_of(call_id)
    await hurried.phone.options()


@pytest.mark.parametrize("end", [b"\n", b"\r"])
async def test_lines_that_end_in_one_character(hurried: Site, end: bytes) -> None:
    """They are lines, and so is the empty one behind them: nothing more is waited for."""
    reader, writer = await asyncio.open_connection("127.0.0.1", hurried.port("tcp"))
    try:
        for number in range(2):
            request = options("127.0.0.1", hurried.port("tcp"), number + 90)
            writer.write(request.replace(b"\r\n", end))
            async with asyncio.timeout(20):
                head = await reader.readuntil(b"\r\n\r\n")
            assert head.startswith(b"SIP/2.0 200 ")
            length = int(head.lower().partition(b"content-length:")[2].split(b"\r\n")[0])
            await reader.readexactly(length)
    finally:
        writer.close()


@pytest.mark.parametrize("transport", ["tcp", "tls"])
@pytest.mark.parametrize(
    ("headers", "body", "code"),
    [
        (9_300, 0, 513),
        (0, 9_300, 513),
        (0, 60_000, 513),
        (0, 900_000, 513),
        (6_000, 0, 200),
        (0, 6_500, 200),
    ],
)
async def test_a_large_invite_over_a_connection(
    hurried: Site, transport: str, headers: int, body: int, code: int
) -> None:
    """Served in parts as they come, or refused with 513 and closed: it is never half read.

    Who still sends is let finish, so that the 513 is read and not lost with a reset.
    """
    context = ssl.create_default_context()
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    secure = context if transport == "tls" else None
    port = hurried.port(transport)
    reader, writer = await asyncio.open_connection("127.0.0.1", port, ssl=secure)
    call_id, request = invite(hurried, transport, headers, body)
    status = "100"
    try:
        async with asyncio.timeout(20):
            for at in range(0, len(request), 1400):
                writer.write(request[at : at + 1400])
                await writer.drain()
                if at == 14_000:  # the gateway has answered while the rest is still to come
                    await hurried.gateway.wait("sip.rejected", code=513)
            while status < "200":
                head = (await reader.readuntil(b"\r\n\r\n")).decode()
                length = int(head.lower().partition("content-length:")[2].split("\r\n")[0])
                await reader.readexactly(length)
                status = head.split(" ")[1]
                assert f"Call-ID: {call_id}" in head
            if code != 200:
                assert await reader.read() == b""
    finally:
        writer.close()
    if code == 200:
        name = (await hurried.gateway.wait("call.answered", call=call_id))["call"]
        await asyncio.to_thread(ask, hurried.folder / "control", "hangup", call=name)
        await hurried.gateway.wait("call.summary", call=call_id)
    else:
        assert status == "513"
        await hurried.gateway.wait("sip.rejected", code=513)
        assert not hurried.gateway.ids_of(call_id)
