# SPDX-License-Identifier: GPL-2.0-or-later
"""The SIP user agent: answers and places calls. One a process, since pjsip's endpoint is."""

from __future__ import annotations

import asyncio
import socket
import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pjsua2 as pj
import structlog

from gateway.addresses import host_of
from gateway.audio.g711 import Codec
from gateway.sip import library
from gateway.sip.bye_tracking import ByeTracker
from gateway.sip.calls import QUALITY_SECONDS, Calls
from gateway.sip.incoming import Endpoint, Incoming
from gateway.sip.ingress.access_control import AccessControl
from gateway.sip.leg import Leg, SipCall
from gateway.sip.library import LogWriter, configure_media, endpoint_config, only_g711
from gateway.sip.media.ports import CallAudio, PortPool, beat_fd, clear_beat
from gateway.sip.media.rtp_port_quarantine import DrainingPorts
from gateway.sip.media.sounds import Sounds
from gateway.sip.messages.headers import text_of, user_of
from gateway.sip.names import Names
from gateway.sip.negotiation import Descriptions
from gateway.sip.settings import SipSettings, Trunk
from gateway.sip.signalling import Signalling
from gateway.sip.thread import SipThread
from gateway.sip.transports import Listeners
from gateway.sip.trunks.accounts import Accounts, header_vector
from gateway.sip.trunks.challenges import Challenges
from gateway.sip.trunks.matching import Trunks
from gateway.sip.trunks.options_ping import OptionsPinger
from gateway.sip.types import AgentError as AgentError
from gateway.sip.types import Invite, LegEnd, LegHandler, Refused

log = structlog.get_logger("sip")

_UNREADABLE = (400, 500)
"""What pjsua says to an INVITE or a description that it cannot make sense of."""

START_SECONDS = 15.0
STOP_SECONDS = 6.0
"""Deadline for the library's own end; a BYE without an answer is given up before that."""

_HANG_UP_SECONDS = 2.0

_UNAVAILABLE = 503
_TERMINATED = 487
"""Of a call that cannot be sent anywhere (RFC 3261 section 8.1.3.1 has a transport error so)."""


class UserAgent:
    """Owns the endpoint, the SIP thread, the calls and their media ports.

    Args:
        settings: how to run.
        on_invite: told, on the event loop, of each new leg that somebody dialled to us; it has to
            set ``leg.handler`` before it returns.
        on_refused: told of each INVITE that was refused below the application.
        on_caller_audio: called on the event loop after each beat that brought caller audio.
        on_arrival: called on the SIP thread with each INVITE that pjsua takes, before anything is
            sent; it may not wait.
    """

    def __init__(
        self,
        settings: SipSettings,
        *,
        on_invite: Callable[[Leg], None],
        on_refused: Callable[[Refused], None],
        on_caller_audio: Callable[[], None],
        on_arrival: Callable[[Invite], None] = lambda _invite: None,
    ) -> None:
        self.on_arrival = on_arrival
        self.settings = settings
        self.pool = PortPool()
        self.sounds = Sounds()
        self._on_caller_audio = on_caller_audio
        self.capacity = 0
        """Concurrent calls that the library carries; known once started."""
        self.addresses: tuple[str, ...] = ()
        """``transport:host:port`` of each listener, with the ports really bound."""
        self._on_invite = on_invite
        self._on_refused = on_refused
        self._loop: asyncio.AbstractEventLoop | None = None
        self._thread = SipThread(self._poll, self._housekeeping)
        self.calls = Calls()
        self.trunks = Trunks(settings.trunks)
        self.challenges = Challenges(self.trunks, self.calls.challenged)
        self.descriptions = Descriptions(settings)
        named = [host_of(one) for t in settings.trunks for one in (t.registrar, t.outbound_proxy)]
        # pjsip looks for our own address by the name of this machine, among others.
        named += [host_of(settings.stun_server), host_of(socket.gethostname())]
        self.names = Names(named)
        self._dialling: set[asyncio.Task[None]] = set()
        self.screen: AccessControl | None = None
        self.signalling: Signalling | None = None
        self.accounts: Accounts | None = None
        self.incoming = Incoming(self)
        self._probes: OptionsPinger | None = None
        self.byes: ByeTracker | None = None
        self.may_follow: Callable[[str], bool] = lambda _uri: True
        """Asked on the SIP thread before a REFER makes a call of ours."""
        low, high = settings.rtp_ports
        self._quiet_ports = DrainingPorts((high - low + 1) // 2)
        self._endpoint: Any = None
        self._listeners: Listeners | None = None
        self._draining = False
        self._offered: list[Codec] = []
        self._log_writer: Any = None
        self._next_quality = 0.0

    # ---- the event loop's side

    async def start(self) -> None:
        """Start listening. Raises AgentError, naming what could not be had."""
        self._loop = asyncio.get_running_loop()
        started: asyncio.Future[None] = self._loop.create_future()

        def settle(error: Exception | None) -> None:
            if started.done():
                return
            if error is None:
                started.set_result(None)
            else:
                started.set_exception(error)

        def first() -> None:
            try:
                self._create()
            except BaseException as error:
                text = error.info() if isinstance(error, pj.Error) else str(error)
                failure = error if isinstance(error, AgentError) else AgentError(text)
                self.to_loop(lambda: settle(failure))
                raise
            self.to_loop(lambda: settle(None))

        await self.names.start()
        self._thread.start(first, self._destroy)
        async with asyncio.timeout(START_SECONDS):
            await started
        self._loop.add_reader(beat_fd(), self._on_beat)

    async def stop(self) -> None:
        """Hang up what is left, unbind, and end the thread, at most ``STOP_SECONDS``."""
        if self._loop is not None:
            self._loop.remove_reader(beat_fd())
        await self.names.stop()
        for task in tuple(self._dialling):
            task.cancel()
        self._thread.stop()
        gone = await asyncio.to_thread(self._thread.join, STOP_SECONDS)
        if not gone:
            log.error("sip.thread_stuck", seconds=STOP_SECONDS)

    def dial(
        self,
        uri: str,
        handler: LegHandler,
        audio: CallAudio | None,
        codecs: list[Codec],
        trunk: str = "",
        caller_id: str = "",
    ) -> Leg:
        """Place a call to a sip URI, offering ``codecs`` in their order; returns at once.

        Through a ``trunk`` it goes with its credentials, proxy, headers, SRTP, and caller id unless
        one is given; raises KeyError when there is none of that name. What becomes of it is told to
        ``handler``, a refused address included.
        """
        leg = Leg(
            self,
            Invite(
                sip_call_id="",
                to_uri=uri,
                from_uri=f"sip:{self.settings.user}",
                to_user=user_of(uri),
                from_user=self.settings.user,
                from_name="",
                source="",
                headers={},
                offered=tuple(codecs),
                trunk=trunk,
            ),
        )
        through = self.trunks.by_name[trunk] if trunk else None
        leg.handler, leg.audio = handler, audio
        hop = host_of(through.outbound_proxy if through and through.outbound_proxy else uri)
        if self.names.lasting(hop):
            self.post(lambda: self._dial(leg, uri, codecs, through, caller_id))
        else:
            place = self._dial_named(
                leg, hop, lambda: self._dial(leg, uri, codecs, through, caller_id)
            )
            waiting = asyncio.create_task(place, name="look up whom to call")
            self._dialling.add(waiting)
            waiting.add_done_callback(self._dialling.discard)
        return leg

    async def _dial_named(self, leg: Leg, host: str, dial: Callable[[], None]) -> None:
        """Place a call once its next hop's address is known."""
        known = await self.names.settle(host)
        if known and not leg.given_up:
            self.post(dial)
            return
        if not known:
            log.warning("sip.name_not_resolved", name=host)
        reason = "Given up" if leg.given_up else f"no address for {host}"
        code = _TERMINATED if leg.given_up else _UNAVAILABLE
        if leg.handler is not None:
            leg.handler.on_ended(LegEnd(code, reason, "", "", local=leg.given_up))

    def drain(self) -> None:
        """Answer OPTIONS with 503 from now on, so that dispatchers send their calls elsewhere.

        What an INVITE gets is up to its leg's owner.
        """
        self._draining = True
        self.post(lambda: None if self.accounts is None else self.accounts.leave())

    async def renew_certificates(self) -> int:
        """Take the files of ``[sip.tls]`` anew; returns how many listeners have them now.

        Calls and connections go on. Raises AgentError where the files are no good, in which case
        the old ones stay, and TimeoutError.
        """
        assert self._loop is not None
        done: asyncio.Future[int] = self._loop.create_future()

        def settle(result: int | AgentError) -> None:
            if done.done():
                return
            if isinstance(result, int):
                done.set_result(result)
            else:
                done.set_exception(result)

        def renew() -> None:
            result: int | AgentError
            try:
                result = self._listeners.renew_certificates() if self._listeners else 0
            except AgentError as error:
                result = error
            self.to_loop(lambda: settle(result))

        self.post(renew)
        async with asyncio.timeout(START_SECONDS):
            return int(await done)

    def probe_result(self, trunk: str) -> str:
        """What the last OPTIONS to a trunk brought; empty when there was none. Any thread."""
        return "" if self._probes is None else self._probes.results.get(trunk, "")

    def post(self, command: Callable[[], None]) -> None:
        """Run a command on the SIP thread."""
        self._thread.post(command)

    def trouble(self, seconds: float) -> str:
        """What is wrong with the SIP thread; see :meth:`SipThread.trouble`."""
        return self._thread.trouble(seconds)

    def _on_beat(self) -> None:
        clear_beat()
        self._on_caller_audio()

    # ---- the SIP thread's side

    def to_loop(self, callback: Callable[[], None]) -> None:
        """Run a callback on the event loop; one that has closed is past being told."""
        loop = self._loop
        if loop is not None and not loop.is_closed():
            loop.call_soon_threadsafe(callback)

    def tell_invite(self, leg: Leg) -> None:
        """Announce an incoming leg."""
        self.to_loop(lambda: self._on_invite(leg))

    def tell_refused(self, refused: Refused) -> None:
        """Announce a refusal made below the application; what could not be read is only counted."""
        if refused.code in _UNREADABLE and self.screen is not None:
            source = "" if refused.invite is None else refused.invite.source.rpartition(":")[0]
            rule = f"INVITE that cannot be read: {refused.code}"
            self.screen.refusals.note(rule, source, time.monotonic(), code=refused.code)
            return
        self.to_loop(lambda: self._on_refused(refused))

    def tell_defect(self, refused: Refused) -> None:
        """Announce an INVITE that was refused because of a defect of ours."""
        self.to_loop(lambda: self._on_refused(refused))

    def quieten(self, rtp_name: str) -> None:
        """A call has let go of its RTP port, ``host:port``; it shall not serve again at once."""
        host, _, port = rtp_name.rpartition(":")
        self._quiet_ports.hold(host.strip("[]"), int(port), self.calls.live, time.monotonic())

    def has_rtp_port(self, calls: int) -> bool:
        """Whether another call finds one while ``calls`` of the library are there."""
        return self._quiet_ports.make_way(calls)

    def on_connection(self, prm: Any) -> None:
        """A connection over TCP or TLS stands, or has ended. SIP thread."""
        assert self.screen is not None
        if prm.state != pj.PJSIP_TP_STATE_CONNECTED:
            self.screen.connections.closed(int(prm.hnd))
        elif source := str(pj.nativeConnectedFrom(int(prm.hnd))):
            self.screen.on_connection(int(prm.hnd), source, pj.nativeShutConnection)

    def _dial(
        self, leg: Leg, uri: str, codecs: list[Codec], trunk: Trunk | None, caller_id: str
    ) -> None:
        call: SipCall | None = None
        try:
            assert self.accounts is not None
            self.offer(codecs)
            call = SipCall(self, self.accounts.of(trunk))
            call.leg = leg
            leg.bind(call)
            self.calls.hold(call, "" if trunk is None else f"trunk {trunk.name}")
            param = pj.CallOpParam(True)
            param.opt.audioCount, param.opt.videoCount = 1, 0
            if trunk is not None:
                host = host_of(uri)
                if self.trunks.leads_to(trunk, host, self.names.addresses(host)):
                    param.txOption.headers = header_vector(trunk)
                param.txOption.localUri = self.accounts.from_uri(trunk, caller_id)
            call.makeCall(uri, param)
            leg.invite = replace(leg.invite, sip_call_id=text_of(call.getInfo().callIdString))
        except Exception as error:
            # pjsip may have told of the end already, as of a call that was not answered.
            why = text_of(error.reason) if isinstance(error, pj.Error) else type(error).__name__
            log.warning("sip.not_sent", to=uri[:200], error=why)
            if call is not None:
                call.end(_UNAVAILABLE, why)
            elif (handler := leg.handler) is not None:
                end = LegEnd(_UNAVAILABLE, why, method="", reason_header="", local=False)
                self.to_loop(lambda: handler.on_ended(end))
        finally:
            self.offer(list(Codec))

    def offer(self, codecs: list[Codec]) -> None:
        """Let SDP that is made from now on have these laws, in their order.

        The library keeps one order for all calls, and reads it when it makes SDP: right behind.
        """
        if codecs == self._offered:
            return
        self._offered = list(codecs)
        for codec in Codec:
            priority = 220 - codecs.index(codec) if codec in codecs else 0
            self._endpoint.codecSetPriority(f"{codec.value}/8000", priority)

    def _poll(self, ms: int) -> None:
        self._endpoint.libHandleEvents(ms)

    def _housekeeping(self) -> None:
        self.offer(list(Codec))  # SDP of what came in this turn has been made
        self.calls.let_go()
        now = time.monotonic()
        self._quiet_ports.retry(now)
        if self.byes is not None:
            self.byes.tick(now)
        self.calls.ask_for_keys(now)
        if now >= self._next_quality:
            self._next_quality = now + QUALITY_SECONDS
            self.calls.poll_quality()
            self._quiet_ports.tick(now)
            if self.screen is not None:
                self.screen.tick(now)
                self.screen.close_idle(now, pj.nativeShutConnection)
            if self.accounts is not None and not self._draining:
                self.accounts.tick(now)
            if self._probes is not None:
                self._probes.tick(now)

    def _create(self) -> None:
        if len(self.settings.trunks) >= (places := library.account_capacity()):
            raise AgentError(
                f"trunk: the library has no place for more than {places - 1}, and there are "
                f"{len(self.settings.trunks)}"
            )
        pj.answerNamesFromTable()
        endpoint = Endpoint(self, self.incoming)
        self._endpoint = endpoint
        library.quieten()
        endpoint.libCreate()
        self._log_writer = LogWriter()
        config = endpoint_config(self.settings, self._log_writer)
        self._configure_media(config.medConfig)
        endpoint.libInit(config)
        self.capacity = library.capacity()
        endpoint.audDevManager().setNullDev()
        only_g711(endpoint)
        self._listeners = Listeners(endpoint, self.settings)
        self._listeners.open()
        self.addresses = self._listeners.addresses
        self.accounts = Accounts(
            self.settings,
            self.trunks,
            self._listeners.name,
            self._listeners.bound,
            self.incoming.on_call,
            self.challenges.registered,
        )
        self.accounts.open()
        endpoint.libStart()
        self.signalling, self.screen = self.incoming.screening(lambda: self._draining)
        self.byes = ByeTracker(self.signalling)
        accounts = self.accounts
        self._probes = OptionsPinger(
            self.signalling,
            self.trunks.all,
            lambda trunk: int(accounts.of(trunk).getId()),
            accounts.on_back,
        )
        self.signalling.open()

    def _configure_media(self, media: Any) -> None:
        configure_media(media, self.settings)

    def _destroy(self) -> None:
        endpoint = self._endpoint
        try:
            endpoint.hangupAllCalls()
            if self.accounts is not None:
                self.accounts.leave()
                self.accounts.wait_gone(lambda: self._poll(10))
            deadline = time.monotonic() + _HANG_UP_SECONDS
            while self.calls and time.monotonic() < deadline:
                self._poll(10)
                self._housekeeping()
            if self.accounts is not None:
                self.accounts.shut_down()
            endpoint.libDestroy()
        except pj.Error as error:
            log.warning("sip.stop_failed", error=error.info())
        finally:
            self._quiet_ports.close()
            if self.signalling is not None:
                self.signalling.close()
            self.pool.abandon()
            self.sounds.disown()
            if self.accounts is not None:
                self.accounts.disown()
            self.calls.each(lambda call: call.this.disown())
            for held in (self._endpoint, self._log_writer):
                if held is not None:
                    held.this.disown()
