"""What became of a call attempt, in words that a model and a record can use.

Follows the response classes of RFC 3261 section 21 and what telephones and carriers mean by them.
"""

from __future__ import annotations

from enum import StrEnum


class Outcome(StrEnum):
    """What the called party, or the network on its behalf, made of a call."""

    ANSWERED = "answered"
    RINGING = "ringing"
    BUSY = "busy"
    DECLINED = "declined"
    NO_ANSWER = "no_answer"
    NO_SUCH_NUMBER = "no_such_number"
    FORBIDDEN = "forbidden"
    """Somebody on the way does not let us call there."""
    REFUSED = "refused"
    """The caller's side takes no transfers: it refused the REFER itself."""
    UNKNOWN = "unknown"
    """It was asked for, and nobody ever said what became of it."""
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
    """What a status code says of the called party."""
    if 180 <= code < 200:
        return Outcome.RINGING
    if 200 <= code < 300:
        return Outcome.ANSWERED
    return _BY_CODE.get(code, Outcome.FAILED)
