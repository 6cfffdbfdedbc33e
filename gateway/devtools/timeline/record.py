"""Reader of call records, the JSON files that the gateway writes one for each call.

Tolerant: keys and events that a newer gateway adds are passed over, so that old tools still show
what they know.
"""

from __future__ import annotations

import contextlib
import json
from datetime import datetime
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from gateway.text import json_of, printable_in


class RecordError(Exception):
    """A file that is no call record; the message names file, key and mistake."""


class _Part(BaseModel):
    model_config = ConfigDict(extra="ignore", frozen=True, populate_by_name=True)


class Times(_Part):
    """Milestones, ms since the INVITE; None for what did not happen."""

    ringing: float | None = None
    session: float | None = None
    answered: float | None = None
    confirmed: float | None = None
    first_audio: float | None = None
    end: float | None = None


class Interruption(_Part):
    """One cut of playout; ``action`` is ``truncate``, ``delete`` or ``none``."""

    at_ms: float
    trigger: str
    item_id: str = ""
    played_ms: int = 0
    received_ms: int = 0
    action: str = "none"
    flushed_ms: int = 0


class DigitRun(_Part):
    """Digits that became an item of the conversation."""

    at_ms: float
    digits: str
    ended_by: str = ""


class Spread(_Part):
    """Least, mean and most of what was measured."""

    min: float
    mean: float
    max: float


class Direction(_Part):
    """One direction of the call's RTP."""

    packets: int = 0
    lost: int = 0
    lost_percent: float = 0.0
    late: int = 0
    jitter_ms: Spread | None = None
    mos: Spread | None = None


class Quality(_Part):
    """``rx`` is what the caller sent, ``tx`` what they received, if their side told."""

    rx: Direction | None = None
    tx: Direction | None = None
    rtt_ms: Spread | None = None


class Cost(_Part):
    """What the server told, priced; ``total`` is None when something has no price."""

    currency: str = ""
    total: float | None = None
    priced: float = 0.0
    model: str = ""
    responses: int = 0
    unpriced: list[str] = Field(default_factory=list)


class EndingFacts(_Part):
    """Who ended the call, and why."""

    by: str
    why: str
    sip_code: int | None = None
    reason: str = ""
    detail: str = ""


class Entry(BaseModel):
    """One event of the timeline; what belongs to the event only is in ``extra``."""

    model_config = ConfigDict(extra="allow", frozen=True)

    t_ms: float
    event: str

    @property
    def extra(self) -> dict[str, Any]:
        """The event's own fields."""
        return self.model_extra or {}

    def text(self, key: str) -> str:
        """A field as text, empty when it is not there."""
        value = self.extra.get(key)
        return "" if value is None else str(value)


class Record(_Part):
    """One call, as its file says."""

    call_id: str
    sip_call_id: str = ""
    session_id: str | None = None
    route: str | None = None
    caller: str = Field(default="", alias="from")
    called: str = Field(default="", alias="to")
    codec: str | None = None
    direction: str = "inbound"
    started_at: datetime | None = None
    times_ms: Times = Times()
    talk_ms: float | None = None
    interruptions: list[Interruption] = Field(default_factory=list)
    digits: list[DigitRun] = Field(default_factory=list)
    underruns: int = 0
    underrun_ms: int = 0
    dropped_uplink_frames: int = 0
    quality: Quality = Quality()
    cost: Cost = Cost()
    ending: EndingFacts | None = None
    timeline: list[Entry] = Field(default_factory=list)

    @property
    def end_ms(self) -> float:
        """The last moment that the record knows of."""
        last = max((entry.t_ms for entry in self.timeline), default=0.0)
        return max(last, self.times_ms.end or 0.0)


def read_record(file: Path) -> Record:
    """Read a record. Raises RecordError."""
    try:
        text = file.read_text("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "it is not UTF-8 text"
        raise RecordError(f"{file}: cannot be read: {reason}") from None
    try:
        with contextlib.suppress(ValueError):
            text = json.dumps(printable_in(json_of(text)))
        return Record.model_validate_json(text)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        where = ".".join(str(part) for part in first["loc"])
        lead = f"{file}: {where}: " if where else f"{file}: "
        raise RecordError(f"{lead}{first['msg']}") from None
