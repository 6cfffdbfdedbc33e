# SPDX-License-Identifier: GPL-2.0-or-later
"""Transfers, holds and keys as a dialplan may write them."""

from __future__ import annotations

import wave
from pathlib import Path

import pytest

from gateway.config import ConfigError
from gateway.dialplan import Route, load_dialplan
from gateway.planning.check import load_all

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
