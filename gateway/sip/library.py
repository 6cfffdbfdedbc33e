# SPDX-License-Identifier: GPL-2.0-or-later
"""pjsua2 (built in ``deploy/pjsua2``) in this process: its build, configuration and log, the one
thread that signalling runs on, and what the process can carry: file descriptors.

pjsip gets no worker threads: the SIP thread polls it, so every signalling callback comes there, and
runs what other threads post, so every call into pjsip comes from there too. The event loop never
touches pjsip; media frames have pjmedia's own clock thread.

``python -m gateway.sip.library`` prints what it says of itself as JSON, in a process of its
own: a library that does not fit the machine may take its process along.
"""

from __future__ import annotations

import asyncio
import importlib.metadata
import json
import os
import resource
import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import cache
from typing import Any, TypeVar

import pjsua2 as pj
import structlog

from gateway.audio import FRAME_MS, G711, SAMPLE_RATE, Codec
from gateway.measures import LAG, Distribution
from gateway.sip import SipSettings
from gateway.sip.source_limits import TokenBucket
from gateway.text import unicode_of

log = structlog.get_logger("sip")


_NEEDED = (
    "BUILD",
    "NativeCallAudio",
    "NativeNarrow",
    "NativeSignalling",
    "nativeTakeReady",
    "nativeWatchBridge",
)
_lacking = [name for name in _NEEDED if not hasattr(pj, name)]
if _lacking:
    raise ImportError(
        f"{pj.__file__} is not the gateway's own build of this version (no {_lacking[0]}): "
        "`make` installs it"
    )


class AgentError(Exception):
    """The user agent could not start, or not renew its certificates; the message names the setting
    and the cause."""


def silence_log() -> None:
    """Let pjlib log nothing until ``libInit`` says where to: it would write to stdout."""
    pj.nativeLogLevel(0)


def calls() -> int:
    """Return how many calls the library has now, those that are ending included."""
    return int(pj.nativeCallCount())


def capacity() -> int:
    """Return how many calls the library can have at a time (``PJSUA_MAX_CALLS``)."""
    return int(pj.BUILD["max_calls"])


def account_capacity() -> int:
    """Return how many accounts the library can have (``PJSUA_MAX_ACC``)."""
    return int(pj.BUILD["max_accounts"])


def media_handles() -> int:
    """Return how many sockets one I/O queue of the library can hold
    (``PJ_IOQUEUE_MAX_HANDLES``)."""
    return int(pj.BUILD["max_sockets"])


@dataclass(frozen=True, slots=True)
class Build:
    """Facts about the pjsua2 in use."""

    distribution: str
    """Name and version of the installed package, or "unknown"."""
    version: str
    """pjproject's own version."""
    path: str
    """Where the extension module was loaded from."""
    tls: str
    """The TLS library that is loaded."""


@cache
def build() -> Build:
    """Describe the pjsua2 in use; needs no started endpoint. Reads files, at the first time."""
    try:
        found = f"pjsua2-gateway {importlib.metadata.version('pjsua2-gateway')}"
    except importlib.metadata.PackageNotFoundError:
        found = "unknown"
    return Build(
        distribution=found,
        version=str(pj.BUILD["version"]),
        path=str(pj._pjsua2.__file__),
        tls=str(pj.nativeTlsLibrary()),
    )


MESSAGES_LEVEL = 4
"""At which pjsip writes the SIP messages that it sends and receives."""


def endpoint_config(settings: SipSettings, log_writer: Any, *, messages: bool = False) -> Any:
    """Return the configuration for ``libInit``. ``log_writer`` must live as long as the library.

    With ``messages`` the log has every SIP message as it is on the wire, passwords' digests and
    keys of SRTP included: that is for who takes them out.
    """
    config = pj.EpConfig()
    config.logConfig.level = config.logConfig.consoleLevel = (
        max(settings.log_level, MESSAGES_LEVEL) if messages else settings.log_level
    )
    config.logConfig.msgLogging = int(messages)
    config.logConfig.writer = log_writer
    config.uaConfig.threadCnt = 0
    config.uaConfig.mainThreadOnly = False
    config.uaConfig.maxCalls = 65535  # cut down by the library to what it was built for
    config.uaConfig.userAgent = settings.user_agent
    if settings.stun_server:
        servers = pj.StringVector()
        servers.append(settings.stun_server)
        config.uaConfig.stunServer = servers
        config.uaConfig.stunIgnoreFailure = True
    return config


def configure_media(media: Any, settings: SipSettings) -> None:
    """Set media to 8 kHz mono and frames of 20 ms, without voice activity detection, echo
    cancellation or sound device, with room in the bridge for ``max_calls``."""
    media.clockRate = media.sndClockRate = SAMPLE_RATE
    media.channelCount = 1
    media.audioFramePtime = FRAME_MS
    media.ptime = FRAME_MS
    media.noVad = True
    media.ecTailLen = 0
    media.sndAutoCloseTime = -1
    # A stream and a port of ours for each call, as many again while their removal is under way,
    # and the master port. Not more: each port has tables as long as this.
    media.maxMediaPorts = max(254, 4 * settings.max_calls + 16)
    settings.jitter_buffer.apply(media)


class CodecOrder:
    """The library's one order of codecs for all calls, which it reads when it makes SDP.

    Args:
        endpoint: pjsua2's, initialised; every codec but G.711 is switched off in it.
    """

    def __init__(self, endpoint: Any) -> None:
        self._endpoint = endpoint
        self._offered: list[Codec] = []
        if pj.nativeRegisterWideCodecs():
            log.error("sip.no_wide_codecs")
        codecs = endpoint.codecEnum2()
        for index in range(len(codecs)):
            endpoint.codecSetPriority(str(codecs[index].codecId), 0)
        self.offer(list(G711))

    def offer(self, codecs: list[Codec]) -> None:
        """Set the codecs, in order of preference, of SDP that the library makes from now on, for
        any call; others are off."""
        if codecs == self._offered:
            return
        self._offered = list(codecs)
        for codec in Codec:
            priority = 220 - codecs.index(codec) if codec in codecs else 0
            self._endpoint.codecSetPriority(codec.rtpmap, priority)


def bridge_failures() -> int:
    """Return how many operations of the bridge have failed since the start. Any thread."""
    return int(pj.nativeBridgeFailures())


def late_beats() -> Distribution:
    """Return the distribution of the media clock's lateness (s) since the start. Any thread."""
    found = Distribution(LAG)
    found.counts, found.total = pj.nativeLateBeats()
    return found


def beats() -> int:
    """Return how often the media clock has ticked while ports were in use. Any thread."""
    return int(pj.nativeBeats())


LINES_PER_SECOND = 1.0
LINES_AT_ONCE = 20
"""Of warnings and errors. pjsip writes one for each packet that it cannot read."""

MAX_TEXT = 2000
"""Characters of one line; it may quote a packet."""


def _says_port_taken(text: str) -> bool:
    """Return whether a log line reports an RTP port in use, which ports in quarantine after a call
    cause."""
    return "P socket bind() at " in text and " in use" in text


class LogWriter(pj.LogWriter):  # type: ignore[misc]
    """Takes each line of pjsip's log, on any of its threads, for our own log.

    Args:
        on_line: takes all lines, in place of our own log.
    """

    def __init__(self, on_line: Callable[[str], None] | None = None) -> None:
        super().__init__()
        self._on_line = on_line
        self._bucket = TokenBucket(LINES_PER_SECOND, LINES_AT_ONCE)
        self._dropped = 0

    def write(self, entry: Any) -> None:
        """Pass one line to ``on_line``, or else log it: errors and warnings (levels 1 and 2) as
        warnings, ``LINES_PER_SECOND`` at most, the number of those left out in the next one;
        others, and ports in use, as debug. Raises nothing."""
        try:
            if self._on_line is not None:
                self._on_line(unicode_of(str(entry.msg)))
                return
            text = unicode_of(str(entry.msg)).strip()[:MAX_TEXT]
            if entry.level > 2 or _says_port_taken(text):
                log.debug("pjsip", text=text)
                return
            if not self._bucket.take(time.monotonic()):
                self._dropped += 1
                return
            dropped, self._dropped = self._dropped, 0
            more = {"lines_left_out": dropped} if dropped else {}
            log.warning("pjsip", text=text, **more)
        except Exception:  # a log line is never worth a call
            return


POLL_MS = 5
"""Longest wait for a SIP message before posted commands are looked at, ms."""

MAX_COMMANDS = 100_000
"""Posted and not yet run. Each call posts a handful in its life; only a hung thread gets here."""

LOG_SECONDS = 1.0
"""At most one line in the log for what turns raise, in so many seconds."""


class SipThread:
    """Polls pjsip, runs posted commands, and does the housekeeping, in turns, on one thread until
    told to stop.

    Args:
        poll: handles pjsip's events for at most the given ms.
        housekeeping: called after every turn, outside all callbacks.
    """

    def __init__(self, poll: Callable[[int], Any], housekeeping: Callable[[], None]) -> None:
        self.loop: asyncio.AbstractEventLoop | None = None
        """That :meth:`to_loop` runs callbacks on."""
        self._poll = poll
        self._housekeeping = housekeeping
        self._commands: deque[Callable[[], object]] = deque()
        self._stopping = False
        self._ended = ""
        self._polled = 0.0
        self._thread: threading.Thread | None = None
        self.failures = 0
        """Parts of turns that raised something."""
        self._next_log = 0.0
        self.dropped = 0
        """Commands refused because the queue was full."""

    def start(self, first: Callable[[], None], last: Callable[[], None]) -> None:
        """Start the thread. ``first`` runs before the first turn, ``last`` after the last one, also
        where ``first`` raises: then there are no turns."""

        def run() -> None:
            try:
                first()
            except BaseException:
                last()
                return
            try:
                self._turn_until_stopped()
            except BaseException as error:
                self._ended = f"ended: {type(error).__name__}: {error}"
                log.exception("sip.thread_ended")
            finally:
                last()

        self._thread = threading.Thread(target=run, name="sip", daemon=True)
        self._thread.start()

    def post(self, command: Callable[[], object]) -> None:
        """Run ``command`` on the SIP thread, within a turn (5 ms), after what was posted before;
        its exception is logged. Dropped, and counted, where ``MAX_COMMANDS`` wait. Any thread."""
        if len(self._commands) >= MAX_COMMANDS:
            self.dropped += 1
            return
        self._commands.append(command)

    @property
    def waiting(self) -> int:
        """Return how many commands are queued."""
        return len(self._commands)

    def to_loop(self, callback: Callable[..., object], *args: Any) -> None:
        """Call ``callback(*args)`` on the event loop, soon, after what was given before; dropped
        before the loop is known and once it is closed. Any thread."""
        if self.loop is not None and not self.loop.is_closed():
            self.loop.call_soon_threadsafe(callback, *args)

    def answer(
        self, future: asyncio.Future[_T], function: Callable[[], _T]
    ) -> BaseException | None:
        """Run a function on this thread, and give its result or exception to a future of the event
        loop, unless that is done by then.

        Returns the exception that it raised, or None.
        """
        try:
            result = function()
        except BaseException as error:
            raised = error
            self.to_loop(lambda: None if future.done() else future.set_exception(raised))
            return raised
        self.to_loop(lambda: None if future.done() else future.set_result(result))
        return None

    def trouble(self, seconds: float) -> str:
        """Return why the thread carries no calls: ended, or no poll for ``seconds``; "" if it is
        well.

        Any thread may ask.
        """
        if self._ended or not self._polled:
            return self._ended
        silent = time.monotonic() - self._polled
        return f"nothing polled for {silent:.0f} s" if silent >= seconds else ""

    def stop(self) -> None:
        """Leave the turns after the commands already posted; does not wait. Any thread."""
        self.post(self._stop_now)

    def join(self, timeout: float) -> bool:
        """Wait for the thread's end at most ``timeout`` seconds; True when it is gone, or was never
        started."""
        if self._thread is None:
            return True
        self._thread.join(timeout)
        return not self._thread.is_alive()

    def _stop_now(self) -> None:
        """End the turns after this one."""
        self._stopping = True

    def _turn_until_stopped(self) -> None:
        """Poll pjsip, run the queued commands and the housekeeping, again and again."""
        while not self._stopping:
            if self._run(lambda: self._poll(POLL_MS), "poll"):
                self._polled = time.monotonic()
            for _ in range(len(self._commands)):
                self._run(self._commands.popleft(), "command")
            self._run(self._housekeeping, "housekeeping")

    def _run(self, what: Callable[[], Any], part: str) -> bool:
        """Run one part of a turn; return whether it succeeded. An exception is counted, and logged
        with ``part`` at most once in ``LOG_SECONDS``."""
        try:
            what()
            return True
        except Exception:
            self.failures += 1
            now = time.monotonic()
            if now >= self._next_log:  # a turn comes every 5 ms
                self._next_log = now + LOG_SECONDS
                log.exception("sip.turn_failed", part=part, count=self.failures)
            return False


DESCRIPTORS_PER_CALL = 3
"""RTP, RTCP, and the session's WebSocket."""

OWN_DESCRIPTORS = 128
"""What the process has without a call: libraries, log, listeners, wake-up pipes, records; and
sockets of calls that have ended and linger for a moment."""


SPARE_DESCRIPTORS = 24
"""Not for further calls: for sessions of calls that have just begun, and for requests of status."""


def descriptors_needed(calls: int) -> int:
    """Return the file descriptors needed for so many calls at a time."""
    return OWN_DESCRIPTORS + DESCRIPTORS_PER_CALL * calls


def descriptor_limits() -> tuple[int, int]:
    """Return the soft and hard limit of open files (``ulimit -Sn``, ``-Hn``); unlimited is 2**31 -
    1."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    return _counted(soft), _counted(hard)


def raise_descriptor_limit(calls: int) -> bool:
    """Raise the soft limit of open files to what ``calls`` need, or to the hard one where that is
    less, which returns False. A higher one stays."""
    need = descriptors_needed(calls)
    soft, hard = descriptor_limits()
    if soft < need:
        top = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
        resource.setrlimit(resource.RLIMIT_NOFILE, (min(need, hard), top))
    return hard >= need


def descriptors_left(count: int) -> bool:
    """Return whether the process can open ``count`` more descriptors, by opening and closing
    them."""
    opened: list[int] = []
    try:
        for _ in range(count):
            opened.append(os.dup(0 if not opened else opened[0]))
    except OSError:
        return False
    finally:
        for descriptor in opened:
            os.close(descriptor)
    return True


def _counted(limit: int) -> int:
    """Return a limit of ``resource`` as a number that can be compared; unlimited is 2**31 - 1."""
    return 2**31 - 1 if limit == resource.RLIM_INFINITY else limit


class _NoLog(pj.LogWriter):  # type: ignore[misc]
    def write(self, entry: Any) -> None:
        """Drop a line: pjsip's log does not belong in the report."""


def probe() -> None:
    """Start and stop an endpoint with a null sound device, and print the library's build, calls and
    trunks at most as JSON."""
    settings = SipSettings(listen=(), log_level=0)
    silence_log()
    endpoint, writer = pj.Endpoint(), _NoLog()
    endpoint.libCreate()
    config = endpoint_config(settings, writer)
    configure_media(config.medConfig, settings)
    endpoint.libInit(config)
    endpoint.audDevManager().setNullDev()
    found = {
        "build": asdict(build()),
        "capacity": capacity(),
        "trunks": account_capacity() - 1,
    }
    endpoint.libDestroy()
    for held in (endpoint, writer):
        held.this.disown()
    print(json.dumps(found))


if __name__ == "__main__":
    probe()


_T = TypeVar("_T")
