# SPDX-License-Identifier: GPL-2.0-or-later
"""Calls in progress: their limit, the cost of each, its record at the end; calls to a test line."""

from __future__ import annotations

import asyncio
import platform
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict
from typing import Any

import structlog
from pydantic import BaseModel

from gateway.app.stores import Stores
from gateway.audio import Codec
from gateway.audio.sounds import ECHO
from gateway.billing import Costs, Scope
from gateway.bridge.call_controller import CallController
from gateway.bridge.legs import quality_of
from gateway.call.call_record import CallRecord
from gateway.config import Config
from gateway.dialplan import Dialplan, Route, call_settings
from gateway.dialplan.route_sections import RouteBudget
from gateway.ending import EndReason, ending_of, reason_header
from gateway.records.black_boxes import BlackBoxSettings
from gateway.records.report import SYNTHETIC
from gateway.sip.leg import IgnoringHandler, Invite, Leg, LegEnd
from gateway.sip.library import (
    build,
    descriptor_limits,
    descriptors_needed,
    raise_descriptor_limit,
)
from gateway.sip.messages.headers import user_of
from gateway.sip.rtp import RtpQuality
from gateway.tasks import TaskSet, wait_any

log = structlog.get_logger("gateway")


class CallRegistry:
    """Starts calls and counts them until they are over, for the cap and the drain.

    Counted are calls with a session, INVITEs that wait for a decision, and calls to test lines.
    Lives on the event loop.
    """

    def __init__(
        self,
        config: Config,
        dialplan: Dialplan,
        stores: Stores,
        costs: Costs,
    ) -> None:
        self.max_calls = 0
        """Set when the user agent is up and says how many it carries."""
        self.forced = 0
        """Calls with a session that :meth:`shut_down` ended."""
        self.closed = False
        """No further call may begin: the gateway is draining."""
        self._settings = config.records
        self._config, self._dialplan = config, dialplan
        self._routes = {route.name: route for route in dialplan.routes}
        self._box_facts: dict[str, Mapping[str, Any]] = {}
        """By route; made when the first call of it wants them."""
        self._stores = stores
        self._costs = costs
        self._calls: set[CallController] = set()
        self._undecided: dict[str, tuple[CallRecord, Callable[[EndReason], None]]] = {}
        self._leaving = TaskSet()
        self.on_finished: Callable[[str], None] = lambda _call_id: None
        """Called with the id of each call that is over; what it holds is freed."""
        self._idle = asyncio.Event()
        self._idle.set()
        self.use(config, dialplan)

    def __iter__(self) -> Iterator[CallController]:
        """Iterate over a copy of the calls with a session; those that wait are left out."""
        return iter(tuple(self._calls))

    def __len__(self) -> int:
        """Number of calls with a session."""
        return len(self._calls)

    @property
    def ids(self) -> list[str]:
        """Ids of the calls with a session, sorted."""
        return sorted(call.record.call_id for call in self._calls)

    @property
    def full(self) -> bool:
        """Whether as many calls are in progress, or wait for a decision, as there may be."""
        return len(self._calls) + len(self._undecided) >= self.max_calls

    def no_room(self) -> str | None:
        """Return why no further call may begin now (drain, ``sip.max_calls``); None if one may."""
        if self.closed:
            return "the gateway shuts down"
        return f"sip.max_calls: {self.max_calls} calls in progress" if self.full else None

    def spent(self, route: Route, number: str) -> str | None:
        """Return which budget a further call would exceed, with its figures; None if none.

        Asked are those of the route, the number and the day, as far as this process knows the sums.
        """
        reached = self._costs.exhausted(route, number)
        return None if reached is None else str(reached)

    def use(self, config: Config, dialplan: Dialplan) -> None:
        """Use these for further calls; routes that are gone stay known for calls in progress.

        SIP messages are kept for black boxes from now on only if a route or ``[records]`` has them.
        """
        self._config, self._dialplan = config, dialplan
        self._routes.update({route.name: route for route in dialplan.routes})
        self._box_facts.clear()
        self._stores.black_boxes.messages.wanted = any(
            (route.records.black_box or self._settings.black_box) != "off"
            for route in dialplan.routes
        )

    def begin(self, call: CallController) -> None:
        """Count a call until :meth:`finished`, and start it: account, event log, black box, then
        its machine."""
        self._calls.add(call)
        self._idle.clear()
        call.start(lambda: self._watch(call))

    @property
    def records(self) -> list[CallRecord]:
        """Records of calls with a session, then of :attr:`waiting` ones."""
        return [*(call.record for call in self._calls), *self.waiting]

    @property
    def waiting(self) -> list[CallRecord]:
        """Records of INVITEs that wait for an application or the database, and of test lines."""
        return [record for record, _end in self._undecided.values()]

    def wait_for_decision(self, record: CallRecord, end: Callable[[EndReason], None]) -> None:
        """Count an INVITE that waits for a decision, until :meth:`decided`.

        Args:
            end: rejects the INVITE for a reason, for the operator and the end of the process.
        """
        record.undecided = True
        self._undecided[record.call_id] = record, end
        self._idle.clear()

    def refuse_waiting(self, call_id: str) -> bool:
        """Reject an INVITE that waits, or end a call to a test line, for the operator.

        False where no such call has this id.
        """
        _record, end = self._undecided.get(call_id, (None, None))
        if end is not None:
            end(EndReason.OPERATOR)
        return end is not None

    def decided(self, call_id: str) -> None:
        """Free the place of an INVITE that waited; if it is accepted, :meth:`begin` takes another.

        Nothing for an id that does not wait.
        """
        record, _end = self._undecided.pop(call_id, (None, None))
        if record is not None:
            record.undecided = False
        self._look_idle()

    def begin_line(self, record: CallRecord, end: Callable[[EndReason], None]) -> None:
        """Count a call to a test line, which has no session, until :meth:`end_line`.

        Sets what its record masks, and announces the call. ``end`` hangs it up for a reason.
        """
        self._mask(record)
        self.wait_for_decision(record, end)
        record.undecided = False
        self._stores.records.opened(record)

    def end_line(self, record: CallRecord) -> None:
        """Free the place of a call to a test line, and write its record."""
        self.decided(record.call_id)
        self.on_finished(record.call_id)
        self._stores.records.write(record)

    def shut_down(self) -> None:
        """End every call now: INVITEs that wait are rejected, the others get BYE.

        Only calls with a session count as ``forced``.
        """
        for _record, end in tuple(self._undecided.values()):
            end(EndReason.SHUTDOWN)
        for call in self:
            self.forced += 1
            call.shut_down()

    def _look_idle(self) -> None:
        """End :meth:`wait_idle` if nothing is counted any more."""
        if not (self._calls or self._undecided):
            self._idle.set()

    def finished(self, call: CallController) -> None:
        """Free the place of a call that is over, and write its record.

        Its session may still be closing: see :meth:`wait_gone`.
        """
        self._calls.discard(call)
        self.on_finished(call.record.call_id)
        self._look_idle()
        self._stores.records.write(call.record)
        self._leaving.spawn(call.wait_closed(), f"leave {call.record.call_id}")

    async def wait_idle(self, seconds: float, *or_else: asyncio.Event) -> None:
        """Wait until nothing is counted, waiting INVITEs too, or an event of ``or_else`` is set.

        ``seconds`` at most; the caller finds out which.
        """
        await wait_any(seconds, self._idle, *or_else)

    async def wait_gone(self, seconds: float) -> None:
        """Wait for the sessions of calls that are over to be closed; ``seconds`` at most."""
        await self._leaving.wait(seconds)

    def _mask(self, record: CallRecord) -> None:
        """Set what is masked in a record: by its route, else by ``[records]``."""
        base, own = self._settings, self._routes[record.route].records
        patterns = own.redact_patterns
        record.private.redact(
            base.redact if own.redact is None else own.redact,
            base.redact_patterns if patterns is None else patterns,
        )

    def _watch(self, call: CallController) -> None:
        """Prepare what accompanies a call, before its machine starts, and announce the call.

        Trace id, what its record masks, account of its cost (of a synthetic call: the day's
        budget only), event log, black box, recordings, and how its end is explained.
        """
        record = call.record
        own = self._routes[record.route].records
        record.trace_id = self._stores.tracing.trace_id(record.call_id)
        self._mask(record)
        number = user_of(record.from_uri if record.direction == "inbound" else record.to_uri)
        plan = call.session_plan
        pays = self._routes[record.route]
        if record.variant == SYNTHETIC:  # nobody's budget but the day's
            pays, number = pays.model_copy(update={"name": SYNTHETIC, "budget": RouteBudget()}), ""
        account = self._costs.open(
            pays,
            number,
            model=plan.endpoint.model,
            url=plan.endpoint.url,
            session=plan.settings,
        )
        events = None
        if self._settings.events if own.events is None else own.events:
            events = self._stores.event_logs.open(
                record.call_id, record.started_at, record.private, route=record.route
            )
        wanted = self._black_box_wanted(self._routes[record.route])
        box = self._stores.black_boxes.open(record, wanted, call.plan.tools.collect_digits)
        call.watch(account, events, box)
        call.record_with(self._stores.recordings)
        config, dialplan = self._config, self._dialplan
        route = self._routes[record.route]

        def explain() -> None:
            """Add the setting by which the call has ended to its record, at its end."""
            assert record.ending is not None
            why, detail = record.ending.why, record.ending.detail
            transfers = record.actions.transfers
            to = transfers[-1].destination if transfers else ""
            by = deciding(why, detail, record.route, config, dialplan, to)
            if record.direction == "outbound" and why is EndReason.MAX_DURATION:
                longest = call_settings(config, route).max_call_duration
                if config.outbound.max_call_duration < longest:
                    by = config.place("outbound.max_call_duration")
            if by:
                record.explanation.append(f"ended by {by}")

        call.explain = explain
        self._stores.records.opened(record)

    def _black_box_wanted(self, route: Route) -> BlackBoxSettings:
        """Return the black box settings of a route: its own, else those of ``[records]``.

        With the facts of gateway, configuration and route, made once for each route and reload.
        """
        own, base = route.records, self._settings
        kept = own.black_box or base.black_box
        if kept == "off":
            return BlackBoxSettings(kept)
        facts = self._box_facts.get(route.name)
        if facts is None:
            facts = self._box_facts[route.name] = {
                "versions": {"python": platform.python_version(), "pjsua2": asdict(build())},
                "configuration": _dumped(self._config),
                "route": _dumped(route),
            }
        payload = own.black_box_payload
        return BlackBoxSettings(kept, base.black_box_payload if payload is None else payload, facts)


class LocalLine(IgnoringHandler):
    """Call on a route with ``test_line``: the caller hears an echo or a sound, with no session.

    The handler of its leg. Lives on the event loop.

    Args:
        sound: what the caller hears: :data:`gateway.audio.sounds.ECHO`, or a built-in sound.
        seconds: after which it hangs up.
        began: when the INVITE came (loop's time, s); None for now.
    """

    def __init__(
        self,
        leg: Leg,
        record: CallRecord,
        sound: str,
        seconds: float,
        calls: CallRegistry,
        began: float | None = None,
    ) -> None:
        self._leg, self._record, self._sound, self._calls = leg, record, sound, calls
        self._loop = asyncio.get_running_loop()
        self._began = self._loop.time() if began is None else began
        self._why: EndReason | None = None
        calls.begin_line(record, self.end)
        self._log = log.bind(call=record.call_id, route=record.route)
        self._log.info(
            "call.invite",
            **record.private.masked({"from": record.from_uri, "to": record.to_uri}),
            sip_call_id=record.sip_call_id,
            source=record.leg.source,
            codec=record.leg.codec,
        )
        leg.handler = self
        self._limit = self._loop.call_later(seconds, self.end, EndReason.MAX_DURATION)
        leg.play(sound)
        leg.answer()
        record.times.answered = self._ms()
        self._log.info("call.answered")

    def _ms(self) -> float:
        """Return the time since the INVITE (ms)."""
        return round((self._loop.time() - self._began) * 1000, 1)

    def end(self, why: EndReason) -> None:
        """Hang up with ``why`` in the Reason header; nothing if it was hung up here before."""
        if self._why is None:
            self._why = why
            self._leg.hang_up({"Reason": reason_header(why)})

    def on_media(self, codec: Codec) -> None:
        """Note the negotiated codec and the media's security in the record."""
        self._record.leg.codec = codec.value
        self._record.leg.security = self._leg.security

    def on_confirmed(self) -> None:
        """Note the time of the ACK in the record."""
        self._record.times.confirmed = self._ms()
        self._log.info("call.confirmed")

    def on_digit(self, digit: str) -> None:
        """Send a DTMF digit of the caller back to them; nothing unless the line is an echo."""
        if self._sound == ECHO:
            self._leg.press(digit)

    def on_quality(self, quality: RtpQuality) -> None:
        """Note the RTP statistics in the record."""
        self._record.media.rtp = quality_of(quality)

    def on_ended(self, end: LegEnd) -> None:
        """Free the call's place, and log and write its record.

        Ended by: the reason of :meth:`end`, else the caller's BYE or CANCEL, else a timeout of SIP.
        Without an ACK it counts as not answered.
        """
        self._limit.cancel()
        record = self._record
        confirmed = record.times.confirmed is not None
        why = self._why or (EndReason.REMOTE_HANGUP if end.method else EndReason.LEG_TIMEOUT)
        if not confirmed:
            record.times.answered = None
        reason = end.reason_header if end.method else None
        record.ending = ending_of(why, answered=confirmed, reason=reason)
        record.leg.bye_undelivered = end.undelivered
        record.times.end = self._ms()
        record.mark(record.times.end, "end", by=record.ending.by.value, why=why.value)
        summary = record.summary()
        log.info("call.summary", call=summary.pop("call_id"), **summary)
        self._calls.end_line(record)


def _dumped(settings: BaseModel) -> Any:
    """Return the settings that differ from their defaults as JSON, with secrets blanked.

    Where they cannot be shown: a text with the error.
    """
    try:
        return settings.model_dump(mode="json", exclude_defaults=True)
    except Exception as error:  # a black box without it is worth having
        return f"cannot be shown: {error!r:.200}"


_DECIDING: dict[EndReason, tuple[str, str]] = {
    EndReason.MAX_DURATION: ("limits.max_call_duration", "limits.max_call_duration"),
    EndReason.RTP_TIMEOUT: ("limits.rtp_timeout", "media.rtp_timeout"),
    EndReason.IDLE: ("idle.timeout", ""),
    EndReason.MACHINE_DETECTED: ("machine_detection", ""),
    EndReason.GUARDRAIL: ("guardrail", ""),
    EndReason.RESPONSE_FAILURES: ("response_failure.max_failures", ""),
    EndReason.SESSION_UNREACHABLE: ("fallback", "realtime.url"),
    EndReason.SESSION_REFUSED: ("fallback", "realtime.url"),
    EndReason.SESSION_LOST: ("fallback", "realtime.url"),
    EndReason.SESSION_SILENT: ("silence.timeout", ""),
    EndReason.TRANSFERRED: ("transfer", ""),
    EndReason.AGENT_HANGUP: ("end_call", ""),
    EndReason.SHUTDOWN: ("", "limits.drain_timeout"),
}
"""Settings by which calls end: of the route, and of the configuration where the route has none."""

_BUDGETS = {
    Scope.CALL: ("budget.per_call", "cost.budget.per_call"),
    Scope.NUMBER: ("budget.per_caller", "cost.budget.per_caller"),
    Scope.ROUTE: ("budget.per_day", ""),
    Scope.DAY: ("", "cost.budget.per_day"),
}


def deciding(
    why: EndReason,
    detail: str,
    route: str,
    config: Config,
    dialplan: Dialplan,
    destination: str = "",
) -> str:
    """Return the setting that makes a call end for ``why``, with file and line; "" where none does.

    The route's if its file has it, else the configuration's, else the route's with "(default)".

    Args:
        detail: of a budget, begins with its scope (``call:``, ``caller:`` ...).
        destination: name of the one that the call was transferred to, if it was.
    """
    own, base = _DECIDING.get(why, ("", ""))
    scope = detail.partition(":")[0]
    if why is EndReason.BUDGET and scope in list(Scope):
        own, base = _BUDGETS[Scope(scope)]
    origin = dialplan.origins.get(route)
    path = tuple[str | int, ...](own.split("."))
    if why is EndReason.TRANSFERRED:
        found = next((one for one in dialplan.routes if one.name == route), None)
        names = [] if found is None else [one.name for one in found.transfer]
        if destination not in names:
            return ""  # an application chose it
        own, path = f"transfer {destination}", ("transfer", names.index(destination))
    if origin is not None and own and path in origin.lines:
        return f"route {route}: {own} ({origin.file.name}:{origin.lines[path]})"
    if base:
        return config.place(base)
    return f"route {route}: {own} (default)" if own and route else ""


def facts_for_slot(invite: Invite) -> Mapping[str, Any]:
    """Return the facts of an INVITE that are kept before its first provisional response.

    After a crash, the next start makes the record of a lost call of them.
    """
    return {
        "direction": "inbound",
        "sip_call_id": invite.sip_call_id,
        "from_uri": invite.from_uri,
        "to_uri": invite.to_uri,
        "source": invite.source,
        "trunk": invite.trunk,
        "transport": invite.transport,
    }


def possible_calls(wanted: int, carried: int) -> int:
    """Return the lesser of both counts, and log where it is less than wanted.

    Raises the limit of open files as far as these calls need it; a warning where it is too low, but
    the count stays.

    Args:
        wanted: ``sip.max_calls``.
        carried: what pjsua2 was built for.
    """
    calls = min(wanted, carried)
    if carried < wanted:
        log.warning(
            "gateway.capacity",
            max_calls=wanted,
            library_calls=carried,
            advice="the library carries fewer calls than sip.max_calls: run more workers",
        )
    if not raise_descriptor_limit(calls):
        log.warning(
            "gateway.descriptors",
            hard_limit=descriptor_limits()[1],
            needed=descriptors_needed(calls),
            advice="calls will fail before max_calls; raise the hard limit of open files",
        )
    return calls
