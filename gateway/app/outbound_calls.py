# SPDX-License-Identifier: GPL-2.0-or-later
"""Calls that the gateway places: for the API, callbacks, B-legs and followed REFERs.

Each leg is checked against ``[outbound]`` first, and counted until it is over.
"""

from __future__ import annotations

import asyncio
import re
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import partial
from threading import Lock
from typing import Any, NamedTuple, NoReturn, cast

import structlog

from gateway.app.health_checks import HealthChecker
from gateway.app.registry import CallRegistry
from gateway.app.shared_state import FOLLOWED_RULE, SharedState, most_followed
from gateway.audio import G711, Codec
from gateway.bridge.call_controller import CallController
from gateway.bridge.legs import DialRefusedError, OutboundTarget
from gateway.bridge.media import MediaPump
from gateway.call.call_record import CallRecord
from gateway.config import Config
from gateway.config.sections import OutboundSettings
from gateway.config.sip import TrunkSettings
from gateway.dialplan import Dialplan, Route
from gateway.ending import EndReason
from gateway.measures import BoundedDict
from gateway.planning import (
    placed_match,
    placed_record,
    plans,
    session_codec,
)
from gateway.planning.sip import OutboundCaps, caller_id_of, dial_uri, sip_settings
from gateway.records.shared import leases_of
from gateway.sip.active_calls import GiveBack, ReferPermit, no_place
from gateway.sip.agent import UserAgent
from gateway.sip.call_audio import CallAudio
from gateway.sip.leg import Leg, LegEnd, LegHandler
from gateway.sip.messages.headers import user_of
from gateway.tasks import TaskSet
from gateway.tools.executor import ToolExecutor

log = structlog.get_logger("gateway")


class OutboundLimiter:
    """Checks every leg that the gateway places against ``[outbound]``, counts it, and dials.

    Counted are legs until their end, calls that were admitted and are not dialled yet, and followed
    REFERs. Lives on the event loop.

    Args:
        shared: asked before a leg is dialled; None where this process is alone.
        workers: how many processes share the calls of followed REFERs where no database counts
            those of all.
    """

    def __init__(
        self,
        settings: OutboundSettings,
        agent: UserAgent,
        shared: SharedState | None = None,
        workers: int = 1,
    ) -> None:
        self._caps = OutboundCaps(settings)
        self._shared = shared
        self._enabled = settings.enabled
        alone = shared is None or not shared.active
        self._most_followed = most_followed(settings) // (workers if alone else 1)
        self._agent = agent
        self._legs: set[_Counted] = set()
        self._admitted = 0
        self._asking = Lock()
        self._tasks = TaskSet()
        agent.calls.may_follow_refer = self._may_follow_refer
        agent.calls.permit_followed = None if alone else self._permit_followed

    async def stop(self) -> None:
        """Ask the shared database no more about followed REFERs."""
        await self._tasks.cancel()

    @property
    def active(self) -> int:
        """Number of legs in progress, of calls admitted and not yet dialled, of followed REFERs."""
        return len(self._legs) + self._admitted + self._agent.calls.followed

    def admit(self, uri: str) -> Callable[[], None]:
        """Check a call that the API or a callback requests, and take a place for it.

        Returns what frees the place; a second call of that does nothing. Raises DialRefusedError
        with the rule, which is logged.
        """
        return self._reserve(uri, on_demand=True)

    def permit_refer(self, uri: str, by_pattern: bool, *, count: bool = True) -> None:
        """Check whether the other side may be sent to ``uri`` by REFER. Raises DialRefusedError.

        Args:
            by_pattern: a destination that was chosen in the call: checked against all caps and the
                rate, too. Of one that the dialplan names only the address is checked.
            count: count it in the rate; False where the call asks again before it sends the REFER.
        """
        if by_pattern:
            self._ask(uri, on_demand=False, by_pattern=True, count=count)
        elif (rule := self._caps.destination_refusal(uri, False, False)) is not None:
            self._refuse(uri, rule)

    def callback_refusal(self, number: str, allow: re.Pattern[str] | None) -> str | None:
        """Return the rule by which no callback to this number may be scheduled; None if one may.

        ``allow``: numbers that the route's ``allowed_numbers`` allows; None for no pattern. A
        refusal is logged.
        """
        rule = self._caps.callback_refusal(number, allow)
        if rule is not None:
            log.warning("gateway.call_not_placed", to=number, rule=rule)
        return rule

    def dial(
        self,
        uri: str,
        handler: LegHandler,
        audio: CallAudio | None,
        codecs: list[Codec],
        trunk: str,
        by_pattern: bool = False,
        caller_id: str = "",
    ) -> Leg:
        """Place a call to a destination of a route; return its leg at once, not yet answered.

        Args:
            trunk: name of the trunk, "" for none.
            by_pattern: a number that was chosen in the call and that the route's pattern allows.
            caller_id: user part of From, "" for the trunk's own.

        Raises DialRefusedError where ``[outbound]`` or a limit does not permit it.
        """
        give_back = self._reserve(uri, by_pattern=by_pattern)
        try:
            return self.dial_admitted(uri, handler, audio, codecs, trunk, caller_id)
        finally:
            give_back()  # its leg is counted

    def may_call(self, uri: str) -> bool:
        """Return whether ``[outbound]`` is enabled and allows calls to this address on request.

        Counts and rates are not asked, and nothing is logged.
        """
        return self._caps.destination_refusal(uri, True, False) is None and self._enabled

    @property
    def asks_first(self) -> bool:
        """Whether a database has counts of all processes: :meth:`permit` comes before each leg."""
        return self._shared is not None and self._shared.active

    async def permit(self, call_id: str, *, followed: bool = False) -> GiveBack:
        """Reserve a place for another leg of a call under the caps that all processes share.

        Returns what releases the place; without a shared database that and the reservation are
        nothing. Raises DialRefusedError with the rule, which is logged.

        Args:
            followed: it is one that a REFER makes, which has a cap of its own.
        """
        shared = self._shared
        wanted = None if shared is None else shared.outbound_wanted(call_id, followed=followed)
        if shared is None or wanted is None:
            return no_place
        if rule := await shared.admit(wanted):
            log.warning("gateway.call_not_placed", call=call_id, rule=rule)
            raise DialRefusedError(rule)
        ids = [one.id for one in leases_of(wanted)]
        return partial(shared.release, call_id, ids)

    def dial_admitted(
        self,
        uri: str,
        handler: LegHandler,
        audio: CallAudio | None,
        codecs: list[Codec],
        trunk: str,
        caller_id: str = "",
    ) -> Leg:
        """Place a call without asking the caps, and count its leg until its end.

        Raises DialRefusedError where there is no such trunk. Arguments as of :meth:`dial`.
        """
        counted = _Counted(handler, self._legs)
        try:
            return self._agent.dial(uri, cast(LegHandler, counted), audio, codecs, trunk, caller_id)
        except KeyError:
            counted.forget()
            raise DialRefusedError(f"there is no trunk {trunk!r}") from None

    def _reserve(
        self, uri: str, *, on_demand: bool = False, by_pattern: bool = False
    ) -> Callable[[], None]:
        """Check the caps of this process, and take a place before another thread checks them.

        Returns what frees it, once. Raises DialRefusedError as :meth:`_ask`. On any thread.
        """
        self._ask(uri, on_demand=on_demand, by_pattern=by_pattern, reserve=True)
        held = True

        def give_back() -> None:
            """Free the place, once."""
            nonlocal held
            with self._asking:
                self._admitted -= held
                held = False

        return give_back

    def _ask(
        self,
        uri: str,
        *,
        on_demand: bool,
        by_pattern: bool = False,
        count: bool = True,
        reserve: bool = False,
    ) -> None:
        """Check the caps of this process, and with ``count`` count the attempt in its rate.

        Raises DialRefusedError with the rule, which is logged. On any thread.

        Args:
            on_demand: requested by the API or a callback, not a destination of a route.
            by_pattern: a destination that was chosen in the call.
            reserve: count it as admitted, if it may be placed.
        """
        with self._asking:
            rule = self._caps.refusal(
                uri,
                self.active,
                time.monotonic(),
                on_demand=on_demand,
                by_pattern=by_pattern,
                count=count,
            )
            self._admitted += reserve and rule is None
        if rule is not None:
            self._refuse(uri, rule)

    def _refuse(self, uri: str, rule: str) -> NoReturn:
        """Log that a call is not placed, and raise DialRefusedError."""
        log.warning("gateway.call_not_placed", to=uri, rule=rule)
        raise DialRefusedError(rule)

    def _permit_followed(self, call_id: str, told: Callable[[ReferPermit], None]) -> None:
        """Reserve a place for the call that a REFER is to make, and tell ``told`` of the result.

        A permit without a rule, and what releases the place; or the rule that forbids the call. A
        defect forbids it, too: the REFER waits for an answer.
        """

        async def ask() -> None:
            try:
                permit = ReferPermit("", await self.permit(call_id, followed=True))
            except DialRefusedError as refused:
                permit = ReferPermit(str(refused), no_place)
            except Exception as error:
                log.exception("call.internal_error", call=call_id)
                permit = ReferPermit(f"a defect of the gateway: {error}", no_place)
            told(permit)

        self._tasks.spawn(ask(), f"refer of {call_id}")

    def _may_follow_refer(self, uri: str) -> Callable[[], None] | None:
        """Take a place for the call to ``uri`` that is to follow a REFER of the other side; return
        what frees it, or None if that call may not be placed.

        Its sender decides when such calls are placed, so they get half of
        ``outbound.max_concurrent_calls`` at most. A refusal is logged. Runs on the SIP thread.
        """
        if self._agent.calls.followed >= self._most_followed:
            rule = f"{FOLLOWED_RULE}, divided by the workers: {self._most_followed} followed REFERs"
            log.warning("gateway.call_not_placed", to=uri, rule=rule)
            return None
        try:
            return self._reserve(uri, by_pattern=True)
        except DialRefusedError:
            return None


class _Counted:
    """Handler that counts a leg from now until its end, and forwards all to the leg's own."""

    def __init__(self, handler: LegHandler, legs: set[_Counted]) -> None:
        self._handler = handler
        self._legs = legs
        legs.add(self)

    def forget(self) -> None:
        """Stop counting the leg."""
        self._legs.discard(self)

    def on_ended(self, end: LegEnd) -> None:
        """Stop counting the leg, and forward its end."""
        self.forget()
        self._handler.on_ended(end)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._handler, name)


class _Asked(NamedTuple):
    """A call to be placed; ``trunk`` None: without one, ``caller_id`` "": the trunk's own."""

    route: Route
    trunk: TrunkSettings | None
    uri: str
    caller_id: str
    record: CallRecord


MAX_REMEMBERED = 256
"""Placed calls whose outcome can still be asked for."""


Reject = Callable[[CallRecord, EndReason, int, str], None]
"""Writes the record of a call that was not placed: why, SIP code, detail."""


@dataclass(eq=False)
class OutboundCalls:
    """Places calls, and remembers what became of the last ones. Lives on the event loop.

    Args:
        choose: returns the route for a number that is called: itself, or with its canary.
    """

    config: Config
    dialplan: Dialplan
    pump: MediaPump
    limiter: OutboundLimiter
    calls: CallRegistry
    reject: Reject
    servers: HealthChecker
    tools: ToolExecutor | None = None
    shared: SharedState | None = None
    choose: Callable[[Route, str, CallRecord], Route] = lambda route, _number, _record: route
    _recent: BoundedDict[str, CallRecord] = field(
        default_factory=lambda: BoundedDict(MAX_REMEMBERED), init=False
    )

    def use(self, config: Config, dialplan: Dialplan, tools: ToolExecutor) -> None:
        """Use these for further calls; calls in progress keep theirs."""
        self.config, self.dialplan, self.tools = config, dialplan, tools

    def dial(
        self,
        to: str,
        route: str,
        trunk: str = "",
        variables: Mapping[str, str] | None = None,
        caller_id: str = "",
    ) -> asyncio.Future[CallRecord]:
        """Place a call with a route's session; the future is its record, once it is over.

        Only caps and budgets of this process are asked: see :meth:`place`.

        Args:
            to: a number, which needs a trunk, or a sip or tel URI.
            route: the name of a route; its conditions are not asked.
            variables: what the route's named groups would have brought.
            caller_id: in place of the trunk's own; its ``caller_ids`` has to allow it.

        Raises DialRefusedError with the rule that forbids it, and ValueError where there is no such
        route or trunk, or the address is none.
        """
        return self._dial(self._ask(to, route, trunk, caller_id), variables or {})[1]

    async def place(
        self,
        to: str,
        route: str,
        trunk: str = "",
        variables: Mapping[str, str] | None = None,
        caller_id: str = "",
        *,
        parent: str = "",
    ) -> tuple[CallRecord, asyncio.Future[CallRecord]]:
        """Place a call as :meth:`dial` does, after caps and budgets of all processes permit it.

        Returns its record at once, and a future of the same at its end. A refused call has its
        record written. Raises DialRefusedError with the rule, and ValueError as :meth:`dial`.

        Args:
            parent: the call in which it was requested.
        """
        asked = self._ask(to, route, trunk, caller_id)
        asked.record.parent_id = parent
        shared, record = self.shared, asked.record
        wanted = None
        if shared is not None and self.limiter.may_call(asked.uri):
            wanted = shared.wanted(record.call_id, asked.route, user_of(asked.uri))
        if shared is None or wanted is None:
            return self._dial(asked, variables or {})
        if rule := await shared.admit(wanted):
            log.warning("gateway.call_not_placed", to=asked.uri, rule=rule)
            self.reject(record, EndReason.REFUSED, 403, rule)
            raise DialRefusedError(rule)
        try:
            return self._dial(asked, variables or {})
        except BaseException:
            shared.release(record.call_id, unused=True)
            raise

    def _ask(self, to: str, route: str, trunk: str, caller_id: str) -> _Asked:
        """Return the call to place, with its URI, caller ID and record.

        Raises ValueError where there is no such route or trunk, or the address is none.
        """
        chosen = next((one for one in self.dialplan.routes if one.name == route), None)
        if chosen is None:
            raise ValueError(f"there is no route {route!r}")
        through = next((one for one in self.config.trunk if one.name == trunk), None)
        if trunk and through is None:
            raise ValueError(f"there is no trunk {trunk!r}")
        uri, caller_id = dial_uri(to, through), caller_id_of(caller_id, through)
        record = placed_record(uri, trunk, route, datetime.now(UTC))
        return _Asked(chosen, through, uri, caller_id, record)

    def _dial(
        self, asked: _Asked, variables: Mapping[str, str]
    ) -> tuple[CallRecord, asyncio.Future[CallRecord]]:
        """Check drain, ``sip.max_calls``, budgets and ``[outbound]`` in this order; place the call.

        Its outcome can be asked for from then on. Raises DialRefusedError, after the record of the
        refused call was written; so too for an exception here (500).
        """
        chosen, through, uri, caller_id, record = asked
        route = chosen.name
        chosen = self.choose(chosen, user_of(uri), record)
        try:
            if (rule := self.calls.no_room()) is not None:
                raise DialRefusedError(rule)
            if (budget := self.calls.spent(chosen, user_of(uri))) is not None:
                raise DialRefusedError(f"budget: {budget}")
            give_back = self.limiter.admit(uri)
        except DialRefusedError as refused:
            self.reject(record, EndReason.REFUSED, 403, str(refused))
            raise
        self._recent[record.call_id] = record
        try:
            return record, self._place(
                chosen, through, uri, record, variables, give_back, caller_id
            )
        except Exception as error:
            give_back()
            detail = f"{type(error).__name__}: {error}"
            log.exception("call.internal_error", call=record.call_id, route=route)
            self.reject(record, EndReason.INTERNAL_ERROR, 500, detail)
            raise DialRefusedError(f"a defect of the gateway: {detail}") from error

    def _place(
        self,
        route: Route,
        trunk: TrunkSettings | None,
        uri: str,
        record: CallRecord,
        variables: Mapping[str, str],
        give_back: Callable[[], None],
        shown: str,
    ) -> asyncio.Future[CallRecord]:
        """Start the call: its session first, then its leg; return the future of its record.

        Args:
            give_back: frees the admitted place, when the leg is dialled or the call ends before.
            shown: caller ID; "" for the trunk's own.
        """
        codecs = G711 if trunk is None else tuple(Codec(name) for name in trunk.codecs)
        record.leg.codec = codecs[0].value
        codec = session_codec(self.config, route, codecs[0])
        over: asyncio.Future[CallRecord] = asyncio.get_running_loop().create_future()
        dialled = False

        def finished(call: CallController) -> None:
            """Free the call's places, write its record, and set the future."""
            try:
                give_back()
                self.calls.finished(call)
            finally:
                if not over.done():
                    over.set_result(call.record)

        def dial(
            uri: str,
            handler: LegHandler,
            audio: CallAudio | None,
            codecs: list[Codec],
            trunk: str,
            by_pattern: bool = False,
            caller_id: str = "",
        ) -> Leg:
            nonlocal dialled
            if dialled:  # a B-leg
                return self.limiter.dial(uri, handler, audio, codecs, trunk, by_pattern, caller_id)
            dialled = True
            try:
                return self.limiter.dial_admitted(uri, handler, audio, codecs, trunk, shown)
            finally:
                give_back()  # taken before its session was opened; its leg is counted

        match = placed_match(route, uri, record.leg.trunk, variables, datetime.now(UTC))
        retry_after = sip_settings(self.config).retry_after
        plan, session = plans(self.config, match, codec, retry_after, self.tools, placed=True)
        call = CallController(
            OutboundTarget(uri, record.leg.trunk, codecs),
            *self.servers.inform(plan, session),
            record,
            self.pump,
            finished,
            dial=dial,
            permit_refer=self.limiter.permit_refer,
            permit_dial=self.limiter.permit if self.limiter.asks_first else None,
            tools=self.tools,
        )
        record.mark(0.0, "dial", to=uri, **({"caller_id": shown} if shown else {}))
        self.calls.begin(call)
        return over

    def recent(self, call_id: str) -> CallRecord | None:
        """Return the record of a placed call, of the last ``MAX_REMEMBERED``; None for others."""
        return self._recent.get(call_id)
