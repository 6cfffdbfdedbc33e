# SPDX-License-Identifier: GPL-2.0-or-later
"""Black box of one call, written: lines of JSON about its state machine and what was on the wire.

:mod:`gateway.bridge.replay` reads them, and feeds the inputs to the state machine of today.

The first line (``plan``, ``record``, ``at``) says how the machine was made. A line with ``in`` is a
step: ``at`` (s, the clock of the process), ``in`` (the input, null for the start), ``asked`` (what
the machine was answered within the step: frames flushed from the playout queue, results of
functions in the plan), ``out`` (its outputs) and ``due`` (its next deadline). Of audio only the
length is kept; a line with ``more`` is audio that follows on other audio, with the bytes that were
``queued`` of it.

A line of SIP has ``sip`` (``in`` or ``out``), ``leg`` (0 is the caller's, others are those of
transfers), ``peer``, ``transport`` and ``text``. A line of RTP has ``rtp`` (``in`` or ``out``),
``leg``, the first packet of up to a second (``seq``, ``ts``, ``ssrc``, ``type``, ``size`` of its
payload), the ``gaps`` between arrivals (0.1 ms), by how much the timestamp rises (``step``), all
``sizes`` where they differ, and those packets that do not follow the one before (``odd``).

Other lines say how the gateway was configured (``facts``) and, the last one, what became of the
call (``record``).
"""

from __future__ import annotations

import base64
import re
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import fields, is_dataclass, replace
from enum import Enum
from functools import cache
from itertools import pairwise
from struct import Struct
from typing import TYPE_CHECKING, Any

from gateway import __version__
from gateway.audio import FRAME_BYTES
from gateway.call.call_record import CallRecord
from gateway.call.conversation.playback import Playout
from gateway.call.machine import CallMachine, MachineInput
from gateway.call.outputs import Output, Send
from gateway.call.plan import CallPlan, Prepared
from gateway.realtime.events import AudioDelta, ClientCommand
from gateway.text import json_text

if TYPE_CHECKING:
    from gateway.sip.call_audio import CallAudio
    from gateway.sip.leg import Leg
    from gateway.sip.signalling import MessageLog

FORMAT = 1
"""Version of the lines."""

KEPT_COMMANDS = 2000
"""Commands that an input may refer back to: it answers one of those sent last."""

KIND = "$"
"""Key of what JSON has no form for: the name of a class, or one of those below."""
BYTES, TUPLE, SET, MAP, PATTERN, FUNCTION, SENT = (
    "bytes", "tuple", "set", "map", "pattern", "function", "sent"
)  # fmt: skip
_NOT_KEPT = frozenset({"transcript", "_marks", "_mark_count", "_held"})
"""Fields of a record that a replay makes anew. Fields without ``repr`` are secrets, and are left
out of every class."""


class CommandNumbers:
    """Numbers the commands that a machine sends, so that an input can refer to one of them: in a
    replay it must have the very object that today's machine has sent."""

    def __init__(self) -> None:
        self._sent: dict[int, ClientCommand] = {}
        """By number, the oldest first."""
        self._numbers: dict[int, int] = {}
        """By the identity of a command in ``_sent``."""
        self._count = 0

    def add(self, todo: Iterable[Output]) -> None:
        """Number the commands of the :class:`Send` in these outputs; the last ``KEPT_COMMANDS`` are
        kept."""
        for output in todo:
            if type(output) is Send:
                self._sent[self._count] = output.command
                self._numbers[id(output.command)] = self._count
                self._count += 1
                if len(self._sent) > KEPT_COMMANDS:
                    number = next(iter(self._sent))
                    oldest = self._sent.pop(number)
                    if self._numbers.get(id(oldest)) == number:
                        del self._numbers[id(oldest)]

    def number_of(self, command: object) -> int | None:
        """Return the number of a command, by its identity; None of one that is not kept."""
        return self._numbers.get(id(command))

    def command(self, number: int) -> ClientCommand | None:
        """Return the command of a number; None where there was none, or too long ago."""
        return self._sent.get(number)


@cache
def _kept_fields(kind: type) -> tuple[str, ...]:
    """Return the names of a dataclass's fields that a black box has: those with ``repr``; of a
    record, without ``_NOT_KEPT``."""
    return tuple(
        one.name
        for one in fields(kind)
        if one.repr and not (kind is CallRecord and one.name in _NOT_KEPT)
    )


def plain(value: Any, commands: CommandNumbers | None = None) -> Any:
    """Return a value as JSON types; the inverse of :func:`gateway.bridge.replay.rebuilt`.

    A command that the machine has sent becomes its number in ``commands``. Raises TypeError for a
    value of a type without such a form.
    """
    if value is None or (isinstance(value, (int, float, str)) and not isinstance(value, Enum)):
        return value
    if isinstance(value, (bytes, bytearray)):
        return {KIND: BYTES, "length": len(value)}
    if isinstance(value, Enum):
        return {KIND: _name(type(value)), "value": value.value}
    if is_dataclass(value):
        number = None if commands is None else commands.number_of(value)
        if number is not None:
            return {KIND: SENT, "number": number}
        kind: Any = type(value)
        told: dict[str, Any] = {KIND: _name(kind)}
        for name in _kept_fields(kind):
            told[name] = plain(getattr(value, name), commands)
        return told
    if isinstance(value, Mapping):
        if all(isinstance(key, str) for key in value) and KIND not in value:
            return {key: plain(inner, commands) for key, inner in value.items()}
        pairs = [[plain(key), plain(inner, commands)] for key, inner in value.items()]
        return {KIND: MAP, "pairs": pairs}
    if isinstance(value, (list, deque)):
        return [plain(inner, commands) for inner in value]
    if isinstance(value, tuple):
        return {KIND: TUPLE, "of": [plain(inner, commands) for inner in value]}
    if isinstance(value, (set, frozenset)):
        return {KIND: SET, "of": sorted((plain(inner) for inner in value), key=repr)}
    if isinstance(value, re.Pattern):
        return {KIND: PATTERN, "pattern": value.pattern, "flags": value.flags}
    if callable(value):
        return {KIND: FUNCTION}
    raise TypeError(f"a black box cannot hold a {type(value).__name__}")


def masked_step(plain: Any) -> Any:
    """Return a step with 0 for each DTMF digit, and without transcript deltas.

    The keys # and * stay, since they end an entry.
    """
    if isinstance(plain, list):
        return [masked_step(inner) for inner in plain]
    if not isinstance(plain, dict):
        return plain
    return {
        key: re.sub(r"\d", "0", inner)
        if key == "digit"
        else ""
        if key == "delta"
        else masked_step(inner)
        for key, inner in plain.items()
    }


@cache
def _name(kind: type) -> str:
    """Return the name of a class with its module."""
    return f"{kind.__module__}.{kind.__qualname__}"


class AnswersRecorder:
    """Records what the machine is answered within a step: flushed frames, results of functions.

    Args:
        playout: the call's playout queue, which :meth:`flush` is passed on to.
    """

    def __init__(self, playout: Playout) -> None:
        self._playout = playout
        self._given: list[Any] = []

    def flush(self) -> int:
        """Flush the call's playout queue; record and return the number of frames that were not
        played."""
        self._given.append(frames := self._playout.flush())
        return frames

    def take(self) -> list[Any]:
        """Return the answers since the last call, in their order."""
        given, self._given = self._given, []
        return given

    def recorded(self, value: Any) -> Any:
        """Return a copy of a plan, or a value in it, whose functions record their results; the very
        value where it has no functions."""
        if is_dataclass(value) and not isinstance(value, type):
            kept = {
                one.name: self.recorded(getattr(value, one.name))
                for one in fields(value)
                if one.init
            }
            changed = {
                name: inner for name, inner in kept.items() if inner is not getattr(value, name)
            }
            return replace(value, **changed) if changed else value
        if isinstance(value, tuple):
            several = tuple(self.recorded(inner) for inner in value)
            same = all(one is other for one, other in zip(several, value, strict=True))
            return value if same else several
        if isinstance(value, Mapping):
            named = {key: self.recorded(inner) for key, inner in value.items()}
            return value if all(named[key] is value[key] for key in value) else named
        if callable(value) and not isinstance(value, (type, Enum)):
            return self._recording(value)
        return value

    def _recording(self, function: Callable[..., Any]) -> Callable[..., Any]:
        """Wrap a function so that its results are recorded."""

        def run(*arguments: Any) -> Any:
            result = function(*arguments)
            self._given.append(result)
            return result

        return run


class RecordedMachine(CallMachine):
    """A state machine that writes a line to the black box for each of its steps. What fails in that
    ends the black box (a line with ``ended``), never the call.

    Args:
        write: takes each line, without its end.
        masked: replace DTMF digits by 0, and leave out transcript deltas.
    """

    def __init__(
        self,
        plan: CallPlan,
        record: CallRecord,
        now: float,
        playout: Playout,
        write: Callable[[str], None],
        *,
        masked: bool = False,
    ) -> None:
        self._write: Callable[[str], None] | None = write
        """None after a line could not be written: what follows could not be replayed."""
        self._masks = masked
        self._answers = AnswersRecorder(playout)
        self._commands = CommandNumbers()
        self._put(
            lambda: {
                "black_box": FORMAT,
                "version": __version__,
                "masked": masked,
                "at": now,
                "plan": plain(plan),
                "record": plain(record),
            }
        )
        super().__init__(self._answers.recorded(plan), record, now, self._answers)

    def start(self, now: float) -> list[Output]:
        """Start the machine and record the step; see :meth:`CallMachine.start`."""
        return self._step(None, now, lambda: CallMachine.start(self, now))

    def handle(self, input: MachineInput, now: float) -> list[Output]:
        """Feed the machine and record the step; see :meth:`CallMachine.handle`."""
        if type(input) is Prepared:
            input = replace(input, plan=self._answers.recorded(input.plan))
        return self._step(input, now, lambda: CallMachine.handle(self, input, now))

    def more_audio(self, delta: AudioDelta) -> bytes | None:
        """Feed audio and record the step, without its time, if it was taken; see
        :meth:`CallMachine.more_audio`."""
        frames = CallMachine.more_audio(self, delta)
        if frames is not None:
            queued = len(frames)
            self._put(lambda: {"more": plain(delta), "queued": queued})
        return frames

    def _step(
        self, input: MachineInput | None, now: float, work: Callable[[], list[Output]]
    ) -> list[Output]:
        """Run a step of the machine, write its input, answers, outputs and deadline, and return the
        outputs. An exception of the machine is written (``raised``) and raised."""
        step: dict[str, Any] = {"at": now}
        self._attempt(lambda: step.update({"in": plain(input, self._commands)}))
        try:
            todo = work()
        except Exception as error:
            raised = repr(error)
            self._put(lambda: {**step, **self._asked(), "raised": raised})
            raise
        self._commands.add(todo)
        self._put(lambda: {**step, **self._asked(), "out": plain(todo), "due": self.deadline})
        return todo

    def _asked(self) -> dict[str, Any]:
        """Return the answers that the machine got in this step, as part of its line."""
        return {"asked": plain(self._answers.take())}

    def _put(self, made: Callable[[], dict[str, Any]]) -> None:
        """Write the line that ``made`` returns, masked where the black box is."""
        self._attempt(lambda: self._write_line(masked_step(made()) if self._masks else made()))

    def _attempt(self, work: Callable[[], None]) -> None:
        """Run ``work`` of the recording; an exception of it ends the black box, never the call.
        Nothing once it has ended."""
        if self._write is None:
            self._answers.take()
            return
        try:
            work()
        except Exception as error:
            self._write_line({"ended": repr(error)})
            self._write = None

    def _write_line(self, values: Mapping[str, Any]) -> None:
        """Write a line, of these values as JSON."""
        assert self._write is not None
        self._write(json_text(values))


PACKETS_BYTES = 128 * 1024
"""Headers of one leg that wait to be written: a minute of a call in which nothing happens."""
PAYLOAD_BYTES = 1024 * 1024
"""The same with payloads."""
SIP_BYTES = 8 * 1024 * 1024
"""Of the messages of one call; further ones are counted only."""

_PACKET = Struct("=QIIHHHBB")
"""As ``NativeCallAudio::takePackets`` has it."""


class WireLog:
    """Collects the SIP messages and RTP headers of a call for its black box.

    Args:
        messages: where the messages of calls wait.
        legs: returns the legs of the call so far, its own first, each with the audio that logs
            its packets, where there is one.
        with_payload: keep the payloads of RTP, too.
        masked: leave out DTMF digits: bodies other than SDP.
    """

    def __init__(
        self,
        messages: MessageLog,
        legs: Callable[[], Iterable[tuple[Leg, CallAudio | None]]],
        *,
        with_payload: bool,
        masked: bool,
    ) -> None:
        self._messages = messages
        self._on_wire = legs
        self._masked = masked
        self._sip_left = SIP_BYTES
        self._payload = with_payload and not masked
        self._legs: dict[Leg, int] = {}

    def log_packets(self, audio: CallAudio) -> None:
        """Have the RTP headers of an audio logged, and payloads where the black box has them."""
        audio.log_packets(PAYLOAD_BYTES if self._payload else PACKETS_BYTES, self._payload)

    def lines(self, last: bool = False) -> Iterator[dict[str, Any]]:
        """Yield the lines of SIP and RTP since the last call, first SIP, leg by leg; ``last``: no
        more messages are to be kept for this call."""
        streams = list(self._on_wire())
        for leg, _audio in streams:
            self._legs.setdefault(leg, len(self._legs))
        for leg, number in self._legs.items():  # those that others have replaced, too
            if leg.invite.sip_call_id:  # none in a browser
                yield from self._sip(leg.invite.sip_call_id, number, last)
        for leg, audio in streams:
            if audio is not None:
                yield from packet_lines(*audio.take_packets(), self._legs[leg])

    def _sip(self, call_id: str, leg: int, last: bool) -> Iterator[dict[str, Any]]:
        """Yield the lines of SIP of one leg, and one with the count of messages left out, if any:
        they came too fast, or the call has more than ``SIP_BYTES``."""
        messages, lost = self._messages.take(call_id, last=last)
        for one in messages:
            if len(one.data) > self._sip_left:
                lost += 1
                continue
            self._sip_left -= len(one.data)
            yield {
                "at": one.at,
                "sip": "out" if one.sent else "in",
                "leg": leg,
                "peer": one.peer,
                "transport": one.transport,
                "text": one.text(with_body=not self._masked),
            }
        if lost:
            yield {"sip_left_out": lost, "leg": leg}


def packet_lines(data: bytes, lost: int, leg: int = 0) -> Iterator[dict[str, Any]]:
    """Yield the lines of RTP for a leg, one for each direction that has packets.

    ``data`` are packets as ``NativeCallAudio::takePackets`` has them, ``lost`` how many more had no
    room.
    """
    ways: tuple[list[_Facts], list[_Facts]] = [], []
    payloads: tuple[list[bytes], list[bytes]] = [], []
    at = 0
    while at < len(data):
        *facts, kept, kind, sent = _PACKET.unpack_from(data, at)
        at += _PACKET.size
        ways[sent].append((*facts, kind))
        if kept:
            payloads[sent].append(data[at : at + kept])
            at += kept
    for name, packets, payload in zip(("in", "out"), ways, payloads, strict=True):
        if packets:
            yield _line(name, leg, packets, b"".join(payload))
    if lost:
        yield {"rtp_left_out": lost, "leg": leg}


_Facts = tuple[int, int, int, int, int, int]
"""Microseconds, SSRC, timestamp, sequence number, size of the payload, marker and type."""


def _line(name: str, leg: int, packets: Sequence[_Facts], payload: bytes) -> dict[str, Any]:
    """Return the line of RTP for packets of one direction (``in`` or ``out``) of a leg."""
    at, ssrc, timestamp, sequence, size, kind = packets[0]
    gaps: list[int] = []
    odd: list[list[int]] = []
    sizes = [one[4] for one in packets]
    differ = any(one != size for one in sizes)  # those of Opus do
    steps = Counter((after[2] - before[2]) & 0xFFFFFFFF for before, after in pairwise(packets))
    step = steps.most_common(1)[0][0] if steps else FRAME_BYTES
    line: dict[str, Any] = {
        "at": at / 1e6,
        "rtp": name,
        "leg": leg,
        "ssrc": ssrc,
        "type": kind & 0x7F,
        "marker": kind > 0x7F,
        "seq": sequence,
        "ts": timestamp,
        "size": size,
        "step": step,
        "gaps": gaps,
        "odd": odd,
    }
    if differ:
        line["sizes"] = sizes
    kind &= 0x7F
    told = 0
    for one in packets[1:]:
        # Counted from the first, so that rounding does not add up.
        now = (one[0] - at + 50) // 100
        gaps.append(now - told)
        told = now
        sequence, timestamp = (sequence + 1) & 0xFFFF, (timestamp + step) & 0xFFFFFFFF
        if one[1:] != (ssrc, timestamp, sequence, one[4] if differ else size, kind):
            _at, ssrc, timestamp, sequence, size, marked = one
            kind = marked & 0x7F
            odd.append([len(gaps), sequence, timestamp, ssrc, kind, size, int(marked > 0x7F)])
    if payload:
        line["payload"] = base64.b64encode(payload).decode()
    return line
