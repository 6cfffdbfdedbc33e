"""The definitions of the gateway's own tools, as the session object wants them (GA ``tools``)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from gateway.call.plan import HoldPlan, PressPlan, TransferPlan

END_CALL = "end_call"
TRANSFER_CALL = "transfer_call"
SEND_DTMF = "send_dtmf"
HOLD = "hold"

OWN = frozenset({END_CALL, TRANSFER_CALL, SEND_DTMF, HOLD})
"""Names that no other tool may have."""

TRANSFER_DESCRIPTION = (
    "Transfer the caller to a person or department. Say first, in one short sentence, that you "
    "are connecting them. If it fails you are told why, and the caller is back with you."
)
SEND_DTMF_DESCRIPTION = (
    "Press keys on the telephone keypad, for a voice menu at the other end of the call. "
    "Between keys, w waits half a second, W a second, a comma two seconds."
)
HOLD_DESCRIPTION = (
    "Let the caller hear music for some seconds while they wait. Tell them so first. "
    "The music ends by itself, or as soon as you speak."
)


def end_call(description: str) -> dict[str, Any]:
    """Says goodbye and hangs up."""
    return _tool(END_CALL, description, {})


def transfer_call(plan: TransferPlan, description: str) -> dict[str, Any] | None:
    """Hands the caller over; None where the route has nowhere to."""
    if not plan.destinations:
        return None
    lines = [
        f"- {one.name}"
        + (f": {one.description}" if one.description else "")
        + ("" if one.allow is None else " (give the number itself)")
        for one in plan.destinations
    ]
    destination: dict[str, Any] = {
        "type": "string",
        "description": "\n".join(["Where to:", *lines]),
    }
    if all(one.allow is None for one in plan.destinations):
        destination["enum"] = [one.name for one in plan.destinations]
    return _tool(TRANSFER_CALL, description, {"destination": destination})


def send_dtmf(plan: PressPlan, description: str) -> dict[str, Any] | None:
    """Presses keys; None where the route does not want it."""
    if not plan.enabled:
        return None
    digits = {"type": "string", "description": "Keys 0-9, *, #, A-D, with w, W or , as pauses"}
    return _tool(SEND_DTMF, description, {"digits": digits})


def hold(plan: HoldPlan, description: str) -> dict[str, Any] | None:
    """Plays music; None where the route does not want it."""
    if not plan.enabled:
        return None
    seconds = {"type": "number", "exclusiveMinimum": 0, "maximum": plan.max_seconds}
    return _tool(HOLD, description, {"seconds": seconds})


def _tool(name: str, description: str, properties: Mapping[str, Any]) -> dict[str, Any]:
    parameters = {
        "type": "object",
        "properties": dict(properties),
        "additionalProperties": False,
    }
    if properties:
        parameters["required"] = list(properties)
    return {
        "type": "function",
        "name": name,
        "description": description,
        "parameters": parameters,
    }
