# SPDX-License-Identifier: GPL-2.0-or-later
"""Post-call analysis: out-of-band questions about a call, after the caller's leg has ended."""

from __future__ import annotations

from collections.abc import Mapping

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


LATE_WORDS_SECONDS = 4.5
"""How long the last words of a call are waited for, where transcripts come after the sound."""


class PostCallAnalysis:
    """Waits for the answers about one call, and for its last words, while its session goes on.

    Every method takes the time (s).
    """

    def __init__(
        self,
        control: ConversationControl,
        transcript: Transcript,
        why: EndReason,
        prompts: Mapping[str, str],
        now: float,
    ) -> None:
        self.why = why
        self.leg_over = False
        self.ended_ms = control.timeline.ms(now)
        """When the call was over for the caller."""
        self._out_of_band = control.out_of_band
        self._transcript = transcript
        self._prompts = prompts
        self._timeout = control.plan.content.post_call.timeout
        self._until = now + self._timeout if prompts else 0.0
        late = control.capabilities.late_words and transcript.words_missing
        self._words_until = now + LATE_WORDS_SECONDS if late else 0.0
        self._gone = False

    @property
    def deadline(self) -> float:
        """When the wait is over at the latest (s)."""
        answers = self._until if self._out_of_band.busy else 0.0
        return min((at for at in (answers, self._words_until) if at), default=0.0)

    def ask(self, now: float) -> list[Output]:
        """Ask all questions at once."""
        return [
            output
            for name, words in self._prompts.items()
            for output in self._out_of_band.ask(
                f"after-{name}", name, words, now, seconds=self._timeout
            )
        ]

    def on(self, input: inputs.Input, now: float) -> list[Output]:
        """Take an input; what is about neither these questions nor the words is ignored."""
        match input:
            case inputs.ServerEventReceived(event=event) if self._out_of_band.takes(event):
                return self._out_of_band.on_event(event, now)
            case inputs.ServerEventReceived() if now < self._words_until:
                return self._transcript.on(input, now)
            case inputs.ServerErrorReceived(error=error, command=command):
                return self._out_of_band.refused(command, error, now)
            case inputs.LegEnded():
                self.leg_over = True
            case inputs.SessionClosed() | inputs.ShutDown():
                self._gone = True
            case inputs.Tick():
                self._words_until = self._words_until if now < self._words_until else 0.0
                self._until = self._until if now < self._until else 0.0
                return self._out_of_band.tick(now)
        return []

    def is_complete(self, now: float) -> bool:
        """Return whether all answers and words came, or none is to come."""
        words = now < self._words_until and self._transcript.words_missing
        answers = now < self._until and self._out_of_band.busy
        return self._gone or not (words or answers)


def post_call_of(
    control: ConversationControl, transcript: Transcript, why: EndReason, now: float
) -> PostCallAnalysis | None:
    """Return the analysis of a call that ends for ``why``; None without one."""
    if why in NOT_AFTER:
        return None
    late = control.capabilities.late_words and transcript.words_missing
    prompts = control.plan.content.post_call.prompts if control.capabilities.out_of_band else {}
    if not (late or prompts):
        return None
    return PostCallAnalysis(control, transcript, why, prompts, now)
