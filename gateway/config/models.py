"""What ``gateway.toml`` may say, section by section: names, types, units and defaults."""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from types import MappingProxyType
from typing import Annotated, Any, Literal, NamedTuple, Self
from urllib.parse import parse_qs, urlsplit

from pydantic import (
    AfterValidator,
    BeforeValidator,
    Field,
    PlainSerializer,
    SecretStr,
    Strict,
    ValidationInfo,
    model_validator,
)

from .problems import MisplacedError
from .source import Reference
from .validate import Section


def _from_reference(value: object) -> object:
    """A number or a flag that came out of the environment, where everything is text."""
    if not isinstance(value, Reference):
        return value
    text = value.strip()
    if text in ("true", "false"):
        return text == "true"
    for number in (int, float):
        try:
            return number(text)
        except ValueError:
            continue
    return value


# TOML has types: "100" is not 100, true is not 1, and 5.0 calls are none.
_Typed = BeforeValidator(_from_reference)
Count = Annotated[int, Strict(), Field(ge=1), _Typed]
Milliseconds = Annotated[int, Strict(), Field(ge=0), _Typed]
Seconds = Annotated[float, Strict(), Field(gt=0), _Typed]
SecondsOrOff = Annotated[float, Strict(), Field(ge=0), _Typed]
Flag = Annotated[bool, Strict(), _Typed]
Text = Annotated[str, Field(min_length=1)]

_HEADER_NAME = re.compile(r"[!#$%&'*+\-.^_`|~0-9A-Za-z]+")
# Set by the WebSocket handshake (RFC 6455, section 4.1) or by api_key.
_HANDSHAKE_HEADERS = frozenset({"host", "upgrade", "connection", "authorization", "api-key"})
_SECRET_PARAMETERS = frozenset({"api_key", "apikey", "key", "token", "access_token", "secret"})


class ListenAddress(NamedTuple):
    """Where SIP is heard; ``host`` is an IP literal without brackets, port 0 lets the system."""

    transport: Literal["udp", "tcp", "tls"]
    host: str
    port: int

    def __str__(self) -> str:
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{self.transport}:{host}:{self.port}"

    def shifted(self, ports: int) -> ListenAddress:
        """The address so many ports higher."""
        return self._replace(port=self.port + ports)

    def collides(self, other: ListenAddress) -> bool:
        """Whether not both can be bound; ``0.0.0.0`` and ``::`` are all of this machine's."""
        if (self.transport == "udp") is not (other.transport == "udp"):
            return False
        hosts = (ipaddress.ip_address(self.host), ipaddress.ip_address(other.host))
        same = hosts[0] == hosts[1] or any(host.is_unspecified for host in hosts)
        return self.port == other.port and hosts[0].version == hosts[1].version and same


class PortRange(NamedTuple):
    """UDP ports for RTP (even) and RTCP (the odd one above, RFC 3550 section 11), inclusive."""

    low: int
    high: int

    @property
    def calls(self) -> int:
        """How many calls find a pair of ports in the range."""
        return (self.high - self.low + 1) // 2

    def share(self, index: int, count: int) -> PortRange:
        """The ``index``-th of ``count`` equal parts, in whole pairs."""
        pairs = self.calls // count
        low = self.low + 2 * pairs * index
        return PortRange(low, low + 2 * pairs - 1)


def _listen_address(value: object) -> ListenAddress:
    if not isinstance(value, str):
        raise ValueError('must be a string like "udp:127.0.0.1:5060"')
    match = re.fullmatch(r"([a-z]+):(\[[^\]]*\]|[^:\[\]]+):(\d{1,5})", value)
    if match is None:
        raise ValueError(
            'must be transport:address:port, like "udp:0.0.0.0:5060" or "udp:[::1]:5060"'
        )
    transport, host, port = match[1], match[2].strip("[]"), int(match[3])
    if transport in ("tcp", "tls"):
        raise ValueError(f"{transport}: is not carried yet, only udp:")
    if transport != "udp":
        raise ValueError("the transport must be udp (tcp and tls are not carried yet)")
    if port > 65535:
        raise ValueError("the port must be between 0 and 65535")
    return ListenAddress("udp", ip_literal(host), port)


def ip_literal(value: str) -> str:
    """``value`` as canonical IPv4 or IPv6 address; raises ValueError."""
    try:
        return str(ipaddress.ip_address(value))
    except ValueError:
        raise ValueError("the address must be IPv4 or IPv6, not a name") from None


def _port_range(value: object) -> PortRange:
    match value:
        case [int(low), int(high)] if not isinstance(low, bool) and not isinstance(high, bool):
            pass
        case _:
            raise ValueError("must be two integers, [lowest, highest]")
    if not 1024 <= low <= 65535 or not 1024 <= high <= 65535:
        raise ValueError("both ports must be between 1024 and 65535")
    if low % 2:
        raise ValueError("the lowest port must be even: RTP takes the even port of each pair")
    if high <= low:
        raise ValueError("the highest port must be above the lowest")
    return PortRange(low, high)


def _not_empty(value: object) -> object:
    if value == "":
        raise ValueError("must not be empty; leave the key out instead")
    return value


def _below_config(path: Path, info: ValidationInfo) -> Path:
    folder = (info.context or {}).get("folder")
    return path if folder is None else Path(folder, path.expanduser())


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
        if not re.fullmatch(r"[ -~]*", text.get_secret_value()):
            raise MisplacedError((name,), "has characters that no header may have")
    return MappingProxyType(dict(value))


def _api_key(value: SecretStr | None) -> SecretStr | None:
    if value is not None and not re.fullmatch(r"[!-~]*", value.get_secret_value()):
        raise ValueError("has characters that no key has (space, newline, or not ASCII)")
    return value


FilePath = Annotated[Path, BeforeValidator(_not_empty), AfterValidator(_below_config)]
Url = Annotated[str, AfterValidator(websocket_url)]
ApiKey = Annotated[SecretStr | None, AfterValidator(_api_key)]
Headers = Annotated[
    Mapping[str, SecretStr], AfterValidator(_headers), PlainSerializer(lambda value: dict(value))
]


def _address_or_empty(value: str) -> str:
    return ip_literal(value.strip("[]")) if value else ""


def _header_text(value: str) -> str:
    if not re.fullmatch(r"[!-~]([ -~]*[!-~])?", value):
        raise ValueError("must be printable ASCII, not empty, without spaces around it")
    return value


def _user_agent() -> str:
    try:
        return f"sip-realtime-gateway/{version('sip-realtime-gateway')}"
    except PackageNotFoundError:
        return "sip-realtime-gateway"


class SipSettings(Section):
    """``[sip]``: the telephone side."""

    listen: Annotated[
        tuple[Annotated[ListenAddress, BeforeValidator(_listen_address)], ...], Field(min_length=1)
    ] = (ListenAddress("udp", "127.0.0.1", 5060),)
    rtp_ports: Annotated[PortRange, BeforeValidator(_port_range)] = PortRange(20000, 29999)
    public_address: Annotated[str, AfterValidator(_address_or_empty)] = ""
    max_calls: Count = 100
    user_agent: Annotated[str, AfterValidator(_header_text)] = Field(default_factory=_user_agent)

    @model_validator(mode="after")
    def _ports_fit(self) -> Self:
        if self.rtp_ports.calls < self.max_calls:
            raise MisplacedError(
                ("rtp_ports",),
                f"has room for {self.rtp_ports.calls} calls (two ports each), "
                f"but max_calls is {self.max_calls}",
            )
        for index, address in enumerate(self.listen):
            if self.rtp_ports.low <= address.port <= self.rtp_ports.high:
                raise MisplacedError(("listen", index), "the port is one of rtp_ports")
            if address in self.listen[:index]:
                raise MisplacedError(("listen", index), "is there twice")
        return self


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


class LogSettings(Section):
    """``[log]``: what is said, how, and where to."""

    format: Literal["json", "console"] = "json"
    level: Literal["debug", "info", "warning", "error"] = "info"
    file: FilePath | None = None


class RecordSettings(Section):
    """``[records]``: one JSON file per call, when a folder is given."""

    folder: FilePath | None = None


class MediaSettings(Section):
    """``[media]``: the jitter buffer towards the model (ms) and when silence means dead (s)."""

    jb_init_ms: Milliseconds = 40
    jb_min_ms: Milliseconds = 20
    jb_max_ms: Annotated[Milliseconds, Field(le=2000)] = 240
    rtp_timeout: SecondsOrOff = 30.0

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
    max_restarts: Annotated[int, Strict(), Field(ge=0), _Typed] = 8


class Config(Section):
    """All of ``gateway.toml``, checked; paths in it are absolute."""

    sip: SipSettings = Field(default_factory=SipSettings)
    realtime: RealtimeSettings
    dialplan: DialplanSettings = Field(default_factory=DialplanSettings)
    log: LogSettings = Field(default_factory=LogSettings)
    records: RecordSettings = Field(default_factory=RecordSettings)
    media: MediaSettings = Field(default_factory=MediaSettings)
    limits: LimitSettings = Field(default_factory=LimitSettings)
    workers: WorkerSettings = Field(default_factory=WorkerSettings)

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
        return self.model_copy(update={"sip": sip})

    def secrets(self) -> tuple[str, ...]:
        """Every secret text, for a log filter that must let none of them through."""
        values: list[Any] = [self.realtime.api_key, *self.realtime.headers.values()]
        return tuple(value.get_secret_value() for value in values if value)
