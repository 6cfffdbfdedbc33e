# SPDX-License-Identifier: GPL-2.0-or-later
"""Calls over Azure's URL forms and over any server by the base of its API."""

from __future__ import annotations

import pytest

from tests.support.harness import API_KEY, GatewayStack

ROUTE = """
[[route]]
name = "{name}"
to = "^{name}$"
[route.greeting]
say = "Hello."
[route.realtime]
api_key = "{key}"
model = "my deployment"
{more}
"""
AZURE = "http://127.0.0.1:{port}/openai"
FORMS = {
    # what is configured; the path at the server; whether the events are Beta's
    "ga-key": (f'url = "{AZURE}/v1"\napi_key_header = "api-key"', "/openai/v1/realtime", False),
    "ga-token": (f'url = "{AZURE}/v1"', "/openai/v1/realtime", False),
    "preview-key": (
        f'url = "{AZURE}"\ndialect = "azure-preview"\napi_key_header = "api-key"',
        "/openai/realtime",
        True,
    ),
    "preview-token": (f'url = "{AZURE}"\ndialect = "azure-preview"', "/openai/realtime", True),
    "reseller": (
        'url = "http://127.0.0.1:{port}/"\nheaders = { X-Team = "phones-31" }',
        "/v1/realtime",
        False,
    ),
}

WORLD = {
    "routes": "".join(
        ROUTE.replace("{name}", name).replace("{more}", more)
        for name, (more, _, _) in FORMS.items()
    ),
    "realtime": 'headers = { X-Home = "own-17" }',
}


@pytest.mark.parametrize("name", list(FORMS))
async def test_a_call(world: GatewayStack, name: str) -> None:
    """Greeted, with the settings in force that the route has; the key goes where it belongs."""
    more, path, beta = FORMS[name]
    call = await world.dial(name, codecs=("PCMA",))
    session = await world.session_of(call)
    await session.wait_until(lambda s: s.sent("response.done") != [], 20)
    request = world.emulator.live[session.id].request
    assert request is not None
    await world.summary_at_end(call)
    assert not session.errors
    assert session.path.partition("?")[0] == path
    assert session.model == "my deployment"
    assert ("api-version=2025-04-01-preview" in session.path) == beta
    wanted = {"api-key": API_KEY} if "api-key" in more else {"Authorization": f"Bearer {API_KEY}"}
    assert {key: request.headers.get(key) for key in wanted} == wanted
    assert len({"api-key", "authorization"} & {name.lower() for name in request.headers}) == 1
    assert request.headers.get("X-Team") == ("phones-31" if name == "reseller" else None)
    assert request.headers.get("OpenAI-Beta") is None
    (update,) = session.seen("session.update")
    asked = update.body["session"]
    if beta:
        assert asked["output_audio_format"] == "g711_alaw"
    else:
        assert asked["audio"]["output"]["format"] == {"type": "audio/pcma"}
    text = str(world.gateway.lines)
    assert "phones-31" not in text
    assert "own-17" not in text
