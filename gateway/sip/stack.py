# SPDX-License-Identifier: GPL-2.0-or-later
"""pjsua2 while it runs: made, polled and ended on the SIP thread."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import replace

import pjsua2 as pj
import structlog

from gateway.addresses import Names, host_of
from gateway.audio import G711, Codec
from gateway.sip import SipSettings, Trunk, library
from gateway.sip.access_control import AccessControl
from gateway.sip.accounts import Accounts, header_vector
from gateway.sip.active_calls import QUALITY_SECONDS, ByeTracker, Calls, CallServices
from gateway.sip.browser_leg import BrowserCall, BrowserEnd
from gateway.sip.call_audio import PortPool
from gateway.sip.conference import Sounds
from gateway.sip.incoming import CapacityCheck, Endpoint, Incoming, InviteCallbacks, RecentInvites
from gateway.sip.leg import Leg, LegEnd
from gateway.sip.library import CodecOrder, LogWriter, SipThread, configure_media, endpoint_config
from gateway.sip.messages.headers import text_of
from gateway.sip.signalling import (
    PASS,
    Decision,
    MessageLog,
    Negotiation,
    ReceivedMessage,
    Signalling,
)
from gateway.sip.sip_call import SipCall
from gateway.sip.transfer import ReferQueue
from gateway.sip.transports import Listeners, RtpPortQuarantine
from gateway.sip.trunks import Challenges, OptionsPinger, Trunks

log = structlog.get_logger("sip")

_HANG_UP_SECONDS = 2.0
_UNAVAILABLE = 503
_OPERATIONS = {
    pj.PJMEDIA_CONF_OP_ADD_PORT: "add",
    pj.PJMEDIA_CONF_OP_REMOVE_PORT: "remove",
    pj.PJMEDIA_CONF_OP_CONNECT_PORTS: "connect",
    pj.PJMEDIA_CONF_OP_DISCONNECT_PORTS: "disconnect",
}
"""Of the conference bridge."""


class Stack:
    """The library's endpoint, and all that lives as long as it: listeners, accounts, access
    control, calls. Made and used on the SIP thread.

    Raises AgentError and ``pj.Error`` when something cannot be had; the library is destroyed then.
    """

    def __init__(
        self,
        settings: SipSettings,
        trunks: Trunks,
        thread: SipThread,
        calls: Calls,
        names: Names,
        pool: PortPool,
        callbacks: InviteCallbacks,
        messages: MessageLog,
        on_log: Callable[[str], None] | None = None,
    ) -> None:
        self.draining = False
        """Answer OPTIONS with 503, so that dispatchers send their calls elsewhere."""
        self.unready = False
        """The same, until what calls need is there again."""
        self._trunks = trunks
        self._callbacks = callbacks
        self._browsers: set[BrowserCall] = set()
        """Calls of pages, which are none of the library's."""
        self._next_second = 0.0
        self._left = ExitStack()
        """What is left to do when the library is gone: destructors would call into nothing."""
        self._left.callback(pool.abandon)
        self._left.callback(calls.each, lambda call: call.this.disown())
        self._endpoint, writer = Endpoint(), LogWriter(on_log)
        self._left.callback(lambda: [held.this.disown() for held in (self._endpoint, writer)])
        try:
            pj.answerNamesFromTable()
            library.silence_log()
            self._endpoint.libCreate()
            config = endpoint_config(settings, writer, messages=on_log is not None)
            configure_media(config.medConfig, settings)
            self._endpoint.libInit(config)
            self._endpoint.audDevManager().setNullDev()
            pj.nativeWatchBridge()
            codecs = CodecOrder(self._endpoint)
            self.listeners = Listeners(self._endpoint, settings)
            self.listeners.open()
            self._open(settings, thread, calls, names, pool, codecs, callbacks, messages)
        except BaseException:
            self._destroy()
            raise

    def _open(
        self,
        settings: SipSettings,
        thread: SipThread,
        calls: Calls,
        names: Names,
        pool: PortPool,
        codecs: CodecOrder,
        callbacks: InviteCallbacks,
        messages: MessageLog,
    ) -> None:
        """Make accounts, access control, signalling and the services of calls, and start the
        library, which takes messages from the end of this on."""
        trunks, capacity = self._trunks, library.capacity()
        low, high = settings.rtp_ports
        sounds, rtp_ports = Sounds(), RtpPortQuarantine((high - low + 1) // 2)
        self._left.callback(sounds.disown)
        self._left.callback(rtp_ports.close)
        challenges = Challenges(trunks, calls.challenged)
        self.accounts = Accounts(
            settings,
            trunks,
            self.listeners.name,
            self.listeners.bound,
            lambda account, prm: incoming.on_call(account, prm),
            challenges.registered,
        )
        self._left.callback(self.accounts.disown)
        self.accounts.open()
        self._endpoint.libStart()
        negotiation = Negotiation(settings)
        self.access = AccessControl(
            settings.access,
            trunks,
            settings.retry_after,
            calls.of,
            calls.unacknowledged,
            calls.is_established,
            0 if settings.session_timers == "off" else settings.session_min,
            negotiation,
            lambda received, rejection: incoming.on_sdp_rejected(received, rejection),
            self.accounts.names_of,
            challenges,
            lambda message, known_only: self.signalling.receive_instead(
                message, known_only=known_only
            ),
            lambda headers: refers.delays(headers),
        )

        def full() -> bool:
            count = library.calls()
            return (
                count >= capacity
                or not rtp_ports.make_way(count)
                or not library.descriptors_left(library.SPARE_DESCRIPTORS)
            )

        capacity_check = CapacityCheck(
            full=full,
            unready=lambda: self.draining or self.unready,
            arrivals=RecentInvites(library.media_handles(), capacity),
            retry_after=settings.retry_after,
            on_refused=lambda message: incoming.on_full(message),
        )

        def on_request(received: ReceivedMessage) -> Decision:
            decision = capacity_check.decide(received)
            return decision if decision != PASS else self.access.on_request(received)

        self.signalling = Signalling(
            self.access.on_message,
            on_request,
            self.access.on_unread,
            settings.retry_after,
            messages,
        )
        self._left.callback(self.signalling.close)
        refers = ReferQueue(thread, calls, self.signalling)
        self.services = CallServices(
            thread=thread,
            calls=calls,
            byes=ByeTracker(self.signalling),
            codecs=codecs,
            names=names,
            negotiation=negotiation,
            pool=pool,
            sounds=sounds,
            rtp_ports=rtp_ports,
            packet_wait_ms=settings.packet_wait_ms,
        )
        incoming = Incoming(self.services, self.access, self.accounts, trunks, callbacks)
        self.pinger = OptionsPinger(
            self.signalling,
            trunks.all,
            lambda trunk: int(self.accounts.of(trunk).getId()),
            self.accounts.on_reachable,
        )
        self._endpoint.incoming = incoming
        self.signalling.open()

    def poll(self, ms: int) -> None:
        """Handle the library's events; wait for one at most ``ms``."""
        self._endpoint.libHandleEvents(ms)

    def tick(self) -> None:
        """Run the periodic work of all parts, after every turn of the thread and outside of
        callbacks: each turn G.711 for the next SDP, release of ended calls, freed RTP ports, BYEs,
        SRTP keys; once a second the rest. No REGISTER while draining."""
        services, now = self.services, time.monotonic()
        services.codecs.offer(list(G711))  # SDP of what came in this turn has been made
        services.calls.release_all()
        services.rtp_ports.retry(now)
        services.byes.tick(now)
        services.calls.poll_keys(now)
        if now < self._next_second:
            return
        self._next_second = now + QUALITY_SECONDS
        self._see_bridge()
        services.calls.poll_quality()
        for page in tuple(self._browsers):
            page.run(BrowserCall.poll_quality)
        services.rtp_ports.tick(now)
        self.signalling.tick()
        self.access.tick(now)
        self.access.close_idle(now, pj.nativeShutConnection)
        if not self.draining:
            self.accounts.tick(now)
        self.pinger.tick(now)

    def _see_bridge(self) -> None:
        """Log failed operations of the conference bridge, and end the calls whose connection could
        not be made: a page's with 503, a SIP call by :meth:`SipCall.fail`."""
        lost = set[int]()
        for operation, source, sink, status in pj.nativeTakeBridgeFailures():
            name = _OPERATIONS.get(operation, str(operation))
            log.error("sip.bridge_failed", operation=name, source=source, sink=sink, status=status)
            if name == "connect":
                lost |= {source, sink}
        if lost:
            self.services.calls.fail_at(lost)
            for page in tuple(self._browsers):
                if any(page.link.at(slot) for slot in lost):
                    page.run(lambda one: one.finish(_UNAVAILABLE, {}))

    def drain(self) -> None:
        """Ask for no more calls: answer OPTIONS with 503, and unregister at all trunks, for
        good."""
        self.draining = True
        self.accounts.unregister()

    def take_browser(self, end: BrowserEnd) -> None:
        """Announce the leg of a page in a browser as if its INVITE had come: ``on_arrival`` at
        once, ``on_invite`` on the event loop."""
        self._callbacks.on_arrival(end.leg.invite)
        self._browsers.add(BrowserCall(self.services, end, self._browsers.discard))
        self.services.thread.to_loop(self._callbacks.on_invite, end.leg)

    def place(
        self,
        leg: Leg,
        uri: str,
        codecs: list[Codec],
        trunk: Trunk | None,
        caller_id: str,
        headers: Mapping[str, str],
    ) -> None:
        """Place the call of a leg; its progress is reported to the leg's handler, also what cannot
        be sent: as an end with 503.

        The trunk's headers are added only where the call goes to the trunk's own servers.

        Args:
            codecs: to offer, in their order.
            trunk: whose account, identity and headers it has; None for none.
            caller_id: user of From, in place of the trunk's.
            headers: added to the INVITE; they take the place of the trunk's of the same name.
        """
        services = self.services
        call: SipCall | None = None
        try:
            services.codecs.offer(codecs)
            call = SipCall(services, self.accounts.of(trunk))
            call.bind(leg)
            services.calls.add(call, "" if trunk is None else f"trunk {trunk.name}")
            param = pj.CallOpParam(True)
            param.opt.audioCount, param.opt.videoCount = 1, 0
            if trunk is not None:
                host = host_of(uri)
                if self._trunks.leads_to(trunk, host, services.names.addresses(host)):
                    headers = {**trunk.headers, **headers}
            if trunk is not None or caller_id:
                param.txOption.localUri = self.accounts.from_uri(trunk, caller_id)
            param.txOption.headers = header_vector(headers)
            call.makeCall(uri, param)
            leg.invite = replace(leg.invite, sip_call_id=text_of(call.getInfo().callIdString))
        except Exception as error:
            # pjsip may have told of the end already, as of a call that was not answered.
            why = text_of(error.reason) if isinstance(error, pj.Error) else type(error).__name__
            log.warning("sip.not_sent", to=uri[:200], error=why)
            if call is not None:
                call.end(_UNAVAILABLE, why)
            else:
                end = LegEnd(_UNAVAILABLE, why, method="", reason_header="", local=False)
                leg.tell(lambda handler: handler.on_ended(end))
        finally:
            services.codecs.offer(list(G711))

    def close(self) -> None:
        """Hang up all calls with what their state allows, unregister and wait for that (2 s), then
        for the calls' ends (2 s), and destroy the library."""
        try:
            self._endpoint.hangupAllCalls()
            for page in tuple(self._browsers):
                page.run(lambda one: one.finish(_UNAVAILABLE, {}))
            self.accounts.unregister()
            self.accounts.wait_unregistered(lambda: self.poll(10))
            deadline = time.monotonic() + _HANG_UP_SECONDS
            while self.services.calls and time.monotonic() < deadline:
                self.poll(10)
                self.tick()
            left = len(self.services.pool.connections)
            if left and not self.services.calls:
                log.error("sip.connections_left", connections=left)
            self.accounts.shut_down()
        except pj.Error as error:
            log.warning("sip.stop_failed", error=error.info())
        finally:
            self._destroy()

    def _destroy(self) -> None:
        """Destroy the library, and release what lived as long as it. An error of the library is
        logged."""
        try:
            self._endpoint.libDestroy()
        except pj.Error as error:
            log.warning("sip.stop_failed", error=error.info())
        finally:
            self._left.close()
