# SPDX-License-Identifier: GPL-2.0-or-later
"""Database row of a call: columns, their values for a record, and their plain words."""

from __future__ import annotations

import csv
import io
import json
import re
from collections.abc import Iterable, Iterator, Mapping
from datetime import UTC, datetime, timedelta
from typing import Any

from gateway.call.call_record import CallRecord
from gateway.ending import EndReason, Party
from gateway.text import printable, unicode_in

SCHEMA_VERSION = 1

OPENED, CUT, CLOSED = 1, 1_000_000_000, 1_000_000_001
"""Revisions of a row: the first, that of a call whose process died, and the last. Those of updates
lie between the first two; a later revision replaces an earlier one, never the other way round."""

TIMES = ("invited_at", "ringing_at", "answered_at", "ended_at", "updated_at")
"""Columns that are times; ISO 8601 in the spool."""

_FAILED = frozenset(
    {
        EndReason.CALL_FAILED,
        EndReason.SESSION_ERROR,
        EndReason.SESSION_LOST,
        EndReason.SESSION_SILENT,
        EndReason.SESSION_UNREACHABLE,
        EndReason.SESSION_REFUSED,
        EndReason.LEG_TIMEOUT,
        EndReason.RTP_TIMEOUT,
        EndReason.RESPONSE_FAILURES,
        EndReason.INTERNAL_ERROR,
    }
)
_UNANSWERED = {
    EndReason.BUSY: "busy",
    EndReason.DECLINED: "refused",
    EndReason.NO_ANSWER: "no_answer",
    EndReason.NO_SUCH_NUMBER: "failed",
    EndReason.FORBIDDEN: "failed",
    EndReason.CANCELLED: "cancelled",
    EndReason.REMOTE_HANGUP: "cancelled",
}

_USER = re.compile(r"(?:.*<)?(?:sips?|tel):([^@;>]+)", re.IGNORECASE)
_SEPARATORS = re.compile(r"[\s().\-]")


def outcome_of(record: CallRecord) -> str:
    """How a call went: completed, transferred, busy, no_answer, cancelled, refused or failed.

    Empty while it goes on.
    """
    ending = record.ending
    if ending is None:
        return ""
    if ending.why is EndReason.TRANSFERRED:
        return "transferred"
    if ending.why is EndReason.PROCESS_LOST:
        return "crashed"
    if ending.why in _FAILED:
        return "failed"
    if record.times.answered is not None:
        return "completed"
    return _UNANSWERED.get(ending.why, "refused")


def number_of(uri: str) -> str:
    """The user part of a SIP or tel URI, a number without its separators."""
    found = _USER.match(uri)
    user = found[1] if found else ""
    bare = _SEPARATORS.sub("", user)
    return bare if re.fullmatch(r"\+?[0-9*#]+", bare) else user


def columns_of(record: CallRecord, now: datetime) -> dict[str, Any]:
    """What is known of a call, as values of JSON; ``now`` has a time zone.

    Numbers and whatever else the record masks are masked. The whole record is not among them.
    """
    times, ending = record.times, record.ending
    began = datetime.fromisoformat(record.started_at)
    cost, waits = record.cost, record.response_ms
    quality = record.media.quality
    plain = {
        "from_uri": record.from_uri,
        "from_name": record.from_name,
        "to_uri": record.to_uri,
        "from_number": number_of(record.from_uri),
        "to_number": number_of(record.to_uri),
        "detail": "" if ending is None else ending.detail,
        "reason": "" if ending is None else ending.reason,
        "disposition": record.disposition,
    }
    return {
        **record.private.masked(plain),
        "schema_version": SCHEMA_VERSION,
        "sip_call_id": record.sip_call_id,
        "direction": record.direction,
        "trunk": record.leg.trunk,
        "source": record.leg.source,
        "route": record.route,
        "transport": record.leg.transport,
        "codec": record.leg.codec,
        "security": record.leg.security,
        "session_id": record.session.session_id,
        "invited_at": record.started_at,
        "ringing_at": _at(began, times.ringing),
        "answered_at": _at(began, times.answered),
        "ended_at": _at(began, times.end),
        "updated_at": now.astimezone(UTC).isoformat(),
        "duration_seconds": None if times.end is None else round(times.end / 1000, 3),
        "talk_seconds": None if times.end is None else round(record.talk_ms / 1000, 3),
        "state": record.state,
        "outcome": outcome_of(record),
        "ended_by": "" if ending is None else ending.by.value,
        "why": "" if ending is None else ending.why.value,
        "sip_code": None if ending is None else ending.sip_code,
        "parent_id": record.parent_id,
        "variant": record.variant,
        "interruptions": len(record.actions.interruptions),
        "transfers": len(record.actions.transfers),
        "response_p50_ms": waits.get("p50"),
        "response_p95_ms": waits.get("p95"),
        "cost": cost.get("priced"),
        "currency": cost.get("currency", ""),
        "mos": _mos(quality),
    }


def cut_columns(facts: Mapping[str, Any], alive_at: float, detail: str) -> dict[str, Any]:
    """The row of a call that was up when its process died, which lived at ``alive_at`` (s)."""
    ended = datetime.fromtimestamp(alive_at, UTC) if alive_at else None
    invited = facts.get("invited_at") or datetime.now(UTC).isoformat()
    if ended is None or ended < datetime.fromisoformat(invited):
        ended = datetime.fromisoformat(invited)  # cut in its first second
    began = datetime.fromisoformat(invited)
    return {
        **facts,
        "schema_version": SCHEMA_VERSION,
        "invited_at": invited,
        "ended_at": ended.isoformat(),
        "updated_at": ended.isoformat(),
        "duration_seconds": round((ended - began).total_seconds(), 3),
        "state": "ended",
        "outcome": "crashed",
        "ended_by": Party.GATEWAY.value,
        "why": EndReason.PROCESS_LOST.value,
        "detail": detail,
    }


def _at(began: datetime, ms: float | None) -> str | None:
    return None if ms is None else (began + timedelta(milliseconds=ms)).isoformat()


def _mos(quality: Mapping[str, Any]) -> float | None:
    scores = [
        score["mean"]
        for way in ("rx", "tx")
        if (score := (quality.get(way) or {}).get("mos")) and score.get("mean") is not None
    ]
    return min(scores) if scores else None


EXPORTED = (
    *("id", "invited_at", "direction", "from_number", "to_number", "route", "trunk"),
    *("duration_seconds", "outcome", "why", "ended_by", "sip_code", "disposition", "cost"),
)
"""Columns of a CSV file."""


def plain(row: Mapping[str, Any]) -> dict[str, Any]:
    """Return a row as JSON."""
    return {
        name: value.isoformat() if isinstance(value, datetime) else unicode_in(value)
        for name, value in row.items()
    }


def exported(rows: Iterable[Mapping[str, Any]], form: str) -> Iterator[str]:
    """Yield rows as lines, of JSON (``jsonl``) or CSV with a header, each with its end.

    Cells that a spreadsheet would run are quoted.
    """
    if form == "jsonl":
        for row in rows:
            yield printable(json.dumps(plain(row), ensure_ascii=False)) + "\n"
        return
    line = io.StringIO()
    writer = csv.writer(line)
    writer.writerow(EXPORTED)
    yield line.getvalue()
    for row in rows:
        line.seek(0)
        line.truncate()
        writer.writerow([cell_of(plain(row)[name]) for name in EXPORTED])
        yield line.getvalue()


def cell_of(value: Any) -> Any:
    text = value if isinstance(value, str) else ""
    # A number's + is no formula, nor is a lone dash.
    run = len(text) > 1 and text[:1] in tuple("=+-@\t\r\n") and not text.removeprefix("+").isdigit()
    return f"'{text}" if run else value


def explanation(row: Mapping[str, Any]) -> Iterator[str]:
    """Yield why a call was accepted or refused, what its session was, and why it ended."""
    record = row.get("record") or {}
    direction = "outbound call" if row["direction"] == "outbound" else "call"
    numbers = f"{row['from_number'] or 'gateway'} to {row['to_number']}"
    yield f"{direction} {row['id']}: {numbers}, INVITE at {_time(row['invited_at'])}"
    lines = record.get("explanation") or ([f"route {row['route']}"] if row["route"] else [])
    last = [line for line in lines[-1:] if line.startswith("ended by ")]
    yield from (f"  {line}" for line in lines[: len(lines) - len(last)])
    yield from _milestones(row, record)
    yield from (f"  {line}" for line in last)
    yield f"  {ending(row)}"


def ending(row: Mapping[str, Any]) -> str:
    """Say how a call ended, by whom and why; or that it has not."""
    if not row["why"]:
        return f"in progress: {row['state']}"
    code = f", SIP {row['sip_code']}" if row.get("sip_code") else ""
    detail = f": {row['detail']}" if row.get("detail") else ""
    after = row.get("duration_seconds")
    when = f" after {after:.1f} s" if after is not None else ""
    disposition = f"; disposition {row['disposition']}" if row.get("disposition") else ""
    return f"{row['outcome']}: {row['why']} by {row['ended_by']}{code}{when}{detail}{disposition}"


def _milestones(row: Mapping[str, Any], record: Mapping[str, Any]) -> Iterator[str]:
    times = record.get("times_ms") or {}
    if times.get("session") is not None:
        yield f"  session {row['session_id'] or '?'} after {times['session']:.0f} ms"
    for lost in record.get("failovers") or ():
        steps = ", ".join(lost["steps"]) or "none"
        yield f"  session lost ({lost['why']}: {lost['detail']}), steps {steps}: {lost['outcome']}"
    if times.get("answered") is not None:
        yield f"  answered after {times['answered']:.0f} ms, {row['codec']} {row['security']}"
    if times.get("first_audio") is not None:
        yield f"  first audio after {times['first_audio']:.0f} ms"
    for one in record.get("transfers") or ():
        code = f", SIP {one['sip_code']}" if one["sip_code"] else ""
        code += f", briefing {one['briefing']}" if one.get("briefing") else ""
        yield f"  transfer to {one['destination']} ({one['mode']}): {one['outcome'] or '?'}{code}"


def _time(value: Any) -> str:
    return value.isoformat(timespec="milliseconds") if isinstance(value, datetime) else str(value)
