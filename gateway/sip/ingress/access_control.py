# SPDX-License-Identifier: GPL-2.0-or-later
"""Who gets in: what is refused, or left without an answer, before pjsua makes a call of it.

Two looks at a request. The first is at everything that comes, before pjsip's own layers: what is
no known trunk's and not welcome gets 403 or nothing, unless it belongs to a dialog that we have.
The second is at new requests only, just before pjsua: how many calls a source may make, and which
methods there are.
"""

from __future__ import annotations

import time
from collections import OrderedDict
from collections.abc import Callable, Mapping

import structlog

from gateway.addresses import plain
from gateway.call.ending import reason_header, refusal_code
from gateway.sip.ingress.digest import DigestAuth, Outcome
from gateway.sip.ingress.sources import Bans, Connections, is_scanner
from gateway.sip.messages.headers import body_of, headers_of, session_interval, start_line_of
from gateway.sip.messages.replies import (
    Reply,
    answer_unread,
    method_of,
    name_of,
    reply_inside,
    reply_outside,
    reply_to_required,
)
from gateway.sip.messages.sdp import Media, Objection
from gateway.sip.messages.validation import (
    STRIPPED,
    InvalidMessage,
    flaw_of,
    mended,
    refused_address,
    request_flaw,
    stripped,
)
from gateway.sip.rate_limits import RefusalLog, SourceBuckets, TokenBucket
from gateway.sip.settings import Access, Trunk
from gateway.sip.signalling import DROP, PASS, Decision, Negotiation, Received, Unread
from gateway.sip.trunks.matching import Attribution, Challenges, Trunks

log = structlog.get_logger("sip")

ANSWERS_PER_SECOND = 5.0
ANSWERS_AT_ONCE = 20
"""Refusals that one source gets; beyond, silence: nobody shall be flooded through us with what a
forged source address asks for."""

MAX_AUTHENTICATED = 4096
"""INVITEs with good credentials that are remembered, for what may follow without any: a CANCEL."""

BAN_LINES_PER_SECOND = 0.2
BAN_LINES_AT_ONCE = 20
"""Bans that the log tells of; ``gateway status`` has all of them."""

REQUESTS_PER_SECOND = 20.0
REQUESTS_AT_ONCE = 40
"""INFO, UPDATE, re-INVITE and the like within one call; a fast typist presses ten keys a second.
What ends a call, or is part of an INVITE's transaction, has no limit."""

_UNLIMITED = frozenset({"ACK", "BYE", "CANCEL", "PRACK"})

_UNAUTHORIZED, _FORBIDDEN, _INTERVAL, _BUSY, _UNAVAILABLE = 401, 403, 422, 486, 503
_BAD_REQUEST, _TOO_LARGE = 400, 513

Headers = Mapping[str, tuple[str, ...]]

_NOT_NOW = (491, 500)
"""Glare, and what some say in its place (RFC 3261 section 14.2)."""


class AccessControl:
    """Made, opened and used on the SIP thread.

    Args:
        access: the policy for strangers.
        trunks: whose request is whose.
        retry_after: seconds, for a 503.
        calls_of: calls in progress, by what :func:`party_of` says.
        unacknowledged: number of strangers' calls that wait for their ACK.
        min_session: least Session-Expires that a call may ask for, s; 0 leaves it to pjsip.
        descriptions: judges and mends what messages say of media.
        on_objection: told of each new INVITE whose offer cannot be taken.
        names_of: the names in the certificate of who is at the other end of a connection, by
            pjsip's handle of it.
        challenges: who may ask for a trunk's password.
        receive_instead: has pjsip take another message for the one that is decided on; with True
            only where a call of ours has it. Returns whether it was taken.
    """

    def __init__(
        self,
        access: Access,
        trunks: Trunks,
        retry_after: int,
        calls_of: Callable[[str], int],
        unacknowledged: Callable[[], int],
        min_session: int,
        descriptions: Negotiation,
        on_objection: Callable[[Received, Objection], None],
        names_of: Callable[[int], tuple[str, ...]] = lambda _connection: (),
        challenges: Challenges | None = None,
        receive_instead: Callable[[bytes, bool], bool] = lambda _message, _known_only: False,
    ) -> None:
        self._receive_instead = receive_instead
        self._instead = False
        """What pjsip takes in place of another message is not replaced again."""
        self._challenges = challenges
        self.refusals = RefusalLog(lambda fields: log.warning("sip.rejected", **fields))
        self.current: Received | None = None
        """The new request that pjsua is looking at, while it is."""
        self.found: Attribution | None = None
        """Whose it is."""
        self.chosen: Media | Objection | None = None
        """The audio line to answer in it."""
        self._descriptions = descriptions
        self._on_objection = on_objection
        self._access = access
        self._trunks = trunks
        self._calls_of = calls_of
        self._unacknowledged = unacknowledged
        self._min_session = min_session
        self._names_of = names_of
        digest = access.digest
        self._digest = DigestAuth(
            digest.realm, digest.algorithms, digest.nonce_lifetime, trunks.passwords
        )
        self._authenticated: OrderedDict[tuple[str, str], Attribution] = OrderedDict()
        """By source and Call-ID."""
        self.bans = Bans(access.bans)
        self._ban_lines: TokenBucket | None = None
        self.connections = Connections(
            trunks.is_peer,
            self._may_come,
            lambda source: self._calls_of(f"source {source}") > 0,
        )
        self._rates = SourceBuckets()
        self._answers = SourceBuckets()
        self._retry_after = ("Retry-After", str(retry_after))
        self._within_calls = SourceBuckets()
        self._unread = SourceBuckets()
        """Apart from the other answers: what is no message shall not cost those to messages."""

    def tick(self, now: float) -> None:
        """To be called about once a second."""
        self.refusals.tick(now)
        self.bans.tick(now)

    def on_connection(self, connection: int, source: str, close: Callable[[int], None]) -> None:
        """Somebody has connected to us: ``close`` what is not welcome, or comes to be."""
        now, source = time.monotonic(), plain(source)
        rule = self.connections.opened(connection, source, now)
        if rule:
            self.refusals.note(rule, source, now)
            close(connection)

    def close_idle(self, now: float, close: Callable[[int], None]) -> None:
        """Close the connections that are silent for too long. To be called about once a second."""
        for connection, source, rule in self.connections.overdue(now):
            self.refusals.note(rule, source, now)
            self.connections.closed(connection)
            close(connection)

    def _may_come(self, source: str) -> bool:
        """Whether a connection of a stranger can lead to anything."""
        if self.bans.drops(source, time.monotonic(), may_prove=bool(self._trunks.callers)):
            return False
        # A registrar's other servers are known by our contact's parameter only.
        registers = any(
            self._trunks.by_name[name].transport != "udp" for name in self._trunks.lines
        )
        return self._verdict(source) == "allow" or bool(self._trunks.callers) or registers

    def on_message(self, received: Received) -> Decision:
        """Decide on every message, before pjsip's own layers."""
        decision = self._on_message(received)
        if decision == PASS:
            self.connections.heard(received.connection, time.monotonic())
        return decision

    def _on_message(self, received: Received) -> Decision:
        if received.status:
            return self._on_response(received)
        self.current = self.found = self.chosen = None
        method, now = received.method, time.monotonic()
        source = plain(received.source)
        inside = received.in_dialog
        self.found = self._attribute(received)
        if not inside and self._is_banned(received, source, now):
            return self._drop_banned()
        message = received.message.decode("utf-8", "replace")
        headers = headers_of(message)
        if not inside:
            stop = self._stop(received, source, headers, now)
            if stop is not None:
                rule, reply = stop
                if method == "ACK":  # of the refusal before
                    return DROP
                if rule:
                    return self._refuse(received, rule, reply)
                return self._answer(source, reply, now)
        flaw = request_flaw(message, headers, source) or _cut(received, headers)
        if flaw is not None:
            if self._take_stripped(received, received.message):
                return DROP
            reply = Reply(0 if method == "ACK" else flaw.code, flaw.header)
            return self._refuse(received, f"malformed: {flaw.what}", reply)
        trunk = None if self.found is None else self.found.trunk
        self.chosen = self._descriptions.settle(method, trunk, received.local)
        if inside:
            call = _first(headers, "call-id")
            if method not in _UNLIMITED and not self._within_calls.take(
                call, REQUESTS_PER_SECOND, REQUESTS_AT_ONCE, now
            ):
                rule = f"more than {REQUESTS_PER_SECOND:g} requests a second within a call"
                return self._refuse(received, rule, Reply(_UNAVAILABLE))
            answer = reply_to_required(method, headers.get("require", ())) or reply_inside(
                method, headers, body_of(message)
            )
            if answer is not None:
                return self._decision(answer)
        elif method != "INVITE":
            answer = reply_to_required(method, headers.get("require", ()))
            if answer is not None:
                return self._answer(source, answer, now)
        return PASS

    def _stop(
        self, received: Received, source: str, headers: Headers, now: float
    ) -> tuple[str, Reply] | None:
        """Which rule keeps a request outside of dialogs out, and the answer; None lets it in.

        A challenge has no rule: it is no refusal, unless wrong credentials came before it.
        """
        found, method = self.found, received.method
        if found is None and is_scanner(_first(headers, "user-agent")):
            self._count_refusal(received, now)
            return "known scanner", Reply(0)
        if found is not None:
            unfit = found.trunk.misfit(received.transport, self._names_of(received.connection))
            if unfit:
                return f"trunk {found.trunk.name}: {unfit}", self._no
        banned = source in self.bans
        welcome = found is not None or (self._verdict(source) == "allow" and not banned)
        if method != "INVITE":
            follows = (source, _first(headers, "call-id")) in self._authenticated
            welcome = welcome or (follows and method in ("ACK", "CANCEL"))
        elif self._asks(found, welcome=welcome and "authorization" not in headers):
            return self._authenticate(received, source, headers, now)
        if welcome:
            return None
        self._count_refusal(received, now)
        if banned:
            self._drop_banned()
            return "", Reply(0)
        return f'access.unknown_sources = "{self._access.unknown}"', self._no

    def _asks(self, found: Attribution | None, *, welcome: bool) -> bool:
        """Whether an INVITE has to have credentials to be taken, or taken for a trunk's."""
        if found is not None:
            return found.trunk.inbound_auth is not None
        return bool(self._trunks.callers) and not welcome

    def _authenticate(
        self, received: Received, source: str, headers: Headers, now: float
    ) -> tuple[str, Reply] | None:
        """Challenge an INVITE, or take the trunk's whose credentials it has (RFC 3261 22.1)."""
        fields = headers.get("authorization", ())
        checked = self._digest.check(fields, received.method, source, received.message, now)
        outcome = checked.outcome
        if outcome is Outcome.GOOD:
            trunk = self._trunk_of(checked.username)
            if trunk is None:  # of a trunk whose calls do not come from here
                outcome = Outcome.WRONG
            elif unfit := trunk.misfit(received.transport, self._names_of(received.connection)):
                return f"trunk {trunk.name}: {unfit}", self._no
            else:
                self.bans.proved(source, now)
                self.found = Attribution(trunk, "authentication")
                self._authenticated[source, _first(headers, "call-id")] = self.found
                if len(self._authenticated) > MAX_AUTHENTICATED:
                    self._authenticated.popitem(last=False)
                return None
        stale = outcome is Outcome.STALE
        reply = Reply(_UNAUTHORIZED, challenges=self._digest.challenge(source, now, stale=stale))
        if stale:
            return "", reply
        surely = outcome is Outcome.WRONG or (received.reliable and outcome is Outcome.FORGED)
        if surely or self.found is None:
            self._count_refusal(received, now, surely=surely)
        return "" if outcome is Outcome.NONE else f"digest: {outcome.value}", reply

    def _trunk_of(self, username: str) -> Trunk | None:
        """The trunk whose credentials are good where the request came from."""
        if self.found is None:
            return self._trunks.callers.get(username)
        own = self.found.trunk.inbound_auth
        return self.found.trunk if own is not None and own.username == username else None

    def _is_banned(self, received: Received, source: str, now: float) -> bool:
        """Whether a request outside of dialogs is left without an answer because of its source.

        A trunk that is known without credentials is never banned. Who has credentials may show them
        unless wrong ones brought the ban: anybody can write another's address into UDP packets.
        """
        if self.found is not None and self.found.trunk.inbound_auth is None:
            return False
        may_prove = received.method in ("INVITE", "ACK", "CANCEL") and (
            self.found is not None or bool(self._trunks.callers)
        )
        return self.bans.drops(source, now, may_prove=may_prove)

    def _drop_banned(self) -> Decision:
        self.refusals.by_rule["banned"] += 1
        return DROP

    def _count_refusal(self, by: Received | Unread, now: float, *, surely: bool = False) -> None:
        source, connected = plain(by.source), by.transport != "udp"
        if not surely and self._trunks.is_peer(source):
            return
        if not self.bans.refused(source, now, surely=surely, connected=connected):
            return
        if self._ban_lines is None:
            self._ban_lines = TokenBucket(BAN_LINES_PER_SECOND, BAN_LINES_AT_ONCE, now)
        if self._ban_lines.take(now):
            policy = self._access.bans
            log.warning("sip.banned", source=source, seconds=policy.seconds, refusals=policy.after)

    @property
    def _no(self) -> Reply:
        return Reply(0 if self._access.unknown == "drop" else _FORBIDDEN)

    def _verdict(self, source: str) -> str:
        return self._access.verdict(source, bool(self._trunks.all))

    def on_request(self, received: Received) -> Decision:
        """Decide on a new request outside of dialogs, just before pjsua."""
        self.current = received
        method = received.method
        reply = reply_outside(method)
        if reply is not None:
            rule = f"no {name_of(method)} outside of a call"
            return self._refuse(received, rule, reply)
        if method != "INVITE":
            return PASS
        if self._min_session and session_interval(received.message) < self._min_session:
            # pjsua would say so as well, but after it has told of the call.
            rule = f"Session-Expires below {self._min_session}"
            reply = Reply(_INTERVAL, ("Min-SE", str(self._min_session)))
            return self._refuse(received, rule, reply)
        found = self.found
        source = plain(received.source)
        limits = self._access.limits if found is None else found.trunk.limits
        where = "access" if found is None else f"trunk {found.trunk.name}"
        party = party_of(found, source)
        if limits.concurrent_calls and self._calls_of(party) >= limits.concurrent_calls:
            rule = f"{where}: max_concurrent_calls = {limits.concurrent_calls}"
            return self._refuse(received, rule, Reply(_BUSY))
        most = limits.unacknowledged_calls
        if most and found is None and self._unacknowledged() >= most:
            rule = f"access: max_unacknowledged_calls = {most}"
            return self._refuse(received, rule, Reply(_UNAVAILABLE))
        now = time.monotonic()
        if not self._rates.take(source, limits.calls_per_second, limits.burst, now):
            rule = f"{where}: calls_per_second = {limits.calls_per_second:g}"
            return self._refuse(received, rule, Reply(_UNAVAILABLE))
        if isinstance(self.chosen, Objection):
            self._on_objection(received, self.chosen)
            why = self.chosen.why
            return Decision(refusal_code(why), (("Reason", reason_header(why)),))
        return PASS

    def on_unread(self, unread: Unread) -> bytes:
        """The answer to what pjsip's parser gave up; empty for none."""
        now, source = time.monotonic(), plain(unread.source)
        found = self._trunks.attribute(unread.source, unread.port, unread.transport != "udp", "")
        if found is None and self.bans.drops(source, now):
            self._drop_banned()
            return b""
        if unread.code == _BAD_REQUEST and (
            self._take(mended(unread.data, unread.source, unread.port), known_only=False)
            or self._take_stripped(unread, unread.data)
        ):
            return b""
        rule, code = "malformed: cannot be read", unread.code
        if found is None and self._verdict(source) != "allow":
            self._count_refusal(unread, now)
            rule, code = f'access.unknown_sources = "{self._access.unknown}"', self._no.code
        elif code == _TOO_LARGE:
            rule = "message too large"
        method = method_of(unread.data)
        answer = answer_unread(unread.data, code, unread.source, unread.port) if code else b""
        if answer and not self._unread.take(source, ANSWERS_PER_SECOND, ANSWERS_AT_ONCE, now):
            self.refusals.unanswered += 1
            answer = b""
        told = code if answer else 0
        self.refusals.note(
            rule, source, now, code=told, method=name_of(method), transport=unread.transport
        )
        return answer

    def _take_stripped(self, came: Received | Unread, data: bytes) -> bool:
        """Have what ends a call, or confirms it, do so whatever is wrong in the rest of it."""
        if method_of(data) not in STRIPPED:
            return False
        less = stripped(data, came.source, came.port, came.transport)
        return any(self._take(message, known_only=True) for message in less)

    def _take(self, message: bytes, *, known_only: bool) -> bool:
        if not message or self._instead:
            return False
        self._instead = True
        try:
            return self._receive_instead(message, known_only)
        finally:
            self._instead = False

    def _on_response(self, received: Received) -> Decision:
        message = received.message.decode("utf-8", "replace")
        headers = headers_of(message)
        flaw = flaw_of(start_line_of(message), headers)
        if flaw is not None:
            return self._refuse(received, f"malformed response: {flaw.what}", Reply(0))
        if address := refused_address(body_of(message), received.source):
            # Not dropped: whoever has answered needs ACK and BYE.
            source = plain(received.source)
            self.refusals.note(f"response with RTP to {address}", source, time.monotonic())
            self._descriptions.discard()
        else:
            self._descriptions.settle("", None, received.local)
        if received.status in _NOT_NOW and received.method in ("INVITE", "UPDATE"):
            # pjsip would end the call where RFC 4028 section 10 wants the refresh tried again;
            # after a 503 it does.
            return Decision(_UNAVAILABLE)
        if self._challenges is not None and self._challenges.is_foreign(
            received.status, headers, plain(received.source)
        ):
            return Decision(_FORBIDDEN)
        return PASS

    def _attribute(self, received: Received) -> Attribution | None:
        return self._trunks.attribute(
            received.source, received.port, received.reliable, received.request_uri
        )

    def _refuse(self, received: Received, rule: str, reply: Reply) -> Decision:
        now = time.monotonic()
        source = plain(received.source)
        self.refusals.note(
            rule,
            source,
            now,
            code=reply.code,
            method=received.method[:20],
            uri=received.request_uri[:200],
            transport=received.transport,
        )
        return self._answer(source, reply, now)

    def _answer(self, source: str, reply: Reply, now: float) -> Decision:
        if not reply.code:
            return DROP
        if not self._answers.take(source, ANSWERS_PER_SECOND, ANSWERS_AT_ONCE, now):
            self.refusals.unanswered += 1
            return DROP
        return self._decision(reply)

    def _decision(self, reply: Reply) -> Decision:
        headers = [("WWW-Authenticate", value) for value in reply.challenges]
        if reply.header is not None:
            headers.append(reply.header)
        if reply.code == _UNAVAILABLE:
            headers.append(self._retry_after)
        return Decision(reply.code, tuple(headers))


def _first(headers: Headers, name: str) -> str:
    return next(iter(headers.get(name, ())), "")


def _cut(received: Received, headers: Headers) -> InvalidMessage | None:
    """A datagram that ends before its body does (RFC 3261 section 18.3)."""
    length = _first(headers, "content-length")
    _head, end, body = received.message.partition(b"\r\n\r\n")
    if received.reliable or not end or not (length.isascii() and length.isdigit()):
        return None
    return InvalidMessage(400, "Content-Length") if int(length[:10]) > len(body) else None


def party_of(found: Attribution | None, source: str) -> str:
    """Whose calls are counted together: a trunk's, or those of one address."""
    return f"source {source}" if found is None else f"trunk {found.trunk.name}"
