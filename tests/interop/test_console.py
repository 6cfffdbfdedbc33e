# SPDX-License-Identifier: GPL-2.0-or-later
"""The console in a real Chromium: what operators see, hear and do, by mouse and by keyboard."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from typing import Any

import pytest
from playwright.async_api import Page, expect

from tests.calls.conftest import shared_world, world
from tests.calls.test_api import API, TOKENS
from tests.support.browser import PROGRAM, Browser
from tests.support.harness import GatewayStack

__all__ = ["shared_world", "world"]

pytestmark = [
    pytest.mark.interop,
    pytest.mark.skipif(not PROGRAM.exists(), reason="Chromium is not installed"),
]
WORLD = {"more": API}


@pytest.fixture(scope="module")
def chromium(runner: asyncio.Runner) -> Iterator[Browser]:
    """One browser for all tests."""
    made = Browser()
    runner.run(made.start())
    yield made
    runner.run(made.stop())


@pytest.fixture
def browser(runner: asyncio.Runner, chromium: Browser) -> Iterator[Browser]:
    """The browser; after each test nothing may have gone wrong in its pages."""
    yield chromium
    runner.run(chromium.check())


def address(world: GatewayStack, path: str = "/console/") -> str:
    """Where the gateway serves a page."""
    return f"http://{world.gateway.all('api.listening')[-1]['address']}{path}"


async def logged_in(
    browser: Browser, world: GatewayStack, role: str = "operator", path: str = "", **options: Any
) -> Page:
    """A page of somebody who has logged in."""
    page = await browser.page(address(world) + path, **options)
    await page.get_by_label("Token").fill(TOKENS[role])
    await page.get_by_role("button", name="Log in").click()
    await expect(page.get_by_role("button", name="Log out")).to_be_visible()
    return page


async def test_people_log_in_and_out(browser: Browser, world: GatewayStack) -> None:
    page = await browser.page(address(world, "/"))
    await page.get_by_label("Token").fill("gw_wrong")
    await page.keyboard.press("Enter")
    await expect(page.get_by_role("alert")).to_contain_text("not known")
    await page.get_by_label("Token").fill(TOKENS["readonly"])
    await page.keyboard.press("Enter")
    await expect(page.get_by_text("readonly-one (readonly)")).to_be_visible()
    await page.reload()
    await expect(page.get_by_text("readonly-one (readonly)")).to_be_visible()
    (cookie,) = await page.context.cookies()
    assert cookie["httpOnly"]
    assert cookie["sameSite"] == "Strict"
    await page.get_by_role("button", name="Log out").click()
    await expect(page.get_by_label("Token")).to_be_visible()
    for given in TOKENS.values():
        assert given not in page.url
        assert not [line for line in world.gateway.lines if given in str(line)]
    await page.context.add_cookies([cookie])  # type: ignore[list-item]
    await page.reload()
    await expect(page.get_by_label("Token")).to_be_visible()
