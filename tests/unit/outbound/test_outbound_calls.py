# SPDX-License-Identifier: GPL-2.0-or-later
"""Calls that are placed on demand, and what becomes of those that may not be."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from gateway.bridge.legs import DialRefusedError
from gateway.call.call_record import CallRecord
from gateway.call.ending import EndReason, ending_of
from gateway.config import load_config
from gateway.control.server import RefusedError
from gateway.dialplan import load_dialplan
from gateway.outbound import calls as calls_module
from gateway.outbound.calls import OutboundCalls

DIAL = {"to": "sip:b@example.org", "route": "r"}


class Placing:
    """Places calls between a registry and a limiter that are stand-ins."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        (folder / "dialplans").mkdir()
        file = folder / "gateway.toml"
        file.write_text('[realtime]\nurl = "ws://127.0.0.1:1/v1/realtime"\n')
        (folder / "dialplans" / "a.toml").write_text("[[route]]\nname = 'r'\n")
        self.room: str | None = None
        self.refusal = ""
        self.places = 0
        self.written: list[tuple[EndReason, int, str]] = []
        self.begun: list[Any] = []
        self.finish: Callable[[Any], None] = lambda _call: None
        calls = SimpleNamespace(
            no_room=lambda: self.room,
            spent=lambda _route, _number: None,
            begin=self.begun.append,
            finished=lambda _call: None,
        )
        limiter = SimpleNamespace(admit=self._admit, permit_refer=None)
        monkeypatch.setattr(calls_module, "CallController", self._made)
        self.outbound = OutboundCalls(
            load_config(file, {}),
            load_dialplan(folder / "dialplans", {}),
            cast(Any, None),
            cast(Any, limiter),
            cast(Any, calls),
            lambda _record, why, code, detail: self.written.append((why, code, detail)),
        )

    def _admit(self, _uri: str) -> Callable[[], None]:
        if self.refusal:
            raise DialRefusedError(self.refusal)
        self.places += 1

        def give_back() -> None:
            self.places -= 1

        return give_back

    def _made(
        self,
        _target: Any,
        _plan: Any,
        _session: Any,
        record: CallRecord,
        _clock: Any,
        finished: Callable[[Any], None],
        **_more: Any,
    ) -> Any:
        self.finish = finished
        return SimpleNamespace(record=record)


@pytest.fixture
def placing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Placing:
    return Placing(tmp_path, monkeypatch)


async def test_a_call_that_is_placed_and_its_record(placing: Placing) -> None:
    over = placing.outbound.dial("sip:b@example.org", "r")
    (call,) = placing.begun
    assert (call.record.direction, call.record.to_uri) == ("outbound", "sip:b@example.org")
    assert placing.places == 1
    placing.finish(call)
    assert placing.places == 0
    assert await over is call.record


@pytest.mark.parametrize("rule", ["room", "limit"])
async def test_a_call_that_a_rule_forbids_has_a_record(placing: Placing, rule: str) -> None:
    if rule == "room":
        placing.room = "sip.max_calls: 2 calls in progress"
    else:
        placing.refusal = "outbound.max_concurrent_calls = 4"
    with pytest.raises(DialRefusedError):
        placing.outbound.dial("sip:b@example.org", "r")
    ((why, code, detail),) = placing.written
    assert (why, code) == (EndReason.REFUSED, 403)
    assert detail == placing.room or detail == placing.refusal
    assert placing.begun == []


async def test_a_defect_frees_the_place(placing: Placing, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(calls_module, "plans", None)
    with pytest.raises(DialRefusedError, match="a defect of the gateway: TypeError"):
        placing.outbound.dial("sip:b@example.org", "r")
    assert placing.places == 0
    assert placing.written[0][:2] == (EndReason.INTERNAL_ERROR, 500)


async def test_the_control_socket_places_a_call_and_asks_for_its_outcome(placing: Placing) -> None:
    dial, ask = placing.outbound.commands["dial"], placing.outbound.commands["call"]
    call = dial(DIAL)["call"]
    assert ask({"call": call})["over"] is False
    placing.begun[0].record.ending = ending_of(EndReason.BUSY, answered=False)
    assert ask({"call": call})["over"] is True
    with pytest.raises(RefusedError, match="no such call"):
        ask({"call": "other"})


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        ({"route": "nowhere"}, "there is no route 'nowhere'"),
        ({"trunk": "nowhere"}, "there is no trunk 'nowhere'"),
        ({"variables": {"n": 1}}, "must be texts"),
        ({"to": 5}, "must be texts"),
    ],
)
async def test_a_request_that_makes_no_sense(
    placing: Placing, wrong: dict[str, Any], words: str
) -> None:
    with pytest.raises(RefusedError, match=words):
        placing.outbound.commands["dial"]({**DIAL, **wrong})
    assert placing.written == []
