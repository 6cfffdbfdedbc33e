"""What a call's record keeps of its content: guards, machines, questions beside
it, and old turns let go."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any

MAX_KEPT = 500
"""Of each kind, of one call."""


@dataclass(slots=True)
class Decision:
    """What a guard did."""

    at_ms: float
    rule: str
    who: str
    item_id: str
    by: str
    """words, http or timeout."""
    action: str
    reason: str = ""
    heard_ms: int = 0
    """What the caller had heard of the response that was stopped, of its other words as a rule."""


@dataclass(slots=True)
class OutOfBandResponse:
    """A response beside the conversation, which the caller did not hear."""

    at_ms: float
    key: str
    purpose: str
    status: str = ""
    """completed, failed, cancelled, incomplete, refused or late; empty: it ran when the call
    ended."""
    text: str = ""
    ms: float = 0.0


@dataclass(slots=True)
class ContextTrim:
    """Old turns that the session was told to forget."""

    at_ms: float
    how: str
    """delete or summarize."""
    items: int
    turns: int


@dataclass(slots=True)
class MachineDetected:
    """A caller's side that is a machine."""

    at_ms: float
    kind: str
    """music, voicemail or bot."""
    action: str
    why: str
    """The evidence."""
    beep: str = ""
    """Of a message that is left: the beep it was said after, or why there was none."""


@dataclass(slots=True)
class ContentRecord:
    """All of it, oldest first."""

    guards: list[Decision] = field(default_factory=list)
    out_of_band: list[OutOfBandResponse] = field(default_factory=list)
    trims: list[ContextTrim] = field(default_factory=list)
    machines: list[MachineDetected] = field(default_factory=list)
    """At most one of each kind."""

    def guarded(self, decision: Decision) -> None:
        """Add what a guard did."""
        if len(self.guards) < MAX_KEPT:
            self.guards.append(decision)

    def asked(self, out_of_band_response: OutOfBandResponse) -> None:
        """Add a question; filled in as it goes on."""
        if len(self.out_of_band) < MAX_KEPT:
            self.out_of_band.append(out_of_band_response)

    def trimmed(self, trim: ContextTrim) -> None:
        """Add what was let go."""
        if len(self.trims) < MAX_KEPT:
            self.trims.append(trim)

    def as_json(self) -> dict[str, Any]:
        """For the record."""
        return asdict(self)
