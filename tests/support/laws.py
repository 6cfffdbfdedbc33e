# SPDX-License-Identifier: GPL-2.0-or-later
"""The same sound in another law, found again within a step of quantization.

Encoders round otherwise here and there (pjmedia's tables, ``audioop``), and all are right.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from gateway.audio import Codec


def linear(audio: bytes, law: Codec) -> NDArray[np.int32]:
    """Its samples."""
    return np.frombuffer(law.to_linear(audio), np.int16).astype(np.int32)


class Frames:
    """The frames of some audio, to be found again in either law."""

    def __init__(self, audio: bytes, law: Codec, size: int) -> None:
        self._law = law
        count = len(audio) // size
        self._exact = {audio[n * size : (n + 1) * size]: n for n in range(count)}
        self._linear = linear(audio[: count * size], law).reshape(count, size)
        norms = np.sqrt((self._linear.astype(float) ** 2).sum(axis=1)) + 1
        self._unit = self._linear / norms[:, np.newaxis]

    def place(self, payload: bytes, law: Codec) -> int | None:
        """Which frame this is; None when it is none of them."""
        if law is self._law:
            return self._exact.get(payload)
        heard = linear(payload, law)
        at = int((self._unit @ heard).argmax())
        return at if _same(self._linear[at], heard) else None


def _same(wanted: NDArray[np.int32], got: NDArray[np.int32]) -> bool:
    return bool((np.abs(wanted - got) <= 16 + np.abs(wanted) // 16).all())


def contains(received: bytes, law: Codec, said: bytes, said_in: Codec) -> bool:
    """Whether what was said is in what was received, with every sample within a step or so."""
    if law is said_in:
        return said in received
    wanted, got = linear(said, said_in), linear(received, law)
    if len(got) < len(wanted):
        return False
    match = np.correlate(got.astype(float), wanted.astype(float), "valid")
    at = int(match.argmax())
    return _same(wanted, got[at : at + len(wanted)])
