# SPDX-License-Identifier: GPL-2.0-or-later
"""Event logs: what is written of a session, what is not, and how it reads."""

from __future__ import annotations

import asyncio
import base64
import hashlib
import json
import resource
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from gateway.cli import main
from gateway.devtools.event_lines import Entry, read_lines
from gateway.devtools.event_viewer import entries_of
from gateway.realtime.events import AudioDelta
from gateway.records import event_logs
from gateway.records.event_logs import EventLog, EventLogs, elided
from gateway.records.files import BackgroundWriter, append_to
from gateway.text import PrivateDigits
from tests.support.harness import eventually

SECRET = "sk-secret-4711"
AUDIO = bytes(range(160))
APPEND = json.dumps(
    {"type": "input_audio_buffer.append", "audio": base64.b64encode(AUDIO).decode()}
).encode()


def _digest(audio: bytes) -> dict[str, Any]:
    return {"bytes": len(audio), "sha256": hashlib.sha256(audio).hexdigest()[:16]}


def _log(folder: Path, use: Callable[[EventLog], None]) -> list[dict[str, Any]]:
    async def run() -> Path:
        writer = BackgroundWriter()
        logs = EventLogs(folder, writer, [SECRET])
        writer.start()
        made = logs.open("a/b@c", "2026-11-20T10:00:00.123+00:00", route="r")
        assert made is not None
        use(made)
        made.end()
        await writer.stop()
        return made.path

    path = asyncio.run(run())
    assert path.name == "20261120T100000123_a_b_c.events.jsonl"
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def test_audio_is_its_length_and_hash(tmp_path: Path) -> None:
    def use(made: EventLog) -> None:
        made.sent(APPEND)
        made.received(
            json.dumps(
                {
                    "type": " response.output_audio.delta",
                    "delta": base64.b64encode(AUDIO).decode(),
                    "item_id": "i",
                }
            ).encode()
        )
        made.closed(1000, "bye", True)

    lines = _log(tmp_path, use)
    assert [line["dir"] for line in lines] == ["meta", "out", "in", "close", "meta"]
    assert lines[0]["meta"]["call_id"] == "a/b@c"
    assert lines[1]["event"]["audio"] == _digest(AUDIO)
    assert lines[2]["event"] == {
        "type": " response.output_audio.delta",
        "delta": _digest(AUDIO),
        "item_id": "i",
    }
    assert lines[3]["close"] == {"code": 1000, "reason": "bye", "by_us": True}
    assert lines[4]["meta"] == {"dropped": 0, "over": True}
    assert all(line["t_ms"] >= 0 for line in lines)


@pytest.mark.parametrize(
    ("event", "left"),
    [
        ({"type": "response.output_audio_transcript.delta", "delta": "Hi"}, None),
        ({"type": "response.audio.delta", "delta": "AAAA"}, {"delta": 3}),
        ({"type": "x", "item": {"content": [{"type": "input_audio", "audio": "AAAA"}]}}, "nested"),
        ({"type": "x", "audio": {"input": {"format": 1}}}, None),
        ({"type": "x", "image_url": "data:image/png;base64,AAAA"}, "image"),
        ({"type": "x", "audio": "h\u00e9"}, {"audio": 3}),
        ({"type": "x", "audio": None, "delta": 5}, None),
    ],
)
def test_what_is_elided(event: dict[str, Any], left: Any) -> None:
    found = elided(event, str(event["type"]).endswith("audio.delta"))
    if left is None:
        assert found == event
    elif left == "nested":
        assert found["item"]["content"][0]["audio"]["bytes"] == 3
    elif left == "image":
        assert found["image_url"]["data"] == "data:image/png;base64"
        assert found["image_url"]["bytes"] == 3
    else:
        ((key, size),) = left.items()
        assert found[key]["bytes"] == size


def test_no_secret_is_written(tmp_path: Path) -> None:
    update = {
        "type": "session.update",
        "session": {
            "instructions": f"The key is {SECRET}.",
            "tools": [{"type": "mcp", "authorization": "tok", "headers": {"X-A": "b"}}],
        },
    }
    lines = _log(tmp_path, lambda made: made.sent(json.dumps(update).encode()))
    session = lines[1]["event"]["session"]
    assert session["instructions"] == "The key is ***."
    assert session["tools"] == [{"type": "mcp", "authorization": "***", "headers": "***"}]


def test_what_is_no_json_is_there_too(tmp_path: Path) -> None:
    lines = _log(tmp_path, lambda made: made.received(b"\xff{no"))
    assert lines[1]["not_json"]["bytes"] == 4
    assert lines[1]["dir"] == "in"


def test_a_message_that_cannot_be_formatted_costs_no_other(tmp_path: Path) -> None:
    class Defective(PrivateDigits):
        def masked_event(self, event: Mapping[str, Any]) -> Any:
            if event["type"] == "bad":
                raise ZeroDivisionError
            return event

    def use(made: EventLog) -> None:
        made.private = Defective()
        made.received(b'{"type": "first"}')
        made.sent(b'{"type": "bad"}')
        made.received(b'{"type": "last"}')

    lines = _log(tmp_path, use)
    assert [one.get("event", {}).get("type") for one in lines] == [None, "first", "last", None]


def test_a_full_queue_drops_with_a_count(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(event_logs, "MAX_WAITING", 4)

    def use(made: EventLog) -> None:
        for _ in range(10):
            made.sent(APPEND)
            made.flush()
        assert made.as_json()["dropped"] == 7

    lines = _log(tmp_path, use)
    assert len(lines) == 4, "the first of them says which call it is"


def _delta(audio: bytes, number: int, item: str = "i") -> tuple[bytes, AudioDelta]:
    event = {
        "type": "response.output_audio.delta",
        "event_id": f"event_{number}",
        "response_id": "r",
        "item_id": item,
        "content_index": 0,
        "delta": base64.b64encode(audio).decode(),
    }
    return json.dumps(event).encode(), AudioDelta("r", item, 0, audio)


def test_audio_of_a_second_is_one_line_each_way(tmp_path: Path) -> None:
    said = [bytes([number]) * 160 for number in range(5)]

    def use(made: EventLog) -> None:
        for number, audio in enumerate(said):
            made.sent(APPEND, AUDIO)
            made.received(*_delta(audio, number))
            if number == 2:
                made.received(b'{"type":"rate_limits.updated"}')
        made.received(b'{"type":"response.done"}')
        made.flush()
        made.sent(APPEND, AUDIO)

    meta, up, down, between, done, alone, _over = _log(tmp_path, use)
    assert up["event"] == {"type": "input_audio_buffer.append", "audio": _digest(AUDIO * 5)}
    assert down["event"]["delta"] == _digest(b"".join(said))
    assert (down["event"]["event_id"], down["event"]["item_id"]) == ("event_0", "i")
    assert [line.get("messages") for line in (up, down, between, done, alone)] == [
        *(5, 5),
        *(None, None, None),
    ]
    assert down["t_ms"] <= between["t_ms"] <= up["until_ms"]
    assert meta["t_ms"] <= up["t_ms"] <= down["t_ms"] <= up["until_ms"] <= down["until_ms"]
    assert down["until_ms"] <= done["t_ms"] <= alone["t_ms"]
    assert alone["event"]["audio"] == _digest(AUDIO)


def test_audio_of_two_items_is_two_lines(tmp_path: Path) -> None:
    def use(made: EventLog) -> None:
        for number, item in enumerate("aab"):
            made.received(*_delta(AUDIO, number, item))

    lines = _log(tmp_path, use)[1:-1]
    told = [(line["event"]["item_id"], line.get("messages", 1)) for line in lines]
    assert told == [("a", 2), ("b", 1)]


async def test_audio_is_written_while_nothing_else_happens(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(event_logs, "WRITE_SECONDS", 0.02)
    writer = BackgroundWriter()
    logs = EventLogs(tmp_path, writer)
    writer.start()
    try:
        made = logs.open("a", "2026")
        assert made is not None
        made.sent(APPEND, AUDIO)
        made.sent(APPEND, AUDIO)
        await eventually(
            lambda: made.path.exists() and '"messages":2' in made.path.read_text(), "the line"
        )
    finally:
        await writer.stop()


def test_audio_that_is_none_is_a_line_all_the_same(tmp_path: Path) -> None:
    odd = b'{"type":"input_audio_buffer.append","audio":"A"}'
    lines = _log(tmp_path, lambda made: made.sent(odd))
    assert lines[1]["event"]["audio"]["bytes"] == 1


def test_a_file_has_an_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(event_logs, "MAX_FILE_BYTES", 500)

    def use(made: EventLog) -> None:
        for _ in range(10):
            made.sent(APPEND)

    lines = _log(tmp_path, use)
    assert 2 < len(lines) < 7
    assert lines[-1]["dir"] == "meta"


def test_a_folder_that_is_gone_costs_no_call_anything(tmp_path: Path) -> None:
    async def run() -> EventLog:
        writer = BackgroundWriter()
        logs = EventLogs(tmp_path / "gone", writer)
        writer.start()
        made = logs.open("a", "2026")
        assert made is not None
        made.sent(APPEND)
        await writer.stop()
        made.sent(APPEND)
        made.end()
        return made

    assert asyncio.run(run()).dropped == 4


def test_a_disk_that_has_room_again_gets_whole_lines(tmp_path: Path) -> None:
    path = tmp_path / "f"
    append_to(path, "first\n")
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (10, hard))
    try:
        with pytest.raises(OSError, match="too large"):
            append_to(path, "second, which has no room\n")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    append_to(path, "third \ud800\n")
    assert path.read_text() == "first\nthird \\ud800\n"


def test_without_a_folder_there_is_no_log() -> None:
    async def run() -> EventLog | None:
        return EventLogs(None, BackgroundWriter()).open("a", "2026")

    assert asyncio.run(run()) is None


# ---- read as a conversation


def _write(file: Path, *lines: tuple[float, str, dict[str, Any]]) -> Path:
    def text(t_ms: float, direction: str, body: dict[str, Any]) -> str:
        key = "event" if direction in ("in", "out") else direction
        return json.dumps({"t_ms": t_ms, "dir": direction, key: body})

    file.write_text("\n".join(text(*line) for line in lines) + "\n", encoding="utf-8")
    return file


def _done(status: str, **response: Any) -> dict[str, Any]:
    return {"type": "response.done", "response": {"id": "r", "status": status, **response}}


CALL: list[tuple[float, str, dict[str, Any]]] = [
    (0, "meta", {"call_id": "c", "route": "r", "started_at": "t"}),
    (10, "in", {"type": "session.created", "session": {"id": "s", "model": "m"}}),
    (20, "out", {"type": "session.update", "session": {"instructions": "Be kind.", "tools": [1]}}),
    (
        30,
        "in",
        {
            "type": "session.updated",
            "session": {"audio": {"output": {"format": {"type": "audio/pcmu"}, "voice": "marin"}}},
        },
    ),
    (40, "out", {"type": "input_audio_buffer.append", "audio": {"bytes": 160}}),
    (60, "out", {"type": "input_audio_buffer.append", "audio": {"bytes": 160}}),
    (70, "in", {"type": "input_audio_buffer.speech_started", "audio_start_ms": 5}),
    (80, "in", {"type": "response.created", "response": {"id": "r"}}),
    (
        180,
        "in",
        {"type": "response.output_audio.delta", "response_id": "r", "delta": {"bytes": 8000}},
    ),
    (
        190,
        "in",
        {"type": "response.output_audio_transcript.done", "response_id": "r", "transcript": "Hi."},
    ),
    (
        200,
        "in",
        _done(
            "completed",
            output=[{"type": "function_call", "name": "look", "arguments": "{}"}],
            usage={"input_tokens": 5, "output_tokens": 7},
        ),
    ),
    (
        210,
        "out",
        {
            "type": "conversation.item.create",
            "item": {"type": "function_call_output", "call_id": "k", "output": "42"},
        },
    ),
    (
        220,
        "in",
        {
            "type": "conversation.item.input_audio_transcription.completed",
            "transcript": " Where? ",
        },
    ),
    (
        230,
        "out",
        {"type": "conversation.item.truncate", "item_id": "i", "audio_end_ms": 640},
    ),
    (240, "in", {"type": "error", "error": {"code": "bad", "message": "No.", "param": "x"}}),
    (250, "in", {"type": "brand.new"}),
    (260, "in", {"type": "response.created", "response": {"id": "r"}}),
    (
        270,
        "in",
        _done("failed", status_details={"error": {"code": "rate_limit_exceeded", "message": "m"}}),
    ),
    (280, "close", {"code": 1011, "reason": "oops", "by_us": False}),
    (290, "meta", {"dropped": 3, "over": True}),
]


def _told(file: Path) -> list[Entry]:
    return sorted(entries_of(read_lines(file)), key=lambda entry: entry.t_ms)


def test_a_conversation(tmp_path: Path) -> None:
    told = [(entry.who, entry.text) for entry in _told(_write(tmp_path / "f", *CALL))]
    assert told == [
        ("gateway", "call c"),
        ("server", "session.created"),
        ("gateway", "session.update"),
        ("server", "session.updated"),
        ("caller", "audio, 0.0 s"),
        ("caller", "begins to speak"),
        ("agent", "“Hi.”"),
        ("agent", "calls look({})"),
        ("server", "response completed"),
        ("gateway", "answers a tool: 42"),
        ("caller", "“Where?”"),
        ("gateway", "conversation.item.truncate"),
        ("error", "error bad: No."),
        ("server", "brand.new"),
        ("error", "response failed: rate_limit_exceeded m"),
        ("server", "closed by the server: 1011 oops"),
        ("error", "3 messages are not in this log"),
    ]
    details = {entry.text: entry.detail for entry in _told(tmp_path / "f")}
    assert details["“Hi.”"] == "1.0 s of audio in 1 parts, first 100 ms on"
    assert details["audio, 0.0 s"] == "2 messages"
    assert details["response completed"] == "5 tokens in, 7 out"
    assert details["conversation.item.truncate"] == "item_id i, audio_end_ms 640"


def _live(type_: str, **fields: Any) -> dict[str, Any]:
    return {"type": type_, **fields}


def _fragment(side: str, delta: str, start_ms: int) -> dict[str, Any]:
    where = {"start_ms": start_ms, "end_ms": start_ms + 200}
    return _live(f"session.{side}_transcript.delta", delta=delta, **where)


def _backend(type_: str, **fields: Any) -> dict[str, Any]:
    return _live("response.event", event={"type": type_, **fields}, delegation_id="dlg_1")


_G711 = {"format": {"type": "audio/pcma", "rate": 8000}, "output": {"voice": "cedar"}}
_CALLED = {"type": "function_call", "name": "book", "arguments": '{"nights": 2}', "call_id": "c"}
_RESULT = {"type": "function_call_output", "call_id": "c", "output": "booked"}
LIVE_CALL: list[tuple[float, str, dict[str, Any]]] = [
    (100, "out", _live("session.start", session={"model": "gpt-live-1.1", "audio": _G711})),
    (200, "in", _live("session.started", session={"id": "live_1", "audio": _G711})),
    (210, "out", _live("session.commentary.append", content="Good morning.", delegation_id=None)),
    (220, "out", _live("session.input_audio.append", audio={"bytes": 8000})),
    (230, "in", _live("session.output_audio.delta", delta={"bytes": 16000})),
    (240, "in", _live("session.commentary.appended", start_ms=0, end_ms=100)),
    (3000, "in", _fragment("output", "Good", 300)),
    (3200, "in", _fragment("output", " morning.", 500)),
    (3300, "in", _fragment("input", "Two nights.", 2000)),
    (
        3400,
        "in",
        _live("session.delegation.created", delegation={"id": "dlg_1", "target": "client"}),
    ),
    (3500, "in", _backend("response.created")),
    (3510, "in", _backend("response.output_item.done", item=_CALLED)),
    (3520, "in", _backend("response.completed", response={"usage": {"input_tokens": 9}})),
    (3600, "out", _live("response.item.create", item=_RESULT)),
    (3610, "out", _live("response.create")),
    (5000, "in", _fragment("output", " Done.", 4000)),
    (6000, "in", _live("session.usage.updated", usage={"seconds": 6})),
    (7000, "in", _live("session.closed", reason="expired", usage={"seconds": 7})),
    (7010, "close", {"code": 1005, "reason": "", "by_us": False}),
]


def test_a_live_conversation(tmp_path: Path) -> None:
    entries = _told(_write(tmp_path / "f", *LIVE_CALL))
    told = [(entry.t_ms, entry.who, entry.text) for entry in entries]
    assert told == [
        (100, "gateway", "session.start"),
        (200, "server", "session.started"),
        (210, "gateway", "asks to say “Good morning.”"),
        (500, "agent", "“Good morning.”"),
        (2200, "caller", "“Two nights.”"),
        (3400, "agent", "hands a task to the client"),
        (3510, "agent", 'calls book({"nights": 2})'),
        (3520, "server", "backend has answered"),
        (3600, "gateway", "answers a tool: booked"),
        (3610, "gateway", "asks for a response"),
        (4200, "agent", "“Done.”"),
        (6000, "server", "6 s so far"),
        (7000, "server", "audio: 1.0 s up, 2.0 s down"),
        (7000, "server", "session closed: expired"),
        (7010, "server", "closed by the server: 1005"),
    ]
    assert [entry.text for entry in entries if entry.trouble] == ["session closed: expired"]


def test_only_errors(tmp_path: Path) -> None:
    file = _write(tmp_path / "f", *CALL)
    result = CliRunner().invoke(main, ["events", "--errors", str(file)])
    assert result.exit_code == 0
    for words in ("error bad: No.", "rate_limit_exceeded", "1011 oops", "3 messages"):
        assert words in result.output
    assert "Hi." not in result.output
    raw = CliRunner().invoke(main, ["events", "--errors", "--raw", str(file)]).output
    assert [json.loads(line)["t_ms"] for line in raw.splitlines()] == [240, 270, 280, 290]


def test_a_log_that_a_crash_has_cut(tmp_path: Path) -> None:
    file = _write(tmp_path / "f", *CALL[:9])
    with file.open("a") as stream:
        stream.write('{"t_ms": 1')
    told = _told(file)
    assert told[-1].text == "response r has no end in this log"
    assert told[-1].trouble


@pytest.mark.parametrize("text", ["hello\n", "{}\n", '{"t_ms": 1, "dir": "up"}\n', "[]\n{}\n"])
def test_what_is_no_event_log_is_said(tmp_path: Path, text: str) -> None:
    file = tmp_path / "f"
    file.write_text(text)
    result = CliRunner().invoke(main, ["events", str(file)])
    assert result.exit_code == 2
    assert f"{file}:1: is no line of an event log" in result.output


def test_no_such_file(tmp_path: Path) -> None:
    result = CliRunner().invoke(main, ["events", str(tmp_path / "gone")])
    assert result.exit_code == 2
    assert "cannot be read" in result.output
