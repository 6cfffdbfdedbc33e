# SPDX-License-Identifier: GPL-2.0-or-later
"""Queries of past calls while the database hangs."""

from __future__ import annotations

import asyncio
import threading

from gateway.api.calls import _asked


async def test_queries_that_hang_take_no_thread_from_others() -> None:
    """Those of the event loop's pool are few."""
    go_on = threading.Event()
    asked = [asyncio.create_task(_asked(lambda: go_on.wait(30))) for _ in range(40)]
    try:
        async with asyncio.timeout(15):
            await asyncio.sleep(0)
            assert await asyncio.to_thread(lambda: "done") == "done"
    finally:
        go_on.set()
    assert all([await one for one in asked])
