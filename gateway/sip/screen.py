"""Who gets in: what is refused, or left without an answer, before pjsua makes a call of it.

Two looks at a request. The first is at everything that comes, before pjsip's own layers: what is
no known trunk's and not welcome gets 403 or nothing, unless it belongs to a dialog that we have.
The second is at new requests only, just before pjsua: how many calls a source may make, and which
methods there are.
"""

from __future__ import annotations

import ctypes
import re
import time
from collections.abc import Callable, Mapping
from typing import Any

import structlog

from gateway.sip.filter import FIRST, HANDLED, PASS, RequestFilter
from gateway.sip.library import native
from gateway.sip.limits import SourceBuckets
from gateway.sip.message import body_of, headers_of
from gateway.sip.methods import Reply, name_of, reply_inside, reply_outside
from gateway.sip.received import Reader, Received
from gateway.sip.refusals import RefusalLog
from gateway.sip.trunks import Access, Attribution, Trunks, address_of
from gateway.sip.wellformed import Flaw, body_flaw, flaw_of

log = structlog.get_logger("sip")

ANSWERS_PER_SECOND = 5.0
ANSWERS_AT_ONCE = 20
"""Refusals that one source gets; beyond, silence: nobody shall be flooded through us with what a
forged source address asks for."""

_FORBIDDEN, _INTERVAL, _BUSY, _UNAVAILABLE = 403, 422, 486, 503

_LINE_END = re.compile(r"\r\n|\n|\r")
_NOT_NOW = re.compile(r"SIP/2.0 (?:491|500) ")
"""Glare, and what some say in its place (RFC 3261 section 14.2)."""

_SECONDS = re.compile(r"(\d{1,9})")
_REFRESH = re.compile(r"\b(?:INVITE|UPDATE)\s*$")
_TO = re.compile(rb"\n(?:to|t)[ \t]*:([^\r\n]*)", re.IGNORECASE)
_TAG = re.compile(r";\s*tag\s*=\s*([^;,\s]+)", re.IGNORECASE)


class _Str(ctypes.Structure):
    _fields_ = (("ptr", ctypes.c_char_p), ("slen", ctypes.c_ssize_t))


def _text(value: str) -> _Str:
    raw = value.encode()
    return _Str(raw, len(raw))


class Screen:
    """Made, opened and used on the SIP thread.

    Args:
        access: the policy for strangers.
        trunks: whose request is whose.
        retry_after: seconds, for a 503.
        calls_of: calls in progress, by what :func:`party_of` says.
        min_session: least Session-Expires that a call may ask for, s; 0 leaves it to pjsip.
    """

    def __init__(
        self,
        access: Access,
        trunks: Trunks,
        retry_after: int,
        calls_of: Callable[[str], int],
        min_session: int = 90,
    ) -> None:
        self.refusals = RefusalLog(lambda fields: log.warning("sip.refused", **fields))
        self.current: Received | None = None
        """The new request that pjsua is looking at, while it is."""
        self._access = access
        self._trunks = trunks
        self._calls_of = calls_of
        self._min_session = min_session
        self._reader = Reader()
        self._blind = False
        self._rates = SourceBuckets()
        self._answers = SourceBuckets()
        self._first = RequestFilter("", self._on_any, retry_after, FIRST, self._on_response)
        self._second = RequestFilter("", self._on_new, retry_after)
        self._find_dialog: Any = native().pjsip_ua_find_dialog
        self._find_dialog.argtypes = (ctypes.c_void_p,) * 3 + (ctypes.c_int,)
        self._find_dialog.restype = ctypes.c_void_p

    def open(self) -> None:
        """Register with the endpoint. Raises OSError when pjsip refuses."""
        self._first.open()
        self._second.open()

    def tick(self, now: float) -> None:
        """To be called about once a second."""
        self.refusals.tick(now)

    def _on_any(self, rdata: int) -> int:
        received = self._reader.read(rdata)
        if received is None:
            self._say_blind()
            return PASS
        method = received.method
        found = self._attribute(received)
        source = _plain(received.source)
        verdict = "allow" if found else self._access.verdict(source, bool(self._trunks.all))
        inside = self._in_dialog(received)
        if verdict != "allow" and not inside:
            if method != "ACK":  # of the 403 before
                code = _FORBIDDEN if verdict == "refuse" else 0
                rule = f'access.unknown = "{self._access.unknown}"'
                self._refuse(self._first, rdata, received, rule, Reply(code))
            return HANDLED
        message = received.message.decode("utf-8", "replace")
        headers = headers_of(message)
        flaw = _flaw_in(message, headers)
        if flaw is not None:
            reply = Reply(0 if method == "ACK" else flaw.code)
            self._refuse(self._first, rdata, received, f"malformed: {flaw.what}", reply)
            return HANDLED
        if inside:
            answer = reply_inside(method, next(iter(headers.get("event", ())), ""))
            if answer is not None:
                self._first.refuse(rdata, answer.code, answer.header)
                return HANDLED
        return PASS

    def _on_new(self, rdata: int) -> int:
        received = self.current = self._reader.read(rdata)
        if received is None:
            return PASS
        method = received.method
        reply = reply_outside(method)
        if reply is not None:
            rule = f"no {name_of(method)} outside of a call"
            self._refuse(self._second, rdata, received, rule, reply)
            return HANDLED
        if method != "INVITE":
            return PASS
        if self._min_session and _interval(received) < self._min_session:
            # pjsua would say so as well, but after it has told of the call.
            rule = f"Session-Expires below {self._min_session}"
            reply = Reply(_INTERVAL, ("Min-SE", str(self._min_session)))
            self._refuse(self._second, rdata, received, rule, reply)
            return HANDLED
        found = self._attribute(received)
        source = _plain(received.source)
        limits = self._access.limits if found is None else found.trunk.limits
        where = "access" if found is None else f"trunk {found.trunk.name}"
        party = party_of(found, source)
        if limits.concurrent_calls and self._calls_of(party) >= limits.concurrent_calls:
            rule = f"{where}: concurrent_calls = {limits.concurrent_calls}"
            self._refuse(self._second, rdata, received, rule, Reply(_BUSY))
            return HANDLED
        now = time.monotonic()
        if not self._rates.take(source, limits.calls_per_second, limits.burst, now):
            rule = f"{where}: calls_per_second = {limits.calls_per_second:g}"
            self._refuse(self._second, rdata, received, rule, Reply(_UNAVAILABLE))
            return HANDLED
        return PASS

    def _on_response(self, rdata: int) -> int:
        received = self._reader.read(rdata)
        if received is None:
            return PASS
        message = received.message.decode("utf-8", "replace")
        headers = headers_of(message)
        flaw = _flaw_in(message, headers)
        if flaw is None:
            if _NOT_NOW.match(message) and _REFRESH.search(headers["cseq"][0]):
                # pjsip would end the call where RFC 4028 section 10 wants the refresh tried again;
                # after a 503 it does.
                self._reader.relabel(rdata, _UNAVAILABLE)
            return PASS
        self._refuse(self._first, rdata, received, f"malformed response: {flaw.what}", Reply(0))
        return HANDLED

    def _say_blind(self) -> None:
        if not self._blind:
            self._blind = True
            log.error(
                "sip.screen_blind",
                advice="requests of this pjsua2 cannot be read before it makes calls of them: "
                "strangers get 403 later, and no limit of access or trunks holds",
            )

    def _attribute(self, received: Received) -> Attribution | None:
        return self._trunks.attribute(
            received.source, received.port, received.reliable, received.request_uri
        )

    def _refuse(
        self, through: RequestFilter, rdata: int, received: Received, rule: str, reply: Reply
    ) -> None:
        now = time.monotonic()
        source = _plain(received.source)
        self.refusals.note(
            rule,
            source,
            now,
            code=reply.code,
            method=received.method[:20],
            uri=received.request_uri[:200],
            transport=received.transport,
        )
        if not reply.code:
            return
        if self._answers.take(source, ANSWERS_PER_SECOND, ANSWERS_AT_ONCE, now):
            through.refuse(rdata, reply.code, reply.header)
        else:
            self.refusals.unanswered += 1

    def _in_dialog(self, received: Received) -> bool:
        """Whether a dialog of ours has this request: a trunk may send it from another address."""
        to = _TO.search(received.message)
        if to is None or b"tag" not in to[1]:
            return False
        headers = headers_of(received.message.decode("utf-8", "replace"))
        local, remote = (_TAG.search(headers.get(name, ("",))[0]) for name in ("to", "from"))
        call_id = headers.get("call-id", ("",))[0]
        if local is None or remote is None or not call_id:
            return False
        keys = [_text(call_id), _text(local[1]), _text(remote[1])]
        return bool(self._find_dialog(*(ctypes.addressof(key) for key in keys), 0))


def _interval(received: Received) -> float:
    """The Session-Expires of a caller who knows of Min-SE (RFC 4028 section 9); none is endless."""
    headers = headers_of(received.message.decode("utf-8", "replace"))
    supported = ",".join(headers.get("supported", ())).lower().replace(" ", "").split(",")
    interval = _SECONDS.match(next(iter(headers.get("session-expires", ())), ""))
    return int(interval[1]) if interval is not None and "timer" in supported else float("inf")


def _flaw_in(message: str, headers: Mapping[str, tuple[str, ...]]) -> Flaw | None:
    start_line = _LINE_END.split(message, maxsplit=1)[0]
    return flaw_of(start_line, headers) or body_flaw(body_of(message))


def party_of(found: Attribution | None, source: str) -> str:
    """Whose calls are counted together: a trunk's, or those of one address."""
    return f"source {source}" if found is None else f"trunk {found.trunk.name}"


def _plain(source: str) -> str:
    """An IP literal without what IPv6 sockets add to it."""
    address = address_of(source)
    return source if address is None else str(address)
