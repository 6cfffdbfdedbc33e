# SPDX-License-Identifier: GPL-2.0-or-later
"""Keeps the sums of a day in a small file, so that a restart does not forget what was spent.

Workers that share a machine have a file each, and read those of the others: so their budgets hold
for all of them together, a few seconds behind.
"""

from __future__ import annotations

import asyncio
import json
import os
import re
from pathlib import Path

import structlog

from gateway.billing.ledger import DaySums, Ledger
from gateway.tasks import background

EVERY_SECONDS = 5.0
"""Between two looks at the files; what a crash forgets at most."""
STOP_SECONDS = 5.0
MAX_FILE_BYTES = 16 * 1024 * 1024

log = structlog.get_logger("cost")


class LedgerStore:
    """Keeps ``ledger`` at ``path``; None keeps it nowhere.

    A path whose name ends in a worker's number (``cost-0.ledger``) has brothers, which are read.
    """

    def __init__(self, path: Path | None, ledger: Ledger) -> None:
        self._path = path
        self._ledger = ledger
        self._task: asyncio.Task[None] | None = None
        self._failing = False

    async def start(self) -> None:
        """Read what was kept, and begin. A file that cannot be read is left behind, and said."""
        if self._path is None:
            return
        try:
            kept = await asyncio.to_thread(read_sums, self._path)
            if kept is not None:
                self._ledger.restore(kept)
        except (OSError, ValueError) as error:
            log.error("cost.state_unreadable", file=str(self._path), error=str(error))
        await self._look()
        self._task = background(self._run, "cost ledger")

    async def stop(self) -> None:
        """Keep the last sums; within ``STOP_SECONDS``."""
        task, self._task = self._task, None
        if task is None:
            return
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        try:
            async with asyncio.timeout(STOP_SECONDS):
                await self._look()
        except TimeoutError:
            log.error("cost.state_write_failed", file=str(self._path))

    async def _run(self) -> None:
        while True:
            await asyncio.sleep(EVERY_SECONDS)
            await self._look()

    async def _look(self) -> None:
        assert self._path is not None
        ledger = self._ledger
        text = json.dumps(ledger.own.as_json()) if ledger.changed else None
        ledger.changed = False
        try:
            ledger.others = await asyncio.to_thread(_exchange, self._path, text)
            self._failing = False
        except OSError as error:
            ledger.changed = ledger.changed or text is not None
            if not self._failing:
                log.error("cost.state_write_failed", file=str(self._path), error=str(error))
            self._failing = True


def read_sums(path: Path) -> DaySums | None:
    """The sums in a file; None when there is none. Raises OSError and ValueError."""
    try:
        with path.open("rb") as file:
            raw = file.read(MAX_FILE_BYTES)
    except FileNotFoundError:
        return None
    return DaySums.from_json(json.loads(raw))


def brothers_of(path: Path) -> list[Path]:
    """The files of the other workers."""
    named = re.fullmatch(r"(.+)-\d+", path.stem)
    if named is None:
        return []
    shape = re.compile(re.escape(named[1]) + r"-\d+" + re.escape(path.suffix))
    return sorted(
        file for file in path.parent.iterdir() if file != path and shape.fullmatch(file.name)
    )


def _exchange(path: Path, text: str | None) -> tuple[DaySums, ...]:
    """Write our sums, if there is something new, and read the others'."""
    if text is not None:
        path.parent.mkdir(parents=True, exist_ok=True)
        # Renamed into place, so that the others read whole files only.
        partial = path.with_name(f".{path.name}.part")
        partial.write_text(text + "\n", encoding="utf-8")
        partial.chmod(0o600)  # it has telephone numbers in it
        os.replace(partial, path)  # noqa: PTH105
    found: list[DaySums] = []
    for file in brothers_of(path) if path.parent.is_dir() else []:
        try:
            sums = read_sums(file)
        except (OSError, ValueError):
            continue  # its owner says so
        if sums is not None:
            found.append(sums)
    return tuple(found)
