# SPDX-License-Identifier: GPL-2.0-or-later
"""SIPp as the other end, judged by its statistics: 3.6.1 can crash at its own end."""

from __future__ import annotations

import asyncio
import csv
import shutil
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.interop.lab import ports

SCENARIOS = Path(__file__).with_name("sipp")

need_sipp = pytest.mark.skipif(shutil.which("sipp") is None, reason="SIPp: apt install sip-tester")


@dataclass(frozen=True, slots=True)
class Result:
    """What SIPp counted."""

    successful: int
    failed: int
    retransmissions: int
    unexpected: str
    """Why calls failed, as SIPp logged it."""


async def sipp(
    scenario: str,
    gateway: tuple[str, int],
    user: str,
    folder: Path,
    *,
    calls: int = 1,
    at_a_time: int = 1,
    rate: float = 10,
    pause_ms: int = 200,
    within_s: int = 60,
) -> Result:
    """Run a scenario of ``sipp/`` and read its statistics; RTP that comes is echoed."""
    statistics, errors = folder / f"{scenario}.csv", folder / f"{scenario}.errors"
    for file in (statistics, errors):
        file.unlink(missing_ok=True)
    host, port = gateway
    process = await asyncio.create_subprocess_exec(
        "sipp", f"{host}:{port}", "-sf", str(SCENARIOS / f"{scenario}.xml"), "-s", user,
        "-i", "127.0.0.1", "-mp", str(_media_port()), "-m", str(calls), "-l", str(at_a_time),
        "-r", str(rate), "-d", str(pause_ms), "-timeout", str(within_s), "-rtp_echo",
        "-nostdin", "-trace_stat", "-stf", str(statistics), "-fd", "1",
        "-trace_err", "-error_file", str(errors),
        stdout=asyncio.subprocess.DEVNULL, stderr=asyncio.subprocess.DEVNULL, cwd=folder,
    )  # fmt: skip
    try:
        async with asyncio.timeout(within_s + 10):
            await process.wait()
    except TimeoutError:
        process.kill()
        await process.wait()
    with statistics.open(newline="") as lines:
        last = list(csv.DictReader(lines, delimiter=";"))[-1]
    return Result(
        successful=int(last["SuccessfulCall(C)"]),
        failed=int(last["FailedCall(C)"]),
        retransmissions=int(last["Retransmissions(C)"]),
        unexpected=errors.read_text()[:2000] if errors.exists() else "",
    )


def _media_port() -> int:
    """An even port with the next seven free: SIPp takes some of them for audio and video."""
    first = ports.free_port("127.0.0.1", 9)
    return first + first % 2
