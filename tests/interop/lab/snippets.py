# SPDX-License-Identifier: GPL-2.0-or-later
"""The configuration that ``deploy/asterisk`` and README.md give, with the lab's addresses."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

_PROJECT = Path(__file__).parents[3]
README = _PROJECT / "README.md"
_DEPLOY = _PROJECT / "deploy" / "asterisk"


def deployed(name: str, values: Mapping[str, str]) -> str:
    """A file of ``deploy/asterisk``; each key of ``values`` has to be in it, and is replaced."""
    return _replaced(name, (_DEPLOY / name).read_text(), values)


def of_readme(first_words: str, values: Mapping[str, str]) -> str:
    """The first ``ini`` block of README.md after a paragraph that starts so."""
    return _replaced("README.md", blocks_of(README, first_words)[0], values)


def of_asterisk_readme(first_words: str) -> list[str]:
    """The blocks of deploy/asterisk/README.md after a paragraph that starts so."""
    return blocks_of(_DEPLOY / "README.md", first_words)


def blocks_of(file: Path, first_words: str) -> list[str]:
    """The blocks of code after a paragraph that starts so."""
    _, found, rest = file.read_text().partition(f"\n{first_words}")
    assert found, f"{file.name} has no paragraph that starts with {first_words!r}"
    blocks = re.findall(r"^```\w*\n(.*?)^```", rest, re.DOTALL | re.MULTILINE)
    assert blocks, f"{file.name} has no block after {first_words!r}"
    return [str(block) for block in blocks]


def _replaced(name: str, text: str, values: Mapping[str, str]) -> str:
    # The longest first: an address with its port before the address alone.
    for old in sorted(values, key=len, reverse=True):
        assert old in text, f"{name} has no {old}"
        text = text.replace(old, values[old])
    return text
