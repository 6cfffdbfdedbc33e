# SPDX-License-Identifier: GPL-2.0-or-later
"""How calls and call attempts end: who, why, and the SIP codes and Reason headers of each.

The Reason header follows RFC 3326, its Q.850 causes ITU-T Q.850.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from enum import StrEnum
from typing import Any

OUTCOMES = (
    *("completed", "transferred", "busy", "no_answer", "cancelled", "refused", "failed"),
    "crashed",
)
"""How calls went; the last one is of calls whose process died."""


class Party(StrEnum):
    """Who ended the call."""

    CALLER = "caller"
    CALLEE = "callee"
    """The called party of an outbound call or a B-leg."""
    MODEL = "model"
    OPERATOR = "operator"
    GATEWAY = "gateway"
    NETWORK = "network"


class EndReason(StrEnum):
    """Why the call ended."""

    REMOTE_HANGUP = "remote_hangup"
    CANCELLED = "cancelled"
    AGENT_HANGUP = "agent_hangup"
    TRANSFERRED = "transferred"
    BRIDGE_ENDED = "bridge_ended"
    BUSY = "busy"
    DECLINED = "declined"
    NO_ANSWER = "no_answer"
    NO_SUCH_NUMBER = "no_such_number"
    FORBIDDEN = "forbidden"
    CALL_FAILED = "call_failed"
    SESSION_CLOSED = "session_closed"
    SESSION_ERROR = "session_error"
    SESSION_LOST = "session_lost"
    SESSION_SILENT = "session_silent"
    """A response was due and did not begin."""
    SESSION_UNREACHABLE = "session_unreachable"
    SESSION_REFUSED = "session_refused"
    LEG_TIMEOUT = "leg_timeout"
    RTP_TIMEOUT = "rtp_timeout"
    MAX_DURATION = "max_duration"
    BUDGET = "budget"
    IDLE = "idle"
    MACHINE_DETECTED = "machine_detected"
    """A machine was detected, and the route ends calls for it."""
    GUARDRAIL = "guardrail"
    """A guardrail of the route ended the call."""
    RESPONSE_FAILURES = "response_failures"
    """Too many responses failed in a row."""
    APPLICATION = "application"
    """A tool function ended the call."""
    OPERATOR = "operator"
    """``gateway hangup``."""
    SHUTDOWN = "shutdown"
    NO_ROUTE = "no_route"
    OVER_CAPACITY = "over_capacity"
    NO_COMMON_CODEC = "no_common_codec"
    NO_AUDIO = "no_audio"
    """The offer has no audio line, or only disabled ones."""
    SRTP_MISMATCH = "srtp_mismatch"
    """RTP profile, encryption or keys that the account does not take."""
    ADDRESS_FAMILY = "address_family"
    """RTP over IPv6 was offered to IPv4, or the other way round."""
    BAD_SDP = "bad_sdp"
    UNSUPPORTED_BODY = "unsupported_body"
    REFUSED = "refused"
    INTERNAL_ERROR = "internal_error"
    PROCESS_LOST = "process_lost"
    """The gateway's process died during the call."""


@dataclass(frozen=True, slots=True)
class _Row:
    """Who, codes and text of one end reason."""

    party: Party
    refusal: int
    """Final response when the call was not answered yet."""
    cause: int
    """Q.850 cause of the BYE."""
    text: str


_TABLE: dict[EndReason, _Row] = {
    EndReason.REMOTE_HANGUP: _Row(Party.CALLER, 487, 16, "Normal call clearing"),
    EndReason.CANCELLED: _Row(Party.CALLER, 487, 16, "Cancelled by the caller"),
    EndReason.AGENT_HANGUP: _Row(Party.MODEL, 480, 16, "Normal call clearing"),
    EndReason.TRANSFERRED: _Row(Party.MODEL, 480, 16, "Transferred"),
    EndReason.BRIDGE_ENDED: _Row(Party.CALLEE, 480, 16, "Normal call clearing"),
    EndReason.BUSY: _Row(Party.CALLEE, 486, 17, "User busy"),
    EndReason.DECLINED: _Row(Party.CALLEE, 603, 21, "Call rejected"),
    EndReason.NO_ANSWER: _Row(Party.CALLEE, 480, 19, "No answer"),
    EndReason.NO_SUCH_NUMBER: _Row(Party.NETWORK, 404, 1, "Unallocated number"),
    EndReason.FORBIDDEN: _Row(Party.NETWORK, 403, 21, "Call rejected"),
    EndReason.CALL_FAILED: _Row(Party.NETWORK, 503, 38, "Call could not be placed"),
    EndReason.SESSION_CLOSED: _Row(Party.MODEL, 480, 16, "Session closed"),
    EndReason.SESSION_ERROR: _Row(Party.MODEL, 503, 41, "Session failed"),
    EndReason.SESSION_LOST: _Row(Party.NETWORK, 503, 41, "Session lost"),
    EndReason.SESSION_SILENT: _Row(Party.MODEL, 503, 41, "Session silent"),
    EndReason.SESSION_UNREACHABLE: _Row(Party.NETWORK, 503, 41, "No session in time"),
    EndReason.SESSION_REFUSED: _Row(Party.MODEL, 503, 41, "Session refused"),
    EndReason.LEG_TIMEOUT: _Row(Party.NETWORK, 480, 41, "Leg lost"),
    EndReason.RTP_TIMEOUT: _Row(Party.NETWORK, 480, 102, "No RTP from the caller"),
    EndReason.MAX_DURATION: _Row(Party.GATEWAY, 480, 102, "Maximum call length"),
    EndReason.BUDGET: _Row(Party.GATEWAY, 480, 31, "Budget used up"),
    EndReason.IDLE: _Row(Party.GATEWAY, 480, 16, "Caller said nothing"),
    EndReason.MACHINE_DETECTED: _Row(Party.GATEWAY, 480, 16, "Caller is a machine"),
    EndReason.GUARDRAIL: _Row(Party.GATEWAY, 480, 16, "Ended by a rule"),
    EndReason.RESPONSE_FAILURES: _Row(Party.GATEWAY, 480, 41, "Answers failed"),
    EndReason.APPLICATION: _Row(Party.OPERATOR, 480, 16, "Ended by the application"),
    EndReason.OPERATOR: _Row(Party.OPERATOR, 480, 16, "Ended by the operator"),
    EndReason.SHUTDOWN: _Row(Party.OPERATOR, 503, 41, "Gateway shuts down"),
    EndReason.NO_ROUTE: _Row(Party.GATEWAY, 404, 1, "No route"),
    EndReason.OVER_CAPACITY: _Row(Party.GATEWAY, 503, 34, "No free call"),
    EndReason.NO_COMMON_CODEC: _Row(Party.GATEWAY, 488, 88, "No common codec"),
    EndReason.NO_AUDIO: _Row(Party.GATEWAY, 488, 65, "No audio offered"),
    EndReason.SRTP_MISMATCH: _Row(Party.GATEWAY, 488, 88, "RTP profile or SRTP not acceptable"),
    EndReason.ADDRESS_FAMILY: _Row(Party.GATEWAY, 488, 88, "Address family not acceptable"),
    EndReason.BAD_SDP: _Row(Party.GATEWAY, 488, 111, "SDP cannot be used"),
    EndReason.UNSUPPORTED_BODY: _Row(Party.GATEWAY, 415, 79, "Body is no SDP"),
    EndReason.REFUSED: _Row(Party.GATEWAY, 480, 21, "Refused"),
    EndReason.INTERNAL_ERROR: _Row(Party.GATEWAY, 500, 41, "Gateway error"),
    EndReason.PROCESS_LOST: _Row(Party.GATEWAY, 500, 41, "Gateway lost"),
}


@dataclass(frozen=True, slots=True)
class Ending:
    """How a call ended.

    ``sip_code`` is the final response of a call that was not answered, 200 for one that was;
    ``reason`` is the Reason header that went or came with it; ``detail`` is for people.
    """

    by: Party
    why: EndReason
    sip_code: int
    reason: str
    detail: str = ""

    def as_json(self) -> dict[str, Any]:
        """Return the fields for record and log."""
        return {**asdict(self), "by": self.by.value, "why": self.why.value}


def reason_header(why: EndReason) -> str:
    """Return the Reason header for a BYE or a refusal of ours."""
    row = _TABLE[why]
    return f'Q.850;cause={row.cause};text="{row.text}"'


def refusal_code(why: EndReason) -> int:
    """Return the final response to an INVITE that is not answered for this reason."""
    return _TABLE[why].refusal


def ending_of(
    why: EndReason,
    *,
    answered: bool,
    detail: str = "",
    reason: str | None = None,
    outbound: bool = False,
    code: int = 0,
) -> Ending:
    """Return the ending of a call that ended for this reason.

    Args:
        reason: the Reason header of the peer's BYE or CANCEL; None where we ended the call.
        outbound: we placed the call, so the other end is the callee.
        code: final response of the callee's side; 0 without one.
    """
    row = _TABLE[why]
    by = Party.CALLEE if outbound and row.party is Party.CALLER else row.party
    return Ending(
        by=by,
        why=why,
        sip_code=200 if answered else code or row.refusal,
        reason=reason_header(why) if reason is None else reason,
        detail=detail,
    )


class Outcome(StrEnum):
    """Outcome of a call attempt or transfer."""

    ANSWERED = "answered"
    RINGING = "ringing"
    BUSY = "busy"
    DECLINED = "declined"
    NO_ANSWER = "no_answer"
    NO_SUCH_NUMBER = "no_such_number"
    FORBIDDEN = "forbidden"
    """A server on the way forbids the call."""
    REFUSED = "refused"
    """The caller's side refused the REFER itself."""
    UNKNOWN = "unknown"
    """The REFER was accepted, and no outcome was reported."""
    FAILED = "failed"


_BY_CODE = {
    401: Outcome.FORBIDDEN,
    403: Outcome.FORBIDDEN,
    404: Outcome.NO_SUCH_NUMBER,
    407: Outcome.FORBIDDEN,
    408: Outcome.NO_ANSWER,
    410: Outcome.NO_SUCH_NUMBER,
    416: Outcome.NO_SUCH_NUMBER,
    480: Outcome.NO_ANSWER,
    484: Outcome.NO_SUCH_NUMBER,
    485: Outcome.NO_SUCH_NUMBER,
    486: Outcome.BUSY,
    487: Outcome.NO_ANSWER,
    600: Outcome.BUSY,
    603: Outcome.DECLINED,
    604: Outcome.NO_SUCH_NUMBER,
    607: Outcome.DECLINED,
    608: Outcome.DECLINED,
}


def outcome_of(code: int) -> Outcome:
    """Return the outcome that a status code stands for (RFC 3261 section 21)."""
    if 180 <= code < 200:
        return Outcome.RINGING
    if 200 <= code < 300:
        return Outcome.ANSWERED
    return _BY_CODE.get(code, Outcome.FAILED)


_UNANSWERED = {
    Outcome.BUSY: EndReason.BUSY,
    Outcome.DECLINED: EndReason.DECLINED,
    Outcome.NO_ANSWER: EndReason.NO_ANSWER,
    Outcome.NO_SUCH_NUMBER: EndReason.NO_SUCH_NUMBER,
    Outcome.FORBIDDEN: EndReason.FORBIDDEN,
}


def why_not_answered(code: int) -> EndReason:
    """Return why an outbound call was not answered, by its final response."""
    return _UNANSWERED.get(outcome_of(code), EndReason.CALL_FAILED)


def why_leg_ended(code: int, method: str, *, local: bool, talked: bool) -> EndReason:
    """Return why a leg ended that we did not end; ``method``: the peer's BYE or CANCEL, if any."""
    if not talked and (method == "CANCEL" or code == 487):
        return EndReason.CANCELLED
    if method in ("BYE", "CANCEL"):
        # A CANCEL that our 200 had crossed has no effect (RFC 3261 section 9.2).
        return EndReason.REMOTE_HANGUP
    if not local:
        return EndReason.LEG_TIMEOUT
    full = code == _TABLE[EndReason.OVER_CAPACITY].refusal and not talked
    return EndReason.OVER_CAPACITY if full else EndReason.INTERNAL_ERROR
