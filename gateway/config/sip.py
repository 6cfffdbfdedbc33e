# SPDX-License-Identifier: GPL-2.0-or-later
"""``[sip]``: where calls arrive, over what, with which TLS; ``[[trunk]]``: a PBX or carrier."""

from __future__ import annotations

import ipaddress
import re
import ssl
from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, version
from types import MappingProxyType
from typing import Annotated, Any, Literal, NamedTuple, Self, cast, get_args

from pydantic import AfterValidator, BeforeValidator, Field, SecretStr, model_validator

from gateway.config.sections import CountOrOff, Rate
from gateway.config.source import MisplacedError, Section
from gateway.config.values import (
    Count,
    FilePath,
    Flag,
    Name,
    Network,
    PacketWait,
    Regex,
    SecondsOrOff,
    ip_literal,
    network_of,
    refuse_duplicates,
)

Transport = Literal["udp", "tcp", "tls"]
TRANSPORTS = ("udp", "tcp", "tls")
"""Transports, from the least to the best protected."""


class ListenAddress(NamedTuple):
    """A listening address; ``host`` is an IP literal without brackets, port 0 any free one."""

    transport: Transport
    host: str
    port: int

    def __str__(self) -> str:
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{self.transport}:{host}:{self.port}"

    def shifted(self, ports: int) -> ListenAddress:
        """Return the address with its port raised by ``ports``."""
        return self._replace(port=self.port + ports)

    def collides(self, other: ListenAddress) -> bool:
        """Return whether both cannot be bound; ``0.0.0.0`` and ``::`` are all of this machine's."""
        if (self.transport == "udp") is not (other.transport == "udp"):
            return False
        hosts = (ipaddress.ip_address(self.host), ipaddress.ip_address(other.host))
        same = hosts[0] == hosts[1] or any(host.is_unspecified for host in hosts)
        return self.port == other.port and hosts[0].version == hosts[1].version and same


def _listen_address(value: object) -> ListenAddress:
    """Parse ``transport:address:port``. Raises ValueError."""
    if not isinstance(value, str):
        raise ValueError('must be a string like "udp:127.0.0.1:5060"')
    match = re.fullmatch(r"([a-z]+):(\[[^\]]*\]|[^:\[\]/\s]+):(\d{1,5})", value)
    if match is None:
        raise ValueError(
            'must be transport:address:port, like "udp:0.0.0.0:5060" or "udp:[::1]:5060"'
        )
    transport, host, port = match[1], match[2].strip("[]"), int(match[3])
    if transport not in TRANSPORTS:
        raise ValueError("the transport must be udp, tcp or tls")
    if port > 65535:
        raise ValueError("the port must be between 0 and 65535")
    return ListenAddress(cast(Transport, transport), ip_literal(host), port)


class PortRange(NamedTuple):
    """UDP ports for RTP (even) and RTCP (the odd one above, RFC 3550 section 11), inclusive."""

    low: int
    high: int

    @property
    def calls(self) -> int:
        """Number of calls for which the range has a pair of ports."""
        return (self.high - self.low + 1) // 2

    def share(self, index: int, count: int) -> PortRange:
        """Return part ``index`` (from 0) of ``count`` equal parts, in whole pairs of ports."""
        pairs = self.calls // count
        low = self.low + 2 * pairs * index
        return PortRange(low, low + 2 * pairs - 1)


def _port_range(value: object) -> PortRange:
    """Parse ``[lowest, highest]``. Raises ValueError."""
    match value:
        case [int(low), int(high)] if not isinstance(low, bool) and not isinstance(high, bool):
            pass
        case _:
            raise ValueError("must be two integers, [lowest, highest]")
    if not 1024 <= low <= 65535 or not 1024 <= high <= 65535:
        raise ValueError("both ports must be between 1024 and 65535")
    if high <= low:
        raise ValueError("the highest port must be above the lowest: [lowest, highest]")
    if low % 2:
        raise ValueError("the lowest port must be even: RTP takes the even port of each pair")
    return PortRange(low, high)


_DSCP_NAMES = (
    {"ef": 46}
    | {f"cs{number}": 8 * number for number in range(8)}
    | {f"af{queue}{drop}": 8 * queue + 2 * drop for queue in range(1, 5) for drop in range(1, 4)}
)
"""RFC 2474, 2597 and 3246."""


def _dscp(value: object) -> int:
    """Return a DSCP from its number or name. Raises ValueError."""
    found = _DSCP_NAMES.get(value.lower()) if isinstance(value, str) else value
    if not isinstance(found, int) or isinstance(found, bool) or not 0 <= found <= 63:
        raise ValueError('must be a name like "ef", "cs3" or "af31", or 0 to 63 (TOS byte / 4)')
    return found


def _address_or_empty(value: str) -> str:
    if re.fullmatch(r"[\d.]+:\d+|\[[^]]+\]:\d+", value):
        raise ValueError("must be an address alone, without a port")
    address = ip_literal(value.strip("[]")) if value else ""
    if address and ipaddress.ip_address(address).is_unspecified:
        raise ValueError('must be an address that callers reach, or "": 0.0.0.0 puts them on hold')
    return address


def _header_text(value: str) -> str:
    if not re.fullmatch(r"([!-~]([ -~]*[!-~])?)?", value):
        raise ValueError("must be printable ASCII without spaces around it")
    return value


def _host_and_port(value: str) -> str:
    if value and not re.fullmatch(r"(\[[0-9A-Fa-f:]+\]|[0-9A-Za-z.\-]+)(:\d{1,5})?", value):
        raise ValueError('must be a host with or without a port, like "stun.example.net:3478"')
    return value


def _user_agent() -> str:
    try:
        return f"sip-realtime-gateway/{version('sip-realtime-gateway')}"
    except PackageNotFoundError:
        return "sip-realtime-gateway"


def _cipher_list(value: str) -> str:
    if value:
        try:
            ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).set_ciphers(value)
        except ssl.SSLError:
            raise ValueError("names no cipher suite that this OpenSSL has") from None
    return value


class TlsSettings(Section):
    """``[sip.tls]``: our certificate, and how that of the other side is verified."""

    certificate: FilePath | None = None
    private_key: FilePath | None = None
    ca: FilePath | None = None
    verify_server: Flag = True
    client_certificates: Literal["off", "optional", "required"] = "off"
    min_version: Literal["1.2", "1.3"] = "1.2"
    ciphers: Annotated[str, AfterValidator(_cipher_list)] = ""

    @model_validator(mode="after")
    def _both_or_none(self) -> Self:
        """Refuse a certificate without its key, and client certificates without CA."""
        if (self.certificate is None) != (self.private_key is None):
            lacking = "certificate" if self.certificate is None else "private_key"
            raise MisplacedError((lacking,), "certificate and private_key must be set together")
        if self.client_certificates != "off" and self.ca is None:
            raise MisplacedError(("client_certificates",), "needs ca, the CA that signs them")
        return self


class SipSettings(Section):
    """``[sip]``: the telephone side."""

    listen: Annotated[
        tuple[Annotated[ListenAddress, BeforeValidator(_listen_address)], ...], Field(min_length=1)
    ] = (ListenAddress("udp", "127.0.0.1", 5060),)
    rtp_ports: Annotated[PortRange, BeforeValidator(_port_range)] = PortRange(20000, 29999)
    dscp: Annotated[int, BeforeValidator(_dscp)] = 0
    rtp_dscp: Annotated[int, BeforeValidator(_dscp)] = 0
    public_address: Annotated[str, AfterValidator(_address_or_empty)] = ""
    max_calls: Count = 100
    user_agent: Annotated[str, AfterValidator(_header_text)] = Field(default_factory=_user_agent)
    stun_server: Annotated[str, AfterValidator(_host_and_port)] = ""
    session_timers: Literal["off", "optional", "required", "always"] = "optional"
    session_expires: Annotated[Count, Field(ge=90, le=86400)] = 1800
    session_min: Annotated[Count, Field(ge=90, le=86400)] = 90
    tls: TlsSettings = Field(default_factory=TlsSettings)

    def listens_on(self, transport: str) -> bool:
        return any(address.transport == transport for address in self.listen)

    @model_validator(mode="after")
    def _intervals_fit(self) -> Self:
        if self.session_min > self.session_expires:
            raise MisplacedError(("session_min",), "must not be above session_expires")
        return self

    @model_validator(mode="after")
    def _ports_fit(self) -> Self:
        """Refuse too few RTP ports, and listeners on one of them."""
        if self.rtp_ports.calls < self.max_calls:
            raise MisplacedError(
                ("rtp_ports",),
                f"has room for {self.rtp_ports.calls} calls (two ports each), "
                f"but max_calls is {self.max_calls}",
            )
        for index, address in enumerate(self.listen):
            if self.rtp_ports.low <= address.port <= self.rtp_ports.high:
                raise MisplacedError(("listen", index), "the port is one of rtp_ports")
            for other in self.listen[:index]:
                if address == other or (address.port and address.collides(other)):
                    raise MisplacedError(("listen", index), f"collides with {other}")
            if address.transport == "tls" and self.tls.certificate is None:
                raise MisplacedError(
                    ("listen", index), "needs sip.tls.certificate and sip.tls.private_key"
                )
        return self


Srtp = Literal["off", "optional", "required"]
Keying = Literal["sdes", "dtls"]

# A host name, IPv4 literal or bracketed IPv6 literal, and perhaps a port.
_HOST = r"(?P<host>\[[0-9A-Fa-f:.]+\]|[0-9A-Za-z](?:[0-9A-Za-z.\-]*[0-9A-Za-z])?)"
_REGISTRAR = re.compile(rf"(?:sip:)?{_HOST}(?::(?P<port>\d{{1,5}}))?")
_PEER = re.compile(r"\[(?P<v6>[^\]]+)\](?P<port6>:\d{1,5})?|(?P<v4>[0-9.]+):(?P<port4>\d{1,5})")
_HEADER_NAME = re.compile(r"[!%*+.`'~_\-0-9A-Za-z]+")
_MADE_BY_THE_LIBRARY = frozenset(
    {"via", "from", "to", "call-id", "cseq", "contact", "max-forwards", "route", "record-route"}
    | {"content-length", "content-type", "authorization", "proxy-authorization", "expires"}
    | {"require", "supported", "allow"}
)


class Peer(NamedTuple):
    """A network whose calls are a trunk's; ``port`` 0 is any."""

    network: Network
    port: int

    def __str__(self) -> str:
        one = self.network.num_addresses == 1
        address = str(self.network.network_address if one else self.network)
        if not self.port:
            return address
        return f"[{address}]:{self.port}" if self.network.version == 6 else f"{address}:{self.port}"


class Address(NamedTuple):
    """Host and port of a registrar or proxy; ``port`` 0 leaves it to DNS or the default."""

    host: str
    port: int

    def __str__(self) -> str:
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{host}:{self.port}" if self.port else host


def _peer(value: object) -> Peer:
    """Parse an address or network, with or without port. Raises ValueError."""
    if isinstance(value, Peer):
        return value
    example = (
        'must be an address (no name), with or without a port, or a network, like "192.0.2.0/24"'
    )
    if not isinstance(value, str):
        raise ValueError(example)
    match = _PEER.fullmatch(value)
    text, port = value, 0
    if match is not None:
        text = match["v6"] or match["v4"]
        port = int((match["port6"] or ":" + (match["port4"] or "0")).lstrip(":"))
        if port > 65535 or (port == 0 and not match["v6"]):
            raise ValueError("the port must be between 1 and 65535")
    network = network_of(text, example)
    if network.num_addresses == 1 and network.network_address.is_unspecified:
        raise ValueError(f"is nobody's address; {text}/0 is everybody's")
    return Peer(network, port)


def _address(value: object) -> Address | None:
    """Parse a host with or without port. Raises ValueError."""
    if value is None or isinstance(value, Address):
        return value
    match = _REGISTRAR.fullmatch(value) if isinstance(value, str) else None
    if match is None:
        raise ValueError(
            'must be a host with or without a port, like "sip.example.net:5060" or "[2001:db8::1]"'
        )
    port = int(match["port"] or 0)
    if port > 65535:
        raise ValueError("the port must be between 1 and 65535")
    host = match["host"].strip("[]")
    if ":" in host:
        try:
            host = str(ipaddress.IPv6Address(host))
        except ValueError:
            raise ValueError("the address in brackets is not IPv6") from None
    return Address(host, port)


def _username(value: str) -> str:
    if not re.fullmatch(r"[^\s<>@\"]*", value):
        raise ValueError("must have no space, @, quotes or brackets")
    return value


def _caller_id(value: str) -> str:
    if not re.fullmatch(r"[+0-9A-Za-z_.\-]*", value):
        raise ValueError('must be a number or a name without spaces, like "+4930123456"')
    return value


def _realms(value: object) -> object:
    return (value,) if isinstance(value, str) else value


def _realm(value: str) -> str:
    if not re.fullmatch(r"[ -!#-~]+", value):
        raise ValueError('must be printable ASCII without quotes; "*" is any')
    return value


def _headers(value: Mapping[str, str]) -> Mapping[str, str]:
    """Refuse headers that the library sets, or that are malformed."""
    for name, text in value.items():
        if not _HEADER_NAME.fullmatch(name):
            raise MisplacedError((name,), "is not a valid SIP header name")
        if name.lower() in _MADE_BY_THE_LIBRARY:
            raise MisplacedError((name,), "is set by the gateway")
        if not re.fullmatch(r"[!-~]([ -~]*[!-~])?", text):
            raise MisplacedError((name,), "must be printable ASCII, not empty")
    return MappingProxyType(dict(value))


CodecName = Literal["PCMU", "PCMA", "G722", "opus"]


def _codec(value: object) -> object:
    """Refuse other spellings of a codec, with the right one."""
    upper = str(value).upper()
    name = {"ULAW": "PCMU", "MULAW": "PCMU", "ALAW": "PCMA", "OPUS": "opus"}.get(upper, upper)
    if name in get_args(CodecName) and value != name:
        raise ValueError(f'"{value}" is written "{name}" here')
    return value


def _codecs(value: tuple[str, ...]) -> tuple[str, ...]:
    if len(set(value)) != len(value):
        raise ValueError("has a codec twice")
    return value


def _host_name(value: str) -> str:
    name = value.lower()
    if not re.fullmatch(r"[a-z0-9](?:[a-z0-9.:_-]*[a-z0-9])?", name):
        raise ValueError('must be a host name or an address, like "pbx.example.net"')
    return name


class InboundAuthSettings(Section):
    """``[trunk.inbound_auth]``: what a trunk has to know whose calls come in."""

    username: Annotated[str, Field(min_length=1), AfterValidator(_username)]
    password: SecretStr

    @model_validator(mode="after")
    def _some_password(self) -> Self:
        if not self.password.get_secret_value():
            raise MisplacedError(("password",), "must not be empty")
        return self


def judge_keying(section: Any, *where: str) -> None:
    """Refuse SRTP that is required while its keys are sent in clear; raises MisplacedError.

    Args:
        section: ``[media]`` or a trunk, whose signalling does not always go by TLS.
        where: the section's place in what is judged.
    """
    if (
        section.srtp == "required"
        and "sdes" in section.srtp_keying
        and not section.sdes_without_tls
    ):
        raise MisplacedError(
            (*where, "srtp"),
            'is "required", but "sdes" in srtp_keying puts the keys into SDP, where everybody on '
            "the way can read them unless all signalling goes by TLS: use TLS or DTLS, or allow it "
            "with sdes_without_tls = true",
        )


class TrunkSettings(Section):
    """One ``[[trunk]]``."""

    name: Name
    peers: tuple[Annotated[Peer, BeforeValidator(_peer)], ...] = ()
    username: Annotated[str, AfterValidator(_username)] = ""
    password: SecretStr | None = None
    realm: Annotated[
        tuple[Annotated[str, AfterValidator(_realm)], ...],
        BeforeValidator(_realms),
        Field(min_length=1),
    ] = ("*",)
    registrar: Annotated[Address | None, BeforeValidator(_address)] = None
    outbound_proxy: Annotated[Address | None, BeforeValidator(_address)] = None
    transport: Transport = "udp"
    codecs: Annotated[
        tuple[Annotated[CodecName, BeforeValidator(_codec)], ...],
        Field(min_length=1),
        AfterValidator(_codecs),
    ] = ("PCMU", "PCMA")
    srtp: Srtp = "off"
    srtp_keying: Annotated[tuple[Keying, ...], Field(min_length=1)] = ("sdes",)
    sdes_without_tls: Flag = False
    headers: Annotated[Mapping[str, str], AfterValidator(_headers)] = Field(
        default_factory=lambda: MappingProxyType({})
    )
    caller_id: Annotated[str, AfterValidator(_caller_id)] = ""
    caller_ids: Regex | None = None
    test_number: Annotated[str, AfterValidator(_caller_id)] = ""
    expires: Annotated[Count, Field(ge=30, le=86400)] = 300
    options_interval: SecondsOrOff = 0.0
    packet_wait_ms: PacketWait | None = None
    calls_per_second: Rate | None = None
    max_concurrent_calls: CountOrOff = 0
    max_unacknowledged_calls: CountOrOff | None = None
    inbound_auth: InboundAuthSettings | None = None
    certificate_names: tuple[Annotated[str, AfterValidator(_host_name)], ...] = ()

    @model_validator(mode="after")
    def _whole(self) -> Self:
        """Refuse a trunk to which no call can belong, and keys that need each other."""
        if self.registrar is None and not self.peers and self.inbound_auth is None:
            raise MisplacedError(
                ("peers",),
                "missing: without peers or a registrar (or inbound_auth), no call is this trunk's",
            )
        if self.certificate_names and self.transport != "tls":
            raise MisplacedError(("certificate_names",), 'needs transport = "tls"')
        if self.transport != "tls":
            judge_keying(self)
        if self.registrar is not None and not self.username:
            raise MisplacedError(("username",), "missing: it is needed to register")
        if self.password is not None and not self.username:
            raise MisplacedError(("password",), "needs a username")
        return self


def _at_least(transport: str, wanted: str) -> bool:
    """Return whether a transport protects as well as ``wanted``: udp < tcp < tls."""
    return TRANSPORTS.index(transport) >= TRANSPORTS.index(wanted)


def judge_trunks(trunks: tuple[TrunkSettings, ...], sip: Any) -> None:
    """Check the trunks against each other and against ``[sip]``; raises MisplacedError."""
    refuse_duplicates((one.name for one in trunks), "trunk")
    for index, trunk in enumerate(trunks):
        if trunk.registrar is not None and not sip.listens_on(trunk.transport):
            raise MisplacedError(
                ("trunk", index, "transport"),
                f"is {trunk.transport}, but sip.listen has no {trunk.transport}: address",
            )
        if trunk.certificate_names and sip.tls.client_certificates == "off":
            raise MisplacedError(
                ("trunk", index, "certificate_names"),
                'needs sip.tls.client_certificates = "optional" or "required"',
            )
        if (trunk.inbound_auth or trunk.peers) and not any(
            _at_least(address.transport, trunk.transport) for address in sip.listen
        ):
            raise MisplacedError(
                ("trunk", index, "transport"),
                f"is {trunk.transport}, but sip.listen has no {trunk.transport}: address, so no "
                "call of this trunk could come in",
            )
        for other in trunks[:index]:
            if (
                trunk.inbound_auth is not None
                and other.inbound_auth is not None
                and trunk.inbound_auth.username == other.inbound_auth.username
            ):
                raise MisplacedError(
                    ("trunk", index, "inbound_auth", "username"),
                    f"is that of trunk {other.name} already",
                )
            for peer in set(trunk.peers) & set(other.peers):
                raise MisplacedError(
                    ("trunk", index, "peers"), f"{peer} is a peer of trunk {other.name} already"
                )
