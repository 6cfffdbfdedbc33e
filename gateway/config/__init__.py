"""The gateway's configuration: :func:`load_config` turns ``gateway.toml`` into a :class:`Config`.

``source`` and ``lines`` read TOML with positions and references, ``models`` say what may stand
there, ``validate`` words what is wrong. The dialplans are read with the same parts.
"""

from .load import load_config
from .models import (
    Config,
    LimitSettings,
    ListenAddress,
    LogSettings,
    MediaSettings,
    PortRange,
    RealtimeSettings,
    SipSettings,
    WorkerSettings,
)
from .problems import ConfigError, Problem

__all__ = [
    "Config",
    "ConfigError",
    "LimitSettings",
    "ListenAddress",
    "LogSettings",
    "MediaSettings",
    "PortRange",
    "Problem",
    "RealtimeSettings",
    "SipSettings",
    "WorkerSettings",
    "load_config",
]
