# SPDX-License-Identifier: GPL-2.0-or-later
"""Our sockets: SIP listeners (RFC 3261 section 18), the addresses in Contact and SDP, RTP ports.

pjsua makes the Contact from the interface that leads to the peer. For UDP it then looks whether the
listener was given an address; for TCP and TLS it does not, and a listener on one of several
addresses, or behind NAT, would be sought where nobody listens: the ACK never comes.

A peer whose BYE got lost, or whose network is slow, goes on sending for a while. The next call on
that port would hear it, and would even send its own audio there, since pjmedia follows the address
that RTP comes from. So a pair of ports is bound again by us as soon as a call has let go of it, and
given back when it has been silent for a while; pjsip meanwhile finds it taken and tries the next.
"""

from __future__ import annotations

import contextlib
import socket
import ssl
from collections import OrderedDict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pjsua2 as pj
import structlog

from gateway.addresses import address_of, bracketed, host_of, is_inside, is_loopback
from gateway.sip import Listen, SipSettings, Trunk
from gateway.sip.library import AgentError

log = structlog.get_logger("sip")

_KINDS = {
    "udp": (pj.PJSIP_TRANSPORT_UDP, pj.PJSIP_TRANSPORT_UDP6),
    "tcp": (pj.PJSIP_TRANSPORT_TCP, pj.PJSIP_TRANSPORT_TCP6),
    "tls": (pj.PJSIP_TRANSPORT_TLS, pj.PJSIP_TRANSPORT_TLS6),
}
HANDSHAKE_MS = 10_000
"""Longest TLS handshake, ms; silent connections are closed after that, too."""

_SYSTEM_CAS = "/etc/ssl/certs/ca-certificates.crt"


@dataclass(slots=True)
class _Open:
    """A listener that is bound: pjsip's id of it, its ``host:port`` for others, its port."""

    listen: Listen
    identity: int | None
    """None while it is closed, as it could not be bound again."""
    name: str
    port: int


class Listeners:
    """The SIP listeners of ``sip.listen``. Opened and renewed on the SIP thread.

    Args:
        endpoint: pjsua2's, initialised.
    """

    def __init__(self, endpoint: Any, settings: SipSettings) -> None:
        self._endpoint = endpoint
        self._settings = settings
        self._open: list[_Open] = []

    def open(self) -> None:
        """Bind all listeners, after a trial of the TLS files if one is for TLS. Raises AgentError
        with the address or file at fault."""
        if any(listen.transport == "tls" for listen in self._settings.listen):
            self._try_certificates()
        for listen in self._settings.listen:
            self._open.append(self._bind(listen, listen.port))

    @property
    def addresses(self) -> tuple[str, ...]:
        """``transport:host:port`` of each listener, with the ports really bound."""
        return tuple(
            f"{one.listen.transport}:{bracketed(one.listen.host)}:{one.port}" for one in self._open
        )

    @property
    def bound(self) -> tuple[Listen, ...]:
        """The listeners with the ports really bound."""
        return tuple(replace(one.listen, port=one.port) for one in self._open)

    @property
    def name(self) -> str:
        """``host:port`` of the first listener, as others see it."""
        return self._open[0].name

    def renew_certificates(self) -> int:
        """Read the TLS files again, and open the TLS listeners anew with them; return how many
        there are.

        Connections go on, with the certificates that they were made with. Raises AgentError where
        the files are no good, before anything is changed; also where a listener cannot be bound
        again, which then is closed until a later call of this can.
        """
        secure = [one for one in self._open if one.listen.transport == "tls"]
        if secure:
            self._try_certificates()
        for one in secure:
            # pjsip keeps the connections of a listener that is closed.
            if one.identity is not None:
                self._endpoint.transportClose(one.identity)
            one.identity = None
            one.identity = self._bind(one.listen, one.port).identity
        return len(secure)

    def _bind(self, listen: Listen, port: int) -> _Open:
        """Bind one listener to ``port``, 0 for any free one; for TCP and TLS it is bound also while
        old connections linger. Raises AgentError."""
        config = pj.TransportConfig()
        config.boundAddress, config.port = listen.host, port
        set_dscp(config, self._settings.dscp)
        set_dscp(config.tlsConfig, self._settings.dscp)
        public = self._settings.public_address
        if (":" in public) is (":" in listen.host):
            config.publicAddress = public
        if listen.transport == "tls":
            self._secure(config.tlsConfig)
        elif listen.transport == "tcp":
            _reuse_address(config.sockOptParams)
        try:
            identity = self._endpoint.transportCreate(
                _KINDS[listen.transport][":" in listen.host], config
            )
        except pj.Error as error:
            where = f"{listen.transport}:{bracketed(listen.host)}:{port}"
            why = f"sip.listen: cannot bind {where}: {error.reason}"
            if "in use" in error.reason:
                why += "; `ss -lptu` shows which program has it"
            raise AgentError(why) from error
        local = str(self._endpoint.transportGetInfo(identity).localName)
        host, _, bound = local.rpartition(":")
        name = f"{bracketed(host.strip('[]'))}:{bound}"
        return _Open(listen, int(identity), name, int(bound))

    def _secure(self, config: Any) -> None:
        """Set certificate, CAs, verification, ciphers and TLS versions of a TLS listener."""
        tls = self._settings.tls
        config.certFile, config.privKeyFile = tls.certificate, tls.private_key
        # Of whom it is given, pjsip also tells every client that connects: the system's many CAs
        # are for those who need them.
        outward = tls.verify_server and any(
            trunk.transport == "tls" for trunk in self._settings.trunks
        )
        config.CaListFile = tls.ca or (system_cas() if outward else "")
        config.verifyServer = tls.verify_server
        config.verifyClient = tls.client_certificates != "off"
        config.requireClientCert = tls.client_certificates == "required"
        config.msecTimeout = HANDSHAKE_MS
        if tls.ciphers:
            config.ciphers = _ciphers(tls.ciphers)
        config.proto = pj.PJ_SSL_SOCK_PROTO_TLS1_3
        if tls.min_version == "1.2":
            config.proto |= pj.PJ_SSL_SOCK_PROTO_TLS1_2
        _reuse_address(config.sockOptParams)

    def _try_certificates(self) -> None:
        """Load certificate, key and CAs as OpenSSL will. Raises AgentError, naming the key, where
        they cannot be read or do not fit."""
        # pjsip would open a listener with a certificate that it could not read.
        tls = self._settings.tls
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        for key, name in (("certificate", tls.certificate), ("private_key", tls.private_key)):
            _readable(f"sip.tls.{key}", name)
        try:
            # A passphrase is asked for on the terminal unless there is an answer.
            context.load_cert_chain(tls.certificate, tls.private_key, password="")
        except (ssl.SSLError, ValueError) as error:
            raise AgentError(
                f"sip.tls.certificate: {tls.certificate} and {tls.private_key} are no certificate "
                f"with its key: {error}"
            ) from None
        if tls.ca:
            _readable("sip.tls.ca", tls.ca)
            try:
                context.load_verify_locations(tls.ca)
            except ssl.SSLError as error:
                raise AgentError(f"sip.tls.ca: {tls.ca} holds no certificates: {error}") from None


def _ciphers(names: str) -> Any:
    """Return the numbers (RFC 8446 appendix B.4) of the cipher suites in an OpenSSL list, without
    those of TLS 1.3, which are always on."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.set_ciphers(names)
    numbers = pj.IntVector()
    for cipher in context.get_ciphers():
        if cipher["protocol"] != "TLSv1.3":
            numbers.append(cipher["id"] & 0xFFFF)
    return numbers


def system_cas() -> str:
    """Return the path of the file with the CAs that this system trusts; "" when there is none."""
    paths = ssl.get_default_verify_paths()
    known = (paths.cafile, paths.openssl_cafile, _SYSTEM_CAS)
    return next((path for path in known if path and Path(path).is_file()), "")


def _readable(key: str, name: str) -> None:
    """Raise AgentError where a file cannot be opened."""
    try:
        with Path(name).open("rb"):
            return
    except OSError as error:
        raise AgentError(f"{key}: {name} cannot be read: {error.strerror}") from None


def set_dscp(config: Any, dscp: int) -> None:
    """Set the DSCP (RFC 2474) of what a transport sends, by IPv4 and IPv6; 0 changes nothing."""
    if dscp:
        config.qosParams.flags = pj.PJ_QOS_PARAM_HAS_DSCP
        config.qosParams.dscp_val = dscp


_REUSE_ADDRESS = pj.SockOpt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
"""Kept for ever: pjsua2's copies of it refer to the value in this one."""


def _reuse_address(params: Any) -> None:
    """Set SO_REUSEADDR in a listener's socket options, so that a restart does not wait for old
    connections."""
    # A listener has to come back while connections to its port live on.
    options = pj.SockOptVector()
    options.append(_REUSE_ADDRESS)
    params.sockOpts = options


def forced_contact(
    user: str, transport: str, local: str, public: str, listeners: Iterable[Listen]
) -> str:
    """Return the Contact to set in an account, for TCP and TLS: our user at the address and port of
    the listener of that transport that the call came to. "" where the one that pjsua makes is
    right: for UDP, with no such listener, and where only pjsua knows the interface.

    Args:
        transport: of the call, udp, tcp or tls.
        local: our address that the call came to; "" when that is not known.
        public: ``sip.public_address``, or "".
        listeners: with the ports really bound.
    """
    if transport == "udp":
        return ""
    wanted = address_of(local)
    for listener in listeners:
        bound = address_of(listener.host)
        if listener.transport != transport or bound is None:
            continue
        if wanted is not None and bound.version != wanted.version:
            continue
        if not bound.is_unspecified and wanted is not None and bound != wanted:
            continue
        seen = address_of(public)
        if seen is None or seen.version != bound.version:
            if bound.is_unspecified:
                return ""
            seen = bound
        return f"<sip:{user}@{bracketed(str(seen))}:{listener.port};transport={transport}>"
    return ""


def hosts_of(trunk: Trunk) -> list[str]:
    """Return the hosts that media of a trunk's calls may be sent to, as far as they are known: of
    its proxy and registrar, and its peers' networks' first addresses."""
    named = [address for address in (trunk.outbound_proxy, trunk.registrar) if address]
    return [host_of(address) for address in named] + [
        str(peer.network.network_address) for peer in trunk.peers
    ]


def unreachable(settings: SipSettings, addresses: Mapping[str, Iterable[str]]) -> list[str]:
    """Return a line for people for each trunk that could not reach the addresses it is given: it is
    elsewhere, and we listen on loopback only, or would name a private address in Contact and SDP.

    Args:
        addresses: IP literals of each trunk, by its name.
    """
    lines = []
    local = all(is_loopback(listen.host) for listen in settings.listen)
    for name, known in addresses.items():
        for address in known:
            if local and not is_loopback(address):
                lines.append(
                    f"trunk {name} is at {address}, and sip.listen is reached from this machine "
                    "only: let it listen on 0.0.0.0, or on an address that the trunk reaches"
                )
                break
            carried = "" if settings.stun_server else carried_to(settings, address)
            if carried and is_inside(carried) and not is_inside(address):
                lines.append(
                    f"trunk {name} is at {address}, but Contact and SDP would carry {carried}, "
                    "which it cannot reach: set sip.public_address"
                )
                break
    return lines


def carried_to(settings: SipSettings, peer: str) -> str:
    """Return the address of ours that SDP to this peer will carry: the public one, else the first
    listener's of that IP version, else the interface that leads to the peer; "" when there is
    none."""
    six = ":" in peer
    if settings.public_address and (":" in settings.public_address) is six:
        return settings.public_address
    hosts = [listen.host for listen in settings.listen if (":" in listen.host) is six]
    if not hosts:
        return ""
    if hosts[0] not in ("0.0.0.0", "::"):
        return hosts[0]
    family = socket.AF_INET6 if six else socket.AF_INET
    with socket.socket(family, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect((peer, 9))  # sends nothing: only the route is looked up
        except OSError:
            return ""
        return str(probe.getsockname()[0])


QUIET_SECONDS = 2.0
"""Silence after which a port may serve again: a hundred packets would have come."""

LEAVE_SECONDS = 1.0
"""The media clock may still be in a stream whose call is over; then its sockets close later."""

SPARE_PAIRS = 4
"""Pairs kept free for new calls, even where peers still send to others."""

TRIES_IN_A_ROW = 90
"""pjsua looks at a hundred pairs one after another, and refuses the call if all are taken."""

_DATAGRAMS_AT_A_TIME = 256


@dataclass(slots=True)
class _Held:
    """The sockets of a pair of ports in quarantine."""

    sockets: tuple[socket.socket, ...]
    heard: float
    """When the last datagram came, or the call ended."""
    noisy: bool = False


class RtpPortQuarantine:
    """Keeps RTP ports of ended calls bound until their peers have been silent for
    ``QUIET_SECONDS``, so that the next call does not hear them. Lives on the SIP thread.

    Args:
        pairs: how many pairs the range has.
    """

    def __init__(self, pairs: int) -> None:
        self._pairs = pairs
        self._held: OrderedDict[tuple[str, int], _Held] = OrderedDict()
        self._leaving: dict[tuple[str, int], float] = {}
        """What the library has not let go of yet, and until when that is waited for."""
        self._room = 0
        self.given_up = 0
        """Pairs given back before they were quiet, because calls needed them."""

    def __len__(self) -> int:
        """Return how many pairs are held."""
        return len(self._held)

    def bind(self, host: str, port: int, calls: int, now: float) -> None:
        """Bind ``port`` and the one above, which a call has freed, while ``calls`` are up. If the
        library still has them, :meth:`retry` tries again for ``LEAVE_SECONDS``. Pairs held for
        longest are freed where new calls need them. ``now`` in s."""
        if not self._bind_pair(host, port, now):
            self._leaving[host, port] = now + LEAVE_SECONDS
        self._room = min(TRIES_IN_A_ROW, max(0, self._pairs - calls - SPARE_PAIRS))
        self._make_room()

    def take_over(self, rtp_name: str, calls: int, now: float) -> None:
        """Bind the ports of an ended call's RTP, ``host:port``, as :meth:`bind` does."""
        host, _, port = rtp_name.rpartition(":")
        self.bind(host.strip("[]"), int(port), calls, now)

    def retry(self, now: float) -> None:
        """Bind ports that the library has freed meanwhile. To be called in every turn of the SIP
        thread."""
        for key, until in list(self._leaving.items()):
            if self._bind_pair(*key, now) or now > until:
                del self._leaving[key]
        self._make_room()

    def make_way(self, calls: int) -> bool:
        """Free held pairs, the oldest first, until a new call beside ``calls`` finds one; return
        whether there is one.

        Otherwise the library would search the whole range.
        """
        taken = calls + len(self._leaving)
        while self._held and taken + len(self._held) >= self._pairs:
            self._free_oldest()
        return taken < self._pairs

    def _make_room(self) -> None:
        """Free the pairs bound for longest until new calls have enough."""
        while len(self._held) > self._room:
            self._free_oldest()

    def _bind_pair(self, host: str, port: int, now: float) -> bool:
        """Bind ``port`` and the one above, and hold them; return False, with neither bound, while
        the library still has one."""
        sockets: list[socket.socket] = []
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        try:
            for number in (port, port + 1):
                end = socket.socket(family, socket.SOCK_DGRAM)
                sockets.append(end)
                end.setblocking(False)
                end.bind((host, number))
        except OSError:
            for end in sockets:
                end.close()
            return False
        self._held[host, port] = _Held(tuple(sockets), now)
        return True

    def tick(self, now: float) -> None:
        """Drop what the held ports have received, and free those silent for ``QUIET_SECONDS``. To
        be called about once a second."""
        for key, held in list(self._held.items()):
            drained = [_drain(end) for end in held.sockets]
            if any(drained):
                held.heard, held.noisy = now, True
                self._held.move_to_end(key)  # if some have to go early, the quieter ones do
            elif now - held.heard >= QUIET_SECONDS:
                self._close(key)

    def close(self) -> None:
        """Free all pairs that are held."""
        for key in list(self._held):
            self._close(key)

    def _free_oldest(self) -> None:
        """Free the pair that has been held for longest, of those that heard nothing first, and
        count it; logged if its peer still sends."""
        key = next(iter(self._held))
        self.given_up += 1
        if self._held[key].noisy:
            log.warning(
                "sip.rtp_port_still_receiving",
                port=key[1],
                advice="somebody still sends to it, but sip.rtp_ports has no other left",
            )
        self._close(key)

    def _close(self, key: tuple[str, int]) -> None:
        """Close the sockets of a pair, and hold it no more."""
        for end in self._held.pop(key).sockets:
            end.close()


def _drain(end: socket.socket) -> bool:
    """Read and drop what a socket has received, at most ``_DATAGRAMS_AT_A_TIME`` datagrams; return
    whether there was anything."""
    came = False
    with contextlib.suppress(OSError):
        for _ in range(_DATAGRAMS_AT_A_TIME):
            end.recv(1)
            came = True
    return came
