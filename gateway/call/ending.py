"""How calls end: one taxonomy of who and why, with what SIP says of each.

The Reason header follows RFC 3326, its Q.850 causes ITU-T Q.850.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from gateway.call.leg.outcomes import Outcome, outcome_of


class Party(StrEnum):
    """Who ended the call."""

    CALLER = "caller"
    CALLEE = "callee"
    """Whom the gateway called: in an outbound call, or for the caller."""
    MODEL = "model"
    OPERATOR = "operator"
    GATEWAY = "gateway"
    NETWORK = "network"


class Why(StrEnum):
    """Why the call ended."""

    HUNG_UP = "hung_up"
    CANCELLED = "cancelled"
    FAREWELL = "farewell"
    TRANSFERRED = "transferred"
    BRIDGE_ENDED = "bridge_ended"
    BUSY = "busy"
    DECLINED = "declined"
    NO_ANSWER = "no_answer"
    NO_SUCH_NUMBER = "no_such_number"
    FORBIDDEN = "forbidden"
    UNOBTAINABLE = "unobtainable"
    SESSION_CLOSED = "session_closed"
    SESSION_ERROR = "session_error"
    SESSION_LOST = "session_lost"
    SESSION_SILENT = "session_silent"
    """A response was due, and nothing of it came."""
    SESSION_UNREACHABLE = "session_unreachable"
    SESSION_REFUSED = "session_refused"
    LEG_LOST = "leg_lost"
    RTP_SILENCE = "rtp_silence"
    MAX_DURATION = "max_duration"
    BUDGET = "budget"
    IDLE = "idle"
    MACHINE = "machine"
    """The caller is no human, and the route does not talk to what it is."""
    GUARD = "guard"
    """Words were said that a rule of the route does not allow."""
    NO_ANSWERS = "no_answers"
    """The model's answers failed, one after the other."""
    APPLICATION = "application"
    """A function that ran for the call ended it."""
    OPERATOR = "operator"
    """Somebody hung it up at the gateway: ``gateway hangup``."""
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
    FAULT = "fault"


@dataclass(frozen=True, slots=True)
class _Row:
    party: Party
    refusal: int
    """Final response when the call was not answered yet."""
    cause: int
    """Q.850 cause of the BYE."""
    text: str


_TABLE: dict[Why, _Row] = {
    Why.HUNG_UP: _Row(Party.CALLER, 487, 16, "Normal call clearing"),
    Why.CANCELLED: _Row(Party.CALLER, 487, 16, "Cancelled by the caller"),
    Why.FAREWELL: _Row(Party.MODEL, 480, 16, "Normal call clearing"),
    Why.TRANSFERRED: _Row(Party.MODEL, 480, 16, "Transferred"),
    Why.BRIDGE_ENDED: _Row(Party.CALLEE, 480, 16, "Normal call clearing"),
    Why.BUSY: _Row(Party.CALLEE, 486, 17, "User busy"),
    Why.DECLINED: _Row(Party.CALLEE, 603, 21, "Call rejected"),
    Why.NO_ANSWER: _Row(Party.CALLEE, 480, 19, "No answer"),
    Why.NO_SUCH_NUMBER: _Row(Party.NETWORK, 404, 1, "Unallocated number"),
    Why.FORBIDDEN: _Row(Party.NETWORK, 403, 21, "Call rejected"),
    Why.UNOBTAINABLE: _Row(Party.NETWORK, 503, 38, "Call could not be placed"),
    Why.SESSION_CLOSED: _Row(Party.MODEL, 480, 16, "Session closed"),
    Why.SESSION_ERROR: _Row(Party.MODEL, 503, 41, "Session failed"),
    Why.SESSION_LOST: _Row(Party.NETWORK, 503, 41, "Session lost"),
    Why.SESSION_SILENT: _Row(Party.MODEL, 503, 41, "Session silent"),
    Why.SESSION_UNREACHABLE: _Row(Party.NETWORK, 503, 41, "No session in time"),
    Why.SESSION_REFUSED: _Row(Party.MODEL, 503, 41, "Session refused"),
    Why.LEG_LOST: _Row(Party.NETWORK, 480, 41, "Leg lost"),
    Why.RTP_SILENCE: _Row(Party.NETWORK, 480, 102, "No RTP from the caller"),
    Why.MAX_DURATION: _Row(Party.GATEWAY, 480, 102, "Maximum call length"),
    Why.BUDGET: _Row(Party.GATEWAY, 480, 31, "Budget used up"),
    Why.IDLE: _Row(Party.GATEWAY, 480, 16, "Caller said nothing"),
    Why.MACHINE: _Row(Party.GATEWAY, 480, 16, "Caller is a machine"),
    Why.GUARD: _Row(Party.GATEWAY, 480, 16, "Ended by a rule"),
    Why.NO_ANSWERS: _Row(Party.GATEWAY, 480, 41, "Answers failed"),
    Why.APPLICATION: _Row(Party.OPERATOR, 480, 16, "Ended by the application"),
    Why.OPERATOR: _Row(Party.OPERATOR, 480, 16, "Ended by the operator"),
    Why.SHUTDOWN: _Row(Party.OPERATOR, 503, 41, "Gateway shuts down"),
    Why.NO_ROUTE: _Row(Party.GATEWAY, 404, 1, "No route"),
    Why.OVER_CAPACITY: _Row(Party.GATEWAY, 503, 34, "No free call"),
    Why.NO_COMMON_CODEC: _Row(Party.GATEWAY, 488, 88, "No common codec"),
    Why.NO_AUDIO: _Row(Party.GATEWAY, 488, 65, "No audio offered"),
    Why.SRTP_MISMATCH: _Row(Party.GATEWAY, 488, 88, "RTP profile or SRTP not acceptable"),
    Why.ADDRESS_FAMILY: _Row(Party.GATEWAY, 488, 88, "Address family not acceptable"),
    Why.BAD_SDP: _Row(Party.GATEWAY, 488, 111, "SDP cannot be used"),
    Why.UNSUPPORTED_BODY: _Row(Party.GATEWAY, 415, 79, "Body is no SDP"),
    Why.REFUSED: _Row(Party.GATEWAY, 480, 21, "Refused"),
    Why.FAULT: _Row(Party.GATEWAY, 500, 41, "Gateway error"),
}


@dataclass(frozen=True, slots=True)
class Ending:
    """How a call ended.

    ``sip_code`` is the final response of a call that was not answered, 200 for one that was;
    ``reason`` is the Reason header that went or came with it; ``detail`` is for people.
    """

    by: Party
    why: Why
    sip_code: int
    reason: str
    detail: str = ""


def reason_header(why: Why) -> str:
    """The Reason header for a BYE or a refusal of ours."""
    row = _TABLE[why]
    return f'Q.850;cause={row.cause};text="{row.text}"'


def refusal_code(why: Why) -> int:
    """The final response to an INVITE that is not answered for this reason."""
    return _TABLE[why].refusal


def ending_of(
    why: Why,
    *,
    answered: bool,
    detail: str = "",
    reason: str | None = None,
    outbound: bool = False,
    code: int = 0,
) -> Ending:
    """The ending for ``why``; ``reason`` is the peer's own Reason header, if it ended the call.

    ``code`` is the final response that the callee's side sent, where it did.
    """
    row = _TABLE[why]
    # Of a call that we placed, the other end is the callee.
    by = Party.CALLEE if outbound and row.party is Party.CALLER else row.party
    return Ending(
        by=by,
        why=why,
        sip_code=200 if answered else code or row.refusal,
        reason=reason_header(why) if reason is None else reason,
        detail=detail,
    )


_UNANSWERED = {
    Outcome.BUSY: Why.BUSY,
    Outcome.DECLINED: Why.DECLINED,
    Outcome.NO_ANSWER: Why.NO_ANSWER,
    Outcome.NO_SUCH_NUMBER: Why.NO_SUCH_NUMBER,
    Outcome.FORBIDDEN: Why.FORBIDDEN,
}


def why_not_answered(code: int) -> Why:
    """Why a call of ours was not answered, by its final response."""
    return _UNANSWERED.get(outcome_of(code), Why.UNOBTAINABLE)


def why_leg_ended(code: int, method: str, *, local: bool, talked: bool) -> Why:
    """Why a leg is over that we did not end: ``method`` is the peer's BYE or CANCEL, if any."""
    if not talked and (method == "CANCEL" or code == 487):
        return Why.CANCELLED
    if method in ("BYE", "CANCEL"):
        # A CANCEL that our 200 had crossed has no effect (RFC 3261 section 9.2).
        return Why.HUNG_UP
    return Why.FAULT if local else Why.LEG_LOST
