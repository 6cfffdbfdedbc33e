# SPDX-License-Identifier: GPL-2.0-or-later
"""Players of sounds that could not be made at first."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
from structlog.testing import capture_logs

from gateway.audio.sounds import SoundError
from gateway.sip import conference
from gateway.sip.conference import Sounds


class Folder(Sounds):
    """Has the files in ``there``; each look at the disk is in ``looks``."""

    def __init__(self) -> None:
        super().__init__()
        self.there: set[str] = set()
        self.looks: list[str] = []

    def _make(self, name: str) -> Any:
        self.looks.append(name)
        if name not in self.there:
            raise SoundError(f"{name} cannot be read")
        return object()


def test_a_file_that_is_put_there_later_is_played(monkeypatch: pytest.MonkeyPatch) -> None:
    sounds, now = Folder(), [100.0]
    monkeypatch.setattr(conference, "time", SimpleNamespace(monotonic=lambda: now[0]))
    with capture_logs() as logs:
        for _ in range(3):
            assert sounds.get("a.wav") is None
        now[0] += conference.AGAIN_SECONDS
        assert sounds.get("a.wav") is None
        sounds.there.add("a.wav")
        assert sounds.get("a.wav") is None, "it is not looked for at each call"
        now[0] += conference.AGAIN_SECONDS
        player = sounds.get("a.wav")
        assert player is not None
        assert sounds.get("a.wav") is player
    assert len(sounds.looks) == 3
    assert [one["event"] for one in logs] == ["sip.no_sound"]
