# SPDX-License-Identifier: GPL-2.0-or-later
"""Calls that pages of the console place: as INVITEs to admission, counted and limited."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable
from typing import Any

from gateway.audio.g711 import Codec
from gateway.bridge.media import MediaPump
from gateway.config import Config
from gateway.dialplan import Dialplan
from gateway.sip.agent import UserAgent
from gateway.sip.browser_leg import TRANSPORT, BrowserEnd
from gateway.sip.types import Invite

_NUMBER = re.compile(r"\^(\w+)\$")


class BrowserCalls:
    """Calls of pages of the console. Lives on the event loop.

    Args:
        files: configuration and dialplan as they are now.
    """

    def __init__(
        self,
        agent: UserAgent,
        pump: MediaPump,
        files: Callable[[], tuple[Config, Dialplan]],
    ) -> None:
        self._agent = agent
        self._pump = pump
        self._files = files
        self._ends: set[BrowserEnd] = set()
        self.closes: Counter[str] = Counter()
        """WebSockets by why they were closed."""
        self.unread = self.skipped = 0
        """Frames of 20 ms: that pages did not take in time, and that came too fast to be mixed."""

    @property
    def limit(self) -> int:
        """Maximum number of calls at a time."""
        return self._files()[0].api.browser_calls

    @property
    def active(self) -> int:
        return len(self._ends)

    def numbers(self) -> list[dict[str, str]]:
        """Numbers that routes name as such, with the route."""
        _config, dialplan = self._files()
        return [
            {"number": found[1], "route": route.name}
            for route in dialplan.routes
            if route.enabled and route.to and (found := _NUMBER.fullmatch(route.to.pattern))
        ]

    def begin(
        self,
        to: str,
        caller: str,
        source: str,
        who: str,
        tell: Callable[[dict[str, Any]], None],
        hear: Callable[[], None],
    ) -> BrowserEnd:
        """Call a number for the token ``who``; ``hear`` is called when there is audio."""
        invite = Invite(
            sip_call_id="",
            to_uri=f"sip:{to}@{TRANSPORT}.invalid",
            from_uri=f"sip:{caller}@{TRANSPORT}.invalid",
            to_user=to,
            from_user=caller,
            from_name="",
            source=source,
            headers={},
            offered=(Codec.PCMU,),
            attributed_by=f"token {who}",
            transport=TRANSPORT,
            there=True,
        )
        end = self._agent.take_browser(invite, tell)
        self._ends.add(end)
        self._pump.add(end.audio, hear)
        return end

    def over(self, end: BrowserEnd) -> None:
        """Take away a call whose page has left."""
        self._ends.discard(end)
        self._pump.remove(end.audio)
        self.skipped += end.skipped

    def closed(self, reason: str, unread: int) -> None:
        """Count why a page's WebSocket was closed, and frames that it did not take in time."""
        self.closes[reason] += 1
        self.unread += unread
