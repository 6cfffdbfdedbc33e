"""The gateway's configuration: :func:`load_config` turns ``gateway.toml`` into a :class:`Config`.

``source`` and ``lines`` read TOML with positions and references, ``models`` say what may stand
there, ``validate`` words what is wrong. The dialplans are read with the same parts.
"""

from .access import AccessSettings, ControlSettings
from .load import load_config
from .models import Config, LimitSettings, LogSettings, MediaSettings, WorkerSettings
from .outbound import OutboundSettings
from .problems import ConfigError, Problem
from .realtime import RealtimeSettings
from .sip import ListenAddress, PortRange, SipSettings, TlsSettings
from .trunks import TrunkSettings

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
