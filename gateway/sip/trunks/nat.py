# SPDX-License-Identifier: GPL-2.0-or-later
"""Our addresses as peers are told them: Contact (RFC 3261 sections 8.1.1.8, 12.1.1) and SDP.

pjsua makes the Contact from the interface that leads to the peer. For UDP it then looks whether the
listener was given an address; for TCP and TLS it does not, and a listener on one of several
addresses, or behind NAT, would be sought where nobody listens: the ACK never comes.
"""

from __future__ import annotations

import socket
from collections.abc import Iterable, Mapping

from gateway.addresses import address_of, bracketed, host_of, is_inside, is_loopback
from gateway.sip.settings import Listen, SipSettings, Trunk


def forced_contact(
    user: str, transport: str, local: str, public: str, listeners: Iterable[Listen]
) -> str:
    """The Contact that pjsua has to be told, or "" where its own will do.

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
    """Hosts that media of a trunk's calls may go to, as far as they are known."""
    named = [address for address in (trunk.outbound_proxy, trunk.registrar) if address]
    return [host_of(address) for address in named] + [
        str(peer.network.network_address) for peer in trunk.peers
    ]


def unreachable(settings: SipSettings, addresses: Mapping[str, Iterable[str]]) -> list[str]:
    """Return a line for each trunk that could not reach the addresses it is given.

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
    """The address that SDP to this peer will carry; empty when there is no way to it."""
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
