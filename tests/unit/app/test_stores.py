# SPDX-License-Identifier: GPL-2.0-or-later
"""What the configuration makes of the stores of a process."""

from __future__ import annotations

from pathlib import Path

import pytest

from gateway.app import stores
from gateway.dialplan import Dialplan
from gateway.records.database import Database
from tests.support.config import load_config


def test_rows_that_cannot_be_swept_keep_no_recording(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(*_given: object, **_more: object) -> None:
        raise PermissionError("records")

    monkeypatch.setattr(stores, "sweep", fails)
    folder, file = tmp_path / "recordings", tmp_path / "gateway.toml"
    folder.mkdir()
    (tmp_path / "dialplans").mkdir()
    old = folder / "20200101T000000_a.wav"
    old.touch()
    file.write_text(
        '[realtime]\nurl = "ws://127.0.0.1:8765/v1/realtime"\n[recording]\nfolder = "recordings"\n'
        '[records]\nfolder = "records"\nretention_days = 1\n'
    )
    database = Database(f"sqlite:///{tmp_path}/calls.sqlite3")
    database.prepare()
    made = stores.stores_of(load_config(file, {}), Dialplan(()))
    with pytest.raises(PermissionError):
        made.records.forwarder._idle(database)
    assert not old.exists()
