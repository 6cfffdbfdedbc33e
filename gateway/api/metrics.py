# SPDX-License-Identifier: GPL-2.0-or-later
"""Metrics of the process for Prometheus."""

from __future__ import annotations

import platform
import threading
import time
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Histogram,
    disable_created_metrics,
    generate_latest,
)
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric

from gateway import __version__
from gateway.call.ending import EndReason, Party

if TYPE_CHECKING:
    from gateway.call.call_record import CallRecord

CACHE_SECONDS = 1.0
OUTCOMES = (
    *("completed", "transferred", "busy", "no_answer", "cancelled", "refused", "failed"),
    "crashed",
)
DIRECTIONS = ("inbound", "outbound")
OTHER = "other"
_COUNTED = frozenset({"process_lost_calls", "records", "webhooks"})
"""Values that only grow, read from elsewhere."""
MAX_VALUES = 100
"""Routes, trunks and models that have a label of their own; further ones are ``other``."""

_DURATION = (5, 15, 30, 60, 120, 300, 600, 1200, 1800, 3600, 7200)
_SETUP = (0.05, 0.1, 0.25, 0.5, 0.75, 1, 1.5, 2, 3, 5, 10, 30)
_FIRST = (0.1, 0.2, 0.3, 0.5, 0.75, 1, 1.5, 2, 3, 5)
_RESPONSE = (0.2, 0.3, 0.4, 0.5, 0.6, 0.8, 1, 1.25, 1.5, 2, 3, 5, 10)
_MOS = (1.5, 2, 2.5, 3.1, 3.6, 3.8, 4, 4.1, 4.2, 4.3, 4.4)
_JITTER = (0.001, 0.0025, 0.005, 0.01, 0.02, 0.03, 0.05, 0.1, 0.2)
_ROUND_TRIP = (0.02, 0.05, 0.1, 0.15, 0.2, 0.3, 0.4, 0.6, 1)
_TOOL = (0.05, 0.1, 0.25, 0.5, 1, 2, 5, 10, 30)

Gauge = tuple[str, str, Mapping[str, str], float]
"""Name without prefix, help, labels and value."""


class Metrics:
    """Counts what happens to calls. Fed on the event loop, rendered on a thread.

    Args:
        routes, trunks: those of the configuration, which have labels of their own.
    """

    def __init__(self, routes: Iterable[str], trunks: Iterable[str]) -> None:
        disable_created_metrics()  # type: ignore[no-untyped-call]
        self._routes = frozenset(list(routes)[:MAX_VALUES])
        self._trunks = frozenset(list(trunks)[:MAX_VALUES])
        self._models: set[str] = set()
        self._gauges = _Gauges()
        self._lock = threading.Lock()
        self._rendered = b""
        self._rendered_at = float("-inf")
        self.registry = registry = CollectorRegistry()

        def counter(name: str, text: str, *labels: str) -> Counter:
            return Counter(f"gateway_{name}", text, labels, registry=registry)

        def histogram(name: str, text: str, buckets: tuple[float, ...], *labels: str) -> Histogram:
            return Histogram(f"gateway_{name}", text, labels, registry=registry, buckets=buckets)

        self._started = counter("calls_started", "Calls begun", "direction", "route", "trunk")
        self._ended = counter("calls_ended", "Calls over", "direction", "route", "outcome")
        self._endings = counter("call_endings", "Why calls ended", "by", "why")
        self._duration = histogram("call_duration_seconds", "INVITE to end", _DURATION, "direction")
        self._setup = histogram("call_setup_seconds", "INVITE to each stage", _SETUP, "stage")
        self._first = histogram("first_audio_seconds", "ACK to first sample", _FIRST, "route")
        self._response = histogram(
            "response_seconds", "Caller's end of speech to first sample", _RESPONSE, "route"
        )
        self._interruptions = counter("interruptions", "Cuts of playout", "trigger", "action")
        self._underruns = counter("playout_underruns", "Gaps in playout")
        self._underrun = counter("playout_underrun_seconds", "Silence played in gaps")
        self._dropped = counter("frames_dropped", "Frames of 20 ms that were dropped", "where")
        self._jitter = histogram("rtp_jitter_seconds", "Mean of a call", _JITTER, "direction")
        self._round_trip = histogram("rtp_round_trip_seconds", "Mean of a call", _ROUND_TRIP)
        self._lost = counter("rtp_packets_lost", "Packets lost", "direction")
        self._packets = counter("rtp_packets", "Packets", "direction")
        self._mos = histogram("call_mos", "Mean of a call", _MOS, "direction")
        self._cost = counter("cost_usd", "What calls cost", "model", "route")
        self._tools = histogram("tool_seconds", "Uses of tools", _TOOL, "outcome")
        self._transfers = counter("transfers", "Transfers", "mode", "outcome")
        self._failovers = counter("session_recoveries", "Sessions lost, by outcome", "outcome")
        registry.register(self._gauges)
        self._preset()

    def _preset(self) -> None:
        """Make known label sets at 0, so that the first event is an increase."""
        for route in (*self._routes, OTHER):
            for direction in DIRECTIONS:
                for outcome in OUTCOMES:
                    self._ended.labels(direction, route, outcome)
        for why in EndReason:
            for party in Party:
                if why in (EndReason.INTERNAL_ERROR, EndReason.PROCESS_LOST):
                    self._endings.labels(party.value, why.value)

    def told(self, event: Mapping[str, Any], record: CallRecord) -> None:
        """An event of a call."""
        if event["type"] in ("call.incoming", "call.dialing"):
            self.begun(record)
        elif event["type"] == "call.ended":
            self.over(record, event["data"]["outcome"])

    def begun(self, record: CallRecord) -> None:
        """A call begins."""
        named = record.leg.trunk
        trunk = named if named in self._trunks else (OTHER if named else "")
        self._started.labels(record.direction, self._route(record), trunk).inc()

    def over(self, record: CallRecord, outcome: str) -> None:
        """A call is over, or was refused."""
        route, ending, times = self._route(record), record.ending, record.times
        self._ended.labels(record.direction, route, outcome).inc()
        if ending is not None:
            self._endings.labels(ending.by.value, ending.why.value).inc()
        if not times.end:
            return
        self._duration.labels(record.direction).observe(times.end / 1000)
        for stage in ("ringing", "session", "answered"):
            if (reached := getattr(times, stage)) is not None:
                self._setup.labels(stage).observe(reached / 1000)
        if times.first_audio is not None and times.confirmed is not None:
            self._first.labels(route).observe(max(0.0, times.first_audio - times.confirmed) / 1000)
        for one in record.actions.interruptions:
            self._interruptions.labels(one.trigger, one.action).inc()
        self._underruns.inc(record.media.underruns)
        self._underrun.inc(record.media.underrun_ms / 1000)
        self._dropped.labels("uplink").inc(record.media.dropped_uplink_frames)
        self._dropped.labels("append").inc(record.media.dropped_append_frames)
        self._dropped.labels("playout").inc(record.media.refused_playout_frames)
        for tool in record.actions.tools:
            self._tools.labels(tool.outcome or "unknown").observe(tool.ms / 1000)
        for transfer in record.actions.transfers:
            self._transfers.labels(transfer.mode, transfer.outcome or "unknown").inc()
        for failover in record.session.failovers:
            self._failovers.labels(failover.outcome or "unknown").inc()
        self._sound(record.media.quality)
        if cost := record.cost:
            model = str(cost.get("model", ""))
            if len(self._models) < MAX_VALUES:
                self._models.add(model)
            known = model if model in self._models else OTHER
            self._cost.labels(known, route).inc(cost.get("priced") or 0.0)

    def render(self, gauges: list[Gauge]) -> bytes:
        """Return the text, at most a second old. On a thread."""
        with self._lock:
            self._gauges.values = gauges
            now = time.monotonic()
            if now - self._rendered_at >= CACHE_SECONDS:
                self._rendered = generate_latest(self.registry)
                self._rendered_at = now
            return self._rendered

    def _sound(self, quality: Mapping[str, Any]) -> None:
        for way in ("rx", "tx"):
            one = quality.get(way) or {}
            self._packets.labels(way).inc(one.get("packets") or 0)
            self._lost.labels(way).inc(max(0, one.get("lost") or 0))
            if (mean := (one.get("jitter_ms") or {}).get("mean")) is not None:
                self._jitter.labels(way).observe(mean / 1000)
            if (mean := (one.get("mos") or {}).get("mean")) is not None:
                self._mos.labels(way).observe(mean)
        if (mean := (quality.get("rtt_ms") or {}).get("mean")) is not None:
            self._round_trip.observe(mean / 1000)

    def _route(self, record: CallRecord) -> str:
        if not record.route:
            return ""
        return record.route if record.route in self._routes else OTHER


class _Gauges:
    """Gauges as they were read last, in place of counting up and down."""

    def __init__(self) -> None:
        self.values: list[Gauge] = []

    def collect(self) -> Iterable[Metric]:
        """As prometheus_client's collectors do."""
        build = GaugeMetricFamily("gateway_build_info", "Version", labels=["version", "python"])
        build.add_metric([__version__, platform.python_version()], 1)
        yield build
        families: dict[str, GaugeMetricFamily | CounterMetricFamily] = {}
        for name, text, labels, value in self.values:
            if name not in families:
                kind = CounterMetricFamily if name in _COUNTED else GaugeMetricFamily
                families[name] = kind(f"gateway_{name}", text, labels=list(labels))
            families[name].add_metric(list(labels.values()), value)
        yield from families.values()
