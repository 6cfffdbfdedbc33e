# SPDX-License-Identifier: GPL-2.0-or-later
"""Traces that are dropped, or cannot be made."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Sequence

import pytest

from gateway.app import tracing as module
from gateway.app.tracing import Tracing
from gateway.call.call_record import CallRecord
from gateway.config.operations import TracingSettings


def test_a_call_whose_spans_cannot_be_made_costs_no_other() -> None:
    class Spans:
        sent: Sequence[str] = ()

        def of(self, record: CallRecord) -> list[str]:
            if record.call_id == "bad":
                raise ValueError("no time")
            return [record.call_id]

        def export(self, spans: Sequence[str]) -> str:
            self.sent = spans
            return ""

    tracing = Tracing(TracingSettings(), "one")
    tracing._spans = spans = Spans()
    tracing._export([CallRecord("c1"), CallRecord("bad"), CallRecord("c2")])
    assert spans.sent == ["c1", "c2"]
    assert tracing.results == {"exported": 2, "failed": 1}


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
