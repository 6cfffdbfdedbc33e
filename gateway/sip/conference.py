# SPDX-License-Identifier: GPL-2.0-or-later
"""pjmedia's conference bridge: connections of each call, and sounds that are played to it.

A sound has one player for all calls, as a radio station has, and one for a call of its own where it
has to begin at its beginning. A player is pjmedia's, C from end to end, and costs nothing while
nobody is joined with it. It is made at first use and lives as long as the library: freeing a port
that the clock may be in is a crash.
"""

from __future__ import annotations

import tempfile
import time
from pathlib import Path
from typing import Any

import pjsua2 as pj
import structlog

from gateway.audio.sounds import (
    BUILT_IN,
    ECHO,
    MILLIWATT,
    SoundError,
    check_wav,
    samples_of,
    write_wav,
)
from gateway.sip.call_audio import CallAudio, Port, PortPool, Source
from gateway.sip.rtp import UplinkCounts

log = structlog.get_logger("sip")

MAX_OWN = 100
"""Players that calls have for themselves, of ``PJSUA_MAX_PLAYERS`` (256) in all. Whoever comes when
all are taken hears the file from wherever it is just then."""

AGAIN_SECONDS = 5.0
"""From one try to make the player of a sound to the next."""


class Sounds:
    """Players of sounds in the conference bridge. Made and used on the SIP thread."""

    def __init__(self) -> None:
        self._players: dict[str, Any] = {}
        self._idle: dict[str, list[Any]] = {}
        self._failed: dict[str, float] = {}
        """When to try a sound again whose player could not be made (``time.monotonic()``, s)."""
        self._own = 0

    def get(self, name: str) -> Any:
        """Return the shared player of a built-in sound or WAV file, made at first use; None where
        it cannot be made, which is logged once, and tried again after ``AGAIN_SECONDS``."""
        player, now = self._players.get(name), time.monotonic()
        if player is None and now >= self._failed.get(name, now):
            try:
                player = self._players[name] = self._make(name)
                self._failed.pop(name, None)
            except (pj.Error, SoundError, OSError) as error:
                text = error.info() if isinstance(error, pj.Error) else str(error)
                if name not in self._failed:
                    log.warning("sip.no_sound", sound=name, error=text)
                self._failed[name] = now + AGAIN_SECONDS
        return player

    def take(self, name: str) -> Any:
        """Return a player for one call, at the sound's beginning; the shared one, wherever it is,
        when ``MAX_OWN`` are taken or another cannot be made; None where the sound cannot be
        played."""
        if self.get(name) is None:
            return None
        idle = self._idle.setdefault(name, [])
        try:
            player = idle.pop() if idle else self._one_more(name)
            if player is not None:
                player.setPos(0)
        except (pj.Error, SoundError, OSError) as error:
            text = error.info() if isinstance(error, pj.Error) else str(error)
            log.warning("sip.no_sound", sound=name, error=text)
            player = None
        return self.get(name) if player is None else player

    def give_back(self, name: str, player: Any) -> None:
        """Take back a call's own player of a sound, for the next call; nothing for None or the
        shared one."""
        if player is not None and player is not self._players.get(name):
            self._idle.setdefault(name, []).append(player)

    def _one_more(self, name: str) -> Any:
        """Make a further player of a sound; None where there are ``MAX_OWN`` already. Raises as
        :meth:`_make`."""
        if self._own >= MAX_OWN:
            return None
        player = self._make(name)
        self._own += 1
        return player

    def disown(self) -> None:
        """Leave the players undestroyed until the process ends, after the library was destroyed."""
        own = [player for players in self._idle.values() for player in players]
        for player in (*self._players.values(), *own):
            player.this.disown()

    def _make(self, name: str) -> Any:
        """Make a player of a built-in sound or a WAV file's path. Raises SoundError, OSError,
        ``pj.Error``."""
        if name not in (*BUILT_IN, MILLIWATT):
            check_wav(Path(name))
            return _play(name)
        with tempfile.TemporaryDirectory(prefix="gateway-") as folder:
            path = Path(folder, f"{name}.wav")
            write_wav(path, samples_of(name))
            return _play(str(path))  # it keeps the file open


def _play(path: str) -> Any:
    """Return a player that repeats a WAV file. Raises ``pj.Error``."""
    player = pj.AudioMediaPlayer()
    player.createPlayer(path)
    return player


class ConferenceLink:
    """What a call's stream is connected with in the conference bridge: our port with the session's
    audio, another call, a sound. Lives on the SIP thread.

    Args:
        packet_wait_ms: how long a missing RTP packet of the peer is waited for.
        may_send: RTP may be sent: the peer has acknowledged the call, or we called it.
    """

    def __init__(
        self, sounds: Sounds, pool: PortPool, packet_wait_ms: int, *, may_send: bool
    ) -> None:
        self.may_send = may_send
        self._packet_wait_ms = packet_wait_ms
        self._sounds = sounds
        self._pool = pool
        self._connections = pool.connections
        self.media: Any = None
        """The call's stream in the bridge, from :meth:`wire` until that stream is destroyed."""
        self.port: Port | None = None
        """Ours, which the session's audio comes from, and goes to where several are mixed."""
        self._audio: CallAudio | None = None
        """What our port serves."""
        self.logged: CallAudio | None = None
        """Sees the stream's packets, and takes none, while our port serves nothing."""
        self._held = False
        self.partner: ConferenceLink | None = None
        self._session_hears = True
        self._level: float | None = None
        """How loud the peer hears the partner's, as a factor, where each has a session of its own;
        None: both have one, or none."""
        self._stream = 0
        """pjmedia's, while there is one."""
        self._send_held = False
        self._without_keys = False
        self._sound = ""
        self._playing: Any = None
        self._player: Any = None

    def wire(self, media: Any) -> None:
        """Connect a stream that came up, or was replaced, with everything that the call is joined
        to: our port, the partner, the sound that plays."""
        if self.media is not None and self.media.getPortId() != media.getPortId():
            self._forget_stream()
        if self.media is None:
            self.media = media
        self._connect()
        self.play(self._sound)

    def take_port(self, audio: CallAudio) -> None:
        """Take a port of the bridge for ``audio``, unless the call has one. Raises ``pj.Error``
        when the bridge is full."""
        if self.port is None:
            self.port, self._audio = self._pool.take(audio), audio
            self._tap()

    @property
    def uplink(self) -> UplinkCounts | None:
        """Return the counts of the peer's packets; None where no session hears them."""
        return None if self._audio is None else self._audio.uplink.counts

    def await_keys(self, waiting: bool) -> None:
        """Pause playout while SRTP has no keys, or resume it (False); also that of an audio that
        comes later."""
        self._without_keys = waiting
        if self._audio is not None:
            self._audio.playout.await_keys(waiting)

    def allow_sending(self) -> None:
        """Allow RTP to be sent, since the peer is there."""
        self.may_send = True
        self._update_hold()

    def _update_hold(self) -> None:
        """Let the stream send RTP, or nothing at all, not even silence: it sends once the peer is
        there (``may_send``) or a sound plays.

        Before the ACK, the library's own gate decides where RTP may go.
        """
        held = not self.may_send and self._playing is None
        if self._stream and held is not self._send_held:
            self._send_held = held
            pj.nativeHoldStream(self._stream, held)

    def stream_created(self, stream: int) -> None:
        """Attach to a new stream, given by its address, before its first frame: uplink, playout,
        and whether it may send."""
        self._stream, self._send_held = stream, False
        self._tap()
        self._update_hold()

    def _tap(self) -> None:
        """Have the stream's packets go to the uplink of our audio, or of ``logged``, and to a
        simulated bad line if there is one; nothing without an audio."""
        audio = self._audio or self.logged
        if audio is None:
            return
        audio.playout.await_keys(self._without_keys)
        if self._stream:
            audio.uplink.tap(self._stream, self._packet_wait_ms)
            if audio.line is not None:
                audio.line.attach(self._stream)

    def stream_destroyed(self, stream: int) -> None:
        """Detach from a stream that was removed; nothing if another one has come since."""
        if stream == self._stream:
            self._stream = 0
            self._forget_stream()

    def _forget_stream(self) -> None:
        """Forget the stream's connections: its slot of the bridge goes to the next call."""
        if self.media is not None:
            self._connections.forget(self.media)
        self.media = self._playing = None

    def at(self, slot: int) -> bool:
        """Return whether a slot of the bridge is our stream's or our port's."""
        ends = (self.media, self.port)
        return any(one is not None and int(one.getPortId()) == slot for one in ends)

    def disconnect(self) -> None:
        """Remove all connections of a stream that stays in the bridge."""
        if self.media is not None:
            self._connections.disconnect_all(self.media)

    def close(self) -> None:
        """Give back port and player after pjsua has removed the call's stream, and part from the
        partner, whose session hears its own peer alone again if it listened."""
        self._forget_stream()
        self._sounds.give_back(self._sound, self._player)
        self._sound, self._player = "", None
        partner, self.partner = self.partner, None
        if partner is not None and partner.partner is self:
            partner.partner = partner._level = None
            if partner._session_hears:
                partner._listen()
        self._give_port_back()

    def _give_port_back(self) -> None:
        """Return our port to the pool; the session hears and says nothing any more."""
        self._audio = None
        port, self.port = self.port, None
        if port is not None:
            self._pool.give_back(port)

    def play(self, sound: str) -> None:
        """Play a sound to the peer in a loop, beside everything else, from its beginning, in place
        of the one before; "" stops it. The built-in echo returns the peer's own audio. Without a
        stream, or on hold, it begins when that is connected."""
        if sound != self._sound or self._player is None:
            self._sounds.give_back(self._sound, self._player)
            self._player = self._sounds.take(sound) if sound not in ("", ECHO) else None
        self._sound, player = sound, self.media if sound == ECHO else self._player
        if self._playing is not None and player is not self._playing:
            self._connections.disconnect(self._playing, self.media)
            self._playing = None
        if self._connectable is None or player is self._playing:
            return
        self._playing = player
        if player is not None:
            self._connections.connect(player, self.media)
        self._update_hold()

    def join(self, other: ConferenceLink, listen: bool, level: float | None = None) -> None:
        """Let both peers hear each other; with ``listen``, our own port hears both, else nobody.

        Without ``level`` the other call gives its port back. With it, a factor, each peer hears the
        other at that volume, and each port hears its own peer only. A former partner, whose call
        may go on, is disconnected.
        """
        if self.partner is not None and self.partner is not other:
            self._part_from(self.partner)
        if level is None:
            other._give_port_back()
        self.partner, other.partner = other, self
        self._level = other._level = level
        self._session_hears = listen or level is not None
        self._connect()
        if level is not None:
            other._connect()

    def _part_from(self, partner: ConferenceLink) -> None:
        """Remove all connections with a former partner."""
        for one in (self.media, self.port):
            for other in (partner.media, partner.port):
                if one is not None and other is not None:
                    self._connections.disconnect(one, other)
                    self._connections.disconnect(other, one)

    def hear_fully(self) -> None:
        """Let our peer hear the partner's at full volume from now on; nothing unless they were
        joined with a level."""
        if self._level is not None:
            self._level = 1.0
            self._connect()

    def take_over(self, other: ConferenceLink) -> None:
        """Take over port, audio, partner and sound of the other call, which keeps its stream; sound
        and partner are heard by our peer from now on."""
        partner, other.partner = other.partner, None
        if partner is not None:
            other._part_from(partner)
            self.partner, partner.partner = partner, self
            self._session_hears, self._level = other._session_hears, other._level
        port, other.port = other.port, None
        if port is not None:
            self._connections.disconnect_all(port)
        self.port = port
        self._audio, other._audio = other._audio, None
        self._tap()
        self._connect()
        if other._sound:
            self.play(other._sound)

    def hold(self, held: bool) -> None:
        """Note that the peer holds us (True): the session hears silence instead of its music, and
        nothing is connected anew; or has resumed."""
        self._held = held
        self._listen()

    def _connect(self) -> None:
        """Connect stream, partner and port as the state of the call requires, and set where the
        session's audio is taken from. Nothing without a stream, or on hold."""
        media, partner, port = self._connectable, self.partner, self.port
        if media is None:
            return
        connect, disconnect = self._connections.connect, self._connections.disconnect
        other = None if partner is None else partner._connectable
        if other is not None and partner is not None:
            connect(media, other, partner._level)
            connect(other, media, self._level)
        apart = self._level is not None
        if port is not None and partner is not None and not self._session_hears:
            disconnect(media, port)
            disconnect(port, media)
        elif port is not None:
            connect(port, media)
            if self._source() is Source.BRIDGE:
                connect(media, port)
            if other is not None and not apart:
                connect(other, port)
        if not apart and partner is not None and partner.port and partner._session_hears:
            connect(media, partner.port)
        self._listen()

    @property
    def _connectable(self) -> Any:
        """Return the bridge port of the call that can be connected now, or None."""
        return None if self._held else self.media

    def _source(self) -> Source:
        """Return where the session's audio comes from: nobody on hold, without an audio, or while
        joined calls are not listened to; the bridge while they are; else the audio's own source.

        The bridge decodes a stream only while something is connected to it; otherwise the call's
        packets go to the session undecoded.
        """
        if self._held or self._audio is None:
            return Source.NOBODY
        if self.partner is None:
            return self._audio.own_source
        return Source.BRIDGE if self._session_hears else Source.NOBODY

    def _listen(self) -> None:
        """Set where the session's audio is taken from, by :meth:`_source`."""
        if self._audio is not None:
            self._audio.uplink.listen(self._source())
