# SPDX-License-Identifier: GPL-2.0-or-later
"""Traces that are dropped."""

from __future__ import annotations

import asyncio
import threading

import pytest

from gateway.app import tracing as module
from gateway.app.tracing import Tracing
from gateway.call.call_record import CallRecord
from gateway.config.operations import TracingSettings


@pytest.mark.parametrize("waiting", [0, 2])
def test_only_calls_count_as_dropped_where_the_collector_hangs(
    monkeypatch: pytest.MonkeyPatch, waiting: int
) -> None:
    monkeypatch.setattr(module, "STOP_SECONDS", 0.01)
    over = threading.Event()
    tracing = Tracing(TracingSettings(), "one")
    tracing._thread = threading.Thread(target=over.wait, daemon=True)
    tracing._thread.start()
    for _ in range(waiting):
        record = CallRecord("one")
        record.trace_id = "ab"
        tracing.told({"type": "call.ended"}, record)
    asyncio.run(tracing.stop())
    over.set()
    assert tracing.dropped == waiting
