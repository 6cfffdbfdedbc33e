# SPDX-License-Identifier: GPL-2.0-or-later
"""Bearer tokens: how they are made, kept as hashes, and recognized."""

from __future__ import annotations

import hashlib
import hmac
import secrets
from collections.abc import Iterable
from dataclasses import dataclass
from enum import IntEnum

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
