"""Tools of a hotel, in Python: see docs/tools.md."""

from __future__ import annotations

from datetime import date
from typing import Annotated, Literal

from pydantic import Field

from gateway.tools import Call, ToolError, tool

PRICES = {"single": 80.0, "double": 120.0}


@tool
def room_price(
    kind: Literal["single", "double"],
    nights: Annotated[int, Field(ge=1, le=30)] = 1,
) -> dict[str, float]:
    """The price of a stay, in euros.

    Args:
        kind: Which room.
        nights: How many nights.
    """
    return {"euros": PRICES[kind] * nights}


@tool(timeout=15, filler_delay=2, filler_text="One moment, I am looking.")
async def book_room(call: Call, kind: Literal["single", "double"], arrival: date) -> str:
    """Book a room for the caller.

    Args:
        kind: Which room.
        arrival: The first day.
    """
    if arrival <= date.today():
        raise ToolError("rooms can be booked from tomorrow on")
    call.send_message(f"The caller's number is {call.variables['from'] or 'withheld'}.")
    return f"A {kind} room is booked from {arrival:%A, %d %B}."


@tool
def night_porter(call: Call) -> str:
    """Hand the caller on to the night porter."""
    call.transfer("night porter", "Nobody answers there. Please call again in the morning.")
    return "transferring"
