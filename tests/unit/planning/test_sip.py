# SPDX-License-Identifier: GPL-2.0-or-later
"""Addresses, caller ids and limits of calls that are placed; settings of the SIP user agent."""

from __future__ import annotations

from pathlib import Path

import pytest

from gateway.planning.sip import OutboundCaps, dial_uri, sip_settings
from tests.support.config import load_config
from tests.unit.config.test_sip import BASE, problem, written
from tests.unit.dialplan.test_tool_sections import CONFIG


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


def test_a_wait_for_packets_of_its_own(tmp_path: Path) -> None:
    """What a trunk leaves out is that of ``[media]``."""
    trunk = '[[trunk]]\nname = "a"\npeers = ["192.0.2.1"]\n'
    settings = sip_settings(load_config(written(tmp_path, trunk + "packet_wait_ms = 120\n"), {}))
    assert (settings.trunks[0].packet_wait_ms, settings.packet_wait_ms) == (120, 60)
    assert problem(tmp_path, trunk + "packet_wait_ms = 5\n")[1] == "trunk[0].packet_wait_ms"


def test_sip_settings(tmp_path: Path) -> None:
    text = BASE.replace("5060", "5070") + "rtp_ports = [30000, 30099]\nmax_calls = 7\n"
    (tmp_path / "dialplans").mkdir()
    (tmp_path / "gateway.toml").write_text(text)
    settings = sip_settings(load_config(tmp_path / "gateway.toml", {}))
    listen = settings.listen[0]
    assert (listen.transport, listen.host, listen.port) == ("udp", "127.0.0.1", 5070)
    assert settings.rtp_ports == (30000, 30099)
    assert settings.max_calls == 7
