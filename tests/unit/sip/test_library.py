# SPDX-License-Identifier: GPL-2.0-or-later
"""The SIP thread goes on, or says why not; pjsip's log, codecs, and descriptors for calls."""

from __future__ import annotations

import asyncio
import threading
from types import SimpleNamespace
from typing import Any

import pytest
from structlog.testing import capture_logs

from gateway.audio import Codec
from gateway.sip import library
from gateway.sip.library import LINES_AT_ONCE, MAX_TEXT, CodecOrder, LogWriter, SipThread


@pytest.mark.parametrize("part", ["poll", "command", "housekeeping"])
def test_the_thread_goes_on(part: str) -> None:
    went_on, turns = threading.Event(), {"poll": 0, "housekeeping": 0}

    def turn(name: str) -> None:
        turns[name] += 1
        if name == part and turns[name] < 20:
            raise ValueError(name)

    def command() -> None:
        if part == "command":
            raise ValueError(part)

    thread = SipThread(lambda _ms: turn("poll"), lambda: turn("housekeeping"))
    thread.start(lambda: None, lambda: None)
    thread.post(command)
    thread.post(went_on.set)
    assert went_on.wait(10)
    while turns["housekeeping"] < 30:
        waited = threading.Event()
        thread.post(waited.set)
        assert waited.wait(10)
    thread.stop()
    assert thread.join(10)
    assert thread.failures == (1 if part == "command" else 19)


async def test_an_answer_comes_to_the_loop_with_what_was_raised() -> None:
    thread = SipThread(lambda _ms: None, lambda: None)
    loop = thread.loop = asyncio.get_running_loop()
    failed: list[Any] = []
    loop.set_exception_handler(lambda _loop, context: failed.append(context))
    good, bad, over = (loop.create_future() for _ in range(3))
    over.cancel()
    assert thread.answer(good, lambda: 7) is None
    raised = thread.answer(bad, lambda: [][0])
    thread.answer(over, lambda: 8)
    thread.answer(over, lambda: [][0])
    assert await good == 7
    with pytest.raises(IndexError):
        await bad
    assert isinstance(raised, IndexError)
    assert (over.cancelled(), failed) == (True, [])


def test_a_queue_that_nobody_empties_has_a_bound(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(library, "MAX_COMMANDS", 3)
    thread = SipThread(lambda _ms: None, lambda: None)
    for _ in range(5):
        thread.post(lambda: None)
    assert (thread.waiting, thread.dropped) == (3, 2)
    thread.to_loop(print, "before the loop is known")


def test_a_thread_that_polls_no_more_is_in_trouble(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [100.0]
    monkeypatch.setattr(library, "time", SimpleNamespace(monotonic=lambda: now[0]))
    thread = SipThread(lambda _ms: thread.stop(), lambda: None)
    assert thread.trouble(10) == "", "it has not begun"
    thread.start(lambda: None, lambda: None)
    assert thread.join(10)
    now[0] += 9.9
    assert thread.trouble(10) == ""
    now[0] += 0.1
    assert thread.trouble(10) == "nothing polled for 10 s"


def test_a_thread_whose_beginning_fails_is_ended_in_order() -> None:
    steps: list[str] = []

    def first() -> None:
        steps.append("first")
        raise KeyError

    thread = SipThread(lambda _ms: steps.append("turn"), lambda: None)
    thread.start(first, lambda: steps.append("last"))
    assert thread.join(10)
    assert steps == ["first", "last"]
    assert SipThread(lambda _ms: None, lambda: None).join(0), "one that was never started"


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_a_thread_that_is_ended_from_within_says_so() -> None:
    def turn(_ms: int) -> None:
        raise SystemExit("enough")

    thread = SipThread(turn, lambda: None)
    thread.start(lambda: None, lambda: None)
    assert thread.join(10)
    assert thread.trouble(1e9) == "ended: SystemExit: enough"


def line(level: int, text: str) -> Any:
    return SimpleNamespace(level=level, msg=text)


def test_lines_of_pjsip_are_few_and_of_our_log(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [100.0]
    monkeypatch.setattr(library, "time", SimpleNamespace(monotonic=lambda: now[0]))
    writer = LogWriter()
    with capture_logs() as logs:
        for number in range(LINES_AT_ONCE + 5):
            writer.write(line(2, f" packet {number}\n"))
        now[0] += 1.0
        writer.write(line(1, "x" * 9999))
        writer.write(line(3, "as usual"))
        writer.write(line(1, "P socket bind() at 192.0.2.1:4000 error: Address already in use"))
        writer.write(SimpleNamespace(level=1))
    warnings = [one for one in logs if one["log_level"] == "warning"]
    assert len(warnings) == LINES_AT_ONCE + 1
    assert warnings[0]["text"] == "packet 0"
    assert (warnings[-1]["lines_left_out"], len(warnings[-1]["text"])) == (5, MAX_TEXT)
    assert [one["log_level"] for one in logs[-2:]] == ["debug", "debug"]


def test_all_lines_go_to_who_wants_them() -> None:
    lines: list[str] = []
    writer = LogWriter(lines.append)
    for level in range(1, 6):
        writer.write(line(level, f"{level}\n"))
    assert lines == [f"{level}\n" for level in range(1, 6)]


def test_one_order_of_codecs_is_set_only_where_it_changes(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # It needs a library that runs.
    monkeypatch.setattr("pjsua2.nativeRegisterWideCodecs", lambda: 0)
    asked: list[tuple[str, int]] = []
    there = [SimpleNamespace(codecId="GSM/8000/1")]
    endpoint = SimpleNamespace(
        codecEnum2=lambda: there, codecSetPriority=lambda name, value: asked.append((name, value))
    )
    order = CodecOrder(endpoint)
    assert asked[0] == ("GSM/8000/1", 0)
    asked.clear()
    order.offer([Codec.PCMA, Codec.PCMU])
    order.offer([Codec.PCMA, Codec.PCMU])
    found = dict(asked)
    assert len(asked) == len(Codec)
    assert found[Codec.PCMA.rtpmap] > found[Codec.PCMU.rtpmap] > 0
    assert {found[one.rtpmap] for one in Codec if one not in (Codec.PCMA, Codec.PCMU)} == {0}


@pytest.mark.parametrize(
    ("limits", "calls", "enough", "raised"),
    [
        ((1024, 4096), 100, True, None),
        ((256, 4096), 100, True, (428, 4096)),
        ((256, 300), 100, False, (300, 300)),
        ((256, -1), 100, True, (428, -1)),
        ((-1, -1), 100, True, None),
    ],
)
def test_descriptors_for_so_many_calls(
    monkeypatch: pytest.MonkeyPatch,
    limits: tuple[int, int],
    calls: int,
    enough: bool,
    raised: tuple[int, int] | None,
) -> None:
    asked: list[tuple[int, int]] = []
    fake = SimpleNamespace(
        RLIMIT_NOFILE=7,
        RLIM_INFINITY=-1,
        getrlimit=lambda _which: limits,
        setrlimit=lambda _which, wanted: asked.append(wanted),
    )
    monkeypatch.setattr(library, "resource", fake)
    assert library.raise_descriptor_limit(calls) is enough
    assert asked == ([] if raised is None else [raised])
