# SPDX-License-Identifier: GPL-2.0-or-later
"""Access control: requests that are refused, or not answered, before pjsua makes calls of them.

Two looks at a request. The first is at everything that comes, before pjsip's own layers: what is
no known trunk's and not welcome gets 403 or nothing, unless it belongs to a dialog that we have.
The second is at new requests only, just before pjsua: how many calls a source may make, and which
methods there are.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable
from datetime import UTC, datetime

import structlog

from gateway.addresses import bracketed, counted, plain
from gateway.ending import reason_header, refusal_code
from gateway.sip import Access
from gateway.sip.messages.headers import (
    body_of,
    first_of,
    has_unreadable_number,
    headers_of,
    session_interval,
    start_line_of,
    without_unreadable,
)
from gateway.sip.messages.replies import (
    Reply,
    known_method,
    method_of,
    reply_in_dialog,
    reply_outside_dialog,
    reply_to_required,
    response_to_unparsed,
)
from gateway.sip.messages.sdp import MediaLine, SdpRejection
from gateway.sip.messages.validation import (
    REDUCIBLE,
    RTP_ADDRESS,
    InvalidMessage,
    forbidden_rtp_address,
    message_flaw,
    reduced_requests,
    reduced_response,
    request_flaw,
    with_user_and_host,
    without_bad_via,
)
from gateway.sip.signalling import (
    DROP,
    PASS,
    Decision,
    Negotiation,
    ReceivedMessage,
    UnparsedMessage,
)
from gateway.sip.source_limits import OF_A_PEER, Connections, RefusalLog, SourceBuckets
from gateway.sip.source_policy import Headers, Rejection, SourcePolicy
from gateway.sip.trunks import Attribution, Challenges, Trunks

log = structlog.get_logger("sip")

ANSWERS_PER_SECOND = 5.0
ANSWERS_AT_ONCE = 20
"""Refusals that one source gets; beyond, silence: nobody shall be flooded through us with what a
forged source address asks for."""

REQUESTS_PER_SECOND = 20.0
REQUESTS_AT_ONCE = 40
"""INFO, UPDATE, re-INVITE and the like within one call; a fast typist presses ten keys a second.
What ends a call, or is part of an INVITE's transaction, has no limit."""

_UNLIMITED = frozenset({"ACK", "BYE", "CANCEL", "PRACK"})

_FORBIDDEN, _INTERVAL, _BUSY, _UNAVAILABLE = 403, 422, 486, 503
_BAD_REQUEST, _TOO_LARGE = 400, 513

_NOT_NOW = (491, 500)
"""Glare, and what some say in its place (RFC 3261 section 14.2)."""


_CALL_ID = re.compile(rb"\n(?:call-id|i)[ \t]*:[ \t]*([^\s]{1,256})", re.IGNORECASE)


class AccessControl:
    """Decides on each SIP message: whether it gets in, whose it is, or how it is refused.

    Made, opened and used on the SIP thread.

    Args:
        access: the policy for strangers.
        trunks: whose request is whose.
        retry_after: seconds, for a 503.
        calls_of: calls in progress, by what :func:`party_of` says.
        unacknowledged: number of a trunk's calls, or for "" of strangers', that wait for their ACK.
        is_established: whether the call with a SIP Call-ID is past its ACK.
        min_session: least Session-Expires that a call may ask for, s; 0 leaves it to pjsip.
        negotiation: judges and repairs the SDP of messages.
        on_sdp_rejected: told of each new INVITE whose offer cannot be taken.
        names_of: the names in the certificate of who is at the other end of a connection, by
            pjsip's handle of it.
        challenges: who may ask for a trunk's password.
        receive_instead: see :meth:`Signalling.receive_instead`, second argument ``known_only``.
        delays_refer: whether a REFER within a call waits until others have been asked.
    """

    def __init__(
        self,
        access: Access,
        trunks: Trunks,
        retry_after: int,
        calls_of: Callable[[str], int],
        unacknowledged: Callable[[str], int],
        is_established: Callable[[str], bool],
        min_session: int,
        negotiation: Negotiation,
        on_sdp_rejected: Callable[[ReceivedMessage, SdpRejection], None],
        names_of: Callable[[int], tuple[str, ...]],
        challenges: Challenges,
        receive_instead: Callable[[bytes, bool], bool],
        delays_refer: Callable[[Headers], bool],
    ) -> None:
        self.refusals = RefusalLog(lambda fields: log.warning("sip.rejected", **fields))
        self.current: ReceivedMessage | None = None
        """The new request that pjsua is looking at, while it is."""
        self.found: Attribution | None = None
        """Whose it is."""
        self.chosen: MediaLine | SdpRejection | None = None
        """The audio line of its offer to answer, or why there is none."""
        self.policy = SourcePolicy(access, trunks, names_of, self.refusals)
        self.connections = Connections(
            trunks.is_peer,
            self.policy.may_connect,
            lambda source: calls_of(f"source {source}") > 0,
        )
        self._answers = _Answers(self.refusals, retry_after)
        self._limits = _RequestLimits(access, calls_of, unacknowledged, min_session)
        self._trunks = trunks
        self._negotiation = negotiation
        self._on_sdp_rejected = on_sdp_rejected
        self._challenges = challenges
        self._is_established = is_established
        self._receive_instead = receive_instead
        self._delays_refer = delays_refer
        self._instead = False
        """What pjsip takes in place of another message is not replaced again."""

    def tick(self, now: float) -> None:
        """Expire limits of log lines, and bans; called about once a second."""
        self.refusals.tick(now)
        self.policy.bans.tick(now)

    def on_connection(self, connection: int, source: str, close: Callable[[int], None]) -> None:
        """Check a new TCP or TLS connection: one that is not allowed is logged and closed by
        ``close``. One too many of a trunk's address closes that address's longest silent one
        instead.

        Args:
            connection: pjsip's handle.
            source: IP literal of its other end.
        """
        now, source = time.monotonic(), plain(source)
        rule = self.connections.opened(connection, source, now)
        if rule:
            self.refusals.note(rule, source, now)
            close(connection)
        elif (longest := self.connections.surplus_connection(source)) is not None:
            self.refusals.note(f"more than {OF_A_PEER} connections", source, now)
            self.connections.closed(longest)
            close(longest)

    def close_idle(self, now: float, close: Callable[[int], None]) -> None:
        """Close and log connections of strangers that have been silent for too long. To be called
        about once a second."""
        for connection, source, rule in self.connections.overdue(now):
            self.refusals.note(rule, source, now)
            self.connections.closed(connection)
            close(connection)

    def on_message(self, received: ReceivedMessage) -> Decision:
        """Decide on a message before pjsip's own layers read it: pass, drop or answer it.

        One that passes keeps its connection open: its idle time begins anew.
        """
        decision = self._on_message(received)
        if decision == PASS:
            self.connections.heard(received.connection, time.monotonic())
        return decision

    def _on_message(self, received: ReceivedMessage) -> Decision:
        """Decide on a request, or by :meth:`_on_response` on a response.

        In this order: bans; unreadable numbers of an INVITE (taken without them); source and
        credentials (both only outside of dialogs); form, where a BYE, CANCEL or ACK is taken
        without what is wrong, and others are refused; repair of its SDP. Then within a dialog the
        rate, required extensions and methods that pjsua does not answer, and a REFER that has to
        wait; outside of one, extensions of anything but an INVITE.

        Sets ``found`` and ``chosen``. DROP is also the answer where another message was processed
        in its place.
        """
        if received.status:
            return self._on_response(received)
        self.current = self.found = self.chosen = None
        method, now = received.method, time.monotonic()
        source, inside = plain(received.source), received.in_dialog
        self.found = self._attribute(received)
        if not inside and self.policy.is_banned(received, self.found, source, now):
            self.policy.count_banned()
            self._answers.remember(received, "access.ban_after", 0)
            return DROP
        message = received.message.decode("utf-8", "replace")
        headers = headers_of(message)
        # Before credentials are looked at, which are good once.
        if (
            method == "INVITE"
            and has_unreadable_number(headers)
            and self._process_instead(without_unreadable(received.message), known_only=False)
        ):
            return DROP
        if not inside:
            admitted = self.policy.admit(received, self.found, source, headers, now)
            if isinstance(admitted, Rejection):
                if method == "ACK":  # of the refusal before
                    return DROP
                if admitted.rule:
                    return self._answers.refuse(received, admitted.rule, admitted.reply)
                if not admitted.reply.code:
                    self._answers.remember(received, "access.ban_after", 0)
                return self._answers.answer(source, admitted.reply, now)
            self.found = admitted
        flaw = request_flaw(message, headers, source) or _content_length_flaw(received, headers)
        if flaw is not None:
            if self._process_reduced(received, received.message):
                return DROP
            reply = Reply(0 if method == "ACK" else flaw.code, flaw.header)
            rule = f"malformed: {flaw.what}"
            return self._answers.refuse(received, rule, reply, flaw.detail)
        trunk = None if self.found is None else self.found.trunk
        self.chosen = self._negotiation.repair(method, trunk, received.local)
        if inside:
            if rule := self._limits.rule_within_call(method, first_of(headers, "call-id"), now):
                return self._answers.refuse(received, rule, Reply(_UNAVAILABLE))
            answer = reply_to_required(method, headers.get("require", ())) or reply_in_dialog(
                method, headers, body_of(message)
            )
            if answer is not None:
                return self._answers.decision(answer)
            if method == "REFER" and self._delays_refer(headers):
                return DROP
        elif method != "INVITE":
            answer = reply_to_required(method, headers.get("require", ()))
            if answer is not None:
                return self._answers.answer(source, answer, now)
        return PASS

    def on_request(self, received: ReceivedMessage) -> Decision:
        """Decide on a new request outside of dialogs, just before pjsua: refuse methods that need a
        dialog or are not supported, then INVITEs beyond the limits of their source, then those
        whose offer has no audio line that can be answered. Sets ``current``."""
        self.current = received
        method = received.method
        reply = reply_outside_dialog(method)
        if reply is not None:
            rule = f"no {known_method(method)} outside of a call"
            return self._answers.refuse(received, rule, reply)
        if method != "INVITE":
            return PASS
        refusal = self._limits.refusal(received, self.found, time.monotonic())
        if refusal is not None:
            return self._answers.refuse(received, *refusal)
        if isinstance(self.chosen, SdpRejection):
            self._on_sdp_rejected(received, self.chosen)
            why = self.chosen.why
            return Decision(refusal_code(why), (("Reason", reason_header(why)),))
        return PASS

    def on_unread(self, unread: UnparsedMessage) -> bytes:
        """Return the answer to a message that pjsip's parser rejected; empty for none.

        None for a banned source. If it can be read after a repair, tried from bad Via and lacking
        user or host to leaving out fields, pjsip processes that instead, and there is none either.
        Else it is logged and refused: with 400 or 513, or as the policy for strangers says, which
        counts towards a ban.
        """
        now, source = time.monotonic(), plain(unread.source)
        found = self._trunks.attribute(unread.source, unread.port, unread.transport != "udp", "")
        if found is None and self.policy.bans.drops(source, now):
            self.policy.count_banned()
            return b""
        if unread.code == _BAD_REQUEST and (
            self._process_instead(without_bad_via(unread.data), known_only=False)
            or self._process_instead(
                with_user_and_host(unread.data, unread.source, unread.port), known_only=False
            )
            or self._process_instead(
                reduced_response(unread.data, unread.source, unread.port), known_only=False
            )
            or self._process_reduced(unread, unread.data)
            or (
                method_of(unread.data) == "INVITE"
                and self._process_instead(without_unreadable(unread.data), known_only=False)
            )
        ):
            return b""
        rule, code = "malformed: cannot be read", unread.code
        if found is None and not self.policy.allows(source):
            self.policy.count_refusal(unread, now)
            rule, code = self.policy.rule, self.policy.reply.code
        elif code == _TOO_LARGE:
            rule = "message too large"
        return self._answers.refuse_unread(unread, rule, code, now)

    def _process_reduced(self, came: ReceivedMessage | UnparsedMessage, data: bytes) -> bool:
        """Have pjsip process a malformed BYE, CANCEL or ACK of a known dialog or transaction
        without the parts that are wrong; return whether it does."""
        if method_of(data) not in REDUCIBLE:
            return False
        less = reduced_requests(data, came.source, came.port, came.transport)
        return any(self._process_instead(message, known_only=True) for message in less)

    def _process_instead(self, message: bytes, *, known_only: bool) -> bool:
        """Have pjsip process another message in place of the current one; return whether it does.
        False for an empty one, and within such a replacement.

        Args:
            known_only: only if it belongs to a dialog or transaction of ours.
        """
        if not message or self._instead:
            return False
        self._instead = True
        try:
            return self._receive_instead(message, known_only)
        finally:
            self._instead = False

    def _on_response(self, received: ReceivedMessage) -> Decision:
        """Decide on a response: pass it; drop a malformed one, or have pjsip process a repaired or
        reduced one in its place.

        SDP with a forbidden RTP address is emptied and logged, other SDP repaired. A 491 or 500 to
        an INVITE or UPDATE within a call is taken for a 503, so that a session refresh is tried
        again; a 401 or 407 of a foreign server for a 403, so that it gets no digest.
        """
        if self._process_instead(without_bad_via(received.message), known_only=False):
            return DROP
        message = received.message.decode("utf-8", "replace")
        headers = headers_of(message)
        flaw = message_flaw(start_line_of(message), headers)
        if flaw is not None:
            less = reduced_response(received.message, received.source, received.port)
            if self._process_instead(less, known_only=False):
                return DROP
            return self._answers.refuse(received, f"malformed response: {flaw.what}", Reply(0))
        if address := forbidden_rtp_address(body_of(message), received.source):
            # Not dropped: whoever has answered needs ACK and BYE.
            source = plain(received.source)
            rule = f"response with {RTP_ADDRESS}"
            self.refusals.note(rule, source, time.monotonic(), detail=address)
            self._negotiation.blank()
        else:
            self._negotiation.repair("", None, received.local)
        if (
            received.status in _NOT_NOW
            and received.method in ("INVITE", "UPDATE")
            and self._is_established(first_of(headers, "call-id"))
        ):
            # pjsip would end the call where RFC 4028 section 10 wants the refresh tried again;
            # after a 503 it does.
            return Decision(_UNAVAILABLE)
        if self._challenges.is_foreign(received.status, headers, plain(received.source)):
            return Decision(_FORBIDDEN)
        return PASS

    def _attribute(self, received: ReceivedMessage) -> Attribution | None:
        """Return the trunk that a request belongs to; None for an unknown source."""
        return self._trunks.attribute(
            received.source, received.port, received.reliable, received.request_uri
        )


class _Answers:
    """Refuses requests: the log line, and the answer, of which a source gets only so many."""

    def __init__(self, refusals: RefusalLog, retry_after: int) -> None:
        self._refusals = refusals
        self._retry_after = ("Retry-After", str(retry_after))
        self._requests = SourceBuckets()
        self._unread = SourceBuckets()
        """Separate, so that bytes that are no message do not use up the answers to messages."""

    def refuse(
        self, received: ReceivedMessage, rule: str, reply: Reply, detail: str = ""
    ) -> Decision:
        """Count and log a refusal by ``rule``, keep that of an INVITE for a query by its
        Call-ID, and return the answer to it."""
        now = time.monotonic()
        source = plain(received.source)
        self._refusals.note(
            rule,
            source,
            now,
            code=reply.code,
            method=received.method[:20],
            uri=received.request_uri[:200],
            transport=received.transport,
            **({"detail": detail} if detail else {}),
        )
        self.remember(received, rule, reply.code)
        return self.answer(source, reply, now)

    def remember(self, received: ReceivedMessage, rule: str, code: int) -> None:
        """Keep rule and code by which an INVITE was refused, for a query by its Call-ID. Nothing
        for other methods, or without a Call-ID."""
        if received.method != "INVITE" or (found := _CALL_ID.search(received.message)) is None:
            return
        fields = {
            "at": datetime.now(UTC).isoformat(timespec="milliseconds"),
            "source": f"{bracketed(plain(received.source))}:{received.port}",
            "transport": received.transport,
            "uri": received.request_uri[:200],
            "rule": rule,
            "code": code,
        }
        self._refusals.invites[found[1].decode("utf-8", "replace")] = fields

    def refuse_unread(self, unread: UnparsedMessage, rule: str, code: int, now: float) -> bytes:
        """Log that a message could not be read; return the answer: empty if ``code`` is 0, if no
        response is due to it, or if its source has had ``ANSWERS_PER_SECOND`` already. ``now`` in
        s."""
        source, method = plain(unread.source), method_of(unread.data)
        answer = (
            response_to_unparsed(unread.data, code, unread.source, unread.port) if code else b""
        )
        if answer and not self._unread.take(
            counted(source), ANSWERS_PER_SECOND, ANSWERS_AT_ONCE, now
        ):
            self._refusals.unanswered += 1
            answer = b""
        told = code if answer else 0
        self._refusals.note(
            rule, source, now, code=told, method=known_method(method), transport=unread.transport
        )
        return answer

    def answer(self, source: str, reply: Reply, now: float) -> Decision:
        """Return the decision to answer a request that is not let in; DROP where the reply has no
        code, or its source has had ``ANSWERS_PER_SECOND`` already, which is counted."""
        if not reply.code:
            return DROP
        if not self._requests.take(counted(source), ANSWERS_PER_SECOND, ANSWERS_AT_ONCE, now):
            self._refusals.unanswered += 1
            return DROP
        return self.decision(reply)

    def decision(self, reply: Reply) -> Decision:
        """Return a reply as a :class:`Decision`, with its challenges, its own field, and
        Retry-After for a 503."""
        headers = [("WWW-Authenticate", value) for value in reply.challenges]
        if reply.header is not None:
            headers.append(reply.header)
        if reply.code == _UNAVAILABLE:
            headers.append(self._retry_after)
        return Decision(reply.code, tuple(headers))


class _RequestLimits:
    """Limits on the calls of a source or trunk (at a time, and per second), and on the requests
    within one call."""

    def __init__(
        self,
        access: Access,
        calls_of: Callable[[str], int],
        unacknowledged: Callable[[str], int],
        min_session: int,
    ) -> None:
        self._strangers = access.limits
        self._calls_of = calls_of
        self._unacknowledged = unacknowledged
        self._min_session = min_session
        self._calls = SourceBuckets()
        self._within_calls = SourceBuckets()

    def rule_within_call(self, method: str, call: str, now: float) -> str:
        """Return the rule that a request within a call exceeds, "" for none; counts the request.
        ACK, BYE, CANCEL and PRACK have no limit.

        Args:
            call: its SIP Call-ID.
            now: s.
        """
        if method in _UNLIMITED or self._within_calls.take(
            call, REQUESTS_PER_SECOND, REQUESTS_AT_ONCE, now
        ):
            return ""
        return f"more than {REQUESTS_PER_SECOND:g} requests a second within a call"

    def refusal(
        self, received: ReceivedMessage, found: Attribution | None, now: float
    ) -> tuple[str, Reply] | None:
        """Return the rule by which a new INVITE is refused, and the answer; None where it is not.

        In this order: Session-Expires below the minimum (422), concurrent calls (486), calls
        without an ACK (503), calls per second (503), which counts this one; the limits are its
        trunk's, or those of strangers, each source by itself.
        """
        if self._min_session and session_interval(received.message) < self._min_session:
            # pjsua would say so as well, but after it has told of the call.
            rule = f"Session-Expires below {self._min_session}"
            return rule, Reply(_INTERVAL, ("Min-SE", str(self._min_session)))
        source = plain(received.source) if found else counted(received.source)
        limits = self._strangers if found is None else found.trunk.limits
        where = "access" if found is None else f"trunk {found.trunk.name}"
        party = party_of(found, source)
        if limits.concurrent_calls and self._calls_of(party) >= limits.concurrent_calls:
            return f"{where}: max_concurrent_calls = {limits.concurrent_calls}", Reply(_BUSY)
        most = limits.unacknowledged_calls
        if most and self._unacknowledged("" if found is None else found.trunk.name) >= most:
            return f"{where}: max_unacknowledged_calls = {most}", Reply(_UNAVAILABLE)
        if not self._calls.take(source, limits.calls_per_second, limits.burst, now):
            rule = f"{where}: calls_per_second = {limits.calls_per_second:g}"
            return rule, Reply(_UNAVAILABLE)
        return None


def _content_length_flaw(received: ReceivedMessage, headers: Headers) -> InvalidMessage | None:
    """Return 400 for a UDP datagram whose body is shorter than its Content-Length says (RFC 3261
    section 18.3); None otherwise, and where there is no readable Content-Length."""
    length = first_of(headers, "content-length")
    _head, end, body = received.message.partition(b"\r\n\r\n")
    if received.reliable or not end or not (length.isascii() and length.isdigit()):
        return None
    return InvalidMessage(400, "Content-Length") if int(length[:10]) > len(body) else None


def party_of(found: Attribution | None, source: str) -> str:
    """Return the name under which calls are counted: the trunk's, or the source's."""
    return f"source {counted(source)}" if found is None else f"trunk {found.trunk.name}"
