# SPDX-License-Identifier: GPL-2.0-or-later
"""The places at which tests make a gateway fail exist under their names."""

from __future__ import annotations

import pytest

from tests.support.faulty_gateway import PARTS, PLACES, found


@pytest.mark.parametrize("name", [*PLACES, *PARTS])
def test_a_place_is_there(name: str) -> None:
    assert found({**PLACES, **PARTS}[name])
