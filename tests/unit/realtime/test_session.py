# SPDX-License-Identifier: GPL-2.0-or-later
"""A session that is up, against a real WebSocket server on loopback."""

from __future__ import annotations

import asyncio
import base64
import socket
from typing import Any

import pytest
from structlog.testing import capture_logs
from websockets.server import ServerProtocol

from gateway.realtime.errors import Kind
from gateway.realtime.events import (
    AudioDelta,
    CancelResponse,
    ClientCommand,
    CreateItem,
    CreateResponse,
    DeleteItem,
    OtherEvent,
    ServerError,
    SessionUpdated,
    SpeechStarted,
    TruncateItem,
    UpdateSession,
)
from gateway.realtime.session import WRITE_BUFFER_LIMIT, Session
from gateway.realtime.wire import REQUEST_KEY
from tests.support import idle_clock
from tests.support.scripted_realtime import Heard, Peer, Server, client_tasks, opened, serving


def test_audio_and_commands_arrive_in_order_and_unchanged() -> None:
    audio = [bytes(range(i, i + 160)) for i in range(50)]
    item = {"type": "message", "role": "user", "content": [{"type": "input_text", "text": "4 2 ü"}]}

    async def scenario() -> tuple[list[dict[str, Any]], list[ClientCommand | None], Session]:
        async def script(peer: Peer) -> None:
            await peer.set_up()
            await peer.until_closed()

        async with serving(script) as server:
            session = await opened(server, Heard())
            for frame in audio:
                session.append(frame)
            ids = [
                session.send(command)
                for command in (
                    CreateItem(item),
                    CreateResponse(),
                    CreateResponse({"instructions": "Say goodbye."}),
                    CancelResponse("resp_1"),
                    TruncateItem("item_1", 0, 1234),
                    DeleteItem("item_2"),
                    UpdateSession({"instructions": "Be loud."}),
                )
            ]
            session.append(audio[0])
            sent = [session.commands.command_of(event_id) for event_id in ids]
            assert session.commands.command_of("event_of_nobody") is None
            assert session.commands.command_of(None) is None
            await session.close()
            await server.until(lambda: server.open == 0)
            return server.peers[0].received[1:], sent, session

    events, sent, session = asyncio.run(scenario())
    appended, commands, last = events[:50], events[50:-1], events[-1]
    assert {event["type"] for event in appended} == {"input_audio_buffer.append"}
    assert [base64.b64decode(event["audio"], validate=True) for event in appended] == audio
    assert base64.b64decode(last["audio"]) == audio[0]
    assert [event["type"] for event in commands] == [c.body()["type"] for c in sent if c]
    assert len({event.pop("event_id") for event in commands}) == 7
    assert commands == [
        {"type": "conversation.item.create", "item": item},
        {"type": "response.create", "response": {"metadata": {REQUEST_KEY: "gw_2"}}},
        {
            "type": "response.create",
            "response": {"instructions": "Say goodbye.", "metadata": {REQUEST_KEY: "gw_3"}},
        },
        {"type": "response.cancel", "response_id": "resp_1"},
        {
            "type": "conversation.item.truncate",
            "item_id": "item_1",
            "content_index": 0,
            "audio_end_ms": 1234,
        },
        {"type": "conversation.item.delete", "item_id": "item_2"},
        {"type": "session.update", "session": {"type": "realtime", "instructions": "Be loud."}},
    ]
    assert (session.counters.audio_sent, session.counters.audio_sent_bytes) == (51, 51 * 160)
    assert (session.counters.commands_sent, session.counters.audio_dropped) == (7, 0)


@pytest.mark.parametrize("ends", [10**400, -(10**400), float("nan"), float("inf"), "soon", None])
def test_an_end_that_is_no_time_is_none(ends: object) -> None:
    async def scenario() -> Session:
        async def script(peer: Peer) -> None:
            await peer.set_up(expires_at=ends)
            await peer.until_closed()

        async with serving(script) as server:
            session = await opened(server, Heard())
            await session.close()
            return session

    session = asyncio.run(scenario())
    assert session.expires_at is None
    assert session.seconds_left is None


def test_events_are_delivered_in_order_and_trouble_in_between_is_survived() -> None:
    async def scenario() -> tuple[Session, Heard, list[Any]]:
        async def script(peer: Peer) -> None:
            await peer.set_up()
            await peer.send("input_audio_buffer.speech_started", item_id="i1", audio_start_ms=20)
            await peer.ws.send("{ not json")
            await peer.ws.send(b"\xff\xfe binary")
            await peer.send("response.output_audio.delta", response_id="r1", item_id="i2")
            await peer.send("response.brand_new", anything=[1])
            await peer.send("response.brand_new", anything=[2])
            await peer.send("rate_limits.updated", rate_limits=[])
            await peer.send("session.updated", session={"instructions": "new"})
            await peer.send(
                "response.output_audio.delta",
                response_id="r1",
                item_id="i3",
                output_index=0,
                content_index=0,
                delta="gIGC",
            )
            await peer.until_closed()

        async with serving(script) as server:
            heard = Heard()

            # The first event's handler fails: the reader goes on.
            def on_event(event: Any) -> None:
                first = not heard.events
                heard.on_event(event)
                if first:
                    raise RuntimeError("the handler's own mistake")

            failing = Heard()
            failing.on_event = on_event  # type: ignore[method-assign]
            with capture_logs() as logs:
                session = await opened(server, failing)
                await heard.until(lambda: any(isinstance(e, AudioDelta) for e in heard.events))
                await session.close()
            return session, heard, logs

    session, heard, logs = asyncio.run(scenario())
    assert heard.events == [
        SpeechStarted("i1", 20),
        OtherEvent("response.brand_new", heard.events[1].raw),  # type: ignore[union-attr]
        OtherEvent("response.brand_new", heard.events[2].raw),  # type: ignore[union-attr]
        OtherEvent("rate_limits.updated", heard.events[3].raw),  # type: ignore[union-attr]
        SessionUpdated({"instructions": "new"}),
        AudioDelta("r1", "i3", 0, b"\x80\x81\x82"),
    ]
    assert session.effective == {"instructions": "new"}
    assert (session.id, session.expires_at) == ("sess_1", 1_900_000_000)
    counters = session.counters
    assert (counters.events_received, counters.bad_events, counters.handler_errors) == (9, 3, 1)
    assert counters.unknown_types == {"response.brand_new": 2}
    bad = [entry for entry in logs if entry["event"] == "session.invalid_event"]
    assert [(entry["type"], entry["field"]) for entry in bad] == [
        (None, None),
        (None, None),
        ("response.output_audio.delta", "delta"),
    ]
    assert [e["session"] for e in logs if e["event"] == "session.handler_failed"] == ["sess_1"]


def test_an_error_names_the_command_it_answers() -> None:
    async def scenario() -> tuple[ClientCommand | None, ServerError]:
        async def script(peer: Peer) -> None:
            await peer.set_up()
            command = await peer.receive("conversation.item.truncate")
            await peer.error("invalid_value", "too long", event_id=command["event_id"])
            await peer.until_closed()

        async with serving(script) as server:
            heard = Heard()
            session = await opened(server, heard)
            session.send(CreateResponse())
            session.send(TruncateItem("item_1", 0, 99))
            await heard.until(lambda: bool(heard.events))
            error = heard.events[0]
            assert isinstance(error, ServerError)
            command = session.commands.command_of(error.client_event_id)
            await session.close()
            return command, error

    command, error = asyncio.run(scenario())
    assert command == TruncateItem("item_1", 0, 99)
    assert error.code == "invalid_value"


@pytest.mark.parametrize(
    ("code", "reason", "kind", "verdict_code"),
    [
        (1000, "", Kind.BENIGN, "1000"),
        (1001, "Your session hit the maximum duration of 60 minutes.", None, "session_expired"),
        (1011, "", Kind.RETRYABLE, "1011"),
        (3000, "invalid_request_error.invalid_api_key", Kind.FATAL, "invalid_api_key"),
    ],
)
def test_close_by_the_server_is_reported_once(
    code: int, reason: str, kind: Kind | None, verdict_code: str
) -> None:
    async def scenario() -> Heard:
        async def script(peer: Peer) -> None:
            await peer.set_up()
            await peer.ws.close(code, reason)

        async with serving(script) as server:
            heard = Heard()
            session = await opened(server, heard)
            await heard.end()
            await session.close()  # too late to matter
            assert session.closed
            session.append(b"\xff" * 160)
            session.send(CreateResponse())
            assert session.counters.audio_dropped == 1
            assert session.counters.commands_dropped == 1
            assert client_tasks() == []
            return heard

    heard = asyncio.run(scenario())
    (closed,) = heard.closed
    assert (closed.code, closed.reason, closed.by_us) == (code, reason, False)
    assert closed.verdict.kind is (kind or Kind.RETRYABLE)
    assert closed.verdict.code == verdict_code


def test_close_by_us_reaches_the_server_and_is_idempotent() -> None:
    async def scenario() -> tuple[Heard, Server]:
        async def script(peer: Peer) -> None:
            await peer.set_up()
            await peer.until_closed()

        async with serving(script) as server:
            heard = Heard()
            session = await opened(server, heard)
            await asyncio.gather(
                session.close("caller hung up"), session.close("again"), session.close()
            )
            assert client_tasks() == []
            await session.close()
            await server.until(lambda: server.open == 0)
            return heard, server

    heard, server = asyncio.run(scenario())
    (closed,) = heard.closed
    assert (closed.code, closed.reason, closed.by_us) == (1000, "caller hung up", True)
    assert closed.verdict.kind is Kind.BENIGN
    ws = server.peers[0].ws
    assert (ws.close_code, ws.close_reason) == (1000, "caller hung up")


def test_a_connection_cut_without_a_close_is_1006_and_retryable() -> None:
    async def scenario() -> Heard:
        async def script(peer: Peer) -> None:
            await peer.set_up()
            peer.ws.transport.abort()

        async with serving(script) as server:
            heard = Heard()
            await opened(server, heard)
            await heard.end()
            return heard

    (closed,) = asyncio.run(scenario()).closed
    assert (closed.code, closed.by_us, closed.verdict.kind) == (1006, False, Kind.RETRYABLE)


def test_a_server_that_never_answers_the_close_does_not_hold_it_up() -> None:
    async def scenario() -> Heard:
        async def script(peer: Peer) -> None:
            await peer.set_up()
            await peer.hang()

        async with serving(script) as server:
            heard = Heard()
            session = await opened(server, heard)
            await session.close()
            assert len(heard.closed) == 1
            assert client_tasks() == []
            return heard

    (closed,) = asyncio.run(scenario()).closed
    assert (closed.code, closed.by_us) == (1000, True)


def test_a_cancelled_close_leaves_no_socket_and_no_task() -> None:
    async def scenario() -> None:
        async def script(peer: Peer) -> None:
            await peer.set_up()
            await peer.hang()

        async with serving(script) as server:
            heard = Heard()
            session = await opened(server, heard, ping_interval=None)
            closing = asyncio.create_task(session.close())
            await asyncio.sleep(0)
            closing.cancel()
            await asyncio.gather(closing, return_exceptions=True)
            await heard.end()
            await session.close()
            assert client_tasks() == []

    asyncio.run(scenario())


def test_a_server_that_closes_only_half_is_cut() -> None:
    """A close frame, then a TCP connection that stays open: spoken with the sans-I/O protocol."""

    async def scenario() -> Heard:
        loop = asyncio.get_running_loop()
        listener = socket.create_server(("127.0.0.1", 0))
        listener.setblocking(False)
        done = asyncio.Event()

        async def half_closing() -> None:
            sock, _ = await loop.sock_accept(listener)
            protocol = ServerProtocol()

            async def flush() -> None:
                for data in protocol.data_to_send():
                    if data:
                        await loop.sock_sendall(sock, data)

            async def events() -> list[Any]:
                protocol.receive_data(await loop.sock_recv(sock, 65536))
                return protocol.events_received()

            (request,) = await events()
            protocol.send_response(protocol.accept(request))
            protocol.send_text(b'{"type":"session.created","session":{"id":"sess_1"}}')
            await flush()
            await events()
            formats = '{"format":{"type":"audio/pcmu"}}'
            updated = f'"session":{{"audio":{{"input":{formats},"output":{formats}}}}}'
            protocol.send_text(f'{{"type":"session.updated",{updated}}}'.encode())
            protocol.send_close(1001, "gone")
            await flush()
            await done.wait()
            sock.close()

        server = asyncio.create_task(half_closing())
        heard = Heard()
        port = listener.getsockname()[1]
        await opened(Server(f"ws://127.0.0.1:{port}"), heard, ping_interval=None)
        await heard.end()
        done.set()
        await server
        listener.close()
        return heard

    (closed,) = asyncio.run(scenario()).closed
    assert (closed.code, closed.reason, closed.by_us) == (1001, "gone", False)


def test_a_network_that_takes_nothing_drops_audio_and_is_found_dead_by_pings() -> None:
    async def scenario() -> tuple[Session, Heard]:
        async def script(peer: Peer) -> None:
            await peer.set_up()
            await peer.hang()

        async with serving(script) as server:
            heard = Heard()
            session = await opened(server, heard, ping_interval=0.2, ping_timeout=0.2)
            # Kernel buffers on loopback hold megabytes, so these messages are big.
            for _ in range(2000):
                session.append(b"\xff" * 16_000)
                if session.counters.audio_dropped:
                    break
            buffered = session._transport.get_write_buffer_size()
            assert WRITE_BUFFER_LIMIT < buffered < WRITE_BUFFER_LIMIT + 32_000
            command = session.send(CreateResponse())
            assert session.commands.command_of(command) == CreateResponse()
            assert session.counters.commands_sent == 1
            await heard.end()
            return session, heard

    with capture_logs() as logs:
        session, heard = idle_clock.run(scenario())
    (closed,) = heard.closed
    assert (closed.code, closed.reason) == (1006, "keepalive ping timeout")
    assert closed.verdict.kind is Kind.RETRYABLE
    assert session.counters.audio_dropped == 1
    assert [entry["event"] for entry in logs].count("session.audio_dropped") == 1


def test_a_failing_end_callback_is_logged_and_the_session_still_ends() -> None:
    async def scenario() -> None:
        async def script(peer: Peer) -> None:
            await peer.set_up()
            await peer.until_closed()

        async with serving(script) as server:
            heard = Heard()

            def on_closed(_: object) -> None:
                raise RuntimeError("the handler's own mistake")

            heard.on_closed = on_closed  # type: ignore[method-assign,assignment]
            session = await opened(server, heard)
            await session.close()
            assert client_tasks() == []

    with capture_logs() as logs:
        asyncio.run(scenario())
    assert [e["session"] for e in logs if e["event"] == "session.closed_handler_failed"] == [
        "sess_1"
    ]


def test_a_long_answer_in_one_message_hits_no_size_limit() -> None:
    audio = bytes(3_000_000)

    async def scenario() -> Heard:
        async def script(peer: Peer) -> None:
            await peer.set_up()
            await peer.send(
                "response.output_audio.delta",
                response_id="r",
                item_id="i",
                content_index=0,
                delta=base64.b64encode(audio).decode(),
            )
            await peer.until_closed()

        async with serving(script) as server:
            heard = Heard()
            session = await opened(server, heard)
            await heard.until(lambda: bool(heard.events))
            await session.close()
            return heard

    assert asyncio.run(scenario()).events == [AudioDelta("r", "i", 0, audio)]


def test_messages_in_one_frame_and_in_several_keep_their_order() -> None:
    """One frame is taken at once, several go through the library's queue: neither overtakes."""
    count = 200

    def message(number: int) -> str:
        return f'{{"type":"test.numbered","event_id":"event_1","number":{number}}}'

    async def scenario() -> list[int]:
        async def script(peer: Peer) -> None:
            await peer.set_up()
            for number in range(count):
                text = message(number)
                if number % 7 == 3:
                    await peer.ws.send([text[:10], text[10:20], text[20:]])
                else:
                    await peer.ws.send(text)
                if number % 50 == 0:
                    await asyncio.sleep(0)
            await peer.until_closed()

        async with serving(script) as server:
            heard = Heard()
            session = await opened(server, heard)
            await heard.until(lambda: len(heard.events) == count)
            await session.close()
            return [event.raw["number"] for event in heard.events if isinstance(event, OtherEvent)]

    assert asyncio.run(scenario()) == list(range(count))
