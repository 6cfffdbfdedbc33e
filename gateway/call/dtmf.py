# SPDX-License-Identifier: GPL-2.0-or-later
"""DTMF digits of the caller (RFC 4733), grouped into runs by terminator, length or pause.

A run becomes a message in the conversation, or the result of the tool ``collect_digits``.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from gateway.call.conversation.control import ConversationControl, message
from gateway.call.outputs import Conceal, Output, Send, SendDtmf, StoreDigits
from gateway.call.plan import RESPONSE_MS
from gateway.call.record_entries import DigitRun, append_capped
from gateway.call.tools.definitions import collect_wanted
from gateway.realtime.events import CreateItem, CreateResponse


class EndedBy(StrEnum):
    """Why a run of DTMF digits is complete."""

    TERMINATOR = "terminator"
    TIMEOUT = "timeout"
    FULL = "full"
    CALL_END = "call_end"


@dataclass(frozen=True, slots=True)
class Collected:
    """A complete run of DTMF digits, without its terminator."""

    digits: str
    ended_by: EndedBy


class DigitCollector:
    """Groups DTMF digits into runs, which end by the terminator, the number of digits, or a pause.

    Args:
        inter_digit_seconds: the pause that completes a run.
        terminator: the key that completes a run and is no part of it; empty for none. Pressed
            alone, it is the run.
        max_digits: number of digits that complete a run.
    """

    def __init__(self, inter_digit_seconds: float, terminator: str, max_digits: int) -> None:
        self._pause = inter_digit_seconds
        self._terminator = terminator
        self._max = max_digits
        self._digits = ""
        self.deadline: float | None = None
        """When the inter-digit pause ends (s); None while no run is open."""

    def press(self, digit: str, now: float) -> Collected | None:
        """Add a digit pressed at ``now`` (s); return the run that it completes, or None.

        Call :meth:`expire` first: the pause of the run before may be over.
        """
        if digit == self._terminator:
            return self._take_run(EndedBy.TERMINATOR, alone=digit)
        self._digits += digit
        if len(self._digits) >= self._max:
            return self._take_run(EndedBy.FULL)
        self.deadline = now + self._pause
        return None

    def expire(self, now: float) -> Collected | None:
        """Return the run whose pause is over at ``now`` (s), or None."""
        if self.deadline is None or now < self.deadline:
            return None
        return self._take_run(EndedBy.TIMEOUT)

    def abandon(self) -> Collected | None:
        """Return the run that the end of the call has cut short, or None."""
        return self._take_run(EndedBy.CALL_END) if self._digits else None

    def _take_run(self, ended_by: EndedBy, alone: str = "") -> Collected:
        """Return the digits so far, or ``alone`` where there are none, and begin another run."""
        collected = Collected(self._digits or alone, ended_by)
        self._digits, self.deadline = "", None
        return collected


class DtmfInput:
    """Handles the DTMF digits of the caller (RFC 4733, INFO, or detected in the audio).

    Args:
        interrupt: stops the agent's speech, where the route wants that of a digit.
    """

    def __init__(
        self, control: ConversationControl, interrupt: Callable[[float], list[Output]]
    ) -> None:
        self._control = control
        self._interrupt = interrupt
        self._plan = control.plan.dtmf
        self._collector = DigitCollector(
            self._plan.inter_digit_timeout, self._plan.finish_on_key, self._plan.max_digits
        )
        self._signalled = False

    def on_digit(self, digit: str, now: float, *, in_band: bool) -> list[Output]:
        """Handle a digit: return ``SendDtmf`` to a joined B-leg, hand it to whoever waits for
        digits, or add it to the run that becomes a message.

        Args:
            in_band: detected in the audio; ignored once the caller's side has sent digits as
                events.
        """
        control = self._control
        if in_band and self._signalled:
            return []  # the tone of a key that was signalled, too
        self._signalled = self._signalled or not in_band
        consumer = control.dtmf_consumer
        private = (
            consumer is control.collecting
            and consumer is not None
            and (control.plan.tools.collect_digits.private or control.concealed)
        )
        outputs: list[Output] = [
            control.timeline.note(now, "dtmf", digit="*" if private else digit)
        ]
        if control.call_actions.joined:
            return [*outputs, SendDtmf(digit, b_leg=True)]
        if control.termination is not None or control.call_actions.audio_suspended:
            return outputs
        if consumer is not None:
            outputs += self._interrupt(now)
            return outputs + consumer.on_digit(digit, now)
        if not self._plan.enabled:
            return outputs
        outputs += self._send_run(self._collector.expire(now), now)
        outputs += self._interrupt(now)
        return outputs + self._send_run(self._collector.press(digit, now), now)

    def tick(self, now: float) -> list[Output]:
        """Send the run whose pause is over."""
        return self._send_run(self._collector.expire(now), now)

    def abandon(self, now: float) -> None:
        """Record digits that were not sent before the session ended."""
        self._record_run(self._collector.abandon(), now)

    @property
    def deadline(self) -> float | None:
        """When the inter-digit pause is over (s); None while no run is open."""
        return self._collector.deadline

    def _send_run(self, collected: Collected | None, now: float) -> list[Output]:
        """Return the user message with a complete run, and a request for a response; nothing for
        None."""
        if collected is None:
            return []
        self._record_run(collected, now)
        times = self._control.timeline.record.response_times
        waited = f"{times[-1].ms:.0f}" if times else "unknown"
        text = self._control.plan.dtmf.text(collected.digits).replace(RESPONSE_MS, waited)
        ended_by = collected.ended_by.value
        note = self._control.timeline.note(
            now, "dtmf_collected", "info", digits=collected.digits, ended_by=ended_by
        )
        item = Send(CreateItem(message("user", text)))
        return [note, item, *self._control.request_response(CreateResponse(), now)]

    def _record_run(self, collected: Collected | None, now: float) -> None:
        """Append a run to the record; nothing for None."""
        if collected is not None:
            timeline = self._control.timeline
            at_ms = round(timeline.ms(now), 1)
            timeline.record.private.pressed(collected.digits)
            run = DigitRun(at_ms, collected.digits, collected.ended_by.value)
            append_capped(timeline.record.actions.digits, run)


LONGEST_SECONDS = 120.0
"""The longest wait (s) for a first digit while the model talks."""


TAIL_SECONDS = 2.0
"""From the last key of a sensitive entry until the caller is heard again: its tone may go on, and a
caller who was quicker than the gateway presses some more."""

_LATE = {"status": "failed", "reason": "the service that takes the digits did not answer"}


class DigitCollection:
    """Collects digits for the tool ``collect_digits``, while :attr:`wants_digits`.

    Sensitive digits go to the route's service, whose answer the model gets. Until ``TAIL_SECONDS``
    after the last of them, session and recording get silence in place of the caller.

    Args:
        collected: answers the tool call with the result.
    """

    def __init__(
        self,
        control: ConversationControl,
        collected: Callable[[Mapping[str, Any], float], list[Output]],
    ) -> None:
        self._control = control
        self._told = collected
        self._digits = ""
        self._most = 0
        self._terminator = ""
        self._seconds = 0.0
        self._until = 0.0
        self._kind = ""
        self._due: float | None = None
        """When the next digit is late (s); None while none is waited for."""
        self._quiet_until: float | None = None
        """Until when further keys are of the entry that is over (s)."""
        self._stored_by: float | None = None
        control.collecting = self

    @property
    def wants_digits(self) -> bool:
        """Whether digits are being collected, or discarded after a sensitive entry."""
        return self._due is not None or self._quiet_until is not None

    @property
    def deadline(self) -> float | None:
        """When :meth:`tick` is due (s); None while nothing is waited for."""
        due = (self._due, self._quiet_until, self._stored_by)
        return min((at for at in due if at is not None), default=None)

    def begin(self, arguments: str, now: float) -> list[Output]:
        """Start a collection, with the arguments of the tool call (JSON text). Returns
        ``Conceal(True)`` for sensitive digits. Raises ToolCallError."""
        plan = self._control.plan.tools.collect_digits
        self._most, self._terminator, self._seconds, self._kind = collect_wanted(arguments, plan)
        self._digits, self._quiet_until = "", None
        self._due = now + self._seconds
        self._until = now + LONGEST_SECONDS
        if not plan.sensitive or self._control.concealed:
            return []
        self._control.concealed = True
        return [Conceal(True)]

    def on_digit(self, digit: str, now: float) -> list[Output]:
        """Take a digit; the terminator or the last one ends the collection."""
        if self._due is None:
            self._quiet_until = now + TAIL_SECONDS
            return []
        if digit == self._terminator:
            return self._finish("terminator", now)
        self._digits += digit
        if len(self._digits) >= self._most:
            return self._finish("full", now)
        self._due = now + self._seconds
        return []

    def tick(self, now: float) -> list[Output]:
        """Act on deadlines: no further digit came, the service has not answered, or the caller may
        be heard again after a sensitive entry (``Conceal(False)``)."""
        outputs: list[Output] = []
        if self._stored_by is not None and now >= self._stored_by:
            outputs += self.stored(_LATE, now)
        if self._quiet_until is not None and now >= self._quiet_until:
            self._quiet_until = None
            self._control.concealed = False
            outputs.append(Conceal(False))
        if self._due is None or now < self._due:
            return outputs
        if self._control.speaking and not self._digits and now < self._until:
            self._due = now + self._seconds  # the caller is still being told what to do
            return outputs
        return [*outputs, *self._finish("timeout", now)]

    def stored(self, result: Mapping[str, Any], now: float) -> list[Output]:
        """Answer the tool call with the result of the service that took the digits."""
        if self._stored_by is None:
            return []
        self._stored_by = None
        status, why = str(result.get("status", "")), str(result.get("reason", ""))
        note = self._control.timeline.note(
            now, "digits_stored", "info", kind=self._kind, status=status, reason=why
        )
        return [note, *self._told(result, now)]

    def _finish(self, ended_by: str, now: float) -> list[Output]:
        """End the collection: answer the tool call with the digits, or return ``StoreDigits`` of
        sensitive ones.

        Args:
            ended_by: terminator, full or timeout.
        """
        self._due = None
        plan, digits = self._control.plan.tools.collect_digits, self._digits
        self._digits = ""
        hidden = plan.private or plan.sensitive
        if plan.private and not plan.sensitive:
            self._control.timeline.record.private.add(digits)
        note = self._control.timeline.note(
            now,
            "dtmf_collected",
            "info",
            digits="*" * len(digits) if hidden else digits,
            ended_by=ended_by,
        )
        if not plan.sensitive:
            return [note, *self._told({"digits": digits, "ended_by": ended_by}, now)]
        self._quiet_until = now + TAIL_SECONDS
        if not digits:
            return [note, *self._told({"status": "nothing entered", "ended_by": ended_by}, now)]
        self._stored_by = now + plan.store_timeout + 1.0
        return [note, StoreDigits(self._kind, digits)]
