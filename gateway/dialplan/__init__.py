# SPDX-License-Identifier: GPL-2.0-or-later
"""Dialplans: which route takes a call, and what that route says shall happen.

:func:`load_dialplan` reads a folder; :meth:`Dialplan.match` picks the :class:`Route` for an
INVITE; :func:`call_settings` joins it with the configuration.
"""

from gateway.dialplan.conditions import InviteFacts
from gateway.dialplan.dialplan import (
    Dialplan,
    Explanation,
    Match,
    Origin,
    Refusal,
    dialplan_files,
    load_dialplan,
)
from gateway.dialplan.route import (
    CallSettings,
    Dtmf,
    Greeting,
    Route,
    RouteLimits,
    call_settings,
)
from gateway.dialplan.route_session import Canary, RouteRealtime
from gateway.dialplan.tool_sections import EndCall, Hold, SendDtmf, Transfer, TransferCall

__all__ = [
    "CallSettings",
    "Canary",
    "Dialplan",
    "Dtmf",
    "EndCall",
    "Explanation",
    "Greeting",
    "Hold",
    "InviteFacts",
    "Match",
    "Origin",
    "Refusal",
    "Route",
    "RouteLimits",
    "RouteRealtime",
    "SendDtmf",
    "Transfer",
    "TransferCall",
    "call_settings",
    "dialplan_files",
    "load_dialplan",
]
