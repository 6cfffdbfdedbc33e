"""A caller that is a machine: hold music, a voicemail greeting, another bot.

Decided from the turns that the server hears and the words that it makes of them, so the server's
voice activity detection has to be on, and transcription for what goes by words. Each kind is
decided once in a call; its evidence stands in the timeline of the record and in the log.
"""

from __future__ import annotations

from collections import deque
from statistics import fmean, pstdev

from gateway.call import inputs
from gateway.call.ending import Why
from gateway.call.interruptions import words_of
from gateway.call.outputs import Output
from gateway.call.talk import Parting, Talk
from gateway.realtime.events import InputTranscribed, SpeechStarted, SpeechStopped

EVEN = 0.06
"""Deviation of the lengths of turns from their mean, as a part of it, that no human keeps to."""

_MIN_WORDS = 3
"""What is repeated has so many words: people say yes again and again."""

_MAX_TURNS = 64


class Machines:
    """A part. Every method takes the time (s) and returns outputs."""

    def __init__(self, talk: Talk) -> None:
        self._talk = talk
        self._plan = talk.plan.machines
        self._turns = 0
        self._started: tuple[float, int] | None = None
        """When the stretch of speech that goes on began: our time (s), and the server's (ms)."""
        self._lengths: deque[int] = deque(maxlen=min(self._plan.turns, _MAX_TURNS))
        self._said: deque[tuple[str, ...]] = deque(maxlen=min(self._plan.repeats, _MAX_TURNS))
        self._first_item = ""
        self._held = False
        self._decided: set[str] = set()

    def on(self, input: inputs.Input, now: float) -> list[Output]:
        """Something happened."""
        match input:
            case inputs.ServerSaid(event=SpeechStarted(item_id, start_ms)):
                self._turns += 1
                self._first_item = self._first_item or item_id
                self._started = (now, start_ms)
            case inputs.ServerSaid(event=SpeechStopped(_, end_ms)) if self._started is not None:
                length = end_ms - self._started[1]
                self._started = None
                return self._turn(length, now)
            case inputs.ServerSaid(event=InputTranscribed(item_id, text)):
                return self._words(item_id, text, now)
            case inputs.Held(held=held):
                self._held = held
            case inputs.SessionClosed():
                self._started = None
        return []

    def tick(self, now: float) -> list[Output]:
        """The caller's side has made sound without a pause for long."""
        if self.deadline is None or now < self.deadline or self._started is None:
            return []
        seconds = round(now - self._started[0], 1)
        if self._held or self._talk.errands.busy:
            self._started = None  # not what the model hears
            return []
        return self._found("music", now, f"sound without a pause for {seconds:g} s")

    @property
    def deadline(self) -> float | None:
        """When :meth:`tick` is due next (s)."""
        if self._started is None or not self._open("music"):
            return None
        return self._started[0] + self._plan.music_seconds

    # ---- how

    def _turn(self, length_ms: int, now: float) -> list[Output]:
        if self._turns == 1 and length_ms >= self._plan.greeting_seconds * 1000:
            return self._found("voicemail", now, f"a first turn of {length_ms / 1000:g} s")
        self._lengths.append(length_ms)
        if len(self._lengths) < self._plan.turns:
            return []
        mean = fmean(self._lengths)
        if mean <= 0 or pstdev(self._lengths) > EVEN * mean:
            return []
        return self._found("bot", now, f"{len(self._lengths)} turns of {mean / 1000:.2f} s each")

    def _words(self, item_id: str, text: str, now: float) -> list[Output]:
        if item_id == self._first_item:
            for pattern in self._plan.voicemail_words:
                found = pattern.search(text)
                if found is not None:
                    return self._found("voicemail", now, f"said {found.group()[:80]!r}")
        words = words_of(text)
        if len(words) < _MIN_WORDS:
            return []
        self._said.append(words)
        if len(self._said) < self._plan.repeats or len(set(self._said)) > 1:
            return []
        return self._found("bot", now, f"said the same {len(self._said)} times")

    def _open(self, kind: str) -> bool:
        """Whether this is still to be decided."""
        wanted = self._plan.actions.get(kind, "off") != "off"
        return wanted and kind not in self._decided and self._talk.parting is None

    def _found(self, kind: str, now: float, evidence: str) -> list[Output]:
        if not self._open(kind):
            return []
        self._decided.add(kind)
        action, talk = self._plan.actions[kind], self._talk
        outputs: list[Output] = [
            talk.journal.note(now, "machine", "warning", kind=kind, action=action, why=evidence)
        ]
        if action == "note":
            return outputs
        words = "" if action == "hang_up" else self._plan.words.get(kind, "")
        to = self._plan.transfer_to if action == "transfer" else ""
        if talk.speaking or talk.gate.active is not None:
            outputs += talk.interrupt("machine", now)
        talk.part(Parting(Why.MACHINE, f"{kind}: {evidence}", words, to))
        return outputs
