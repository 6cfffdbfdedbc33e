# SPDX-License-Identifier: GPL-2.0-or-later
"""``gateway route-test``: the answer that operators get before they change a dialplan."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from gateway.cli import main

ROUTES = """
[[route]]
name = "vip"
to = "^100$"
headers = { X-Queue = "^vip$" }

[[route]]
name = "night"
to = "^100$"
hours = "22:00-06:00"
timezone = "Europe/Berlin"

[[route]]
name = "diverted"
diversion = "^200$"
trunk = "isp"

[[route]]
name = "hotel"
to = "^1(?P<room>[0-9]{2})$"
[route.session]
instructions = "Room {room}, called by {from_name|somebody} ({header.X-Case|no case})."
tools = [{ type = "mcp", server_label = "x", server_url = "https://x", authorization = "tok-77" }]
[route.greeting]
say = "Good {part_of_day}, {from_name|dear guest}."
[route.realtime]
api_key = "sk-route-key"

[[route]]
name = "rest"
to = "^1"
"""

INVITE = """INVITE sip:100@gateway.example SIP/2.0
v: SIP/2.0/UDP 192.0.2.9:5080;branch=z9hG4bK1
Max-Forwards: 70
f: "Ann\\" Lee" <sip:+4930123@isp.example>;tag=1
t: <sip:100@gateway.example>
i: 77@isp
Diversion: <sip:200@isp.example>;reason=no-answer
CSeq: 1 INVITE
c: application/sdp

v=0
m=audio 4000 RTP/AVP 8 0
"""

AT = ("--at", "2026-11-20T18:30+01:00")


@pytest.fixture
def config(tmp_path: Path) -> Path:
    (tmp_path / "plans").mkdir()
    (tmp_path / "plans" / "a.toml").write_text(ROUTES, encoding="utf-8")
    file = tmp_path / "gateway.toml"
    file.write_text(
        '[realtime]\nurl = "wss://one.example/v1"\napi_key = "sk-main-key"\n'
        '[dialplan]\nfolder = "plans"\n'
        '[[trunk]]\nname = "isp"\npeers = ["192.0.2.0/24"]\n',
        encoding="utf-8",
    )
    return file


def _run(config: Path, *arguments: str, stdin: str | bytes | None = None) -> Result:
    return CliRunner().invoke(main, ["route-test", "-c", str(config), *arguments], input=stdin)


def _json(config: Path, *arguments: str, stdin: str | bytes | None = None) -> dict[str, Any]:
    result = _run(config, *AT, *arguments, "--json", stdin=stdin)
    answer: dict[str, Any] = json.loads(result.stdout)
    assert result.exit_code == (0 if answer["route"] else 1)
    return answer


def test_the_route_the_reasons_the_variables_and_the_session(config: Path) -> None:
    answer = _json(config, "--to", "100", "--from", '"Ann" <sip:7@pbx>', "--source", "10.0.0.1")
    assert answer["route"] == "hotel"
    assert {one["name"]: one["refusal"] for one in answer["routes"]} == {
        "vip": "headers.X-Queue wants '^vip$', is absent",
        "night": "hours wants 22:00-06:00 (Europe/Berlin), is fri 18:30",
        "diverted": "diversion wants '^200$', is absent",
        "hotel": "",
        "rest": "",
    }
    assert answer["routes"][3]["where"] == f"{config.parent}/plans/a.toml:18"
    assert answer["variables"]["room"] == "00"
    assert answer["session"]["instructions"] == "Room 00, called by Ann (no case)."
    assert answer["session"]["audio"]["input"]["format"] == {"type": "audio/pcmu"}
    assert answer["response"]["instructions"].endswith(", Ann.")
    assert "no trunk's, so its calls are refused" in answer["access"]


def test_a_live_route_shows_how_its_session_is_greeted(config: Path) -> None:
    plan = config.parent / "plans" / "a.toml"
    text = plan.read_text(encoding="utf-8").replace("[route.session]", "[route.live]", 1)
    plan.write_text(text.partition("tools = ")[0] + text[text.index("[route.greeting]") :])
    config.write_text(
        config.read_text().replace("/v1", '/v1/live/sessions"\nmodel = "gpt-live-1', 1)
    )
    answer = _json(config, "--to", "100", "--from", '"Ann" <sip:7@pbx>')
    assert answer["response"]["type"] == "session.commentary.append"
    assert "Good afternoon, Ann." in json.dumps(answer["response"])
    assert answer["model"] == "gpt-live-1"


def test_an_invite_from_a_file_belongs_to_its_trunk(config: Path, tmp_path: Path) -> None:
    file = tmp_path / "invite.txt"
    file.write_text(INVITE, encoding="utf-8")
    answer = _json(config, "--invite", str(file))
    assert answer["route"] == "diverted"
    assert (answer["facts"]["trunk"], answer["attributed_by"]) == ("isp", "peer")
    assert answer["facts"]["source_ip"] == "192.0.2.9"
    assert answer["variables"]["diversion_reason"] == "no-answer"
    assert answer["variables"]["from_name"] == "Ann' Lee"
    assert answer["cleaned"] == ["from_name"]
    assert answer["session"]["audio"]["output"]["format"] == {"type": "audio/pcmu"}
    assert answer["access"] == ""


def test_an_invite_from_standard_input_with_a_header_more(config: Path) -> None:
    answer = _json(
        config, "--invite", "-", "--header", "X-Queue: vip", "--trunk", "isp", stdin=INVITE
    )
    assert (answer["route"], answer["attributed_by"]) == ("vip", "as given")
    crlf = INVITE.replace("\n", "\r\n").replace("Ann", "J\xf6rg").encode("latin-1")
    assert _json(config, "--invite", "-", stdin=crlf)["route"] == "diverted"


@pytest.mark.parametrize(
    ("codecs", "shown"),
    [
        ('["G722", "PCMU"]', {"type": "audio/pcm", "rate": 24000}),
        ('["PCMA", "G722"]', {"type": "audio/pcma"}),
        ('["opus", "PCMU"]', {"type": "audio/pcm", "rate": 24000}),
        ('["PCMU", "PCMA"]', {"type": "audio/pcmu"}),
    ],
)
def test_the_session_has_the_format_of_the_codec_that_the_trunk_prefers(
    config: Path, codecs: str, shown: dict[str, Any]
) -> None:
    with config.open("a", encoding="utf-8") as file:
        file.write(f"codecs = {codecs}\n")
    invite = INVITE.replace("RTP/AVP 8 0", "RTP/AVP 97 9 8 0\na=rtpmap:97 opus/48000/2")
    found = _json(config, "--invite", "-", *AT, stdin=invite)
    assert found["session"]["audio"]["input"]["format"] == shown


def test_no_secret_is_shown(config: Path) -> None:
    for form in ([], ["--json"]):
        result = _run(config, "--to", "101", "--header", "X-Case: 7", *form)
        assert result.exit_code == 0
        for secret in ("sk-main-key", "sk-route-key", "tok-77"):
            assert secret not in result.output
        assert '"authorization": "***"' in result.output


def test_no_route_is_exit_1(config: Path) -> None:
    result = _run(config, "--to", "900")
    assert result.exit_code == 1
    assert "No route takes this call: 404" in result.output
    assert "to wants '^100$', is '900'" in result.output


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--to", "1", "--at", "tomorrow"], "--at 'tomorrow'"),
        (["--to", "1", "--source", "pbx"], "--source 'pbx'"),
        (["--to", "1", "--trunk", "gone"], "no such trunk (isp)"),
        (["--to", "1", "--header", "X A"], "--header 'X A'"),
        (["--invite", "-"], "is no INVITE"),
        ([], "--to USER, or --invite FILE"),
    ],
)
def test_what_cannot_be_tested_is_exit_2(config: Path, arguments: list[str], message: str) -> None:
    result = _run(config, *arguments, stdin="OPTIONS sip:x SIP/2.0\n\n")
    assert result.exit_code == 2
    assert message in result.output


def test_a_bad_dialplan_is_exit_2_with_its_line(config: Path) -> None:
    (config.parent / "plans" / "b.toml").write_text('[[route]]\nname = "x"\nto = "("\n')
    result = _run(config, "--to", "1")
    assert result.exit_code == 2
    assert "b.toml:3: route[0].to" in result.output
