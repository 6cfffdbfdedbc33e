# SPDX-License-Identifier: GPL-2.0-or-later
"""Alert rules and dashboard name metrics, labels and values that there are."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from gateway.api.metrics import READINGS, Metrics
from gateway.ending import OUTCOMES

DEPLOY = Path(__file__).parents[3] / "deploy"
RULES = (DEPLOY / "prometheus" / "alerts.yml").read_text(encoding="utf-8")
CASES = "".join(
    file.read_text(encoding="utf-8")
    for file in sorted((DEPLOY / "prometheus").glob("alerts_*test.yml"))
)
DASHBOARD: dict[str, Any] = json.loads((DEPLOY / "grafana" / "gateway.json").read_text("utf-8"))
PARTS = re.compile(r"_(total|bucket|count|sum)$")
PANELS = [panel for panel in DASHBOARD["panels"] if panel["type"] != "row"]
EXPRESSIONS = "\n".join(target["expr"] for panel in PANELS for target in panel["targets"])


def names_that_exist() -> set[str]:
    """Names of metrics, without the endings of their samples."""
    counted = {family.name for family in Metrics(["r"], ["t"]).registry.collect()}
    return counted | {f"gateway_{name}" for name in READINGS}


@pytest.mark.parametrize("text", [RULES, CASES, EXPRESSIONS], ids=["rules", "cases", "dashboard"])
def test_every_metric_that_is_named_exists(text: str) -> None:
    named = set(re.findall(r"\bgateway_[a-z_]+", text))
    assert len(named) >= 20
    assert {PARTS.sub("", name) for name in named} <= names_that_exist()


def test_outcomes_of_the_rules_exist() -> None:
    named = {one for text in re.findall(r'outcome=~?"([^"]+)"', RULES) for one in text.split("|")}
    assert named <= set(OUTCOMES)


def test_every_metric_is_on_the_dashboard_or_in_a_rule() -> None:
    shown = {PARTS.sub("", name) for name in re.findall(r"\bgateway_[a-z_]+", EXPRESSIONS + RULES)}
    assert names_that_exist() - shown == {
        "gateway_build_info",
        "gateway_calls_started",
        "gateway_config_last_success_timestamp_seconds",
        "gateway_media_faults",
        "gateway_traces",
        "gateway_webhook_seconds",
    }


def test_each_rule_has_a_case_that_fires_and_one_that_is_quiet() -> None:
    alerts = re.findall(r"- alert: (\w+)", RULES)
    assert alerts
    for alert in alerts:
        assert f"- name: {alert} fires" in CASES
        assert f"- name: {alert} is quiet" in CASES


def test_the_dashboard_can_be_imported_anywhere() -> None:
    ids = [panel["id"] for panel in DASHBOARD["panels"]]
    assert len(ids) == len(set(ids))
    for panel in PANELS:
        assert panel["datasource"]["uid"] == "${datasource}", panel["title"]
        assert {target["datasource"]["uid"] for target in panel["targets"]} == {"${datasource}"}
        place = panel["gridPos"]
        assert place["x"] + place["w"] <= 24
    places = [tuple(panel["gridPos"][key] for key in "xy") for panel in DASHBOARD["panels"]]
    assert len(places) == len(set(places)), "no panel lies on another"
    variables = {one["name"] for one in DASHBOARD["templating"]["list"]}
    assert set(re.findall(r"\$(?!__)(\w+)", EXPRESSIONS)) <= variables
