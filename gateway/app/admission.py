# SPDX-License-Identifier: GPL-2.0-or-later
"""Decides which INVITE becomes a call, and makes the call."""

from __future__ import annotations

from datetime import UTC, datetime

import structlog

from gateway.app.refusals import Rejections
from gateway.app.registry import CallRegistry
from gateway.app.server_health import HealthChecker
from gateway.bridge.call_controller import CallController
from gateway.bridge.media_clock import MediaClock
from gateway.call.ending import EndReason
from gateway.call.record import CallRecord
from gateway.config import Config
from gateway.dialplan import Dialplan, Match
from gateway.outbound.limits import OutboundLimiter
from gateway.planning.call_plan import codec_of, facts_of, plans, record_of, sip_settings
from gateway.sip.leg import Leg
from gateway.tools.executor import ToolExecutor

log = structlog.get_logger("gateway")


class Admission:
    """Takes INVITEs that the user agent has let in.

    Args:
        limiter: asked before a call dials somebody, or sends its caller somewhere.
    """

    def __init__(
        self,
        config: Config,
        dialplan: Dialplan,
        calls: CallRegistry,
        rejections: Rejections,
        clock: MediaClock,
        limiter: OutboundLimiter,
        servers: HealthChecker,
        tools: ToolExecutor,
    ) -> None:
        self._config = config
        self._retry_after = sip_settings(config).retry_after
        self._dialplan = dialplan
        self._calls = calls
        self._rejections = rejections
        self._clock = clock
        self._limiter = limiter
        self._servers = servers
        self._tools = tools
        self.closed = False
        """Take no INVITE: the process places calls only."""

    def on_invite(self, leg: Leg) -> None:
        """Make a call of it, or refuse it. Never raises."""
        now = datetime.now(UTC)
        record = CallRecord(leg.invite.call_id, leg.invite.sip_call_id, started_at=now.isoformat())
        try:
            record = record_of(leg.invite, now)
            self._admit(leg, record, now)
        except Exception as error:
            # Of what comes before there is a call: a call ends by itself.
            log.exception("call.internal_error", call=record.call_id, route=record.route)
            detail = f"{type(error).__name__}: {error}"
            self._rejections.refuse(leg, record, EndReason.INTERNAL_ERROR, detail)

    def _admit(self, leg: Leg, record: CallRecord, now: datetime) -> None:
        refuse = self._rejections.refuse
        if self.closed or self._calls.closed:
            refuse(leg, record, EndReason.SHUTDOWN)
        elif self._calls.full:
            detail = f"{self._calls.max_calls} calls in progress"
            refuse(leg, record, EndReason.OVER_CAPACITY, detail)
        elif leg.invite.offered == ():
            refuse(leg, record, EndReason.NO_COMMON_CODEC)
        elif (match := self._dialplan.match(facts_of(leg.invite, now))) is None:
            refuse(leg, record, EndReason.NO_ROUTE, f"no route takes {leg.invite.to_user!r}")
        elif (spent := self._calls.spent(match.route, leg.invite.from_user)) is not None:
            record.route = match.route.name
            refuse(leg, record, EndReason.BUDGET, spent)
        else:
            self._take(leg, record, match)

    def _take(self, leg: Leg, record: CallRecord, match: Match) -> None:
        codec = codec_of(leg.invite)
        record.route, record.codec = match.route.name, codec.value
        plan, session_plan = plans(
            self._config,
            match,
            codec,
            self._retry_after,
            self._tools,
            trusted=leg.invite.trusted,
        )
        call = CallController(
            leg,
            *self._servers.inform(plan, session_plan),
            record,
            self._clock,
            self._calls.finished,
            dial=self._limiter.dial,
            permit_refer=self._limiter.permit_refer,
            tools=self._tools,
        )
        record.mark(0.0, "invite", source=record.source)
        if match.cleaned:
            record.mark(0.0, "variables_cleaned", names=list(match.cleaned))
            log.warning("call.variables_cleaned", call=record.call_id, names=list(match.cleaned))
        self._calls.begin(call)
