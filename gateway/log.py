# SPDX-License-Identifier: GPL-2.0-or-later
"""Logging: structlog to JSON lines or a console, with secrets removed.

Lines of the standard library's ``logging`` (asyncio, websockets) take the same way, so that every
line has one form and passes the same filter. Tracebacks show no local variables: those hold
keys, and a shortened one would pass any filter. A log that cannot be written loses lines and
counts them; it never raises into a call.
"""

from __future__ import annotations

import atexit
import contextlib
import io
import json
import logging
import os
import queue
import re
import sys
import threading
import weakref
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any, TextIO
from urllib.parse import quote

import structlog
from structlog.tracebacks import ExceptionDictTransformer
from structlog.typing import EventDict, Processor

from gateway.text import PrivateDigits, printable, printable_in

_SHORTEST_SECRET = 4
"""Shorter ones would blank out plain words; the configuration has none worth hiding."""

BLANK = "***"


def _without_probes(_logger: Any, method: str, event: EventDict) -> EventDict:
    """Drop lines below warning about the sessions of health checks."""
    if event.get("probe") and method == "info":
        raise structlog.DropEvent
    return event


class Redactor:
    """A structlog processor after the renderer: blanks out known secrets wherever they stand.

    It works on the finished line, since an exception or any other object shows its text only
    there; so a secret is looked for in every spelling that rendering may have given it.
    """

    def __init__(self, secrets: Sequence[str]) -> None:
        self._secrets: set[str] = set()
        self.add(secrets)
        _redactors.add(self)

    def add(self, secrets: Sequence[str]) -> None:
        """Blank out further secrets."""
        self._secrets.update(secrets)
        spellings = {
            spelling
            for secret in self._secrets
            if len(secret) >= _SHORTEST_SECRET
            for spelling in _spellings(secret)
        }
        self._spellings = tuple(sorted(spellings, key=len, reverse=True))
        self._pattern = re.compile("|".join(map(re.escape, self._spellings)))

    def __call__(self, _logger: Any, _method: str, line: str) -> str:
        # To look for each is much faster than a pattern of all.
        if any(spelling in line for spelling in self._spellings):
            return self._pattern.sub(BLANK, line)
        return line


def _spellings(secret: str) -> set[str]:
    """Return a secret as it is, and as JSON, ``repr`` and URLs spell it."""
    shown = {secret, repr(secret)[1:-1], quote(secret, safe=""), quote(secret)}
    escaped = {json.dumps(text)[1:-1] for text in shown}
    return shown | escaped | {json.dumps(secret, ensure_ascii=False)[1:-1]}


WAITING_LINES = 10_000
"""Lines that wait for a disk or a pipe that takes none: some minutes of a busy gateway, 5 MB. What
comes then is lost and counted."""

CLOSE_SECONDS = 2.0
"""How long the end of the process waits for the last lines."""


class Sink:
    """Writes finished lines, from any thread; ``lost`` counts those that could not be written.

    A full disk or a closed pipe must not end a call, and one that hangs must not hold it up: see
    :meth:`write_behind`.
    """

    def __init__(self, target: TextIO, path: Path | None = None) -> None:
        self.lost = 0
        self._target = target
        self._path = path
        self._lock = threading.Lock()
        self._waiting: queue.Queue[str | None] | None = None
        self._writer: threading.Thread | None = None

    def write_behind(self) -> None:
        """From now on lines are written by a thread of their own; the process's end waits for it.

        Whoever reads our standard error may stop reading: then its pipe is soon full, and whoever
        writes to it stands still.
        """
        if self._target is sys.stderr:
            # Of its own, so that a write that hangs holds no lock that the process's end needs.
            self._target = os.fdopen(
                os.dup(sys.stderr.fileno()), "w", encoding="utf-8", errors="backslashreplace"
            )
        self._waiting = queue.Queue(WAITING_LINES)
        self._writer = threading.Thread(
            target=self._write_all, args=(self._waiting,), name="log", daemon=True
        )
        self._writer.start()
        atexit.register(self.close)

    def reopen(self) -> None:
        """Reopen the file, after the old one was moved away. Never raises."""
        if self._path is None:
            return
        try:
            target = _opened(self._path)
        except OSError:
            self.lost += 1
            return  # lines go on to the old file
        with self._lock:
            before, self._target = self._target, target
        with contextlib.suppress(OSError, ValueError):
            before.close()

    def close(self) -> None:
        """Write what waits, for at most ``CLOSE_SECONDS``; later lines are written at once."""
        waiting, self._waiting = self._waiting, None
        if waiting is None or self._writer is None:
            return
        with contextlib.suppress(queue.Full):
            waiting.put(None, timeout=CLOSE_SECONDS)
        self._writer.join(CLOSE_SECONDS)

    def msg(self, line: str) -> None:
        """Write one line, or have it written."""
        waiting = self._waiting
        if waiting is None:
            self._write(line)
            return
        try:
            waiting.put_nowait(line)
        except queue.Full:
            self.lost += 1

    def _write_all(self, waiting: queue.Queue[str | None]) -> None:
        """Write queued lines until None comes. On the thread of :meth:`write_behind`."""
        while (line := waiting.get()) is not None:
            self._write(line)

    def _write(self, line: str) -> None:
        """Write a line; count it as lost where that fails."""
        try:
            with self._lock:
                self._target.write(line + "\n")
                self._target.flush()
        except (OSError, ValueError):
            self.lost += 1

    debug = info = warning = error = critical = exception = msg


def _opened(path: Path) -> TextIO:
    """Open a log file to append lines. Raises OSError."""
    return path.open("a", encoding="utf-8", errors="backslashreplace", buffering=1)


class _Handler(logging.Handler):
    """Sends lines of the standard library's logging to the same sink."""

    def __init__(self, sink: Sink) -> None:
        super().__init__()
        self._sink = sink

    def emit(self, record: logging.LogRecord) -> None:
        try:
            line = self.format(record)
        except Exception:
            self._sink.lost += 1  # the default would print the arguments, unfiltered
        else:
            self._sink.msg(line)


def _masking(kinds: Collection[str]) -> Processor:
    """Return a structlog processor that masks these kinds of text in all values."""
    private = PrivateDigits(kinds)
    return lambda _logger, _method, event: private.masked(event)


def _adding_worker(index: int) -> Processor:
    """Return a structlog processor that adds ``worker``; on all threads, unlike a context
    variable."""

    def add(_logger: Any, _method: str, event: EventDict) -> EventDict:
        event.setdefault("worker", index)
        return event

    return add


def _brief_summary(_logger: Any, _method: str, line: EventDict) -> EventDict:
    """Leave empty fields, and the session that stands twice, out of a call's summary for the
    console.

    The record, and the log as JSON, have all of it.
    """
    if line.get("event") != "call.summary":
        return line
    known = {"session_id": line.get("session")}
    twice = {key for key, value in known.items() if line.get(key) == value}
    return {key: value for key, value in line.items() if value and key not in twice}


def _printable_values(_logger: Any, _method: str, line: EventDict) -> EventDict:
    """Make texts from outside printable, so that they cannot control a terminal."""
    return {key: value if key == "exc_info" else printable_in(value) for key, value in line.items()}


def _printable_traceback(out: TextIO, exc_info: Any) -> None:
    """Write a traceback without characters that control a terminal."""
    plain = io.StringIO()
    structlog.dev.plain_traceback(plain, exc_info)
    out.write("\n".join(printable(line) for line in plain.getvalue().split("\n")))


_redactors: weakref.WeakSet[Redactor] = weakref.WeakSet()


def redact_also(secrets: Sequence[str]) -> None:
    """Blank out further secrets in all lines from now on."""
    for redactor in tuple(_redactors):
        redactor.add(secrets)


_METHODS = ("debug", "info", "warning", "error", "exception", "critical")


class _Logger(structlog.make_filtering_bound_logger(logging.INFO)):  # type: ignore[misc]
    """The loggers of the process; a line below the level costs the call of an empty function."""


def set_level(level: str) -> None:
    """Log lines of this level (debug, info, warning, error) and above from now on."""
    other = structlog.make_filtering_bound_logger(logging.getLevelNamesMapping()[level.upper()])
    for name in (*_METHODS, "get_effective_level", "is_enabled_for"):
        setattr(_Logger, name, getattr(other, name))


def level_now() -> str:
    """Return the level that :func:`set_level` set: debug, info, warning or error."""
    return str(logging.getLevelName(_Logger.get_effective_level(None))).lower()


def set_up_logging(
    form: str = "json",
    level: str = "info",
    file: Path | None = None,
    secrets: Sequence[str] = (),
    worker: int | None = None,
    redact: Collection[str] = (),
) -> Sink:
    """Configure the process's log. ``form`` is json or console; raises OSError for a bad file.

    With ``worker`` every line says which one of several processes it comes from.
    """
    target: TextIO = sys.stderr if file is None else _opened(file)
    sink = Sink(target, file)
    rendering: list[Processor]
    if form == "json":
        tracebacks = ExceptionDictTransformer(show_locals=False)
        rendering = [
            structlog.processors.ExceptionRenderer(tracebacks),
            structlog.processors.JSONRenderer(),
        ]
    else:
        rendering = [
            _brief_summary,
            _printable_values,
            structlog.dev.ConsoleRenderer(
                colors=target.isatty(), exception_formatter=_printable_traceback
            ),
        ]
    marking: list[Processor] = [
        structlog.contextvars.merge_contextvars,
        _without_probes,
        structlog.processors.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
    ]
    if redact:
        marking.append(_masking(redact))
    if worker is not None:
        marking.append(_adding_worker(worker))
    # Processors after the renderer get its line, which the types of structlog do not foresee.
    redactor: Any = Redactor(secrets)
    set_level(level)
    structlog.configure(
        processors=[*marking, *rendering, redactor],
        wrapper_class=_Logger,
        logger_factory=lambda *_names: sink,
        cache_logger_on_first_use=True,
    )
    handler = _Handler(sink)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=[*marking, structlog.stdlib.add_logger_name],
            processors=[
                structlog.stdlib.ProcessorFormatter.remove_processors_meta,
                *rendering,
                redactor,
            ],
        )
    )
    logging.basicConfig(level=logging.WARNING, handlers=[handler], force=True)
    return sink
