# SPDX-License-Identifier: GPL-2.0-or-later
"""The timeline of a call: what the text says and that the picture shows something."""

from __future__ import annotations

import json
import struct
import wave
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner
from rich.console import Console

from gateway.cli.develop import timeline as command
from gateway.devtools.timeline import (
    Record,
    RecordError,
    began_speaking,
    read_record,
    read_sound,
    replies,
    story_of,
)
from gateway.devtools.timeline.as_text import cost_words, render
from gateway.devtools.timeline.picture import draw


def sample(**changes: Any) -> dict[str, Any]:
    """A call that was greeted, asked, interrupted the answer after 1,240 ms, pressed keys."""
    record: dict[str, Any] = {
        "call_id": "a84b4c76e66710",
        "session_id": "sess_1",
        "route": "reception",
        "from": "sip:alice@192.0.2.7",
        "to": "sip:100@192.0.2.1:5060",
        "codec": "PCMU",
        "started_at": "2026-01-02T03:04:05.678+00:00",
        "times_ms": {"ringing": 1, "session": 80, "answered": 82, "confirmed": 90,
                     "first_audio": 300, "end": 12_000},
        "talk_ms": 11_910,
        "interruptions": [{"at_ms": 6240, "trigger": "speech", "item_id": "b", "played_ms": 1240,
                           "received_ms": 6300, "action": "truncate", "flushed_ms": 5060}],
        "digits": [{"at_ms": 8500, "digits": "42", "ended_by": "terminator"}],
        "underruns": 0,
        "ending": {"by": "caller", "why": "remote_hangup", "sip_code": 200, "reason": ""},
        "key_of_a_newer_gateway": 1,
        "timeline": [
            {"t_ms": 0, "event": "invite"},
            {"t_ms": 300, "event": "agent_speech_started", "item_id": "a"},
            {"t_ms": 400, "event": "agent_transcript", "item_id": "a", "text": "Good morning."},
            {"t_ms": 2300, "event": "agent_speech_stopped", "cut": False},
            {"t_ms": 3000, "event": "caller_speech_started", "audio_ms": 2700},
            {"t_ms": 4380, "event": "caller_speech_stopped"},
            {"t_ms": 5000, "event": "agent_speech_started", "item_id": "b"},
            {"t_ms": 5100, "event": "agent_transcript", "item_id": "b",
             "text": "One two three four five six seven eight nine ten."},
            {"t_ms": 6240, "event": "caller_speech_started", "audio_ms": 6000},
            {"t_ms": 6240, "event": "agent_speech_stopped", "cut": True},
            {"t_ms": 6240, "event": "interruption", "trigger": "speech", "item_id": "b",
             "played_ms": 1240, "received_ms": 6300, "action": "truncate"},
            {"t_ms": 6250, "event": "truncated", "item_id": "b", "audio_end_ms": 1240},
            {"t_ms": 7000, "event": "caller_speech_stopped"},
            {"t_ms": 8000, "event": "dtmf", "digit": "4"},
            {"t_ms": 8200, "event": "dtmf", "digit": "2"},
            {"t_ms": 8500, "event": "dtmf_collected", "digits": "42", "ended_by": "terminator"},
            {"t_ms": 8600, "event": "error", "code": "odd", "message": "[red]nothing[/]"},
            {"t_ms": 9000, "event": "agent_speech_started", "item_id": "c"},
            {"t_ms": 12_000, "event": "end", "by": "caller", "why": "remote_hangup"},
        ],
    }  # fmt: skip
    return {**record, **changes}


def record_of(**changes: Any) -> Record:
    return Record.model_validate(sample(**changes))


def text_of(record: Record, width: int = 160) -> str:
    console = Console(width=width, record=True, file=open("/dev/null", "w"))  # noqa: PTH123, SIM115
    console.print(render(story_of(record)))
    return console.export_text()


def test_the_text_says_what_happened() -> None:
    text = text_of(record_of())
    for said in (
        "alice → 100",
        "“Good morning.”",
        "620 ms after the caller's turn",
        "heard 1,240 of 6,300 ms, 5,060 ms dropped; truncated at 1,240 ms",
        "One two ✂ three",
        "digits 42 to the model (terminator)",
        "500 ms after the digits 42",
        "error odd: [red]nothing[/]",
        "ends the call: caller, remote hangup (200)",
        "answered 82 ms after the INVITE, first agent audio after 300 ms",
    ):
        assert said in text, said
    times = [line.split()[0] for line in text.splitlines() if line.strip()[:2] == "0:"]
    assert times == sorted(times)


def test_the_text_says_what_became_of_tools() -> None:
    more = [
        {"t_ms": 9000, "event": "approval", "name": "refund", "by": "http"},
        {"t_ms": 9100, "event": "not_approved", "name": "refund", "by": "operator"},
        {"t_ms": 9200, "event": "tool_done", "name": "price", "outcome": "failed"},
        {"t_ms": 9300, "event": "tool_refused", "name": "book", "reason": "no such room"},
        {"t_ms": 9400, "event": "tool_late", "name": "slow"},
        {"t_ms": 9500, "event": "mcp_call", "name": "crm_find", "outcome": "done"},
    ]
    said = text_of(record_of(timeline=[*sample()["timeline"], *more]))
    for words in (
        "http decides about refund",
        "refund: operator says no",
        "tool price: failed",
        "tool book: no such room",
        "tool slow: no result in time",
        "tool crm_find: done",
    ):
        assert words in said, said


def test_turns_and_delays() -> None:
    story = story_of(record_of())
    assert [(turn.item_id, turn.from_ms, turn.to_ms) for turn in story.agent] == [
        ("a", 300, 2300),
        ("b", 5000, 6240),
        ("c", 9000, 12_000),
    ]
    assert [turn.after_ms for turn in story.agent] == [None, 620, 500]
    assert [(turn.from_ms, turn.to_ms, turn.open) for turn in story.caller] == [
        (3000, 4380, False),
        (6240, 7000, False),
    ]


def test_what_two_sessions_call_the_same_is_told_apart(tmp_path: Path) -> None:
    """Servers may use ids again in each session, and Live sessions always have the same."""
    marks = [
        {"t_ms": 300, "event": "agent_speech_started", "item_id": "a"},
        {"t_ms": 400, "event": "agent_transcript", "item_id": "a", "text": "Good morning."},
        {"t_ms": 1000, "event": "session_lost", "why": "session_lost"},
        {"t_ms": 2300, "event": "agent_speech_stopped", "cut": False},
        {"t_ms": 2500, "event": "caller_speech_started"},
        {"t_ms": 4380, "event": "caller_speech_stopped"},
        {"t_ms": 5000, "event": "agent_speech_started", "item_id": "a"},
        {"t_ms": 5100, "event": "agent_transcript", "item_id": "a", "text": "We are closed."},
        {"t_ms": 6240, "event": "agent_speech_stopped", "cut": True},
    ]
    cut = {**sample()["interruptions"][0], "item_id": "a"}
    recording(tmp_path / "c.wav")
    story = story_of(record_of(timeline=marks, interruptions=[cut]))
    assert [(turn.text, turn.to_ms) for turn in story.agent] == [
        ("Good morning.", 2300),
        ("We are closed.", 6240),
    ]
    assert [turn.interruption is not None for turn in story.agent] == [False, True]
    console = Console(width=160, record=True, file=open("/dev/null", "w"))  # noqa: PTH123, SIM115
    console.print(render(story, read_sound(tmp_path / "c.wav", 0.0)))
    assert console.export_text().count("after the caller's last sound") == 1
    caught = {"at_ms": 1500, "action": "none", "item_id": "a", "trigger": "speech"}
    story = story_of(record_of(timeline=marks, interruptions=[{**cut, **caught}]))
    assert [turn.interruption is not None for turn in story.agent] == [True, False]


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"timeline": [], "times_ms": {}, "interruptions": [], "digits": [], "ending": None},
        {"ending": {"by": "gateway", "why": "no_route", "sip_code": 404, "reason": ""}},
        {"interruptions": [{"at_ms": 6240, "trigger": "digit", "item_id": "b", "played_ms": 0,
                            "received_ms": 6300, "action": "delete", "flushed_ms": 6300}]},
        {"interruptions": [{"at_ms": 100, "trigger": "speech", "item_id": "", "played_ms": 0,
                            "received_ms": 0, "action": "none", "flushed_ms": 0}]},
        {"times_ms": {"answered": 5, "end": 190_000}},
    ],
    ids=["whole", "empty", "refused", "deleted", "nothing to cut", "three minutes"],
)  # fmt: skip
def test_every_call_has_a_text_and_a_picture(tmp_path: Path, changes: dict[str, Any]) -> None:
    record = record_of(**changes)
    assert text_of(record, width=80).strip()
    draw(story_of(record), tmp_path / "t.png")
    width, height = size_of(tmp_path / "t.png")
    assert width == 2400
    assert 500 < height < 6000


def size_of(png: Path) -> tuple[int, int]:
    data = png.read_bytes()
    assert data.startswith(b"\x89PNG")
    width, height = struct.unpack(">II", data[16:24])
    return width, height


def recording(file: Path) -> None:
    """The sample's sound: caller on the left until 4,000 ms and from 6,100; answer from 5,040."""
    both = np.zeros((12_000 * 8, 2), dtype="<i2")
    for channel, first, last in ((1, 340, 2340), (0, 2700, 4000), (1, 5040, 6300), (0, 6100, 6700)):
        noise = np.random.default_rng(1).integers(-9000, 9000, (last - first) * 8)
        both[first * 8 : last * 8, channel] = noise
    with wave.open(str(file), "wb") as out:
        out.setnchannels(2)
        out.setsampwidth(2)
        out.setframerate(8000)
        out.writeframes(both.tobytes())


def test_the_recording_tells_what_the_caller_felt(tmp_path: Path) -> None:
    recording(tmp_path / "c.wav")
    sound = read_sound(tmp_path / "c.wav", 0.0)
    (reply,) = replies(story_of(record_of()), sound)
    assert (reply.turn.item_id, round(reply.delay_ms)) == ("b", 1040)
    assert began_speaking(sound, 6240.0) == 6100
    assert began_speaking(sound, 9000.0) is None


def test_the_command_shows_a_record_with_picture_and_sound(tmp_path: Path) -> None:
    recording(tmp_path / "c.wav")
    (tmp_path / "r.json").write_text(json.dumps(sample()))
    arguments = ["r.json", "--png", "t.png", "--wav", "c.wav", "--wav-at", "0"]
    arguments = [str(tmp_path / a) if "." in a else a for a in arguments]
    result = CliRunner().invoke(command, arguments, env={"COLUMNS": "220"})
    assert result.exit_code == 0, result.output
    assert "1,040 ms after the caller's last sound" in result.output
    assert "140 ms after the first sound" in result.output
    assert size_of(tmp_path / "t.png")[0] == 2400


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ("{", "Invalid JSON"),
        ("[]", "object"),
        ("{}", "call_id: Field required"),
        ('{"call_id": "x", "timeline": [{"t_ms": "soon", "event": "end"}]}', "timeline.0.t_ms"),
    ],
)
def test_a_file_that_is_no_record_is_named(tmp_path: Path, content: str, says: str) -> None:
    file = tmp_path / "r.json"
    file.write_text(content)
    with pytest.raises(RecordError, match=r"r\.json") as caught:
        read_record(file)
    assert says in str(caught.value)
    result = CliRunner().invoke(command, [str(file)])
    assert result.exit_code == 2


def test_lines_of_anything_else_are_no_record(tmp_path: Path) -> None:
    file = tmp_path / "incident.jsonl"
    file.write_text('{"a": 1}\n{"b": 2}\n')
    with pytest.raises(RecordError, match="nor a black box"):
        read_record(file)


def test_what_the_gateway_did_is_in_words() -> None:
    timeline = [
        {"t_ms": 0, "event": "invite"},
        {"t_ms": 2, "event": "data", "ms": 2, "failed": "no answer within 2 s"},
        {"t_ms": 10, "event": "agent_speech_started", "item_id": "a"},
        {"t_ms": 20, "event": "agent_transcript", "item_id": "a", "text": "Take two"},
        {
            "t_ms": 30,
            "event": "agent_transcript",
            "item_id": "b",
            "text": "and this follows at once.",
        },
        {"t_ms": 40, "event": "guardrail", "rule": "advice", "who": "agent", "reason": ""},
        {"t_ms": 50, "event": "agent_speech_stopped", "cut": True},
        {"t_ms": 60, "event": "false_interruption", "heard": "mm-hm"},
        {"t_ms": 70, "event": "session_lost", "why": "session_lost", "detail": "1011"},
        {"t_ms": 80, "event": "fallback_step", "do": "endpoint", "seconds": 5.0},
        {"t_ms": 90, "event": "session_replaced", "after_ms": 20.0},
        {"t_ms": 95, "event": "tool_slow", "name": "order"},
        {"t_ms": 96, "event": "idle_prompted", "count": 1},
        {"t_ms": 96, "event": "interruption_suppressed", "protected": True},
        {"t_ms": 96, "event": "voicemail_message", "beep": "none came"},
        {"t_ms": 96, "event": "handover_begins"},
        {"t_ms": 96, "event": "command", "command": "RequestOutOfBand"},
        {"t_ms": 96, "event": "budget_exceeded", "budget": "call: 2 of 1"},
        {"t_ms": 96, "event": "holding", "seconds": None},
        {"t_ms": 96, "event": "hold_ended", "seconds": 1.2},
        {"t_ms": 96, "event": "handed_over", "session_id": "sess_2"},
        {
            "t_ms": 97,
            "event": "machine_detected",
            "kind": "music",
            "why": "sound without a pause for 6 s",
        },
    ]
    cut = {"at_ms": 50, "trigger": "guard", "item_id": "a", "played_ms": 40,
           "received_ms": 100, "action": "truncate", "flushed_ms": 60}  # fmt: skip
    text = text_of(record_of(timeline=timeline, interruptions=[cut], digits=[]))
    for words in (
        "no data of the call: no answer within 2 s",
        "follows at once.",
        "guard advice on the agent's words",
        "“mm-hm” interrupts nothing",
        "no session: session lost, 1011",
        "fallback step: endpoint",
        "has a session again, after 20 ms",
        "tool order takes long",
        "asks the silent caller",
        "is heard out",
        "leaves its message (beep: none came)",
        "opens the next session",
        "or by a tool: request out of band",
        "budget spent: call: 2 of 1",
        "puts the caller on hold",
        "takes the caller back after 1.2 s",
        "the next session has taken over",
        "a machine (music): sound without a pause for 6 s",
    ):
        assert words in text
    assert "✂ interrupts" not in text, "the caller did not"


def test_words_of_an_interpreted_call_are_in_the_column_of_who_speaks_or_hears() -> None:
    timeline = [{"t_ms": 3000, "event": "interpreter_up", "listener": "callee"}]
    said = [("agent", 100, "One moment."), ("caller", 3100, "Two [bold]rooms."),
            ("to_callee", 3200, "Zwei Zimmer."), ("callee", 4000, "Gern."),
            ("to_caller", 4100, "With pleasure.")]  # fmt: skip
    transcript = [{"who": who, "at_ms": at, "text": text} for who, at, text in said]
    text = text_of(record_of(timeline=timeline, transcript=transcript, interruptions=[]))
    rows = {row[:8]: " ".join(row[8:].split()) for row in text.splitlines()}
    assert rows["0:03.100"] == "“Two [bold]rooms.”"
    assert rows["0:03.200"] == "callee hears “Zwei Zimmer.”"
    assert rows["0:04.000"] == "callee “Gern.”"
    assert rows["0:04.100"] == "hears “With pleasure.”"
    assert text.count("One moment.") == 0, "an answer is told by its own marks"


def test_words_of_a_live_session_belong_to_the_turn_in_which_they_were_spoken() -> None:
    timeline = [
        {"t_ms": 1000, "event": "caller_speech_started"},
        {"t_ms": 2000, "event": "caller_speech_stopped"},
        {"t_ms": 2100, "event": "agent_speech_started", "item_id": "speech_1"},
        {"t_ms": 3000, "event": "agent_speech_stopped"},
        {"t_ms": 3050, "event": "agent_speech_started", "item_id": "speech_1"},
        {"t_ms": 3100, "event": "caller_speech_started"},
        {"t_ms": 3200, "event": "caller_transcript", "text": "Hello."},
        {"t_ms": 3500, "event": "caller_speech_stopped"},
        {"t_ms": 4000, "event": "agent_speech_stopped"},
        {"t_ms": 4200, "event": "end", "by": "caller", "why": "remote_hangup"},
    ]
    transcript = [
        {"at_ms": 1990, "who": "caller", "text": "Hello.", "item_id": "turn_1"},
        {"at_ms": 2100, "who": "agent", "text": "Good morning.", "item_id": "speech_1"},
        {"at_ms": 3490, "who": "caller", "text": "Thanks.", "item_id": "turn_2"},
    ]
    cost: dict[str, Any] = {
        "currency": "USD",
        "total": 0.01,
        "priced": 0.01,
        "model": "gpt-live-1.1",
    }
    cost["session_seconds"] = 4.4
    record = record_of(timeline=timeline, transcript=transcript, interruptions=[], cost=cost)
    story = story_of(record)
    assert [turn.text for turn in story.caller] == ["Hello.", "Thanks."]
    assert [(turn.text, turn.to_ms) for turn in story.agent] == [("Good morning.", 4000)]
    assert record.length_ms == record.times_ms.end, "the last words came after the BYE"
    assert cost_words(record.cost) == "0.0100 USD for 4 s of Live sessions"
