# SPDX-License-Identifier: GPL-2.0-or-later
"""Sounds that a caller hears: built in, from a file, or made of words."""

from __future__ import annotations

from gateway.audio.sounds import BUILT_IN, samples_of


def test_sounds_are_there_and_not_too_loud() -> None:
    for name in BUILT_IN:
        samples = samples_of(name)
        assert len(samples) >= 8000
        assert abs(samples).max() <= 0.11 * 32767
        assert bool(samples.any()) is (name != "silence")
