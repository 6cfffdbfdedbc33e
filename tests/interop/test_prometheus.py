# SPDX-License-Identifier: GPL-2.0-or-later
"""Prometheus' own tool reads our rules, tries them, and reads what ``/metrics`` says."""

from __future__ import annotations

import json
import re
import subprocess
from pathlib import Path

import httpx
import pytest

from tests.calls.test_api import API
from tests.interop.lab.debian import Root
from tests.support.gateway_process import WITHIN_S
from tests.support.harness import GatewayStack

pytestmark = pytest.mark.interop

DEPLOY = Path(__file__).parents[2] / "deploy"


def promtool(root: Root, *words: str, text: str = "") -> str:
    """What it says; it must be content."""
    done = subprocess.run(
        [*root.command("usr/bin/promtool"), *words],
        cwd=DEPLOY / "prometheus",
        input=text,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=60,
    )
    assert done.returncode == 0, done.stdout
    return done.stdout


@pytest.mark.parametrize(
    "words",
    [("check", "alerts.yml"), ("test", "alerts_test.yml"), ("test", "alerts_week_test.yml")],
)
def test_the_alert_rules(root: Root, words: tuple[str, str]) -> None:
    assert "SUCCESS" in promtool(root, words[0], "rules", words[1])


def test_the_expressions_of_the_dashboard(root: Root, tmp_path: Path) -> None:
    panels = json.loads((DEPLOY / "grafana" / "gateway.json").read_text("utf-8"))["panels"]
    wanted = [one["expr"] for panel in panels for one in panel.get("targets", ())]
    rules = [
        {"record": f"panel:{n}", "expr": re.sub(r"\$__rate_interval", "5m", expression)}
        for n, expression in enumerate(wanted)
    ]
    file = tmp_path / "rules.yml"
    file.write_text(json.dumps({"groups": [{"name": "dashboard", "rules": rules}]}))
    assert f"{len(wanted)} rules found" in promtool(root, "check", "rules", str(file))


async def test_what_a_gateway_says(root: Root, own_folder: Path) -> None:
    world = GatewayStack(own_folder, more=API)
    await world.start()
    await world.summary_at_end(await world.dial("greeted"))
    address = world.gateway.all("api.listening")[-1]["address"]
    async with httpx.AsyncClient(trust_env=False, timeout=WITHIN_S) as http:
        text = (await http.get(f"http://{address}/metrics")).text
    await world.stop()
    promtool(root, "check", "metrics", text=text)
