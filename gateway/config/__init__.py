# SPDX-License-Identifier: GPL-2.0-or-later
"""The gateway's configuration: :func:`load_config` turns ``gateway.toml`` into a :class:`Config`.

``source`` reads TOML with positions and references, ``config`` and its sections say what may stand
there, ``validate`` words what is wrong. The dialplans are read with the same parts.
"""

from gateway.config.config import (
    Config,
    LimitSettings,
    LogSettings,
    MediaSettings,
    WorkerSettings,
    load_config,
)
from gateway.config.operations import ControlSettings
from gateway.config.sections import AccessSettings, OutboundSettings, RealtimeSettings
from gateway.config.sip import ListenAddress, PortRange, SipSettings, TlsSettings, TrunkSettings
from gateway.config.source import ConfigError, Problem

__all__ = [
    "AccessSettings",
    "Config",
    "ConfigError",
    "ControlSettings",
    "LimitSettings",
    "ListenAddress",
    "LogSettings",
    "MediaSettings",
    "OutboundSettings",
    "PortRange",
    "Problem",
    "RealtimeSettings",
    "SipSettings",
    "TlsSettings",
    "TrunkSettings",
    "WorkerSettings",
    "load_config",
]
