# SPDX-License-Identifier: GPL-2.0-or-later
"""Replay of a black box: its inputs are fed to the state machine of today, on the clock of the
call, and what the machine does otherwise than it did in the call is a difference.
"""

from __future__ import annotations

import gzip
import json
import math
import zlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from gateway import __version__
from gateway.bridge.black_box import (
    FORMAT,
    KIND,
    Answers,
    BlackBoxError,
    Commands,
    alike,
    plain,
    rebuilt,
)
from gateway.call.call_record import CallRecord
from gateway.call.inputs import ServerEventReceived
from gateway.call.machine import CallMachine
from gateway.call.outputs import Play
from gateway.realtime.events import AudioDelta

MAX_LINE = 32 * 1024 * 1024
"""Characters of a line; the longest are answers of tools."""
MAX_FILE = 1024**3
"""Characters of a file, unpacked."""
MAX_SECONDS = 7 * 86_400.0
"""The longest call that is replayed."""


@dataclass(frozen=True, slots=True)
class Difference:
    """A step at which the machine of today did something else."""

    line: int
    at: float
    """Seconds since the machine was made."""
    input: str
    recorded: Sequence[Any]
    today: Sequence[Any]

    def lines(self) -> Iterator[str]:
        """Return what only the call had (``-``) and what is new today (``+``), in few words."""
        yield f"{_clock(self.at)}  {self.input}  (line {self.line})"
        for sign, done, other in (
            ("-", self.recorded, self.today), ("+", self.today, self.recorded),
        ):  # fmt: skip
            yield from (f"  {sign} {words(one)}" for one in done if one not in other)
        if all(one in self.today for one in self.recorded) and all(
            one in self.recorded for one in self.today
        ):
            yield f"  - in this order: {', '.join(map(words, self.recorded))}"
            yield f"  + in this order: {', '.join(map(words, self.today))}"


@dataclass(frozen=True, slots=True)
class Replay:
    """Outcome of feeding a black box to the machine: what it now does otherwise."""

    record: CallRecord
    """As the machine of today has left it; of media and cost it knows nothing."""
    version: str
    """Of the gateway that wrote the file."""
    steps: int
    seconds: float
    """From the first step to the last."""
    differences: Sequence[Difference]
    stopped: bool
    """There may be further differences."""

    @property
    def call_id(self) -> str:
        return self.record.call_id


def read_lines(file: Path) -> Iterator[str]:
    """Return the lines of a file, which may be packed with gzip.

    Raises BlackBoxError, and OSError for a file that cannot be read.
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
    """Feed a black box to the state machine of today; stops after ``most`` differences.

    Raises BlackBoxError for what is no black box.
    """
    steps = values(lines)
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
    """Feed each step to a machine of this version, and compare its outputs with the recorded
    ones. Raises BlackBoxError."""
    answers, commands = Answers(), Commands()
    record = rebuilt(head["record"], answers, commands)
    began = last = head["at"]
    machine = CallMachine(rebuilt(head["plan"], answers, commands), record, began, answers)
    answers.take()
    count, differences = 0, list[Difference]()
    for number, step in enumerate(steps, 2):
        if "more" in step:
            name = "AudioDelta"
            recorded = [{"queued": step["queued"]}]
            today = _more(machine, rebuilt(step["more"], answers, commands), last, commands)
        elif "in" in step:
            if not 0 <= step["at"] - began <= MAX_SECONDS:
                raise BlackBoxError(f"line {number}: no time of the call")
            last = step["at"]
            name = "start" if step["in"] is None else _short(step["in"][KIND], step["in"])
            answers.given = rebuilt(step["asked"], answers, commands)
            today = _again(machine, step, answers, commands)
            recorded = (
                [step["raised"]] if "raised" in step else [*step["out"], {"due": step["due"]}]
            )
        else:
            continue  # what was on the wire, and what is to be known besides
        count += 1
        if head.get("masked"):
            recorded, today = alike(recorded), alike(today)
        if _told(today) != _told(recorded):
            told = _since(recorded, began), _since(today, began)
            differences.append(Difference(number, last - began, name, *told))
            if len(differences) >= most:
                break
    stopped = len(differences) >= most
    version = str(head.get("version", __version__))
    return Replay(record, version, count, last - began, differences, stopped)


def _more(machine: CallMachine, delta: AudioDelta, now: float, commands: Commands) -> list[Any]:
    """Return the outputs for audio that follows other audio."""
    frames = machine.more_audio(delta)
    if frames is not None:
        return [{"queued": len(frames)}]
    todo = machine.handle(ServerEventReceived(delta), now)
    commands.note(todo)
    if all(type(output) is Play for output in todo):
        return [{"queued": sum(len(one.audio) for one in todo if type(one) is Play)}]
    return cast("list[Any]", json.loads(json.dumps(plain(todo))))


def _again(
    machine: CallMachine, step: Mapping[str, Any], answers: Answers, commands: Commands
) -> list[Any]:
    """Return the outputs for a recorded step, in the form of its line."""
    given = rebuilt(step["in"], answers, commands)
    try:
        todo = machine.start(step["at"]) if given is None else machine.handle(given, step["at"])
    except Exception as error:
        return [repr(error)]
    commands.note(todo)
    # Through JSON, as what it is compared with.
    return cast("list[Any]", json.loads(json.dumps([*plain(todo), {"due": machine.deadline}])))


def _told(value: Any) -> Any:
    """Return outputs without empty fields, since newer versions have more fields, and classes by
    their names, since other versions have them in other modules."""
    if isinstance(value, list):
        return [_told(inner) for inner in value]
    if not isinstance(value, dict):
        return value
    told = {
        key: inner.rpartition(".")[2] if key == KIND and isinstance(inner, str) else _told(inner)
        for key, inner in value.items()
    }
    return {key: inner for key, inner in told.items() if key == "due" or not _is_nothing(inner)}


def _is_nothing(value: Any) -> bool:
    return value is None or value is False or value in ("", [], {}, {KIND: "tuple"})


def _since(done: Sequence[Any], began: float) -> list[Any]:
    """Return outputs in which the next deadline is relative to the beginning (s)."""
    return [
        {"due": round(one["due"] - began, 3)}
        if isinstance(one, dict) and one.keys() == {"due"} and isinstance(one["due"], int | float)
        else one
        for one in done
    ]


def values(lines: Iterable[str]) -> Iterator[Mapping[str, Any]]:
    """Yield the objects of the lines; the last line may be incomplete after a crash.

    Raises BlackBoxError.
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
    raise ValueError(f"{text} is no number of JSON")


def _number(value: object) -> float:
    return value if isinstance(value, int | float) and abs(value) < 1e15 else math.nan


def words(output: Any) -> str:
    """Return an output, or a part of one, as short text: ``Send(TruncateItem(item_id='a'))``."""
    if isinstance(output, list):
        return f"[{', '.join(map(words, output))}]"
    if not isinstance(output, dict):
        return repr(output)
    if output.keys() == {"due"}:
        due = output["due"]
        return "next deadline: none" if due is None else f"next deadline: {_clock(due)}"
    kind = output.get(KIND)
    if kind == "bytes":
        return f"{output.get('length')} bytes"
    if isinstance(kind, str) and "." in kind:
        return _short(kind, output)
    told = (f"{key}: {words(value)}" for key, value in output.items() if key != KIND)
    return f"{{{', '.join(told)}}}"


def _short(kind: str, fields: Mapping[str, Any]) -> str:
    """Return class name and non-empty fields as short text."""
    name = kind.rpartition(".")[2]
    told = [(key, value) for key, value in fields.items() if key != KIND]
    if [key for key, _value in told] in (["command"], ["event"], ["value"]):
        return f"{name}({words(told[0][1])})"
    given = (f"{key}={words(value)}" for key, value in told if value not in (None, "", [], {}))
    return f"{name}({', '.join(given)})" if told else name


def _clock(seconds: float) -> str:
    return f"{int(seconds // 60)}:{seconds % 60:06.3f}"


def shortened(lines: Iterable[str]) -> Iterator[str]:
    """Yield the lines that a replay needs: none of SIP and RTP, and no incomplete last line."""
    for read in values(lines):
        if "in" in read or "more" in read or "black_box" in read:
            yield json.dumps(read, ensure_ascii=False, separators=(",", ":")) + "\n"
