"""Which pjsua2 the gateway would run on, and whether it does what the configuration asks."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator, Mapping
from typing import Any

from gateway.config import Config
from gateway.doctor.finding import Finding, bad, ok, warn

PROBE_SECONDS = 30.0
"""A second on an idle machine; what takes longer hangs."""

_REBUILD = "`make pjsua2` builds one for a thousand calls, with the system's OpenSSL"


def look(config: Config | None) -> Iterator[Finding]:
    """Ask pjsua2 in a process of its own; ``config`` None judges nothing against settings."""
    try:
        done = subprocess.run(
            [sys.executable, "-m", "gateway.sip.probe"],
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
    yield from judge(json.loads(said[-1]), config)


def judge(found: Mapping[str, Any], config: Config | None) -> Iterator[Finding]:
    """What the probe's answer means."""
    build = found["build"]
    yield ok("pjsua2", f"{build['distribution']}, pjproject {build['version']}, {build['path']}")
    yield _calls(int(found["capacity"]), None if config is None else config.sip.max_calls)
    yield _frames(bool(found["native_port"]), str(build["frame_access"]))
    yield _tls(str(build["tls"]))
    missing = [law for law in ("PCMU", "PCMA") if not _has(found["codecs"], law)]
    if missing:
        yield bad("codecs", f"{', '.join(missing)} left out when it was built", _REBUILD)
    if config is not None:
        yield from _unmet(build, config)


def _calls(capacity: int, wanted: int | None) -> Finding:
    if wanted is None or capacity >= wanted:
        asked = "" if wanted is None else f", sip.max_calls is {wanted}"
        return ok("calls", f"carries {capacity} at a time{asked}")
    fact = f"carries {capacity} at a time, sip.max_calls is {wanted}: more get 503"
    return warn("calls", fact, _REBUILD)


def _frames(native_port: bool, access: str) -> Finding:
    if native_port:
        return ok("audio", "frames move in C++ (native port); Python is not asked for each")
    if access == "byte by byte":
        return warn(
            "audio", "frames are copied byte by byte: a call costs much of a core", _REBUILD
        )
    return ok("audio", f"frames go through Python ({access})")


def _tls(library: str) -> Finding:
    if library == "none":
        return warn("tls", "pjsua2 was built without: no tls: listener, no SRTP by DTLS", _REBUILD)
    if library.startswith(("OpenSSL 0.", "OpenSSL 1.")):
        fact = f"{library}: no longer maintained; do not open a tls: listener to the world with it"
        return warn("tls", fact, _REBUILD)
    return ok("tls", library)


def _has(codecs: list[str], law: str) -> bool:
    return any(name.startswith(f"{law}/8000") for name in codecs)


def _unmet(build: Mapping[str, Any], config: Config) -> Iterator[Finding]:
    # Only now: these import pjsua2, which the probe has just done without harm.
    from gateway.planning import sip_settings
    from gateway.sip.library import Build
    from gateway.sip.needs import unmet

    fields = {**build, "keying": tuple(build.get("keying", ()))}
    for line in unmet(sip_settings(config), Build(**fields)):
        yield bad("pjsua2", line, "the gateway does not start like this")
