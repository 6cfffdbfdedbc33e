# SPDX-License-Identifier: GPL-2.0-or-later
"""What docs/architecture.md and docs/standards.md name is there, and the walks are short."""

from __future__ import annotations

import re
from pathlib import Path

import grimp
import pytest

ROOT = Path(__file__).parents[3]
PAGE = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
MOST_FILES = 8
"""Files between one wire and the other."""


def test_every_file_that_it_names_is_there() -> None:
    named = set(re.findall(r"`(?:gateway/)?([a-z_0-9]+(?:/[a-z_0-9]+)*\.(?:py|toml))`", PAGE))
    missing = {
        name
        for name in named
        if not (ROOT / "gateway" / name).is_file()
        and not (ROOT / name).is_file()
        and not ("/" not in name and (ROOT / "gateway" / "call" / "rules" / name).is_file())
    }
    assert len(named) > 30
    assert not missing


def test_every_test_that_shows_a_standard_is_there() -> None:
    page = (ROOT / "docs" / "standards.md").read_text(encoding="utf-8")
    shown = set(re.findall(r"`(tests/[a-z_0-9/]+\.py)`", page))
    assert len(shown) > 20
    assert not [name for name in shown if not (ROOT / name).is_file()]


def test_every_name_that_it_gives_is_in_its_file() -> None:
    path = r"`((?:[a-z_0-9-]+/)*[a-z_0-9-]+\.(?:py|cpp|hpp|h|js|patch))`"
    lists = re.findall(rf"{path} \(([^)]*)\)", PAGE)
    given = [(file, name) for file, names in lists for name in re.findall(r"`([\w.:]+)`", names)]
    given += [(file, name) for name, file in re.findall(rf"`([\w.]+)` in {path}", PAGE)]
    missing = [(file, name) for file, name in given if not has(file, name)]
    assert len(given) > 800
    assert not missing


def has(file: str, name: str) -> bool:
    """Whether a file has the last word of a dotted name."""
    word = re.split(r"\.|::", name)[-1]
    return re.search(rf"\b{word}\b", place(file).read_text(encoding="utf-8")) is not None


def place(file: str) -> Path:
    """The file of a path as the page gives it."""
    elsewhere = file.startswith(("deploy/", "docs/", "tests/"))
    return (ROOT if elsewhere else ROOT / "gateway") / file


def test_the_index_has_every_area() -> None:
    table = PAGE.split("## Where to change what\n")[1].split("\n## ")[0]
    areas = re.findall(r"^### (.+)$", table, re.MULTILINE)
    anchors = [re.sub(r"[^a-z0-9 -]", "", area.lower()).replace(" ", "-") for area in areas]
    assert re.findall(r"\]\(#([a-z0-9-]+)\)", table.split("\n### ")[0])[1:] == anchors


def test_every_package_has_its_row() -> None:
    packages = {path.parent.name for path in (ROOT / "gateway").glob("*/__init__.py")}
    rows = [line for line in PAGE.splitlines() if line.startswith("| `")]
    assert {name for name in packages if not any(f"`{name}/`" in row for row in rows)} == set()


@pytest.mark.parametrize(
    "walk", re.findall(r"^\*\*.+?(?=\n\n)", PAGE, re.MULTILINE | re.DOTALL)[:2]
)
def test_a_walk_from_wire_to_wire_passes_few_files(walk: str) -> None:
    files = re.findall(r"`([a-z_/]+\.py)`", walk)
    assert 0 < len(files) <= MOST_FILES


def test_no_modules_import_one_another() -> None:
    graph = grimp.build_graph("gateway", cache_dir=None)  # imports under TYPE_CHECKING included
    left = {module: graph.find_modules_directly_imported_by(module) for module in graph.modules}
    while ends := {module for module, imported in left.items() if not imported & left.keys()}:
        for module in ends:
            del left[module]
    assert not left, "imported in a circle, or from one"
