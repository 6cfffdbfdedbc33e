# SPDX-License-Identifier: GPL-2.0-or-later
"""Hosts and IP addresses: read from texts, classed, and looked up on threads, so that neither the
event loop nor the SIP thread waits for DNS."""

from __future__ import annotations

import asyncio
import contextlib
import ipaddress
import socket
import threading
from collections.abc import Callable, Iterable
from functools import lru_cache
from typing import Any

import structlog

log = structlog.get_logger("sip")

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


LOOKUP_SECONDS = 5.0
"""How long a call that is placed waits for the address of its name."""

START_SECONDS = 3.0
"""How long the start waits for the names of the configuration."""

RENEW_SECONDS = 60.0
MAX_AT_ONCE = 16
"""Look-ups under way: each is a thread that the system's resolver keeps for as long as it likes."""

FULL_SECONDS = 0.05
"""Pause before another try, where ``MAX_AT_ONCE`` look-ups are under way."""

MAX_KNOWN = 1024
"""Names known besides those of the configuration; beyond, the oldest is forgotten."""

Resolve = Callable[[str], list[str]]


def addresses_of(name: str) -> list[str]:
    """Resolve a host name with the system's resolver, to IP literals without repeats; blocks.
    Raises OSError."""
    found = socket.getaddrinfo(name, None, type=socket.SOCK_DGRAM)
    return list(dict.fromkeys(str(entry[4][0]) for entry in found))


class Names:
    """Resolves host names in the background, for pjsip's table of names. Used on the event loop;
    :meth:`known` and :meth:`addresses` by any thread.

    pjsip never asks the system's resolver: it knows the names of this table (``native/names.cpp``),
    and no others. In it are those of the configuration, looked up again once a minute, and those of
    calls that are placed. What peers write into Via, Contact or Record-Route is not looked up:
    where a name of theirs would be the next hop, pjsip sends to where their message came from.

    Args:
        configured: names that are kept up to date.
        table: takes what a name stands for; nothing for one that is forgotten.
        resolve: asks the system; runs on a thread of its own.
    """

    def __init__(
        self,
        configured: Iterable[str],
        table: Callable[[str, list[str]], None],
        resolve: Resolve = addresses_of,
    ) -> None:
        self._configured = frozenset(name for name in configured if is_name(name))
        self._resolve = resolve
        self._table = table
        self._known: dict[str, list[str]] = {}
        self._lookups = Lookups(MAX_AT_ONCE)
        self._renewal: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Resolve the names of the configuration now, for at most ``START_SECONDS``, and again
        every ``RENEW_SECONDS`` in the background. Each that is unknown by then is logged."""
        if not self._configured:
            return
        first: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._renewal = asyncio.create_task(self._renew(first), name="sip names")
        await asyncio.wait([first], timeout=START_SECONDS)
        for name in sorted(self._configured - self._known.keys()):
            log.warning("sip.name_not_resolved", name=name)

    async def stop(self) -> None:
        """Stop resolving the names of the configuration; look-ups under way end on their
        threads."""
        if self._renewal is not None:
            self._renewal.cancel()
            await asyncio.gather(self._renewal, return_exceptions=True)
            self._renewal = None

    def known(self, host: str) -> bool:
        """Return whether pjsip can send to a host: an address, or a name that was resolved and is
        still in the table. Any thread."""
        return not is_name(host) or host in self._known

    def addresses(self, host: str) -> tuple[str, ...]:
        """Return the addresses of a name, empty while they are unknown. Any thread."""
        return tuple(self._known.get(host, ()))

    def needs_no_lookup(self, host: str) -> bool:
        """Return whether a host needs no look-up: an address, or a resolved name of the
        configuration."""
        return not is_name(host) or (host in self._configured and host in self._known)

    async def resolve(self, host: str) -> bool:
        """Resolve a name within ``LOOKUP_SECONDS``; return whether pjsip can send to it then.

        A name of a call is looked up each time; of the configuration, only until it is known. True
        with a former answer where this look-up fails, or cannot begin, as ``MAX_AT_ONCE`` are under
        way; False where it has not ended in time.
        """
        if self.needs_no_lookup(host):
            return True
        future = self._look_up(host)
        if future is not None:
            await asyncio.wait([future], timeout=LOOKUP_SECONDS)
        return (future is None or future.done()) and host in self._known

    def resolve_soon(self, host: str) -> None:
        """Start to resolve a name in the background; nothing for an address, or where
        ``MAX_AT_ONCE`` are under way."""
        if is_name(host):
            self._look_up(host)

    async def _renew(self, first: asyncio.Future[None]) -> None:
        """Resolve the names of the configuration now and every ``RENEW_SECONDS``, for ever;
        ``first`` is done once all have had their first answer."""
        while True:
            waits: list[asyncio.Future[list[str]]] = []
            for name in sorted(self._configured):
                while (found := self._look_up(name)) is None:  # noqa: ASYNC110 (no event tells)
                    await asyncio.sleep(FULL_SECONDS)
                waits.append(found)
            if not first.done():
                await asyncio.wait(waits)
                first.set_result(None)
            await asyncio.sleep(RENEW_SECONDS)

    def _look_up(self, name: str) -> asyncio.Future[list[str]] | None:
        """Start to resolve a name, or return the future of a look-up of it under way; None where
        ``MAX_AT_ONCE`` are."""
        future = self._lookups.start((name,), self._resolve)
        if future is not None:
            future.add_done_callback(lambda done: self._on_resolved(name, done))
        return future

    def _on_resolved(self, name: str, done: asyncio.Future[list[str]]) -> None:
        """Keep the addresses of a name, and give them to pjsip's table. A failure leaves the former
        ones. Beyond ``MAX_KNOWN`` the name of a call that was resolved longest ago is forgotten,
        here and there."""
        if done.cancelled() or done.exception() is not None or not done.result():
            return  # an old answer is better than none
        self._known.pop(name, None)
        self._known[name] = done.result()
        self._table(name, done.result())
        if len(self._known) > MAX_KNOWN + len(self._configured):
            oldest = next(one for one in self._known if one not in self._configured)
            del self._known[oldest]
            self._table(oldest, [])
