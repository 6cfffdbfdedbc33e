# SPDX-License-Identifier: GPL-2.0-or-later
"""Each field of each server event, those of its items too, left out or of any other value: no call
ends by it, no function of the session raises, and its record and costs can be written.

From the frame to the decisions, as a session does it; of GA, Beta and Live.
"""

from __future__ import annotations

import asyncio
import json
import random
import re
from dataclasses import replace
from types import SimpleNamespace
from typing import Any, cast

import pytest
from websockets.protocol import State

from gateway.audio import Codec
from gateway.billing import Accounts, Budgets
from gateway.billing.ledger import Ledger
from gateway.billing.prices import load_prices
from gateway.call import inputs
from gateway.call.plan import (
    ApprovalRule,
    CallPlan,
    ContentPlan,
    ContextPlan,
    EscapePlan,
    FunctionPlan,
    GuardrailPlan,
    InterruptionPlan,
    LimitsPlan,
    MachineDetectionPlan,
    ResponseFailurePlan,
    SilencePlan,
    ToolsPlan,
    UserIdlePlan,
)
from gateway.call.tools.commands import (
    CollectPlan,
    Destination,
    DispositionPlan,
    HoldPlan,
    RequestOutOfBand,
    TransferPlan,
)
from gateway.realtime.connection import Connection, Endpoint
from gateway.realtime.dialects import DIALECTS
from gateway.realtime.events import AudioDelta, ResponseCreated, ServerError, ServerEvent
from gateway.realtime.live_session import LiveEdge, LiveSession
from gateway.realtime.live_voice import NO_PLAYOUT
from gateway.realtime.parse import BadEvent
from gateway.realtime.session import Handshake, Session
from gateway.realtime.wire import Edge
from tests.support.call_scene import ACK, Scene, scenes
from tests.support.mutations import LEFT_OUT, damaged, paths_in
from tests.unit.realtime.test_events_missing_fields import AUDIO, EVENTS, OF_RESPONSE, RESPONSE

CALL = {"type": "function_call", "id": "fc", "status": "completed", "call_id": "c1"}
MCP = {"server_label": "l", "name": "n", "arguments": "{}"}
ITEMS: list[dict[str, Any]] = [
    *[
        {**CALL, "name": name, "arguments": '{"seconds": 3}'}
        for name in ("f", "hold", "collect_digits", "set_disposition", "unknown")
    ],
    {
        "type": "message",
        "id": "i1",
        "role": "assistant",
        "content": [{"type": "output_audio", "transcript": "Hello."}, {"type": "text"}],
    },
    {"type": "mcp_approval_request", "id": "m1", **MCP},
    {"type": "mcp_call", "id": "m2", "approval_request_id": "m1", "error": {"type": "e"}, **MCP},
    {"type": "mcp_list_tools", "id": "m3", "server_label": "l", "tools": [{"name": "x"}]},
]
USAGE = {
    "input_tokens": 3,
    "output_tokens": 4,
    "input_token_details": {"audio_tokens": 2, "cached_tokens_details": {"text_tokens": 1}},
    "output_token_details": {"audio_tokens": 3},
}
OUT_OF_BAND = {"gateway_out_of_band": "k", "gateway_request": "gw_1"}
REALTIME_EVENTS = [
    *EVENTS,
    *[
        {"type": "response.done", "response": {**RESPONSE, "output": [item], "usage": USAGE}}
        for item in ITEMS
    ],
    *[
        {"type": kind, "item": item, **OF_RESPONSE}
        for kind in ("conversation.item.added", "conversation.item.done")
        for item in ITEMS
    ],
    {"type": "response.created", "response": {**RESPONSE, "metadata": OUT_OF_BAND}},
    *[
        {"type": f"response.mcp_call.{what}", "item_id": "m2"}
        for what in ("in_progress", "completed", "failed")
    ],
    {"type": "mcp_list_tools.failed", "item_id": "m3"},
    *[
        {"type": "error", "error": {"message": "No.", "event_id": "gw_1", **error}}
        for error in (
            {"code": "conversation_already_has_active_response"},
            {"code": "unknown_parameter", "param": "response.metadata"},
            {"code": "invalid_value", "param": "session.audio.output.voice"},
        )
    ],
]
WORDS = {"delta": "Hello there.", "start_ms": 0, "end_ms": 300}
LIVE_EVENTS: list[dict[str, Any]] = [
    {"type": "session.updated", "session": {"id": "s"}},
    {"type": "session.output_audio.delta", "delta": AUDIO},
    {"type": "session.output_transcript.delta", **WORDS},
    {"type": "session.input_transcript.delta", **WORDS},
    *[
        {"type": "session.delegation.created", "delegation": {"id": target, "target": target}}
        for target in ("client", "responses")
    ],
    {"type": "session.usage.updated", "usage": {"seconds": 3.5}},
    {
        "type": "decision.event",
        "delegation_id": "d1",
        "source_event_type": "x",
        "event": {"decision": {"answers": [{"name": "n", "choice": "c"}], "usage": USAGE}},
    },
    {"type": "error", "error": {"code": "y", "message": "z", "client_event_id": "gw_1"}},
    {"type": "session.output_audio.fixture.played"},
    *[
        {"type": "response.event", "delegation_id": delegation, "event": event}
        for delegation in ("responses", "")
        for item in ITEMS
        for event in (
            {"type": "response.output_item.done", "item": item},
            {
                "type": "response.completed",
                "response": {"id": "rb", "model": "m", "output": [item], "usage": USAGE},
            },
        )
    ],
    {
        "type": "response.event",
        "delegation_id": "responses",
        "event": {"type": "response.failed", "response": {"error": {"code": "x"}}},
    },
]

VALUES: list[Any] = [
    *(LEFT_OUT, None, [], {}, "", True, 7, -0.5, 2**70, 1e308, "words", "\ud800", "x" * 20_000),
    *(["x"], [None], [[]], [{}], [{"type": 5}], {"type": ["x"]}, "function_call"),
]

NAMED = ("l_*", "ask_caller"), ("hold", "ask_http")
PLAN = CallPlan(
    "r",
    Codec.PCMU,
    greeting={"instructions": "Hello."},
    silence=SilencePlan(6.0, "chime"),
    idle=UserIdlePlan(8.0, max_prompts=10_000),
    limits=LimitsPlan(rtp_timeout=0, max_call_duration=1e6),
    tools=ToolsPlan(
        TransferPlan((Destination("Desk", "sip:desk@pbx"),)),
        functions={"f": FunctionPlan(timeout=5.0, filler_delay=1.0, filler_text="Wait.")},
        hold=HoldPlan(True, max_duration=5.0),
        collect_digits=CollectPlan(True, timeout=2.0, private=True),
        disposition=DispositionPlan(values=("good",)),
        approvals=tuple(ApprovalRule(tool, policy, timeout=4.0) for tool, policy in NAMED),
        delegate="f",
    ),
    content=ContentPlan(
        guardrails=(
            GuardrailPlan("both", re.compile("bomb"), replacement="No.", name="g"),
            GuardrailPlan("both", url="http://guard", replacement="No.", name="h"),
        ),
        response_failure=ResponseFailurePlan(max_failures=10**6),
        context=ContextPlan(2, "summarize"),
    ),
    machine_detection=MachineDetectionPlan({"voicemail": "log", "bot": "log"}),
    escape=EscapePlan("9", (("human",),), ("Desk",)),
)
ADAPTIVE = InterruptionPlan("adaptive", by_gateway=True, transcribed=True)
PLANS = {
    "ga": PLAN,
    "ga by the gateway": replace(PLAN, interruptions=ADAPTIVE),
    "ga with an application": replace(PLAN, tools=replace(PLAN.tools, application=True)),
    "beta": PLAN,
    "live": PLAN,
}


class Wire:
    """In place of a connection: takes what is sent."""

    latency = 0.0
    transport = SimpleNamespace(get_write_buffer_size=lambda: 0, abort=lambda: None)
    protocol = SimpleNamespace(state=State.OPEN)
    read = queued = 0

    async def next_message(self) -> bytes:
        await asyncio.Event().wait()
        return b""

    def write_text(self, _message: bytes) -> bool:
        return True


class Call:
    """A session, the account of its call, and its decisions."""

    def __init__(self, kind: str) -> None:
        self.scene = Scene(PLANS[kind])
        accounts = Accounts(load_prices(None), Ledger(), lambda: "2026-01-01")
        facts = {"model": "gpt-realtime", "host": "api.openai.com", "transcriber": "whisper-1"}
        self.account = accounts.open(**facts, route="r", number="1", budgets=Budgets())
        endpoint = Endpoint("ws://x/v1/realtime", "gpt-realtime", "k")
        wire = cast(Connection, Wire())
        if kind == "live":
            live = LiveEdge("g711", {"audio": {"format": {"type": "audio/pcmu"}}})
            effective = {"delegation": {"type": "responses", "responses": {"model": "m"}}}
            made = Handshake(wire, endpoint, live, effective, (), (), None, None)
            self.session: Session = LiveSession(
                made, self.on_event, lambda _: None, Codec.PCMU, NO_PLAYOUT
            )
            cast(Any, self.session)._voice._deliver = self.on_event
        else:
            edge = Edge(
                next(one for name, one in DIALECTS.items() if kind.startswith(name)), "g711", {}
            )
            made = Handshake(wire, endpoint, edge, {}, (), (), None, None)
            self.session = Session(made, self.on_event, lambda _: None)
        cast(Any, self.session)._deliver = self.on_event  # what it raises, raises here
        self.taken = 0
        ready = inputs.SessionReady("sess_1", None, self.session.capabilities)
        self.do(ready, ACK)

    def do(self, *happenings: Any) -> None:
        self.scene.do(*happenings)
        while self.taken < len(self.scene.sent):
            self.taken += 1
            self.session.send(self.scene.sent[self.taken - 1])

    def on_event(self, event: ServerEvent) -> None:
        commands = self.session.commands
        self.account.take(event)
        if isinstance(event, ServerError):
            self.do(inputs.ServerErrorReceived(event, commands.command_of(event.client_event_id)))
            return
        asked = commands.request_of(event) if isinstance(event, ResponseCreated) else None
        if isinstance(event, AudioDelta):
            event.silent = False
        self.do(inputs.ServerEventReceived(event, asked))

    def receive(self, event: Any) -> None:
        try:
            parsed = cast(Any, self.session)._edge.parse(json.dumps(event))
        except BadEvent:
            return
        cast(Any, self.session)._on_parsed(parsed)


ROUND = 40
"""Damaged events in one call."""


@pytest.mark.parametrize("kind", PLANS)
async def test_no_field_of_any_event_ends_a_call(kind: str) -> None:
    events = LIVE_EVENTS if kind == "live" else REALTIME_EVENTS
    cases = [
        (event, path, value) for event in events for path in paths_in(event) for value in VALUES
    ]
    chance = random.Random(len(cases))
    chance.shuffle(cases)
    for begin in range(0, MOST, ROUND):
        call = Call(kind)
        for event, path, value in cases[begin : begin + ROUND]:
            if chance.random() < 0.5:
                call.receive(chance.choice(events))
            if chance.random() < 0.3:
                call.do(inputs.ToolRequest(RequestOutOfBand("k", "x")))
            if chance.random() < 0.3:
                call.scene.listen(100)
            call.receive(damaged(event, path, value))
            assert call.scene.machine.state.name in ("TALKING", "BRIDGED"), (event, path, value)
        json.dumps([call.scene.record.as_json(), call.account.as_json()], allow_nan=False)
        cast(Any, call.session)._reader.cancel()
    scenes.clear()


MOST = 1200
"""Cases tried of each kind, of up to 20,000; always the same ones."""
