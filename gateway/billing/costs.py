# SPDX-License-Identifier: GPL-2.0-or-later
"""The costs of a process: accounts for its calls, and the sums of the day on the disk."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from typing import Any
from urllib.parse import urlsplit
from zoneinfo import ZoneInfo

import structlog

from gateway.billing.account import Account, Accounts, Reached, budgets_of, transcriber_of
from gateway.billing.ledger import Ledger, LedgerStore
from gateway.billing.prices import load_prices
from gateway.config import Config
from gateway.dialplan import Route

log = structlog.get_logger("cost")


class Costs:
    """The accounts of calls that are up, and the sums of the day.

    Raises ConfigError for a price file with mistakes.
    """

    def __init__(self, config: Config) -> None:
        self._config = config
        name = config.cost.timezone
        self._zone = ZoneInfo(name) if name else None
        ledger = Ledger()
        self._accounts = Accounts(load_prices(config.cost.prices), ledger, self._today, _unknown)
        self._keeper = LedgerStore(config.ledger, ledger)

    async def start(self) -> None:
        """Go on with what was spent today before a restart."""
        await self._keeper.start()

    async def stop(self) -> None:
        """Keep what was spent."""
        await self._keeper.stop()

    def exhausted(self, route: Route, number: str) -> Reached | None:
        """The budget that leaves nothing for another call, if one does."""
        return self._accounts.exhausted(route.name, number, budgets_of(self._config, route))

    def open(
        self, route: Route, number: str, *, model: str, url: str, session: Mapping[str, Any]
    ) -> Account:
        """Open the account of a call that begins now, with the session object that is sent."""
        return self._accounts.open(
            model=model,
            host=urlsplit(url).hostname or "",
            transcriber=transcriber_of(session),
            route=route.name,
            number=number,
            budgets=budgets_of(self._config, route),
        )

    def as_json(self) -> dict[str, Any]:
        """Today's sums."""
        return self._accounts.as_json()

    def _today(self) -> str:
        return datetime.now().astimezone(self._zone).date().isoformat()


def _unknown(model: str) -> None:
    log.warning(
        "cost.unknown_model",
        model=model,
        advice="what it uses is counted, its cost is null; cost.prices can name it",
    )
