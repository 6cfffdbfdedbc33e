"""The SIP user agent: answers and places calls. One a process, since pjsip's endpoint is."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pjsua2 as pj
import structlog

from gateway.audio.g711 import FRAME_MS, SAMPLE_RATE, Codec
from gateway.sip import library, native
from gateway.sip.admission import Admission
from gateway.sip.arrivals import Arrivals
from gateway.sip.leg import Leg, SipCall
from gateway.sip.message import (
    display_name_of,
    headers_of,
    offered_codecs,
    request_uri_of,
    uri_of,
    user_of,
)
from gateway.sip.ports import LegAudio, PortPool
from gateway.sip.thread import SipThread
from gateway.sip.types import Invite, LegEnd, LegHandler, Refused, SipSettings

log = structlog.get_logger("sip")

QUALITY_SECONDS = 1.0
"""How often the RTP counters of each leg are read."""

START_SECONDS = 15.0
STOP_SECONDS = 6.0
"""Deadline for the library's own end; a BYE without an answer is given up before that."""

_HANG_UP_SECONDS = 2.0

_TRANSPORTS = {
    "udp": (pj.PJSIP_TRANSPORT_UDP, pj.PJSIP_TRANSPORT_UDP6),
}


class AgentError(Exception):
    """The user agent could not start; the message names the setting and the cause."""


def invite_of(message: str, source: str) -> Invite:
    """The facts of an INVITE."""
    headers = headers_of(message)
    to_field = next(iter(headers.get("to", ())), "")
    from_field = next(iter(headers.get("from", ())), "")
    to_uri = request_uri_of(message) or uri_of(to_field)
    from_uri = uri_of(from_field)
    return Invite(
        call_id=next(iter(headers.get("call-id", ())), ""),
        to_uri=to_uri,
        from_uri=from_uri,
        to_user=user_of(to_uri),
        from_user=user_of(from_uri),
        from_name=display_name_of(from_field),
        source=source,
        headers=headers,
        offered=offered_codecs(message),
    )


class _Endpoint(pj.Endpoint):  # type: ignore[misc]
    agent: UserAgent

    def onRejectedIncomingCall(self, prm: Any) -> None:  # noqa: N802
        """pjsua refused an INVITE by itself."""
        try:
            message = str(prm.rdata.wholeMsg)
            invite = invite_of(message, str(prm.rdata.srcAddress)) if message else None
            self.agent.tell_refused(Refused(invite, int(prm.statusCode), str(prm.reason)))
        except Exception:
            log.exception("sip.callback_failed", callback="onRejectedIncomingCall")


class _Account(pj.Account):  # type: ignore[misc]
    agent: UserAgent

    def onIncomingCall(self, prm: Any) -> None:  # noqa: N802
        """An INVITE that pjsua has a call and a common codec for."""
        try:
            call = SipCall(self.agent, self, prm.callId)
            self.agent.hold(call)
            leg = Leg(self.agent, invite_of(str(prm.rdata.wholeMsg), str(prm.rdata.srcAddress)))
            call.leg = leg
            leg.bind(call)
            self.agent.tell_invite(leg)
        except Exception:
            log.exception("sip.callback_failed", callback="onIncomingCall")


class _Log(pj.LogWriter):  # type: ignore[misc]
    def write(self, entry: Any) -> None:
        """One line of pjsip's own log."""
        try:
            text = str(entry.msg).strip()
            (log.warning if entry.level <= 2 else log.debug)("pjsip", text=text)
        except Exception:  # a log line is never worth a call
            return


class UserAgent:
    """Owns the endpoint, the SIP thread, the calls and their media ports.

    Args:
        settings: how to run.
        on_invite: told, on the event loop, of each new leg that somebody dialled to us; it has to
            set ``leg.handler`` before it returns.
        on_refused: told of each INVITE that was refused below the application.
        on_caller_audio: called when caller audio waits, on the media clock's thread or on the
            event loop; must not wait.
    """

    def __init__(
        self,
        settings: SipSettings,
        *,
        on_invite: Callable[[Leg], None],
        on_refused: Callable[[Refused], None],
        on_caller_audio: Callable[[], None],
    ) -> None:
        self.settings = settings
        self.pool = PortPool(on_caller_audio)
        self._on_caller_audio = on_caller_audio
        self.capacity = 0
        """Concurrent calls that the library carries; known once started."""
        self.addresses: tuple[str, ...] = ()
        """``transport:host:port`` of each listener, with the ports really bound."""
        self._on_invite = on_invite
        self._on_refused = on_refused
        self._loop: asyncio.AbstractEventLoop | None = None
        self._thread = SipThread(self._poll, self._housekeeping)
        self._calls: list[SipCall] = []
        self._retired: list[SipCall] = []
        self._endpoint: Any = None
        self._account: Any = None
        self._admission: Admission | None = None
        self._draining = False
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

        self._thread.start(first, self._destroy)
        async with asyncio.timeout(START_SECONDS):
            await started
        if native.AVAILABLE:
            self._loop.add_reader(native.beat_fd(), self._on_beat)

    async def stop(self) -> None:
        """Hang up what is left, unbind, and end the thread, at most ``STOP_SECONDS``."""
        if native.AVAILABLE and self._loop is not None:
            self._loop.remove_reader(native.beat_fd())
        self._thread.stop()
        gone = await asyncio.to_thread(self._thread.join, STOP_SECONDS)
        if not gone:
            log.error("sip.thread_hung", seconds=STOP_SECONDS)

    def dial(self, uri: str, handler: LegHandler, audio: LegAudio, codecs: list[Codec]) -> Leg:
        """Place a call to a sip URI, offering ``codecs`` in their order; returns at once.

        What becomes of it is told to ``handler``, a refused address included.
        """
        leg = Leg(
            self,
            Invite(
                call_id="",
                to_uri=uri,
                from_uri=f"sip:{self.settings.user}",
                to_user=user_of(uri),
                from_user=self.settings.user,
                from_name="",
                source="",
                headers={},
                offered=tuple(codecs),
            ),
        )
        leg.handler, leg.audio = handler, audio
        self.post(lambda: self._dial(leg, uri, codecs))
        return leg

    def drain(self) -> None:
        """Answer OPTIONS with 503 from now on, so that dispatchers send their calls elsewhere.

        What an INVITE gets is up to its leg's owner.
        """
        self._draining = True

    def post(self, command: Callable[[], None]) -> None:
        """Run a command on the SIP thread."""
        self._thread.post(command)

    def _on_beat(self) -> None:
        native.clear_beat()
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
        """Announce a refusal made below the application."""
        self.to_loop(lambda: self._on_refused(refused))

    def hold(self, call: SipCall) -> None:
        """Keep a call referenced for as long as pjsip may call it."""
        self._calls.append(call)

    def retire(self, call: SipCall) -> None:
        """Let go of an ended call, once no callback of it is on the stack."""
        self._retired.append(call)

    def _dial(self, leg: Leg, uri: str, codecs: list[Codec]) -> None:
        # The library keeps one order for all calls; it is read when the offer is made, below.
        for codec in Codec:
            rank = codecs.index(codec) if codec in codecs else None
            priority = 0 if rank is None else 220 - rank
            self._endpoint.codecSetPriority(f"{codec.value}/8000", priority)
        call = SipCall(self, self._account)
        call.leg = leg
        leg.bind(call)
        self.hold(call)
        try:
            param = pj.CallOpParam(True)
            param.opt.audioCount, param.opt.videoCount = 1, 0
            call.makeCall(uri, param)
            leg.invite = replace(leg.invite, call_id=str(call.getInfo().callIdString))
        except pj.Error as error:
            call.ended = True
            self.retire(call)
            end = LegEnd(code=0, reason=str(error.info()), method="", reason_header="", local=False)
            handler = leg.handler
            if handler is not None:
                self.to_loop(lambda: handler.on_ended(end))
        finally:
            self._only_g711(self._endpoint)

    def _poll(self, ms: int) -> None:
        self._endpoint.libHandleEvents(ms)

    def _housekeeping(self) -> None:
        if self._retired:
            self._let_go()
        now = time.monotonic()
        if now >= self._next_quality:
            self._next_quality = now + QUALITY_SECONDS
            for call in self._calls:
                call.poll_quality()

    def _let_go(self) -> None:
        # A Call's destructor hangs up, and makes deaf, whatever call has its library slot by then,
        # and a slot may be taken again before we are back here: keep it until the slot is free.
        taken = {call.getId() for call in self._calls if not call.ended}
        waiting = self._retired
        self._retired = [call for call in waiting if call.getId() in taken]
        for call in waiting:
            if call.getId() in taken:
                continue
            self._calls.remove(call)
            if call.leg is not None:
                call.leg.unbind()
                call.leg = None

    def _create(self) -> None:
        endpoint = _Endpoint()
        endpoint.agent = self
        self._endpoint = endpoint
        library.native().pj_log_set_level(0)  # it would write to stdout until libInit says where
        endpoint.libCreate()
        config = pj.EpConfig()
        self._log_writer = _Log()
        config.logConfig.level = config.logConfig.consoleLevel = self.settings.log_level
        config.logConfig.msgLogging = 0
        config.logConfig.writer = self._log_writer
        config.uaConfig.threadCnt = 0
        config.uaConfig.mainThreadOnly = False
        config.uaConfig.maxCalls = 65535  # cut down by the library to what it was built for
        config.uaConfig.userAgent = self.settings.user_agent
        self._configure_media(config.medConfig)
        endpoint.libInit(config)
        self.capacity = library.capacity()
        endpoint.audDevManager().setNullDev()
        self._only_g711(endpoint)
        self._listen(endpoint)
        endpoint.libStart()
        count = library.native().pjsua_call_get_count
        self._admission = Admission(
            full=lambda: int(count()) >= self.capacity,
            draining=lambda: self._draining,
            arrivals=Arrivals(library.media_handles(), self.capacity),
            retry_after=self.settings.retry_after,
            on_refused=lambda message: self.tell_refused(
                Refused(invite_of(message, "") if message else None, 503, "library at capacity")
            ),
        )
        self._admission.open()

    def _configure_media(self, media: Any) -> None:
        media.clockRate = media.sndClockRate = SAMPLE_RATE
        media.channelCount = 1
        media.audioFramePtime = FRAME_MS
        media.ptime = FRAME_MS
        media.noVad = True
        media.ecTailLen = 0
        media.sndAutoCloseTime = -1
        # A stream and a port of ours for each call, as many again while their removal is under
        # way, and the master port. Not more: each port has tables as long as this.
        media.maxMediaPorts = max(254, 4 * self.settings.max_calls + 16)
        jitter = self.settings.jitter_buffer
        media.jbInit, media.jbMinPre = jitter.init, jitter.min_prefetch
        media.jbMaxPre, media.jbMax = jitter.max_prefetch, jitter.maximum
        if not jitter.catch_up:
            library.never_discard(media)

    def _only_g711(self, endpoint: Any) -> None:
        wanted = {f"{codec.value}/8000": 201 - n for n, codec in enumerate(Codec)}
        codecs = endpoint.codecEnum2()
        for index in range(len(codecs)):
            identity = str(codecs[index].codecId)
            priority = next((p for name, p in wanted.items() if identity.startswith(name)), 0)
            endpoint.codecSetPriority(identity, priority)

    def _listen(self, endpoint: Any) -> None:
        bound: list[str] = []
        for listen in self.settings.listen:
            kinds = _TRANSPORTS.get(listen.transport)
            if kinds is None:
                raise AgentError(f"sip.listen: transport {listen.transport!r} is not carried yet")
            transport = pj.TransportConfig()
            transport.boundAddress, transport.port = listen.host, listen.port
            transport.publicAddress = self.settings.public_address
            try:
                identity = endpoint.transportCreate(kinds[":" in listen.host], transport)
            except pj.Error as error:
                where = f"{listen.transport}:{listen.host}:{listen.port}"
                raise AgentError(f"sip.listen: cannot bind {where}: {error.reason}") from error
            local = endpoint.transportGetInfo(identity).localName
            bound.append(f"{listen.transport}:{local}")
        self.addresses = tuple(bound)
        self._make_account()

    def _make_account(self) -> None:
        listen = self.settings.listen[0]
        address = self.addresses[0].partition(":")[2]
        account = pj.AccountConfig()
        account.idUri = f"sip:{self.settings.user}@{address}"
        account.natConfig.sipOutboundUse = 0
        account.natConfig.contactRewriteUse = 0
        account.natConfig.viaRewriteUse = 0
        account.natConfig.sdpNatRewriteUse = 0
        low, high = self.settings.rtp_ports
        media = account.mediaConfig.transportConfig
        media.port, media.portRange = low, high - low
        media.publicAddress = self.settings.public_address
        if listen.host not in ("0.0.0.0", "::", ""):
            media.boundAddress = listen.host
        if ":" in listen.host:
            account.mediaConfig.ipv6Use = pj.PJSUA_IPV6_ENABLED
        self._account = _Account()
        self._account.agent = self
        self._account.create(account, True)

    def _destroy(self) -> None:
        endpoint = self._endpoint
        try:
            endpoint.hangupAllCalls()
            deadline = time.monotonic() + _HANG_UP_SECONDS
            while self._calls and time.monotonic() < deadline:
                self._poll(10)
                self._housekeeping()
            if self._account is not None:
                self._account.shutdown()
            endpoint.libDestroy()
        except pj.Error as error:
            log.warning("sip.stop_failed", error=error.info())
        finally:
            self.pool.abandon()
            for held in (*self._calls, self._account, self._endpoint, self._log_writer):
                if held is not None:
                    held.this.disown()
