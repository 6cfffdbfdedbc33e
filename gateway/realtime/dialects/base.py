# SPDX-License-Identifier: GPL-2.0-or-later
"""Interface of a dialect: the URL to connect to, and the translation of both directions."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

Json = dict[str, Any]


class Dialect(Protocol):
    """A dialect. Stateless: one object serves all sessions.

    Audio has a path of its own (``input_audio_buffer.append`` is the same in every dialect);
    what its bytes are is the business of :mod:`gateway.realtime.dialects.pcm24`.
    """

    @property
    def name(self) -> str:
        """Its name in the configuration."""

    @property
    def api_base(self) -> str:
        """End of the path of a vendor's API base, to which ``/realtime`` is added."""

    @property
    def headers(self) -> Mapping[str, str]:
        """Header fields of the handshake that the dialect itself wants."""

    @property
    def translates(self) -> bool:
        """Whether :meth:`event` and :meth:`command` do anything."""

    def path(self, host: str) -> str:
        """The path of a URL that has none."""

    def parameters(self, model: str, given: Sequence[str]) -> list[tuple[str, str]]:
        """Return what to add to the query of a URL that has the parameters ``given``."""

    def command(self, body: Json) -> tuple[Json, list[str]]:
        """A GA client event as the server wants it, and the names of what it has no word for."""

    def event(self, event: Json) -> Json:
        """A server event in GA's words. One that is GA already, or unknown, stays as it is."""
