# SPDX-License-Identifier: GPL-2.0-or-later
"""``gateway doctor --trunk`` with faults made on purpose, each found under its own name.

One Asterisk has the test numbers. Kamailio stands before it and makes what a network and a carrier
do wrong; a relay between their RTP loses, delays and swallows packets.
"""

from __future__ import annotations

import asyncio
import json
import re
import sys
from collections.abc import Awaitable, Iterator
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path
from typing import Any

import pytest

from tests.interop.lab.asterisk import Asterisk
from tests.interop.lab.debian import Root
from tests.interop.lab.keys import self_signed
from tests.interop.lab.ports import GATEWAY, PBX, PROXY, free_port
from tests.interop.lab.trunk_faults import (
    SECRET,
    Certificates,
    Faults,
    RtpRelay,
    asterisk_conf,
)
from tests.support.harness import rtp_range

pytestmark = pytest.mark.interop

CONFIG = """
[sip]
listen = ["udp:{own}:0", "tcp:{own}:0", "tls:{own}:0"]
rtp_ports = [{low}, {high}]
{sip}
[sip.tls]
certificate = "{folder}/keys/gateway.crt"
private_key = "{folder}/keys/gateway.key"
ca = "{folder}/keys/ca.crt"
[realtime]
url = "ws://127.0.0.1:9"
[outbound]
enabled = true
allowed_prefixes = ["6", "99"]
"""


@dataclass
class Lab:
    """The servers, and the trunks of a configuration."""

    folder: Path
    asterisk: Asterisk
    faults: Faults
    certificates: Certificates
    trunks: dict[str, str] = field(default_factory=dict)

    def by_proxy(self, name: str, number: str = "600", user: str = "plain", more: str = "") -> None:
        """Add a trunk whose calls go through Kamailio, as this endpoint of Asterisk."""
        self.trunks[name] = (
            f'peers = ["127.0.1.{len(self.trunks) + 1}"]\nusername = "{user}"\n'
            f'outbound_proxy = "{self.faults.address}"\ntest_number = "{number}"\n{more}'
        )

    def registering(self, name: str, registrar: str, user: str, more: str = "") -> None:
        """Add a trunk that registers."""
        self.trunks[name] = f'registrar = "{registrar}"\nusername = "{user}"\n{more}'

    def examine(self, sip: str = "") -> Awaitable[dict[str, list[dict[str, Any]]]]:
        """Run the doctor on all trunks added since the last time; its findings by trunk."""
        trunks, self.trunks = self.trunks, {}
        return self._examine(trunks, sip)

    async def _examine(self, added: dict[str, str], sip: str) -> dict[str, list[dict[str, Any]]]:
        folder = self.folder / f"config-{len(list(self.folder.iterdir()))}"
        (folder / "dialplans").mkdir(parents=True)
        low, high = rtp_range()
        text = CONFIG.format(own=GATEWAY, folder=self.folder, sip=sip, low=low, high=high)
        trunks = [f'[[trunk]]\nname = "{name}"\n{more}' for name, more in added.items()]
        (folder / "gateway.toml").write_text("\n".join([text, *trunks]))
        names = [part for name in added for part in ("--trunk", name)]
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "gateway", "doctor", "-c", str(folder / "gateway.toml")),
            *("--json", *names),
            stdout=asyncio.subprocess.PIPE,
        )
        output, _ = await process.communicate()
        assert process.returncode in (0, 1), process.returncode
        (folder / "report.json").write_bytes(output)
        found: dict[str, list[dict[str, Any]]] = {name: [] for name in added}
        for one in json.loads(output):
            found[one["subject"].removeprefix("trunk ")].append(one)
        return found


@pytest.fixture(scope="module")
def lab(
    runner: asyncio.Runner, root: Root, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Lab]:
    folder = tmp_path_factory.mktemp("doctor")
    keys = self_signed(folder / "asterisk-keys", "lab")
    certificates = Certificates(folder / "keys")
    asterisk = Asterisk(root, folder / "asterisk", keys)
    relay = RtpRelay()
    faults = Faults(root, folder / "kamailio", asterisk.address, relay)
    pjsip, extensions = asterisk_conf(certificates)
    asterisk.configuration.write(pjsip, extensions)
    rtp = asterisk.configuration.etc / "rtp.conf"
    rtp.write_text(rtp.read_text() + "rtcpinterval = 1000\n")

    async def start() -> None:
        await asyncio.gather(asterisk.start(), faults.start(), relay.start())

    async def stop() -> None:
        relay.stop()
        await asyncio.gather(asterisk.stop(), faults.stop())

    try:
        runner.run(start())
        yield Lab(folder, asterisk, faults, certificates)
    finally:
        runner.run(stop())


def troubles(findings: list[dict[str, Any]]) -> set[str]:
    return {one["code"] for one in findings if one["verdict"] != "ok"}


HEALTHY = ("plain", "registered", "secure")

BUSY = {"jitter", "late"}
"""What a busy machine does to the packets of any line; unit tests hold its thresholds."""

EXPECTED = {
    "password": "password",
    "realm": "realm",
    "user": "user",
    "brief": "register_expires",
    "closed": "port",
    "transport": "transport",
    "name": "dns",
    "expired": "certificate",
    "early": "certificate",
    "other-name": "certificate",
    "stranger": "certificate",
    "forbidden": "refused_403",
    "unknown": "refused_404",
    "busy": "refused_486",
    "overloaded": "refused_503",
    "credentials": "password",
    "silent": "invite_unanswered",
    "no-codec": "codec",
    "one-codec": "codec",
    "wants-srtp": "srtp",
    "takes-no-srtp": "srtp",
    "min-se": "session_timer",
    "contact": "ack_lost",
    "their-address": "sdp_address",
    "uplink": "audio_up",
    "downlink": "audio_down",
    "keys-by-info": "dtmf_not_offered",
    "payload-type": "dtmf_payload",
    "early-end": "bye",
    "not-allowed": "not_allowed",
}
"""The finding that each fault has to bring, by the trunk that has it."""


def faulty(lab: Lab) -> None:
    """Add a trunk for each fault that needs no setting of the whole gateway."""
    proxy, pbx = lab.faults.address, lab.asterisk.address
    right = f'password = "{SECRET}"\n'
    lab.registering("password", pbx, "reg", 'password = "wrong"')
    lab.registering("realm", proxy, "plain", f'{right}realm = "elsewhere"')
    lab.registering("user", proxy, "nobody", right)
    lab.registering("brief", proxy, "plain", right)
    lab.registering("closed", f"{PROXY}:{free_port(PROXY)}", "plain", right)
    lab.registering(
        "transport", f"{PROXY}:{lab.faults.udp_only}", "plain", f'{right}transport = "tcp"'
    )
    lab.registering("name", "pbx.invalid", "plain", right)
    for name, kind in (
        ("other-name", "name"),
        *((one, one) for one in ("expired", "early", "stranger")),
    ):
        where = f"{PBX}:{lab.certificates.ports[kind]}"
        lab.registering(name, where, "secure", f'{right}transport = "tls"')
    lab.by_proxy("forbidden", "99403")
    lab.by_proxy("unknown", "99404")
    lab.by_proxy("busy", "99486")
    lab.by_proxy("overloaded", "99503")
    lab.by_proxy("credentials", "99407", more='password = "wrong"')
    lab.by_proxy("silent", "99000")
    lab.by_proxy("no-codec", user="g722")
    lab.by_proxy("one-codec", user="alaw", more='codecs = ["PCMU"]')
    lab.by_proxy("wants-srtp", user="srtp")
    lab.by_proxy("takes-no-srtp", more='srtp = "required"\nsdes_without_tls = true')
    lab.by_proxy("min-se", "99422")
    lab.by_proxy("contact", "99001")
    lab.by_proxy("their-address", "99002")
    lab.by_proxy("payload-type", "99003")
    lab.by_proxy("loss", "99010")
    lab.by_proxy("jitter", "99011")
    lab.by_proxy("uplink", "99012")
    lab.by_proxy("downlink", "99013")
    lab.by_proxy("keys-by-info", user="info")
    lab.by_proxy("early-end", "601")
    lab.by_proxy("not-allowed", "700")


async def test_each_fault_is_named_and_a_healthy_trunk_draws_no_finding(lab: Lab) -> None:
    lab.by_proxy("plain")
    more = f'password = "{SECRET}"\ntest_number = "600"\n'
    lab.registering("registered", lab.asterisk.address, "reg", more)
    more += 'transport = "tls"\nsrtp = "required"\n'
    lab.registering("secure", f"{PBX}:{lab.certificates.ports['good']}", "secure", more)
    faulty(lab)
    first = lab.examine()
    lab.by_proxy("nat")
    lab.by_proxy("timer", user="timer")
    second = lab.examine('public_address = "127.0.0.250"\nsession_timers = "off"')
    found, others = await asyncio.gather(first, second)
    assert {"jitter"} <= troubles(found["jitter"]) <= BUSY
    named = {name: troubles(findings) - BUSY for name, findings in found.items()}
    assert {name: named[name] for name in HEALTHY} == {name: set() for name in HEALTHY}
    assert {name: named[name] for name in EXPECTED} == {
        name: {code} for name, code in EXPECTED.items()
    }
    assert named["loss"] == {"loss_down", "loss_up"}
    (lost,) = [one for one in found["contact"] if one["verdict"] == "bad"]
    assert "the Contact sip:asterisk@127.0.0.99:5999 of its answer" in lost["fact"]
    assert "it sent BYE" in lost["fact"]
    evidence = "".join(t for one in chain(*found.values()) for t in one["evidence"])
    assert "INVITE sip:600@" in evidence
    assert not re.search(r"response=|nonce=|inline:(?!\(removed)|wrong|trunk-secret", evidence)

    named = {name: troubles(findings) - BUSY for name, findings in others.items()}
    assert named == {"nat": {"nat"}, "timer": {"session_timer", "nat"}}
    (nat,) = [one for one in others["nat"] if one["code"] == "nat"]
    assert f"sees us at {GATEWAY}" in nat["fact"]
    assert "sip.public_address (gateway.toml:" in nat["advice"]
