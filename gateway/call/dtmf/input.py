# SPDX-License-Identifier: GPL-2.0-or-later
"""DTMF input: collect the caller's digits and put them into the conversation as a message."""

from __future__ import annotations

from gateway.call.conversation.control import ConversationControl, message
from gateway.call.dtmf.collector import Collected, DigitCollector
from gateway.call.outputs import Output, Send, SendDtmf
from gateway.call.playout.barge_in import Interruptions
from gateway.call.record import DigitRun
from gateway.realtime.commands import CreateItem, CreateResponse


class DtmfInput:
    """Handles the caller's digits. Every method takes the time (s) and returns outputs."""

    def __init__(self, talk: ConversationControl, interruptions: Interruptions) -> None:
        self._talk = talk
        self._interruptions = interruptions
        self._plan = talk.plan.dtmf
        self._collector = DigitCollector(
            self._plan.inter_digit_timeout, self._plan.finish_on_key, self._plan.max_digits
        )
        self._signalled = False

    def press(self, digit: str, now: float, *, in_band: bool) -> list[Output]:
        """Take a digit: for the B-leg, for who collects digits, or for the conversation."""
        talk = self._talk
        if in_band and self._signalled:
            return []  # the tone of a key that was signalled, too
        self._signalled = self._signalled or not in_band
        taker = talk.dtmf_consumer
        private = (
            taker is talk.collecting and taker is not None and talk.plan.collect_digits.private
        )
        outputs: list[Output] = [talk.timeline.note(now, "dtmf", digit="*" if private else digit)]
        if talk.call_actions.joined:
            return [*outputs, SendDtmf(digit, b_leg=True)]
        if talk.termination is not None or talk.call_actions.away:
            return outputs
        if taker is not None:
            outputs += self._interruptions.key(now)
            return outputs + taker.key(digit, now)
        if not self._plan.enabled:
            return outputs
        outputs += self._collected(self._collector.expire(now), now)
        outputs += self._interruptions.key(now)
        return outputs + self._collected(self._collector.press(digit, now), now)

    def tick(self, now: float) -> list[Output]:
        """Send the run when the pause after its last digit is over."""
        return self._collected(self._collector.expire(now), now)

    def abandon(self, now: float) -> None:
        """Record digits that were not sent before the session ended."""
        self._record(self._collector.abandon(), now)

    @property
    def deadline(self) -> float | None:
        """When :meth:`tick` is due next (s)."""
        return self._collector.deadline

    def _collected(self, collected: Collected | None, now: float) -> list[Output]:
        if collected is None:
            return []
        self._record(collected, now)
        text = self._talk.plan.dtmf.text(collected.digits)
        ended_by = collected.ended_by.value
        note = self._talk.timeline.note(
            now, "dtmf_collected", "info", digits=collected.digits, ended_by=ended_by
        )
        item = Send(CreateItem(message("user", text)))
        return [note, item, *self._talk.ask(CreateResponse(), now)]

    def _record(self, collected: Collected | None, now: float) -> None:
        if collected is not None:
            timeline = self._talk.timeline
            at_ms = round(timeline.ms(now), 1)
            timeline.record.private.pressed(collected.digits)
            run = DigitRun(at_ms, collected.digits, collected.ended_by.value)
            timeline.record.digits.append(run)
