# SPDX-License-Identifier: GPL-2.0-or-later
"""Commands of the control socket that end or transfer a call."""

from __future__ import annotations

import json
from collections import OrderedDict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import structlog

from gateway.bridge.call_controller import CallController
from gateway.call import inputs
from gateway.call.call_control import TAKE_OVER_SECONDS
from gateway.call.call_record import CallRecord
from gateway.call.ending import EndReason, Outcome
from gateway.call.tools.commands import OperatorTransfer
from gateway.call.tools.definitions import ToolCallError, transfer_target
from gateway.control.content import call_named
from gateway.control.server import RefusedError

log = structlog.get_logger("gateway")


MAX_TRANSFERS = 64
"""Transfers whose outcome can still be asked for."""

BEGIN_SECONDS = 30.0
"""For what the model is saying to be heard, before a transfer begins."""


@dataclass(frozen=True, slots=True)
class _Asked:
    """A requested transfer; ``before`` counts the attempts that the call had made by then."""

    record: CallRecord
    destination: str
    before: int
    refusals: int

    def outcome(self) -> Mapping[str, Any]:
        """Return ``over``, ``done``, and the outcome in words."""
        ending = self.record.ending
        attempts = [
            one
            for one in self.record.actions.transfers[self.before :]
            if one.destination == self.destination
        ]
        if attempts:
            attempt = attempts[0]
            taken = ending is not None and ending.why is EndReason.TRANSFERRED
            over = ending is not None or attempt.outcome not in ("", Outcome.RINGING)
            done = attempt.outcome == Outcome.ANSWERED or taken
            words = str(attempt.outcome or "asked for")
            if attempt.sip_code:
                words += f", SIP {attempt.sip_code}"
            return {"over": over, "done": done, "outcome": words}
        if ending is not None:
            return {"over": True, "done": False, "outcome": f"the call ended: {ending.why.value}"}
        if _refusals(self.record) > self.refusals:
            return {"over": True, "done": False, "outcome": "this call cannot be transferred now"}
        return {"over": False, "done": False, "outcome": "not begun"}


def _refusals(record: CallRecord) -> int:
    return sum(mark["event"] == "command_rejected" for mark in record.timeline)


class OperatorCommands:
    """Hangs calls up, and transfers them to a destination of their own route.

    Args:
        calls: in progress, as they come and go.
    """

    def __init__(self, calls: Iterable[CallController]) -> None:
        self._calls = calls
        self._transfers: OrderedDict[str, _Asked] = OrderedDict()
        self.commands = {
            "hangup": self._hang_up,
            "transfer": self._transfer,
            "transfer_outcome": self._outcome,
        }
        """For the control socket."""

    def _hang_up(self, request: Mapping[str, Any]) -> Mapping[str, Any]:
        controller = call_named(request, self._calls)
        log.info("operator.hangup", call=controller.record.call_id)
        controller.feed(inputs.HangupRequested())
        return {"call": controller.record.call_id}

    def _transfer(self, request: Mapping[str, Any]) -> Mapping[str, Any]:
        controller = call_named(request, self._calls)
        call = controller.record.call_id
        if not controller.talking:
            raise RefusedError(f"{call} is not in conversation with the model")
        if not controller.transfer_plan.destinations:
            raise RefusedError(f"route {controller.record.route!r} has no [[route.transfer]]")
        wanted = json.dumps({"destination": request.get("destination")})
        try:
            target = transfer_target(wanted, controller.transfer_plan)
        except ToolCallError as error:
            raise RefusedError(str(error)) from None
        log.info("operator.transfer", call=call, to=target.uri)
        record = controller.record
        asked = _Asked(
            record, target.destination.name, len(record.actions.transfers), _refusals(record)
        )
        number = f"{call}/{asked.before}"
        self._transfers[number] = asked
        self._transfers.move_to_end(number)
        while len(self._transfers) > MAX_TRANSFERS:
            self._transfers.popitem(last=False)
        controller.feed(inputs.ToolRequest(OperatorTransfer(str(request["destination"]))))
        seconds = target.destination.ring_timeout + TAKE_OVER_SECONDS + BEGIN_SECONDS
        return {"call": call, "to": target.uri, "transfer": number, "seconds": seconds}

    def _outcome(self, request: Mapping[str, Any]) -> Mapping[str, Any]:
        asked = self._transfers.get(str(request.get("transfer", "")))
        if asked is None:
            raise RefusedError("there is no such transfer, or it is long over")
        return asked.outcome()
