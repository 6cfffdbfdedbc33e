# SPDX-License-Identifier: GPL-2.0-or-later
"""The log: one form for every line, no secret in any, and no exception out of it."""

from __future__ import annotations

import json
import logging
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import structlog
from hypothesis import given
from hypothesis import strategies as st

from gateway.log import BLANK, WAITING_LINES, Redactor, Sink, set_up_logging

LONG_KEY = "sk-proj-" + "".join(f"{i:03d}xYz" for i in range(30))
"""As long as the service's real ones, which some renderers shorten."""
ODD_KEY = "p\"a\\s/s wörd's"


@dataclass
class _Endpoint:
    url: str
    api_key: str


@pytest.fixture(autouse=True)
def _restore() -> Iterator[None]:
    before, handlers = structlog.get_config(), logging.root.handlers[:]
    level = logging.root.level
    yield
    structlog.configure(**before)
    logging.root.handlers[:] = handlers
    logging.root.setLevel(level)


def _fail_with(key: str) -> None:
    headers = {"Authorization": f"Bearer {key}"}
    endpoint = _Endpoint("wss://host", key)
    try:
        raise ValueError(f"refused for {headers}")
    except ValueError as error:
        error.add_note(f"sent by {endpoint}")
        raise RuntimeError(f"cannot connect with {key}") from error


def _log_everything(key: str) -> None:
    log = structlog.get_logger("test").bind(bound=key)
    log.info(f"event.{key}", plain=key, inside=f"x{key}y", nested={"a": [{"b": (key, {key})}]})
    log.info("objects", endpoint=_Endpoint("u", key), error=ValueError(key), raw=key.encode())
    log.info("keys", headers={key: 1}, path=Path("/") / key.replace("/", "_"))
    try:
        _fail_with(key)
    except RuntimeError:
        log.exception("raised", key=key)
        logging.getLogger("websockets").exception("raised with %s", key)
    logging.getLogger("asyncio").warning("never retrieved: %r", _Endpoint("u", key))


@pytest.mark.parametrize("form", ["json", "console"])
@pytest.mark.parametrize("key", [LONG_KEY, ODD_KEY, "abcd"])
def test_no_secret_at_any_depth_nor_in_tracebacks(tmp_path: Path, form: str, key: str) -> None:
    file = tmp_path / "gateway.log"
    set_up_logging(form, "debug", file, [key, "another-secret"])
    _log_everything(key)
    text = file.read_text(encoding="utf-8")
    assert text.count(BLANK) >= 12
    assert key not in text
    if key is LONG_KEY:
        # Nor a piece of it that a renderer shortened.
        assert not any(key[i : i + 12] in text for i in range(len(key) - 12))
    if form == "json":
        lines = [json.loads(line) for line in text.splitlines()]
        assert not any(key in str(line) for line in lines)
        assert [line["event"] for line in lines][:4] == [
            f"event.{BLANK}",
            "objects",
            "keys",
            "raised",
        ]


def test_tracebacks_are_there_without_local_variables(tmp_path: Path) -> None:
    file = tmp_path / "gateway.log"
    set_up_logging("json", "info", file, [])
    try:
        _fail_with("local-value")
    except RuntimeError:
        structlog.get_logger().exception("raised")
    line = json.loads(file.read_text())
    trace = line["exception"][0]
    assert trace["exc_type"] == "RuntimeError"
    assert trace["frames"][-1]["name"] == "_fail_with"
    assert not any(frame.get("locals") for chain in line["exception"] for frame in chain["frames"])


def test_lines_of_the_standard_library_have_the_same_form(tmp_path: Path) -> None:
    file = tmp_path / "gateway.log"
    set_up_logging("json", "info", file, [])
    structlog.get_logger().info("ours", call="c")
    logging.getLogger("asyncio").warning("theirs %d", 7)
    logging.getLogger("asyncio").info("of no interest")
    ours, theirs = (json.loads(line) for line in file.read_text().splitlines())
    assert (ours["event"], ours["level"], ours["call"]) == ("ours", "info", "c")
    assert (theirs["event"], theirs["level"]) == ("theirs 7", "warning")
    assert theirs["logger"] == "asyncio"
    assert ours["timestamp"][:4].isdigit()
    assert theirs["timestamp"] >= ours["timestamp"]


@pytest.mark.parametrize(("level", "seen"), [("debug", 3), ("info", 2), ("warning", 1)])
def test_level_is_a_threshold(tmp_path: Path, level: str, seen: int) -> None:
    file = tmp_path / "gateway.log"
    set_up_logging("console", level, file, [])
    log = structlog.get_logger()
    log.debug("one")
    log.info("two")
    log.warning("three")
    assert len(file.read_text().splitlines()) == seen


class _Full:
    """A text stream whose disk is full for the first ``failures`` writes."""

    def __init__(self, failures: int, error: Exception) -> None:
        self.written: list[str] = []
        self._failures = failures
        self._error = error

    def write(self, text: str) -> None:
        if self._failures > 0:
            self._failures -= 1
            raise self._error
        self.written.append(text)

    def flush(self) -> None:
        pass


@pytest.mark.parametrize(
    "error", [OSError(28, "No space left on device"), BrokenPipeError(), ValueError("closed file")]
)
def test_a_log_that_cannot_be_written_loses_lines_and_counts_them(error: Exception) -> None:
    stream: Any = _Full(2, error)
    sink = Sink(stream)
    for number in range(5):
        sink.info(f"line {number}")
    assert sink.lost == 2
    assert stream.written == ["line 2\n", "line 3\n", "line 4\n"]


def test_a_writer_that_hangs_holds_nobody_up() -> None:
    """Lines wait, bounded and in order; the close writes them once the stream takes them again."""
    goes_on = threading.Event()
    written: list[str] = []

    class Hanging(_Full):
        def write(self, text: str) -> None:
            assert goes_on.wait(20)
            written.append(text)

    stream: Any = Hanging(0, OSError())
    sink = Sink(stream)
    sink.write_behind()
    for number in range(WAITING_LINES + 100):
        sink.info(str(number))
    assert 98 <= sink.lost <= 100  # one or two are with the writer already
    goes_on.set()
    sink.close()
    assert written == [f"{number}\n" for number in range(len(written))]
    assert len(written) + sink.lost == WAITING_LINES + 100
    sink.info("late")
    assert written[-1] == "late\n"


def test_a_message_that_cannot_be_formatted_is_counted(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    sink = set_up_logging("json", "info", tmp_path / "gateway.log", [])
    logging.getLogger("websockets").warning("%d", "no number, but a secret")
    assert sink.lost == 1
    assert capsys.readouterr().err == ""


def test_a_bad_file_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="nowhere"):
        set_up_logging("json", "info", tmp_path / "nowhere" / "x.log", [])


def test_of_a_probe_only_trouble_is_written(tmp_path: Path) -> None:
    file = tmp_path / "log"
    set_up_logging("json", "info", file)
    with structlog.contextvars.bound_contextvars(probe=True):
        structlog.get_logger("test").info("session.connecting")
        structlog.get_logger("test").warning("session.setup_failed")
    structlog.get_logger("test").info("realtime.healthy")
    lines = [json.loads(line) for line in file.read_text().splitlines()]
    assert [line["event"] for line in lines] == ["session.setup_failed", "realtime.healthy"]
    assert lines[0]["probe"] is True


def test_text_that_utf8_cannot_hold_is_written_escaped(tmp_path: Path) -> None:
    file = tmp_path / "gateway.log"
    sink = set_up_logging("console", "info", file, [])
    structlog.get_logger().info("from_the_wire", header="a\ud800b")
    assert "from_the_wire" in file.read_text()
    assert sink.lost == 0


_SECRETS = st.text(min_size=8, max_size=60)


@given(_SECRETS, st.text(), st.text())
def test_any_secret_in_any_json_value_is_blanked(secret: str, before: str, after: str) -> None:
    redact = Redactor([secret])
    line = json.dumps({"event": "e", "value": before + "|" + secret + "|" + after})
    redacted = redact(None, "info", line)
    assert json.dumps(secret)[1:-1] not in redacted
    assert BLANK in redacted


def test_short_secrets_and_none_blank_nothing() -> None:
    assert Redactor([])(None, "info", "abc") == "abc"
    assert Redactor(["", "abc"])(None, "info", "abc") == "abc"


def test_the_longer_of_two_secrets_goes_first() -> None:
    assert Redactor(["secret", "secret-two"])(None, "info", "x secret-two y") == f"x {BLANK} y"


def test_people_see_a_summary_without_what_is_empty_or_twice(tmp_path: Path) -> None:
    file = tmp_path / "log"
    set_up_logging("console", "info", file, [])
    log = structlog.get_logger("call").bind(call="c1", session="s1")
    log.info("call.summary", session_id="s1", tools=[], underruns=0, codec="PCMA")
    log.info("other", session_id="s1", tools=[])
    summary, other = file.read_text().splitlines()
    assert "codec=PCMA" in summary
    assert not any(word in summary for word in ("session_id", "tools", "underruns"))
    assert "session_id=s1" in other
    assert "tools=[]" in other


def test_the_log_goes_on_in_a_new_file_when_it_was_moved_away(tmp_path: Path) -> None:
    file = tmp_path / "gateway.log"
    sink = set_up_logging("json", "info", file)
    try:
        structlog.get_logger("gateway").info("before")
        file.rename(tmp_path / "gateway.log.1")
        structlog.get_logger("gateway").info("meanwhile")
        sink.reopen()
        structlog.get_logger("gateway").info("after")
    finally:
        sink.close()
    moved = (tmp_path / "gateway.log.1").read_text()
    assert [json.loads(line)["event"] for line in moved.splitlines()] == ["before", "meanwhile"]
    assert [json.loads(line)["event"] for line in file.read_text().splitlines()] == ["after"]
