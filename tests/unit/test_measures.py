# SPDX-License-Identifier: GPL-2.0-or-later
"""Distributions, labels and mappings have their bounds; ids of traces are those of W3C."""

from __future__ import annotations

import re

from gateway.measures import (
    MAX_VALUES,
    OTHER,
    BoundedDict,
    Distribution,
    Labels,
    span_id_of,
    trace_id_of,
    traceparent,
)


def test_a_value_at_a_bound_counts_below_it() -> None:
    """As ``le`` of a Prometheus histogram."""
    found = Distribution((1.0, 2.0))
    for value in (0.5, 1.0, 1.5, 2.0, 2.5):
        found.observe(value)
    assert found.counts == [2, 2, 1]
    assert found.total == 7.5


def test_the_entry_that_was_set_longest_ago_makes_room() -> None:
    kept: BoundedDict[str, int] = BoundedDict(2)
    kept["a"], kept["b"] = 1, 2
    kept["a"] = 3
    kept["c"] = 4
    assert dict(kept) == {"a": 3, "c": 4}
    assert kept["a"] == 3
    kept["d"] = 5
    assert dict(kept) == {"c": 4, "d": 5}, "one that was read only is no younger"


def test_a_label_has_so_many_values_and_no_more() -> None:
    labels = Labels(["route"])
    found = [labels.of(f"v{number}") for number in range(MAX_VALUES)]
    assert found[-2:] == [f"v{MAX_VALUES - 2}", OTHER]
    assert labels.of("route") == "route"
    assert labels.of("v3") == "v3", "those that have come before keep their own"
    assert labels.of("") == ""
    labels.add(["late"])
    assert labels.of("late") == OTHER


def test_a_closed_label_has_known_values_only() -> None:
    labels = Labels(["route"], closed=True)
    assert [labels.of(one) for one in ("route", "made up", "")] == ["route", OTHER, ""]
    labels.add(["made up"])
    assert labels.of("made up") == "made up"


def test_a_call_and_its_parts_have_spans_of_one_trace() -> None:
    trace = trace_id_of("c1")
    assert trace == trace_id_of("c1") != trace_id_of("c2")
    parents = {traceparent(trace, part) for part in ("", "tool 1", "tool 2")}
    assert len(parents) == 3
    for one in parents:
        assert re.fullmatch(f"00-{trace}-[0-9a-f]{{16}}-01", one)
    assert traceparent(trace).split("-")[2] == span_id_of(trace)
    assert traceparent("") == ""
