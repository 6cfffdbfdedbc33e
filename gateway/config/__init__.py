# SPDX-License-Identifier: GPL-2.0-or-later
"""The gateway's configuration: :func:`load_config` turns ``gateway.toml`` into a :class:`Config`.

``source`` and ``lines`` read TOML with positions and references, ``models`` say what may stand
there, ``validate`` words what is wrong. The dialplans are read with the same parts.
"""

from gateway.config.limits import AccessSettings, ControlSettings, OutboundSettings
from gateway.config.load import load_config
from gateway.config.models import Config, LimitSettings, LogSettings, MediaSettings, WorkerSettings
from gateway.config.problems import ConfigError, Problem
from gateway.config.realtime import RealtimeSettings
from gateway.config.sip import ListenAddress, PortRange, SipSettings, TlsSettings
from gateway.config.trunks import TrunkSettings

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
