"""Calls that are not taken: the answer, the line in the log, and the record."""

from __future__ import annotations

from datetime import UTC, datetime

import structlog

from gateway.call.ending import Why, ending_of, reason_header, refusal_code
from gateway.call.record import CallRecord
from gateway.planning import record_of
from gateway.records.files import RecordFiles
from gateway.sip.leg import Leg
from gateway.sip.types import LegEnd, Refused, RtpQuality

log = structlog.get_logger("gateway")

_REFUSED_BELOW = {488: Why.NO_COMMON_CODEC, 415: Why.NO_COMMON_CODEC, 503: Why.OVER_CAPACITY}


class Refusals:
    """Says no to calls.

    Args:
        retry_after: seconds, in the Retry-After of a 503 (RFC 3261 section 20.33).
    """

    def __init__(self, records: RecordFiles, retry_after: int) -> None:
        self._records = records
        self._retry_after = retry_after

    def refuse(self, leg: Leg, record: CallRecord, why: Why, detail: str = "") -> None:
        """A call came that we do not take."""
        code = refusal_code(why)
        headers = {"Reason": reason_header(why)}
        if code == 503:
            headers["Retry-After"] = str(self._retry_after)
        leg.handler = _Refusing()
        leg.refuse(code, headers)
        self.write(record, why, code, detail)

    def refused_below(self, refused: Refused) -> None:
        """The library, or what stands before it, has refused one."""
        record = record_of(refused.invite, datetime.now(UTC))
        why = _REFUSED_BELOW.get(refused.code, Why.REFUSED)
        self.write(record, why, refused.code, refused.reason)

    def write(self, record: CallRecord, why: Why, code: int, detail: str) -> None:
        """A call came, or was to be placed, and is not."""
        ending = ending_of(why, answered=False, detail=detail)
        record.ending = type(ending)(ending.by, why, code, ending.reason, detail)
        record.times.end = 0.0
        record.mark(0.0, "invite", source=record.source)
        record.mark(0.0, "end", by=ending.by.value, why=why.value, detail=detail)
        summary = {key: value for key, value in record.summary().items() if key != "call_id"}
        log.info("call.summary", call=record.call_id, **summary)
        self._records.write(record)


class _Refusing:
    """Handler of a leg that was refused: nothing that happens to it matters any more."""

    def on_ringing(self, code: int) -> None: ...
    def on_media(self, codec: object) -> None: ...
    def on_confirmed(self) -> None: ...
    def on_hold(self, held: bool) -> None: ...
    def on_digit(self, digit: str) -> None: ...
    def on_quality(self, quality: RtpQuality) -> None: ...
    def on_ended(self, end: LegEnd) -> None: ...
