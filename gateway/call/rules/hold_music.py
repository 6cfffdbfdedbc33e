# SPDX-License-Identifier: GPL-2.0-or-later
"""Hold music, by its sound: tones that stand, second after second, and change."""

from __future__ import annotations

from statistics import fmean

from gateway.call.inputs import SoundHeard

HELD = 0.58
"""Part of a second that has standing tones, from which it is music's. Synthesised speech has 0.2 in
the mean, hardly ever more than 0.5; synthesised music 0.8 to 0.9."""

MISSES = 2
"""Seconds in a row that are not music's, and it is over: somebody speaks."""

CHANGE = 0.03
"""By which the tones of a second differ from those before; a hum's or dial tone's are the same."""


MIXED = 0.45
"""Mean of a stretch without a pause from which it is no voice alone: singers, words over music."""


class MusicOnHoldDetector:
    """Counts the seconds of music that are heard in a row, and weighs stretches without a pause."""

    def __init__(self) -> None:
        self._stretch = self._stretch_held = 0.0
        self.reset()

    def stretch(self) -> None:
        """The server begins to hear speech."""
        self._stretch = self._stretch_held = 0.0

    @property
    def mixed(self) -> float:
        """Share of standing tones since then, where it is more than a voice has; else 0."""
        share = self._stretch_held / self._stretch if self._stretch else 0.0
        return share if share >= MIXED else 0.0

    def reset(self) -> None:
        """Start over."""
        self._held: list[float] = []
        self._changes = self._misses = 0

    def second(self, heard: SoundHeard, wanted: float) -> str:
        """One more second; returns the evidence once there are ``wanted`` seconds of music."""
        self._stretch += 1
        self._stretch_held += heard.held
        if heard.held < HELD:
            self._misses += 1
            if self._misses >= MISSES:
                self.reset()
            return ""
        self._misses = 0
        self._held.append(heard.held)
        self._changes += heard.change >= CHANGE
        if len(self._held) < wanted or 3 * self._changes < len(self._held):
            return ""
        seconds, share = len(self._held), fmean(self._held)
        self.reset()
        return f"{seconds} s of music's sound, standing tones in {share:.0%} of it"
