# SPDX-License-Identifier: GPL-2.0-or-later
"""Host names are looked up off the SIP thread and the event loop's executor, and nobody waits for
one that does not come; what a source is counted as."""

from __future__ import annotations

import asyncio
import gc
import socket
import threading
from typing import Any

import pytest

from gateway.addresses import (
    MAX_AT_ONCE,
    MAX_LOOKUPS,
    LookupLoop,
    Names,
    counted,
    host_of,
    is_name,
)


@pytest.mark.parametrize(
    ("address", "as_what"),
    [
        ("192.0.2.1", "192.0.2.1"),
        ("::ffff:192.0.2.1", "192.0.2.1"),
        ("2001:db8:1:2:3:4:5:6", "2001:db8:1:2::/64"),
        ("[2001:DB8:1:2::9]", "2001:db8:1:2::/64"),
        ("2001:db8:1:2::/64", "2001:db8:1:2::/64"),
        ("fd00::0001", "fd00::1"),
        ("fe80::1%eth0", "fe80::1"),
        ("::1", "::1"),
        ("::2", "::/64"),
        ("local", "local"),
    ],
)
def test_what_a_source_is_counted_as(address: str, as_what: str) -> None:
    assert counted(address) == as_what


def test_look_ups_that_hang_keep_no_thread_of_others(monkeypatch: pytest.MonkeyPatch) -> None:
    told = threading.Event()
    asked = []

    def hangs(host: str, *_rest: Any) -> list[Any]:
        asked.append(host)
        told.wait(30)
        if host == "n0":
            raise socket.gaierror(socket.EAI_NONAME, "no such name")
        return [host]

    monkeypatch.setattr(socket, "getaddrinfo", hangs)

    async def play() -> None:
        loop = asyncio.get_running_loop()
        twice = [f"n{number // 2}" for number in range(2 * MAX_LOOKUPS)]
        waits = [asyncio.create_task(loop.getaddrinfo(name, 1)) for name in twice]
        await asyncio.sleep(0)
        with pytest.raises(socket.gaierror, match="too many"):
            await loop.getaddrinfo("one more", 1)
        assert await asyncio.to_thread(lambda: "served") == "served"
        waits[0].cancel()
        told.set()
        found: list[Any] = await asyncio.gather(*waits, return_exceptions=True)
        assert isinstance(found[0], asyncio.CancelledError)
        assert isinstance(found[1], socket.gaierror)
        assert found[2:] == [[name] for name in twice[2:]]
        assert sorted(asked) == sorted(set(twice))
        last: list[Any] = await loop.getaddrinfo("one more", 1)
        assert last == ["one more"]

    with asyncio.Runner(loop_factory=LookupLoop) as runner:
        runner.run(play())


def test_a_look_up_without_a_thread_fails_and_can_be_tried_again(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def none_left(_thread: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(socket, "getaddrinfo", lambda host, *_rest: [host])

    async def play() -> None:
        loop = asyncio.get_running_loop()
        with monkeypatch.context() as patched:
            patched.setattr(threading.Thread, "start", none_left)
            with pytest.raises(socket.gaierror, match="new thread"):
                await loop.getaddrinfo("pbx", 1)
        found: list[Any] = await loop.getaddrinfo("pbx", 1)
        assert found == ["pbx"]

    with asyncio.Runner(loop_factory=LookupLoop) as runner:
        runner.run(play())


def test_an_error_for_nobody_is_none(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever asked has given up by the time at which the look-up fails."""
    go_on, loop_errors = threading.Event(), []

    def fails(*_arguments: Any) -> list[Any]:
        go_on.wait(30)
        raise socket.gaierror(socket.EAI_NONAME, "no such name")

    monkeypatch.setattr(socket, "getaddrinfo", fails)

    async def play() -> None:
        loop = asyncio.get_running_loop()
        loop.set_exception_handler(lambda _loop, context: loop_errors.append(context))
        waiting = asyncio.create_task(loop.getaddrinfo("gone", 1))
        await asyncio.sleep(0)
        waiting.cancel()
        await asyncio.wait([waiting])
        del waiting  # which keeps what it waited for
        (looking_up,) = (one for one in threading.enumerate() if one.name == "look up gone")
        go_on.set()
        looking_up.join()
        await asyncio.sleep(0)  # for what it left the loop to do
        gc.collect()

    with asyncio.Runner(loop_factory=LookupLoop) as runner:
        runner.run(play())
    assert loop_errors == []


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
        names = Names(["pbx"], table.__setitem__, resolve)
        await names.start()
        assert names.known("pbx")
        assert names.known("192.0.2.1")
        assert table == {"pbx": ["192.0.2.7"]}
        assert await names.resolve("other")
        assert not await names.resolve("gone")
        monkeypatch.setattr("gateway.addresses.LOOKUP_SECONDS", 0.05)
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
        names = Names(named, table.__setitem__, lambda _name: ["192.0.2.7"])
        await names.start()
        await names.stop()

    asyncio.run(run())
    assert sorted(table) == named
