# SPDX-License-Identifier: GPL-2.0-or-later
"""Machine detection: hold music, a voicemail greeting or another bot on the caller's side.

Decided from the caller's turns as the server detects them (voice activity detection must be on),
their transcripts (transcription must be on), and the audio itself for music and beeps. Each kind is
detected at most once in a call; the evidence is in the record and the log.
"""

from __future__ import annotations

from collections import deque
from statistics import fmean
from typing import ClassVar

from gateway.call import inputs
from gateway.call.conversation.control import ConversationControl, Termination
from gateway.call.ending import EndReason
from gateway.call.outputs import Output
from gateway.call.playout.barge_in import words_of
from gateway.call.record import MachineDetected
from gateway.call.rules.beep_detection import BeepWaiter
from gateway.call.rules.hold_music import MusicOnHoldDetector
from gateway.call.rules.repeats import Repeats, even
from gateway.realtime.events import InputTranscribed, ResponseCreated, SpeechStarted, SpeechStopped

_MIN_TURN_MS = 2000
"""Mean length of turns that tell by it: the server counts 0.8 s of silence into each, so that yes,
said twelve times, is even, too."""

_MAX_TURNS = 64


class MachineDetector:
    """Detects hold music, voicemail and bots on the caller's side. Methods take the time (s)."""

    reacts_to: ClassVar[tuple[type, ...]] = (
        inputs.SoundHeard,
        inputs.BeepHeard,
        inputs.HoldChanged,
        inputs.SessionClosed,
        SpeechStarted,
        SpeechStopped,
        InputTranscribed,
        ResponseCreated,
    )

    def __init__(self, talk: ConversationControl) -> None:
        self._talk = talk
        self._plan = talk.plan.machine_detection
        self._turns = 0
        self._started: tuple[float, int | None] | None = None
        """When the stretch of speech that goes on began: our time (s), and the server's (ms)."""
        self._lengths: deque[int] = deque(maxlen=min(self._plan.bot_equal_turns, _MAX_TURNS))
        self._said = Repeats(self._plan.bot_repeats)
        self._first_item = ""
        self._unbroken = 0.0
        """Since when sound without a pause counts (s)."""
        self._held = False
        self._music = MusicOnHoldDetector()
        self._beeps = BeepWaiter(self._plan.beep_timeout)
        self._message: MachineDetected | None = None
        """Voicemail, whose message is not said yet."""
        self._decided: set[str] = set()

    def on(self, input: inputs.Input, now: float) -> list[Output]:
        """Take a turn of the caller, its words, or an analysis of the audio."""
        match input:
            case inputs.ServerEventReceived(event=SpeechStarted(item_id, start_ms)):
                self._turns += 1
                self._first_item = self._first_item or item_id
                self._started = (now, start_ms)
                self._unbroken = now
                self._music.stretch()
                self._beeps.spoke(now)
            case inputs.ServerEventReceived(event=SpeechStopped(item_id, end_ms)) if (
                self._started is not None
            ):
                began, start_ms = self._started
                if start_ms is None or end_ms is None:  # the server does not tell
                    length = round((now - began) * 1000)
                else:
                    length = end_ms - start_ms
                self._started = None
                self._said.turn(item_id, length)
                self._beeps.stopped(now)
                return self._turn(length, now)
            case inputs.ServerEventReceived(event=InputTranscribed(item_id, text)):
                return self._words(item_id, text, now)
            case inputs.ServerEventReceived(event=ResponseCreated()) if self._beeps.waiting:
                return self._talk.interrupt("machine", now)  # nobody is there to be answered
            case inputs.SoundHeard():
                return self._sound(input, now)
            case inputs.BeepHeard():
                return self._beep(input, now)
            case inputs.HoldChanged(held=held):
                self._held = held
                self._music.reset()
            case inputs.SessionClosed():
                self._started = None
        return []

    def tick(self, now: float) -> list[Output]:
        """The caller's side has made sound without a pause for long, or no beep has come."""
        if self._beeps.deadline is not None and now >= self._beeps.deadline:
            return self._leave_message("none came", now)
        due = self._music_due
        if due is None or now < due or self._started is None:
            return []
        seconds = round(now - self._started[0], 1)
        if self._held or self._talk.call_actions.busy:
            self._started = None  # not what the model hears
            return []
        share = self._music.mixed
        if not share:
            self._unbroken = now  # somebody has much to say, or there is noise around them
            self._music.stretch()
            return []
        evidence = f"sound without a pause for {seconds:g} s, standing tones in {share:.0%} of it"
        return self._found("music", now, evidence)

    @property
    def deadline(self) -> float | None:
        """When :meth:`tick` is due next (s)."""
        due = (self._beeps.deadline, self._music_due)
        return min((at for at in due if at is not None), default=None)

    # ---- how

    @property
    def _music_due(self) -> float | None:
        if self._started is None or not self._open("music"):
            return None
        return self._unbroken + self._plan.music_threshold

    def _sound(self, heard: inputs.SoundHeard, now: float) -> list[Output]:
        if self._held or self._talk.call_actions.busy:
            self._music.reset()
            return []
        evidence = self._music.second(heard, self._plan.music_threshold)
        return self._found("music", now, evidence) if evidence else []

    def _beep(self, heard: inputs.BeepHeard, now: float) -> list[Output]:
        evidence = f"{heard.hz:.0f} Hz for {heard.ms} ms"
        greeting = self._beeps.beep(evidence, now)
        if self._beeps.waiting:
            return self._leave_message(evidence, now)
        if not greeting or self._talk.call_actions.busy:
            return []
        return self._found("voicemail", now, f"a beep after the first turn, {evidence}")

    def _leave_message(self, beep: str, now: float) -> list[Output]:
        self._beeps.over()
        found, self._message = self._message, None
        if found is None or self._talk.termination is not None:
            return []
        found.beep = beep
        note = self._talk.timeline.note(now, "voicemail_message", "info", beep=beep)
        return [note, *self._part(found, now)]

    def _turn(self, length_ms: int, now: float) -> list[Output]:
        if self._turns == 1 and length_ms >= self._plan.greeting_threshold * 1000:
            return self._found("voicemail", now, f"a first turn of {length_ms / 1000:g} s")
        self._lengths.append(length_ms)
        if len(self._lengths) < self._plan.bot_equal_turns:
            return []
        mean = fmean(self._lengths)
        if mean < _MIN_TURN_MS or not even(self._lengths):
            return []
        return self._found("bot", now, f"{len(self._lengths)} turns of {mean / 1000:.2f} s each")

    def _words(self, item_id: str, text: str, now: float) -> list[Output]:
        if item_id == self._first_item:
            for pattern in self._plan.voicemail_patterns:
                found = pattern.search(text)
                if found is not None:
                    return self._found("voicemail", now, f"said {found.group()[:80]!r}")
        evidence = self._said.words(item_id, words_of(text))
        return self._found("bot", now, evidence) if evidence else []

    def _open(self, kind: str) -> bool:
        """Whether this is still to be decided."""
        if self._beeps.waiting or self._talk.termination is not None:
            return False  # it is known what this is, and what is done about it
        return self._plan.actions.get(kind, "off") != "off" and kind not in self._decided

    def _found(self, kind: str, now: float, evidence: str) -> list[Output]:
        if not self._open(kind):
            return []
        self._decided.add(kind)
        action, talk = self._plan.actions[kind], self._talk
        found = MachineDetected(round(talk.timeline.ms(now), 1), kind, action, evidence)
        talk.timeline.record.content.machine_detection.append(found)
        outputs: list[Output] = [
            talk.timeline.note(
                now, "machine_detected", "warning", kind=kind, action=action, why=evidence
            )
        ]
        if action == "log":
            return outputs
        if kind == "voicemail" and action == "leave_message":
            self._message = found
            beep = self._beeps.wait(now)
            if beep:
                return outputs + self._leave_message(beep, now)
            return outputs + self._hush(now)
        return outputs + self._part(found, now)

    def _part(self, found: MachineDetected, now: float) -> list[Output]:
        words = "" if found.action == "hangup" else self._plan.messages.get(found.kind, "")
        to = self._plan.transfer_to if found.action == "transfer" else ""
        outputs = self._hush(now)
        self._talk.terminate(
            Termination(EndReason.MACHINE_DETECTED, f"{found.kind}: {found.why}", words, to)
        )
        return outputs

    def _hush(self, now: float) -> list[Output]:
        talk = self._talk
        if talk.speaking or talk.gate.active is not None:
            return talk.interrupt("machine", now)
        return []
