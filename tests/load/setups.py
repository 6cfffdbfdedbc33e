# SPDX-License-Identifier: GPL-2.0-or-later
"""Set-up time and calls per second: brief calls at rising rates, each with a session of its own."""

from __future__ import annotations

import time
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

from . import proc, subject
from .figures import NS, Spread
from .level import Say, wait_for
from .worker import Worker

RATES = (10, 30, 60, 100, 150, 200)
QUICK_RATES = (30,)
SECONDS = 5.0
HOLD_MS = (300, 500)


@dataclass(slots=True)
class Rate:
    """Brief calls at one rate: INVITE to 200 with ``session.updated`` in between, ms."""

    per_second: int
    calls: int
    answered: int
    failed: int
    reached: float
    """Calls a second really placed: below ``per_second`` when the machine had no more."""
    setup: Spread
    cpu_ms_per_call: float


def run(folder: Path, most: int, quick: bool, say: Say) -> list[Rate]:
    """Each rate in turn, until one fails; a library of few calls gets the lowest only."""
    folder.mkdir(parents=True, exist_ok=True)
    found: list[Rate] = []
    rates = QUICK_RATES if quick else RATES
    with ExitStack() as stack:
        endpoint = stack.enter_context(Worker.python("endpoint", "tests.load.endpoint", folder))
        phone = stack.enter_context(Worker.python("phone", "tests.load.phone", folder))
        port = endpoint.ask("where")["port"]
        gateway = stack.enter_context(subject.gateway(folder, port, min(most, 1000)))
        for rate in rates if most > 100 else (5,):
            say(f"set-up: {rate} calls a second")
            found.append(_at(rate, gateway, phone))
            if found[-1].failed:
                break
    return found


def _at(rate: int, gateway: subject.Gateway, phone: Worker) -> Rate:
    calls = round(rate * SECONDS)
    before = phone.ask("count")["outcomes"]
    phone.ask("take")
    cpu = proc.cpu_ms(gateway.pid)
    started = time.monotonic()
    phone.ask(
        "knock",
        gateway=list(gateway.address),
        user="bulk",
        rate=rate,
        count=calls,
        hold_ms=list(HOLD_MS),
        after_answer=True,
    )
    wait_for("all calls placed", lambda: phone.ask("count")["to_come"] == 0, 60)
    took = time.monotonic() - started
    wait_for("all calls over", lambda: phone.ask("count")["live"] == 0, 60)
    cpu = proc.cpu_ms(gateway.pid) - cpu
    after = phone.ask("count")["outcomes"]
    setup = Spread.of(value / NS for value in phone.ask("take")["setups_ns"])
    good = after.get("remote_hangup", 0) - before.get("remote_hangup", 0)
    return Rate(
        per_second=rate,
        calls=calls,
        answered=good,
        failed=calls - good,
        reached=round(calls / took, 1),
        setup=setup,
        cpu_ms_per_call=round(cpu / calls, 1),
    )
