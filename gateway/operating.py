"""What somebody at the gateway may do to calls in progress, over the control socket."""

from __future__ import annotations

import json
from collections.abc import Mapping, Set
from typing import Any

import structlog

from gateway.bridge import Bridge
from gateway.call import inputs
from gateway.control.server import RefusedError
from gateway.tools.acts import HandOn
from gateway.tools.arguments import ToolError, transfer_target

log = structlog.get_logger("gateway")


class OperatorCommands:
    """Hang up, or hand on to a destination of the call's own route.

    Args:
        calls: in progress, as they come and go.
    """

    def __init__(self, calls: Set[Bridge]) -> None:
        self._calls = calls
        self.commands = {"hangup": self._hang_up, "transfer": self._transfer}
        """For the control socket."""

    def _hang_up(self, request: Mapping[str, Any]) -> Mapping[str, Any]:
        bridge = self._find(request)
        log.info("operator.hangup", call=bridge.record.call_id)
        bridge.feed(inputs.HangUpAsked())
        return {"call": bridge.record.call_id}

    def _transfer(self, request: Mapping[str, Any]) -> Mapping[str, Any]:
        bridge = self._find(request)
        call = bridge.record.call_id
        if not bridge.talking:
            raise RefusedError(f"{call} is not in conversation with the model")
        if not bridge.transfer_plan.destinations:
            raise RefusedError(f"route {bridge.record.route!r} has no [[route.transfer]]")
        wanted = json.dumps({"destination": request.get("destination")})
        try:
            target = transfer_target(wanted, bridge.transfer_plan)
        except ToolError as error:
            raise RefusedError(str(error)) from None
        log.info("operator.transfer", call=call, to=target.uri)
        bridge.feed(inputs.ToolActs(HandOn(str(request["destination"]))))
        return {"call": call, "to": target.uri}

    def _find(self, request: Mapping[str, Any]) -> Bridge:
        """The call whose id is given, or begins so; of several, none is guessed."""
        wanted = request.get("call")
        if not isinstance(wanted, str) or not wanted:
            raise RefusedError("call: which one? `gateway calls` lists them")
        found = [one for one in self._calls if one.record.call_id.startswith(wanted)]
        exact = [one for one in found if one.record.call_id == wanted]
        if len(exact or found) != 1:
            how = "no call" if not found else f"{len(found)} calls"
            raise RefusedError(f"{how} in progress with an id that begins with {wanted!r}")
        return (exact or found)[0]
