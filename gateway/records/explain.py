# SPDX-License-Identifier: GPL-2.0-or-later
"""Says in a few lines what happened to a call, from its row."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from datetime import datetime
from typing import Any


def explanation(row: Mapping[str, Any]) -> Iterator[str]:
    """Yield why a call was accepted or refused, what its session was, and why it ended."""
    record = row.get("record") or {}
    direction = "outbound call" if row["direction"] == "outbound" else "call"
    numbers = f"{row['from_number'] or 'gateway'} to {row['to_number']}"
    yield f"{direction} {row['id']}: {numbers}, INVITE at {_time(row['invited_at'])}"
    for line in record.get("explanation") or ():
        yield f"  {line}"
    if not record.get("explanation") and row["route"]:
        yield f"  route {row['route']}"
    yield from _milestones(row, record)
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
        yield f"  transfer to {one['destination']} ({one['mode']}): {one['outcome'] or '?'}{code}"


def _time(value: Any) -> str:
    return value.isoformat(timespec="milliseconds") if isinstance(value, datetime) else str(value)
