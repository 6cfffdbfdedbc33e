# SPDX-License-Identifier: GPL-2.0-or-later
"""Asks the database that processes share: may this call begin, who else has spent what.

One thread has the connection. The event loop hands it operations and waits for no answer longer
than ``shared.timeout_ms``; then ``shared.fail`` decides.
"""

from __future__ import annotations

import asyncio
import queue
import threading
from collections import defaultdict
from collections.abc import Callable, Collection, Iterable, Mapping
from decimal import ROUND_HALF_EVEN, Decimal
from functools import partial
from typing import Any, TypeAlias, TypeVar

import structlog
from sqlalchemy import Connection, exc

from gateway.addresses import counted
from gateway.billing import Costs, Scope
from gateway.billing.ledger import DaySums, Pair
from gateway.config import Config
from gateway.config.sections import OutboundSettings
from gateway.dialplan import Route
from gateway.records import shared
from gateway.records.database import Database
from gateway.records.shared import UNITS, Answer, Cap, Lease, LeaseRequest, Limit, Sums, leases_of
from gateway.sip.leg import Invite
from gateway.tasks import TaskSet

TICK_SECONDS = 1.0
"""Interval at which this process shares what it has spent, and reads what others have."""
RENEW_SECONDS = 5.0
BANS_SECONDS = 5.0
SWEEP_SECONDS = 600.0
KEPT_DAYS = 40
PATIENCE_SECONDS = 6.0
"""Longest time (s) of one transaction."""
START_SECONDS = 10.0
"""Wait (s) for tables and connection, before calls are taken."""
SQLITE_SECONDS = 5.0
"""Least wait (s) for a call's reservation in an SQLite file: it is not away, the disk is busy."""
QUEUE_ITEMS = 2000
BATCH = 100
STOP_SECONDS = 3.0
IN_MEMORY = "sqlite://"

log = structlog.get_logger("shared")

FOLLOWED_RULE = "half of outbound.max_concurrent_calls"


def most_followed(settings: OutboundSettings) -> int:
    """Return how many calls caused by REFERs of the other side there may be at a time: half of
    ``max_concurrent_calls``, at least one."""
    return max(1, settings.max_concurrent_calls // 2)


T = TypeVar("T")
Operation: TypeAlias = Callable[[Connection], T]
Ban: TypeAlias = tuple[str, float, bool]
"""Source, seconds that are left, and whether nobody else can have sent what led to it."""


class NotReachedError(Exception):
    """The database that processes share was not reached in time."""


class SharedState:
    """Leases on caps and budgets, sums spent, and bans, which all processes share by a database.

    Without one ``active`` is False, and no call asks for leases. Lives on the event loop.

    Args:
        costs: knows what this process has spent; told what others have.
        ban: bans these sources in this process, too.
    """

    def __init__(
        self,
        config: Config,
        costs: Costs,
        ban: Callable[[list[Ban]], None] = lambda _found: None,
    ) -> None:
        self._config = config
        self._costs = costs
        self._ban = ban
        self.active = config.records.database_url is not None
        """Whether there is a database; without one, operations find a table in memory."""
        self._url = config.records.database_url or IN_MEMORY
        self._database: Database | None = None
        self._queue: queue.Queue[tuple[Operation[Any], asyncio.Future[Any]] | None]
        self._queue = queue.Queue(QUEUE_ITEMS)
        self._thread: threading.Thread | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._held: defaultdict[str, list[Lease]] = defaultdict(list)
        self._banned: list[Ban] = []
        self._left: DaySums | None = None
        self._tasks = TaskSet()
        self.unavailable = ""
        """Why the database was not reached when it was last asked."""
        self.refused = 0
        """Calls refused because it was not reached."""
        self._refusing = False

    # ---- life

    async def start(self) -> None:
        """Connect, and start the periodic exchange; nothing without a database.

        Waits ``START_SECONDS`` at most; without the database the process starts, too. What an
        earlier run of this process had spent and not shared is shared first.
        """
        if not self.active:
            return
        self._left = self._costs.left
        try:
            async with asyncio.timeout(START_SECONDS):
                await self.run(lambda _connection: None)  # tables and connection are there, too
        except (TimeoutError, NotReachedError):
            pass  # it was said, or will be
        except Exception:
            log.exception("shared.failed")
        self._tasks.serve(self._tick_on, "shared state")

    async def stop(self) -> None:
        """Share what was spent, release all leases, and end the thread.

        ``STOP_SECONDS`` for the database, which is left out where it is not reached, and for the
        thread. Leases that stay expire.
        """
        await self._tasks.cancel()
        if self._thread is None:
            return
        if self.active and not self.unavailable:
            self._held.clear()
            try:
                async with asyncio.timeout(STOP_SECONDS):
                    await self._settle()
                    await self.run(partial(shared.release_holder, holder=self.holder))
            except (NotReachedError, TimeoutError):
                pass
            except Exception:
                log.exception("shared.failed")
        try:
            self._queue.put_nowait(None)
        except queue.Full:
            return  # the thread hangs; it is a daemon
        await asyncio.to_thread(self._thread.join, STOP_SECONDS)

    @property
    def holder(self) -> str:
        """Return the name of this process in the shared database."""
        return self._costs.holder

    @property
    def refusing(self) -> str:
        """Return why the database is not reached, once a call was refused for it; else "".

        Only with ``shared.fail = "closed"``; "" again as soon as the database answers.
        """
        return self.unavailable if self._refusing else ""

    def as_json(self) -> dict[str, Any]:
        """Return the state for ``gateway status``."""
        held = sum(len(each) for each in self._held.values())
        return {"unavailable": self.unavailable, "leases": held, "refused": self.refused}

    # ---- operations

    def run(self, operation: Operation[T]) -> asyncio.Future[T]:
        """Queue an operation for the thread, which carries it out in a transaction.

        The future has its result; it raises NotReachedError where the database is away or
        ``QUEUE_ITEMS`` operations wait, else what the operation raises. No deadline of its own.
        """
        loop = self._loop = asyncio.get_running_loop()
        future: asyncio.Future[T] = loop.create_future()
        if self._thread is None:
            self._thread = threading.Thread(target=self._work, name="shared state", daemon=True)
            self._thread.start()
        try:
            self._queue.put_nowait((operation, future))
        except queue.Full:
            future.set_exception(NotReachedError("too many requests wait"))
        return future

    def _work(self) -> None:
        """Execute queued operations, up to ``BATCH`` in one transaction, until None is queued.

        Then close the database. Runs on a thread of its own.
        """
        while (first := self._queue.get()) is not None:
            batch = [first]
            ended = False
            while len(batch) < BATCH and not self._queue.empty():
                item = self._queue.get()
                if item is None:
                    ended = True
                    break
                batch.append(item)
            try:
                self._carry_out(batch)
            except Exception as error:  # a defect: else all that wait would wait for good
                log.exception("shared.failed")
                self._answer(batch, error)
            if ended:
                break
        if self._database is not None:
            self._database.close()

    def _carry_out(self, batch: list[tuple[Operation[Any], asyncio.Future[Any]]]) -> None:
        """Execute operations in one transaction; if one is refused, each again in its own.

        In an outage all of them fail. The first success after one ends it, and is logged.
        """
        try:
            if self._database is None:
                self._database = Database(self._url, patience=PATIENCE_SECONDS, lasting=True)
            with self._database.exclusive() as connection:
                results = [operation(connection) for operation, _future in batch]
        except Exception as error:
            if self._database is not None and self._url != IN_MEMORY:
                self._database.close()
            if len(batch) > 1 and not _is_outage(error):
                for one in batch:
                    self._carry_out([one])
                return
            self._answer(batch, error)
        else:
            if self.unavailable:
                self.unavailable, self._refusing = "", False
                log.info("shared.available")
            self._answer(batch, None, results)

    def _answer(
        self,
        batch: list[tuple[Operation[Any], asyncio.Future[Any]]],
        error: Exception | None,
        results: Iterable[Any] = (),
    ) -> None:
        """Set the futures of a batch on the event loop: results, or the error.

        An outage is noted, and its error is NotReachedError.
        """
        if error is not None:
            if _is_outage(error):
                text = str(getattr(error, "orig", None) or error).strip().split("\n")[0]
                self._note(text or type(error).__name__)
                error = NotReachedError(self.unavailable)
            told: list[Any] = [partial(_fail, future, error) for _operation, future in batch]
        else:
            told = [
                partial(_succeed, future, result)
                for (_operation, future), result in zip(batch, results, strict=True)
            ]
        assert self._loop is not None
        try:
            for tell in told:
                self._loop.call_soon_threadsafe(tell)
        except RuntimeError:
            pass  # the loop is closed: nobody waits any more

    def _note(self, text: str) -> None:
        """Note why the database is not reached; logged once for each outage."""
        if not self.unavailable:
            log.error("shared.unavailable", error=text, fail=self._config.shared.fail)
        self.unavailable = text

    # ---- calls

    def wanted(
        self, call_id: str, route: Route, number: str, invite: Invite | None = None
    ) -> LeaseRequest | None:
        """Return what a call has to reserve in the shared database; None for nothing.

        Caps: inbound those of its trunk or source, placed those of ``[outbound]``, and
        ``shared.max_calls``. Budgets: of the number, the route and the day, where limited.

        Args:
            number: whose budget it spends.
            invite: of an inbound call; None for one that we place.
        """
        if not self.active:
            return None
        caps = [] if invite is None else self._caps(invite)
        if invite is None:
            caps += self.outbound_caps()
        if most := self._config.shared.max_calls:
            caps.append(Cap("calls", "", most, f"shared.max_calls = {most}"))
        budgets = self._costs.budgets(route)
        keys = {Scope.NUMBER: number, Scope.ROUTE: route.name, Scope.DAY: ""}
        limits = tuple(
            Limit(scope.value, key, units(amount), units(budgets.reserve))
            for scope, key in keys.items()
            if (amount := budgets.limit(scope)) is not None
        )
        if not (caps or limits):
            return None
        return LeaseRequest(call_id, tuple(caps), limits, self._costs.today())

    def outbound_wanted(self, call_id: str, *, followed: bool = False) -> LeaseRequest | None:
        """Return what a B-leg or a call caused by a REFER has to reserve before it is dialled.

        None without a shared database. ``followed``: caused by a REFER, which has a cap of its own.
        """
        caps = self.outbound_caps()
        if followed:
            most = most_followed(self._config.outbound)
            caps.append(Cap("followed", "", most, f"{FOLLOWED_RULE}: {most} followed REFERs"))
        return LeaseRequest(call_id, tuple(caps)) if self.active else None

    def outbound_caps(self) -> list[Cap]:
        """Return the caps of ``[outbound]``: calls at a time, and calls within 60 s."""
        outbound = self._config.outbound
        most, rate = outbound.max_concurrent_calls, outbound.max_calls_per_minute
        return [
            Cap("outbound", "", most, f"outbound.max_concurrent_calls = {most}"),
            Cap("outbound_minute", "", rate, f"outbound.max_calls_per_minute = {rate}", 60.0),
        ]

    def _caps(self, invite: Invite) -> list[Cap]:
        """Return the cap on concurrent calls that an inbound call counts for; [] for none.

        That of its trunk; without a trunk that of ``[access]``, for its source (IPv6: /64).
        """
        trunk = next((one for one in self._config.trunk if one.name == invite.trunk), None)
        if trunk is not None and trunk.max_concurrent_calls:
            most = trunk.max_concurrent_calls
            rule = f"trunk {trunk.name}: max_concurrent_calls = {most}"
            return [Cap("trunk", trunk.name, most, rule)]
        most = self._config.access.max_concurrent_calls or 0
        if trunk is None and most:
            source = counted(invite.source.rpartition(":")[0])
            rule = f"access: max_concurrent_calls = {most}"
            return [Cap("source", source, most, rule)]
        return []

    async def admit(self, wanted: LeaseRequest) -> str:
        """Take the leases that a call needs; return "", or the rule by which it may not begin.

        Sums that were not shared yet are shared before. Leases are renewed until :meth:`release`.
        Without an answer within ``shared.timeout_ms`` (SQLite: 5 s at least) ``shared.fail``
        decides: ``open`` returns "" and holds the leases all the same; ``closed`` returns a rule,
        and gives back what is granted later. So does a cancelled wait. Where the database refuses
        to carry it out, ``shared.fail`` decides, too, and no leases are held.
        """
        opened = self._config.shared.fail == "open"
        seconds = self._config.shared.timeout_ms / 1000
        if self._url.startswith("sqlite:"):
            seconds = max(seconds, SQLITE_SECONDS)
        day, sums, amounts = self._spent()
        holder = self.holder

        def ask(connection: Connection) -> Answer:
            shared.spend(connection, holder, day, amounts, ())
            return shared.admit(connection, holder, wanted)

        asked = self.run(ask)
        try:
            async with asyncio.timeout(seconds):
                answer = await asyncio.shield(asked)
        except asyncio.CancelledError:
            asked.add_done_callback(partial(self._late, keep=False))
            raise
        except (TimeoutError, NotReachedError) as error:
            asked.add_done_callback(partial(self._late, keep=opened))
            detail = str(error) or f"no answer within {seconds:g} s"
            self._note(detail)
            if opened:
                self._held[wanted.call_id] += leases_of(wanted)
                log.warning("shared.not_asked", call=wanted.call_id, error=detail)
                return ""
            self.refused += 1
            self._refusing = True
            return f'the database was not reached ({detail}); shared.fail = "closed"'
        except Exception as error:  # no outage: it may not take this call's values
            log.exception("shared.failed", call=wanted.call_id)
            if opened:
                return ""
            self.refused += 1
            return f'the database failed ({type(error).__name__}); shared.fail = "closed"'
        self._costs.said(day, sums)
        self._held[wanted.call_id] += answer.leases
        return self._why(answer)

    def release(self, call_id: str, ids: Iterable[str] = (), *, unused: bool = False) -> None:
        """Give back the leases of a call: these, or all without ``ids``; nothing if it has none.

        Those that count a rate (``seconds``) are left to expire in the database, unless no call was
        placed (``unused``).
        """
        chosen = set(ids)
        held = self._held.pop(call_id, [])
        back = [one for one in held if not chosen or one.id in chosen]
        if len(back) < len(held):
            self._held[call_id] = [one for one in held if one not in back]
        self._give_back([one.id for one in back if unused or not one.seconds])

    def _give_back(self, ids: list[str]) -> None:
        """Delete leases in the database, without waiting; what is not deleted expires."""
        if not ids:
            return
        # What does not arrive expires.
        self.run(partial(shared.release, ids=ids)).add_done_callback(_ignore)

    def _late(self, asked: asyncio.Future[Answer], *, keep: bool) -> None:
        """Give back leases that were granted after the deadline; nothing if ``keep``, for a call
        that has begun, or if none were granted."""
        if not asked.cancelled() and asked.exception() is None and not keep:
            self._give_back([one.id for one in asked.result().leases])

    @staticmethod
    def _why(answer: Answer) -> str:
        """Return the rule that refused a reservation, "" if none; of a budget with its sums."""
        if answer.limit is None:
            return answer.rule
        scope, limit = answer.limit.scope, answer.limit
        spent, most = answer.spent / UNITS, limit.amount / UNITS
        reserved = f", {limit.reserve / UNITS:g} to be reserved" if limit.reserve else ""
        return f"budget: {scope}: {spent:.4f} of {most:.4f}{reserved}"

    # ---- now and then

    def on_banned(self, source: str, seconds: float, proven: bool) -> None:
        """Queue a ban of a source for the other processes; dropped where very many wait.

        ``proven``: nobody else can have sent what led to it.
        """
        if self.active and len(self._banned) < QUEUE_ITEMS:
            self._banned.append((source, seconds, proven))

    async def _tick_on(self) -> None:
        """Renew leases, share sums and bans, delete old rows, at their intervals; never ends.

        Looks each second. While the database is away it is asked for the sums each second. What
        fails for another reason is logged, once until it succeeds, and keeps nothing else from
        being done.
        """
        clock = asyncio.get_running_loop().time
        steps = (
            (self._renew, RENEW_SECONDS),
            (self._share_left, TICK_SECONDS),
            (self._settle, TICK_SECONDS),
            (self._exchange_bans, BANS_SECONDS),
            (self._sweep, SWEEP_SECONDS),
        )
        done = [0.0] * len(steps)
        failing = set[str]()
        while True:
            await asyncio.sleep(TICK_SECONDS)
            for number, (step, seconds) in enumerate(steps):
                if seconds > TICK_SECONDS and clock() - done[number] < seconds:
                    continue
                done[number] = clock()
                try:
                    await step()
                    failing.discard(step.__name__)
                except NotReachedError:
                    break  # it was said
                except Exception:
                    if step.__name__ not in failing:
                        log.exception("shared.failed", what=step.__name__)
                    failing.add(step.__name__)

    async def _renew(self) -> None:
        """Renew the leases of calls in progress, before they expire."""
        held = tuple(one for each in self._held.values() for one in each if not one.seconds)
        if held:
            await self.run(partial(shared.renew, holder=self.holder, held=held))

    async def _share_left(self) -> None:
        """Share what an earlier run of this process had spent and not shared, once."""
        if (left := self._left) is not None:
            amounts = {pair: units(amount) for pair, amount in left.pairs().items()}
            await self._share(left.holder, left.day, amounts)
            self._left = None

    async def _settle(self) -> None:
        """Share what this process has spent today, and tell ``costs`` what others have.

        Raises NotReachedError; then all is shared again the next time.
        """
        day, sums, amounts = self._spent()
        watched = self._costs.watched()
        if not (self.unavailable or watched or sums):
            return
        told = await self._share(self.holder, day, amounts, watched)
        self._costs.said(day, sums)
        self._costs.others_spent(*_day_sums(told))

    async def _share(
        self,
        holder: str,
        day: str,
        amounts: Mapping[Pair, int],
        wanted: Collection[Pair] = (),
    ) -> Sums:
        """Write sums of a day, and return the wanted ones of others: see :func:`shared.spend`.

        A sum that the database does not take is logged and left out. Raises what else it raises.
        """
        spend = partial(shared.spend, holder=holder, day=day)
        try:
            return await self.run(partial(spend, amounts=amounts, wanted=wanted))
        except (exc.DataError, UnicodeError) as error:
            pairs = list(amounts)
            if not pairs:
                raise  # of what is wanted
            if len(pairs) == 1:
                text = str(getattr(error, "orig", error))
                log.error("shared.sum_dropped", sum=ascii(pairs[0]), day=day, error=text)
            else:  # one of them: the others are looked for in halves
                for half in (pairs[: len(pairs) // 2], pairs[len(pairs) // 2 :]):
                    await self._share(holder, day, {pair: amounts[pair] for pair in half})
        return await self.run(partial(spend, amounts={}, wanted=wanted))

    async def _sweep(self) -> None:
        """Delete rows that nobody needs any more."""
        await self.run(partial(shared.sweep, oldest_day=shared.day_before(KEPT_DAYS)))

    def _spent(self) -> tuple[str, dict[Pair, Decimal], dict[Pair, int]]:
        """Return the day, and sums spent today that were not shared yet: amounts, and in units."""
        sums = self._costs.pending_sums()
        return self._costs.today(), sums, {pair: units(one) for pair, one in sums.items()}

    async def _exchange_bans(self) -> None:
        """Write new bans of this process, and ban here what the database has.

        Raises NotReachedError; then the new ones are kept for the next exchange.
        """
        if not self._config.access.ban_after:
            return
        new, self._banned = self._banned, []

        def exchange(connection: Connection) -> list[Ban]:
            shared.put_bans(connection, self.holder, new)
            return shared.all_bans(connection)

        try:
            found = await self.run(exchange)
        except NotReachedError:
            self._banned = [*new, *self._banned][:QUEUE_ITEMS]
            raise
        if found:
            self._ban(found)


def units(amount: Decimal) -> int:
    """Return an amount of money in the database's integer units (1/``UNITS``)."""
    return int((amount * UNITS).to_integral_value(ROUND_HALF_EVEN))


def _day_sums(sums: Sums) -> tuple[DaySums, dict[tuple[str, str], Decimal]]:
    """Return what other processes have spent on a day, in the ledger's form, and what is reserved
    by scope and key."""
    found = DaySums(sums.day)
    for (scope, key), amount in sums.others.items():
        value = Decimal(amount) / UNITS
        if scope == Scope.DAY:
            found.total = value
        else:
            (found.routes if scope == Scope.ROUTE else found.numbers)[key] = value
    return found, {pair: Decimal(amount) / UNITS for pair, amount in sums.reserved.items()}


def _is_outage(error: Exception) -> bool:
    """Whether an error means that the database is away, not that it refuses this operation.

    Errors of data, constraints and SQL refuse, if the connection is still valid, as do those of
    Python values; all others are an outage.
    """
    if isinstance(error, exc.DBAPIError):
        refused = isinstance(error, (exc.DataError, exc.IntegrityError, exc.ProgrammingError))
        return not refused or error.connection_invalidated
    return isinstance(error, (OSError, exc.TimeoutError)) or not isinstance(
        error, (exc.StatementError, ValueError, TypeError, KeyError)
    )


def _succeed(future: asyncio.Future[Any], result: Any) -> None:
    """Set the result of a future; nothing if it was cancelled."""
    if not future.done():
        future.set_result(result)


def _fail(future: asyncio.Future[Any], error: Exception) -> None:
    """Set the exception of a future; nothing if it was cancelled."""
    if not future.done():
        future.set_exception(error)


def _ignore(future: asyncio.Future[Any]) -> None:
    """Take a future's exception, so that asyncio does not log it."""
    if not future.cancelled():
        future.exception()
