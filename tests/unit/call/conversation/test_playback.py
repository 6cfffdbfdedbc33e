# SPDX-License-Identifier: GPL-2.0-or-later
"""What the server is told of a cut, and the one second attempt."""

from __future__ import annotations

import pytest

from gateway.call.conversation.playback import Truncations
from gateway.call.conversation.playout_tracker import Heard
from gateway.realtime.events import (
    ClientCommand,
    CreateResponse,
    DeleteItem,
    ServerError,
    TruncateItem,
)


def _heard(played: int, received: int, earlier_parts: int = 0) -> Heard:
    item = earlier_parts + played, earlier_parts + received
    return Heard("r", "i", 2, played, received, False, *item)


@pytest.mark.parametrize(
    ("margin", "heard", "command"),
    [
        (0, _heard(240, 1000), TruncateItem("i", 2, 240)),
        (0, _heard(1000, 1000), TruncateItem("i", 2, 1000)),
        (0, _heard(1001, 1000), TruncateItem("i", 2, 1000)),
        (0, _heard(0, 1000), DeleteItem("i")),
        (0, _heard(0, 1000, 20), TruncateItem("i", 2, 0)),
        (85, _heard(240, 1000), TruncateItem("i", 2, 155)),
        (85, _heard(60, 1000), TruncateItem("i", 2, 0)),
        (85, _heard(0, 1000), DeleteItem("i")),
    ],
)
def test_command(margin: int, heard: Heard, command: ClientCommand) -> None:
    assert Truncations(margin).make_command(heard) == command


SENT = TruncateItem("i", 2, 240)


@pytest.mark.parametrize(
    ("message", "command", "again"),
    [
        ("Audio content of 155ms is already shorter than 240ms", SENT, 155),
        ("Audio content of 155 ms is already shorter than 240 ms.", SENT, 155),
        ("Audio content of 155ms is already shorter than 240ms", None, 155),
        ("Audio content of 155ms is already shorter than 999ms", None, None),
        ("Audio content of 0ms is already shorter than 240ms", SENT, None),
        ("Audio content of 300ms is already shorter than 240ms", SENT, None),
        ("Audio content of 240ms is already shorter than 240ms", SENT, None),
        ("Audio content of 155ms is already shorter than 240ms", CreateResponse(), None),
        ("Only model output audio messages can be truncated", SENT, None),
        (f"Audio content of {'1' * 5000}ms is already shorter than 240ms", SENT, None),
        ("Audio content of 1\u0661ms is already shorter than 240ms", SENT, None),
        ("", SENT, None),
    ],
)
def test_second_attempt(message: str, command: ClientCommand | None, again: int | None) -> None:
    truncations = Truncations()
    truncations.make_command(_heard(240, 1000))
    error = ServerError("invalid_value", message)
    expected = None if again is None else TruncateItem("i", 2, again)
    assert truncations.retry(error, command) == expected
    assert truncations.retry(error, command) is None


def test_no_third_attempt() -> None:
    truncations = Truncations()
    truncations.make_command(_heard(240, 1000))
    first = ServerError("invalid_value", "Audio content of 155ms is already shorter than 240ms")
    again = truncations.retry(first, SENT)
    second = ServerError("invalid_value", "Audio content of 100ms is already shorter than 155ms")
    assert truncations.retry(second, again) is None
    other = TruncateItem("other", 0, 240)
    assert truncations.retry(first, other) == TruncateItem("other", 0, 155)


def test_nothing_was_truncated_yet() -> None:
    error = ServerError("invalid_value", "Audio content of 155ms is already shorter than 240ms")
    assert Truncations().retry(error, None) is None
