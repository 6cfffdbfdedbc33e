# SPDX-License-Identifier: GPL-2.0-or-later
"""What the page on operating and the units of systemd name is there."""

from __future__ import annotations

import re
import shutil
import subprocess
from configparser import RawConfigParser
from pathlib import Path

import click
import pytest

from gateway import cli
from gateway.app.supervisor import OWN_END_SECONDS
from gateway.call.call_record import CallRecord
from gateway.config import LimitSettings
from gateway.ending import EndReason

ROOT = Path(__file__).parents[3]
PAGE = (ROOT / "docs" / "operating.md").read_text(encoding="utf-8")
DEPLOYMENT = (ROOT / "docs" / "deployment.md").read_text(encoding="utf-8")
SOURCE = "\n".join(file.read_text(encoding="utf-8") for file in (ROOT / "gateway").rglob("*.py"))
UNITS = sorted((ROOT / "deploy" / "systemd").glob("gateway*.service"))


def first_column(header: str) -> list[str]:
    """The names in backticks that begin the rows of the table with this header."""
    table = PAGE.partition(f"| {header} |")[2].partition("\n\n")[0]
    rows = table.splitlines()[2:]
    assert rows, header
    return [name for row in rows for name in re.findall(r"`([^`]+)`", row.split("|")[1])]


def test_every_field_of_a_record_is_told() -> None:
    assert sorted(first_column("fields | what they are")) == sorted(CallRecord("c").as_json())


def test_every_event_of_the_log_table_is_logged() -> None:
    for event in first_column("event | level | meaning"):
        # The machine names its events without the "call." that the bridge puts before them.
        spellings = (f'"{event}"', f'"{event.removeprefix("call.")}"')
        assert any(spelling in SOURCE for spelling in spellings), event


LEVELLED = re.compile(r'log\.(?:info|warning|error)\(\s*"((?:call|realtime|tool|mcp)\.[a-z_]+)"')
NOTED = re.compile(r'note\(\s*now,\s*"([a-z_]+)",\s*"(?:warning|error)"')


def test_every_line_that_may_wake_somebody_is_in_the_table() -> None:
    told = set(first_column("event | level | meaning"))
    logged = set(LEVELLED.findall(SOURCE)) | {f"call.{name}" for name in NOTED.findall(SOURCE)}
    assert len(logged) > 25
    assert logged - told == set()


DIRECT = re.compile(r'log\.(debug|info|warning|error|exception)\(\s*"([a-z_]+\.[a-z_]+)"')
NOTE = re.compile(r'\bnote\(\s*[\w.()]+,\s*"([a-z_]+)"(?:,\s*"(debug|info|warning|error)")?')


def levels_of_source() -> dict[str, set[str]]:
    """The levels at which each event is logged where its name stands in the source."""
    levels: dict[str, set[str]] = {}
    for level, event in DIRECT.findall(SOURCE):
        levels.setdefault(event, set()).add(level.replace("exception", "error"))
    for name, level in NOTE.findall(SOURCE):
        levels.setdefault(f"call.{name}", set()).add(level or "debug")
    return levels


def test_every_level_of_the_log_table_is_that_of_its_event() -> None:
    found = levels_of_source()
    table = PAGE.partition("| event | level | meaning |")[2].partition("\n\n")[0]
    for row in table.splitlines()[2:]:
        _, events, told, *_ = row.split("|")
        names, levels = re.findall(r"`([^`]+)`", events), told.strip().split(", ")
        assert len(levels) in (1, len(names)), row
        for name, level in zip(
            names, levels * (len(names) if len(levels) == 1 else 1), strict=True
        ):
            if len(found.get(name, ())) == 1 and name not in CHOSEN:
                assert found[name] == {level}, name


CHOSEN = {"call.held", "call.muted", "call.approved", "call.error"}
"""Events whose name or level is chosen when they are logged."""


def test_every_why_of_the_page_is_one() -> None:
    told = set(first_column("why | cause, or where to look"))
    whys = {why.value for why in EndReason}
    assert told <= whys
    # What everybody understands who reads it.
    assert whys - told == {
        *(
            "remote_hangup",
            "cancelled",
            "agent_hangup",
            "transferred",
            "bridge_ended",
            "busy",
            "declined",
        ),
        *("no_answer", "no_such_number", "call_failed"),
    }


def test_every_subject_of_the_doctor_is_found() -> None:
    for subject in first_column("line | what is checked"):
        assert f'"{subject}"' in SOURCE, subject


def unit(file: Path) -> RawConfigParser:
    parser = RawConfigParser(strict=False)
    parser.optionxform = str  # type: ignore[assignment, method-assign]
    parser.read(file, encoding="utf-8")
    return parser


@pytest.mark.parametrize("file", UNITS, ids=lambda file: file.name)
def test_units_run_a_command_that_there_is(file: Path) -> None:
    service = unit(file)["Service"]
    program, name, *words = service["ExecStart"].split()
    assert program.endswith("/gateway")
    command = cli.main.get_command(click.Context(cli.main), name)
    assert command is not None
    words = ["0" if word == "%i" else word for word in words]
    context = command.make_context("gateway run", words, resilient_parsing=False)
    assert isinstance(context, click.Context)
    is_template = "@" in file.name
    assert context.params["worker"] == (0 if is_template else None)


@pytest.mark.parametrize("file", UNITS, ids=lambda file: file.name)
def test_units_leave_time_to_drain(file: Path) -> None:
    stop = float(unit(file)["Service"]["TimeoutStopSec"])
    assert stop > LimitSettings().drain_timeout + OWN_END_SECONDS


@pytest.mark.parametrize("file", UNITS, ids=lambda file: file.name)
def test_units_are_as_closed_as_the_page_says(file: Path) -> None:
    if shutil.which("systemd-analyze") is None:
        pytest.skip("without systemd-analyze: apt-get install systemd")
    told = re.search(r"`systemd-analyze security` (\d)\.(\d)", DEPLOYMENT)
    assert told is not None
    words = ("systemd-analyze", "security", "--offline=yes", f"--threshold={told[1]}{told[2]}")
    done = subprocess.run([*words, file], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-2000:]


@pytest.mark.parametrize("page", [PAGE, DEPLOYMENT], ids=["operating", "deployment"])
def test_links_lead_somewhere(page: str) -> None:
    for target in re.findall(r"\]\(([^)#]+)[^)]*\)", page):
        assert (ROOT / "docs" / target).exists(), target
