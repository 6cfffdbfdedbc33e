# SPDX-License-Identifier: GPL-2.0-or-later
"""Whether pjsua2 works here, and carries what the configuration asks."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator, Mapping
from typing import Any

from gateway.config import Config
from gateway.devtools.doctor.finding import Finding, bad, ok, warn

PROBE_SECONDS = 30.0
"""A second on an idle machine; what takes longer hangs."""

_REBUILD = "`deploy/pjsua2/build.sh --rebuild` builds it anew"


def look(config: Config | None) -> Iterator[Finding]:
    """Ask pjsua2 in a process of its own; ``config`` None judges nothing against settings."""
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
    yield from judge(json.loads(said[-1]), config)


def judge(found: Mapping[str, Any], config: Config | None) -> Iterator[Finding]:
    """What the probe's answer means."""
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
