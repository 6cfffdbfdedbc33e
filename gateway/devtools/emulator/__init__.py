# SPDX-License-Identifier: GPL-2.0-or-later
"""The emulator: a WebSocket server of the Realtime and Live protocols, to develop, test and
demonstrate against. No model is behind it.

It needs the ``devtools`` extra (voice activity detection, resampling, speech synthesis), so it is
imported only where it is used. For tests, in process::

    emulator = Emulator()
    port = await emulator.start()
    ...                                  # connect to emulator.url(script="silent")
    emulator.sessions[-1].truncations    # what the client did
    await emulator.stop()
"""

from __future__ import annotations

import asyncio
import hmac
import http
import json
import logging
import os
import signal
import socket
import weakref
from collections import Counter, deque
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlencode, urlsplit

import structlog
from websockets.asyncio.server import Server, ServerConnection, serve
from websockets.http11 import Request, Response

from gateway.addresses import bracketed
from gateway.devtools.emulator.beta import HEADER, HEADER_VALUE
from gateway.devtools.emulator.connection import Connection, LiveConnection
from gateway.devtools.emulator.dialogue import ContentMaker, TextModel
from gateway.devtools.emulator.objects import new_id
from gateway.devtools.emulator.script import (
    Refusal,
    Script,
    ScriptError,
    ScriptFile,
    script_of_query,
)
from gateway.devtools.emulator.session_log import FolderLog, SessionRecord
from gateway.devtools.speech import PCM

AZURE_PATH = "/openai/v1/realtime"
PREVIEW_PATH = "/openai/realtime"
"""Azure's preview API: always in the Beta dialect."""
PATHS = ("/v1/realtime", AZURE_PATH, PREVIEW_PATH)
LIVE_PATH = "/v1/live/sessions"
AZURE_LIVE_PATH = "/openai/v1/live/sessions"
LIVE_PATHS = (LIVE_PATH, AZURE_LIVE_PATH)
_OPENAI_PATHS = (PATHS[0], LIVE_PATH)
SERVER_NAME = "sip-realtime-gateway emulator"

_AZURE_ERROR = '{"error": {"code": "%s", "message": "%s"}}'
_CLOSE_TIMEOUT_S = 2.0
_log = structlog.get_logger("gateway.devtools.emulator")
# The library logs request headers, so the key, at DEBUG: this logger never does.
_wire_log = logging.getLogger("gateway.devtools.emulator.websocket")
_wire_log.setLevel(logging.INFO)


def _without_traceback(record: logging.LogRecord) -> bool:
    """Log a connection that is no WebSocket (TLS, a port scan) as one line."""
    if record.exc_info and record.exc_info[1] is not None:
        record.msg, record.levelno, record.levelname = (
            f"{record.msg}: {record.exc_info[1]}",
            20,
            "INFO",
        )
        record.exc_info = None
    return True


_wire_log.addFilter(_without_traceback)


class Emulator:
    """The WebSocket server, and records of its last sessions.

    ``script`` is in force for sessions that choose nothing else, ``scripts`` adds named ones.
    ``api_key``, when set, is demanded as the service does it (error after the upgrade, close
    3000; on Azure's paths 401 instead of the upgrade). ``record`` is a folder for event logs and
    callers' audio. The last ``keep_sessions`` are remembered, with up to ``audio_limit`` bytes of
    audio for each direction.
    """

    def __init__(
        self,
        script: Script | None = None,
        *,
        scripts: ScriptFile | None = None,
        api_key: str | None = None,
        record: Path | None = None,
        keep_sessions: int = 50,
        audio_limit: int = 2_000_000,
    ) -> None:
        file = scripts or ScriptFile(Script(), {})
        self.script = script or file.default
        self.named = file.named
        self.sessions: deque[SessionRecord] = deque(maxlen=keep_sessions)
        """Newest last."""
        self.live: dict[str, Connection] = {}
        """Connections that stand, by session id: a test may close one, or emit events on it."""
        self.total_sessions = 0
        self.port = 0
        self._host = ""
        self._api_key = api_key
        self._record = record
        self._audio_limit = audio_limit
        # How often a URL met a fault that ends after some sessions; a test's URLs are few.
        self._met: Counter[str] = Counter()
        self._scripts: weakref.WeakKeyDictionary[ServerConnection, tuple[Script, bool]] = (
            weakref.WeakKeyDictionary()
        )
        """What was decided for a connection at its upgrade: script, and whether it speaks Beta."""
        self._opened = asyncio.Event()
        self._server: Server | None = None
        self._maker: ContentMaker | None = None

    async def start(self, host: str = "127.0.0.1", port: int = 0) -> int:
        """Listen; return the port (for ``port`` 0, a free one). Raises ``OSError``."""
        self._maker = ContentMaker()
        self._server = await serve(
            self._serve,
            host,
            port,
            compression=None,
            max_size=None,
            server_header=SERVER_NAME,
            process_request=self._admit,
            close_timeout=_CLOSE_TIMEOUT_S,
            logger=_wire_log,
        )
        self._host = host
        self.port = next(iter(self._server.sockets)).getsockname()[1]
        note = "an emulator: no model is behind it"
        _log.info("emulator.listening", url=self.url(), url_live=self.live_url(), note=note)
        return self.port

    async def stop(self) -> None:
        """Close all sessions (1001) and the server; nothing is left running."""
        if self._server is not None:
            self._server.close()
            await self._server.wait_closed()
            self._server = None
        if self._maker is not None:
            self._maker.close()
            self._maker = None

    async def __aenter__(self) -> Emulator:
        await self.start()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.stop()

    async def wait_sessions(self, count: int, within_s: float) -> SessionRecord:
        """Wait until ``count`` sessions were opened in all; return the newest.

        Raises ``TimeoutError``.
        """
        async with asyncio.timeout(within_s):
            while self.total_sessions < count:
                self._opened.clear()
                await self._opened.wait()
        return self.sessions[-1]

    def url(self, script: str | None = None, **behaviour: Any) -> str:
        """Return the URL of a Realtime session: ``url("silent")``, ``url(answer="pattern")``.

        A name in ``behaviour`` is a field of :class:`Script`; ``__`` reaches into tables
        (``answer__seconds=3``).
        """
        return self._url(PATHS[0], script, behaviour)

    def live_url(self, script: str | None = None, **behaviour: Any) -> str:
        """Return the URL of a Live session: ``live_url(live__transcript_lag_ms=200)``."""
        return self._url(LIVE_PATH, script, behaviour)

    def _url(self, path: str, script: str | None, behaviour: dict[str, Any]) -> str:
        query = {"script": script} if script else {}
        query |= {key.replace("__", "."): str(value) for key, value in behaviour.items()}
        tail = f"?{urlencode(query)}" if query else ""
        return f"ws://{bracketed(self._host)}:{self.port}{path}{tail}"

    def _admit(self, connection: ServerConnection, request: Request) -> Response | None:
        url = urlsplit(request.path)
        path = url.path.rstrip("/")
        if path not in PATHS + LIVE_PATHS:
            text = f"The emulator serves {' and '.join(PATHS + LIVE_PATHS)}.\n"
            return connection.respond(http.HTTPStatus.NOT_FOUND, text)
        mistake = _azure_mistake(path, url.query)
        if mistake is not None:
            return connection.respond(http.HTTPStatus.BAD_REQUEST, mistake)
        good = self._key_is_good(request, path, url.query)
        if path not in _OPENAI_PATHS and not good:
            text = _AZURE_ERROR % ("401", "Access denied due to invalid subscription key.")
            return connection.respond(http.HTTPStatus.UNAUTHORIZED, text)
        script = self._script(request, path, url.query)
        script = self._passed(script, request.path)
        refusal = script.refuse
        if refusal is not None and refusal.step == "upgrade":
            text = refusal.message
            if path not in _OPENAI_PATHS:
                text = json.dumps({"error": {"code": refusal.code, "message": text}})
            return connection.respond(http.HTTPStatus(refusal.http_status), text)
        asked = HEADER_VALUE in request.headers.get_all(HEADER)
        self._scripts[connection] = script, asked or path == PREVIEW_PATH
        return None

    async def _serve(self, socket: ServerConnection) -> None:
        assert socket.request is not None
        assert self._maker is not None
        path = socket.request.path
        query = parse_qs(urlsplit(path).query)
        model = (query.get("model") or query.get("deployment") or [""])[0]
        live_path = urlsplit(path).path.rstrip("/")
        live = live_path in LIVE_PATHS
        id_ = new_id("live_emulator" if live else "sess_emulator")
        listens = not live and query.get("intent") == ["transcription"]
        record = SessionRecord(id_, path, model, self._audio_limit, listens)
        if self._record is not None:
            record.log = FolderLog(self._record, record.id, PCM)
        self.sessions.append(record)
        self.total_sessions += 1
        script, beta = self._scripts[socket]
        if live:
            azure = live_path == AZURE_LIVE_PATH
            connection: Connection = LiveConnection(
                socket, record, script, self._maker, azure=azure
            )
        else:
            connection = Connection(socket, record, script, self._maker, beta=beta)
        self.live[record.id] = connection
        self._opened.set()
        log = _log.bind(session=record.id)
        log.info("emulator.session.opened", model=model, path=urlsplit(path).path)
        try:
            await connection.serve()
        finally:
            del self.live[record.id]
            code = None if socket.close_code is None else int(socket.close_code)
            record.note_end(code, socket.close_reason or "")
            log.info(
                "emulator.session.closed",
                code=code,
                received_bytes=record.received_total,
                sent_bytes=record.sent_total,
            )

    def _passed(self, script: Script, path: str) -> Script:
        """Return the script without faults that were for earlier sessions of this URL only."""
        faults = {"refuse": script.refuse, "end": script.end}
        counted = {
            name: fault.first_sessions
            for name, fault in faults.items()
            if fault is not None and fault.first_sessions is not None
        }
        if not counted:
            return script
        self._met[path] += 1
        over = {name: None for name, first in counted.items() if self._met[path] > first}
        return script.model_copy(update=over) if over else script

    def _key_is_good(self, request: Request, path: str, query: str) -> bool:
        """Whether the key that is demanded was sent; Azure takes it in the query, too."""
        if self._api_key is None:
            return True
        headers = request.headers
        key = headers.get("api-key") or headers.get("Authorization", "").removeprefix("Bearer ")
        if path not in _OPENAI_PATHS:
            key = key or parse_qs(query).get("api-key", [""])[0]
        return hmac.compare_digest(key.encode("utf-8", "replace"), self._api_key.encode())

    def _script(self, request: Request, path: str, query: str) -> Script:
        """Return the script of a session; one that refuses it where the service would."""
        try:
            script = script_of_query(self.named, self.script, query)
        except ScriptError as error:
            return _refused("invalid_script", str(error))
        headers, asked = request.headers, parse_qs(query)
        beta = path == PREVIEW_PATH or script.beta or path in LIVE_PATHS
        if not beta and HEADER_VALUE in headers.get_all(HEADER):
            text = "The Realtime Beta API is no longer supported. Use the GA API."
            return _refused("beta_api_shape_disabled", text)
        if not self._key_is_good(request, path, query):
            return _refused("invalid_api_key", "Incorrect API key provided.")
        if path in LIVE_PATHS:
            if asked.get("model"):
                text = "Unknown parameter: 'model'. The model is a field of 'session.start'."
                return _refused("unknown_parameter", text)
            return script
        if asked.get("model", [""])[0].startswith("gpt-live"):
            text = f"Model {asked['model'][0][:100]} is not supported in Realtime sessions."
            return _refused("invalid_model", text)
        if asked.get("intent", ["conversation"])[0] == "transcription":
            return script
        if path != PREVIEW_PATH and not asked.get("model"):
            return _refused("missing_model", "You must provide a model parameter.")
        return script


def _azure_mistake(path: str, query: str) -> str | None:
    """Return why Azure refuses a URL at its upgrade: JSON, as its gateway sends it."""
    asked = parse_qs(query)
    version = asked.get("api-version", [""])[0]
    if path in (AZURE_PATH, AZURE_LIVE_PATH) and version:
        return _AZURE_ERROR % ("BadRequest", "API version not supported")
    if path == PREVIEW_PATH and not version:
        return _AZURE_ERROR % ("MissingApiVersionParameter", "api-version is required")
    if path == PREVIEW_PATH and not asked.get("deployment"):
        return _AZURE_ERROR % ("BadRequest", "deployment is required")
    return None


def _refused(code: str, message: str) -> Script:
    return Script(refuse=Refusal(step="connect", code=code, message=message))


def run(
    listen: str, script: Path | None = None, record: Path | None = None, text_model: str = ""
) -> None:
    """Serve on ``listen`` (``HOST:PORT``) until SIGINT or SIGTERM: ``gateway emulator``.

    Args:
        script: a TOML or JSON file of scripts (see :mod:`.script`).
        record: a folder that gets an event log and the caller's audio of each session.
        text_model: ``HOST:PORT`` at which the text model is served; empty for none.

    Raises :class:`ScriptError` for a bad file, ``ValueError`` for a bad address, ``OSError`` with
    the address as its ``filename`` when it cannot be bound.
    """
    address = _address("listen", listen)
    text_address = _address("text-model", text_model) if text_model else None
    scripts = ScriptFile.load(script) if script is not None else None
    emulator = Emulator(scripts=scripts, record=record)
    asyncio.run(_run(emulator, address, text_address))


def _address(option: str, text: str) -> tuple[str, int]:
    host, colon, port = text.rpartition(":")
    if not colon or not port.isdecimal() or int(port) > 65535:
        raise ValueError(f"{option}: {text!r} is not HOST:PORT")
    return host.strip("[]") or "127.0.0.1", int(port)


async def _run(
    emulator: Emulator, address: tuple[str, int], text_address: tuple[str, int] | None
) -> None:
    loop = asyncio.get_running_loop()
    ended = asyncio.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, ended.set)
    text_model = TextModel(lambda: emulator.script)
    await _bound(emulator.start, address)
    try:
        if text_address is not None:
            port = await _bound(text_model.start, text_address)
            url = f"http://{bracketed(text_address[0])}:{port}/v1"
            _log.info("emulator.text_model_listening", url=url)
        await ended.wait()
    finally:
        await text_model.stop()
        await emulator.stop()


async def _bound(start: Callable[[str, int], Awaitable[int]], address: tuple[str, int]) -> int:
    """Start a server at an address; return the port. Raises OSError that names the address."""
    try:
        return await start(*address)
    except OSError as error:
        why = error.strerror or str(error)
        if error.errno is not None and not isinstance(error, socket.gaierror):
            why = os.strerror(error.errno)  # asyncio's text has the address, as a tuple
        raise OSError(error.errno, why, f"{bracketed(address[0])}:{address[1]}") from error
