# SPDX-License-Identifier: GPL-2.0-or-later
"""Client of the API over the gateway's Unix socket, for the commands of ``gateway``.

Imports nothing that is slow, http.client among others: each command is a process of its own.
"""

from __future__ import annotations

import json
import socket
import tomllib
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlencode

from gateway.text import path_of

ANSWER_SECONDS = 5.0
_MAX_ANSWER_BYTES = 64 * 1024 * 1024
_BASE = "/api/v1"
_CALL = "/calls/{call}"

REQUESTS = {
    "status": ("GET", "/status"),
    "calls": ("GET", "/calls"),
    "levels": ("GET", "/levels"),
    "progress": ("GET", f"{_CALL}/progress"),
    "cancel": ("POST", f"{_CALL}/responses/cancel"),
    "reload": ("POST", "/reload"),
    "refused": ("GET", "/refused"),
    "hold": ("POST", f"{_CALL}/hold"),
    "unhold": ("POST", f"{_CALL}/unhold"),
    "mute": ("POST", f"{_CALL}/mute"),
    "unmute": ("POST", f"{_CALL}/unmute"),
    "dtmf": ("POST", f"{_CALL}/dtmf"),
    "dial": ("POST", "/calls"),
    "call": ("GET", f"{_CALL}/outcome"),
    "hangup": ("POST", f"{_CALL}/hangup"),
    "transfer": ("POST", f"{_CALL}/transfer"),
    "transfer_outcome": ("GET", f"{_CALL}/transfers/{{transfer}}"),
    "recording": ("POST", f"{_CALL}/recording"),
    "black_box": ("POST", f"{_CALL}/black_box"),
    "say": ("POST", f"{_CALL}/say"),
    "send_message": ("POST", f"{_CALL}/messages"),
    "send_image": ("POST", f"{_CALL}/images"),
    "create_response": ("POST", f"{_CALL}/responses"),
    "query": ("POST", f"{_CALL}/query"),
    "canary_stop": ("POST", "/canaries/{route}/stop"),
    "canary_start": ("POST", "/canaries/{route}/start"),
    "deliveries": ("GET", "/webhooks/deliveries"),
    "resend": ("POST", "/webhooks/deliveries/{delivery}/resend"),
    "transcript": ("GET", f"{_CALL}/transcript"),
    "record": ("GET", _CALL),
}
"""Method and path of each command, below ``/api/v1``. What is not in the path goes into the query
of a GET, or into the body."""


class NoAnswerError(Exception):
    """Nobody answers on the socket, or what comes is not an answer; the message says which."""


class RefusedError(Exception):
    """The gateway cannot carry out a command; the text is its answer."""


def ask(path: Path, command: str, **fields: Any) -> dict[str, Any]:
    """Return the answer to ``command``. Raises NoAnswerError and RefusedError."""
    return ask_within(ANSWER_SECONDS, path, command, **fields)


def ask_within(seconds: float, path: Path, command: str, **fields: Any) -> dict[str, Any]:
    """Return the answer to a command that may take ``seconds``. Raises as :func:`ask`."""
    method, target = REQUESTS[command]
    named = {name: value for name, value in fields.items() if f"{{{name}}}" in target}
    target = _BASE + target.format(**{name: _quoted(str(one)) for name, one in named.items()})
    rest = {name: value for name, value in fields.items() if name not in named}
    body = b""
    if method == "GET" and rest:
        target += f"?{urlencode(rest)}"
    elif method != "GET":
        body = json.dumps(rest).encode()
    try:
        status, content = _exchange(path, seconds, method, target, body)
    except OSError as error:
        raise NoAnswerError(f"no gateway answers on {path}: {error.strerror or error}") from None
    try:
        answer = json.loads(content)
    except ValueError:
        answer = None
    if not isinstance(answer, dict):
        raise NoAnswerError(f"what answers on {path} is no gateway")
    refused = answer.get("error") if status >= 400 else None
    if isinstance(refused, dict):
        raise RefusedError(str(refused.get("message", "refused")))
    return answer


def sockets_at(path: Path) -> list[Path]:
    """Return the sockets of the workers where ``path`` is that of ``control.socket``; itself where
    there is one."""
    found = path.parent.glob(f"{path.stem}-*{path.suffix}")
    numbered = {one.stem.removeprefix(f"{path.stem}-"): one for one in found}
    workers = [numbered[n] for n in sorted(filter(str.isdigit, numbered), key=int)]
    try:
        return [path] if path.exists() or not workers else workers
    except PermissionError:  # which connecting says, too
        return [path]


def socket_of(config: Path) -> Path:
    """Return the path of the control socket of this configuration. Raises NoAnswerError.

    Reads that key only: secrets need not be present, and nothing slow is imported.
    """
    try:
        data = tomllib.loads(config.read_text(encoding="utf-8-sig"))
    except OSError as error:
        raise NoAnswerError(f"{config}: {error.strerror or error}") from None
    except ValueError as error:  # neither TOML nor UTF-8
        raise NoAnswerError(f"{config}: {error}") from None
    section = data.get("control")
    name = section.get("socket") if isinstance(section, dict) else None
    if not isinstance(name, str) or not name:
        raise NoAnswerError(f"{config}: control.socket is not set, so no gateway can be asked")
    if "${" in name:
        from gateway.config.source import read_toml

        name = str(read_toml(config).data["control"]["socket"])
    try:
        return Path(config.absolute().parent, path_of(name))
    except ValueError as error:
        raise NoAnswerError(f"{config}: control.socket: {error}") from None


def _exchange(
    path: Path, seconds: float, method: str, target: str, body: bytes
) -> tuple[int, bytes]:
    """Return status and content of the answer. HTTP/1.0: it ends with the connection."""
    head = f"{method} {target} HTTP/1.0\r\nHost: gateway\r\nContent-Type: application/json\r\n"
    with socket.socket(socket.AF_UNIX) as connection:
        connection.settimeout(seconds)
        connection.connect(str(path))
        connection.sendall(f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body)
        with connection.makefile("rb") as stream:
            line, *_ = stream.readline(1000).split(b"\r\n")
            _fields, _, content = stream.read(_MAX_ANSWER_BYTES).partition(b"\r\n\r\n")
    _version, _, status = line.partition(b" ")
    return int(status[:3]) if status[:3].isdigit() else 0, content


def _quoted(text: str) -> str:
    """Return a path segment, quoted twice where it has a slash, as SIP Call-IDs may."""
    return quote(text.replace("/", "%2F"), "")
