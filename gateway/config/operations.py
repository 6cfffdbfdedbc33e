# SPDX-License-Identifier: GPL-2.0-or-later
"""What is kept of calls, and who is told: ``[records]``, ``[shared]``, ``[api]``, ``[control]``."""

from __future__ import annotations

import base64
import ipaddress
import os
import re
from pathlib import Path
from types import MappingProxyType
from typing import Annotated, Literal, Self
from urllib.parse import urlsplit

from pydantic import (
    AfterValidator,
    BeforeValidator,
    Field,
    SecretStr,
    Strict,
    StringConstraints,
    ValidationInfo,
    model_validator,
)

from gateway.config.source import MisplacedError, Section
from gateway.config.values import (
    Count,
    FilePath,
    Flag,
    HttpHeaders,
    HttpUrl,
    Name,
    Seconds,
    SecondsOrOff,
    Text,
    Typed,
    ip_literal,
    refuse_duplicates,
)
from gateway.text import path_of, redaction

Redacted = Literal["numbers", "dtmf", "cards", "ibans", "emails"]
"""Kinds of data to mask; of telephone numbers the last digits stay."""


def _redaction(value: str) -> str:
    redaction(value)
    return value


Redaction = Annotated[str, StringConstraints(max_length=1000), AfterValidator(_redaction)]
"""A regular expression of RE2; its matches are masked."""

DATABASE_NAME = "calls.sqlite3"

Days = SecondsOrOff
"""Days; 0 for any number of them."""


_POSTGRES = re.compile(
    r"postgres(ql)?://([^:/]*(:[^@]*)?@)?(\[[0-9A-Fa-f:.]+\]|[^/:?@\[\]]*)(:(?P<port>\d{1,5}))?/.+",
    re.DOTALL,
)
"""As SQLAlchemy reads it, but for a host with an @ in it, or a port that is no number."""


def _database(value: SecretStr, info: ValidationInfo) -> SecretStr:
    """Make the path of a SQLite URL absolute. Raises ValueError for an unknown URL."""
    url = value.get_secret_value()
    if url.startswith("sqlite:///") and len(url) > len("sqlite:///"):
        folder = (info.context or {}).get("folder")
        path = path_of(url.removeprefix("sqlite:///"))
        return SecretStr(f"sqlite:///{path if folder is None else Path(folder, path)}")
    if not re.match(r"postgres(ql)?://[^/]*/.", url):
        raise ValueError('must be "sqlite:///FILE" or "postgresql://USER:PASSWORD@HOST/NAME"')
    found = _POSTGRES.fullmatch(url)
    if found is None or int(found["port"] or 0) > 65535:
        raise ValueError(
            "its host or port cannot be read: postgresql://USER:PASSWORD@HOST:PORT/NAME, with %40 "
            "for an @ in the password, and [ ] around an IPv6 address"
        )
    return value


class RecordSettings(Section):
    """``[records]``: what is kept of calls, where, and for how long (days)."""

    folder: FilePath | None = None
    database: Annotated[SecretStr, AfterValidator(_database)] | None = None
    events: Flag = False
    redact: tuple[Redacted, ...] = ()
    redact_patterns: Annotated[tuple[Redaction, ...], Field(max_length=50)] = ()
    black_box: Literal["off", "on_trouble", "always"] = "off"
    black_box_payload: Flag = False
    black_box_files: Count = 1000
    retention_days: Days = 0.0
    details_retention_days: Days = 0.0

    @model_validator(mode="after")
    def _spool_has_a_folder(self) -> Self:
        if self.database is not None and self.spool_folder is None:
            raise MisplacedError(
                ("folder",), "missing: records wait there while the database is away"
            )
        return self

    @property
    def database_url(self) -> str | None:
        """URL of the database of calls: ``database``, or a SQLite file in ``folder``."""
        if self.database is not None:
            return self.database.get_secret_value()
        return None if self.folder is None else f"sqlite:///{self.folder / DATABASE_NAME}"

    @property
    def spool_folder(self) -> Path | None:
        """Folder in which rows wait for the database: ``folder``, or that of SQLite's file."""
        url = "" if self.database is None else self.database.get_secret_value()
        if self.folder is None and url.startswith("sqlite:///"):
            return Path(url.removeprefix("sqlite:///")).parent
        return self.folder

    def secrets(self) -> tuple[str, ...]:
        """The password of the database, alone and in its URL."""
        url = "" if self.database is None else self.database.get_secret_value()
        password = urlsplit(url).password
        return (url, password) if password else ()


RecordingFormat = Literal["wav", "wav_pcm", "opus"]
"""WAV with G.711 as it came, WAV with 16-bit linear samples, or Ogg Opus."""

RecordingMode = Literal["off", "on_demand", "always"]


def _public_key(value: str) -> str:
    if not re.fullmatch(r"age1[0-9a-z]{50,}|ssh-(?:ed25519|rsa) \S+(?: .*)?", value):
        raise ValueError('must be a public key of age ("age1...") or SSH ("ssh-ed25519 ...")')
    return value


class UploadSettings(Section):
    """``[recording.upload]``: S3-compatible storage that finished recordings are copied to."""

    endpoint: HttpUrl
    bucket: Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9.-]{1,61}[a-z0-9]$")]
    prefix: str = ""
    region: str = ""
    access_key: SecretStr
    secret_key: SecretStr
    keep_local: Flag = True

    @model_validator(mode="after")
    def _safe(self) -> Self:
        """Refuse an endpoint with a path, or without TLS elsewhere than on this machine."""
        parts = urlsplit(self.endpoint)
        if parts.path.strip("/") or parts.query:
            raise MisplacedError(("endpoint",), "must be scheme and host only; use bucket, prefix")
        if parts.scheme != "https" and parts.hostname not in ("127.0.0.1", "::1", "localhost"):
            raise MisplacedError(
                ("endpoint",), "must begin with https://: recordings would go over the network"
            )
        return self


class RecordingSettings(Section):
    """``[recording]``: where calls are recorded to, in which form, and for how long (days)."""

    folder: FilePath | None = None
    mode: RecordingMode = "off"
    format: RecordingFormat = "wav"
    recipients: tuple[Annotated[str, AfterValidator(_public_key)], ...] = ()
    retention_days: Days = 0.0
    upload: UploadSettings | None = None

    @model_validator(mode="after")
    def _has_a_folder(self) -> Self:
        if self.folder is None and (self.mode != "off" or self.upload is not None):
            raise MisplacedError(("folder",), "missing: recordings are written there")
        return self


class SharedSettings(Section):
    """``[shared]``: what all processes on ``records.database`` hold together."""

    max_calls: Annotated[int, Strict(), Field(ge=0), Typed] = 0
    fail: Literal["open", "closed"] = "closed"
    timeout_ms: Annotated[int, Strict(), Field(ge=10, le=5000), Typed] = 1000


def _hash(value: str) -> str:
    if not re.fullmatch(r"sha256:[0-9a-f]{64}", value):
        raise ValueError("is no hash of a token: `gateway token create` makes both")
    return value


def _address(value: str) -> str:
    host, port = split_address(value)
    if not host or not port.isdigit() or int(port) > 65535:
        raise ValueError('must be an address and a port, like "127.0.0.1:8080" or "[::1]:8080"')
    ip_literal(host)
    return value


def split_address(value: str) -> tuple[str, str]:
    """Return host, without brackets, and port of ``host:port``."""
    host, _, port = value.rpartition(":")
    return host.removeprefix("[").removesuffix("]"), port


class TokenSettings(Section):
    """``[[api.token]]``: who may use the API; the token itself is kept nowhere."""

    name: Name
    role: Literal["application", "readonly", "operator", "admin"]
    hash: Annotated[str, AfterValidator(_hash)]
    routes: tuple[str, ...] = ()

    @model_validator(mode="after")
    def _routes_of_an_application(self) -> Self:
        if self.routes and self.role != "application":
            raise MisplacedError(("routes",), 'has no effect without role = "application"')
        return self


class ApiSettings(Section):
    """``[api]``: where the HTTP API, health, readiness and metrics are served."""

    listen: Annotated[
        Annotated[str, AfterValidator(_address)] | None,
        BeforeValidator(lambda value: None if value == "" else value),
    ] = None
    allow_plaintext: Flag = False
    browser_calls: Annotated[int, Strict(), Field(ge=0, le=100), Typed] = 0
    token: tuple[TokenSettings, ...] = ()

    @model_validator(mode="after")
    def _safe(self) -> Self:
        """Refuse tokens of the same name, and tokens in plain text over a network."""
        refuse_duplicates((one.name for one in self.token), "token")
        if self.listen is None or self.allow_plaintext:
            return self
        if not ipaddress.ip_address(split_address(self.listen)[0]).is_loopback:
            raise MisplacedError(
                ("listen",),
                "would carry tokens in plain text over a network: put a TLS proxy in front and "
                "listen on loopback, or set allow_plaintext",
            )
        return self

    def shifted(self, step: int) -> ApiSettings:
        """Return the settings of another worker, whose port is higher by ``step``."""
        if self.listen is None:
            return self
        host, _, port = self.listen.rpartition(":")
        if port == "0":
            return self
        return self.model_copy(update={"listen": f"{host}:{int(port) + step}"})


WebhookEvent = Literal[
    "call.incoming",
    "call.dialing",
    "call.ringing",
    "call.answered",
    "call.transferring",
    "call.transferred",
    "call.transfer_failed",
    "call.budget",
    "call.trouble",
    "call.ended",
    "canary.started",
    "canary.stopped",
    "synthetic.failed",
    "synthetic.passed",
]


def _signing_key(value: SecretStr) -> SecretStr:
    """Refuse a key that is no ``whsec_`` of at least 24 bytes."""
    text = value.get_secret_value()
    try:
        key = base64.b64decode(text.removeprefix("whsec_"), validate=True)
    except ValueError:
        key = b""
    if not text.startswith("whsec_") or not 24 <= len(key) <= 64:
        raise ValueError(
            'must be "whsec_" and 24 to 64 bytes in base64: echo whsec_$(openssl rand -base64 32)'
        )
    return value


SigningKey = Annotated[SecretStr, AfterValidator(_signing_key)]


class TracingSettings(Section):
    """``[tracing]``: where traces of calls go, by OTLP over HTTP."""

    endpoint: HttpUrl | None = None
    headers: HttpHeaders = Field(default_factory=lambda: MappingProxyType({}))
    service_name: Name = "sip-realtime-gateway"
    sample_ratio: Annotated[float, Strict(), Field(ge=0, le=1), Typed] = 1.0


class SyntheticCall(Section):
    """``[[synthetic_call]]``: a call that the gateway makes to itself, to see that it is answered.

    Times are seconds but ``interval_minutes``; the call ends once the agent was heard.
    """

    name: Name
    route: Text | None = None
    to: Text | None = None
    interval_minutes: Annotated[float, Strict(), Field(ge=1, le=1440), Typed] = 15.0
    answer_within: Annotated[Seconds, Field(le=60)] = 10.0
    heard_within: Annotated[Seconds, Field(le=60)] = 10.0

    @model_validator(mode="after")
    def _one_of_them(self) -> Self:
        if (self.route is None) == (self.to is None):
            raise ValueError("must have either route (its name) or to (a number that is called)")
        return self


class WebhookSettings(Section):
    """``[[webhook]]``: an address that is told of events of calls."""

    name: Name
    url: HttpUrl
    secret: SigningKey
    previous_secret: SigningKey | None = None
    events: tuple[WebhookEvent, ...] = ("call.ended",)
    headers: HttpHeaders = Field(default_factory=lambda: MappingProxyType({}))


MAX_SOCKET_BYTES = 107
"""The longest path of a Unix socket (``sun_path``, unix(7))."""


def _socket_path(value: Path | None) -> Path | None:
    if value is not None and (size := len(os.fsencode(value))) > MAX_SOCKET_BYTES:
        raise ValueError(
            f"the path {value} has {size} bytes; {MAX_SOCKET_BYTES} are allowed of a Unix socket"
        )
    return value


class ControlSettings(Section):
    """``[control]``: the socket that ``gateway status`` asks."""

    socket: Annotated[FilePath | None, AfterValidator(_socket_path)] = None
