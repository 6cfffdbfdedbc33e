# SPDX-License-Identifier: GPL-2.0-or-later
"""State that processes share through the database: caps, budgets, callbacks, bans, request keys.

A place under a cap, or money set aside, is a lease: a row that its process renews, and that counts
no more once it has expired. So what a killed process held comes back by itself. Functions take the
connection of a transaction that no other process's overlaps (:meth:`Database.exclusive`), so what
they read holds until they have written.
"""

from __future__ import annotations

import secrets
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any, Final

import sqlalchemy as sa

from gateway.records.tables import (
    bans,
    callbacks,
    canaries,
    insert_into,
    leases,
    request_keys,
    spending,
)

LEASE_SECONDS: Final = 30.0
"""Until a lease that nobody renews counts no more."""
UNITS: Final = 10**9
"""Amounts are whole numbers of a billionth of the currency, so that sums are exact."""
KEPT_SECONDS: Final = 86_400.0
"""How long the answer to a request's key is kept."""


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
    """Caps and budgets that a call needs before it may begin."""

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
    """Amounts spent by others on a day, and reserved by all, by scope and key."""

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
    """Return the leases that a request needs: one of each cap, and the reserve of each budget."""
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


def now_of(connection: sa.Connection) -> float:
    """Unix time (s) of the database's clock, which all processes share."""
    if connection.dialect.name != "postgresql":
        return time.time()
    found = connection.execute(sa.text("SELECT extract(epoch FROM clock_timestamp())")).scalar()
    return float(found or 0.0)


# ---- caps and budgets


def admit(connection: sa.Connection, holder: str, wanted: Wanted) -> Answer:
    """Take the leases that a call needs: all of them, or none."""
    now = now_of(connection)
    pairs = {(one.scope, one.key) for one in wanted.caps}
    pairs |= {(one.scope, one.key) for one in wanted.limits}
    taken = _taken(connection, pairs, now)
    for cap in wanted.caps:
        if taken.get((cap.scope, cap.key), (0, 0))[0] >= cap.limit:
            return Answer(rule=cap.rule)
    if wanted.limits:
        spent = _spent(connection, wanted.day, pairs)
        for limit in wanted.limits:
            pair = (limit.scope, limit.key)
            used = spent.get(pair, 0) + taken.get(pair, (0, 0))[1]
            if used + max(limit.reserve, 1) > limit.amount:
                return Answer(limit=limit, spent=used)
    made = leases_of(wanted)
    renew(connection, holder, made, now)
    return Answer(made)


def renew(
    connection: sa.Connection, holder: str, held: Iterable[Lease], now: float | None = None
) -> None:
    """Have leases count on; those that are gone come back."""
    now = now_of(connection) if now is None else now
    rows = [
        {
            "id": one.id,
            "scope": one.scope,
            "key": one.key,
            "holder": holder,
            "call_id": one.call_id,
            "amount": one.amount,
            "expires_at": now + (one.seconds or LEASE_SECONDS),
        }
        for one in held
    ]
    if not rows:
        return
    insert = insert_into(leases, connection.dialect.name)
    connection.execute(
        insert.on_conflict_do_update(
            index_elements=["id"],
            set_={"expires_at": insert.excluded.expires_at, "holder": insert.excluded.holder},
        ),
        rows,
    )


def release(connection: sa.Connection, ids: Sequence[str]) -> None:
    """Delete leases, so that others may have them."""
    if ids:
        connection.execute(sa.delete(leases).where(leases.c.id.in_(ids)))


def release_calls(connection: sa.Connection, call_ids: Iterable[str]) -> None:
    """Give back what calls held whose process died."""
    ids = list(call_ids)
    connection.execute(sa.delete(leases).where(leases.c.call_id.in_(ids)))


def release_holder(connection: sa.Connection, holder: str) -> None:
    """Give back what an earlier process of this name held."""
    connection.execute(sa.delete(leases).where(leases.c.holder == holder))


def settle(
    connection: sa.Connection,
    holder: str,
    day: str,
    amounts: Mapping[tuple[str, str], int],
    wanted: Iterable[tuple[str, str]],
) -> Sums:
    """Note what this process has spent today in all, and return what is spent beside it.

    Amounts are sums since the day began, so writing them twice changes nothing.
    """
    rows = [
        {"day": day, "scope": scope, "key": key, "holder": holder, "amount": amount}
        for (scope, key), amount in amounts.items()
    ]
    if rows:
        insert = insert_into(spending, connection.dialect.name)
        connection.execute(
            insert.on_conflict_do_update(
                index_elements=["day", "scope", "key", "holder"],
                set_={"amount": insert.excluded.amount},
                where=insert.excluded.amount > spending.c.amount,
            ),
            rows,
        )
    pairs = set(wanted)
    if not pairs:
        return Sums(day)
    others = _spent(connection, day, pairs, but=holder)
    taken = _taken(connection, pairs, now_of(connection))
    return Sums(day, others, {pair: amount for pair, (_count, amount) in taken.items()})


def sweep(connection: sa.Connection, oldest_day: str) -> None:
    """Delete what counts no more: expired leases and bans, old sums and keys."""
    now = now_of(connection)
    connection.execute(sa.delete(leases).where(leases.c.expires_at < now - LEASE_SECONDS))
    connection.execute(sa.delete(bans).where(bans.c.until < now))
    connection.execute(sa.delete(spending).where(spending.c.day < oldest_day))
    connection.execute(sa.delete(request_keys).where(request_keys.c.at < now - KEPT_SECONDS))


def _taken(
    connection: sa.Connection, pairs: Iterable[tuple[str, str]], now: float
) -> dict[tuple[str, str], tuple[int, int]]:
    """Return the number of leases of each pair, and the sum of their amounts."""
    rows = connection.execute(
        sa.select(leases.c.scope, leases.c.key, sa.func.count(), sa.func.sum(leases.c.amount))
        .where(_among(leases, pairs), leases.c.expires_at > now)
        .group_by(leases.c.scope, leases.c.key)
    )
    return {(scope, key): (int(count), int(amount)) for scope, key, count, amount in rows}


def _spent(
    connection: sa.Connection, day: str, pairs: Iterable[tuple[str, str]], but: str = ""
) -> dict[tuple[str, str], int]:
    """Return what all but one process have spent of these sums on a day."""
    rows = connection.execute(
        sa.select(spending.c.scope, spending.c.key, sa.func.sum(spending.c.amount))
        .where(spending.c.day == day, _among(spending, pairs), spending.c.holder != but)
        .group_by(spending.c.scope, spending.c.key)
    )
    return {(scope, key): int(amount) for scope, key, amount in rows}


def _among(table: sa.Table, pairs: Iterable[tuple[str, str]]) -> Any:
    return sa.tuple_(table.c.scope, table.c.key).in_(list(pairs))


# ---- callbacks


def put_callback(connection: sa.Connection, row: Mapping[str, Any], most: int) -> str:
    """Keep a callback; one to the same number and route takes the place of an earlier one.

    Returns ``new``, ``replaced``, or ``full`` where ``most`` wait already.
    """
    earlier = connection.execute(
        sa.select(callbacks.c.id).where(callbacks.c.id == row["id"])
    ).first()
    if earlier is None:
        count = connection.execute(sa.select(sa.func.count()).select_from(callbacks)).scalar()
        if (count or 0) >= most:
            return "full"
    fresh = {**row, "tries": 0, "claimed_by": "", "claimed_until": 0.0}
    insert = insert_into(callbacks, connection.dialect.name).values(fresh)
    changed = {name: insert.excluded[name] for name in fresh if name != "id"}
    connection.execute(insert.on_conflict_do_update(index_elements=["id"], set_=changed))
    return "new" if earlier is None else "replaced"


def claim_callbacks(
    connection: sa.Connection, holder: str, now: float, seconds: float, count: int = 20
) -> list[dict[str, Any]]:
    """Take callbacks that are due, and that nobody else has taken; each is tried once more."""
    query = (
        sa.select(callbacks)
        .where(callbacks.c.due <= now, callbacks.c.claimed_until <= now)
        .order_by(callbacks.c.due)
        .limit(count)
        .with_for_update(skip_locked=True)
    )
    rows = [dict(row) for row in connection.execute(query).mappings()]
    for row in rows:
        row["tries"] += 1
        update = sa.update(callbacks).where(callbacks.c.id == row["id"])
        connection.execute(
            update.values(tries=row["tries"], claimed_by=holder, claimed_until=now + seconds)
        )
    return rows


def keep_callback(
    connection: sa.Connection, holder: str, row: Mapping[str, Any], until: float
) -> bool:
    """Hold a claim on; False where the callback was taken back, or put off by somebody."""
    done = connection.execute(
        sa.update(callbacks).where(_ours(row, holder)).values(claimed_until=until)
    )
    return done.rowcount > 0


def retry_callback(
    connection: sa.Connection, holder: str, row: Mapping[str, Any], due: float
) -> None:
    """Give a claim back: nobody was reached; ``due`` is the next try."""
    given = sa.update(callbacks).where(_ours(row, holder))
    connection.execute(given.values(claimed_by="", claimed_until=0.0, due=due))


def drop_callback(connection: sa.Connection, holder: str, row: Mapping[str, Any]) -> None:
    """Forget a callback: somebody was reached, or it is too late."""
    connection.execute(sa.delete(callbacks).where(_ours(row, holder)))


def pending_callbacks(connection: sa.Connection, count: int) -> tuple[int, list[dict[str, Any]]]:
    """Return how many callbacks wait, and the first of them."""
    total = connection.execute(sa.select(sa.func.count()).select_from(callbacks)).scalar()
    rows = connection.execute(sa.select(callbacks).order_by(callbacks.c.at).limit(count))
    return int(total or 0), [dict(row) for row in rows.mappings()]


def next_due(connection: sa.Connection, now: float) -> float | None:
    """When the next callback that nobody has taken is due (Unix time, s)."""
    query = sa.select(sa.func.min(callbacks.c.due)).where(callbacks.c.claimed_until <= now)
    found = connection.execute(query).scalar()
    return None if found is None else float(found)


def _ours(row: Mapping[str, Any], holder: str) -> Any:
    return sa.and_(
        callbacks.c.id == row["id"], callbacks.c.at == row["at"], callbacks.c.claimed_by == holder
    )


# ---- bans


def put_bans(
    connection: sa.Connection, holder: str, found: Iterable[tuple[str, float, bool]]
) -> None:
    """Tell the other processes of bans: source, seconds that are left, and whether proven."""
    now = now_of(connection)
    rows = [
        {"source": source, "until": now + seconds, "proven": proven, "holder": holder}
        for source, seconds, proven in found
    ]
    if rows:
        insert = insert_into(bans, connection.dialect.name)
        changed = {name: insert.excluded[name] for name in ("until", "proven", "holder")}
        statement = insert.on_conflict_do_update(index_elements=["source"], set_=changed)
        connection.execute(statement, rows)


def all_bans(connection: sa.Connection, count: int = 4096) -> list[tuple[str, float, bool]]:
    """Bans in force: source, seconds that are left, and whether proven."""
    now = now_of(connection)
    rows = connection.execute(
        sa.select(bans.c.source, bans.c.until, bans.c.proven)
        .where(bans.c.until > now)
        .order_by(sa.desc(bans.c.until))
        .limit(count)
    )
    return [(source, until - now, bool(proven)) for source, until, proven in rows]


# ---- requests with a key


def first_with_key(connection: sa.Connection, key: str, request: str) -> tuple[str, str | None]:
    """Note a request's key: ``first``, ``same`` with its answer, or ``other`` for another request.

    The answer is None while the first request is under way.
    """
    found = connection.execute(sa.select(request_keys).where(request_keys.c.id == key)).first()
    if found is not None and found.at > now_of(connection) - KEPT_SECONDS:
        return ("same", found.answer) if found.request == request else ("other", None)
    connection.execute(sa.delete(request_keys).where(request_keys.c.id == key))
    connection.execute(
        sa.insert(request_keys).values(id=key, request=request, at=now_of(connection))
    )
    return "first", None


def answer_key(connection: sa.Connection, key: str, answer: str | None) -> None:
    """Keep the answer to a key's request; None forgets the key: it failed before it did a thing."""
    if answer is None:
        connection.execute(sa.delete(request_keys).where(request_keys.c.id == key))
    else:
        update = sa.update(request_keys).where(request_keys.c.id == key)
        connection.execute(update.values(answer=answer))


# ---- canaries


@dataclass(frozen=True, slots=True)
class CanaryState:
    """Whether a route's canary runs, for all processes."""

    began_at: datetime
    """Calls since then count in its figures."""
    stopped_by: str
    """Who has stopped it; empty: it runs."""
    why: str


def canary_states(connection: sa.Connection, wanted: Mapping[str, str]) -> dict[str, CanaryState]:
    """Return the state of canaries by route; ``wanted`` has the fingerprint of each.

    One that is new, or changes something else than before, runs from now on.
    """
    rows = connection.execute(sa.select(canaries).where(canaries.c.route.in_(list(wanted))))
    found = {row.route: row for row in rows}
    states = {}
    for route, fingerprint in wanted.items():
        row = found.get(route)
        if row is not None and row.fingerprint == fingerprint:
            states[route] = CanaryState(row.began_at, row.stopped_by, row.why)
            continue
        began = datetime.fromtimestamp(now_of(connection), UTC)
        fresh = {"fingerprint": fingerprint, "began_at": began, "stopped_by": "", "why": ""}
        insert = insert_into(canaries, connection.dialect.name).values(route=route, **fresh)
        connection.execute(insert.on_conflict_do_update(index_elements=["route"], set_=fresh))
        states[route] = CanaryState(began, "", "")
    return states


def canary_of(connection: sa.Connection, route: str) -> CanaryState | None:
    """Return the state of a route's canary; None where it has had none."""
    row = connection.execute(sa.select(canaries).where(canaries.c.route == route)).first()
    return None if row is None else CanaryState(row.began_at, row.stopped_by, row.why)


def set_canary(connection: sa.Connection, route: str, stopped_by: str, why: str) -> bool:
    """Stop a canary, or with ``stopped_by`` "" start it, its figures anew.

    Returns False where it was so already.
    """
    changed: dict[str, Any] = {"stopped_by": stopped_by, "why": why}
    runs = canaries.c.stopped_by == ""
    if not stopped_by:
        runs = sa.not_(runs)
        changed["began_at"] = datetime.fromtimestamp(now_of(connection), UTC)
    update = sa.update(canaries).where(canaries.c.route == route, runs).values(changed)
    return connection.execute(update).rowcount > 0


def erase_number(connection: sa.Connection, number: str) -> int:
    """Delete what is kept of a number; returns how many rows that was."""
    scope = sa.and_(spending.c.scope == "number", spending.c.key == number)
    return sum(
        connection.execute(statement).rowcount
        for statement in (
            sa.delete(callbacks).where(callbacks.c.number == number),
            sa.delete(spending).where(scope),
        )
    )


def day_before(days: int) -> str:
    """Return the ISO date (UTC) ``days`` days ago."""
    return datetime.fromtimestamp(time.time() - days * 86_400, UTC).date().isoformat()
