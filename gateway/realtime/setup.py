# SPDX-License-Identifier: GPL-2.0-or-later
"""Set-up of sessions: connect, ``session.created``, ``session.update``, ``session.updated``; of a
Live session ``session.start`` and ``session.started``.

A session is returned only when the server has confirmed its settings, so that no caller hears a
line that is up and dead. Nothing else is sent before that: audio that comes first would be heard
under the server's defaults.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Mapping
from functools import partial
from random import uniform
from typing import Any, Literal, TypeVar

import structlog
from websockets.exceptions import ConnectionClosed, InvalidHandshake, InvalidStatus

from gateway.realtime.connection import (
    CLOSE_TIMEOUT,
    LARGE_MESSAGE,
    MAX_MESSAGE,
    Connect,
    Connection,
    Endpoint,
    date_of,
    discard,
    retry_after_of,
    tls_of,
)
from gateway.realtime.dialects import GA
from gateway.realtime.errors import (
    Kind,
    SetupFailed,
    Step,
    Verdict,
    at_setup,
    classify_close,
    classify_error,
    classify_handshake,
    classify_network,
)
from gateway.realtime.events import (
    ServerError,
    ServerEvent,
    SessionCreated,
    SessionUpdated,
    UpdateSession,
)
from gateway.realtime.live_session import LiveEdge, LiveSession
from gateway.realtime.live_voice import NO_PLAYOUT, LivePlayout
from gateway.realtime.parse import BadEvent
from gateway.realtime.session import (
    WRITE_BUFFER_LIMIT,
    Handshake,
    ResampledSession,
    Session,
    SessionClosed,
    Tap,
    Wire,
)
from gateway.realtime.session_object import (
    MAX_REFUSED,
    TRANSCRIPTION,
    Refused,
    dotted,
    field_of,
    format_of,
    with_history,
    without,
)
from gateway.realtime.wire import Edge, encode_command

log = structlog.get_logger(__name__)

FIRST_BACKOFF = 0.25
"""Seconds before the second attempt of :func:`open_with_retry`; each further wait is double."""

# The library logs request headers, so the key, at DEBUG: this logger never does.
_wire_log = logging.getLogger("gateway.realtime.websocket")
_wire_log.setLevel(logging.INFO)

_BETA = 'the server answers in the fields of the Beta API: realtime.dialect = "beta"'
_ONLY_PCM = 'for servers with 24 kHz PCM only there is realtime.audio = "pcm24"'

# Events of the set-up that are kept for the session; more are dropped.
_EARLY_EVENTS = 100

Late = Callable[[], Awaitable[Mapping[str, Any]]]
"""Awaits a session object for which data are still fetched. May raise :class:`SetupFailed`."""

OnEvent = Callable[[ServerEvent], None]
OnClosed = Callable[[SessionClosed], None]

_Wanted = TypeVar("_Wanted", SessionCreated, SessionUpdated)


async def open_session(
    endpoint: Endpoint,
    session_object: Mapping[str, Any],
    *,
    timeout: float,  # noqa: ASYNC109 - one deadline over several steps, with a verdict of its own
    on_event: OnEvent,
    on_closed: OnClosed,
    tap: Tap | None = None,
    late: Late | None = None,
    playout: LivePlayout = NO_PLAYOUT,
) -> Session:
    """Open a session within ``timeout`` seconds, from the first packet to ``session.updated`` (of a
    Live session to ``session.started``).

    A field that the server rejects is left out, and the rest is sent again, up to 8 times
    (:mod:`gateway.realtime.session_object`); ``Session.commands.refused`` names such fields.

    Raises :class:`SetupFailed` for a refused or lost connection, another ``error`` or a close
    before ``session.updated``, a ``session.updated`` with another audio format, and the deadline;
    also what ``late`` raises. After an exception, or when cancelled, no socket and no task is left.

    Args:
        on_event: gets the other events of the set-up and then all later ones, in order, from
            the next turn of the event loop on.
        on_closed: called once, at the end of the session; never if this raises.
        tap: sees all messages as they are on the wire, from the first.
        late: awaited for the session object after ``session.created`` (of a Live session once
            connected); ``session_object`` then only gives the audio formats.
        playout: of the call, for a Live session: its queue, and the conversation so far.
    """
    loop = asyncio.get_running_loop()
    started = loop.time()
    live = _LiveOpening(endpoint, session_object, tap, late, playout) if endpoint.live else None
    opening = live or _Opening(endpoint, session_object, tap, late)
    log.info("session.connecting", url=endpoint.shown, model=endpoint.model)
    try:
        async with asyncio.timeout(timeout):
            effective = await opening.run()
    except SetupFailed as error:
        failure = error
    except TimeoutError:
        verdict = Verdict(Kind.RETRYABLE, "timeout", "no answer in time", True)
        failure = opening.failed(verdict, f"after {timeout:g} s")
    except BaseException:
        await opening.discard()
        raise
    else:
        session = opening.session(effective, on_event, on_closed)
        took = round((loop.time() - started) * 1000)
        log.debug("session.up", session=session.id, ms=took, expires_at=session.expires_at)
        return session
    await opening.discard()
    log.warning(
        "session.setup_failed",
        url=endpoint.shown,
        model=endpoint.model,
        step=str(failure.step),
        code=failure.verdict.code,
        verdict=str(failure.verdict.kind),
        meaning=failure.verdict.meaning,
        detail=failure.detail,
        ms=round((loop.time() - started) * 1000),
    )
    # Inner frames and chained exceptions hold the headers and the server's own words, which a
    # log that shows local variables would print.
    failure.__context__ = None
    raise failure.with_traceback(None)


async def open_with_retry(
    endpoint: Endpoint,
    session_object: Mapping[str, Any],
    *,
    timeout: float,  # noqa: ASYNC109 - shared by all attempts
    on_event: OnEvent,
    on_closed: OnClosed,
    tap: Tap | None = None,
    late: Late | None = None,
    attempts: int | None = None,
    playout: LivePlayout = NO_PLAYOUT,
) -> Session:
    """Open a session as :func:`open_session` does; try again after a retryable failure.

    ``timeout`` (s) is for all attempts together, ``attempts`` the most of them (None: as many as
    fit in). Between them it waits 0.25 s, then double each time, or the server's ``Retry-After`` if
    that is longer, and up to a quarter more at random. Raises the SetupFailed of the last attempt
    if it is not retryable, if it was the last of ``attempts``, or if the wait would end after the
    deadline.
    """
    loop = asyncio.get_running_loop()
    deadline = loop.time() + timeout
    wait, made = FIRST_BACKOFF, 0
    while True:
        try:
            return await open_session(
                endpoint,
                session_object,
                timeout=deadline - loop.time(),
                on_event=on_event,
                on_closed=on_closed,
                tap=tap,
                late=late,
                playout=playout,
            )
        except SetupFailed as failure:
            made += 1
            least = max(wait, failure.retry_after or 0.0)
            pause = least * uniform(1.0, 1.25)
            over = made == attempts or loop.time() + pause >= deadline
            if failure.verdict.kind is not Kind.RETRYABLE or over:
                raise
        log.info("session.retry", url=endpoint.shown, wait_ms=round(least * 1000))
        await asyncio.sleep(pause)
        wait *= 2


class _Opening:
    """One set-up of a Realtime session, and its connection, which :meth:`discard` drops. ``early``
    has events that nothing waited for, ``refused`` the settings that were left out."""

    edge: Wire

    def __init__(
        self,
        endpoint: Endpoint,
        session_object: Mapping[str, Any],
        tap: Tap | None,
        late: Late | None,
    ) -> None:
        self.step = Step.CONNECT
        self.connection: Connection | None = None
        self.early: list[ServerEvent] = []
        self.refused: list[Refused] = []
        self._answers_as_beta = False
        self._endpoint = endpoint
        self._asked = session_object
        self._late = late
        self._tap = tap
        self._use_edge()
        self._date: tuple[float, float] | None = None
        """The server's clock at the upgrade (Unix s), and ours (monotonic, s)."""

    def _use_edge(self) -> None:
        """Make the translation between gateway and wire, by the audio format of the session
        object."""
        self._ga = Edge(self._endpoint.dialect, self._endpoint.audio, self._asked)
        self.edge = self._ga

    def session(self, effective: dict[str, Any], on_event: OnEvent, on_closed: OnClosed) -> Session:
        """Return the running session on the connection, after :meth:`run`; ``effective`` is its
        result."""
        assert self.connection is not None
        handshake = Handshake(
            connection=self.connection,
            endpoint=self._endpoint,
            edge=self.edge,
            effective=effective,
            waiting=self.early,
            refused=self.refused,
            server_time=self.server_time,
            tap=self._tap,
        )
        made = self._kind()(handshake, on_event, on_closed)
        if self._endpoint.transcription:
            made.capabilities = TRANSCRIPTION
        return made

    def _kind(self) -> Callable[[Handshake, OnEvent, OnClosed], Session]:
        """Return the session's class: :class:`ResampledSession` where call and wire differ in
        audio."""
        return Session if self.edge.pcm is None else ResampledSession

    @property
    def server_time(self) -> float | None:
        """The server's clock now (Unix s), by the ``Date`` of its response to the upgrade (RFC
        9110, 6.6.1) and the time since; None without a valid one."""
        if self._date is None:
            return None
        told, at = self._date
        return told + asyncio.get_running_loop().time() - at

    async def run(self) -> dict[str, Any]:
        """Connect, wait for ``session.created``, then ``late``, send ``session.update`` and wait
        for ``session.updated``. Return the server's session object, merged from both events.

        Raises SetupFailed for all that goes wrong, also for a confirmed audio format other than
        asked for.
        """
        connection = await self._connect()
        self.connection = connection
        self.step = Step.CREATED
        created = await self._wait_for(connection, SessionCreated)
        beta = "input_audio_format" in created.session and "audio" not in created.session
        self._answers_as_beta = beta and self._endpoint.dialect is GA
        if self._late is not None:
            self._asked = await self._late()
        self.step = Step.UPDATED
        await self._update(connection)
        updated = await self._wait_for(connection, SessionUpdated)
        self._check_formats(updated.session)
        return {**created.session, **updated.session}

    async def _update(self, connection: Connection) -> None:
        """Send ``session.update`` with the settings that are still asked for."""
        await self._send(connection, UpdateSession(self._asked).body())

    async def _send(self, connection: Connection, body: dict[str, Any]) -> None:
        """Send a client event, in the server's dialect and with the id of this update. Raises
        SetupFailed if the connection is closed."""
        message = encode_command(self.edge.command(body), self._event_id)
        if self._tap is not None:
            self._tap.sent(message)
        try:
            await connection.send(message.decode())
        except ConnectionClosed as error:
            raise self._closed(error) from None

    @property
    def _event_id(self) -> str:
        """Id of the present update; it differs once a field was left out, so that errors can be
        told apart."""
        return f"gw_setup_{len(self.refused)}" if self.refused else "gw_setup"

    async def _left_out(self, connection: Connection, error: ServerError) -> bool:
        """Send the settings again without the field that ``error`` is about; return whether the
        set-up goes on.

        True also for an error about an update that was replaced since. False before the settings
        were sent, where the error names no field or one that the call needs, or 8 were left out.
        """
        if self.step not in (Step.UPDATED, Step.STARTED):
            return False
        if error.client_event_id not in (None, self._event_id):
            return bool(self.refused)  # about an update that was replaced since
        path = field_of(error, self._asked)
        if path is None or len(self.refused) >= MAX_REFUSED:
            return False
        message = " ".join(self._endpoint.redact(error.message).split())
        refused = Refused(dotted(path), error.code or error.type or "error", message)
        self.refused.append(refused)
        self._asked = without(self._asked, path)
        log.warning(
            "session.setting_rejected",
            field=refused.field,
            code=refused.code,
            detail=message,
            what="the session goes on without it",
        )
        await self._update(connection)
        return True

    async def discard(self) -> None:
        """Close the connection without waiting for the server, if there is one."""
        if self.connection is not None:
            await discard(self.connection)

    async def _connect(self) -> Connection:
        """Connect the WebSocket: DNS, TCP, TLS and upgrade, with no redirect and no proxy. Raises
        SetupFailed, with ``retry_after`` for a refused upgrade that has it."""
        endpoint = self._endpoint
        try:
            connection = await Connect(
                endpoint.connect_url,
                additional_headers=endpoint.request_headers(),
                ssl=tls_of(endpoint),
                compression=None,
                # The environment's would be picked up otherwise.
                proxy=None,
                max_size=MAX_MESSAGE,
                open_timeout=None,
                close_timeout=CLOSE_TIMEOUT,
                ping_interval=endpoint.ping_interval,
                ping_timeout=endpoint.ping_timeout,
                # Above what waits in the buffer at worst, so that the library's own pings never
                # block behind audio: they are what finds a dead network.
                write_limit=16 * WRITE_BUFFER_LIMIT,
                logger=_wire_log,
                create_connection=Connection,
            )
            assert isinstance(connection, Connection)
            date = date_of(connection)
            if date is not None:
                self._date = (date, asyncio.get_running_loop().time())
            return connection
        except InvalidStatus as error:
            status = error.response.status_code
            body = bytes(error.response.body or b"")[:300].decode(errors="replace")
            failure = self.failed(classify_handshake(status), body)
            failure.retry_after = retry_after_of(error.response)
            raise failure from None
        except (OSError, InvalidHandshake, EOFError) as error:
            detail = str(error) or type(error).__name__
            raise self.failed(classify_network(error), detail) from None

    async def _wait_for(self, connection: Connection, wanted: type[_Wanted]) -> _Wanted:
        """Return the next event of class ``wanted``, for whatever time that takes; keep the first
        100 others.

        A message that cannot be parsed is logged and passed over. Raises SetupFailed for a close,
        and for an ``error`` that is not about a field which the session can do without
        (:meth:`_left_out`).
        """
        while True:
            try:
                message = await connection.next_message()
                if self._tap is not None:
                    self._tap.received(message)
                if len(message) > LARGE_MESSAGE:
                    event = await asyncio.to_thread(self.edge.parse, message)
                else:
                    event = self.edge.parse(message)
            except ConnectionClosed as error:
                raise self._closed(error) from None
            except BadEvent as error:
                log.warning(
                    "session.invalid_event",
                    type=error.event_type,
                    detail=str(error),
                    consequence=error.consequence,
                )
                continue
            if isinstance(event, wanted):
                return event
            if isinstance(event, ServerError):
                if await self._left_out(connection, event):
                    continue
                detail = event.message if event.param is None else f"{event.param}: {event.message}"
                if ".format" in (event.param or ""):
                    detail += f" ({_ONLY_PCM})"
                raise self.failed(classify_error(event), detail)
            if len(self.early) < _EARLY_EVENTS:
                self.early.append(event)

    def _check_formats(self, session: Mapping[str, Any]) -> None:
        """Raise SetupFailed if the server confirms another audio format than was asked for, or
        none; an empty session object is taken as confirmation."""
        if not session:
            return  # the server confirms without saying what; it was asked for these formats
        directions: tuple[Literal["input", "output"], ...] = ("input", "output")
        for direction in directions:
            asked = self._ga.format_on_wire(self._asked, direction)
            got = format_of(session, direction)
            if asked is not None and got != asked:
                meaning = f"the server does not speak {asked}"
                verdict = Verdict(Kind.FATAL, "audio_format", meaning, True)
                detail = f"session.updated has audio.{direction}.format {got or 'missing'}"
                if self.edge.pcm is None:
                    detail += f" ({_ONLY_PCM})"
                raise self.failed(verdict, detail)

    def _closed(self, error: ConnectionClosed) -> SetupFailed:
        """Return the exception for a closed connection, by the server's close frame; without one
        1006."""
        if error.rcvd is not None:
            code, reason = int(error.rcvd.code), error.rcvd.reason
        else:
            code, reason = 1006, error.sent.reason if error.sent is not None else ""
        return self.failed(classify_close(code, reason), f"close {code} {reason}".strip())

    def failed(self, verdict: Verdict, detail: str) -> SetupFailed:
        """Return (not raise) the exception for a failure at the present step. Secrets are taken out
        of ``detail``; a hint is added where the server has answered in the Beta API's form."""
        detail = " ".join(self._endpoint.redact(detail).split())
        if self._answers_as_beta:
            detail = f"{detail}; {_BETA}" if detail else _BETA
        return SetupFailed(at_setup(verdict), self.step, detail)


class _LiveOpening(_Opening):
    """One set-up of a Live session: ``session.start``, answered by ``session.started``."""

    def __init__(
        self,
        endpoint: Endpoint,
        session_object: Mapping[str, Any],
        tap: Tap | None,
        late: Late | None,
        playout: LivePlayout,
    ) -> None:
        super().__init__(endpoint, session_object, tap, late)
        self._playout = playout

    def _use_edge(self) -> None:
        """Make the translation for a Live session; its audio format is the endpoint's
        ``live_audio``."""
        self._live = LiveEdge(self._endpoint.live_audio, self._asked)
        self.edge = self._live

    async def run(self) -> dict[str, Any]:
        """Connect, await ``late``, add the conversation so far, send ``session.start`` and wait for
        ``session.started``. Return what was asked for, overwritten by what the server confirms.

        Raises SetupFailed as :meth:`_Opening.run` does.
        """
        connection = self.connection = await self._connect()
        if self._late is not None:
            self._asked = await self._late()
        self._asked = with_history(self._asked, self._playout.history)
        self.step = Step.STARTED
        await self._update(connection)
        started = await self._wait_for(connection, SessionCreated)
        self._check_format(started.session)
        return {**self._asked, **started.session}

    async def _update(self, connection: Connection) -> None:
        """Send ``session.start`` with the model and the settings that are still asked for."""
        session = {"model": self._endpoint.model, **self._asked}
        await self._send(connection, {"type": "session.start", "session": session})

    def _check_format(self, session: Mapping[str, Any]) -> None:
        """Raise SetupFailed if the server confirms another audio format than was asked for; that it
        names none is accepted."""
        audio = session.get("audio")
        told = audio.get("format") if isinstance(audio, Mapping) else None
        got = told.get("type") if isinstance(told, Mapping) else None
        asked = "audio/pcm" if self.edge.pcm is not None else self._live.codec.session_format
        if got not in (None, asked):
            meaning = f"the server does not speak {asked}"
            verdict = Verdict(Kind.FATAL, "audio_format", meaning, True)
            raise self.failed(verdict, f"session.started has audio.format {got}")

    def _kind(self) -> Callable[[Handshake, OnEvent, OnClosed], Session]:
        """Return :class:`LiveSession`, with codec and playout of the call."""
        return partial(LiveSession, codec=self._live.codec, playout=self._playout)
