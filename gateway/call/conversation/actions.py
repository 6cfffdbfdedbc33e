# SPDX-License-Identifier: GPL-2.0-or-later
"""Commands of tool functions and operators, carried out in the conversation."""

from __future__ import annotations

import json

from gateway.call.conversation.control import ConversationControl, Termination
from gateway.call.ending import EndReason
from gateway.call.leg.call_control import BY_OPERATOR
from gateway.call.outputs import Output, Send
from gateway.call.tools.arguments import ToolCallError
from gateway.call.tools.commands import (
    CallCommand,
    EndCall,
    OperatorTransfer,
    RequestOutOfBand,
    Respond,
    Say,
    Show,
    Tell,
    TransferTo,
)
from gateway.call.tools.definitions import TRANSFER_CALL
from gateway.realtime.commands import CreateItem, CreateResponse


def carry_out(command: CallCommand, talk: ConversationControl, now: float) -> list[Output]:
    """Carry out a command, unless the call is being ended already."""
    if talk.termination is not None and not isinstance(command, RequestOutOfBand):
        return []
    note = talk.timeline.note(now, "command", "info", command=type(command).__name__)
    match command:
        case Say(words):
            return [note, *talk.say(words, now)]
        case Tell(text, role, respond):
            return [note, *talk.tell(text, role=role), *_respond(talk, respond, now)]
        case Show(image, text, respond):
            content = [{"type": "input_text", "text": text}] if text else []
            content.append({"type": "input_image", "image_url": image})
            item = {"type": "message", "role": "user", "content": content}
            return [note, Send(CreateItem(item)), *_respond(talk, respond, now)]
        case Respond(instructions):
            return [note, *talk.ask(CreateResponse({"instructions": instructions}), now)]
        case RequestOutOfBand(key, instructions, metadata):
            return [note, *talk.out_of_band.ask(key, "application", instructions, now, metadata)]
        case TransferTo(destination, words):
            talk.terminate(
                Termination(EndReason.APPLICATION, "by a function", words, transfer_to=destination)
            )
        case OperatorTransfer(destination):
            wanted = json.dumps({"destination": destination})
            try:
                talk.call_actions.ask(TRANSFER_CALL, BY_OPERATOR, wanted, now)
            except ToolCallError as error:
                refused = talk.timeline.note(now, "command_rejected", "warning", reason=str(error))
                return [note, refused]
        case EndCall(words):
            talk.terminate(Termination(EndReason.APPLICATION, "by a function", words))
    return [note]


def _respond(talk: ConversationControl, wanted: bool, now: float) -> list[Output]:
    return talk.ask(CreateResponse(), now) if wanted else []
