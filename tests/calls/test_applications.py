# SPDX-License-Identifier: GPL-2.0-or-later
"""Calls that an application decides over, with the official clients of OpenAI's SIP interface."""

from __future__ import annotations

import asyncio
import base64
import json
import runpy
import socket
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, nullcontext, suppress
from pathlib import Path
from typing import Any, cast

import httpx
import pytest
import uvicorn
from fastapi import FastAPI, WebSocket
from openai import APIStatusError, AsyncOpenAI, OpenAI
from websockets.asyncio.client import connect
from websockets.exceptions import ConnectionClosed, InvalidStatus

import gateway as package
from gateway.api import connections, hosted
from gateway.api.backend import hash_of
from gateway.bridge.sideband import OVER, QUEUED, TOO_SLOW, Sideband
from tests.support import idle_clock
from tests.support.gateway_process import WITHIN_S
from tests.support.harness import TRUSTED, GatewayStack, eventually
from tests.support.http_service import Answer, Asked, HttpService, http_service
from tests.support.official_types import check_live_client_event
from tests.support.sip_phone import PhoneCall

EXAMPLE = Path(package.__file__).parents[1] / "dialplans" / "application"
SECRET = "whsec_" + base64.b64encode(b"a key of webhooks, 32 bytes long").decode()
KEY, OTHER, ADMIN = "gw_application-11", "gw_other-application-22", "gw_admin-33"
TOKENS = [
    ("app", "application", KEY, ["asked", "rescued", "reject", "session", "live"]),
    ("other", "application", OTHER, ["plain"]),
    ("ops", "admin", ADMIN, []),
]
LIVE_ROUTE = """
[[route]]
name = "live"
to = "^live$"
fallback = []
[route.realtime]
url = "ws://127.0.0.1:{port}/v1/live/sessions"
api_key = "{key}"
model = "gpt-live-1"
[route.live]
instructions = "The route's own."
[route.application]
webhook = "app"
timeout = 60
"""
ROUTES = (
    LIVE_ROUTE
    + """
[[route]]
name = "asked"
to = "^asked$"
fallback = []
[route.application]
webhook = "app"
timeout = 60
[[route]]
name = "rescued"
to = "^rescued$"
[route.application]
webhook = "app"
timeout = 60
[[route]]
name = "reject"
to = "^reject$"
[route.application]
webhook = "app"
timeout = 0.3
on_timeout = "reject"
[[route]]
name = "session"
to = "^session$"
fallback = []
[route.session]
instructions = "The route's own."
[route.application]
webhook = "app"
timeout = 0.3
"""
)
SESSION: dict[str, Any] = {
    "type": "realtime",
    "model": "gpt-realtime-2.1",
    "instructions": "Say {hello}.",
}


def settings(url: str) -> str:
    """Lines of the configuration."""
    tokens = "".join(
        f'[[api.token]]\nname = "{name}"\nrole = "{role}"\nhash = "{hash_of(token)}"\n'
        f"routes = {json.dumps(routes)}\n"
        for name, role, token, routes in TOKENS
    )
    hook = f'[[webhook]]\nname = "app"\nurl = "{url}"\nsecret = "{SECRET}"\nevents = []\n'
    allowed = '[outbound]\nallowed_prefixes = ["+49"]\nmax_calls_per_minute = 1\n'
    return f'[api]\nlisten = "127.0.0.1:0"\n{tokens}{hook}{allowed}{TRUSTED}'


@pytest.fixture(scope="module")
def receiver() -> Iterator[HttpService]:
    """The application's address."""
    with http_service() as service:
        yield service


@pytest.fixture(scope="module")
def shared_world(
    runner: asyncio.Runner, receiver: HttpService, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[GatewayStack]:
    """A gateway whose routes ask the application."""
    folder = tmp_path_factory.mktemp("world")
    made = GatewayStack(folder, routes=ROUTES, more=settings(receiver.url))
    runner.run(made.start())
    yield made
    runner.run(made.stop())
    assert SECRET not in json.dumps(made.gateway.lines)
    assert KEY not in json.dumps(made.gateway.lines)


@pytest.fixture(autouse=True)
def _fresh(receiver: HttpService) -> None:
    receiver.asked.clear()
    receiver.answers = [Answer()]


def base_of(world: GatewayStack) -> str:
    """The base URL of the clients: the only thing that is another one."""
    return f"http://{world.gateway.all('api.listening')[-1]['address']}/v1"


@asynccontextmanager
async def application(world: GatewayStack, key: str = KEY) -> AsyncIterator[AsyncOpenAI]:
    """The official client."""
    async with AsyncOpenAI(api_key=key, base_url=base_of(world), max_retries=2) as client:
        yield client


async def incoming(receiver: HttpService) -> Any:
    """The event of the next webhook, checked by the official client."""
    await eventually(lambda: bool(receiver.asked), "a webhook")
    asked: Asked = receiver.asked[0]
    checked = OpenAI(api_key="none", webhook_secret=SECRET)
    return checked.webhooks.unwrap(asked.body.decode(), asked.headers)


async def ring(world: GatewayStack, user: str = "asked", *headers: str) -> PhoneCall:
    """A call, its INVITE just sent."""
    call = world.phone.call(user, headers=headers)
    call.invite()
    return call


async def test_an_application_accepts_steers_and_hangs_up(
    world: GatewayStack, receiver: HttpService
) -> None:
    receiver.answers = [Answer(seconds=0.5)]  # it accepts before it answers
    call = await ring(world, "asked", "X-Customer: 42", "X-Customer: 43")
    event = await incoming(receiver)
    assert event.type == "realtime.call.incoming"
    told = [(one.name, one.value) for one in event.data.sip_headers]
    assert ("X-Customer", "42") in told
    assert ("X-Customer", "43") in told
    assert call.responses in ([], [100])
    async with application(world) as client:
        await client.realtime.calls.accept(event.data.call_id, **SESSION)
        async with client.realtime.connect(call_id=event.data.call_id) as link:
            first: Any = await link.recv()
            assert first.type == "session.created"
            assert first.session.instructions == "Say {hello}."
            await link.session.update(
                session={"type": "realtime", "model": "another", "instructions": "Be brief."}
            )
            await link.response.create(response={"instructions": "Greet."})
            await call.answered()
            seen: list[Any] = []
            async with asyncio.timeout(20):
                async for event_of_session in link:
                    seen.append(event_of_session)
                    if event_of_session.type == "output_audio_buffer.stopped":
                        break
            kinds = [one.type for one in seen]
            updated = next(one for one in seen if one.type == "session.updated")
            assert (updated.session.model, updated.session.instructions) == ("another", "Be brief.")
            assert "response.done" in kinds
            assert "response.output_audio.delta" not in kinds
            assert kinds.count("output_audio_buffer.started") == 1, "before it stopped"
            call.rtp.press("5")
            async with asyncio.timeout(20):
                while (one := await link.recv()).type != "input_audio_buffer.dtmf_event_received":
                    pass
            assert one.event == "5"
            session = await world.session_of(call)
            assert (
                session.url_model == "gpt-realtime-2.1" if hasattr(session, "url_model") else True
            )
            await client.realtime.calls.hangup(event.data.call_id)
            await call.hung_up()
            with suppress(ConnectionClosed):
                while True:
                    await link.recv()
        with pytest.raises(APIStatusError) as gone:
            await client.realtime.calls.hangup(event.data.call_id)
    assert (gone.value.status_code, gone.value.code) == (404, "call_id_not_found")
    assert (await world.summary(call))["ending"]["by"] == "operator"


LIVE_SESSION: dict[str, Any] = {
    "type": "live",
    "model": "gpt-live-1.1",
    "instructions": "Say {hello}.",
    "delegation": {"type": "client"},
}


async def test_an_application_accepts_and_steers_a_live_session(
    world: GatewayStack, receiver: HttpService
) -> None:
    call = await ring(world, "live", "X-Customer: 42")
    event = await incoming(receiver)
    assert event.type == "live.transport.incoming"
    assert ("X-Customer", "42") in [(one.name, one.value) for one in event.data.sip_headers]
    session_id = event.data.session_id
    assert session_id.startswith("live_")
    async with application(world) as client:
        sessions = client.live.sessions
        with pytest.raises(APIStatusError) as wrong:
            await sessions.accept(session_id, session=cast(Any, {**LIVE_SESSION, "model": 1}))
        assert (wrong.value.status_code, wrong.value.param) == (400, "session.model")
        with pytest.raises(APIStatusError) as other:
            await client.realtime.calls.accept(session_id, **SESSION)
        assert (other.value.status_code, other.value.code) == (404, "call_id_not_found")
        await sessions.accept(session_id, session=cast(Any, LIVE_SESSION))
        async with (
            asyncio.timeout(30),
            client.live.sideband.connect(session_id=session_id) as link,
        ):
            seen: list[Any] = [await link.recv()]

            async def until(kind: str) -> Any:
                while seen[-1].type != kind:
                    seen.append(await link.recv())
                return seen[-1]

            first = await until("session.started")
            assert first.session.instructions == "Say {hello}."
            await call.answered()
            session = await world.session_of(call)
            await link.session.commentary.append(
                content="Hello there.", delegation_id=None, event_id="mine"
            )
            assert (await until("session.commentary.appended")).client_event_id == "mine"
            await until("session.output_transcript.delta")
            call.rtp.press("5")
            assert (await until("transport.dtmf.received")).event == "5"
            await link.transport.dtmf.send(event="7")
            assert (await until("transport.dtmf.sent")).event == "7"
            await link.session.update(session={"delegation": {"type": "client"}}, event_id="more")
            assert (await until("session.updated")).client_event_id == "more"
            await link.send(cast(Any, {"type": "session.input_audio.append", "audio": ""}))
            assert (await until("error")).error.code == "invalid_value"
            assert "session.output_audio.delta" not in [one.type for one in seen]
            await link.session.close()
            await call.hung_up()
            assert (await until("session.closed")).reason == "close_requested"
            with pytest.raises(ConnectionClosed):
                await link.recv()
        with pytest.raises(APIStatusError) as gone:
            await sessions.hangup(session_id)
        assert (gone.value.status_code, gone.value.code) == (404, "session_id_not_found")
        assert not session.errors
        for sent in session.client_events:
            check_live_client_event(sent.body)
    assert (await world.summary(call))["ending"]["by"] == "operator"


async def test_a_live_call_is_rejected_referred_and_ended_by_the_caller(
    world: GatewayStack, receiver: HttpService
) -> None:
    call = await ring(world, "live")
    async with application(world) as client:
        sessions = client.live.sessions
        session_id = (await incoming(receiver)).data.session_id
        await sessions.reject(session_id, status_code=486)
        assert (await call.refused()).code == 486
        await world.summary(call)
        receiver.asked.clear()
        call = await ring(world, "live")
        session_id = (await incoming(receiver)).data.session_id
        with pytest.raises(APIStatusError) as early:
            await sessions.refer(session_id, target_uri="tel:+4930123")
        assert early.value.code == "call_not_accepted"
        await sessions.accept(session_id, session=cast(Any, LIVE_SESSION))
        await call.answered()
        await world.gateway.wait("call.confirmed", call=call.call_id)
        with pytest.raises(APIStatusError) as closed:
            await sessions.refer(session_id, target_uri="tel:+1900123")
        assert closed.value.code == "target_not_allowed"
        async with (
            asyncio.timeout(20),
            client.live.sideband.connect(session_id=session_id) as link,
        ):
            await call.hang_up()
            while (last := await link.recv()).type != "session.closed":
                pass
            assert last.reason == "remote_hangup"
    assert (await world.summary(call))["ending"]["by"] == "caller"


@pytest.mark.parametrize("code", [None, 486])
async def test_an_application_rejects(
    world: GatewayStack, receiver: HttpService, code: int | None
) -> None:
    call = await ring(world)
    event = await incoming(receiver)
    async with application(world) as client:
        given: dict[str, Any] = {} if code is None else {"status_code": code}
        await client.realtime.calls.reject(event.data.call_id, **given)
    assert (await call.refused()).code == (code or 603)
    summary = await world.summary(call)
    assert (summary["ending"]["why"], summary["ending"]["sip_code"]) == ("application", code or 603)
    assert summary["times_ms"]["end"] > 0
    assert summary["explanation"][-1] == f"application: app rejected it with {code or 603}"


async def test_without_a_decision_the_route_s_own_way_is_taken(
    world: GatewayStack, receiver: HttpService
) -> None:
    receiver.answers = [Answer(500)]
    refused = await ring(world, "reject")
    assert (await refused.refused()).code == 480
    call = await world.dial("session")
    session = await world.session_of(call)
    assert session.seen("session.update")[0].body["session"]["instructions"] == "The route's own."
    record = await world.summary_at_end(call)
    assert record["ending"]["why"] == "remote_hangup"


async def test_an_operator_hangs_up_before_the_decision(
    world: GatewayStack, receiver: HttpService
) -> None:
    call = await ring(world)
    event = await incoming(receiver)
    name = event.data.call_id.removeprefix("rtc_")
    headers = {"Authorization": f"Bearer {ADMIN}"}
    path = f"{base_of(world).removesuffix('/v1')}/api/v1/calls"
    async with httpx.AsyncClient(headers=headers, trust_env=False, timeout=WITHIN_S) as http:
        assert name in (await http.get(path)).text
        assert (await http.post(f"{path}/{name}/hangup")).json() == {"call": name}
        assert (await http.post(f"{path}/{name}/hangup")).status_code == 404
    assert (await call.refused()).code == 480
    ending = (await world.summary(call))["ending"]
    assert (ending["by"], ending["why"], ending["sip_code"]) == ("operator", "operator", 480)


async def test_a_caller_gives_up_before_the_decision(
    world: GatewayStack, receiver: HttpService
) -> None:
    call = await ring(world)
    event = await incoming(receiver)
    call.cancel()
    assert (await call.refused()).code == 487
    assert (await world.summary(call))["ending"]["why"] == "cancelled"
    async with application(world) as client:
        with pytest.raises(APIStatusError) as late:
            await client.realtime.calls.accept(event.data.call_id, **SESSION)
    assert late.value.status_code == 404
    assert len(receiver.asked) == 1


async def test_what_is_refused_and_what_is_taken_twice(
    world: GatewayStack, receiver: HttpService
) -> None:
    call = await ring(world)
    call_id = (await incoming(receiver)).data.call_id
    path = f"/realtime/calls/{call_id}"

    async def post(what: str, body: Any = None, key: str = KEY, name: str = path) -> Any:
        async with httpx.AsyncClient(
            base_url=base_of(world), trust_env=False, timeout=WITHIN_S
        ) as http:
            headers = {"Authorization": f"Bearer {key}", "Content-Type": "application/json"}
            content = b"" if body is None else json.dumps(body).encode()
            answer = await http.post(f"{name}/{what}", content=content, headers=headers)
        error = answer.json()["error"] if answer.content else {}
        assert answer.status_code == 200 or answer.headers["x-should-retry"] == "false"
        return answer.status_code, error.get("code"), error.get("param")

    assert await post("accept", SESSION, "gw_wrong") == (401, "invalid_api_key", None)
    assert await post("accept", SESSION, ADMIN) == (403, "forbidden", None)
    async with httpx.AsyncClient(trust_env=False, timeout=WITHIN_S) as http:
        status = base_of(world).replace("/v1", "/api/v1/status")
        answer = await http.get(status, headers={"Authorization": f"Bearer {KEY}"})
        assert answer.status_code == 403
    unknown = (404, "call_id_not_found", None)
    assert await post("accept", SESSION, OTHER) == unknown
    assert await post("accept", SESSION, name="/realtime/calls/rtc_none") == unknown
    assert await post("hangup") == (400, "call_not_accepted", None)
    assert await post("accept", {}) == (400, "invalid_value", "type")
    assert await post("accept", []) == (400, "invalid_json", None)
    wrong = {**SESSION, "audio": {"output": {"speed": "fast"}}}
    assert await post("accept", wrong) == (400, "invalid_value", "audio.output.speed")
    assert await post("reject", {"status_code": 200}) == (400, "invalid_value", "status_code")
    assert await post("accept", {**SESSION, "instructions": "a" * 2**20}) == (413, "too_long", None)
    address = base_of(world).replace("http", "ws") + f"/realtime?call_id={call_id}"
    with pytest.raises(InvalidStatus) as unknown_call:
        await connect(address, additional_headers={"Authorization": f"Bearer {KEY}"})
    assert unknown_call.value.response.status_code == 404
    assert b"call_id_not_found" in unknown_call.value.response.body
    for _again in range(2):
        assert await post("accept", SESSION) == (200, None, None)
    assert await post("reject", {}) == (400, "call_already_decided", None)
    await call.answered()
    await world.gateway.wait("call.confirmed", call=call.call_id)
    assert await post("refer", {}) == (400, "missing_required_parameter", "target_uri")
    assert await post("refer", {"target_uri": "http://x"}) == (400, "invalid_value", "target_uri")
    assert await post("refer", {"target_uri": "tel:+331"}) == (
        403,
        "target_not_allowed",
        "target_uri",
    )
    # One a minute is allowed: it is asked about here and where the REFER is sent, and counts once.
    assert await post("refer", {"target_uri": "tel:+4930123"}) == (200, None, None)
    await call.until(lambda one: any(m.start.startswith("REFER ") for m in one.messages))
    await call.hang_up()
    assert (await world.summary(call))["ending"]["why"] == "transferred"


async def test_calls_of_the_application_s_functions_are_left_to_it(
    world: GatewayStack, receiver: HttpService
) -> None:
    weather = {"kind": "nothing", "tools": [{"name": "weather"}]}
    world.behave(answers=[weather, {"kind": "say", "text": "Rain."}])
    receiver.answers = [Answer(500), Answer()]
    call = await ring(world)
    await eventually(lambda: len(receiver.asked) > 1, "a second attempt")
    first, second = (one.headers for one in receiver.asked)
    assert first["webhook-id"] == second["webhook-id"]
    assert first["webhook-timestamp"] < second["webhook-timestamp"]
    call_id = (await incoming(receiver)).data.call_id
    async with application(world) as client:
        tool = {"type": "function", "name": "weather", "parameters": {"type": "object"}}
        await client.realtime.calls.accept(call_id, **{**SESSION, "tools": [tool]})
        async with client.realtime.connect(call_id=call_id) as link, asyncio.timeout(20):
            await link.response.create()
            one: Any = None
            async for one in link:
                if one.type == "response.done":
                    break
            (item,) = one.response.output
            assert (item.type, item.name) == ("function_call", "weather")
            answer = {"type": "function_call_output", "call_id": item.call_id, "output": "rain"}
            await link.conversation.item.create(item=cast(Any, answer))
            await link.send({"type": "response.cancel", "event_id": "wrong"})
            async for one in link:
                if one.type == "error":
                    break
            assert one.error.event_id == "wrong"
            await link.send({"type": "input_audio_buffer.append", "audio": "", "event_id": "no"})
            async for one in link:
                if one.type == "error":
                    break
            assert one.error.event_id == "no"
            await link.response.create()
            async for one in link:
                if one.type == "output_audio_buffer.stopped":
                    break
        sent = await world.session_of(call)
        outputs = [
            event.body["item"]["output"]
            for event in sent.seen("conversation.item.create")
            if event.body["item"]["type"] == "function_call_output"
        ]
        assert outputs == ["rain"]
        assert len(sent.seen("response.create")) == 2
    await world.summary_at_end(call)


async def test_an_interruption_is_told_with_what_was_heard(
    world: GatewayStack, receiver: HttpService
) -> None:
    world.behave(
        answers=[{"kind": "tones", "seconds": 5}, {"kind": "silent"}],
        vad="scripted",
        speech={"at_ms": [1500], "length_ms": 200},
    )
    call = await ring(world)
    call_id = (await incoming(receiver)).data.call_id
    async with application(world) as client:
        await client.realtime.calls.accept(call_id, **SESSION)
        async with client.realtime.connect(call_id=call_id) as link, asyncio.timeout(20):
            await link.response.create()
            kinds: list[str] = []
            while "conversation.item.truncated" not in kinds:
                kinds.append((await link.recv()).type)
    assert kinds.index("output_audio_buffer.started") < kinds.index("output_audio_buffer.cleared")
    assert "output_audio_buffer.stopped" not in kinds
    await world.summary_at_end(call)  # it goes on without its application


async def test_a_session_that_replaces_a_lost_one_has_what_the_application_said_last(
    world: GatewayStack, receiver: HttpService
) -> None:
    lost = {"at": "response.done", "drop": True, "first_sessions": 1}
    world.behave(answers=[{"kind": "say", "text": "Good day."}], end=lost)
    call = await ring(world, "rescued")
    call_id = (await incoming(receiver)).data.call_id
    async with application(world) as client:
        await client.realtime.calls.accept(call_id, **{**SESSION, "model": "gpt-lost"})
        async with client.realtime.connect(call_id=call_id) as link, asyncio.timeout(20):
            told: Any = {"type": "realtime", "instructions": "The last."}
            await link.session.update(session=told)
            await link.response.create()

            def updates() -> list[Any]:
                return [
                    one.seen("session.update")
                    for one in world.emulator.sessions
                    if one.model == "gpt-lost"
                ]

            await eventually(lambda: len(updates()) > 1 and bool(updates()[1]), "another session")
            asked = updates()[1][0].body["session"]
            assert asked["instructions"] == "The last."
            call.rtp.press("7")
            while (await link.recv()).type != "input_audio_buffer.dtmf_event_received":
                pass
    await world.summary_at_end(call)


async def test_a_shutdown_refuses_what_waits(own_folder: Path, receiver: HttpService) -> None:
    world = GatewayStack(own_folder, routes=ROUTES, more=settings(receiver.url))
    await world.start()
    call = await ring(world)
    await incoming(receiver)
    status = await world.gateway.stop()
    assert (await call.refused()).code == 503
    assert (await world.summary(call))["ending"]["why"] == "shutdown"
    await world.stop(status)


@pytest.mark.usefixtures("runner")
async def test_a_follower_that_does_not_read_is_let_go() -> None:
    over: list[bool] = []
    sideband = Sideband(lambda: over.append(True))
    sideband.up({"id": "s"})
    slow, quick = sideband.attach(), sideband.attach()
    for number in range(QUEUED + 1):
        sideband.received(json.dumps({"type": "x", "number": number}).encode())
        assert await quick.next()
    assert await slow.next() is None
    assert slow.close_code == TOO_SLOW
    sideband.end()
    assert [await quick.next() is None, await quick.next() is None] == [False, True]
    assert (quick.close_code, over) == (OVER, [True])


class _Chatty:
    """The WebSocket of an application that sends as fast as it is read."""

    def __init__(self, count: int) -> None:
        self._left = count

    async def receive(self) -> dict[str, str]:
        self._left -= 1
        if self._left < 0:
            return {"type": "websocket.disconnect"}
        return {"type": "websocket.receive", "text": '{"type": "output_audio_buffer.clear"}'}


@pytest.mark.usefixtures("runner")
async def test_an_application_is_read_no_faster_than_it_may_send(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(hosted, "EVENTS_AT_ONCE", 5)
    acts: list[Any] = []
    sideband = Sideband(lambda: None)
    sideband.act = acts.append
    began = asyncio.get_running_loop().time()
    await hosted._joined(cast("Any", _Chatty(10)), sideband, sideband.attach())
    took = asyncio.get_running_loop().time() - began
    assert len(acts) == 10
    assert took > 3 / hosted.EVENTS_PER_SECOND


def test_a_quiet_websocket_outlives_the_deadline_of_requests(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(connections, "REQUEST_SECONDS", 0.1)
    app = FastAPI()

    @app.websocket("/quiet")
    async def quiet(link: WebSocket) -> None:
        await link.accept()
        await link.send_text(await link.receive_text())

    async def main() -> None:
        listener = socket.create_server(("127.0.0.1", 0))
        http, ws = connections.Connection, "websockets-sansio"
        config = uvicorn.Config(app, http=http, ws=ws, log_config=None, lifespan="off")
        server = uvicorn.Server(config)
        monkeypatch.setattr(server, "capture_signals", nullcontext)
        serving = asyncio.create_task(server.serve(sockets=[listener]))
        async with connect(f"ws://127.0.0.1:{listener.getsockname()[1]}/quiet") as link:
            await asyncio.sleep(0.3)
            await link.send("still here")
            assert await link.recv() == "still here"
        server.should_exit = True
        await serving

    idle_clock.run(main())


async def test_the_agents_example_answers_a_call(
    world: GatewayStack, receiver: HttpService, monkeypatch: pytest.MonkeyPatch
) -> None:
    """``dialplans/application``: it accepts in its webhook's handler, and its tools are used."""
    monkeypatch.setenv("GATEWAY_URL", base_of(world).removesuffix("/v1"))
    monkeypatch.setenv("GATEWAY_TOKEN", KEY)
    monkeypatch.setenv("WEBHOOK_SECRET", SECRET)
    example = runpy.run_path(str(EXAMPLE / "agent_app.py"))
    wanted = {"name": "opening_hours", "arguments": '{"day": "Monday"}'}
    answers = [{"kind": "nothing", "tools": [wanted]}, {"kind": "say", "text": "Nine to six."}]
    world.behave(answers=[*answers, {"kind": "silent"}])
    call = await ring(world)
    await incoming(receiver)
    asked = receiver.asked[0]
    handler = httpx.ASGITransport(app=example["app"])
    async with httpx.AsyncClient(transport=handler, base_url="http://app") as hook:
        forged = {**asked.headers, "webhook-signature": "v1,AAAA"}
        refused = await hook.post("/webhook", content=asked.body, headers=forged)
        taken = await hook.post("/webhook", content=asked.body, headers=asked.headers)
    assert (refused.status_code, taken.status_code) == (400, 200)
    await call.answered()
    session = await world.session_of(call)
    await session.wait_until(lambda s: len(s.sent("response.done")) == 2, 20)
    outputs = [
        event.body["item"]["output"]
        for event in session.seen("conversation.item.create")
        if event.body["item"]["type"] == "function_call_output"
    ]
    assert outputs == ["9 to 18"]
    await call.hang_up()
    await eventually(lambda: not example["calls"], "the agent's end")
    await world.summary(call)
