# SPDX-License-Identifier: GPL-2.0-or-later
"""Live session (GPT-Live) after its set-up: endless audio both ways, and no turns on the wire.

It has the interface of a Realtime session with fewer :class:`Capabilities`. A stretch of speech in
the model's track, found by its energy, is delivered as a response with one item, whose words follow
seconds later; the caller's turns are found in the audio that is sent. The ids are ours.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from math import ceil
from typing import Any

from gateway.audio import Codec
from gateway.realtime.connection import CLOSE_TIMEOUT
from gateway.realtime.errors import classify_live_end
from gateway.realtime.events import (
    AppendText,
    BackendEvent,
    CancelResponse,
    ClientCommand,
    ContinueWork,
    CreateItem,
    CreateResponse,
    InputCommitted,
    InputTranscribed,
    OtherEvent,
    PlayClip,
    Relayed,
    ResponseDone,
    ServerError,
    ServerEvent,
    SessionEnded,
    SessionUsage,
    SpeechStarted,
    SpeechStopped,
    TrackAudio,
    TrackWords,
    WorkDelegated,
)
from gateway.realtime.live_audio import (
    Pacer,
    SpeechBegins,
    SpeechDetector,
    SpeechEnds,
    Stretches,
)
from gateway.realtime.live_voice import Backend, LivePlayout, Voice, answers, is_question, texts
from gateway.realtime.parse import is_live_type, parse_live_event
from gateway.realtime.session import Handshake, Session, SessionClosed
from gateway.realtime.session_object import LIVE
from gateway.realtime.wire import Audio, encode_command, resampling

CLOSED_SECONDS = 5.0
"""How long ``session.closed`` is waited for after ``session.close``."""

USAGE_SECONDS = 1.0
"""Interval of usage events; the server reports usage every minute."""

LOOK_SECONDS = 0.1
"""Interval at which complete transcripts, usage and held commands are looked at."""

GRID_SECONDS = 0.005
"""Ticks are due at multiples of this, so that one wake-up of the process serves many calls."""

FROZEN_SECONDS = 6.0
"""A server that sends nothing for so long after the caller has begun to speak is frozen, as the
track never pauses: the connection is dropped, even if pongs come."""

STALL_SECONDS = 0.02
"""Lateness of a timer from which the process has been blocked."""

CATCH_UP_SECONDS = 0.005
"""Time to read the audio that came while the process was blocked."""

CLIP_SECONDS = 35.0
"""Longest time that commands are held for a clip, which is 30 s long at most."""

CLIP = "session.output_audio.fixture.play"
MAX_HELD = 64
"""Commands that wait for the end of a clip."""

MAX_HANDED = 64
"""Delegations to the client that are remembered."""


class LiveEdge:
    """Translates one Live session between the gateway and its server's wire. ``codec`` is the
    call's, by the session object's ``audio.format``; other formats than A-law count as u-law."""

    def __init__(self, audio: Audio, session: Mapping[str, Any]) -> None:
        self.parse: Callable[[str | bytes], ServerEvent] = parse_live_event
        given = session["audio"]["format"]["type"]
        self.codec = Codec.PCMA if given == Codec.PCMA.session_format else Codec.PCMU
        self.pcm = resampling(audio, self.codec)

    def command(self, body: dict[str, Any]) -> dict[str, Any]:
        """Return a client event; where the server has no G.711, the audio format of its ``session``
        is 24 kHz PCM. Events without ``session`` are returned as they are."""
        if self.pcm is None or "session" not in body:
            return body
        audio = {**body["session"]["audio"], "format": {"type": "audio/pcm", "rate": 24000}}
        return {**body, "session": {**body["session"], "audio": audio}}


@dataclass(frozen=True, slots=True)
class _Held:
    """An encoded client event that waits for the end of a clip."""

    message: bytes
    clip_id: str
    """Its ``event_id``, if it is a clip itself; else ""."""
    words: str
    """What a clip says; "" where that is not known."""


class LiveSession(Session):
    """One Live session after its ``session.started``.

    From its making on, a timer sends 50 frames of caller audio a second, silence where none came.

    Args:
        codec: of the call.
        playout: of the call: length of its queue, and its underruns.
    """

    capabilities = LIVE
    append_head = b'{"type":"session.input_audio.append","audio":"'

    def __init__(
        self,
        handshake: Handshake,
        on_event: Callable[[ServerEvent], None],
        on_closed: Callable[[SessionClosed], None],
        codec: Codec,
        playout: LivePlayout,
    ) -> None:
        super().__init__(handshake, on_event, on_closed)
        self.model = str(self.effective.get("model") or handshake.endpoint.model)
        self.ended: SessionEnded | None = None
        """``session.closed``, once it has come."""
        self._codec, self._pcm = codec, handshake.edge.pcm
        self._backend = _backend_of(self.effective)
        if self._backend is not None:
            self.capabilities = replace(LIVE, out_of_band=True)
        self._handed: deque[str] = deque(maxlen=MAX_HANDED)
        """Ids of the latest delegations to the client."""
        self._pacer = Pacer(codec)
        self._detector = SpeechDetector(codec)
        self._voice = Voice(codec, playout, self._deliver)
        self._caller = Stretches("turn_", faint=True)
        self._ended_event = asyncio.Event()
        self._closing = self._close_wanted = False
        self._loop = asyncio.get_running_loop()
        now = self._loop.time()
        self._usage = (0.0, now)
        """Seconds of use that the server reported last, and when (s)."""
        self._told_seconds = 0.0
        self._clip_until = 0.0
        """Latest end of the clip that plays (s)."""
        self._clip_id = ""
        """``event_id`` of the clip that was sent last."""
        self._held: deque[_Held] = deque()
        """Commands that wait for the end of a clip, 64 at most."""
        self._pacer.start(now)
        self._tick_at = self._pacer.next_at
        self._stalled = False
        self._came_at = now
        """When the last message came (s)."""
        self._unheard = False
        """The caller has begun to speak since."""
        self._look_at = 0.0
        """When transcripts and usage are looked at next (s)."""
        self._timer = self._loop.call_at(self._tick_at, self._tick)
        self._cut: asyncio.TimerHandle | None = None
        """Timer that drops a connection which the server leaves open after ``session.closed``."""

    def append(self, audio: bytes) -> None:
        """Queue caller audio (G.711 in the codec of the call) and send at once what is due by the
        clock; the timer sends the rest. Once the session is closing or closed, audio is dropped and
        counted."""
        if not (self._closing or self.closed):
            self._pacer.put(audio)
        self._send_due()

    def send(self, command: ClientCommand) -> str:
        """Send the client events of a Live session that do what ``command`` does; return the
        ``event_id`` of the last one.

        An out-of-band question in text waits until the backend is idle; one that is cancelled is
        forgotten. Events wait for the end of a clip that plays. A command for which a Live session
        has nothing (truncation, deletion, a question without a backend) is dropped and counted, and
        an unused id is returned.
        """
        if self._backend is not None and is_question(command):
            self._backend.ask(command)
            return self._ask_next(self._backend)
        if self._backend is not None and isinstance(command, CancelResponse) and command.request:
            self._backend.forget(command.request)
            return self._ask_next(self._backend)
        bodies = self._bodies_of(command)
        event_id = self._queue(command, bodies)
        if not bodies and not isinstance(command, ContinueWork):
            self.counters.commands_dropped += 1
            self._log.debug("session.command_dropped", type=type(command).__name__, why="live")
        return event_id or self.commands.next_id()

    def _queue(self, command: ClientCommand, bodies: Iterable[dict[str, Any]]) -> str:
        """Queue the client events of a command behind those that wait, and send all unless a clip
        plays. Return the last event's id, "" where there is none. An event is dropped and counted
        once the session is closing or closed, or while 64 wait."""
        event_id = ""
        for body in bodies:
            event_id = self.commands.next_id()
            if self.closed or self._closing or len(self._held) >= MAX_HELD:
                self.counters.commands_dropped += 1
                continue
            self.commands.remember(event_id, command)
            clip = event_id if body["type"] == CLIP else ""
            words = command.words if clip and isinstance(command, CreateResponse) else ""
            self._held.append(_Held(encode_command(body, event_id), clip, words))
            self.counters.commands_sent += 1
        self._send_held()
        return event_id

    def _ask_next(self, backend: Backend) -> str:
        """Send the backend's next out-of-band question, if it is idle; return the id of its
        ``response.create``, or an unused id if nothing was sent."""
        following = backend.next_question(self._loop.time())
        return self.commands.next_id() if following is None else self._queue(*following)

    async def close(self, reason: str = "") -> None:
        """Send ``session.close``, wait up to 5 s for ``session.closed``, which has the seconds to
        be billed, and close the WebSocket.

        Nothing more is sent meanwhile, audio included. Further calls wait for the same answer;
        where the server has ended the session itself, only the WebSocket is closed. A cancelled
        call aborts the connection.
        """
        if not (self._closing or self.closed):
            self._closing = self._close_wanted = True
            self._timer.cancel()
            self._write(encode_command({"type": "session.close"}, self.commands.next_id()))
        if self._close_wanted and not self.closed:
            try:
                async with asyncio.timeout(CLOSED_SECONDS):
                    await self._ended_event.wait()
            except TimeoutError:
                self._log.warning("session.end_unconfirmed", seconds=CLOSED_SECONDS)
            except asyncio.CancelledError:
                self._transport.abort()
                raise
        await super().close(reason)

    def _send_held(self) -> None:
        """Send the held commands in order, up to and with the next clip; none while a clip plays,
        as the server rejects text then."""
        while self._held and self._loop.time() >= self._clip_until:
            held = self._held.popleft()
            self._write(held.message)
            if held.clip_id:
                self._clip_id, self._voice.clip_words = held.clip_id, held.words
                self._clip_until = self._loop.time() + CLIP_SECONDS

    def _clip_over(self) -> None:
        """Send the commands that waited for the end of the clip."""
        self._clip_id, self._clip_until = "", 0.0
        self._send_held()

    def _bodies_of(self, command: ClientCommand) -> list[dict[str, Any]]:
        """Return the client events of a Live session that do what ``command`` does; an empty list
        where it has nothing like that.

        A response: an out-of-band one with audio is a briefing; else its clip is played, else its
        words are commentary, else its instructions are instructions. A message of the user is added
        as thinking, of others as instructions. A function's result answers its delegation to us,
        else goes to the backend, else is added as thinking. ``response.cancel`` ends only the
        briefing.
        """
        match command:
            case CreateResponse(response=dict() as response) if "conversation" in response:
                return [] if is_question(command) else self._voice.brief(command)
            case CreateResponse(clip=clip) if clip:
                return [PlayClip(clip).body()]
            case CreateResponse(words=words) if words:
                return texts("commentary", words)
            case CreateResponse(response=response):
                return texts("instructions", str((response or {}).get("instructions") or ""))
            case CreateItem(item=item) if item.get("type") == "message":
                parts = item.get("content") or ()
                text = " ".join(str(part.get("text") or "") for part in parts).strip()
                return texts("thinking" if item.get("role") == "user" else "instructions", text)
            case CreateItem(item=item) if item.get("type") == "function_call_output":
                if item.get("call_id") in self._handed:
                    return answers(str(item.get("output", "")), str(item["call_id"]))
                if self._backend is None:
                    return texts("thinking", f"The result: {item.get('output')}")
                return self._backend.answer(item)
            case ContinueWork() if self._backend is not None:
                return self._backend.continue_response()
            case CancelResponse(name, request=None) if self._voice.briefs(name):
                return self._voice.end_briefing(self._loop.time())
            case AppendText() | PlayClip() | Relayed():
                return [command.body()]
        return []

    def audio_counts(self) -> dict[str, int]:
        """Return, since the start, 20 ms frames of silence sent because no caller audio came
        (``filled_frames``), frames of the caller dropped (``dropped_frames``), and ms of silence
        left out of the agent's speech (``silence_left_out_ms``)."""
        return {
            "filled_frames": self._pacer.filled,
            "dropped_frames": self._pacer.dropped,
            "silence_left_out_ms": self._voice.track.dropped_ms,
        }

    def _tick(self) -> None:
        """Timer, every 20 ms or so: send due caller audio. Every 0.1 s also: send held commands if
        no clip plays any more, ask a question that a stuck backend has held, deliver transcripts
        that are complete, drop the connection of a frozen server, deliver the usage if it has grown
        by 1 s.

        A timer more than 20 ms late means that the process was blocked: all is put off by 5 ms,
        once, so that audio which waits in sockets is read before silence is sent for it. Not
        started again once the session is closing.
        """
        now = self._loop.time()
        if now - self._tick_at > STALL_SECONDS and not self._stalled:
            # The process stood still: what the caller said meanwhile is about to come, and no
            # silence is to take its place.
            self._stalled, self._tick_at = True, now + CATCH_UP_SECONDS
            self._timer = self._loop.call_at(self._tick_at, self._tick)
            return
        self._stalled = False
        if now >= self._pacer.next_at:
            self._send_due()
        if now >= self._look_at:
            if self._held:
                self._send_held()
            if self._backend is not None and self._backend.is_stuck(now):
                self._ask_next(self._backend)
            self._look_at = now + LOOK_SECONDS
            self._tell_complete(now)
            if self._unheard and now - self._came_at > FROZEN_SECONDS:
                self._log.warning("session.frozen", seconds=FROZEN_SECONDS)
                self._transport.abort()
            if self._seconds(now) - self._told_seconds >= USAGE_SECONDS:
                self.tell_usage()
        if not (self.closed or self._closing):
            due = max(self._pacer.next_at, now + 0.01)
            self._tick_at = ceil(due / GRID_SECONDS) * GRID_SECONDS
            self._timer = self._loop.call_at(self._tick_at, self._tick)

    def _send_due(self) -> None:
        """Send the frames of caller audio that are due by the clock, 2 at most, and deliver turns
        of the caller that begin or end in them. Once the session is closing, only count as dropped
        audio."""
        if self._closing or self.closed:
            self.counters.audio_dropped += 1
            return
        for frame in self._pacer.due(self._loop.time()):
            wire = frame if self._pcm is None else self._pcm.up(frame)
            if wire:
                super().append(wire)
            turn = self._detector.feed(frame)
            if turn is not None:
                self._caller_turn(turn)

    def _caller_turn(self, turn: SpeechBegins | SpeechEnds) -> None:
        """Deliver the beginning of the caller's speech as :class:`SpeechStarted`, its end as
        :class:`SpeechStopped` and :class:`InputCommitted`, with an id of ours (``turn_1``). From
        the beginning on the server must send something, or it is frozen."""
        if isinstance(turn, SpeechBegins):
            self._unheard = True
            begun = self._caller.begin(turn.at_ms)
            self._deliver(SpeechStarted(begun.id, turn.at_ms))
            return
        spoke = self._caller.latest
        if spoke is not None:
            spoke.end_ms = turn.at_ms
            self._deliver(SpeechStopped(spoke.id, turn.at_ms))
            self._deliver(InputCommitted(spoke.id))

    def _on_parsed(self, event: ServerEvent) -> None:
        """Handle an event of the server, and deliver what it means as events of a Realtime session.

        Audio becomes responses of the voice, words become transcripts; a repeated delegation to us
        is passed over; ``session.closed`` ends the session; the end of a clip sends what waited for
        it. An ``error`` about a clip or a question ends that, too, after it was delivered.
        """
        self._came_at, self._unheard = self._loop.time(), False
        match event:
            case TrackAudio(audio=audio):
                self._voice.feed(
                    audio if self._pcm is None else self._pcm.down(audio), self._loop.time()
                )
            case TrackWords():
                self._on_words(event)
            case WorkDelegated(id=task, target=target):
                if task in self._handed:
                    return  # servers may repeat it
                if target == "client":
                    self._handed.append(task)
                self._deliver(event)
            case BackendEvent():
                if self._backend is None:
                    self._backend = Backend("")
                self._on_backend(self._backend, event)
            case ServerError():
                super()._on_parsed(event)
                self._on_refused(event.client_event_id)
            case SessionUsage(seconds=seconds):
                self._usage = (max(seconds, self._usage[0]), self._loop.time())
                self._tell_usage(self._usage[0], reported=True)
            case SessionEnded():
                self._on_ended(event)
            case OtherEvent(type=kind):
                if not is_live_type(kind):
                    self._count_unknown(kind)
                elif kind == "session.output_audio.fixture.played":
                    self._clip_over()
                self._deliver(event)
            case _:
                super()._on_parsed(event)

    def _on_refused(self, event_id: str | None) -> None:
        """Handle an ``error`` about the client event ``event_id``: of a clip, send what waited for
        its end; of an out-of-band question or of what the backend was to go on with, ask the next
        question."""
        if event_id and event_id == self._clip_id:
            self._voice.clip_words = ""
            self._clip_over()
        if self._backend is not None and self._backend.forget(self.commands.command_of(event_id)):
            self._ask_next(self._backend)

    def _on_backend(self, backend: Backend, event: BackendEvent) -> None:
        """Handle an event of the backend's response, and deliver its end as :class:`ResponseDone`
        (before it :class:`ResponseCreated`, for the answer to a question).

        Function calls of a question are answered with an error. Text of a response that nobody
        delegated is given to the voice to say. Then the next question is asked, if the backend is
        idle.
        """
        found = backend.on_event(event)
        for one in found:
            self._deliver(one)
        if len(found) > 1 and isinstance(found[1], ResponseDone):
            self._queue(ContinueWork(), backend.refuse_functions(found[1]))
        elif found and isinstance(found[0], ResponseDone):
            said = backend.found_later(event, found[0])
            self._queue(ContinueWork(), texts("commentary", said))
        self._ask_next(backend)

    def _on_words(self, words: TrackWords) -> None:
        """Deliver the agent's words as transcript delta at once; add the caller's to their turn.
        Then deliver the transcripts that are complete by now."""
        now = self._loop.time()
        if words.agent:
            self._voice.words(words, now)
        else:
            self._caller.words(words.text, words.start_ms, words.end_ms, now)
        self._tell_complete(now)

    def _tell_complete(self, now: float, *, all: bool = False) -> None:
        """Deliver the transcript of each stretch of speech, the agent's (:class:`AgentTranscript`)
        and the caller's (:class:`InputTranscribed`), once, when its words are complete; with
        ``all``, of every one that has words."""
        self._voice.tell_complete(now, all=all)
        for one in self._caller.complete(now, all=all):
            self._deliver(InputTranscribed(one.id, one.text.strip()))

    def _seconds(self, now: float) -> float:
        """Return the seconds of use at ``now`` (s, the loop's clock): those of the server's last
        report, plus the time since then."""
        return self._usage[0] + now - self._usage[1]

    def tell_usage(self) -> None:
        """Deliver the seconds of use so far, by our clock since the server's last report, as
        :class:`SessionUsage`; nothing once the session is closed."""
        if not self.closed:
            self._tell_usage(self._seconds(self._loop.time()), reported=False)

    def _tell_usage(self, seconds: float, *, reported: bool) -> None:
        """Deliver :class:`SessionUsage` with ``seconds``, or with what was told before if that was
        more. ``reported``: the server said so."""
        self._told_seconds = max(seconds, self._told_seconds)
        self._deliver(SessionUsage(self.id, self.model, self._told_seconds, reported))

    def _on_ended(self, event: SessionEnded) -> None:
        """Handle ``session.closed``: deliver the seconds it reports, complete the current response,
        deliver all transcripts, and let :meth:`close` go on.

        If we did not ask for it, nothing more is sent: our close frame (1000) goes out, and the
        connection is aborted 2 s later if the server leaves it open.
        """
        self.ended = event
        if event.seconds is not None:
            self._tell_usage(event.seconds, reported=True)
        self._voice.over()
        self._tell_complete(self._loop.time(), all=True)
        self._ended_event.set()
        if not self._closing:
            # The server ends it: nothing more is sent, and its close may come late.
            self._closing = True
            self._timer.cancel()
            self._connection.protocol.send_close(1000)
            self._connection.send_data()
            self._cut = self._loop.call_later(CLOSE_TIMEOUT, self._transport.abort)

    def _end(self, closed: SessionClosed) -> None:
        """Report the end of the session, after its last response and transcripts if no
        ``session.closed`` came.

        Ended by us if :meth:`close` came first; else code, reason and verdict are those of
        ``session.closed``, and without one even close code 1000 is a loss (1006).
        """
        self._timer.cancel()
        if self._cut is not None:
            self._cut.cancel()
        self._ended_event.set()
        if self.ended is None:
            self._voice.over()
            self._tell_complete(self._loop.time(), all=True)
        if self._close_wanted:
            closed = replace(closed, by_us=True)
        if not closed.by_us:
            reason = None if self.ended is None else self.ended.reason
            code, verdict = classify_live_end(closed.code, closed.reason, reason)
            closed = replace(closed, code=code, reason=reason or closed.reason, verdict=verdict)
        super()._end(closed)


def _backend_of(session: Mapping[str, Any]) -> Backend | None:
    """Return the backend that answers delegated work; None unless ``delegation.type`` is
    ``responses``."""
    delegation = session.get("delegation")
    if not isinstance(delegation, Mapping) or delegation.get("type") != "responses":
        return None
    backend = delegation.get("responses")
    model = backend.get("model") if isinstance(backend, Mapping) else None
    return Backend(model if isinstance(model, str) else "")
