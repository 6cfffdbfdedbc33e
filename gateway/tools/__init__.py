# SPDX-License-Identifier: GPL-2.0-or-later
"""Function tools of the model: what it is told of each, what it may ask for, and what runs them.

:mod:`gateway.call` decides what a call of a tool leads to, the bridge carries it out. A module of
tools written in Python needs these names of here::

    from gateway.tools import Call, tool

    @tool(timeout=5)
    async def room_price(call: Call, nights: int) -> dict[str, float]:
        \"\"\"The price of a room.\"\"\"
        return {"euros": 80.0 * nights}
"""

from gateway.tools.functions import Call, ToolError, tool

__all__ = ["Call", "ToolError", "tool"]
