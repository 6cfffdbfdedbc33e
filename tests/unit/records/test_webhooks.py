# SPDX-License-Identifier: GPL-2.0-or-later
"""Deliveries to webhooks: signed, tried again, given up."""

from __future__ import annotations

import asyncio
import threading
from pathlib import Path

import pytest

from gateway.records import webhooks
from gateway.records.spool import Spool
from gateway.records.webhooks import Endpoint, WebhookSender


async def test_a_spool_that_hangs_takes_no_thread_from_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Those of the event loop's pool are few."""
    go_on = threading.Event()
    monkeypatch.setattr(Spool, "waiting", lambda _spool: (go_on.wait(30), {})[1])
    sender = WebhookSender(tmp_path, [Endpoint("a", "", (), frozenset(), {})], lambda: True)
    asked = [asyncio.create_task(sender.waiting()) for _ in range(40)]
    try:
        async with asyncio.timeout(15):
            await asyncio.sleep(0)
            assert await asyncio.to_thread(lambda: "done") == "done"
    finally:
        go_on.set()
    assert [await one for one in asked] == [{"a": (0, None, 0)}] * 40


async def test_a_spool_that_hangs_does_not_hold_up_the_stop(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    go_on, closed = threading.Event(), threading.Event()

    def close(_spool: Spool) -> None:
        go_on.wait(60)
        closed.set()

    monkeypatch.setattr(webhooks, "CLOSE_SECONDS", 0.1)
    monkeypatch.setattr(Spool, "close", close)
    sender = WebhookSender(tmp_path, [], lambda: False)
    await sender.start()
    await sender.stop()
    assert not closed.is_set()
    go_on.set()
