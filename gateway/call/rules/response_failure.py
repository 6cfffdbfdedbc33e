# SPDX-License-Identifier: GPL-2.0-or-later
"""Retry failed responses, then play a message or a sound so that the caller never gets silence.

A response has failed if it ends as failed, or as incomplete by the content filter or
``max_output_tokens`` (``response.done``, ``status_details``), is complete without any sound (text
only, empty, audio of no length, function calls without end), is refused (``error``), or never comes
at all.
"""

from __future__ import annotations

from typing import ClassVar

from gateway.call import inputs
from gateway.call.conversation.control import ConversationControl, Termination
from gateway.call.outputs import Output, PlaySound
from gateway.ending import EndReason
from gateway.realtime.errors import classify_error
from gateway.realtime.events import CreateResponse, InputCommitted, ResponseDone
from gateway.realtime.session_object import mended

GOES_ON = "Go on exactly where you were cut off, without repeating anything."
"""Instructions of the response that continues one that ended at ``max_output_tokens``."""


_FOLLOWED = {"function_call", "mcp_call", "mcp_approval_request"}
"""Types of items whose results, or approvals, are followed by a response."""

MAX_CONTINUED = 5
"""Incomplete responses in a row that are continued; bounds the cost of a model in a loop."""


class ResponseFallback:
    """Handles failed responses (``[route.response_failure]``): retries, then has the model say a
    message, and plays a sound where that fails, too; after ``max_failures`` ends the call."""

    reacts_to: ClassVar[tuple[type, ...]] = (
        inputs.PlayoutStarted,
        inputs.Tick,
        inputs.ServerErrorReceived,
        inputs.DigitPressed,
        InputCommitted,
        ResponseDone,
    )

    def __init__(self, control: ConversationControl) -> None:
        self._control = control
        self._plan = control.plan.content.response_failure
        self._failures = 0
        """Failures in a row, not counting those that were retried."""
        self._retries = 0
        """Retries since the last response that succeeded, or message."""
        self._continued = 0
        """Incomplete responses in a row that were continued."""
        self._tool_rounds = 0
        """Responses in a row that only had the server call MCP tools; a turn of the caller or a
        digit ends the row."""
        self._words: CreateResponse | None = None
        """Request for the message that was sent last; None once its response has ended."""
        self._in_loop: ResponseDone | None = None
        """The last of a loop of tool calls, counted as failed already; :meth:`on` does not get it
        before the call is live."""
        self._given_up = control.responses.given_up
        """Requests without an answer in this call that were handled
        (``ResponseQueue.given_up``)."""
        self.deadline: float | None = None
        """When the sound ends (s); None while none plays."""

    def on(self, input: inputs.Input, now: float) -> list[Output]:
        """Handle ``response.done``, an ``error`` that refuses a request, or a request that brought
        no response in time (nothing if another makes up for it: :meth:`_is_made_up_for`): return a
        retry, the message, or the sound. Playout that begins stops the sound. Nothing else is done
        while the legs are joined.

        A response that was interrupted is ignored, and so is one of a Live session's backend that
        was completed or cancelled. For others the first of these that holds decides: the response
        failed; the content filter stopped it; it is incomplete, and the model is asked to continue
        (with ``continue_incomplete``, at most ``MAX_CONTINUED`` in a row, not while the call is
        ending); it was the message and is completed, so that the sound plays if it had no audio; it
        ended without audio and was not cancelled. Any other response that completed resets all
        counts.
        """
        control = self._control
        if isinstance(input, inputs.PlayoutStarted):
            return self._stop_sound()
        if isinstance(input, inputs.Tick) and control.responses.given_up != self._given_up:
            self._given_up = control.responses.given_up
            asked = control.responses.unanswered
            if self._is_made_up_for(asked) or control.call_actions.joined:
                return []  # another one was asked for, or nobody is to be answered
            asked = asked if self._is_irreplaceable(asked) else None
            return self._on_response_failed("no response came", asked, now)
        if isinstance(input, inputs.ServerErrorReceived):
            return self._on_request_refused(input, now)
        event = input.event if isinstance(input, inputs.ServerEventReceived) else None
        if isinstance(input, inputs.DigitPressed) or isinstance(event, InputCommitted):
            self._tool_rounds = 0
        if not isinstance(event, ResponseDone):
            return []
        done = event
        if done is self._in_loop:
            return []
        if control.call_actions.joined or control.playback.was_interrupted(done.response_id):
            return []
        asked = control.responses.request_of(done.response_id)
        if done.backend and done.status in ("completed", "cancelled"):
            return []  # it has no sound of its own
        if done.status == "failed":
            return self._on_response_failed(done.error_code or "failed", asked, now)
        if done.status == "incomplete" and done.reason == "content_filter":
            return self._on_content_filtered(now)
        wanted = (
            self._plan.continue_incomplete
            and self._continued < MAX_CONTINUED
            and control.termination is None
        )
        if done.status == "incomplete" and wanted:
            self._continued += 1
            note = control.timeline.note(now, "response_continued", "info", reason=done.reason)
            return [note, *control.request_response(CreateResponse({"instructions": GOES_ON}), now)]
        if done.status == "completed" and asked is self._words is not None:
            self._words = None
            if not control.playback.had_audio(done.response_id):
                return self._play_sound("the words had no sound", now)
            return []
        if done.status != "cancelled" and not control.playback.had_audio(done.response_id):
            return self._on_no_audio(done, asked, now)
        if done.status == "completed":
            self._failures = self._retries = self._continued = self._tool_rounds = 0
        return []

    def tick(self, now: float) -> list[Output]:
        """Stop the sound once its time (``sound_duration``) is over."""
        if self.deadline is None or now < self.deadline:
            return []
        return self._stop_sound()

    def _on_request_refused(self, failed: inputs.ServerErrorReceived, now: float) -> list[Output]:
        """Handle an ``error`` that refuses a ``response.create`` as a failed response. Nothing
        where another makes up for it (:meth:`_is_made_up_for`; also the same request without the
        field that the error names), the legs are joined, the error ends the session, or the request
        was out-of-band."""
        asked, control = failed.command, self._control
        if (
            not isinstance(asked, CreateResponse)
            or self._is_made_up_for(asked)
            or (mended(asked, failed.error) and not control.responses.idle)
            or control.call_actions.joined
        ):
            return []
        verdict = classify_error(failed.error)
        if verdict.ends_session or (asked.response or {}).get("conversation") == "none":
            return []
        return self._on_response_failed(verdict.code, asked, now)

    def _is_made_up_for(self, asked: CreateResponse | None) -> bool:
        """Return whether a response that runs, is requested or waits makes up for the one that a
        failed request was for: any does, or only that of the same request
        (:meth:`_is_irreplaceable`)."""
        responses = self._control.responses
        if asked is not None and self._is_irreplaceable(asked):
            return responses.is_open(asked)
        return not responses.idle

    def _is_irreplaceable(self, asked: CreateResponse | None) -> bool:
        """Return whether no other response says what this request is for: it has settings of its
        own, such as words, and is not for the message."""
        return asked is not None and asked.response is not None and asked is not self._words

    def on_tool_loop(self, now: float, done: ResponseDone | None = None) -> list[Output]:
        """Handle a model that only calls functions, response after response, as a failed response:
        the retry requests words, with tools off (``tool_choice: none``).

        Args:
            done: the loop's last, if this is called before :meth:`on` gets it: :meth:`on` then
                ignores it, since it has been counted here.
        """
        self._in_loop = done
        why = "nothing but tool calls"
        return self._on_response_failed(why, CreateResponse({"tool_choice": "none"}), now)

    def on_silence(self, rule: str, asked: CreateResponse | None, now: float) -> list[Output]:
        """Handle a response that the caller has waited for and not heard: count a failure, play the
        sound, and request the response again. At ``max_failures`` in a row end the conversation
        instead, while the sound plays.

        Args:
            rule: name of the silence (``Silence.rule``), for log and record.
            asked: the request to repeat; None for one without settings of its own, which answers
                all that was said (a Live session gets none).
        """
        self._failures += 1
        todo = self._play_sound(rule, now)
        if self._failures >= self._plan.max_failures:
            return todo + self._give_up(rule, now)
        return todo + self._control.request_response(asked or CreateResponse(), now)

    def _on_no_audio(
        self, done: ResponseDone, asked: CreateResponse | None, now: float
    ) -> list[Output]:
        """Handle a response that ended without audio: as failed, unless another follows it.

        After function calls, MCP calls and MCP approval requests another response follows, so that
        nothing is done here; responses with MCP calls are counted (:meth:`_on_mcp_tools_called`).
        On a route with an application, one with items of other types than message and reasoning is
        left to the application. If another response runs, is requested or waits, the missing audio
        is only logged.

        Args:
            asked: our request that it answers; None for the server's own.
        """
        kinds = {item.get("type") for item in done.output}
        if kinds & _FOLLOWED:
            return self._on_mcp_tools_called(now) if "mcp_call" in kinds else []
        if kinds - {"message", "reasoning"} and self._control.plan.tools.application:
            return []  # it may know what follows
        content = content_of(done)
        note = self._control.timeline.note(
            now, "response_without_audio", "warning", content=content, response_id=done.response_id
        )
        if not self._control.responses.idle:
            return [note]  # another response was asked for already
        return [note, *self._on_response_failed(f"no sound: {content}", asked, now)]

    def _on_mcp_tools_called(self, now: float) -> list[Output]:
        """Count a response without audio that had the server call MCP tools. Handle each beyond
        ``max_tool_rounds`` in a row as a failed response (``max_failures`` in a row end the
        conversation), whose retry requests words with tools off."""
        self._tool_rounds += 1
        if self._tool_rounds <= self._plan.max_tool_rounds:
            return []
        rounds = self._plan.max_tool_rounds
        note = self._control.timeline.note(now, "tool_loop", "warning", rounds=rounds)
        return [note, *self.on_tool_loop(now)]

    def _on_content_filtered(self, now: float) -> list[Output]:
        """Have the model say ``content_filter_message`` in place of a response that the content
        filter stopped, without a retry. It counts as a failure; at ``max_failures`` in a row the
        conversation ends instead. While the call is ending nothing is said, and no sound plays."""
        self._failures += 1
        note = self._control.timeline.note(
            now, "response_filtered", "warning", count=self._failures
        )
        if self._failures >= self._plan.max_failures:
            return [note, *self._give_up("content_filter", now)]
        return [note, *self._say_message(self._plan.content_filter_message, now)]

    def _on_response_failed(
        self, why: str, asked: CreateResponse | None, now: float
    ) -> list[Output]:
        """Handle a failed response: retry it, up to ``retries`` times; then count a failure, and
        have the model say ``message``, or end the conversation at ``max_failures`` in a row.

        If the failed response was that message, count it, and play the sound instead of a retry or
        another message; at ``max_failures`` the conversation ends then, too.
        While the call is ending, only the sound is played, in place of the goodbye; nothing while a
        hang-up waits for the end of the model's goodbye.

        Args:
            why: for log and record.
            asked: our request, which a retry sends again as it is. None where the server began the
                response: a retry then requests one to all that was said and to tool results; of a
                Live session, has the backend go on.
        """
        control = self._control
        if control.termination is not None:
            return self._play_sound(why, now)  # the goodbye failed
        if control.hangup_after_playout.deadline is not None:
            return []  # the model wanted to end the call, and it does
        if asked is not None and asked is self._words:
            self._words = None
            self._failures += 1
            resort = self._play_sound(why, now)
            given_up = self._failures >= self._plan.max_failures
            return resort + (self._give_up(why, now) if given_up else [])
        if self._retries < self._plan.retries:
            self._retries += 1
            note = control.timeline.note(now, "response_retried", "info", why=why)
            # One that answers whatever was said is asked for anew: what it was is not known.
            return [
                note,
                *(
                    control.continue_with_results(now)
                    if asked is None
                    else control.request_response(asked, now)
                ),
            ]
        self._retries = 0
        self._failures += 1
        note = control.timeline.note(
            now, "response_failed", "warning", why=why, count=self._failures
        )
        if self._failures >= self._plan.max_failures:
            return [note, *self._give_up(why, now)]
        return [note, *self._say_message(self._plan.message, now)]

    def _say_message(self, words: str, now: float) -> list[Output]:
        """Request that the model says exactly ``words``, and remember the request: its response is
        not retried. Nothing while the conversation is being ended."""
        if self._control.termination is not None:
            return []
        self._words = self._control.exact_words(words)
        return self._control.request_response(self._words, now)

    def _give_up(self, why: str, now: float) -> list[Output]:
        """Terminate the conversation (reason ``RESPONSE_FAILURES``): transfer the caller to
        ``transfer_to`` if it is set; without it, or if the transfer fails, the model says
        ``goodbye`` and the call is hung up. Nothing if the conversation is being ended already.

        Args:
            why: what was wrong with the last response, for log and record.
        """
        control, plan = self._control, self._plan
        if control.termination is not None:
            return []
        detail = f"{self._failures} responses in a row failed, the last one: {why}"
        control.terminate(
            Termination(EndReason.RESPONSE_FAILURES, detail, plan.goodbye, plan.transfer_to)
        )
        return [control.timeline.note(now, "response_failures_exceeded", "error", why=why)]

    def _play_sound(self, why: str, now: float) -> list[Output]:
        """Return ``PlaySound`` of the route's sound, which needs no model, and its log line; it
        stops after ``sound_duration`` seconds, or when model audio begins. While the call is ending
        it stands for the goodbye: the hang-up waits for its end. Nothing on a route without a
        sound, or while an action is queued or under way."""
        if not self._plan.sound or self._control.call_actions.busy:
            return []
        note = self._control.timeline.note(
            now, "response_failure_tone", "warning", why=why, sound=self._plan.sound
        )
        self.deadline = now + self._plan.sound_duration
        if self._control.termination is not None:
            self._control.hangup_after_playout.wait_for_sound(self.deadline)
        return [note, PlaySound(self._plan.sound)]

    def _stop_sound(self) -> list[Output]:
        """Return the ``PlaySound`` that ends the sound; nothing where none plays, or a hold or
        transfer that has begun has replaced it by a sound of its own."""
        if self.deadline is None:
            return []
        self.deadline = None
        return [] if self._control.call_actions.audio_suspended else [PlaySound("")]


def content_of(done: ResponseDone) -> str:
    """Return what a response without audio had, for the log: ``audio of zero length``, ``text`` or
    ``empty`` (no parts of content)."""
    kinds = {part.get("type") for item in done.output for part in item.get("content") or () if part}
    if kinds & {"output_audio", "audio"}:
        return "audio of zero length"
    return "text" if kinds else "empty"
