# SPDX-License-Identifier: GPL-2.0-or-later
"""One field that a server refuses: found in every form of error, taken out, the rest sent again."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from structlog.testing import capture_logs

from gateway.realtime.connection import Endpoint
from gateway.realtime.errors import SetupFailed
from gateway.realtime.events import CreateResponse, RelayedUpdate, ServerError, UpdateSession
from gateway.realtime.session import Session
from gateway.realtime.session_object import (
    MAX_REFUSED,
    changes_something,
    dotted,
    field_of,
    mended,
    without,
)
from gateway.realtime.setup import open_session
from gateway.realtime.wire import SentCommands
from tests.support.scripted_realtime import KEY, WAIT, Heard, Peer, Server, serving

ASKED: dict[str, Any] = {
    "type": "realtime",
    "instructions": "Be short.",
    "reasoning": {"effort": "low"},
    "truncation": {"type": "retention_ratio", "retention_ratio": 0.8},
    "prompt": {"id": "pmpt_1", "variables": {"city": "Bonn"}},
    "tools": [
        {"type": "function", "name": "one", "parameters": {"type": "object"}},
        {"type": "mcp", "server_label": "crm"},
    ],
    "audio": {
        "input": {
            "format": {"type": "audio/pcma"},
            "transcription": {"model": "whisper-1", "language": "de"},
            "turn_detection": {"type": "server_vad", "threshold": 0.5, "idle_timeout_ms": 9},
        },
        "output": {"format": {"type": "audio/pcma"}, "voice": "marin", "speed": 1.1},
    },
}

FORMS = [
    # the error's param, message and code; the field that is found
    ("session.audio.output.voice", "", "unknown_parameter", "audio.output.voice"),
    ("session.audio.output.voice", "", "cannot_update_voice", "audio.output.voice"),
    (None, "Cannot update a conversation's voice.", "cannot_update_voice", "audio.output.voice"),
    ("audio.output.speed", "", "invalid_value", "audio.output.speed"),
    ("session.reasoning", "", "unknown_parameter", "reasoning"),
    ("session.reasoning.effort", "", "invalid_value", "reasoning.effort"),
    ("session.tools[1]", "", "invalid_value", "tools[1]"),
    ("session.tools.0.parameters", "", "invalid_value", "tools[0].parameters"),
    ("session['tools'][0]['name']", "", "invalid_value", "tools[0].name"),
    ("session.tools[1].server_url", "", "missing_required_parameter", "tools[1]"),
    ("session.prompt.version", "", "missing_required_parameter", "prompt"),
    ("session.prompt.variables.city.text", "", "invalid_type", "prompt.variables.city"),
    (
        "session.audio.input.turn_detection.server_vad.threshold",
        "",
        "invalid_value",
        "audio.input.turn_detection.threshold",
    ),
    (None, "Unknown parameter: 'session.reasoning'.", "unknown_parameter", "reasoning"),
    (None, "session.truncation is not supported here.", None, "truncation"),
    (
        None,
        "Unsupported option `idle_timeout_ms`.",
        None,
        "audio.input.turn_detection.idle_timeout_ms",
    ),
    (None, 'The model does not support "reasoning".', "unsupported_parameter", "reasoning"),
    ("", "Unknown parameter: “session.prompt.id”.", "code_of_tomorrow", "prompt.id"),
    # not one that the call can do without, or none of ours
    ("session.type", "", "missing_required_parameter", None),
    ("session.audio.output.format", "", "invalid_value", None),
    ("session.audio.input.format.type", "", "invalid_value", None),
    ("session.audio.output", "", "invalid_type", None),
    ("session.temperature", "", "unknown_parameter", None),
    (None, "Something is 'wrong'.", "invalid_value", None),
    (None, "Is 'type' right?", "invalid_value", None),
    # no numbers: "²" is a digit to str.isdigit, and int takes no more than 4,300
    ("session.tools.²", "", "unknown_parameter", "tools"),
    (f"session.tools[{'1' * 5000}]", "", "unknown_parameter", "tools"),
    # nothing that another session object would mend
    ("session.reasoning", "", "insufficient_quota", None),
    ("session.reasoning", "", "invalid_api_key", None),
    ("session.reasoning", "", "rate_limit_exceeded", None),
]


@pytest.mark.parametrize(("param", "message", "code", "found"), FORMS)
def test_the_field_of_an_error(
    param: str | None, message: str, code: str | None, found: str | None
) -> None:
    path = field_of(ServerError(code, message, "invalid_request_error", param), ASKED)
    assert (None if path is None else dotted(path)) == found


@given(
    st.one_of(st.none(), st.text(max_size=40), st.from_regex(r"session(\.[a-z_]+|\[\d\])*")),
    st.text(max_size=80),
    st.sampled_from(["unknown_parameter", "missing_required_parameter", None, "x"]),
)
def test_no_error_breaks_the_search(param: str | None, message: str, code: str | None) -> None:
    """What is found is there, can be taken out, and is none of what a call needs."""
    path = field_of(ServerError(code, message, None, param), ASKED)
    if path is not None:
        rest = without(ASKED, path)
        assert rest != ASKED
        assert rest["audio"]["input"]["format"] == rest["audio"]["output"]["format"]
        assert rest["type"] == "realtime"


def test_what_is_left() -> None:
    rest = without(ASKED, ("reasoning", "effort"))
    assert "reasoning" not in rest, "an empty table is none that anybody asked for"
    assert ASKED["reasoning"] == {"effort": "low"}, "the caller's own is as it was"
    assert without(ASKED, ("tools", 0))["tools"] == [{"type": "mcp", "server_label": "crm"}]
    alone = {"type": "realtime", "audio": {"output": {"voice": "x"}}}
    assert changes_something(alone)
    assert not changes_something(without(alone, ("audio", "output", "voice")))


async def start(server: Server, heard: Heard, asked: dict[str, Any]) -> Session:
    return await open_session(
        Endpoint(server.url, "m", KEY),
        asked,
        timeout=WAIT,
        on_event=heard.on_event,
        on_closed=heard.on_closed,
    )


def test_a_set_up_goes_on_without_what_is_refused() -> None:
    """Two fields, one after the other; a second complaint about an old update changes nothing."""

    async def script(peer: Peer) -> None:
        await peer.send("session.created", session={"id": "sess_1"})
        first = await peer.receive()
        refuse = {"code": "unknown_parameter", "event_id": first["event_id"]}
        await peer.error(message=f"No, {KEY}.", param="session.reasoning", **refuse)
        await peer.error(message="No.", param="session.prompt", **refuse)
        second = await peer.receive()
        await peer.error("invalid_value", "Bad 'session.prompt.id'.", event_id=second["event_id"])
        third = await peer.receive()
        await peer.send("session.updated", session={"id": "sess_1", **third["session"]})
        await peer.until_closed()

    async def scenario() -> tuple[Server, Session, list[Any]]:
        async with serving(script) as server:
            with capture_logs() as logs:
                session = await start(server, Heard(), ASKED)
                await session.close()
            return server, session, logs

    server, session, logs = asyncio.run(scenario())
    assert not server.failures
    sent = [event["session"] for event in server.peers[0].received]
    assert sent[0] == ASKED
    assert sent[1] == without(ASKED, ("reasoning",))
    assert sent[2] == without(sent[1], ("prompt", "id"))
    assert [(one.field, one.code) for one in session.commands.refused] == [
        ("reasoning", "unknown_parameter"),
        ("prompt.id", "invalid_value"),
    ]
    said = [line for line in logs if line["event"] == "session.setting_rejected"]
    assert [line["field"] for line in said] == ["reasoning", "prompt.id"]
    assert KEY not in str(said) + str(session.commands.refused)


def test_a_server_that_refuses_all_is_given_up() -> None:
    fields = [f"field_{number}" for number in range(MAX_REFUSED + 2)]
    asked = {**ASKED, **dict.fromkeys(fields, "x")}

    async def script(peer: Peer) -> None:
        await peer.send("session.created", session={"id": "sess_1"})
        while True:
            update = await peer.receive()
            left = next(name for name in fields if name in update["session"])
            await peer.error(
                "unknown_parameter", "No.", param=f"session.{left}", event_id=update["event_id"]
            )

    async def scenario() -> Server:
        async with serving(script) as server:
            with pytest.raises(SetupFailed) as caught:
                await start(server, Heard(), asked)
            assert caught.value.verdict.code == "unknown_parameter"
            return server

    server = asyncio.run(scenario())
    assert len(server.peers[0].received) == MAX_REFUSED + 1


def test_an_update_of_a_session_that_is_up() -> None:
    """The voice is refused, the instructions arrive; an update of the voice alone is let go."""

    async def script(peer: Peer) -> None:
        await peer.set_up()
        for _ in range(2):
            update = await peer.receive()
            for _twice in range(2):
                await peer.error(
                    "cannot_update_voice",
                    "Cannot update a conversation's voice.",
                    param="session.audio.output.voice",
                    event_id=update["event_id"],
                )
        await peer.until_closed()

    async def scenario() -> tuple[Server, Session, Heard]:
        async with serving(script) as server:
            heard = Heard()
            session = await start(server, heard, ASKED)
            voice = {"audio": {"output": {"voice": "ash"}}}
            session.send(UpdateSession({"instructions": "New.", **voice}))
            session.send(UpdateSession(voice))
            await heard.until(lambda: len(heard.events) == 4)
            await session.close()
            return server, session, heard

    server, session, heard = asyncio.run(scenario())
    assert not server.failures
    updates = [event["session"] for event in server.peers[0].received]
    assert updates[3:] == [{"type": "realtime", "instructions": "New."}]
    assert [one.field for one in session.commands.refused] == ["audio.output.voice"] * 2
    assert all(isinstance(event, ServerError) for event in heard.events), "they are told, too"


GREETING = CreateResponse(
    {
        "instructions": "Say exactly: Hello.",
        "metadata": {"tier": "gold", "caller": "1"},
        "audio": {"output": {"voice": "ash"}},
        "conversation": "none",
        "tool_choice": "none",
    }
)


@pytest.mark.parametrize(
    ("param", "gone"),
    [
        ("response.metadata", ("metadata",)),
        ("response.metadata.tier", ("metadata", "tier")),
        ("response.audio.output.voice", ("audio", "output", "voice")),
        # without these it would be another response
        ("response.instructions", None),
        ("response.conversation", None),
        ("response.tool_choice", None),
        ("response", None),
        ("response.temperature", None),
    ],
)
def test_a_response_does_without_what_is_not_its_words(
    param: str, gone: tuple[str, ...] | None
) -> None:
    error = ServerError("unknown_parameter", "No.", "invalid_request_error", param)
    assert GREETING.response is not None
    wanted = None if gone is None else CreateResponse(without(GREETING.response, gone))
    assert mended(GREETING, error) == wanted
    assert mended(CreateResponse(), error) is None


def test_a_response_without_a_field_has_the_same_words() -> None:
    error = ServerError("unknown_parameter", "No.", "invalid_request_error", "response.metadata")
    command = CreateResponse({"metadata": {"a": "b"}}, "Hello.", b"\0\0", exact=True)
    assert mended(command, error) == CreateResponse({}, "Hello.", b"\0\0", exact=True)


def test_an_applications_update_stays_one_when_it_is_sent_again() -> None:
    sent = SentCommands((), "sess_1")
    sent.remember("gw_1", RelayedUpdate({"instructions": "New.", "tracing": "auto"}))
    error = ServerError("unknown_parameter", "No.", None, "session.tracing", "gw_1")
    assert sent.without_refused_field(error) == RelayedUpdate({"instructions": "New."})
    sent.voice_locked = True
    voice = RelayedUpdate({"instructions": "New.", "audio": {"output": {"voice": "ash"}}})
    kept = sent.without_locked_voice(voice, {"audio": {"output": {"voice": "marin"}}})
    assert kept == RelayedUpdate({"instructions": "New."})


def test_a_voice_that_was_heard_is_not_changed() -> None:
    """The server would refuse the whole update; another session may have another voice."""

    async def script(peer: Peer) -> None:
        await peer.set_up()
        await peer.receive("session.update")
        await peer.send(
            "response.output_audio.delta",
            response_id="r",
            item_id="i",
            output_index=0,
            content_index=0,
            delta="1dXV",
        )
        await peer.until_closed()

    async def scenario() -> tuple[Server, list[Any]]:
        async with serving(script) as server:
            heard = Heard()
            session = await start(server, heard, ASKED)
            ash = {"audio": {"output": {"voice": "ash"}}}
            session.send(UpdateSession({"instructions": "1", **ash}))
            await heard.until(lambda: bool(heard.events))
            with capture_logs() as logs:
                session.send(UpdateSession({"instructions": "2", **ash}))
                session.send(UpdateSession({"audio": {"output": {"voice": "marin"}}}))
                session.send(UpdateSession({"instructions": "3"}))
            await session.close()
            return server, logs

    server, logs = asyncio.run(scenario())
    assert not server.failures
    _, first, *later = [event["session"] for event in server.peers[0].received]
    assert first["audio"]["output"]["voice"] == "ash", "nothing was heard yet"
    assert later == [
        {"type": "realtime", "instructions": "2"},
        {"type": "realtime", "audio": {"output": {"voice": "marin"}}},
        {"type": "realtime", "instructions": "3"},
    ]
    (line,) = [line for line in logs if line["event"] == "session.voice_locked"]
    assert (line["asked"], line["voice"]) == ("ash", "marin")
