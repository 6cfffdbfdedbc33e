# SPDX-License-Identifier: GPL-2.0-or-later
"""What an application and a server send that is not of the form that was agreed."""

from __future__ import annotations

import json
from typing import Any

import pytest

from gateway.bridge.sideband import LiveSideband, Sideband
from gateway.call import inputs
from gateway.realtime.events import ClientCommand


async def test_a_number_that_is_too_large_goes_back_to_the_application() -> None:
    sideband = Sideband(lambda: None)
    sideband.up({"id": "sess_1"})
    follower = sideband.attach()
    await follower.next()
    sideband.take(json.dumps({"type": "session.update", "session": {"tracing": 10**30}}), follower)
    updated = await follower.next()
    assert updated is not None
    assert json.loads(updated)["session"] == {"id": "sess_1", "tracing": 10**30}


async def test_an_update_of_another_form_that_waited_for_the_session_is_sent_on() -> None:
    sent: list[ClientCommand] = []

    def send(command: ClientCommand) -> str:
        sent.append(command)
        return "event_1"

    sideband = LiveSideband(lambda: None)
    sideband.send, sideband.tools = send, [{"type": "function", "name": "book"}]
    update = {"type": "session.update", "session": {"delegation": "fast"}}
    sideband.take(json.dumps(update), sideband.attach())
    sideband.up({"id": "sess_1"})
    assert len(sent) == 1


@pytest.mark.parametrize("kind", [Sideband, LiveSideband])
async def test_an_error_whose_event_id_is_no_text_is_left_out(kind: type[Sideband]) -> None:
    sideband = kind(lambda: None)
    sideband.up({"id": "sess_1"})
    follower = sideband.attach()
    await follower.next()
    error: dict[str, Any] = {"event_id": ["x"], "client_event_id": ["x"]}
    sideband.received(json.dumps({"type": "error", "error": error}).encode())
    sideband.seeing(lambda _input: None)(inputs.DigitPressed("1"))
    told = await follower.next()
    assert told is not None
    assert "dtmf" in json.loads(told)["type"]


@pytest.mark.parametrize("kind", [Sideband, LiveSideband])
async def test_ids_of_another_session_name_no_event_of_the_application(
    kind: type[Sideband],
) -> None:
    sideband = kind(lambda: None)
    sideband.send = lambda _command: "gw_2"
    sideband.seeing(lambda _input: None)(inputs.Confirmed())
    sideband.up({"id": "sess_1"})
    follower = sideband.attach()
    await follower.next()
    error = json.dumps({"type": "error", "error": {kind.id_key: "gw_2"}}).encode()
    sideband.take(json.dumps({"type": "response.create", "event_id": "mine"}), follower)
    sideband.received(error)
    told = await follower.next()
    assert told is not None
    assert json.loads(told)["error"][kind.id_key] == "mine"
    sideband.up({"id": "sess_2"})  # counts from gw_1 again: this one is the gateway's
    sideband.received(error)
    sideband.seeing(lambda _input: None)(inputs.DigitPressed("1"))
    told = await follower.next()
    assert told is not None
    assert "dtmf" in json.loads(told)["type"]


@pytest.mark.parametrize("kind", [Sideband, LiveSideband])
async def test_an_event_that_no_session_gets_is_answered_with_an_error(
    kind: type[Sideband],
) -> None:
    sideband = kind(lambda: None)  # nothing is sent: the session was lost, no other is up yet
    sideband.seeing(lambda _input: None)(inputs.Confirmed())
    sideband.up({"id": "sess_1"})
    follower = sideband.attach()
    await follower.next()
    create = {"type": "response.create", "event_id": "mine"}
    sideband.take(json.dumps(create), follower)
    told = await follower.next()
    assert told is not None
    error = json.loads(told)["error"]
    assert (error["code"], error[kind.id_key]) == ("no_session", "mine")
