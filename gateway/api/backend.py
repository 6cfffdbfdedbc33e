# SPDX-License-Identifier: GPL-2.0-or-later
"""Interface of the process towards the API: tokens, commands, queries, and the feed of events."""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import re
import secrets
from collections import deque
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterable, Mapping
from dataclasses import dataclass, field
from enum import IntEnum
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from gateway.api.client import RefusedError
from gateway.measures import OTHER, REQUEST, Distribution

if TYPE_CHECKING:
    from gateway.bridge.recording_and_listening import Listeners
    from gateway.bridge.sideband import Follower, Sideband
    from gateway.records.database import Database
    from gateway.records.webhooks import WebhookSender
    from gateway.sip.browser_leg import BrowserEnd

PREFIX = "gw_"
SCHEME = "sha256:"


class Role(IntEnum):
    """What a token allows; each role may do all that the ones before it may.

    An application has a side of the interface for itself: it decides over calls of its routes.
    """

    APPLICATION = 0
    READONLY = 1
    OPERATOR = 2
    ADMIN = 3


@dataclass(frozen=True, slots=True)
class Token:
    """A token of the configuration: its name, which the audit log shows, and its role."""

    name: str
    role: Role
    hash: str
    routes: tuple[str, ...] = ()
    """Of an application; empty for every route that asks one."""


def new_token() -> str:
    """Return a new token: 32 random bytes as text."""
    return PREFIX + secrets.token_urlsafe(32)


def hash_of(token: str) -> str:
    """Return what the configuration keeps of a token. It has too many bits to be guessed."""
    return SCHEME + hashlib.sha256(token.encode()).hexdigest()


def recognized(authorization: str, tokens: Iterable[Token]) -> Token | None:
    """Return the token that an ``Authorization: Bearer`` field names; None for none.

    Every token is compared, so that the time tells nothing.
    """
    scheme, _, given = authorization.partition(" ")
    told = hash_of(given.strip()) if scheme.lower() == "bearer" else ""
    found = None
    for one in tokens:
        if hmac.compare_digest(one.hash, told):
            found = one
    return found


MAX_EVENTS = 1000
"""Events kept for followers; one that is further behind is sent ``feed.gap`` with their number."""
MAX_FOLLOWERS = 64
POSITION = "feed.position"
"""Type of the first event to another worker: the id after which the events begin."""


class EventFeed:
    """Numbers events and hands them out. Lives on the event loop."""

    def __init__(self, boot: str) -> None:
        self.followers = 0
        self.ending = {False: asyncio.Event(), True: asyncio.Event()}
        """Set when the server of the address, or of the Unix socket, ends its followers."""
        self._boot = boot
        self._events: deque[tuple[int, Mapping[str, Any]]] = deque(maxlen=MAX_EVENTS)
        self._last = 0
        self._pulse = asyncio.Event()

    def join(self) -> bool:
        """Take a place among the followers, until :meth:`leave`; False where none is free."""
        if self.followers >= MAX_FOLLOWERS:
            return False
        self.followers += 1
        return True

    def leave(self) -> None:
        """Free the place that :meth:`join` took."""
        self.followers -= 1

    def add(self, event: Mapping[str, Any]) -> None:
        """Add an event under the next number, and wake the followers."""
        self._last += 1
        self._events.append((self._last, event))
        self._pulse.set()
        self._pulse = asyncio.Event()

    def position(self, after: str = "") -> str:
        """Return the id after which :meth:`follow` with the same ``after`` begins."""
        return f"{self._boot}.{self._resumed(after)[0]}"

    def follow(self, after: str = "") -> AsyncGenerator[tuple[str, Mapping[str, Any]], None]:
        """Yield id and event, from the one behind ``after`` on, or from now on; never ends.

        Where events between are no longer there, or ``after`` is of another process, the first
        event is ``feed.gap`` with how many were missed, as far as that is known.

        Args:
            after: an id, or those of several processes with commas between: of this one, its own.
        """
        return self._follow(*self._resumed(after))

    def _resumed(self, after: str) -> tuple[int, bool]:
        """Return the number of the last event that was seen, and True if that is not known.

        Without ``after`` it is the last one; where ``after`` is not of this process, the one before
        the oldest kept.
        """
        own = [one for one in after.split(",") if one.partition(".")[0] == self._boot]
        number = own[0].partition(".")[2] if own else ""
        told = int(number) if re.fullmatch("[0-9]{1,18}", number) else -1
        if 0 <= told <= self._last:
            return told, False
        return (self._last - len(self._events), True) if after else (self._last, False)

    async def _follow(
        self, seen: int, unknown: bool
    ) -> AsyncGenerator[tuple[str, Mapping[str, Any]], None]:
        """Yield events after number ``seen``, and wait for more; never ends.

        ``feed.gap`` first where the position is ``unknown``, and wherever events are gone.
        """
        if unknown:
            yield f"{self._boot}.{seen}", {"type": "feed.gap", "missed": None}
        while True:
            oldest = self._events[0][0] if self._events else self._last + 1
            if seen < oldest - 1:
                missed, seen = oldest - 1 - seen, oldest - 1
                yield f"{self._boot}.{seen}", {"type": "feed.gap", "missed": missed}
            for number_of_event, event in [one for one in self._events if one[0] > seen]:
                seen = number_of_event
                yield f"{self._boot}.{seen}", event
            pulse = self._pulse
            if seen == self._last:
                await pulse.wait()


Answer = Mapping[str, Any]
Command = Callable[[Mapping[str, Any]], Answer | Awaitable[Answer]]
"""Takes the request; returns the answer, or raises RefusedError. One that takes time returns an
awaitable, with a deadline of its own."""


class NoCallError(RefusedError):
    """There is no such call, route, trunk or transfer: 404 in the API, where others are 409."""


class Refusal(Exception):  # noqa: N818 - an answer, not a defect
    """Error response to an application: status, ``code``, ``message`` and ``param`` of its body."""

    def __init__(self, status: int, code: str, message: str, param: str | None = None) -> None:
        super().__init__(message)
        self.status = status
        kind = "server_error" if status >= 500 else "invalid_request_error"
        self.body = {"error": {"message": message, "type": kind, "param": param, "code": code}}


LIVE_ID = "live_"
"""Ids that applications have of calls with Live sessions begin with this, ``rtc_`` the others."""


def not_found(call_id: str) -> Refusal:
    """Return the 404 for a call that is over, or another application's."""
    name = "session_id" if call_id.startswith(LIVE_ID) else "call_id"
    return Refusal(404, f"{name}_not_found", f"No session found for the provided {name}")


class HostedCalls(Protocol):
    """Commands of applications on calls. Every method raises Refusal."""

    def accept(self, token: Token, call_id: str, session: Any) -> None:
        """Start a call whose INVITE waits, with this session object; nothing if repeated."""

    def reject(self, token: Token, call_id: str, code: int) -> None:
        """Reject the INVITE of a call that waits, with this SIP code; nothing if repeated."""

    def refer(self, token: Token, call_id: str, target: str) -> None:
        """Transfer an accepted call blindly (REFER) to a SIP or tel URI."""

    def hang_up(self, token: Token, call_id: str) -> None:
        """End an accepted call with BYE."""

    def sideband(self, token: Token, call_id: str) -> tuple[Sideband, Follower]:
        """Attach a follower to the session of an accepted call; the caller detaches it."""


class RequestKeys(Protocol):
    """Remembers for a day the requests with an Idempotency-Key, whichever process got them."""

    async def first(self, key: str, request: str) -> tuple[str, str | None]:
        """Note a key: ``first``, ``same`` with its answer, or ``other`` for another request.

        The answer is None while the first request is under way. Raises TimeoutError where the
        database is not reached.
        """

    def answered(self, key: str, answer: str | None) -> None:
        """Keep the answer to a key's request; None forgets the key, as nothing was done."""


class BrowserCalls(Protocol):
    """Calls of pages of the console."""

    @property
    def limit(self) -> int:
        """Return how many calls from browsers there may be at a time."""

    @property
    def active(self) -> int:
        """Return how many calls from browsers there are."""

    def numbers(self) -> list[dict[str, str]]:
        """Return ``number`` and ``route`` of each enabled route whose ``to`` is one number."""

    def begin(
        self,
        to: str,
        caller: str,
        source: str,
        who: str,
        tell: Callable[[dict[str, Any]], None],
        hear: Callable[[], None],
    ) -> BrowserEnd:
        """Begin a call to a number for the token ``who``; return the page's end of it.

        ``tell`` gets messages for the page, ``hear`` is called when there is audio for it.
        """

    def over(self, end: BrowserEnd) -> None:
        """Free the place of a call whose page has left."""

    def closed(self, reason: str, unread: int) -> None:
        """Count why a page's WebSocket was closed, and frames that it did not take in time."""


class RequestTimes:
    """Seconds until requests to the API were answered, by path template, method and status class.

    Lives on the event loop. What no path of the API took, and what another worker answered, is
    ``other``.
    """

    METHODS = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "WEBSOCKET"})

    def __init__(self) -> None:
        self.seconds: dict[tuple[str, str, str], Distribution] = {}

    def observe(self, handler: str, method: str, status: int, seconds: float) -> None:
        """Count a request in the distribution of its path, method and class of status (``2xx``)."""
        method = method if method in self.METHODS else OTHER
        key = (handler or OTHER, method, f"{status // 100}xx")
        if key not in self.seconds:
            self.seconds[key] = Distribution(REQUEST)
        self.seconds[key].observe(seconds)


@dataclass(frozen=True, slots=True)
class Backend:
    """The process towards the API. Everything is called on the event loop."""

    commands: Mapping[str, Command]
    """Commands by name."""
    live: Callable[[], list[dict[str, Any]]]
    """A row for each call in progress, the newest last."""
    record: Callable[[str], dict[str, Any] | None]
    """The record of a call in progress, as it is now."""
    database: Callable[[], Database] | None
    """Makes a connection for queries; None where no calls are kept."""
    feed: EventFeed
    ready: Callable[[], Mapping[str, str]]
    """Why no further call should come here, by part; empty while they should."""
    problems: Callable[[], Mapping[str, str]]
    """Permanent failures, by part."""
    metrics: Callable[[], Awaitable[bytes]]
    """The metrics as Prometheus reads them."""
    drain: Callable[[], None]
    requests: RequestTimes = field(default_factory=RequestTimes)
    webhooks: WebhookSender | None = None
    """None where no endpoint is configured."""
    applications: HostedCalls | None = None
    request_keys: RequestKeys | None = None
    here: Callable[[str], bool] = lambda _call: True
    """Whether a call of this name is known to this worker."""
    reload: Callable[[], Awaitable[Mapping[str, Any]]] | None = None
    browser_calls: BrowserCalls | None = None
    recordings: Path | None = None
    """Folder of recordings; None where none are made."""
    levels: Callable[[], dict[str, tuple[int, int]]] = dict
    """By call in progress: peaks (of 32,767) of what its caller sends and of what they hear."""
    progress: Callable[[str, int, int], dict[str, Any]] | None = None
    """The record of a call in progress (its name, as of commands), with the timeline from a place
    and the transcript from an entry on. Raises RefusedError."""
    listeners: Callable[[str], Listeners] | None = None
    """The listeners to a call in progress. Raises RefusedError."""
