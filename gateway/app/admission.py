# SPDX-License-Identifier: GPL-2.0-or-later
"""Decides which INVITE becomes a call: makes the call, or rejects it with log line and record."""

from __future__ import annotations

import asyncio
import re
from collections import Counter
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from typing import Any

import structlog

from gateway.app.applications import Applications, Waiting
from gateway.app.canary import Canaries
from gateway.app.health_checks import HealthChecker, SyntheticCalls
from gateway.app.outbound_calls import OutboundLimiter
from gateway.app.registry import CallRegistry, LocalLine, deciding
from gateway.app.shared_state import SharedState
from gateway.bridge.call_controller import CallController
from gateway.bridge.media import MediaPump
from gateway.bridge.route_data import CallerHistories
from gateway.bridge.sideband import Sideband
from gateway.call.call_record import CallRecord
from gateway.config import Config
from gateway.dialplan import Dialplan, Explanation, Match, Origin, call_settings
from gateway.ending import EndReason, ending_of, reason_header, refusal_code
from gateway.planning import (
    codec_of,
    facts_of,
    plans,
    record_of,
    session_codec,
)
from gateway.planning.sip import sip_settings
from gateway.records.report import SYNTHETIC
from gateway.records.shared import LeaseRequest
from gateway.records.store import RecordStore
from gateway.sip.browser_leg import TRANSPORT
from gateway.sip.leg import IgnoringHandler, Invite, Leg, RejectedInvite
from gateway.sip.messages.headers import user_of
from gateway.sip.source_limits import SourceBuckets, TokenBucket
from gateway.tasks import TaskSet
from gateway.tools.executor import ToolExecutor

log = structlog.get_logger("gateway")

_REFUSED_BELOW = {
    400: EndReason.BAD_SDP,
    415: EndReason.UNSUPPORTED_BODY,
    488: EndReason.BAD_SDP,
    500: EndReason.INTERNAL_ERROR,
    503: EndReason.OVER_CAPACITY,
}


_BELOW = {
    EndReason.NO_COMMON_CODEC: ("codecs", ""),
    EndReason.SRTP_MISMATCH: ("srtp", "media.srtp"),
    EndReason.OVER_CAPACITY: ("", "sip.max_calls"),
}
"""Settings that reject an INVITE before a route is sought: of the trunk, of the gateway."""


EACH_AT_ONCE, EACH_PER_SECOND = 20, 0.2
"""Token bucket for each source (IP address, else trunk) and reason: refusals that have a log line
and a record of their own; further ones are only counted."""

ALL_AT_ONCE, ALL_PER_SECOND = 300, 5.0
"""The same for all sources together: made-up addresses must not fill the disk either."""

COUNT_SECONDS = 60.0
"""From the first refusal that is only counted to the log line with the counts (s)."""


class Rejections:
    """Rejects INVITEs, and writes records of calls that were rejected or not placed.

    Inbound ones are sampled (``EACH_…``, ``ALL_…``): above that they are only counted.

    Args:
        retry_after: seconds, in the Retry-After of a 503 (RFC 3261 section 20.33).
        redact: kinds and patterns of what is masked in their records and log lines.
        place: names a setting of the configuration, or of a trunk, with its file and line.
    """

    def __init__(
        self,
        records: RecordStore,
        retry_after: int,
        redact: tuple[Collection[str], Collection[str]] = ((), ()),
        place: Callable[[str, str], str] = lambda key, _trunk: key,
    ) -> None:
        self._records = records
        self._place = place
        self._retry_after = retry_after
        self._redact = redact
        self._each = SourceBuckets()
        self._all = TokenBucket(ALL_PER_SECOND, ALL_AT_ONCE)
        self._counted: Counter[str] = Counter()
        self._count_due: asyncio.TimerHandle | None = None
        self.on_refused: Callable[[str], None] = lambda _call_id: None
        """Called with the id of each call that was refused or not placed, counted ones too."""
        self.unrecorded: Counter[str] = Counter()
        """Refused calls without a line and a record of their own, since the start, by reason."""

    def refuse(
        self,
        leg: Leg,
        record: CallRecord,
        why: EndReason,
        detail: str = "",
        *,
        code: int = 0,
        at_ms: float | None = None,
    ) -> None:
        """Write the record of an incoming call (see :meth:`write`), then reject its INVITE.

        The response has a Reason header, a 503 Retry-After too. What the leg reports from then on
        is ignored. The response is sent even where the record cannot be written.

        Args:
            code: of the response; 0 for that of ``why``.
            at_ms: how long the INVITE waited for an application or the database; None: not at all.
        """
        code = code or refusal_code(why)
        headers = {"Reason": reason_header(why)}
        if code == 503:
            headers["Retry-After"] = str(self._retry_after)
        leg.handler = IgnoringHandler()
        try:
            self.write(record, why, code, detail, at_ms=at_ms)
        finally:
            leg.refuse(code, headers)

    def refused_below(self, refused: RejectedInvite) -> None:
        """Write the record of an INVITE that the SIP layer has answered itself.

        Its reason is the layer's, else one by the SIP code; ``explanation`` has source, trunk and
        the setting that decided, where one did.
        """
        record = record_of(refused.invite, datetime.now(UTC))
        code = f"{refused.code} {refused.reason}".rstrip()
        why = refused.why or _REFUSED_BELOW.get(refused.code, EndReason.REFUSED)
        source = trunk = ""
        if refused.invite is not None:
            source, trunk = f"from {refused.invite.source}: ", refused.invite.trunk
        own, base = _BELOW.get(why, ("", ""))
        key, of = (own, trunk) if trunk and own else (base, "")
        by = f"; by {self._place(key, of)}" if key else ""
        who = f"trunk {trunk}, " if trunk else ""
        record.explanation = [f"{source}{who}refused before any route, {code}{by}"]
        self.write(record, why, refused.code, refused.reason)

    def write(
        self,
        record: CallRecord,
        why: EndReason,
        code: int,
        detail: str,
        *,
        at_ms: float | None = None,
    ) -> None:
        """Log and write the record of a call that was rejected, or not placed.

        One that is inbound, without ``at_ms`` and above the sampling limits is only counted.
        """
        asked = at_ms is not None
        self.on_refused(record.call_id)
        if record.direction == "inbound" and not asked and not self._sampled(record, why):
            self._records.uncounted(record.call_id)
            return
        if not record.private:
            record.private.redact(*self._redact)
        ending = ending_of(why, answered=False, detail=detail)
        record.ending = type(ending)(ending.by, why, code, ending.reason, detail)
        record.times.end = at_ms or 0.0
        record.mark(0.0, "invite", source=record.leg.source)
        record.mark(record.times.end, "end", by=ending.by.value, why=why.value, detail=detail)
        try:
            summary = record.summary()
            log.info("call.summary", call=summary.pop("call_id"), **summary)
        finally:
            self._records.write(record)

    def stop(self) -> None:
        """Log counts that wait for their log line; nothing if there are none."""
        if self._count_due is not None:
            self._count_due.cancel()
            self._say_counted()

    def _sampled(self, record: CallRecord, why: EndReason) -> bool:
        """Return whether a refusal has a log line and a record of its own.

        One that has not is counted by reason, for the log line after ``COUNT_SECONDS``.
        """
        loop = asyncio.get_running_loop()
        now = loop.time()
        source = record.leg.source.rpartition(":")[0] or record.leg.trunk
        key = f"{why.value} {source}"
        if self._each.take(key, EACH_PER_SECOND, EACH_AT_ONCE, now) and self._all.take(now):
            return True
        self._counted[why.value] += 1
        self.unrecorded[why.value] += 1
        if self._count_due is None:
            self._count_due = loop.call_later(COUNT_SECONDS, self._say_counted)
        return False

    def _say_counted(self) -> None:
        """Log ``call.refusals_counted`` with the counts by reason, and begin anew with none."""
        self._count_due = None
        log.warning("call.refusals_counted", **self._counted)
        self._counted.clear()


MAX_EXPLAINED = 10
"""Routes that did not take a call and are named in its record."""


def explained_source(invite: Invite, config: Config) -> str:
    """Return a line for the record: the INVITE's source address, and what let it in.

    That is its trunk (and how that was recognized), the setting for calls from browsers, or the one
    for sources without a trunk.
    """
    if invite.trunk:
        return f"from {invite.source}: trunk {invite.trunk} ({invite.attributed_by})"
    if invite.transport == TRANSPORT:
        by = config.place("api.browser_calls")
        return f"from {invite.source}: a page in a browser, {invite.attributed_by}; {by} lets it in"
    return f"from {invite.source}: no trunk; {config.place('access.unknown_sources')} lets it in"


_RULE = re.compile(r"(?:(access|trunk (\S+)): )?([a-z_]+(?:\.[a-z_]+)*)(?: = .*)?")


_NAMED = re.compile(r"\b(?:sip|shared|outbound|access)\.[a-z_]+")
"""A setting within the text of a rule."""


def explained_rule(rule: str, route: str, config: Config, dialplan: Dialplan) -> str:
    """Return the text of a cap or budget that refused a call, with file and line of its setting.

    A rule that names no known setting is returned as it is.
    """
    if rule.startswith("budget: "):
        detail = rule.removeprefix("budget: ")
        return deciding(EndReason.BUDGET, detail, route, config, dialplan) or rule
    if (found := _RULE.fullmatch(rule)) is not None and found[1]:
        key = f"access.{found[3]}" if found[1] == "access" else found[3]
        return f"{rule} ({config.where(key, found[2] or '')})"
    named = _NAMED.search(rule)
    return rule if named is None else f"{rule} ({config.where(named[0])})"


def explained_refusal(refused: Mapping[str, Any] | None, config: Config) -> str:
    """Return a sentence on an INVITE that the SIP layer refused: when, from where, code, rule.

    Args:
        refused: what the user agent has kept of it; None, and "" returned, where it has nothing.
    """
    if refused is None:
        return ""
    rule, where = str(refused["rule"]), ""
    if (found := _RULE.fullmatch(rule)) is not None:
        key = f"access.{found[3]}" if found[1] == "access" else found[3]
        where = f" ({config.where(key, found[2] or '')})"
    elif rule.startswith("digest: "):
        asking = [one.name for one in config.trunk if one.inbound_auth is not None]
        where = f" ({config.place('inbound_auth', asking[0])})" if len(asking) == 1 else ""
    answer = f"SIP {refused['code']}" if refused["code"] else "no answer"
    return (
        f"INVITE at {refused['at']} from {refused['source']} by {refused['transport']} to "
        f"{refused['uri']}: refused before any route, {answer}; {rule}{where}"
    )


def explained_routes(
    match: Match | None, others: list[Explanation], origin: Origin | None = None
) -> list[str]:
    """Return lines for the record: the route that takes a call, and why others do not.

    Args:
        match: None where no route takes it.
        others: routes before it, with why they do not match; ``MAX_EXPLAINED`` are named.
        origin: file and line of the route.
    """
    lines = [] if match is None else [f"route {match.route.name} takes it"]
    if origin is not None:
        lines[-1] += f" ({origin[0].name}:{origin[1]})"
    lines += [f"not {one}" for one in others[:MAX_EXPLAINED]]
    if len(others) > MAX_EXPLAINED:
        lines.append(f"not {len(others) - MAX_EXPLAINED} further routes")
    return lines


@dataclass(eq=False)
class Admission:
    """Decides on INVITEs that the user agent has let in: a call, or a refusal with its record.

    In this order: drain, ``sip.max_calls``, codecs, route, budgets and caps.

    Args:
        limiter: asked before a call dials somebody, or sends its caller somewhere.
        shared: asked before a call begins whose caps or budgets processes share.
    """

    config: Config
    dialplan: Dialplan
    calls: CallRegistry
    rejections: Rejections
    pump: MediaPump
    limiter: OutboundLimiter
    servers: HealthChecker
    tools: ToolExecutor
    applications: Applications
    canaries: Canaries
    synthetic: SyntheticCalls
    histories: CallerHistories
    shared: SharedState | None = None
    closed: bool = field(default=False, init=False)
    """Take no INVITE: the process places calls only."""

    def __post_init__(self) -> None:
        self._asking = TaskSet()
        self._retry_after = sip_settings(self.config).retry_after

    def use(self, config: Config, dialplan: Dialplan, tools: ToolExecutor) -> None:
        """Use these for further INVITEs; one that waits keeps its route, and gets the rest anew."""
        self.config, self.dialplan, self.tools = config, dialplan, tools

    def on_invite(self, leg: Leg) -> None:
        """Make a call of an INVITE, or refuse it; an exception refuses it with 500. Never
        raises."""
        now = datetime.now(UTC)
        record = CallRecord(leg.invite.call_id, leg.invite.sip_call_id, started_at=now.isoformat())
        try:
            record = record_of(leg.invite, now)
            self._admit(leg, record, now)
        except Exception as error:
            # Of what comes before there is a call: a call ends by itself.
            log.exception("call.internal_error", call=record.call_id, route=record.route)
            detail = f"{type(error).__name__}: {error}"
            self.rejections.refuse(leg, record, EndReason.INTERNAL_ERROR, detail)

    def _admit(self, leg: Leg, record: CallRecord, now: datetime) -> None:
        """Refuse an INVITE, start its call, or let it wait for the processes' database.

        Refused in this order: drain, ``sip.max_calls``, no common codec, no route, budget of this
        process. A canary is chosen then. The database is asked only where caps or budgets are
        shared, and not about synthetic calls.
        """
        refuse = self.rejections.refuse
        others: list[Explanation] = []
        record.explanation = [explained_source(leg.invite, self.config)]
        # Of a refused one, too: it is no caller's.
        synthetic = self.synthetic.mark(leg.invite, record)
        if self.closed or self.calls.closed:
            record.explanation.append("refused before any route: the gateway drains")
            refuse(leg, record, EndReason.SHUTDOWN)
        elif self.calls.full:
            record.explanation.append(
                f"refused before any route: {self.config.place('sip.max_calls')}"
            )
            detail = f"{self.calls.max_calls} calls in progress"
            refuse(leg, record, EndReason.OVER_CAPACITY, detail)
        elif leg.invite.offered == ():
            record.explanation.append(
                "refused before any route: no codec is offered of "
                + self.config.place("codecs", leg.invite.trunk)
            )
            refuse(leg, record, EndReason.NO_COMMON_CODEC)
        elif (match := synthetic or self.dialplan.match(facts_of(leg.invite, now), others)) is None:
            record.explanation += explained_routes(None, others)
            refuse(leg, record, EndReason.NO_ROUTE, f"no route takes {leg.invite.to_user!r}")
        elif (
            record.variant != SYNTHETIC
            and (spent := self.calls.spent(match.route, leg.invite.from_user)) is not None
        ):
            record.route = match.route.name
            record.explanation += self._explained(match, others)
            by = deciding(EndReason.BUDGET, spent, match.route.name, self.config, self.dialplan)
            record.explanation += [f"refused by {by}"] if by else []
            refuse(leg, record, EndReason.BUDGET, spent)
        else:
            record.explanation += self._explained(match, others)
            route = self.canaries.choose(match.route, leg.invite.from_user, record)
            match, wanted = replace(match, route=route), None
            if self.shared is not None and record.variant != SYNTHETIC:
                wanted = self.shared.wanted(
                    record.call_id, match.route, user_of(record.from_uri), leg.invite
                )
            if wanted is None:
                self._begin(leg, record, match)
            else:
                self._ask_others(leg, record, match, wanted)

    def not_placed(self, record: CallRecord, why: EndReason, code: int, detail: str) -> None:
        """Write the record of a call that was requested and not placed.

        Args:
            detail: of REFUSED the rule, which ``explanation`` gets with its setting.
        """
        if why is EndReason.REFUSED:
            by = explained_rule(detail, record.route, self.config, self.dialplan)
            record.explanation.append(f"refused by {by}")
        self.rejections.write(record, why, code, detail)

    def _explained(self, match: Match, others: list[Explanation]) -> list[str]:
        """Return :func:`explained_routes` with file and line of the route."""
        return explained_routes(match, others, self.dialplan.origins.get(match.route.name))

    def _begin(
        self, leg: Leg, record: CallRecord, match: Match, began: float | None = None
    ) -> None:
        """Play the route's test line, else ask its application, else start the call at once.

        Args:
            began: when the INVITE came (loop's time, s); None for now.
        """
        asked, line = match.route.application, match.route.test_line
        if line:
            record.route = match.route.name
            seconds = call_settings(self.config, match.route).max_call_duration
            LocalLine(leg, record, line, seconds, self.calls, began)
        elif asked is not None:
            self.applications.ask(leg, record, match, asked, self._take, began)
        else:
            self._take(leg, record, match, None, began)

    def _ask_others(self, leg: Leg, record: CallRecord, match: Match, wanted: LeaseRequest) -> None:
        """Let the INVITE wait while the processes' database reserves what it needs; then begin.

        Refused by the database's rule: 480 for a budget, 486 for a cap of a trunk or
        source, else 503. Meanwhile it has a place of ``sip.max_calls``; the caller's CANCEL, an
        operator or the end of the process end the wait.
        """
        began = asyncio.get_running_loop().time()
        record.route = match.route.name

        def end(why: EndReason, detail: str, code: int = 0) -> None:
            """Give the wait up, and reject the INVITE."""
            asking.cancel()
            self.calls.decided(record.call_id)
            at_ms = (asyncio.get_running_loop().time() - began) * 1000
            self.rejections.refuse(leg, record, why, detail, code=code, at_ms=at_ms)

        async def ask() -> None:
            """Begin or refuse the call, as the database says; an exception refuses it with 500."""
            assert self.shared is not None
            try:
                rule = await self.shared.admit(wanted)
                self.calls.decided(record.call_id)
                if not rule:
                    self._begin(leg, record, match, began)
                    return
                why = EndReason.BUDGET if rule.startswith("budget") else EndReason.OVER_CAPACITY
                by = explained_rule(rule, match.route.name, self.config, self.dialplan)
                record.explanation.append(f"refused by {by}")
            except Exception as error:
                self.calls.decided(record.call_id)
                log.exception("call.internal_error", call=record.call_id, route=record.route)
                detail = f"{type(error).__name__}: {error}"
                self.rejections.refuse(leg, record, EndReason.INTERNAL_ERROR, detail)
                return
            # As where this process alone counts: too many calls of one trunk, or of one source.
            code = 486 if rule.startswith(("trunk", "access")) else 0
            detail = rule.removeprefix("budget: ")
            self.rejections.refuse(leg, record, why, detail, code=code)

        leg.handler = Waiting(lambda: end(EndReason.CANCELLED, "by the caller", 487))
        self.calls.wait_for_decision(record, lambda why: end(why, ""))
        asking = self._asking.spawn(ask(), f"ask for {record.call_id}")

    def _take(
        self,
        leg: Leg,
        record: CallRecord,
        match: Match,
        sideband: Sideband | None = None,
        began: float | None = None,
    ) -> CallController:
        """Make the plan of an admitted INVITE's call, start it, and return it.

        Args:
            sideband: of the application that has accepted it; None without one.
            began: when the INVITE came (loop's time, s); None for now.
        """
        codec = codec_of(leg.invite)
        record.route, record.leg.codec = match.route.name, codec.value
        plan, session_plan = plans(
            self.config,
            match,
            session_codec(self.config, match.route, codec),
            self._retry_after,
            self.tools,
            trusted=leg.invite.trusted,
            bridged=leg.invite.transport == TRANSPORT,
            history=self.histories.of(match.route, leg.invite),
        )
        call = CallController(
            leg,
            *self.servers.inform(plan, session_plan),
            record,
            self.pump,
            self.calls.finished,
            dial=self.limiter.dial,
            permit_refer=self.limiter.permit_refer,
            permit_dial=self.limiter.permit if self.limiter.asks_first else None,
            tools=self.tools,
            sideband=sideband,
            began=began,
        )
        record.mark(0.0, "invite", source=record.leg.source)
        if match.cleaned:
            record.mark(0.0, "variables_cleaned", names=list(match.cleaned))
            log.warning("call.variables_cleaned", call=record.call_id, names=list(match.cleaned))
        self.calls.begin(call)
        return call
