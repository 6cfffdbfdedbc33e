"""The caller's sound, as inputs of the machine: keys, beeps and music, for routes that ask."""

from __future__ import annotations

from gateway.audio.inband import InBandDetector
from gateway.audio.tone_analysis import Beep, Listener
from gateway.call.inputs import BeepHeard, DigitPressed, SoundHeard
from gateway.call.plan import CallPlan


class InboundAudioAnalyzer:
    """Of one call."""

    def __init__(self, plan: CallPlan) -> None:
        self._keys = InBandDetector(plan.codec) if plan.dtmf.inband else None
        self._sounds = Listener(plan.codec) if plan.machine_detection.listens else None
        self._held = False

    def feed(self, audio: bytes, *, held: bool) -> list[DigitPressed | SoundHeard | BeepHeard]:
        """What these G.711 bytes of the caller tell. While the call is on hold only keys count:
        their side may well play music then."""
        if not audio:
            return []
        heard: list[DigitPressed | SoundHeard | BeepHeard] = []
        if self._keys is not None:
            heard += [DigitPressed(digit, in_band=True) for digit in self._keys.feed(audio)]
        if self._sounds is None:
            return heard
        if held != self._held:
            self._held = held
            self._sounds.reset()
        for sound in () if held else self._sounds.feed(audio):
            if isinstance(sound, Beep):
                heard.append(BeepHeard(sound.hz, sound.ms))
            else:
                heard.append(SoundHeard(sound.sounding, sound.held, sound.change))
        return heard
