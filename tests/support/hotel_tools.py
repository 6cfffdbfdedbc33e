# SPDX-License-Identifier: GPL-2.0-or-later
"""The module of tools that the gateway of these tests offers."""

from __future__ import annotations

import asyncio
import time

from gateway.tools import Call, tool


@tool
def room_price(nights: int) -> dict[str, int]:
    """The price of a room.

    Args:
        nights: How many.
    """
    return {"euros": 80 * nights}


@tool
def broken(call: Call) -> str:
    """Fails."""
    raise RuntimeError(f"for {call.id}: s3cret-of-the-database")


@tool(filler_delay=0.3, filler_text="One moment, please.")
def slow() -> str:
    """Takes so long, in a thread, that it still runs when a busy machine goes on."""
    time.sleep(4)
    return "found"


@tool(filler_delay=0.2, filler_sound="chime")
async def slow_with_sound() -> str:
    """Takes as long as ``slow``."""
    await asyncio.sleep(4)
    return "found"


@tool
async def who(call: Call) -> str:
    """Who calls."""
    call.send_message(f"They called {call.variables['to']} by route {call.route}.")
    return call.caller


@tool
def goodbye(call: Call) -> str:
    """Ends the call."""
    call.end("This number is closed. Goodbye.")
    return "ending"


@tool
def refund(amount: int) -> str:
    """Gives money back."""
    return f"{amount} euros given back"


@tool(timeout=0.3)
def never() -> str:
    """Takes ten seconds, and has a third of one."""
    time.sleep(10)
    return "too late"


@tool
def porter(call: Call) -> str:
    """Hands the caller on."""
    call.transfer("porter", "Nobody is there. Goodbye.")
    return "on the way"


@tool
def look_up(conversation: str) -> dict[str, str]:
    """Does what the caller wants."""
    return {"thinking": conversation, "commentary": "You are booked for two nights."}
