# SPDX-License-Identifier: GPL-2.0-or-later
"""Hosts and IP addresses: read from texts, classed, and looked up."""

from __future__ import annotations

import asyncio
import contextlib
import ipaddress
import socket
import threading
from collections.abc import Callable
from functools import lru_cache
from typing import Any

MAX_LOOKUPS = 64
"""Names that are looked up at a time: each is a thread that the system's resolver may keep for
10 s and more."""

Network = ipaddress.IPv4Network | ipaddress.IPv6Network
IPAddress = ipaddress.IPv4Address | ipaddress.IPv6Address

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


def address_of(text: str) -> IPAddress | None:
    """Return an IP literal's address, that of an IPv4-mapped IPv6 address as IPv4; else None."""
    try:
        address = ipaddress.ip_address(text.strip("[]").partition("%")[0])
    except ValueError:
        return None
    if isinstance(address, ipaddress.IPv6Address) and address.ipv4_mapped is not None:
        return address.ipv4_mapped
    return address


def plain(text: str) -> str:
    """Return an IP literal in canonical form; any other text unchanged."""
    address = address_of(text)
    return text if address is None else str(address)


@lru_cache(maxsize=1024)
def counted(text: str) -> str:
    """Return the key by which limits count an IP literal: the address, or an IPv6 /64 network.

    An IPv6 host on the Internet can have any address of its /64. In a private network, hosts share
    a /64, and each is counted by itself.
    """
    address = address_of(text)
    if address is None or address.version == 4 or is_inside(text):
        return plain(text)
    return str(ipaddress.IPv6Network((int(address), 64), strict=False))


def bracketed(host: str) -> str:
    """Return a host for use in ``host:port`` and in URIs: IPv6 literals in brackets."""
    return f"[{host}]" if ":" in host else host


def is_loopback(address: str) -> bool:
    """Return whether an address is of this machine only (127.0.0.0/8, ::1)."""
    ip = address_of(address)
    return ip is not None and ip.is_loopback


def is_inside(address: str) -> bool:
    """Return whether an address is loopback, private or link-local, so that no stranger has it.

    Not the unspecified address, nor shared address space (RFC 6598): both are seen from outside.
    """
    ip = address_of(address)
    return ip is not None and any(ip in network for network in _INSIDE)


def host_of(uri_or_address: str) -> str:
    """Return the host of a sip URI or of ``host[:port]``, in lower case and without brackets."""
    rest = uri_or_address.strip().strip("<>")
    scheme, colon, behind = rest.partition(":")
    if colon and scheme.lower() == "tel":
        return ""
    if colon and scheme.lower() in ("sip", "sips"):
        rest = behind
    rest = rest.rpartition("@")[2]
    for end in ";?>":
        rest = rest.partition(end)[0]
    if rest.startswith("["):
        return rest[1:].partition("]")[0].lower()
    return rest.partition(":")[0].strip(".").lower()


def is_name(host: str) -> bool:
    """Return whether a host is a name that has to be resolved: not empty, and no IP literal."""
    return bool(host) and address_of(host) is None


class Lookups:
    """Runs blocking look-ups on daemon threads, for which the process's end does not wait.

    Used on the event loop.

    Args:
        most: look-ups at a time.
    """

    def __init__(self, most: int) -> None:
        self._most = most
        self._underway: dict[tuple[Any, ...], asyncio.Future[Any]] = {}

    def start(
        self, key: tuple[Any, ...], look_up: Callable[..., Any]
    ) -> asyncio.Future[Any] | None:
        """Call ``look_up(*key)``, a host name first; return the future of its result.

        A call with the key of a look-up under way returns the future of that one. None where there
        are too many; a ``socket.gaierror`` in the future where no thread can be started.
        """
        found = self._underway.get(key)
        if found is not None or len(self._underway) >= self._most:
            return found
        loop = asyncio.get_running_loop()
        future = self._underway[key] = loop.create_future()
        # Whoever asked may have given up: then nobody takes the error.
        future.add_done_callback(lambda done: done.cancelled() or done.exception())

        def finish(result: Any, error: Exception | None) -> None:
            del self._underway[key]
            if error is None:
                future.set_result(result)
            else:
                future.set_exception(error)

        def run() -> None:
            result, error = None, None
            try:
                result = look_up(*key)
            except Exception as raised:
                error = raised
            with contextlib.suppress(RuntimeError):  # the loop was closed meanwhile
                loop.call_soon_threadsafe(finish, result, error)

        thread = threading.Thread(target=run, name=f"look up {str(key[0])[:40]}", daemon=True)
        try:
            thread.start()
        except RuntimeError as error:  # the system has no thread left
            finish(None, socket.gaierror(socket.EAI_AGAIN, str(error)))
        return future


class LookupLoop(asyncio.SelectorEventLoop):
    """An event loop that resolves host names by :class:`Lookups`.

    asyncio uses its default executor, whose few threads also write files: with a name server that
    does not answer, records would wait for it, and so would the end of the process. More than
    :data:`MAX_LOOKUPS` at a time raise ``socket.gaierror``.
    """

    def __init__(self) -> None:
        super().__init__()
        self._lookups = Lookups(MAX_LOOKUPS)

    async def getaddrinfo(
        self,
        host: Any,
        port: Any,
        *,
        family: int = 0,
        type: int = 0,
        proto: int = 0,
        flags: int = 0,
    ) -> Any:
        """Resolve a name. Raises ``socket.gaierror``."""
        key = (host, port, family, type, proto, flags)
        found = self._lookups.start(key, socket.getaddrinfo)
        if found is None:
            raise socket.gaierror(socket.EAI_AGAIN, "too many names are looked up")
        return await asyncio.shield(found)
