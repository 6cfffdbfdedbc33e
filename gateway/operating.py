"""What somebody at the gateway may do to calls in progress, over the control socket."""

from __future__ import annotations

import json
from collections.abc import Mapping, Set
from typing import Any

import structlog

from gateway.bridge import Bridge
from gateway.call import inputs
from gateway.control.finding import call_named
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
        bridge = call_named(request, self._calls)
        log.info("operator.hangup", call=bridge.record.call_id)
        bridge.feed(inputs.HangUpAsked())
        return {"call": bridge.record.call_id}

    def _transfer(self, request: Mapping[str, Any]) -> Mapping[str, Any]:
        bridge = call_named(request, self._calls)
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
