# SPDX-License-Identifier: GPL-2.0-or-later
"""Bearer tokens: how they are made, kept as hashes, and recognized; logins of browsers with them.

A browser sends its token once, in a header field, and gets a cookie for it. The cookie counts only
in requests that the console's own pages make.
"""

from __future__ import annotations

import hashlib
import hmac
import re
import secrets
import time
from collections import OrderedDict
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from enum import IntEnum
from typing import Any
from urllib.parse import urlsplit

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
    """Return the token of an ``Authorization`` field, in the same time whatever it says."""
    scheme, _, given = authorization.partition(" ")
    told = hash_of(given.strip()) if scheme.lower() == "bearer" else ""
    found = None
    for one in tokens:
        if hmac.compare_digest(one.hash, told):
            found = one
    return found


IDLE_SECONDS = 3600.0
"""A login on which nothing was asked for so long is over; an open page asks all the time."""
LIFETIME_SECONDS = 12 * 3600.0
MAX_LOGINS = 1000
"""At a time; one more ends the one that was used least recently."""

ASKED_BY = "gateway-console"
"""Value of ``X-Requested-With``, which a page of another site cannot send."""


_SECRET = re.compile(r"[A-Za-z0-9_-]{1,64}")


@dataclass(slots=True)
class _Login:
    token: Token
    until: float
    used: float


class Logins:
    """Who has logged in, by the cookie's value. Lives on the event loop.

    Args:
        now: seconds that only grow.
    """

    def __init__(self, now: Callable[[], float] = time.monotonic) -> None:
        self._now = now
        self._logins: OrderedDict[str, _Login] = OrderedDict()
        """By the hash of the secret, the one used least recently first."""

    def begin(self, token: Token) -> str:
        """Log somebody in; returns the secret that is the cookie's value."""
        secret, now = secrets.token_urlsafe(32), self._now()
        self._logins[_hashed(secret)] = _Login(token, now + LIFETIME_SECONDS, now)
        while len(self._logins) > MAX_LOGINS:
            self._logins.popitem(last=False)
        return secret

    def end(self, scope: Mapping[str, Any]) -> None:
        """End the log-in of this request's cookie."""
        self._logins.pop(_hashed(_cookie(scope)), None)

    def token_of(self, scope: Mapping[str, Any]) -> Token | None:
        """The token that the request's cookie stands for, if the console's own page asks."""
        secret = _cookie(scope)
        if not secret or not _own_page(scope):
            return None
        key, now = _hashed(secret), self._now()
        login = self._logins.get(key)
        if login is None:
            return None
        if now >= login.until or now >= login.used + IDLE_SECONDS:
            del self._logins[key]
            return None
        login.used = now
        self._logins.move_to_end(key)
        return login.token


def _hashed(secret: str) -> str:
    return hashlib.sha256(secret.encode()).hexdigest()


def cookie_name(scope: Mapping[str, Any]) -> str:
    """The cookie's name: over TLS one that no other host may set; else with the port, since
    cookies are shared by all ports of a host."""
    if scope.get("scheme") in ("https", "wss"):
        return "__Host-gateway"
    return f"gateway-{(scope.get('server') or ('', 0))[1] or 0}"


def _field(scope: Mapping[str, Any], name: bytes) -> str | None:
    return next((v.decode("latin-1") for n, v in scope["headers"] if n == name), None)


def _cookie(scope: Mapping[str, Any]) -> str:
    """The secret in the console's cookie; empty where there is none.

    Read here: ``http.cookies`` takes a time that grows with the square of a quoted value.
    """
    name = cookie_name(scope)
    for one in (_field(scope, b"cookie") or "").split(";"):
        told, _, value = one.strip().partition("=")
        if told == name and _SECRET.fullmatch(value):
            return value
    return ""


class OwnCookie:
    """Passes on no cookie but the console's own (ASGI): libraries below would read all of them."""

    def __init__(self, app: Any) -> None:
        self._app = app

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if any(name == b"cookie" for name, _ in scope.get("headers", ())):
            own = _cookie(scope)
            headers = [field for field in scope["headers"] if field[0] != b"cookie"]
            if own:
                headers.append((b"cookie", f"{cookie_name(scope)}={own}".encode()))
            scope = {**scope, "headers": headers}
        await self._app(scope, receive, send)


def _own_page(scope: Mapping[str, Any]) -> bool:
    """Whether the console's own page makes the request, not one of another site or port."""
    acts = scope["type"] == "websocket" or scope["method"] not in ("GET", "HEAD")
    if scope["type"] == "http" and acts and _field(scope, b"x-requested-with") != ASKED_BY:
        return False
    site = _field(scope, b"sec-fetch-site")
    if site is not None:  # the browser says; "none": somebody has opened the address
        return site == "same-origin" or (site == "none" and not acts)
    origin = _field(scope, b"origin")
    if origin is None:
        return not acts
    return same_site(origin, _field(scope, b"host") or "")


def same_site(origin: str, host: str) -> bool:
    """Whether an ``Origin`` names this host and port."""
    try:
        return urlsplit(origin).netloc == host
    except ValueError:  # "http://["
        return False
