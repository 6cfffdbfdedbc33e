"""Logging: structlog to JSON lines or a console, with every secret taken out.

What the standard library's ``logging`` is told (asyncio, websockets) takes the same way, so that
every line has one form and passes the same filter. Tracebacks show no local variables: those hold
keys, and a shortened one would pass any filter. A log that cannot be written loses lines and
counts them; it never raises into a call.
"""

from __future__ import annotations

import json
import logging
import re
import sys
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any, TextIO
from urllib.parse import quote

import structlog
from structlog.tracebacks import ExceptionDictTransformer
from structlog.typing import EventDict, Processor

_SHORTEST_SECRET = 4
"""Shorter ones would blank out plain words; the configuration has none worth hiding."""

BLANK = "***"


class Redactor:
    """A structlog processor behind the renderer: blanks out known secrets wherever they stand.

    It works on the finished line, since an exception or any other object shows its text only
    there; so a secret is looked for in every spelling that rendering may have given it.
    """

    def __init__(self, secrets: Sequence[str]) -> None:
        spellings = {
            spelling
            for secret in secrets
            if len(secret) >= _SHORTEST_SECRET
            for spelling in _spellings(secret)
        }
        longest_first = sorted(spellings, key=len, reverse=True)
        self._pattern = re.compile("|".join(map(re.escape, longest_first))) if spellings else None

    def __call__(self, _logger: Any, _method: str, line: str) -> str:
        """Return the line without secrets."""
        return line if self._pattern is None else self._pattern.sub(BLANK, line)


def _spellings(secret: str) -> set[str]:
    shown = {secret, repr(secret)[1:-1], quote(secret, safe=""), quote(secret)}
    escaped = {json.dumps(text)[1:-1] for text in shown}
    return shown | escaped | {json.dumps(secret, ensure_ascii=False)[1:-1]}


class Sink:
    """Where finished lines go, from any thread; ``lost`` counts those that could not be written.

    A full disk or a closed pipe must not end a call.
    """

    def __init__(self, target: TextIO) -> None:
        self.lost = 0
        self._target = target
        self._lock = threading.Lock()

    def msg(self, line: str) -> None:
        """Write one line."""
        try:
            with self._lock:
                self._target.write(line + "\n")
                self._target.flush()
        except (OSError, ValueError):
            self.lost += 1

    debug = info = warning = error = critical = exception = msg


class _Handler(logging.Handler):
    """Lines of the standard library's logging, to the same sink."""

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


class _Worker:
    """A structlog processor that adds ``worker``; on all threads, unlike a context variable."""

    def __init__(self, index: int) -> None:
        self._index = index

    def __call__(self, _logger: Any, _method: str, event: EventDict) -> EventDict:
        """Return the event with its worker."""
        event.setdefault("worker", self._index)
        return event


def set_up_logging(
    form: str = "json",
    level: str = "info",
    file: Path | None = None,
    secrets: Sequence[str] = (),
    worker: int | None = None,
) -> Sink:
    """Configure the process's log. ``form`` is json or console; raises OSError for a bad file.

    With ``worker`` every line says which one of several processes it comes from.
    """
    target: TextIO = (
        sys.stderr
        if file is None
        else file.open("a", encoding="utf-8", errors="backslashreplace", buffering=1)
    )
    sink = Sink(target)
    threshold = logging.getLevelNamesMapping()[level.upper()]
    rendering: list[Processor]
    if form == "json":
        tracebacks = ExceptionDictTransformer(show_locals=False)
        rendering = [
            structlog.processors.ExceptionRenderer(tracebacks),
            structlog.processors.JSONRenderer(),
        ]
    else:
        rendering = [
            structlog.dev.ConsoleRenderer(
                colors=target.isatty(), exception_formatter=structlog.dev.plain_traceback
            )
        ]
    marking: list[Processor] = [
        structlog.contextvars.merge_contextvars,
        structlog.processors.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
    ]
    if worker is not None:
        marking.append(_Worker(worker))
    # Processors after the renderer get its line, which the types of structlog do not foresee.
    redactor: Any = Redactor(secrets)
    structlog.configure(
        processors=[*marking, *rendering, redactor],
        wrapper_class=structlog.make_filtering_bound_logger(threshold),
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
