# SPDX-License-Identifier: GPL-2.0-or-later
"""The gateway's own tools: what the model is shown of them, and which arguments are taken."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from typing import Any

import pytest

from gateway.call.tools.commands import (
    BriefingPlan,
    CollectPlan,
    Destination,
    DispositionPlan,
    HoldPlan,
    LanguagePlan,
    RecordingPlan,
    SchedulePlan,
    TransferPlan,
)
from gateway.call.tools.definitions import (
    MAX_BRIEFING,
    ToolCallError,
    calls_of,
    collect_digits,
    collect_wanted,
    disposition_of,
    entry_problem,
    hold,
    hold_seconds,
    key_steps,
    language_of,
    record_action,
    record_call,
    schedule_callback,
    set_disposition,
    set_language,
    transfer_call,
    transfer_target,
)


@pytest.mark.parametrize(
    ("kind", "digits", "wrong"),
    [
        ("card_number", "4111111111111111", ""),
        ("card_number", "4111111111111112", "no valid card number"),
        ("card_number", "41111111111", "11 digits"),
        ("expiry", "1226", ""),
        ("expiry", "1126", ""),
        ("expiry", "1026", "expired"),
        ("expiry", "1326", "no month"),
        ("expiry", "1299", "too far"),
        ("security_code", "123", ""),
        ("security_code", "12", "2 digits"),
        ("digits", "1", ""),
        ("digits", "1*", "other keys"),
    ],
)
def test_sensitive_entries_are_checked(kind: str, digits: str, wrong: str) -> None:
    found = entry_problem(kind, digits, 2026, 11)
    assert wrong in found if wrong else found == ""
    assert digits not in found


ROUTE = TransferPlan(
    (
        Destination("Front Desk", "sip:1@pbx"),
        Destination("rooms", "sip:{number}@pbx", allowed_numbers=re.compile("1[0-9]{2}|[*#]9")),
        Destination("staff", "sip:9{number}@pbx", allowed_numbers=re.compile("[12][0-9]{2}")),
    )
)


@pytest.mark.parametrize(
    ("wanted", "name", "uri"),
    [
        (" front desk ", "Front Desk", "sip:1@pbx"),
        ("1 0-7", "rooms", "sip:107@pbx"),
        ("207", "staff", "sip:9207@pbx"),
        ("#9", "rooms", "sip:%239@pbx"),
        ("rooms", "", "'rooms' is not allowed; there are: 'Front Desk', 'rooms', 'staff'"),
        ("1071", "", "is not allowed"),
        ("107@h", "", "is not allowed"),
    ],
)
def test_a_destination_is_named_or_is_a_number_that_the_route_allows(
    wanted: str, name: str, uri: str
) -> None:
    arguments = json.dumps({"destination": wanted, "briefing": " b" * MAX_BRIEFING})
    if not name:
        with pytest.raises(ToolCallError, match=re.escape(uri)):
            transfer_target(arguments, ROUTE)
        return
    target = transfer_target(arguments, ROUTE)
    assert (target.destination.name, target.uri) == (name, uri)
    assert len(target.briefing) == MAX_BRIEFING


@pytest.mark.parametrize(
    ("digits", "steps"),
    [
        ("1w2W3,4", ("1", 0.5, "2", 1.0, "3", 2.0, "4")),
        (" a-b #* ", ("A", "B", "#", "*")),
        ("w,", "there is no key in it"),
        ("1e2", "'e' is no key"),
        ("1" * 64, ("1",) * 64),
        ("1" * 65, "65 are too many, 64 go at a time"),
        ("", "at least 1 character"),
    ],
)
def test_keys_and_pauses_that_are_pressed(
    digits: str, steps: tuple[str | float, ...] | str
) -> None:
    arguments = json.dumps({"digits": digits})
    if isinstance(steps, str):
        with pytest.raises(ToolCallError, match=steps):
            key_steps(arguments)
    else:
        assert key_steps(arguments) == steps


COLLECTS = CollectPlan(True, timeout=7.0, max_digits=20)


@pytest.mark.parametrize(
    ("wanted", "is_waited_for"),
    [
        ({}, (20, "#", 7.0, "digits")),
        ({"digits": 4, "terminator": "", "seconds": 3}, (4, "", 3.0, "digits")),
        ({"kind": "expiry"}, (4, "#", 7.0, "expiry")),
        ({"kind": "card_number"}, (19, "#", 7.0, "card_number")),
        ({"digits": 21}, "digits: at most 20"),
        ({"digits": 0}, "digits: "),
        ({"seconds": 121}, "seconds: "),
        ({"terminator": "12"}, "terminator: "),
        ({"kind": "pin"}, "kind: "),
    ],
)
def test_digits_that_the_model_waits_for(
    wanted: dict[str, Any], is_waited_for: tuple[int, str, float, str] | str
) -> None:
    if isinstance(is_waited_for, str):
        with pytest.raises(ToolCallError, match=is_waited_for):
            collect_wanted(json.dumps(wanted), COLLECTS)
    else:
        assert collect_wanted(json.dumps(wanted), COLLECTS) == is_waited_for


def test_a_language_is_known_by_code_and_by_name() -> None:
    plan = LanguagePlan({"de": "German", "pt-BR": "Portuguese"})
    for wanted, code in (("DE", "de"), (" german ", "de"), ("pt-br", "pt-BR")):
        assert language_of(json.dumps({"language": wanted}), plan) == code
    with pytest.raises(ToolCallError, match="'pt' is not offered; there are: de, pt-BR"):
        language_of('{"language": "pt"}', plan)


def test_a_hold_has_its_longest_time() -> None:
    assert hold_seconds('{"seconds": 60}', 60.0) == 60.0
    with pytest.raises(ToolCallError, match=r"60\.5 is too long, at most 60"):
        hold_seconds('{"seconds": 60.5}', 60.0)
    with pytest.raises(ToolCallError, match="greater than 0"):
        hold_seconds('{"seconds": 0}', 60.0)


def test_what_the_model_may_note_of_a_call_and_do_to_its_recording() -> None:
    plan = DispositionPlan(values=("booked", "refused"))
    assert disposition_of('{"disposition": "refused"}', plan) == "refused"
    with pytest.raises(ToolCallError, match="must be one of booked, refused"):
        disposition_of('{"disposition": "sold"}', plan)
    assert record_action('{"action": "delete"}') == "delete"
    with pytest.raises(ToolCallError, match="action: "):
        record_action('{"action": "erase"}')


@pytest.mark.parametrize(
    ("tool", "off", "on", "parameters"),
    [
        (
            hold,
            HoldPlan(),
            HoldPlan(True, max_duration=30.0),
            {"seconds": {"type": "number", "exclusiveMinimum": 0, "maximum": 30.0}},
        ),
        (
            set_disposition,
            DispositionPlan("none"),
            DispositionPlan(values=("a", "b")),
            {"disposition": {"type": "string", "enum": ["a", "b"]}},
        ),
        (
            set_language,
            LanguagePlan({"de": "German"}),
            LanguagePlan({"de": "German"}, {"de": {}}),
            {"language": {"type": "string", "enum": ["de"], "description": "de: German"}},
        ),
        (
            record_call,
            RecordingPlan("off", tool=True),
            RecordingPlan("always", tool=True),
            {
                "action": {
                    "type": "string",
                    "enum": ["start", "stop", "pause", "resume", "delete"],
                }
            },
        ),
    ],
)
def test_a_tool_is_offered_where_the_route_has_it(
    tool: Callable[[Any, str], dict[str, Any] | None], off: Any, on: Any, parameters: Any
) -> None:
    assert tool(off, "x") is None
    offered = tool(on, "What it does.")
    assert offered is not None
    assert (offered["type"], offered["description"]) == ("function", "What it does.")
    assert offered["parameters"] == {
        "type": "object",
        "properties": parameters,
        "additionalProperties": False,
        "required": list(parameters),
    }


def test_arguments_that_the_model_may_leave_out() -> None:
    assert collect_digits(CollectPlan(), "") is None
    assert schedule_callback(SchedulePlan(), "") is None
    plain = collect_digits(COLLECTS, "")
    private = collect_digits(CollectPlan(True, sensitive=True), "")
    later = schedule_callback(SchedulePlan(True), "")
    assert plain is not None
    assert private is not None
    assert later is not None
    assert "required" not in plain["parameters"]
    assert set(private["parameters"]["properties"]) - set(plain["parameters"]["properties"]) == {
        "kind"
    }
    assert plain["parameters"]["properties"]["digits"]["maximum"] == 20
    assert later["parameters"]["required"] == ["at"]


def test_a_briefing_is_asked_for_where_its_words_are_the_models() -> None:
    own, fixed = BriefingPlan(), BriefingPlan(text="A guest.")
    for briefing, wanted in ((own, True), (fixed, False), (None, False)):
        plan = TransferPlan((Destination("a", "sip:1@pbx", "bridge", briefing=briefing),))
        tool = transfer_call(plan, "")
        assert tool is not None
        assert ("briefing" in tool["parameters"]["required"]) is wanted


def test_of_calls_with_one_id_the_last_counts() -> None:
    output = [
        {"type": "message"},
        {"type": "function_call", "call_id": "c1", "name": "old"},
        {"type": "function_call", "name": "first"},
        {"type": "function_call", "name": "second"},
        {"type": "function_call", "call_id": "c1", "name": "new"},
    ]
    assert [call["name"] for call in calls_of(output)] == ["new", "first", "second"]
