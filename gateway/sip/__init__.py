# SPDX-License-Identifier: GPL-2.0-or-later
"""The SIP user agent on pjsua2, the only package that imports it.

Here are its settings, checked: how it shall run, and which trunks there are (``[sip]``,
``[access]`` and ``[[trunk]]``). Pure.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any

from gateway.addresses import Network, bracketed, is_inside
from gateway.audio import Codec


@dataclass(frozen=True, slots=True)
class Listen:
    """One address to listen on: ``transport`` is udp, tcp or tls; port 0 takes any free one."""

    transport: str
    host: str
    port: int


@dataclass(frozen=True, slots=True)
class Tls:
    """The keys of ``[sip.tls]``; files by absolute path, empty for none."""

    certificate: str = ""
    private_key: str = ""
    ca: str = ""
    verify_server: bool = True
    client_certificates: str = "off"
    min_version: str = "1.2"
    ciphers: str = ""
    """An OpenSSL cipher list; empty for that of the library."""


@dataclass(frozen=True, slots=True)
class JitterBuffer:
    """pjmedia's adaptive jitter buffer: how much audio it holds back, in ms."""

    init: int = 60
    min_prefetch: int = 40
    max_prefetch: int = 240
    maximum: int = 240
    catch_up: bool = True
    """Cut speech here and there to win back the delay that a burst of jitter brought."""

    def apply(self, target: Any) -> None:
        """Write these values (ms) into a ``MediaConfig``, or into the ``StreamInfo`` of one
        call."""
        target.jbInit, target.jbMinPre = self.init, self.min_prefetch
        target.jbMaxPre, target.jbMax = self.max_prefetch, self.maximum
        if not self.catch_up:
            target.jbDiscardAlgo = 0  # PJMEDIA_JB_DISCARD_NONE, which SWIG does not export


@dataclass(frozen=True, slots=True)
class Peer:
    """A network whose calls are a trunk's; ``port`` 0 is any."""

    network: Network
    port: int = 0

    @property
    def host_port(self) -> str:
        """Return ``host[:port]`` where the network is a single address, else ""."""
        if self.network.num_addresses != 1:
            return ""
        host = bracketed(str(self.network.network_address))
        return f"{host}:{self.port}" if self.port else host


@dataclass(frozen=True, slots=True)
class Security:
    """SRTP of a trunk: ``srtp`` off, optional or required; ``keying`` in the order of the offer."""

    srtp: str = "off"
    keying: tuple[str, ...] = ("sdes",)


@dataclass(frozen=True, slots=True)
class Limits:
    """Per second and at a time; 0 is no limit. ``burst`` calls may come at once."""

    calls_per_second: float = 0.0
    burst: int = 10
    concurrent_calls: int = 0
    unacknowledged_calls: int = 0
    """Calls of a trunk, or of all other sources together, that wait for an ACK: who forges
    addresses sends none."""


@dataclass(frozen=True, slots=True)
class Credentials:
    """User name and password that a caller has to prove (RFC 3261 section 22)."""

    username: str
    password: str = field(repr=False)


@dataclass(frozen=True, slots=True)
class DigestPolicy:
    """How a caller is challenged (RFC 7616): realm, algorithms, and the life of a nonce (s)."""

    realm: str = "sip-realtime-gateway"
    algorithms: tuple[str, ...] = ("MD5", "SHA-256")
    nonce_lifetime: float = 32.0


@dataclass(frozen=True, slots=True)
class BanPolicy:
    """``after`` refusals within ``window`` s ban a source for ``seconds``; 0 refusals never do."""

    after: int = 0
    window: float = 60.0
    seconds: float = 600.0


@dataclass(frozen=True, slots=True)
class Access:
    """``[access]``: what becomes of requests from no known trunk, and their limits."""

    unknown: str = "auto"
    limits: Limits = field(default_factory=Limits)
    digest: DigestPolicy = field(default_factory=DigestPolicy)
    bans: BanPolicy = field(default_factory=BanPolicy)

    def action_for(self, source: str, have_trunks: bool) -> str:
        """Return allow, reject or drop for a request of a source that belongs to no trunk: by
        ``unknown``; with "auto", allow only without trunks and for a private address, else
        reject."""
        if self.unknown != "auto":
            return self.unknown
        return "allow" if not have_trunks and is_inside(source) else "reject"


_PROTECTION = ("udp", "tcp", "tls")
"""What is known of a source: over UDP nothing, by TCP that it is there, by TLS who it is."""


@dataclass(frozen=True, slots=True)
class Trunk:
    """A PBX or carrier; the keys of ``[[trunk]]``, checked. ``registrar`` is host[:port]."""

    name: str
    peers: tuple[Peer, ...] = ()
    username: str = ""
    password: str = field(default="", repr=False)
    realms: tuple[str, ...] = ("*",)
    """Realms in which the password is used; "*" is the realm of the registrar's challenge."""
    registrar: str = ""
    registers: bool = True
    """False keeps the gateway from registering at its ``registrar``, which its calls go to."""
    outbound_proxy: str = ""
    transport: str = "udp"
    codecs: tuple[Codec, ...] = (Codec.PCMU, Codec.PCMA)
    security: Security = field(default_factory=Security)
    headers: Mapping[str, str] = field(default_factory=lambda: MappingProxyType({}))
    caller_id: str = ""
    expires: int = 300
    options_interval: float = 0.0
    packet_wait_ms: int | None = None
    """None for that of all."""
    limits: Limits = field(default_factory=Limits)
    inbound_auth: Credentials | None = None
    """Its calls are taken only with these; without ``peers``, from anywhere."""
    certificate_names: tuple[str, ...] = ()
    """Names of which a client certificate has to have one, in lower case."""

    @property
    def uri_parameters(self) -> str:
        """``;transport=`` of URIs of this trunk; empty for UDP."""
        return "" if self.transport == "udp" else f";transport={self.transport}"

    def mismatch(self, transport: str, names: Iterable[str]) -> str:
        """Return why a request from the trunk's address is not the trunk's, as the key that it
        fails: a transport that proves less of the source than the trunk's, or no certificate name
        of ``certificate_names``. "" where it is.

        Args:
            names: names in the certificate of the connection, in lower case.
        """
        if _PROTECTION.index(transport) < _PROTECTION.index(self.transport):
            return f'transport = "{self.transport}"'
        if self.certificate_names and not set(self.certificate_names) & set(names):
            return "certificate_names"
        return ""


@dataclass(frozen=True, slots=True)
class SipSettings:
    """Settings of the SIP user agent: ``[sip]``, with what other sections say of SIP."""

    listen: tuple[Listen, ...]
    rtp_ports: tuple[int, int] = (20000, 29999)
    dscp: int = 0
    """Of SIP; ``rtp_dscp`` is that of RTP and RTCP (RFC 2474)."""
    rtp_dscp: int = 0
    public_address: str = ""
    max_calls: int = 100
    user_agent: str = ""
    user: str = "gateway"
    """User part of our own URI, in Contact and From."""
    packet_wait_ms: int = 60
    """How long a missing packet of the caller is waited for, and one that is due before silence is
    sent in its place."""
    jitter_buffer: JitterBuffer = field(default_factory=JitterBuffer)
    """For what a leg hears of another one."""
    log_level: int = 1
    """pjsip's own log, 0 (nothing) to 6."""
    retry_after: int = 5
    """Seconds in the Retry-After of a 503 (RFC 3261 section 20.33)."""
    stun_server: str = ""
    session_timers: str = "optional"
    """RFC 4028: off, optional (if the peer asks), required, or always (we refresh by ourselves)."""
    session_expires: int = 1800
    session_min: int = 90
    tls: Tls = field(default_factory=Tls)
    security: Security = field(default_factory=Security)
    """SRTP for calls of no trunk."""
    trunks: tuple[Trunk, ...] = ()
    access: Access = field(default_factory=lambda: Access("allow"))
