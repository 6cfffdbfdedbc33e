"""Where a test has the data from that a call would fetch."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

from gateway.bridge.dialplan_lookup import fetch
from gateway.devtools.route_test.answer import Fetch
from gateway.devtools.route_test.given import GivenError
from gateway.dialplan import Match
from gateway.tools.http import HttpClient


def given_data(text: str) -> Fetch:
    """The JSON object in ``text``, or in the file behind its ``@``. Raises GivenError."""
    if text.startswith("@"):
        try:
            text = Path(text[1:]).read_text("utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise GivenError(f"--data {text!r}: cannot be read ({error})") from None
    try:
        data = json.loads(text)
    except ValueError as error:
        raise GivenError(f"--data: is no JSON ({error})") from None
    if not isinstance(data, dict):
        raise GivenError("--data: must be a JSON object")
    return lambda _match: (data, "as given")


def asked(match: Match) -> tuple[Any, str]:
    """What the service answers now."""

    async def ask() -> tuple[Any, str]:
        client = HttpClient(1)
        try:
            return await fetch(match, client)
        finally:
            await client.close()

    data, failure = asyncio.run(ask())
    return data, f"none: {failure}; the defaults" if failure else "as the service answers now"
