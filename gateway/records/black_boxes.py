# SPDX-License-Identifier: GPL-2.0-or-later
"""Files of black boxes: for each call one with every step of its state machine, beside its record.

A file is written as the call goes on, so that a call whose process dies has its own; where a route
wants only those of calls that went wrong, it is deleted at the end of a call that did not, unless
somebody has asked for it. Its last line is the record.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from time import monotonic
from typing import Any, Literal

import structlog

from gateway.call.call_record import CallRecord
from gateway.call.tools.commands import CollectPlan
from gateway.ending import EndReason
from gateway.log import Redactor
from gateway.records.files import BackgroundWriter, Channel, file_stem, private
from gateway.sip.message_log import MessageLog
from gateway.text import PrivateDigits, unicode_in

SUFFIX = ".blackbox.jsonl"
Kept = Literal["off", "on_trouble", "always"]
MAX_WAITING = 20_000
"""Parcels of lines that wait for the disk, of all calls."""
MAX_WAITING_BYTES = 32 * 1024 * 1024
PARCEL_BYTES = 16 * 1024
"""Of one call's lines, gathered until they are handed to the writer."""
WRITE_SECONDS = 1.0
"""How long they are gathered at most; RTP is looked at once a second, which is a step."""
LINGER_SECONDS = 0.5
"""How long after the end of a call its last lines wait for the BYE of a B-leg and its answer."""
MAX_FILE_BYTES = 64 * 1024 * 1024
"""Of one call; a line that is longer than what is left ends its black box."""
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
"""Endings that are nobody's fault."""

log = structlog.get_logger("records")


def went_wrong(record: CallRecord) -> bool:
    """Whether a call ended badly, lost its session meanwhile, or was slow."""
    ending = record.ending
    return (
        ending is None
        or ending.why not in UNTROUBLED
        or bool(record.session.failovers)
        or record.media.underruns > 0
        or any(one.ms > SLOW_MS for one in record.response_times)
    )


@dataclass(frozen=True, slots=True)
class Wanted:
    """What a route wants of black boxes.

    Args:
        facts: what a replay does not need, and a reader does: configuration and versions.
    """

    kept: Kept
    payload: bool = False
    """The payloads of RTP, too."""
    facts: Mapping[str, Any] = field(default_factory=dict)


class BlackBox:
    """The black box of one call: takes lines on the event loop; a thread writes them."""

    def __init__(
        self,
        path: Path,
        put: Callable[[_Parcel, int], bool],
        private: PrivateDigits,
        wanted: Wanted,
        masks: bool,
        messages: MessageLog,
        later: Callable[[Callable[[], None]], None],
    ) -> None:
        self.path = path
        self.private = private
        self.wanted = wanted
        self.messages = messages
        """Where the SIP messages of its legs wait."""
        self.wire: Callable[[bool], Iterable[str]] = lambda _last: ()
        """Returns further lines, of what was on the wire since the last time; told whether it is
        the last time."""
        self.masks = masks
        """Whether keys that are pressed are left out."""
        self.written = 0
        """Bytes; the writer's thread counts."""
        self.broken = False
        """A line is missing: no more are written, as none after it could be replayed."""
        self._always = wanted.kept == "always"
        """The file stays when the call went well, too."""
        self._put = put
        self._later = later
        self._since = monotonic()
        """When lines were handed to the writer last (s)."""
        self._lines: list[str] = []
        self._bytes = 0

    def write(self, line: str) -> None:
        """Add a line; lines are handed to the thread in parcels, by size or after
        ``WRITE_SECONDS``."""
        self._lines.append(line)
        self._bytes += len(line)
        if self._bytes >= PARCEL_BYTES or monotonic() - self._since >= WRITE_SECONDS:
            self._hand_on(None)

    def keep(self) -> None:
        """Have the file stay, whatever becomes of the call."""
        self._always = True

    def end(self, record: CallRecord, *, linger: bool = False) -> str:
        """The call is over; returns the name of the file that stays, "" where none does.

        Args:
            linger: messages of another leg are still to come.
        """
        stays = self._always or went_wrong(record)
        record.session.black_box = self.path.name if stays else ""
        last: tuple[str, ...] = ()
        if stays:
            whole = {"at": monotonic(), "record": unicode_in(record.as_json())}
            last = (json.dumps(whole, ensure_ascii=False, separators=(",", ":")),)
        if linger and stays:
            self._later(lambda: self._hand_on(stays, last))
        else:
            self._hand_on(stays, last)
        return record.session.black_box

    def _hand_on(self, stays: bool | None, last: Sequence[str] = ()) -> None:
        """Queue the lines so far, with those of SIP and RTP."""
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


_Parcel = tuple[BlackBox, list[str], bool | None]


class BlackBoxes:
    """Opens them, and writes them all.

    Args:
        folder: that of the records; None writes nothing.
        writer: whose thread writes the lines.
        secrets: texts that no line may hold.
        messages: where the SIP messages of calls wait.
    """

    def __init__(
        self,
        folder: Path | None,
        writer: BackgroundWriter,
        secrets: Sequence[str] = (),
        messages: MessageLog | None = None,
    ) -> None:
        self.messages = messages or MessageLog()
        self._folder = folder
        self._redact = Redactor(secrets)
        self._failing = False
        self._lingering: dict[Callable[[], None], asyncio.TimerHandle] = {}
        self._channel: Channel[_Parcel] = writer.channel(
            "black boxes", self._write, MAX_WAITING, MAX_WAITING_BYTES
        )

    def open(self, record: CallRecord, wanted: Wanted, collect: CollectPlan) -> BlackBox | None:
        """The black box of a call that begins now; None where none is written.

        Args:
            collect: keys that it asks for as private or sensitive are in no black box.
        """
        if self._folder is None or wanted.kept == "off":
            return None
        path = self._folder / f"{file_stem(record.started_at, record.call_id)}{SUFFIX}"
        masks = collect.private or collect.sensitive or bool(record.private)
        put, later = self._channel.put, self._linger
        return BlackBox(path, put, record.private, wanted, masks, self.messages, later)

    def _linger(self, end: Callable[[], None]) -> None:
        loop = asyncio.get_running_loop()
        self._lingering[end] = loop.call_later(LINGER_SECONDS, self._end, end)

    def _end(self, end: Callable[[], None]) -> None:
        self._lingering.pop(end).cancel()
        end()

    async def stop(self) -> None:
        """Hand the last lines of all calls to the writer."""
        for end in tuple(self._lingering):
            self._end(end)

    def _write(self, parcels: list[_Parcel]) -> Sequence[_Parcel]:
        """Write lines, on the writer's thread; a black box whose lines cannot be written ends."""
        for box, lines, stays in parcels:
            try:
                self._append(box, lines)
                if stays is False:
                    box.path.unlink(missing_ok=True)
            except OSError as error:
                box.broken = True
                if not self._failing:
                    log.error("black_box.write_failed", file=str(box.path), error=str(error))
                self._failing = True
            else:
                self._failing = False
        return ()

    def _append(self, box: BlackBox, lines: list[str]) -> None:
        """Append lines to a file, up to ``MAX_FILE_BYTES``."""
        if box.broken or not lines:
            return
        text = "".join(f"{self._redact(None, '', _masked(line, box.private))}\n" for line in lines)
        if box.written + len(text) > MAX_FILE_BYTES:
            box.broken = True
            return
        with open(
            box.path, "a", encoding="utf-8", errors="backslashreplace", opener=private
        ) as file:
            box.written += file.write(text)


def _masked(line: str, private: PrivateDigits) -> str:
    """Return a line masked, but for the keys of its steps, which have been: # and * end entries."""
    if not private:
        return line
    return json.dumps(private.masked(json.loads(line), kept="digit"), ensure_ascii=False)
