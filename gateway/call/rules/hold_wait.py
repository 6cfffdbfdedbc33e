# SPDX-License-Identifier: GPL-2.0-or-later
"""Hold and wait: the agent waits in the other side's queue, without talking to music and
announcements.

A wait begins with music in a row, with words that match ``announcements``, or with the same words
again, taking as long as before. Until it ends no response is requested, what the server begins by
itself is cancelled, and playout is silent. While music plays the session hears silence in its
place: that costs nothing and fills no context. Once there is speech, or quiet, it hears the other
side again, with the seconds before (:class:`gateway.call.outputs.Withhold`).

Somebody who speaks and then waits for an answer is a human, and ends the wait. Where music comes
back, what was said before it counts as an announcement, not a human; likewise words that match
``announcements``, or were heard before in this call.
"""

from __future__ import annotations

from typing import ClassVar

from gateway.call import inputs
from gateway.call.call_record import HoldWaitRecord, append_capped
from gateway.call.conversation.barge_in import interrupt
from gateway.call.conversation.control import ConversationControl, Termination
from gateway.call.outputs import Output, Send, Withhold
from gateway.call.plan import HoldWaitPlan
from gateway.call.rules.machine_detection import (
    HELD,
    MIXED,
    MusicOnHoldDetector,
    Repeats,
    turn_length_ms,
)
from gateway.call.tools.definitions import ToolCallError
from gateway.ending import EndReason
from gateway.measures import BoundedDict
from gateway.realtime.events import (
    CreateResponse,
    InputCommitted,
    InputTranscribed,
    ResponseCreated,
    SpeechStarted,
    SpeechStopped,
    UpdateSession,
)
from gateway.text import words_of

SETTLE_SECONDS = 1.6
"""After speech: time in which music comes back, if it was an announcement; then it was a human. A
second of sound is analysed at a time; one that is quiet ends the wait sooner."""

WORDS_SECONDS = 3.0
"""After speech: the longest wait for its transcript, where the session transcribes, before it
counts as a human's."""

QUIET = 0.1
"""Share of a second (0 to 1) that sounds, below which nobody has spoken in it."""

MAX_SEEN = 64
"""Turns in waits whose words are remembered, to know an announcement that comes again."""

MAX_KEYS = 5
"""Times that DTMF digits are sent in one wait."""

WAITING = (
    "You are waiting in a queue: music or announcements play. Say nothing, and do nothing, until "
    "you are told that somebody speaks."
)
ANSWERED = (
    "You have waited for {seconds} seconds, and somebody speaks now. Answer what they have just "
    "said, and say what this call is about."
)
"""System messages for the model."""


class HoldWait:
    """Has the agent wait in a queue of the other side (``[route.hold_wait]``) without talking to
    it: nothing is requested, and no response is heard, until a human speaks, the other side presses
    a key, or ``max_wait`` is over."""

    reacts_to: ClassVar[tuple[type, ...]] = (
        inputs.SoundHeard,
        inputs.DigitPressed,
        inputs.HoldChanged,
        SpeechStarted,
        SpeechStopped,
        InputCommitted,
        InputTranscribed,
        ResponseCreated,
    )

    def __init__(self, control: ConversationControl) -> None:
        self._control = control
        self._music = MusicOnHoldDetector()
        self._repeats = Repeats(2)
        self._seen: BoundedDict[tuple[str, ...], None] = BoundedDict(MAX_SEEN)
        self._held = False
        self._wait: HoldWaitRecord | None = None
        self._since = 0.0
        self._withheld = False
        self._unclear = 0
        """Seconds in a row with too few standing tones for music."""
        self._speaking: tuple[float, int | None] | None = None
        """When the server heard the other side begin to speak: our time (s), and the server's (ms);
        None while nobody speaks."""
        self._voice = False
        """Somebody has spoken since the music, or since the last announcement: a human, unless it
        turns out to be an announcement."""
        self._stopped: float | None = None
        """When they stopped (s); None while they speak, or nobody has spoken."""
        self._end_by_sound = False
        """A session is over, and no other has heard speech since, nor has music played: no session
        tells the end of what is said."""
        self._words_came = False
        self._key_count = 0

    @property
    def _plan(self) -> HoldWaitPlan:
        """Settings of ``[route.hold_wait]``, read anew each time: the plan with the call's fetched
        data replaces the first one."""
        return self._control.plan.hold_wait

    # ---- what happens

    def on(self, input: inputs.Input, now: float) -> list[Output]:
        """Handle a second of sound, speech of the other side or its transcript. In a wait,
        interrupt every response that begins, unless the call is ending, and end the wait at a DTMF
        digit of the other side (not one detected in the audio). Nothing where the rule is off.

        While the other side holds the call by SDP, seconds of sound are not looked at; the count of
        music starts anew when the hold begins and ends.
        """
        if not self._plan.enabled:
            return []
        match input:
            case inputs.SoundHeard():
                return self._on_sound(input, now)
            case inputs.ServerEventReceived(event=SpeechStarted(_, start_ms)):
                self._speaking, self._stopped, self._words_came = (now, start_ms), None, False
                self._end_by_sound = False
            case inputs.ServerEventReceived(event=SpeechStopped(item_id, end_ms)):
                self._on_speech_over(item_id, end_ms, now)
            case inputs.ServerEventReceived(event=InputCommitted(item_id)):
                if self._speaking is not None:  # of a server without ``speech_stopped``
                    self._on_speech_over(item_id, None, now)
            case inputs.ServerEventReceived(event=InputTranscribed(item_id, text)):
                return self._on_words(item_id, text, now)
            case inputs.ServerEventReceived(event=ResponseCreated()) if (
                self._wait is not None and self._control.termination is None
            ):
                return interrupt(self._control, "hold_wait", now)
            case inputs.DigitPressed(in_band=False) if self._wait is not None:
                return self._end("key", now)
            case inputs.HoldChanged(held=held):
                self._held = held
                self._music.reset()
        return []

    def tick(self, now: float) -> list[Output]:
        """Act on :attr:`deadline`: after ``max_wait`` seconds of waiting give up; else end the wait
        if somebody has spoken since the music and it was no announcement."""
        if self._wait is None or self.deadline is None or now < self.deadline:
            return []
        if now >= self._since + self._plan.max_wait:
            return self._give_up(now)
        human, self._stopped = self._voice, None
        self._voice = False
        return self._end("human", now) if human else []

    @property
    def deadline(self) -> float | None:
        """When :meth:`tick` acts (s): ``max_wait`` after the wait began, or sooner, when it judges
        whether speech that has stopped was a human's. That is ``SETTLE_SECONDS`` after it stopped,
        or ``WORDS_SECONDS`` while its transcript is awaited. None without a wait and while the
        call is ending."""
        if self._wait is None or self._control.termination is not None:
            return None
        latest = self._since + self._plan.max_wait
        if self._stopped is None:
            return latest
        wait = SETTLE_SECONDS
        if self._plan.transcribed and not self._words_came:
            wait = WORDS_SECONDS
        return min(latest, self._stopped + wait)

    # ---- how

    def _on_sound(self, heard: inputs.SoundHeard, now: float) -> list[Output]:
        """Handle a second of sound. Without a wait, ``music_threshold`` seconds of music begin one.

        In a wait, a second of music has the session hear silence, and the speech before the music
        counts as an announcement. The session hears the other side again after a quiet second,
        after one that is clearly not music, and after two in a row that may or may not be music. A
        second that is neither music nor quiet counts as speech. Where the server does not report
        speech, or its session is over (:meth:`on_session_over`), a quiet second is its end. A quiet
        second after the end of speech has :meth:`tick` decide at once, if no transcript is awaited.

        While an action is queued or under way, the call is ending, or the other side holds, only
        the count of music starts anew.
        """
        if self._held or self._control.call_actions.busy or self._control.termination is not None:
            self._music.reset()
            return []
        if self._wait is None:
            why = self._music.add_second(heard, self._plan.music_threshold)
            return self._begin(why, now, music=True) if why else []
        if heard.held >= HELD:
            self._unclear = 0
            announced, self._voice, self._stopped = self._voice, False, None
            self._end_by_sound = False
            self._wait.announcements += announced
            return self._withhold(True)
        self._unclear += 1
        quiet = heard.sounding < QUIET
        outputs: list[Output] = []
        if quiet or heard.held < MIXED or self._unclear > 1:
            outputs = self._withhold(False)
        if not quiet:
            self._voice = True
        elif self._voice and self._stopped is None:
            if self._end_by_sound or not self._control.capabilities.turn_events:
                self._stopped = now
        elif self._stopped is not None and (self._words_came or not self._plan.transcribed):
            self._stopped = now - SETTLE_SECONDS
        return outputs

    def _on_speech_over(self, item_id: str, end_ms: int | None, now: float) -> None:
        """Note the length of a turn that is over, and in a wait, unless silence is heard in its
        place, when the other side stopped.

        Args:
            end_ms: the server's time of its end; None where it does not say.
        """
        if self._speaking is not None:
            length = turn_length_ms(self._speaking, (now, end_ms))
            self._repeats.add_turn(item_id, length)
        self._speaking = None
        if self._wait is not None and not self._withheld:
            self._stopped = now

    def _on_words(self, item_id: str, text: str, now: float) -> list[Output]:
        """Handle the transcript of a turn. It is an announcement if it matches ``announcements``,
        repeats the turns before (:class:`Repeats`) or, in a wait, has the words of a turn in this
        or an earlier wait. Without a wait, an announcement begins one. In a wait, a turn does not
        count as a human's if it is an announcement, has no words, or asks for a key; the key is
        then sent. While an action is queued or under way, or the call is ending, the words are only
        counted (:class:`Repeats`)."""
        words = words_of(text)
        repeated = self._repeats.add_words(item_id, words)
        listed = any(one.search(text) for one in self._plan.announcements)
        announced = listed or bool(repeated) or (self._wait is not None and words in self._seen)
        if self._control.call_actions.busy or self._control.termination is not None:
            return []
        outputs: list[Output] = []
        if self._wait is None:
            if not announced:
                return []
            outputs = self._begin(repeated or f"said {text.strip()[:80]!r}", now, music=False)
        assert self._wait is not None
        self._words_came = True
        pressed = self._press(text, now)
        if words:
            self._seen[words] = None
        if announced or pressed or not words:
            self._wait.announcements += bool(words)
            self._voice, self._stopped = False, None
        return outputs + pressed

    def _press(self, text: str, now: float) -> list[Output]:
        """Queue the DTMF digits of the first of the route's ``keys`` whose pattern is found in the
        transcript of a turn, and return the log line. Nothing without such a pattern, after
        ``MAX_KEYS`` times in this wait, or while another action is queued or under way."""
        assert self._wait is not None
        for key in self._plan.keys:
            if self._key_count < MAX_KEYS and key.words.search(text):
                try:
                    self._control.call_actions.press(key.digits, now)
                except ToolCallError:
                    return []  # keys are being pressed already
                self._key_count += 1
                self._wait.keys += key.digits
                return [self._control.timeline.note(now, "hold_wait_key", "info", keys=key.digits)]
        return []

    def _begin(self, why: str, now: float, *, music: bool) -> list[Output]:
        """Begin a wait: record and log it, interrupt the agent if it speaks or a response runs or
        is requested, drop requests that wait to be sent, have the server begin no responses by
        itself, and tell the model to say nothing. Until the wait ends, no response can be
        requested (``ConversationControl.waiting``).

        Args:
            why: evidence, for record and log.
            music: music plays, which the session is not to hear.
        """
        control = self._control
        self._wait = HoldWaitRecord(round(control.timeline.ms(now), 1), why)
        append_capped(control.timeline.record.content.hold_waits, self._wait)
        self._since, self._key_count, self._unclear = now, 0, 0
        self._voice, self._stopped = False, None
        control.waiting = True
        outputs: list[Output] = [control.timeline.note(now, "hold_wait_began", "info", why=why)]
        if control.speaking or not control.responses.idle:
            outputs += interrupt(control, "hold_wait", now)
        control.responses.forget_waiting()
        outputs += self._stop_server_responses()
        return outputs + control.add_message(WAITING) + (self._withhold(True) if music else [])

    def _end(self, why: str, now: float) -> list[Output]:
        """End the wait: the session hears the other side again, and its server may begin responses;
        tell the model how long it has waited (s), and request a response.

        Args:
            why: human or key, for record and log.
        """
        control, wait = self._control, self._wait
        assert wait is not None
        outputs = self._close_wait(wait, why, now) + self._withhold(False)
        control.changes.pop("hold_wait", None)
        if self._plan.quiet and control.capabilities.settings_updates:
            outputs.append(Send(UpdateSession(self._plan.normal)))
        outputs += control.add_message(ANSWERED.format(seconds=round(wait.ms / 1000)))
        return outputs + control.request_response(CreateResponse(), now)

    def _give_up(self, now: float) -> list[Output]:
        """End the wait after ``max_wait`` (s), and terminate the conversation (reason
        ``MACHINE_DETECTED``): transfer the call to ``transfer_to`` if that is set; without it, or
        if the transfer fails, hang up without a goodbye. What the session hears stays as it was in
        the wait until caller and B-leg are joined (:meth:`on_bridged`), its settings in any
        case."""
        assert self._wait is not None
        outputs = self._close_wait(self._wait, "timeout", now)
        detail = f"music: waited for {round(now - self._since)} s in a queue"
        to = self._plan.transfer_to
        self._control.terminate(Termination(EndReason.MACHINE_DETECTED, detail, "", to))
        return outputs

    def on_session_over(self) -> None:
        """Note that the session is lost, closed on hold or handed over, perhaps in the middle of
        what is said: a quiet second is its end. The next one may use the ids of its turns again."""
        self._speaking, self._end_by_sound = None, True
        self._repeats.on_session_over()

    def on_bridged(self, now: float) -> list[Output]:
        """End the wait, if there is one, as caller and B-leg are joined: a session that listens
        hears the caller from now on, also where the wait was given up before."""
        outputs = [] if self._wait is None else self._close_wait(self._wait, "transfer", now)
        return outputs + self._withhold(False)

    def _close_wait(self, wait: HoldWaitRecord, why: str, now: float) -> list[Output]:
        """Set length (ms) and reason of the wait's end in the record and log it; responses may be
        requested again, and seconds of music are counted anew.

        Args:
            why: human, key, timeout or transfer.
        """
        self._wait, self._control.waiting = None, False
        self._music.reset()
        wait.ms, wait.ended = round((now - self._since) * 1000, 1), why
        seconds = round(now - self._since, 1)
        return [
            self._control.timeline.note(now, "hold_wait_ended", "info", why=why, seconds=seconds)
        ]

    def _stop_server_responses(self) -> list[Output]:
        """Return ``session.update`` with which the server begins no responses by itself, and have
        sessions that follow get it, too. Nothing where it begins none anyway; not sent to a session
        that takes no updates."""
        control, plan = self._control, self._plan
        if not plan.quiet:
            return []
        change = control.changes["hold_wait"] = UpdateSession(dict(plan.quiet))
        return [Send(change)] if control.capabilities.settings_updates else []

    def _withhold(self, withheld: bool) -> list[Output]:
        """Have the session hear silence in place of the other side, or hear it again: return
        ``Withhold`` if that changes, else nothing."""
        was, self._withheld = self._withheld, withheld
        return [] if was is withheld else [Withhold(withheld)]
