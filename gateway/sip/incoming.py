# SPDX-License-Identifier: GPL-2.0-or-later
"""What comes in: whose it is, under which account pjsua answers it, and the leg of its call."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pjsua2 as pj
import structlog

from gateway.addresses import bracketed
from gateway.audio.g711 import Codec
from gateway.call.ending import refusal_code
from gateway.sip import descriptors, library
from gateway.sip.ingress.access_control import AccessControl, party_of
from gateway.sip.ingress.capacity import Admission, Arrivals
from gateway.sip.leg import Leg, SipCall
from gateway.sip.messages.headers import (
    request_uri_of,
    text_of,
)
from gateway.sip.messages.identity import invite_of
from gateway.sip.messages.sdp import Media, Objection, offered_codecs
from gateway.sip.signalling import PASS, Decision, Received, Signalling
from gateway.sip.trunks.matching import Attribution
from gateway.sip.types import Invite, Refused

if TYPE_CHECKING:
    from gateway.sip.agent import UserAgent
    from gateway.sip.trunks.accounts import Account

log = structlog.get_logger("sip")


_PROVEN = ("registration", "authentication")
"""Only who was told something of us can be found so."""


class Incoming:
    """Used on the SIP thread, while pjsua looks at a request."""

    def __init__(self, agent: UserAgent) -> None:
        self._agent = agent

    def screening(self, draining: Callable[[], bool]) -> tuple[Signalling, AccessControl]:
        """Both looks at requests before pjsua, ready to be opened."""
        agent, settings = self._agent, self._agent.settings

        def full() -> bool:
            calls = library.calls()
            return (
                calls >= agent.capacity
                or not agent.has_rtp_port(calls)
                or not descriptors.are_left(descriptors.SPARE)
            )

        admission = Admission(
            full=full,
            draining=draining,
            arrivals=Arrivals(library.media_handles(), agent.capacity),
            retry_after=settings.retry_after,
            on_refused=lambda message: agent.tell_refused(
                Refused(
                    invite_of(message, ""),
                    503,
                    "no call of the library, RTP port or descriptor is free",
                )
            ),
        )
        screen = AccessControl(
            settings.access,
            agent.trunks,
            settings.retry_after,
            agent.calls.of,
            0 if settings.session_timers == "off" else settings.session_min,
            agent.descriptions,
            self._on_objection,
            lambda connection: (
                () if agent.accounts is None else agent.accounts.names_of(connection)
            ),
            agent.challenges,
        )

        def on_request(received: Received) -> Decision:
            decision = admission.decide(received)
            return decision if decision != PASS else screen.on_request(received)

        return Signalling(screen.on_message, on_request, screen.on_unread), screen

    def _on_objection(self, received: Received, objection: Objection) -> None:
        """The offer of a new INVITE cannot be taken; it has its answer."""
        message = received.message.decode("utf-8", "replace")
        invite = self.facts_of(message, f"{bracketed(received.source)}:{received.port}")
        self._agent.tell_refused(
            Refused(invite, refusal_code(objection.why), objection.text, objection.why)
        )

    def account_for(self, rdata: Any) -> Account:
        """The account of an incoming request. The laws that its call may speak are set, too."""
        assert self._agent.accounts is not None
        message, source = text_of(rdata.wholeMsg), text_of(rdata.srcAddress)
        found = self._attribute(message, source)
        trunk = None if found is None else found.trunk
        offered = self._offered(message)
        if trunk is not None and offered is not None:
            self._agent.offer([codec for codec in trunk.codecs if codec in offered][:1])
        elif trunk is not None:
            self._agent.offer(list(trunk.codecs))
        else:
            self._agent.offer(list(Codec))
        current = self._current()
        if current is None:
            return self._agent.accounts.of(trunk)
        return self._agent.accounts.of(trunk, current.local, current.transport)

    def _attribute(self, message: str, source: str) -> Attribution | None:
        screen = self._agent.screen
        if screen is not None and screen.current is not None:
            return screen.found
        host, _, port = source.rpartition(":")
        return self._agent.trunks.attribute(host, int(port or 0), False, request_uri_of(message))

    def _offered(self, message: str) -> tuple[Codec, ...] | None:
        """The laws of the line that is answered; those of the message where none was chosen."""
        screen = self._agent.screen
        if screen is not None and screen.current is not None and isinstance(screen.chosen, Media):
            return screen.chosen.codecs
        return offered_codecs(message)

    def facts_of(self, message: str, source: str) -> Invite:
        """The facts of an INVITE that pjsua looks at, with the trunk that it belongs to."""
        found = self._attribute(message, source)
        current = self._current()
        how = "" if found is None else found.how
        invite = replace(
            invite_of(message, source),
            transport="" if current is None else current.transport,
            there=(current is not None and current.reliable) or how in _PROVEN,
            offered=self._offered(message),
        )
        if found is None:
            return invite
        laws = invite.offered
        return replace(
            invite,
            trunk=found.trunk.name,
            attributed_by=found.how,
            laws=found.trunk.codecs,
            offered=None if laws is None else tuple(c for c in found.trunk.codecs if c in laws),
        )

    def on_call(self, account: Account, prm: Any) -> None:
        """An INVITE that pjsua has made a call of: announce its leg.

        Where something of ours raises, the call ends with 500, and is told of as refused.
        """
        call = SipCall(self._agent, account, prm.callId)
        try:
            self._announce(call, text_of(prm.rdata.wholeMsg), text_of(prm.rdata.srcAddress))
        except Exception as error:
            log.exception("sip.callback_failed", callback="onIncomingCall", call=call.name)
            if not call.party:
                self._agent.calls.hold(call, "?")
            call.fail()
            info = call.getInfo()
            # Not by facts_of, which may be what raised.
            invite = Invite(
                sip_call_id=text_of(info.callIdString),
                to_uri=text_of(info.localUri),
                from_uri=text_of(info.remoteUri),
                to_user="",
                from_user="",
                from_name="",
                source=text_of(prm.rdata.srcAddress),
                headers={},
                offered=None,
            )
            self._agent.tell_defect(Refused(invite, 500, f"{type(error).__name__}: {error}"))

    def _announce(self, call: SipCall, message: str, source: str) -> None:
        found = self._attribute(message, source)
        invite = self.facts_of(message, source)
        self._agent.on_arrival(invite)
        host = invite.source.rpartition(":")[0].strip("[]")
        self._agent.calls.hold(call, party_of(found, host))
        leg = Leg(self._agent, invite)
        call.leg = leg
        leg.bind(call)
        self._agent.tell_invite(leg)

    def _current(self) -> Received | None:
        return None if self._agent.screen is None else self._agent.screen.current


class Endpoint(pj.Endpoint):  # type: ignore[misc]
    """What pjsua asks and tells outside of calls."""

    def __init__(self, agent: UserAgent, incoming: Incoming) -> None:
        super().__init__()
        self._agent = agent
        self._incoming = incoming

    def onRejectedIncomingCall(self, prm: Any) -> None:  # noqa: N802
        """pjsua refused an INVITE by itself."""
        try:
            message = text_of(prm.rdata.wholeMsg)
            invite = (
                self._incoming.facts_of(message, text_of(prm.rdata.srcAddress)) if message else None
            )
            self._agent.tell_refused(Refused(invite, int(prm.statusCode), text_of(prm.reason)))
        except Exception:
            log.exception("sip.callback_failed", callback="onRejectedIncomingCall")

    def onSelectAccount(self, prm: Any) -> None:  # noqa: N802
        """pjsua asks whose a request outside of a dialog is, before it makes anything of it."""
        try:
            prm.accountIndex = self._incoming.account_for(prm.rdata).getId()
        except Exception:
            log.exception("sip.callback_failed", callback="onSelectAccount")

    def onTransportState(self, prm: Any) -> None:  # noqa: N802
        """A connection stands, or has ended."""
        try:
            if self._agent.accounts is not None:
                self._agent.accounts.on_connection(prm)
            if self._agent.screen is not None:
                self._agent.on_connection(prm)
        except Exception:
            log.exception("sip.callback_failed", callback="onTransportState")
