# SPDX-License-Identifier: GPL-2.0-or-later
"""Reading and replay of black boxes: the inputs of a call are fed to the state machine of this
version on the clock of the call, and its outputs are compared with those of the call.
"""

from __future__ import annotations

import gzip
import json
import math
import re
import zlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields, is_dataclass
from enum import Enum
from functools import cache
from importlib import import_module
from pathlib import Path
from pkgutil import walk_packages
from typing import Any, cast

from gateway import __version__
from gateway.audio import FRAME_BYTES
from gateway.bridge.black_box import (
    BYTES,
    FORMAT,
    FUNCTION,
    KIND,
    MAP,
    PATTERN,
    SENT,
    SET,
    TUPLE,
    CommandNumbers,
    plain,
)
from gateway.call.call_record import CallRecord
from gateway.call.inputs import ServerEventReceived
from gateway.call.machine import CallMachine
from gateway.call.outputs import Play
from gateway.config.values import pattern_of
from gateway.realtime.events import AudioDelta

MAX_LINE = 32 * 1024 * 1024
"""Characters of a line; the longest are answers of tools."""
MAX_FILE = 1024**3
"""Characters of a file, unpacked."""
MAX_SECONDS = 7 * 86_400.0
"""The longest call that is replayed."""
MAX_BYTES = 16 * 1024 * 1024
"""Bytes of audio in one input."""

MAX_AUDIO = 2 * 1024**3
"""Bytes of audio in a file: three days of G.711."""

_PACKAGES = ("gateway.call.", "gateway.realtime.", "gateway.audio.", "gateway.ending")
"""Packages of plans, inputs and outputs: a file can make no objects of other classes."""


class BlackBoxError(ValueError):
    """A file is no black box, or one that this version does not read."""


@dataclass(frozen=True, slots=True)
class Difference:
    """A step whose outputs today are not those of the call."""

    line: int
    at: float
    """Seconds since the machine was made."""
    input: str
    recorded: Sequence[Any]
    today: Sequence[Any]

    def lines(self) -> Iterator[str]:
        """Yield a heading, outputs of the call only (``-``), and of today only (``+``); where just
        their order differs, both orders."""
        yield f"{_clock(self.at)}  {self.input}  (line {self.line})"
        for sign, done, other in (
            ("-", self.recorded, self.today), ("+", self.today, self.recorded),
        ):  # fmt: skip
            yield from (f"  {sign} {short_text(one)}" for one in done if one not in other)
        if all(one in self.today for one in self.recorded) and all(
            one in self.recorded for one in self.today
        ):
            yield f"  - in this order: {', '.join(map(short_text, self.recorded))}"
            yield f"  + in this order: {', '.join(map(short_text, self.today))}"


@dataclass(frozen=True, slots=True)
class Replay:
    """Result of a replay."""

    record: CallRecord
    """Record of the replayed call; without figures of media and cost."""
    version: str
    """Of the gateway that wrote the file."""
    steps: int
    seconds: float
    """From the first step to the last."""
    differences: Sequence[Difference]
    stopped: bool
    """Replay ended early, after the most differences that were asked for."""


def read_lines(file: Path) -> Iterator[str]:
    """Yield the lines of a black box, which may be packed with gzip, up to where a crash cut it.

    Raises BlackBoxError for a file that is too large or damaged, and OSError.
    """
    left = MAX_FILE
    with file.open("rb") as raw:
        packed = raw.read(2) == b"\x1f\x8b"
    try:
        with gzip.open(file, "rb") if packed else file.open("rb") as stream:
            while line := stream.readline(MAX_LINE):
                left -= len(line)
                if left < 0 or (len(line) == MAX_LINE and not line.endswith(b"\n")):
                    raise BlackBoxError("longer than any black box")
                yield line.decode("utf-8", "replace")
    except EOFError:
        return  # cut, as a crash leaves it
    except (gzip.BadGzipFile, zlib.error) as error:
        raise BlackBoxError(f"cannot be unpacked: {error}") from error


def replay(lines: Iterable[str], most: int = 20) -> Replay:
    """Feed the inputs of a black box to the state machine; stop after ``most`` differences.

    Raises BlackBoxError for lines that are no black box, or one of another format.
    """
    steps = parsed_lines(lines)
    head = next(steps, None)
    if head is None or "black_box" not in head:
        raise BlackBoxError("line 1: no black box")
    if head["black_box"] != FORMAT:
        raise BlackBoxError(
            f"line 1: a black box of format {str(head['black_box'])[:20]}, written by version "
            f"{str(head.get('version'))[:40]}; this version reads format {FORMAT}"
        )
    try:
        return _replay(head, steps, most)
    except BlackBoxError:
        raise
    except Exception as error:  # whatever a strange file brings about
        raise BlackBoxError(f"not understood: {error!r:.300}") from error


def _replay(head: Mapping[str, Any], steps: Iterable[Mapping[str, Any]], most: int) -> Replay:
    """Do as :func:`replay` with the first line and the others, parsed; raises any exception."""
    answers, commands = RecordedAnswers(), CommandNumbers()
    record = rebuilt(head["record"], answers, commands)
    began = last = head["at"]
    machine = CallMachine(rebuilt(head["plan"], answers, commands), record, began, answers)
    answers.given.clear()
    count, differences = 0, list[Difference]()
    for number, step in enumerate(steps, 2):
        if "more" in step:
            name = "AudioDelta"
            recorded = [{"queued": step["queued"]}]
            today = _feed_audio(machine, rebuilt(step["more"], answers, commands), last, commands)
        elif "in" in step:
            if not 0 <= step["at"] - began <= MAX_SECONDS:
                raise BlackBoxError(f"line {number}: no time of the call")
            last = step["at"]
            name = "start" if step["in"] is None else _short(step["in"][KIND], step["in"])
            answers.given = rebuilt(step["asked"], answers, commands)
            today = _feed_step(machine, step, answers, commands)
            recorded = (
                [step["raised"]] if "raised" in step else [*step["out"], {"due": step["due"]}]
            )
        else:
            continue  # what was on the wire, and what is to be known besides
        count += 1
        if head.get("masked"):
            recorded, today = without_digits(recorded), without_digits(today)
        if _comparable(today) != _comparable(recorded):
            told = _since(recorded, began), _since(today, began)
            differences.append(Difference(number, last - began, name, *told))
            if len(differences) >= most:
                break
    stopped = len(differences) >= most
    version = str(head.get("version", __version__))
    return Replay(record, version, count, last - began, differences, stopped)


def _feed_audio(
    machine: CallMachine, delta: AudioDelta, now: float, commands: CommandNumbers
) -> list[Any]:
    """Feed audio that follows other audio; return the outputs as a line with ``more`` has them,
    also where today's machine takes it as an input of its own and only queues it."""
    frames = machine.more_audio(delta)
    if frames is not None:
        return [{"queued": len(frames)}]
    todo = machine.handle(ServerEventReceived(delta), now)
    commands.add(todo)
    if all(type(output) is Play for output in todo):
        return [{"queued": sum(len(one.audio) for one in todo if type(one) is Play)}]
    return cast("list[Any]", json.loads(json.dumps(plain(todo))))


def _feed_step(
    machine: CallMachine,
    step: Mapping[str, Any],
    answers: RecordedAnswers,
    commands: CommandNumbers,
) -> list[Any]:
    """Feed the input of a recorded step, or start the machine; return the outputs and deadline as
    its line has them, or the exception that was raised."""
    given = rebuilt(step["in"], answers, commands)
    try:
        todo = machine.start(step["at"]) if given is None else machine.handle(given, step["at"])
    except Exception as error:
        return [repr(error)]
    commands.add(todo)
    # Through JSON, as what it is compared with.
    return cast("list[Any]", json.loads(json.dumps([*plain(todo), {"due": machine.deadline}])))


def _comparable(value: Any) -> Any:
    """Return outputs in the form in which those of two versions are compared: without empty fields,
    which newer versions have more of, and with classes by name, as modules change."""
    if isinstance(value, list):
        return [_comparable(inner) for inner in value]
    if not isinstance(value, dict):
        return value
    told = {
        key: inner.rpartition(".")[2]
        if key == KIND and isinstance(inner, str)
        else _comparable(inner)
        for key, inner in value.items()
    }
    return {key: inner for key, inner in told.items() if key == "due" or not _is_nothing(inner)}


def _is_nothing(value: Any) -> bool:
    """Return whether a value is the default of most fields: None, False, or empty."""
    return value is None or value is False or value in ("", [], {}, {KIND: "tuple"})


def _since(done: Sequence[Any], began: float) -> list[Any]:
    """Return outputs in which the next deadline is relative to ``began`` (s)."""
    return [
        {"due": round(one["due"] - began, 3)}
        if isinstance(one, dict) and one.keys() == {"due"} and isinstance(one["due"], int | float)
        else one
        for one in done
    ]


def parsed_lines(lines: Iterable[str]) -> Iterator[Mapping[str, Any]]:
    """Yield each line as JSON object; an incomplete last line is passed over.

    Raises BlackBoxError for anything else, and where recording was ended by an error.
    """
    for number, line in enumerate(lines, 1):
        try:
            read = json.loads(line, parse_constant=_no_number)
        except (ValueError, RecursionError) as error:
            if number > 1 and not line.endswith("\n"):
                return  # the process was killed while it was written
            raise BlackBoxError(f"line {number}: no JSON: {error}") from error
        if not isinstance(read, dict):
            raise BlackBoxError(f"line {number}: no object")
        if "ended" in read:
            raise BlackBoxError(f"line {number}: it was not written on: {read['ended']}")
        if not math.isfinite(_number(read.get("at", 0))):
            raise BlackBoxError(f"line {number}: no time")
        yield read


def _no_number(text: str) -> float:
    """Raise ValueError for NaN and infinity, which JSON does not have."""
    raise ValueError(f"{text} is no number of JSON")


def _number(value: object) -> float:
    """Return a number as it is; NaN for anything else, and for one beyond 1e15."""
    return value if isinstance(value, int | float) and abs(value) < 1e15 else math.nan


def short_text(output: Any) -> str:
    """Return an output, or a part of one, as short text: ``Send(TruncateItem(item_id='a'))``."""
    if isinstance(output, list):
        return f"[{', '.join(map(short_text, output))}]"
    if not isinstance(output, dict):
        return repr(output)
    if output.keys() == {"due"}:
        due = output["due"]
        return "next deadline: none" if due is None else f"next deadline: {_clock(due)}"
    kind = output.get(KIND)
    if kind == BYTES:
        return f"{output.get('length')} bytes"
    if isinstance(kind, str) and "." in kind:
        return _short(kind, output)
    told = (f"{key}: {short_text(value)}" for key, value in output.items() if key != KIND)
    return f"{{{', '.join(told)}}}"


def _short(kind: str, fields: Mapping[str, Any]) -> str:
    """Return class name and non-empty fields as short text; of a class with one field only its
    value."""
    name = kind.rpartition(".")[2]
    told = [(key, value) for key, value in fields.items() if key != KIND]
    if [key for key, _value in told] in (["command"], ["event"], ["value"]):
        return f"{name}({short_text(told[0][1])})"
    given = (f"{key}={short_text(value)}" for key, value in told if value not in (None, "", [], {}))
    return f"{name}({', '.join(given)})" if told else name


def _clock(seconds: float) -> str:
    """Return seconds as ``m:ss.mmm``."""
    return f"{int(seconds // 60)}:{seconds % 60:06.3f}"


def shortened(lines: Iterable[str]) -> Iterator[str]:
    """Yield the lines that a replay needs: none of SIP and RTP, and no incomplete last line."""
    for read in parsed_lines(lines):
        if "in" in read or "more" in read or "black_box" in read:
            yield json.dumps(read, ensure_ascii=False, separators=(",", ":")) + "\n"


class RecordedAnswers:
    """Answers the machine in a replay, in the order of the call.

    It is the machine's playout queue, and :meth:`next` stands for each function of its plan.
    """

    def __init__(self) -> None:
        self.given: list[Any] = []
        """Answers that are left of the step."""
        self._bytes = 0

    def next(self, *_arguments: Any) -> Any:
        """Return the next recorded answer; None when the machine asks more often than it did."""
        return self.given.pop(0) if self.given else None

    def flush(self) -> int:
        """Return the number of frames that were flushed in the call, in place of flushing."""
        return int(self.next() or 0)

    def audio(self, length: object) -> bytes:
        """Return ``length`` bytes in place of audio. Raises BlackBoxError for more than a call
        has."""
        if type(length) is not int or not 0 <= length <= MAX_BYTES:
            raise BlackBoxError("no length of audio")
        self._bytes += length
        if self._bytes > MAX_AUDIO:
            raise BlackBoxError("more audio than a call has")
        return bytes(length)


def rebuilt(plain: Any, answers: RecordedAnswers, commands: CommandNumbers) -> Any:
    """Return the value that :func:`gateway.bridge.black_box.plain` was given.

    Its functions return what ``answers`` has. Raises BlackBoxError and others for damaged input.
    """
    if isinstance(plain, list):
        return [rebuilt(inner, answers, commands) for inner in plain]
    if not isinstance(plain, dict):
        return plain
    kind = plain.get(KIND)
    if kind is None:
        return {key: rebuilt(inner, answers, commands) for key, inner in plain.items()}
    if kind == BYTES:
        return answers.audio(plain["length"])
    if kind in (TUPLE, SET):
        of = [rebuilt(inner, answers, commands) for inner in plain["of"]]
        return tuple(of) if kind == TUPLE else frozenset(of)
    if kind == MAP:
        return {
            rebuilt(key, answers, commands): rebuilt(inner, answers, commands)
            for key, inner in plain["pairs"]
        }
    if kind == PATTERN:
        pattern_of(plain["pattern"])  # raises for one that takes forever
        return re.compile(plain["pattern"], plain["flags"])
    if kind == FUNCTION:
        return answers.next
    if kind == SENT:
        return commands.command(plain["number"])
    found = _class(kind)
    if issubclass(found, Enum):
        return found(plain["value"])
    known = {one.name: one for one in fields(found)}
    values = {
        key: rebuilt(inner, answers, commands)
        for key, inner in plain.items()
        if key != KIND and key in known
    }
    made = found(**{key: value for key, value in values.items() if known[key].init})
    for key, value in values.items():
        if not known[key].init:
            object.__setattr__(made, key, value)
    return made


def _class(name: str) -> Any:
    """Return the class of this name, also if its module has changed since. Raises BlackBoxError for
    one that is not of a call, or that this version has not."""
    module, _, kind = name.rpartition(".")
    if not f"{module}.".startswith(_PACKAGES):
        raise BlackBoxError(f"{name!r} is no class of a call")
    try:
        found = getattr(import_module(module), kind)
    except (ImportError, AttributeError):
        found = _moved(module, kind)
        if found is None:
            raise BlackBoxError(f"this version has no {name}") from None
    if not _is_kept(found):
        raise BlackBoxError(f"{name!r} is no class of a call")
    return found


def _is_kept(found: object) -> bool:
    """Return whether a value is a class that a black box may name: a dataclass or an Enum."""
    return isinstance(found, type) and (is_dataclass(found) or issubclass(found, Enum))


def _moved(module: str, kind: str) -> Any:
    """Return the class that has moved to another module since: in the same package, or else in any.

    None where there is none, or several of that name.
    """
    package = ".".join(module.split(".")[:2])
    for packages in ((package,), tuple(one.rstrip(".") for one in _PACKAGES)):
        found = [one for package in packages for one in _classes(package).get(kind, ())]
        if found:
            return found[0] if len(found) == 1 else None
    return None


@cache
def _classes(package: str) -> Mapping[str, Sequence[type]]:
    """Return the classes of a package by their names."""
    root = import_module(package)
    modules = [root]
    if hasattr(root, "__path__"):
        modules += [import_module(one.name) for one in walk_packages(root.__path__, f"{package}.")]
    found: dict[str, list[type]] = {}
    for module in modules:
        for kind, one in vars(module).items():
            if _is_kept(one) and one.__module__ == module.__name__:
                found.setdefault(kind, []).append(one)
    return found


def without_digits(plain: Any) -> Any:
    """Return outputs with 0 for digits, however many, as a masked black box has not those of the
    call."""
    if isinstance(plain, list):
        return [without_digits(inner) for inner in plain]
    if isinstance(plain, dict):
        return {key: without_digits(inner) for key, inner in plain.items()}
    # As they are read out, too: a mask has no pauses.
    return re.sub(r"[\d*](?: ?[\d*])*", "0", plain) if isinstance(plain, str) else plain


@dataclass(frozen=True, slots=True)
class Packet:
    """The header of an RTP packet (RFC 3550 section 5.1), and when it came or was sent."""

    at: float
    """``time.monotonic()`` seconds."""
    ssrc: int
    timestamp: int
    sequence: int
    size: int
    """Bytes of payload."""
    type: int
    marker: bool = False


def packets_of(line: Mapping[str, Any]) -> list[Packet]:
    """Return the packets of a line of RTP. Raises KeyError, TypeError or ValueError."""
    odd = {index: facts for index, *facts in line["odd"]}
    step = line.get("step", FRAME_BYTES)
    sizes = line.get("sizes")
    if sizes and len(sizes) <= len(line["gaps"]):
        raise ValueError("a line of RTP has fewer sizes than packets")
    one = Packet(
        line["at"], line["ssrc"], line["ts"], line["seq"], line["size"], line["type"],
        bool(line["marker"]),
    )  # fmt: skip
    packets = [one]
    for index, gap in enumerate(line["gaps"], 1):
        sequence, timestamp, ssrc, kind, size, marker = odd.get(index) or (
            (one.sequence + 1) & 0xFFFF,
            (one.timestamp + step) & 0xFFFFFFFF,
            one.ssrc,
            one.type,
            sizes[index] if sizes else one.size,
            0,
        )
        one = Packet(one.at + gap / 10_000, ssrc, timestamp, sequence, size, kind, bool(marker))
        packets.append(one)
    return packets
