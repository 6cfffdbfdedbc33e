# SPDX-License-Identifier: GPL-2.0-or-later
"""``gateway doctor --trunk``: all that can be found out about trunks, calls included."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from pathlib import Path

from gateway.config import Config, ConfigError, TrunkSettings
from gateway.devtools.doctor import Finding, Verdict, bad, ok, trunk_call, trunk_findings, trunks
from gateway.planning.call_plan import sip_settings, trunk_of
from gateway.planning.check import load_all
from gateway.planning.destinations import OutboundCaps, dial_uri

SECONDS = 8.0
"""Length of a test call: RTCP has told of both directions by then."""


def examine(
    path: Path, names: Sequence[str], number: str = "", seconds: float = SECONDS
) -> list[Finding]:
    """Return what is found at these trunks.

    Args:
        number: whom to call; empty for each trunk's ``test_number``.
        seconds: length of a call; 40 show who hangs up after 32.

    Raises ValueError for a trunk that the configuration does not have.
    """
    try:
        config, _dialplan = load_all(path)
    except ConfigError as error:
        advice = "the gateway does not start like this"
        return [bad("config", str(one), advice).of("config") for one in error.problems]
    by_name = {one.name: one for one in config.trunk}
    for name in names:
        if name not in by_name:
            known = ", ".join(by_name) or "none"
            raise ValueError(f"there is no trunk {name!r} in {path.name}; there are: {known}")
    wanted = [by_name[name] for name in dict.fromkeys(names)]
    first = asyncio.run(_first(config, wanted))
    calls: list[trunk_call.Wanted] = []
    for trunk, found in zip(wanted, first, strict=True):
        if any(one.verdict is Verdict.BAD for one in found):
            continue
        if any(one.code == "no_address" for one in found):
            continue
        uri, said = _whom(config, trunk, number)
        found += said
        if uri or trunk.registrar is not None:
            of = trunk_of(trunk, config.access.burst, config.media)
            calls.append(trunk_call.Wanted(of, uri, register=trunk.registrar is not None))
    if calls:
        seconds = min(seconds, config.outbound.max_call_duration)
        secrets = [value for one in wanted for value in one.headers.values()]
        evidence = trunk_call.examine(sip_settings(config), calls, seconds, secrets)
        for one in evidence:
            place = next(at for at, trunk in enumerate(wanted) if trunk.name == one.trunk.name)
            first[place] += trunk_findings.judge(one, config.place)
    return [one for found in first for one in found]


async def _first(config: Config, wanted: Sequence[TrunkSettings]) -> list[list[Finding]]:
    return list(
        await asyncio.gather(*(trunks.look_closely(config, one, login=True) for one in wanted))
    )


def _whom(config: Config, trunk: TrunkSettings, number: str) -> tuple[str, list[Finding]]:
    """The URI to call, if anybody may be called."""
    subject, number = f"trunk {trunk.name}", number or trunk.test_number
    if not number:
        place = config.place("test_number", trunk.name)
        return "", [ok(subject, f"no call: neither --call nor {place}").of("not_called")]
    caps = OutboundCaps(config.outbound)
    try:
        uri = dial_uri(number, trunk)
    except (ValueError, IndexError) as error:
        return "", [bad(subject, f"{number} cannot be called: {error}", "").of("not_called")]
    rule = "outbound.enabled is false" if not config.outbound.enabled else None
    rule = rule or caps.destination_refusal(uri, on_demand=True, by_pattern=False)
    if rule is not None:
        fact = f"{number} is not called: {rule}"
        advice = f"a test call may cost money, too: {config.place('outbound.allowed_prefixes')}"
        return "", [bad(subject, fact, advice).of("not_allowed")]
    return uri, []
