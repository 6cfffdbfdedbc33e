# SPDX-License-Identifier: GPL-2.0-or-later
"""Setting a session up, and every way in which that fails, on a real WebSocket on loopback."""

from __future__ import annotations

import asyncio
import gc
import logging
import shutil
import socket
import ssl
import subprocess
import traceback
from http import HTTPStatus
from pathlib import Path
from typing import Any

import pytest
from structlog.testing import capture_logs
from websockets.asyncio.server import ServerConnection
from websockets.http11 import Request, Response

from gateway.realtime import setup
from gateway.realtime.connection import Endpoint
from gateway.realtime.errors import Kind, SetupFailed, Step
from gateway.realtime.events import OtherEvent
from gateway.realtime.session import Session
from gateway.realtime.session_object import session_object
from gateway.realtime.setup import open_session, open_with_retry
from tests.support import idle_clock
from tests.support.harness import closed_port
from tests.support.scripted_realtime import (
    KEY,
    WAIT,
    Heard,
    Peer,
    Server,
    client_tasks,
    opened,
    serving,
)

ASKED = session_object(
    {"instructions": "Be short.", "audio": {"output": {"voice": "x"}}}, "PCMA", []
)


async def quiet(peer: Peer) -> None:
    await peer.set_up()
    await peer.until_closed()


async def attempt(
    url: str, heard: Heard, *, within: float = WAIT, retry: bool = False, **endpoint: Any
) -> Session:
    return await (open_with_retry if retry else open_session)(
        Endpoint(url, "gpt-realtime-2.1", KEY, **endpoint),
        ASKED,
        timeout=within,
        on_event=heard.on_event,
        on_closed=heard.on_closed,
    )


@pytest.mark.skipif(shutil.which("openssl") is None, reason="openssl makes the certificate")
def test_a_server_whose_certificate_is_of_a_ca_of_ones_own(tmp_path: Path) -> None:
    key, certificate = tmp_path / "key.pem", tmp_path / "certificate.pem"
    options = "req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -days 3 -subj /CN=test"
    options += f" -addext subjectAltName=IP:127.0.0.1 -keyout {key} -out {certificate}"
    subprocess.run(["openssl", *options.split()], check=True, capture_output=True)
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(certificate, key)

    async def scenario() -> None:
        async with serving(quiet, ssl=context) as server:
            url, heard = server.url.replace("ws://", "wss://"), Heard()
            session = await attempt(url, heard, ca=str(certificate))
            session.append(b"\xd5" * 160)
            await session.close()
            with pytest.raises(SetupFailed) as failed:
                await attempt(url, heard)
            assert (failed.value.verdict.kind, failed.value.verdict.code) == (Kind.FATAL, "tls")

    asyncio.run(scenario())


def test_a_session_comes_up_with_the_settings_and_nothing_before_them() -> None:
    async def scenario() -> tuple[Server, Session, Heard, list[Any]]:
        async def script(peer: Peer) -> None:
            await peer.send("session.created", session={"id": "sess_1", "voice": "default"})
            await peer.send("conversation.created", conversation={"id": "conv_1"})
            update = await peer.receive()
            await peer.send("session.updated", session={"id": "sess_1", **update["session"]})
            await peer.until_closed()

        async with serving(script) as server:
            heard = Heard()
            with capture_logs() as logs:
                session = await attempt(f"{server.url}?script=x", heard)
                session.append(b"\xd5" * 160)
                await heard.until(lambda: bool(heard.events))
                await session.close()
            return server, session, heard, logs

    server, session, heard, logs = asyncio.run(scenario())
    (peer,) = server.peers
    assert peer.ws.request is not None
    assert peer.ws.request.path == "/v1/realtime?script=x&model=gpt-realtime-2.1"
    headers = peer.ws.request.headers
    assert headers["Authorization"] == f"Bearer {KEY}"
    assert "OpenAI-Beta" not in headers
    assert "Sec-WebSocket-Extensions" not in headers, "compression offered"
    update, *rest = peer.received
    assert update.pop("event_id")
    assert update == {"type": "session.update", "session": ASKED}
    assert [event["type"] for event in rest] == ["input_audio_buffer.append"]
    assert session.effective["voice"] == "default"
    assert session.effective["instructions"] == "Be short."
    assert [type(event) for event in heard.events] == [OtherEvent], "an early event was lost"
    assert [entry["event"] for entry in logs] == [
        "session.connecting",
        "session.up",
        "session.closed",
    ]
    assert logs[0]["url"] == server.url
    assert logs[1]["session"] == logs[2]["session"] == "sess_1"
    assert logs[1]["ms"] >= 0


def test_azure_key_header_and_own_headers() -> None:
    async def scenario() -> Any:
        async with serving(quiet) as server:
            session = await attempt(
                server.url, Heard(), api_key_header="api-key", headers={"OpenAI-Project": "p"}
            )
            await session.close()
            return server.peers[0].ws.request

    request = asyncio.run(scenario())
    assert request.headers["api-key"] == KEY
    assert request.headers["OpenAI-Project"] == "p"
    assert "Authorization" not in request.headers


def test_a_proxy_in_the_environment_is_not_used(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("http_proxy", "https_proxy", "all_proxy", "ws_proxy", "wss_proxy"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
        monkeypatch.setenv(name.upper(), "http://127.0.0.1:9")
    monkeypatch.delenv("no_proxy", raising=False)

    async def scenario() -> None:
        async with serving(quiet) as server:
            session = await opened(server, Heard())
            await session.close()

    asyncio.run(scenario())


# --- every way to fail: (name, step, kind, code, part of the detail) --------------------------

SAYS_KEY = f"Incorrect API key provided: {KEY}."


async def refuses_key(peer: Peer) -> None:
    await peer.error("invalid_api_key", SAYS_KEY)
    await peer.ws.close(3000, "invalid_request_error.invalid_api_key")


async def closes_4004(peer: Peer) -> None:
    await peer.ws.close(4004, "invalid_request_error.model_not_found")


async def closes_normally(peer: Peer) -> None:
    await peer.ws.close(1000, KEY)


async def cuts(peer: Peer) -> None:
    peer.ws.transport.abort()


async def refuses_update(peer: Peer) -> None:
    await peer.send("session.created", session={"id": "sess_1"})
    update = await peer.receive()
    await peer.error(
        "unknown_parameter",
        f"Unknown parameter, {KEY}",
        param="session.audio.output.format",
        event_id=update["event_id"],
    )
    await peer.until_closed()


async def refuses_update_in_unknown_words(peer: Peer) -> None:
    await peer.send("session.created", session={"id": "sess_1"})
    update = await peer.receive()
    await peer.error("code_of_tomorrow", "No.", event_id=update["event_id"])
    await peer.until_closed()


async def is_overloaded(peer: Peer) -> None:
    await peer.send("error", error={"type": "server_error", "code": None, "message": "Oops"})
    await peer.until_closed()


async def closes_after_update(peer: Peer) -> None:
    await peer.send("session.created", session={"id": "sess_1"})
    await peer.receive()
    await peer.ws.close(1011, f"bad {KEY}")


async def closes_before_update(peer: Peer) -> None:
    # The update may meet a closed connection or be answered by the close.
    await peer.send("session.created", session={"id": "sess_1"})
    await peer.ws.close(1013, "later")


async def speaks_pcm(peer: Peer) -> None:
    await peer.send("session.created", session={"id": "sess_1"})
    await peer.receive()
    pcm = {"format": {"type": "audio/pcm", "rate": 24000}}
    await peer.send("session.updated", session={"audio": {"input": pcm, "output": pcm}})
    await peer.until_closed()


async def names_no_output_format(peer: Peer) -> None:
    await peer.send("session.created", session={"id": "sess_1"})
    await peer.receive()
    alaw = {"format": {"type": "audio/pcma"}}
    await peer.send("session.updated", session={"audio": {"input": alaw, "output": {}}})
    await peer.until_closed()


async def says_nothing(peer: Peer) -> None:
    await peer.until_closed()


async def reads_nothing(peer: Peer) -> None:
    await peer.hang()


async def never_updates(peer: Peer) -> None:
    await peer.send("session.created", session={"id": "sess_1"})
    await peer.ws.send("garbage")
    await peer.until_closed()


FAILURES: list[tuple[Any, Step, Kind, str, str]] = [
    (refuses_key, Step.CREATED, Kind.FATAL, "invalid_api_key", "Incorrect API key provided: ***"),
    (closes_4004, Step.CREATED, Kind.FATAL, "model_not_found", "close 4004"),
    (closes_normally, Step.CREATED, Kind.RETRYABLE, "1000", "close 1000 ***"),
    (cuts, Step.CREATED, Kind.RETRYABLE, "1006", "close 1006"),
    (is_overloaded, Step.CREATED, Kind.RETRYABLE, "server_error", "Oops"),
    (
        refuses_update,
        Step.UPDATED,
        Kind.FATAL,
        "unknown_parameter",
        "session.audio.output.format: Unknown parameter, *** (for servers with 24 kHz PCM only",
    ),
    (refuses_update_in_unknown_words, Step.UPDATED, Kind.FATAL, "code_of_tomorrow", "No."),
    (closes_after_update, Step.UPDATED, Kind.RETRYABLE, "1011", "close 1011 bad ***"),
    (closes_before_update, Step.UPDATED, Kind.RETRYABLE, "1013", "close 1013 later"),
    (speaks_pcm, Step.UPDATED, Kind.FATAL, "audio_format", "audio.input.format audio/pcm"),
    (
        names_no_output_format,
        Step.UPDATED,
        Kind.FATAL,
        "audio_format",
        "audio.output.format missing",
    ),
    (says_nothing, Step.CREATED, Kind.RETRYABLE, "timeout", "after 8 s"),
    (reads_nothing, Step.CREATED, Kind.RETRYABLE, "timeout", "after 8 s"),
    (never_updates, Step.UPDATED, Kind.RETRYABLE, "timeout", "after 8 s"),
]


@pytest.mark.parametrize(
    ("script", "step", "kind", "code", "detail"),
    FAILURES,
    ids=[row[0].__name__ for row in FAILURES],
)
def test_failed_set_ups(
    script: Any, step: Step, kind: Kind, code: str, detail: str, caplog: pytest.LogCaptureFixture
) -> None:
    async def scenario() -> SetupFailed:
        async with serving(script) as server:
            heard = Heard()
            with pytest.raises(SetupFailed) as caught:
                await attempt(
                    f"{server.url}?api-key={KEY}",
                    heard,
                    within=8.0,
                    # Pings would find and cut a connection that was left behind.
                    ping_interval=None if script is reads_nothing else 5.0,
                )
            assert client_tasks() == []
            if script is not reads_nothing:
                await nothing_left(server)
            assert not heard.events
            assert not heard.closed, "a session that never was cannot end"
            return caught.value

    caplog.set_level(logging.DEBUG)
    with capture_logs() as logs:
        failure = idle_clock.run(scenario())
    assert (failure.step, failure.verdict.kind, failure.verdict.code) == (step, kind, code)
    assert failure.verdict.ends_session
    assert detail in failure.detail
    assert_key_unseen(failure, logs, caplog)
    assert [entry["event"] for entry in logs][-1] == "session.setup_failed"


@pytest.mark.parametrize(
    ("status", "kind"),
    [
        (400, Kind.FATAL),
        (401, Kind.FATAL),
        (403, Kind.FATAL),
        (404, Kind.FATAL),
        (429, Kind.RETRYABLE),
        (500, Kind.RETRYABLE),
        (503, Kind.RETRYABLE),
    ],
)
def test_refused_upgrades(status: int, kind: Kind, caplog: pytest.LogCaptureFixture) -> None:
    def refuse(ws: ServerConnection, request: Request) -> Response:
        return ws.respond(HTTPStatus(status), f'{{"error":"because\n of {KEY}"}}')

    async def scenario() -> SetupFailed:
        async with serving(quiet, process_request=refuse) as server:
            with pytest.raises(SetupFailed) as caught:
                await attempt(f"{server.url}?api-key={KEY}", Heard())
            await nothing_left(server)
            return caught.value

    caplog.set_level(logging.DEBUG)
    with capture_logs() as logs:
        failure = asyncio.run(scenario())
    assert (failure.step, failure.verdict.kind) == (Step.CONNECT, kind)
    assert failure.verdict.code == f"http {status}"
    assert failure.detail == '{"error":"because of ***"}'
    assert_key_unseen(failure, logs, caplog)


def test_a_redirect_does_not_carry_the_key_away() -> None:
    async def scenario() -> tuple[SetupFailed, int]:
        async with serving(quiet) as elsewhere:

            def redirect(ws: ServerConnection, request: Request) -> Response:
                response = ws.respond(HTTPStatus.FOUND, "")
                response.headers["Location"] = elsewhere.url
                return response

            async with serving(quiet, process_request=redirect) as server:
                with pytest.raises(SetupFailed) as caught:
                    await attempt(server.url, Heard())
            return caught.value, len(elsewhere.peers)

    failure, reached = asyncio.run(scenario())
    assert (failure.verdict.kind, failure.verdict.code) == (Kind.FATAL, "http 302")
    assert reached == 0


def test_nobody_listens_and_a_server_that_is_none(caplog: pytest.LogCaptureFixture) -> None:
    port = closed_port()

    async def not_http(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"220 mail.example.org ESMTP\r\n")
        await writer.drain()
        writer.close()

    async def scenario() -> list[SetupFailed]:
        failures = []
        for url in (f"ws://127.0.0.1:{port}", f"wss://127.0.0.1:{port}"):
            with pytest.raises(SetupFailed) as caught:
                await attempt(f"{url}?api-key={KEY}", Heard())
            failures.append(caught.value)
        async with await asyncio.start_server(not_http, "127.0.0.1", 0) as server:
            other = server.sockets[0].getsockname()[1]
            for url in (f"ws://127.0.0.1:{other}", f"wss://127.0.0.1:{other}"):
                with pytest.raises(SetupFailed) as caught:
                    await attempt(f"{url}?api-key={KEY}", Heard())
                failures.append(caught.value)
        return failures

    caplog.set_level(logging.DEBUG)
    with capture_logs() as logs:
        failures = asyncio.run(scenario())
    assert [(f.step, f.verdict.kind, f.verdict.code) for f in failures] == [
        (Step.CONNECT, Kind.RETRYABLE, "network"),
        (Step.CONNECT, Kind.RETRYABLE, "network"),
        (Step.CONNECT, Kind.RETRYABLE, "network"),
        (Step.CONNECT, Kind.FATAL, "tls"),
    ]
    for failure in failures:
        assert_key_unseen(failure, logs, caplog)


def test_a_server_that_accepts_and_never_upgrades_is_timed_out() -> None:
    async def scenario() -> SetupFailed:
        with socket.create_server(("127.0.0.1", 0)) as listener:
            port = listener.getsockname()[1]
            with pytest.raises(SetupFailed) as caught:
                await attempt(f"ws://127.0.0.1:{port}", Heard())
            assert client_tasks() == []
            return caught.value

    failure = idle_clock.run(scenario())
    assert (failure.step, failure.verdict.code) == (Step.CONNECT, "timeout")


@pytest.mark.parametrize("sent", ["nothing", "session.created", "session.updated too late"])
def test_cancelling_at_any_step_leaves_nothing(sent: str) -> None:
    """CANCEL may come at any moment of the set-up."""

    async def scenario() -> None:
        reached = asyncio.Event()

        async def script(peer: Peer) -> None:
            if sent != "nothing":
                await peer.send("session.created", session={"id": "sess_1"})
                await peer.receive()
            reached.set()
            await peer.until_closed()

        async with serving(script) as server:
            heard = Heard()
            opening = asyncio.create_task(attempt(server.url, heard))
            await reached.wait()
            if sent == "session.updated too late":
                # The answer is on its way when the cancel comes.
                await server.peers[0].send("session.updated", session=ASKED)
            opening.cancel()
            with pytest.raises(asyncio.CancelledError):
                await opening
            await nothing_left(server)
            assert not heard.closed

    asyncio.run(scenario())


def test_cancelling_after_each_turn_of_the_loop_leaves_nothing() -> None:
    """The same, at every point where the set-up can be interrupted at all."""

    async def scenario() -> int:
        turns = 0
        async with serving(quiet) as server:
            while True:
                turns += 1
                opening = asyncio.create_task(attempt(server.url, Heard()))
                for _ in range(turns):
                    await asyncio.sleep(0)
                opening.cancel()
                (result,) = await asyncio.gather(opening, return_exceptions=True)
                if isinstance(result, Session):
                    await result.close()
                    return turns
                assert isinstance(result, asyncio.CancelledError)
                await nothing_left(server)

    with_warnings_as_errors(scenario)


def test_retry_goes_on_until_the_server_is_there() -> None:
    async def scenario() -> tuple[int, list[Any]]:
        async def script(peer: Peer) -> None:
            if len(server.peers) < 3:
                await peer.ws.close(1013, "later")
                return
            await quiet(peer)

        async with serving(script) as server:
            with capture_logs() as logs:
                session = await attempt(server.url, Heard(), retry=True)
            await session.close()
            return len(server.peers), [e["wait_ms"] for e in logs if e["event"] == "session.retry"]

    assert idle_clock.run(scenario()) == (3, [250, 500])


def test_retry_gives_up_at_the_deadline_and_at_once_on_a_fatal_failure() -> None:
    async def scenario(script: Any, within: float) -> tuple[int, SetupFailed]:
        async with serving(script) as server:
            with pytest.raises(SetupFailed) as caught:
                await attempt(server.url, Heard(), within=within, retry=True)
            await nothing_left(server)
            return len(server.peers), caught.value

    # Tried again after 250 and 500 ms; not after 1,000 more.
    attempts, failure = idle_clock.run(scenario(is_overloaded, 1.2))
    assert (attempts, failure.verdict.code) == (3, "server_error")
    attempts, failure = idle_clock.run(scenario(refuses_key, WAIT))
    assert (attempts, failure.verdict.code) == (1, "invalid_api_key")


def test_the_key_is_in_no_log_of_a_good_session(caplog: pytest.LogCaptureFixture) -> None:
    async def scenario() -> Heard:
        async def script(peer: Peer) -> None:
            await peer.set_up()
            await peer.error("invalid_value", SAYS_KEY)
            await peer.ws.close(3000, f"{KEY}")

        async with serving(script) as server:
            heard = Heard()
            session = await attempt(f"{server.url}?api-key={KEY}", heard)
            await heard.end()
            await session.close()
            return heard

    caplog.set_level(logging.DEBUG)
    with capture_logs() as logs:
        heard = asyncio.run(scenario())
    for text in (repr(logs), gateway_log(caplog), repr(heard.events), repr(heard.closed)):
        assert KEY not in text
    assert "***" in repr(heard.events)
    assert heard.closed[0].reason == "***"


async def nothing_left(server: Server) -> None:
    """No socket at the server's end, no task of a client."""
    await server.until(lambda: server.open == 0)
    assert client_tasks() == []


def assert_key_unseen(
    failure: BaseException, logs: list[Any], caplog: pytest.LogCaptureFixture
) -> None:
    assert failure.__context__ is None
    shown = "".join(
        traceback.TracebackException.from_exception(failure, capture_locals=True).format()
    )
    for text in (str(failure), repr(failure), repr(vars(failure)), repr(logs)):
        assert KEY not in text
    assert KEY not in gateway_log(caplog)
    # The test's own frames hold the URL that they made.
    assert KEY not in shown.replace(f"api-key={KEY}", "")


def gateway_log(caplog: pytest.LogCaptureFixture) -> str:
    """What the process logged at DEBUG, without the test's own server."""
    ours = (record for record in caplog.records if record.name != "websockets.server")
    return "\n".join(f"{record.getMessage()} {record.exc_info}" for record in ours)


def with_warnings_as_errors(scenario: Any) -> None:
    """Run a coroutine so that what it never awaited or closed fails the test."""
    complaints: list[dict[str, Any]] = []

    async def watched() -> None:
        loop = asyncio.get_running_loop()
        loop.set_exception_handler(lambda _, context: complaints.append(context))
        await scenario()
        gc.collect()

    asyncio.run(watched())
    gc.collect()
    assert complaints == []


@pytest.mark.parametrize(
    ("value", "retried"),
    [("1", True), ("30", False), ("Wed, 21 Oct 2015 07:28:00 GMT", True), ("soon", True)],
)
def test_a_server_that_says_when_is_not_asked_before(value: str, retried: bool) -> None:
    async def scenario() -> tuple[int, SetupFailed, list[Any]]:
        asked = 0

        def refuse(ws: ServerConnection, _request: Request) -> Response:
            nonlocal asked
            asked += 1
            response = ws.respond(HTTPStatus.TOO_MANY_REQUESTS, "slow down")
            response.headers["Retry-After"] = value
            return response

        async with serving(quiet, process_request=refuse) as server:
            with capture_logs() as logs, pytest.raises(SetupFailed) as caught:
                await open_with_retry(
                    Endpoint(server.url, "gpt-realtime-2.1", KEY),
                    ASKED,
                    timeout=5.0,
                    on_event=lambda _event: None,
                    on_closed=lambda _closed: None,
                    attempts=2,
                )
        waits = [line["wait_ms"] for line in logs if line["event"] == "session.retry"]
        return asked, caught.value, waits

    asked, failure, waits = idle_clock.run(scenario())
    assert asked == (2 if retried else 1)
    assert failure.verdict.code == "http 429"
    if value.isdigit():
        assert failure.retry_after == float(value)
        assert waits == ([1000] if retried else [])


def test_a_wait_that_ends_after_the_deadline_is_not_begun(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(setup, "uniform", lambda _low, high: high)

    async def scenario() -> tuple[int, SetupFailed]:
        async with serving(is_overloaded) as server:
            with pytest.raises(SetupFailed) as caught:
                await attempt(server.url, Heard(), within=0.3, retry=True)
            return len(server.peers), caught.value

    # 0.25 s, a quarter added: 0.31 s
    attempts, failure = idle_clock.run(scenario())
    assert (attempts, failure.verdict.code) == (1, "server_error")


def test_a_server_that_answers_as_beta_is_named() -> None:
    async def scenario() -> str:
        async def script(peer: Peer) -> None:
            await peer.send("session.created", session={"id": "s", "input_audio_format": "pcm16"})
            await peer.receive()
            await peer.error(code="unknown_parameter", message="Unknown parameter: 'session.type'.")
            await peer.until_closed()

        async with serving(script) as server:
            with pytest.raises(SetupFailed) as caught:
                await attempt(server.url, Heard())
            return str(caught.value)

    assert 'realtime.dialect = "beta"' in asyncio.run(scenario())
