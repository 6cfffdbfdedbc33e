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
from collections.abc import Callable, Iterable

import pjsua2 as pj
import structlog

from gateway.addresses import Lookups, is_name

log = structlog.get_logger("sip")

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
