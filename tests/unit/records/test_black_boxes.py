# SPDX-License-Identifier: GPL-2.0-or-later
"""Files of black boxes: how many are kept, and what becomes of one whose wire cannot be read."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path
from typing import Any

import pytest

from gateway.call.call_record import CallRecord
from gateway.call.plan import CollectPlan
from gateway.records.background import BackgroundWriter
from gateway.records.black_boxes import SUFFIX, BlackBoxes, Wanted
from gateway.records.retention import QUIET_SECONDS, sweep_black_boxes


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
    boxes = BlackBoxes(tmp_path, BackgroundWriter(), ("hunter2",))
    boxes._channel = Channel(boxes)  # type: ignore[assignment]
    record = CallRecord("call-1", started_at="2026-11-29T10:00:00.000+00:00")
    box = boxes.open(record, Wanted(kept), CollectPlan())
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
