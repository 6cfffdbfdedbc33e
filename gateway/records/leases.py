# SPDX-License-Identifier: GPL-2.0-or-later
"""Places under caps and money set aside for calls: what is asked for, and what was given."""

from __future__ import annotations

import secrets
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final

LEASE_SECONDS: Final = 30.0
"""Until a lease that nobody renews counts no more."""
UNITS: Final = 10**9
"""Amounts are whole numbers of a billionth of the currency, so that sums are exact."""


@dataclass(frozen=True, slots=True)
class Cap:
    """At most ``limit`` leases of a scope and key at a time; ``rule`` is what a refusal says."""

    scope: str
    key: str
    limit: int
    rule: str
    seconds: float = 0.0
    """A lease that is not renewed and not given back, but counts for so long; 0 for the others."""


@dataclass(frozen=True, slots=True)
class Limit:
    """A budget of a day, in :data:`UNITS`; ``reserve`` is set aside for the call."""

    scope: str
    key: str
    amount: int
    reserve: int


@dataclass(frozen=True, slots=True)
class Wanted:
    """What a call needs before it may begin."""

    call_id: str
    caps: tuple[Cap, ...] = ()
    limits: tuple[Limit, ...] = ()
    day: str = ""
    id: str = field(default_factory=lambda: secrets.token_hex(8))
    """Of its leases."""


@dataclass(frozen=True, slots=True)
class Lease:
    """One row of the table of leases, as its holder knows it."""

    id: str
    scope: str
    key: str
    call_id: str
    amount: int
    seconds: float = 0.0


@dataclass(frozen=True, slots=True)
class Sums:
    """What others have spent on a day, and what all have set aside, by scope and key."""

    day: str
    others: Mapping[tuple[str, str], int] = field(default_factory=dict)
    reserved: Mapping[tuple[str, str], int] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Answer:
    """Whether a call may begin: with its leases, or with the rule or the limit in its way."""

    leases: tuple[Lease, ...] = ()
    rule: str = ""
    limit: Limit | None = None
    spent: int = 0


def leases_of(wanted: Wanted) -> tuple[Lease, ...]:
    """The leases that a call gets where nothing is in its way."""
    made = [
        Lease(f"{wanted.id}-{number}", one.scope, one.key, wanted.call_id, 0, one.seconds)
        for number, one in enumerate(wanted.caps)
    ]
    made += [
        Lease(f"{wanted.id}-{one.scope}", one.scope, one.key, wanted.call_id, one.reserve)
        for one in wanted.limits
        if one.reserve
    ]
    return tuple(made)
