"""Faults that a script asks for: what is refused, and how a connection ends."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, model_validator

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
    """Say no with an ``error`` event (or, at step ``upgrade``, with an HTTP status)."""

    step: Literal["upgrade", "connect", "session.update", "response.create"]
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
    first_sessions: Annotated[int | None, Field(ge=1)] = None
    """Only the first so many connections to this very URL end so: a later one lasts."""

    @model_validator(mode="after")
    def _some_moment(self) -> Ending:
        if (self.after_s is None) == (self.at is None):
            raise ValueError('an ending needs either "after_s" or "at"')
        return self
