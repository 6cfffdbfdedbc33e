# SPDX-License-Identifier: GPL-2.0-or-later
"""Retry failed responses, then play a message or a sound so that the caller never gets silence.

A response may end as failed, or as incomplete by the content filter or ``max_output_tokens``
(``response.done``, ``status_details``), complete without any sound (text only, empty, audio of no
length, function calls without end), be refused (``error``), or never come at all.
"""

from __future__ import annotations

from typing import ClassVar

from gateway.call import inputs
from gateway.call.conversation.control import ConversationControl, Termination
from gateway.call.outputs import Output, PlaySound
from gateway.ending import EndReason
from gateway.realtime.errors import classify_error
from gateway.realtime.events import CreateResponse, ResponseDone

GOES_ON = "Go on exactly where you were cut off, without repeating anything."


_FOLLOWED = {"function_call", "mcp_call", "mcp_approval_request"}
"""Types of items whose results, or approvals, are followed by a response."""

MAX_CONTINUED = 5
"""Incomplete responses in a row that are continued; bounds the cost of a model in a loop."""


class ResponseFallback:
    """Handles failed responses (``[route.response_failure]``): retries, then says a message or
    plays a sound, so that the caller never gets silence."""

    reacts_to: ClassVar[tuple[type, ...]] = (
        inputs.PlayoutStarted,
        inputs.Tick,
        inputs.ServerErrorReceived,
        ResponseDone,
    )

    def __init__(self, control: ConversationControl) -> None:
        self._control = control
        self._plan = control.plan.content.response_failure
        self._failures = 0
        self._retries = 0
        self._continued = 0
        self._tool_rounds = 0
        """Responses in a row that only had the server call tools."""
        self._words: CreateResponse | None = None
        """The fixed phrase that was asked for last."""
        self._in_loop = False
        """The response that ends is one of a loop of tool calls, and counted so already."""
        self._given_up = control.responses.given_up
        self._sound_until: float | None = None

    def on(self, input: inputs.Input, now: float) -> list[Output]:
        """Handle ``response.done``, an ``error`` that refuses a request, or a request that was
        given up: return a retry, the message, or the sound."""
        control = self._control
        if isinstance(input, inputs.PlayoutStarted):
            return self._stop_sound()
        if isinstance(input, inputs.Tick) and control.responses.given_up != self._given_up:
            self._given_up = control.responses.given_up
            if not control.responses.idle:
                return []  # another one was asked for
            return self._response_failed("no response came", None, now)
        if isinstance(input, inputs.ServerErrorReceived):
            return self._request_refused(input, now)
        if not isinstance(input, inputs.ServerEventReceived) or not isinstance(
            input.event, ResponseDone
        ):
            return []
        done = input.event
        in_loop, self._in_loop = self._in_loop, False
        if in_loop:
            return []
        if control.call_actions.joined or control.playback.was_interrupted(done.response_id):
            return []
        asked = control.responses.request_of(done.response_id)
        if done.backend and done.status in ("completed", "cancelled"):
            return []  # it has no sound of its own
        if done.status == "failed":
            return self._response_failed(done.error_code or "failed", asked, now)
        if done.status == "incomplete" and done.reason == "content_filter":
            return self._content_filtered(now)
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
            return self._no_audio(done, asked, now)
        if done.status == "completed":
            self._failures = self._retries = self._continued = self._tool_rounds = 0
        return []

    def tick(self, now: float) -> list[Output]:
        """Stop the sound when its time is over."""
        if self._sound_until is None or now < self._sound_until:
            return []
        return self._stop_sound()

    @property
    def deadline(self) -> float | None:
        """When the sound ends (s); None while none plays."""
        return self._sound_until

    def _request_refused(self, failed: inputs.ServerErrorReceived, now: float) -> list[Output]:
        """Handle a refused ``response.create`` in whose place no other was sent, as a failed
        response."""
        asked, control = failed.command, self._control
        if (
            not isinstance(asked, CreateResponse)
            or not control.responses.idle
            or control.call_actions.joined
        ):
            return []
        verdict = classify_error(failed.error)
        if verdict.ends_session or (asked.response or {}).get("conversation") == "none":
            return []
        return self._response_failed(verdict.code, asked, now)

    def on_tool_loop(self, now: float, *, counted: bool = True) -> list[Output]:
        """Count a model that only calls functions as a failed response; request words without
        tools.

        Args:
            counted: the loop was found before the rules see its ``response.done``, which then
                does not count again.
        """
        self._in_loop = counted
        why = "nothing but tool calls"
        return self._response_failed(why, CreateResponse({"tool_choice": "none"}), now)

    def on_silence(self, rule: str, asked: CreateResponse | None, now: float) -> list[Output]:
        """Handle a response that was due and not heard: play the sound, and request it again.

        Args:
            rule: name of the silence, for the log.
            asked: the request to repeat; None for a general one.
        """
        self._failures += 1
        todo = self._play_sound(rule, now)
        if self._failures >= self._plan.max_failures:
            return todo + self._give_up(rule, now)
        return todo + self._control.request_response(asked or CreateResponse(), now)

    def _no_audio(
        self, done: ResponseDone, asked: CreateResponse | None, now: float
    ) -> list[Output]:
        """Handle a response that ended without audio: after tool calls another follows, else it has
        failed."""
        kinds = {item.get("type") for item in done.output}
        if kinds & _FOLLOWED:
            return self._server_tools_called(now) if "mcp_call" in kinds else []
        if kinds - {"message", "reasoning"} and self._control.plan.tools.application:
            return []  # it may know what follows
        content = content_of(done)
        note = self._control.timeline.note(
            now, "response_without_audio", "warning", content=content, response_id=done.response_id
        )
        if not self._control.responses.idle:
            return [note]  # another response was asked for already
        return [note, *self._response_failed(f"no sound: {content}", asked, now)]

    def _server_tools_called(self, now: float) -> list[Output]:
        """Count responses in a row that only call the server's tools; above ``max_tool_rounds``
        they have failed."""
        self._tool_rounds += 1
        if self._tool_rounds <= self._plan.max_tool_rounds:
            return []
        rounds = self._plan.max_tool_rounds
        note = self._control.timeline.note(now, "tool_loop", "warning", rounds=rounds)
        return [note, *self.on_tool_loop(now, counted=False)]

    def _content_filtered(self, now: float) -> list[Output]:
        """Say ``content_filter_message`` in place of a response that the content filter stopped."""
        self._failures += 1
        note = self._control.timeline.note(
            now, "response_filtered", "warning", count=self._failures
        )
        if self._failures >= self._plan.max_failures:
            return [note, *self._give_up("content_filter", now)]
        return [note, *self._say_message(self._plan.content_filter_message, now)]

    def _response_failed(self, why: str, asked: CreateResponse | None, now: float) -> list[Output]:
        """Retry a failed response; after ``retries`` say the message; after ``max_failures`` give
        up."""
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
        """Request the message from the model; nothing while the conversation is being ended."""
        if self._control.termination is not None:
            return []
        self._words = self._control.exact_words(words)
        return self._control.request_response(self._words, now)

    def _give_up(self, why: str, now: float) -> list[Output]:
        """End the conversation with goodbye or transfer: too many responses in a row have
        failed."""
        control, plan = self._control, self._plan
        if control.termination is not None:
            return []
        detail = f"{self._failures} responses in a row failed, the last one: {why}"
        control.terminate(
            Termination(EndReason.RESPONSE_FAILURES, detail, plan.goodbye, plan.transfer_to)
        )
        return [control.timeline.note(now, "response_failures_exceeded", "error", why=why)]

    def _play_sound(self, why: str, now: float) -> list[Output]:
        """Return ``PlaySound``, which needs no model; nothing without a sound, or during an
        action."""
        if not self._plan.sound or self._control.call_actions.busy:
            return []
        note = self._control.timeline.note(
            now, "response_failure_tone", "warning", why=why, sound=self._plan.sound
        )
        self._sound_until = now + self._plan.sound_duration
        if self._control.termination is not None:
            self._control.hangup_after_playout.wait_for_sound(self._sound_until)
        return [note, PlaySound(self._plan.sound)]

    def _stop_sound(self) -> list[Output]:
        """Return the end of the sound; nothing where none plays."""
        if self._sound_until is None:
            return []
        self._sound_until = None
        return [] if self._control.call_actions.busy else [PlaySound("")]


def content_of(done: ResponseDone) -> str:
    """Return what a response without audio had, in words for the log."""
    kinds = {part.get("type") for item in done.output for part in item.get("content") or () if part}
    if kinds & {"output_audio", "audio"}:
        return "audio of zero length"
    return "text" if kinds else "empty"
