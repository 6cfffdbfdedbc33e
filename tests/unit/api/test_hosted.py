# SPDX-License-Identifier: GPL-2.0-or-later
"""OpenAI's SIP interfaces: what applications ask for, and what is refused before it is asked."""

from __future__ import annotations

from typing import Any, cast

import httpx
import pytest
from fastapi import FastAPI

from gateway.api import hosted
from gateway.api.backend import Refusal, Role, Token, hash_of
from gateway.api.hosted import add_hosted

TOKENS = (
    Token("app", Role.APPLICATION, hash_of("gw_app")),
    Token("ops", Role.ADMIN, hash_of("gw_ops")),
)
RTC, LIVE = "/v1/realtime/calls/rtc_1", "/v1/live/sessions/live_1"


class Calls:
    """Writes down what is asked for; the call ``rtc_gone`` is over."""

    def __init__(self) -> None:
        self.asked: list[tuple[Any, ...]] = []

    def __getattr__(self, name: str) -> Any:
        def ask(token: Token, call_id: str, *given: Any) -> None:
            if call_id == "rtc_gone":
                raise Refusal(404, "call_id_not_found", "No.", "call_id")
            self.asked.append((name, token.name, call_id, *given))

        return ask


async def post(path: str, body: Any = None, token: str = "app", raw: bytes = b"") -> Any:
    calls, app = Calls(), FastAPI()
    add_hosted(app, cast(Any, calls), TOKENS)
    async with httpx.AsyncClient(
        transport=httpx.ASGITransport(app), base_url="http://gateway"
    ) as http:
        headers = {"Authorization": f"Bearer gw_{token}"}
        content = {"content": raw} if body is None else {"json": body}
        answer = await http.post(path, headers=headers, **content)
    assert bool(calls.asked) is (answer.status_code == 200)
    if answer.status_code != 200:
        assert answer.headers["x-should-retry"] == "false"
        return answer.status_code, answer.json()["error"]["param"]
    return calls.asked[0]


@pytest.mark.parametrize(
    ("path", "body", "asked"),
    [
        (f"{RTC}/accept", {"type": "realtime"}, ("accept", "app", "rtc_1", {"type": "realtime"})),
        (f"{LIVE}/accept", {"session": {"a": 1}}, ("accept", "app", "live_1", {"a": 1})),
        (f"{LIVE}/accept", {}, ("accept", "app", "live_1", None)),
        (f"{RTC}/reject", None, ("reject", "app", "rtc_1", 603)),
        (f"{RTC}/reject", {"status_code": 486}, ("reject", "app", "rtc_1", 486)),
        (f"{LIVE}/reject", {"status_code": 300}, ("reject", "app", "live_1", 300)),
        (f"{RTC}/refer", {"target_uri": "tel:+49"}, ("refer", "app", "rtc_1", "tel:+49")),
        (f"{RTC}/hangup", None, ("hang_up", "app", "rtc_1")),
        (f"{LIVE}/hangup", None, ("hang_up", "app", "live_1")),
    ],
)
async def test_what_applications_ask_for(path: str, body: Any, asked: tuple[Any, ...]) -> None:
    assert await post(path, body) == asked


@pytest.mark.parametrize(
    ("path", "body", "refused"),
    [
        (f"{LIVE}/reject", None, (400, "status_code")),
        (f"{RTC}/reject", {"status_code": 299}, (400, "status_code")),
        (f"{RTC}/reject", {"status_code": 700}, (400, "status_code")),
        (f"{RTC}/reject", {"status_code": True}, (400, "status_code")),
        (f"{RTC}/reject", {"status_code": "486"}, (400, "status_code")),
        (f"{RTC}/refer", {"target_uri": 7}, (400, "target_uri")),
        (f"{RTC}/refer", {}, (400, "target_uri")),
        (f"{RTC}/accept", [1], (400, None)),
        ("/v1/realtime/calls/live_1/hangup", None, (404, None)),
        ("/v1/live/sessions/rtc_1/reject", {"status_code": 486}, (404, None)),
        ("/v1/realtime/calls/rtc_gone/hangup", None, (404, "call_id")),
    ],
)
async def test_what_is_refused(path: str, body: Any, refused: tuple[int, Any]) -> None:
    assert await post(path, body) == refused


@pytest.mark.parametrize(("token", "status"), [("ops", 403), ("nobody", 401)])
async def test_only_applications_decide_over_calls(token: str, status: int) -> None:
    for command in ("accept", "reject", "refer", "hangup"):
        assert await post(f"{RTC}/{command}", token=token) == (status, None)


@pytest.mark.parametrize("raw", [b"{", b"7", b"\xff", b"[" * 100_000])
async def test_a_body_that_is_no_object(raw: bytes) -> None:
    assert await post(f"{RTC}/accept", raw=raw) == (400, None)


async def test_a_body_that_is_too_long(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hosted, "MAX_BODY_BYTES", 10)
    assert await post(f"{RTC}/accept", raw=b'{"a": 123}') == ("accept", "app", "rtc_1", {"a": 123})
    assert await post(f"{RTC}/accept", raw=b'{"a": 1234}') == (413, None)
