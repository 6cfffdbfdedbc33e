"""Opening hours: ``mon-fri 08:00-18:00``."""

from __future__ import annotations

import re
from dataclasses import dataclass
from datetime import datetime
from zoneinfo import ZoneInfo

DAYS = ("mon", "tue", "wed", "thu", "fri", "sat", "sun")
_WRITTEN = re.compile(
    r"(?:(?P<days>[a-z,\- ]+?)\s+)?(?P<start>\d\d?:\d\d)\s*-\s*(?P<end>\d\d?:\d\d)"
)


@dataclass(frozen=True, slots=True)
class Hours:
    """One span of the day, on some weekdays (0 is Monday); minutes count from midnight.

    The first minute belongs to it, the last does not. When ``end`` is not after ``start`` the
    span goes on past midnight and belongs to the day on which it began.
    """

    days: frozenset[int]
    start: int
    end: int
    written: str

    def hold(self, at: datetime, zone: ZoneInfo) -> bool:
        """Whether ``at`` (with time zone) is within them on a wall clock in ``zone``."""
        local = at.astimezone(zone)
        minute = local.hour * 60 + local.minute
        today = local.weekday()
        if self.start < self.end:
            return today in self.days and self.start <= minute < self.end
        yesterday = (today - 1) % 7
        return (today in self.days and minute >= self.start) or (
            yesterday in self.days and minute < self.end
        )


def parse_hours(text: object) -> Hours:
    """Read ``[DAYS ]HH:MM-HH:MM``; raises ValueError saying what cannot be read."""
    match = _WRITTEN.fullmatch(text.strip().lower()) if isinstance(text, str) else None
    if match is None:
        raise ValueError('must be like "mon-fri 08:00-18:00", "sat,sun 10:00-14:00", "22:00-06:00"')
    start, end = _minute(match["start"]), _minute(match["end"])
    if start == end:
        raise ValueError("begin and end at the same minute; a whole day is 00:00-24:00")
    if start == 24 * 60:
        raise ValueError("24:00 can only be an end")
    return Hours(_days(match["days"]), start, end, match.string)


def _minute(text: str) -> int:
    hour, minute = (int(part) for part in text.split(":"))
    if minute > 59 or hour * 60 + minute > 24 * 60:
        raise ValueError(f"{text} is no time of day")
    return hour * 60 + minute


def _days(text: str | None) -> frozenset[int]:
    if text is None:
        return frozenset(range(7))
    days: set[int] = set()
    for part in text.split(","):
        first, dash, last = (name.strip() for name in part.partition("-"))
        begin = _day(first)
        final = _day(last) if dash else begin
        days.update((begin + step) % 7 for step in range((final - begin) % 7 + 1))
    return frozenset(days)


def _day(name: str) -> int:
    if name not in DAYS:
        raise ValueError(f"{name!r} is no weekday; they are {', '.join(DAYS)}")
    return DAYS.index(name)
