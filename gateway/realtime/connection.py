# SPDX-License-Identifier: GPL-2.0-or-later
"""Connection to a realtime server: its address, credentials and TLS settings, and the WebSocket.

The key is never logged. The WebSocket is the library's, with a fast path for fifty messages a
second and call, and a rate limit for servers that send without end.
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

import structlog
from pydantic import SecretStr
from websockets.asyncio.client import ClientConnection, connect
from websockets.client import ClientProtocol
from websockets.frames import Frame, Opcode
from websockets.http11 import Response
from websockets.protocol import Event, State
from websockets.streams import StreamReader

from gateway.realtime.dialects import AZURE_HOSTS, GA, Dialect
from gateway.realtime.session_object import live_object, session_object, transcription_object
from gateway.realtime.wire import Audio

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
        """Strip white space from the key, and check all settings. Raises ValueError, without the
        key."""
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
        """Return URL (without query) and model, no secret."""
        return f"Endpoint({self.shown!r}, model={self.model!r})"

    @property
    def live(self) -> bool:
        """Whether its sessions are Live ones (:func:`is_live`)."""
        return is_live(self.url, self.model)

    @property
    def live_audio(self) -> Audio:
        """Audio format of its Live sessions: ``pcm24`` at Azure, whose preview has no G.711, else
        :attr:`audio`."""
        azure = (urlsplit(self.url).hostname or "").endswith(AZURE_HOSTS)
        return "pcm24" if azure else self.audio

    @property
    def connect_url(self) -> str:
        """WebSocket URL to connect to. To the query that the URL has, ``intent=transcription`` is
        added for transcription sessions, else the parameters of the dialect (the model); nothing
        for Live sessions.

        Its query may hold a secret; :attr:`shown` is for logs.
        """
        query = urlsplit(self.url).query
        given = [name for name, _ in parse_qsl(query, True)]
        wanted = self.dialect.parameters(self.model, given)
        if self.transcription:
            wanted = [] if "intent" in given else [("intent", "transcription")]
        for name, value in () if self.live else wanted:
            query = f"{query}&" if query else ""
            query += f"{name}={quote(value, safe='')}"
        return f"{self.shown}?{query}" if query else self.shown

    @property
    def shown(self) -> str:
        """The URL for logs and errors: without its query, which may hold a key."""
        parts = urlsplit(self.url)
        return urlunsplit((_SCHEMES[parts.scheme], parts.netloc, self._path(), "", ""))

    def least_session(self) -> dict[str, Any]:
        """Return the smallest session object that this server accepts, to test it with: for PCMU,
        of its kind of session (transcription, Live, Realtime)."""
        if self.transcription:
            return transcription_object({}, "PCMU")
        return live_object({}, "PCMU") if self.live else session_object({}, "PCMU", ())

    def request_headers(self) -> dict[str, str]:
        """Return the headers of the upgrade request: the dialect's, then the configured ones, then
        the key, each over the one before. They hold the key: not to be logged."""
        headers = {**self.dialect.headers, **self.headers}
        key = self._key()
        if key:
            bearer = self.api_key_header.lower() == "authorization"
            headers[self.api_key_header] = f"Bearer {key}" if bearer else key
        return headers

    def redact(self, text: str) -> str:
        """Return ``text`` of a server or a library with ``***`` for each secret of this endpoint:
        key, and parameters and headers whose name says that they are secret; those of 4 characters
        and more.

        Some servers quote the key that they reject.
        """
        for secret in self._secrets():
            text = text.replace(secret, "***")
        return text

    def _key(self) -> str:
        """Return the key as text; "" without one."""
        key = self.api_key
        return key.get_secret_value() if isinstance(key, SecretStr) else key

    def _secrets(self) -> list[str]:
        """Return the secrets of 4 characters and more, each as it is and in each URL encoding, the
        longest first: the key, and values of parameters and headers with a name like ``token`` or
        ``sig``."""
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
        """Return the path of the WebSocket. For Live sessions see :func:`_live_path`.

        A path that ends with ``/realtime`` is kept; without a path it is the dialect's; to an
        http(s) URL, and to an API's base, ``/realtime`` is added; other paths are kept.
        """
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
    """Return whether a server's sessions are Live ones: the path ends with ``/live/sessions`` or
    ``/v1/live``, or the model is a ``gpt-live`` one, which does not work at the path of Realtime
    sessions."""
    path = urlsplit(url).path.rstrip("/")
    return path.endswith((LIVE_PATH, "/v1/live")) or model.startswith("gpt-live")


def _live_path(path: str, host: str) -> str:
    """Return the path of Live sessions: as it is, if it ends with ``/live/sessions``; else that is
    added to the path less ``/realtime`` or ``/live``, or to ``/v1`` (Azure: ``/openai/v1``) where
    nothing is left."""
    if path.endswith(LIVE_PATH):
        return path
    base = path.removesuffix("/realtime").removesuffix("/live")
    if not base:
        base = "/openai/v1" if host.endswith(AZURE_HOSTS) else "/v1"
    return f"{base}{LIVE_PATH}"


def tls_of(endpoint: Endpoint) -> ssl.SSLContext | None:
    """Return the TLS context for an endpoint, None for ``ws://``.

    It is shared by all connections with the same CA file, and made anew when that file changes.
    Raises OSError for a CA file that cannot be read.
    """
    if not endpoint.connect_url.startswith("wss:"):
        return None
    return _context(endpoint.ca, Path(endpoint.ca).stat().st_mtime_ns if endpoint.ca else 0)


class _TlsObject(ssl.SSLObject):
    """TLS of a connection; without new data it raises SSLWantReadError without asking OpenSSL.

    asyncio reads until that error, once more for each message, and OpenSSL takes longer to make the
    error than to read the message.
    """

    incoming: ssl.MemoryBIO
    """Encrypted data from the network."""

    def read(self, len: int = 1024, buffer: Any = None) -> Any:
        """Read decrypted data as usual; raises SSLWantReadError at once where nothing has come."""
        if not (self.incoming.pending or self.incoming.eof or self.pending()):
            raise ssl.SSLWantReadError(ssl.SSL_ERROR_WANT_READ, "nothing is left to read")
        return super().read(len, buffer)


class _TlsContext(ssl.SSLContext):
    """A TLS context whose connections are :class:`_TlsObject`."""

    sslobject_class = _TlsObject

    def wrap_bio(self, incoming: ssl.MemoryBIO, *args: Any, **kwargs: Any) -> Any:
        """Return the TLS object, which is also given its incoming data to look at."""
        made = super().wrap_bio(incoming, *args, **kwargs)
        made.incoming = incoming  # type: ignore[attr-defined]
        return made


@lru_cache(maxsize=8)
def _context(ca: str, _changed: int) -> ssl.SSLContext:
    """Return the context for this CA file ("" for the system's CAs); kept for 8 pairs of file and
    time of change."""
    # Reading the system's CAs takes some ten milliseconds, in which no call is served.
    context = ssl.create_default_context(cafile=ca or None)
    context.__class__ = _TlsContext  # there is no other way to have the defaults of this one
    return context


try:
    from websockets.speedups import apply_mask
except ImportError:  # where it was built without a compiler
    from websockets.utils import apply_mask

log = structlog.get_logger(__name__)

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
MESSAGES_PER_SECOND = 250
MESSAGES_AT_ONCE = 10_000
"""Rate limit of messages from one server, and its burst. All calls share the event loop; responses
come many times faster than real time, in up to fifty messages for a second of audio. A connection
that sends more is read no faster, so that TCP slows it down, and its pongs come late, too."""
BYTES_OF_MESSAGE = 2048
"""A message counts as one more for each of these bytes."""
MESSAGES_A_TURN = 100
BYTES_A_TURN = 16 * 1024
"""Messages and bytes read from one connection before the event loop serves others."""
HOLD_SECONDS = 0.1
"""Least time (s) for which a connection above the rate limit is not read."""
QUEUE_FULL_SECONDS = 0.005
"""Interval at which a full queue of the library is checked for room (s)."""
CLOSE_TIMEOUT = 2.0
"""Seconds that the server has to answer our close frame before the connection is aborted."""

_DATA = (Opcode.TEXT, Opcode.BINARY, Opcode.CONT)
_WHOLE_TEXT = 0x80 | Opcode.TEXT
_MASKED = 0x80
_IN_TWO_BYTES, _IN_EIGHT_BYTES = 126, 127


def _masks() -> Iterator[bytes]:
    """Yield masking keys of 4 random bytes (RFC 6455 section 5.3), without end."""
    while True:
        pool = os.urandom(4096)
        for start in range(0, len(pool), 4):
            yield pool[start : start + 4]


_masks_to_come = _masks()


def text_frame(message: bytes) -> bytes:
    """Return a text message as one final, masked frame (RFC 6455 section 5.2)."""
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
    """The library's reader, which also knows whether it is between two frames."""

    between_frames = False
    """All received bytes were parsed, and they end with the end of a frame."""

    def at_eof(self) -> Generator[None, None, bool]:
        """Do as the library's; note that the reader is between two frames if no byte is left."""
        # The parser calls this before each frame, and nowhere else.
        self.between_frames = not self.buffer
        ended = yield from super().at_eof()
        self.between_frames = False
        return ended


class Connection(ClientConnection):
    """The library's connection with a fast path for messages, a rate limit and a close timeout.

    Fifty messages a second and call come in, and as many go out. The library makes an object of
    each frame, queues messages and wakes the reading task a turn of the event loop later. Here a
    complete frame that is a whole message is given to :attr:`take` at once, and :meth:`write_text`
    sends a frame directly. The library handles the rest, in order: handshake, control frames,
    close, fragmented and large messages, and those that come while :attr:`take` is None.

    A large or fragmented message sets :attr:`take` to None, so that order is kept; the reader sets
    it again once :attr:`read` equals :attr:`queued`.

    After the server's close frame the library waits for the server to end TCP before a reader
    learns of the close; here for :data:`CLOSE_TIMEOUT` at most.
    """

    take: Callable[[bytes], None] | None = None
    """Called with each message; while it is None, messages go through the library's queue."""
    queued = 0
    """Messages put into the queue so far."""

    read = 0
    """Messages taken out of the queue so far."""

    held_back = 0
    """How often reading was paused by the rate limit."""

    _room = float(MESSAGES_AT_ONCE)
    """Messages that the rate limit allows, as of ``_room_at`` (s); below 0 after a large one."""
    _room_at = 0.0
    _kept = b""
    """Received bytes that wait for :attr:`_turn`."""
    _turn: asyncio.TimerHandle | asyncio.Handle | None = None

    _cut: asyncio.TimerHandle | None = None
    _fragments = 0

    def __init__(self, protocol: ClientProtocol, *args: Any, **kwargs: Any) -> None:
        self._reader = protocol.reader = _Reader()
        protocol.parser = protocol.parse()
        next(protocol.parser)
        super().__init__(protocol, *args, **kwargs)

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Take the transport; a plain TCP socket is read in pieces of 64 KiB."""
        super().connection_made(transport)
        # asyncio reads plain sockets into a fresh 256 KiB buffer each time, which the C library
        # maps and unmaps: 12 us of the 14 that a message costs. A transport that has no such
        # attribute (TLS, another event loop) reads in its own way.
        if hasattr(transport, "max_size"):
            transport.max_size = READ_BYTES

    def write_text(self, message: bytes) -> bool:
        """Send a message now, however full the write buffer is. Return False, with nothing sent, if
        the WebSocket is not open."""
        if self.protocol.state is not State.OPEN:
            return False
        self.transport.write(text_frame(message))
        return True

    def send_data(self) -> None:
        """Send what the library has to say, such as pongs; it is dropped if the connection was
        aborted."""
        if self.transport.is_closing():
            # asyncio would log each write, thousands for a server that floods us with pings.
            self.protocol.data_to_send()
            return
        super().send_data()

    async def next_message(self) -> bytes:
        """Return the next message of the library's queue, bytes also of text. Raises
        ConnectionClosed once the queue is empty and the connection has ended."""
        message = await self.recv(decode=False)
        self.read += 1
        return message

    def process_event(self, event: Event) -> None:
        """Handle a frame that the library has parsed, and count it for the rate limit.

        A whole message of up to 64 KiB goes to :attr:`take`, if that is set; other data goes into
        the library's queue, and sets :attr:`take` to None. More than 4,096 fragments of one message
        end the connection (1009). Control frames are the library's.
        """
        if isinstance(event, Frame):
            self._room -= 1 + len(event.data) // BYTES_OF_MESSAGE
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
        """Take bytes of the socket: handle them now, or keep them for the next turn if earlier ones
        wait for it."""
        if self._turn is None:
            few = self._room > MESSAGES_A_TURN and len(data) < BYTES_A_TURN
            if few and self.take is not None and self._reader.between_frames:
                data = self._take_whole(data)  # as a rule, fifty times a second
            if data:
                self._work(data)
        else:  # TLS had read it before it was told to stop, or the library's queue has room again
            self._kept += data
            self.transport.pause_reading()

    def _work(self, data: bytes) -> None:
        """Handle as many messages as one turn (100 messages or 16 KiB), the rate limit and the
        library's queue allow; keep the rest for a later turn, with the socket not read.

        Without a rest, reading is resumed. A close frame that was handled starts the timer of 2 s
        after which the connection is aborted.
        """
        now = self.loop.time()
        room = min(MESSAGES_AT_ONCE, self._room + (now - self._room_at) * MESSAGES_PER_SECOND)
        self._room, self._room_at = room, now
        left = len(data) - BYTES_A_TURN
        while (
            data
            and self._room > 0
            and room - self._room < MESSAGES_A_TURN
            and len(data) > left
            and not self.recv_messages.paused
        ):
            data = self._handle(data)
        if data and self.protocol.state is not State.CLOSED:
            self._wait(data)
        elif self._turn is not None:
            self._turn = None
            if not self.recv_messages.paused:  # its queue is full, and it resumes by itself
                self.transport.resume_reading()
        if self._cut is None and self.protocol.state is State.CLOSING:
            self._cut = self.loop.call_later(CLOSE_TIMEOUT, self.transport.abort)

    def _wait(self, data: bytes) -> None:
        """Keep ``data`` for a later turn, and pause reading until then: 5 ms if the library's queue
        is full, the next turn of the event loop if the rate limit allows more, else as long as the
        rate limit takes (0.1 s at least). The first wait for the rate limit is logged, all are
        counted."""
        self._kept = data
        if self._turn is None:
            self.transport.pause_reading()
        if self.recv_messages.paused:  # the reader is behind: large messages take their time
            self._turn = self.loop.call_later(QUEUE_FULL_SECONDS, self._go_on)
            return
        if self._room > 0:
            self._turn = self.loop.call_soon(self._go_on)
            return
        if not self.held_back:
            log.warning("session.too_many_messages", limit=MESSAGES_PER_SECOND)
        self.held_back += 1
        self._turn = self.loop.call_later(
            HOLD_SECONDS - self._room / MESSAGES_PER_SECOND, self._go_on
        )

    def _go_on(self) -> None:
        """Timer: handle the bytes that were kept."""
        kept, self._kept = self._kept, b""
        self._work(kept)

    def _handle(self, data: bytes) -> bytes:
        """Handle the messages at the beginning of ``data``; return the rest.

        First whole text frames go to :attr:`take`, 100 at most; if there is none, or :attr:`take`
        is None, the library parses up to 16 KiB.
        """
        if self.take is not None and self._reader.between_frames:
            rest = self._take_whole(data)
            if len(rest) < len(data):
                return rest
        super().data_received(data[:BYTES_A_TURN])
        return data[BYTES_A_TURN:]

    def _take_whole(self, data: bytes) -> bytes:
        """Give text frames at the beginning that are whole messages of less than 64 KiB to
        :attr:`take`, 100 at most; return the rest. It stops at any other frame, at one that is not
        complete, and where :attr:`take` is or becomes None."""
        protocol, start, end, count = self.protocol, 0, len(data), 0
        while (take := self.take) is not None and start + 4 <= end and count < MESSAGES_A_TURN:
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
            count += 1
            take(data[body:start])
        self._room -= count + start // BYTES_OF_MESSAGE
        return data[start:] if start else data

    def eof_received(self) -> None:
        """Handle kept bytes, then the end of the server's sending side."""
        self._last()
        super().eof_received()

    def _last(self) -> None:
        """Let the library handle the kept bytes, whatever the rate limit says, since no more come;
        cancel their timer."""
        kept, self._kept = self._kept, b""
        if self._turn is not None:
            self._turn.cancel()
            self._turn = None
        if kept:
            super().data_received(kept)

    def connection_lost(self, exc: Exception | None) -> None:
        """Handle kept bytes, and end the connection; the timer of the close is cancelled."""
        self._last()
        if self._cut is not None:
            self._cut.cancel()
        super().connection_lost(exc)


async def discard(connection: ClientConnection) -> None:
    """Send a close frame (1000) if the WebSocket is open, abort the connection without waiting for
    the server's answer, and await its end."""
    if connection.protocol.state is State.OPEN:
        with contextlib.suppress(Exception):
            connection.protocol.send_close(1000)
            connection.send_data()
    connection.transport.abort()
    await connection.wait_closed()
    # The library's keepalive task has been cancelled by now and ends on the loop's next turn.
    await asyncio.sleep(0)


MAX_RETRY_AFTER = 3600
"""Seconds of a ``Retry-After`` at most."""


def date_of(connection: Connection) -> float | None:
    """Return the ``Date`` of the server's response to the upgrade (Unix s); None without a response
    or a valid date."""
    response = connection.response
    if response is None:
        return None
    try:
        return parsedate_to_datetime(response.headers["Date"]).timestamp()
    except (KeyError, LookupError, TypeError, ValueError, OverflowError):
        return None


def retry_after_of(response: Response) -> float | None:
    """Return the seconds of a ``Retry-After`` (a number, or a date less our clock), 0 to 3,600;
    None without a valid one."""
    value = (response.headers.get("Retry-After") or "").strip()
    if value.isascii() and value.isdigit():
        return float(min(int(value[:9]), MAX_RETRY_AFTER))
    try:
        left = parsedate_to_datetime(value).timestamp() - time.time()
    except (TypeError, ValueError, OverflowError):
        return None
    return min(max(left, 0.0), MAX_RETRY_AFTER)


class Connect(connect):
    """The library's connect without redirects, which would send the key to another server."""

    def process_redirect(self, exc: Exception) -> Exception | str:
        """Return the exception as it is, so that a redirect fails the connection like any other
        refusal."""
        return exc
