# SPDX-License-Identifier: GPL-2.0-or-later
"""The decision core by its imports: pure, without a circle, and not deep."""

from __future__ import annotations

import ast
from functools import cache
from pathlib import Path

GATEWAY = Path(__file__).parents[3] / "gateway"
LONGEST_CHAIN = 9
IMPURE = {"asyncio", "httpx", "os", "pjsua2", "random", "socket", "structlog", "threading", "time"}


def _name(path: Path) -> str:
    parts = ("gateway", *path.relative_to(GATEWAY).with_suffix("").parts)
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def _imported(path: Path) -> set[str]:
    """Modules that a file imports, and what it takes from them, which may be modules too."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
    return names


CORE = {_name(path): _imported(path) for path in (GATEWAY / "call").rglob("*.py")}


@cache
def _longest(module: str) -> tuple[str, ...]:
    """The longest chain of imports that begins here; a circle is a RecursionError."""
    chains = [_longest(name) for name in CORE[module] & CORE.keys() if name.count(".") > 1]
    return (module, *max(chains, key=len, default=()))


def test_no_chain_of_imports_is_long() -> None:
    chain = max((_longest(module) for module in CORE), key=len)
    assert len(chain) <= LONGEST_CHAIN, " -> ".join(chain)


def test_the_core_is_pure() -> None:
    roots = {name.partition(".")[0] for imported in CORE.values() for name in imported}
    assert not roots & IMPURE


def test_core_and_tools_know_nothing_of_each_other() -> None:
    tools = [_imported(path) for path in (GATEWAY / "tools").rglob("*.py")]
    assert not [name for names in tools for name in names if name.startswith("gateway.call")]
    of_core = [name for names in CORE.values() for name in names]
    assert not [name for name in of_core if name.startswith("gateway.tools")]
