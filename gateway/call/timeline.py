"""Notes of a call: one line for the log and one entry in the timeline, at the same moment."""

from __future__ import annotations

from typing import Any

from gateway.call.outputs import LogEvent
from gateway.call.record import CallRecord


class CallTimeline:
    """Writes the record's timeline in ms since ``started`` (s, the INVITE)."""

    def __init__(self, record: CallRecord, started: float) -> None:
        self.record = record
        self._started = started

    def ms(self, now: float) -> float:
        """``now`` (s) as ms since the INVITE."""
        return (now - self._started) * 1000

    def mark(self, now: float, event: str, **fields: Any) -> None:
        """Mark the timeline of what the log has already."""
        self.record.mark(self.ms(now), event, **fields)

    def note(self, now: float, event: str, level: str = "debug", **fields: Any) -> LogEvent:
        """Mark the timeline; returns the output that logs it."""
        self.record.mark(self.ms(now), event, **fields)
        return LogEvent(event, fields, level)
