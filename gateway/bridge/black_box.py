# SPDX-License-Identifier: GPL-2.0-or-later
"""Black box of one call: the inputs and outputs of its state machine as lines of JSON.

:mod:`gateway.bridge.replay` feeds the inputs to the state machine of today.

The first line (``plan``, ``record``, ``at``) says how the machine was made. A line with ``in`` is a
step: ``at`` (s, the clock of the process), ``in`` (the input, null for the start), ``asked`` (what
the machine was answered within the step: frames taken back from the playout queue, results of
functions in the plan), ``out`` (its outputs) and ``due`` (its next deadline). Of audio only the
length is kept; a line with ``more`` is audio that follows on other audio, with the bytes that were
``queued`` of it. Other lines say what was on the wire (:mod:`gateway.bridge.wire_log`), how the
gateway was configured (``facts``) and, the last one, what became of the call (``record``).
"""

from __future__ import annotations

import json
import re
from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import fields, is_dataclass, replace
from enum import Enum
from functools import cache
from importlib import import_module
from pkgutil import walk_packages
from typing import Any, TypeVar, cast

import orjson

from gateway import __version__
from gateway.call.call_record import CallRecord
from gateway.call.machine import CallMachine, MachineInput
from gateway.call.outputs import Output, Send
from gateway.call.plan import CallPlan, Prepared
from gateway.call.playout.playback import Playout
from gateway.config.values import pattern_of
from gateway.realtime.events import AudioDelta, ClientCommand

FORMAT = 1
"""Version of the lines."""

MAX_BYTES = 16 * 1024 * 1024
"""Of audio in one input."""

MAX_AUDIO = 2 * 1024**3
"""Bytes of audio in a file: three days of G.711."""

KEPT_COMMANDS = 2000
"""Commands that an input may refer back to: it answers one of those sent last."""

KIND = "$"
"""Key of what JSON has no form for: the name of a class, or one of those below."""
_BYTES, _TUPLE, _SET, _MAP, _PATTERN, _FUNCTION, _SENT = (
    "bytes", "tuple", "set", "map", "pattern", "function", "sent"
)  # fmt: skip
_PACKAGES = ("gateway.call.", "gateway.realtime.", "gateway.audio.", "gateway.ending")
"""Where the classes of plans, inputs and outputs are: no other is made from a file."""
_NOT_KEPT = frozenset({"transcript", "_marks", "_mark_count", "_held"})
"""Fields of a record that the gateway makes anew. Fields that ``repr`` leaves out are secrets, and
kept of nothing."""

_JSON = frozenset({bool, int, float, str})

T = TypeVar("T")


class BlackBoxError(ValueError):
    """A file is no black box, or one of a version whose calls are not understood."""


class Commands:
    """Numbers the commands that the machine sends: in a replay, answers must name the same
    object."""

    def __init__(self) -> None:
        self._sent: dict[int, ClientCommand] = {}
        """By number, the oldest first."""
        self._numbers: dict[int, int] = {}
        """By the identity of a command in ``_sent``."""
        self._count = 0

    def note(self, todo: Iterable[Output]) -> None:
        """Number the commands that these outputs send."""
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

    def number(self, command: object) -> int | None:
        """Return the number of a command; None of one that was not sent."""
        return self._numbers.get(id(command))

    def numbered(self, number: int) -> ClientCommand | None:
        """Return the command of a number; None where there was none, or too long ago."""
        return self._sent.get(number)


@cache
def _kept_fields(kind: type) -> tuple[str, ...]:
    """Names of the fields of a dataclass that are kept."""
    return tuple(
        one.name
        for one in fields(kind)
        if one.repr and not (kind is CallRecord and one.name in _NOT_KEPT)
    )


def plain(value: Any, commands: Commands | None = None) -> Any:
    """Return a value as JSON types; the inverse of :func:`rebuilt`. Raises TypeError."""
    if value is None or type(value) in _JSON:
        return value
    if isinstance(value, (bool, int, float, str)) and not isinstance(value, Enum):
        return value
    if isinstance(value, (bytes, bytearray)):
        return {KIND: _BYTES, "length": len(value)}
    if isinstance(value, Enum):
        return {KIND: _name(type(value)), "value": value.value}
    if is_dataclass(value):
        number = None if commands is None else commands.number(value)
        if number is not None:
            return {KIND: _SENT, "number": number}
        kind: Any = type(value)
        told: dict[str, Any] = {KIND: _name(kind)}
        for name in _kept_fields(kind):
            told[name] = plain(getattr(value, name), commands)
        return told
    if isinstance(value, Mapping):
        if all(isinstance(key, str) for key in value) and KIND not in value:
            return {key: plain(inner, commands) for key, inner in value.items()}
        pairs = [[plain(key), plain(inner, commands)] for key, inner in value.items()]
        return {KIND: _MAP, "pairs": pairs}
    if isinstance(value, (list, deque)):
        return [plain(inner, commands) for inner in value]
    if isinstance(value, tuple):
        return {KIND: _TUPLE, "of": [plain(inner, commands) for inner in value]}
    if isinstance(value, (set, frozenset)):
        return {KIND: _SET, "of": sorted((plain(inner) for inner in value), key=repr)}
    if isinstance(value, re.Pattern):
        return {KIND: _PATTERN, "pattern": value.pattern, "flags": value.flags}
    if callable(value):
        return {KIND: _FUNCTION}
    raise TypeError(f"a black box cannot hold a {type(value).__name__}")


def masked_step(plain: Any) -> Any:
    """Return a step without DTMF digits, and without words that come in parts.

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


def alike(plain: Any) -> Any:
    """Return outputs with all digits alike: those of a masked black box are not the call's."""
    if isinstance(plain, list):
        return [alike(inner) for inner in plain]
    if isinstance(plain, dict):
        return {key: alike(inner) for key, inner in plain.items()}
    # As they are read out, too: a mask has no pauses.
    return re.sub(r"[\d*](?: ?[\d*])*", "0", plain) if isinstance(plain, str) else plain


@cache
def _name(kind: type) -> str:
    return f"{kind.__module__}.{kind.__qualname__}"


def rebuilt(plain: Any, answers: Answers, commands: Commands) -> Any:
    """Return the value that :func:`plain` was given; functions are answered from ``answers``."""
    if isinstance(plain, list):
        return [rebuilt(inner, answers, commands) for inner in plain]
    if not isinstance(plain, dict):
        return plain
    kind = plain.get(KIND)
    if kind is None:
        return {key: rebuilt(inner, answers, commands) for key, inner in plain.items()}
    if kind == _BYTES:
        return bytes(answers.counted(plain["length"]))
    if kind in (_TUPLE, _SET):
        of = [rebuilt(inner, answers, commands) for inner in plain["of"]]
        return tuple(of) if kind == _TUPLE else frozenset(of)
    if kind == _MAP:
        return {
            rebuilt(key, answers, commands): rebuilt(inner, answers, commands)
            for key, inner in plain["pairs"]
        }
    if kind == _PATTERN:
        pattern_of(plain["pattern"])  # raises for one that takes forever
        return re.compile(plain["pattern"], plain["flags"])
    if kind == _FUNCTION:
        return answers.next
    if kind == _SENT:
        return commands.numbered(plain["number"])
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
    """Return the class that a black box names. Raises BlackBoxError for any that is no call's."""
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
    return isinstance(found, type) and (is_dataclass(found) or issubclass(found, Enum))


def _moved(module: str, kind: str) -> Any:
    """Return the class of this name that has another module in this version: in the same package,
    or else in any; None where there is none, or several."""
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


class Answers:
    """Records what the machine is answered within a step; in a replay, returns it in the same
    order."""

    def __init__(self, playout: Playout | None = None) -> None:
        self._playout = playout
        self._bytes = 0
        self.given: list[Any] = []

    def counted(self, length: int) -> int:
        """Return the length of audio to be made. Raises BlackBoxError where it is no call's."""
        if type(length) is not int or not 0 <= length <= MAX_BYTES:
            raise BlackBoxError("no length of audio")
        self._bytes += length
        if self._bytes > MAX_AUDIO:
            raise BlackBoxError("more audio than a call has")
        return length

    def flush(self) -> int:
        """Return the flushed frames; see :class:`gateway.call.playout.playback.Playout`."""
        if self._playout is None:
            return int(self.next() or 0)
        self.given.append(self._playout.flush())
        return cast(int, self.given[-1])

    def next(self, *_arguments: Any) -> Any:
        """Return the next recorded answer; None when the machine asks more often than it did."""
        return self.given.pop(0) if self.given else None

    def take(self) -> list[Any]:
        """Return the answers since the last call."""
        given, self.given = self.given, []
        return given

    def noted(self, value: T) -> T:
        """Return a plan in which the results of functions are recorded."""
        return cast(T, self._noted(value))

    def _noted(self, value: Any) -> Any:
        """Return a copy of a value with its functions wrapped by :meth:`_noting`."""
        if is_dataclass(value) and not isinstance(value, type):
            kept = {
                one.name: self._noted(getattr(value, one.name)) for one in fields(value) if one.init
            }
            changed = {
                name: inner for name, inner in kept.items() if inner is not getattr(value, name)
            }
            return replace(value, **changed) if changed else value
        if isinstance(value, tuple):
            several = tuple(self._noted(inner) for inner in value)
            same = all(one is other for one, other in zip(several, value, strict=True))
            return value if same else several
        if isinstance(value, Mapping):
            named = {key: self._noted(inner) for key, inner in value.items()}
            return value if all(named[key] is value[key] for key in value) else named
        if callable(value) and not isinstance(value, (type, Enum)):
            return self._noting(value)
        return value

    def _noting(self, function: Callable[..., Any]) -> Callable[..., Any]:
        """Wrap a function so that its results are recorded."""

        def run(*arguments: Any) -> Any:
            result = function(*arguments)
            self.given.append(result)
            return result

        return run


class RecordedMachine(CallMachine):
    """A state machine that writes a line for each of its steps.

    Args:
        write: takes each line.
        masked: leave DTMF digits out.
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
        """None once something could not be written: what follows cannot be replayed."""
        self._masks = masked
        self._answers = Answers(playout)
        self._commands = Commands()
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
        super().__init__(self._answers.noted(plan), record, now, self._answers)

    def start(self, now: float) -> list[Output]:
        """Start the machine and record the step; see :meth:`CallMachine.start`."""
        return self._step(None, now, lambda: CallMachine.start(self, now))

    def handle(self, input: MachineInput, now: float) -> list[Output]:
        """Feed the machine and record the step; see :meth:`CallMachine.handle`."""
        if type(input) is Prepared:
            input = replace(input, plan=self._answers.noted(input.plan))
        return self._step(input, now, lambda: CallMachine.handle(self, input, now))

    def more_audio(self, delta: AudioDelta) -> bytes | None:
        """Feed audio and record the step, without its time; see :meth:`CallMachine.more_audio`."""
        frames = CallMachine.more_audio(self, delta)
        if frames is not None:
            queued = len(frames)
            self._put(lambda: {"more": plain(delta), "queued": queued})
        return frames

    def _step(
        self, input: MachineInput | None, now: float, work: Callable[[], list[Output]]
    ) -> list[Output]:
        """Run a step of the machine, and write its input, answers, outputs and deadline."""
        step: dict[str, Any] = {"at": now}
        self._attempt(lambda: step.update({"in": plain(input, self._commands)}))
        try:
            todo = work()
        except Exception as error:
            raised = repr(error)
            self._put(lambda: {**step, **self._asked(), "raised": raised})
            raise
        self._commands.note(todo)
        self._put(lambda: {**step, **self._asked(), "out": plain(todo), "due": self.deadline})
        return todo

    def _asked(self) -> dict[str, Any]:
        return {"asked": plain(self._answers.take())}

    def _put(self, made: Callable[[], dict[str, Any]]) -> None:
        """Write a line, masked where the black box is."""
        self._attempt(lambda: self._write_line(masked_step(made()) if self._masks else made()))

    def _attempt(self, work: Callable[[], None]) -> None:
        """Run a part of the recording; an exception ends the black box, never the call."""
        if self._write is None:
            self._answers.take()
            return
        try:
            work()
        except Exception as error:
            self._write_line({"ended": repr(error)})
            self._write = None

    def _write_line(self, values: Mapping[str, Any]) -> None:
        assert self._write is not None
        try:
            line = orjson.dumps(values).decode()
        except TypeError:  # a surrogate, or a number of more than 64 bits
            line = json.dumps(values, separators=(",", ":"))
        self._write(line)
