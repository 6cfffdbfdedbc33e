# SPDX-License-Identifier: GPL-2.0-or-later
"""Interface of a dialect (URL, translation of both directions), and GA, which translates nothing.

GA is what OpenAI's hosts speak, Azure's ``/openai/v1``, and servers like them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

Json = dict[str, Any]


class Dialect(Protocol):
    """A dialect. Stateless: one object serves all sessions.

    Audio has a path of its own (``input_audio_buffer.append`` is the same in every dialect);
    what its bytes are is the business of :mod:`gateway.realtime.dialects.edge`.
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


AZURE_HOSTS = (
    ".openai.azure.com",
    ".cognitiveservices.azure.com",
    ".services.ai.azure.com",
    ".openai.azure.us",
)
"""Ends of the host names of Azure resources."""

_MODEL_PARAMETERS = {"model", "call_id", "deployment"}


class Ga:
    """The dialect of the gateway itself. ``model`` is Azure's deployment there."""

    name = "ga"
    api_base = "/v1"
    headers: Mapping[str, str] = {}
    translates = False

    def path(self, host: str) -> str:
        """``/v1/realtime``, below ``/openai`` on Azure."""
        return "/openai/v1/realtime" if host.endswith(AZURE_HOSTS) else "/v1/realtime"

    def parameters(self, model: str, given: Sequence[str]) -> list[tuple[str, str]]:
        """``model``, unless the URL says by itself what to talk to."""
        return [] if not model or _MODEL_PARAMETERS & set(given) else [("model", model)]

    def command(self, body: Json) -> tuple[Json, list[str]]:
        """``body`` as it is."""
        return body, []

    def event(self, event: Json) -> Json:
        """``event`` as it is."""
        return event
