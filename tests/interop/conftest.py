"""Fixtures of the interop tests; async tests run as those of ``tests/calls`` do."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from typing import Any

import pytest

_CALLS = Path(__file__).parents[1] / "calls"
sys.path.append(str(_CALLS))

_spec = importlib.util.spec_from_file_location("calls_conftest", _CALLS / "conftest.py")
assert _spec is not None
assert _spec.loader is not None
_calls: Any = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(_calls)
runner = _calls.runner
pytest_pyfunc_call = _calls.pytest_pyfunc_call
_quiet_emulator = _calls._quiet_emulator

from interop.lab.debian import Root, installed  # noqa: E402


def pytest_configure(config: pytest.Config) -> None:
    """Name the marker."""
    config.addinivalue_line("markers", "interop: calls with Asterisk, Kamailio, baresip")


@pytest.fixture(scope="session")
def root() -> Root:
    """The programs of the lab."""
    return installed()
