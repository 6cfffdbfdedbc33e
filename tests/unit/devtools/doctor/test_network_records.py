# SPDX-License-Identifier: GPL-2.0-or-later
"""SRV and NAPTR records, asked of a name server that is a few lines of Python."""

from __future__ import annotations

import socket
import struct
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from gateway.devtools.doctor import network
from gateway.devtools.doctor.network import Service, services
from tests.unit.devtools.doctor.test_trunks import closely


def named(name: str) -> bytes:
    parts = name.split(".") if name else []
    return b"".join(bytes([len(part)]) + part.encode() for part in parts) + b"\0"


def text(value: str) -> bytes:
    return bytes([len(value)]) + value.encode()


def srv(priority: int, port: int, host: str, weight: int = 0) -> tuple[int, bytes]:
    return 33, struct.pack("!HHH", priority, weight, port) + named(host)


def naptr(service: str, replacement: str) -> tuple[int, bytes]:
    fields = text("s") + text(service) + text("") + named(replacement)
    return 35, struct.pack("!HH", 10, 10) + fields


ZONE: dict[tuple[str, int], list[tuple[int, bytes]]] = {
    ("_sip._udp.plain.test", 33): [srv(20, 5060, "b.test"), srv(10, 5070, "a.test")],
    ("_sips._tcp.plain.test", 33): [srv(30, 5061, "c.test")],
    ("naptr.test", 35): [naptr("SIPS+D2T", "_x.naptr.test"), naptr("E2U+sip", "no.test")],
    ("_x.naptr.test", 33): [srv(1, 5061, "tls.test")],
    ("_sip._udp.broken.test", 33): [(33, b"\0")],
    ("_sip._udp.localhost", 33): [srv(1, 5099, "localhost")],
}


def answer(query: bytes) -> bytes:
    at, labels = 12, []
    while query[at]:
        labels.append(query[at + 1 : at + 1 + query[at]].decode())
        at += 1 + query[at]
    (kind,) = struct.unpack_from("!H", query, at + 1)
    records = ZONE.get((".".join(labels), kind), [])
    head = query[:2] + struct.pack("!HHHHH", 0x8180, 1, len(records), 0, 0)
    body = b"".join(
        b"\xc0\x0c" + struct.pack("!HHIH", type_, 1, 60, len(data)) + data
        for type_, data in records
    )
    return head + query[12 : at + 5] + body


@pytest.fixture
def where(monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[str, int]]:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as server:
        server.bind(("127.0.0.1", 0))

        def serve() -> None:
            while True:
                data, address = server.recvfrom(4096)
                if data == b"end":
                    return
                server.sendto(answer(data), address)

        thread = threading.Thread(target=serve)
        thread.start()
        monkeypatch.setattr(network, "name_server", lambda: server.getsockname())
        yield server.getsockname()
        server.sendto(b"end", server.getsockname())
        thread.join()


def test_srv_records_are_in_their_order(where: tuple[str, int]) -> None:
    found = [str(one) for one in services("plain.test", where)]
    assert found == ["udp:a.test:5070", "udp:b.test:5060", "tls:c.test:5061"]


def test_naptr_records_say_which_are_asked(where: tuple[str, int]) -> None:
    assert services("naptr.test", where) == [Service(1, 0, "tls", "tls.test", 5061)]


def test_no_records_and_broken_ones(where: tuple[str, int]) -> None:
    assert services("none.test", where) == []
    assert services("broken.test", where) == []


def test_a_domain_without_an_address(where: tuple[str, int], tmp_path: Path) -> None:
    ZONE["_sip._udp.carrier.invalid", 33] = [srv(1, 5070, "sbc.invalid")]
    (finding,) = closely(tmp_path, 'registrar = "carrier.invalid"\nusername = "me"\n')
    assert (finding.verdict, finding.code) == ("bad", "dns_srv")
    assert "udp:sbc.invalid:5070" in finding.fact
    assert 'outbound_proxy (default): "sbc.invalid:5070"' in finding.advice


def test_an_address_that_is_not_the_service(where: tuple[str, int], tmp_path: Path) -> None:
    found = closely(tmp_path, 'registrar = "localhost"\nusername = "me"\n')
    (finding,) = [one for one in found if one.code == "dns_srv"]
    assert finding.verdict == "warn"
    assert 'outbound_proxy (default): "localhost:5099"' in finding.advice
    del where
