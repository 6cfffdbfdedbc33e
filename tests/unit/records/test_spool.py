# SPDX-License-Identifier: GPL-2.0-or-later
"""Slots and spool: what waits on the disk, through kills, and files that are removed."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from gateway.records import spool as spool_module
from gateway.records.spool import CallSlots, Delivery, Spool, cut_calls
from gateway.records.tables import OPENED
from tests.support.kept_rows import row


def delivery(name: str, endpoint: str, due: float) -> Delivery:
    return Delivery(name, endpoint, "c1", "{}", due, due)


def test_slots_of_a_living_process_are_its_own(tmp_path: Path) -> None:
    mine = CallSlots(tmp_path)
    mine.open()
    mine.take("c1", {"route": "r"})
    with cut_calls(mine.path) as calls:
        assert calls == [], "its process still runs"
    mine.path.unlink()
    assert mine.lost
    mine.open()
    mine.close()
    with cut_calls(mine.path) as calls:
        assert [call.call_id for call in calls] == ["c1"]
    assert not mine.path.exists()


def test_a_removed_spool_loses_nothing_that_was_parked_or_is_being_written(tmp_path: Path) -> None:
    writer, reader = Spool(tmp_path), Spool(tmp_path)
    reader.pending()
    writer.add([row("parked", OPENED), row("c1", OPENED), row("c2", OPENED)])
    writer.park(writer.entries(1)[0], "refused \ud800")
    taken = reader.entries(10)
    for path in tmp_path.iterdir():
        path.unlink()
    writer.add([row("new", OPENED)])
    reader.done(taken)
    assert [one.call_id for one in writer.entries(10)] == ["new"], "the others are written"
    assert (writer.parked(), reader.parked()) == (1, 1)
    writer.park(writer.entries(1)[0], "refused")
    assert reader.parked() == 2, "none takes the place of another"


def test_what_was_refused_is_kept_for_a_time_and_up_to_a_number(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else it would fill the file, and no row could be written any more."""
    monkeypatch.setattr("gateway.records.spool.MAX_REFUSED", 3)
    spool = Spool(tmp_path)
    names = [f"c{number}" for number in range(5)]
    sent = [Delivery(name, "crm", name, "{}", number, number) for number, name in enumerate(names)]
    spool.add([row(name, OPENED) for name in names], [*sent, Delivery("w", "crm", "w", "{}", 0, 0)])
    for entry in spool.entries(9):
        spool.park(entry, "refused")
    for one in sent:
        spool.failed(one, "500", None)

    def left() -> list[list[str]]:
        parked = [entry.call_id for entry, _error in spool.parked_entries()]
        return [parked, [one.call_id for one in spool.deliveries(dead=True)]]

    assert spool.trim(0.0, {"c0"}) == 2, "beyond the third"
    assert left() == [["c0", "c2", "c3", "c4"]] * 2
    assert spool.trim(0.0) == 2
    assert spool.trim(3.0) == 1, "the parked ones are younger"
    assert left() == [names[2:], names[3:]]
    assert spool.trim(time.time() + 60, {"c3"}) == 3
    assert left() == [["c3"]] * 2
    assert [one.call_id for one in spool.deliveries(dead=False)] == ["w"]


def test_a_spool_whose_folder_is_removed_goes_on(tmp_path: Path) -> None:
    folder = tmp_path / "records"
    spool = Spool(folder)
    spool.add([row("c1", OPENED)])
    for path in folder.iterdir():
        path.unlink()
    folder.rmdir()
    spool.add([row("c2", OPENED)])
    assert [one.call_id for one in Spool(folder).entries(10)] == ["c1", "c2"]


def test_every_connection_follows_a_spool_that_was_replaced(tmp_path: Path) -> None:
    """The first connection that notices makes the new file; the others must not stay in the old."""
    writer, reader = Spool(tmp_path), Spool(tmp_path)
    writer.add([row("c1", OPENED)], [delivery("e1", "a", 1.0)])
    assert reader.pending()[0] == 1
    for path in tmp_path.iterdir():
        path.unlink()
    writer.add([row("c2", OPENED)])
    assert {one.call_id for one in reader.entries(10)} == {"c1", "c2"}
    assert [one.id for one in reader.due(2.0, 10)] == ["e1"], "webhooks are kept, too"


def test_what_a_removed_spool_had_survives_a_disk_that_takes_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spool = Spool(tmp_path)
    spool.add([row("c1", OPENED)])
    for path in tmp_path.iterdir():
        path.unlink()
    with monkeypatch.context() as full:
        full.setattr(spool_module, "create_database", lambda _path: (tmp_path / "no").stat())
        with pytest.raises(FileNotFoundError):
            spool.pending()
    assert spool.pending()[0] == 1


def test_due_deliveries_of_one_endpoint_leave_room_for_others(tmp_path: Path) -> None:
    spool = Spool(tmp_path)
    spool.add([], [delivery(f"s{number}", "slow", float(number)) for number in range(20)])
    spool.add([], [delivery("q1", "quick", 50.0)])
    found = [(one.endpoint, one.id) for one in spool.due(60.0, 3)]
    assert found == [("slow", "s0"), ("slow", "s1"), ("slow", "s2"), ("quick", "q1")]
    spool.close()
