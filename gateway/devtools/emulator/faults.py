# SPDX-License-Identifier: GPL-2.0-or-later
"""Faults that a script asks for: refusals, ends of the connection, and rate limits.

The service counts rate limits for a whole account; here each session has its own, so a script says
exactly when they are used up.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Annotated, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, model_validator

from gateway.devtools.emulator.objects import Json

CLOSE_CODES = frozenset({1000, 1001, 1002, 1003, 1005, *range(1007, 1015)})
"""Below 3000, the codes that a close frame may carry (RFC 6455, section 7.4); 1005 is a close frame
that carries none."""


Seconds = Annotated[float, Field(ge=0, le=3600)]


def _sendable(code: int) -> int:
    if code in CLOSE_CODES or 3000 <= code <= 4999:
        return code
    raise ValueError(f"{code} cannot be sent in a close frame (to cut the connection: drop = true)")


CloseCode = Annotated[int, AfterValidator(_sendable)]


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Refusal(_Part):
    """Refuse with an ``error`` event (or, at step ``upgrade``, with an HTTP status).

    Steps other than the first two are client events; all but ``session.update`` and
    ``response.create`` are those of Live sessions.
    """

    step: Literal[
        "upgrade",
        "connect",
        "session.update",
        "response.create",
        "session.start",
        "session.instructions.append",
        "session.thinking.append",
        "session.commentary.append",
        "session.output_audio.fixture.play",
        "response.item.create",
        "session.close",
    ]
    code: str = "server_error"
    message: str = "Refused by the emulator's script."
    type: str = "invalid_request_error"
    param: str | None = None
    http_status: Annotated[int, Field(ge=400, le=599)] = 503
    close: CloseCode | None = None
    """Close code after the error. At step ``connect`` the service's own code is the default."""
    times: Annotated[int, Field(ge=1)] = 1_000_000
    """So many client events of this kind in a session are refused, later ones are served."""
    first_sessions: Annotated[int | None, Field(ge=1)] = None
    """Only the first so many connections to this very URL meet the refusal: a retry succeeds."""

    @property
    def close_code(self) -> int | None:
        """The close code that follows, None when the session goes on."""
        if self.close is not None or self.step != "connect":
            return self.close
        return {"invalid_api_key": 3000, "model_not_found": 4004}.get(self.code, 4000)


ClosedReason = Literal["close_requested", "expired", "content", "remote_hangup", "connection_lost"]


class Ending(_Part):
    """End the connection: ``after_s`` seconds, or at the ``nth`` event of type ``at``.

    ``at`` is a server event (the end follows it) or a client event (the end comes in its stead).
    With ``drop`` the TCP connection is cut without a close frame.
    """

    code: CloseCode = 1011
    reason: Annotated[str, Field(max_length=120)] = ""
    after_s: Seconds | None = None
    at: str | None = None
    nth: Annotated[int, Field(ge=1)] = 1
    drop: bool = False
    closed: ClosedReason | None = None
    """In a Live session: ``session.closed`` with this reason comes before the close."""
    first_sessions: Annotated[int | None, Field(ge=1)] = None
    """Only the first so many connections to this very URL end so: a later one lasts."""

    @model_validator(mode="after")
    def _some_moment(self) -> Ending:
        if (self.after_s is None) == (self.at is None):
            raise ValueError('an ending needs either "after_s" or "at"')
        return self


_DEFAULT_TOKENS = 1_000_000


class Limits(_Part):
    """Requests and tokens that a session may use in ``window_s`` seconds; they refill evenly."""

    requests: Annotated[int, Field(ge=0)] = 1000
    tokens: Annotated[int, Field(ge=0)] = _DEFAULT_TOKENS
    window_s: Annotated[float, Field(gt=0, le=86_400)] = 60.0


class RateLimits:
    """Requests and tokens that a session has left.

    Without ``limits`` nothing runs out, and ``rate_limits.updated`` tells of tokens only.
    """

    def __init__(self, limits: Limits | None, clock: Callable[[], float] = time.monotonic) -> None:
        self._endless = limits is None
        self._limits = limits or Limits()
        self._left = {
            "requests": float(self._limits.requests),
            "tokens": float(self._limits.tokens),
        }
        self._clock = clock
        self._at = clock()

    def begin(self) -> str | None:
        """Count a response; return the message of ``rate_limit_exceeded`` where one is used up."""
        self._refill()
        if self._endless:
            return None
        for name, left in self._left.items():
            if left < 1:
                limit = self._limit(name)
                again = (1 - left) * self._limits.window_s / limit if limit else 0.0
                return (
                    f"Rate limit reached on {name}: Limit {limit}, Remaining {max(0, int(left))}. "
                    f"Please try again in {again:.3f}s."
                )
        self._left["requests"] -= 1
        return None

    def spent(self, tokens: int) -> None:
        """Subtract the tokens of a response."""
        self._refill()
        self._left["tokens"] -= tokens

    def event(self) -> Json:
        """``rate_limits.updated``, in the form seen after ``response.done``."""
        self._refill()
        names = ["tokens"] if self._endless else ["requests", "tokens"]
        return {"type": "rate_limits.updated", "rate_limits": [self._entry(name) for name in names]}

    def _limit(self, name: str) -> int:
        return self._limits.requests if name == "requests" else self._limits.tokens

    def _entry(self, name: str) -> Json:
        limit, left = self._limit(name), max(0.0, self._left[name])
        missing = (limit - left) / limit if limit else 1.0
        return {
            "name": name,
            "limit": limit,
            "remaining": int(left),
            "reset_seconds": round(missing * self._limits.window_s, 3),
        }

    def _refill(self) -> None:
        """Add what came back since the last call; a sum below zero rises from there."""
        now = self._clock()
        share = (now - self._at) / self._limits.window_s
        self._at = now
        for name, left in self._left.items():
            self._left[name] = min(self._limit(name), left + share * self._limit(name))
