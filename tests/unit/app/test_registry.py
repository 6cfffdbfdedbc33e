# SPDX-License-Identifier: GPL-2.0-or-later
"""Calls in progress."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any, cast

from gateway.app.registry import CallRegistry
from gateway.bridge.call_controller import CallController
from gateway.call.call_record import CallRecord
from gateway.call.tools.commands import CollectPlan
from gateway.records.black_boxes import BlackBoxes
from gateway.records.files import BackgroundWriter
from gateway.sip.signalling import MessageLog
from tests.support.call_fakes import settle


class FakeCall:
    """A call of the only route."""

    def __init__(self, call_id: str = "c1") -> None:
        self.record = CallRecord(call_id, route="r", from_uri="sip:+49301234567@x")
        self.session_plan = SimpleNamespace(
            endpoint=SimpleNamespace(model="m", url="ws://x"), settings={}
        )
        collect = CollectPlan()
        self.plan = SimpleNamespace(tools=SimpleNamespace(collect_digits=collect))
        self.watched: list[Any] = []
        self.left = asyncio.Event()

    def start(self, prepare: Callable[[], None]) -> None:
        """As a call does."""
        prepare()

    def watch(self, account: Any, events: Any, black_box: Any) -> None:
        """Account and event log."""
        assert black_box is None
        self.watched.append((account, events))

    def record_with(self, recordings: Any) -> None:
        pass

    def shut_down(self) -> None:
        """As a call does."""

    async def wait_closed(self) -> None:
        """Its sessions are closed."""
        await self.left.wait()

    @property
    def call(self) -> CallController:
        """Itself."""
        return cast(CallController, self)


class Kept:
    """Records, event logs and costs that keep what they are told."""

    def __init__(self) -> None:
        self.written: list[CallRecord] = []
        self.accounts: list[tuple[str, dict[str, Any]]] = []
        self.logs: list[str] = []
        masks = {"redact": ("numbers",), "redact_patterns": ()}
        settings = SimpleNamespace(**masks, events=True, black_box="off")
        own = SimpleNamespace(redact=None, redact_patterns=None, events=None, black_box=None)
        self.route = SimpleNamespace(name="r", records=own)
        self.calls = CallRegistry(
            cast(Any, SimpleNamespace(records=settings)),
            cast(Any, SimpleNamespace(routes=[self.route])),
            cast(Any, self._stores()),
            cast(Any, SimpleNamespace(open=self._open, exhausted=lambda _route, _number: None)),
        )
        self.calls.max_calls = 2

    def _stores(self) -> SimpleNamespace:
        return SimpleNamespace(
            records=SimpleNamespace(write=self.written.append, opened=lambda _record: None),
            event_logs=SimpleNamespace(open=lambda call_id, *_given, **_more: call_id),
            black_boxes=BlackBoxes(None, BackgroundWriter(), MessageLog()),
            recordings=None,
            tracing=SimpleNamespace(trace_id=lambda _call_id: ""),
        )

    def _open(self, _route: Any, number: str, **given: Any) -> str:
        self.accounts.append((number, given))
        return "account"


async def test_a_call_has_its_account_its_event_log_and_its_masks() -> None:
    kept, call = Kept(), FakeCall()
    kept.calls.begin(call.call)
    assert kept.accounts[0][0] == "+49301234567"
    assert call.watched == [("account", "c1")]
    assert call.record.private.masked("+49301234567") == "+********567"
    kept.route.records.redact, kept.route.records.events = (), False
    other = FakeCall("c2")
    kept.calls.begin(other.call)
    assert other.watched == [("account", None)]
    assert not other.record.private


async def test_the_place_of_a_call_is_free_when_it_is_over() -> None:
    kept, one, two = Kept(), FakeCall("c1"), FakeCall("c2")
    kept.calls.begin(one.call)
    assert kept.calls.no_room() is None
    kept.calls.begin(two.call)
    assert kept.calls.no_room() == "sip.max_calls: 2 calls in progress"
    assert kept.calls.ids == ["c1", "c2"]
    kept.calls.finished(one.call)
    assert kept.written == [one.record]
    assert not kept.calls.full
    kept.calls.closed = True
    assert kept.calls.no_room() == "the gateway shuts down"


async def test_waiting_for_the_last_call_and_for_its_sessions() -> None:
    kept, call, hurry = Kept(), FakeCall(), asyncio.Event()
    await kept.calls.wait_idle(10.0)
    kept.calls.begin(call.call)
    idle = asyncio.create_task(kept.calls.wait_idle(10.0))
    hurried = asyncio.create_task(kept.calls.wait_idle(10.0, hurry))
    await asyncio.sleep(0)
    hurry.set()
    await hurried
    assert not idle.done()
    kept.calls.finished(call.call)
    await idle
    gone = asyncio.create_task(kept.calls.wait_gone(10.0))
    await settle()
    assert not gone.done()
    call.left.set()
    await gone


async def test_calls_that_a_drain_cuts_are_counted() -> None:
    kept = Kept()
    for name in ("c1", "c2"):
        kept.calls.begin(FakeCall(name).call)
    kept.calls.shut_down()
    assert kept.calls.forced == 2
