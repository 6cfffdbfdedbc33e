# SPDX-License-Identifier: GPL-2.0-or-later
"""The commands of `gateway`, and what they share: options, examples, questions to one that runs."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import click

from gateway.api.client import (
    ANSWER_SECONDS,
    NoAnswerError,
    RefusedError,
    ask_within,
    socket_of,
    sockets_at,
)
from gateway.text import printable

CONFIG = click.option(
    "-c",
    "--config",
    type=click.Path(path_type=Path, dir_okay=False),
    default=Path("gateway.toml"),
    show_default=True,
    help="The configuration file.",
)


def examples(*lines: str) -> str:
    """Return the epilog of a command's help with these command lines."""
    title = "Example:" if len(lines) == 1 else "Examples:"
    return "\n".join(["\b", title, *(f"  {line}" for line in lines)])


SOCKET = click.option(
    "--socket",
    "path",
    type=click.Path(path_type=Path, dir_okay=False),
    help="Control socket of the gateway; overrides control.socket.",
)


def asked(
    config: Path,
    path: Path | None,
    command: str,
    seconds: float = ANSWER_SECONDS,
    **fields: Any,
) -> dict[str, Any]:
    """Return the answer of the gateway that the options name, within ``seconds``.

    Without an answer, prints why and exits with 1.
    """
    return ask_each(config, path, command, seconds, **fields)[0][1]


def ask_each(
    config: Path,
    path: Path | None,
    command: str,
    seconds: float = ANSWER_SECONDS,
    *,
    all_workers: bool = False,
    **fields: Any,
) -> list[tuple[str, dict[str, Any]]]:
    """Return the answer of the first worker that answers, or of ``all_workers``, with its socket.

    Without an answer, prints why and exits with 1.
    """
    found: list[tuple[str, dict[str, Any]]] = []
    failed: Exception | None = None
    try:
        for one in sockets_at(path or socket_of(config)):
            try:
                found.append((one.name, ask_within(seconds, one, command, **fields)))
            except NoAnswerError as error:
                failed = failed or error
                continue
            if not all_workers:
                break
    except (NoAnswerError, RefusedError) as error:
        failed = error
    if failed is not None and (all_workers or not found):
        click.echo(printable(str(failed)), err=True)
    if not found:
        sys.exit(1)
    return found
