# SPDX-License-Identifier: GPL-2.0-or-later
"""The thread that asks the database that processes share."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace
from typing import Any, cast

import pytest

from gateway.app.shared_state import SharedState


async def test_a_defect_leaves_nobody_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    carry_out, defects = SharedState._carry_out, [ValueError("defect")]

    def broken(state: SharedState, batch: Any) -> None:
        if defects:
            raise defects.pop()
        carry_out(state, batch)

    monkeypatch.setattr(SharedState, "_carry_out", broken)
    config = SimpleNamespace(records=SimpleNamespace(database_url=None))
    state = SharedState(cast(Any, config), cast(Any, None))
    async with asyncio.timeout(30):
        with pytest.raises(ValueError, match="defect"):
            await state.run(lambda _connection: "first")
        assert await state.run(lambda _connection: "second") == "second"
        await state.stop()
