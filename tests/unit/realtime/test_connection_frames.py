# SPDX-License-Identifier: GPL-2.0-or-later
"""Frames that are read and written past the library: the library reads the same."""

from __future__ import annotations

import asyncio
from typing import cast

from hypothesis import given, settings
from hypothesis import strategies as st
from websockets.client import ClientProtocol
from websockets.frames import CloseCode, Frame, Opcode
from websockets.server import ServerProtocol
from websockets.uri import parse_uri

from gateway.realtime.connection import Connection, text_frame


class Wire(asyncio.Transport):
    """A transport that keeps what is written."""

    def __init__(self) -> None:
        super().__init__()
        self.written = b""

    def write(self, data: bytes | bytearray | memoryview) -> None:
        self.written += data

    def set_write_buffer_limits(self, high: int | None = None, low: int | None = None) -> None:
        """Nothing waits."""

    def pause_reading(self) -> None:
        """As above."""

    def resume_reading(self) -> None:
        """As above."""

    def get_write_buffer_size(self) -> int:
        return 0

    def is_closing(self) -> bool:
        return False


def upgraded() -> tuple[Connection, Wire, ServerProtocol]:
    """Both ends after the upgrade."""
    client, server = ClientProtocol(parse_uri("ws://x/"), max_size=1 << 20), ServerProtocol()
    connection, wire = Connection(client, ping_interval=None), Wire()
    connection.connection_made(wire)
    client.send_request(client.connect())
    connection.send_data()
    server.receive_data(wire.written)
    (request,) = server.events_received()
    server.send_response(server.accept(request))  # type: ignore[arg-type]
    connection.data_received(b"".join(server.data_to_send()))
    wire.written = b""
    return connection, wire, server


TEXTS = st.one_of(
    st.binary(max_size=300),
    st.sampled_from([125, 126, 127, 65535, 65536, 65537, 70000]).map(bytes),
)


@settings(max_examples=40, deadline=None)
@given(st.lists(TEXTS, max_size=8))
def test_what_is_written_is_what_a_server_reads(texts: list[bytes]) -> None:
    async def scenario() -> list[Frame]:
        _connection, _wire, server = upgraded()
        for text in texts:
            server.receive_data(text_frame(text))
        return cast("list[Frame]", server.events_received())

    frames = asyncio.run(scenario())
    assert [(frame.opcode, frame.data, frame.fin) for frame in frames] == [
        (Opcode.TEXT, text, True) for text in texts
    ]


@settings(max_examples=60, deadline=None)
@given(
    st.lists(
        st.tuples(
            st.sampled_from(["text", "text", "text", "in parts", "ping", "pong", "binary"]), TEXTS
        ),
        max_size=8,
    ),
    st.integers(1, 5000),
    st.booleans(),
)
def test_whole_messages_are_taken_in_order_however_the_bytes_are_cut(
    sent: list[tuple[str, bytes]], cut: int, closed: bool
) -> None:
    async def scenario() -> None:
        connection, wire, server = upgraded()
        pings, messages = [], []
        for kind, data in sent:
            if kind == "ping":
                pings.append(data[:125])
                server.send_ping(data[:125])
            elif kind == "pong":
                server.send_pong(data[:125])
            elif kind == "in parts":
                server.send_text(data[:10], fin=False)
                server.send_ping(b"between")
                pings.append(b"between")
                server.send_continuation(data[10:], fin=True)
                messages.append(data)
            else:
                (server.send_text if kind == "text" else server.send_binary)(data)
                messages.append(data)
        if closed:
            server.send_close(CloseCode.NORMAL_CLOSURE)
            after = b"".join(server.data_to_send()) + text_frame(b"after")[:2] + b"after"
        else:
            after = b"".join(server.data_to_send())
        piece = max(cut, len(after) // 5000)  # at most 5,000: more takes minutes on a busy machine
        took: list[bytes] = []

        async def read() -> None:
            while True:
                if connection.read == connection.queued:
                    connection.take = took.append
                took.append(await connection.next_message())

        reader = asyncio.create_task(read())
        for start in range(0, len(after), piece):
            await asyncio.sleep(0)
            connection.data_received(after[start : start + piece])
        for _ in range(10):
            await asyncio.sleep(0)
        reader.cancel()
        await asyncio.gather(reader, return_exceptions=True)
        assert took == messages
        server.receive_data(wire.written)
        pongs = [
            frame.data
            for frame in cast("list[Frame]", server.events_received())
            if frame.opcode is Opcode.PONG
        ]
        assert pongs == pings
        assert connection.protocol.state.name == ("CLOSING" if closed else "OPEN")

    asyncio.run(scenario())


def test_nothing_is_written_after_a_close() -> None:
    async def scenario() -> bytes:
        connection, wire, _server = upgraded()
        connection.protocol.send_close(CloseCode.NORMAL_CLOSURE)
        connection.send_data()
        sent = wire.written
        connection.write_text(b"late")
        assert wire.written == sent
        return sent

    assert asyncio.run(scenario())
