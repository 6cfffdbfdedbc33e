# SPDX-License-Identifier: GPL-2.0-or-later
"""``[realtime]`` and ``[[realtime_server]]``: the speech-to-speech servers."""

from __future__ import annotations

import ipaddress
import re
import ssl
from collections.abc import Mapping
from types import MappingProxyType
from typing import Annotated, Literal, Self
from urllib.parse import parse_qs, urlsplit

from pydantic import AfterValidator, Field, PlainSerializer, SecretStr, model_validator

from gateway.config.source import MisplacedError
from gateway.config.validate import Section
from gateway.config.values import FilePath, Flag, Milliseconds, Seconds, SecondsOrOff, Text

_HEADER_NAME = re.compile(r"[!#$%&'*+\-.^_`|~0-9A-Za-z]+")
# Set by the WebSocket handshake (RFC 6455, section 4.1) or by api_key.
_HANDSHAKE_HEADERS = frozenset({"host", "upgrade", "connection", "authorization", "api-key"})
_SECRET_PARAMETERS = frozenset({"api_key", "apikey", "key", "token", "access_token", "secret"})


def websocket_url(value: str) -> str:
    """``value`` if it can be a realtime server's address; raises ValueError.

    Its WebSocket, or the base of its API as vendors print it (``https://host/openai/v1``).
    """
    try:
        parts = urlsplit(value)
        host, _port = parts.hostname, parts.port
    except ValueError:
        raise ValueError("is not a URL: the host or the port cannot be read") from None
    if parts.scheme not in ("ws", "wss", "http", "https"):
        raise ValueError("must begin with wss:// or https:// (or ws://, http://)")
    if not host or any(char.isspace() for char in value):
        raise ValueError("must name a host and contain no space")
    if parts.username is not None or parts.password is not None:
        raise ValueError("must not carry user or password; use api_key or headers")
    if parts.fragment:
        raise ValueError("must not have a #fragment")
    query = {name.lower().replace("-", "_") for name in parse_qs(parts.query, True)}
    if "model" in query:
        raise ValueError("must not name the model; use the key model, which is added to the URL")
    if query & _SECRET_PARAMETERS:
        raise ValueError("must not carry a key, since URLs are logged; use api_key or headers")
    return value


def _headers(value: Mapping[str, SecretStr]) -> Mapping[str, SecretStr]:
    for name, text in value.items():
        if not _HEADER_NAME.fullmatch(name):
            raise MisplacedError((name,), "is not a valid HTTP header name")
        if name.lower() in _HANDSHAKE_HEADERS or name.lower().startswith("sec-websocket-"):
            raise MisplacedError((name,), "is set by the gateway (see api_key and api_key_header)")
        if name.lower() == "openai-beta":
            raise MisplacedError((name,), 'is sent with dialect = "beta", and only then')
        if not re.fullmatch(r"[ -~]*", text.get_secret_value()):
            raise MisplacedError((name,), "has characters that are not allowed in a header")
    return MappingProxyType(dict(value))


def _api_key(value: SecretStr | None) -> SecretStr | None:
    if value is not None and not re.fullmatch(r"[!-~]*", value.get_secret_value()):
        raise ValueError("has characters that are not allowed in a key (space, newline, non-ASCII)")
    return value


Url = Annotated[str, AfterValidator(websocket_url)]
ApiKey = Annotated[SecretStr | None, AfterValidator(_api_key)]
Headers = Annotated[
    Mapping[str, SecretStr], AfterValidator(_headers), PlainSerializer(lambda value: dict(value))
]


ApiKeyHeader = Literal["authorization", "api-key"]
DialectName = Literal["ga", "beta", "azure-preview"]
AudioName = Literal["g711", "pcm24"]


def dialect_problem(url: str, dialect: DialectName) -> str | None:
    """Why a server at ``url`` cannot speak ``dialect``, if its address tells."""
    parts = urlsplit(url)
    versions = parse_qs(parts.query, True).get("api-version", [])
    path = parts.path.rstrip("/")
    if dialect != "azure-preview" and (versions or path.endswith("/openai/realtime")):
        return 'the URL is one of Azure\'s preview API, which speaks "azure-preview"'
    if dialect == "azure-preview" and path.endswith(("/v1", "/v1/realtime")):
        return 'a URL with /v1 is one of Azure\'s GA API, which speaks "ga"'
    return None


class _ServerSettings(Section):
    """Address of one realtime server, and how it is spoken to."""

    url: Url
    api_key: ApiKey = None
    api_key_header: ApiKeyHeader = "authorization"
    model: Text = "gpt-realtime-2.1"
    headers: Headers = Field(default_factory=lambda: MappingProxyType({}))
    dialect: DialectName = "ga"
    audio: AudioName = "g711"
    ca: FilePath | None = None

    @model_validator(mode="after")
    def _ca_is_good(self) -> Self:
        if self.ca is None:
            return self
        if urlsplit(self.url).scheme not in ("wss", "https"):
            raise MisplacedError(("ca",), "has no effect without TLS (wss://)")
        try:
            ssl.create_default_context(cafile=self.ca)
        except ssl.SSLError:
            raise MisplacedError(("ca",), f"{self.ca} has no PEM certificate") from None
        except OSError as error:
            message = f"{self.ca} cannot be read: {error.strerror}"
            raise MisplacedError(("ca",), message) from None
        return self

    @model_validator(mode="after")
    def _dialect_fits(self) -> Self:
        problem = dialect_problem(self.url, self.dialect)
        if problem is not None:
            raise MisplacedError(("dialect",), problem)
        return self

    @property
    def on_loopback(self) -> bool:
        """Whether the server is on this machine (the emulator), where no key is needed."""
        return on_loopback(self.url)


class RealtimeSettings(_ServerSettings):
    """``[realtime]``: the speech-to-speech server."""

    connect_timeout: Seconds = 8.0
    ping_interval: Seconds = 5.0
    ping_timeout: Seconds = 5.0
    max_playout_seconds: Seconds = 600.0
    handover_before_expiry: SecondsOrOff = 60.0
    health_check_interval: SecondsOrOff = 0.0
    truncate_margin_ms: Milliseconds = 0
    safety_identifier: Flag = False


def on_loopback(url: str) -> bool:
    """Whether the host of ``url`` is this machine."""
    host = urlsplit(url).hostname or ""
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def _endpoint_name(value: str) -> str:
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}", value):
        raise ValueError("must be 1 to 64 letters, digits, dots, dashes and underlines")
    return value


class RealtimeServerSettings(_ServerSettings):
    """One ``[[realtime_server]]``: a server for fallback steps; keys as in ``[realtime]``."""

    name: Annotated[str, AfterValidator(_endpoint_name)]
