# SPDX-License-Identifier: GPL-2.0-or-later
"""``gateway top`` without a terminal: what it shows and asks, driven by keys."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime
from typing import Any

import pytest
from textual.pilot import Pilot
from textual.widgets import DataTable, Input, Static

from gateway.api.client import NoAnswerError, RefusedError
from gateway.cli import top
from gateway.cli.top import Question, Top, bar, clock

HOSTILE = "[bold]\x1b[2J<b>"


def call(name: str, **fields: Any) -> dict[str, Any]:
    now = datetime.now(UTC).isoformat()
    return {
        "id": name,
        "state": "talking",
        "from_number": "+49301",
        "to_number": "100",
        "route": "reception",
        "invited_at": now,
        "cost": 0.0321,
        "interruptions": 2,
        "response_p50_ms": 612.0,
        **fields,
    }


class Gateway:
    """A gateway whose calls and words are a test's."""

    def __init__(self) -> None:
        self.calls = [call("two", from_number=HOSTILE), call("one")]
        self.words: list[dict[str, Any]] = [
            {"at_ms": 50.0, "who": "agent", "text": "Good morning. How", "heard": "Good morning."},
            {"at_ms": 900.0, "who": "caller", "text": HOSTILE},
        ]
        self.marks: list[dict[str, Any]] = []
        self.asked: list[tuple[str, dict[str, Any]]] = []
        self.refusal: Exception | None = None

    async def ask(self, command: str, **fields: Any) -> dict[str, Any]:
        if self.refusal is not None:
            raise self.refusal
        match command:
            case "calls":
                return {"calls": self.calls}
            case "levels":
                return {"levels": {"one": [-20.0, None]}}
            case "status":
                trunks = [{"name": "a", "state": "failed"}]
                return {"max_calls": 20, "trunks": trunks, "cost": {"total": "1.5"}}
            case "progress":
                told = {"spoken": 0, "transcript": self.words, "timeline": self.marks}
                return {"call": {**told, "place": 7, "destinations": ["front desk"]}}
        self.asked.append((command, fields))
        if command == "dtmf":
            raise RefusedError("not now")
        return {}


def text_of(app: Top, where: str) -> str:
    return str(app.screen_stack[0].query_one(where, Static).render())


async def press(pilot: Pilot[None], *keys: str) -> None:
    """Press keys. Pilot's own way waits for widgets that are being removed, such as toasts."""
    for key in keys:
        pilot.app.simulate_key(key)
        await asyncio.sleep(0.02)


async def until(condition: Callable[[], bool]) -> None:
    for _ in range(1000):
        if condition():
            return
        await asyncio.sleep(0.01)
    raise AssertionError("never")


Body = Callable[[Top, Gateway, Pilot[None]], Awaitable[None]]


async def shown(body: Body, monkeypatch: pytest.MonkeyPatch) -> None:
    """Run a screen of a gateway."""
    monkeypatch.setattr(top, "REFRESH_SECONDS", 0.02)
    gateway = Gateway()
    app = Top(gateway.ask)
    async with app.run_test(size=(120, 30)) as pilot:
        await until(lambda: app.query_one(DataTable).row_count == 2)
        await body(app, gateway, pilot)


async def test_calls_and_words_are_shown_as_text(monkeypatch: pytest.MonkeyPatch) -> None:
    async def body(app: Top, gateway: Gateway, pilot: Pilot[None]) -> None:
        table = app.query_one(DataTable)
        row = [str(cell) for cell in table.get_row("one")]
        assert row[:4] == ["talking", "+49301", "100", "reception"]
        assert row[5:] == ["█████···", "········", "2", "612 ms", "0.0321"]
        assert str(table.get_row("two")[1]) == "[bold]\\u001b[2J<b>"
        await until(lambda: "How" in text_of(app, "#words"))
        words = text_of(app, "#words")
        assert "Good morning. How ✂" in words
        assert "[bold]\\u001b[2J<b>" in words
        await until(lambda: "1.50" in text_of(app, "#head"))
        assert "2 of 20 calls · 0 of 1 trunks up · 1.50" in text_of(app, "#head")
        gateway.calls = [call("three")]
        await until(lambda: [str(key.value) for key in table.rows] == ["three"])
        gateway.refusal = NoAnswerError("no gateway answers")
        await until(lambda: "no gateway answers" in text_of(app, "#head"))

    await shown(body, monkeypatch)


async def test_keys_act_on_the_call_under_the_cursor(monkeypatch: pytest.MonkeyPatch) -> None:
    async def body(app: Top, gateway: Gateway, pilot: Pilot[None]) -> None:
        await press(pilot, "down")
        await until(lambda: app._shown == "two" and bool(app._destinations))

        async def answer(key: str, *keys: str) -> None:
            await press(pilot, key)
            await until(lambda: isinstance(app.screen, Question) and isinstance(app.focused, Input))
            await press(pilot, *keys)
            await until(lambda: not isinstance(app.screen, Question))

        await press(pilot, "o")
        await press(pilot, "m")
        await until(lambda: len(gateway.asked) == 2)
        gateway.marks = [{"event": "holding"}, {"event": "muted"}]
        await until(lambda: "muted" in app._marks)
        await press(pilot, "o", "m", "x")
        await until(lambda: len(gateway.asked) == 5)
        await answer("s", "h", "i", "enter")
        await answer("t", "enter")
        await answer("d", "1", "enter")
        await answer("h", "escape")
        await answer("h", "n", "enter")
        await answer("h", "y", "enter")
        await until(lambda: len(gateway.asked) == 9)
        assert gateway.asked == [
            ("hold", {"call": "two"}),
            ("mute", {"call": "two"}),
            ("unhold", {"call": "two"}),
            ("unmute", {"call": "two"}),
            ("cancel", {"call": "two"}),
            ("say", {"call": "two", "text": "hi"}),
            ("transfer", {"call": "two", "destination": "front desk"}),
            ("dtmf", {"call": "two", "digits": "1"}),
            ("hangup", {"call": "two"}),
        ]
        gateway.calls = []
        await until(lambda: "No call is in progress" in text_of(app, "#words"))
        await press(pilot, "h", "q")  # a question would take the second key as its answer
        await until(lambda: app._exit)

    await shown(body, monkeypatch)


def test_figures() -> None:
    assert [bar(level) for level in (None, -54.0, -27.0, 0.0)] == [
        "········",
        "········",
        "████····",
        "████████",
    ]
    assert (clock(61.9), clock(-1)) == ("1:01", "0:00")
