# SPDX-License-Identifier: GPL-2.0-or-later
"""Escape to a human: a key or a phrase of the caller that the gateway itself acts on.

Destinations are tried in the route's order until one answers, without the model and without its
session.
"""

from __future__ import annotations

import json
from typing import ClassVar

from gateway.call.call_control import BY_CALLER, BY_GATEWAY, BY_OPERATOR
from gateway.call.conversation.barge_in import interrupt
from gateway.call.conversation.control import ConversationControl, Termination, tool_output
from gateway.call.inputs import Input, ServerEventReceived
from gateway.call.outputs import Output
from gateway.call.tools.definitions import TRANSFER_CALL, ToolCallError
from gateway.ending import EndReason
from gateway.realtime.events import CreateResponse, InputTranscribed
from gateway.text import contains_phrase, words_of

_NOBODY = (
    "The caller asked for a human, but nobody could be reached. They are back with you: say so, "
    "and offer to help."
)


class EscapeToHuman:
    """Transfers a caller to a human who asks for one by a DTMF digit or phrase
    (``[route.escape]``), without the model. Phrases of ``end_phrases`` end the call."""

    reacts_to: ClassVar[tuple[type, ...]] = (InputTranscribed,)
    deadline: float | None = None

    def __init__(self, control: ConversationControl) -> None:
        self._control = control
        self._left: list[str] = []
        """Destinations that are still to be tried."""

    def is_escape_key(self, digit: str) -> bool:
        """Return whether this DTMF digit asks for a human now: it is the route's ``key``,
        ``collect_digits`` does not want it, and an escape may begin. The digit is then passed
        neither to an approval that the caller is asked for, nor to the conversation."""
        control, plan = self._control, self._control.plan.escape
        collecting = control.collecting is not None and control.collecting.wants_digits
        return digit == plan.key and not collecting and self._may_begin

    @property
    def _may_begin(self) -> bool:
        """Whether the route has destinations, the call is not ending, and no transfer is under way
        or has joined the legs. Legs that are joined through an interpreter do not prevent it; a
        transfer that is to be interpreted does, until its legs are joined."""
        actions = self._control.call_actions
        busy = (actions.joined or actions.underway) and not actions.interpreted
        ending = self._control.termination is not None
        return bool(self._control.plan.escape.to) and not busy and not ending

    def on(self, input: Input, now: float) -> list[Output]:
        """Handle the transcript of a turn of the caller. If it has the words of one of
        ``end_phrases`` in a row (only a call that is just transcribed has any), terminate (reason
        ``AGENT_HANGUP``, no goodbye). Otherwise one of ``phrases`` begins the escape, if an escape
        may begin now."""
        assert isinstance(input, ServerEventReceived)
        assert isinstance(input.event, InputTranscribed)
        words = words_of(input.event.transcript)
        for phrase in self._control.plan.escape.end_phrases:
            if contains_phrase(words, phrase):
                detail = f"the caller said: {' '.join(phrase)}"
                self._control.terminate(Termination(EndReason.AGENT_HANGUP, detail))
                return [self._control.timeline.note(now, "end_phrase", "info")]
        phrases = self._control.plan.escape.phrases
        if not self._may_begin or not any(contains_phrase(words, one) for one in phrases):
            return []
        return self.begin("word", now)

    def tick(self, _now: float) -> list[Output]:
        """Return nothing: there is no deadline."""
        return []

    def begin(self, by: str, now: float) -> list[Output]:
        """Interrupt the agent, end the current action, and transfer the caller at once to the first
        destination to which a transfer can be queued.

        The tool call of an action is answered: with the status ``ended`` if the action has begun,
        with ``not done`` if it was still queued. Of an interpreted transfer, callee and interpreter
        are released. A hang-up that the model asked for is cancelled (:func:`interrupt`). Call this
        only where an escape may begin.

        Args:
            by: key or word, for the log.
        """
        control = self._control
        note = control.timeline.note(now, "escape", "info", by=by)
        outputs = [note, *interrupt(control, "escape", now)]
        call_id = control.call_actions.call_id
        outputs += control.call_actions.drop_for_escape(now)
        if call_id is not None and call_id not in (BY_GATEWAY, BY_OPERATOR, BY_CALLER):
            result = {"status": "ended", "reason": "the caller asked for a human"}
            outputs.append(tool_output(call_id, result))
        self._left = list(control.plan.escape.to)
        return outputs + self.try_next_destination(now)

    def try_next_destination(self, now: float) -> list[Output]:
        """Begin the transfer to the next destination; called by :meth:`begin`, and again after each
        transfer of the escape that failed. One to which no transfer can be queued is logged
        (``escape_failed``) and skipped.

        If none is left, log ``escape_failed``, tell the model that nobody could be reached, and
        request a response. Where no session is up, the call ends instead
        (``SessionEvents.escape_to_human``).
        """
        control = self._control
        skipped: list[Output] = []
        while self._left:
            wanted = json.dumps({"destination": self._left.pop(0)})
            try:
                control.call_actions.queue_tool_action(TRANSFER_CALL, BY_CALLER, wanted, now)
            except ToolCallError as error:
                note = control.timeline.note(now, "escape_failed", "warning", reason=str(error))
                skipped.append(note)
                continue
            begun = control.call_actions.begin_if_ready(now, queued=False, confirmed=True)
            return [*skipped, *begun]
        note = control.timeline.note(now, "escape_failed", "warning", reason="nobody answered")
        return [
            *skipped,
            note,
            *control.add_message(_NOBODY),
            *control.request_response(CreateResponse(), now),
        ]
