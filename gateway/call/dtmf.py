# SPDX-License-Identifier: GPL-2.0-or-later
"""DTMF digits of the caller: grouped into runs for the conversation, or collected for a tool.

A run is what the caller enters before terminator, full length or a pause; it becomes a message in
the conversation. While the tool ``collect_digits`` waits for digits, they become its result
instead.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from gateway.call.call_record import DigitRun, append_capped
from gateway.call.conversation.control import ConversationControl, message
from gateway.call.outputs import Conceal, Output, Send, SendDtmf, StoreDigits
from gateway.call.plan import RESPONSE_MS
from gateway.call.tools.definitions import collect_wanted
from gateway.realtime.events import CreateItem, CreateResponse


class EndedBy(StrEnum):
    """Why a run of DTMF digits is complete: what ended it."""

    TERMINATOR = "terminator"
    TIMEOUT = "timeout"
    FULL = "full"
    CALL_END = "call_end"


@dataclass(frozen=True, slots=True)
class Collected:
    """A complete run of DTMF digits, without its terminator unless that was pressed alone."""

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
        """Add a digit pressed at ``now`` (s), and restart the inter-digit pause; return the run
        that terminator or number of digits complete, or None. A terminator alone is a run of that
        key.

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
        """Return the run whose inter-digit pause is over at ``now`` (s), and begin another; None
        where none is over."""
        if self.deadline is None or now < self.deadline:
            return None
        return self._take_run(EndedBy.TIMEOUT)

    def abandon(self) -> Collected | None:
        """Return the open run, which the end of call or session has cut short (``call_end``); None
        without one."""
        return self._take_run(EndedBy.CALL_END) if self._digits else None

    def _take_run(self, ended_by: EndedBy, alone: str = "") -> Collected:
        """Return the digits so far, or ``alone`` where there are none, as complete run, and begin
        another."""
        collected = Collected(self._digits or alone, ended_by)
        self._digits, self.deadline = "", None
        return collected


class DtmfInput:
    """Handles the DTMF digits of the caller (RFC 4733, SIP INFO, or detected in the audio).

    Args:
        interrupt: interrupts the agent's speech where the route wants that of a digit; takes the
            time (s).
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
        """Log a digit (``dtmf``), and pass it on: to a joined B-leg (``SendDtmf``); else to whoever
        waits for digits (approval, ``collect_digits``, consent to a recording); else, if
        ``[route.dtmf]`` is enabled, to the run that becomes a message. The last two interrupt the
        agent, where the route wants that, but for a digit that is dropped.

        Where no B-leg is joined, only logged while the conversation is being ended or an action
        suspends the audio (hold, transfer). Private and sensitive digits of ``collect_digits`` are
        logged as ``*``. Notes in ``ConversationControl.digit_taken`` whether the digit may still be
        an answer about a recording.

        Args:
            in_band: detected in the audio; ignored, and not logged, once the caller's side has sent
                a digit as RTP event or in INFO.
        """
        control = self._control
        repeated, consumer = in_band and self._signalled, control.dtmf_consumer
        control.digit_taken = repeated or consumer not in (None, control.recording)
        if repeated:
            return []  # the tone of a key that was signalled, too
        self._signalled = self._signalled or not in_band
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
            if consumer.drops(digit, now):
                return outputs
            outputs += self._interrupt(now)
            return outputs + consumer.on_digit(digit, now)
        if not self._plan.enabled:
            return outputs
        outputs += self._send_run(self._collector.expire(now), now)
        outputs += self._interrupt(now)
        return outputs + self._send_run(self._collector.press(digit, now), now)

    def tick(self, now: float) -> list[Output]:
        """If a run is open and its inter-digit pause is over, record it and return a log line, the
        user message to the model and the request for a response; else nothing."""
        return self._send_run(self._collector.expire(now), now)

    def abandon(self, now: float) -> None:
        """Record the digits of the open run (``call_end``), which the model does not get, as call
        or session ends or the legs are joined."""
        self._record_run(self._collector.abandon(), now)

    @property
    def deadline(self) -> float | None:
        """When the inter-digit pause is over (s); None while no run is open."""
        return self._collector.deadline

    def _send_run(self, collected: Collected | None, now: float) -> list[Output]:
        """Record and log a complete run, and return the user message with the route's text for it,
        and a request for a response; nothing for None. In the text, ``RESPONSE_MS`` becomes the
        last wait for a response (ms)."""
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
        """Append a run to the record, and have its digits masked where the route masks all DTMF;
        nothing for None."""
        if collected is not None:
            timeline = self._control.timeline
            at_ms = round(timeline.ms(now), 1)
            timeline.record.private.pressed(collected.digits)
            run = DigitRun(at_ms, collected.digits, collected.ended_by.value)
            append_capped(timeline.record.actions.digits, run)


LONGEST_SECONDS = 120.0
"""The longest wait (s) for a first digit while the model talks, from the tool call."""


TAIL_SECONDS = 2.0
"""From the last key of a sensitive entry until the caller is heard again: its tone may go on, and a
caller who was quicker than the gateway presses some more."""

_LATE = {"status": "failed", "reason": "the service that takes the digits did not answer"}


class DigitCollection:
    """Collects digits for the tool ``collect_digits``; gets each digit while :attr:`wants_digits`.

    Sensitive digits go to the route's service (``StoreDigits``), whose answer the model gets. From
    the tool call until ``TAIL_SECONDS`` after the collection has ended, or after the last key that
    came later, session and recording get silence in place of the caller (``Conceal``).

    Args:
        collected: answers the tool call; takes the result, and the time (s).
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
        """Number of digits that ends the collection."""
        self._terminator = ""
        self._seconds = 0.0
        """Longest wait for each digit (s)."""
        self._until = 0.0
        """Until when a first digit is waited for while the model talks (s)."""
        self._kind = ""
        """What sensitive digits are, such as ``card_number``."""
        self._due: float | None = None
        """When the next digit is late (s); None while none is waited for."""
        self._quiet_until: float | None = None
        """Until when further keys are of the entry that is over (s)."""
        self._stored_by: float | None = None
        """Until when the service's answer is waited for (s); None: it is not."""
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
        """Start a collection, with the arguments of the tool call (JSON text); the first digit is
        waited for from now. Returns ``Conceal(True)`` for sensitive digits, unless the caller is
        concealed already. Raises ToolCallError for arguments that the route does not allow."""
        plan = self._control.plan.tools.collect_digits
        self._most, self._terminator, self._seconds, self._kind = collect_wanted(arguments, plan)
        self._digits, self._quiet_until = "", None
        self._due = now + self._seconds
        self._until = now + LONGEST_SECONDS
        if not plan.sensitive or self._control.concealed:
            return []
        self._control.concealed = True
        return [Conceal(True)]

    def drops(self, _digit: str, _now: float) -> bool:
        """Return False: all digits are collected, or belong to the entry that is over."""
        return False

    def on_digit(self, digit: str, now: float) -> list[Output]:
        """Take a digit: the terminator, or the last of the number wanted, ends the collection;
        another restarts the wait. After a sensitive entry, discard it and keep the caller concealed
        for ``TAIL_SECONDS`` more."""
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
        """Act on deadlines, in this order: the service has not answered (the tool gets ``failed``);
        the caller may be heard again after a sensitive entry (``Conceal(False)``); no further digit
        came (``timeout``).

        While the model talks and no digit has come, the wait for the first begins anew, up to
        ``LONGEST_SECONDS`` after :meth:`begin`.
        """
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
        """Log the answer of the service that took the digits, and answer the tool call with it;
        nothing where no answer is waited for (it came too late).

        Args:
            result: with ``status``, and ``reason`` where it failed.
        """
        if self._stored_by is None:
            return []
        self._stored_by = None
        status, why = str(result.get("status", "")), str(result.get("reason", ""))
        note = self._control.timeline.note(
            now, "digits_stored", "info", kind=self._kind, status=status, reason=why
        )
        return [note, *self._told(result, now)]

    def _finish(self, ended_by: str, now: float) -> list[Output]:
        """End the collection and log it (``dtmf_collected``), private and sensitive digits as
        ``*``. Answer the tool call with digits that are not sensitive and ``ended_by``; private
        ones are masked in record and transcript from now on.

        Sensitive digits are not told: return ``StoreDigits``, and wait ``store_timeout`` and 1 s
        for its answer (:meth:`stored`); without any, answer "nothing entered" at once. Further keys
        are dropped, and the caller stays concealed, for ``TAIL_SECONDS``.

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
