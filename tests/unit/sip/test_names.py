# SPDX-License-Identifier: GPL-2.0-or-later
"""Host names are looked up off the SIP thread, and nobody waits for one that does not come."""

from __future__ import annotations

import asyncio
import threading

import pytest

from gateway.addresses import host_of, is_name
from gateway.sip.names import MAX_AT_ONCE, Names


@pytest.mark.parametrize(
    ("text", "host"),
    [
        ("sip:100@PBX.example.net:5070;transport=tcp", "pbx.example.net"),
        ("<sips:pbx.example.net>", "pbx.example.net"),
        ("pbx.example.net:5060", "pbx.example.net"),
        ("pbx.example.net.", "pbx.example.net"),
        ("sip:100@[2001:db8::1]:5070", "2001:db8::1"),
        ("[::1]:5060", "::1"),
        ("192.0.2.1:5060", "192.0.2.1"),
        ("", ""),
    ],
)
def test_hosts(text: str, host: str) -> None:
    assert host_of(text) == host


@pytest.mark.parametrize(
    ("host", "name"), [("pbx", True), ("192.0.2.1", False), ("::1", False), ("", False)]
)
def test_names(host: str, name: bool) -> None:
    assert is_name(host) is name


def test_a_name_that_does_not_come_holds_nobody_up(monkeypatch: pytest.MonkeyPatch) -> None:
    silent = threading.Event()
    table: dict[str, list[str]] = {}

    def resolve(name: str) -> list[str]:
        if name.startswith("silent"):
            silent.wait(30)
            raise OSError("no answer")
        if name == "gone":
            raise OSError("no such name")
        return ["192.0.2.7"]

    async def run() -> None:
        names = Names(["pbx"], resolve, table.__setitem__)
        await names.start()
        assert names.known("pbx")
        assert names.known("192.0.2.1")
        assert table == {"pbx": ["192.0.2.7"]}
        assert await names.resolve("other")
        assert not await names.resolve("gone")
        monkeypatch.setattr("gateway.sip.names.LOOKUP_SECONDS", 0.05)
        waits = (names.resolve(f"silent{number}") for number in range(MAX_AT_ONCE + 5))
        assert not any(await asyncio.gather(*waits))
        started = [one for one in threading.enumerate() if one.name.startswith("look up silent")]
        assert len(started) == MAX_AT_ONCE
        assert await names.resolve("192.0.2.9")
        await names.stop()
        silent.set()

    asyncio.run(run())


def test_more_names_than_look_ups_at_a_time() -> None:
    named = [f"trunk{number:02}" for number in range(2 * MAX_AT_ONCE + 3)]
    table: dict[str, list[str]] = {}

    async def run() -> None:
        names = Names(named, lambda _name: ["192.0.2.7"], table.__setitem__)
        await names.start()
        await names.stop()

    asyncio.run(run())
    assert sorted(table) == named
