# SPDX-License-Identifier: GPL-2.0-or-later
"""State that processes share in the database: caps, budgets, callbacks, bans, keys, canaries.

A place under a cap, or money set aside, is a lease: a row that its process renews, and that no
longer counts once it has expired, as after a kill. Functions take the connection of a transaction
that overlaps no other process's (:meth:`Database.exclusive`), so what they read holds until they
have written.
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
"""Seconds until a lease expires that is not renewed."""
UNITS: Final = 10**9
"""Amounts are integers, in billionths of the currency, so that sums are exact."""
KEPT_SECONDS: Final = 86_400.0
"""Seconds for which the key of a request and its answer are kept."""


@dataclass(frozen=True, slots=True)
class Cap:
    """Limit of leases with one scope and key; ``rule`` is the setting that a refusal names."""

    scope: str
    key: str
    limit: int
    rule: str
    seconds: float = 0.0
    """Duration of a lease that is neither renewed nor released, as for a rate; 0 for others."""


@dataclass(frozen=True, slots=True)
class Limit:
    """Budget of a day; ``reserve`` is set aside for each call. In :data:`UNITS`."""

    scope: str
    key: str
    amount: int
    reserve: int


@dataclass(frozen=True, slots=True)
class LeaseRequest:
    """Caps and budgets under which a call may begin on ``day``, an ISO date."""

    call_id: str
    caps: tuple[Cap, ...] = ()
    limits: tuple[Limit, ...] = ()
    day: str = ""
    id: str = field(default_factory=lambda: secrets.token_hex(8))
    """Beginning of the ids of its leases."""


@dataclass(frozen=True, slots=True)
class Lease:
    """A row of the table of leases."""

    id: str
    scope: str
    key: str
    call_id: str
    amount: int
    seconds: float = 0.0


@dataclass(frozen=True, slots=True)
class Sums:
    """Amounts spent by other processes on a day, and reserved by all, by scope and key."""

    day: str
    others: Mapping[tuple[str, str], int] = field(default_factory=dict)
    reserved: Mapping[tuple[str, str], int] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Answer:
    """Result of :func:`admit`: the leases of a call, or the rule or budget that refuses it.

    ``spent`` is what is spent and reserved of that budget.
    """

    leases: tuple[Lease, ...] = ()
    rule: str = ""
    limit: Limit | None = None
    spent: int = 0


def leases_of(wanted: LeaseRequest) -> tuple[Lease, ...]:
    """Return the leases of a call, with new ids from ``wanted.id``: one for each cap, and one for
    the reserve of each budget that has any."""
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
    """Return Unix time (s) by the clock that all processes share, PostgreSQL's or else the
    machine's."""
    if connection.dialect.name != "postgresql":
        return time.time()
    found = connection.execute(sa.text("SELECT extract(epoch FROM clock_timestamp())")).scalar()
    return float(found or 0.0)


# ---- caps and budgets


def admit(connection: sa.Connection, holder: str, wanted: LeaseRequest) -> Answer:
    """Take all leases of a call; or none, and return the first cap that is full or budget that is
    spent.

    A cap is full with ``limit`` leases that have not expired. A budget is spent if what was spent
    on the day, reserved by leases in force and this call's reserve (at least 1) exceed it.
    """
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
    """Extend leases by their ``seconds``, or ``LEASE_SECONDS``, from ``now`` (Unix time, None for
    the database's); write those that were deleted again."""
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
    """Delete leases by id, whoever holds them; nothing for none."""
    if ids:
        connection.execute(sa.delete(leases).where(leases.c.id.in_(ids)))


def release_calls(connection: sa.Connection, call_ids: Iterable[str]) -> None:
    """Delete the leases of calls whose process died."""
    ids = list(call_ids)
    connection.execute(sa.delete(leases).where(leases.c.call_id.in_(ids)))


def release_holder(connection: sa.Connection, holder: str) -> None:
    """Delete the leases of a process, as of an earlier one with this name."""
    connection.execute(sa.delete(leases).where(leases.c.holder == holder))


def spend(
    connection: sa.Connection,
    holder: str,
    day: str,
    amounts: Mapping[tuple[str, str], int],
    wanted: Iterable[tuple[str, str]],
) -> Sums:
    """Write what a process has spent on a day, and return what others have spent, and what all have
    reserved.

    A sum that is smaller than the one there changes nothing.

    Args:
        amounts: sums since the day began, by scope and key; to write them twice changes nothing.
        wanted: scopes and keys to return; none: nothing is read.
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
    """Delete leases that expired ``LEASE_SECONDS`` ago, bans that are over, sums of days before
    ``oldest_day``, and request keys older than ``KEPT_SECONDS``."""
    now = now_of(connection)
    connection.execute(sa.delete(leases).where(leases.c.expires_at < now - LEASE_SECONDS))
    connection.execute(sa.delete(bans).where(bans.c.until < now))
    connection.execute(sa.delete(spending).where(spending.c.day < oldest_day))
    connection.execute(sa.delete(request_keys).where(request_keys.c.at < now - KEPT_SECONDS))


def _taken(
    connection: sa.Connection, pairs: Iterable[tuple[str, str]], now: float
) -> dict[tuple[str, str], tuple[int, int]]:
    """Return the number of leases in force and the sum of their amounts, by scope and key; no entry
    where there are none."""
    rows = connection.execute(
        sa.select(leases.c.scope, leases.c.key, sa.func.count(), sa.func.sum(leases.c.amount))
        .where(_among(leases, pairs), leases.c.expires_at > now)
        .group_by(leases.c.scope, leases.c.key)
    )
    return {(scope, key): (int(count), int(amount)) for scope, key, count, amount in rows}


def _spent(
    connection: sa.Connection, day: str, pairs: Iterable[tuple[str, str]], but: str = ""
) -> dict[tuple[str, str], int]:
    """Return what all processes, or all ``but`` one, have spent on a day, by scope and key."""
    rows = connection.execute(
        sa.select(spending.c.scope, spending.c.key, sa.func.sum(spending.c.amount))
        .where(spending.c.day == day, _among(spending, pairs), spending.c.holder != but)
        .group_by(spending.c.scope, spending.c.key)
    )
    return {(scope, key): int(amount) for scope, key, amount in rows}


def _among(table: sa.Table, pairs: Iterable[tuple[str, str]]) -> Any:
    """Return the condition that scope and key of a row are one of these pairs."""
    return sa.tuple_(table.c.scope, table.c.key).in_(list(pairs))


# ---- callbacks


def put_callback(connection: sa.Connection, row: Mapping[str, Any], most: int) -> str:
    """Insert a callback, or replace the one with its id, which stands for number and route; its
    tries and claim begin anew.

    Returns ``new``, ``replaced``, or, without a change, ``full`` if ``most`` are there already and
    it is none of them.
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
    """Claim up to ``count`` due callbacks that nobody has claimed, the longest due first, for
    ``seconds``; return their rows, with ``tries`` counted up."""
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
    """Extend a claim until ``until`` (Unix time, s); return False, changing nothing, if the
    callback was replaced, or is claimed by another."""
    done = connection.execute(
        sa.update(callbacks).where(_claimed(row, holder)).values(claimed_until=until)
    )
    return done.rowcount > 0


def retry_callback(
    connection: sa.Connection, holder: str, row: Mapping[str, Any], due: float
) -> None:
    """End a claim after a try that failed; the next one is ``due`` (Unix time, s). Nothing if the
    callback was replaced, or is claimed by another."""
    given = sa.update(callbacks).where(_claimed(row, holder))
    connection.execute(given.values(claimed_by="", claimed_until=0.0, due=due))


def drop_callback(connection: sa.Connection, holder: str, row: Mapping[str, Any]) -> None:
    """Delete a claimed callback, which was answered or has expired; nothing if it was replaced, or
    is claimed by another."""
    connection.execute(sa.delete(callbacks).where(_claimed(row, holder)))


def pending_callbacks(connection: sa.Connection, count: int) -> tuple[int, list[dict[str, Any]]]:
    """Return the number of callbacks, and the oldest ``count`` of them."""
    total = connection.execute(sa.select(sa.func.count()).select_from(callbacks)).scalar()
    rows = connection.execute(sa.select(callbacks).order_by(callbacks.c.at).limit(count))
    return int(total or 0), [dict(row) for row in rows.mappings()]


def next_due(connection: sa.Connection, now: float) -> float | None:
    """Return when the next unclaimed callback is due (Unix time, s); None without one."""
    query = sa.select(sa.func.min(callbacks.c.due)).where(callbacks.c.claimed_until <= now)
    found = connection.execute(query).scalar()
    return None if found is None else float(found)


def _claimed(row: Mapping[str, Any], holder: str) -> Any:
    """Return the condition that a row is the callback ``row``, not one that has replaced it, and
    claimed by ``holder``."""
    return sa.and_(
        callbacks.c.id == row["id"], callbacks.c.at == row["at"], callbacks.c.claimed_by == holder
    )


# ---- bans


def put_bans(
    connection: sa.Connection, holder: str, found: Iterable[tuple[str, float, bool]]
) -> None:
    """Write bans: source, seconds left, and whether the source is proven; each replaces that of its
    source."""
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
    """Return up to ``count`` bans in force, the longest first: source, seconds left, and whether
    the source is proven."""
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
    """Write the idempotency key of a request, unless it is there.

    Returns ``first``; or ``same`` and the answer to the first request, None while that is under
    way; or ``other`` if the key was used for another request.
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
    """Write the answer to a key's request; None deletes the key, so that the request can be made
    again: it did nothing."""
    if answer is None:
        connection.execute(sa.delete(request_keys).where(request_keys.c.id == key))
    else:
        update = sa.update(request_keys).where(request_keys.c.id == key)
        connection.execute(update.values(answer=answer))


# ---- canaries


@dataclass(frozen=True, slots=True)
class CanaryState:
    """State of a route's canary, for all processes."""

    began_at: datetime
    """Calls since then count in its figures."""
    stopped_by: str
    """Name of whoever stopped it; empty while it runs."""
    why: str


def canary_states(connection: sa.Connection, wanted: Mapping[str, str]) -> dict[str, CanaryState]:
    """Return the state of canaries by route; ``wanted`` has the fingerprint of each, of its
    settings.

    One that is new, or whose fingerprint has changed, is started anew, also if it was stopped.
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
    """Stop a canary, or start it with ``stopped_by`` "", which also begins its figures anew.

    Returns False if it was stopped or running already.
    """
    changed: dict[str, Any] = {"stopped_by": stopped_by, "why": why}
    runs = canaries.c.stopped_by == ""
    if not stopped_by:
        runs = sa.not_(runs)
        changed["began_at"] = datetime.fromtimestamp(now_of(connection), UTC)
    update = sa.update(canaries).where(canaries.c.route == route, runs).values(changed)
    return connection.execute(update).rowcount > 0


def erase_number(connection: sa.Connection, number: str) -> int:
    """Delete callbacks and daily sums of a number; return the number of rows."""
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
