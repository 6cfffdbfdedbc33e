"""The configuration and its dialplans together: what ``gateway check`` says, and ``run`` needs."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from gateway.addresses import is_inside
from gateway.billing.prices import load_prices
from gateway.billing.route_budget import transcriber_of
from gateway.config.load import KEY_MISSING, judge_config
from gateway.config.models import Config
from gateway.config.problems import ConfigError, Problem
from gateway.config.realtime import dialect_problem, on_loopback
from gateway.config.source import read_toml
from gateway.config.validate import suggestion
from gateway.dialplan import Dialplan, Route, call_settings, dialplan_files, load_dialplan
from gateway.dialplan.session import only_beta
from gateway.outbound.callbacks.function import problems as callback_problems
from gateway.planning.route_tools import RouteTools, offers_of
from gateway.planning.route_tools import problems as tool_problems
from gateway.planning.tools import has_prompt, own_tools, transfer_plan
from gateway.planning.tools_lint import advice as tool_advice
from gateway.planning.tools_lint import summary as tool_summary


def load_all(
    path: Path, environ: Mapping[str, str] | None = None, *, workers: int | None = None
) -> tuple[Config, Dialplan]:
    """Read the configuration at ``path`` and the dialplans that it names.

    ``workers``, when given, takes the place of ``workers.count``. Raises ConfigError with the
    problems of all files at once.
    """
    source = read_toml(path, environ)
    if workers is not None and isinstance(source.data.setdefault("workers", {}), dict):
        source.data["workers"]["count"] = workers
    config, problems = judge_config(source)
    folder = _folder(source.data, path) if config is None else config.dialplan.folder
    dialplan = Dialplan(())
    if folder.is_dir():
        try:
            unknown = "warn" if config is None else config.dialplan.unknown_session_fields
            dialplan = load_dialplan(folder, environ, unknown)
        except ConfigError as error:
            problems += error.problems
    if config is not None:
        problems += _keys_missing(config, dialplan)
        problems += _prices_wrong(config)
        problems += _dialects_wrong(config, dialplan)
        problems += _data_late(config, dialplan)
        problems += _trunks_missing(config, dialplan)
        problems += _servers_missing(config, dialplan)
        problems += callback_problems(config, dialplan)
        problems += tool_problems(config, dialplan, source.problem(("tools", "module"), ""))
    if config is None or problems:
        raise ConfigError(problems)
    return config, dialplan


def check(path: Path, environ: Mapping[str, str] | None = None) -> tuple[int, list[str]]:
    """Exit status and lines for ``gateway check``: 0 and a summary, or 2 and every problem."""
    try:
        config, dialplan = load_all(path, environ)
    except ConfigError as error:
        return 2, [str(problem) for problem in error.problems]
    return 0, [*_summary(path, config, dialplan), *_advice(config, dialplan)]


def _folder(data: Mapping[str, Any], path: Path) -> Path:
    """The dialplan folder of a configuration that is wrong elsewhere."""
    section = data.get("dialplan")
    name = section.get("folder") if isinstance(section, dict) else None
    return path.absolute().parent / (name if isinstance(name, str) and name else "dialplans")


def _keys_missing(config: Config, dialplan: Dialplan) -> list[Problem]:
    """Routes that go to another server than the configuration's, and have no key for it."""
    problems: list[Problem] = []
    for route in dialplan.routes:
        realtime = call_settings(config, route).realtime
        if route.realtime.url and realtime.api_key is None and not realtime.on_loopback:
            file, line = dialplan.origins[route.name]
            where = f"route {route.name}, realtime.api_key"
            problems.append(Problem(file, line, where, KEY_MISSING))
    return problems


def _dialects_wrong(config: Config, dialplan: Dialplan) -> list[Problem]:
    """Routes whose server cannot speak the dialect that holds for them."""
    problems: list[Problem] = []
    for route in dialplan.routes:
        realtime = call_settings(config, route).realtime
        if realtime.dialect == "ga":
            for finding in only_beta(route.session):
                file, line = dialplan.origins[route.name]
                where = f"route {route.name}, session.{finding.path[0]}"
                problems.append(Problem(file, line, where, finding.message))
        if route.realtime.url is None and route.realtime.dialect is None:
            continue
        problem = dialect_problem(realtime.url, realtime.dialect)
        if problem is not None:
            file, line = dialplan.origins[route.name]
            where = f"route {route.name}, realtime.dialect"
            problems.append(Problem(file, line, where, problem))
    return problems


def _data_late(config: Config, dialplan: Dialplan) -> list[Problem]:
    """Routes whose data may take all the time that their session has."""
    problems: list[Problem] = []
    for route in dialplan.routes:
        limit = call_settings(config, route).realtime.connect_timeout
        if route.data is not None and route.data.timeout >= limit:
            file, line = dialplan.origins[route.name]
            message = f"must be less than realtime.connect_timeout ({limit:g} s), its whole"
            problems.append(Problem(file, line, f"route {route.name}, data.timeout", message))
    return problems


def _prices_wrong(config: Config) -> list[Problem]:
    """What is wrong with the price file, where there is one."""
    try:
        load_prices(config.cost.prices)
    except ConfigError as error:
        return list(error.problems)
    return []


def _trunks_missing(config: Config, dialplan: Dialplan) -> list[Problem]:
    """Routes that wait for the calls of a trunk that is not there, or call through one."""
    known = [trunk.name for trunk in config.trunk]
    problems: list[Problem] = []
    for route in dialplan.routes:
        places = [("trunk", route.trunk)]
        places += [(f"transfer {one.name!r}, trunk", one.trunk) for one in route.transfer]
        for where, name in places:
            if name is not None and name not in known:
                file, line = dialplan.origins[route.name]
                message = f'there is no trunk "{name}"' + suggestion(name, known)
                problems.append(Problem(file, line, f"route {route.name}, {where}", message))
    return problems


def _servers_missing(config: Config, dialplan: Dialplan) -> list[Problem]:
    """Routes that would turn to a server that is not there."""
    known = [one.name for one in config.realtime_server]
    problems: list[Problem] = []
    for route in dialplan.routes:
        for step in route.fallback:
            if step.server is not None and step.server not in known:
                file, line = dialplan.origins[route.name]
                message = f'there is no [[realtime_server]] "{step.server}"'
                message += suggestion(step.server, known)
                problems.append(Problem(file, line, f"route {route.name}, fallback", message))
    return problems


def _open_doors(config: Config) -> list[str]:
    """What lets strangers in, or keys out."""
    advice: list[str] = []
    access = config.access
    public = [address for address in config.sip.listen if not is_inside(address.host)]
    if access.unknown_sources == "allow" and public:
        unlimited = not access.calls_per_second and access.max_concurrent_calls == 0
        more = ", without a limit" if unlimited else ""
        advice.append(
            f'access.unknown_sources = "allow": anybody who reaches {public[0]} can call{more}'
        )
    elif access.unknown_sources == "auto" and not config.trunk and public:
        advice.append(
            f'access.unknown_sources = "auto" and no trunk: whoever reaches {public[0]} from a '
            "private network can call"
        )
    if public and (
        access.unknown_sources == "allow" or (access.unknown_sources == "auto" and not config.trunk)
    ):
        advice += [
            f"access.{key} = 0: one source can take all calls"
            for key in ("calls_per_second", "max_concurrent_calls")
            if getattr(access, key) == 0
        ]
    if not access.ban_after and public:
        advice.append("access.ban_after = 0: whoever guesses passwords may go on for ever")
    for trunk in config.trunk:
        for peer in trunk.peers:
            if peer.network.prefixlen == 0 and trunk.inbound_auth is None:
                advice.append(f"trunk {trunk.name}: with {peer} anybody's call is this trunk's")
        if (
            config.sip.tls.client_certificates == "required"
            and trunk.transport == "tls"
            and trunk.peers
            and not trunk.certificate_names
        ):
            advice.append(
                f"trunk {trunk.name}: whoever has a certificate of sip.tls.ca passes for it at its "
                "addresses; certificate_names says which name is this trunk's"
            )
        if trunk.srtp != "off" and "sdes" in trunk.srtp_keying and trunk.transport != "tls":
            advice.append(
                f"trunk {trunk.name}: SDES puts the keys of SRTP into SDP, and {trunk.transport} "
                'lets everybody on the way read them (transport = "tls" does not)'
            )
    return advice


_ANY_NUMBER = ("+882161234567", "09001234567", "112", "7")
_ANY_ADDRESS = ("sip:+882161234567@203.0.113.9:5999", "sip:x-7f3@elsewhere.invalid")
"""Nobody means all of these: an expression that fits them is one that fits everything."""


def _open_purses(config: Config, dialplan: Dialplan) -> list[str]:
    """What lets calls go anywhere, at our cost."""
    advice: list[str] = []
    outbound = config.outbound
    if not outbound.country and (outbound.allowed_prefixes or outbound.denied_prefixes):
        advice.append(
            "outbound.country is not set: 0900 and +49900 are not known to be the same, and calls "
            "abroad not to be such"
        )
    for prefix in outbound.allowed_prefixes:
        if prefix in ("", "+", "0", "00"):
            advice.append(f"outbound.allowed_prefixes: {prefix!r} is the beginning of every number")
    for route in dialplan.routes:
        numbers = [
            (f"transfer {one.name!r}, allowed_numbers", one.allowed_numbers)
            for one in route.transfer
        ]
        numbers.append(
            ("schedule_callback.allowed_numbers", route.schedule_callback.allowed_numbers)
        )
        for where, pattern in numbers:
            if pattern is not None and all(pattern.fullmatch(one) for one in _ANY_NUMBER):
                advice.append(f"route {route.name}, {where}: matches every number")
        pattern = route.allowed_refer_to
        if pattern is not None and any(pattern.fullmatch(one) for one in _ANY_ADDRESS):
            advice.append(
                f"route {route.name}, allowed_refer_to: matches every address, so whoever calls "
                "can have the gateway call anywhere"
            )
    return advice


def _others(config: Config) -> str:
    """What becomes of calls that are no trunk's."""
    if config.access.unknown_sources != "auto":
        return config.access.unknown_sources
    return "auto (refused)" if config.trunk else "auto (from private networks only)"


def _summary(path: Path, config: Config, dialplan: Dialplan) -> list[str]:
    sip, realtime = config.sip, config.realtime
    names = ", ".join(route.name for route in dialplan.routes if route.enabled)
    files = len(dialplan_files(config.dialplan.folder))
    key = "with a key" if realtime.api_key else "without a key"
    low, high = sip.rtp_ports
    count = config.workers.count
    last = config.for_worker(count - 1).sip.listen
    trunks = ", ".join(trunk.name for trunk in config.trunk)
    shared = [
        f"  workers   {count}, each for {sip.max_calls} calls; the last one on "
        f"{', '.join(map(str, last))}"
    ]
    return [
        f"{path}: good",
        f"  sip       {', '.join(map(str, sip.listen))}, at most {sip.max_calls} calls, "
        f"RTP {low}-{high}",
        *(shared if count > 1 else []),
        f"  trunks    {trunks or 'none'}; other calls: {_others(config)}",
        f"  realtime  {realtime.url}, model {realtime.model}, {key}, "
        f"dialect {realtime.dialect}, audio {realtime.audio}",
        *(
            f"  server    {one.name}: {one.url}, model {one.model}"
            for one in config.realtime_server
        ),
        f"  dialplan  {_count(len(dialplan.routes), 'route')} in {_count(files, 'file')}: "
        f"{names or 'none'}",
        *tool_summary(config, dialplan),
    ]


def _advice(config: Config, dialplan: Dialplan) -> list[str]:
    """What can be meant so, but seldom is."""
    advice: list[str] = []
    enabled = [route for route in dialplan.routes if route.enabled]
    if not enabled:
        advice.append("no route: every call is refused with 404")
    listening = {address.transport for address in config.sip.listen}
    for route in enabled:
        for target in route.transfer:
            if target.mode == "blind" or target.trunk is not None:
                continue
            found = re.search(r";transport=(\w+)", target.to, re.IGNORECASE)
            transport = found[1].lower() if found else "udp"
            if transport not in listening:
                advice.append(
                    f"route {route.name}: transfer {target.name} names no trunk, so it goes by "
                    f"{transport}, for which sip.listen has no address"
                )
    for index, route in enumerate(enabled[:-1]):
        if not _has_condition(route):
            after = ", ".join(later.name for later in enabled[index + 1 :])
            advice.append(f"route {route.name} takes every call, none is left for {after}")
            break
    advice += _open_doors(config)
    advice += _open_purses(config, dialplan)
    advice += tool_advice(config, dialplan)
    advice += [
        f"route {route.name}: the guardrail {guard.name} listens to the caller, whose words nobody "
        "writes down (session.audio.input.transcription does)"
        for route in enabled
        for guard in route.guardrail
        if guard.speaker != "agent" and not transcriber_of(route.session)
    ]
    urls = {config.realtime.url} | {route.realtime.url for route in enabled if route.realtime.url}
    advice += [
        f"{url} is not encrypted: keys and voices can be read on the way (wss:// is)"
        for url in sorted(urls)
        if url.startswith(("ws:", "http:")) and not on_loopback(url)
    ]
    advice += _other_regions(config, enabled)
    offers = offers_of(config, dialplan)
    advice += [
        f"route {route.name}: its tools take the place of those of the hosted prompt"
        for route in enabled
        if has_prompt(route)
        and (
            own_tools(route, transfer_plan(route, config.trunk))
            or offers[route.name] != RouteTools()
        )
    ]
    advice += [f"{problem} (passed on to the server as it is)" for problem in dialplan.unsure]
    return [f"  note: {line}" for line in advice]


_REGION = re.compile(r"^(?:(eu|us|ae|au|in|jp)\.)?api\.openai\.com$")


def _region(url: str) -> str | None:
    """Where data of this address stay, as far as its name tells; None: it does not tell."""
    found = _REGION.match((urlsplit(url).hostname or "").lower())
    return None if found is None else found[1] or "none"


def _other_regions(config: Config, routes: Sequence[Route]) -> list[str]:
    """Fallback servers that are not in the region of the server they stand in for."""
    urls = {one.name: one.url for one in config.realtime_server}
    advice: list[str] = []
    for route in routes:
        home = _region(call_settings(config, route).realtime.url)
        if home in (None, "none"):
            continue
        for step in route.fallback:
            url = urls.get(step.server or "", "")
            if url and _region(url) != home:
                advice.append(
                    f"route {route.name}: its server keeps data in {home!r}, and the server "
                    f"{step.server} ({urlsplit(url).hostname}) does not"
                )
    return advice


def _count(number: int, what: str) -> str:
    return f"{number} {what}{'' if number == 1 else 's'}"


def _has_condition(route: Route) -> bool:
    return bool(
        route.to or route.from_ or route.headers or route.source or route.trunk or route.hours
    )
