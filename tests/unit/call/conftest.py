# SPDX-License-Identifier: GPL-2.0-or-later
"""Each call of these tests is replayed from its black box, and goes as it went."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from gateway.bridge.replay import replay
from tests.support.black_boxes import keep_by_ending
from tests.support.call_scene import scenes

MOST_SCENES = 3
"""Of one test: some make hundreds."""


@pytest.fixture(autouse=True)
def _replayed(request: pytest.FixtureRequest) -> Iterator[None]:
    scenes.clear()
    yield
    if request.node.get_closest_marker("reaches_in") is None:
        for scene in scenes[:MOST_SCENES]:
            assert list(replay(scene.black_box).differences) == []
            if (ending := scene.record.ending) is not None:
                keep_by_ending(ending.why.value, scene.black_box)
    scenes.clear()
