# SPDX-License-Identifier: GPL-2.0-or-later
"""``gateway demo --live``, as ``tests/calls/test_demo.py`` plays the other, of half a minute."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from gateway.devtools.event_lines import read_lines
from gateway.devtools.event_viewer import entries_of

pytestmark = [pytest.mark.interop, pytest.mark.timeout(150)]


def test_the_demo_on_a_live_session_goes_as_scripted(tmp_path: Path) -> None:
    result = subprocess.run(
        [sys.executable, "-m", "gateway", "demo", "--live", "--output", str(tmp_path)],
        stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=140, check=False,
    )  # fmt: skip
    assert result.returncode == 0, result.stdout + result.stderr
    assert all(check["passed"] for check in json.loads((tmp_path / "checks.json").read_text()))
    assert "The call went as scripted." in result.stdout
    assert "Good morning, reception." in result.stdout
    assert "s of Live sessions" in result.stdout
    assert (tmp_path / "timeline.png").read_bytes().startswith(b"\x89PNG")
    log = [json.loads(line) for line in (tmp_path / "gateway.log").read_text().splitlines()]
    bad = {one["event"] for one in log if one["level"] in ("warning", "error")}
    bad -= {"gateway.loop_stalled"}  # a busy machine may not let it run
    assert bad == {"cost.unknown_model"}, "the backend's model has no price"
    assert "agent_hangup" in str(log)
    (events,) = (tmp_path / "records").glob("*.events.jsonl")
    told = [(entry.who, entry.text, entry.trouble) for entry in entries_of(read_lines(events))]
    assert ("gateway", "asks to say “Good morning, reception. How can I help?”", False) in told
    assert ("agent", "“You pressed 4, 2.”", False) in told
    assert not [text for _, text, trouble in told if trouble]
