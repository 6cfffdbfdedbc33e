# SPDX-License-Identifier: GPL-2.0-or-later
"""A scripted caller: dials, listens, speaks, presses keys, hangs up; and the report of its call.

``script`` has the steps, ``call`` follows them, ``run`` is the telephone, and ``sound`` has clips,
recordings and levels.
"""

from __future__ import annotations

from datetime import datetime
from enum import StrEnum

from pydantic import BaseModel, ConfigDict, Field

from gateway.sip.leg import LegEnd


class Outcome(StrEnum):
    """Outcome of a scripted call."""

    COMPLETED = "completed"
    REFUSED = "refused"
    NO_ANSWER = "no_answer"
    STEP_MISSED = "step_missed"
    LOST = "lost"
    FAILED = "failed"
    INTERRUPTED = "interrupted"

    @property
    def exit_code(self) -> int:
        """The exit status of ``gateway test-call``; 2 is wrong usage."""
        return _EXIT_CODES[self]


_EXIT_CODES = {
    Outcome.COMPLETED: 0,
    Outcome.REFUSED: 3,
    Outcome.NO_ANSWER: 4,
    Outcome.STEP_MISSED: 5,
    Outcome.LOST: 6,
    Outcome.FAILED: 7,
    Outcome.INTERRUPTED: 130,
}


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True)


class StepReport(_Part):
    """One step: 1-based number, what it was, when it began (ms since INVITE), how it ended."""

    number: int
    step: str
    began_ms: float
    took_ms: float
    done: bool


class Span(_Part):
    """A stretch of the recording, ms from its first sample."""

    from_ms: int
    to_ms: int
    what: str = ""


class EndReport(_Part):
    """The end as SIP saw it; ``by`` is ``caller`` (us), ``callee`` or ``network``."""

    by: str
    code: int
    reason: str
    method: str = ""
    reason_header: str = ""

    @classmethod
    def of(cls, end: LegEnd, answered: bool) -> EndReport:
        by = "caller" if end.local else "callee"
        if not end.local and answered and end.method != "BYE":
            by = "network"
        return cls(
            by=by,
            code=end.code,
            reason=end.reason,
            method=end.method,
            reason_header=end.reason_header,
        )


class CallReport(_Part):
    """One scripted call. Moments are ms since the INVITE, None when it did not happen."""

    uri: str
    outcome: Outcome
    message: str
    """One sentence: what happened."""
    exit_code: int
    started_at: datetime
    codec: str | None = None
    ringing_ms: float | None = None
    answered_ms: float | None = None
    media_ms: float | None = None
    """The first sample of the recordings."""
    ended_ms: float | None = None
    steps: list[StepReport] = Field(default_factory=list)
    played: list[Span] = Field(default_factory=list)
    heard: list[Span] = Field(default_factory=list)
    """Where sound was heard, pauses shorter than 300 ms not counted as such."""
    spoken: list[Span] = Field(default_factory=list)
    """The loud part of what was played, without the silence around it."""
    interruptions: list[Span] = Field(default_factory=list)
    """The loud part of each sound of a step ``interrupt``."""
    held: list[Span] = Field(default_factory=list)
    """While we had the other side on hold."""
    refers: list[str] = Field(default_factory=list)
    """Targets of the REFERs that came."""
    sip_call_id: str = ""
    digits_sent: str = ""
    digits_received: str = ""
    recorded_ms: int = 0
    lost_ticks: int = 0
    """20 ms frames that are in no recording; always 0 but on a machine that stood still."""
    rtp_received: int = 0
    rtp_lost: int = 0
    rtp_sent: int = 0
    end: EndReport | None = None


class RunReport(_Part):
    """Several calls of one run (``--repeat``)."""

    calls: list[CallReport]
    completed: int
    exit_code: int
