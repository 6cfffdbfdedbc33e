# SPDX-License-Identifier: GPL-2.0-or-later
"""Barge-in: whether speech or a DTMF digit of the caller stops the agent, and how it is stopped.

Where the server decides (its own ``interrupt_response``), playout is stopped at once. Where the
gateway does (:attr:`gateway.call.plan.InterruptionPlan.by_gateway`), the server only reports
speech; the gateway stops playout, cancels the response, and requests one to what was said (sections
"turn detection" and "interruptions" of the protocol's guides). A session that reports no turns
(Live) interrupts itself.
"""

from __future__ import annotations

from dataclasses import dataclass

from gateway.call.conversation.control import ConversationControl, tool_output
from gateway.call.conversation.playout_tracker import PAST
from gateway.call.outputs import Output, Pause, Send
from gateway.measures import BoundedDict
from gateway.realtime.events import (
    AgentTranscriptDelta,
    CancelResponse,
    CreateResponse,
    DeleteItem,
    InputCommitted,
    InputTranscribed,
    SpeechStarted,
    SpeechStopped,
)
from gateway.text import words_of

MAX_TURNS = 8
"""Turns of the caller that wait for their decision or commit; of more the oldest is forgotten, and
not answered."""

_PROTECTED_TEXT = 4000
"""Characters of the latest response that patterns are searched in; a minute of speech has 1,000."""


STOP = "Stop speaking now. What you were saying was cut off; do not go on with it."
"""System message for a model whose answer cannot be cancelled."""


def interrupt(
    control: ConversationControl, trigger: str, now: float, *, cancel: bool = True
) -> list[Output]:
    """Stop playout at once (not by an output), drop the audio still to come of all responses that
    run or are queued, and tell the server what was heard (:meth:`Playback.interrupt`). Whether an
    interruption is allowed (:attr:`Interruptions.protected`) is not asked here. Playout that is
    paused for an undecided turn stays paused.

    First, a hang-up that the model asked for, and its queued action that has not begun (transfer,
    hold, DTMF), are cancelled, and their tool calls answered with "not ended" and "not done",
    unless they were answered before. Hang-ups and actions that others asked for go on.

    Returns, in this order, with log lines: these tool outputs; a truncation or deletion for each
    part that was not heard to its end; ``response.cancel`` for each running response that was not
    interrupted before or, to a session without that command (Live), one system message to stop
    speaking. Nothing of the last with ``cancel`` False.

    Args:
        trigger: for log and record: speech, digit, guard, machine and others.
        cancel: send ``response.cancel``; False where the server cancels by itself.
    """
    outputs = cancel_hangup(control, "the goodbye was interrupted", now)
    undone = control.call_actions.cancel_queued()
    if undone is not None:
        result = {"status": "not done", "reason": "you were interrupted"}
        outputs.append(tool_output(undone, result))
    running = control.responses.running
    to_cancel = [one for one in running if cancel and not control.playback.was_interrupted(one)]
    outputs += control.playback.interrupt(trigger, running, now)
    return outputs + _cancel(control, to_cancel)


def cancel_hangup(control: ConversationControl, why: str, now: float) -> list[Output]:
    """Cancel a hang-up that the model asked for: return a log line and, unless its tool call was
    answered before, its result "not ended" with ``why``. Nothing without one."""
    unanswered = control.hangup_after_playout.cancel()
    if unanswered is None:
        return []
    note = control.timeline.note(now, "hangup_cancelled", "info")
    result = {"status": "not ended", "reason": why}
    return [note, *([tool_output(unanswered, result)] if unanswered else [])]


def drop_response(
    control: ConversationControl, response_id: str, trigger: str, now: float
) -> list[Output]:
    """Keep one response from the caller. Where audio of it is queued, call :func:`interrupt`,
    which stops all other responses, too.

    Otherwise drop its audio still to come, and cancel it if it runs; playout goes on. Nothing if
    none of it is queued and it was interrupted or dropped before.

    Args:
        trigger: of the interruption, for log and record.
    """
    if control.playback.is_queued(response_id):
        return interrupt(control, trigger, now)
    if control.playback.was_interrupted(response_id):
        return []
    control.playback.drop_response(response_id)
    return _cancel(control, [one for one in control.responses.running if one == response_id])


def _cancel(control: ConversationControl, responses: list[str]) -> list[Output]:
    """Return ``response.cancel`` for each response; for a session without that command (Live), one
    system message to stop speaking, and nothing where ``responses`` is empty."""
    if control.capabilities.cancel:
        return [Send(CancelResponse(one)) for one in responses]
    return control.add_message(STOP) if responses else []


@dataclass(slots=True)
class _Turn:
    """One stretch of the caller's speech, from ``speech_started`` until a response to it is
    requested or its item is deleted."""

    item_id: str
    start_ms: int | None
    undecided: bool
    """It is not known yet whether it interrupts: playout is paused for it."""
    deadline: float | None = None
    committed: bool = False
    over: float | None = None
    """When it was over, by ``speech_stopped`` or, without that, when it was committed (s)."""
    dropped: bool = False
    """It was a false interruption, and is not to be answered."""


class Interruptions:
    """Decides whether the caller's speech or DTMF digit interrupts the agent (barge-in).

    Methods that take the time (s) return the outputs of the decision. Turns are kept only where the
    gateway decides (``InterruptionPlan.by_gateway``), the latest ``MAX_TURNS``; it then also
    requests the responses to them, whether they interrupt or not, but for false interruptions.
    """

    def __init__(self, control: ConversationControl) -> None:
        self._control = control
        self._plan = control.plan.interruptions
        self._turns: BoundedDict[str, _Turn] = BoundedDict(MAX_TURNS)
        self._answered: BoundedDict[str, None] = BoundedDict(MAX_TURNS)
        """Ids of the latest turns that were answered, or deleted."""
        self._paused = False
        self._protected: dict[str, CreateResponse | None] = {}
        """By protected response: the request (greeting, disclosure, announcement of a recording)
        that it answers; None where its words protect it."""
        self._words: tuple[str, str] = ("", "")
        self.greeting: CreateResponse | None = None
        """The request for the first answer of the call."""
        self.disclosure: CreateResponse | None = None
        """The request for the words of the disclosure, which may be the greeting."""

    # ---- the agent

    def on_request_replaced(self, asked: CreateResponse, by: CreateResponse | None) -> None:
        """Keep the protection of greeting and disclosure for the request ``by`` that is sent in
        place of the refused ``asked``; nothing where ``by`` is None."""
        if by is not None and asked is self.greeting:
            self.greeting = by
        if by is not None and asked is self.disclosure:
            self.disclosure = by

    def on_response_created(self, response_id: str, asked: CreateResponse | None) -> None:
        """Handle ``response.created``: protect the response from interruption where it answers the
        request for a disclosure that is not interruptible, for the announcement of a recording, or
        for the greeting with ``uninterruptible_greeting``.

        Earlier protected responses of which no audio is queued any more are forgotten.

        Args:
            asked: our request that it answers; None for the server's own.
        """
        # Of what was protected before, only that is of interest which is still to be heard.
        queued = self._control.playback.is_queued
        self._protected = {one: by for one, by in self._protected.items() if queued(one)}
        if asked is None:
            return
        greets = asked is self.greeting and self._plan.uninterruptible_greeting
        plan = self._control.plan.disclosure
        discloses = asked is self.disclosure and plan is not None and not plan.interruptible
        recording = self._control.plan.recording
        announces = recording.consent == "announce" and asked.words == recording.prompt
        if greets or discloses or announces:
            self._protected[response_id] = asked

    def on_agent_words(self, event: AgentTranscriptDelta) -> None:
        """Handle a transcript delta: protect its response from interruption once the words so far
        (the last ``_PROTECTED_TEXT`` characters) match one of ``uninterruptible_patterns``; it
        stays protected to its end. Only words of the latest response are remembered."""
        if not self._plan.uninterruptible_patterns or event.response_id in self._protected:
            return
        of, text = self._words
        text = (text if of == event.response_id else "") + event.delta
        self._words = (event.response_id, text[-_PROTECTED_TEXT:])
        if any(pattern.search(text) for pattern in self._plan.uninterruptible_patterns):
            self._protected[event.response_id] = None

    @property
    def protected(self) -> bool:
        """Whether speech and digits must not interrupt now: a protected response runs, or its audio
        is queued or playing. Other triggers of :func:`interrupt` do not ask for it."""
        control = self._control
        return any(
            one in control.responses.running
            or (control.speaking and control.playback.is_queued(one))
            for one in self._protected
        )

    def on_collision(self, asked: CreateResponse | None) -> None:
        """End the protection of a response that was taken for the answer to the request ``asked``,
        which has collided with it (``conversation_already_has_active_response``). Nothing where
        ``asked``, named by the server or by guess, is None."""
        if asked is not None:
            self._protected = {one: by for one, by in self._protected.items() if by is not asked}

    # ---- the caller

    def on_digit(self, now: float) -> list[Output]:
        """Interrupt the agent because of a DTMF digit, and resume playout that was paused. The turn
        for which it was paused stays undecided, so that it may still interrupt (:attr:`deadline`).

        Nothing unless ``dtmf.interrupt`` is set, the session can truncate, and no protected
        response runs or is heard.
        """
        control = self._control
        if not (control.plan.dtmf.interrupt and control.capabilities.truncation) or self.protected:
            return []
        return [*interrupt(control, "digit", now), *self._resume(now)]

    def on_speech_started(self, event: SpeechStarted, now: float) -> list[Output]:
        """Handle ``input_audio_buffer.speech_started``: log it, and stop the agent, pause playout,
        or let it go on.

        Nothing more for a session without turn events (Live). Where the server decides: stop
        playout if it interrupts responses (it cancels by itself), but not while something protected
        is heard that has come to its end, so that nothing of it was cancelled. Where the gateway
        does, a turn begins: with mode ``disabled`` or while something protected is said the agent
        goes on (logged); with ``adaptive``, while the agent speaks or a response runs, playout is
        paused until it is known whether this interrupts: speech that goes on interrupts after
        ``force_interrupt_ms``, and speech that ends before is decided by :meth:`on_speech_stopped`;
        else interrupt at once.
        """
        control = self._control
        note = control.timeline.note
        if not control.capabilities.turn_events:
            # The model hears the caller and stops by itself, or goes on for a "mhm".
            return [note(now, "caller_speech_started", audio_ms=event.audio_start_ms)]
        if not self._plan.by_gateway:
            started = note(now, "caller_speech_started", audio_ms=event.audio_start_ms)
            if not control.plan.server.interrupts:
                return [started]
            if self.protected and not self._protected.keys() & set(control.responses.running):
                # The server has nothing left of it to cancel.
                return [started, note(now, "interruption_suppressed", protected=True)]
            return [started, *interrupt(control, "speech", now, cancel=False)]
        agent = control.speaking or control.responses.active is not None
        let_be = self._plan.mode == "disabled" or self.protected
        pause = self._plan.mode == "adaptive" and agent and not let_be
        turn = self._turns[event.item_id] = _Turn(event.item_id, event.audio_start_ms, pause)
        outputs: list[Output] = [note(now, "caller_speech_started", audio_ms=event.audio_start_ms)]
        if pause:
            turn.deadline = now + self._plan.force_interrupt_ms / 1000
            outputs.append(Pause(True))
            self._paused = True
            control.playback.on_paused("paused", True, now)
            control.response_times.paused_at = control.response_times.paused_at or now
        elif not let_be:
            outputs += interrupt(control, "speech", now)
        if agent and let_be:
            outputs.append(note(now, "interruption_suppressed", protected=self.protected))
        return outputs

    def on_speech_stopped(self, event: SpeechStopped, now: float) -> list[Output]:
        """Handle ``speech_stopped`` of an undecided turn. Speech shorter than ``min_speech_ms``
        (without the server's padding) is a false interruption: resume playout, unless another turn
        is undecided. Else, and where the server tells no times, interrupt at once if the caller is
        not transcribed, or wait up to ``transcript_timeout`` s for the transcript, with playout
        paused. Nothing for other turns; an unknown item id is taken for that of the latest turn not
        committed."""
        turn = self._match_turn(event.item_id)
        if turn is None or not turn.undecided:
            return []
        turn.over = now
        start_ms, end_ms = turn.start_ms, event.audio_end_ms
        if start_ms is not None and end_ms is not None and end_ms >= start_ms:
            lasted = end_ms - start_ms - self._plan.padding_ms
            if lasted < self._plan.min_speech_ms:
                return self._false_interruption(turn, now, f"{max(lasted, 0)} ms")
        if not self._plan.transcribed:
            return self._interrupt(turn, now)
        turn.deadline = now + self._plan.transcript_timeout
        return []

    def on_transcribed(self, event: InputTranscribed, now: float) -> list[Output]:
        """Handle the transcript of an undecided turn. It is a false interruption, and playout is
        resumed unless another turn is undecided, where the transcript has no words, is one of the
        ``backchannel_phrases`` as a whole, or has only words that are such phrases each ("mhm
        yes"); else interrupt. Nothing for other turns, or an unknown item id. A transcript without
        an item id is taken for that of the turn without one, else of the latest not committed."""
        turn = self._turns.get(event.item_id) or (None if event.item_id else self._match_turn(""))
        if turn is None or not turn.undecided:
            return []
        words = words_of(event.transcript)
        if " ".join(words) in self._plan.backchannel_phrases or all(
            word in self._plan.backchannel_phrases for word in words
        ):
            return self._false_interruption(turn, now, event.transcript.strip() or "no words")
        return self._interrupt(turn, now)

    def on_committed(self, event: InputCommitted, now: float) -> list[Output]:
        """Handle ``input_audio_buffer.committed`` of a turn that the gateway decides about: request
        a response to it, or delete its item where it was a false interruption.

        While the turn is undecided, that follows with the decision. An unknown item id is taken for
        that of the latest turn not committed; nothing without one (as where the server decides).
        """
        turn = self._match_turn(event.item_id)
        if turn is None:
            return []
        turn.committed = True
        turn.over = now if turn.over is None else turn.over
        return [] if turn.undecided else self._request_answer(turn, now)

    def tick(self, now: float) -> list[Output]:
        """Interrupt for each undecided turn whose deadline has come: its speech has lasted
        ``force_interrupt_ms``, or its transcript has not come within ``transcript_timeout`` s of
        ``speech_stopped``."""
        late = [t for t in self._turns.values() if t.deadline is not None and now >= t.deadline]
        return [output for turn in late for output in self._interrupt(turn, now)]

    @property
    def deadline(self) -> float | None:
        """When an undecided turn becomes an interruption (s); None without one. Playout is paused
        for it, unless a digit has interrupted meanwhile."""
        due = (turn.deadline for turn in self._turns.values() if turn.deadline is not None)
        return min(due, default=None)

    def on_session_over(self, now: float) -> list[Output]:
        """Forget all turns, as :meth:`forget_turns` does: the session is over, and another may use
        its ids. Protected responses stay protected while their queued audio is played."""
        self._protected = {PAST + one: asked for one, asked in self._protected.items()}
        return self.forget_turns(now)

    def forget_turns(self, now: float) -> list[Output]:
        """Forget all turns, decided or not, and the words of the latest response; return
        ``Pause(False)`` if playout was paused."""
        self._turns.clear()
        self._answered.clear()
        self._words = ("", "")
        return self._resume(now)

    # ---- what follows

    def _match_turn(self, item_id: str) -> _Turn | None:
        """Return the turn with this item id; else the latest turn that is not committed, which
        takes that id if there is one. None without such a turn, and for the id of a turn that was
        answered before.

        Servers leave the id out, give another one than at ``speech_started``, or repeat an event.
        """
        turn = self._turns.get(item_id)
        if turn is not None or item_id in self._answered:
            return turn
        waiting = [one for one in self._turns.values() if not one.committed]
        if not waiting:
            return None
        turn = waiting[-1]
        if item_id:
            del self._turns[turn.item_id]
            turn.item_id = item_id
            self._turns[item_id] = turn
        return turn

    def _false_interruption(self, turn: _Turn, now: float, heard: str) -> list[Output]:
        """Decide that a turn does not interrupt: log it, and resume playout unless another turn is
        undecided. No response is requested, and the caller waits for none; the item of a committed
        turn is deleted now, of another when it is committed (not where it has no id).

        Args:
            heard: length or words of the turn, for the log.
        """
        turn.undecided, turn.deadline, turn.dropped = False, None, True
        self._control.response_times.on_false_interruption(turn.over)
        outputs: list[Output] = []
        if not any(one.undecided for one in self._turns.values()):
            outputs += self._resume(now)
        outputs.append(self._control.timeline.note(now, "false_interruption", "info", heard=heard))
        return outputs + (self._request_answer(turn, now) if turn.committed else [])

    def _interrupt(self, turn: _Turn, now: float) -> list[Output]:
        """Interrupt the agent for a turn, and resume the paused, now empty, playout.

        This turn and all undecided ones count as interruptions: request a response to each that is
        committed already (``input_audio_buffer.committed``); the others get theirs when they are.
        """
        outputs = interrupt(self._control, "speech", now)
        outputs += self._resume(now)
        for one in tuple(self._turns.values()):
            if one is turn or one.undecided:
                one.undecided, one.deadline = False, None
                outputs += self._request_answer(one, now) if one.committed else []
        return outputs

    def _request_answer(self, turn: _Turn, now: float) -> list[Output]:
        """Forget a committed turn and request a response to it; for a false interruption delete its
        item instead, if it has an id."""
        self._turns.pop(turn.item_id, None)
        if turn.item_id:
            self._answered[turn.item_id] = None
        if turn.dropped:
            return [Send(DeleteItem(turn.item_id))] if turn.item_id else []
        return self._control.request_response(CreateResponse(), now)

    def _resume(self, now: float) -> list[Output]:
        """Return ``Pause(False)`` if playout was paused, else nothing; ``paused_at`` of the
        response times becomes None."""
        was, self._paused = self._paused, False
        self._control.response_times.paused_at = None
        if was:
            self._control.playback.on_paused("paused", False, now)
        return [Pause(False)] if was else []
