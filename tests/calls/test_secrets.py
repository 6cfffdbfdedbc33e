# SPDX-License-Identifier: GPL-2.0-or-later
"""Secrets of the configuration are looked for in everything that a gateway writes and answers."""

from __future__ import annotations

import base64
import json
from pathlib import Path
from typing import Any

import httpx

from tests.calls.test_api import API, TOKENS
from tests.support.gateway_process import WITHIN_S
from tests.support.harness import API_KEY, TRUSTED, GatewayStack, contents, eventually
from tests.support.http_service import Answer, http_service

CANARIES = {
    "header": "canary-realtime-header-1",
    "trunk": "canary-trunk-password-2",
    "hook": "whsec_" + base64.b64encode(b"canary of webhooks, 32 bytes lon").decode(),
    "hook_header": "canary-webhook-header-3",
    "route": "canary-route-key-4",
    "tool": "canary-tool-header-5",
}
ROUTES = f"""
[[route]]
name = "own"
to = "^own$"
fallback = []
[route.session]
instructions = "Your key is {CANARIES["route"]}."
[route.realtime]
api_key = "{CANARIES["route"]}"
[[route]]
name = "tooled"
to = "^tooled$"
[route.greeting]
say = "Hello."
[[route.tool]]
name = "look"
description = "Looks."
url = "http://127.0.0.1:9/"
headers = {{ Authorization = "Bearer {CANARIES["tool"]}" }}
"""


async def test_no_secret_is_in_any_log_record_error_or_page(own_folder: Path) -> None:
    with http_service() as receiver:
        more = (
            API
            + TRUSTED
            + (
                f'[control]\nsocket = "gateway.sock"\n[[webhook]]\nname = "all"\n'
                f'url = "{receiver.url}"\nsecret = "{CANARIES["hook"]}"\n'
                f'headers = {{ X-Key = "{CANARIES["hook_header"]}" }}\n'
                '[[trunk]]\nname = "carrier"\nregistrar = "127.0.0.1:9"\nusername = "us"\n'
                f'password = "{CANARIES["trunk"]}"\n'
            )
        )
        realtime = f'headers = {{ X-Own = "{CANARIES["header"]}" }}\n'
        world = GatewayStack(
            own_folder,
            routes=ROUTES,
            more=more,
            realtime=realtime,
            records="events = true\n",
        )
        await world.start()
        tool = {"name": "look", "arguments": "{}"}
        world.behave(vad="off", answers=[{"kind": "pattern", "seconds": 0.2, "tools": [tool]}])
        pages = []
        address = world.gateway.all("api.listening")[-1]["address"]
        headers = {"Authorization": f"Bearer {TOKENS['admin']}"}
        async with httpx.AsyncClient(
            base_url=f"http://{address}", trust_env=False, timeout=WITHIN_S
        ) as http:
            refused = world.phone.call("own")  # the emulator wants another key
            refused.invite()
            await refused.refused()
            call = await world.dial("tooled")
            session = await world.session_of(call)
            await session.wait_until(lambda s: bool(s.sent("response.done")), 20)
            (name,) = world.gateway.ids_of(call.call_id)
            described = (await http.get("/api/v1/openapi.json")).json()["paths"]
            for path, methods in described.items():
                where = path.replace("{call_id}", name).replace("{transfer}", "0")
                if path != "/api/v1/events" and "get" in methods:
                    pages.append(await http.get(where, headers=headers))
                elif path not in ("/api/v1/events", "/api/v1/drain", "/api/v1/calls"):
                    for body in ({"level": "debug"}, {"text": CANARIES["route"], "digits": "x"}):
                        method = next(iter(methods))
                        pages.append(await http.request(method, where, json=body, headers=headers))
            wrong = {"Authorization": "Bearer canary-wrong-token-6"}
            pages.append(await http.get("/api/v1/calls", headers=wrong))
            await call.hung_up()  # by the path of that name
            await world.summary(call)
            await eventually(lambda: len(receiver.asked) >= 2, "webhooks")
        status = await world.gateway.stop()
        await world.phone.stop()
        await world.emulator.stop()
        assert status == 0
    secrets = [*CANARIES.values(), API_KEY, *TOKENS.values(), "canary-wrong-token-6"]
    secrets.append(CANARIES["hook"].removeprefix("whsec_"))
    answers = "\n".join(f"{page.headers} {page.text}" for page in pages)
    places = {
        "log": json.dumps(world.gateway.lines) + "\n".join(world.gateway.other_output),
        "pages": answers,
        "webhooks": " ".join(asked.body.decode() for asked in receiver.asked),
        **{
            str(file): file.read_bytes().decode("latin-1")
            for file in world.records_folder.rglob("*")
            if file.is_file()
        },
    }
    assert len(pages) > 40
    assert any(name.endswith(".events.jsonl") for name in places)
    found = {
        (name, secret)
        for name, text in places.items()
        for secret in secrets
        if secret in text or json.dumps(secret)[1:-1] in text
    }
    assert not found


MASKED = """
[[route]]
name = "masked"
to = "^masked$"
[route.greeting]
say = "Hello."
[route.session.audio.input.transcription]
model = "whisper-1"
[route.records]
redact = ["emails"]
redact_patterns = ['(?i)\\bKX-\\d+\\b']
[route.disposition]
default = "of KX-471155"
"""
WORDS = ("KX-471155", "kx-471155", "ann@mail.example")


async def test_words_by_rule_are_in_nothing_that_is_kept_or_told(own_folder: Path) -> None:
    with http_service() as receiver:
        more = f'{API}[[webhook]]\nname = "all"\nurl = "{receiver.url}"\n'
        more += f'secret = "{CANARIES["hook"]}"\n'
        world = GatewayStack(own_folder, routes=MASKED, more=more, records="events = true\n")
        await world.start()
        said = "It is KX-471155, and ann@mail.example."
        world.behave(
            vad="scripted",
            transcripts=["My number is kx-471155."],
            answers=[{"kind": "say", "text": said}, {"kind": "silent"}],
            speech={"at_ms": [4000], "length_ms": 400},
        )
        call = await world.dial("masked")
        session = await world.session_of(call)
        heard = "conversation.item.input_audio_transcription.completed"
        await session.wait_until(lambda s: s.sent(heard) != [], 20)
        await world.gateway.wait("call.caller_transcript", call=call.call_id)
        (name,) = world.gateway.ids_of(call.call_id)
        headers = {"Authorization": f"Bearer {TOKENS['admin']}"}
        address = world.gateway.all("api.listening")[-1]["address"]
        async with httpx.AsyncClient(
            base_url=f"http://{address}", trust_env=False, timeout=WITHIN_S
        ) as http:
            pages = [
                await http.get(f"/api/v1/calls/{name}{path}", headers=headers)
                for path in ("", "/transcript")
            ]
            await world.summary_at_end(call)

            async def closed() -> bool:
                page = await http.get(f"/api/v1/calls/{name}", headers=headers)
                pages.append(page)
                return bool(page.json()["ended_at"])

            await eventually(closed, "the end of its row")
        await eventually(lambda: any(b"call.ended" in one.body for one in receiver.asked), "end")
        record = await world.record(call)
        await world.stop()
    kept = b"".join(contents(world.records_folder))
    places = {
        "log": json.dumps(world.gateway.lines),
        "pages": " ".join(page.text for page in pages),
        "webhooks": " ".join(asked.body.decode() for asked in receiver.asked),
        "kept": kept.decode("latin-1"),
    }
    found = {(place, one) for place, text in places.items() for one in WORDS if one in text}
    assert not found
    spoken = json.dumps(record["transcript"])
    assert "It is ****, and ****" in spoken
    assert "My number is ****." in spoken
    assert (record["disposition"], "****" in places["pages"]) == ("of ****", True)


BROKERED = """
[[route]]
name = "desk"
to = "^desk$"
[route.session]
instructions = "You are the desk."
[route.realtime]
url = "ws://{provider}/v1/realtime"
api_key = "canary-provider-key-8"
"""


async def test_a_browser_s_key_by_http_and_the_gateway_s_nowhere(own_folder: Path) -> None:
    with http_service() as provider:
        made = {"value": "ek_of_a_browser", "expires_at": 5, "session": {"type": "realtime"}}
        provider.answers = [Answer(200, json.dumps(made)), Answer(401, "canary-provider-key-8")]
        routes = BROKERED.format(provider=provider.url.removeprefix("http://"))
        world = GatewayStack(own_folder, routes=routes, more=API)
        await world.start()
        address = world.gateway.all("api.listening")[-1]["address"]
        url = f"http://{address}/v1/realtime/client_secrets"
        pages = []
        async with httpx.AsyncClient(trust_env=False, timeout=WITHIN_S) as http:

            async def post(role: str, **body: Any) -> int:
                token = {"Authorization": f"Bearer {TOKENS[role]}"} if role else {}
                pages.append(await http.post(url, json=body, headers=token))
                return pages[-1].status_code

            assert await post("", route="desk") == 401
            assert await post("readonly", route="desk") == 403
            assert await post("operator", route="nobody") == 404
            assert await post("operator", route="desk", expires_after={"seconds": 1}) == 422
            assert not provider.asked
            assert await post("operator", route="desk", expires_after={"seconds": 60}) == 200
            assert pages[-1].json() == made
            assert await post("operator", route="desk") == 409, "the provider refuses it"
        (asked, _) = provider.asked
        assert asked.headers["authorization"] == "Bearer canary-provider-key-8"
        assert asked.json["session"]["instructions"] == "You are the desk."
        assert asked.json["expires_after"] == {"anchor": "created_at", "seconds": 60}
        await world.gateway.wait("api.audit", action="client_secret", count=3)
        audited = world.gateway.all("api.audit", action="client_secret")
        results = [(line["route"], line["result"]) for line in audited]
        assert results == [("nobody", "404"), ("desk", "ok"), ("desk", "409")]
        await world.stop()
    told = json.dumps(world.gateway.lines) + " ".join(page.text for page in pages)
    assert "canary-provider" not in told
    assert "ek_of_a_browser" not in json.dumps(world.gateway.lines)
