# SPDX-License-Identifier: GPL-2.0-or-later
"""Logins to the console, whose requests count, and the pages."""

from __future__ import annotations

import json
import re
import subprocess
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
import playwright
import pytest
import structlog
from fastapi import FastAPI

from gateway.api.access import ASKED_BY, IDLE_SECONDS, LIFETIME_SECONDS, Logins
from gateway.api.backend import Role, Token
from gateway.api.server import FOLDER
from tests.unit.api.test_access import app

HOST = "console.example"
OURS = {"X-Requested-With": ASKED_BY, "Sec-Fetch-Site": "same-origin"}
SCRIPTS = sorted(FOLDER.glob("*.js"))


@asynccontextmanager
async def browser(
    made: FastAPI, role: str = "operator", scheme: str = "https"
) -> AsyncIterator[httpx.AsyncClient]:
    """A client that has logged in."""
    transport = httpx.ASGITransport(made)
    async with httpx.AsyncClient(transport=transport, base_url=f"{scheme}://{HOST}") as http:
        headers = {"Authorization": f"Bearer gw_{role}", **OURS}
        answer = await http.post("/api/v1/session", headers=headers)
        assert answer.json() == {"name": role, "role": role}
        yield http


@pytest.mark.parametrize(
    ("method", "headers", "status"),
    [
        ("GET", OURS, 200),
        ("GET", {"Sec-Fetch-Site": "none"}, 200),
        ("GET", {}, 200),
        ("GET", {"Origin": f"https://{HOST}"}, 200),
        ("GET", {"Sec-Fetch-Site": "cross-site"}, 401),
        ("GET", {"Sec-Fetch-Site": "same-site"}, 401),
        ("GET", {"Origin": "https://evil.example"}, 401),
        ("POST", OURS, 200),
        ("POST", {"X-Requested-With": ASKED_BY, "Origin": f"https://{HOST}"}, 200),
        ("POST", {"X-Requested-With": ASKED_BY}, 401),
        ("POST", {"Sec-Fetch-Site": "same-origin"}, 401),
        ("POST", {**OURS, "Sec-Fetch-Site": "none"}, 401),
        ("POST", {**OURS, "Sec-Fetch-Site": "same-site"}, 401),
        ("POST", {"X-Requested-With": ASKED_BY, "Origin": "null"}, 401),
        ("POST", {"X-Requested-With": ASKED_BY, "Origin": f"https://{HOST}:8443"}, 401),
    ],
)
async def test_only_the_consoles_own_pages_use_a_login(
    method: str, headers: dict[str, str], status: int
) -> None:
    path = "/api/v1/session" if method == "GET" else "/api/v1/calls/c1/hangup"
    async with browser(app()) as http:
        assert (await http.request(method, path, headers=headers)).status_code == status


@pytest.mark.parametrize(("scheme", "secure"), [("https", True), ("http", False)])
async def test_a_login_has_the_rights_of_its_token_until_it_ends(scheme: str, secure: bool) -> None:
    with structlog.testing.capture_logs() as lines:
        async with browser(app(), "readonly", scheme) as http:
            (cookie,) = http.cookies.jar
            assert (cookie.secure, cookie.has_nonstandard_attr("HttpOnly")) == (secure, True)
            assert cookie.get_nonstandard_attr("SameSite") == "strict"
            assert cookie.name.startswith("__Host-") is secure
            assert (cookie.path, cookie.domain_specified) == ("/", False)
            answer = await http.post("/api/v1/calls/c1/hangup", headers=OURS)
            assert answer.status_code == 403
            kept = dict(http.cookies)
            assert (await http.delete("/api/v1/session", headers=OURS)).status_code == 200
            assert not http.cookies
            http.cookies.update(kept)
            assert (await http.get("/api/v1/session", headers=OURS)).status_code == 401
    assert [line["action"] for line in lines if line["event"] == "api.audit"] == ["login", "logout"]
    assert not [value for value in kept.values() if value in json.dumps(lines)]


async def test_an_application_cannot_log_in() -> None:
    transport = httpx.ASGITransport(app())
    async with httpx.AsyncClient(transport=transport, base_url=f"https://{HOST}") as http:
        headers = {"Authorization": "Bearer gw_application", **OURS}
        assert (await http.post("/api/v1/session", headers=headers)).status_code == 403
        assert not http.cookies


def test_logins_end_by_themselves_and_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [0.0]
    monkeypatch.setattr("gateway.api.access.MAX_LOGINS", 2)
    logins = Logins(lambda: now[0])
    token = Token("one", Role.OPERATOR, "")

    def scope(secret: str) -> dict[str, Any]:
        fields = [(b"cookie", f"gateway-80={secret}".encode())]
        return {"type": "http", "method": "GET", "server": ("h", 80), "headers": fields}

    idle, busy = logins.begin(token), logins.begin(token)
    while now[0] < LIFETIME_SECONDS - IDLE_SECONDS:
        now[0] += IDLE_SECONDS - 1
        assert logins.token_of(scope(busy)) is token
    assert logins.token_of(scope(idle)) is None
    now[0] = LIFETIME_SECONDS
    assert logins.token_of(scope(busy)) is None
    first, second, third = (logins.begin(token) for _ in range(3))
    assert [logins.token_of(scope(one)) for one in (first, second, third)] == [None, token, token]
    for nonsense in ("", 'a"b', "a=b;;=", "\xff"):
        assert logins.token_of(scope(nonsense)) is None


async def test_pages_are_served_with_a_strict_policy() -> None:
    transport = httpx.ASGITransport(app())
    async with httpx.AsyncClient(transport=transport, base_url=f"https://{HOST}") as http:
        assert (await http.get("/")).headers["location"] == "/console/"
        answer = await http.get("/console/")
        assert answer.headers["content-type"].startswith("text/html")
        policy = answer.headers["content-security-policy"]
        assert "default-src 'none'" in policy
        assert "unsafe" not in policy
        assert "*" not in policy
        fresh = {"If-None-Match": answer.headers["etag"]}
        assert (await http.get("/console/", headers=fresh)).status_code == 304
        for path in ("no.js", "../console.py", "%2e%2e/console.py", "console.py", "/etc/passwd"):
            assert (await http.get(f"/console/{path}")).status_code == 404


@pytest.mark.parametrize("file", SCRIPTS, ids=lambda file: file.name)
def test_scripts_are_valid(file: Path) -> None:
    """By the JavaScript engine that playwright brings along."""
    node = Path(playwright.__file__).parent / "driver" / "node"
    command = [str(node), "--check", "--input-type=module"]
    done = subprocess.run(command, stdin=file.open(), capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("file", sorted(FOLDER.iterdir()), ids=lambda file: file.name)
def test_pages_make_no_markup_of_texts_and_name_no_other_host(file: Path) -> None:
    text = file.read_text()
    markup = (
        r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|DOMParser|\beval\(|new Function"
    )
    assert not re.search(markup, text)
    assert set(re.findall(r"https?://[^\s\"'`]+", text)) <= {"http://www.w3.org/2000/svg"}
    if file.suffix == ".html":
        assert not re.search(r"<script(?![^>]* src=)|<style|\son[a-z]+=|\sstyle=", text)
    assert "SPDX-License-Identifier: GPL-2.0-or-later" in text.split("\n\n")[0]
