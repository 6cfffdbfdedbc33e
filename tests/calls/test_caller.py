# SPDX-License-Identifier: GPL-2.0-or-later
"""``gateway call`` against another SIP endpoint: what is played, heard, pressed, how it ends."""

from __future__ import annotations

import hashlib
import json
import signal
import subprocess
import sys
import wave
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests import support
from tests.support.forked import Forked
from tests.support.listening import MOST_OF_IT, share_heard
from tests.support.rtp_end import FRAME

PYTHON = sys.executable
CALL = "from gateway.cli.develop import test_call; test_call()"
CODECS = {"PCMU": "ulaw", "PCMA": "alaw"}
SECOND = 8000


def pattern(seed: int, seconds: float) -> bytes:
    """Bytes of no order; without 0x7f, u-law's other zero."""
    data = hashlib.shake_128(bytes([seed])).digest(int(seconds * SECOND))
    return data.replace(b"\x7f", b"\xff")


class Machine:
    """The answering machine's process."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        script = Path(support.__file__).with_name("answering_machine.py")
        self.process = subprocess.Popen(
            [PYTHON, str(script), str(folder)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        self.port = self.until("listening")["port"]

    def uri(self, user: str) -> str:
        return f"sip:{user}@127.0.0.1:{self.port}"

    def until(self, event: str) -> dict[str, Any]:
        """The next event of that kind; what comes before it is passed over."""
        return self.events_until(event)[-1]

    def events_until(self, event: str) -> list[dict[str, Any]]:
        assert self.process.stdout is not None
        seen: list[dict[str, Any]] = []
        for line in self.process.stdout:
            seen.append(json.loads(line))
            if seen[-1]["event"] == event:
                return seen
        raise AssertionError(f"no {event} after {seen}")

    def close(self) -> None:
        assert self.process.stdin is not None
        self.process.stdin.close()
        self.process.wait(15)


@pytest.fixture(scope="module")
def machines(tmp_path_factory: pytest.TempPathFactory) -> Iterator[list[Machine]]:
    """The one that runs; none once a test has failed, which may not have read all it says."""
    folder = tmp_path_factory.mktemp("machine")
    for ending in CODECS.values():
        (folder / f"play.{ending}").write_bytes(pattern(1, 3))
    running = [Machine(folder)]
    yield running
    for machine in running:
        machine.close()


@pytest.fixture
def machine(machines: list[Machine], request: pytest.FixtureRequest) -> Iterator[Machine]:
    before = request.session.testsfailed
    yield machines[0]
    if request.session.testsfailed > before:
        failed = machines.pop()
        failed.close()
        machines.append(Machine(failed.folder))


def call(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    return Forked.run("test-call", *arguments)


@pytest.mark.parametrize("codec", CODECS)
def test_what_is_played_and_heard_is_the_same_bytes(
    machine: Machine, tmp_path: Path, codec: str
) -> None:
    ending = CODECS[codec]
    played, heard = tmp_path / f"played.{ending}", tmp_path / f"heard.{ending}"
    both, report = tmp_path / "both.wav", tmp_path / "report.json"
    played.write_bytes(pattern(2, 3))
    result = call(
        machine.uri("answer"), "--play", played, "--record", heard, "--record-both", both,
        "--report", report, "--codec", codec, "--seconds", "3.5",
    )  # fmt: skip
    assert result.returncode == 0, result.stderr
    ended = machine.until("ended")
    assert (ended["method"], ended["code"]) == ("BYE", 200)
    assert share_heard(pattern(1, 3), heard.read_bytes()) > MOST_OF_IT
    assert (
        share_heard(pattern(2, 3), (machine.folder / f"heard.{ending}").read_bytes()) > MOST_OF_IT
    )
    told = json.loads(report.read_text())
    assert told["codec"] == codec
    assert told["lost_ticks"] == 0
    assert len(told["played"]) == 1
    assert told["played"][0]["to_ms"] - told["played"][0]["from_ms"] == 3000
    with wave.open(str(both)) as stereo:
        assert (stereo.getnchannels(), stereo.getframerate()) == (2, SECOND)
        assert stereo.getnframes() == len(heard.read_bytes())


def test_the_tracks_lie_on_one_clock(machine: Machine, tmp_path: Path) -> None:
    """An echo comes back after what RTP took, and at the same distance wherever it is measured."""
    played, report = tmp_path / "played.ulaw", tmp_path / "report.json"
    heard = tmp_path / "heard.ulaw"
    played.write_bytes(pattern(3, 1))
    result = call(
        machine.uri("echo"), "--play", played, "--record", heard, "--report", report,
        "--codec", "PCMU", "--seconds", "2.2",
    )  # fmt: skip
    assert result.returncode == 0, result.stderr
    machine.until("ended")
    said = json.loads(report.read_text())["played"][0]
    echo, back = heard.read_bytes(), pattern(3, 1)
    # A packet that came too late is not among these.
    found = {echo.find(back[at : at + FRAME]) - at for at in range(0, len(back), FRAME)}
    assert any(0 < at / 8 - said["from_ms"] < 1200 for at in found)


def test_digits_arrive_in_order_and_before_the_end(machine: Machine) -> None:
    result = call(machine.uri("echo"), "--dtmf", "4422#*", "--seconds", "0.1")
    assert result.returncode == 0, result.stderr
    events = machine.events_until("ended")
    assert "".join(e["digit"] for e in events if e["event"] == "dtmf") == "4422#*"


def test_refused(machine: Machine, tmp_path: Path) -> None:
    report = tmp_path / "report.json"
    result = call(machine.uri("486"), "--report", report)
    assert result.returncode == 3
    assert "refused: 486" in result.stderr
    assert json.loads(report.read_text())["end"]["code"] == 486
    machine.until("ended")


def test_no_answer_is_cancelled(machine: Machine) -> None:
    result = call(machine.uri("ring"), "--answer-within", "0.5")
    assert result.returncode == 4
    assert "no answer within 0.5 s" in result.stderr
    assert machine.until("ended")["method"] == "CANCEL"


def script(tmp_path: Path, text: str) -> Path:
    file = tmp_path / "script.toml"
    file.write_text(text)
    return file


def test_the_other_side_hangs_up_in_the_middle(machine: Machine, tmp_path: Path) -> None:
    steps = script(tmp_path, '[[step]]\ndo="wait_answer"\n[[step]]\ndo="wait"\nseconds=20.0\n')
    result = call(machine.uri("bye"), "--script", steps)
    assert result.returncode == 6
    assert "step 2 (wait 20 s): the call was hung up by the other side" in result.stderr
    machine.until("ended")


def test_an_expected_end_is_as_scripted(machine: Machine, tmp_path: Path) -> None:
    steps = script(tmp_path, '[[step]]\ndo="wait_answer"\n[[step]]\ndo="expect_end"\ncode=200\n')
    result = call(machine.uri("bye"), "--script", steps)
    assert result.returncode == 0, result.stderr
    machine.until("ended")


def test_a_missed_deadline_names_its_step(machine: Machine, tmp_path: Path) -> None:
    steps = script(tmp_path, '[[step]]\ndo="wait_answer"\n[[step]]\ndo="wait_speech"\nwithin=0.5\n')
    result = call(machine.uri("echo"), "--script", steps)
    assert result.returncode == 5
    assert "step 2 (wait_speech): its 0.5 s passed" in result.stderr
    assert machine.until("ended")["method"] == "BYE"


def test_ctrl_c_hangs_up(machine: Machine) -> None:
    command = [PYTHON, "-c", CALL, machine.uri("echo"), "--seconds", "60"]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
        machine.until("confirmed")
        process.send_signal(signal.SIGINT)
        assert machine.until("ended")["method"] == "BYE"
        assert process.wait(20) == 130


def test_several_calls_at_a_time(machine: Machine, tmp_path: Path) -> None:
    report = tmp_path / "report.json"
    result = call(
        machine.uri("echo"), "--seconds", "0.2", "--repeat", "6", "--parallel", "3",
        "--report", report, "--record", tmp_path / "heard.wav",
    )  # fmt: skip
    assert result.returncode == 0, result.stderr
    assert json.loads(report.read_text())["completed"] == 6
    assert len(list(tmp_path.glob("heard-*.wav"))) == 6
    for _ in range(6):
        machine.until("ended")
