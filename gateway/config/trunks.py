# SPDX-License-Identifier: GPL-2.0-or-later
"""``[[trunk]]``: a PBX or carrier, by what its calls are known and how the gateway registers."""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Mapping
from types import MappingProxyType
from typing import Annotated, Any, Literal, NamedTuple, Self

from pydantic import AfterValidator, BeforeValidator, Field, SecretStr, model_validator

from gateway.config.sections import CountOrOff, Rate
from gateway.config.sip import TRANSPORTS, Transport
from gateway.config.source import MisplacedError, Section
from gateway.config.values import Count, Flag, PacketWait, SecondsOrOff, pattern_of

Network = ipaddress.IPv4Network | ipaddress.IPv6Network
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
    example = 'must be an address, with or without a port, or a network, like "192.0.2.0/24"'
    if not isinstance(value, str):
        raise ValueError(example)
    match = _PEER.fullmatch(value)
    text, port = value, 0
    if match is not None:
        text = match["v6"] or match["v4"]
        port = int((match["port6"] or ":" + (match["port4"] or "0")).lstrip(":"))
        if port > 65535 or (port == 0 and not match["v6"]):
            raise ValueError("the port must be between 1 and 65535")
    try:
        return Peer(ipaddress.ip_network(text), port)
    except ValueError:
        pass
    try:
        meant = ipaddress.ip_network(text, strict=False)
    except ValueError:
        raise ValueError(example) from None
    raise ValueError(f"has host bits set; did you mean {meant}?")


def _address(value: object) -> Address | None:
    """Parse a host with or without port. Raises ValueError."""
    if value is None or isinstance(value, Address):
        return value
    match = _REGISTRAR.fullmatch(value) if isinstance(value, str) else None
    if match is None:
        raise ValueError('must be a host with or without a port, like "sip.example.net:5060"')
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


def _name(value: str) -> str:
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_.\-]{0,63}", value):
        raise ValueError("must be letters, digits, and between them _ . - (up to 64)")
    return value


def _username(value: str) -> str:
    if not re.fullmatch(r"[^\s<>@\"]*", value):
        raise ValueError("must have no space, @, quotes or brackets")
    return value


def _caller_id(value: str) -> str:
    if not re.fullmatch(r"[+0-9A-Za-z_.\-]*", value):
        raise ValueError('must be a number or a name without spaces, like "+4930123456"')
    return value


def _pattern(value: object) -> object:
    if not isinstance(value, str):
        return value
    return pattern_of(value)


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


def _codec(value: object) -> object:
    """Refuse other spellings of a codec, with the right one."""
    name = {"ulaw": "PCMU", "mulaw": "PCMU", "alaw": "PCMA"}.get(str(value).lower())
    if name is None and str(value).upper() in ("PCMU", "PCMA", "G722"):
        name = str(value).upper()
    if name is not None and value != name:
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

    name: Annotated[str, AfterValidator(_name)]
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
        tuple[Annotated[Literal["PCMU", "PCMA", "G722"], BeforeValidator(_codec)], ...],
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
    caller_ids: Annotated[re.Pattern[str] | None, BeforeValidator(_pattern)] = None
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
    """Whether a transport protects as well as the one that a trunk wants."""
    return TRANSPORTS.index(transport) >= TRANSPORTS.index(wanted)


def judge_trunks(trunks: tuple[TrunkSettings, ...], sip: Any) -> None:
    """Hold the trunks against each other and ``[sip]``; raises MisplacedError."""
    names: set[str] = set()
    for index, trunk in enumerate(trunks):
        if trunk.name in names:
            raise MisplacedError(("trunk", index, "name"), "is used twice")
        names.add(trunk.name)
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
