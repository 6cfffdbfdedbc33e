# SPDX-License-Identifier: GPL-2.0-or-later
"""Status and calls of a running gateway as lines of text."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from decimal import Decimal
from typing import Any

from gateway.text import money

_BANS_SHOWN = 10


def status_lines(status: Mapping[str, Any]) -> Iterator[str]:
    build = status["pjsua2"]
    state = "draining" if status["draining"] else "up"
    yield f"gateway {status['version']}, {state} for {duration(status['uptime_seconds'])}"
    for part, error in ((status.get("health") or {}).get("problems") or {}).items():
        yield f"  NOT WELL  {part}: {error}"
    yield f"  pjsua2    {build['distribution']}, {build['tls']}"
    yield f"  listens   {', '.join(status['listen'])}"
    yield f"  calls     {len(status['calls'])} of {status['max_calls']}"
    for call in status["calls"]:
        through = f" by {call['trunk']}" if call["trunk"] else ""
        yield (
            f"    {duration(call['age_seconds']):>8}  {call['from'] or 'gateway'} to {call['to']}"
            f"{through}, "
            f"route {call['route']}, {call['codec']} {call['security'] or '(no media yet)'}"
            f"{_figures(call)}"
        )
    yield f"  trunks    {len(status['trunks']) or 'none'}"
    for trunk in status["trunks"]:
        yield f"    {trunk['name']}: {_trunk(trunk)}"
    for asked in status.get("realtime") or []:
        state, since = asked["state"], asked["seconds"]
        more = "" if since is None else f" for {since:.0f} s: {asked['detail']}"
        yield f"  realtime  {asked['url']}: {state}{more}"
    for name, server in sorted((status.get("mcp") or {}).items()):
        yield f"  mcp       {name}: {server['state']}, {server['tools']} tools"
    promised = status.get("callbacks") or {}
    if promised.get("count"):
        yield f"  callbacks {promised['count']} promised"
        for one in promised["waiting"]:
            tries = f", tried {one['tries']} times" if one["tries"] else ""
            yield f"    {one['at']}  {one['number']}, route {one['route']}{tries}"
    if status["refused"]:
        yield "  refused"
        for rule, count in sorted(status["refused"].items()):
            yield f"    {count:>8}  {rule}"
    for why, count in sorted((status.get("unrecorded") or {}).items()):
        yield f"    {count:>8}  calls without a record of their own: {why}"
    banned = status.get("banned") or []
    for ban in banned[:_BANS_SHOWN]:
        left = duration(ban["seconds"])
        yield f"  banned    {ban['source']} for {left} more, {ban['dropped']} requests dropped"
    if len(banned) > _BANS_SHOWN:
        yield f"  banned    and {len(banned) - _BANS_SHOWN} more (--json has all)"
    cost = status.get("cost") or {}
    if cost.get("calls"):
        routes = cost["routes"].items()
        each = ", ".join(f"{name} {money(Decimal(amount))}" for name, amount in sorted(routes))
        shared = money(Decimal(cost["shared_total"]))
        yield f"  cost      {shared} {cost['currency']} on {cost['day']}" + (each and f": {each}")
    dropped = {name: count for name, count in status["dropped"].items() if count}
    if dropped:
        yield "  dropped   " + ", ".join(f"{count} {name}" for name, count in dropped.items())


def call_lines(calls: Iterable[Mapping[str, Any]]) -> Iterator[str]:
    """Return a line for each call: id, state, age, numbers, route, codec, cost so far."""
    for call in calls:
        age = duration(call["age_seconds"])
        caller = _user(call["from"]) or "gateway"  # of a call that it placed
        cost = call.get("cost") or {}
        parts = [
            f"{call['call_id']}  {call['state']:<12}  {age}  {caller} -> {_user(call['to'])}",
            f"route {call['route']}",
            call.get("codec") or "no media yet",
            f"{cost['priced']:.4f} {cost['currency']}" if cost else "",
        ]
        yield ", ".join(filter(None, parts))


def _user(uri: str) -> str:
    """The number or name in a SIP URI; all of another URI."""
    found = re.match(r"(?:.*<)?sips?:([^@;>]+)@", uri)
    return found[1] if found else uri


def _figures(call: Mapping[str, Any]) -> str:
    """Return quality and cost of a call as text."""
    quality, cost = call.get("quality") or {}, call.get("cost") or {}
    scores = [(quality.get(way) or {}).get("mos") for way in ("rx", "tx")]
    told = "/".join(f"{score['mean']:.1f}" if score else "-" for score in scores)
    heard = f", MOS {told}" if any(scores) else ""
    return heard + (f", {cost['priced']:.4f} {cost['currency']}" if cost else "")


def _trunk(trunk: Mapping[str, Any]) -> str:
    parts = [f"{trunk['state']} for {duration(trunk['since_seconds'])}"]
    if trunk["state"] == "static":
        parts = ["by address"]
    if trunk["expires_seconds"] is not None:
        parts.append(f"expires in {duration(trunk['expires_seconds'])}")
    if trunk["last_error"]:
        parts.append(f"last error {trunk['last_error']}")
    if trunk["next_try_seconds"] is not None:
        parts.append(f"next try in {duration(trunk['next_try_seconds'])}")
    if trunk["options"]:
        parts.append(f"OPTIONS {trunk['options']}")
    parts.append(f"{trunk['calls']} calls")
    return ", ".join(parts)


def duration(seconds: float) -> str:
    """Seconds in the two largest units that they have."""
    left = max(0, int(seconds))
    days, left = divmod(left, 86400)
    hours, left = divmod(left, 3600)
    minutes, left = divmod(left, 60)
    parts = [(days, "d"), (hours, "h"), (minutes, "min"), (left, "s")]
    first = next((index for index, (count, _) in enumerate(parts) if count), 3)
    return " ".join(f"{count} {unit}" for count, unit in parts[first : first + 2] if count) or "0 s"
