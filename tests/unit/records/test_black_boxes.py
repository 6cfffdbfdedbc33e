# SPDX-License-Identifier: GPL-2.0-or-later
"""Files of black boxes: how many are kept, and what becomes of one whose wire cannot be read."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path
from typing import Any

import pytest

from gateway.call.call_record import CallRecord, ResponseTime
from gateway.call.tools.commands import CollectPlan
from gateway.ending import Ending, EndReason, Party
from gateway.records.black_boxes import SUFFIX, BlackBox, BlackBoxes, BlackBoxSettings, went_wrong
from gateway.records.files import BackgroundWriter
from gateway.records.retention import QUIET_SECONDS, sweep_black_boxes
from gateway.sip.signalling import MessageLog


def test_the_oldest_are_deleted_but_those_on_hold_and_in_progress(tmp_path: Path) -> None:
    names = [f"2026112{day}T100000000_call-{day}{SUFFIX}" for day in range(6)]
    long_ago = time.time() - QUIET_SECONDS - 1
    for name in [*names, "20261120T100000000_other.json", f"notes{SUFFIX}"]:
        (tmp_path / name).write_text("{}")
        os.utime(tmp_path / name, (long_ago, long_ago))
    os.utime(tmp_path / names[0])
    assert sweep_black_boxes(tmp_path, 3, {"call-1"}) == 2
    left = sorted(path.name for path in tmp_path.glob(f"2*{SUFFIX}"))
    assert left == [names[0], names[1], names[4], names[5]]
    assert len(list(tmp_path.iterdir())) == 6
    assert sweep_black_boxes(tmp_path, 3, {"call-1"}) == 0


class Channel:
    """Takes parcels, and hands them to the writer at once."""

    def __init__(self, boxes: BlackBoxes) -> None:
        self.put = lambda parcel, _size: boxes._write([parcel]) == ()


@pytest.mark.parametrize("kept", ["always", "on_trouble"])
def test_a_wire_that_cannot_be_read_costs_only_its_lines(tmp_path: Path, kept: Any) -> None:
    boxes = BlackBoxes(tmp_path, BackgroundWriter(), MessageLog(), ("hunter2",))
    boxes._channel = Channel(boxes)  # type: ignore[assignment]
    record = CallRecord("call-1", started_at="2026-11-29T10:00:00.000+00:00")
    box = boxes.open(record, BlackBoxSettings(kept), CollectPlan())
    assert box is not None

    def broken(_last: bool) -> Any:
        raise OSError("no")

    box.wire = broken
    box.write('{"in":"hunter2"}')
    if kept == "on_trouble":
        box.keep()
    name = box.end(record)
    first, last = (json.loads(line) for line in (tmp_path / name).read_text().splitlines())
    assert first == {"in": "***"}
    assert last["record"]["call_id"] == "call-1"
    assert last["record"]["black_box"] == name


@pytest.mark.parametrize(
    ("why", "waited_ms", "underruns", "trouble"),
    [
        (EndReason.REMOTE_HANGUP, 2999.0, 0, False),
        (EndReason.REMOTE_HANGUP, 3001.0, 0, True),
        (EndReason.REMOTE_HANGUP, 100.0, 1, True),
        (EndReason.SESSION_LOST, 100.0, 0, True),
        (EndReason.RTP_TIMEOUT, 100.0, 0, True),
        (None, 100.0, 0, True),
    ],
)
def test_a_call_that_was_slow_or_ended_badly_has_gone_wrong(
    why: EndReason | None, waited_ms: float, underruns: int, trouble: bool
) -> None:
    record = CallRecord("call-1")
    record.ending = None if why is None else Ending(Party.CALLER, why, 200, "")
    record.media.underruns = underruns
    parts = dict.fromkeys(ResponseTime.__dataclass_fields__, 0.0)
    record.response_times.append(ResponseTime(**parts | {"ms": waited_ms}))
    assert went_wrong(record) is trouble


async def test_a_file_has_a_bound_and_waits_for_the_other_legs_bye(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What comes after 64 MB is in no file; what waits at the end of the process is."""
    monkeypatch.setattr("gateway.records.black_boxes.MAX_FILE_BYTES", 20_000)
    boxes = BlackBoxes(tmp_path, BackgroundWriter(), MessageLog())
    boxes._channel = Channel(boxes)  # type: ignore[assignment]
    for call_id, lines, kept in (("long", 5, 1), ("ends", 1, 3)):
        record = CallRecord(call_id, started_at="2026-11-29T10:00:00.000+00:00")
        box = boxes.open(record, BlackBoxSettings("always"), CollectPlan())
        assert box is not None
        for number in range(lines):
            box.write(json.dumps({"in": number, "more": "x" * 12_000}))
            box._queue(None)
        box.wire = lambda _last: ['{"sip": "BYE"}']
        path = tmp_path / box.end(record, linger=True)
        before = path.read_text().splitlines()
        await boxes.stop()
        text = path.read_text()
        assert len(before) == 1
        assert len(text.splitlines()) == kept
        assert len(text) <= 20_000
    assert '"sip": "BYE"' in text


def test_a_line_that_cannot_be_masked_costs_no_other_box(tmp_path: Path) -> None:
    boxes = BlackBoxes(tmp_path, BackgroundWriter(), MessageLog())
    batches: list[tuple[BlackBox, list[str], bool | None]] = []
    for name in ("bad", "good"):
        record = CallRecord(name, started_at="2026-11-29T10:00:00.000+00:00")
        record.private.redact(("numbers",))
        box = boxes.open(record, BlackBoxSettings("always"), CollectPlan())
        assert box is not None
        batches.append((box, ["{" if name == "bad" else "{}"], None))
    boxes._write(batches)
    assert [box.broken for box, _lines, _stays in batches] == [True, False]
    assert batches[1][0].path.read_text() == "{}\n"


def test_what_records_mask_is_in_no_line(tmp_path: Path) -> None:
    boxes = BlackBoxes(tmp_path, BackgroundWriter(), MessageLog())
    boxes._channel = Channel(boxes)  # type: ignore[assignment]
    record = CallRecord("call-1", started_at="2026-11-29T10:00:00.000+00:00")
    record.private.redact(("numbers", "emails"), ("(?i)project falcon",))
    box = boxes.open(record, BlackBoxSettings("always"), CollectPlan())
    assert box is not None
    assert box.masks, "keys that are pressed, too"
    said = "Call +493012345678 or eva@example.com about Project Falcon"
    box.write(json.dumps({"in": {"text": said}, "sip": "INVITE sip:+493012345678@pbx.example"}))
    text = (tmp_path / box.end(record)).read_text()
    for masked in ("3012345678", "eva@", "alcon"):
        assert masked not in text
