# SPDX-License-Identifier: GPL-2.0-or-later
"""The same words again and again: a bot's, or those of somebody who is not understood."""

from __future__ import annotations

from collections import OrderedDict, deque
from collections.abc import Collection
from statistics import fmean, pstdev

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
    """Whether these lengths (ms) hardly differ."""
    return pstdev(lengths) <= EVEN * fmean(lengths)


class Repeats:
    """Counts how often in a row the same is said.

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

    def turn(self, item_id: str, length_ms: int) -> None:
        """A turn is over; its words may come later."""
        self._lengths[item_id] = length_ms
        while len(self._lengths) > _MAX:
            self._lengths.popitem(last=False)

    def words(self, item_id: str, words: tuple[str, ...]) -> str:
        """What was said in it; returns the evidence once it is one."""
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
