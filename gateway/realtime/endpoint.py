# SPDX-License-Identifier: GPL-2.0-or-later
"""Address, credentials and TLS settings of a realtime server; the key is never logged."""

from __future__ import annotations

import ssl
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl, quote, quote_plus, urlsplit, urlunsplit

from pydantic import SecretStr

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
