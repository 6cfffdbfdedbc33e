# SPDX-License-Identifier: GPL-2.0-or-later
"""Client of the control socket."""

from __future__ import annotations

import json
import socket
from collections.abc import Mapping
from pathlib import Path
from typing import Any

ANSWER_SECONDS = 5.0
_MAX_ANSWER_BYTES = 16 * 1024 * 1024


class NoAnswerError(Exception):
    """Nobody answers on the socket, or what comes is not an answer; the message says which."""


class RefusedError(Exception):
    """The gateway refused the command; the message is its own."""


def ask(path: Path, command: str, **fields: Any) -> dict[str, Any]:
    """Return the answer to ``command``. Raises NoAnswerError and RefusedError."""
    return ask_within(ANSWER_SECONDS, path, {**fields, "command": command})


def ask_within(seconds: float, path: Path, request: Mapping[str, Any]) -> dict[str, Any]:
    """Return the answer to a request that may take ``seconds``. Raises as :func:`ask`."""
    try:
        with socket.socket(socket.AF_UNIX) as connection:
            connection.settimeout(seconds)
            connection.connect(str(path))
            connection.sendall(json.dumps(dict(request)).encode() + b"\n")
            with connection.makefile("rb") as stream:
                line = stream.readline(_MAX_ANSWER_BYTES)
    except OSError as error:
        raise NoAnswerError(f"no gateway answers on {path}: {error.strerror or error}") from None
    try:
        answer = json.loads(line)
    except ValueError:
        answer = None
    if not isinstance(answer, dict):
        raise NoAnswerError(f"what answers on {path} is no gateway")
    if not answer.get("ok"):
        raise RefusedError(str(answer.get("error", "refused")))
    return answer
