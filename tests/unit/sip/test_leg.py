# SPDX-License-Identifier: GPL-2.0-or-later
"""What the event loop asks of a leg."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any, cast

from gateway.audio import Codec
from gateway.sip.call_audio import CallAudio
from gateway.sip.leg import Leg


def test_the_sessions_audio_waits_for_the_end_of_a_sound() -> None:
    """The SIP thread ends a sound, and may be late."""
    posted: list[Callable[[], None]] = []
    played: list[str] = []
    leg = Leg(
        cast(Any, SimpleNamespace(post=posted.append)), cast(Any, SimpleNamespace(call_id=""))
    )
    leg.audio = audio = CallAudio(Codec.PCMU, 10)
    leg.call = cast(
        Any, SimpleNamespace(ended=False, run=lambda do: do(leg.call), play=played.append)
    )
    leg.play("ringback")
    leg.play("")
    audio.playout.put(bytes(160))
    assert audio.playout.pull() is None
    for run in posted:
        run()
    assert played == ["ringback", ""]
    assert audio.playout.pull() is not None
