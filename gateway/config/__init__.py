# SPDX-License-Identifier: GPL-2.0-or-later
"""The configuration: what ``gateway.toml`` may contain, and :func:`judge_config`, which checks it.

``source`` reads TOML with positions and references, ``values`` has the kinds of value, the other
modules have the sections. Dialplans are read with the same parts.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from itertools import product
from pathlib import Path
from stat import S_ISDIR, S_ISREG, S_ISSOCK
from typing import Annotated, Any, Literal, Self

from pydantic import (
    Field,
    PrivateAttr,
    Strict,
    ValidationError,
    model_validator,
)

from gateway.config.operations import (
    ApiSettings,
    ControlSettings,
    RecordingSettings,
    RecordSettings,
    Redacted,
    SharedSettings,
    SyntheticCall,
    TracingSettings,
    WebhookSettings,
    split_address,
)
from gateway.config.sections import (
    AccessSettings,
    CallbackSettings,
    CostSettings,
    OutboundSettings,
    RealtimeServerSettings,
    RealtimeSettings,
    ToolSettings,
    on_loopback,
    region_problem,
)
from gateway.config.sip import (
    Keying,
    ListenAddress,
    SipSettings,
    Srtp,
    TrunkSettings,
    judge_keying,
    judge_trunks,
)
from gateway.config.source import (
    ConfigError,
    KeyPath,
    MisplacedError,
    Problem,
    Reference,
    Section,
    TomlSource,
    dotted,
    mode_of,
    problems_of,
)
from gateway.config.values import (
    Count,
    FilePath,
    Flag,
    PacketWait,
    Seconds,
    SecondsOrOff,
    Text,
    Typed,
    ip_literal,
    refuse_duplicates,
)

__all__ = ["Config", "ConfigError", "judge_config"]


class DialplanSettings(Section):
    """``[dialplan]``: folder of the routes, and unknown session fields."""

    folder: FilePath = Field(default=Path("dialplans"), validate_default=True)
    unknown_session_fields: Literal["warn", "error"] = "warn"


class LogSettings(Section):
    """``[log]``: level, format and destination of the log."""

    format: Literal["json", "console"] = "json"
    redact: tuple[Redacted, ...] = ()
    level: Literal["debug", "info", "warning", "error"] = "info"
    file: FilePath | None = None


LEDGER_NAME = "today.cost"


class MediaSettings(Section):
    """``[media]``: what is waited for of the caller's RTP, SRTP, when silence means dead (s)."""

    packet_wait_ms: PacketWait = 60
    jb_catch_up: Flag = True
    rtp_timeout: SecondsOrOff = 30.0
    srtp: Srtp = "optional"
    srtp_keying: Annotated[tuple[Keying, ...], Field(min_length=1)] = ("sdes",)
    sdes_without_tls: Flag = False
    speech_command: tuple[Text, ...] = ()


class LimitSettings(Section):
    """``[limits]``: how long a call may last, and a shutdown may take (s)."""

    max_call_duration: Seconds = 3600.0
    drain_timeout: SecondsOrOff = 5.0
    min_drain_time: SecondsOrOff = 0.0


class WorkerSettings(Section):
    """``[workers]``: processes that share the calls, each with ports of its own."""

    count: Annotated[Count, Field(le=256)] = 1
    port_step: Count = 1
    max_restarts: Annotated[int, Strict(), Field(ge=0), Typed] = 8


class Config(Section):
    """The whole of ``gateway.toml``, validated; its paths are absolute."""

    sip: SipSettings = Field(default_factory=SipSettings)
    realtime: RealtimeSettings
    dialplan: DialplanSettings = Field(default_factory=DialplanSettings)
    log: LogSettings = Field(default_factory=LogSettings)
    records: RecordSettings = Field(default_factory=RecordSettings)
    recording: RecordingSettings = Field(default_factory=RecordingSettings)
    shared: SharedSettings = Field(default_factory=SharedSettings)
    media: MediaSettings = Field(default_factory=MediaSettings)
    limits: LimitSettings = Field(default_factory=LimitSettings)
    cost: CostSettings = Field(default_factory=CostSettings)
    workers: WorkerSettings = Field(default_factory=WorkerSettings)
    access: AccessSettings = Field(default_factory=AccessSettings)
    control: ControlSettings = Field(default_factory=ControlSettings)
    api: ApiSettings = Field(default_factory=ApiSettings)
    webhook: tuple[WebhookSettings, ...] = ()
    synthetic_call: tuple[SyntheticCall, ...] = ()
    tracing: TracingSettings = Field(default_factory=TracingSettings)
    outbound: OutboundSettings = Field(default_factory=OutboundSettings)
    trunk: tuple[TrunkSettings, ...] = ()
    realtime_server: tuple[RealtimeServerSettings, ...] = ()
    tools: ToolSettings = Field(default_factory=ToolSettings)
    callbacks: CallbackSettings = Field(default_factory=CallbackSettings)
    _origin: tuple[Path, Mapping[KeyPath, int]] = PrivateAttr(default=(Path("gateway.toml"), {}))

    def read_from(self, file: Path, lines: Mapping[KeyPath, int]) -> None:
        """Keep the file of these settings and the lines of its keys, for :meth:`where`."""
        self._origin = file, lines

    def as_read_with(self, other: Config) -> None:
        """Take file and lines for :meth:`where` from ``other``, read anew with the same values."""
        self._origin = other._origin

    def problem(self, path: KeyPath, message: str) -> Problem:
        """Return a problem at ``path`` in the file of these settings."""
        (file, lines), near = self._origin, path
        while near and near not in lines:
            near = near[:-1]
        return Problem(file, lines.get(near, 1), dotted(path), message)

    def place(self, key: str, trunk: str = "") -> str:
        """Return a dotted key with its place, as ``trunk pbx: expires (gateway.toml:12)``."""
        return f"{f'trunk {trunk}: ' if trunk else ''}{key} ({self.where(key, trunk)})"

    def where(self, key: str, trunk: str = "") -> str:
        """Return file and line that set a dotted key, or "default"."""
        (file, lines), path = self._origin, tuple[str | int, ...](key.split("."))
        if trunk:
            names = [one.name for one in self.trunk]
            path = ("trunk", names.index(trunk) if trunk in names else -1, *path)
        return f"{file.name}:{lines[path]}" if path in lines else "default"

    @model_validator(mode="after")
    def _trunks_fit(self) -> Self:
        judge_trunks(self.trunk, self.sip)
        if any(address.transport != "tls" for address in self.sip.listen):
            judge_keying(self.media, "media")
        return self

    @model_validator(mode="after")
    def _servers_differ(self) -> Self:
        refuse_duplicates((one.name for one in self.realtime_server), "realtime_server")
        return self

    @model_validator(mode="after")
    def _servers_in_region(self) -> Self:
        """Refuse servers outside of the region that data must stay in."""
        wanted = self.realtime.region
        places: list[tuple[tuple[str | int, ...], str, str]] = [
            (("realtime", "url"), self.realtime.url, wanted)
        ]
        for number, one in enumerate(self.realtime_server):
            places.append((("realtime_server", number, "url"), one.url, one.region))
        for number, server in enumerate(self.tools.mcp):
            if server.url is not None:  # only OpenAI's hosts are known
                places.append((("tools", "mcp", number, "url"), server.url, wanted))
        for where, url, declared in places:
            if (problem := region_problem(url, declared, wanted)) is not None:
                raise MisplacedError(where, problem)
        return self

    @model_validator(mode="after")
    def _webhooks_fit(self) -> Self:
        """Refuse webhooks of the same name, and any without a spool."""
        refuse_duplicates((one.name for one in self.webhook), "webhook")
        if self.webhook and self.records.spool_folder is None:
            raise MisplacedError(
                ("webhook", 0), "needs records.folder: deliveries wait there until they arrive"
            )
        return self

    @model_validator(mode="after")
    def _shared_fits(self) -> Self:
        """Refuse caps of all processes without a database."""
        if self.records.database_url is None:
            for section, key in (("shared", "max_calls"), ("cost", "budget.reserve")):
                given = self.shared.max_calls if section == "shared" else self.cost.budget.reserve
                if given:
                    raise MisplacedError(
                        (section, *key.split(".")),
                        "needs records.folder or records.database: processes share it there",
                    )
        return self

    @model_validator(mode="after")
    def _workers_fit(self) -> Self:
        """Refuse settings that cannot be shared among ``workers.count`` workers."""
        count, sip = self.workers.count, self.sip
        if count == 1:
            return self
        share = sip.rtp_ports.share(0, count).calls
        if share < sip.max_calls:
            raise MisplacedError(
                ("sip", "rtp_ports"),
                f"has room for {share} calls in each of {count} workers (two ports each), "
                f"but max_calls is {sip.max_calls} for each",
            )
        for number, trunk in enumerate(self.trunk):
            if trunk.registrar is not None:
                raise MisplacedError(
                    ("trunk", number, "registrar"),
                    f"each of {count} workers would register there, and every call ring in all of "
                    "them; let the proxy in front register",
                )
        return self

    @model_validator(mode="after")
    def _listeners_fit(self) -> Self:
        """Refuse listeners of all workers, of SIP and of the API, that cannot be bound together."""
        count, sip = self.workers.count, self.sip
        listeners: list[tuple[KeyPath, ListenAddress]] = [
            (("sip", "listen", index), base) for index, base in enumerate(sip.listen)
        ]
        host, port = split_address(self.api.listen or "")
        if port not in ("", "0"):  # 0: a free one, of each worker
            # The API's socket of all IPv6 addresses takes IPv4 on its port, too; pjsip's do not.
            for one in (host, "0.0.0.0") if ip_literal(host) == "::" else (host,):
                listeners.append((("api", "listen"), ListenAddress("tcp", one, int(port))))
        seen: list[tuple[ListenAddress, int]] = []
        for worker, (where, base) in product(range(count), listeners):
            address = base.shifted(worker * self.workers.port_step)
            if base.port == 0 and count == 1:
                continue
            if base.port == 0:
                raise MisplacedError(where, f"port 0 cannot be shared by {count} workers")
            if address.port > 65535:
                raise MisplacedError(where, f"worker {worker} would have port {address.port}")
            if where[0] == "sip" and sip.rtp_ports.low <= address.port <= sip.rtp_ports.high:
                raise MisplacedError(
                    where, f"worker {worker} would have port {address.port}, one of rtp_ports"
                )
            for other, owner in seen:
                if address.collides(other) and count == 1:
                    raise MisplacedError(where, f"collides with sip.listen {other}")
                if address.collides(other):
                    raise MisplacedError(
                        where,
                        f"worker {worker} would have {address}, which worker {owner} has as "
                        f"{other}; workers.port_step sets them further apart",
                    )
            seen.append((address, worker))
        return self

    def for_worker(self, index: int) -> Config:
        """Return the configuration of a worker: its own ports, socket and cost file.

        Args:
            index: from 0 to ``workers.count`` - 1.
        """
        step, count = index * self.workers.port_step, self.workers.count
        sip = self.sip.model_copy(
            update={
                "listen": tuple(address.shifted(step) for address in self.sip.listen),
                "rtp_ports": self.sip.rtp_ports.share(index, count),
            }
        )
        control, socket = self.control, self.control.socket
        if socket is not None:
            own = socket.with_name(f"{socket.stem}-{index}{socket.suffix}")
            control = control.model_copy(update={"socket": own})
        cost, ledger = self.cost, self.ledger
        if ledger is not None:
            own = ledger.with_name(f"{ledger.stem}-{index}{ledger.suffix}")
            cost = cost.model_copy(update={"state_file": own})
        return self.model_copy(
            update={
                "sip": sip,
                "control": control,
                "api": self.api.shifted(step),
                "cost": cost,
            }
        )

    @property
    def sibling_sockets(self) -> tuple[Path, ...]:
        """Control sockets of the other workers; only after :meth:`for_worker`."""
        own = self.control.socket
        found = None if own is None else re.fullmatch(r"(.*)-([0-9]+)", own.stem)
        if self.workers.count == 1 or own is None or found is None:
            return ()
        others = (n for n in range(self.workers.count) if n != int(found[2]))
        return tuple(own.with_name(f"{found[1]}-{n}{own.suffix}") for n in others)

    @property
    def ledger(self) -> Path | None:
        """File of the day's costs: ``cost.state_file``, or else beside the records."""
        folder = self.records.folder
        return self.cost.state_file or (None if folder is None else folder / LEDGER_NAME)


_API_KEY: KeyPath = ("realtime", "api_key")
KEY_MISSING = 'missing, and the server is not on this machine (api_key = "" if it wants none)'


def judge_config(source: TomlSource) -> tuple[Config | None, list[Problem]]:
    """Return the configuration, or None where it is not valid, and every problem of ``source``."""
    _key_not_needed(source)
    problems = list(source.problems)
    folder = source.file.absolute().parent
    try:
        # A table that is not there is validated too: its default folder is relative to this one.
        data = {"dialplan": {}, "tools": {}, **source.data}
        config = Config.model_validate(data, context={"folder": folder})
    except ValidationError as error:
        return None, [*problems, *problems_of(error, Config, source)]
    config.read_from(source.file, source.lines)
    if not S_ISDIR(mode_of(config.dialplan.folder)):
        problems.append(
            source.problem(("dialplan", "folder"), f"{config.dialplan.folder} is no folder")
        )
    if config.log.file is not None and not S_ISDIR(mode_of(config.log.file.parent)):
        problems.append(source.problem(("log", "file"), "its folder does not exist"))
    problems += _tls_unreadable(config, source)
    realtime = config.realtime
    if realtime.api_key is None and not realtime.on_loopback and _API_KEY not in source.unresolved:
        problems.append(source.problem(_API_KEY, KEY_MISSING))
    keys = [] if realtime.on_loopback else [_API_KEY]
    keys += [("trunk", number, "password") for number in range(len(config.trunk))]
    for path in keys:
        key = source.value(path)
        given = isinstance(key, Reference) and not key and ":-" not in key.written
        if given and path not in source.unresolved:
            problems.append(source.problem(path, f"{key.written} is empty"))
    problems += _of_another_kind(config, source)
    return config, problems


def _of_another_kind(config: Config, source: TomlSource) -> Iterator[Problem]:
    """Yield paths where the gateway makes a file, a folder or a socket, and something else is."""
    log, socket = config.log.file, config.control.socket
    if log is not None and S_ISDIR(mode_of(log)):
        yield source.problem(("log", "file"), "is a folder")
    for section, folder in (
        ("records", config.records.folder),
        ("recording", config.recording.folder),
    ):
        for part in () if folder is None else (folder, *folder.parents):
            if S_ISREG(mode_of(part)):
                yield source.problem((section, "folder"), f"{part} is no folder")
    if socket is not None and mode_of(socket) and not S_ISSOCK(mode_of(socket)):
        yield source.problem(("control", "socket"), f"{socket} is there and is no socket")


def _tls_unreadable(config: Config, source: TomlSource) -> list[Problem]:
    """Return files of ``[sip.tls]`` that cannot be read, where there is a ``tls:`` listener."""
    tls = config.sip.tls
    if not any(address.transport == "tls" for address in config.sip.listen):
        return []
    problems: list[Problem] = []
    for key in ("certificate", "private_key", "ca"):
        path: Path | None = getattr(tls, key)
        try:
            if path is not None:
                path.open("rb").close()
        except OSError as error:
            message = f"{path} cannot be read: {error.strerror}"
            problems.append(source.problem(("sip", "tls", key), message))
    return problems


def _key_not_needed(source: TomlSource) -> None:
    """Let the variable of ``realtime.api_key`` be unset for a server on this machine.

    So the same file runs against the emulator without a key, and a live server without one is
    still an error.
    """
    realtime: Any = source.data.get("realtime")
    if _API_KEY not in source.unresolved or not isinstance(realtime, dict):
        return
    url = realtime.get("url")
    try:
        local = isinstance(url, str) and on_loopback(url)
    except ValueError:
        local = False
    if local:
        source.unresolved.discard(_API_KEY)
        source.problems[:] = [item for item in source.problems if item.key != "realtime.api_key"]
        del realtime["api_key"]
