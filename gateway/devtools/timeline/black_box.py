# SPDX-License-Identifier: GPL-2.0-or-later
"""Reads a black box for the timeline: the call's record, a SIP ladder, RTP statistics."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pydantic import ValidationError
from rich import box
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from gateway.bridge.replay import (
    BlackBoxError,
    Packet,
    packets_of,
    parsed_lines,
    read_lines,
    replay,
)
from gateway.devtools.timeline import Record, RecordError
from gateway.devtools.timeline.as_text import AGENT, CALLER, QUIET, RED, clock, ms
from gateway.text import printable, printable_in, unicode_in

SILENCE_MS = 200.0
"""A pause between packets from which on it is told of."""
MOST_ROWS = 500
"""Of the ladder; a call with more is a flood, and the file has them."""

_WAYS = {"in": ("from", "──▶"), "out": ("to", "◀──")}
"""The word and the arrow of each direction."""


@dataclass(slots=True)
class Stream:
    """Statistics of the RTP of one direction: loss, order, gaps."""

    packets: int = 0
    lost: int = 0
    """Numbers that never came."""
    reordered: int = 0
    repeated: int = 0
    longest_ms: float = 0.0
    """Between two packets."""
    happenings: list[tuple[float, str, bool]] = field(default_factory=list)
    """ms since the INVITE, in words, whether it is trouble."""
    _seen: set[tuple[int, int]] = field(default_factory=set)
    _last: Packet | None = None
    _highest: int = 0

    def add(self, packets: Sequence[Packet], began: float) -> None:
        for one in packets:
            self._add(self._last, one, (one.at - began) * 1000)
            self._last = one

    def _add(self, before: Packet | None, one: Packet, at: float) -> None:
        self.packets += 1
        key = (one.ssrc, one.sequence)
        if before is None or before.ssrc != one.ssrc:
            what = "begins" if before is None else "has another source"
            self.happenings.append((at, f"{what}: SSRC {one.ssrc:08x}, type {one.type}", False))
            self._seen, self._highest = {key}, one.sequence
            return
        pause = (one.at - before.at) * 1000
        self.longest_ms = max(self.longest_ms, pause)
        if key in self._seen:
            self.repeated += 1
            return
        step = (one.sequence - self._highest) & 0xFFFF
        if step >= 0x8000:
            self.reordered += 1
            self.lost -= self.lost > 0
        else:
            self._highest = one.sequence
        if 1 < step < 0x4000:
            self.lost += step - 1
            words = f"{step - 1} packet{'s' if step > 2 else ''} missing"
            self.happenings.append((at, words, True))
        elif step < 0x8000 and pause >= SILENCE_MS:
            self.happenings.append((at, f"goes on after {ms(pause)} without a packet", False))
        if len(self._seen) > 0x4000:
            self._seen.clear()
        self._seen.add(key)

    def in_short(self) -> str:
        percent = 100 * self.lost / max(1, self.packets + self.lost)
        more = [
            f"{count} {name}"
            for count, name in ((self.reordered, "out of order"), (self.repeated, "repeated"))
            if count
        ]
        told = [f"{self.packets:,} packets", f"{self.lost:,} lost ({percent:.1f} %)", *more]
        return ", ".join([*told, f"longest gap {ms(self.longest_ms)}"])


@dataclass(frozen=True, slots=True)
class Message:
    """A SIP message."""

    at_ms: float
    way: str
    leg: int
    peer: str
    text: str

    def in_short(self) -> str:
        """Return the first line, with address and payload types of an SDP."""
        first = printable(self.text.split("\n", 1)[0])
        first = re.sub(r"^SIP/2\.0 ", "", first).removesuffix(" SIP/2.0")
        sequence = re.search(r"(?im)^cseq\s*:\s*\d+\s+(\S+)", self.text)
        if sequence and not self.text.startswith(sequence[1]):
            first = f"{first} ({printable(sequence[1])})"
        body = self.text.partition("\n\n")[2]
        media = re.findall(r"(?m)^m=audio (\d+) \S+ ([\d ]+)", body)
        address = re.search(r"(?m)^c=IN IP[46] (\S+)", body)
        if media:
            where = f"{printable(address[1])}:" if address else "port "
            first += f"  [SDP {where}{media[0][0]}, types {media[0][1].strip()}]"
        return first


@dataclass(slots=True)
class BlackBoxFile:
    """Contents of a black box, without the steps of the state machine."""

    record: Record
    messages: list[Message]
    streams: dict[tuple[int, str], Stream]
    """By leg (0 is the caller's) and direction (``in`` or ``out``)."""
    left_out: int
    """Messages and packets that were counted only."""


def is_black_box(file: Path) -> bool:
    """Whether a file begins as a black box does, whatever it is named."""
    try:
        return '"black_box"' in next(read_lines(file), "")[:100]
    except (OSError, BlackBoxError):
        return False


def read_black_box(file: Path) -> BlackBoxFile:
    """Read a black box; where a killed process left no record in it, replay makes one.

    Raises RecordError.
    """
    began, whole = 0.0, None
    messages: list[Message] = []
    streams: dict[tuple[int, str], Stream] = {}
    left_out = 0
    try:
        for number, line in enumerate(parsed_lines(read_lines(file)), 1):
            if "black_box" in line:
                began = float(line["at"])
            elif "sip" in line:
                messages.append(_message(line, began))
            elif "rtp" in line:
                key = (int(line.get("leg", 0)), _way(line["rtp"]))
                streams.setdefault(key, Stream()).add(packets_of(line), began)
            elif "record" in line:
                whole = line["record"]
            left_out += line.get("sip_left_out", 0) + line.get("rtp_left_out", 0)
            if number == 1 and "black_box" not in line:
                raise RecordError(f"{file}: is no black box")
        if whole is None:
            whole = replay(read_lines(file)).record.as_json()
        record = Record.model_validate(printable_in(unicode_in(whole)))
    except (OSError, BlackBoxError) as error:
        raise RecordError(f"{file}: {getattr(error, 'strerror', None) or error}") from None
    except (KeyError, TypeError, ValueError, OverflowError, ValidationError) as error:
        raise RecordError(f"{file}: not understood: {printable(repr(error))[:300]}") from None
    messages.sort(key=lambda one: one.at_ms)
    return BlackBoxFile(record, messages, streams, left_out)


def _message(line: Any, began: float) -> Message:
    at = (float(line["at"]) - began) * 1000
    way = _way(line["sip"])
    return Message(at, way, int(line["leg"]), str(line["peer"]), str(line["text"]))


def _way(told: Any) -> str:
    if told not in _WAYS:
        raise ValueError("a message or packet goes in or out")
    return str(told)


def _rtp(leg: int, way: str) -> str:
    """Return the name of a stream, as ``RTP from the caller``."""
    return f"RTP {_WAYS[way][0]} {f'leg {leg + 1}' if leg else 'the caller'}"


def render_wire(found: BlackBoxFile) -> RenderableType:
    """Return the SIP ladder with gaps and losses of RTP in it, and the statistics below."""
    rows = sorted(_rows(found), key=lambda row: row[0])
    if not rows:
        return Text("nothing of the wire is in this black box", QUIET)
    table = Table(box=box.SIMPLE_HEAD, expand=True, pad_edge=False, show_edge=False)
    table.add_column("time", justify="right", style=QUIET, no_wrap=True)
    table.add_column("peer", no_wrap=True)
    table.add_column("SIP and RTP on the wire", ratio=1)
    for at, peer, text in rows[:MOST_ROWS]:
        table.add_row(clock(at), peer, text)
    if len(rows) > MOST_ROWS:
        table.add_row("", "", Text(f"{len(rows) - MOST_ROWS:,} further rows", QUIET))
    grid = Table.grid(padding=(0, 2))
    grid.add_column(style=QUIET)
    grid.add_column()
    for key, stream in sorted(found.streams.items()):
        grid.add_row(_rtp(*key), stream.in_short())
    if found.left_out:
        grid.add_row("left out", f"{found.left_out:,} messages and packets")
    return Group(table, Text(), grid)


def _rows(found: BlackBoxFile) -> Iterator[tuple[float, Text, Text]]:
    for one in found.messages:
        who = "" if one.leg == 0 else f" (leg {one.leg + 1})"
        style = CALLER if one.way == "in" else AGENT
        text = Text.assemble((f"{_WAYS[one.way][1]} ", style), one.in_short())
        yield one.at_ms, Text(printable(one.peer) + who, QUIET), text
    for key, stream in found.streams.items():
        for at, words, trouble in stream.happenings[:MOST_ROWS]:
            told = f"{_rtp(*key)} {words}"
            yield at, Text("RTP", QUIET), Text(told, RED if trouble else QUIET)
