"""Whom the gateway may call, and under which address. Pure: the time is passed in."""

from __future__ import annotations

import re
from collections import deque
from urllib.parse import unquote

from gateway.config import OutboundSettings, TrunkSettings

MINUTE = 60.0


def dial_uri(to: str, trunk: TrunkSettings | None) -> str:
    """The sip URI for a number, a tel URI or a sip URI; numbers go to the trunk.

    Raises ValueError where there is neither a host in it nor a trunk.
    """
    if re.match(r"sips?:", to, re.IGNORECASE) and "@" in to:
        return to
    number = re.sub(r"^(?:tel|sips?):", "", to, flags=re.IGNORECASE)
    number = re.split("[;?]", number, maxsplit=1)[0]
    if not re.match(r"tel:", to, re.IGNORECASE):
        number = re.sub(r"[\s()./-]", "", number)
    if trunk is None:
        raise ValueError(f"{to!r} has no host: name a trunk, or write sip:NUMBER@HOST")
    host = str(trunk.registrar) if trunk.registrar is not None else str(trunk.peers[0])
    transport = "" if trunk.transport == "udp" else f";transport={trunk.transport}"
    return f"sip:{number}@{host}{transport}"


def called_user(to: str) -> str:
    """The number or user that is called, as prefixes are held against it."""
    rest = re.sub(r"^(?:tel|sips?):", "", to, flags=re.IGNORECASE)
    return unquote(re.split("[@;?]", rest, maxsplit=1)[0])


def caller_id_of(caller_id: str, trunk: TrunkSettings | None) -> str:
    """The caller id that a call asks for. Raises ValueError where its trunk does not let it."""
    if not caller_id:
        return ""
    if trunk is None:
        raise ValueError("a caller id needs a trunk")
    allowed = trunk.caller_ids
    if allowed is None or not re.fullmatch(r"[+0-9A-Za-z_.\-]+", caller_id):
        why = "is not set" if allowed is None else "takes a number or a name without spaces"
        raise ValueError(f"caller id {caller_id!r}: caller_ids of trunk {trunk.name} {why}")
    if not allowed.fullmatch(caller_id):
        raise ValueError(f"caller id {caller_id!r}: not one of caller_ids of trunk {trunk.name}")
    return caller_id


class OutboundCaps:
    """What keeps calls that we place within bounds. Every refusal names its rule."""

    def __init__(self, settings: OutboundSettings) -> None:
        self._settings = settings
        self._placed: deque[float] = deque()

    def refusal(self, to: str, active: int, now: float, *, on_demand: bool) -> str | None:
        """Why this call may not be placed; None when it may, and then it counts.

        Args:
            to: the URI that is to be called.
            active: calls of ours that are in progress.
            now: any monotonic clock (s).
            on_demand: somebody named the number, rather than a route's own destination.
        """
        caps, user = self._settings, called_user(to)
        if on_demand and not caps.enabled:
            return "outbound.enabled is false"
        for prefix in caps.forbidden:
            if user.startswith(prefix):
                return f"outbound.forbidden has {prefix!r}"
        if on_demand and caps.allowed and not user.startswith(caps.allowed):
            return f"outbound.allowed has no beginning of {user!r}"
        if active >= caps.max_concurrent:
            return f"outbound.max_concurrent = {caps.max_concurrent}"
        while self._placed and self._placed[0] <= now - MINUTE:
            self._placed.popleft()
        if len(self._placed) >= caps.per_minute:
            return f"outbound.per_minute = {caps.per_minute}"
        self._placed.append(now)
        return None
