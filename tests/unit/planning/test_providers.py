# SPDX-License-Identifier: GPL-2.0-or-later
# ruff: noqa: E501 - tables
"""Each kind of server by what a configuration says of it: where, as whom, at what price."""

from __future__ import annotations

import hmac
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest

from gateway.audio import Codec
from gateway.billing.prices import load_prices, usage_of
from gateway.planning import session_plan
from gateway.planning.check import load_all
from gateway.realtime.connection import Endpoint

BEARER = {"authorization": "Bearer k"}
API_KEY = {"api-key": "k"}
GA_AZURE = "wss://res.openai.azure.com/openai/v1/realtime?model=dep"
PREVIEW = "wss://res.openai.azure.com/openai/realtime?api-version=2025-04-01-preview&deployment=dep"

SERVERS: list[tuple[str, str, str, dict[str, str]]] = [
    # [realtime] beside the key; what is connected to; with which header fields
    ('url = "wss://api.openai.com/v1/realtime"', "dep", "wss://api.openai.com/v1/realtime?model=dep", BEARER),
    ('url = "https://api.openai.com/v1"', "dep", "wss://api.openai.com/v1/realtime?model=dep", BEARER),
    *(
        (f'url = "wss://{region}.api.openai.com/v1"', "dep", f"wss://{region}.api.openai.com/v1/realtime?model=dep", BEARER)
        for region in ("eu", "us", "ae", "au", "in", "jp")
    ),
    (
        'url = "https://api.openai.com/v1"\nheaders = { OpenAI-Organization = "org-1", OpenAI-Project = "proj_1" }',
        "dep",
        "wss://api.openai.com/v1/realtime?model=dep",
        {**BEARER, "OpenAI-Organization": "org-1", "OpenAI-Project": "proj_1"},
    ),
    # Azure: the resource as its page shows it, the API's base, or the whole; a key or a token
    *(
        (f'url = "{url}"\n{how}', "dep", GA_AZURE, headers)
        for url in (
            "https://res.openai.azure.com",
            "https://res.openai.azure.com/",
            "https://res.openai.azure.com/openai/v1",
            "https://res.openai.azure.com/openai/v1/",
            "wss://res.openai.azure.com/openai/v1/realtime",
        )
        for how, headers in (('api_key_header = "api-key"', API_KEY), ("", BEARER))
    ),
    *(
        (f'url = "https://{host}"', "dep", f"wss://{host}/openai/v1/realtime?model=dep", BEARER)
        for host in ("res.cognitiveservices.azure.com", "res.services.ai.azure.com", "res.openai.azure.us")
    ),
    *(
        (f'url = "{url}"\ndialect = "azure-preview"\n{how}', "dep", PREVIEW, headers)
        for url in (
            "https://res.openai.azure.com",
            "https://res.openai.azure.com/openai",
            "wss://res.openai.azure.com/openai/realtime",
            "wss://res.openai.azure.com/openai/realtime?api-version=2025-04-01-preview",
        )
        for how, headers in (('api_key_header = "api-key"', API_KEY), ("", BEARER))
    ),
    (
        'url = "wss://res.openai.azure.com/openai/realtime?api-version=2024-10-01-preview&deployment=own"\ndialect = "azure-preview"',
        "dep",
        "wss://res.openai.azure.com/openai/realtime?api-version=2024-10-01-preview&deployment=own",
        BEARER,
    ),
    # resellers and servers of one's own
    ('url = "https://api.cometapi.com/"', "dep", "wss://api.cometapi.com/v1/realtime?model=dep", BEARER),
    ('url = "https://api.cometapi.com/v1"', "dep", "wss://api.cometapi.com/v1/realtime?model=dep", BEARER),
    (
        'url = "https://host.example:8443/llm/openai"\nheaders = { X-Team = "phones" }',
        "dep",
        "wss://host.example:8443/llm/openai/realtime?model=dep",
        {**BEARER, "X-Team": "phones"},
    ),
    (
        'url = "wss://host.example/socket"\ndialect = "beta"',
        "dep",
        "wss://host.example/socket?model=dep",
        {**BEARER, "OpenAI-Beta": "realtime=v1"},
    ),
]  # fmt: skip


def endpoint_of(folder: Path, section: str, route: str = "", **values: str) -> Endpoint:
    (folder / "dialplans").mkdir()
    (folder / "dialplans" / "r.toml").write_text(f'[[route]]\nname = "r"\n{route}\n')
    (folder / "gateway.toml").write_text(f'[realtime]\napi_key = "k"\nmodel = "dep"\n{section}\n')
    config, dialplan = load_all(folder / "gateway.toml", {})
    return session_plan(config, dialplan.routes[0], Codec.PCMU, values).endpoint


@pytest.mark.parametrize(("section", "model", "connects", "headers"), SERVERS)
def test_servers(
    tmp_path: Path, section: str, model: str, connects: str, headers: dict[str, str]
) -> None:
    """The same as ``[realtime]`` and, in place of another server, as ``[route.realtime]``."""
    endpoint = endpoint_of(tmp_path, section)
    assert endpoint.connect_url == connects
    assert endpoint.request_headers() == headers
    (tmp_path / "route").mkdir()
    other = 'url = "wss://elsewhere.example/v1"\napi_key_header = "authorization"\nheaders = { X-Own = "secret-1" }'
    own = f'[route.realtime]\napi_key = "k"\n{section}\n'
    routed = endpoint_of(tmp_path / "route", other, own)
    assert routed.connect_url == connects
    assert routed.request_headers() == headers, "nothing of the other server's goes there"


def test_a_routes_headers_are_added_to_those_of_the_same_server(tmp_path: Path) -> None:
    section = 'url = "https://api.openai.com/v1"\nheaders = { OpenAI-Project = "one", X-A = "a" }'
    route = '[route.realtime]\nheaders = { OpenAI-Project = "two" }'
    assert endpoint_of(tmp_path, section, route).request_headers() == {
        **BEARER,
        "OpenAI-Project": "two",
        "X-A": "a",
    }


def test_the_caller_is_known_to_the_server_by_a_hash_that_needs_the_key(tmp_path: Path) -> None:
    section = 'url = "https://api.openai.com/v1"\nsafety_identifier = true'
    headers = endpoint_of(tmp_path, section, **{"from": "+4930123"}).request_headers()
    wanted = hmac.new(b"k", b"+4930123", "sha256").hexdigest()
    assert headers["OpenAI-Safety-Identifier"] == wanted
    assert len(wanted) <= 64
    (tmp_path / "nobody").mkdir()
    assert endpoint_of(tmp_path / "nobody", section).request_headers() == BEARER
    (tmp_path / "off").mkdir()
    off = "[route.realtime]\nsafety_identifier = false"
    quiet = endpoint_of(tmp_path / "off", section, off, **{"from": "+4930123"})
    assert quiet.request_headers() == BEARER


USAGE: dict[str, Any] = {
    "input_tokens": 1000,
    "output_tokens": 1000,
    "input_token_details": {"audio_tokens": 1000, "text_tokens": 0},
    "output_token_details": {"audio_tokens": 1000, "text_tokens": 0},
}


@pytest.mark.parametrize(
    ("host", "model", "dollars"),
    [
        ("api.openai.com", "gpt-realtime-2.1", "0.096"),
        ("eu.api.openai.com", "gpt-realtime-2.1", "0.1056"),
        ("jp.api.openai.com", "gpt-realtime-2.1", "0.1056"),
        ("eu.api.openai.com", "gpt-realtime", "0.096"),
        ("api.cometapi.com", "gpt-realtime-2.1", "0.01"),
        ("res.openai.azure.com", "gpt-realtime", "0.096"),
    ],
)
def test_prices_are_the_servers(host: str, model: str, dollars: str) -> None:
    price = load_prices(None).price(model, host)
    assert price is not None
    assert price.of(usage_of(USAGE)) == Decimal(dollars)
