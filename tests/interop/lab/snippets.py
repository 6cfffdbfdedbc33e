# SPDX-License-Identifier: GPL-2.0-or-later
"""The configuration that ``deploy/asterisk`` and README.md give, with the lab's addresses."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

_PROJECT = Path(__file__).parents[3]
_DEPLOY = _PROJECT / "deploy" / "asterisk"


def deployed(name: str, values: Mapping[str, str]) -> str:
    """A file of ``deploy/asterisk``; each key of ``values`` has to be in it, and is replaced."""
    return _replaced(name, (_DEPLOY / name).read_text(), values)


def of_readme(first_words: str, values: Mapping[str, str]) -> str:
    """The first ``ini`` block of README.md after a paragraph that starts so."""
    text = (_PROJECT / "README.md").read_text()
    _, found, rest = text.partition(f"\n{first_words}")
    assert found, f"README.md has no paragraph that starts with {first_words!r}"
    block = re.search(r"```ini\n(.*?)```", rest, re.DOTALL)
    assert block, f"README.md has no ini block after {first_words!r}"
    return _replaced("README.md", block[1], values)


def _replaced(name: str, text: str, values: Mapping[str, str]) -> str:
    # The longest first: an address with its port before the address alone.
    for old in sorted(values, key=len, reverse=True):
        assert old in text, f"{name} has no {old}"
        text = text.replace(old, values[old])
    return text
