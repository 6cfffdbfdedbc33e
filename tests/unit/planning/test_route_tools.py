# SPDX-License-Identifier: GPL-2.0-or-later
"""What a route gives the model, and its plan of it."""

from __future__ import annotations

from pathlib import Path

from gateway.call.plan import MachineDetectionPlan
from gateway.dialplan import load_dialplan
from gateway.planning.route_tools import machine_detection_plan, own_tools, transfer_plan
from tests.unit.dialplan.test_tool_sections import route_of


def test_tools_are_offered_where_a_route_wants_them(tmp_path: Path) -> None:
    (tmp_path / "r.toml").write_text('[[route]]\nname = "plain"\n')
    plain = load_dialplan(tmp_path, {}).routes[0]
    assert [tool["name"] for tool in own_tools(plain, transfer_plan(plain, ()))] == ["end_call"]
    route = route_of(tmp_path, "[route.hold]\nenabled = true\n[route.send_dtmf]\nenabled = true\n")
    tools = {tool["name"]: tool for tool in own_tools(route, transfer_plan(route, ()))}
    assert list(tools) == ["end_call", "transfer_call", "send_dtmf", "hold"]
    destination = tools["transfer_call"]["parameters"]["properties"]["destination"]
    assert destination["enum"] == ["front desk"]
    assert "- front desk: keys" in destination["description"]
    assert tools["transfer_call"]["parameters"]["required"] == ["destination"]
    assert tools["hold"]["parameters"]["properties"]["seconds"]["maximum"] == 60
    # Where numbers are allowed too, the model may write one.
    route = route_of(
        tmp_path,
        '[[route.transfer]]\nname = "room"\nto = "sip:{number}@pbx"\nallowed_numbers = "[0-9]+"\n',
    )
    (_end, transfer) = own_tools(route, transfer_plan(route, ()))
    assert "enum" not in transfer["parameters"]["properties"]["destination"]


def test_settings_become_the_plan(tmp_path: Path) -> None:
    detection = '{ voicemail = "leave_message", beep_timeout = 0.0 }'
    text = f'[[route]]\nname = "a"\nmachine_detection = {detection}\n'
    (tmp_path / "a.toml").write_text(text)
    plan = machine_detection_plan(load_dialplan(tmp_path).routes[0])
    assert (plan.beep_timeout, plan.listens) == (0, True)
    assert not MachineDetectionPlan({"bot": "log", "music": "off"}).listens, (
        "bots go by turns and words"
    )
