# SPDX-License-Identifier: GPL-2.0-or-later
"""Black boxes: files with every step of a call's state machine, beside its record.

A file is written during the call, so that a call whose process dies has one, too. If the route
keeps only those of calls that went wrong, it is deleted at the end of another call, unless somebody
has asked for it. The last line is the record.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from time import monotonic
from typing import TYPE_CHECKING, Any, Literal

import structlog

from gateway.call.call_record import CallRecord
from gateway.call.tools.commands import CollectPlan
from gateway.ending import EndReason
from gateway.log import Redactor
from gateway.records.files import BackgroundWriter, Channel, append_to, file_stem
from gateway.text import PrivateDigits, json_text, unicode_in

if TYPE_CHECKING:
    from gateway.sip.signalling import MessageLog

SUFFIX = ".blackbox.jsonl"
Keep = Literal["off", "on_trouble", "always"]
MAX_WAITING = 20_000
"""Batches of lines that wait for the disk, of all calls."""
MAX_WAITING_BYTES = 32 * 1024 * 1024
BATCH_BYTES = 16 * 1024
"""Bytes of one call's lines that are gathered until they are queued for the writer."""
WRITE_SECONDS = 1.0
"""Seconds for which they are gathered at most; each second has a step, with RTP statistics."""
LINGER_SECONDS = 0.5
"""Seconds after the end of a call for which its last lines wait for the BYE of a B-leg."""
MAX_FILE_BYTES = 64 * 1024 * 1024
"""Bytes of one file; a line that would exceed them ends it."""
SLOW_MS = 3000.0
"""Longest wait (ms) for a response above which a call counts as slow."""

UNTROUBLED = frozenset(
    {
        EndReason.REMOTE_HANGUP,
        EndReason.CANCELLED,
        EndReason.AGENT_HANGUP,
        EndReason.TRANSFERRED,
        EndReason.BRIDGE_ENDED,
        EndReason.BUSY,
        EndReason.DECLINED,
        EndReason.NO_ANSWER,
        EndReason.IDLE,
        EndReason.MACHINE_DETECTED,
        EndReason.APPLICATION,
        EndReason.OPERATOR,
    }
)
"""End reasons that mean no fault."""

log = structlog.get_logger("records")


def went_wrong(record: CallRecord) -> bool:
    """Return whether a call has no ending or one by a fault, lost a session, had underruns, or
    waited longer than ``SLOW_MS`` for a response."""
    ending = record.ending
    return (
        ending is None
        or ending.why not in UNTROUBLED
        or bool(record.session.failovers)
        or record.media.underruns > 0
        or any(one.ms > SLOW_MS for one in record.response_times)
    )


@dataclass(frozen=True, slots=True)
class BlackBoxSettings:
    """Settings of a route's black boxes.

    Args:
        facts: configuration and versions, for readers; a replay does not need them.
    """

    kept: Keep
    payload: bool = False
    """Whether RTP payloads are written, too."""
    facts: Mapping[str, Any] = field(default_factory=dict)


class BlackBox:
    """Black box of one call: takes lines on the event loop; a thread writes them."""

    def __init__(
        self,
        path: Path,
        put: Callable[[_Batch, int], bool],
        private: PrivateDigits,
        wanted: BlackBoxSettings,
        masks: bool,
        messages: MessageLog,
        later: Callable[[Callable[[], None]], None],
    ) -> None:
        self.path = path
        self.private = private
        self.wanted = wanted
        self.messages = messages
        """SIP messages of its legs, which wait to be written."""
        self.wire: Callable[[bool], Iterable[str]] = lambda _last: ()
        """Returns lines with the SIP messages and RTP since its last call; its argument is True for
        the last one."""
        self.masks = masks
        """Whether DTMF digits are left out."""
        self.written = 0
        """Bytes of the file; counted on the writer's thread."""
        self.broken = False
        """Whether a line is missing: none is written after it, as it could not be replayed."""
        self._always = wanted.kept == "always"
        """Whether the file is kept however the call goes."""
        self._put = put
        self._later = later
        self._since = monotonic()
        """When lines were last queued for the writer (``monotonic()``, s)."""
        self._lines: list[str] = []
        self._bytes = 0

    def write(self, line: str) -> None:
        """Add a line; queue the lines at ``BATCH_BYTES`` or after ``WRITE_SECONDS``."""
        self._lines.append(line)
        self._bytes += len(line)
        if self._bytes >= BATCH_BYTES or monotonic() - self._since >= WRITE_SECONDS:
            self._queue(None)

    def keep(self) -> None:
        """Keep the file, however the call goes; without effect after :meth:`end`."""
        self._always = True

    def end(self, record: CallRecord, *, linger: bool = False) -> str:
        """End the black box of a call that is over; return the name of the file, also set in the
        record, or "" if it is deleted.

        It is kept if the route or :meth:`keep` wants that always, or the call went wrong; then the
        record is its last line.

        Args:
            linger: queue a kept file's last lines ``LINGER_SECONDS`` later, for messages of another
                leg.
        """
        stays = self._always or went_wrong(record)
        record.session.black_box = self.path.name if stays else ""
        last: tuple[str, ...] = ()
        if stays:
            last = (json_text({"at": monotonic(), "record": unicode_in(record.as_json())}),)
        if linger and stays:
            self._later(lambda: self._queue(stays, last))
        else:
            self._queue(stays, last)
        return record.session.black_box

    def _queue(self, stays: bool | None, last: Sequence[str] = ()) -> None:
        """Queue the lines so far, with those of SIP and RTP, and ``last``; if the queue is full,
        the file is broken.

        Args:
            stays: whether the file is kept, at the end of the call; None before.
        """
        lines, self._lines, self._bytes = self._lines, [], 0
        try:
            lines += self.wire(stays is not None)
        except Exception:
            log.exception("black_box.wire_failed", file=str(self.path))
            self.wire = lambda _last: ()
        lines += last
        size = sum(map(len, lines))
        self._since = monotonic()
        if not self._put((self, lines, stays), size):
            self.broken = True


_Batch = tuple[BlackBox, list[str], bool | None]


class BlackBoxes:
    """Opens the black boxes of calls, and writes them on the writer's thread.

    Args:
        folder: of the records; None writes nothing.
        messages: SIP messages of calls.
        secrets: texts that are replaced in each line.
    """

    def __init__(
        self,
        folder: Path | None,
        writer: BackgroundWriter,
        messages: MessageLog,
        secrets: Sequence[str] = (),
    ) -> None:
        self.messages = messages
        self._folder = folder
        self._redact = Redactor(secrets)
        self._failing = False
        self._lingering: dict[Callable[[], None], asyncio.TimerHandle] = {}
        self._channel: Channel[_Batch] = writer.channel(
            "black boxes", self._write, MAX_WAITING, MAX_WAITING_BYTES
        )

    def open(
        self, record: CallRecord, wanted: BlackBoxSettings, collect: CollectPlan
    ) -> BlackBox | None:
        """Open the black box of a call that begins now; return None without a folder, or if the
        route keeps none.

        Args:
            collect: collection of digits; if they are private or sensitive, no digit is written.
        """
        if self._folder is None or wanted.kept == "off":
            return None
        path = self._folder / f"{file_stem(record.started_at, record.call_id)}{SUFFIX}"
        masks = collect.private or collect.sensitive or bool(record.private)
        put, later = self._channel.put, self._linger
        return BlackBox(path, put, record.private, wanted, masks, self.messages, later)

    def _linger(self, end: Callable[[], None]) -> None:
        """Call ``end`` after ``LINGER_SECONDS``, or earlier in :meth:`stop`."""
        loop = asyncio.get_running_loop()
        self._lingering[end] = loop.call_later(LINGER_SECONDS, self._end, end)

    def _end(self, end: Callable[[], None]) -> None:
        """Cancel the timer of ``end``, and call it."""
        self._lingering.pop(end).cancel()
        end()

    async def stop(self) -> None:
        """Queue the last lines of calls that still linger; before the writer's stop."""
        for end in tuple(self._lingering):
            self._end(end)

    def _write(self, batches: list[_Batch]) -> Sequence[_Batch]:
        """Append lines, and delete files of calls that have ended and are not kept. On the thread.

        A black box whose lines cannot be written is broken; the first failure is logged. Returns
        nothing to be tried again.
        """
        for box, lines, stays in batches:
            try:
                self._append(box, lines)
                if stays is False:
                    box.path.unlink(missing_ok=True)
            except Exception as error:  # of one call: it costs no other
                box.broken = True
                if not self._failing:
                    log.error("black_box.write_failed", file=str(box.path), error=str(error))
                self._failing = True
            else:
                self._failing = False
        return ()

    def _append(self, box: BlackBox, lines: list[str]) -> None:
        """Append lines to a file, masked and without secrets; nothing for a broken one. A file that
        they would make larger than ``MAX_FILE_BYTES`` is broken. Raises OSError."""
        if box.broken or not lines:
            return
        text = "".join(f"{self._redact(None, '', _masked(line, box.private))}\n" for line in lines)
        if box.written + len(text) > MAX_FILE_BYTES:
            box.broken = True
            return
        append_to(box.path, text)
        box.written += len(text)


def _masked(line: str, private: PrivateDigits) -> str:
    """Return a line without private digits.

    The field ``digit`` of steps stays: it is masked already, and # and * end a collection.
    """
    if not private:
        return line
    return json.dumps(private.masked(json.loads(line), kept="digit"), ensure_ascii=False)
