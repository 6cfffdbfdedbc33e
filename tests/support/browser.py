# SPDX-License-Identifier: GPL-2.0-or-later
"""A real Chromium without a screen, for tests of the console's pages."""

from __future__ import annotations

from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from playwright.async_api import Browser as Chromium
from playwright.async_api import Page, Playwright, async_playwright, expect

PROGRAM = Path("/usr/bin/chromium")
"""Debian's; playwright downloads none."""

FLAGS = (
    "--no-sandbox",  # tests run as root
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--disable-dev-shm-usage",
    "--use-fake-ui-for-media-stream",
    "--use-fake-device-for-media-stream",
    "--autoplay-policy=no-user-gesture-required",
)

DESK = {"width": 1280, "height": 800}
TELEPHONE = {"width": 390, "height": 844}

WITHIN_MS = 15_000
"""For what a page shows by and by."""
expect.set_options(timeout=WITHIN_MS)


class Browser:
    """Chromium, and what its pages did wrong: errors of scripts, requests to other hosts.

    Args:
        flags: more of Chromium's.
    """

    def __init__(self, *flags: str) -> None:
        self._flags = (*FLAGS, *flags)
        self.wrong: list[str] = []
        self._playwright: Playwright | None = None
        self._chromium: Chromium | None = None
        self._hosts: set[str] = set()

    async def start(self) -> None:
        """Start it."""
        self._playwright = await async_playwright().start()
        self._chromium = await self._playwright.chromium.launch(
            executable_path=PROGRAM, args=list(self._flags)
        )

    async def stop(self) -> None:
        """Stop it."""
        if self._chromium is not None:
            await self._chromium.close()
        if self._playwright is not None:
            await self._playwright.stop()

    async def page(self, address: str, screen: dict[str, int] = DESK, **options: Any) -> Page:
        """A page of somebody who has visited nothing yet."""
        assert self._chromium is not None
        # Without a graphics card each step of an animation costs this machine's cores.
        options.setdefault("reduced_motion", "reduce")
        context = await self._chromium.new_context(viewport=screen, **options)  # type: ignore[arg-type]
        context.set_default_timeout(WITHIN_MS)
        self._hosts.add(urlsplit(address).netloc)
        page = await context.new_page()
        page.on("pageerror", lambda error: self.wrong.append(f"error: {error}"))
        page.on("console", lambda line: self._on_line(line.type, line.text))
        page.on("request", lambda request: self._on_request(request.url))
        await page.goto(address)
        return page

    async def check(self) -> None:
        """Close all pages; assert that nothing went wrong in them since the last time."""
        assert self._chromium is not None
        for context in self._chromium.contexts:
            await context.close()
        wrong, self.wrong = self.wrong, []
        assert wrong == []

    def _on_line(self, kind: str, text: str) -> None:
        # What the gateway refuses, a page tells its user; Chromium notes it as an error, too.
        if kind == "error" and "the server responded with a status of" not in text:
            self.wrong.append(text)

    def _on_request(self, url: str) -> None:
        told = urlsplit(url)
        if told.scheme not in ("blob", "data") and told.netloc not in self._hosts:
            self.wrong.append(f"request to {url}")
