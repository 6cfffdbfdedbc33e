# SPDX-License-Identifier: GPL-2.0-or-later
"""What a turn or a command raises does not end the SIP thread."""

from __future__ import annotations

import threading

import pytest

from gateway.sip.library import SipThread


@pytest.mark.parametrize("part", ["poll", "command", "housekeeping"])
def test_the_thread_goes_on(part: str) -> None:
    went_on, turns = threading.Event(), {"poll": 0, "housekeeping": 0}

    def turn(name: str) -> None:
        turns[name] += 1
        if name == part and turns[name] < 20:
            raise ValueError(name)

    def command() -> None:
        if part == "command":
            raise ValueError(part)

    thread = SipThread(lambda _ms: turn("poll"), lambda: turn("housekeeping"))
    thread.start(lambda: None, lambda: None)
    thread.post(command)
    thread.post(went_on.set)
    assert went_on.wait(10)
    while turns["housekeeping"] < 30:
        waited = threading.Event()
        thread.post(waited.set)
        assert waited.wait(10)
    thread.stop()
    assert thread.join(10)
    assert thread.failures == (1 if part == "command" else 19)
