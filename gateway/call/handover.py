# SPDX-License-Identifier: GPL-2.0-or-later
"""Hand-over: replace a session by a standby session before the server ends it (``expires_at``).

The standby session is opened ``handover_before_expiry`` s before, and takes over in a pause, seeded
with the conversation.
"""

from __future__ import annotations

from collections.abc import Callable

from gateway.call.call_record import CallTimeline
from gateway.call.conversation.control import ConversationControl
from gateway.call.conversation.transcript import Transcript
from gateway.call.failover import seeded
from gateway.call.outputs import OpenSession, Output, PromoteStandby
from gateway.realtime.events import CreateResponse

FORCED_SECONDS = 3.0
"""Seconds before the end of a session at which a pause is no longer waited for."""

INTERVAL_SECONDS = 30.0
"""Seconds between two attempts to open a standby session, failed ones too. A server's
``expires_at`` decides when, never how often."""

MAX_PER_CALL = 20
"""Standby sessions opened in one call; five hours of sessions of 15 minutes. After
them the session is left to its end, and replaced when it is lost."""

SHORTEST_SECONDS = 2 * FORCED_SECONDS
"""A session that expires sooner (s) is not handed over: there is no time for it."""


class Handover:
    """Opens standby sessions and promotes them. Methods take the time (s) and return outputs.

    Args:
        quiet: returns whether neither side speaks and no action is under way.
        detach: lets go of the active session; its queued audio is played to the end.
    """

    def __init__(
        self,
        control: ConversationControl,
        transcript: Transcript,
        timeline: CallTimeline,
        quiet: Callable[[], bool],
        detach: Callable[[float], list[Output]],
    ) -> None:
        self._control = control
        self._transcript = transcript
        self._timeline = timeline
        self._quiet = quiet
        self._detach = detach
        self._lead = control.plan.server.handover_before_expiry
        self._open_at: float | None = None
        self._latest = 0.0
        self._opening = False
        self._standby: tuple[str, float | None] | None = None
        self._opened = 0
        self._opened_at = -INTERVAL_SECONDS

    def session_up(self, seconds_left: float | None, now: float) -> None:
        """Note that this session is the active one from now on, and when it expires."""
        self._opening, self._standby = False, None
        self._open_at = None
        if seconds_left is None or self._lead <= 0 or seconds_left < SHORTEST_SECONDS:
            return
        self._latest = now + seconds_left - FORCED_SECONDS
        wanted = max(now, min(now + seconds_left - self._lead, self._latest))
        self._open_at = self._not_too_often(wanted)

    def _not_too_often(self, wanted: float) -> float | None:
        """Return when to open a standby session, at or after ``wanted`` (s); None: too late or too
        often."""
        at = max(wanted, self._opened_at + INTERVAL_SECONDS)
        return at if at <= self._latest and self._opened <= MAX_PER_CALL else None

    def session_over(self) -> None:
        """Note that the active session is lost, or no longer needed."""
        self._open_at, self._opening, self._standby = None, False, None

    def standby_ready(self, session_id: str, seconds_left: float | None, now: float) -> None:
        """Note that the standby session is ready."""
        if not self._opening:
            return
        self._opening = False
        left = None if seconds_left is None else now + seconds_left
        self._standby = (session_id, left)

    def standby_failed(self, detail: str, now: float) -> list[Output]:
        """Note that the standby session failed; try again while there is time."""
        self._opening, self._standby = False, None
        note = self._timeline.note(now, "handover_failed", "warning", detail=detail)
        self._open_at = self._not_too_often(now)
        return [note]

    def tick(self, now: float) -> list[Output]:
        """Open a standby session when it is time."""
        if self._open_at is None or self._opening or self._standby is not None:
            return []
        if now < self._open_at:
            return []
        if self._opened >= MAX_PER_CALL:
            self._opened, self._open_at = MAX_PER_CALL + 1, None
            return [self._timeline.note(now, "handover_limit", "warning", sessions=MAX_PER_CALL)]
        self._opening = True
        self._opened, self._opened_at = self._opened + 1, now
        return [self._timeline.note(now, "handover_begins", "info"), OpenSession(standby=True)]

    @property
    def ready(self) -> bool:
        """Return whether a standby session is ready."""
        return self._standby is not None

    def settle(self, now: float, *, at_once: bool = False) -> list[Output]:
        """Promote the standby session in a pause, or when it is late."""
        if self._standby is None or not (at_once or self._quiet() or now >= self._latest):
            return []
        (session_id, ends), self._standby = self._standby, None
        rest = self._detach(now)
        self.session_up(None if ends is None else ends - now, now)
        self._timeline.record.session.session_id = session_id
        self._timeline.record.session.handovers += 1
        note = self._timeline.note(now, "handed_over", "info", session_id=session_id)
        outputs = [*rest, PromoteStandby(), note, *seeded(self._transcript)]
        return outputs + (self._control.ask(CreateResponse(), now) if self._transcript.owed else [])

    @property
    def deadline(self) -> float | None:
        """When :meth:`tick` or :meth:`settle` is due next (s)."""
        if self._standby is not None:
            return self._latest
        return None if self._opening else self._open_at
