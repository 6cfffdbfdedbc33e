# SPDX-License-Identifier: GPL-2.0-or-later
"""Smaller sections: ``[access]``, ``[control]``, ``[outbound]``, ``[cost]``, ``[tools]`` and
``[callbacks]``; and the speech-to-speech servers, ``[realtime]`` and ``[[realtime_server]]``.
"""

from __future__ import annotations

import importlib.util
import re
import ssl
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Annotated, Any, Literal, Self, get_args
from urllib.parse import parse_qs, urlsplit
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

import phonenumbers
from pydantic import AfterValidator, Field, PlainSerializer, SecretStr, Strict, model_validator

from gateway.addresses import is_loopback
from gateway.config.numbers import NumberClass
from gateway.config.source import MisplacedError, Section, suggestion
from gateway.config.values import (
    Count,
    FilePath,
    Flag,
    HttpHeaders,
    HttpUrl,
    Milliseconds,
    Name,
    Seconds,
    SecondsOrOff,
    Text,
    Typed,
    check_header,
    refuse_duplicates,
    shown,
    url_parts,
)

Rate = Annotated[float, Strict(), Field(ge=0), Typed]
"""Per second; 0 is no limit."""
CountOrOff = Annotated[int, Strict(), Field(ge=0), Typed]
"""0 is no limit."""


def _realm(value: str) -> str:
    if not re.fullmatch(r"[ !#-\[\]-~]+", value):
        raise ValueError("must be printable ASCII without quotes and backslashes")
    return value


def _different(value: tuple[str, ...]) -> tuple[str, ...]:
    if len(set(value)) != len(value):
        raise ValueError("has an algorithm twice")
    return value


class AccessSettings(Section):
    """``[access]``: calls from no known trunk, and how many of them one source may make."""

    unknown_sources: Literal["auto", "allow", "reject", "drop"] = "auto"
    calls_per_second: Rate = 10.0
    burst: Annotated[int, Strict(), Field(ge=1), Typed] = 10
    max_concurrent_calls: CountOrOff | None = None
    max_unacknowledged_calls: CountOrOff | None = None
    realm: Annotated[str, AfterValidator(_realm)] = "sip-realtime-gateway"
    auth_algorithms: Annotated[
        tuple[Literal["MD5", "SHA-256"], ...], Field(min_length=1), AfterValidator(_different)
    ] = ("MD5", "SHA-256")
    nonce_lifetime: Seconds = 32.0
    ban_after: CountOrOff = 20
    ban_window: Seconds = 60.0
    ban_seconds: Seconds = 600.0

    def concurrent_of(self, max_calls: int) -> int:
        """Return the limit of concurrent calls of one unknown source; 0 for none."""
        return (
            -(-max_calls // 2) if self.max_concurrent_calls is None else self.max_concurrent_calls
        )

    def unacknowledged_of(self, max_calls: int) -> int:
        """Return the limit of calls of all unknown sources that await their ACK; 0 for none."""
        if self.max_unacknowledged_calls is None:
            return 0 if self.max_concurrent_calls == 0 else -(-max_calls // 4)
        return self.max_unacknowledged_calls


def _prefixes(value: tuple[str, ...]) -> tuple[str, ...]:
    for one in value:
        if not re.fullmatch(r"\+?[0-9A-Za-z_.*#\-]*", one):
            raise ValueError(f'{one!r} is not a number prefix, like "+49" or "00"')
    return value


def _country(value: str) -> str:
    if value and value not in phonenumbers.SUPPORTED_REGIONS:
        raise ValueError(f'{value!r} is not an ISO 3166 country code, like "DE"')
    return value


def _classes(value: tuple[str, ...]) -> tuple[str, ...]:
    known = get_args(NumberClass)
    for one in value:
        if one not in known:
            raise ValueError(f"{one!r} is not a number class{suggestion(one, known)}")
    return value


Prefixes = Annotated[tuple[str, ...], AfterValidator(_prefixes)]


class OutboundSettings(Section):
    """``[outbound]``: caps on every call that is placed, and settings of ``gateway dial``."""

    enabled: Flag = False
    country: Annotated[str, AfterValidator(_country)] = ""
    allowed_prefixes: Prefixes = ()
    denied_prefixes: Prefixes = ()
    allowed_classes: Annotated[tuple[str, ...], AfterValidator(_classes)] = ()
    max_concurrent_calls: Count = 4
    max_calls_per_minute: Count = 10
    max_call_duration: Seconds = 1800.0
    ring_timeout: Seconds = 45.0
    early_media: Flag = False

    @model_validator(mode="after")
    def _bounded(self) -> Self:
        """Refuse outbound calls without allowed destinations."""
        if self.enabled and not self.allowed_prefixes:
            raise MisplacedError(
                ("allowed_prefixes",),
                'missing: with outbound.enabled, name the allowed destinations, like ["+49"]',
            )
        return self


Money = Annotated[float, Strict(), Field(ge=0), Typed]
Part = Annotated[float, Strict(), Field(gt=0, le=1), Typed]

WRAP_UP = (
    "The time for this phone call is nearly used up. Bring the conversation to a good end within "
    "your next answers, and do not begin anything new."
)
GOODBYE = "I am sorry, the time for this call is used up. Thank you for calling. Goodbye."


def _zone(value: str) -> str:
    if value:
        try:
            ZoneInfo(value)
        except (ZoneInfoNotFoundError, ValueError, OSError):
            raise ValueError('is not a known time zone; an example is "Europe/Berlin"') from None
    return value


class BudgetSettings(Section):
    """``[cost.budget]``: what may be spent, in the currency of the prices; 0 is no limit."""

    per_call: Money = 0.0
    per_caller: Money = 0.0
    per_day: Money = 0.0
    reserve: Money = 0.0
    warning_threshold: Part = 0.8
    warning_message: Text = WRAP_UP
    warning_response: Flag = False
    goodbye: Text = GOODBYE


class CostSettings(Section):
    """``[cost]``: the prices, and where the sums of a day are kept."""

    prices: FilePath | None = None
    state_file: FilePath | None = None
    timezone: Annotated[str, AfterValidator(_zone)] = ""
    budget: BudgetSettings = Field(default_factory=BudgetSettings)


def _server_name(value: str) -> str:
    # It stands before the names of its tools, which have 64 characters in all.
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_-]{0,31}", value):
        raise ValueError("must be 1 to 32 letters, digits, dashes and underlines")
    return value


class NeedsApproval(Section):
    """``require_approval`` tool by tool."""

    always: tuple[Text, ...] = ()
    never: tuple[Text, ...] = ()

    def as_json(self) -> dict[str, Any]:
        """Return the ``require_approval`` object of the realtime API."""
        named = {"always": self.always, "never": self.never}
        return {key: {"tool_names": list(names)} for key, names in named.items() if names}


class McpServerSettings(Section):
    """``[[tools.mcp]]``: one server of the Model Context Protocol."""

    name: Annotated[str, AfterValidator(_server_name)]
    client: Literal["gateway", "provider"] = "gateway"
    url: HttpUrl | None = None
    connector_id: Text | None = None
    command: tuple[Text, ...] = ()
    env: Annotated[Mapping[str, SecretStr], PlainSerializer(lambda value: dict(value))] = Field(
        default_factory=lambda: MappingProxyType({})
    )
    authorization: SecretStr | None = None
    headers: HttpHeaders = Field(default_factory=lambda: MappingProxyType({}))
    description: str = ""
    allowed_tools: tuple[Text, ...] = ()
    require_approval: Literal["always", "never"] | NeedsApproval = "never"
    connect_timeout: Seconds = 10.0
    timeout: Seconds = 20.0
    filler_delay: SecondsOrOff = 0.0
    filler_text: str = ""

    @model_validator(mode="after")
    def _belong_together(self) -> Self:
        """Refuse settings of an MCP server that exclude or need each other."""
        ways = [bool(self.url), bool(self.command), bool(self.connector_id)]
        if sum(ways) != 1:
            raise ValueError("must have one of url, command and connector_id")
        if self.client == "provider" and self.command:
            raise MisplacedError(("command",), "the realtime server cannot run a command of ours")
        if self.client == "gateway" and self.connector_id:
            raise MisplacedError(
                ("connector_id",), 'is known to the realtime server: client = "provider"'
            )
        if not self.command and self.env:
            raise MisplacedError(("env",), "has no effect without command")
        if self.client == "gateway" and importlib.util.find_spec("mcp") is None:
            raise ValueError(
                "needs the package mcp: pip install 'sip-realtime-gateway[mcp]', or let the "
                'realtime server call it: client = "provider"'
            )
        return self

    def session_tool(self) -> dict[str, Any]:
        """Return the entry of the session object (GA ``tools``); the provider calls the server."""
        tool: dict[str, Any] = {"type": "mcp", "server_label": self.name}
        if self.url:
            tool["server_url"] = self.url
        if self.connector_id:
            tool["connector_id"] = self.connector_id
        if self.authorization is not None:
            tool["authorization"] = self.authorization.get_secret_value()
        if self.headers:
            tool["headers"] = shown(self.headers)
        if self.description:
            tool["server_description"] = self.description
        if self.allowed_tools:
            tool["allowed_tools"] = list(self.allowed_tools)
        needs = self.require_approval
        tool["require_approval"] = needs if isinstance(needs, str) else needs.as_json()
        return tool

    def needs_approval(self, tool: str) -> bool:
        """Return whether this tool may be used by approval only."""
        needs = self.require_approval
        if isinstance(needs, str):
            return needs == "always"
        return tool in needs.always or (bool(needs.never) and tool not in needs.never)


def _authorities(path: Path) -> Path:
    """Return the path of a PEM file with certificates of authorities. Raises ValueError."""
    try:
        ssl.create_default_context(cafile=path)
    except ssl.SSLError:
        raise ValueError(f"{path} has no PEM certificate") from None
    except OSError as error:
        raise ValueError(f"{path} cannot be read: {error.strerror}") from None
    return path


class ToolSettings(Section):
    """``[tools]``: functions that are run by the gateway."""

    module: Text | None = None
    search_path: FilePath = Field(default=Path(), validate_default=True)
    threads: Count = 8
    timeout: Seconds = 20.0
    max_result_chars: Annotated[Count, Field(le=200_000)] = 8000
    http_connections: Count = 50
    http_proxy: HttpUrl | None = None
    http_ca: Annotated[FilePath, AfterValidator(_authorities)] | None = None
    mcp: tuple[McpServerSettings, ...] = ()

    @model_validator(mode="after")
    def _names(self) -> Self:
        refuse_duplicates((server.name for server in self.mcp), "mcp")
        return self


class CallbackSettings(Section):
    """``[callbacks]``: what ``schedule_callback`` leads to."""

    max_pending: Count = 500
    url: HttpUrl | None = None
    headers: HttpHeaders = Field(default_factory=lambda: MappingProxyType({}))
    auto_dial: bool = False
    expire_after: Seconds = 900.0


# Set by the WebSocket handshake (RFC 6455, section 4.1) or by api_key.
_HANDSHAKE_HEADERS = frozenset({"host", "upgrade", "connection", "authorization", "api-key"})
_SECRET_PARAMETERS = frozenset({"api_key", "apikey", "key", "token", "access_token", "secret"})


def websocket_url(value: str) -> str:
    """Return ``value`` if it is the URL of a realtime server; raises ValueError.

    Its WebSocket, or the base of its API as vendors print it (``https://host/openai/v1``).
    """
    begin = "wss:// or https:// (or ws://, http://)"
    parts = url_parts(value, begin, "api_key or headers")
    query = {name.lower().replace("-", "_") for name in parse_qs(parts.query, True)}
    if "model" in query:
        raise ValueError("must not name the model; use the key model, which is added to the URL")
    if query & _SECRET_PARAMETERS:
        raise ValueError("must not carry a key, since URLs are logged; use api_key or headers")
    return value


def _headers(value: Mapping[str, SecretStr]) -> Mapping[str, SecretStr]:
    """Refuse headers that the gateway sets itself, or that are malformed."""
    for name, text in value.items():
        check_header(name, text)
        if name.lower() in _HANDSHAKE_HEADERS or name.lower().startswith("sec-websocket-"):
            raise MisplacedError((name,), "is set by the gateway (see api_key and api_key_header)")
        if name.lower() == "openai-beta":
            raise MisplacedError((name,), 'is sent with dialect = "beta", and only then')
    return MappingProxyType(dict(value))


def _api_key(value: SecretStr | None) -> SecretStr | None:
    if value is None:
        return None
    text = value.get_secret_value()
    if named := re.fullmatch(r"(?:[$%]|[${]?env[:.])(\w+)[%}]?", text):
        raise ValueError(f"is the name of a variable; write ${{env:{named[1]}}}")
    if text[:1] in ("'", '"'):
        raise ValueError("begins with a quotation mark, which `docker --env-file` leaves there")
    if text.lower().startswith("bearer "):
        raise ValueError('begins with "Bearer", which the gateway adds')
    if not re.fullmatch(r"[!-~]*", text):
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
    """Return why a server at ``url`` cannot speak ``dialect``; None if it may."""
    parts = urlsplit(url)
    versions = parse_qs(parts.query, True).get("api-version", [])
    path = parts.path.rstrip("/")
    if dialect != "azure-preview" and (versions or path.endswith("/openai/realtime")):
        return 'the URL is one of Azure\'s preview API, which speaks "azure-preview"'
    if dialect == "azure-preview" and path.endswith(("/v1", "/v1/realtime")):
        return 'a URL with /v1 is one of Azure\'s GA API, which speaks "ga"'
    return None


Region = Literal["", "eu", "us", "ae", "au", "in", "jp"]
"""Where data may be; empty for anywhere."""

_OPENAI = "api.openai.com"


def region_problem(url: str, declared: str, wanted: str) -> str | None:
    """Return why a server may not get data that must stay in a region; None if it may.

    Args:
        declared: what the configuration says of it, which counts where its host does not tell.
        wanted: ``realtime.region``.
    """
    host = (urlsplit(url).hostname or "").lower()
    if not wanted or on_loopback(url):
        return None
    if host == _OPENAI or host.endswith(f".{_OPENAI}"):
        right = f"{wanted}.{_OPENAI}"
        return None if host == right else f'is not in realtime.region = "{wanted}": use {right}'
    if declared == wanted:
        return None
    return f'its host does not tell whether it is in realtime.region = "{wanted}": say so by region'


class _ServerSettings(Section):
    """Address, key, model and dialect of one realtime server."""

    url: Url
    api_key: ApiKey = None
    api_key_header: ApiKeyHeader = "authorization"
    model: Text = "gpt-realtime-2.1"
    headers: Headers = Field(default_factory=lambda: MappingProxyType({}))
    dialect: DialectName = "ga"
    audio: AudioName = "g711"
    region: Region = ""
    ca: FilePath | None = None

    @model_validator(mode="after")
    def _ca_is_good(self) -> Self:
        """Refuse a CA file without certificates, or for a server without TLS."""
        if self.ca is None:
            return self
        if urlsplit(self.url).scheme not in ("wss", "https"):
            raise MisplacedError(("ca",), "has no effect without TLS (wss://)")
        try:
            _authorities(self.ca)
        except ValueError as error:
            raise MisplacedError(("ca",), str(error)) from None
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
    live_queue_ms: Annotated[Milliseconds, Field(ge=60, le=5000)] = 300
    safety_identifier: Flag = False


def on_loopback(url: str) -> bool:
    """Return whether the host of ``url`` is localhost or a loopback address."""
    host = urlsplit(url).hostname or ""
    return host == "localhost" or is_loopback(host)


class RealtimeServerSettings(_ServerSettings):
    """One ``[[realtime_server]]``: a server for fallback steps; keys as in ``[realtime]``."""

    name: Name
