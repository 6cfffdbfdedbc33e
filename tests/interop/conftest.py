# SPDX-License-Identifier: GPL-2.0-or-later
"""Fixtures of the interop tests; async tests run as those of ``tests/calls`` do."""

from __future__ import annotations

import pytest

from tests.calls.conftest import _quiet_emulator, own_folder, pytest_pyfunc_call, runner
from tests.interop.lab.debian import Root, installed

__all__ = ["_quiet_emulator", "own_folder", "pytest_pyfunc_call", "runner"]


def pytest_configure(config: pytest.Config) -> None:
    """Name the marker."""
    config.addinivalue_line("markers", "interop: calls with Asterisk, Kamailio, baresip")


@pytest.fixture(scope="session")
def root() -> Root:
    """The programs of the lab."""
    return installed()
