"""Which call a command means."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, Protocol, TypeVar

from gateway.call.record import CallRecord
from gateway.control.server import RefusedError


class HasRecord(Protocol):
    """A call in progress."""

    record: CallRecord


T = TypeVar("T", bound="HasRecord")


def call_named(request: Mapping[str, Any], calls: Iterable[T]) -> T:
    """The call whose id ``request["call"]`` is, or begins.

    The SIP Call-ID will do as well where no id begins so: it is what other logs have. Of several
    calls none is guessed. Raises RefusedError.
    """
    wanted = request.get("call")
    if not isinstance(wanted, str) or not wanted:
        raise RefusedError("call must be the id of a call, or its beginning: see gateway calls")
    there = list(calls)
    found = [one for one in there if one.record.call_id.startswith(wanted)]
    found = [one for one in found if one.record.call_id == wanted] or found
    found = found or [one for one in there if one.record.sip_call_id == wanted]
    if len(found) == 1:
        return found[0]
    if not found:
        raise RefusedError(
            f"there is no call {wanted!r}: no call in progress has this id (see gateway calls)"
        )
    ids = ", ".join(sorted(one.record.call_id for one in found[:10]))
    raise RefusedError(f"{wanted!r} is {len(found)} calls: {ids}")
