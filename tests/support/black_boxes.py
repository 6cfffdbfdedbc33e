# SPDX-License-Identifier: GPL-2.0-or-later
"""The set of black boxes that the suite replays, and how it is made anew."""

from __future__ import annotations

import gzip
import json
import os
from collections.abc import Iterable, Sequence
from pathlib import Path

from gateway.bridge.replay import read_lines, shortened

FOLDER = Path(__file__).parent.parent / "unit" / "bridge" / "black_boxes"
SUFFIX = ".blackbox.jsonl.gz"
ANEW = "BLACK_BOXES_ANEW"
"""Environment variable: keep the black boxes of the tests that run; see ``make black-boxes``."""


def written(path: Path) -> str:
    """What is in a black box so far: it is written beside the calls; the record may be first."""
    return path.read_text() if path.exists() else ""


def keep(name: str, lines: Path | Iterable[str]) -> None:
    """Keep what a replay needs of a black box, where the set is made anew."""
    if os.environ.get(ANEW):
        text = "".join(shortened(read_lines(lines) if isinstance(lines, Path) else lines))
        FOLDER.mkdir(exist_ok=True)
        # mtime=0: the same call makes the same file.
        (FOLDER / f"{name}{SUFFIX}").write_bytes(gzip.compress(text.encode(), 9, mtime=0))


_richest: dict[str, int] = {}
"""Kinds of input in the black box that is kept of each kind of ending."""

MOST_STEPS = 300


def keep_by_ending(why: str, lines: Sequence[str]) -> None:
    """Keep the black box in which most happens of those that end so."""
    if os.environ.get(ANEW) and len(lines) <= MOST_STEPS:
        steps = [json.loads(line).get("in") or {} for line in lines[1:]]
        kinds = len({f"{one.get('$')} {(one.get('event') or {}).get('$')}" for one in steps})
        if kinds > _richest.get(why, 0):
            _richest[why] = kinds
            keep(f"ended_by_{why}", lines)
