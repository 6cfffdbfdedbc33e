# SPDX-License-Identifier: GPL-2.0-or-later
"""The SIP messages of calls, kept in memory until the black boxes of these calls take them."""

from __future__ import annotations

import re
import threading
import time
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import NamedTuple

MAX_BYTES = 8 * 1024 * 1024
"""Of all calls that no black box follows; then those of the call that was quiet the longest are
forgotten. The same again for calls that are followed; then further messages are counted only."""
MAX_CALL_BYTES = 256 * 1024
"""Of one call between two looks of its black box, which come once a second."""

_NO_CALL = frozenset({"REGISTER", "OPTIONS", "SUBSCRIBE", "PUBLISH"})
"""Methods that begin no call; within one they are kept."""

_LINE_ENDS = re.compile(r"\r\n|\r|\n")
_CREDENTIALS = re.compile(r"(?i)((?:proxy-)?authorization[ \t]*:[ \t]*[\w-]*)(.*)", re.DOTALL)
_SHOWN_CREDENTIALS = re.compile(r'(?i)\b(?:username|realm)[ \t]*=[ \t]*"[^"]*"')
_KEYS = re.compile(r"(?i)(a=crypto:.*?inline:|a=key-mgmt:|a=ice-pwd:|k=)\S.*")
LEFT_OUT = "***"


class SipMessage(NamedTuple):
    """One message as it came or was sent."""

    at: float
    """``time.monotonic()`` seconds."""
    sent: bool
    peer: str
    """``host:port`` that it came from or was sent to."""
    transport: str
    """udp, tcp or tls."""
    data: bytes

    def text(self, with_body: bool = True) -> str:
        """Return the message as text, lines ended by ``\\n``, without digest responses and the keys
        of media; bytes that are not UTF-8 are escaped.

        Args:
            with_body: keep a body that is no session description: an INFO has keys in it.
        """
        text = self.data.decode("utf-8", "backslashreplace")
        head, _, body = "\n".join(_LINE_ENDS.split(text)).partition("\n\n")
        fields = (_without_credentials(one) for one in re.split(r"\n(?![ \t])", head))
        if body and not with_body and not body.startswith("v="):
            body = f"({len(body)} characters left out)"
        kept = "\n".join(_KEYS.sub(rf"\1{LEFT_OUT}", line) for line in body.split("\n"))
        return "\n".join(fields) + (f"\n\n{kept}" if kept else "\n")


def _without_credentials(header: str) -> str:
    """Return a header field with only scheme, user and realm of its credentials."""
    found = _CREDENTIALS.match(header)
    if found is None:
        return header
    return ", ".join((f"{found[1]} {LEFT_OUT}", *_SHOWN_CREDENTIALS.findall(found[2])))


@dataclass(slots=True)
class _Kept:
    messages: list[SipMessage] = field(default_factory=list)
    bytes: int = 0
    lost: int = 0

    def put(self, message: SipMessage) -> bool:
        """Keep a message; False where the call has ``MAX_CALL_BYTES`` already, and it is only
        counted."""
        if self.bytes + len(message.data) > MAX_CALL_BYTES:
            self.lost += 1
            return False
        self.messages.append(message)
        self.bytes += len(message.data)
        return True


class MessageLog:
    """The SIP messages of calls, while any route keeps black boxes. Filled on the SIP thread,
    emptied on the event loop; neither waits for more than a copy."""

    def __init__(self) -> None:
        self.on_wanted: Callable[[bool], None] = lambda _wanted: None
        """Told at once when messages are wanted, or no more: the next one sent may be a call's."""
        self._wanted = False
        self._lock = threading.Lock()
        self._others: OrderedDict[str, _Kept] = OrderedDict()
        """By Call-ID, the one with the oldest last message first; also messages of a flood."""
        self._followed: dict[str, _Kept] = {}
        """By Call-ID, those whose black box has asked."""
        self._others_bytes = self._followed_bytes = 0

    @property
    def wanted(self) -> bool:
        """Whether any route keeps black boxes; setting it tells ``on_wanted``."""
        return self._wanted

    @wanted.setter
    def wanted(self, wanted: bool) -> None:
        self._wanted = wanted
        self.on_wanted(wanted)

    def add(
        self,
        call_id: str,
        method: str,
        peer: str,
        port: int,
        transport: str,
        data: bytes,
        *,
        sent: bool,
    ) -> None:
        """Keep a message of a call, while messages are wanted. One that begins no call (REGISTER,
        OPTIONS, ...) is left out, unless the call is known.

        Beyond its bounds (``MAX_CALL_BYTES``, ``MAX_BYTES``) a message is counted only; of calls
        that nobody follows yet, those quiet the longest are forgotten.
        """
        if not self._wanted:
            return
        host = f"[{peer}]" if ":" in peer else peer
        message = SipMessage(time.monotonic(), sent, f"{host}:{port}", transport, data)
        with self._lock:
            followed = self._followed.get(call_id)
            if followed is not None:
                if self._followed_bytes + len(data) > MAX_BYTES:
                    followed.lost += 1
                elif followed.put(message):
                    self._followed_bytes += len(data)
                return
            if method in _NO_CALL and call_id not in self._others:
                return
            kept = self._others.setdefault(call_id, _Kept())
            self._others.move_to_end(call_id)
            if kept.put(message):
                self._others_bytes += len(data)
            while self._others_bytes > MAX_BYTES:
                _call_id, oldest = self._others.popitem(last=False)
                self._others_bytes -= oldest.bytes

    def take(self, call_id: str, *, last: bool = False) -> tuple[list[SipMessage], int]:
        """Return the messages of a call since the last time, oldest first, and how many found no
        room. From the first time on the call is followed: kept apart, and not forgotten.

        Args:
            last: the call is followed no further.
        """
        with self._lock:
            kept = self._followed.pop(call_id, None)
            if kept is None:
                kept = self._others.pop(call_id, None) or _Kept()
                self._others_bytes -= kept.bytes
            else:
                self._followed_bytes -= kept.bytes
            if not last:
                self._followed[call_id] = _Kept()
            return kept.messages, kept.lost
