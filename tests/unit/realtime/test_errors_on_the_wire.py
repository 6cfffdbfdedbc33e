# SPDX-License-Identifier: GPL-2.0-or-later
"""Each row of the tables of errors and close codes, over a real WebSocket to the emulator."""

from __future__ import annotations

import asyncio
from typing import Any

from gateway.devtools.emulator import Emulator
from gateway.devtools.emulator.script import CLOSE_CODES as SENDABLE
from gateway.realtime.connection import Endpoint
from gateway.realtime.errors import (
    CLOSE_CODES,
    ERROR_CODES,
    HANDSHAKE_STATUSES,
    Kind,
    SetupFailed,
    Verdict,
    at_setup,
    classify_close,
    classify_error,
    classify_handshake,
)
from gateway.realtime.events import CreateResponse, ResponseDone, ServerError
from gateway.realtime.session import Session
from gateway.realtime.session_object import session_object
from gateway.realtime.setup import open_session
from tests.support.scripted_realtime import Heard

QUIET = {"answer": "quiet", "answer__seconds": 0.1, "speed": 100}


async def opened(emulator: Emulator, heard: Heard, **behaviour: Any) -> Session:
    return await open_session(
        Endpoint(emulator.url(**behaviour), "gpt-realtime-2.1", "key"),
        session_object({"instructions": "Be short."}, "PCMU", []),
        timeout=10,
        on_event=heard.on_event,
        on_closed=heard.on_closed,
    )


async def refused(emulator: Emulator, **behaviour: Any) -> Verdict:
    try:
        session = await opened(emulator, Heard(), **behaviour)
    except SetupFailed as failure:
        return failure.verdict
    await session.close()
    raise AssertionError(f"a session came up with {behaviour}")


def test_errors_in_a_session_are_survived_or_end_it_as_the_table_says() -> None:
    async def scenario() -> None:
        async with Emulator() as emulator:
            for code, (kind, _, ends) in ERROR_CODES.items():
                heard = Heard()
                refuse = {"refuse__step": "response.create", "refuse__code": code}
                session = await opened(emulator, heard, **refuse, refuse__times=1, **QUIET)
                event_id = session.send(CreateResponse())
                await heard.until(lambda h=heard: errors(h) != [])  # type: ignore[misc]
                [error] = errors(heard)
                verdict = classify_error(error)
                assert (error.code, error.client_event_id) == (code, event_id)
                assert (verdict.kind, verdict.ends_session) == (kind, ends), code
                # The socket is still open: what follows is served.
                session.send(CreateResponse())
                await heard.until(lambda h=heard: done(h) != [])  # type: ignore[misc]
                assert heard.closed == []
                await session.close()

    asyncio.run(scenario())


def test_errors_instead_of_a_session_are_tried_again_or_fatal() -> None:
    async def scenario() -> None:
        async with Emulator() as emulator:
            for code in ERROR_CODES:
                verdict = await refused(emulator, refuse__step="connect", refuse__code=code)
                assert verdict == at_setup(classify_error(ServerError(code, ""))), code

    asyncio.run(scenario())


def test_closes_in_a_session_and_instead_of_one() -> None:
    sendable = [code for code in CLOSE_CODES if code in SENDABLE or code >= 3000]
    assert {*CLOSE_CODES} - {*sendable} == {1006, 1015}

    async def scenario() -> None:
        async with Emulator() as emulator:
            for code in [*sendable, 4999]:
                heard = Heard()
                end = {"end__code": code, "end__at": "response.create"}
                session = await opened(emulator, heard, **end)
                session.send(CreateResponse())
                closed = await heard.end()
                assert (closed.code, closed.by_us) == (code, False)
                assert closed.verdict == classify_close(code, "")
                verdict = await refused(emulator, end__code=code, end__at="session.update")
                assert verdict == at_setup(classify_close(code, "")), code
                assert session.closed
            heard = Heard()
            session = await opened(emulator, heard, end__at="response.create", end__drop="true")
            session.send(CreateResponse())
            closed = await heard.end()
            assert (closed.code, closed.verdict.kind) == (1006, Kind.RETRYABLE)

    asyncio.run(scenario())


def test_statuses_that_refuse_the_upgrade() -> None:
    async def scenario() -> None:
        async with Emulator() as emulator:
            for status in [*HANDSHAKE_STATUSES, 500, 502, 503, 504]:
                behaviour = {"refuse__step": "upgrade", "refuse__http_status": status}
                assert await refused(emulator, **behaviour) == classify_handshake(status)

    asyncio.run(scenario())


def errors(heard: Heard) -> list[ServerError]:
    return [event for event in heard.events if isinstance(event, ServerError)]


def done(heard: Heard) -> list[ResponseDone]:
    return [event for event in heard.events if isinstance(event, ResponseDone)]
