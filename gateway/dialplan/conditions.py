"""How conditions of routes are written, and what they are read as."""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

from gateway.config.problems import MisplacedError
from gateway.dialplan.hours import Hours, parse_hours

Network = ipaddress.IPv4Network | ipaddress.IPv6Network


def header_conditions(value: Mapping[str, Any]) -> Mapping[str, Any]:
    """``headers``: names of SIP header fields, each once. Raises MisplacedError."""
    names = [name.lower() for name in value]
    for name in value:
        if not re.fullmatch(r"[!%*+.`'~_\-0-9A-Za-z]+", name):
            raise MisplacedError((name,), "is no name of a SIP header")
        if names.count(name.lower()) > 1:
            raise MisplacedError((name,), "is there twice (header names do not tell case apart)")
    return MappingProxyType(dict(value))


def networks_of(value: object) -> tuple[Network, ...]:
    """``source``: one address or network, or several. Raises ValueError, as all here do."""
    texts = value if isinstance(value, list) else [value]
    if not texts:
        raise ValueError("an empty list matches nobody; leave the key out to match everybody")
    networks: list[Network] = []
    for text in texts:
        if not isinstance(text, str):
            raise ValueError('must be an address or network like "192.0.2.0/24", or a list of them')
        networks.append(_network(text))
    return tuple(networks)


def _network(text: str) -> Network:
    try:
        return ipaddress.ip_network(text)
    except ValueError:
        try:
            meant = ipaddress.ip_network(text, strict=False)
        except ValueError:
            raise ValueError('must be an address or network like "192.0.2.0/24"') from None
        raise ValueError(f"has bits behind the network; did you mean {meant}?") from None


def hours_of(value: object) -> tuple[Hours, ...]:
    """``hours``: one span, or several."""
    texts = value if isinstance(value, list) else [value]
    if not texts:
        raise ValueError("an empty list is never; leave the key out to match at all times")
    return tuple(parse_hours(text) for text in texts)


def timezone_of(value: object) -> ZoneInfo:
    """``timezone``: of the IANA database."""
    if not isinstance(value, str) or not value:
        raise ValueError('must be a time zone\'s name like "Europe/Berlin"')
    try:
        return ZoneInfo(value)
    except (ZoneInfoNotFoundError, ValueError, OSError):
        raise ValueError('is no known time zone; names look like "Europe/Berlin"') from None
