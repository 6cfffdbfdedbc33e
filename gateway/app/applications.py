# SPDX-License-Identifier: GPL-2.0-or-later
"""OpenAI's interfaces for applications: calls that they accept or reject, and ephemeral keys.

A route with ``[route.application]`` tells its application of a call by a signed webhook
(``realtime.call.incoming``, or ``live.transport.incoming``) while the INVITE waits. The
application accepts the call with a session, or rejects it; then it sees and steers the session
(:mod:`gateway.bridge.sideband`).
"""

from __future__ import annotations

import asyncio
import json
import re
import time
from collections.abc import Callable, Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

import httpx
import structlog

from gateway.api.backend import LIVE_ID, NoCallError, Refusal, Token, not_found
from gateway.api.client import RefusedError
from gateway.app.registry import CallRegistry
from gateway.audio import Codec
from gateway.bridge.call_controller import CallController
from gateway.bridge.legs import DialRefusedError
from gateway.bridge.sideband import CODEC_FIELDS, Follower, LiveSideband, Sideband, move_field
from gateway.call import inputs
from gateway.call.call_record import CallRecord
from gateway.call.tools.commands import ReferTo
from gateway.config import Config
from gateway.dialplan import Dialplan, Match, Route
from gateway.dialplan.route_sections import Application
from gateway.dialplan.route_session import LIVE_SET_BY_GATEWAY, judge_live
from gateway.dialplan.session_settings import judge_session
from gateway.ending import EndReason
from gateway.planning import session_plan
from gateway.realtime.dialects import GA
from gateway.realtime.session_object import plain_json
from gateway.records.webhooks import Endpoint, signature
from gateway.sip.leg import IgnoringHandler, Invite, Leg, LegEnd
from gateway.tasks import TaskSet, wait_any
from gateway.text import json_of, unicode_in
from gateway.tools import ToolError
from gateway.tools.http import read_answer

ATTEMPT_SECONDS = 5.0
PAUSES = (1.0, 2.0, 4.0, 8.0)
"""Seconds from one attempt to the next; later ones come after the last of these."""

SECRET_SECONDS = 10.0
"""Deadline of the provider's answer to a request for an ephemeral key."""

PRIVATE = frozenset({"authorization", "proxy-authorization"})
"""Header fields that stay here."""

_SPELLED = {"call-id": "Call-ID", "cseq": "CSeq", "mime-version": "MIME-Version"}
_TARGET = re.compile(r"(?i:tel|sips?):[^\s<>\"]{1,250}")

log = structlog.get_logger("application")


class Take(Protocol):
    """Makes a call of a leg, with the route and session of ``match``."""

    def __call__(
        self,
        leg: Leg,
        record: CallRecord,
        match: Match,
        sideband: Sideband | None = None,
        began: float | None = None,
    ) -> CallController: ...


class Refuse(Protocol):
    """Rejects an incoming call, and writes its record."""

    def __call__(
        self,
        leg: Leg,
        record: CallRecord,
        why: EndReason,
        detail: str = "",
        *,
        code: int = 0,
        at_ms: float | None = None,
    ) -> None: ...


@dataclass(eq=False)
class _PendingCall:
    """A call that an application decides on, from its webhook to the end of the call."""

    leg: Leg
    record: CallRecord
    match: Match
    take: Take
    began: float
    over: asyncio.Event = field(default_factory=asyncio.Event)
    """Set when application, caller or deadline have decided."""
    decision: tuple[str, str] | None = None
    """``accept`` or ``reject``, and its session or SIP code as JSON; None before a decision."""
    sideband: Sideband | None = None
    call: CallController | None = None


class Waiting(IgnoringHandler):
    """Handler of a leg whose INVITE waits for a decision; ``on_ended`` is called at its end."""

    def __init__(self, on_ended: Callable[[], None]) -> None:
        self._on_ended = on_ended

    def on_ended(self, end: LegEnd) -> None:
        """Call ``on_ended``: the caller gave up (CANCEL) before the decision."""
        del end
        self._on_ended()


@dataclass(eq=False)
class Applications:
    """Asks applications about calls, and carries out their decisions. Used on the event loop.

    Args:
        check_refer: raises DialRefusedError where a caller may not be sent to a URI, without
            counting it.
        is_live: whether the sessions of a route are Live sessions.
    """

    endpoints: Callable[[], Sequence[Endpoint]]
    calls: CallRegistry
    refuse: Refuse
    check_refer: Callable[[str], None]
    is_live: Callable[[Route], bool]
    _known: dict[str, _PendingCall] = field(default_factory=dict, init=False)
    _tasks: TaskSet = field(default_factory=TaskSet, init=False)
    _client: httpx.AsyncClient | None = field(default=None, init=False)

    async def stop(self) -> None:
        """Cancel webhooks and deadlines that are under way, and close the HTTP client."""
        await self._tasks.cancel()
        if self._client is not None:
            await self._client.aclose()

    def ask(
        self,
        leg: Leg,
        record: CallRecord,
        match: Match,
        settings: Application,
        take: Take,
        began: float | None = None,
    ) -> None:
        """Let the INVITE wait for its application's decision, and send the webhook.

        The wait ends with :meth:`accept`, :meth:`reject`, the caller's CANCEL, an operator's
        hang-up, the process's end, or ``settings.timeout`` (s): then ``settings.on_timeout`` says.

        Args:
            take: starts the call once it is accepted.
            began: when the INVITE came (loop's time, s); None for now.
        """
        endpoint = next(one for one in self.endpoints() if one.name == settings.webhook)
        call_id = f"{LIVE_ID if self.is_live(match.route) else 'rtc_'}{record.call_id}"
        began = asyncio.get_running_loop().time() if began is None else began
        asked = self._known[call_id] = _PendingCall(leg, record, match, take, began)
        leg.handler = Waiting(lambda: self._end(call_id, EndReason.CANCELLED, "by the caller", 487))
        self.calls.wait_for_decision(record, lambda why: self._end(call_id, why, ""))
        log.info("application.asked", call=record.call_id, application=settings.webhook)
        self._tasks.spawn(self._send(call_id, asked, endpoint), f"application {call_id}")
        self._tasks.spawn(self._wait(call_id, asked, settings), f"decision {call_id}")

    def knows(self, call_id: str) -> bool:
        """Whether a call that waits or was accepted has this id (``rtc_…`` or ``live_…``).

        False for calls that are over, and for those begun without their application.
        """
        return call_id in self._known

    # ---- what the application does

    def accept(self, token: Token, call_id: str, session: Any) -> None:
        """Start a call that waits, with this session object in place of the route's.

        Nothing if this repeats the acceptance. Raises Refusal: 404, 400 where it was decided
        otherwise or the session is not possible, 500 where the call cannot be started.
        """
        asked = self._named(token, call_id)
        if not self._first(asked, "accept", session):
            return
        live = call_id.startswith(LIVE_ID)
        given = _checked(session, live)
        asked.decision = ("accept", _text(session))
        model = str(session.get("model") or "")
        route = asked.match.route.with_session(given, model, live=live)
        asked.record.explanation.append(f"application: {token.name} accepted it")
        sideband = (LiveSideband if live else Sideband)(lambda: self._forget(call_id))
        asked.sideband = sideband
        self._begin(asked, replace(asked.match, route=route), sideband)
        if asked.call is None:
            raise Refusal(500, "internal_error", "the gateway's log says why")
        plan = asked.call.session_plan
        own = {tool.get("name") for tool in _tools_of(given, live)}
        offered = _tools_of(plan.live_settings if live else plan.settings, live)
        sideband.tools = [dict(tool) for tool in offered if tool.get("name") not in own]
        sideband.act, call = asked.call.act, asked.call
        sideband.hang_up = lambda: call.feed(inputs.HangupRequested())
        log.info("application.accepted", call=asked.record.call_id, who=token.name)

    def reject(self, token: Token, call_id: str, code: int) -> None:
        """Reject the INVITE of a call that waits, with SIP ``code``; nothing if this repeats it.

        Raises Refusal: 404, or 400 where it was decided otherwise.
        """
        asked = self._named(token, call_id)
        if self._first(asked, "reject", code):
            asked.decision = ("reject", _text(code))
            asked.record.explanation.append(f"application: {token.name} rejected it with {code}")
            log.info("application.rejected", call=asked.record.call_id, who=token.name, code=code)
            self._end(call_id, EndReason.APPLICATION, f"{token.name} said {code}", code)

    def refer(self, token: Token, call_id: str, target: str) -> None:
        """Transfer an accepted call blindly (REFER) to a tel or sip URI that ``[outbound]`` allows.

        Raises Refusal: 404; 400 where it was not accepted, is not up or the URI is none; 403.
        """
        call = self._accepted(self._named(token, call_id))
        if not _TARGET.fullmatch(target):
            raise Refusal(400, "invalid_value", "target_uri is no tel or sip URI", "target_uri")
        if not call.talking:
            raise Refusal(400, "call_not_answered", "the call is not up yet, or is being ended")
        try:
            self.check_refer(target)
        except DialRefusedError as refused:
            raise Refusal(403, "target_not_allowed", str(refused), "target_uri") from None
        log.info("application.refer", call=call.record.call_id, who=token.name, to=target)
        call.act(ReferTo(target))

    def hang_up(self, token: Token, call_id: str) -> None:
        """End an accepted call with BYE. Raises Refusal: 404, or 400 where it was not accepted."""
        call = self._accepted(self._named(token, call_id))
        log.info("application.hangup", call=call.record.call_id, who=token.name)
        call.feed(inputs.HangupRequested())

    def sideband(self, token: Token, call_id: str) -> tuple[Sideband, Follower]:
        """Attach a follower to an accepted call's session; return its sideband and the follower.

        Raises Refusal: 404, also for a call that was not accepted yet.
        """
        asked = self._named(token, call_id)
        if asked.sideband is None:
            raise not_found(call_id)
        return asked.sideband, asked.sideband.attach()

    def _named(self, token: Token, call_id: str) -> _PendingCall:
        """Return the call of this id. Raises Refusal (404): unknown, or on a route of others.

        A token without routes may name calls of every route.
        """
        asked = self._known.get(call_id)
        if asked is None or (token.routes and asked.match.route.name not in token.routes):
            raise not_found(call_id)
        return asked

    def _first(self, asked: _PendingCall, what: str, told: Any) -> bool:
        """Return whether this is the first decision on a call, False where it repeats that one.

        Raises Refusal (400) for another one, and where caller or deadline have decided.
        """
        if asked.decision == (what, _text(told)):
            return False
        if asked.decision is not None or asked.over.is_set():
            raise Refusal(400, "call_already_decided", "this call was decided already")
        return True

    @staticmethod
    def _accepted(asked: _PendingCall) -> CallController:
        """Return the call that an application has accepted. Raises Refusal (400)."""
        if asked.call is None:
            raise Refusal(400, "call_not_accepted", "this call was not accepted yet")
        return asked.call

    # ---- the call that waits

    def _begin(self, asked: _PendingCall, match: Match, sideband: Sideband | None) -> None:
        """End the wait, and start the call with the session of ``match``.

        One that cannot be started is refused with 500, and ``asked.call`` stays None.
        """
        asked.over.set()
        self.calls.decided(asked.record.call_id)
        try:
            asked.call = asked.take(asked.leg, asked.record, match, sideband, asked.began)
        except Exception as error:
            log.exception("call.internal_error", call=asked.record.call_id)
            detail = f"{type(error).__name__}: {error}"
            named = next(key for key, one in self._known.items() if one is asked)
            self._end(named, EndReason.INTERNAL_ERROR, detail)

    def _end(self, call_id: str, why: EndReason, detail: str, code: int = 0) -> None:
        """Reject the INVITE of a call that waits, and write its record; then its id is unknown.

        Nothing for an id that is not known. ``code``: of the response; 0 for that of ``why``.
        """
        asked = self._known.pop(call_id, None)
        if asked is None or asked.call is not None:
            return
        asked.over.set()
        self.calls.decided(asked.record.call_id)
        at_ms = (asyncio.get_running_loop().time() - asked.began) * 1000
        self.refuse(asked.leg, asked.record, why, detail, code=code, at_ms=at_ms)

    def _forget(self, call_id: str) -> None:
        """Forget the id of a call: it is over, or goes on without its application."""
        self._known.pop(call_id, None)

    async def _wait(self, call_id: str, asked: _PendingCall, settings: Application) -> None:
        """Wait ``settings.timeout`` s for a decision; without one, act as ``on_timeout`` says.

        ``reject``: the INVITE is rejected; else the call starts with the route's own session.
        """
        await wait_any(settings.timeout, asked.over)
        if asked.over.is_set():
            return
        told = f"no decision of {settings.webhook} within {settings.timeout:g} s"
        asked.record.explanation.append(told)
        log.warning(
            "application.silent",
            call=asked.record.call_id,
            application=settings.webhook,
            then=settings.on_timeout,
        )
        if settings.on_timeout == "reject":
            self._end(call_id, EndReason.REFUSED, told)
            return
        route = asked.match.route.model_copy(update={"application": None})
        self._begin(asked, replace(asked.match, route=route), None)
        self._forget(call_id)

    async def _send(self, call_id: str, asked: _PendingCall, endpoint: Endpoint) -> None:
        """POST the signed webhook, again after ``PAUSES`` until a 2xx or a decision on the call.

        Each attempt has the same id, a new timestamp and ``ATTEMPT_SECONDS``; failures are logged.
        """
        if self._client is None:
            # Calls are limited, and requests that are cancelled in httpcore's queue for connections
            # would leave some of them in its pool for ever.
            self._client = httpx.AsyncClient(
                timeout=ATTEMPT_SECONDS,
                follow_redirects=False,
                trust_env=False,
                limits=httpx.Limits(max_connections=None, max_keepalive_connections=20),
            )
        message_id = f"wh_{asked.record.call_id}"
        body = json.dumps(
            unicode_in(_event(call_id, asked.leg.invite)), ensure_ascii=False
        ).encode()
        tries = 0
        while not asked.over.is_set():
            now = int(time.time())
            headers = {
                **endpoint.headers,
                "content-type": "application/json",
                "user-agent": "sip-realtime-gateway",
                "webhook-id": message_id,
                "webhook-timestamp": str(now),
                "webhook-signature": signature(endpoint.secrets, message_id, now, body),
            }
            try:
                async with asyncio.timeout(ATTEMPT_SECONDS):
                    async with self._client.stream(
                        "POST", endpoint.url, content=body, headers=headers
                    ) as answer:  # without its body
                        error = "" if answer.is_success else f"HTTP {answer.status_code}"
            except (httpx.HTTPError, httpx.InvalidURL, TimeoutError, OSError) as failed:
                error = f"{type(failed).__name__}: {failed}"
            if not error:
                return
            log.warning("application.webhook_failed", call=asked.record.call_id, error=error)
            await wait_any(PAUSES[min(tries, len(PAUSES) - 1)], asked.over)
            tries += 1


def _event(call_id: str, invite: Invite) -> Mapping[str, Any]:
    """Return the webhook's event, with the header fields of the INVITE but ``PRIVATE`` ones.

    ``realtime.call.incoming``, or ``live.transport.incoming`` for an id of the Live API.
    """
    headers = [
        {"name": _SPELLED.get(name, name.title()), "value": value}
        for name, values in invite.headers.items()
        if name not in PRIVATE
        for value in values
    ]
    kind, data = "realtime.call.incoming", {"call_id": call_id, "sip_headers": headers}
    if call_id.startswith(LIVE_ID):
        kind = "live.transport.incoming"
        data = {"type": "sip", "session_id": call_id, "sip_headers": headers}
    return {
        "object": "event",
        "id": f"evt_{invite.call_id}",
        "type": kind,
        "created_at": int(time.time()),
        "data": data,
    }


def _checked(session: Any, live: bool) -> dict[str, Any]:
    """Return an application's session object as a route has it: without type, model and codecs.

    Raises Refusal (400) with ``param`` for a wrong type, or a value that the API does not allow;
    unknown fields pass.
    """
    kind, prefix = ("live", "session.") if live else ("realtime", "")
    if not isinstance(session, dict) or session.get("type") != kind:
        raise Refusal(400, "invalid_value", f'type must be "{kind}"', f"{prefix}type")
    if not isinstance(session.get("model", None if live else ""), str):
        raise Refusal(400, "invalid_type", "model must be a text", f"{prefix}model")
    given = deepcopy(session)
    settled = tuple(LIVE_SET_BY_GATEWAY) if live else (("model",), *CODEC_FIELDS)
    for path in (("type",), *settled):
        move_field(given, tuple(str(step) for step in path))
    for finding in judge_live(given) if live else judge_session(given):
        if not finding.unknown:
            where = prefix + ".".join(str(step) for step in finding.path)
            raise Refusal(400, "invalid_value", f"{where}: {finding.message}", where)
    return given


def _tools_of(session: Mapping[str, Any], live: bool) -> Sequence[Mapping[str, Any]]:
    """Return the tools of a session object; of a Live one, those of its delegation."""
    holder = (session.get("delegation") or {}).get("responses") if live else session
    return (holder or {}).get("tools") or ()


def _text(value: Any) -> str:
    """Return a value as JSON with sorted keys, to compare decisions."""
    return json.dumps(value, sort_keys=True)


async def client_secret(
    config: Config, dialplan: Dialplan, request: Mapping[str, Any]
) -> Mapping[str, Any]:
    """Create an ephemeral key at the provider, for a browser and the session of a route.

    The answer is the provider's. The session is the route's, without audio formats and without
    functions that run here. Raises NoCallError where there is no such route, and RefusedError for a
    server of another dialect, no answer within ``SECRET_SECONDS``, or the provider's refusal.

    Args:
        request: ``route`` (its name), ``expires_after`` as the provider's API has it.
    """
    route = next((one for one in dialplan.routes if one.name == request.get("route")), None)
    if route is None:
        raise NoCallError(f"there is no route {request.get('route')!r}")
    plan = session_plan(config, route, Codec.PCMU)
    if plan.endpoint.dialect is not GA:
        raise RefusedError("the route's server has no client secrets")
    session = deepcopy(dict(plan.settings))
    for way in ("input", "output"):  # a browser negotiates its own
        session.get("audio", {}).get(way, {}).pop("format", None)
    own = route.session.get("tools")
    session.pop("tools", None)
    if own:  # the gateway's tools are run in calls of the gateway only
        session["tools"] = own
    body = {
        "expires_after": request.get("expires_after"),
        "session": {"type": "realtime", "model": plan.endpoint.model, **session},
    }
    url = plan.endpoint.shown.replace("ws", "http", 1) + "/client_secrets"
    headers = {**plan.endpoint.request_headers(), "Accept-Encoding": "gzip, deflate"}
    try:
        async with (
            asyncio.timeout(SECRET_SECONDS),
            httpx.AsyncClient(trust_env=False, timeout=SECRET_SECONDS) as client,
            client.stream("POST", url, json=plain_json(body), headers=headers) as answer,
        ):
            text, _whole = await read_answer(answer)
            found = json_of(text)
    except (httpx.HTTPError, TimeoutError, ValueError, ToolError) as error:
        log.warning("operator.client_secret_failed", error=type(error).__name__)
        raise RefusedError("the provider gave no answer") from None
    if not answer.is_success or not isinstance(found, dict) or "value" not in found:
        told = plan.endpoint.redact(text)[:500]
        log.warning("operator.client_secret_failed", status=answer.status_code, error=told)
        raise RefusedError(f"the provider refused it: {answer.status_code}")
    return found
