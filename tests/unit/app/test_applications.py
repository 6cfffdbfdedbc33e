# SPDX-License-Identifier: GPL-2.0-or-later
"""Short-lived keys for browsers: the route's session goes to the provider, its key nowhere else."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from gateway.api.backend import NoCallError
from gateway.api.client import RefusedError
from gateway.app.applications import client_secret
from gateway.dialplan import load_dialplan
from tests.support.config import load_config
from tests.support.http_service import Answer, http_service

KEY = "sk-provider-4f5a"
ROUTE = """
[[route]]
name = "desk"
[route.session]
instructions = "Talk about {from_name|the weather}."
audio.output.voice = "cedar"
tools = [{ type = "function", name = "find", parameters = { type = "object" } }]
"""


def commands(folder: Path, url: str) -> Any:
    """The command, for a provider at this address."""
    (folder / "dialplans").mkdir()
    (folder / "dialplans" / "r.toml").write_text(ROUTE)
    file = folder / "gateway.toml"
    file.write_text(f'[realtime]\nurl = "{url}/v1/realtime"\napi_key = "{KEY}"\nmodel = "m"\n')
    config, dialplan = load_config(file, {}), load_dialplan(folder / "dialplans", {})
    return partial(client_secret, config, dialplan)


async def test_a_browser_gets_a_key_with_the_session_of_a_route(tmp_path: Path) -> None:
    made = {"value": "ek_1", "expires_at": 5, "session": {"id": "sess_1"}}
    expiry = {"anchor": "created_at", "seconds": 60}
    with http_service() as service:
        service.answers = [Answer(200, json.dumps(made))]
        command = commands(tmp_path, service.url)
        assert await command({"route": "desk", "expires_after": expiry}) == made
        (asked,) = service.asked
    assert asked.path == "/v1/realtime/client_secrets"
    assert asked.headers["authorization"] == f"Bearer {KEY}"
    session = asked.json["session"]
    assert asked.json["expires_after"] == expiry
    assert (session["type"], session["model"]) == ("realtime", "m")
    assert session["instructions"] == "Talk about the weather."
    assert session["audio"]["output"] == {"voice": "cedar"}
    assert "format" not in session["audio"].get("input", {})
    assert [tool["name"] for tool in session["tools"]] == ["find"]


async def test_what_the_provider_refuses_is_refused_without_its_key(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with http_service() as service:
        service.answers = [Answer(401, json.dumps({"error": f"bad key {KEY}"})), Answer(200, "{}")]
        command = commands(tmp_path, service.url)
        for _ in range(2):
            with pytest.raises(RefusedError, match="the provider refused it") as refused:
                await command({"route": "desk"})
            assert KEY not in str(refused.value)
        with pytest.raises(NoCallError, match="no route 'other'"):
            await command({"route": "other"})
    with pytest.raises(RefusedError, match="gave no answer"):
        await command({"route": "desk"})
    told = capsys.readouterr()
    assert KEY not in told.out + told.err
