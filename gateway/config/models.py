"""What ``gateway.toml`` may say, section by section: names, types, units and defaults."""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Annotated, Any, Literal, Self
from urllib.parse import parse_qs, urlsplit

from pydantic import (
    AfterValidator,
    Field,
    PlainSerializer,
    SecretStr,
    Strict,
    model_validator,
)

from .access import AccessSettings, ControlSettings
from .cost import CostSettings
from .outbound import OutboundSettings
from .problems import MisplacedError
from .sip import ListenAddress, SipSettings
from .tools import CallbackSettings, ToolSettings
from .trunks import Keying, Srtp, TrunkSettings, judge_jitter, judge_trunks
from .validate import Section
from .values import Count, FilePath, Flag, Milliseconds, Seconds, SecondsOrOff, Text, Typed

_HEADER_NAME = re.compile(r"[!#$%&'*+\-.^_`|~0-9A-Za-z]+")
# Set by the WebSocket handshake (RFC 6455, section 4.1) or by api_key.
_HANDSHAKE_HEADERS = frozenset({"host", "upgrade", "connection", "authorization", "api-key"})
_SECRET_PARAMETERS = frozenset({"api_key", "apikey", "key", "token", "access_token", "secret"})


def websocket_url(value: str) -> str:
    """``value`` if it can be a realtime server's address; raises ValueError."""
    try:
        parts = urlsplit(value)
        host, _port = parts.hostname, parts.port
    except ValueError:
        raise ValueError("is no URL: the host or the port cannot be read") from None
    if parts.scheme not in ("ws", "wss"):
        raise ValueError("must begin with ws:// or wss://")
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
            raise MisplacedError((name,), "is no name of an HTTP header")
        if name.lower() in _HANDSHAKE_HEADERS or name.lower().startswith("sec-websocket-"):
            raise MisplacedError((name,), "is set by the gateway (see api_key and api_key_header)")
        if name.lower() == "openai-beta":
            raise MisplacedError((name,), 'is sent with dialect = "beta", and only then')
        if not re.fullmatch(r"[ -~]*", text.get_secret_value()):
            raise MisplacedError((name,), "has characters that no header may have")
    return MappingProxyType(dict(value))


def _api_key(value: SecretStr | None) -> SecretStr | None:
    if value is not None and not re.fullmatch(r"[!-~]*", value.get_secret_value()):
        raise ValueError("has characters that no key has (space, newline, or not ASCII)")
    return value


Url = Annotated[str, AfterValidator(websocket_url)]
ApiKey = Annotated[SecretStr | None, AfterValidator(_api_key)]
Headers = Annotated[
    Mapping[str, SecretStr], AfterValidator(_headers), PlainSerializer(lambda value: dict(value))
]


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


class RealtimeSettings(Section):
    """``[realtime]``: the speech-to-speech server."""

    url: Url
    api_key: ApiKey = None
    api_key_header: Literal["authorization", "api-key"] = "authorization"
    model: Text = "gpt-realtime-2.1"
    headers: Headers = Field(default_factory=lambda: MappingProxyType({}))
    connect_timeout: Seconds = 8.0
    ping_interval: Seconds = 20.0
    ping_timeout: Seconds = 20.0
    playout_seconds: Seconds = 600.0
    truncate_margin_ms: Milliseconds = 0
    dialect: DialectName = "ga"
    audio: AudioName = "g711"

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


def on_loopback(url: str) -> bool:
    """Whether the host of ``url`` is this machine."""
    host = urlsplit(url).hostname or ""
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


class DialplanSettings(Section):
    """``[dialplan]``: where the routes are."""

    folder: FilePath = Field(default=Path("dialplans"), validate_default=True)
    unknown_settings: Literal["warn", "refuse"] = "warn"


class LogSettings(Section):
    """``[log]``: what is said, how, and where to."""

    format: Literal["json", "console"] = "json"
    level: Literal["debug", "info", "warning", "error"] = "info"
    file: FilePath | None = None


LEDGER_NAME = "today.cost"


class RecordSettings(Section):
    """``[records]``: one JSON file per call, when a folder is given, and its session's events."""

    folder: FilePath | None = None
    events: Flag = False


class MediaSettings(Section):
    """``[media]``: the jitter buffer towards the model (ms) and when silence means dead (s)."""

    jb_init_ms: Milliseconds = 40
    jb_min_ms: Milliseconds = 20
    jb_max_ms: Annotated[Milliseconds, Field(le=2000)] = 240
    jb_catch_up: Flag = True
    rtp_timeout: SecondsOrOff = 30.0
    srtp: Srtp = "optional"
    srtp_keying: Annotated[tuple[Keying, ...], Field(min_length=1)] = ("sdes",)

    @model_validator(mode="after")
    def _ordered(self) -> Self:
        if not self.jb_min_ms <= self.jb_init_ms <= self.jb_max_ms:
            raise MisplacedError(("jb_init_ms",), "must be between jb_min_ms and jb_max_ms")
        return self


class LimitSettings(Section):
    """``[limits]``: how long a call may last, and a shutdown may take (s)."""

    max_call_seconds: Seconds = 3600.0
    drain_seconds: SecondsOrOff = 5.0
    drain_notice_seconds: SecondsOrOff = 0.0


class WorkerSettings(Section):
    """``[workers]``: processes that share the calls, each with ports of its own."""

    count: Annotated[Count, Field(le=256)] = 1
    port_step: Count = 1
    max_restarts: Annotated[int, Strict(), Field(ge=0), Typed] = 8


class Config(Section):
    """All of ``gateway.toml``, checked; paths in it are absolute."""

    sip: SipSettings = Field(default_factory=SipSettings)
    realtime: RealtimeSettings
    dialplan: DialplanSettings = Field(default_factory=DialplanSettings)
    log: LogSettings = Field(default_factory=LogSettings)
    records: RecordSettings = Field(default_factory=RecordSettings)
    media: MediaSettings = Field(default_factory=MediaSettings)
    limits: LimitSettings = Field(default_factory=LimitSettings)
    cost: CostSettings = Field(default_factory=CostSettings)
    workers: WorkerSettings = Field(default_factory=WorkerSettings)
    access: AccessSettings = Field(default_factory=AccessSettings)
    control: ControlSettings = Field(default_factory=ControlSettings)
    outbound: OutboundSettings = Field(default_factory=OutboundSettings)
    trunk: tuple[TrunkSettings, ...] = ()
    tools: ToolSettings = Field(default_factory=ToolSettings)
    callbacks: CallbackSettings = Field(default_factory=CallbackSettings)

    @model_validator(mode="after")
    def _trunks_fit(self) -> Self:
        judge_trunks(self.trunk, self.sip)
        judge_jitter(self.trunk, self.media)
        return self

    @model_validator(mode="after")
    def _workers_fit(self) -> Self:
        count, sip = self.workers.count, self.sip
        if count == 1:
            return self
        share = sip.rtp_ports.share(0, count).calls
        if share < sip.max_calls:
            raise MisplacedError(
                ("sip", "rtp_ports"),
                f"has room for {share} calls in each of {count} workers (two ports each), "
                f"but max_calls is {sip.max_calls} for each",
            )
        for number, trunk in enumerate(self.trunk):
            if trunk.registrar is not None:
                raise MisplacedError(
                    ("trunk", number, "registrar"),
                    f"each of {count} workers would register there, and every call ring in all of "
                    "them; let the proxy in front register",
                )
        seen: list[tuple[ListenAddress, int]] = []
        for worker in range(count):
            for index, base in enumerate(sip.listen):
                where = ("sip", "listen", index)
                address = base.shifted(worker * self.workers.port_step)
                if base.port == 0:
                    raise MisplacedError(where, f"port 0 cannot be shared by {count} workers")
                if address.port > 65535:
                    raise MisplacedError(where, f"worker {worker} would have port {address.port}")
                if sip.rtp_ports.low <= address.port <= sip.rtp_ports.high:
                    raise MisplacedError(
                        where, f"worker {worker} would have port {address.port}, one of rtp_ports"
                    )
                for other, owner in seen:
                    if address.collides(other):
                        raise MisplacedError(
                            where,
                            f"worker {worker} would have {address}, which worker {owner} has as "
                            f"{other}; workers.port_step sets them further apart",
                        )
                seen.append((address, worker))
        return self

    def for_worker(self, index: int) -> Config:
        """The configuration of one of ``workers.count`` workers, counted from 0."""
        step, count = index * self.workers.port_step, self.workers.count
        sip = self.sip.model_copy(
            update={
                "listen": tuple(address.shifted(step) for address in self.sip.listen),
                "rtp_ports": self.sip.rtp_ports.share(index, count),
            }
        )
        control, socket = self.control, self.control.socket
        if socket is not None:
            own = socket.with_name(f"{socket.stem}-{index}{socket.suffix}")
            control = control.model_copy(update={"socket": own})
        callbacks, file = self.callbacks, self.callbacks.file
        if file is not None:
            own = file.with_name(f"{file.stem}-{index}{file.suffix}")
            callbacks = callbacks.model_copy(update={"file": own})
        cost, ledger = self.cost, self.ledger
        if ledger is not None:
            own = ledger.with_name(f"{ledger.stem}-{index}{ledger.suffix}")
            cost = cost.model_copy(update={"ledger": own})
        return self.model_copy(
            update={"sip": sip, "control": control, "cost": cost, "callbacks": callbacks}
        )

    @property
    def ledger(self) -> Path | None:
        """Where the day's costs are kept: ``cost.ledger``, or else beside the records."""
        folder = self.records.folder
        return self.cost.ledger or (None if folder is None else folder / LEDGER_NAME)

    def secrets(self) -> tuple[str, ...]:
        """Every secret text, for a log filter that must let none of them through."""
        values: list[Any] = [self.realtime.api_key, *self.realtime.headers.values()]
        values += [trunk.password for trunk in self.trunk]
        values += self.callbacks.headers.values()
        own = tuple(value.get_secret_value() for value in values if value)
        return (*own, *self.tools.secrets())
