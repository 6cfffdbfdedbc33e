# SPDX-License-Identifier: GPL-2.0-or-later
"""Transfers, holds and keys as a dialplan may write them; and what the model is shown of them."""

from __future__ import annotations

import wave
from pathlib import Path

import pytest

from gateway.audio.sounds import BUILT_IN, samples_of
from gateway.config import ConfigError
from gateway.dialplan import Route, load_dialplan
from gateway.planning.check import load_all
from gateway.planning.route_tools import own_tools, transfer_plan
from gateway.planning.sip import OutboundCaps, dial_uri
from tests.support.config import load_config

ROUTE = """
[[route]]
name = "desk"
[[route.transfer]]
name = "front desk"
to = "sip:1002@pbx"
description = "keys"
"""
CONFIG = """
[realtime]
url = "ws://127.0.0.1:8765"
[dialplan]
folder = "routes"
[[trunk]]
name = "carrier"
peers = ["192.0.2.1:5070"]
[[trunk]]
name = "office"
registrar = "pbx.example"
username = "gw"
transport = "tcp"
[sip]
listen = ["udp:127.0.0.1:5060", "tcp:127.0.0.1:5060"]
"""


def route_of(folder: Path, more: str) -> Route:
    """One route with ``more`` under it."""
    (folder / "r.toml").write_text(ROUTE + more)
    return load_dialplan(folder, {}).routes[0]


@pytest.mark.parametrize(
    ("more", "words"),
    [
        ('[[route.transfer]]\nname = "x"\nto = "1002"', "must be a URI like"),
        ('[[route.transfer]]\nname = "x"\nto = "sip:a b@pbx"', "must be a URI like"),
        ('[[route.transfer]]\nname = "Front Desk"\nto = "sip:1@pbx"', "is used twice"),
        (
            '[[route.transfer]]\nname = "x"\nto = "sip:1@pbx"\nallowed_numbers = "1"',
            "must have {number} in it",
        ),
        ('[[route.transfer]]\nname = "x"\nto = "sip:{number}@pbx"', "no allowed_numbers says"),
        ('[[route.transfer]]\nname = "x"\nto = "sip:1@pbx"\nmode = "warm"', "must be 'blind'"),
        (
            '[[route.transfer]]\nname = "x"\nto = "tel:+49"\nmode = "bridge"',
            'needs a trunk in mode "bridge"',
        ),
        ('[[route.transfer]]\nname = "a"\nto = "sip:1001"', 'has no host: write "tel:1001"'),
        (
            '[[route.transfer]]\nname = "x"\nto = "sip:1@pbx"\ntrunk = "carrier"',
            'has no effect in mode "blind"',
        ),
        (
            '[route.hold]\nsound = "waltz"',
            "must be one of ringback, ringback-us, chime, music, silence",
        ),
        ('[route.hold]\nsound = "none.wav"', "cannot be read: No such file"),
        ('[route.hold]\nsound = "wide.wav"', "has 16000 Hz, 1 channel(s), 16 bit; it must be"),
        ('[route.hold]\nsound = "text.wav"', "is no WAV of PCM samples"),
        ("[route.hold]\nmax_duration = 601", "less than or equal to 600"),
        ('[route.send_dtmf]\nmode = "morse"', "must be 'auto', 'rfc4733' or 'info'"),
    ],
)
def test_mistakes(tmp_path: Path, more: str, words: str) -> None:
    (tmp_path / "text.wav").write_text("no sound")
    with wave.open(str(tmp_path / "wide.wav"), "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(16000)
        file.writeframes(bytes(32000))
    with pytest.raises(ConfigError) as raised:
        route_of(tmp_path, more)
    assert words in str(raised.value)


def test_a_wav_beside_the_dialplan(tmp_path: Path) -> None:
    with wave.open(str(tmp_path / "music.wav"), "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(8000)
        file.writeframes(bytes(16000))
    route = route_of(tmp_path, '[route.hold]\nsound = "music.wav"')
    assert route.hold.sound == str(tmp_path / "music.wav")


def test_a_trunk_that_there_is_not(tmp_path: Path) -> None:
    (tmp_path / "routes").mkdir()
    more = '[[route.transfer]]\nname = "x"\nto = "tel:+49"\nmode = "bridge"\ntrunk = "carier"'
    route_of(tmp_path / "routes", more)
    (tmp_path / "gateway.toml").write_text(CONFIG)
    with pytest.raises(ConfigError, match=r'there is no trunk "carier"; did you mean "carrier"'):
        load_all(tmp_path / "gateway.toml")


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


def test_addresses_to_call(tmp_path: Path) -> None:
    (tmp_path / "routes").mkdir()
    (tmp_path / "gateway.toml").write_text(CONFIG)
    carrier, office = load_config(tmp_path / "gateway.toml", {}).trunk
    assert dial_uri("sip:1@pbx;user=phone", None) == "sip:1@pbx;user=phone"
    assert dial_uri("+49 (30) 1234-5", carrier) == "sip:+493012345@192.0.2.1:5070"
    assert dial_uri("tel:+4930;phone-context=x", carrier) == "sip:+4930@192.0.2.1:5070"
    assert dial_uri("sip:1002", office) == "sip:1002@pbx.example;transport=tcp"
    with pytest.raises(ValueError, match="has no host: name a trunk"):
        dial_uri("1002", None)
    for parameter in ("maddr=h", "Maddr=h", "m%61ddr=h", "method=BYE", "%6Cr", "lr", "ttl=1"):
        for to in (f"sip:1@pbx;{parameter}", f"sip:1@pbx;user=phone;{parameter}"):
            with pytest.raises(ValueError, match="no plain URI"):
                dial_uri(to, None)


@pytest.mark.parametrize(
    ("to", "rule"),
    [
        ("sip:+4930@x", None),
        ("sip:+43190@x", "outbound.allowed_prefixes has no beginning of '+43190'"),
        ("sip:+4990099@x", "outbound.denied_prefixes has '+49900'"),
    ],
)
def test_prefixes(tmp_path: Path, to: str, rule: str | None) -> None:
    (tmp_path / "routes").mkdir()
    more = '[outbound]\nenabled = true\nallowed_prefixes = ["+49"]\ndenied_prefixes = ["+49900"]\n'
    (tmp_path / "gateway.toml").write_text(CONFIG + more)
    caps = OutboundCaps(load_config(tmp_path / "gateway.toml", {}).outbound)
    assert caps.refusal(to, 0, 0.0, on_demand=True) == rule
    # A route's own destination needs no allowance, but what is forbidden is.
    own = None if rule is None or "allowed" in rule else rule
    assert caps.refusal(to, 0, 0.0, on_demand=False) == own


def test_rates(tmp_path: Path) -> None:
    (tmp_path / "routes").mkdir()
    (tmp_path / "gateway.toml").write_text(CONFIG)
    settings = load_config(tmp_path / "gateway.toml", {}).outbound
    caps = OutboundCaps(settings)
    assert caps.refusal("sip:1@x", 0, 0.0, on_demand=True) == "outbound.enabled is false"
    assert caps.refusal("sip:1@x", 4, 0.0, on_demand=False) == "outbound.max_concurrent_calls = 4"
    verdicts = [caps.refusal("sip:1@x", 0, float(at), on_demand=False) for at in range(11)]
    assert verdicts == [None] * 10 + ["outbound.max_calls_per_minute = 10"]
    assert caps.refusal("sip:1@x", 0, 60.0, on_demand=False) is None


def test_sounds_are_there_and_not_too_loud() -> None:
    for name in BUILT_IN:
        samples = samples_of(name)
        assert len(samples) >= 8000
        assert abs(samples).max() <= 0.11 * 32767
        assert bool(samples.any()) is (name != "silence")
