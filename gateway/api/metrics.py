# SPDX-License-Identifier: GPL-2.0-or-later
"""Metrics of the process for Prometheus: what calls were like, counted as they begin and end, and
readings of what there is now.

Labels are values of the configuration or of enumerations, never numbers, calls or addresses.
"""

from __future__ import annotations

import platform
import threading
import time
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Histogram,
    disable_created_metrics,
    generate_latest,
)
from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    Metric,
)

from gateway import __version__
from gateway.ending import OUTCOMES, EndReason, Party
from gateway.measures import OTHER, Distribution, Labels, Reading

if TYPE_CHECKING:
    from gateway.call.call_record import CallRecord

CACHE_SECONDS = 1.0
DIRECTIONS = ("inbound", "outbound")
_DURATION = (5, 15, 30, 60, 120, 300, 600, 1200, 1800, 3600, 7200)
_SETUP = (0.05, 0.1, 0.25, 0.5, 0.75, 1, 1.5, 2, 3, 5, 10, 30)
_FIRST = (0.1, 0.2, 0.3, 0.5, 0.75, 1, 1.5, 2, 3, 5)
_RESPONSE = (0.2, 0.3, 0.4, 0.5, 0.6, 0.8, 1, 1.25, 1.5, 2, 3, 5, 10)
_PART = (0.01, 0.02, 0.04, 0.06, 0.1, 0.2, 0.3, 0.5, 0.75, 1, 1.5, 2, 3, 5)
_BARGE_IN = (0.02, 0.04, 0.06, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.75, 1, 2)
_MOS = (1.5, 2, 2.5, 3.1, 3.6, 3.8, 4, 4.1, 4.2, 4.3, 4.4)
_JITTER = (0.001, 0.0025, 0.005, 0.01, 0.02, 0.03, 0.05, 0.1, 0.2)
_ROUND_TRIP = (0.02, 0.05, 0.1, 0.15, 0.2, 0.3, 0.4, 0.6, 1)
_TOOL = (0.05, 0.1, 0.25, 0.5, 1, 2, 5, 10, 30)

READINGS: Mapping[str, tuple[type[Metric], str]] = {
    "ready": (GaugeMetricFamily, "Whether calls should come here"),
    "draining": (GaugeMetricFamily, "Whether no further call is taken"),
    "calls_limit": (GaugeMetricFamily, "Calls that there may be"),
    "calls_active": (GaugeMetricFamily, "Calls in progress"),
    "invites_refused": (CounterMetricFamily, "Requests that never became a call, by rule"),
    "sessions_active": (GaugeMetricFamily, "Realtime sessions that are open"),
    "session_open_seconds": (HistogramMetricFamily, "Attempts to open a session"),
    "session_ends": (CounterMetricFamily, "Sessions that ended"),
    "server_errors": (CounterMetricFamily, "Errors of realtime servers, by class"),
    "budget_used_ratio": (GaugeMetricFamily, "Part of the day's budget that is spent"),
    "trunk_registered": (GaugeMetricFamily, "Whether a trunk is registered"),
    "trunk_up": (GaugeMetricFamily, "Whether a trunk answers OPTIONS"),
    "webhooks": (CounterMetricFamily, "Attempts to deliver events"),
    "webhook_seconds": (HistogramMetricFamily, "Requests to webhooks"),
    "webhooks_pending": (GaugeMetricFamily, "Deliveries that wait"),
    "webhooks_oldest_pending_seconds": (GaugeMetricFamily, "Age of the oldest that waits"),
    "webhooks_dead": (GaugeMetricFamily, "Deliveries that were given up"),
    "records_pending": (GaugeMetricFamily, "Rows and events that the database does not have yet"),
    "records_oldest_pending_seconds": (GaugeMetricFamily, "Age of the oldest of them"),
    "records": (CounterMetricFamily, "Rows and events by result"),
    "process_lost_calls": (CounterMetricFamily, "Calls of processes that died"),
    "uploads": (CounterMetricFamily, "Tries to upload recordings"),
    "uploads_pending": (GaugeMetricFamily, "Recordings that are still to be uploaded"),
    "recordings_lost_bytes": (CounterMetricFamily, "Of recordings, that could not be written"),
    "http_request_seconds": (HistogramMetricFamily, "Requests to the API, until the answer begins"),
    "storage_free_bytes": (GaugeMetricFamily, "Free on the disk"),
    "queue_items": (GaugeMetricFamily, "Items that wait in a queue of this process"),
    "queue_dropped": (CounterMetricFamily, "Items that found no room in a queue"),
    "browser_calls": (CounterMetricFamily, "Calls of console pages by why the WebSocket closed"),
    "traces": (CounterMetricFamily, "Calls by what became of their trace"),
    "event_loop_lag_seconds": (HistogramMetricFamily, "By how much a timer of the loop is late"),
    "uplink_delay_seconds": (HistogramMetricFamily, "Caller's packet received until it is sent on"),
    "media_clock_lag_seconds": (HistogramMetricFamily, "By how much a frame of 20 ms is late"),
    "media_faults": (CounterMetricFamily, "Exceptions while audio was moved"),
    "config_reloads": (CounterMetricFamily, "Reloads by result"),
    "config_last_success_timestamp_seconds": (GaugeMetricFamily, "When the files were read"),
    "canary_active": (GaugeMetricFamily, "Whether a route's canary runs"),
    "synthetic_up": (GaugeMetricFamily, "Whether the last test call was answered and heard"),
    "synthetic_calls": (CounterMetricFamily, "Test calls by result"),
    "synthetic_heard_seconds": (GaugeMetricFamily, "INVITE to the agent's first sound, last call"),
    "drain_forced_calls": (CounterMetricFamily, "Calls that the end of a drain cut"),
}
"""Kind and help of what is read at each request, by the name without prefix and ``_total``."""


class _Made:
    """Base of groups of metrics: makes them in one registry."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self._registry = registry

    def counter(self, name: str, text: str, *labels: str) -> Counter:
        return Counter(f"gateway_{name}", text, labels, registry=self._registry)

    def histogram(self, name: str, text: str, bounds: Sequence[float], *labels: str) -> Histogram:
        return Histogram(f"gateway_{name}", text, labels, registry=self._registry, buckets=bounds)


class _Calls(_Made):
    """Counts of calls, their endings, tools, transfers, recordings and cost."""

    def __init__(self, registry: CollectorRegistry, routes: Labels, trunks: Labels) -> None:
        super().__init__(registry)
        self._routes, self._trunks, self._models, self._named = routes, trunks, Labels(), Labels()
        counter, histogram = self.counter, self.histogram
        self._started = counter("calls_started", "Calls begun", "direction", "route", "trunk")
        self._ended = counter("calls_ended", "Calls over", "direction", "route", "outcome")
        self._endings = counter("call_endings", "Why calls ended", "by", "why")
        self._variants = counter(
            "variant_calls_ended",
            "Calls over, with a variant",
            "route",
            "variant",
            "outcome",
        )
        self._duration = histogram("call_duration_seconds", "INVITE to end", _DURATION, "direction")
        self._interruptions = counter("interruptions", "Cuts of playout", "trigger", "action")
        self._tools = histogram("tool_seconds", "Uses of tools", _TOOL, "tool", "outcome")
        self._transfers = counter("transfers", "Transfers", "mode", "outcome")
        self._recoveries = counter("session_recoveries", "Sessions lost, by outcome", "outcome")
        self._handovers = counter("session_handovers", "Sessions replaced before their end")
        self._recordings = counter("recordings", "Recordings by what became of them", "result")
        self._cost = counter("cost_usd", "What calls cost", "model", "route")
        self._tokens = counter("tokens", "Tokens used", "model", "kind")
        self.preset()

    def preset(self) -> None:
        """Make the label sets of known routes, which begin at 0: the first event is an increase."""
        for route in (*self._routes.values, OTHER):
            for direction in DIRECTIONS:
                for outcome in OUTCOMES:
                    self._ended.labels(direction, route, outcome)
        for why in EndReason:
            for party in Party:
                if why in (EndReason.INTERNAL_ERROR, EndReason.PROCESS_LOST):
                    self._endings.labels(party.value, why.value)

    def begun(self, record: CallRecord) -> None:
        """Count a call that has begun."""
        route, trunk = self._routes.of(record.route), self._trunks.of(record.leg.trunk)
        self._started.labels(record.direction, route, trunk).inc()

    def over(self, record: CallRecord, outcome: str) -> None:
        """Count a call that has ended, with its tools, transfers, failovers and cost."""
        route, ending, end = self._routes.of(record.route), record.ending, record.times.end
        self._ended.labels(record.direction, route, outcome).inc()
        if record.variant:
            self._variants.labels(route, record.variant, outcome).inc()
        if ending is not None:
            self._endings.labels(ending.by.value, ending.why.value).inc()
        if not end:
            return
        self._duration.labels(record.direction).observe(end / 1000)
        for one in record.actions.interruptions:
            self._interruptions.labels(one.trigger, one.action).inc()
        for tool in record.actions.tools:
            label = self._named.of(tool.name)
            self._tools.labels(label, tool.outcome or "unknown").observe(tool.ms / 1000)
        for transfer in record.actions.transfers:
            self._transfers.labels(transfer.mode, transfer.outcome or "unknown").inc()
        for failover in record.session.failovers:
            self._recoveries.labels(failover.outcome or "unknown").inc()
        self._handovers.inc(record.session.handovers)
        if record.recording is not None and record.recording.state:
            self._recordings.labels(record.recording.state).inc()
        if cost := record.cost:
            model = self._models.of(str(cost.get("model", "")))
            self._cost.labels(model, route).inc(cost.get("priced") or 0.0)
            for kind, used in (cost.get("tokens") or {}).items():
                self._tokens.labels(model, kind).inc(sum(used.values()))


class _Waits(_Made):
    """Set-up, response and barge-in times."""

    def __init__(self, registry: CollectorRegistry, routes: Labels) -> None:
        super().__init__(registry)
        self._routes = routes
        histogram = self.histogram
        self._setup = histogram("call_setup_seconds", "INVITE to each stage", _SETUP, "stage")
        self._first = histogram("first_audio_seconds", "ACK to first sample", _FIRST, "route")
        self._response = histogram(
            "response_seconds", "Caller's last sound to the agent's first", _RESPONSE, "route"
        )
        self._part = histogram("response_part_seconds", "Parts of that wait", _PART, "part")
        self._barge_in = histogram(
            "barge_in_seconds", "Caller's first sound to the agent's silence", _BARGE_IN, "trigger"
        )

    def over(self, record: CallRecord) -> None:
        """Count the waiting times of a call that has ended."""
        route, times = self._routes.of(record.route), record.times
        for stage in ("ringing", "session", "answered"):
            if (reached := getattr(times, stage)) is not None:
                self._setup.labels(stage).observe(reached / 1000)
        if times.first_audio is not None and times.confirmed is not None:
            self._first.labels(route).observe(max(0.0, times.first_audio - times.confirmed) / 1000)
        for wait in record.response_times:
            self._response.labels(route).observe(wait.ms / 1000)
            for part in ("network", "endpointing", "model", "playout"):
                self._part.labels(part).observe(getattr(wait, part) / 1000)
        for one in record.actions.interruptions:
            if one.after_ms is not None:
                self._barge_in.labels(one.trigger).observe(one.after_ms / 1000)


class _Sound(_Made):
    """Quality of audio: underruns, dropped frames, RTP."""

    def __init__(self, registry: CollectorRegistry) -> None:
        super().__init__(registry)
        counter, histogram = self.counter, self.histogram
        self._underruns = counter("playout_underruns", "Gaps in playout")
        self._underrun = counter("playout_underrun_seconds", "Silence played in gaps")
        self._dropped = counter("frames_dropped", "Frames of 20 ms that were dropped", "where")
        self._jitter = histogram("rtp_jitter_seconds", "Mean of a call", _JITTER, "direction")
        self._round_trip = histogram("rtp_round_trip_seconds", "Mean of a call", _ROUND_TRIP)
        self._lost = counter("rtp_packets_lost", "Packets lost", "direction")
        self._packets = counter("rtp_packets", "Packets", "direction")
        self._mos = histogram("call_mos", "Mean of a call", _MOS, "direction")

    def over(self, record: CallRecord) -> None:
        """Count the audio quality of a call that has ended."""
        media, quality = record.media, record.media.quality
        self._underruns.inc(media.underruns)
        self._underrun.inc(media.underrun_ms / 1000)
        self._dropped.labels("uplink").inc(media.dropped_uplink_frames)
        self._dropped.labels("append").inc(media.dropped_append_frames)
        self._dropped.labels("playout").inc(media.refused_playout_frames)
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


class Metrics:
    """Counts what happens to calls. Fed on the event loop, rendered on a thread.

    Args:
        routes, trunks: those of the configuration, which have labels of their own.
    """

    def __init__(self, routes: Iterable[str], trunks: Iterable[str]) -> None:
        disable_created_metrics()  # type: ignore[no-untyped-call]
        self._readings = _Readings()
        self._lock = threading.Lock()
        self._rendered = b""
        self._rendered_at = float("-inf")
        self.registry = registry = CollectorRegistry()
        self._routes = known = Labels(routes, closed=True)
        self._calls = _Calls(registry, known, Labels(trunks, closed=True))
        self._waits = _Waits(registry, known)
        self._sound = _Sound(registry)
        registry.register(self._readings)

    def use(self, routes: Iterable[str]) -> None:
        """Give routes of a new dialplan labels of their own; those that are gone keep theirs."""
        self._routes.add(routes)
        self._calls.preset()

    def told(self, event: Mapping[str, Any], record: CallRecord) -> None:
        """Count a call at its ``call.incoming`` or ``call.dialing``, and at its ``call.ended``."""
        if event["type"] in ("call.incoming", "call.dialing"):
            self._calls.begun(record)
        elif event["type"] == "call.ended":
            self._calls.over(record, event["data"]["outcome"])
            if record.times.end:
                self._waits.over(record)
                self._sound.over(record)

    def render(self, readings: list[Reading]) -> bytes:
        """Return the text, at most a second old. On a thread."""
        with self._lock:
            now = time.monotonic()
            if now - self._rendered_at >= CACHE_SECONDS:
                self._readings.values = readings
                self._rendered = generate_latest(self.registry)
                self._rendered_at = now
            return self._rendered


class _Readings:
    """What was read last, as prometheus_client's collectors have it."""

    def __init__(self) -> None:
        self.values: list[Reading] = []

    def collect(self) -> Iterable[Metric]:
        """Yield a family for each name."""
        build = GaugeMetricFamily("gateway_build_info", "Version", labels=["version", "python"])
        build.add_metric([__version__, platform.python_version()], 1)
        yield build
        families: dict[str, Any] = {}
        for name, labels, value in self.values:
            if name not in families:
                kind, text = READINGS[name]
                families[name] = kind(f"gateway_{name}", text, labels=list(labels))  # type: ignore[call-arg]
            family, values = families[name], list(labels.values())
            if isinstance(value, Distribution):
                family.add_metric(values, list(_buckets(value)), value.total)
            else:
                family.add_metric(values, value)
        yield from families.values()


def _buckets(found: Distribution) -> Iterable[tuple[str, float]]:
    """Yield the cumulative counts by their upper bound."""
    total = 0
    for bound, count in zip((*found.bounds, float("inf")), found.counts, strict=True):
        total += count
        yield ("+Inf" if bound == float("inf") else str(float(bound)), float(total))
