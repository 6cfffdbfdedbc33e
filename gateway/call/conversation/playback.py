# SPDX-License-Identifier: GPL-2.0-or-later
"""Playback of model audio: queue it, stop it on barge-in, and report to the server what was heard.

Audio goes through the tracker into the playout queue. An interruption flushes the queue, drops late
audio of the interrupted responses, and corrects the conversation at the server
(``conversation.item.truncate``, ``conversation.item.delete``). "Heard" is what was handed to RTP.
"""

from __future__ import annotations

import re
from collections import deque
from collections.abc import Callable, Collection
from dataclasses import dataclass
from typing import Protocol

from gateway.audio import FRAME_MS, Codec
from gateway.call.call_record import CallTimeline, Interruption, append_capped
from gateway.call.conversation.playout_tracker import MAX_PARTS, Heard, PlayoutTracker
from gateway.call.outputs import Output, Play, Send
from gateway.realtime.events import (
    AudioDelta,
    AudioDone,
    ClientCommand,
    DeleteItem,
    ServerError,
    TruncateItem,
)

_SHORTER = re.compile(
    r"Audio content of ([0-9]{1,9})\s*ms is already shorter than ([0-9]{1,9})\s*ms"
)
_RESENT = 32
"""Truncations sent a second time; remembered so that there is no third."""


class Truncations:
    """Makes ``conversation.item.truncate`` and ``.delete``, and repeats a refused truncation once
    for each part.

    Args:
        margin_ms: taken off what was heard, for servers that count an item shorter than they
            sent it.
    """

    def __init__(self, margin_ms: int = 0) -> None:
        self._margin_ms = margin_ms
        self._last: TruncateItem | None = None
        self._resent: deque[tuple[str, int]] = deque(maxlen=_RESENT)

    def on_session_over(self) -> None:
        """Forget the latest truncation and those that were repeated: the next session may use the
        same ids."""
        self._last = None
        self._resent.clear()

    def make_command(self, heard: Heard) -> TruncateItem | DeleteItem:
        """Return ``conversation.item.truncate`` at the milliseconds heard of this part, or
        ``conversation.item.delete`` where nothing of the item was, in any part. The latest
        truncation is remembered for :meth:`retry`.

        ``audio_end_ms`` is what was heard, less ``margin_ms``: 0 or more, and never more than was
        received, which the server would refuse.
        """
        if not heard.item_played_ms:
            return DeleteItem(heard.item_id)
        end_ms = max(0, min(heard.played_ms, heard.received_ms) - self._margin_ms)
        self._last = TruncateItem(heard.item_id, heard.content_index, end_ms)
        return self._last

    def retry(self, error: ServerError, command: ClientCommand | None) -> TruncateItem | None:
        """Return the truncation to send again, at the length that the server's error names
        ("already shorter than"). None for other errors, where that was done for this part before,
        where the length is no less than what was sent, and for 0 ms.

        Args:
            command: command that the error answers; None where the server does not say: then it is
                taken to be the last truncation, if that had the refused length.
        """
        found = _SHORTER.search(error.message)
        if found is None:
            return None
        length_ms, refused_ms = int(found.group(1)), int(found.group(2))
        last = self._last
        if command is None and last is not None and last.audio_end_ms == refused_ms:
            command = last
        if not isinstance(command, TruncateItem):
            return None
        key = (command.item_id, command.content_index)
        if key in self._resent or length_ms >= command.audio_end_ms:
            return None
        self._resent.append(key)
        if length_ms == 0:
            return None
        return TruncateItem(command.item_id, command.content_index, length_ms)


_MAX_INTERRUPTED = 32
"""Interrupted responses remembered; audio of one stops coming at its ``response.done``."""

SHORTEST_MS = 20
"""A response of less sound, which fills no frame, is one without (ms)."""

AT_END = "end"
"""Trigger of the last cut: the leg has ended."""

OVERFLOW = "overflow"
"""Trigger of a cut because the playout queue was full."""


class Playout(Protocol):
    """The queue of frames that the bridge plays to the caller, one every 20 ms; frames are put
    there by the output ``Play``."""

    def flush(self) -> int:
        """Stop playing at once; return the number of queued frames that were not handed to RTP."""


@dataclass(slots=True)
class _Interrupted:
    """A response that was interrupted or dropped, and its items that came only after that, so that
    nothing of them was played."""

    response_id: str
    unplayed_items: list[str]


class Playback:
    """Queues the audio of responses, and stops it on barge-in. Times in s of the machine's clock.

    It reports to the server what was heard of an item that was not played to its end.

    Args:
        codec: of the session's audio.
        margin_ms: see :class:`Truncations`.
    """

    def __init__(
        self, playout: Playout, codec: Codec, margin_ms: int, timeline: CallTimeline
    ) -> None:
        self._playout = playout
        self._bytes_per_ms = codec.bytes_per_ms
        self._timeline = timeline
        self._tracker = PlayoutTracker(codec.silence, codec.bytes_per_ms)
        self._truncations = Truncations(margin_ms)
        self._interrupted: deque[_Interrupted] = deque(maxlen=_MAX_INTERRUPTED)
        self._audible = False
        self._pauses: set[str] = set()
        self._played_ms = 0.0
        """Played since the queue was last empty or flushed, until :attr:`_playing_since`."""
        self._playing_since: float | None = None
        """Since when playout goes on (s); None while it does not."""
        self._spoken: deque[str] = deque(maxlen=_MAX_INTERRUPTED)
        self.queued_ms = 0
        """Audio put into the playout queue since it was last known to be empty."""
        self.truncates = True
        """The server is told what was heard of an item that was cut."""
        self.interrupted_at = 0.0
        """When playout was last stopped (s)."""
        self.interrupted_after: Callable[[float], float | None] = lambda _now: None
        """Returns how long (ms) the caller has spoken at that time (s)."""
        self.on_part_interrupted: Callable[[Heard], None] = lambda _heard: None
        """Called for each part of a response that the caller did not hear to its end."""

    def on_audio(self, event: AudioDelta) -> list[Output]:
        """Handle an audio delta: return ``Play`` with the whole frames that it completes
        (:meth:`queue_audio`), or nothing where it completes none. Audio of an interrupted or
        dropped response is not queued, but counted in :attr:`late_audio_ms`; an item of which no
        audio came before is remembered, to be deleted at ``response.done``."""
        cut = self._interrupted_response(event.response_id)
        if cut is not None:
            self._tracker.dropped_bytes += len(event.audio)
            unplayed = cut.unplayed_items
            new = event.item_id not in unplayed and not self._tracker.knows(event.item_id)
            if new and len(unplayed) < MAX_PARTS:
                unplayed.append(event.item_id)
            return []
        if event.audio and event.response_id not in self._spoken:
            self._spoken.append(event.response_id)
        frames = self.queue_audio(event)
        return [Play(frames, more=True)] if frames else []

    def queue_audio(self, event: AudioDelta) -> bytes:
        """Take an audio delta of a response that is not interrupted; that is for the caller of this
        method to check. Return the whole frames (20 ms) that the delta completes, for the playout
        queue, and count them as queued; b"" if it completes none, and for a part that was cut.

        Less than a frame is kept for the next delta. Before audio of another part, what is kept of
        the last part is filled with silence and returned, too.
        """
        key = (event.item_id, event.content_index)
        frames = self._tracker.receive(event.response_id, key, event.audio)
        self.queued_ms += len(frames) // self._bytes_per_ms
        return frames

    def on_audio_done(self, event: AudioDone) -> list[Output]:
        """Handle ``response.output_audio.done``: return ``Play`` with the part's incomplete frame,
        filled with silence; it is empty where there is none, as of an interrupted part, and tells
        that no more of the part is to come."""
        return self._queue_last_frames(self._tracker.finish((event.item_id, event.content_index)))

    def on_response_done(self, response_id: str) -> list[Output]:
        """Handle ``response.done``: return ``Play`` with the response's incomplete frame, filled
        with silence, or with empty audio where there is none.

        Of an interrupted or dropped response also return ``conversation.item.delete`` for each item
        whose audio came only after the interruption, unless the session cannot truncate.
        """
        outputs = self._queue_last_frames(self._tracker.finish_response(response_id))
        cut = self._interrupted_response(response_id)
        if cut is not None:
            unplayed = cut.unplayed_items if self.truncates else []
            outputs += [Send(DeleteItem(item_id)) for item_id in unplayed]
            cut.unplayed_items = []
        return outputs

    def on_session_over(self) -> list[Output]:
        """End all responses, since their session is over, and forget which had audio and which were
        interrupted, as another one may use the same ids: return ``Play`` with the last incomplete
        frame, which may be empty. Queued audio is played to the end."""
        self._interrupted.clear()
        self._spoken.clear()
        self._truncations.on_session_over()
        return self._queue_last_frames(self._tracker.finish_all())

    def had_audio(self, response_id: str) -> bool:
        """Return whether at least ``SHORTEST_MS`` of audio of this response was received before an
        interruption; any audio is enough where the tracker has forgotten how much it was. False for
        a response that is not among the latest ``_MAX_INTERRUPTED`` with audio."""
        received = self._tracker.response_received_ms(response_id)
        return response_id in self._spoken and (received is None or received >= SHORTEST_MS)

    def heard_ms(self, response_id: str) -> int:
        """Return the audio (ms) of this response that is known to have been handed to RTP; what is
        being played counts once playout has run empty or was stopped."""
        return self._tracker.heard_ms(response_id)

    def heard_ms_by(self, response_id: str, now: float) -> int:
        """Return the audio (ms) of this response that was handed to RTP, of what is being played by
        the time since playout began."""
        return self._tracker.heard_ms_by(response_id, self._played_by(now))

    def on_paused(self, why: str, paused: bool, now: float) -> None:
        """Note that playout is paused for this reason (held or paused) from now on, or no more; it
        stands still while there is any."""
        self._played_ms = self._played_by(now)
        (self._pauses.add if paused else self._pauses.discard)(why)
        self._playing_since = now if self._audible and not self._pauses else None

    def _played_by(self, now: float) -> float:
        """Return the audio (ms) that was played since the queue was last empty or flushed."""
        since = self._playing_since
        return self._played_ms + (0.0 if since is None else 1000 * max(0.0, now - since))

    def received_ms(self, item_id: str) -> int:
        """Return the audio (ms) of this item that was received so far, without what came after an
        interruption."""
        return self._tracker.received_ms(item_id)

    def is_queued(self, response_id: str) -> bool:
        """Return whether audio of this response was queued since the queue was last empty or
        flushed. It is to be played, is being played, or has been played just before audio of
        another response that is still queued."""
        return self._tracker.is_queued(response_id)

    def was_interrupted(self, response_id: str) -> bool:
        """Return whether this response was interrupted or dropped, so that its further audio is not
        played. Remembered of the latest ``_MAX_INTERRUPTED`` of the session."""
        return self._interrupted_response(response_id) is not None

    def drop_response(self, response_id: str) -> None:
        """Drop all audio of this response that is still to come. What is queued is played.
        The server is told nothing now; at ``response.done``, items whose audio came only after this
        are deleted (:meth:`on_response_done`). Nothing where it was interrupted before."""
        if not self.was_interrupted(response_id):
            self._interrupted.append(_Interrupted(response_id, []))

    def interrupt(self, trigger: str, running: Collection[str], now: float) -> list[Output]:
        """Flush playout at once (not by an output), drop the audio still to come of the ``running``
        responses and of all that are queued, and report what was heard.

        Returns, for each part not heard to its end, a truncation at the ms that were played, or one
        deletion for an item of which nothing was heard; neither where the session cannot truncate.
        And log lines; no ``response.cancel``. Returns nothing, and flushes nothing, if no response
        runs, nothing is queued, and no part may have more audio to come. Else sets
        :attr:`interrupted_at`, from which the wait for a silent caller begins anew.

        Args:
            trigger: for log and record, such as ``speech``.
            running: ids of the responses that run.
        """
        for response_id in {*running, *self._tracker.queued_responses}:
            self.drop_response(response_id)
        if not (self.queued_ms or self._tracker.unfinished or running):
            return []
        return self._flush(trigger, now)

    def stop(self, now: float) -> list[Output]:
        """Stop playout because the leg has ended or is joined with another, and return the log line
        ``agent_speech_stopped`` if something was heard just then. The transcript learns what was
        heard; the server and the record's interruptions do not. Nothing where nothing is queued,
        and no part may have more audio to come."""
        unfinished = self.queued_ms or self._tracker.unfinished
        return self._flush(AT_END, now) if unfinished else []

    def on_playout_started(self, now: float) -> list[Output]:
        """Return the log line ``agent_speech_started``: the first frame after silence was handed to
        RTP. Where the end of the speech before was not told (an underrun that was short),
        ``agent_speech_stopped`` comes first. Nothing where the queue was flushed since."""
        if not self.queued_ms:
            return []  # it was flushed before word of its start came here
        outputs: list[Output] = []
        if self._audible:
            # An underrun that was over before word of it came: what was heard ended and began. What
            # was played before it still counts, as the tracker has not been told of an end.
            outputs.append(self._timeline.note(now, "agent_speech_stopped", cut=False))
        else:
            self._played_ms, self._playing_since = FRAME_MS, None if self._pauses else now
        self._audible = True
        outputs.append(
            self._timeline.note(now, "agent_speech_started", item_id=self._tracker.first_item)
        )
        return outputs

    def on_playout_drained(self, now: float) -> list[Output]:
        """Count all queued audio as heard, since the queue ran empty. Returns the log line
        ``agent_speech_stopped``, if something was heard. For items that had not fitted the queue
        (trigger ``overflow``), also returns truncations or deletions, as after an interruption."""
        self.queued_ms, self._played_ms, self._playing_since = 0, 0.0, None
        was_audible, self._audible = self._audible, False
        outputs: list[Output] = []
        if was_audible:
            outputs.append(self._timeline.note(now, "agent_speech_stopped", cut=False))
        return outputs + self._report_heard(self._tracker.on_drained(), OVERFLOW, now)

    def on_playout_refused(self, frames: int, now: float) -> list[Output]:
        """Take the last ``frames`` frames, which did not fit the queue, off the tracker's count,
        drop the rest of their parts, and return the log line ``playout_overflow``. The server is
        told once the queue runs empty or is flushed; ``queued_ms`` stays until then."""
        self._tracker.on_refused(frames)
        return [self._timeline.note(now, "playout_overflow", "error", lost_ms=frames * 20)]

    def _flush(self, trigger: str, now: float) -> list[Output]:
        """Flush the queue, report what was heard of each part (:meth:`_report_heard`), and set
        ``interrupted_at``. Returns the log line ``agent_speech_stopped`` first, if something was
        heard just then."""
        heard = self._tracker.flush(self._playout.flush())
        self.interrupted_at = now
        was_audible, self._audible, self.queued_ms = self._audible, False, 0
        self._played_ms, self._playing_since = 0.0, None
        outputs: list[Output] = []
        if was_audible:
            outputs.append(self._timeline.note(now, "agent_speech_stopped", cut=True))
        return outputs + self._report_heard(heard, trigger, now)

    def on_error(self, error: ServerError, command: ClientCommand | None) -> list[Output]:
        """Handle an ``error`` event: return the refused truncation again, at the length that the
        error names, as :meth:`Truncations.retry` says; nothing for other errors.

        Args:
            command: the command that the error answers; None where the server does not say: then it
                is the last truncation, if that had the refused length.
        """
        again = self._truncations.retry(error, command)
        return [] if again is None else [Send(again)]

    @property
    def late_audio_ms(self) -> int:
        """Audio (ms) of the call that came after its response was interrupted or dropped, or after
        its part had not fitted the queue, and was not played."""
        return self._tracker.dropped_bytes // self._bytes_per_ms

    def _interrupted_response(self, response_id: str) -> _Interrupted | None:
        """Return the entry of this response; None where it was not interrupted or dropped."""
        return next((cut for cut in self._interrupted if cut.response_id == response_id), None)

    def _queue_last_frames(self, frames: bytes) -> list[Output]:
        """Return ``Play`` with the last frames of a part, which may be empty, and count them as
        queued; ``more`` is False."""
        self.queued_ms += len(frames) // self._bytes_per_ms
        return [Play(frames, more=False)]

    def _report_heard(self, heard: list[Heard], trigger: str, now: float) -> list[Output]:
        """Report each part that was not received and heard to its end: to ``on_part_interrupted``,
        to the record, the log, and the server, with a truncation, or one deletion for an item of
        which nothing was heard. Of a deleted item the first such part alone is reported anywhere.

        A session that cannot truncate gets nothing (action ``none``), nor does one of a part of the
        session before it. At the end of the leg (``AT_END``) only ``on_part_interrupted`` is
        called.
        """
        outputs: list[Output] = []
        deleted: set[str] = set()
        for one in heard:
            if one.complete or one.item_id in deleted:
                continue
            self.on_part_interrupted(one)
            if trigger == AT_END:
                continue  # nobody is left to be told
            if one.past or not self.truncates:
                outputs.append(self._record_interruption(one, trigger, "none", now))
                continue
            command = self._truncations.make_command(one)
            action = "truncate"
            if isinstance(command, DeleteItem):
                action = "delete"
                deleted.add(one.item_id)
            outputs += [Send(command), self._record_interruption(one, trigger, action, now)]
        return outputs

    def _record_interruption(self, heard: Heard, trigger: str, action: str, now: float) -> Output:
        """Append an :class:`Interruption` to the record (the first ``MAX_KEPT`` only), and return
        its log line. Only an interruption by speech says how long the caller had spoken.

        Args:
            action: truncate, delete, or none where the server can do neither.
        """
        append_capped(
            self._timeline.record.actions.interruptions,
            Interruption(
                at_ms=round(self._timeline.ms(now), 1),
                trigger=trigger,
                item_id=heard.item_id,
                played_ms=heard.played_ms,
                received_ms=heard.received_ms,
                flushed_ms=heard.received_ms - heard.played_ms,
                action=action,
                after_ms=self.interrupted_after(now) if trigger == "speech" else None,
            ),
        )
        return self._timeline.note(
            now,
            "interruption",
            "info",
            trigger=trigger,
            item_id=heard.item_id,
            played_ms=heard.played_ms,
            received_ms=heard.received_ms,
            action=action,
        )
