# SPDX-License-Identifier: GPL-2.0-or-later
"""What the pjsua2 of ``deploy/pjsua2`` promises."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

SMOKE = Path(__file__).resolve().parents[2] / "deploy" / "pjsua2" / "smoke.py"


@pytest.fixture(scope="module")
def found() -> dict[str, Any]:
    """What the smoke test says, in a process of its own: there is one endpoint a process."""
    done = subprocess.run(
        [sys.executable, SMOKE, "--json"], capture_output=True, text=True, check=False, timeout=60
    )
    assert done.returncode == 0, done.stdout + done.stderr
    # pjlib may have something to say on a busy machine, on the same output.
    (told,) = (line for line in done.stdout.splitlines() if line.startswith("{"))
    result: dict[str, Any] = json.loads(told)
    return result


def test_calls_itself_with_audio_both_ways(found: dict[str, Any]) -> None:
    assert found["call"] == "audio both ways"


def test_carries_a_thousand_calls_and_their_ports(found: dict[str, Any]) -> None:
    assert found["max_calls"] >= 1000
    assert found["max_media_ports"] >= 2 * found["max_calls"]


def test_says_of_itself_what_it_is(found: dict[str, Any]) -> None:
    import pjsua2

    build = pjsua2.BUILD
    assert build["version"] == found["version"] == pjsua2.__version__
    assert build["max_calls"] == found["max_calls"]
    assert build["max_sockets"] >= 2 * build["max_calls"]
    assert tuple(int(part) for part in found["version"].split(".")[:2]) >= (2, 17)


def test_has_no_other_codecs(found: dict[str, Any]) -> None:
    assert sorted(found["codecs"]) == ["G722/16000/1", "PCMA/8000/1", "PCMU/8000/1"]


def test_offers_no_text_unless_asked() -> None:
    import pjsua2

    setting = pjsua2.CallSetting(True)
    assert (setting.audioCount, setting.videoCount, setting.textCount) == (1, 0, 0)


def test_uses_the_systems_openssl(found: dict[str, Any]) -> None:
    assert int(found["tls"].split()[1].split(".")[0]) >= 3
