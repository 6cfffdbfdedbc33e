# SPDX-License-Identifier: GPL-2.0-or-later
"""``gateway demo`` as ``make demo`` and CI run it: without a terminal, in a folder of its own."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import wave
from pathlib import Path
from typing import Any

import pytest

COMMAND = [sys.executable, "-m", "gateway", "demo", "--output"]


def test_the_demo_goes_as_scripted_and_shows_it(tmp_path: Path) -> None:
    result = subprocess.run(
        [*COMMAND, str(tmp_path)],
        stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=100, check=False,
    )  # fmt: skip
    assert result.returncode == 0, result.stdout + result.stderr
    assert all(check["passed"] for check in json.loads((tmp_path / "checks.json").read_text()))
    assert "The call went as scripted." in result.stdout
    assert "✂ cut: heard" in result.stdout
    assert (tmp_path / "timeline.png").read_bytes().startswith(b"\x89PNG")
    with wave.open(str(tmp_path / "call.wav")) as recording:
        assert recording.getnchannels() == 2
        assert recording.getnframes() > 15 * 8000
    log = map(json.loads, (tmp_path / "gateway.log").read_text().splitlines())
    bad = [one for one in log if one["level"] in ("warning", "error") and not had_no_cpu(one)]
    assert not bad


def had_no_cpu(line: dict[str, Any]) -> bool:
    """Return whether the gateway stood still because a busy machine did not let it run."""
    stalled = line["event"] == "gateway.loop_stalled"
    return stalled and bool(line["cpu_seconds"] < line["seconds"] / 2)


@pytest.mark.parametrize("signals", [1, 2])
def test_an_interrupted_demo_leaves_no_process(tmp_path: Path, signals: int) -> None:
    with subprocess.Popen(
        [*COMMAND, str(tmp_path)], stdout=subprocess.PIPE, text=True, start_new_session=True
    ) as demo:
        assert demo.stdout is not None
        lines = []
        for line in demo.stdout:
            lines.append(line)
            if "listens to the greeting" in line:
                break
        children = _children(demo.pid)
        assert len(children) == 3, "".join(lines)
        demo.send_signal(signal.SIGINT)
        rest = ""
        if signals > 1:
            for line in demo.stdout:
                rest += line
                if "ends gateway and emulator" in line:
                    break
            demo.send_signal(signal.SIGTERM)
        rest += demo.stdout.read()
        assert demo.wait(40) == 130, rest
        assert "interrupted; every process has been ended" in rest
    assert [pid for pid in children if Path(f"/proc/{pid}").exists()] == []


def _children(pid: int) -> list[int]:
    text = Path(f"/proc/{pid}/task/{pid}/children").read_text()
    found = [int(child) for child in text.split()]
    assert os.getpid() not in found
    return found
