# SPDX-License-Identifier: GPL-2.0-or-later
"""What one message costs the event loop: ``python tests/load/micro_realtime.py``.

Prints microseconds of processor time per message, each the best of several rounds, as other work
on the machine only adds to it. ``append`` and ``send`` go through a real connection on loopback
to a server in another process that reads and throws away.
"""

from __future__ import annotations

import asyncio
import base64
import json
import multiprocessing
import os
import time
from collections.abc import Callable
from multiprocessing.connection import Connection

from websockets.asyncio.server import ServerConnection, serve

from gateway.realtime.connection import Endpoint
from gateway.realtime.events import CreateResponse
from gateway.realtime.parse import parse_event
from gateway.realtime.session import Session
from gateway.realtime.session_object import session_object
from gateway.realtime.setup import open_session

ROUNDS = 20
MESSAGES = 500
FRAME = os.urandom(160)


def delta(audio_ms: int) -> bytes:
    """A ``response.output_audio.delta`` of G.711."""
    event = {
        "type": "response.output_audio.delta",
        "event_id": "event_CQ5wnjyV0ZjHkzGLoqXjf",
        "response_id": "resp_CQ5wmTgEPEHNJ0bNiBhTY",
        "item_id": "item_CQ5wmMcIvmGXHAFDKHKzM",
        "output_index": 0,
        "content_index": 0,
        "delta": base64.b64encode(os.urandom(audio_ms * 8)).decode(),
        "obfuscation": "xk2J9s",
    }
    return json.dumps(event, separators=(",", ":")).encode()


def best(work: Callable[[], object]) -> float:
    """Microseconds of processor time for one ``work()``."""
    rounds = []
    for _ in range(ROUNDS):
        started = time.process_time_ns()
        for _ in range(MESSAGES):
            work()
        rounds.append((time.process_time_ns() - started) / MESSAGES / 1000)
    return min(rounds)


async def best_awaiting(work: Callable[[], object], *, drain: Callable[[], bool]) -> float:
    """As :func:`best`, with time for the other end to read between rounds."""
    rounds = []
    for _ in range(ROUNDS):
        started = time.process_time_ns()
        for _ in range(MESSAGES):
            work()
        rounds.append((time.process_time_ns() - started) / MESSAGES / 1000)
        async with asyncio.timeout(10):
            while not drain():  # noqa: ASYNC110 - asyncio tells nobody when a buffer is empty
                await asyncio.sleep(0.01)
    return min(rounds)


def sink(port: Connection) -> None:
    """A server that sets sessions up and throws everything else away."""

    async def session(ws: ServerConnection) -> None:
        await ws.send('{"type":"session.created","session":{"id":"sess_1"}}')
        update = json.loads(await ws.recv())
        await ws.send(json.dumps({"type": "session.updated", "session": update["session"]}))
        async for _ in ws:
            pass

    async def main() -> None:
        async with serve(session, "127.0.0.1", 0, compression=None) as server:
            port.send(next(iter(server.sockets)).getsockname()[1])
            await asyncio.get_running_loop().run_in_executor(None, port.recv)

    asyncio.run(main())


async def sending(port: int) -> None:
    ignore: Callable[[object], None] = lambda _: None  # noqa: E731
    session: Session = await open_session(
        Endpoint(f"ws://127.0.0.1:{port}", "m", "key"),
        session_object({}, "PCMU", []),
        timeout=10,
        on_event=ignore,
        on_closed=ignore,
    )

    def drained() -> bool:
        return session._transport.get_write_buffer_size() == 0

    command = CreateResponse({"instructions": "Say goodbye."})
    append = await best_awaiting(lambda: session.append(FRAME), drain=drained)
    send = await best_awaiting(lambda: session.send(command), drain=drained)
    print(f"append of 20 ms, written to the socket   {append:7.1f} us")
    print(f"send of a response.create                {send:7.1f} us")
    print(f"  dropped: {session.counters.audio_dropped} of {ROUNDS * MESSAGES} appends")
    await session.close()


def main() -> None:
    for audio_ms in (20, 200, 1000):
        frame = delta(audio_ms)
        encoded = json.loads(frame)["delta"]
        parse = best(lambda frame=frame: parse_event(frame))  # type: ignore[misc]
        json_part = best(lambda frame=frame: json.loads(frame))  # type: ignore[misc]
        base64_part = best(lambda encoded=encoded: base64.b64decode(encoded))  # type: ignore[misc]
        print(
            f"parse of a {audio_ms:4} ms delta ({len(frame):5} B)     {parse:7.1f} us"
            f"   (JSON alone {json_part:.1f}, base64 alone {base64_part:.1f})"
        )
    ours, theirs = multiprocessing.get_context("spawn").Pipe()
    server = multiprocessing.get_context("spawn").Process(target=sink, args=(theirs,))
    server.start()
    try:
        asyncio.run(sending(ours.recv()))
    finally:
        ours.send("end")
        server.join(10)
        if server.is_alive():
            server.terminate()


if __name__ == "__main__":
    main()
