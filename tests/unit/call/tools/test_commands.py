# SPDX-License-Identifier: GPL-2.0-or-later
"""What a tool function asks of its call becomes one command each, with who wants it."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from gateway.call.tools.commands import (
    CallCommand,
    CommandsFromTools,
    EndCall,
    RecordCall,
    RequestResponse,
    Say,
    SendImage,
    SendMessage,
    SetDisposition,
    TransferTo,
)


@pytest.mark.parametrize(
    ("act", "command"),
    [
        (lambda call: call.say("Hello."), Say("Hello.")),
        (lambda call: call.send_message("Hi.", "user", True), SendMessage("Hi.", "user", True)),
        (lambda call: call.send_image("data:x", "Me.", True), SendImage("data:x", "Me.", True)),
        (lambda call: call.create_response("Ask."), RequestResponse("Ask.")),
        (lambda call: call.transfer("desk", "Nobody."), TransferTo("desk", "Nobody.")),
        (lambda call: call.record("pause"), RecordCall("pause", "tool")),
        (lambda call: call.set_disposition("booked"), SetDisposition("booked", "tool")),
        (lambda call: call.end("Goodbye."), EndCall("Goodbye.")),
    ],
)
def test_each_is_one_command(
    act: Callable[[CommandsFromTools], None], command: CallCommand
) -> None:
    taken: list[CallCommand] = []
    act(CommandsFromTools(taken.append))
    assert taken == [command]
