# SPDX-License-Identifier: GPL-2.0-or-later
"""What metrics count."""

from __future__ import annotations

from gateway.api.metrics import Metrics
from gateway.call.call_record import CallRecord


def test_a_route_that_a_reload_adds_has_a_label_of_its_own() -> None:
    metrics = Metrics(["old"], [])
    metrics.use(["old", "new"])
    record = CallRecord("one")
    record.route, record.direction = "new", "inbound"
    metrics.told({"type": "call.incoming"}, record)
    text = metrics.render([]).decode()
    assert 'gateway_calls_started_total{direction="inbound",route="new",trunk=""} 1.0' in text
    assert 'gateway_calls_ended_total{direction="inbound",outcome="failed",route="new"} 0.0' in text
