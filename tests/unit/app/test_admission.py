# SPDX-License-Identifier: GPL-2.0-or-later
"""Which INVITE becomes a call, and what the others are answered."""

from __future__ import annotations

import asyncio
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from gateway.app import admission as admission_module
from gateway.app.admission import Admission, Rejections
from gateway.app.registry import CallRegistry
from gateway.audio import Codec
from gateway.bridge.route_data import CallerHistories
from gateway.call.call_record import CallRecord
from gateway.dialplan import load_dialplan
from gateway.records.store import RecordStore
from gateway.sip.leg import Invite
from tests.support.call_fakes import FakeLeg
from tests.support.config import load_config
from tests.support.harness import eventually


class Begun:
    """In place of a call."""

    def __init__(
        self, leg: FakeLeg, _plan: Any, _session: Any, record: CallRecord, *_: Any
    ) -> None:
        self.leg, self.record = leg, record
        self.more: dict[str, Any] = {}


class Gateway:
    """An admission between a registry and records that are stand-ins."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        (folder / "dialplans").mkdir()
        file = folder / "gateway.toml"
        file.write_text('[realtime]\nurl = "ws://127.0.0.1:1/v1/realtime"\n')
        (folder / "dialplans" / "a.toml").write_text("[[route]]\nname = 'r'\nto = '^1..$'\n")
        self.written: list[CallRecord] = []
        self.begun: list[Begun] = []
        self.spent = ""
        self.marked: list[CallRecord] = []
        self.calls = SimpleNamespace(
            closed=False,
            full=False,
            max_calls=2,
            spent=lambda _route, _number: self.spent or None,
            begin=self.begun.append,
            finished=lambda _call: None,
        )

        def made(leg: FakeLeg, *given: Any, **more: Any) -> Begun:
            begun = Begun(leg, *given)
            begun.more = more
            return begun

        monkeypatch.setattr(admission_module, "CallController", made)
        records = SimpleNamespace(write=self.written.append)
        self.admission = Admission(
            load_config(file, {}),
            load_dialplan(folder / "dialplans", {}),
            cast(CallRegistry, self.calls),
            Rejections(cast(RecordStore, records), 7),
            cast(Any, None),
            cast(Any, SimpleNamespace(dial=None, permit_refer=None, permit=None, asks_first=False)),
            cast(Any, SimpleNamespace(inform=lambda *plans: plans)),
            cast(Any, None),
            cast(Any, None),
            cast(Any, SimpleNamespace(choose=lambda route, _caller, _record: route)),
            cast(Any, SimpleNamespace(mark=lambda _invite, record: self.marked.append(record))),
            CallerHistories(None),
        )

    def invite(self, to: str = "100", **more: Any) -> FakeLeg:
        """An INVITE comes."""
        leg = FakeLeg()
        leg.invite = cast(
            Any,
            Invite(
                **{
                    "sip_call_id": "abc@pbx",
                    "to_uri": f"sip:{to}@gateway",
                    "from_uri": "sip:alice@pbx",
                    "to_user": to,
                    "from_user": "alice",
                    "from_name": "",
                    "source": "192.0.2.7:5060",
                    "headers": {},
                    "offered": (Codec.PCMA,),
                    **more,
                }
            ),
        )
        self.admission.on_invite(leg.leg)
        return leg


@pytest.fixture
def gateway(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Gateway:
    return Gateway(tmp_path, monkeypatch)


def refused(gateway: Gateway, leg: FakeLeg) -> tuple[int, str]:
    """Code and reason of the refusal, which has a record and begins no call."""
    ((verb, code, _headers),) = leg.done
    assert verb == "refuse"
    assert gateway.begun == []
    (record,) = gateway.written
    assert record.ending is not None
    assert record.ending.sip_code == code
    return code, record.ending.why.value


async def test_a_call_that_a_route_takes_begins(gateway: Gateway) -> None:
    leg = gateway.invite()
    (call,) = gateway.begun
    assert (call.leg, call.record.route, call.record.leg.codec) == (leg, "r", "PCMA")
    assert leg.done == []
    assert gateway.written == []


async def test_a_number_that_no_route_takes(gateway: Gateway) -> None:
    assert refused(gateway, gateway.invite("200")) == (404, "no_route")


async def test_no_common_codec(gateway: Gateway) -> None:
    assert refused(gateway, gateway.invite(offered=())) == (488, "no_common_codec")


async def test_a_full_gateway_says_when_to_try_again(gateway: Gateway) -> None:
    gateway.calls.full = True
    leg = gateway.invite()
    assert refused(gateway, leg) == (503, "over_capacity")
    assert leg.done[0][2]["Retry-After"] == "7"
    assert gateway.marked == gateway.written, "a synthetic call counts as one, too"


@pytest.mark.parametrize("what", ["draining", "places only"])
async def test_a_gateway_that_takes_no_calls(gateway: Gateway, what: str) -> None:
    gateway.calls.closed = what == "draining"
    gateway.admission.closed = what == "places only"
    assert refused(gateway, gateway.invite()) == (503, "shutdown")


async def test_a_budget_that_is_spent(gateway: Gateway) -> None:
    gateway.spent = "10 EUR a day"
    assert refused(gateway, gateway.invite())[1] == "budget"


async def test_a_defect_refuses_the_call_and_no_other(
    gateway: Gateway, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patched:
        patched.setattr(admission_module, "facts_of", None)
        assert refused(gateway, gateway.invite()) == (500, "internal_error")
    gateway.invite()
    assert len(gateway.begun) == 1


async def test_an_invite_is_answered_where_the_database_cannot_be_asked(gateway: Gateway) -> None:
    async def admit(_wanted: Any) -> str:
        raise ValueError("no such value")

    decided: list[str] = []
    gateway.calls.wait_for_decision = lambda _record, _end: None
    gateway.calls.decided = decided.append
    shared = SimpleNamespace(wanted=lambda *_: "a lease", admit=admit)
    gateway.admission.shared = cast(Any, shared)
    leg = gateway.invite()
    await eventually(lambda: bool(gateway.written), "its record")
    assert refused(gateway, leg) == (500, "internal_error")
    assert decided == [gateway.written[0].call_id]


async def test_a_call_begins_with_its_invite_and_not_with_the_answer_of_the_database(
    gateway: Gateway,
) -> None:
    answered = asyncio.Event()

    async def admit(_wanted: Any) -> str:
        await answered.wait()
        return ""

    gateway.calls.wait_for_decision = lambda _record, _end: None
    gateway.calls.decided = lambda _call_id: None
    shared = SimpleNamespace(wanted=lambda *_: "a lease", admit=admit)
    gateway.admission.shared = cast(Any, shared)
    clock = asyncio.get_running_loop().time
    before = clock()
    gateway.invite()
    after = clock()
    answered.set()
    await eventually(lambda: bool(gateway.begun), "the call")
    (call,) = gateway.begun
    assert before <= call.more["began"] <= after
