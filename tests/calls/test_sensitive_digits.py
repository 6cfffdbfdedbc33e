# SPDX-License-Identifier: GPL-2.0-or-later
"""Sensitive digits: entered, checked, handed to their service, and found nowhere else."""

from __future__ import annotations

import asyncio
import json
import os
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from gateway.audio import Codec
from gateway.audio.tone_detection import DtmfDetector
from tests.calls.test_api import API
from tests.calls.test_recordings import open_files
from tests.calls.test_transfer_blind import outputs_of
from tests.support.harness import GatewayStack, contents, eventually
from tests.support.http_service import Answer, HttpService, http_service, self_signed
from tests.support.sip_phone import PhoneCall

ENTRIES = int(os.environ.get("SENSITIVE_ENTRIES", "4"))

ROUTES = """
[[route]]
name = "paying"
to = "^paying$"
records.black_box = "always"
[route.greeting]
say = "Hello."
[route.dtmf]
inband = true
[route.recording]
mode = "always"
[route.collect_digits]
enabled = true
sensitive = true
timeout = 5
url = "{vault}"
headers = {{ Authorization = "Bearer vault" }}
"""


def card(seed: int) -> str:
    """A card number of 16 digits with its check digit."""
    body = [4, *random.Random(seed).choices(range(10), k=14)]
    doubled = (digit * (2 - at % 2) for at, digit in enumerate(body))
    total = sum(sum(divmod(value, 10)) for value in doubled)
    return "".join(map(str, body)) + str(-total % 10)


def asking(kind: str, digits: int | None = None) -> dict[str, Any]:
    """The model asks for an entry, and says something to what it gets."""
    given = {"kind": kind} | ({"digits": digits} if digits else {})
    tool = {"name": "collect_digits", "arguments": json.dumps(given)}
    first = {"kind": "pattern", "seconds": 0.2, "tools": [tool]}
    return {
        "vad": "off",
        "answers": [first, {"kind": "pattern", "seconds": 0.2, "seed": 7}, {"kind": "silent"}],
    }


TONES = {
    **{key: (697, hz) for key, hz in zip("123A", (1209, 1336, 1477, 1633), strict=True)},
    **{key: (770, hz) for key, hz in zip("456B", (1209, 1336, 1477, 1633), strict=True)},
    **{key: (852, hz) for key, hz in zip("789C", (1209, 1336, 1477, 1633), strict=True)},
    **{key: (941, hz) for key, hz in zip("*0#D", (1209, 1336, 1477, 1633), strict=True)},
}


def tones(digits: str) -> bytes:
    """The digits as a telephone sounds them, PCMU."""
    time = np.arange(800) / 8000
    parts = []
    for digit in digits:
        low, high = TONES[digit]
        wave = 6000 * (np.sin(2 * np.pi * low * time) + np.sin(2 * np.pi * high * time))
        parts += [wave, np.zeros(800)]
    return Codec.PCMU.from_linear(np.concatenate(parts).astype("<i2").tobytes())


class Paying:
    """A gateway with a vault, and calls that pay."""

    def __init__(self, folder: Path, vault: HttpService, more: str = "") -> None:
        more = API + '[recording]\nfolder = "recordings"\n' + more
        routes = ROUTES.replace("{vault}", vault.url + "/digits").replace("{{", "{")
        self.world = GatewayStack(folder, routes=routes.replace("}}", "}"), more=more)
        self.vault = vault
        self.calls: list[PhoneCall] = []

    async def enter(self, keys: str, how: str, **asked: Any) -> dict[str, Any]:
        """Place a call and enter these keys; returns what the model got."""
        self.world.behave(**asking(**asked))
        call = await self.world.dial("paying")
        session = await self.world.session_of(call)
        await self.world.gateway.wait("call.tool", call=call.call_id)
        await call.rtp.until(lambda: len(call.rtp.packets) > 25)
        if how == "tones":
            call.rtp.say(tones(keys))
        else:
            call.rtp.press(keys)
        await session.wait_until(lambda s: outputs_of(s) != [], 30)
        heard = bytes(session.received)
        await self.world.summary_at_end(call)
        found = DtmfDetector(Codec.PCMU).feed(heard)
        assert found == "", "the model hears no key"
        return dict(outputs_of(session)[0])

    def written(self) -> bytes:
        """All that is in files and log, and all that the model's server got."""
        files = contents(self.world.folder)
        log = json.dumps(self.world.gateway.lines).encode()
        got = [
            repr((one.client_events, one.server_events)).encode()
            for one in self.world.emulator.sessions
        ]
        return b"\0".join([*files, log, *got])


@pytest.fixture(scope="module")
def paying(runner: asyncio.Runner, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Paying]:
    """A gateway whose callers pay."""
    with http_service() as vault:
        made = Paying(tmp_path_factory.mktemp("paying"), vault)
        runner.run(made.world.start())
        yield made
        runner.run(made.world.stop())


async def test_digits_of_sensitive_entries_are_nowhere(paying: Paying) -> None:
    paying.vault.answers = [Answer(body=json.dumps({"token": "tok_1", "echo": "x"}))]
    cards = [card(seed) for seed in range(ENTRIES)]
    for number, digits in enumerate(cards):
        how = "tones" if number % 2 else "rfc4733"
        told = await paying.enter(digits, how, kind="card_number", digits=16)
        if how == "tones" and told["status"] == "invalid":
            # A telephone that stood still within a tone: the caller enters it anew.
            told = await paying.enter(digits, "rfc4733", kind="card_number", digits=16)
        assert told == {
            "status": "stored",
            "kind": "card_number",
            "token": "tok_1",
            "digits": 16,
            "last_four": digits[-4:],
        }
    assert [asked.json["digits"] for asked in paying.vault.asked] == cards
    assert {asked.headers["authorization"] for asked in paying.vault.asked} == {"Bearer vault"}
    await eventually(lambda: open_files(paying.world) == 0, "complete recordings")
    everything = paying.written()
    for digits in cards:
        for spelled in (digits, " ".join(digits), ",".join(digits), digits[:12]):
            assert spelled.encode() not in everything, spelled
    recordings = list((paying.world.folder / "recordings").glob("*.wav"))
    assert len(recordings) >= ENTRIES
    for path in recordings:
        audio = path.read_bytes()[58:]
        for side in (audio[::2], audio[1::2]):
            assert DtmfDetector(Codec.PCMU).feed(side) == "", "no key can be heard"


@pytest.mark.parametrize(
    ("keys", "asked", "told"),
    [
        ("4111111111111112", {"kind": "card_number", "digits": 16}, "no valid card number"),
        ("1225", {"kind": "expiry"}, "expired"),
        ("12#", {"kind": "security_code"}, "2 digits"),
    ],
)
async def test_wrong_entries_are_told_and_go_nowhere(
    paying: Paying, keys: str, asked: dict[str, Any], told: str
) -> None:
    paying.vault.asked.clear()
    result = await paying.enter(keys, "rfc4733", **asked)
    assert result["status"] == "invalid"
    assert told in result["reason"]
    assert paying.vault.asked == []


@pytest.mark.parametrize(
    "answer",
    [
        Answer(status=500, body='{"error": "4111111111111111 is not known"}'),
        Answer(body='{"token": "4111111111111111"}'),
        Answer(body='{"token": "card-4111-1111 1111.1111"}'),
        Answer(body="[]"),
    ],
    ids=["refused", "echo", "grouped", "nothing"],
)
async def test_a_vault_that_fails_gives_nothing_away(paying: Paying, answer: Answer) -> None:
    paying.vault.answers = [answer]
    result = await paying.enter("4111111111111111", "rfc4733", kind="card_number", digits=16)
    assert result["status"] == "failed"
    assert b"4111111111111111" not in paying.written()


async def test_a_token_may_have_a_short_code_in_it_by_chance(paying: Paying) -> None:
    paying.vault.answers = [Answer(body='{"token": "tok_81237"}')]
    result = await paying.enter("123", "rfc4733", kind="security_code", digits=3)
    assert (result["status"], result["token"]) == ("stored", "tok_81237")


@pytest.mark.parametrize("trusted", [True, False])
async def test_the_vault_is_known_by_its_certificate(own_folder: Path, trusted: bool) -> None:
    """Digits go to whom an authority vouches for: to nobody else, and in no other way."""
    pem = self_signed(own_folder)
    with http_service(pem) as vault:
        vault.answers = [Answer(body='{"token": "tok_tls"}')]
        more = f'[tools]\nhttp_ca = "{pem.with_suffix(".crt")}"\n' if trusted else ""
        made = Paying(own_folder, vault, more)
        await made.world.start()
        told = await made.enter("4111111111111111", "rfc4733", kind="card_number", digits=16)
        assert told["status"] == ("stored" if trusted else "failed")
        assert [asked.json["digits"] for asked in vault.asked] == ["4111111111111111"] * trusted
        assert b"4111111111111111" not in made.written()
        await made.world.stop()
