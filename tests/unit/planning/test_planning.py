# SPDX-License-Identifier: GPL-2.0-or-later
"""From configuration, route and INVITE to the plan of a call."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import pytest

from gateway.audio import Codec
from gateway.call.plan import CallPlan
from gateway.config import Config
from gateway.dialplan import Dialplan, Match, load_dialplan
from gateway.planning import call_plan, codec_of, facts_of, placed_match, record_of, session_plan
from gateway.sip.leg import Invite
from tests.support.config import load_config

NOON = datetime(2026, 3, 2, 12, 0, 0, 123_456, tzinfo=timezone(timedelta(hours=2)))


def _invite(**other: Any) -> Invite:
    return Invite(
        **{
            "sip_call_id": "abc@pbx",
            "to_uri": "sip:100@gateway.example",
            "from_uri": "sip:alice@pbx.example",
            "to_user": "100",
            "from_user": "alice",
            "from_name": "Alice",
            "source": "192.0.2.7:5060",
            "headers": {"x-account": ("7",)},
            "offered": (Codec.PCMA, Codec.PCMU),
            **other,
        }
    )


def _load(folder: Path, route: str = "", config: str = "") -> tuple[Config, Dialplan]:
    (folder / "dialplans").mkdir()
    (folder / "gateway.toml").write_text(
        f'[realtime]\nurl = "ws://127.0.0.1:1/v1/realtime"\n{config}\n', encoding="utf-8"
    )
    (folder / "dialplans" / "a.toml").write_text(
        f'[[route]]\nname = "r"\n{route}\n', encoding="utf-8"
    )
    return load_config(folder / "gateway.toml", {}), load_dialplan(folder / "dialplans", {})


def _match(plan: Dialplan, invite: Invite) -> Match:
    match = plan.match(facts_of(invite, NOON))
    assert match is not None
    return match


def _plan(folder: Path, route: str = "", config: str = "", codec: Codec = Codec.PCMU) -> CallPlan:
    settings, dialplan = _load(folder, route, config)
    return call_plan(settings, _match(dialplan, _invite()), codec, 5)


@pytest.mark.parametrize(
    ("source", "address"),
    [
        ("192.0.2.7:5060", "192.0.2.7"),
        ("[2001:db8::1]:5060", "2001:db8::1"),
    ],
)
def test_facts(source: str, address: str) -> None:
    facts = facts_of(_invite(source=source), NOON)
    assert facts.source_ip == address
    assert (facts.to_user, facts.from_user, facts.at) == ("100", "alice", NOON)
    assert facts.headers == {"x-account": ("7",)}


def test_record_of_an_invite_and_of_none() -> None:
    record = record_of(_invite(), NOON)
    assert record.sip_call_id == "abc@pbx"
    assert record.call_id != record_of(_invite(), NOON).call_id
    assert record.started_at == "2026-03-02T10:00:00.123+00:00"
    assert (record.from_uri, record.to_uri) == ("sip:alice@pbx.example", "sip:100@gateway.example")
    assert record.leg.source == "192.0.2.7:5060"
    unknown = record_of(None, NOON.astimezone(UTC))
    assert (unknown.sip_call_id, unknown.leg.source) == ("", "")
    assert unknown.started_at == record.started_at


@pytest.mark.parametrize(
    ("offered", "codec"),
    [
        ((Codec.PCMA, Codec.PCMU), Codec.PCMA),
        ((Codec.PCMU,), Codec.PCMU),
        (None, Codec.PCMU),
    ],
)
def test_codec_is_the_callers_first(offered: tuple[Codec, ...] | None, codec: Codec) -> None:
    assert codec_of(_invite(offered=offered)) is codec


def test_defaults(tmp_path: Path) -> None:
    plan = _plan(tmp_path)
    assert plan.route == "r"
    assert plan.codec is Codec.PCMU
    assert plan.greeting is None
    assert (plan.dtmf.enabled, plan.dtmf.finish_on_key, plan.dtmf.interrupt) == (True, "#", True)
    assert plan.dtmf.text("42") == "The caller pressed 4 2 on the telephone keypad."
    assert plan.server.interrupts
    assert plan.server.retry_after == 5


def test_what_the_route_says_arrives(tmp_path: Path) -> None:
    plan = _plan(
        tmp_path,
        """
        to = '^(?P<extension>\\d+)$'
        [route.greeting]
        say = "Good morning."
        [route.dtmf]
        inter_digit_timeout = 1.5
        finish_on_key = "*"
        max_digits = 4
        interrupt = false
        text = "{digits} on {extension}"
        [route.end_call]
        goodbye_timeout = 7
        [route.limits]
        max_call_duration = 60
        rtp_timeout = 0
        [route.hold]
        session_audio = "stop"
        """,
    )
    assert plan.greeting == {"instructions": "Say exactly: Good morning."}
    digits = plan.dtmf
    assert (digits.inter_digit_timeout, digits.finish_on_key, digits.max_digits) == (1.5, "*", 4)
    assert not digits.interrupt
    assert digits.text("42") == "4 2 on 100"
    assert (
        plan.limits.goodbye_timeout,
        plan.limits.max_call_duration,
        plan.limits.rtp_timeout,
    ) == (7.0, 60.0, 0.0)
    assert not plan.silence_on_hold


def test_greeting_by_instructions(tmp_path: Path) -> None:
    plan = _plan(tmp_path, '[route.greeting]\ninstructions = "Greet in French."')
    assert plan.greeting == {"instructions": "Greet in French."}


@pytest.mark.parametrize(
    ("detection", "interrupts"),
    [
        ("", True),
        ('audio.input.turn_detection = { type = "semantic_vad" }', True),
        ("audio.input.turn_detection = { interrupt_response = false }", False),
    ],
)
def test_who_interrupts(tmp_path: Path, detection: str, interrupts: bool) -> None:
    assert _plan(tmp_path, f"[route.session]\n{detection}").server.interrupts is interrupts


@pytest.mark.parametrize(
    ("codec", "form"), [(Codec.PCMU, "audio/pcmu"), (Codec.PCMA, "audio/pcma")]
)
def test_session_has_the_calls_codec_and_the_hang_up_tool(
    tmp_path: Path, codec: Codec, form: str
) -> None:
    config, dialplan = _load(
        tmp_path,
        '[route.session]\ninstructions = "Be brief."\naudio.output.voice = "marin"',
        'api_key = "sk-secret-key"\nmodel = "m"\nmax_playout_seconds = 90\nconnect_timeout = 4',
    )
    route = _match(dialplan, _invite()).route
    plan = session_plan(config, route, codec)
    assert plan.settings["instructions"] == "Be brief."
    assert plan.settings["audio"]["input"]["format"] == {"type": form}
    assert plan.settings["audio"]["output"]["format"] == {"type": form}
    assert plan.settings["audio"]["output"]["voice"] == "marin"
    assert [tool["name"] for tool in plan.settings["tools"]] == ["end_call"]
    assert plan.connect_timeout == 4.0
    assert plan.max_playout_frames == 4500
    assert plan.endpoint.model == "m"
    assert "sk-secret-key" not in repr(plan)
    assert "sk-secret-key" not in str(plan.endpoint)


def test_without_the_hang_up_tool(tmp_path: Path) -> None:
    config, dialplan = _load(tmp_path, "[route.end_call]\nenabled = false")
    plan = session_plan(config, _match(dialplan, _invite()).route, Codec.PCMU)
    assert not plan.settings.get("tools")


def test_a_route_to_another_server_takes_no_key_along(tmp_path: Path) -> None:
    config, dialplan = _load(
        tmp_path,
        '[route.realtime]\nurl = "ws://127.0.0.1:2/v1/realtime"',
        'api_key = "sk-secret-key"\nheaders = { "x-key" = "secret-header" }',
    )
    plan = session_plan(config, _match(dialplan, _invite()).route, Codec.PCMU)
    assert plan.endpoint.url == "ws://127.0.0.1:2/v1/realtime"
    assert not plan.endpoint.api_key
    assert plan.endpoint.headers == {}


def test_two_calls_of_one_route_share_nothing_that_changes(tmp_path: Path) -> None:
    config, dialplan = _load(tmp_path, '[route.session]\ninstructions = "x"')
    route = _match(dialplan, _invite()).route
    one = session_plan(config, route, Codec.PCMU)
    two = session_plan(config, route, Codec.PCMA)
    assert one.settings["audio"] is not two.settings["audio"]
    assert one.settings["audio"]["input"]["format"] == {"type": "audio/pcmu"}
    assert two.settings["audio"]["input"]["format"] == {"type": "audio/pcma"}


def test_what_headers_say_of_the_caller_and_of_who_diverted() -> None:
    facts = facts_of(
        _invite(
            headers={
                "to": ('"The Desk" <sip:100@gateway.example>',),
                "p-asserted-identity": ('"Lee, Ann" <sip:+4930123@pbx>, <tel:+4930123>',),
                "diversion": (
                    "<sip:200@pbx>;reason=user-busy;counter=1",
                    "<tel:+49301>;reason=no-answer",
                ),
            }
        ),
        NOON,
    )
    assert (facts.to_name, facts.from_name, facts.sip_call_id) == ("The Desk", "Alice", "abc@pbx")
    assert (facts.pai, facts.pai_name) == (("+4930123", "+4930123"), "Lee, Ann")
    assert (facts.diversion, facts.diversion_reason) == (("200", "+49301"), "user-busy")


def test_history_info_says_it_where_no_diversion_does() -> None:
    history = (
        "<sip:300@pbx>;index=1,"
        " <sip:200@pbx;cause=302>;index=1.1,"
        " <sip:100@gateway.example;cause=486?Reason=SIP%3Bcause%3D486>;index=1.1.1",
    )
    facts = facts_of(_invite(headers={"history-info": history}), NOON)
    assert (facts.diversion, facts.diversion_reason) == (("200", "300"), "user-busy")
    alone = facts_of(
        _invite(headers={"history-info": ("<sip:100@gateway.example>;index=1",)}), NOON
    )
    assert (alone.diversion, alone.diversion_reason) == ((), "")


def test_variables_arrive_in_session_greeting_and_digits(tmp_path: Path) -> None:
    config, dialplan = _load(
        tmp_path,
        """
        [route.session]
        instructions = "You speak with {from_name|a stranger} on {to}."
        [route.greeting]
        say = "Hello {header.X-Account|you}, {nothing}."
        [route.dtmf]
        text = "{from}: {digits}"
        """.replace("{nothing}", "{trunk|no trunk}"),
    )
    match = _match(dialplan, _invite())
    session = session_plan(config, match.route, Codec.PCMU, match.values).settings
    assert session["instructions"] == "You speak with Alice on 100."
    plan = call_plan(config, match, Codec.PCMU, 5)
    assert plan.greeting == {"instructions": "Say exactly: Hello 7, no trunk."}
    assert plan.dtmf.text("12") == "alice: 1 2"


def test_variables_of_a_call_that_we_place(tmp_path: Path) -> None:
    config, dialplan = _load(
        tmp_path,
        "to = '^(?P<room>[0-9])'\nsession.instructions = 'Call {to} of {room|none} by {trunk}.'",
    )
    match = placed_match(dialplan.routes[0], "sip:+49301@pbx", "isp", {"room": "7"}, NOON)
    settings = session_plan(config, match.route, Codec.PCMU, match.values).settings
    assert settings["instructions"] == "Call +49301 of 7 by isp."


def test_what_a_silent_caller_is_asked_has_its_variables(tmp_path: Path) -> None:
    plan = _plan(tmp_path, '[route.idle]\ntimeout = 5\nprompt = "Are you there, {from}?"')
    assert plan.idle.prompt == "Are you there, alice?"
