# SPDX-License-Identifier: GPL-2.0-or-later
"""What a call's record keeps of its line: bad quality, machines, waits in a queue."""

from __future__ import annotations

from dataclasses import dataclass


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


@dataclass(slots=True)
class MachineDetected:
    """A machine detected on the caller's side."""

    at_ms: float
    kind: str
    """music, voicemail or bot."""
    action: str
    why: str
    """The evidence."""
    beep: str = ""
    """Of a message that was left: the beep before it, or why there was none."""
