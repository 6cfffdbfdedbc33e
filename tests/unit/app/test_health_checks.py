# SPDX-License-Identifier: GPL-2.0-or-later
"""What is known of realtime servers before a call asks."""

from __future__ import annotations

from gateway.app.health_checks import ServerChange, ServerHealth

URL = "wss://one.example/v1/realtime"


def test_a_probe_that_fails_is_trouble_until_something_works() -> None:
    health = ServerHealth()
    assert health.trouble(URL) is None
    assert health.probe_failed(URL, "no answer", 10.0) == ServerChange(URL, True, "no answer", 0.0)
    assert health.trouble(URL) == "no answer"
    assert health.probe_failed(URL, "refused", 20.0) is None, "said once"
    assert health.trouble(URL) == "refused"
    assert health.worked(URL, 70.0) == ServerChange(URL, False, "", 60.0)
    assert health.trouble(URL) is None
    assert health.worked(URL, 71.0) is None


def test_calls_are_trouble_when_three_in_a_row_fail() -> None:
    health = ServerHealth()
    assert health.call_failed(URL, "lost", 1.0) is None
    assert health.worked(URL, 2.0) is None
    assert [health.call_failed(URL, "lost", now) for now in (3.0, 4.0)] == [None, None]
    changed = health.call_failed(URL, "lost", 5.0)
    assert changed is not None
    assert changed.down


def test_servers_are_known_apart() -> None:
    health = ServerHealth()
    health.probe_failed(URL, "down", 1.0)
    health.worked("ws://two.example", 1.0)
    states = {one["url"]: (one["state"], one["seconds"]) for one in health.as_json(4.0)}
    assert states == {URL: ("in trouble", 3.0), "ws://two.example": ("up", None)}
