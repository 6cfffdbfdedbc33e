# SPDX-License-Identifier: GPL-2.0-or-later
"""Where the other side of a dialog finds us: the Contact (RFC 3261 sections 8.1.1.8 and 12.1.1).

pjsua makes it from the interface that leads to the peer. For UDP it then looks whether the listener
was given an address; for TCP and TLS it does not, and a listener on one of several addresses, or
behind NAT, would be sought where nobody listens: the ACK never comes.
"""

from __future__ import annotations

from collections.abc import Iterable

from gateway.addresses import address_of, bracketed
from gateway.sip.settings import Listen


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
