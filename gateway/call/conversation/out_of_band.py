# SPDX-License-Identifier: GPL-2.0-or-later
"""Out-of-band responses: ``response.create`` with ``conversation`` "none".

They run beside whatever is being said and are known by their metadata: nothing of them reaches the
caller, the playout or the one-response-at-a-time gate. Most answer in text; a briefing is spoken
to the target of a transfer.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from gateway.call.call_record import CallTimeline
from gateway.call.outputs import OutOfBandDone, Output, Send
from gateway.call.record_entries import OutOfBandResponse, append_capped
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
"""Takes status, text and time (s)."""

Heard = Callable[[bytes, float], list[Output]]
"""Takes audio, in the codec of the call, and time (s)."""


@dataclass(slots=True)
class _Running:
    command: CreateResponse
    out_of_band_response: OutOfBandResponse
    began: float
    until: float
    then: Then | None
    audio: Heard | None
    response_id: str = ""


class OutOfBandResponses:
    """Out-of-band responses of one call. Methods take the time (s) and return outputs.

    Args:
        bytes_per_ms: of speech in them.
    """

    def __init__(self, timeline: CallTimeline, bytes_per_ms: int) -> None:
        self._timeline, self.bytes_per_ms = timeline, bytes_per_ms
        self.capabilities = REALTIME
        """Of the active session."""
        self._running: dict[str, _Running] = {}
        self._ids: deque[str] = deque(maxlen=4 * MAX_RUNNING)

    @property
    def busy(self) -> bool:
        """Whether a response that was requested has not ended."""
        return bool(self._running)

    def ask(
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
        audio: Heard | None = None,
        words: str = "",
    ) -> list[Output]:
        """Request an out-of-band response about ``items``, or about the whole conversation.

        Args:
            key: name under which its result is reported.
            purpose: what it is for, in the record.
            seconds: time that it may take.
            then: called with the result, in place of :class:`OutOfBandDone`.
            audio: receives speech; None for a response in text.
            words: the words that it should say.
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
        """Cancel a response that nobody wants any more, if it runs."""
        running = self._running.get(key)
        if running is None:
            return []
        running.then = None
        response_id = running.response_id
        known = response_id or not self.capabilities.cancel
        stop: list[Output] = [Send(CancelResponse(response_id))] if known else []
        return stop + self._finish(key, "cancelled", "", now)

    def takes(self, event: ServerEvent) -> bool:
        """Return whether an event belongs to an out-of-band response, not to the conversation."""
        if isinstance(event, ResponseCreated):
            return KEY in event.metadata
        response_id = getattr(event, "response_id", None)
        return response_id is not None and response_id in self._ids

    def on_event(self, event: ServerEvent, now: float) -> list[Output]:
        """Take an event that :meth:`takes` is true of: words are kept, the end is reported."""
        if isinstance(event, ResponseCreated):
            self._ids.append(event.response_id)
            running = self._running.get(str(event.metadata[KEY]))
            if running is not None:
                running.response_id = event.response_id
        elif isinstance(event, AudioDelta):
            for running in self._running.values():
                if running.response_id == event.response_id and running.audio is not None:
                    return running.audio(event.audio, now)
        elif isinstance(event, ResponseDone):
            for key, running in self._running.items():
                if running.response_id == event.response_id:
                    return self._finish(key, event.status, _text_of(event), now)
        return []

    def asked(self, command: ClientCommand | None) -> bool:
        """Return whether a command of ours requested an out-of-band response."""
        return isinstance(command, CreateResponse) and KEY in (
            (command.response or {}).get("metadata") or {}
        )

    def refused(
        self, command: ClientCommand | None, error: ServerError, now: float
    ) -> list[Output]:
        """End the response whose request was refused."""
        for key, running in self._running.items():
            if running.command is command:
                return self._finish(key, "refused", error.message, now)
        return []

    @property
    def deadline(self) -> float | None:
        return min((one.until for one in self._running.values()), default=None)

    def tick(self, now: float) -> list[Output]:
        """Give up responses that have not ended in their time, with the status ``late``."""
        late = [key for key, one in self._running.items() if now >= one.until]
        return [output for key in late for output in self._finish(key, "late", "", now)]

    def _finish(self, key: str, status: str, text: str, now: float) -> list[Output]:
        """Record the end of a response, and hand its text to who asked for it."""
        running = self._running.pop(key)
        out_of_band_response = running.out_of_band_response
        out_of_band_response.status, out_of_band_response.text = status, text[:MAX_TEXT]
        out_of_band_response.ms = round((now - running.began) * 1000, 1)
        outputs = self._report(out_of_band_response, now)
        return outputs + (
            running.then(status, out_of_band_response.text, now) if running.then else []
        )

    def _report(self, out_of_band_response: OutOfBandResponse, now: float) -> list[Output]:
        """Return the log line and :class:`OutOfBandDone` of a response that has ended."""
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
    """Return the words of a response, or the error in place of them."""
    parts = [
        str(part.get("text") or part.get("transcript") or "")
        for item in done.output
        for part in item.get("content") or ()
    ]
    if not parts and done.error_message:
        return done.error_message
    return "".join(parts)
