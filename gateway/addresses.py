# SPDX-License-Identifier: GPL-2.0-or-later
"""Classes of IP addresses: loopback, private, public."""

from __future__ import annotations

import ipaddress

_INSIDE = tuple(
    ipaddress.ip_network(text)
    for text in (
        "127.0.0.0/8",
        "10.0.0.0/8",
        "172.16.0.0/12",
        "192.168.0.0/16",
        "169.254.0.0/16",
        "::1/128",
        "fc00::/7",
        "fe80::/10",
    )
)


def is_loopback(address: str) -> bool:
    """Return whether an address is of this machine only (127.0.0.0/8, ::1)."""
    try:
        return ipaddress.ip_address(address.partition("%")[0]).is_loopback
    except ValueError:
        return False


def is_inside(address: str) -> bool:
    """Whether an address is loopback, private or link-local, so that no stranger can have it.

    Not the unspecified address, nor shared address space (RFC 6598): both are seen from outside.
    """
    try:
        ip = ipaddress.ip_address(address.partition("%")[0])
    except ValueError:
        return False
    if isinstance(ip, ipaddress.IPv6Address) and ip.ipv4_mapped is not None:
        ip = ip.ipv4_mapped
    return any(ip in network for network in _INSIDE)
