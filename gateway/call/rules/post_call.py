# SPDX-License-Identifier: GPL-2.0-or-later
"""Post-call analysis: out-of-band questions about a call, after the caller's leg has ended."""

from __future__ import annotations

from gateway.call import inputs
from gateway.call.conversation.control import ConversationControl
from gateway.call.conversation.transcript import Transcript
from gateway.call.outputs import Output
from gateway.ending import EndReason

NOT_AFTER = frozenset(
    {
        EndReason.INTERNAL_ERROR,
        EndReason.SHUTDOWN,
        EndReason.BUDGET,
        EndReason.SESSION_CLOSED,
        EndReason.SESSION_ERROR,
        EndReason.SESSION_LOST,
        EndReason.SESSION_REFUSED,
        EndReason.SESSION_UNREACHABLE,
        EndReason.RESPONSE_FAILURES,
    }
)
"""End reasons without analysis: there is no session, no budget, or no time."""


class PostCallAnalysis:
    """Waits for the answers about one call. Every method takes the time (s)."""

    def __init__(self, control: ConversationControl, why: EndReason, now: float) -> None:
        self.why = why
        self.leg_over = False
        self.ended_ms = control.timeline.ms(now)
        """When the call was over for the caller."""
        self._out_of_band = control.out_of_band
        self._plan = control.plan.content.post_call
        self._until = now + self._plan.timeout
        self._gone = False

    @property
    def deadline(self) -> float:
        """When the wait is over at the latest (s)."""
        return self._until

    def ask(self, now: float) -> list[Output]:
        """Ask all questions at once."""
        return [
            output
            for name, words in self._plan.prompts.items()
            for output in self._out_of_band.ask(
                f"after-{name}", name, words, now, seconds=self._plan.timeout
            )
        ]

    def on(self, input: inputs.Input, now: float) -> list[Output]:
        """Take an input; what is not about these questions is ignored."""
        match input:
            case inputs.ServerEventReceived(event=event) if self._out_of_band.takes(event):
                return self._out_of_band.on_event(event, now)
            case inputs.ServerErrorReceived(error=error, command=command):
                return self._out_of_band.refused(command, error, now)
            case inputs.LegEnded():
                self.leg_over = True
            case inputs.SessionClosed() | inputs.ShutDown():
                self._gone = True
            case inputs.Tick():
                return self._out_of_band.tick(now)
        return []

    def is_complete(self, now: float) -> bool:
        """Return whether all answers came, or none is to come."""
        return self._gone or not self._out_of_band.busy or now >= self._until


LATE_WORDS_SECONDS = 4.5
"""How long the last words of a call are waited for, where transcripts come after the sound."""


class LateWords(PostCallAnalysis):
    """Waits for the last words of a call, while its session goes on for so long."""

    def __init__(
        self, control: ConversationControl, transcript: Transcript, why: EndReason, now: float
    ) -> None:
        super().__init__(control, why, now)
        self._transcript = transcript
        self._until = now + LATE_WORDS_SECONDS

    def ask(self, now: float) -> list[Output]:
        """Ask nothing: the words come by themselves."""
        return []

    def on(self, input: inputs.Input, now: float) -> list[Output]:
        """Take words."""
        if isinstance(input, inputs.ServerEventReceived):
            return self._transcript.on(input, now)
        return super().on(input, now)

    def is_complete(self, now: float) -> bool:
        """Return whether all words have come, or none is to come."""
        return self._gone or now >= self._until or not self._transcript.words_missing


def post_call_of(
    control: ConversationControl, transcript: Transcript, why: EndReason, now: float
) -> PostCallAnalysis | None:
    """Return the analysis of a call that ends for ``why``; None without one."""
    if control.capabilities.late_words and why not in NOT_AFTER and transcript.words_missing:
        return LateWords(control, transcript, why, now)
    possible = control.capabilities.out_of_band and control.plan.content.post_call.prompts
    if not possible or why in NOT_AFTER:
        return None
    return PostCallAnalysis(control, why, now)
