# SPDX-License-Identifier: GPL-2.0-or-later
"""Out-of-band responses: ``response.create`` with ``conversation`` "none"; post-call analysis.

They run beside whatever is being said and are known by their metadata: nothing of them reaches the
caller, the playout or the queue of responses. Most answer in text; a briefing is spoken to the
target of a transfer. After a call they answer the route's questions about it.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol

from gateway.call import inputs
from gateway.call.call_record import CallTimeline, OutOfBandResponse, append_capped
from gateway.call.outputs import OutOfBandDone, Output, Send
from gateway.call.plan import PostCallPlan
from gateway.ending import EndReason
from gateway.realtime.events import (
    AudioDelta,
    CancelResponse,
    ClientCommand,
    CreateResponse,
    ResponseCreated,
    ResponseDone,
    ServerError,
    ServerEvent,
)
from gateway.realtime.session_object import REALTIME

KEY = "gateway_out_of_band"
"""Key of the metadata by which an out-of-band response is known."""

SECONDS = 15.0
"""Seconds until a response without an end is given up."""

MAX_RUNNING = 8
"""Out-of-band responses at a time."""

MAX_TEXT = 8000
"""Characters kept of an answer."""

MAX_METADATA = 12
"""Pairs of an asker's own; the protocol has room for 16."""

Then = Callable[[str, str, float], list[Output]]
"""Called at the end of a response with status (as in the record), text and time (s)."""

OnAudio = Callable[[bytes, float], list[Output]]
"""Called with each audio delta, in the codec of the call, and the time (s)."""


@dataclass(slots=True)
class _Running:
    """An out-of-band response that was requested and has not ended."""

    command: CreateResponse
    out_of_band_response: OutOfBandResponse
    began: float
    until: float
    then: Then | None
    audio: OnAudio | None
    response_id: str = ""


class OutOfBandResponses:
    """Out-of-band responses of one call: requests, their results, their deadlines.

    Args:
        bytes_per_ms: of audio in the session's codec, from which who gets speech reckons how long
            it lasts.
    """

    def __init__(self, timeline: CallTimeline, bytes_per_ms: int) -> None:
        self._timeline, self.bytes_per_ms = timeline, bytes_per_ms
        self.capabilities = REALTIME
        """Of the active session."""
        self._running: dict[str, _Running] = {}
        self._ids: deque[str] = deque(maxlen=4 * MAX_RUNNING)

    @property
    def busy(self) -> bool:
        """Whether any response was requested that has not ended."""
        return bool(self._running)

    def request(
        self,
        key: str,
        purpose: str,
        instructions: str,
        now: float,
        metadata: Mapping[str, str] | None = None,
        *,
        items: Sequence[str] = (),
        seconds: float = SECONDS,
        then: Then | None = None,
        audio: OnAudio | None = None,
        words: str = "",
    ) -> list[Output]:
        """Request an out-of-band response, without tools, about ``items`` or about the whole
        conversation.

        Returns a log line and ``Send`` of ``response.create``. A request that cannot be made ends
        at once with the status ``refused``, and is not sent: ``MAX_RUNNING`` run, one of this key
        runs, an answer in text is wanted of a session that gives none outside of the conversation
        (``Capabilities.out_of_band``), or there are ``items`` in a session whose items have no ids.
        Every request has an entry in the record, the first ``MAX_KEPT`` of a call.

        Args:
            key: name under which its result is reported, of one response at a time.
            purpose: what it is for, in the record and the log.
            metadata: of whoever asks; the first ``MAX_METADATA`` pairs go with the request.
            items: ids of the items that the response is about; empty for the whole conversation.
            seconds: time until it is given up (``late``).
            then: called at its end, but not if it is cancelled, with status, text and time, besides
                :class:`OutOfBandDone`; its outputs are returned, too. Called at once, with empty
                text, if the request is refused here.
            audio: called with each piece of its speech; None for a response in text.
            words: the words that it should say, for a session that is given only these in place of
                ``instructions`` (Live).
        """
        out_of_band_response = OutOfBandResponse(round(self._timeline.ms(now), 1), key, purpose)
        append_capped(self._timeline.record.content.out_of_band, out_of_band_response)
        why_not = "too many of them run" if len(self._running) >= MAX_RUNNING else ""
        if (audio is None and not self.capabilities.out_of_band) or (
            items and not self.capabilities.item_ids
        ):
            why_not = "only Realtime sessions and Live ones with a Responses backend answer"
        elif key in self._running:
            why_not = "it runs already"
        if why_not:
            out_of_band_response.status = "refused"
            out_of_band_response.text = why_not
            return [
                *self._report(out_of_band_response, now),
                *([] if then is None else then("refused", "", now)),
            ]
        own = dict(list((metadata or {}).items())[:MAX_METADATA])
        response: dict[str, Any] = {
            "conversation": "none",
            "output_modalities": ["text" if audio is None else "audio"],
            "instructions": instructions,
            "tools": [],
            "metadata": {**own, KEY: key},
        }
        if items:
            response["input"] = [{"type": "item_reference", "id": item} for item in items]
        command = CreateResponse(response, words)
        self._running[key] = _Running(
            command, out_of_band_response, now, now + seconds, then, audio
        )
        note = self._timeline.note(now, "out_of_band_requested", "info", key=key, purpose=purpose)
        return [note, Send(command)]

    def cancel(self, key: str, now: float) -> list[Output]:
        """End the response of this key as ``cancelled``, without calling ``then``. Send
        ``response.cancel``, if its ``response.created`` has come, and in a Live session always;
        else that follows with ``response.created`` (:meth:`on_event`), which is known by having no
        key any more: the key must not be used again before. Returns also what reports the end.
        Nothing if none of this key runs."""
        running = self._running.get(key)
        if running is None:
            return []
        running.then = None
        response_id = running.response_id
        known = response_id or not self.capabilities.cancel
        stop: list[Output] = [Send(CancelResponse(response_id))] if known else []
        return stop + self._finish(key, "cancelled", "", now)

    def abandon(self, now: float) -> list[Output]:
        """Cancel the responses that are for the call itself (:meth:`cancel`), because the call
        ends: those with ``then``, such as a briefing. Those that an application has asked for go
        on."""
        ours = [key for key, running in self._running.items() if running.then is not None]
        return [output for key in ours for output in self.cancel(key, now)]

    def on_session_over(self, now: float) -> list[Output]:
        """End the spoken responses as ``failed``, as somebody waits for their sound; those in text
        end by their own deadlines. Forget the ids of all: another session may use the same ones."""
        self._ids.clear()
        for one in self._running.values():
            one.response_id = ""
        spoken = [key for key, running in self._running.items() if running.audio is not None]
        return [output for key in spoken for output in self._finish(key, "failed", "", now)]

    def takes(self, event: ServerEvent) -> bool:
        """Return whether an event belongs to an out-of-band response, running or ended, so that it
        must not reach the conversation: ``response.created`` by its metadata, later events by the
        id of one of the latest ``4 * MAX_RUNNING`` responses."""
        if isinstance(event, ResponseCreated):
            return KEY in event.metadata
        response_id = getattr(event, "response_id", None)
        return response_id is not None and response_id in self._ids

    def on_event(self, event: ServerEvent, now: float) -> list[Output]:
        """Handle an event for which :meth:`takes` is true: keep the response's id, pass its audio
        on, or at ``response.done`` report its end, with the server's status. A response that has
        ended here before its ``response.created`` is cancelled now (not in a Live session). Other
        events, and those of one that has ended here, are ignored."""
        if isinstance(event, ResponseCreated):
            self._ids.append(event.response_id)
            running = self._running.get(str(event.metadata[KEY]))
            if running is not None:
                running.response_id = event.response_id
            elif self.capabilities.cancel:
                return [Send(CancelResponse(event.response_id))]
        elif isinstance(event, AudioDelta):
            for running in self._running.values():
                if running.response_id == event.response_id and running.audio is not None:
                    return running.audio(event.audio, now)
        elif isinstance(event, ResponseDone):
            for key, running in self._running.items():
                if running.response_id == event.response_id:
                    return self._finish(key, event.status, _text_of(event), now)
        return []

    def is_request(self, command: ClientCommand | None) -> bool:
        """Return whether this command of ours requests an out-of-band response; False for None."""
        return isinstance(command, CreateResponse) and KEY in (
            (command.response or {}).get("metadata") or {}
        )

    def on_refused(
        self, command: ClientCommand | None, error: ServerError, now: float
    ) -> list[Output]:
        """Handle an ``error`` that refuses a request: end the response as ``refused``, with the
        error's message. Nothing where ``command`` requests none that runs."""
        for key, running in self._running.items():
            if running.command is command:
                return self._finish(key, "refused", error.message, now)
        return []

    @property
    def deadline(self) -> float | None:
        """When :meth:`tick` gives up the first of the running responses (s); None while none
        runs."""
        return min((one.until for one in self._running.values()), default=None)

    def tick(self, now: float) -> list[Output]:
        """End the responses that have not ended in their time as ``late``, with empty text; what
        comes of them later is ignored. Only a Live session is told, of those in text: it asks its
        backend one question at a time."""
        outputs: list[Output] = []
        for key, one in list(self._running.items()):
            if now < one.until:
                continue
            if one.audio is None and not self.capabilities.cancel:
                outputs.append(Send(CancelResponse("", one.command)))
            outputs += self._finish(key, "late", "", now)
        return outputs

    def _finish(self, key: str, status: str, text: str, now: float) -> list[Output]:
        """Forget the response of this key: cut its text to ``MAX_TEXT``, set status, text and
        duration in the record, report the end, and call ``then`` with the text. Returns the outputs
        of both."""
        running = self._running.pop(key)
        out_of_band_response = running.out_of_band_response
        out_of_band_response.status, out_of_band_response.text = status, text[:MAX_TEXT]
        out_of_band_response.ms = round((now - running.began) * 1000, 1)
        outputs = self._report(out_of_band_response, now)
        return outputs + (
            running.then(status, out_of_band_response.text, now) if running.then else []
        )

    def _report(self, out_of_band_response: OutOfBandResponse, now: float) -> list[Output]:
        """Return the log line ``out_of_band_done`` (a warning unless completed or cancelled) and
        :class:`OutOfBandDone` for a response that has ended or was refused."""
        well = out_of_band_response.status in ("completed", "cancelled")
        level: Literal["info", "warning"] = "info" if well else "warning"
        note = self._timeline.note(
            now,
            "out_of_band_done",
            level,
            key=out_of_band_response.key,
            purpose=out_of_band_response.purpose,
            status=out_of_band_response.status,
        )
        return [
            note,
            OutOfBandDone(
                out_of_band_response.key, out_of_band_response.status, out_of_band_response.text
            ),
        ]


def _text_of(done: ResponseDone) -> str:
    """Return the words of a response, text or transcript of all its parts; where it has no parts,
    the server's error message, or ""."""
    parts = [
        str(part.get("text") or part.get("transcript") or "")
        for item in done.output
        for part in item.get("content") or ()
    ]
    if not parts and done.error_message:
        return done.error_message
    return "".join(parts)


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


class LateWords(Protocol):
    """What is needed here of :class:`gateway.call.conversation.transcript.Transcript`, as a
    Protocol, so that this module need not import it."""

    @property
    def words_missing(self) -> bool:
        """Whether words of what was said last have not come yet."""

    def on(self, input: inputs.Input, now: float) -> list[Output]:
        """Take a server event that may have words. Returns no output."""


class PostCallAnalysis:
    """Keeps the session open after the end of the call was decided, for answers and the last words.

    It asks the route's ``[route.post_call]`` prompts as out-of-band responses. Events of the
    session come here, no longer to the conversation and its rules. The leg may still be up, until
    its BYE is answered. Methods take the time (s).

    Args:
        why: reason of the call's end, which the session is closed with.
        prompts: instructions by name; empty where only words are waited for.
        timeout: longest wait for the answers (s).
        words_late: whether words of the transcript are waited for, ``LATE_WORDS_SECONDS`` at most.
    """

    def __init__(
        self,
        out_of_band: OutOfBandResponses,
        transcript: LateWords,
        why: EndReason,
        prompts: Mapping[str, str],
        timeout: float,
        now: float,
        *,
        words_late: bool,
    ) -> None:
        self.why = why
        self.leg_over = False
        """The leg has ended, too: the call is finished when the analysis is."""
        self._out_of_band = out_of_band
        self._transcript = transcript
        self._prompts = prompts
        self._timeout = timeout
        self._until = now + timeout if prompts else 0.0
        self._words_until = now + LATE_WORDS_SECONDS if words_late else 0.0
        self._session_over = False

    @property
    def deadline(self) -> float:
        """When :meth:`on` is to get a ``Tick`` (s): the end of the wait for answers (none once no
        out-of-band response runs) or words, whichever is first; 0.0, at once, where nothing is
        waited for."""
        answers = self._until if self._out_of_band.busy else 0.0
        return min((at for at in (answers, self._words_until) if at), default=0.0)

    def request_answers(self, now: float) -> list[Output]:
        """Request an out-of-band response to each prompt, all at once; the response's key is
        ``after-`` and the prompt's name, its purpose the name. Each may take the route's timeout;
        those beyond ``MAX_RUNNING`` are refused."""
        return [
            output
            for name, words in self._prompts.items()
            for output in self._out_of_band.request(
                f"after-{name}", name, words, now, seconds=self._timeout
            )
        ]

    def on(self, input: inputs.Input, now: float) -> list[Output]:
        """Take an event or error of the session, its end, the leg's end, the gateway's shutdown or
        a tick; ignore other inputs. While words are waited for, events that are not of an
        out-of-band response go to the transcript. The close of the session and a shutdown end both
        waits. Requests nothing: :meth:`request_answers` did. The waits for words and for answers
        run at once, and neither waits for the other.

        Returns what out-of-band responses bring: log lines and ``OutOfBandDone`` at their ends, and
        ``response.cancel`` of those that are given up, or were cancelled, here.
        """
        match input:
            case inputs.ServerEventReceived(event=event) if self._out_of_band.takes(event):
                return self._out_of_band.on_event(event, now)
            case inputs.ServerEventReceived() if now < self._words_until:
                return self._transcript.on(input, now)
            case inputs.ServerErrorReceived(error=error, command=command):
                return self._out_of_band.on_refused(command, error, now)
            case inputs.LegEnded():
                self.leg_over = True
            case inputs.SessionClosed() | inputs.ShutDown():
                self._session_over = True
            case inputs.Tick():
                self._words_until = self._words_until if now < self._words_until else 0.0
                self._until = self._until if now < self._until else 0.0
                return self._out_of_band.tick(now)
        return []

    def is_complete(self, now: float) -> bool:
        """Return whether the session may be closed: it is over, or for answers and for words alike,
        all have come or their time is over. Answers that an application has asked for in the call
        count, too, but only where there are prompts."""
        words = now < self._words_until and self._transcript.words_missing
        answers = now < self._until and self._out_of_band.busy
        return self._session_over or not (words or answers)


def post_call_of(
    out_of_band: OutOfBandResponses,
    transcript: LateWords,
    plan: PostCallPlan,
    why: EndReason,
    now: float,
) -> PostCallAnalysis | None:
    """Return the analysis of a call that ends for ``why``, not yet begun.

    None where the session is to be closed at once: for a reason in ``NOT_AFTER``, or where the
    route has no prompts (or the session cannot answer any) and no late words are missing.
    """
    if why in NOT_AFTER:
        return None
    can = out_of_band.capabilities
    late = can.late_words and transcript.words_missing
    prompts = plan.prompts if can.out_of_band else {}
    if not (late or prompts):
        return None
    return PostCallAnalysis(
        out_of_band, transcript, why, prompts, plan.timeout, now, words_late=late
    )
