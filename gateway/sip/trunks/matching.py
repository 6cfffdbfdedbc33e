# SPDX-License-Identifier: GPL-2.0-or-later
"""Whose call it is: trunks by registration, then by the address that a request comes from. Pure."""

from __future__ import annotations

import ipaddress
import re
import secrets
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType

from gateway.addresses import is_inside
from gateway.audio.g711 import Codec
from gateway.sip.ingress.bans import BanPolicy
from gateway.sip.ingress.message import user_of
from gateway.sip.media.jitter import JitterBuffer

Network = ipaddress.IPv4Network | ipaddress.IPv6Network
IPAddress = ipaddress.IPv4Address | ipaddress.IPv6Address

LINE_PARAMETER = "line"
"""URI parameter of our registered contacts; its value tells the trunks apart and is not guessed."""

MAX_REGISTRARS = 32
"""Addresses remembered for one registrar; a cluster of them answers from a few."""

_LINE = re.compile(rf";{LINE_PARAMETER}=([0-9a-f]+)", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class Peer:
    """A network whose calls are a trunk's; ``port`` 0 is any."""

    network: Network
    port: int = 0


@dataclass(frozen=True, slots=True)
class Security:
    """What is asked of media: ``srtp`` off, optional or required; ``keying`` in order of offer."""

    srtp: str = "off"
    keying: tuple[str, ...] = ("sdes",)


@dataclass(frozen=True, slots=True)
class Limits:
    """Per second and at a time; 0 is no limit. ``burst`` calls may come at once."""

    calls_per_second: float = 0.0
    burst: int = 10
    concurrent_calls: int = 0


@dataclass(frozen=True, slots=True)
class Credentials:
    """What somebody who calls us has to know (RFC 3261 section 22)."""

    username: str
    password: str = field(repr=False)


@dataclass(frozen=True, slots=True)
class DigestPolicy:
    """How those with credentials are asked for them; ``nonce_lifetime`` in s."""

    realm: str = "sip-realtime-gateway"
    algorithms: tuple[str, ...] = ("MD5", "SHA-256")
    nonce_lifetime: float = 32.0


@dataclass(frozen=True, slots=True)
class Access:
    """``[access]``: what becomes of requests from no known trunk, and their limits."""

    unknown: str = "auto"
    limits: Limits = field(default_factory=Limits)
    digest: DigestPolicy = field(default_factory=DigestPolicy)
    bans: BanPolicy = field(default_factory=BanPolicy)

    def verdict(self, source: str, have_trunks: bool) -> str:
        """allow, reject or drop, for a request from ``source`` that is no trunk's."""
        if self.unknown != "auto":
            return self.unknown
        return "allow" if not have_trunks and is_inside(source) else "reject"


@dataclass(frozen=True, slots=True)
class Trunk:
    """A PBX or carrier; the keys of ``[[trunk]]``, checked. ``registrar`` is host[:port]."""

    name: str
    peers: tuple[Peer, ...] = ()
    username: str = ""
    password: str = field(default="", repr=False)
    realm: str = "*"
    registrar: str = ""
    outbound_proxy: str = ""
    transport: str = "udp"
    codecs: tuple[Codec, ...] = (Codec.PCMU, Codec.PCMA)
    security: Security = field(default_factory=Security)
    headers: Mapping[str, str] = field(default_factory=lambda: MappingProxyType({}))
    caller_id: str = ""
    expires: int = 300
    options_interval: float = 0.0
    jitter_buffer: JitterBuffer | None = None
    """None for that of all."""
    limits: Limits = field(default_factory=Limits)
    inbound_auth: Credentials | None = None
    """Its calls are taken only with these; without ``peers``, from anywhere."""
    certificate_names: tuple[str, ...] = ()
    """Names of which a client certificate has to have one, in lower case."""

    def misfit(self, transport: str, names: Iterable[str]) -> str:
        """Why a request by ``transport`` cannot be this trunk's, though its address is; or "".

        Args:
            names: those in the certificate of whose connection it is, in lower case.
        """
        if _PROTECTION.index(transport) < _PROTECTION.index(self.transport):
            return f'transport = "{self.transport}"'
        if self.certificate_names and not set(self.certificate_names) & set(names):
            return "certificate_names"
        return ""


_PROTECTION = ("udp", "tcp", "tls")
"""What is known of a source: over UDP nothing, by TCP that it is there, by TLS who it is."""


@dataclass(frozen=True, slots=True)
class Attribution:
    """A trunk, and ``how`` a request was found to be its: registration, registrar, peer or
    authentication."""

    trunk: Trunk
    how: str


class Trunks:
    """All trunks, asked about each request. Any thread may read; the SIP thread calls ``learn``."""

    def __init__(self, trunks: Iterable[Trunk]) -> None:
        self.all = tuple(trunks)
        self.by_name = {trunk.name: trunk for trunk in self.all}
        self.lines = {trunk.name: secrets.token_hex(12) for trunk in self.all if trunk.registrar}
        """The value of ``line`` in the contact of each trunk that registers."""
        self.callers = {
            trunk.inbound_auth.username: trunk
            for trunk in self.all
            if trunk.inbound_auth is not None and not trunk.peers
        }
        """By user name, the trunks whose calls may come from anywhere."""
        self.passwords = {
            trunk.inbound_auth.username: trunk.inbound_auth.password
            for trunk in self.all
            if trunk.inbound_auth is not None
        }
        self._by_line = {line: self.by_name[name] for name, line in self.lines.items()}
        self._registrars: dict[str, list[IPAddress]] = {name: [] for name in self.lines}
        peers = [(peer, trunk) for trunk in self.all for peer in trunk.peers]
        # The smallest network first, and in it the peer with a port before the one with any.
        self._peers = sorted(
            peers, key=lambda item: (item[0].network.prefixlen, bool(item[0].port)), reverse=True
        )

    def attribute(
        self, source: str, port: int, reliable: bool, request_uri: str
    ) -> Attribution | None:
        """Whose request this is.

        Args:
            source: IP literal that it came from.
            port: port that it came from; means nothing over TCP and TLS (``reliable``).
            request_uri: as it came.
        """
        line = _LINE.search(request_uri)
        if line is not None and (trunk := self._by_line.get(line[1].lower())) is not None:
            return Attribution(trunk, "registration")
        address = address_of(source)
        if address is None:
            return None
        user = user_of(request_uri)
        for name, known in self._registrars.items():
            if address in known and self.by_name[name].username == user:
                return Attribution(self.by_name[name], "registrar")
        for peer, trunk in self._peers:
            if (
                address.version == peer.network.version
                and address in peer.network
                and (reliable or not peer.port or peer.port == port)
            ):
                return Attribution(trunk, "peer")
        return None

    def is_server(self, trunk: Trunk, source: str) -> bool | None:
        """Whether an address is of a trunk's own servers; None when none of them is known."""
        address = address_of(source)
        registrars = self._registrars.get(trunk.name, [])
        named = [
            found
            for text in (trunk.registrar, trunk.outbound_proxy)
            if (found := _literal(text)) is not None
        ]
        if not (trunk.peers or registrars or named):
            return None
        return address is not None and (
            address in registrars
            or address in named
            or any(
                address.version == peer.network.version and address in peer.network
                for peer in trunk.peers
            )
        )

    def leads_to(self, trunk: Trunk, host: str, addresses: Iterable[str]) -> bool:
        """Whether a call through a trunk reaches its own servers first.

        Args:
            host: whom the call is for.
            addresses: what that name stands for.
        """
        if trunk.outbound_proxy or not (trunk.peers or trunk.registrar):
            return True
        if host and host == _host_in(trunk.registrar):
            return True
        return any(self.is_server(trunk, one) for one in (host, *addresses))

    def is_peer(self, source: str) -> bool:
        """Whether calls of a trunk come from this address."""
        address = address_of(source)
        if address is None:
            return False
        return any(address in known for known in self._registrars.values()) or any(
            address.version == peer.network.version and address in peer.network
            for peer, _trunk in self._peers
        )

    def learn(self, name: str, source: str) -> None:
        """The registrar of trunk ``name`` has answered a registration from this address."""
        address = address_of(source)
        known = self._registrars[name]
        if address is not None and address not in known:
            known.append(address)
            del known[:-MAX_REGISTRARS]


def _literal(address: str) -> IPAddress | None:
    """The address in ``host[:port]``; None for a name."""
    return address_of(_host_in(address))


def _host_in(address: str) -> str:
    """The host in ``host[:port]``, without brackets, in lower case."""
    bracketed = address.startswith("[")
    host = address[1:].partition("]")[0] if bracketed else address.partition(":")[0]
    return host.lower()


def address_of(text: str) -> IPAddress | None:
    """An IP literal's address, that of an IPv4 caller on an IPv6 socket as IPv4; else None."""
    try:
        address = ipaddress.ip_address(text.strip("[]").partition("%")[0])
    except ValueError:
        return None
    if isinstance(address, ipaddress.IPv6Address) and address.ipv4_mapped is not None:
        return address.ipv4_mapped
    return address
