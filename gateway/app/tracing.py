# SPDX-License-Identifier: GPL-2.0-or-later
"""Traces of calls for OpenTelemetry: made from a call's record when it is over, on a thread.

Nothing of it runs while a call lasts. Ids are derived from the call's, so that what the call asks
of others (functions, webhooks) can name its span before that exists.
"""

from __future__ import annotations

import asyncio
import logging
import queue
import threading
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import TYPE_CHECKING, Any

import structlog

from gateway import __version__
from gateway.call.call_record import CallRecord
from gateway.config.operations import TracingSettings
from gateway.measures import span_id_of, trace_id_of, traceparent
from gateway.records.tables import outcome_of
from gateway.sip.agent import AgentError

if TYPE_CHECKING:
    from opentelemetry.sdk.trace import ReadableSpan

QUEUE_CALLS = 200
"""Calls that wait for a collector: what comes then is dropped and counted."""
EXPORT_SECONDS = 5.0
"""Deadline of one export, with its repeats."""
STOP_SECONDS = 3.0

log = structlog.get_logger("tracing")


@dataclass(frozen=True, slots=True)
class Piece:
    """A span to be made: ``start`` and ``end`` in ms since the INVITE."""

    part: str
    """Name that its span id is derived from; empty for the span of the whole call."""
    name: str
    start: float
    end: float
    attributes: Mapping[str, Any] = field(default_factory=dict)
    error: str = ""
    events: Sequence[tuple[float, str, Mapping[str, Any]]] = ()


def pieces_of(record: CallRecord) -> Iterator[Piece]:
    """Yield the spans of an ended call, its own first; without telephone numbers and transcript."""
    times, ending, outcome = record.times, record.ending, outcome_of(record)
    end = times.end or 0.0
    facts: dict[str, Any] = {
        "gateway.call_id": record.call_id,
        "gateway.direction": record.direction,
        "gateway.route": record.route,
        "gateway.trunk": record.leg.trunk,
        "gateway.outcome": outcome,
        "sip.call_id": record.sip_call_id,
        "sip.codec": record.leg.codec,
    }
    if ending is not None:
        facts |= {"gateway.ended_by": ending.by.value, "gateway.why": ending.why.value}
        facts["sip.response_code"] = ending.sip_code
    failed = ending.why.value if ending is not None and outcome in ("failed", "crashed") else ""
    cuts = [
        (one.at_ms, "interruption", {"trigger": one.trigger, "heard_ms": one.played_ms})
        for one in record.actions.interruptions
    ]
    yield Piece("", f"call {record.route}".strip(), 0.0, end, facts, failed, cuts)
    up = times.answered
    yield Piece("setup", "setup", 0.0, end if up is None else up)
    if times.session is not None:
        model = {
            "gen_ai.operation.name": "realtime",
            "gen_ai.request.model": str(record.cost.get("model", "")),
            "gateway.session_id": record.session.session_id,
        }
        yield Piece("session", "session", times.session, end, model)
    for number, lost in enumerate(record.session.failovers):
        until = lost.at_ms + (lost.session_after_ms or 0.0)
        told = {"why": lost.why, "outcome": lost.outcome}
        yield Piece(f"failover {number}", "failover", lost.at_ms, until, told, lost.why)
    for number, turn in enumerate(record.response_times):
        parts = {f"{name}_ms": getattr(turn, name) for name in _PARTS}
        yield Piece(f"turn {number}", "turn", max(0.0, turn.at_ms - turn.ms), turn.at_ms, parts)
    for number, use in enumerate(record.actions.tools):
        told = {"gen_ai.tool.name": use.name, "outcome": use.outcome}
        wrong = use.outcome if use.outcome in ("failed", "late") else ""
        part = f"tool {use.id or number}"
        yield Piece(part, f"tool {use.name}", use.at_ms, use.at_ms + use.ms, told, wrong)
    for number, one in enumerate(record.actions.transfers):
        told = {"mode": one.mode, "destination": one.destination, "outcome": one.outcome}
        until = one.at_ms + one.ms
        yield Piece(f"transfer {number}", "transfer", one.at_ms, until, told)


_PARTS = ("network", "endpointing", "model", "playout")


class Tracing:
    """Exports a trace of each ended call, on a thread; without ``tracing.endpoint`` none.

    Args:
        instance: this process, among those of the service.
    """

    def __init__(self, settings: TracingSettings, instance: str) -> None:
        self.results: Counter[str] = Counter()
        """Calls whose trace was exported, or failed to be."""
        self.dropped = 0
        """Calls that found no room."""
        self._settings = settings
        self._instance = instance
        self._waiting: queue.Queue[CallRecord | None] = queue.Queue(QUEUE_CALLS)
        self._thread: threading.Thread | None = None
        self._spans: Any = None
        self._failing = False

    def __len__(self) -> int:
        """Number of calls whose trace waits to be exported."""
        return self._waiting.qsize()

    def trace_id(self, call_id: str) -> str:
        """Return the id of a call's trace; "" without an endpoint, or if it is not in the sample
        (``sample_ratio``, by the call's id)."""
        if self._settings.endpoint is None:
            return ""
        found = trace_id_of(call_id)
        return found if int(found[:8], 16) < self._settings.sample_ratio * 2**32 else ""

    def traceparent(self, call_id: str) -> str:
        """Return the W3C ``traceparent`` for requests of a call; "" where it has no trace."""
        return traceparent(self.trace_id(call_id))

    def told(self, event: Mapping[str, Any], record: CallRecord) -> None:
        """Queue a call for export at its end (``call.ended``), if it has a trace id.

        With ``QUEUE_CALLS`` waiting it is dropped and counted.
        """
        if event["type"] != "call.ended" or not record.trace_id or self._thread is None:
            return
        try:
            self._waiting.put_nowait(record)
        except queue.Full:
            self.dropped += 1

    async def start(self) -> None:
        """Start the exporting thread; nothing without an endpoint. Raises AgentError where the
        libraries are not installed."""
        if self._settings.endpoint is None:
            return
        try:
            self._spans = await asyncio.to_thread(_Spans, self._settings, self._instance)
        except ImportError as error:
            why = f'tracing.endpoint: install the extra "otel" ({error})'
            raise AgentError(why) from None
        # A daemon: a collector that hangs must not hold up the end of the process.
        self._thread = threading.Thread(target=self._run, name="traces", daemon=True)
        self._thread.start()

    async def stop(self) -> None:
        """Export what waits, within ``STOP_SECONDS``; the rest is dropped, counted and logged."""
        thread, self._thread = self._thread, None
        if thread is None:
            return
        try:
            self._waiting.put_nowait(None)
            await asyncio.to_thread(thread.join, STOP_SECONDS)
        except queue.Full:
            pass
        left = sum(one is not None for one in tuple(self._waiting.queue))
        if left:
            self.dropped += left
            log.warning("trace.dropped", calls=left)

    def _run(self) -> None:
        """Export the traces of ended calls, all that wait together, until :meth:`stop`.

        Runs on a thread of its own.
        """
        while True:
            records = [self._waiting.get()]
            while len(records) < QUEUE_CALLS and not self._waiting.empty():
                records.append(self._waiting.get())
            calls = [one for one in records if one is not None]
            if calls:
                self._export(calls)
            if None in records:
                self._spans.exporter.shutdown()
                return

    def _export(self, records: list[CallRecord]) -> None:
        """Export the spans of these calls in one request, and count the result.

        The first failure after a success is logged, and the other way round; and each call whose
        spans cannot be made.
        """
        spans: list[ReadableSpan] = []
        whole = 0
        for record in records:
            try:
                spans += self._spans.of(record)
                whole += 1
            except Exception as error:  # of one call: it costs no other
                self.results["failed"] += 1
                why = f"{type(error).__name__}: {error}"
                log.warning("trace.export_failed", call=record.call_id, error=why)
        if not whole:
            return
        try:
            why = self._spans.export(spans)
        except Exception as error:
            why = f"{type(error).__name__}: {error}"
        self.results["failed" if why else "exported"] += whole
        if why and not self._failing:
            log.warning("trace.export_failed", error=why)
        elif not why and self._failing:
            log.info("trace.export_works")
        self._failing = bool(why)


class _Spans:
    """Makes spans with ids of ours, and sends them. On the thread. Raises ImportError."""

    def __init__(self, settings: TracingSettings, instance: str) -> None:
        import requests
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
        from opentelemetry.sdk.resources import Resource
        from opentelemetry.sdk.trace import SpanProcessor, TracerProvider
        from opentelemetry.sdk.trace.export import SpanExportResult
        from opentelemetry.sdk.trace.id_generator import IdGenerator

        # What it logs of each failure, with its text, is said once by us.
        logging.getLogger("opentelemetry").setLevel(logging.CRITICAL)
        self._ids = ids = [0, 0]
        self._made: list[ReadableSpan] = []
        made = self._made

        class Ids(IdGenerator):
            def generate_trace_id(self) -> int:
                return ids[0]

            def generate_span_id(self) -> int:
                return ids[1]

        class Collected(SpanProcessor):
            def on_end(self, span: ReadableSpan) -> None:
                made.append(span)

        facts = {
            "service.name": settings.service_name,
            "service.version": __version__,
            "service.instance.id": instance,
        }
        provider = TracerProvider(
            resource=Resource.create(facts), id_generator=Ids(), shutdown_on_exit=False
        )
        provider.add_span_processor(Collected())
        self._tracer = provider.get_tracer("gateway", __version__)
        headers = {name: value.get_secret_value() for name, value in settings.headers.items()}
        session = requests.Session()
        session.trust_env = False  # no proxy that nobody asked for, no credentials of a .netrc
        self.exporter = OTLPSpanExporter(
            settings.endpoint or "", headers=headers, timeout=EXPORT_SECONDS, session=session
        )
        self._success = SpanExportResult.SUCCESS

    def of(self, record: CallRecord) -> list[ReadableSpan]:
        """Return the spans of an ended call, that of the whole call first."""
        from opentelemetry import trace

        self._made.clear()  # of a call whose spans could not be made
        began = datetime.fromisoformat(record.started_at).timestamp() * 1e9
        self._ids[0] = int(record.trace_id, 16)
        parent = None
        for piece in pieces_of(record):
            self._ids[1] = int(span_id_of(record.trace_id, piece.part), 16)
            inbound = record.direction == "inbound"
            kind = trace.SpanKind.SERVER if inbound else trace.SpanKind.CLIENT
            span = self._tracer.start_span(
                piece.name,
                context=parent,
                kind=trace.SpanKind.INTERNAL if parent else kind,
                attributes=dict(piece.attributes),
                start_time=int(began + piece.start * 1e6),
            )
            for at_ms, name, attributes in piece.events:
                span.add_event(name, dict(attributes), int(began + at_ms * 1e6))
            if piece.error:
                span.set_status(trace.StatusCode.ERROR, piece.error)
            span.end(int(began + max(piece.start, piece.end) * 1e6))
            parent = parent or trace.set_span_in_context(span)
        return list(self._made)

    def export(self, spans: Sequence[ReadableSpan]) -> str:
        """Send spans within ``EXPORT_SECONDS``; return why that failed, "" if it did not."""
        if self.exporter.export(spans) is self._success:
            return ""
        return "the collector did not take them"
