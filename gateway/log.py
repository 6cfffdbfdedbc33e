"""Logging: structlog to JSON lines or a console, with every secret taken out."""

from __future__ import annotations

import logging
import sys
from collections.abc import MutableMapping, Sequence
from pathlib import Path
from typing import Any, TextIO

import structlog

_SHORTEST_SECRET = 4
"""Shorter ones would blank out plain words; the configuration has none worth hiding."""


class Redactor:
    """A structlog processor that blanks out known secrets wherever they stand."""

    def __init__(self, secrets: Sequence[str]) -> None:
        self._secrets = sorted(
            (secret for secret in secrets if len(secret) >= _SHORTEST_SECRET), key=len, reverse=True
        )

    def __call__(
        self, _logger: Any, _method: str, event: MutableMapping[str, Any]
    ) -> MutableMapping[str, Any]:
        """Return the event without secrets."""
        if not self._secrets:
            return event
        return {key: self._clean(value) for key, value in event.items()}

    def _clean(self, value: Any) -> Any:
        if isinstance(value, str):
            for secret in self._secrets:
                value = value.replace(secret, "***")
            return value
        if isinstance(value, dict):
            return {key: self._clean(inner) for key, inner in value.items()}
        if isinstance(value, (list, tuple)):
            return [self._clean(inner) for inner in value]
        return value


def set_up_logging(
    form: str = "json",
    level: str = "info",
    file: Path | None = None,
    secrets: Sequence[str] = (),
) -> None:
    """Configure the process's log. ``form`` is json or console; raises OSError for a bad file."""
    target: TextIO = sys.stderr if file is None else file.open("a", encoding="utf-8", buffering=1)
    threshold = logging.getLevelNamesMapping()[level.upper()]
    rendering: list[Any]
    if form == "json":
        rendering = [structlog.processors.dict_tracebacks, structlog.processors.JSONRenderer()]
    else:
        colours = target.isatty()
        rendering = [structlog.dev.ConsoleRenderer(colors=colours)]
    structlog.configure(
        processors=[
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            *rendering[:-1],
            Redactor(secrets),
            rendering[-1],
        ],
        wrapper_class=structlog.make_filtering_bound_logger(threshold),
        logger_factory=structlog.WriteLoggerFactory(file=target),
        cache_logger_on_first_use=True,
    )
    logging.basicConfig(level=logging.WARNING, stream=target, force=True)
