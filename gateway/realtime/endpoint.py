# SPDX-License-Identifier: GPL-2.0-or-later
"""Address and credentials of a realtime server (the key is never shown), and the WebSocket to it.

The WebSocket library's connection is made fit for fifty messages a second and call.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import ssl
import time
from asyncio.sslproto import SSLProtocol
from collections.abc import Callable, Generator, Iterator, Mapping
from dataclasses import dataclass, field
from email.utils import parsedate_to_datetime
from functools import lru_cache
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl, quote, quote_plus, urlsplit, urlunsplit

from pydantic import SecretStr
from websockets.asyncio.client import ClientConnection, connect
from websockets.client import ClientProtocol
from websockets.frames import Frame, Opcode
from websockets.http11 import Response
from websockets.protocol import Event, State
from websockets.streams import StreamReader

try:
    from websockets.speedups import apply_mask
except ImportError:  # where it was built without a compiler
    from websockets.utils import apply_mask

from gateway.realtime.dialects import GA, Dialect
from gateway.realtime.dialects.dialect import AZURE_HOSTS, Audio
from gateway.realtime.session_object import live_object, session_object, transcription_object

_SCHEMES = {"ws": "ws", "wss": "wss", "http": "ws", "https": "wss"}
_SECRET_WORDS = ("key", "token", "secret", "authorization", "cookie", "password", "sig")


@dataclass(frozen=True, repr=False)
class Endpoint:
    """A realtime server and the credentials for it.

    ``url`` is the WebSocket URL (``wss://api.openai.com/v1/realtime``) or the API's base, as
    vendors print it (``https://RESOURCE.openai.azure.com/openai/v1``); a query it has is kept.
    ``api_key_header`` is ``authorization`` (sent as ``Bearer``) or the name of a header that
    takes the key as it is, such as Azure's ``api-key``. ``ping_interval`` and ``ping_timeout``
    are seconds between keepalive pings and to wait for each pong; ``None`` turns them off.
    ``dialect`` is what the server speaks, ``audio`` what it takes: ``g711``, or ``pcm24``.
    ``ca`` is a file of the CAs that may have signed its certificate; empty for the system's.

    Raises :class:`ValueError` for what cannot work, naming the setting and never the key.
    """

    url: str
    model: str = ""
    api_key: SecretStr | str = ""
    api_key_header: str = "authorization"
    headers: Mapping[str, str] = field(default_factory=dict)
    ping_interval: float | None = 5.0
    ping_timeout: float | None = 5.0
    dialect: Dialect = GA
    audio: Audio = "g711"
    ca: str = ""
    transcription: bool = False
    """Its sessions only transcribe (``intent=transcription``)."""

    def __post_init__(self) -> None:
        key = self.api_key
        # A key read from a file ends with a line feed more often than not.
        key = (key.get_secret_value() if isinstance(key, SecretStr) else key).strip()
        object.__setattr__(self, "api_key", SecretStr(key))
        if not key.isascii() or not key.isprintable():
            raise ValueError("api_key: has characters that no HTTP header can carry")
        parts = urlsplit(self.url)
        if parts.scheme not in _SCHEMES or not parts.hostname:
            raise ValueError("url: must begin with ws://, wss://, http:// or https:// and a host")
        if "@" in parts.netloc:
            raise ValueError("url: must not hold a user or password; set api_key")
        if parts.fragment:
            raise ValueError("url: must not have a fragment (#...)")
        try:
            _ = parts.port
        except ValueError:
            raise ValueError("url: the port is not a number from 0 to 65535") from None
        for name, value in self.headers.items():
            if name.lower() == "openai-beta":
                raise ValueError("headers: OpenAI-Beta is sent by the dialect beta; GA refuses it")
            if not name.isascii() or not name.isprintable() or not value.isprintable():
                raise ValueError(f"headers: {name!r} cannot be sent as an HTTP header")

    def __repr__(self) -> str:
        return f"Endpoint({self.shown!r}, model={self.model!r})"

    @property
    def live(self) -> bool:
        """Whether its sessions are Live ones."""
        return is_live(self.url, self.model)

    @property
    def live_audio(self) -> Audio:
        """Audio format of Live sessions: Azure's preview has no G.711, unlike :attr:`audio`."""
        azure = (urlsplit(self.url).hostname or "").endswith(AZURE_HOSTS)
        return "pcm24" if azure else self.audio

    @property
    def connect_url(self) -> str:
        """The URL to open: a WebSocket scheme, a path that ends in ``/realtime``, the model; or
        that of Live sessions.

        May hold a secret in its query; :attr:`shown` is for people.
        """
        parts = urlsplit(self.url)
        query = parts.query
        if self.live:
            return urlunsplit((_SCHEMES[parts.scheme], parts.netloc, self._path(), query, ""))
        given = [name for name, _ in parse_qsl(query, True)]
        wanted = self.dialect.parameters(self.model, given)
        if self.transcription:
            wanted = [] if "intent" in given else [("intent", "transcription")]
        for name, value in wanted:
            query = f"{query}&" if query else ""
            query += f"{name}={quote(value, safe='')}"
        return urlunsplit((_SCHEMES[parts.scheme], parts.netloc, self._path(), query, ""))

    @property
    def shown(self) -> str:
        """The URL for logs and errors: without its query, which may hold a key."""
        parts = urlsplit(self.url)
        return urlunsplit((_SCHEMES[parts.scheme], parts.netloc, self._path(), "", ""))

    def least_session(self) -> dict[str, Any]:
        """A session object that asks for nothing, to try the server with."""
        if self.transcription:
            return transcription_object({}, "PCMU")
        return live_object({}, "PCMU") if self.live else session_object({}, "PCMU", ())

    def request_headers(self) -> dict[str, str]:
        """Headers of the upgrade request, with the key: never to be logged."""
        headers = {**self.dialect.headers, **self.headers}
        key = self._key()
        if key:
            bearer = self.api_key_header.lower() == "authorization"
            headers[self.api_key_header] = f"Bearer {key}" if bearer else key
        return headers

    def redact(self, text: str) -> str:
        """``text`` with every secret of this endpoint blotted out.

        For what a server or a library says: some servers quote the key that they refuse.
        """
        for secret in self._secrets():
            text = text.replace(secret, "***")
        return text

    def _key(self) -> str:
        key = self.api_key
        return key.get_secret_value() if isinstance(key, SecretStr) else key

    def _secrets(self) -> list[str]:
        secrets = {self._key()}
        query = urlsplit(self.url).query
        as_written = [
            (name, value) for name, _, value in (p.partition("=") for p in query.split("&"))
        ]
        named = [*as_written, *parse_qsl(query), *self.headers.items()]
        for name, value in named:
            if any(word in name.lower() for word in _SECRET_WORDS):
                secrets |= {value, value.removeprefix("Bearer ")}
        # Longest first: one may be part of another. Very short ones would blot out plain words.
        spelled = {
            form for s in secrets for form in (s, quote(s), quote(s, safe=""), quote_plus(s))
        }
        return sorted((s for s in spelled if len(s) >= 4), key=len, reverse=True)

    def _path(self) -> str:
        parts = urlsplit(self.url)
        path = parts.path.rstrip("/")
        if self.live:
            return _live_path(path, parts.hostname or "")
        if path.endswith("/realtime"):
            return path
        if not path:
            return self.dialect.path(parts.hostname or "")
        # An http(s) URL is an API's base; a ws(s) URL with a path of its own is meant as it is.
        if parts.scheme in ("http", "https") or path.endswith(self.dialect.api_base):
            return f"{path}/realtime"
        return parts.path


LIVE_PATH = "/live/sessions"
"""End of the path at which Live sessions are."""


def is_live(url: str, model: str) -> bool:
    """Whether a server's sessions are Live ones, by its URL or its model.

    A Live model does not work at the path of Realtime sessions, so it says enough.
    """
    path = urlsplit(url).path.rstrip("/")
    return path.endswith((LIVE_PATH, "/v1/live")) or model.startswith("gpt-live")


def _live_path(path: str, host: str) -> str:
    if path.endswith(LIVE_PATH):
        return path
    base = path.removesuffix("/realtime").removesuffix("/live")
    if not base:
        base = "/openai/v1" if host.endswith(AZURE_HOSTS) else "/v1"
    return f"{base}{LIVE_PATH}"


READ_BYTES = 64 * 1024
"""Read from the socket at once: some seconds of audio as base64 in JSON."""
# With TLS it is also what each connection holds, all its life; asyncio's own is 256 KiB.
SSLProtocol.max_size = READ_BYTES
MAX_MESSAGE = 16 * 1024 * 1024
"""Bytes of one message, whole or in fragments; a longer one ends the session with 1009. The
service's own limit for audio is 15 MiB."""
MAX_FRAGMENTS = 4096
"""Frames of one message: without a limit, a server that sends empty ones would fill the memory."""
LARGE_MESSAGE = 64 * 1024
"""Bytes from which a message is decoded beside the event loop: four seconds of audio and more."""
CLOSE_TIMEOUT = 2.0
"""Seconds that the server has to answer our close before the socket is cut."""

_DATA = (Opcode.TEXT, Opcode.BINARY, Opcode.CONT)
_WHOLE_TEXT = 0x80 | Opcode.TEXT
_MASKED = 0x80
_IN_TWO_BYTES, _IN_EIGHT_BYTES = 126, 127


def _masks() -> Iterator[bytes]:
    """Masking keys (RFC 6455 section 5.3), of the system's random bytes."""
    while True:
        pool = os.urandom(4096)
        for start in range(0, len(pool), 4):
            yield pool[start : start + 4]


_masks_to_come = _masks()


def text_frame(message: bytes) -> bytes:
    """A message of a client as one frame (RFC 6455 section 5.2)."""
    length = len(message)
    if length < _IN_TWO_BYTES:
        head = bytes((_WHOLE_TEXT, _MASKED | length))
    elif length < 1 << 16:
        head = bytes((_WHOLE_TEXT, _MASKED | _IN_TWO_BYTES, length >> 8, length & 0xFF))
    else:
        head = bytes((_WHOLE_TEXT, _MASKED | _IN_EIGHT_BYTES)) + length.to_bytes(8)
    mask = next(_masks_to_come)
    return head + mask + apply_mask(message, mask)


class _Reader(StreamReader):
    """The library's reader, which also tells whether a frame may begin here."""

    between_frames = False
    """All that came was read, and it ended with the end of a frame."""

    def at_eof(self) -> Generator[None, None, bool]:
        # The parser calls this before each frame, and nowhere else.
        self.between_frames = not self.buffer
        ended = yield from super().at_eof()
        self.between_frames = False
        return ended


class Connection(ClientConnection):
    """The library's connection, with a short way for messages and a deadline for half a close.

    Fifty messages a second and call come in, and as many go out. The library makes an object of
    each frame, puts messages into a queue and wakes the task that reads it, a turn of the event
    loop later. A frame that is a whole message, and is there whole, goes to :attr:`take` at once
    instead; :meth:`write_text` makes the bytes of one. All else is the library's: the handshake,
    control frames, the close, messages in several frames, large ones, and those that came before
    there was a :attr:`take`; nothing overtakes them.

    After the server's close frame the library waits for the server to end TCP, and a reader
    learns of the close only then: it waits :data:`CLOSE_TIMEOUT` here.
    """

    take: Callable[[bytes], None] | None = None
    """Gets each message from now on; None sends them through the queue."""
    queued = 0
    """Messages that went through the queue so far, or are on their way through it."""

    read = 0
    """Messages that were taken out of the queue."""

    _cut: asyncio.TimerHandle | None = None
    _fragments = 0

    def __init__(self, protocol: ClientProtocol, *args: Any, **kwargs: Any) -> None:
        self._reader = protocol.reader = _Reader()
        protocol.parser = protocol.parse()
        next(protocol.parser)
        super().__init__(protocol, *args, **kwargs)

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        super().connection_made(transport)
        # asyncio reads plain sockets into a fresh 256 KiB buffer each time, which the C library
        # maps and unmaps: 12 us of the 14 that a message costs. A transport that has no such
        # attribute (TLS, another event loop) reads in its own way.
        if hasattr(transport, "max_size"):
            transport.max_size = READ_BYTES

    def write_text(self, message: bytes) -> bool:
        """Send a message now, however much waits in the write buffer; False after a close."""
        if self.protocol.state is not State.OPEN:
            return False
        self.transport.write(text_frame(message))
        return True

    async def next_message(self) -> bytes:
        """The next message of the queue. Raises ConnectionClosed at its end."""
        message = await self.recv(decode=False)
        self.read += 1
        return message

    def process_event(self, event: Event) -> None:
        if isinstance(event, Frame) and event.opcode in _DATA:
            whole = event.fin and event.opcode is not Opcode.CONT
            if self.take is not None and whole and len(event.data) <= LARGE_MESSAGE:
                self.take(bytes(event.data))
                return
            self._fragments = 0 if event.fin else self._fragments + 1
            if self._fragments > MAX_FRAGMENTS:
                self.protocol.fail(1009, "message in too many fragments")
                self.send_data()
                self.transport.abort()
                return
            self.take = None  # until the reader has what goes through the queue
            self.queued += event.fin
        super().process_event(event)

    def data_received(self, data: bytes) -> None:
        if self.take is not None and self._reader.between_frames:
            data = self._take_whole(data)
            if not data:
                return
        super().data_received(data)
        if self._cut is None and self.protocol.state is State.CLOSING:
            self._cut = self.loop.call_later(CLOSE_TIMEOUT, self.transport.abort)

    def _take_whole(self, data: bytes) -> bytes:
        """Take the frames at the beginning that are whole messages; return what is left."""
        protocol, start, end = self.protocol, 0, len(data)
        while (take := self.take) is not None and start + 4 <= end:
            length, body = data[start + 1], start + 2
            if length == _IN_TWO_BYTES:
                length, body = data[start + 2] << 8 | data[start + 3], start + 4
            elif length > _IN_TWO_BYTES:
                break  # a large one, or what no server may send
            if (
                data[start] != _WHOLE_TEXT
                or body + length > end
                or protocol.state is not State.OPEN
                or protocol.cur_size is not None
            ):
                break
            start = body + length
            take(data[body:start])
        return data[start:] if start else data

    def connection_lost(self, exc: Exception | None) -> None:
        if self._cut is not None:
            self._cut.cancel()
        super().connection_lost(exc)


async def discard(connection: ClientConnection) -> None:
    """Drop a connection that became no session: say goodbye without waiting for an answer."""
    if connection.protocol.state is State.OPEN:
        with contextlib.suppress(Exception):
            connection.protocol.send_close(1000)
            connection.send_data()
    connection.transport.abort()
    await connection.wait_closed()
    # The library's keepalive task has been cancelled by now and ends on the loop's next turn.
    await asyncio.sleep(0)


MAX_RETRY_AFTER = 3600
"""Seconds that a server's ``Retry-After`` is taken for at most."""


def tls_of(endpoint: Endpoint) -> ssl.SSLContext | None:
    """The TLS settings of a connection; a CA file that was replaced is read again."""
    if not endpoint.connect_url.startswith("wss:"):
        return None
    return _context(endpoint.ca, Path(endpoint.ca).stat().st_mtime_ns if endpoint.ca else 0)


class _TlsObject(ssl.SSLObject):
    """A connection's TLS, which says at once that nothing is left to read.

    asyncio asks until it is told so, once more for each message, and the error that OpenSSL has for
    it takes longer to make than the message takes to read.
    """

    incoming: ssl.MemoryBIO
    """What came from the network and was not read."""

    def read(self, len: int = 1024, buffer: Any = None) -> Any:
        if not (self.incoming.pending or self.incoming.eof or self.pending()):
            raise ssl.SSLWantReadError(ssl.SSL_ERROR_WANT_READ, "nothing is left to read")
        return super().read(len, buffer)


class _TlsContext(ssl.SSLContext):
    sslobject_class = _TlsObject

    def wrap_bio(self, incoming: ssl.MemoryBIO, *args: Any, **kwargs: Any) -> Any:
        made = super().wrap_bio(incoming, *args, **kwargs)
        made.incoming = incoming  # type: ignore[attr-defined]
        return made


@lru_cache(maxsize=8)
def _context(ca: str, _changed: int) -> ssl.SSLContext:
    # Reading the system's CAs takes some ten milliseconds, in which no call is served.
    context = ssl.create_default_context(cafile=ca or None)
    context.__class__ = _TlsContext  # there is no other way to have the defaults of this one
    return context


def date_of(connection: Connection) -> float | None:
    """The ``Date`` of the response to the upgrade (Unix s)."""
    response = connection.response
    if response is None:
        return None
    try:
        return parsedate_to_datetime(response.headers["Date"]).timestamp()
    except (KeyError, LookupError, TypeError, ValueError, OverflowError):
        return None


def retry_after_of(response: Response) -> float | None:
    """Seconds of a ``Retry-After``: a number, or a date."""
    value = (response.headers.get("Retry-After") or "").strip()
    if value.isascii() and value.isdigit():
        return float(min(int(value[:9]), MAX_RETRY_AFTER))
    try:
        left = parsedate_to_datetime(value).timestamp() - time.time()
    except (TypeError, ValueError, OverflowError):
        return None
    return min(max(left, 0.0), MAX_RETRY_AFTER)


class Connect(connect):
    """The library's connect without redirects: one would hand the key to whoever it points to."""

    def process_redirect(self, exc: Exception) -> Exception | str:
        return exc
