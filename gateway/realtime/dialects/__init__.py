# SPDX-License-Identifier: GPL-2.0-or-later
"""Dialects of the protocol, translated at the WebSocket: inside the gateway everything is GA.

:data:`DIALECTS` has the dialects by their name in the configuration; an :class:`Edge` joins one
with the audio of the wire, for one session.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

from gateway.realtime.dialects.beta import AzurePreview, Beta
from gateway.realtime.dialects.dialect import Dialect, Edge, Ga

__all__ = ["DIALECTS", "GA", "Dialect", "Edge"]

GA: Dialect = Ga()
DIALECTS: Mapping[str, Dialect] = MappingProxyType(
    {dialect.name: dialect for dialect in (GA, Beta(), AzurePreview())}
)
"""By the name that ``realtime.dialect`` has for it."""
