# SPDX-License-Identifier: GPL-2.0-or-later
"""Runs all checks of the doctor; has those of this machine and of its pjsua2 build.

``gateway doctor --trunk`` is :func:`examine_calls`: all that can be found out about trunks, test
calls included.
"""

from __future__ import annotations

import asyncio
import ctypes
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

from sqlalchemy.exc import SQLAlchemyError

from gateway.config import Config, ConfigError
from gateway.config.sip import TrunkSettings
from gateway.devtools.doctor import (
    Finding,
    Verdict,
    bad,
    network,
    ok,
    trunk_call,
    trunk_findings,
    trunks,
    warn,
)
from gateway.dialplan import Dialplan
from gateway.planning.check import check, load_all
from gateway.planning.sip import OutboundCaps, dial_uri, sip_settings, trunk_of
from gateway.records.database import Database
from gateway.sip.library import descriptor_limits, descriptors_needed

WANTED_BUFFER = 1024 * 1024
"""Bytes: half a second of the SIP of 500 calls a second, or a stall of 100 ms at 1,000 calls."""

MANY_CALLS = 100
"""From here on the system's default buffer is too small for a stall of the process."""

_OLDEST_SENSIBLE = datetime(2026, 1, 1).timestamp()
_TIME_ERROR = 5


def check_machine(config: Config | None) -> Iterator[Finding]:
    """Check Python, cores, limits, buffers and clock of this machine.

    Args:
        config: None stands for default settings.
    """
    calls = 100 if config is None else config.sip.max_calls
    yield _python()
    yield _cores(1 if config is None else config.workers.count)
    yield _files(calls)
    yield _buffers(calls * (1 if config is None else config.workers.count))
    yield _clock()
    yield _zone()


def _python() -> Finding:
    name = platform.python_implementation()
    return ok("python", f"{name} {platform.python_version()}, {sys.executable}")


def _cores(workers: int) -> Finding:
    cores = len(os.sched_getaffinity(0))
    fact = f"{cores} usable, {workers} worker{'s' if workers > 1 else ''}"
    if workers > cores:
        return warn("cores", fact, "a worker uses one for Python: workers.count above that is lost")
    return ok("cores", fact)


def _files(calls: int) -> Finding:
    soft, hard = descriptor_limits()
    need = descriptors_needed(calls)
    fact = f"{need} needed for {calls} calls a worker, limit {soft} (soft), {hard} (hard)"
    if hard < need:
        advice = f"raise it: LimitNOFILE={need} in the unit, or `ulimit -Hn {need}` as root"
        return bad("open files", fact, advice)
    return ok("open files", fact + ("; raised at start" if soft < need else ""))


def _buffers(calls: int) -> Finding:
    sizes = {name: _sysctl(f"net/core/{name}") for name in ("rmem_max", "wmem_max")}
    if None in sizes.values():
        return ok("udp buffers", "not shown here (a container); the host decides")
    fact = ", ".join(f"net.core.{name} {size}" for name, size in sizes.items())
    if calls >= MANY_CALLS and min(size for size in sizes.values() if size) < WANTED_BUFFER:
        keys = " ".join(f"net.core.{name}=4194304" for name in sizes)
        advice = f"what comes in a burst beyond it is lost: sysctl -w {keys}"
        return warn("udp buffers", fact, advice)
    return ok("udp buffers", fact)


def _sysctl(name: str) -> int | None:
    try:
        return int(Path("/proc/sys", name).read_text().split()[0])
    except (OSError, ValueError, IndexError):
        return None


def _clock() -> Finding:
    now = time.time()
    shown = time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime(now))
    if now < _OLDEST_SENSIBLE:
        return bad("clock", f"{shown} is in the past", "set it: certificates are judged by it")
    if not _synchronised():
        advice = "run chrony or systemd-timesyncd: records and certificates are judged by it"
        return warn("clock", f"{shown}, not kept by NTP", advice)
    return ok("clock", f"{shown}, kept by NTP")


def _synchronised() -> bool:
    """Whether NTP keeps the kernel's clock (adjtimex(2)); True where that cannot be asked."""
    try:
        adjtimex = ctypes.CDLL(None).adjtimex
    except (OSError, AttributeError):
        return True
    # struct timex is 208 bytes; all zero means "only tell".
    return int(adjtimex(ctypes.create_string_buffer(512))) != _TIME_ERROR


def _zone() -> Finding:
    local = datetime.now().astimezone()
    fact = f"{local.tzname()} ({local:%z}); logs and records are in UTC, routes name their own"
    return ok("time zone", fact)


PROBE_SECONDS = 30.0
"""A second on an idle machine; what takes longer hangs."""

_REBUILD = "`deploy/pjsua2/build.sh --rebuild` builds it anew"


def check_pjsua2(config: Config | None) -> Iterator[Finding]:
    """Start pjsua2 in a process of its own, and check its build and capacity.

    Args:
        config: settings to compare the capacity with; None for none.
    """
    try:
        done = subprocess.run(
            [sys.executable, "-m", "gateway.sip.library"],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=PROBE_SECONDS,
            check=False,
        )
    except subprocess.TimeoutExpired:
        yield bad("pjsua2", f"did not start within {PROBE_SECONDS:.0f} s", _REBUILD)
        return
    said = done.stdout.strip().splitlines()
    if done.returncode != 0 or not said:
        last = (done.stderr.strip().splitlines() or ["it said nothing"])[-1]
        yield bad("pjsua2", f"does not work (status {done.returncode}): {last}", _REBUILD)
        return
    yield from judge_probe(json.loads(said[-1]), config)


def judge_probe(found: Mapping[str, Any], config: Config | None) -> Iterator[Finding]:
    """Yield findings from the JSON object that ``gateway.sip.library`` prints."""
    build = found["build"]
    yield ok("pjsua2", f"{build['distribution']}, pjproject {build['version']}, {build['path']}")
    yield ok("tls", str(build["tls"]))
    yield _calls(int(found["capacity"]), None if config is None else config.sip.max_calls)
    if config is not None and len(config.trunk) > found["trunks"]:
        fact = f"no place for more than {found['trunks']}, and there are {len(config.trunk)}"
        yield bad("trunks", fact, "the gateway does not start like this")


def _calls(capacity: int, wanted: int | None) -> Finding:
    if wanted is None or capacity >= wanted:
        asked = "" if wanted is None else f", sip.max_calls is {wanted}"
        return ok("calls", f"carries {capacity} at a time{asked}")
    fact = f"carries {capacity} at a time, sip.max_calls is {wanted}: more get 503"
    return warn("calls", fact, "run more workers ([workers] count), or build for more calls")


_NOTE = "  note: "


def examine(path: Path) -> Iterator[Finding]:
    """Yield every finding about the configuration at ``path`` and this machine."""
    config: Config | None = None
    dialplan = Dialplan(())
    try:
        config, dialplan = load_all(path)
    except ConfigError as error:
        for problem in error.problems:
            yield bad("config", str(problem), "the gateway does not start like this")
    else:
        yield from _config_findings(path)
    yield from check_pjsua2(config)
    yield from check_machine(config)
    if config is not None:
        yield from _folders(config)
        yield from _database(config)
        yield from network.check_network(config, dialplan)
        yield from trunks.check_trunks(config)


def _config_findings(path: Path) -> Iterator[Finding]:
    """Return errors and notes of ``gateway check`` as findings."""
    status, said = check(path)
    if status:
        for line in said:
            yield bad("config", line, "calls to it get no session")
        return
    yield ok("config", f"{path} is good")
    for line in said:
        if line.startswith(_NOTE):
            yield warn("config", line.removeprefix(_NOTE), "right if it is meant so")


def _is_missing(path: Path) -> bool:
    """Return whether nothing is at a path; false where nobody may look."""
    try:
        path.stat()
    except OSError as error:
        return not isinstance(error, PermissionError)
    return False


def _folders(config: Config) -> Iterator[Finding]:
    """Check that the gateway can write its records, log file and control socket."""
    wanted = [
        ("records.folder", config.records.folder),
        ("recording.folder", config.recording.folder),
        ("log.file", config.log.file.parent if config.log.file else None),
        ("control.socket", config.control.socket.parent if config.control.socket else None),
    ]
    for key, folder in wanted:
        if folder is None:
            continue
        there = folder
        if key == "control.socket" and _is_missing(folder):
            advice = "make it, or have systemd do so (RuntimeDirectory=): the gateway does not"
            # Below /run it is there while the unit runs.
            verdict = warn if folder.is_relative_to("/run") else bad
            yield verdict(key, f"{folder} is not there", advice)
            continue
        while _is_missing(there):
            there = there.parent
        try:
            # A file that is gone at once: /proc and a full or read-only disk let root "write", too.
            tempfile.TemporaryFile(dir=there).close()
        except OSError as error:
            fact = f"{there} cannot be written by user {os.geteuid()}: {error.strerror}"
            yield bad(key, fact, f"chown or chmod it, or have {key} name another folder")
        else:
            yield ok(key, f"{folder} can be written")


def _database(config: Config) -> Iterator[Finding]:
    """Connect to the database of calls, where there is one; nothing is written."""
    if config.records.database_url is None:
        return
    database = Database(config.records.database_url, read_only=True)
    try:
        made = database.exists()
    except SQLAlchemyError as error:
        text = str(getattr(error, "orig", None) or error).strip().split("\n")[0]
        refused = config.shared.fail == "closed"
        then = ", and calls with a budget or a cap are refused" if refused else ""
        advice = f"until it works, rows wait{then}"
        yield bad("database", text, advice)
    else:
        yield ok("database", "can be read" if made else "has no tables yet; `run` makes them")
    finally:
        database.close()


SECONDS = 8.0
"""Length of a test call: RTCP has told of both directions by then."""


def examine_calls(
    path: Path, names: Sequence[str], number: str = "", seconds: float = SECONDS
) -> list[Finding]:
    """Check these trunks closely, with a test call where one is allowed.

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
    first = asyncio.run(_check_each_closely(config, wanted))
    calls: list[trunk_call.Wanted] = []
    for trunk, found in zip(wanted, first, strict=True):
        if any(one.verdict is Verdict.BAD for one in found):
            continue
        if any(one.code == "no_address" for one in found):
            continue
        uri, said = _test_call_uri(config, trunk, number)
        found += said
        if uri or trunk.registrar is not None:
            of = trunk_of(trunk, config.access.burst, config.sip.max_calls)
            calls.append(trunk_call.Wanted(of, uri, register=trunk.registrar is not None))
    if calls:
        seconds = min(seconds, config.outbound.max_call_duration)
        secrets = [value for one in wanted for value in one.headers.values()]
        evidence = trunk_call.examine(sip_settings(config), calls, seconds, secrets)
        for one in evidence:
            place = next(at for at, trunk in enumerate(wanted) if trunk.name == one.trunk.name)
            first[place] += trunk_findings.judge(one, config.place)
    return [one for found in first for one in found]


async def _check_each_closely(
    config: Config, wanted: Sequence[TrunkSettings]
) -> list[list[Finding]]:
    """Run :func:`.trunks.check_closely` for all these trunks at the same time."""
    return list(await asyncio.gather(*(trunks.check_closely(config, one) for one in wanted)))


def _test_call_uri(config: Config, trunk: TrunkSettings, number: str) -> tuple[str, list[Finding]]:
    """Return the URI of the test call, empty where none is allowed, and findings about that."""
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
