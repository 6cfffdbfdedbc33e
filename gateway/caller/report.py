"""How a scripted call went, and the exit status that says it."""

from __future__ import annotations

from datetime import datetime
from enum import Enum
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field, PlainSerializer


class Outcome(Enum):
    """What became of a call; the number is the exit status of ``gateway call``."""

    COMPLETED = 0
    REFUSED = 3
    NO_ANSWER = 4
    STEP_MISSED = 5
    LOST = 6
    FAILED = 7
    INTERRUPTED = 130


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


class CallReport(_Part):
    """One scripted call. Moments are ms since the INVITE, None when it did not happen."""

    uri: str
    outcome: Annotated[Outcome, PlainSerializer(lambda value: value.name.lower())]
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
