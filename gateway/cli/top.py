# SPDX-License-Identifier: GPL-2.0-or-later
"""``gateway top``: live calls in a terminal, with levels, words and the operator's keys."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, ClassVar

import click
from rich.text import Text
from textual import work
from textual.app import App, ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import Vertical, VerticalScroll
from textual.screen import ModalScreen
from textual.widgets import DataTable, Footer, Input, Label, Static

from gateway.api.client import NoAnswerError, RefusedError, ask, socket_of, sockets_at
from gateway.cli import CONFIG, SOCKET, examples
from gateway.text import printable

Ask = Callable[..., Awaitable[dict[str, Any]]]
"""Asks the gateway: a command of the API's client and its fields."""

REFRESH_SECONDS = 0.5
STATUS_SECONDS = 3.0
COLUMNS = ("state", "from", "to", "route", "time", "caller", "agent", "cuts", "wait", "cost")
WORDS = 60
"""Entries of a transcript that are shown."""
_BAR = 8
_LEAST_DBFS = -54.0
_COLOURS = {"talking": "green", "held": "yellow", "ringing": "yellow", "transferring": "yellow"}
_WHO = {"caller": ("caller", "bright_blue"), "agent": ("agent ", "cyan")}


def bar(dbfs: float | None) -> str:
    """Return a level (dBFS, None for silence) as a bar of 8 characters; full at 0 dBFS."""
    part = 0.0 if dbfs is None else min(1.0, max(0.0, 1 - dbfs / _LEAST_DBFS))
    return ("█" * round(part * _BAR)).ljust(_BAR, "·")


def clock(seconds: float) -> str:
    """Return seconds as ``m:ss``."""
    minutes, rest = divmod(max(0, int(seconds)), 60)
    return f"{minutes}:{rest:02d}"


class Question(ModalScreen[str | None]):
    """Dialog that asks for a line of text; its result is None on Escape.

    Args:
        told: the question.
        value: text to begin with.
    """

    BINDINGS: ClassVar[list[BindingType]] = [Binding("escape", "dismiss_none", "Cancel")]
    CSS = """
    Question { align: center middle; }
    Question > Vertical { width: 60; height: auto; border: round $primary; padding: 1 2; }
    """

    def __init__(self, told: str, value: str = "") -> None:
        super().__init__()
        self._told, self._value = told, value

    def compose(self) -> ComposeResult:
        with Vertical():
            yield Label(Text(printable(self._told)))
            yield Input(self._value)

    def on_input_submitted(self, event: Input.Submitted) -> None:
        self.dismiss(event.value)

    def action_dismiss_none(self) -> None:
        self.dismiss(None)


class Top(App[None]):
    """The application: a table of calls, and the transcript of the selected one.

    Args:
        ask: asks the gateway.
    """

    TITLE = "gateway top"
    ENABLE_COMMAND_PALETTE = False
    CSS = """
    #head { padding: 0 1; background: $panel; }
    VerticalScroll { height: 2fr; border-top: solid $primary; padding: 0 1; }
    DataTable { height: 3fr; }
    """
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("q", "quit", "Quit"),
        Binding("h", "hang_up", "Hang up"),
        Binding("t", "transfer", "Transfer"),
        Binding("o", "hold", "Hold"),
        Binding("m", "mute", "Mute"),
        Binding("s", "say", "Say"),
        Binding("d", "dtmf", "Keys"),
        Binding("x", "cancel", "Stop speaking"),
    ]

    def __init__(self, ask: Ask) -> None:
        super().__init__()
        self._ask = ask
        self._busy = False
        self._shown = ""
        """The call whose words are shown."""
        self._place = self._spoken = 0
        self._entries: dict[int, dict[str, Any]] = {}
        self._marks: list[str] = []
        self._destinations: list[str] = []
        self._status: dict[str, Any] = {}
        self._calls: list[dict[str, Any]] = []
        self._head, self._words = Static(id="head"), Static(id="words")
        self._frame = VerticalScroll(self._words, can_focus=False)
        self._table: DataTable[Text] = DataTable(cursor_type="row", zebra_stripes=True)

    def compose(self) -> ComposeResult:
        for name in COLUMNS:
            self._table.add_column(name, key=name)
        yield self._head
        yield self._table
        yield self._frame
        yield Footer()

    def on_mount(self) -> None:
        self.set_interval(REFRESH_SECONDS, self._look)
        self.set_interval(STATUS_SECONDS, self._refresh_status)
        self._refresh_status()
        self._look()

    # ---- what is shown

    def _look(self) -> None:
        if not self._busy:  # a gateway that is slow is not asked more often than it answers
            self._busy = True
            self._refresh()

    @work(group="calls")
    async def _refresh(self) -> None:
        """Fetch calls, levels and status, and show them."""
        try:
            answer = await self._ask("calls", live="true", limit=500)
            levels = (await self._ask("levels"))["levels"]
            if not self.screen_stack:
                return  # it is being left
            self._calls = list(reversed(answer["calls"]))
            self._show_calls(levels)
            await self._show_words()
            if self.screen_stack:
                self._show_head("")
        except (NoAnswerError, RefusedError, OSError) as error:
            self._show_head(str(error))
        finally:
            self._busy = False

    @work(group="status", exclusive=True)
    async def _refresh_status(self) -> None:
        try:
            self._status = await self._ask("status")
        except (NoAnswerError, RefusedError, OSError):
            return  # said with the next look at the calls

    def _show_head(self, wrong: str) -> None:
        """Show trunks, cost and errors in the first line."""
        status = self._status
        trunks = status.get("trunks", [])
        up = sum(one["state"] in ("registered", "static") for one in trunks)
        cost = status.get("cost") or {}
        parts = [
            f"{len(self._calls)} of {status.get('max_calls', '?')} calls",
            f"{up} of {len(trunks)} trunks up" if trunks else "no trunks",
            f"{float(cost.get('total', 0)):.2f} {cost.get('currency', '')} today",
        ]
        wrong_parts = (status.get("health") or {}).get("problems") or {}
        problems = [f"{name}: {text}" for name, text in wrong_parts.items()]
        if status.get("draining"):
            problems.append("draining")
        text = Text(" · ".join(parts))
        for one in (*problems, *((wrong,) if wrong else ())):
            text.append(f"  {printable(one)}", "bold red")
        self._head.update(text)

    def _show_calls(self, levels: dict[str, Any]) -> None:
        table = self._table
        there = {str(key.value) for key in table.rows}
        current = {call["id"]: call for call in self._calls}
        for gone in there - current.keys():
            table.remove_row(gone)
        for name, call in current.items():
            cells = _cells(call, levels.get(name) or (None, None))
            if name not in there:
                table.add_row(*cells, key=name)
                continue
            for column, cell in zip(COLUMNS, cells, strict=True):
                if table.get_cell(name, column) != cell:
                    table.update_cell(name, column, cell, update_width=True)

    @property
    def _selected(self) -> str:
        """The id of the call under the cursor; empty where there is none."""
        table = self._table
        if not table.row_count or not table.is_valid_row_index(table.cursor_row):
            return ""
        key = table.coordinate_to_cell_key(table.cursor_coordinate).row_key
        return str(key.value)

    async def _show_words(self) -> None:
        """Update the transcript of the selected call."""
        name = self._selected
        words = self._words
        if name != self._shown:
            self._shown, self._place, self._spoken = name, 0, 0
            self._entries, self._marks = {}, []
        if not name:
            words.update(Text("No call is in progress.", "dim"))
            return
        try:
            answer = await self._ask("progress", call=name, place=self._place, spoken=self._spoken)
        except RefusedError:
            return  # it has just ended
        told = answer["call"]
        if name != self._shown or not self.screen_stack:
            return
        self._place, self._destinations = told["place"], told.get("destinations", [])
        self._marks += [mark["event"] for mark in told["timeline"]]
        for number, entry in enumerate(told["transcript"], told["spoken"]):
            self._entries[number] = entry
        self._spoken = max(0, told["spoken"] + len(told["transcript"]) - 8)
        latest = sorted(self._entries)[-WORDS:]
        self._entries = {number: self._entries[number] for number in latest}
        words.update(Text("\n").join(_line(self._entries[number]) for number in latest))
        self._frame.scroll_end(animate=False)

    # ---- what is done

    def _last(self, *events: str) -> str:
        return next((one for one in reversed(self._marks) if one in events), "")

    def _act(self, command: str, done: str, **fields: Any) -> None:
        """Send a command for the selected call, and show its result."""
        name = self._selected
        if not name:
            return

        async def act() -> None:
            try:
                await self._ask(command, call=name, **fields)
                self.notify(done, markup=False)
            except (NoAnswerError, RefusedError, OSError) as error:
                self.notify(printable(str(error)), severity="error", markup=False)

        self.run_worker(act(), group="acts")

    def _asked(self, told: str, then: Callable[[str], None], value: str = "") -> None:
        """Ask for a line, and act on it where it is not empty."""
        if not self._selected:
            return
        self.push_screen(Question(told, value), lambda text: then(text) if text else None)

    def action_hang_up(self) -> None:

        def sure(answer: str) -> None:
            if answer.strip().casefold() in ("y", "yes"):
                self._act("hangup", "The call is being ended.")

        self._asked("End this call? Type y.", sure)

    def action_transfer(self) -> None:
        names = ", ".join(self._destinations) or "this route has no destinations"
        first = self._destinations[0] if self._destinations else ""
        self._asked(
            f"Transfer to ({names})",
            lambda text: self._act("transfer", "The transfer begins.", destination=text.strip()),
            first,
        )

    def action_hold(self) -> None:
        """Put the caller on hold, or take them back."""
        held = self._last("holding", "hold_ended") == "holding"
        self._act("unhold" if held else "hold", "Taken back." if held else "On hold.")

    def action_mute(self) -> None:
        """Have the model hear silence, or the caller again."""
        muted = self._last("muted", "unmuted") == "muted"
        self._act("unmute" if muted else "mute", "Unmuted." if muted else "Muted.")

    def action_say(self) -> None:
        self._asked("Have the agent say", lambda text: self._act("say", "Said.", text=text))

    def action_dtmf(self) -> None:
        self._asked("Keys to send", lambda text: self._act("dtmf", "Sent.", digits=text.strip()))

    def action_cancel(self) -> None:
        """Stop what the model says."""
        self._act("cancel", "Stopped.")


def _cells(call: dict[str, Any], levels: tuple[float | None, float | None]) -> list[Text]:
    age = (datetime.now(UTC) - datetime.fromisoformat(call["invited_at"])).total_seconds()
    wait = call.get("response_p50_ms")
    cost = call.get("cost")
    name = call.get("from_name") or ""
    who = f"{call['from_number']} {name}".strip() if name != call["from_number"] else name
    return [
        Text(call["state"], _COLOURS.get(call["state"], "")),
        Text(printable(who)[:24], "bold"),
        Text(printable(call["to_number"])[:24]),
        Text(printable(call["route"])[:20]),
        Text(clock(age), justify="right"),
        Text(bar(levels[0]), "bright_blue"),
        Text(bar(levels[1]), "cyan"),
        Text(str(call.get("interruptions") or ""), justify="right"),
        Text(f"{wait:.0f} ms" if wait else "", justify="right"),
        Text(f"{cost:.4f}" if cost else "", justify="right"),
    ]


def _line(entry: dict[str, Any]) -> Text:
    """Return an entry of a transcript as a line; unheard words are struck through."""
    who, colour = _WHO.get(entry["who"], (f"{entry['who']:6}", "dim"))
    heard = entry.get("heard", entry["text"])
    line = Text.assemble((f"{clock(entry['at_ms'] / 1000):>6} ", "dim"), (who, colour), " ")
    line.append(printable(heard))
    if rest := entry["text"][len(heard) :]:
        line.append(printable(rest), "strike dim").append(" ✂", "red")
    return line


@click.command("top", epilog=examples("gateway top", "gateway top --socket gateway-0.sock"))
@CONFIG
@SOCKET
def command(config: Path, path: Path | None) -> None:
    """Watch live calls, and hold, mute, transfer or end them by a key.

    Shows state, levels of both sides, words as they are said, interruptions and cost.
    """
    if not (sys.stdin.isatty() and sys.stdout.isatty()):
        raise click.ClickException("needs a terminal; without one, use gateway calls")
    try:
        (first, *_) = sockets_at(path or socket_of(config))
    except NoAnswerError as error:
        raise click.ClickException(printable(str(error))) from None

    async def asked(name: str, **fields: Any) -> dict[str, Any]:
        return await asyncio.to_thread(ask, first, name, **fields)

    Top(asked).run()
