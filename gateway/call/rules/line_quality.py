# SPDX-License-Identifier: GPL-2.0-or-later
"""Tell the model that the telephone line is bad, with a hint how to speak, and when it is good
again.

The model gets a system message and no request for a response: it keeps to it in what it says next.
"""

from __future__ import annotations

from typing import ClassVar

from gateway.call import inputs
from gateway.call.call_record import BadLine, append_capped
from gateway.call.conversation.control import ConversationControl
from gateway.call.outputs import Output
from gateway.call.plan import LinePlan
from gateway.realtime.events import SpeechStarted, SpeechStopped

FROM_CALLER, TO_CALLER = "from_caller", "to_caller"
"""Directions of RTP."""

_TOLD = {
    FROM_CALLER: "The telephone line is bad: you hear the caller with gaps or too softly ({what}). "
    "Ask again what you are not sure of.",
    TO_CALLER: "The telephone line is bad: the caller hears you with gaps ({what}).",
}


class LineWatch:
    """Tells the model of a bad line, by loss, jitter, MOS of each direction and the level of the
    caller's speech against the route's limits (``[route.line]``)."""

    reacts_to: ClassVar[tuple[type, ...]] = (
        inputs.LineQuality,
        inputs.CallerLevel,
        inputs.SessionClosed,
        SpeechStarted,
        SpeechStopped,
    )
    deadline: float | None = None

    def __init__(self, control: ConversationControl) -> None:
        self._control = control
        self._speaking = False
        self._beyond: dict[str, float] = {}
        """Since when each direction, or "level", is beyond a limit (s)."""
        self._within: float | None = None
        """Since when everything is within the limits again (s); None while the line is not bad, or
        not yet good."""
        self._bad: BadLine | None = None
        """The bad line in the record; None while the line is good."""
        self._hints = 0
        self._soft_seconds = 0
        """Seconds in a row of the caller's speech below ``min_level``."""

    @property
    def _plan(self) -> LinePlan:
        """Settings of ``[route.line]``."""
        return self._control.plan.line

    def on(self, input: inputs.Input, now: float) -> list[Output]:
        """Compare a measurement of one direction's RTP with the limits, or the level of a second in
        which the caller speaks: from ``speech_started`` to ``speech_stopped``, or the end of the
        session."""
        match input:
            case inputs.LineQuality():
                return self._judge_side(input.side, _exceeded(input, self._plan), now)
            case inputs.CallerLevel(dbfs=dbfs) if self._speaking:
                return self._judge_level(dbfs, now)
            case inputs.ServerEventReceived(event=SpeechStarted()):
                self._speaking = True
            case inputs.ServerEventReceived(event=SpeechStopped()) | inputs.SessionClosed():
                self._speaking = False
        return []

    def on_session_over(self) -> None:
        """Measure no level until the next session hears the caller speak: the one that was to tell
        the end of their speech is lost, closed on hold or handed over."""
        self._speaking = False

    def tick(self, _now: float) -> list[Output]:
        """Return nothing: measurements come once a second."""
        return []

    def _judge_side(self, side: str, what: str, now: float) -> list[Output]:
        """Where a direction is beyond a limit, start the wait for recovery anew, and report a bad
        line after ``after`` seconds, to the model too (:meth:`_bad_line`; nothing if it is bad
        already, on whichever side). Where it is within, look whether the line has recovered.

        Args:
            side: from_caller or to_caller.
            what: the limit that is exceeded, for the record; "" for none.
        """
        if what:
            self._within = None
            since = self._beyond.setdefault(side, now)
            return self._bad_line(side, what, now) if now - since >= self._plan.after else []
        self._beyond.pop(side, None)
        return self._check_recovery(now)

    def _judge_level(self, dbfs: float, now: float) -> list[Output]:
        """Report a bad line once ``after`` seconds of the caller's speech in a row were softer than
        ``min_level`` (dBFS); pauses between them do not matter. A louder second starts the count
        anew. A soft second also holds up the recovery of a line that is bad for any reason, until
        a louder one comes. Called only for seconds of speech."""
        if dbfs >= self._plan.min_level:
            self._soft_seconds = 0
            self._beyond.pop("level", None)
            return self._check_recovery(now)
        self._soft_seconds += 1
        self._within = None
        self._beyond.setdefault("level", now)
        if self._soft_seconds < self._plan.after:
            return []
        return self._bad_line(FROM_CALLER, f"the caller's speech has {dbfs:.0f} dBFS", now)

    def _bad_line(self, side: str, what: str, now: float) -> list[Output]:
        """Record and log that the line is bad. The model is told, with ``hint``, only the first
        ``max_hints`` times in a call, and not while the call is ending. Nothing while the line is
        known as bad already.

        Args:
            side: from_caller or to_caller.
            what: the limit that is exceeded, in words for record and model.
        """
        if self._bad is not None:
            return []
        control, plan = self._control, self._plan
        told = self._hints < plan.max_hints and control.termination is None
        self._bad = BadLine(round(control.timeline.ms(now), 1), side, what, told)
        append_capped(control.timeline.record.content.bad_line, self._bad)
        note = control.timeline.note(now, "line_bad", "warning", side=side, what=what, told=told)
        if not told:
            return [note]
        self._hints += 1
        return [note, *control.add_message(f"{_TOLD[side].format(what=what)} {plan.hint}".strip())]

    def _check_recovery(self, now: float) -> list[Output]:
        """Once a bad line has been within all limits for ``recovered_after`` seconds, record and
        log that. The model is told if it was told that the line is bad, ``recovered`` is not empty,
        and the call is not ending."""
        bad, plan = self._bad, self._plan
        if bad is None or self._beyond:
            return []
        if self._within is None:
            self._within = now
        if now - self._within < plan.recovered_after:
            return []
        self._bad = self._within = None
        control = self._control
        bad.recovered_ms = round(control.timeline.ms(now), 1)
        told = bad.told and bool(plan.recovered) and control.termination is None
        note = control.timeline.note(now, "line_recovered", "info", told=told)
        return [note, *(control.add_message(plan.recovered) if told else [])]


def _exceeded(quality: inputs.LineQuality, plan: LinePlan) -> str:
    """Return the first limit that the measurement exceeds, of loss (%), jitter (ms) and MOS, in
    words for the record; "" for none. A limit of 0 is not checked."""
    if plan.max_loss and quality.loss_percent > plan.max_loss:
        return f"{quality.loss_percent:.0f} % lost"
    if plan.max_jitter and quality.jitter_ms > plan.max_jitter:
        return f"jitter of {quality.jitter_ms:.0f} ms"
    if plan.min_mos and quality.mos < plan.min_mos:
        return f"a MOS of {quality.mos:.1f}"
    return ""
