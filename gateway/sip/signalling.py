# SPDX-License-Identifier: GPL-2.0-or-later
"""The seam between pjsip and pjsua: every message is decided on before pjsua sees it, and kept in
memory until the black box of its call takes it.

The C++ side is ``deploy/pjsua2/native/signalling.hpp``. It fails closed: a message on which nothing
could be decided, since the code here raised, is answered with 500 or dropped, and counted.

Session descriptions are judged by :mod:`gateway.sip.messages.sdp`; :class:`Negotiation` knows whose
account a message is for, and puts the repaired one into pjsip's message
(``deploy/pjsua2/native/description.cpp``).
"""

from __future__ import annotations

import re
import threading
import time
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, NamedTuple, TypeVar

import pjsua2 as pj
import structlog

from gateway.addresses import address_of
from gateway.audio import G711, Codec
from gateway.sip import Security, SipSettings, Trunk
from gateway.sip.messages.sdp import MediaLine, SdpRejection, parse, sdp_text

log = structlog.get_logger("sip")

FAILED_SECONDS = 10.0
"""How often it is logged that a decision raised."""

_T = TypeVar("_T")


class Decision(NamedTuple):
    """Pass a message on, drop it, or answer it."""

    code: int
    """:data:`PASS` and :data:`DROP` have codes of their own. Else a request is answered with this
    status, without a transaction; a response is taken for one with this status."""
    headers: tuple[tuple[str, str], ...] = ()
    """Name and value of the fields to add to the answer."""
    reason: str = ""
    """The phrase after the status; empty for the usual one."""


PASS = Decision(-1)
DROP = Decision(0)


@dataclass(frozen=True, slots=True)
class ReceivedMessage:
    """A SIP message that pjsip has parsed and pjsua has not seen."""

    source: str
    """IP literal."""
    port: int
    transport: str
    """udp, tcp or tls."""
    local: str
    """Our address that it came to, as IP literal; the unspecified one for a socket on all."""
    connection: int
    """pjsip's handle of the connection or socket that it came by."""
    method: str
    """INVITE, OPTIONS, ...; of a response, that of its request."""
    status: int
    """Of a response; 0: it is a request."""
    message: bytes
    body: bytes
    """Where it has a Content-Type."""
    in_dialog: bool
    """A dialog of ours has this request."""
    call_id: str = ""

    @property
    def reliable(self) -> bool:
        """Whether it came over TCP or TLS, where the source port identifies nobody."""
        return self.transport != "udp"

    @property
    def request_uri(self) -> str:
        """Request-URI as it stands in the first line; "" where there is none."""
        parts = self.message.split(b"\n", 1)[0].split(b" ")
        return parts[1].decode("utf-8", "replace") if len(parts) > 1 else ""


@dataclass(frozen=True, slots=True)
class UnparsedMessage:
    """Bytes that pjsip's parser could not read as a message."""

    source: str
    """IP literal."""
    port: int
    transport: str
    """udp, tcp or tls."""
    code: int
    """400, or 513 where it does not fit the buffer."""
    data: bytes


Decide = Callable[[ReceivedMessage], Decision]


class Signalling:
    """The native module in pjsip that shows us messages before pjsip's own layers have them.

    Made, opened, used and closed on the SIP thread.

    Args:
        on_message: decides on every request and response, before pjsip's own layers.
        on_request: decides on new requests outside of dialogs, just before pjsua; neither
            retransmissions nor what ``on_message`` has not passed get there.
        on_unread: told of what pjsip's parser gave up; returns the bytes to answer with.
        retry_after: seconds, for each 503 to an INVITE that does not say them; 0: none.
        messages: gets each message, before it is decided on or as it is sent.
    """

    def __init__(
        self,
        on_message: Decide,
        on_request: Decide,
        on_unread: Callable[[UnparsedMessage], bytes] = lambda _unread: b"",
        retry_after: int = 0,
        messages: MessageLog | None = None,
    ) -> None:
        self.on_bye: Callable[[int, int], None] = lambda _number, _status: None
        """Told how a BYE of :meth:`watch_bye` ended: 0 could not be sent, 408 no answer, else the
        final status."""
        self.on_options: Callable[[int, int], None] = lambda _token, _status: None
        """Told the status that an OPTIONS of :meth:`send_options` brought; 0 for no answer."""
        self._messages = messages or MessageLog()
        self._native: Any = pj.NativeSignalling(
            _Handler(
                on_message,
                on_request,
                on_unread,
                lambda number, status: self.on_bye(number, status),
                lambda token, status: self.on_options(token, status),
                self._messages,
            ),
            retry_after,
        )
        self._errors = 0
        self._messages.on_wanted = self._native.showSent
        self._native.showSent(self._messages.wanted)

    @property
    def failures(self) -> int:
        """Return how many messages were refused because deciding about them raised: errors of
        ours."""
        return int(self._native.failures())

    def open(self) -> None:
        """Register with the endpoint of an initialised library. Raises ``pj.Error``."""
        self._native.open()

    @property
    def errors(self) -> int:
        """Return how many events, such as a message sent, could not be passed to Python."""
        return int(self._native.errors())

    def tick(self) -> None:
        """Log how many :attr:`errors` have come since the last tick; nothing if none. To be called
        once a second."""
        if (errors := self.errors) != self._errors:
            log.error("sip.not_told", count=errors - self._errors, advice="a black box lacks it")
            self._errors = errors

    def close(self) -> None:
        """Drop all callbacks. To be called after the library has been destroyed."""
        self._native.close()

    def headers(self, name: str) -> tuple[str, ...]:
        """Return the values of a header field of the current message, as parsed by pjsip.

        Raises RuntimeError outside of ``on_message`` and ``on_request``.
        """
        found: tuple[str, ...] = self._native.headers(name)
        return found

    def receive_instead(self, message: bytes, *, known_only: bool) -> bool:
        """Have pjsip process another message in place of the current one; return whether it does.

        With ``known_only``, only if it belongs to a dialog or transaction of ours. False, without
        any effect, when it cannot be parsed or is not known.
        """
        return bool(self._native.receiveInstead(message, known_only))

    def keep_message(self) -> int:
        """Keep a copy of the current message for :meth:`process_kept`, which the decision then has
        to drop; return its number, 0 when too many are kept already."""
        return int(self._native.hold())

    def process_kept(self, number: int) -> bool:
        """Have pjsip process a message of :meth:`keep_message`; return whether it was still
        kept."""
        return bool(self._native.resume(number))

    def watch_bye(self, call: Any) -> int:
        """Watch the BYE that is about to be sent for a ``pj.Call``; return the number that
        ``on_bye`` is told with its outcome. 0 when the call has no dialog any more: ``on_bye`` is
        not called then."""
        return int(self._native.watchBye(call))

    def send_options(self, account: int, uri: str, token: int) -> int:
        """Send an OPTIONS request by pjsua's number of an account; return pjsip's status, 0 where
        it was sent. ``token`` comes back in ``on_options``."""
        return int(self._native.sendOptions(account, uri, token))


class _Handler:
    """Receives the calls of the C++ side. Apart from :class:`Signalling`, which owns that side."""

    def __init__(
        self,
        on_message: Decide,
        on_request: Decide,
        on_unread: Callable[[UnparsedMessage], bytes],
        on_bye: Callable[[int, int], None],
        on_options: Callable[[int, int], None],
        messages: MessageLog,
    ) -> None:
        self._on_message = on_message
        self._on_request = on_request
        self._on_unread = on_unread
        self._on_bye = on_bye
        self._on_options = on_options
        self._messages = messages
        self._asked = False
        self._next_log = 0.0

    def on_message(self, *fields: Any) -> Decision:
        """Log a message for black boxes, if messages are wanted, and decide on it. One that is
        processed in its place comes here too, and is not logged."""
        received = ReceivedMessage(*fields)
        # A repaired one is given to pjsip, and comes here, within the decision on the first.
        if self._messages.wanted and not self._asked:
            self._messages.add(
                received.call_id,
                received.method,
                received.source,
                received.port,
                received.transport,
                received.message,
                sent=False,
            )
        asked, self._asked = self._asked, True
        try:
            return self._logged(lambda: self._on_message(received))
        finally:
            self._asked = asked

    def on_request(self, *fields: Any) -> Decision:
        """Decide on a new request outside of dialogs."""
        return self._logged(lambda: self._on_request(ReceivedMessage(*fields)))

    def on_sent(self, *fields: Any) -> None:
        """Log a message of ours, as it was sent, for black boxes."""
        self._logged(lambda: self._messages.add(*fields, sent=True))

    def on_unread(self, *fields: Any) -> bytes:
        """Return the answer to bytes that pjsip could not parse; empty for none."""
        return self._logged(lambda: self._on_unread(UnparsedMessage(*fields)))

    def on_bye(self, number: int, status: int) -> None:
        """Report the final status of a BYE that is watched."""
        self._logged(lambda: self._on_bye(number, status))

    def on_options(self, token: int, status: int) -> None:
        """Report the final status of an OPTIONS of ours."""
        self._logged(lambda: self._on_options(token, status))

    def _logged(self, function: Callable[[], _T]) -> _T:
        """Call a function; log its exception, at most every ``FAILED_SECONDS``, and raise it
        again."""
        try:
            return function()
        except Exception:
            now = time.monotonic()
            if now >= self._next_log:
                self._next_log = now + FAILED_SECONDS
                log.exception(
                    "sip.access_control_failed", advice="what it was asked about got no further"
                )
            raise


_OFFERS = ("INVITE", "UPDATE", "PRACK")
_EMPTY_SDP = b"v=0\r\no=- 0 0 IN IP4 0.0.0.0\r\ns=-\r\nt=0 0\r\n"
"""Without media lines: replaces an answer that cannot be read, so that nothing is negotiated."""


class Negotiation:
    """Chooses the audio line to answer, and repairs the SDP of messages (RFC 3264).

    Used on the SIP thread; :meth:`repair` and :meth:`blank` within a decision on a message.
    """

    def __init__(self, settings: SipSettings) -> None:
        self._settings = settings

    def repair(
        self, method: str, trunk: Trunk | None, local: str
    ) -> MediaLine | SdpRejection | None:
        """Repair the SDP of the current message in place; return the audio line to answer, or why
        there is none; None where it has no SDP.

        In an INVITE, UPDATE or PRACK all other audio lines are disabled. In other messages, whose
        SDP is an answer, it is emptied if it cannot be read, or lacks the keys of SRTP: nothing is
        negotiated then.

        Args:
            method: of a request; empty for a response, in which nothing is chosen.
            trunk: the trunk that the message is attributed to.
            local: our address that it came to.
        """
        raw = pj.sessionDescription()
        if raw is None:
            return None
        security, codecs = self._asked(trunk)
        description = parse(raw.decode("utf-8", "replace"), codecs)
        if description.flaw is not None:
            if method not in _OFFERS:
                pj.replaceSessionDescription(_EMPTY_SDP)
            return description.flaw
        if method not in _OFFERS and description.lacks_keys:
            pj.replaceSessionDescription(_EMPTY_SDP)  # the library would take it for plain RTP
            return SdpRejection.KEYS
        chosen = description.choose(security, codecs, self.uses_ipv6(local))
        line = chosen if isinstance(chosen, MediaLine) and method in _OFFERS else None
        new = sdp_text(description, line, sdes="sdes" in security.keying).encode()
        if new != raw:
            pj.replaceSessionDescription(new)
        return chosen

    def blank(self) -> None:
        """Replace the SDP of the current message by an empty one, so that nothing is negotiated."""
        if pj.sessionDescription() is not None:
            pj.replaceSessionDescription(_EMPTY_SDP)

    def rejection(self, text: str, trunk: Trunk | None, local: str) -> SdpRejection | None:
        """Return why the offer of a re-INVITE or UPDATE (its SDP in ``text``) is answered with 488;
        None where it is accepted. ``local`` is our address of the call."""
        security, codecs = self._asked(trunk)
        chosen = parse(text, codecs).choose(security, codecs, self.uses_ipv6(local))
        return chosen if isinstance(chosen, SdpRejection) else None

    def uses_ipv6(self, local: str) -> bool:
        """Return whether a call that came to this address of ours has RTP over IPv6; for the
        unspecified one, or none, the first of ``sip.listen`` decides."""
        address = address_of(local)
        known = address is not None and not address.is_unspecified
        return ":" in (str(address) if known else self._settings.listen[0].host)

    def _asked(self, trunk: Trunk | None) -> tuple[Security, tuple[Codec, ...]]:
        """Return the SRTP policy and the codecs of a trunk, or the defaults."""
        if trunk is None:
            return self._settings.security, G711
        return trunk.security, trunk.codecs


MAX_LOG_BYTES = 8 * 1024 * 1024
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

        Beyond ``MAX_CALL_BYTES`` and ``MAX_LOG_BYTES`` a message is counted only; of calls that
        nobody follows yet, those quiet the longest are forgotten.
        """
        if not self._wanted:
            return
        host = f"[{peer}]" if ":" in peer else peer
        message = SipMessage(time.monotonic(), sent, f"{host}:{port}", transport, data)
        with self._lock:
            followed = self._followed.get(call_id)
            if followed is not None:
                if self._followed_bytes + len(data) > MAX_LOG_BYTES:
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
            while self._others_bytes > MAX_LOG_BYTES:
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
