# SPDX-License-Identifier: GPL-2.0-or-later
"""The two endless streams of a Live session, on a virtual clock."""

from __future__ import annotations

import random
from collections import deque
from itertools import pairwise

import numpy as np
import pytest

from gateway.audio import BYTES_PER_MS, FRAME_BYTES, FRAME_MS, G711, Codec
from gateway.devtools.speech import AudioFormat, synthesise
from gateway.realtime.errors import Kind, classify_live_end
from gateway.realtime.live_audio import (
    END_MS,
    LEAD_MS,
    MARGIN_MS,
    Pacer,
    SpeechBegins,
    SpeechDetector,
    SpeechEnds,
    SpeechTrack,
    Stretches,
)

SILENT = b"\xff" * FRAME_BYTES
PIECE = 100 * BYTES_PER_MS


def loud(number: int) -> bytes:
    """A frame that sounds, and tells which it is."""
    return bytes([0x10, 0x90, number % 100, number // 100 % 100]) * (FRAME_BYTES // 4)


# ---- up


def run(pacer: Pacer, until: float, *arrivals: tuple[float, bytes]) -> list[tuple[float, bytes]]:
    """What goes out, and when, as audio comes at these times (s)."""
    pacer.start(0.0)
    out: list[tuple[float, bytes]] = []
    waiting = deque(sorted(arrivals, key=lambda one: one[0]))
    now = 0.0
    while now < until:
        now = pacer.next_at
        while waiting and waiting[0][0] <= now:
            at, audio = waiting.popleft()
            pacer.put(audio)
            out += [(at, frame) for frame in pacer.due(at)]
        out += [(now, frame) for frame in pacer.due(now)]
    return out


def holes(out: list[tuple[float, bytes]]) -> float:
    """The longest time (ms) in which nothing went out."""
    return max(1000 * (after - before) for (before, _), (after, _) in pairwise(out))


def test_a_second_a_second_where_nothing_comes() -> None:
    out = run(Pacer(Codec.PCMU), 600.0)
    assert len(out) * 0.02 == pytest.approx(600, rel=0.001)
    assert holes(out) <= 60
    assert {frame for _, frame in out} == {SILENT}


def test_audio_in_time_goes_out_as_it_comes() -> None:
    frames = [(0.007 + 0.02 * number, loud(number)) for number in range(1, 500)]
    out = run(Pacer(Codec.PCMU), 10.0, *frames)
    assert [one for one in out if one[1] != SILENT] == frames
    assert len(out) <= 501


@pytest.mark.parametrize("seed", range(2))
def test_jitter_and_loss_make_no_holes_and_no_bursts(seed: int) -> None:
    rng = random.Random(seed)
    sent = [
        (0.02 * number + rng.uniform(0, 0.03), loud(number))
        for number in range(30_000)
        if rng.random() > 0.02
    ]
    out = run(Pacer(Codec.PCMU), 600.0, *sent)
    assert len(out) * 0.02 == pytest.approx(600, rel=0.001)
    assert holes(out) <= 60
    at_once = max(
        sum(1 for at, _ in out[i : i + 6] if at == out[i][0]) for i in range(len(out) - 6)
    )
    assert at_once <= 4
    got = [frame for _, frame in out if frame != SILENT]
    kept = [frame for _, frame in sorted(sent, key=lambda one: one[0])]
    assert len(got) >= 0.995 * len(kept)


def test_a_fast_sender_loses_silence_first() -> None:
    """A clock that is 2 % fast: what is too much is taken from the pauses."""
    sent = [(0.0196 * n, loud(n) if n % 100 < 60 else SILENT) for n in range(5000)]
    pacer = Pacer(Codec.PCMU)
    out = run(pacer, 98.0, *sent)
    assert [frame for _, frame in out if frame != SILENT][:2900] == [
        frame for _, frame in sent if frame != SILENT
    ][:2900]
    assert pacer.dropped > 0


def test_after_a_stall_nothing_comes_in_a_burst() -> None:
    pacer = Pacer(Codec.PCMU)
    pacer.start(0.0)
    pacer.put(b"".join(loud(number) for number in range(50)))
    now, most = 1.0, 0
    while pacer.sent < 50 and now < 3:
        most = max(most, len(pacer.due(now)))
        now += 0.02
    assert most == 2
    assert pacer.sent >= 50


# ---- down


def feed(track: SpeechTrack, audio: bytes) -> list[object]:
    """The track in pieces of 100 ms."""
    return [
        part for at in range(0, len(audio), PIECE) for part in track.feed(audio[at : at + PIECE])
    ]


def test_a_stretch_is_handed_on_byte_for_byte() -> None:
    said = b"".join(loud(number) for number in range(40))
    audio = b"\xff" * 7 * PIECE + said + b"\xff" * 12 * PIECE
    parts = feed(SpeechTrack(Codec.PCMU, 300), audio)
    assert parts[0] == SpeechBegins(700 - MARGIN_MS)
    assert parts[-1] == SpeechEnds(700 + 800)
    sound = b"".join(part for part in parts if isinstance(part, bytes))
    assert sound == b"\xff" * MARGIN_MS * 8 + said + b"\xff" * END_MS * 8


@pytest.mark.parametrize("size", [1, 160, 333, 800, 8000])
def test_pieces_of_any_size(size: int) -> None:
    said = b"".join(loud(number) for number in range(40))
    audio = b"\xff" * 5600 + said + b"\xff" * 9600
    track = SpeechTrack(Codec.PCMU, 300)
    parts = [p for at in range(0, len(audio), size) for p in track.feed(audio[at : at + size])]
    assert said in b"".join(part for part in parts if isinstance(part, bytes))
    assert track.ms == len(audio) // 8
    assert len([part for part in parts if isinstance(part, SpeechEnds)]) == 1


def test_only_silence_is_left_out_to_catch_up() -> None:
    said = b"".join(loud(number) for number in range(40))
    pause = b"\xff" * 400 * 8
    track = SpeechTrack(Codec.PCMU, 300, lambda: 1000)
    parts = feed(track, said + pause + said + b"\xff" * 9600)
    sound = b"".join(part for part in parts if isinstance(part, bytes))
    assert sound.replace(b"\xff", b"") == (said + said).replace(b"\xff", b"")
    assert track.dropped_ms >= 300


@pytest.mark.parametrize(("jitter_ms", "learnt_after_s"), [(30, 0), (80, 300)])
def test_an_hour_of_a_fast_server_adds_no_delay(jitter_ms: int, learnt_after_s: int) -> None:
    """The server's clock is 0.1 % fast, and its pieces come late by some: what is heard is no later
    at the end than at the beginning, or than once it is known how late they come."""
    piece_ms = 100
    rng = random.Random(1)
    now = queued = 0.0
    dry: list[float] = []
    speech = False

    def play(until: float) -> None:
        nonlocal now, queued, dry
        queued -= 1000 * (until - now)
        if queued < 0:
            dry += [now] if speech else []
            queued = 0.0
        now = until

    track = SpeechTrack(Codec.PCMU, 300, lambda: int(queued), lambda: len(dry))
    sentence = b"".join(loud(number) for number in range(200)) + b"\xff" * 8 * 2000
    clause = b"".join(loud(number) for number in range(100)) + b"\xff" * 8 * 300
    audio = sentence + clause * 3 + sentence
    size, position = piece_ms * BYTES_PER_MS, 0
    delays: dict[float, float] = {}
    while position < 3600 * 8000:
        arrives = position / 8000 * 0.999 + piece_ms / 1000 + rng.uniform(0, jitter_ms) / 1000
        play(max(now, arrives))
        begin = position % len(audio)
        for part in track.feed((audio + audio)[begin : begin + size]):
            if isinstance(part, bytes):
                queued += len(part) / 8
                delays[now // 60] = max(delays.get(now // 60, 0.0), queued - piece_ms)
            else:
                speech = isinstance(part, SpeechBegins)
        position += size
    assert max(delays[one] for one in (57, 58, 59)) <= delays[learnt_after_s // 60] + FRAME_MS
    assert max(delays.values()) <= 2 * MARGIN_MS + jitter_ms + FRAME_MS
    assert len(dry) <= 10, "it is heard without holes"


def spoken(text: str, codec: Codec, voice: str = "marin") -> bytes:
    """espeak's voice in this codec."""
    pcm, rate = synthesise(text, voice)
    return AudioFormat(codec.session_format, 8000, 8).encode(pcm, rate)


SENTENCES = [
    ("marin", "Good morning, Hotel Linde. How can I help you today?"),
    ("cedar", "Yes, of course; two nights from the third of December, is that right?"),
]


@pytest.mark.parametrize("codec", list(G711))
@pytest.mark.parametrize(("voice", "text"), SENTENCES)
def test_real_speech_is_one_stretch_and_whole(codec: Codec, voice: str, text: str) -> None:
    """espeak's voice, between pauses as a server makes them."""
    speech = spoken(text, codec, voice)
    linear = np.abs(np.frombuffer(codec.to_linear(speech), np.int16).astype(int))
    heard = np.nonzero(linear > 500)[0]
    first_ms, last_ms = heard[0] // 8, heard[-1] // 8
    silence = codec.silence * 8
    audio = silence * 1000 + speech + silence * 1500
    parts = feed(SpeechTrack(codec, 300), audio)
    begins = [part for part in parts if isinstance(part, SpeechBegins)]
    ends = [part for part in parts if isinstance(part, SpeechEnds)]
    assert (len(begins), len(ends)) == (1, 1)
    assert 1000 + first_ms - LEAD_MS - 60 <= begins[0].at_ms <= 1000 + first_ms - 40
    assert 1000 + last_ms - 20 <= ends[0].at_ms <= 1000 + last_ms + 120
    sound = b"".join(part for part in parts if isinstance(part, bytes))
    assert sound.strip(codec.silence) in audio
    assert speech[first_ms * 8 : last_ms * 8] in sound


def test_the_callers_turns_are_found() -> None:
    speech = spoken("I would like to book a room for two nights, please.", Codec.PCMU)
    rng = np.random.default_rng(1)
    noise = Codec.PCMU.from_linear((rng.normal(0, 120, 8000)).astype(np.int16).tobytes())
    click = SILENT[:40] + b"\x00\x80" * 40 + SILENT[:40]
    audio = noise + click + noise + speech + noise
    detector = SpeechDetector(Codec.PCMU)
    found = [
        turn
        for at in range(0, len(audio) - FRAME_BYTES, FRAME_BYTES)
        if (turn := detector.feed(audio[at : at + FRAME_BYTES])) is not None
    ]
    assert [type(turn) for turn in found] == [SpeechBegins, SpeechEnds]
    assert 2000 <= found[0].at_ms <= 2300


# ---- words


def test_words_belong_to_what_was_heard_then() -> None:
    side = Stretches("speech_")
    first = side.begin(1000)
    first.end_ms = 2000
    second = side.begin(5000)
    assert side.words("Good", 1100, 1400, now=4.0) is first
    assert side.words(" morning.", 1500, 1900, now=4.2) is first
    assert side.complete(4.5) == []
    assert side.words("Yes.", 5200, 5400, now=8.0) is second
    assert [one.text for one in side.complete(8.0)] == ["Good morning."]
    second.end_ms = 6000
    assert side.complete(8.5) == []
    assert [one.text for one in side.complete(9.1)] == ["Yes."]
    assert side.complete(20.0) == []


def test_words_without_sound_have_a_place() -> None:
    side = Stretches("turn_")
    assert side.words("mhm", 300, 500, now=1.0).id == "turn_1"
    assert [one.text for one in side.complete(3.0)] == ["mhm"]


def test_words_too_soft_to_be_detected_are_no_words_of_the_turn_before() -> None:
    side = Stretches("turn_", faint=True)
    first = side.begin(1000)
    first.end_ms = 2000
    side.words("Hello?", 1000, 1900, now=4.0)
    side.words(" Who is", 2300, 2900, now=5.0)
    side.words(" that?", 3100, 3400, now=5.2)
    soft = side.words("Yes,", 4900, 5100, now=8.0)
    side.words(" please.", 5600, 6300, now=8.2)
    later = side.words("Go on.", 7000, 7300, now=9.0)
    spoken = side.begin(9000)
    assert [one.text for one in side.complete(9.0)] == ["Hello? Who is that?", "Yes, please."]
    assert [one.text for one in side.complete(10.0)] == ["Go on."]
    assert side.latest is spoken
    assert len({first.id, soft.id, later.id, spoken.id}) == 4


def test_words_that_come_once_those_of_their_turn_were_told_are_not_lost() -> None:
    side = Stretches("turn_", faint=True)
    for at in range(40):
        side.begin(2000 * at).end_ms = 2000 * at + 1000
    side.words("One", 78_000, 78_400, now=80.0)
    assert [one.text for one in side.complete(81.0)] == ["One"]
    side.words(" night.", 78_500, 79_000, now=82.0)
    assert [one.text for one in side.complete(83.0)] == [" night."]


# ---- the end of a session


@pytest.mark.parametrize(
    ("code", "ended", "told", "kind"),
    [
        (1000, "close_requested", 1000, Kind.BENIGN),
        (1005, "remote_hangup", 1000, Kind.BENIGN),
        (1000, "expired", 1001, Kind.RETRYABLE),
        (1000, "content", 1008, Kind.RETRYABLE),
        (1000, "connection_lost", 1006, Kind.RETRYABLE),
        (1000, "something new", 1006, Kind.UNKNOWN),
        (1000, None, 1006, Kind.RETRYABLE),
        (1011, None, 1011, Kind.RETRYABLE),
    ],
)
def test_an_end_is_what_session_closed_says(
    code: int, ended: str | None, told: int, kind: Kind
) -> None:
    """A close without ``session.closed`` is a loss, however normal it looks."""
    found, verdict = classify_live_end(code, "", ended)
    assert (found, verdict.kind) == (told, kind)
