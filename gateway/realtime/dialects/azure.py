# SPDX-License-Identifier: GPL-2.0-or-later
"""Azure's preview API: Beta's events at ``/openai/realtime``, by deployment and API version."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from gateway.realtime.dialects.beta import Beta

API_VERSION = "2025-04-01-preview"
"""Version that is sent where the URL has no ``api-version``: the last preview."""


class AzurePreview(Beta):
    """The Beta protocol at Azure's URL; the version in the URL replaces Beta's header."""

    name = "azure-preview"
    api_base = "/openai"
    headers: Mapping[str, str] = {}

    def path(self, host: str) -> str:
        """The same on every resource."""
        return "/openai/realtime"

    def parameters(self, model: str, given: Sequence[str]) -> list[tuple[str, str]]:
        """``api-version`` and ``deployment``."""
        wanted = [("api-version", API_VERSION), ("deployment", model)]
        return [(name, value) for name, value in wanted if value and name not in given]
