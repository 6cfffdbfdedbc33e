# SPDX-License-Identifier: GPL-2.0-or-later
"""Dialplans: which route takes a call, and what that route says shall happen.

:func:`load_dialplan` reads a folder; :meth:`Dialplan.match` picks the :class:`Route` for an
INVITE; :func:`call_settings` joins it with the configuration.
"""

from gateway.dialplan.call_settings import CallSettings, call_settings
from gateway.dialplan.load import Dialplan, Origin, dialplan_files, load_dialplan
from gateway.dialplan.match import Explanation, InviteFacts, Match, Refusal
from gateway.dialplan.models import Dtmf, EndCall, Greeting, Route, RouteLimits, RouteRealtime
from gateway.dialplan.tools import Hold, SendDtmf, Transfer, TransferCall

__all__ = [
    "CallSettings",
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
