# SPDX-License-Identifier: GPL-2.0-or-later
"""The demo's checks find what is wrong: a count beside what was heard, a goodbye cut short."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import pytest

from gateway.audio import FRAME_BYTES, Codec
from gateway.devtools.demo import read_live_events, track_checks
from gateway.devtools.demo_scenario import (
    SILENT_FRAME,
    HeardAudio,
    Item,
    heard_of,
    read_events,
)

QUIET = Codec.PCMA.silence


def speech(frames: int, seed: int = 1) -> bytes:
    return hashlib.shake_128(bytes([seed])).digest(frames * FRAME_BYTES)


def item_of(audio: bytes) -> Item:
    item = Item("a", bytes=len(audio))
    for at in range(0, len(audio), FRAME_BYTES):
        frame = audio[at : at + FRAME_BYTES]
        whole = len(frame) == FRAME_BYTES
        item.frames.append(hashlib.sha256(frame).hexdigest()[:16] if whole else "")
    return item


@pytest.mark.parametrize("shift", [0, 1, 40, 333])
def test_a_cut_is_found_to_the_frame(shift: int) -> None:
    answer = speech(60)
    heard_audio = HeardAudio(QUIET * (3000 + shift) + answer[: 31 * FRAME_BYTES] + QUIET * 4000)
    heard = heard_of(item_of(answer), heard_audio)
    assert (heard.least_ms, heard.most_ms, heard.matched) == (620, 620, 31)
    assert heard.agrees(620)
    assert not heard.agrees(600)
    assert not heard.agrees(640)


def test_silence_at_the_cut_leaves_the_moment_open() -> None:
    answer = speech(20) + QUIET * 5 * FRAME_BYTES + speech(20, seed=2)
    heard_audio = HeardAudio(QUIET * 800 + answer[: 22 * FRAME_BYTES] + QUIET * 4000)
    heard = heard_of(item_of(answer), heard_audio)
    assert (heard.least_ms, heard.most_ms) == (400, 500)


def test_a_rest_shorter_than_a_frame_belongs_to_the_end() -> None:
    answer = speech(10) + b"\x01" * 24
    item = item_of(answer)
    assert item.ms == 203
    assert heard_of(item, HeardAudio(QUIET * 160 + answer + QUIET * 800)).agrees(203)
    assert not heard_of(item, HeardAudio(QUIET * 160 + answer[: 9 * FRAME_BYTES])).agrees(203)


def test_a_lost_packet_leaves_the_rest_countable() -> None:
    answer = speech(60)
    there = answer[: 20 * FRAME_BYTES] + QUIET * 240 + answer[21 * FRAME_BYTES :]
    heard = heard_of(item_of(answer), HeardAudio(QUIET * 500 + there + QUIET * 500))
    assert (heard.least_ms, heard.matched) == (1200, 59)


def test_nothing_heard_is_nothing() -> None:
    heard = heard_of(item_of(speech(30)), HeardAudio(speech(50, seed=9)))
    assert (heard.least_ms, heard.most_ms, heard.matched) == (0, 0, 0)


def test_the_event_log_is_read(tmp_path: Path) -> None:
    events = [
        {"type": "response.output_audio.delta", "item_id": "a", "audio_bytes": 160,
         "audio_sha256": "0123456789abcdef"},
        {"type": "response.output_audio.delta", "item_id": "a", "audio_bytes": 24,
         "audio_sha256": "fedcba9876543210"},
        {"type": "conversation.item.truncated", "item_id": "a", "audio_end_ms": 20},
        {"type": "conversation.item.create",
         "item": {"content": [{"type": "input_text", "text": "pressed 4 2"}]}},
        {"type": "error", "error": {"code": "invalid_value"}},
        {"type": "something.new"},
    ]  # fmt: skip
    file = tmp_path / "s.jsonl"
    lines = [json.dumps({"at": 0.1, "from": "server", "event": event}) for event in events]
    file.write_text("\n".join(lines))
    log = read_events(file)
    assert log.items["a"].frames == ["0123456789abcdef", ""]
    assert log.items["a"].ms == 23
    assert log.truncated == {"a": 20}
    assert log.said == ["pressed 4 2"]
    assert log.errors == ["invalid_value"]


def test_the_event_log_of_a_live_session_is_read_and_judged(tmp_path: Path) -> None:
    audio = speech(50)
    frames = [hashlib.sha256(audio[at : at + 160]).hexdigest()[:16] for at in range(0, 8000, 160)]
    events = [
        {"type": "session.started"},
        *(
            {"type": "session.output_audio.delta", "audio_bytes": 160, "audio_sha256": frame}
            for frame in [*frames, SILENT_FRAME]
        ),
        {"type": "session.thinking.append", "content": "The caller pressed 4 2 #"},
        {"type": "session.input_audio.append", "audio_bytes": 8000},
        {"type": "session.close"},
        {"type": "session.closed", "reason": "close_requested"},
    ]
    file = tmp_path / "s.jsonl"
    lines = [{"at": min(number, 53) / 53, "event": event} for number, event in enumerate(events)]
    file.write_text("\n".join(json.dumps(line) for line in lines))
    log = read_live_events(file)
    assert (log.said, log.closed) == (["The caller pressed 4 2 #"], "close_requested")
    whole, short = QUIET * 500 + audio, QUIET * 500 + audio[: 24 * FRAME_BYTES]
    assert [check.passed for check in track_checks(log, HeardAudio(whole))] == [True, True]
    log.up_ms += 150
    assert [check.passed for check in track_checks(log, HeardAudio(short))] == [False, False]
