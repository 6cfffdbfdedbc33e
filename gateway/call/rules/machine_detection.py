# SPDX-License-Identifier: GPL-2.0-or-later
"""Machine detection: hold music, a voicemail greeting or another bot on the caller's side.

Decided from the caller's turns as the server detects them (voice activity detection must be on),
their transcripts (transcription must be on), and the audio itself for music and beeps. Each kind is
detected at most once in a call; the evidence is in the record and the log.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Collection
from statistics import fmean, pstdev
from typing import ClassVar

from gateway.call import inputs
from gateway.call.call_record import MachineDetected
from gateway.call.conversation.control import ConversationControl, Termination
from gateway.call.outputs import Output
from gateway.ending import EndReason
from gateway.measures import BoundedDict
from gateway.realtime.events import (
    InputCommitted,
    InputTranscribed,
    ResponseCreated,
    SpeechStarted,
    SpeechStopped,
)
from gateway.text import words_of

HELD = 0.58
"""Share of a second (0 to 1) that has standing tones, from which it is music's. Synthesised speech
has 0.2 in the mean, hardly ever more than 0.5; synthesised music 0.8 to 0.9."""

MISSES = 2
"""Seconds in a row below ``HELD`` after which the music counts as over: somebody speaks."""

CHANGE = 0.03
"""Difference (0 to 1) of a second's tones from those of the second before, from which they change
as music does; a hum's or dial tone's stay the same."""

MIXED = 0.45
"""Mean share of standing tones (0 to 1) in a stretch without a pause, from which it is no voice
alone: singers, words over music."""


class MusicOnHoldDetector:
    """Detects hold music by standing tones: enough seconds of music in a row, or a large share of
    one stretch of sound without a pause."""

    def __init__(self) -> None:
        self._stretch = self._stretch_held = 0.0
        self.reset()

    def begin_stretch(self) -> None:
        """Begin a stretch of sound without a pause, whose share :attr:`mixed` is: at
        ``speech_started``, or once a stretch was judged."""
        self._stretch = self._stretch_held = 0.0

    @property
    def mixed(self) -> float:
        """Share of the stretch so far (0 to 1) that has standing tones; 0 below ``MIXED``, since a
        voice alone may have as much."""
        share = self._stretch_held / self._stretch if self._stretch else 0.0
        return share if share >= MIXED else 0.0

    def reset(self) -> None:
        """Forget the seconds of music in a row; the stretch goes on."""
        self._held: list[float] = []
        self._changes = self._misses = 0

    def add_second(self, heard: inputs.SoundHeard, wanted: float) -> str:
        """Add a second of sound to the stretch (:attr:`mixed`), and if it is music's to the seconds
        of music in a row.

        Returns the evidence, in words, once at least ``wanted`` seconds in a row were music and the
        tones changed in a third of them (the count then starts anew), else "". A second whose share
        of standing tones is below ``HELD`` is not counted, and does no harm; ``MISSES`` such in a
        row start the count anew.
        """
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
"""Standard deviation of the lengths of turns as a share of their mean, which no human keeps
within."""

STUBBORN = 2
"""So many times the repetitions are needed where they are not equally long: people say "I want to
talk to a human" three times, too."""

_MIN_WORDS = 3
"""Words that a turn must have to count as a repetition: people say yes again and again."""

_MAX_TURNS = 64
"""Turns whose lengths are kept."""


def similar_lengths(lengths: Collection[int]) -> bool:
    """Return whether these lengths (ms) are more alike than those of a human's turns: standard
    deviation at most ``EVEN`` times the mean."""
    return pstdev(lengths) <= EVEN * fmean(lengths)


def turn_length_ms(began: tuple[float, int | None], ended: tuple[float, int | None]) -> int:
    """Return the length (ms) of a turn by the server's times, or by our clock where the server
    gives none that can be right.

    Args:
        began: when ``speech_started`` came, by our clock (s), and the server's time in it (ms).
        ended: the same of ``speech_stopped``.
    """
    start_ms, end_ms = began[1], ended[1]
    if start_ms is None or end_ms is None or end_ms < start_ms:
        return round((ended[0] - began[0]) * 1000)
    return end_ms - start_ms


class Repeats:
    """Detects a bot that says the same words again and again, turn after turn.

    Args:
        wanted: turns with the same words, the first included, from which it is a bot if the last
            ``wanted`` of them were about equally long; otherwise ``STUBBORN`` times as many.
    """

    def __init__(self, wanted: int) -> None:
        self._wanted = wanted
        self._lengths: BoundedDict[str, int] = BoundedDict(_MAX_TURNS)
        """Lengths (ms) by item of turns whose words have not come."""
        self._words: tuple[str, ...] = ()
        self._times = 0
        """Turns in a row with these words."""
        self._spoken: deque[int] = deque(maxlen=min(wanted, _MAX_TURNS))
        """Lengths (ms) of the last of them."""

    def on_session_over(self) -> None:
        """Forget the turns whose words have not come: the next session may use the same ids."""
        self._lengths.clear()

    def add_turn(self, item_id: str, length_ms: int) -> None:
        """Note the length (ms) of a turn whose transcript may come later."""
        self._lengths[item_id] = length_ms

    def add_words(self, item_id: str, words: tuple[str, ...]) -> str:
        """Add the words of a turn; return the evidence, in words, if they are those of the turns
        before, and said often enough by now, else "". Other words start the count anew; turns of
        fewer than ``_MIN_WORDS`` words are ignored."""
        length = self._lengths.pop(item_id, None)
        if len(words) < _MIN_WORDS:
            return ""
        if words != self._words:
            self._words, self._times = words, 0
            self._spoken.clear()
        self._times += 1
        if length is not None:
            self._spoken.append(length)
        same_length = len(self._spoken) == self._wanted and similar_lengths(self._spoken)
        if self._times >= self._wanted and same_length:
            return f"said the same {self._times} times, each time as long"
        if self._times >= STUBBORN * self._wanted:
            return f"said the same {self._times} times"
        return ""


RECENT_SECONDS = 4.0
"""Longest time (s) from a beep to the detection of voicemail in which the voicemail still records;
and from the end of a greeting to its beep."""

GREETING_SECONDS = 2.5
"""Shortest time (s) from the first speech to a beep: what is said before an earlier beep is no
greeting."""

LONGEST_SECONDS = 60.0
"""Longest wait (s) for the end of a greeting after it was known as one; then the message is
left."""


class BeepWaiter:
    """Knows a voicemail by the beep after its greeting, and waits for that beep. Times in s.

    Args:
        seconds: quiet after the greeting, or after voicemail was detected in a pause, that ends the
            wait without a beep; 0: no wait.
    """

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds
        self._last: tuple[float, str] | None = None
        """When the last beep came, and its evidence."""
        self._began: float | None = None
        """When the other side first began to speak."""
        self._stopped: float | None = None
        """When the other side first stopped speaking."""
        self._quiet_since: float | None = None
        """Since when the other side does not speak; None while it does, or before it did."""
        self._since: float | None = None
        """Since when a beep is waited for; None while none is."""

    @property
    def waiting(self) -> bool:
        """Whether a beep is being waited for."""
        return self._since is not None

    def on_speech_started(self, now: float) -> None:
        """Note ``speech_started`` of the other side: the first one dates the greeting; each stops
        the quiet time that ends the wait for the beep, also where the server takes the beep for
        speech."""
        if self._began is None:
            self._began = now
        self._quiet_since = None

    def on_speech_stopped(self, now: float) -> None:
        """Note ``speech_stopped`` of the other side, whether or not a beep is waited for: the first
        one dates the end of the greeting; from each one on the other side is quiet."""
        if self._stopped is None:
            self._stopped = now
        self._quiet_since = now

    def on_beep(self, evidence: str, now: float) -> bool:
        """Note a beep; return whether it follows a greeting, so that this is a voicemail: speech
        began at least ``GREETING_SECONDS`` before, and its first stretch goes on or ended at most
        ``RECENT_SECONDS`` ago."""
        self._last = now, evidence
        if self._began is None or now - self._began < GREETING_SECONDS:
            return False
        return self._stopped is None or now - self._stopped <= RECENT_SECONDS

    def wait_for_beep(self, now: float) -> str:
        """Begin to wait and return "". Where there is no need to wait, return why: the evidence of
        a beep in the last ``RECENT_SECONDS``, or "not waited for" without a waiting time."""
        if self._last is not None and now - self._last[0] <= RECENT_SECONDS:
            return self._last[1]
        if not self._seconds:
            return "not waited for"
        self._since = now
        return ""

    def stop_waiting(self) -> None:
        """Stop waiting for the beep, since the message is being left."""
        self._since = None

    @property
    def deadline(self) -> float | None:
        """When to leave the message without a beep (s): ``seconds`` after the last speech, or after
        the wait began if that is later; ``LONGEST_SECONDS`` after it began at the latest. Only
        this holds while the other side speaks, and where the server has reported no speech. None
        while no beep is waited for."""
        if self._since is None:
            return None
        latest = self._since + LONGEST_SECONDS
        if self._quiet_since is None:
            return latest
        return min(latest, max(self._since, self._quiet_since) + self._seconds)


_MIN_TURN_MS = 2000
"""Shortest mean length (ms) of turns that are judged by their even lengths: the server counts 0.8 s
of silence into each, so that yes, said twelve times, is even, too."""


class MachineDetector:
    """Detects hold music, voicemail and bots on the caller's side, and acts as the route says
    (``[route.machine_detection]``). Methods take the time (s).

    Args:
        interrupt: stops what the agent says, and cancels its responses.
    """

    reacts_to: ClassVar[tuple[type, ...]] = (
        inputs.SoundHeard,
        inputs.BeepHeard,
        inputs.HoldChanged,
        inputs.SessionClosed,
        SpeechStarted,
        SpeechStopped,
        InputCommitted,
        InputTranscribed,
        ResponseCreated,
    )

    def __init__(
        self, control: ConversationControl, interrupt: Callable[[float], list[Output]]
    ) -> None:
        self._control = control
        self._interrupt = interrupt
        self._plan = control.plan.machine_detection
        self._turns = 0
        """Turns of the other side that have begun."""
        self._started: tuple[float, int | None] | None = None
        """When the stretch of speech that goes on began: our time (s), and the server's (ms)."""
        self._lengths: deque[int] = deque(maxlen=min(self._plan.bot_equal_turns, _MAX_TURNS))
        """Lengths (ms) of the last turns."""
        self._said = Repeats(self._plan.bot_repeats)
        self._first_item: str | None = ""
        """Item id of the first turn, "" before one with an id; None once its session is over."""
        self._transcribed = False
        """The transcript of a turn has come."""
        self._unbroken = 0.0
        """When the stretch of sound without a pause began that is judged next (s)."""
        self._held = False
        """The other side holds the call by SDP."""
        self._music = MusicOnHoldDetector()
        self._beeps = BeepWaiter(self._plan.beep_timeout)
        self._message: MachineDetected | None = None
        """The voicemail whose message has not been said yet; None without one."""
        self._decided: set[str] = set()
        """Kinds that were detected before."""

    def on(self, input: inputs.Input, now: float) -> list[Output]:
        """Handle a turn of the caller's side, its transcript, a second of sound, or a beep. While a
        beep is waited for, interrupt each response that is created. The begin and the end of a hold
        start the count of music anew.
        """
        match input:
            case inputs.ServerEventReceived(event=SpeechStarted(item_id, start_ms)):
                self._turns += 1
                if self._first_item == "":
                    self._first_item = item_id
                self._started = (now, start_ms)
                self._unbroken = now
                self._music.begin_stretch()
                self._beeps.on_speech_started(now)
            case inputs.ServerEventReceived(event=SpeechStopped(item_id, end_ms)):
                return self._on_speech_over(item_id, end_ms, now)
            case inputs.ServerEventReceived(event=InputCommitted(item_id)):
                return self._on_speech_over(item_id, None, now)  # without ``speech_stopped``
            case inputs.ServerEventReceived(event=InputTranscribed(item_id, text)):
                return self._on_words(item_id, text, now)
            case inputs.ServerEventReceived(event=ResponseCreated()) if self._beeps.waiting:
                return self._interrupt(now)  # nobody is there to be answered
            case inputs.SoundHeard():
                return self._on_sound(input, now)
            case inputs.BeepHeard():
                return self._on_beep(input, now)
            case inputs.HoldChanged(held=held):
                self._held = held
                self._music.reset()
            case inputs.SessionClosed():
                self.on_session_over()
        return []

    def on_session_over(self) -> None:
        """Drop a turn that is not over, and forget the ids of all, since the session is lost,
        closed on hold or handed over: the next one may use the same ids."""
        self._started = None
        self._said.on_session_over()
        if self._turns:
            self._first_item = None

    def tick(self, now: float) -> list[Output]:
        """Act on :attr:`deadline`.

        The wait for a beep is over: have the model say the voicemail's message, then hang up. Else
        ``music_threshold`` seconds of sound without a pause are over: where enough of it has
        standing tones, it is hold music, which is recorded and logged, and the route's action done;
        otherwise the next stretch begins. In a hold, and while an action is queued or under way, it
        is not judged, and the turn that goes on is dropped: its end is ignored, and the next
        stretch begins at ``speech_started``.
        """
        if self._beeps.deadline is not None and now >= self._beeps.deadline:
            return self._leave_message("none came", now)
        due = self._music_deadline
        if due is None or now < due or self._started is None:
            return []
        seconds = round(now - self._started[0], 1)
        if self._held or self._control.call_actions.busy:
            self._started = None  # not what the model hears
            return []
        share = self._music.mixed
        if not share:
            self._unbroken = now  # somebody has much to say, or there is noise around them
            self._music.begin_stretch()
            return []
        evidence = f"sound without a pause for {seconds:g} s, standing tones in {share:.0%} of it"
        return self._act_on_machine("music", now, evidence)

    @property
    def deadline(self) -> float | None:
        """When :meth:`tick` acts next (s): at the end of the wait for a beep, or when the stretch
        of sound is judged; None without either."""
        due = (self._beeps.deadline, self._music_deadline)
        return min((at for at in due if at is not None), default=None)

    # ---- how

    @property
    def _music_deadline(self) -> float | None:
        """When the stretch of sound is judged (s), ``music_threshold`` seconds after it began; None
        while nobody is heard, or music is not looked for."""
        if self._started is None or not self._is_looked_for("music"):
            return None
        return self._unbroken + self._plan.music_threshold

    def _on_sound(self, heard: inputs.SoundHeard, now: float) -> list[Output]:
        """Add a second of sound. Hold music is detected once ``music_threshold`` seconds were music
        with changing tones, not broken by ``MISSES`` others in a row (:meth:`add_second`). During a
        hold, and while an action is queued or under way, the count starts anew instead."""
        if self._held or self._control.call_actions.busy:
            self._music.reset()
            return []
        evidence = self._music.add_second(heard, self._plan.music_threshold)
        return self._act_on_machine("music", now, evidence) if evidence else []

    def _on_beep(self, heard: inputs.BeepHeard, now: float) -> list[Output]:
        """Handle a beep: while one is waited for, leave the message; else, after a greeting
        (:meth:`BeepWaiter.on_beep`), it means voicemail, unless an action is queued or under
        way."""
        evidence = f"{heard.hz:.0f} Hz for {heard.ms} ms"
        greeting = self._beeps.on_beep(evidence, now)
        if self._beeps.waiting:
            return self._leave_message(evidence, now)
        if not greeting or self._control.call_actions.busy:
            return []
        return self._act_on_machine("voicemail", now, f"a beep after the first turn, {evidence}")

    def _leave_message(self, beep: str, now: float) -> list[Output]:
        """Stop waiting for a beep. Then, if a voicemail waits for its message and the call is not
        ending, set in the record which beep there was, log ``voicemail_message``, and terminate:
        have the model say the route's message for voicemail, then hang up.

        Args:
            beep: evidence of the beep before it, or why there was none.
        """
        self._beeps.stop_waiting()
        found, self._message = self._message, None
        if found is None or self._control.termination is not None:
            return []
        found.beep = beep
        note = self._control.timeline.note(now, "voicemail_message", "info", beep=beep)
        return [note, *self._end_conversation(found, now)]

    def _on_speech_over(self, item_id: str, end_ms: int | None, now: float) -> list[Output]:
        """Handle the end of a stretch of speech, once.

        Args:
            end_ms: the server's time of it; None where it does not say.
        """
        if self._started is None:
            return []
        length = turn_length_ms(self._started, (now, end_ms))
        self._started = None
        self._said.add_turn(item_id, length)
        self._beeps.on_speech_stopped(now)
        return self._on_turn(length, now)

    def _on_turn(self, length_ms: int, now: float) -> list[Output]:
        """Handle the end of a turn: a first one of ``greeting_threshold`` seconds or more is a
        voicemail's greeting; the last ``bot_equal_turns`` of about equal length, 2 s or more in the
        mean, are a bot's. A first turn that long is not one of these."""
        if self._turns == 1 and length_ms >= self._plan.greeting_threshold * 1000:
            return self._act_on_machine("voicemail", now, f"a first turn of {length_ms / 1000:g} s")
        self._lengths.append(length_ms)
        if len(self._lengths) < self._plan.bot_equal_turns:
            return []
        mean = fmean(self._lengths)
        if mean < _MIN_TURN_MS or not similar_lengths(self._lengths):
            return []
        return self._act_on_machine(
            "bot", now, f"{len(self._lengths)} turns of {mean / 1000:.2f} s each"
        )

    def _on_words(self, item_id: str, text: str, now: float) -> list[Output]:
        """Handle the transcript of a turn: voicemail if the turn is the first and one of
        ``voicemail_patterns`` is found in the transcript, a bot if the same words were said often
        enough (:class:`Repeats`). Of a server that gives no item ids, the first transcript is taken
        for that of the first turn."""
        first = item_id == self._first_item and (bool(item_id) or not self._transcribed)
        self._transcribed = True
        if first:
            for pattern in self._plan.voicemail_patterns:
                found = pattern.search(text)
                if found is not None:
                    return self._act_on_machine("voicemail", now, f"said {found.group()[:80]!r}")
        evidence = self._said.add_words(item_id, words_of(text))
        return self._act_on_machine("bot", now, evidence) if evidence else []

    def _is_looked_for(self, kind: str) -> bool:
        """Return whether this kind of machine is looked for now: not detected before, its action is
        not off, no beep is waited for, the call is not ending, and the agent does not wait in a
        queue (hold and wait)."""
        if self._beeps.waiting or self._control.termination is not None or self._control.waiting:
            return False  # it is known what this is, and what is done about it
        return self._plan.actions.get(kind, "off") != "off" and kind not in self._decided

    def _act_on_machine(self, kind: str, now: float, evidence: str) -> list[Output]:
        """Record and log a machine, and do the route's action for this kind: nothing more (log),
        end the conversation (hangup, transfer), or leave a message (leave_message). The message
        follows the beep; until then what the agent says is interrupted. Nothing at all if this kind
        is not looked for now.

        Args:
            kind: music, voicemail or bot.
            evidence: for the record.
        """
        if not self._is_looked_for(kind):
            return []
        self._decided.add(kind)
        action, control = self._plan.actions[kind], self._control
        found = MachineDetected(round(control.timeline.ms(now), 1), kind, action, evidence)
        control.timeline.record.content.machine_detection.append(found)
        outputs: list[Output] = [
            control.timeline.note(
                now, "machine_detected", "warning", kind=kind, action=action, why=evidence
            )
        ]
        if action == "log":
            return outputs
        if kind == "voicemail" and action == "leave_message":
            self._message = found
            beep = self._beeps.wait_for_beep(now)
            if beep:
                return outputs + self._leave_message(beep, now)
            return outputs + self._silence_agent(now)
        return outputs + self._end_conversation(found, now)

    def _end_conversation(self, found: MachineDetected, now: float) -> list[Output]:
        """Interrupt the agent, and terminate (reason ``MACHINE_DETECTED``): hang up without words
        (action hangup), transfer with this kind's message as last words should that fail, or say
        the message and hang up (leave_message)."""
        words = "" if found.action == "hangup" else self._plan.messages.get(found.kind, "")
        to = self._plan.transfer_to if found.action == "transfer" else ""
        outputs = self._silence_agent(now)
        self._control.terminate(
            Termination(EndReason.MACHINE_DETECTED, f"{found.kind}: {found.why}", words, to)
        )
        return outputs

    def _silence_agent(self, now: float) -> list[Output]:
        """Interrupt the agent, if it is speaking or a response runs; else nothing."""
        control = self._control
        heard = control.speaking or control.responses.active is not None
        return self._interrupt(now) if heard else []
