# SPDX-License-Identifier: GPL-2.0-or-later
"""GA: nothing to translate. OpenAI's hosts, Azure's ``/openai/v1``, and servers like them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from gateway.realtime.dialects.base import Json

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
