# SPDX-License-Identifier: GPL-2.0-or-later
"""The manual names each key of the models with its default, and no key that there is not."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from pydantic import BaseModel
from pydantic.fields import FieldInfo

from gateway.config import Config, ConfigError
from gateway.config.source import section_in
from gateway.dialplan import Route, load_dialplan
from tests.support.config import load_config

DOCS = Path(__file__).parents[3] / "docs"
ROW = re.compile(r"^\| `([a-z_.]+)` \| (.+) \|([^|]*)\| ([^|]+) \|$", re.MULTILINE)
EXAMPLE = re.compile(r"^```toml\n(.*?)^```$", re.MULTILINE | re.DOTALL)
# Defaults that the manual describes instead.
DESCRIBED = {
    "cost.budget.warning_message": "in English",
    "cost.budget.goodbye": "in English",
    "sip.user_agent": "name and version",
    "route.interruptions.backchannel_phrases": (
        "some of English, German, French, Spanish, Italian, Dutch, Portuguese"
    ),
    "route.recording.yes_phrases": (
        "some of English, German, French, Spanish, Italian, Dutch, Portuguese"
    ),
    "route.recording.no_phrases": (
        "some of English, German, French, Spanish, Italian, Dutch, Portuguese"
    ),
    "route.recording.description": "in English",
    "route.disposition.description": "in English",
    "route.machine_detection.voicemail_patterns": "some of English, German, French, Spanish",
    "route.hold_wait.announcements": "some of English, German, French, Spanish",
    "route.context.instructions": "in English",
    "route.end_call.description": "in English",
    "route.transfer_call.description": "in English",
    "route.hold.description": "in English",
    "route.interpreter.caller.instructions": "in English",
    "route.interpreter.callee.instructions": "in English",
    "route.send_dtmf.description": "in English",
    "route.set_language.description": "in English",
    "route.collect_digits.description": "in English",
    "route.schedule_callback.description": "in English",
}


def keys_of(model: type[BaseModel], prefix: str = "") -> Iterator[tuple[str, FieldInfo]]:
    for name, item in model.model_fields.items():
        key = prefix + (item.alias or name)
        inner = section_in(item.annotation)
        if inner is None:
            yield key, item
        else:
            yield from keys_of(inner, f"{key}.")


def default_of(key: str, item: FieldInfo) -> str:
    if key in DESCRIBED:
        return DESCRIBED[key]
    if item.is_required():
        return "required"
    value: Any = item.get_default(call_default_factory=True, validated_data={})
    if value is None:
        return "none"
    if key == "sip.listen":
        value = [str(address) for address in value]
    if hasattr(value, "items"):
        value = dict(value)
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    return f"`{json.dumps(value, default=str)}`"


@pytest.mark.parametrize(
    ("page", "model", "prefix"),
    [("configuration.md", Config, ""), ("dialplans.md", Route, "route.")],
)
def test_every_key_is_in_the_manual(page: str, model: type[BaseModel], prefix: str) -> None:
    rows = ROW.findall((DOCS / page).read_text(encoding="utf-8"))
    told = {key: default for key, _, _, default in rows}
    assert len(told) == len(rows)
    assert told == {key: default_of(key, item) for key, item in keys_of(model, prefix)}


def test_examples_in_the_manual_are_good(tmp_path: Path) -> None:
    (configuration,) = EXAMPLE.findall((DOCS / "configuration.md").read_text(encoding="utf-8"))
    route, *_of_a_route = EXAMPLE.findall((DOCS / "dialplans.md").read_text(encoding="utf-8"))
    folder = tmp_path / "dialplans"
    folder.mkdir()
    (folder / "route.toml").write_text(route, encoding="utf-8")
    file = tmp_path / "gateway.toml"
    file.write_text(configuration, encoding="utf-8")
    assert load_config(file, {"OPENAI_API_KEY": "k"}).realtime.api_key is not None
    with pytest.raises(ConfigError, match="OPENAI_API_KEY"):
        load_config(file, {})
    assert load_dialplan(folder, {}).routes
