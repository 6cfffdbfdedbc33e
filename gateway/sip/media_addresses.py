"""Where a session description may have RTP sent to: addresses at which there can be a caller. Pure.

A description is anybody's word. Multicast and broadcast would multiply what we send, 0.0.0.0 is
this machine to its kernel, and so is loopback, which only this machine's own programs may name.
"""

from __future__ import annotations

import ipaddress
import re

from gateway.sip.trunks.matching import IPAddress, address_of

_ADDRESS = re.compile(
    r"^(?:c=|a=rtcp:[0-9]{1,5}[ \t]{1,9})IN[ \t]{1,9}IP[46][ \t]{1,9}"
    r"([0-9A-Fa-f.:]{2,45})(?![0-9A-Fa-f.:])",
    re.MULTILINE,
)
_NOBODY = tuple(map(ipaddress.IPv4Network, ("0.0.0.0/8", "240.0.0.0/4")))


def refused_address(body: str, source: str, *, hold: bool) -> str:
    """The first address of ``body`` that RTP must not be sent to; empty when all are good.

    Args:
        source: IP literal that the message came from.
        hold: 0.0.0.0 says that the call is held, as it did before RFC 3264 (section 8.4).
    """
    sender = address_of(source)
    outside = sender is None or not sender.is_loopback
    for text in _ADDRESS.findall(body.replace("\r", "\n")):
        address = address_of(text)
        if address is None:
            continue  # no address at all, which is for others to say
        if address.is_unspecified and hold:
            continue
        if _is_nobodys(address) or (address.is_loopback and outside):
            return str(address)
    return ""


def _is_nobodys(address: IPAddress) -> bool:
    if address.is_multicast or address.is_unspecified:
        return True
    return address.version == 4 and any(address in network for network in _NOBODY)
