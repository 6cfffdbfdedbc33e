# SPDX-License-Identifier: GPL-2.0-or-later
"""The jitter buffer towards the model: pjmedia's adaptive one."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from gateway.sip import library


@dataclass(frozen=True, slots=True)
class JitterBuffer:
    """All in ms; -1 leaves pjmedia's own default."""

    init: int = -1
    min_prefetch: int = -1
    max_prefetch: int = -1
    maximum: int = -1
    catch_up: bool = True
    """Cut speech here and there to win back the delay that a burst of jitter brought."""

    def apply(self, target: Any) -> None:
        """To a ``MediaConfig``, or to the ``StreamInfo`` of one call that is about to begin."""
        target.jbInit, target.jbMinPre = self.init, self.min_prefetch
        target.jbMaxPre, target.jbMax = self.max_prefetch, self.maximum
        if not self.catch_up:
            library.never_discard(target)
