# SPDX-License-Identifier: GPL-2.0-or-later
"""Host names, looked up off the SIP thread, and known to pjsip before it needs them.

pjsip never asks the system's resolver: it knows the names of this table (``native/names.cpp``), and
no others. In it are those of the configuration, looked up again once a minute, and those of calls
that are placed. What peers write into Via, Contact or Record-Route is not looked up: where a name
of theirs would be the next hop, pjsip sends to where their message came from.
"""

from __future__ import annotations

import asyncio
import socket
import threading
from collections.abc import Callable, Iterable

import pjsua2 as pj
import structlog

from gateway.addresses import is_name

log = structlog.get_logger("sip")

LOOKUP_SECONDS = 5.0
"""How long a call that is placed waits for the address of its name."""

START_SECONDS = 3.0
"""How long the start waits for the names of the configuration."""

RENEW_SECONDS = 60.0
MAX_AT_ONCE = 16
"""Look-ups under way: each is a thread that the system's resolver keeps for as long as it likes."""

MAX_KNOWN = 1024
"""Names known besides those of the configuration; beyond, the oldest is forgotten."""

Resolve = Callable[[str], list[str]]


def addresses_of(name: str) -> list[str]:
    """Resolve a host name with the system's resolver; blocks. Raises OSError."""
    found = socket.getaddrinfo(name, None, type=socket.SOCK_DGRAM)
    return list(dict.fromkeys(str(entry[4][0]) for entry in found))


class Names:
    """Resolves host names in the background, for pjsip's table of names. Used on the event loop;
    :meth:`known` and :meth:`addresses` by any thread.

    Args:
        configured: names that are kept up to date.
        resolve: asks the system; runs on a thread of its own.
        table: takes what a name stands for.
    """

    def __init__(
        self,
        configured: Iterable[str],
        resolve: Resolve = addresses_of,
        table: Callable[[str, list[str]], None] | None = None,
    ) -> None:
        self._configured = frozenset(name for name in configured if is_name(name))
        self._resolve = resolve
        self._table = table or (lambda name, found: pj.setNameAddresses(name, found))
        self._known: dict[str, list[str]] = {}
        self._underway: dict[str, asyncio.Future[bool]] = {}
        self._renewal: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Resolve the names of the configuration now and every ``RENEW_SECONDS``."""
        waits = [self._look_up(name) for name in sorted(self._configured)]
        if waits:
            await asyncio.wait(waits, timeout=START_SECONDS)
            for name in sorted(self._configured - self._known.keys()):
                log.warning("sip.name_not_resolved", name=name)
            self._renewal = asyncio.create_task(self._renew(), name="sip names")

    async def stop(self) -> None:
        """Stop resolving; look-ups under way end on their threads."""
        if self._renewal is not None:
            self._renewal.cancel()
            await asyncio.gather(self._renewal, return_exceptions=True)
            self._renewal = None

    def known(self, host: str) -> bool:
        """Return whether pjsip can send to a host: an address, or a name that was resolved."""
        return not is_name(host) or host in self._known

    def addresses(self, host: str) -> tuple[str, ...]:
        """Return the addresses of a name, empty while they are unknown. Any thread."""
        return tuple(self._known.get(host, ()))

    def needs_no_lookup(self, host: str) -> bool:
        """Return whether a host needs no look-up: an address, or a resolved name of the
        configuration."""
        return not is_name(host) or (host in self._configured and host in self._known)

    async def resolve(self, host: str) -> bool:
        """Resolve a name within ``LOOKUP_SECONDS``; return whether pjsip can send to it then."""
        if self.needs_no_lookup(host):
            return True
        done, _ = await asyncio.wait([self._look_up(host)], timeout=LOOKUP_SECONDS)
        return bool(done) and host in self._known

    def resolve_soon(self, host: str) -> None:
        """Start to resolve a name in the background."""
        if is_name(host):
            self._look_up(host)

    async def _renew(self) -> None:
        """Resolve the names of the configuration again, for ever."""
        while True:
            await asyncio.sleep(RENEW_SECONDS)
            for name in sorted(self._configured):
                self._look_up(name)

    def _look_up(self, name: str) -> asyncio.Future[bool]:
        """Resolve a name on a thread of its own, at most ``MAX_AT_ONCE`` at a time.

        Returns a future: whether it was resolved. Look-ups of the same name share one.
        """
        found = self._underway.get(name)
        if found is not None:
            return found
        loop = asyncio.get_running_loop()
        future: asyncio.Future[bool] = loop.create_future()
        if len(self._underway) >= MAX_AT_ONCE:
            future.set_result(False)
            return future
        self._underway[name] = future

        def finished(addresses: list[str]) -> None:
            self._underway.pop(name, None)
            if addresses:  # an old answer is better than none
                self._known.pop(name, None)
                self._known[name] = addresses
                self._table(name, addresses)
                if len(self._known) > MAX_KNOWN + len(self._configured):
                    oldest = next(one for one in self._known if one not in self._configured)
                    del self._known[oldest]
                    self._table(oldest, [])
            if not future.done():
                future.set_result(bool(addresses))

        def run() -> None:
            try:
                addresses = self._resolve(name)
            except (OSError, UnicodeError):
                addresses = []
            if not loop.is_closed():
                loop.call_soon_threadsafe(finished, addresses)

        # No executor's thread: the process would wait for it at its end.
        threading.Thread(target=run, name=f"look up {name[:40]}", daemon=True).start()
        return future
