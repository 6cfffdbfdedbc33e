"""Rate limits of one session: ``rate_limits.updated``, and what happens when they are used up.

The service counts for a whole account; here each session has its own, so a script says exactly
when they end.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field

from gateway.devtools.emulator.objects import Json

_DEFAULT_TOKENS = 1_000_000


class Limits(BaseModel):
    """What a script allows a session in ``window_s`` seconds; what was used comes back evenly."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    requests: Annotated[int, Field(ge=0)] = 1000
    tokens: Annotated[int, Field(ge=0)] = _DEFAULT_TOKENS
    window_s: Annotated[float, Field(gt=0, le=86_400)] = 60.0


class RateLimits:
    """What is left for a session. Without ``limits`` only its tokens are told of, and never end."""

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
        """A response is asked for; the message of ``rate_limit_exceeded`` if it cannot be had."""
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
        """A response took so many."""
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
        """Beyond the bottom too: what was overdrawn has to come back first."""
        now = self._clock()
        share = (now - self._at) / self._limits.window_s
        self._at = now
        for name, left in self._left.items():
            self._left[name] = min(self._limit(name), left + share * self._limit(name))
