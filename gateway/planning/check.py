# SPDX-License-Identifier: GPL-2.0-or-later
"""The configuration and its dialplans together: what ``gateway check`` says, and ``run`` needs."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping
from contextlib import suppress
from importlib.util import find_spec
from itertools import chain
from pathlib import Path
from stat import S_IROTH, S_ISDIR
from typing import Any

from gateway.billing.prices import load_prices
from gateway.config import KEY_MISSING, Config, judge_config
from gateway.config.sections import dialect_problem, region_problem
from gateway.config.source import (
    ConfigError,
    KeyPath,
    Problem,
    Reference,
    TomlSource,
    mode_of,
    read_toml,
    suggestion,
)
from gateway.dialplan import Dialplan, Route, call_settings, dialplan_files, load_dialplan
from gateway.dialplan.session_settings import only_beta
from gateway.planning.config_notes import certificate_problem, notes, retirements
from gateway.planning.route_notes import session_mcp, tool_summary
from gateway.planning.route_tools import (
    has_prompt,
    offers_of,
    own_tools,
    recording_plan,
    tool_problems,
    transfer_plan,
)
from gateway.realtime.connection import is_live
from gateway.records.recording_files import RecordingError, recipients_of
from gateway.text import path_of
from gateway.tools.python import ToolModuleError


def load_all(
    path: Path, environ: Mapping[str, str] | None = None, *, workers: int | None = None
) -> tuple[Config, Dialplan]:
    """Read the configuration at ``path`` and the dialplans that it names.

    ``workers``, when given, takes the place of ``workers.count``. Raises ConfigError with the
    problems of all files at once.
    """
    if not os.path.lexists(path):
        raise ConfigError([Problem(path, 1, "", "is not there; `gateway init` writes one")])
    source = read_toml(path, environ)
    if workers is not None and isinstance(source.data.setdefault("workers", {}), dict):
        source.data["workers"]["count"] = workers
    config, problems = judge_config(source)
    folder = _folder(source.data, path) if config is None else config.dialplan.folder
    dialplan = Dialplan(())
    if path.suffix == ".toml" and folder.absolute() == path.absolute().parent:
        said = f"has {path.name} in it: dialplans need a folder of their own"
        problems.append(source.problem(("dialplan", "folder"), said))
    elif S_ISDIR(mode_of(folder)):
        try:
            unknown = "warn" if config is None else config.dialplan.unknown_session_fields
            dialplan = load_dialplan(folder, environ, unknown)
        except ConfigError as error:
            problems += error.problems
    if config is not None:
        problems += chain(
            route_problems(config, dialplan),
            _prices_wrong(config, source),
            _recordings_impossible(config, dialplan, source),
            _tokens_wrong(config, dialplan, source),
            _synthetic_wrong(config, dialplan, source),
        )
        if (wrong := certificate_problem(config.sip)) is not None:
            problems.append(source.problem(("sip", "tls", wrong[0]), wrong[1]))
    if config is None or problems:
        raise ConfigError(problems)
    return config, dialplan


def route_problems(config: Config, dialplan: Dialplan) -> Iterator[Problem]:
    """Yield routes that do not fit the configuration, such as one whose trunk is not there."""
    judges = (
        _keys_missing,
        _dialects_wrong,
        _live_wrong,
        _data_late,
        _regions_mixed,
        _trunks_missing,
        _tool_choices_missing,
        _delegates_missing,
        _servers_missing,
        _recordings_nowhere,
        _applications_wrong,
        _callbacks_wrong,
        tool_problems,
    )
    return chain.from_iterable(judge(config, dialplan) for judge in judges)


def check(path: Path, environ: Mapping[str, str] | None = None) -> tuple[int, list[str]]:
    """Exit status and lines for ``gateway check``: 0 and a summary, or 2 and every problem.

    A model that its provider has retired is one; ``gateway run`` starts all the same. Files beside
    the configuration are named as that was: relative where ``path`` is.
    """
    status, lines = _checked(path, environ)
    beside = str(path.parent / "x")[:-1]
    return status, [line.replace(f"{path.absolute().parent}/", beside) for line in lines]


def _checked(path: Path, environ: Mapping[str, str] | None) -> tuple[int, list[str]]:
    try:
        config, dialplan = load_all(path, environ)
    except ConfigError as error:
        return 2, [str(problem) for problem in error.problems]
    source = read_toml(path, environ)
    over = [text for served, text in retirements(config, dialplan) if not served]
    if over:
        placed = (_placed(text, source, dialplan) for text in over)
        unset = f"{source.file}:{source.line(('realtime',))}: "  # the default model
        return 2, [f"{unset}{one}" if one.startswith("realtime.model") else one for one in placed]
    return 0, [
        *_summary(source, config, dialplan),
        *(f"  note: {_placed(note, source, dialplan)}" for note in notes(config, dialplan)),
        *(f"  note: {note}" for note in _secrets_written(source, config.dialplan.folder)),
    ]


_SUBJECT = re.compile(r"(?:(route|trunk) ([^\s,:]+)(?:, ([\w.]+):)?|([a-z_]+(?:\.[a-z_]+)+)\b)")
"""What a note is about: a route and its key, a trunk, or a key of the configuration."""


def _placed(note: str, source: TomlSource, dialplan: Dialplan) -> str:
    """Return a note with file and line of the key that it is about, where that is known."""
    found = _SUBJECT.match(note)
    if found is None:
        return note
    kind, name, key, setting = found.groups()
    file, line = source.file, 0
    if kind == "route" and (origin := dialplan.origins.get(name)) is not None:
        file, line = origin.file, origin.lines.get(tuple((key or "").split(".")), origin.line)
    elif kind == "trunk":
        names = [one.get("name") for one in source.data.get("trunk", [])]
        line = source.line(("trunk", names.index(name), key)) if name in names else 0
    elif setting and (path := tuple(setting.split("."))) in source.lines:
        line = source.line(path)
    return f"{file}:{line}: {note}" if line else note


_SECRETS = ("api_key", "password", "secret", "secret_key", "authorization")
"""Keys of secrets, in all files."""


def _secrets_written(source: TomlSource, folder: Path) -> Iterator[Problem]:
    """Yield each secret that stands in a file itself, or in one that every user can read."""
    for one in (source, *(read_toml(file, {}) for file in dialplan_files(folder))):
        for path in one.lines:
            value = one.value(path) if path and path[-1] in _SECRETS else None
            if isinstance(value, Reference):
                named = re.fullmatch(r"\$\{file:(.+)\}", value.written)
                if named and mode_of(one.file.parent / path_of(named[1])) & S_IROTH:
                    said = f"every user of this machine can read {named[1]}: chmod 600"
                    yield one.problem(path, said)
            elif value and isinstance(value, str):
                yield one.problem(path, "stands in the file; write ${env:NAME} or ${file:PATH}")


def _folder(data: Mapping[str, Any], path: Path) -> Path:
    """Return the dialplan folder of a configuration that has mistakes elsewhere."""
    section = data.get("dialplan")
    name = section.get("folder") if isinstance(section, dict) else None
    with suppress(ValueError):
        given = path_of(name) if isinstance(name, str) and name else Path("dialplans")
        return path.absolute().parent / given
    return path.absolute().parent / "dialplans"


def _keys_missing(config: Config, dialplan: Dialplan) -> Iterator[Problem]:
    """Yield routes and canaries without API key for their own server; impossible canaries."""
    for route in dialplan.routes:
        if route.canary is not None:
            where = ("canary", "realtime", "api_key")
            other = call_settings(config, route.with_canary()).realtime
            if route.canary.realtime.url and other.api_key is None and not other.on_loopback:
                yield dialplan.problem(route.name, where, KEY_MISSING)
            if config.records.database_url is None:
                message = "needs records.folder or records.database: figures of calls are there"
                yield dialplan.problem(route.name, ("canary",), message)
            if route.application is not None:
                message = "cannot be together with [route.application]: its session is another's"
                yield dialplan.problem(route.name, ("canary",), message)
        realtime = call_settings(config, route).realtime
        if route.realtime.url and realtime.api_key is None and not realtime.on_loopback:
            yield dialplan.problem(route.name, ("realtime", "api_key"), KEY_MISSING)


def _dialects_wrong(config: Config, dialplan: Dialplan) -> Iterator[Problem]:
    """Yield routes whose server cannot speak the dialect that holds for them."""
    for route in dialplan.routes:
        realtime = call_settings(config, route).realtime
        if realtime.dialect == "ga":
            for finding in only_beta(route.session):
                path = ("session", finding.path[0])
                yield dialplan.problem(route.name, path, finding.message)
        elif route.transcription.enabled:
            message = 'needs realtime.dialect = "ga": sessions that only transcribe are opened so'
            yield dialplan.problem(route.name, ("transcription",), message)
        if route.realtime.url is None and route.realtime.dialect is None:
            continue
        problem = dialect_problem(realtime.url, realtime.dialect)
        if problem is not None:
            yield dialplan.problem(route.name, ("realtime", "dialect"), problem)


def _live_wrong(config: Config, dialplan: Dialplan) -> Iterator[Problem]:
    """Yield routes that have no session object, or no model, for the kind of a server of theirs."""
    named = {one.name: one for one in config.realtime_server}
    canaries = [route.with_canary() for route in dialplan.routes if route.canary is not None]
    for route in [*dialplan.routes, *canaries]:
        own = call_settings(config, route).realtime
        servers: list[tuple[KeyPath, str, str]] = [((), own.url, own.model)]
        for index, step in enumerate(route.fallback):
            if step.server is not None and (server := named.get(step.server)) is not None:
                servers.append((("fallback", index, "server"), server.url, server.model))
        for where, url, model in servers:
            live = is_live(url, model)
            given, missing = ("session", "live") if live else ("live", "session")
            if getattr(route, given) and not getattr(route, missing):
                kind = "Live" if live else "Realtime"
                message = f"its server has {kind} sessions, and there is no [route.{missing}]"
                yield dialplan.problem(route.name, where or (given,), message)
            elif live and not route.live.get("model") and model.startswith("gpt-realtime"):
                message = f"needs a Live model: set live.model, or the server's ({model} is none)"
                yield dialplan.problem(route.name, where or ("live",), message)
        kinds = {is_live(url, model) for _, url, model in servers}
        needs = "needs servers with Realtime sessions: a Live session cannot"
        if route.interpreter is not None and True in kinds:
            yield dialplan.problem(route.name, ("interpreter",), f"{needs} interpret")
        if route.transcription.enabled and True in kinds:
            yield dialplan.problem(route.name, ("transcription",), f"{needs} only transcribe")
        if route.application is not None and len(kinds) > 1:
            message = "needs servers of one kind, Realtime or Live: its application speaks one"
            yield dialplan.problem(route.name, ("application",), message)


def _regions_mixed(config: Config, dialplan: Dialplan) -> Iterator[Problem]:
    """Yield servers of routes that are not where ``realtime.region`` keeps the data of calls."""
    wanted = config.realtime.region
    for route in dialplan.routes:
        own = route.realtime
        places: list[tuple[KeyPath, str | None, str]] = [(("realtime", "url"), own.url, own.region)]
        # Of the others only OpenAI's hosts are known.
        places += [
            (("guardrail", index, "url"), one.url, wanted)
            for index, one in enumerate(route.guardrail)
        ]
        places += [
            (("tool", index, "url"), one.url, wanted) for index, one in enumerate(route.tool)
        ]
        for path, url, declared in places:
            problem = None if url is None else region_problem(url, declared, wanted)
            if problem is not None:
                yield dialplan.problem(route.name, path, problem)


def _data_late(config: Config, dialplan: Dialplan) -> Iterator[Problem]:
    """Yield routes whose ``data.timeout`` is not below their ``realtime.connect_timeout``."""
    for route in dialplan.routes:
        limit = call_settings(config, route).realtime.connect_timeout
        if route.data is not None and route.data.timeout >= limit:
            message = f"must be less than realtime.connect_timeout ({limit:g} s), which includes it"
            yield dialplan.problem(route.name, ("data", "timeout"), message)


def _prices_wrong(config: Config, source: TomlSource) -> list[Problem]:
    """Return what is wrong with the file ``cost.prices``."""
    file = config.cost.prices
    if file is not None and not file.is_file():
        return [source.problem(("cost", "prices"), f"there is no file {file}")]
    try:
        load_prices(file)
    except ConfigError as error:
        return list(error.problems)
    return []


def _trunks_missing(config: Config, dialplan: Dialplan) -> Iterator[Problem]:
    """Yield routes that name a trunk that is not there, or a caller id that it does not allow."""
    known = [trunk.name for trunk in config.trunk]
    with_caller_ids = [trunk.name for trunk in config.trunk if trunk.caller_ids is not None]
    for route in dialplan.routes:
        places: list[tuple[KeyPath, str | None]] = [(("trunk",), route.trunk)]
        for index, one in enumerate(route.transfer):
            places.append((("transfer", index, "trunk"), one.trunk))
            if one.caller_id and one.trunk in known and one.trunk not in with_caller_ids:
                message = f"trunk {one.trunk} allows none: set its caller_ids"
                path = ("transfer", index, "caller_id")
                yield dialplan.problem(route.name, path, message)
        for where, name in places:
            if name is not None and name not in known:
                message = f'there is no trunk "{name}"' + suggestion(name, known)
                yield dialplan.problem(route.name, where, message)


def _tool_choices_missing(config: Config, dialplan: Dialplan) -> Iterator[Problem]:
    """Yield routes whose ``session.tool_choice`` is a function, or an MCP server, that the session
    does not have."""
    for route in dialplan.routes:
        choice = route.session.get("tool_choice")
        if not isinstance(choice, Mapping):
            continue
        if choice.get("type") == "function":
            what, named = "function", str(choice.get("name"))
            known = names_of_functions(config, dialplan, route)
        else:
            what, named = "MCP server of the session", str(choice.get("server_label"))
            known = None if has_prompt(route) else session_mcp(config, route)
        if known is not None and named not in known:
            message = f'there is no {what} "{named}"' + suggestion(named, known)
            yield dialplan.problem(route.name, ("session", "tool_choice"), message)


def _delegates_missing(config: Config, dialplan: Dialplan) -> Iterator[Problem]:
    """Yield routes whose ``delegate`` is no function of theirs."""
    for route in dialplan.routes:
        known = None if route.delegate is None else names_of_functions(config, dialplan, route)
        if route.delegate is not None and known is not None and route.delegate not in known:
            message = f'there is no function "{route.delegate}"' + suggestion(route.delegate, known)
            yield dialplan.problem(route.name, ("delegate",), message)


def names_of_functions(config: Config, dialplan: Dialplan, route: Route) -> list[str] | None:
    """Return the functions of a route's session; None where MCP servers may add to them."""
    try:
        offer = offers_of(config, dialplan)[route.name]
    except ToolModuleError:
        return None
    given = [tool for tool in route.session.get("tools") or () if isinstance(tool, Mapping)]
    if offer.mcp or has_prompt(route):
        return None
    own = own_tools(route, transfer_plan(route, config.trunk), recording_plan(config, route))
    names = [str(tool["name"]) for tool in (*given, *own) if "name" in tool]
    return [*names, *(one.name for one in offer.python), *(one.name for one in offer.webhooks)]


def _recordings_impossible(
    config: Config, dialplan: Dialplan, source: TomlSource
) -> Iterator[Problem]:
    """Yield invalid ``recipients``, and formats and uploads whose packages are not installed."""
    settings = config.recording
    try:
        recipients_of(settings.recipients)
    except RecordingError as error:
        yield source.problem(("recording", "recipients"), str(error))
    formats = {settings.format} | {route.recording.format for route in dialplan.routes}
    needed = {
        "format": "soundfile" if "opus" in formats and settings.folder else "",
        "upload": "minio" if settings.upload else "",
    }
    for key, package in needed.items():
        if package and find_spec(package) is None:
            message = f"needs the package {package}: install the extra recording"
            yield source.problem(("recording", key), message)


def _recordings_nowhere(config: Config, dialplan: Dialplan) -> Iterator[Problem]:
    """Yield routes that record, where there is no folder for it."""
    for route in dialplan.routes:
        if route.recording.mode not in (None, "off") and config.recording.folder is None:
            message = "needs recording.folder: recordings go there"
            yield dialplan.problem(route.name, ("recording", "mode"), message)


def _servers_missing(config: Config, dialplan: Dialplan) -> Iterator[Problem]:
    """Yield fallback steps that name no ``[[realtime_server]]``."""
    known = [one.name for one in config.realtime_server]
    for route in dialplan.routes:
        for index, step in enumerate(route.fallback):
            if step.server is not None and step.server not in known:
                message = f'there is no [[realtime_server]] "{step.server}"'
                message += suggestion(step.server, known)
                path = ("fallback", index, "server")
                yield dialplan.problem(route.name, path, message)


def _applications_wrong(config: Config, dialplan: Dialplan) -> Iterator[Problem]:
    """Yield applications without webhook, token or GA dialect."""
    names = [one.name for one in config.webhook]
    for route in dialplan.routes:
        if route.application is None:
            continue
        where = ("application",)
        named = route.application.webhook
        if named not in names:
            message = f'there is no [[webhook]] "{named}"' + suggestion(named, names)
            yield dialplan.problem(route.name, (*where, "webhook"), message)
        if config.api.listen is None or all(one.role != "application" for one in config.api.token):
            message = 'needs api.listen and an [[api.token]] with role = "application"'
            yield dialplan.problem(route.name, where, message)
        if call_settings(config, route).realtime.dialect != "ga":
            message = 'needs realtime.dialect = "ga": applications speak that'
            yield dialplan.problem(route.name, where, message)
        if route.interruptions.by_gateway:
            message = "cannot be together with [route.interruptions]: its session decides"
            yield dialplan.problem(route.name, where, message)


def _tokens_wrong(config: Config, dialplan: Dialplan, source: TomlSource) -> Iterator[Problem]:
    """Yield tokens of the API of unknown routes."""
    routes = [route.name for route in dialplan.routes]
    for number, token in enumerate(config.api.token):
        for name in token.routes:
            if name not in routes:
                message = f'there is no route "{name}"' + suggestion(name, routes)
                yield source.problem(("api", "token", number, "routes"), message)


def _synthetic_wrong(config: Config, dialplan: Dialplan, source: TomlSource) -> Iterator[Problem]:
    """Yield synthetic calls with a name used twice, or to an unknown route."""
    routes = [route.name for route in dialplan.routes]
    names = [one.name for one in config.synthetic_call]
    for number, one in enumerate(config.synthetic_call):
        if one.name in names[:number]:
            yield source.problem(("synthetic_call", number, "name"), "is used twice")
        if one.route is not None and one.route not in routes:
            message = f'there is no route "{one.route}"' + suggestion(one.route, routes)
            yield source.problem(("synthetic_call", number, "route"), message)


def _callbacks_wrong(config: Config, dialplan: Dialplan) -> Iterator[Problem]:
    """Yield routes with ``schedule_callback`` whose callbacks could not be kept or placed."""
    settings = config.callbacks
    names = [route.name for route in dialplan.routes]
    trunks = [trunk.name for trunk in config.trunk]
    for route in dialplan.routes:
        given = route.schedule_callback
        if not given.enabled:
            continue

        def wrong(message: str, *key: str, name: str = route.name) -> Problem:
            return dialplan.problem(name, ("schedule_callback", *key), message)

        if not (config.records.database_url or settings.url):
            yield wrong("callbacks would be lost: set records.folder or callbacks.url")
        if given.route is not None and given.route not in names:
            message = f'there is no route "{given.route}"' + suggestion(given.route, names)
            yield wrong(message, "route")
        if given.trunk is not None and given.trunk not in trunks:
            message = f'there is no trunk "{given.trunk}"' + suggestion(given.trunk, trunks)
            yield wrong(message, "trunk")
        if settings.auto_dial and given.trunk is None:
            yield wrong(
                "is needed: numbers are called through a trunk (callbacks.auto_dial)", "trunk"
            )
        if not (config.outbound.allowed_prefixes or given.allowed_numbers is not None):
            yield wrong("needs outbound.allowed_prefixes: From can be forged")
        if settings.auto_dial and not config.outbound.enabled:
            yield wrong("callbacks.auto_dial needs outbound.enabled")


def _others(config: Config) -> str:
    """Return how calls from unknown sources are treated, as text of the summary."""
    if config.access.unknown_sources != "auto":
        return config.access.unknown_sources
    return "auto (refused)" if config.trunk else "auto (from private networks only)"


def _summary(source: TomlSource, config: Config, dialplan: Dialplan) -> list[str]:
    """Return the lines that ``gateway check`` prints about a good configuration."""
    path, sip, realtime = source.file, config.sip, config.realtime
    names = ", ".join(route.name for route in dialplan.routes if route.enabled)
    files = len(dialplan_files(config.dialplan.folder))
    key = "with a key" if realtime.api_key else "without a key"
    written = source.value(("realtime", "api_key"))
    if not realtime.api_key and isinstance(written, Reference):
        key += f" ({written.written} is not set)"
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


def _count(number: int, what: str) -> str:
    return f"{number} {what}{'' if number == 1 else 's'}"
