# SPDX-License-Identifier: GPL-2.0-or-later
"""Texts of strangers: kept as characters, shown without commands to terminals."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import structlog

from gateway.log import set_up_logging
from gateway.text import json_of, json_text, printable, printable_in, unicode_of

EVIL = "a\x1b[2Jb\x07\x9b31m\u202ec\ud800\x00"
SHOWN = "a\\u001b[2Jb\\u0007\\u009b31m\\u202ec\ufffd\\u0000"


def test_what_is_no_character_becomes_one() -> None:
    assert unicode_of("J\udcfcrgen \ud83d") == "J\ufffdrgen \ufffd"
    assert unicode_of("Jürgen ☎") == "Jürgen ☎"
    assert json_of('{"a\\ud800": ["\\udfff"]}') == {"a\ufffd": ["\ufffd"]}
    with pytest.raises(ValueError, match="nested"):
        json_of("[" * 100_000)


def test_any_value_becomes_json_text_on_one_line() -> None:
    for value in ({"a": ["Jürgen\n", None]}, {"a": 2**70}, "\ud800"):
        text = json_text(value)
        assert json.loads(text) == value
        assert text.encode().count(b"\n") == 0


def test_printable() -> None:
    assert printable(EVIL) == SHOWN
    assert printable("two\r\nlines\tand\u2028more") == "two  lines and more"
    for plain in ("Jürgen ☎", "日本", "👩\u200d🚀", "a b\xa0c", ""):
        assert printable(plain) == plain
    assert printable_in({"k\x1b": [EVIL, 1, None]}) == {"k\\u001b": [SHOWN, 1, None]}
    text = json.dumps({"name": EVIL.replace("\ud800", "")}, ensure_ascii=False)
    assert json.loads(printable(text)) == json.loads(text)


def test_the_console_log_shows_no_controls(tmp_path: Path) -> None:
    file = tmp_path / "log"
    set_up_logging("console", "info", file, [])
    log = structlog.get_logger("call").bind(call="c1")
    log.info("call.invite", **{"from": EVIL}, told={"name": [EVIL]})
    try:
        raise ValueError(EVIL)
    except ValueError:
        log.exception("call.internal_error")
    text = file.read_text()
    assert SHOWN in text
    assert "ValueError" in text
    assert not any(not char.isprintable() for char in text.replace("\n", ""))
