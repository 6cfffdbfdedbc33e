"""How many calls this process takes, by its configuration, its library and its descriptors."""

from __future__ import annotations

import structlog

from gateway.sip import descriptors

log = structlog.get_logger("gateway")


def room_for(wanted: int, carried: int) -> int:
    """The calls that are taken at a time: ``wanted`` by the configuration, ``carried`` by the
    library. What stands in the way of more is said in the log."""
    calls = min(wanted, carried)
    if carried < wanted:
        log.warning(
            "gateway.capacity",
            max_calls=wanted,
            library_calls=carried,
            advice="the library carries fewer calls than sip.max_calls: run more workers",
        )
    if not descriptors.allow(calls):
        log.warning(
            "gateway.descriptors",
            hard_limit=descriptors.limits()[1],
            needed=descriptors.needed(calls),
            advice="calls will fail before max_calls; raise the hard limit of open files",
        )
    return calls
