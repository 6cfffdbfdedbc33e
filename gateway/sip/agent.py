# SPDX-License-Identifier: GPL-2.0-or-later
"""The SIP user agent: answers and places calls. One a process, since pjsip's endpoint is."""

from __future__ import annotations

import asyncio
import socket
import time
from collections.abc import Callable, Mapping
from typing import Any

import pjsua2 as pj
import structlog

from gateway.addresses import Names, host_of
from gateway.audio import Codec
from gateway.sip import SipSettings, library
from gateway.sip.active_calls import Calls
from gateway.sip.browser_leg import BrowserEnd
from gateway.sip.call_audio import CallAudio, PortPool, note_ready, ready_fd, take_ready
from gateway.sip.incoming import InviteCallbacks
from gateway.sip.leg import Invite, Leg, LegEnd, LegHandler, RejectedInvite
from gateway.sip.library import AgentError as AgentError
from gateway.sip.library import SipThread
from gateway.sip.messages.headers import user_of
from gateway.sip.signalling import MessageLog
from gateway.sip.sip_call import SipCall
from gateway.sip.stack import Stack
from gateway.sip.trunks import Trunks

log = structlog.get_logger("sip")

START_SECONDS = 15.0
STOP_SECONDS = 6.0
"""Deadline for the library's own end; a BYE without an answer is given up before that."""

COALESCING_SECONDS = 0.002
"""Least time between two turns of the event loop for audio, each of which serves every call that
has something. At a hundred calls a packet comes every 0.2 ms: a turn for each would cost more than
what is done in it."""

_UNAVAILABLE = 503
"""Of a call that cannot be sent anywhere (RFC 3261 section 8.1.3.1 has a transport error so)."""

_TERMINATED = 487


class UserAgent:
    """Answers and places calls, on a SIP thread of its own. Used on the event loop.

    Args:
        settings: how to run.
        on_invite: told, on the event loop, of each new leg that somebody dialled to us; it has to
            set ``leg.handler`` before it returns.
        on_refused: told of each INVITE that was refused below the application.
        on_caller_audio: called on the event loop with the ids of the calls that have audio of
            their caller, or playout that began or ended.
        on_arrival: called on the SIP thread with each INVITE that pjsua takes, before anything is
            sent; it may not wait.
        messages: gets the messages of calls.
        on_log: takes the library's log, with SIP messages as they are on the wire, on any thread.
    """

    def __init__(
        self,
        settings: SipSettings,
        *,
        on_invite: Callable[[Leg], None],
        on_refused: Callable[[RejectedInvite], None],
        on_caller_audio: Callable[[list[int]], None],
        on_arrival: Callable[[Invite], None] = lambda _invite: None,
        messages: MessageLog | None = None,
        on_log: Callable[[str], None] | None = None,
    ) -> None:
        self.settings = settings
        self.trunks = Trunks(settings.trunks)
        self.calls = Calls()
        self.pool = PortPool()
        named = [host_of(one) for t in settings.trunks for one in (t.registrar, t.outbound_proxy)]
        # pjsip looks for our own address by the name of this machine, among others.
        named += [host_of(settings.stun_server), host_of(socket.gethostname())]
        self._names = Names(named, lambda name, found: pj.setNameAddresses(name, found))
        self._callbacks = InviteCallbacks(on_arrival, on_invite, on_refused)
        self._messages = messages or MessageLog()
        self._on_caller_audio = on_caller_audio
        self._on_log = on_log
        self.on_banned: Callable[[str, float, bool], None] = lambda *_ban: None
        """Told on the loop of each source that is banned: for how long (s), whether proven."""
        self._next_turn = 0.0
        self._turn: asyncio.TimerHandle | None = None
        self._thread = SipThread(lambda ms: self._running.poll(ms), lambda: self._running.tick())
        self._stack: Stack | None = None
        """Made and used on the SIP thread; values in it may be read."""
        self._dialling: set[asyncio.Task[None]] = set()

    async def start(self) -> None:
        """Start the SIP thread and listen, once the names of the configuration were looked up (3 s
        at most). Raises AgentError, naming what could not be had, or after ``START_SECONDS``; then
        it is stopped as by :meth:`stop`."""
        if len(self.settings.trunks) >= (places := library.account_capacity()):
            raise AgentError(
                f"trunk: the library has no place for more than {places - 1}, and there are "
                f"{len(self.settings.trunks)}"
            )
        loop = self._thread.loop = asyncio.get_running_loop()
        started: asyncio.Future[None] = loop.create_future()

        def first() -> None:
            if (error := self._thread.answer(started, self._open)) is not None:
                raise error

        await self._names.start()
        self._thread.start(first, self._close)
        try:
            async with asyncio.timeout(START_SECONDS):
                await started
        except BaseException as error:
            await self.stop()
            if isinstance(error, TimeoutError):
                late = f"pjsip has not started within {START_SECONDS:g} s"
                raise AgentError(late) from None
            raise
        loop.add_reader(ready_fd(), self._on_ready)

    async def stop(self) -> None:
        """Hang up all calls, unregister, unbind, and end the SIP thread, within ``STOP_SECONDS``;
        one that is still there then is logged. Calls that wait for a name end as ours, with 487."""
        if self._thread.loop is not None:
            self._thread.loop.remove_reader(ready_fd())
        if self._turn is not None:
            self._turn.cancel()
        await self._names.stop()
        for task in tuple(self._dialling):
            task.cancel()
        self._thread.stop()
        gone = await asyncio.to_thread(self._thread.join, STOP_SECONDS)
        if not gone:
            log.error("sip.thread_stuck", seconds=STOP_SECONDS)

    @property
    def capacity(self) -> int:
        """Concurrent calls that the library carries."""
        return library.capacity()

    @property
    def addresses(self) -> tuple[str, ...]:
        """``transport:host:port`` of each listener, with the ports really bound."""
        return () if self._stack is None else self._stack.listeners.addresses

    def dial(
        self,
        uri: str,
        handler: LegHandler,
        audio: CallAudio | None,
        codecs: list[Codec],
        trunk: str = "",
        caller_id: str = "",
        headers: Mapping[str, str] | None = None,
    ) -> Leg:
        """Place a call to a SIP URI, offering ``codecs`` in their order; return its leg at once.

        The result, a malformed address included, is reported to ``handler``.

        Args:
            trunk: send it with this trunk's credentials, proxy, headers, SRTP and caller ID. Raises
                KeyError when there is none of that name.
            caller_id: takes the place of the trunk's.
            headers: are added to the INVITE.
        """
        invite = Invite(
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
        )
        leg = Leg(self._thread, invite)
        leg.handler, leg.audio, leg.placed = handler, audio, True
        through = self.trunks.by_name[trunk] if trunk else None
        hop = host_of(through.outbound_proxy if through and through.outbound_proxy else uri)

        def place() -> None:
            self._running.place(leg, uri, codecs, through, caller_id, headers or {})

        if self._names.needs_no_lookup(hop):
            self._thread.post(place)
        else:
            waiting = asyncio.create_task(
                self._dial_named(leg, hop, place), name="look up whom to call"
            )
            self._dialling.add(waiting)
            waiting.add_done_callback(self._dialling.discard)
        return leg

    async def _dial_named(self, leg: Leg, host: str, place: Callable[[], None]) -> None:
        """Place a call once its next hop's name was looked up. Where it has no address, or the leg
        was hung up meanwhile, report its end: 503, or 487 as ours."""
        try:
            known = await self._names.resolve(host)
        except asyncio.CancelledError:
            if leg.handler is not None:
                leg.handler.on_ended(LegEnd(_TERMINATED, "Given up", "", "", local=True))
            raise
        if known and not leg.given_up:
            self._thread.post(place)
            return
        if not known:
            log.warning("sip.name_not_resolved", name=host)
        reason = "Given up" if leg.given_up else f"no address for {host}"
        code = _TERMINATED if leg.given_up else _UNAVAILABLE
        if leg.handler is not None:
            leg.handler.on_ended(LegEnd(code, reason, "", "", local=leg.given_up))

    def take_browser(self, invite: Invite, tell: Callable[[dict[str, Any]], None]) -> BrowserEnd:
        """Announce a leg whose telephone is a page in a browser, as if this INVITE had come; return
        the page's side of it. ``tell`` is given what the page is to know; see
        :class:`BrowserEnd`."""
        end = BrowserEnd(Leg(self._thread, invite), self._thread, tell)
        self._thread.post(lambda: self._running.take_browser(end))
        return end

    def set_ready(self, ready: bool) -> None:
        """Answer OPTIONS with 200 (True), or with 503: calls should go elsewhere for now. Nothing
        before the start."""
        if self._stack is not None:
            self._stack.unready = not ready

    def drain(self) -> None:
        """Answer OPTIONS with 503 and unregister at all trunks, for good, so that calls are sent
        elsewhere.

        What an INVITE gets is up to its leg's owner.
        """
        if self._stack is not None:
            self._stack.draining = True  # for what comes before the thread gets to the rest
        self._thread.post(lambda: self._running.drain())

    async def renew_certificates(self) -> int:
        """Read the files of ``[sip.tls]`` again; return how many listeners use them now.

        Calls and connections go on. Raises AgentError where the files are no good, in which case
        the old ones stay, and TimeoutError after ``START_SECONDS``.
        """
        done: asyncio.Future[int] = asyncio.get_running_loop().create_future()

        def renew() -> int:
            return self._running.listeners.renew_certificates()

        self._thread.post(lambda: self._thread.answer(done, renew))
        async with asyncio.timeout(START_SECONDS):
            return await done

    def ask_rtp_source(self, leg: Leg, on_source: Callable[[str], None]) -> None:
        """Call ``on_source`` on the event loop with the source of a leg's RTP: ``address:port``, or
        "" before any came, after the end, and for a page in a browser."""

        def ask() -> None:
            found = leg.call.rtp_source() if isinstance(leg.call, SipCall) else ""
            self._thread.to_loop(on_source, found)

        self._thread.post(ask)

    def register(self, trunk: str) -> None:
        """Send a REGISTER for a trunk at the next tick of the SIP thread, unless one is under way
        or we have unregistered. Raises KeyError for an unknown trunk, and ValueError where it has
        no registrar."""
        if not self.trunks.by_name[trunk].registrar:
            raise ValueError(f"trunk {trunk!r} does not register")
        self._thread.post(lambda: self._running.accounts.registrations[trunk].renew())

    def trouble(self, seconds: float) -> str:
        """Return why the SIP thread carries no calls, "" if it does; see
        :meth:`SipThread.trouble`."""
        return self._thread.trouble(seconds)

    def trunk_states(self) -> list[dict[str, Any]]:
        """Return one object a trunk, in the order of the configuration: registration ("static"
        without one), last result of OPTIONS, calls in progress. Empty before the start. Times in s
        from now."""
        if self._stack is None:
            return []
        now, stack = time.monotonic(), self._stack
        states = []
        for trunk in self.trunks.all:
            one = stack.accounts.registrations.get(trunk.name)
            states.append(
                {
                    "name": trunk.name,
                    "state": "static" if one is None else one.state.value,
                    "since_seconds": 0.0 if one is None else round(now - one.since, 1),
                    "expires_seconds": _until(None if one is None else one.expires_at, now),
                    "last_error": "" if one is None else one.last_error,
                    "next_try_seconds": _until(None if one is None else one.next_try, now),
                    "options": stack.pinger.results.get(trunk.name, ""),
                    "calls": self.calls.of(f"trunk {trunk.name}"),
                }
            )
        return states

    def refusals(self) -> dict[str, int]:
        """Return how many requests were refused since the start, by rule; "not decided" are those
        on which an error of ours was raised."""
        if self._stack is None:
            return {}
        failures = self._running.signalling.failures
        by_rule = self._running.access.refusals.by_rule
        return {**by_rule, **({"not decided": failures} if failures else {})}

    def refused_invite(self, sip_call_id: str) -> Mapping[str, Any] | None:
        """Return source, rule, code and more of one of the last INVITEs that were refused before a
        call was made of them; None if unknown."""
        return None if self._stack is None else self._stack.access.refusals.invites.get(sip_call_id)

    @property
    def queues(self) -> dict[str, tuple[int, int]]:
        """Return, by the queue's name, how many commands wait for the SIP thread and how many were
        dropped as it was full."""
        return {"sip commands": (self._thread.waiting, self._thread.dropped)}

    def bans(self) -> list[dict[str, Any]]:
        """Return the sources that are banned: seconds left, and requests that got nothing."""
        if self._stack is None:
            return []
        return self._stack.access.policy.bans.as_json(time.monotonic())

    def ban(self, found: list[tuple[str, float, bool]]) -> None:
        """Ban sources that other processes have banned: source, seconds left, whether proven; see
        :meth:`Bans.take`."""
        self._thread.post(lambda: self._running.access.policy.bans.take(found, time.monotonic()))

    @property
    def _running(self) -> Stack:
        """The library that runs; only after the start."""
        assert self._stack is not None
        return self._stack

    def _on_ready(self) -> None:
        """Handle the descriptor that says that calls have audio: serve them now, or once
        ``COALESCING_SECONDS`` have passed since the last time."""
        note_ready()
        loop = self._thread.loop
        assert loop is not None
        if loop.time() >= self._next_turn:
            self._serve()
        else:
            self._turn = loop.call_at(self._next_turn, self._serve)

    def _serve(self) -> None:
        """Pass the ids of calls that have audio, or a start or end of playout, to
        ``on_caller_audio``."""
        assert self._thread.loop is not None
        self._next_turn = self._thread.loop.time() + COALESCING_SECONDS
        self._on_caller_audio(take_ready())

    # ---- on the SIP thread

    def _open(self) -> None:
        """Start pjsua2 on the SIP thread. Raises AgentError."""
        try:
            self._stack = Stack(
                self.settings,
                self.trunks,
                self._thread,
                self.calls,
                self._names,
                self.pool,
                self._callbacks,
                self._messages,
                self._on_log,
            )
            self._stack.access.policy.on_banned = lambda *ban: self._thread.to_loop(
                self.on_banned, *ban
            )
        except pj.Error as error:
            raise AgentError(error.info()) from error

    def _close(self) -> None:
        """Stop the library, if it was started."""
        if self._stack is not None:
            self._stack.close()


def _until(at: float | None, now: float) -> float | None:
    """Return the seconds from ``now`` to ``at``, 0 if it is past; None for no time."""
    return None if at is None else round(max(0.0, at - now), 1)
