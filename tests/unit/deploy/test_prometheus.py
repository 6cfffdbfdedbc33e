# SPDX-License-Identifier: GPL-2.0-or-later
"""Alert rules name metrics that there are."""

from __future__ import annotations

import re
from pathlib import Path

from gateway.api.metrics import OUTCOMES, Metrics

ROOT = Path(__file__).parents[3]
RULES = (ROOT / "deploy" / "prometheus" / "alerts.yml").read_text(encoding="utf-8")
BACKEND = (ROOT / "gateway" / "app" / "api_backend.py").read_text(encoding="utf-8")
PARTS = re.compile(r"_(total|bucket|count|sum)$")


def names_that_exist() -> set[str]:
    """Names of metrics, without the endings of their samples."""
    counted = {family.name for family in Metrics(["r"], ["t"]).registry.collect()}
    gauges = set(re.findall(r'yield\s+"([a-z_]+)",', BACKEND))
    assert {"ready", "records", "trunk_up"} <= gauges
    return counted | {f"gateway_{name}" for name in gauges}


def test_every_metric_of_the_rules_exists() -> None:
    named = set(re.findall(r"\bgateway_[a-z_]+", RULES))
    assert len(named) >= 10
    assert {PARTS.sub("", name) for name in named} <= names_that_exist()


def test_outcomes_of_the_rules_exist() -> None:
    named = {one for text in re.findall(r'outcome=~?"([^"]+)"', RULES) for one in text.split("|")}
    assert named <= set(OUTCOMES)
