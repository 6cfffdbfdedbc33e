# SPDX-License-Identifier: GPL-2.0-or-later
"""The two endless audio streams of a Live session, at 8 kHz in G.711.

Up: exactly one second of audio a second from ``session.started`` to ``session.close``
(:class:`Pacer`). Down: a track that never pauses, silence included, in which speech is found by its
energy (:class:`SpeechTrack`). Pure: times are passed in, in seconds.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

import numpy as np

from gateway.audio import BYTES_PER_MS, FRAME_BYTES, FRAME_MS, Codec

LATE_FRAMES = 2.25
"""Frames that caller audio may be late before silence is sent in their place."""

AHEAD_FRAMES = 0.5
"""Frames that audio may be ahead of the clock, so that it need not wait for a timer. Gaps between
sent frames are 55 ms at most, and 60 with a timer that is 5 ms late."""

BURST_FRAMES = 2
"""Frames sent at once at most; more that is due follows 20 ms later."""

SETTLED_FRAMES = 25
"""Frames in a row that came while others waited, after which silent ones are dropped: the sender's
clock is fast, or silence was sent in their place."""

MAX_SURPLUS_FRAMES = 15
"""Frames that wait at most; beyond that the oldest are dropped, silent or not."""


class Pacer:
    """Paces caller audio for a Live session: 50 frames (20 ms) a second from :meth:`start` on,
    silence where none came."""

    def __init__(self, codec: Codec) -> None:
        self._silence = codec.silence * FRAME_BYTES
        self._quiet = quiet_codes(codec, UPLINK_LEVEL)
        self._frames: deque[bytes] = deque()
        self._rest = b""
        self._began = 0.0
        self._waited = 0
        """Frames in a row that came while others waited."""
        self.sent = 0
        """Frames let out since the start."""
        self.filled = 0
        """Frames of silence among them, sent because no audio came."""
        self.dropped = 0
        """Frames dropped, because more came than time has passed."""

    def start(self, now: float) -> None:
        """Begin the clock of frames at ``now`` (s)."""
        self._began = now

    def put(self, audio: bytes) -> None:
        """Queue caller audio, G.711 of any length; what is no whole frame of 160 bytes waits for
        more."""
        if self._rest or len(audio) != FRAME_BYTES:
            audio = self._rest + audio
            whole = len(audio) // FRAME_BYTES * FRAME_BYTES
            self._rest = audio[whole:]
            self._frames.extend(audio[at : at + FRAME_BYTES] for at in range(0, whole, FRAME_BYTES))
        else:
            self._frames.append(audio)

    def due(self, now: float) -> list[bytes]:
        """Return the frames (20 ms) to send at ``now`` (s), 2 at most: usually the one that was
        just put.

        A queued frame is due half a frame early; silence is due if none is queued and the clock is
        2.25 frames ahead of what was sent. Then surplus frames are dropped (:meth:`_leave_out`).
        """
        # A timer that is due is not to be a rounding error too early.
        behind = (now - self._began) * 1000 / FRAME_MS + 1e-3 - self.sent
        frames = self._frames
        out: list[bytes] = []
        while len(out) < BURST_FRAMES:
            if frames and behind >= 1 - AHEAD_FRAMES:
                out.append(frames.popleft())
            elif not frames and behind >= LATE_FRAMES:
                out.append(self._silence)
                self.filled += 1
            else:
                break
            behind -= 1
        self.sent += len(out)
        if frames or self._waited:
            self._leave_out(behind)
        return out

    def _leave_out(self, behind: float) -> None:
        """Drop the latest silent frame of the queue if 25 calls in a row left more frames than are
        due; and the oldest frames, silent or not, while more than 15 are surplus.

        ``behind`` is the number of frames that are due by the clock and were not sent.
        """
        frames = self._frames
        surplus = len(frames) - max(0, int(behind))
        self._waited = self._waited + 1 if surplus > 0 else 0
        if self._waited >= SETTLED_FRAMES:
            for index in range(len(frames) - 1, -1, -1):
                if not frames[index].translate(None, self._quiet):
                    del frames[index]
                    surplus -= 1
                    self.dropped += 1
                    break
        while surplus > MAX_SURPLUS_FRAMES:
            frames.popleft()
            surplus -= 1
            self.dropped += 1

    @property
    def next_at(self) -> float:
        """Time at which :meth:`due` must be called next (s): when the first queued frame is due,
        or, with none queued, when silence is."""
        ahead = 1 if self._frames else LATE_FRAMES
        return self._began + (self.sent + ahead) * FRAME_MS / 1000


TRACK_LEVEL = 130
"""Amplitude, of 32,768 (-48 dBFS), above which a sample of the model's track is a voice."""

STILL_LEVEL = 24
"""Amplitude (-63 dBFS) up to which a sample is digital silence; consonants are louder."""

UPLINK_LEVEL = 500
"""Amplitude (-36 dBFS) above which a sample of the caller is a voice: a line has noise."""

LOUD_BYTES = 8
"""Loud samples from which a frame (of 160) counts as sound; a click has fewer."""

END_MS = 600
"""Silence (ms) that ends a stretch of speech; pauses within a sentence are shorter."""

LEAD_MS = 100
"""Audio (ms) too soft to be a voice that is kept before the first frame of voice: consonants."""

MARGIN_MS, MAX_MARGIN_MS = 40, 200
"""Audio in the playout queue (ms) when the next piece of the track is due, in case that is late: at
first, and at most. It grows by a frame after an underrun."""

PAUSE_MS = 60
"""Length of a pause in speech (ms) beyond which frames may be left out to catch up."""


def quiet_codes(codec: Codec, level: int) -> bytes:
    """Return the G.711 bytes whose sample is not above ``level`` (of 32,768)."""
    linear = np.frombuffer(codec.to_linear(bytes(range(256))), np.int16).astype(int)
    return bytes(code for code in range(256) if abs(linear[code]) <= level)


class Energy:
    """Classifies frames as sound or silence by samples above ``level`` (of 32,768)."""

    def __init__(self, codec: Codec, level: int) -> None:
        self.quiet = quiet_codes(codec, level)

    def sounds(self, frame: bytes) -> bool:
        """Return whether a frame has sound: at least 8 of its samples are louder than the level."""
        return len(frame.translate(None, self.quiet)) >= LOUD_BYTES


@dataclass(frozen=True, slots=True)
class SpeechBegins:
    """A stretch of speech began at ``at_ms`` of the stream."""

    at_ms: int


@dataclass(frozen=True, slots=True)
class SpeechEnds:
    """The stretch of speech ended at ``at_ms`` of the stream; silence has followed since."""

    at_ms: int


class SpeechTrack:
    """Divides the endless track of a Live session into stretches of speech.

    A stretch is returned byte for byte, from the lead before its first frame of sound to the end of
    the silence that ends it; silence between stretches is dropped. The lead is long enough that
    pieces which come in time are played without a gap. Where the playout queue is longer than
    needed for that, digital silence in a stretch is left out; beyond ``max_queue_ms``, all silence.

    Args:
        queued_ms: returns the length of the playout queue (ms).
        underruns: returns how often it ran empty within speech.
    """

    def __init__(
        self,
        codec: Codec,
        max_queue_ms: int,
        queued_ms: Callable[[], int] = lambda: 0,
        underruns: Callable[[], int] = lambda: 0,
    ) -> None:
        self._energy = Energy(codec, TRACK_LEVEL)
        self._still = quiet_codes(codec, STILL_LEVEL)
        self._max_queue_ms = max_queue_ms
        self._queued_ms = queued_ms
        self._underruns = underruns
        self._seen_underruns = 0
        self._margin_ms = MARGIN_MS
        self._before = b""
        self._rest = b""
        self._silent_ms = 0
        self._bytes = 0
        self.end_ms = END_MS
        """Silence that ends a stretch (ms)."""
        self.speaking = False
        self.dropped_ms = 0
        """Silence in stretches that was left out (ms)."""

    @property
    def ms(self) -> int:
        """Length of the track so far (ms)."""
        return self._bytes // BYTES_PER_MS

    def feed(self, audio: bytes) -> Iterable[SpeechBegins | bytes | SpeechEnds]:
        """Take the next piece of the track, of any length; return its speech as audio (G.711
        bytes), after :class:`SpeechBegins` and before :class:`SpeechEnds` where a stretch begins or
        ends in it. Nothing for silence between stretches. The result must be iterated to its end
        before the next call."""
        if self.speaking:
            if len(audio) == FRAME_BYTES and not self._rest and self._energy.sounds(audio):
                self._bytes += FRAME_BYTES
                self._silent_ms = 0
                return (audio,)
        elif not audio.translate(None, self._energy.quiet):
            # Silence between stretches, ten times a second and call.
            self._bytes += len(audio)
            self._before = (self._before + self._rest + audio)[-_BEFORE_BYTES:]
            self._rest = b""
            return ()
        return self._cut_up(audio)

    def _cut_up(self, audio: bytes) -> Iterator[SpeechBegins | bytes | SpeechEnds]:
        """Do as :meth:`feed`, frame by frame; what is no whole frame waits for the next piece."""
        audio = self._rest + audio
        self._bytes -= len(self._rest)
        whole = len(audio) // FRAME_BYTES * FRAME_BYTES
        out: list[bytes] = []
        for at in range(0, whole, FRAME_BYTES):
            frame = audio[at : at + FRAME_BYTES]
            self._bytes += FRAME_BYTES
            sounds = self._energy.sounds(frame)
            if not self.speaking:
                if not sounds:
                    self._before = (self._before + frame)[-_BEFORE_BYTES:]
                    continue
                before, self._before = self._lead(at // BYTES_PER_MS), b""
                yield SpeechBegins(self.ms - FRAME_MS - len(before) // BYTES_PER_MS)
                self.speaking, self._silent_ms = True, 0
                out += [before, frame]
                continue
            self._silent_ms = 0 if sounds else self._silent_ms + FRAME_MS
            if self._silent_ms > PAUSE_MS and self._left_out(frame, out, whole):
                self.dropped_ms += FRAME_MS
            else:
                out.append(frame)
            if self._silent_ms >= self.end_ms:
                yield b"".join(out)
                out.clear()
                yield self._end()
        self._rest = audio[whole:]
        self._bytes += len(self._rest)
        if out:
            yield b"".join(out)

    def _lead(self, into_ms: int) -> bytes:
        """Return the audio to play before the first frame of sound, from the 300 ms before it: soft
        sounds of up to 100 ms, and as much as keeps the queue filled until the next piece comes
        (the margin, less what is queued). ``into_ms``: place of that frame in its piece."""
        soft = min(len(self._before.lstrip(self._still)) // BYTES_PER_MS, LEAD_MS)
        lead = max(into_ms + self._margin_ms - self._queued_ms(), soft, 0) * BYTES_PER_MS
        return self._before[-lead:] if lead else b""

    def _left_out(self, frame: bytes, out: list[bytes], piece: int) -> bool:
        """Return whether to leave out a frame of a pause of more than 60 ms: digital silence where
        the queue has enough until the next piece, any silence where it is longer than
        ``max_queue_ms``.

        At the beginning of each such pause, an underrun since the last makes the margin 20 ms
        longer. ``out`` has the audio of this piece before the frame, ``piece`` is the piece's
        length in bytes.
        """
        if self._silent_ms == PAUSE_MS + FRAME_MS and self._underruns() > self._seen_underruns:
            self._seen_underruns = self._underruns()
            self._margin_ms = min(self._margin_ms + FRAME_MS, MAX_MARGIN_MS)
        waits = self._queued_ms() + sum(map(len, out)) // BYTES_PER_MS
        enough = piece // BYTES_PER_MS + self._margin_ms
        still = waits >= enough and not frame.translate(None, self._still)
        return still or waits > self._max_queue_ms

    def _end(self) -> SpeechEnds:
        """Note the end of the stretch, and return it as of the beginning of the silence that ended
        it."""
        self.speaking = False
        return SpeechEnds(self.ms - self._silent_ms)


_BEFORE_BYTES = 300 * BYTES_PER_MS
"""Silence before a stretch that is kept for its lead."""


class SpeechDetector:
    """Detects the caller's speech in the audio sent to a Live session, which reports no turns.
    Times are ms of the audio fed."""

    def __init__(self, codec: Codec) -> None:
        self._energy = Energy(codec, UPLINK_LEVEL)
        self._loud = self._silent_ms = self._frames = 0
        self.speaking = False

    def feed(self, frame: bytes) -> SpeechBegins | SpeechEnds | None:
        """Take the next frame (20 ms); return the beginning or end of speech that it completes,
        else None.

        Speech begins with the 4th frame of sound without 100 ms of silence among them, as of the
        first; it ends after 600 ms of silence, as of the beginning of that.
        """
        self._frames += 1
        ms = self._frames * FRAME_MS
        if self._energy.sounds(frame):
            self._loud, self._silent_ms = self._loud + 1, 0
            if not self.speaking and self._loud >= _ONSET_FRAMES:
                self.speaking = True
                return SpeechBegins(ms - self._loud * FRAME_MS)
            return None
        self._silent_ms += FRAME_MS
        if self._silent_ms >= _ONSET_GAP_MS:
            self._loud = 0
        if not self.speaking or self._silent_ms < END_MS:
            return None
        self.speaking = False
        return SpeechEnds(ms - self._silent_ms)


_ONSET_FRAMES = 4
"""Frames of sound, nearly in a row, from which the caller speaks: 80 ms."""
_ONSET_GAP_MS = 100


@dataclass(slots=True)
class Stretch:
    """A stretch of speech of one side, from ``start_ms`` to ``end_ms`` of its stream, and the words
    that have come so far."""

    id: str
    start_ms: int
    end_ms: int | None = None
    text: str = ""
    words_at: float = 0.0
    """When its last words came (s)."""
    told: bool = False
    """:meth:`Stretches.complete` has returned it, or is not to."""
    dropped: bool = False
    """Nobody hears it."""


WORDS_LATE = 1.0
"""Seconds without more words after which the transcript of a stretch that has ended is complete:
words come in pieces, three seconds after the sound."""

_STRETCHES = 32

MAX_TEXT = 16_000
"""Characters kept of one stretch; ten minutes of talk have fewer."""


class Stretches:
    """The latest 32 stretches of speech of one side, to which words are assigned as they come.

    Args:
        prefix: of the ids of stretches, which are numbered from 1.
        faint: this side may speak too softly to be detected: words that begin more than 0.6 s after
            the end of a stretch, or come once its words were told, are not of that one.
    """

    def __init__(self, prefix: str, *, faint: bool = False) -> None:
        self._prefix = prefix
        self._faint = faint
        self._made = 0
        self._kept: deque[Stretch] = deque(maxlen=_STRETCHES)

    @property
    def latest(self) -> Stretch | None:
        """The stretch that began last, by :meth:`begin` or, where words made one since, by those.
        While one that :meth:`begin` has added is spoken, it is the latest."""
        return self._kept[-1] if self._kept else None

    def begin(self, at_ms: int) -> Stretch:
        """Add a stretch of speech that begins at ``at_ms`` of the track, and return it."""
        self._made += 1
        made = Stretch(f"{self._prefix}{self._made}", at_ms)
        self._kept.append(made)
        return made

    def words(self, text: str, start_ms: int, end_ms: int, now: float) -> Stretch:
        """Add words that came at ``now`` (s), and were spoken from ``start_ms`` to ``end_ms``, to
        the latest stretch that began before them, or up to 0.6 s later; return it.

        Without one, and where a ``faint`` side was not detected then, they make a stretch of their
        own in its place among the others, which has ended. 16,000 characters are kept of a stretch.
        """
        before = [one for one in self._kept if one.start_ms <= start_ms + END_MS]
        found = before[-1] if before else None
        if found is None or (self._faint and _is_over(found, start_ms)):
            self._made += 1
            found = Stretch(f"{self._prefix}{self._made}", start_ms, end_ms)
            if len(self._kept) == _STRETCHES:
                self._kept.popleft()
                before = before[1:]
            self._kept.insert(len(before), found)  # behind it one may still be spoken
        elif self._faint and found.end_ms is not None:
            found.end_ms = max(found.end_ms, end_ms)
        found.text = (found.text + text)[:MAX_TEXT]
        found.words_at = now
        return found

    def complete(self, now: float, *, all: bool = False) -> list[Stretch]:
        """Return the stretches whose words are complete at ``now`` (s), each once, and none without
        words: a later stretch has words, or it has ended and no words came for 1 s. With ``all``,
        every one that has words."""
        done = []
        for one in self._kept:
            if one.told or not one.text:
                continue
            newer = one is not self.latest and any(
                other.text for other in self._kept if other.start_ms > one.start_ms
            )
            late = one.end_ms is not None and now - one.words_at >= WORDS_LATE
            if all or newer or late:
                one.told = True
                done.append(one)
        return done


def _is_over(stretch: Stretch, start_ms: int) -> bool:
    """Return whether words that begin at ``start_ms`` come too late for a stretch: its words were
    told, or it ended more than 0.6 s before."""
    return stretch.told or (stretch.end_ms is not None and stretch.end_ms + END_MS < start_ms)
