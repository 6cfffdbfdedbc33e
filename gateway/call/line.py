# SPDX-License-Identifier: GPL-2.0-or-later
"""The line of a call: limits of its quality, waiting in a queue, and what the record keeps of
both."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True, slots=True)
class LinePlan:
    """Limits of the line's quality: :class:`gateway.dialplan.route_sections.Line`; 0: no limit."""

    enabled: bool = False
    max_loss: float = 5.0
    """Packets lost or too late, %."""
    max_jitter: float = 60.0
    """ms."""
    min_mos: float = 3.0
    min_level: float = 0.0
    """Of the caller's speech, dBFS; 0: not measured."""
    after: float = 5.0
    """Seconds beyond a limit until the model is told."""
    recovered_after: float = 10.0
    """Seconds within all limits until it is told that the line is good again."""
    hint: str = "Keep to short sentences, speak slowly, and repeat numbers and names."
    recovered: str = "The telephone line is good again. Speak as usual."
    """Told when the line is good again; "" tells nothing."""
    max_hints: int = 1
    """How often the model is told of a bad line in one call."""


@dataclass(frozen=True, slots=True)
class HoldKey:
    """Keys that are pressed when an announcement asks for them."""

    words: re.Pattern[str]
    digits: str


@dataclass(frozen=True, slots=True)
class HoldWaitPlan:
    """Waiting in a queue: :class:`gateway.dialplan.route_sections.HoldWait`."""

    enabled: bool = False
    music_threshold: float = 4.0
    """Seconds of music in a row that begin the wait."""
    announcements: tuple[re.Pattern[str], ...] = ()
    """Words that nobody who can be talked to says."""
    max_wait: float = 1800.0
    transfer_to: str = ""
    """Destination after ``max_wait``; "" hangs up."""
    keys: tuple[HoldKey, ...] = ()
    transcribed: bool = False
    """The session transcribes the other side."""
    quiet: Mapping[str, Any] = field(default_factory=dict)
    """``session.update`` that has the server request no responses; empty: it requests none."""
    normal: Mapping[str, Any] = field(default_factory=dict)
    """The one that takes it back."""


@dataclass(slots=True)
class BadLine:
    """A time in which the line was beyond a limit."""

    at_ms: float
    side: str
    """from_caller or to_caller."""
    what: str
    """The evidence: ``12 % lost``."""
    told: bool = False
    recovered_ms: float | None = None
    """When it was good again; None: not in this call."""


@dataclass(slots=True)
class HoldWaitRecord:
    """One wait in a queue."""

    at_ms: float
    why: str
    """What began it: music, an announcement, or repeated words."""
    ms: float = 0.0
    ended: str = ""
    """human, key or timeout; empty: the call ended."""
    announcements: int = 0
    keys: str = ""
    """Keys that were pressed by rule."""
