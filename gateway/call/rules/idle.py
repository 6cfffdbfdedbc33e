# SPDX-License-Identifier: GPL-2.0-or-later
"""User-idle timeout: prompt a caller who says nothing, then say goodbye and hang up."""

from __future__ import annotations

from collections.abc import Callable
from typing import ClassVar

from gateway.call import inputs
from gateway.call.conversation.control import ConversationControl, Termination
from gateway.call.ending import EndReason
from gateway.call.outputs import Output
from gateway.call.plan import UserIdlePlan
from gateway.realtime.events import SpeechStarted, SpeechStopped


class UserIdleTimeout:
    """Measures the time since either side was last heard. Methods take the time (s).

    Args:
        working: whether a function runs for the model, which the caller waits for.
    """

    reacts_to: ClassVar[tuple[type, ...]] = (
        inputs.Confirmed,
        inputs.PlayoutStarted,
        inputs.PlayoutDrained,
        inputs.DigitPressed,
        inputs.HoldChanged,
        inputs.ToolDone,
        inputs.BLegEnded,
        SpeechStarted,
        SpeechStopped,
    )

    def __init__(self, talk: ConversationControl, working: Callable[[], bool]) -> None:
        self._talk = talk
        self._working = working
        self._since: float | None = None
        self._speaking = False
        self._held = False
        self._asked = 0

    @property
    def _plan(self) -> UserIdlePlan:
        return self._talk.plan.idle

    def on(self, input: inputs.Input, now: float) -> list[Output]:
        """Start the wait anew, since somebody was heard or something ended."""
        if self._plan.timeout <= 0:
            return []
        match input:
            case inputs.ServerEventReceived(event=SpeechStarted()):
                self._speaking, self._asked = True, 0
            case inputs.ServerEventReceived(event=SpeechStopped()):
                self._speaking = False
            case inputs.DigitPressed():
                self._asked = 0
            case inputs.HoldChanged(held=held):
                self._held = held
        if self._since is not None or isinstance(input, inputs.Confirmed):
            self._since = now
        return []

    def tick(self, now: float) -> list[Output]:
        """Prompt the caller, or end the call, when the timeout is over."""
        if self.deadline is None or now < self.deadline:
            return []
        talk = self._talk
        self._since = now
        busy = self._speaking or self._held or talk.speaking or not talk.gate.idle
        if (
            busy
            or talk.call_actions.busy
            or self._working()
            or talk.hangup_after_playout.deadline is not None
        ):
            return []
        if self._asked < self._plan.max_prompts:
            self._asked += 1
            note = talk.timeline.note(now, "idle_prompted", "info", count=self._asked)
            return [note, *talk.say(self._plan.prompt, now)]
        silent = f"nothing said after being asked {self._asked} times"
        talk.terminate(
            Termination(EndReason.IDLE, silent, self._plan.goodbye, self._plan.transfer_to)
        )
        return [talk.timeline.note(now, "idle", "info", asked=self._asked)]

    @property
    def deadline(self) -> float | None:
        """When :meth:`tick` is due next (s)."""
        if self._since is None or self._plan.timeout <= 0 or self._talk.termination is not None:
            return None
        return max(self._since, self._talk.playback.cut_at) + self._plan.timeout
