# SPDX-License-Identifier: GPL-2.0-or-later
"""Music on hold, by its standing tones; the same said again, by words and lengths."""

from __future__ import annotations

from collections import OrderedDict, deque
from collections.abc import Collection
from statistics import fmean, pstdev

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

    def begin_stretch(self) -> None:
        """Begin a stretch without a pause: the server begins to hear speech."""
        self._stretch = self._stretch_held = 0.0

    @property
    def mixed(self) -> float:
        """Return the share of standing tones in the stretch; 0 where a voice may have as much."""
        share = self._stretch_held / self._stretch if self._stretch else 0.0
        return share if share >= MIXED else 0.0

    def reset(self) -> None:
        """Forget the seconds of music so far."""
        self._held: list[float] = []
        self._changes = self._misses = 0

    def add_second(self, heard: SoundHeard, wanted: float) -> str:
        """Add a second; return the evidence once there are ``wanted`` seconds of music."""
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


EVEN = 0.06
"""Deviation of the lengths of turns from their mean, as a part of it, that no human keeps to."""

STUBBORN = 2
"""Where they are not spoken at the same length each time, so many times the repeats are needed:
people say "I want to talk to a human" three times, too."""

_MIN_WORDS = 3
"""What is repeated has so many words: people say yes again and again."""

_MAX = 64
"""Turns whose lengths or words are kept."""


def even(lengths: Collection[int]) -> bool:
    """Return whether these lengths (ms) differ less than a human's would."""
    return pstdev(lengths) <= EVEN * fmean(lengths)


class Repeats:
    """Counts how often in a row the same words are said.

    Args:
        wanted: so many times, spoken at the same length, are a bot's.
    """

    def __init__(self, wanted: int) -> None:
        self._wanted = wanted
        self._lengths: OrderedDict[str, int] = OrderedDict()
        """Of turns without words so far, ms by item."""
        self._words: tuple[str, ...] = ()
        self._times = 0
        self._spoken: deque[int] = deque(maxlen=min(wanted, _MAX))

    def add_turn(self, item_id: str, length_ms: int) -> None:
        """Note the length of a turn whose words may come later."""
        self._lengths[item_id] = length_ms
        while len(self._lengths) > _MAX:
            self._lengths.popitem(last=False)

    def add_words(self, item_id: str, words: tuple[str, ...]) -> str:
        """Note the words of a turn; return the evidence once they were said often enough."""
        length = self._lengths.pop(item_id, None)
        if len(words) < _MIN_WORDS:
            return ""
        if words != self._words:
            self._words, self._times = words, 0
            self._spoken.clear()
        self._times += 1
        if length is not None:
            self._spoken.append(length)
        same_length = len(self._spoken) == self._wanted and even(self._spoken)
        if self._times >= self._wanted and same_length:
            return f"said the same {self._times} times, each time as long"
        if self._times >= STUBBORN * self._wanted:
            return f"said the same {self._times} times"
        return ""
