# SPDX-License-Identifier: GPL-2.0-or-later
"""Host names are looked up off the event loop's executor; what a source is counted as."""

from __future__ import annotations

import asyncio
import gc
import socket
import threading
from typing import Any

import pytest

from gateway.addresses import MAX_LOOKUPS, LookupLoop, counted


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
