# SPDX-License-Identifier: GPL-2.0-or-later
"""Truncation and deletion of items that the caller did not hear to the end."""

from __future__ import annotations

import re
from collections import deque

from gateway.call.playout.tracker import Heard
from gateway.realtime.commands import ClientCommand, DeleteItem, TruncateItem
from gateway.realtime.events import ServerError

_SHORTER = re.compile(r"Audio content of (\d+)\s*ms is already shorter than (\d+)\s*ms")
_RESENT = 32
"""Truncations sent a second time; remembered so that there is no third."""


class Truncations:
    """Makes truncations and deletions, and one second attempt of each.

    Args:
        margin_ms: taken off what was heard, for servers that count an item shorter than they
            sent it.
    """

    def __init__(self, margin_ms: int = 0) -> None:
        self._margin_ms = margin_ms
        self._last: TruncateItem | None = None
        self._resent: deque[tuple[str, int]] = deque(maxlen=_RESENT)

    def command(self, heard: Heard) -> TruncateItem | DeleteItem:
        """``conversation.item.truncate`` at what was heard, a deletion where nothing was.

        Never more than was received: the server refuses that. An item of which something was
        heard stays, if only another part of it, or less than the margin.
        """
        if not heard.item_heard:
            return DeleteItem(heard.item_id)
        end_ms = max(0, min(heard.played_ms, heard.received_ms) - self._margin_ms)
        self._last = TruncateItem(heard.item_id, heard.content_index, end_ms)
        return self._last

    def retry(self, error: ServerError, command: ClientCommand | None) -> TruncateItem | None:
        """The truncation to send again, once, at the length that the error names.

        ``command`` is what the error answers; of a server that does not say, the last truncation
        if it asked for the length refused.
        """
        found = _SHORTER.search(error.message)
        if found is None:
            return None
        length_ms, refused_ms = int(found.group(1)), int(found.group(2))
        last = self._last
        if command is None and last is not None and last.audio_end_ms == refused_ms:
            command = last
        if not isinstance(command, TruncateItem):
            return None
        key = (command.item_id, command.content_index)
        if key in self._resent or length_ms >= command.audio_end_ms:
            return None
        self._resent.append(key)
        if length_ms == 0:
            return None
        return TruncateItem(command.item_id, command.content_index, length_ms)
