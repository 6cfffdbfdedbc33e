# SPDX-License-Identifier: GPL-2.0-or-later
"""Cost of calls: the account and budgets of each call, and what all spend on a day.

Usage is what servers report; prices come from files (:mod:`gateway.billing.prices`). Pure but for
:mod:`gateway.billing.ledger`, which keeps the sums of a day on the disk.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import datetime
from decimal import Decimal
from enum import StrEnum
from typing import Any, TypeVar
from urllib.parse import urlsplit
from weakref import WeakSet
from zoneinfo import ZoneInfo

import structlog

from gateway.billing.ledger import DaySums, Ledger, LedgerStore, Pair
from gateway.billing.prices import (
    Price,
    PriceBook,
    Usage,
    backend_usage_of,
    load_prices,
    transcription_usage_of,
    usage_of,
)
from gateway.call.plan import BudgetPlan
from gateway.config import Config
from gateway.dialplan import Route
from gateway.realtime.events import (
    DecisionMade,
    InputTranscribed,
    ResponseDone,
    ServerEvent,
    SessionUsage,
)
from gateway.text import money


class Scope(StrEnum):
    """What a budget limits."""

    CALL = "call"
    NUMBER = "number"
    """The calls of one calling number on one day."""
    ROUTE = "route"
    """The calls of one route on one day."""
    DAY = "day"
    """The calls of one day."""


class Level(StrEnum):
    """Thresholds of a budget."""

    WARN = "warn"
    LIMIT = "limit"


@dataclass(frozen=True, slots=True)
class Reached:
    """A budget that is spent (``LIMIT``), or has reached its warning threshold (``WARN``)."""

    level: Level
    scope: Scope
    spent: Decimal
    limit: Decimal

    def __str__(self) -> str:
        return f"{self.scope.value}: {money(self.spent)} of {money(self.limit)}"


@dataclass(frozen=True, slots=True)
class Budgets:
    """Limits in the currency of the prices; None is no limit."""

    call: Decimal | None = None
    number: Decimal | None = None
    route: Decimal | None = None
    day: Decimal | None = None
    warning_threshold: Decimal = Decimal("0.8")
    """Fraction of a limit at which a call is warned; 1 never warns."""
    reserve: Decimal = Decimal(0)
    """Amount set aside for the next response of each call, where processes share a database."""

    def limit(self, scope: Scope) -> Decimal | None:
        """Return the limit of one scope."""
        found: Decimal | None = getattr(self, scope.value)
        return found


class Watch:
    """Budgets of one call, with the levels that were reported: each level is reported once."""

    def __init__(self, budgets: Budgets) -> None:
        self.budgets = budgets
        self._told: set[Level] = set()

    def look(self, spent: dict[Scope, Decimal]) -> Reached | None:
        """Return the budget that the amounts ``spent``, by scope, have newly reached; None if none
        has.

        A limit goes before a warning, and scopes in their order. Each level is reported once, for
        whichever scope comes first; after a limit nothing more.
        """
        for level in (Level.LIMIT, Level.WARN):
            if level in self._told or Level.LIMIT in self._told:
                continue
            for scope, amount in spent.items():
                limit = self.budgets.limit(scope)
                if limit is None:
                    continue
                if amount >= (
                    limit if level is Level.LIMIT else limit * self.budgets.warning_threshold
                ):
                    self._told.add(level)
                    return Reached(level, scope, amount, limit)
        return None


_T = TypeVar("_T")

TINY = Decimal(1) / 10**9
"""Taken off reserved amounts: a budget that they just fill is not spent yet."""


def budgets_of(config: Config, route: Route) -> Budgets:
    """Return the budgets of a call on ``route``: its own, or else those of ``[cost.budget]``."""
    base, own = config.cost.budget, route.budget
    return Budgets(
        call=_limit(_either(own.per_call, base.per_call)),
        number=_limit(_either(own.per_caller, base.per_caller)),
        route=_limit(own.per_day or 0.0),
        day=_limit(base.per_day),
        warning_threshold=Decimal(str(_either(own.warning_threshold, base.warning_threshold))),
        reserve=Decimal(str(base.reserve)),
    )


def budget_plan(config: Config, route: Route) -> BudgetPlan:
    """Return the warning, goodbye and transfer of a call's budgets."""
    base, own = config.cost.budget, route.budget
    return BudgetPlan(
        warning_message=_either(own.warning_message, base.warning_message),
        warning_response=_either(own.warning_response, base.warning_response),
        goodbye=_either(own.goodbye, base.goodbye),
        transfer_to=own.transfer_to or "",
    )


def transcriber_of(session: Any) -> str:
    """Return ``audio.input.transcription.model`` of a session object; "" without one."""
    for key in ("audio", "input", "transcription", "model"):
        session = session.get(key) if isinstance(session, Mapping) else None
    return session if isinstance(session, str) else ""


def _limit(amount: float) -> Decimal | None:
    """Return a limit of the configuration as Decimal; None for 0, which is no limit."""
    return Decimal(str(amount)) if amount else None


def _either(first: _T | None, second: _T) -> _T:
    """Return ``first``, or ``second`` if that is None."""
    return second if first is None else first


class Accounts:
    """Opens an account for each call.

    Args:
        ledger: gets what each account spends.
        today: returns the ISO date of the day that what is spent now belongs to.
        on_unknown: called once for each model that has no price, with its name.
    """

    def __init__(
        self,
        prices: PriceBook,
        ledger: Ledger,
        today: Callable[[], str],
        on_unknown: Callable[[str], None] = lambda _model: None,
    ) -> None:
        self.prices = prices
        self.ledger = ledger
        self.today = today
        self._on_unknown = on_unknown
        self._said: set[str] = set()
        self.live: WeakSet[Account] = WeakSet()

    def open(
        self, *, model: str, host: str, transcriber: str, route: str, number: str, budgets: Budgets
    ) -> Account:
        """Open the account of a call that begins now, and count the call in today's ledger."""
        self.ledger.begin(self.today())
        account = Account(self, model, host, transcriber, route, number, budgets)
        self.live.add(account)
        return account

    def exhausted(self, route: str, number: str, budgets: Budgets) -> Reached | None:
        """Return the budget of caller, route or day that is spent before a call begins; None if
        none is. No warnings, and nothing is noted."""
        return Watch(Budgets(None, budgets.number, budgets.route, budgets.day, Decimal(2))).look(
            self.spent(route, number)
        )

    def spent(self, route: str, number: str) -> dict[Scope, Decimal]:
        """Return the amounts spent today, in all processes, by this number, by this route and in
        all."""
        day, keys = self.today(), {Scope.NUMBER: number, Scope.ROUTE: route, Scope.DAY: ""}
        return {scope: self.ledger.spent(day, (scope.value, key)) for scope, key in keys.items()}

    def as_json(self) -> dict[str, Any]:
        """Return today's sums of this process, and the total with those that share its budgets."""
        day = self.today()
        sums = self.ledger.own.as_json() if self.ledger.own.day == day else {"day": day}
        sums.pop("numbers", None)
        shared = self.ledger.spent(day, (Scope.DAY.value, ""))
        return {"currency": self.prices.currency, **sums, "shared_total": str(shared)}

    def unknown(self, model: str) -> None:
        """Report a model without a price, once, and 100 models at most."""
        if model not in self._said and len(self._said) < 100:
            self._said.add(model)
            self._on_unknown(model)


class Account:
    """Usage and cost of one call.

    Args:
        model: model of its session, at the realtime server ``host``.
        transcriber: model that transcribes the caller; "" without one.
        number: calling number, whose budget of the day applies.
    """

    def __init__(
        self,
        accounts: Accounts,
        model: str,
        host: str,
        transcriber: str,
        route: str,
        number: str,
        budgets: Budgets,
    ) -> None:
        self.total = Decimal(0)
        """Sum of the priced usage of the call."""
        self._accounts = accounts
        self._route, self._number = route, number
        self._watch = Watch(budgets)
        self._used, self._heard = Usage(), Usage()
        self._server = ("", "", "")
        self.use(model, host, transcriber)
        self._sessions: dict[str, float] = {}
        """Seconds of Live sessions, by their ids."""
        self._responses = self._transcriptions = self._without_usage = 0
        self._unpriced: list[str] = []
        self._fresh = False
        """Whether the call has spent something since the last :meth:`look_again`."""
        self.on_reached: Callable[[Reached], None] = lambda _reached: None
        """Called with a budget that is reached by what other calls spend."""

    def use(self, model: str, host: str, transcriber: str) -> None:
        """Use the prices of another session, of ``model`` at ``host``, from now on; nothing if it
        has the same model, host and transcriber."""
        if (server := (model, host, transcriber)) == self._server:
            return
        self._server = server
        self._model, self._host, self._transcriber = server
        self._price = self._price_of(model)
        self._transcribing = self._price_of(transcriber) if transcriber else None

    @property
    def pairs(self) -> dict[Scope, Pair]:
        """Sums of the day that the call's budgets limit, by scope."""
        keys = {Scope.NUMBER: self._number, Scope.ROUTE: self._route, Scope.DAY: ""}
        limit = self._watch.budgets.limit
        return {
            scope: (scope.value, key) for scope, key in keys.items() if limit(scope) is not None
        }

    def look_again(self, reserved: Mapping[Pair, Decimal]) -> None:
        """Report, by :attr:`on_reached`, a budget that is reached because of what other calls have
        spent.

        Amounts ``reserved`` for all calls count in a call that has spent something since the last
        look, if it has a reserve itself: its next response must be affordable, too.
        """
        spent = self._accounts.spent(self._route, self._number)
        if self._fresh and self._watch.budgets.reserve:
            for scope, pair in self.pairs.items():
                spent[scope] += max(reserved.get(pair, Decimal(0)) - TINY, Decimal(0))
        self._fresh = False
        if (reached := self._watch.look(spent)) is not None:
            self.on_reached(reached)

    def take(self, event: ServerEvent) -> Reached | None:
        """Count the usage that an event reports; return the budget that it has newly reached, or
        None.

        Events: ``response.done``, a transcription, the seconds of a Live session, a Live session's
        ``decision.event``. A response without usage is only counted, as one of unknown cost if it
        was completed or incomplete.
        """
        if isinstance(event, ResponseDone):
            self._responses += 1
            if event.usage is None:
                # One that failed or was cancelled before it began is not billed.
                self._without_usage += event.status in ("completed", "incomplete")
                return None
            usage = (backend_usage_of if event.backend else usage_of)(event.usage)
            self._used += usage
            price = self._price_of(event.backend) if event.backend else self._price
            return self._spend(event.backend or self._model, price, usage)
        if isinstance(event, InputTranscribed) and event.usage is not None:
            usage = transcription_usage_of(event.usage)
            self._transcriptions += 1
            self._heard += usage
            return self._spend(self._transcriber or "transcription", self._transcribing, usage)
        if isinstance(event, SessionUsage):
            return self._take_seconds(event)
        if isinstance(event, DecisionMade) and event.usage is not None:
            usage = backend_usage_of(event.usage)
            self._used += usage
            return self._spend(event.model, self._price_of(event.model), usage)
        return None

    def _price_of(self, model: str) -> Price | None:
        """Return the price of a model at the host of the session; None without one."""
        return self._accounts.prices.price(model, self._host)

    def _take_seconds(self, event: SessionUsage) -> Reached | None:
        """Count the seconds of a Live session since its last report, which has their sum; nothing
        if there are no more. Returns a budget that is reached by it."""
        more = event.seconds - self._sessions.get(event.session_id, 0.0)
        if more <= 0:
            return None
        self._sessions[event.session_id] = event.seconds
        return self._spend(event.model, self._price_of(event.model), Usage(seconds=more))

    def _spend(self, model: str, price: Price | None, usage: Usage) -> Reached | None:
        """Add the cost of usage to call, route, number and day; return a budget that is newly
        reached by it.

        Usage without a price is counted as such, and the model reported; nothing if it has neither
        tokens nor seconds.
        """
        accounts = self._accounts
        cost = None if price is None else price.of(usage)
        if cost is None and not (usage.total or usage.seconds):
            return None
        accounts.ledger.add(accounts.today(), self._route, self._number, cost)
        if cost is None:
            accounts.unknown(model)
            if model not in self._unpriced:
                self._unpriced.append(model)
            return None
        self.total += cost
        self._fresh = True
        spent = {Scope.CALL: self.total, **accounts.spent(self._route, self._number)}
        return self._watch.look(spent)

    def as_json(self) -> dict[str, Any]:
        """Return ``cost`` of the call's record; ``total`` is null if any usage has no price."""
        told: dict[str, Any] = {
            "currency": self._accounts.prices.currency,
            "total": None if self._unpriced or self._without_usage else exact(self.total),
            "priced": exact(self.total),
            "model": self._model,
            "responses": self._responses,
            "responses_without_usage": self._without_usage,
            "tokens": self._used.as_json(),
            "unpriced": list(self._unpriced),
        }
        if self._sessions:
            told["session_seconds"] = round(sum(self._sessions.values()), 1)
        if self._transcriber or self._transcriptions:
            told["transcription"] = {
                "model": self._transcriber,
                "turns": self._transcriptions,
                "seconds": round(self._heard.seconds, 3),
                "tokens": self._heard.as_json(),
            }
        return told


def exact(amount: Decimal) -> float:
    """Return an amount as a JSON number, with 12 decimal places."""
    return float(round(amount, 12))


log = structlog.get_logger("cost")


class Costs:
    """Accounts of the calls in progress, and what was spent today, by the configuration.

    Raises ConfigError for a price file with mistakes.
    """

    def __init__(self, config: Config) -> None:
        self._config = config
        name = config.cost.timezone
        self._zone = ZoneInfo(name) if name else None
        ledger = Ledger()
        self._accounts = Accounts(load_prices(config.cost.prices), ledger, self.today, _unknown)
        self._keeper = LedgerStore(
            config.ledger, ledger, alone=config.records.database_url is not None
        )

    async def start(self) -> None:
        """Read what was spent today before a restart, and begin to write it every few seconds."""
        await self._keeper.start()

    async def stop(self) -> None:
        """Write what was spent to the disk."""
        await self._keeper.stop()

    def use(self, config: Config) -> None:
        """Take prices and budgets of a new configuration: for calls to come, and prices of sessions
        to come. Raises ConfigError, and then changes nothing."""
        self._accounts.prices = load_prices(config.cost.prices)
        self._config = config

    def exhausted(self, route: Route, number: str) -> Reached | None:
        """Return the budget of caller, route or day that is spent before a call begins, if any."""
        return self._accounts.exhausted(route.name, number, budgets_of(self._config, route))

    def open(
        self, route: Route, number: str, *, model: str, url: str, session: Mapping[str, Any]
    ) -> Account:
        """Open the account of a call that begins now; ``session`` is its session object."""
        return self._accounts.open(
            model=model,
            host=urlsplit(url).hostname or "",
            transcriber=transcriber_of(session),
            route=route.name,
            number=number,
            budgets=budgets_of(self._config, route),
        )

    def as_json(self) -> dict[str, Any]:
        """Return today's sums, for ``gateway status``."""
        return self._accounts.as_json()

    # ---- with other processes

    @property
    def holder(self) -> str:
        """Name of this process in the shared database."""
        return self._keeper.holder

    @property
    def left(self) -> DaySums | None:
        """Sums of the process before this one, which may not be in the shared database yet."""
        return self._keeper.left

    def budgets(self, route: Route) -> Budgets:
        """Return the budgets of a call on ``route``."""
        return budgets_of(self._config, route)

    def today(self) -> str:
        """Return the ISO date of the day that what is spent now belongs to."""
        return datetime.now().astimezone(self._zone).date().isoformat()

    def pending_sums(self) -> dict[Pair, Decimal]:
        """Return today's sums of this process that have changed since they were last shared."""
        ledger, day = self._accounts.ledger, self.today()
        return {pair: ledger.own_sum(day, pair) for pair in ledger.touched}

    def said(self, day: str, sums: Mapping[Pair, Decimal]) -> None:
        """Note that the shared database has these sums of this process; one that has changed since
        stays in :meth:`pending_sums`."""
        ledger = self._accounts.ledger
        for pair, amount in sums.items():
            if ledger.own_sum(day, pair) == amount:
                ledger.touched.discard(pair)

    def watched(self) -> set[Pair]:
        """Return the scopes and keys that budgets of calls in progress limit."""
        return {pair for account in self._accounts.live for pair in account.pairs.values()}

    def others_spent(self, sums: DaySums, reserved: Mapping[Pair, Decimal]) -> None:
        """Take what other processes have spent, in place of what they had before, and report to
        calls in progress budgets that this has reached.

        ``reserved`` has the amounts set aside for the next responses of all calls.
        """
        self._accounts.ledger.others = (sums,)
        for account in tuple(self._accounts.live):
            account.look_again(reserved)


def _unknown(model: str) -> None:
    """Log a model that has no price."""
    log.warning(
        "cost.unknown_model",
        model=model,
        advice="what it uses is counted, its cost is null; cost.prices can name it",
    )
