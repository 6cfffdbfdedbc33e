# SPDX-License-Identifier: GPL-2.0-or-later
"""``[sip]`` and its tables: where calls arrive, over what, and how TLS is done."""

from __future__ import annotations

import ipaddress
import re
import ssl
from importlib.metadata import PackageNotFoundError, version
from typing import Annotated, Literal, NamedTuple, Self, cast

from pydantic import AfterValidator, BeforeValidator, Field, model_validator

from gateway.config.source import MisplacedError, Section
from gateway.config.values import Count, FilePath, Flag, ip_literal

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
        """Return the address with a port higher by ``step``."""
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
    match = re.fullmatch(r"([a-z]+):(\[[^\]]*\]|[^:\[\]]+):(\d{1,5})", value)
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
        """The ``index``-th of ``count`` equal parts, in whole pairs."""
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


def _address_or_empty(value: str) -> str:
    if re.fullmatch(r"[\d.]+:\d+|\[[^]]+\]:\d+", value):
        raise ValueError("is an address alone, without a port")
    return ip_literal(value.strip("[]")) if value else ""


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
