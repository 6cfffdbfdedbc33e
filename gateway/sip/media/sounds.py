# SPDX-License-Identifier: GPL-2.0-or-later
"""Sounds in the conference bridge: one player each for all calls, as a radio station.

A player is pjmedia's own, C from end to end, and costs nothing while nobody is joined with it. It
is made at first use and lives as long as the library: freeing a port that the clock may be in is
a crash.
"""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import pjsua2 as pj
import structlog

from gateway.audio.sounds import BUILT_IN, SoundError, check_wav, samples_of, write_wav

log = structlog.get_logger("sip")

MAX_OWN = 100
"""Players that calls have for themselves, of ``PJSUA_MAX_PLAYERS`` (256) in all. Whoever comes when
all are taken hears the file from wherever it is just then."""


class Sounds:
    """Made and used on the SIP thread."""

    def __init__(self) -> None:
        self._players: dict[str, Any] = {}
        self._idle: dict[str, list[Any]] = {}
        self._own = 0

    def get(self, name: str) -> Any:
        """The player of a built-in sound or a WAV file; None, with a warning, if there is none."""
        if name not in self._players:
            try:
                self._players[name] = self._make(name)
            except (pj.Error, SoundError, OSError) as error:
                text = error.info() if isinstance(error, pj.Error) else str(error)
                log.warning("sip.no_sound", sound=name, error=text)
                self._players[name] = None
        return self._players[name]

    def take(self, name: str) -> Any:
        """A player at the beginning of its sound, for one call; else the one of all calls.

        A sound that is heard for two seconds must not begin in the pause of a chime.
        """
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
        """The call does not need it any more."""
        if player is not None and player is not self._players.get(name):
            self._idle.setdefault(name, []).append(player)

    def _one_more(self, name: str) -> Any:
        if self._own >= MAX_OWN:
            return None
        self._own += 1
        return self._make(name)

    def disown(self) -> None:
        """Leave the players to the end of the process, after the library has been destroyed."""
        own = [player for players in self._idle.values() for player in players]
        for player in (*self._players.values(), *own):
            if player is not None:
                player.this.disown()

    def _make(self, name: str) -> Any:
        if name not in BUILT_IN:
            check_wav(Path(name))
            return _play(name)
        with tempfile.TemporaryDirectory(prefix="gateway-") as folder:
            path = Path(folder, f"{name}.wav")
            write_wav(path, samples_of(name))
            return _play(str(path))  # it keeps the file open


def _play(path: str) -> Any:
    player = pj.AudioMediaPlayer()
    player.createPlayer(path)
    return player
