# SPDX-License-Identifier: GPL-2.0-or-later
"""URLs, headers and the hiding of secrets."""

from __future__ import annotations

import contextlib
import ssl
from pathlib import Path
from typing import Any

import pytest
from pydantic import SecretStr

from gateway.realtime.connection import Endpoint, tls_of
from tests.support.site_under_test import certificate

KEY = "sk-test-6f1c+0a9d/never"


@pytest.mark.parametrize(
    ("url", "model", "expected"),
    [
        (
            "wss://api.openai.com/v1/realtime",
            "gpt-realtime-2.1",
            "wss://api.openai.com/v1/realtime?model=gpt-realtime-2.1",
        ),
        ("wss://eu.api.openai.com/v1", "m", "wss://eu.api.openai.com/v1/realtime?model=m"),
        ("https://api.openai.com/v1/", "m", "wss://api.openai.com/v1/realtime?model=m"),
        (
            "https://res.openai.azure.com/openai/v1",
            "my deployment&x",
            "wss://res.openai.azure.com/openai/v1/realtime?model=my%20deployment%26x",
        ),
        (
            "https://res.openai.azure.com",
            "d",
            "wss://res.openai.azure.com/openai/v1/realtime?model=d",
        ),
        (
            "https://res.openai.azure.com/openai/v1/realtime/",
            "d",
            "wss://res.openai.azure.com/openai/v1/realtime?model=d",
        ),
        ("ws://127.0.0.1:8765", "m", "ws://127.0.0.1:8765/v1/realtime?model=m"),
        ("http://[::1]:8765/v1", "m", "ws://[::1]:8765/v1/realtime?model=m"),
        (
            "ws://127.0.0.1:8765/v1/realtime?script=a%20b&say=x",
            "m",
            "ws://127.0.0.1:8765/v1/realtime?script=a%20b&say=x&model=m",
        ),
        ("wss://h/v1/realtime?model=own", "m", "wss://h/v1/realtime?model=own"),
        ("wss://h/v1/realtime?call_id=rtc_1", "m", "wss://h/v1/realtime?call_id=rtc_1"),
        (
            "wss://res.openai.azure.com/openai/realtime?api-version=2025-04-01-preview&deployment=d",
            "m",
            "wss://res.openai.azure.com/openai/realtime?api-version=2025-04-01-preview&deployment=d",
        ),
        ("wss://h/speech/socket", "m", "wss://h/speech/socket?model=m"),
        ("https://h/proxy/openai", "m", "wss://h/proxy/openai/realtime?model=m"),
        ("wss://h/v1/realtime", "", "wss://h/v1/realtime"),
        (
            "https://res.openai.azure.com/openai/v1/live/sessions",
            "deployment",
            "wss://res.openai.azure.com/openai/v1/live/sessions",
        ),
        (
            "https://res.openai.azure.com/openai/v1/live",
            "deployment",
            "wss://res.openai.azure.com/openai/v1/live/sessions",
        ),
    ],
)
def test_connect_url(url: str, model: str, expected: str) -> None:
    endpoint = Endpoint(url, model)
    assert endpoint.connect_url == expected
    assert endpoint.shown == expected.partition("?")[0]


def test_headers_for_openai_and_azure() -> None:
    extra = {"OpenAI-Project": "proj_1"}
    assert Endpoint("wss://h", "m", KEY, headers=extra).request_headers() == {
        "OpenAI-Project": "proj_1",
        "authorization": f"Bearer {KEY}",
    }
    azure = Endpoint("https://h", "m", SecretStr(f"{KEY}\n"), api_key_header="api-key")
    assert azure.request_headers() == {"api-key": KEY}
    assert Endpoint("ws://h", "m").request_headers() == {}


@pytest.mark.parametrize(
    ("settings", "named"),
    [
        ({"url": "ftp://h/v1"}, "url"),
        ({"url": "api.openai.com/v1"}, "url"),
        ({"url": "wss:///v1"}, "url"),
        ({"url": f"wss://user:{KEY}@h/v1"}, "url"),
        ({"url": "wss://h/v1#there"}, "url"),
        ({"url": "wss://h:99999/v1"}, "url"),
        ({"url": "wss://h", "api_key": "sk-\u00e4-6f1c"}, "api_key"),
        ({"url": "wss://h", "api_key": "sk-a\r\nX-Evil: 6f1c"}, "api_key"),
        ({"url": "wss://h", "headers": {"OpenAI-Beta": "realtime=v1"}}, "headers"),
        ({"url": "wss://h", "headers": {"X-A": "b\r\nX-C: d"}}, "headers"),
    ],
)
def test_what_cannot_work_is_named_without_the_key(settings: dict[str, Any], named: str) -> None:
    with pytest.raises(ValueError, match=f"^{named}: ") as caught:
        Endpoint(**settings)
    assert "6f1c" not in str(caught.value)


def test_nothing_shown_holds_a_secret() -> None:
    endpoint = Endpoint(
        f"wss://h/v1/realtime?api-key={KEY.replace('+', '%2B')}&script=x",
        "m",
        KEY,
        headers={"X-Auth-Token": "tok-55aa", "X-Kind": "plain"},
    )
    assert "6f1c" not in f"{endpoint!r} {endpoint} {endpoint.shown}"
    assert "tok-55aa" not in repr(endpoint)
    for said in (
        f"Incorrect API key provided: {KEY}.",
        "GET /?api-key=sk-test-6f1c%2B0a9d/never",
        "key=sk-test-6f1c%2B0a9d%2Fnever",
        f"Bearer {KEY} and tok-55aa",
    ):
        redacted = endpoint.redact(said)
        assert "***" in redacted
        assert "6f1c" not in redacted
        assert "tok-55aa" not in redacted
    assert endpoint.redact("a plain x of words") == "a plain x of words"


def test_live_sessions_of_azure_have_no_g711() -> None:
    path = "/openai/v1/live/sessions"
    assert Endpoint(f"https://res.openai.azure.com{path}").live_audio == "pcm24"
    assert Endpoint(f"https://res.openai.azure.com{path}").audio == "g711"
    assert Endpoint("https://api.openai.com/v1/live/sessions").live_audio == "g711"
    assert Endpoint("https://h/v1/live/sessions", audio="pcm24").live_audio == "pcm24"


def test_tls_says_when_nothing_is_left_to_read(tmp_path: Path) -> None:
    """Of whole records, of one that is there in part, and at the other side's goodbye."""
    certificate(tmp_path, "127.0.0.1")
    context = tls_of(Endpoint("wss://127.0.0.1", ca=str(tmp_path / "cert.pem")))
    assert context is not None
    ours, theirs, to_them, to_us = (ssl.MemoryBIO() for _ in range(4))
    serving = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    serving.load_cert_chain(tmp_path / "cert.pem", tmp_path / "key.pem")
    client = context.wrap_bio(to_us, ours, server_hostname="127.0.0.1")
    server = serving.wrap_bio(to_them, theirs, server_side=True)
    waiting = [client, server]
    while waiting:
        for end in tuple(waiting):
            with contextlib.suppress(ssl.SSLWantReadError):
                end.do_handshake()
                waiting.remove(end)
        to_them.write(ours.read())
        to_us.write(theirs.read())

    def read_all() -> list[bytes]:
        found = []
        with contextlib.suppress(ssl.SSLWantReadError):
            while data := client.read(100):
                found.append(data)
        return found

    assert read_all() == []
    server.write(b"a" * 150)
    server.write(b"b")
    records = theirs.read()
    to_us.write(records[:40])
    assert read_all() == []
    to_us.write(records[40:])
    assert read_all() == [b"a" * 100, b"a" * 50, b"b"]
    with contextlib.suppress(ssl.SSLWantReadError):
        server.unwrap()
    to_us.write(theirs.read())
    assert client.read(100) == b""
    to_us.write_eof()
    assert client.read(100) == b""
