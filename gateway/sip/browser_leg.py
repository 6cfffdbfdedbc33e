# SPDX-License-Identifier: GPL-2.0-or-later
"""A leg whose telephone is a page in a browser: G.711 over a WebSocket instead of SIP and RTP.

To everything above it is a leg as any other. Its audio has the queues that a SIP call has: the
microphone's frames go through the sequencer as RTP payloads do, and what it hears is taken from the
conference bridge, where sounds and other legs are mixed in.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Any

import pjsua2 as pj
import structlog

from gateway.audio import FRAME_BYTES, Codec
from gateway.sip.active_calls import CallServices
from gateway.sip.call_audio import CallAudio, Port, Source
from gateway.sip.conference import ConferenceLink
from gateway.sip.leg import Leg, LegEnd, ReferProgress
from gateway.sip.library import SipThread
from gateway.sip.rtp import RtpQuality

log = structlog.get_logger("sip")

TRANSPORT = "browser"
"""In the place of udp, tcp or tls, of an INVITE that a page stands for."""

MIXED_FRAMES = 10
"""Frames of 20 ms queued for other legs at most; older ones are dropped."""

IDLE_FRAMES, LOOK_FRAMES = 3, 50
"""If at least ``IDLE_FRAMES`` were queued through all of the last ``LOOK_FRAMES`` (1 s), the queue
only adds delay, and is flushed."""

_OK, _TERMINATED, _DECLINED, _FAILED, _NOT_IMPLEMENTED, _UNAVAILABLE = 200, 487, 603, 500, 501, 503
_TEXT = re.compile(r'text="([^"]*)"')


class BrowserEnd:
    """The page's side of a browser leg, as the event loop holds it.

    Args:
        tell: given what the page is to know, as JSON objects with a ``type``; on the event loop.
    """

    def __init__(self, leg: Leg, thread: SipThread, tell: Callable[[dict[str, Any]], None]) -> None:
        self.leg = leg
        self.tell = tell
        self.audio = CallAudio(Codec.PCMU, MIXED_FRAMES)
        """``playout`` is what the page says, where other legs hear it; ``uplink`` what it hears."""
        self.call: BrowserCall | None = None
        """Set and used on the SIP thread."""
        self.received = self.sent = self.skipped = 0
        """Frames of 20 ms: from the page, to it, and of those received the ones that other legs
        did not hear because they came in a burst or too fast."""
        self._thread = thread
        self._least = self._looked = 0

    def say(self, audio: bytes) -> None:
        """Take audio of the microphone: G.711, whole frames of 20 ms. It goes to the session; while
        the leg is joined with another, also into the bridge."""
        for start in range(0, len(audio), FRAME_BYTES):
            frame = audio[start : start + FRAME_BYTES]
            if self.leg.audio is not None:
                self.leg.audio.uplink.receive(self.received, frame)
            self.received += 1
            if self.call is not None and self.call.link.partner is not None:
                self._mix(frame)

    def _mix(self, frame: bytes) -> None:
        """Queue a frame for the bridge, which takes one every 20 ms by its own clock. The queue is
        flushed first, and that counted in ``skipped``, where it is full, or was never short in the
        last second."""
        playout = self.audio.playout
        waiting = len(playout)
        self._least = min(self._least, waiting) if self._looked else waiting
        self._looked += 1
        late = False
        if self._looked == LOOK_FRAMES:
            late, self._looked = self._least >= IDLE_FRAMES, 0
        if late or waiting >= MIXED_FRAMES:
            self.skipped += playout.flush()
        playout.put(frame)

    def hear(self) -> bytes:
        """Return all audio for the page since the last call, as G.711, and count its frames in
        ``sent``."""
        audio = self.audio.uplink.drain()
        self.sent += len(audio) // FRAME_BYTES
        return audio

    def press(self, digit: str) -> None:
        """Report a DTMF digit that was pressed in the page to the leg's handler (``on_digit``)."""
        if self.leg.handler is not None:
            self.leg.handler.on_digit(digit)

    def leave(self) -> None:
        """End the leg because the page has hung up or disconnected; nothing if it has ended."""
        self._thread.post(lambda: None if self.call is None else self.call.page_left())


class BrowserCall:
    """Counterpart of a SIP call for a leg in a browser. Used on the SIP thread only."""

    def __init__(
        self, services: CallServices, end: BrowserEnd, on_ended: Callable[[BrowserCall], None]
    ) -> None:
        self.ended = False
        self.link = ConferenceLink(services.sounds, services.pool, 0, may_send=True)
        self._services = services
        self._on_ended = on_ended
        self._end = end
        self._leg = end.leg
        self._port: Port | None = None
        """The bridge's side of the page, once media is up."""
        self._answered = False
        end.call = end.leg.call = self

    @property
    def name(self) -> str:
        """The call's id, for logs."""
        return self._leg.call_id

    def run(self, command: Callable[[BrowserCall], None]) -> None:
        """Run a command of the event loop; what it raises ends this call."""
        try:
            command(self)
        except Exception as error:
            log.exception("sip.call_failed", call=self.name)
            self.end(_UNAVAILABLE if isinstance(error, pj.Error) else _FAILED, "Gateway error")

    def respond(self, code: int) -> None:
        """Tell the page that it rings (180), is heard (183) or is answered (200); from 183 on its
        audio is connected. 200 also confirms the leg (``on_confirmed``)."""
        if code >= 183 and self._port is None and self._leg.audio is not None:
            self._open(self._leg.audio)
        if code == _OK:
            self._answered = True
            self._tell({"type": "answered"})
            self._leg.tell(lambda handler: handler.on_confirmed())
        else:
            self._tell({"type": "ringing" if code == 180 else "progress"})

    def _open(self, audio: CallAudio) -> None:
        """Connect the page's audio with the conference bridge, and report that media is up
        (``on_media``). Raises ``pj.Error`` where the bridge has no place."""
        far = self._end.audio
        far.uplink.listen(Source.BRIDGE)
        far.uplink.heard_by_caller_of(audio)
        self._port = self._services.pool.take(far)
        self.link.take_port(audio)
        self.link.wire(self._port)
        self._leg.security = TRANSPORT
        self._leg.tell(lambda handler: handler.on_media(Codec.PCMU))

    def finish(self, code: int, headers: Mapping[str, str]) -> None:
        """End the leg, as ours: with 200 if it was answered, else with ``code`` (0: 603). The page
        is told the text of a Reason header."""
        found = _TEXT.search(headers.get("Reason", ""))
        code = _OK if self._answered else code or _DECLINED
        self.end(code, found[1] if found else "")

    def page_left(self) -> None:
        """End the leg because the page has hung up or disconnected: as BYE if it was answered, else
        as CANCEL."""
        if self._answered:
            self.end(_OK, "Normal call clearing", "BYE")
        else:
            self.end(_TERMINATED, "Request Terminated", "CANCEL")

    def end(self, code: int, reason: str, method: str = "") -> None:
        """Release port and media, and report the end to page and handler, once. Without a
        ``method``, BYE or CANCEL, the end is ours."""
        if self.ended:
            return
        self.ended = True
        self._on_ended(self)
        self.link.disconnect()
        self.link.close()
        if self._port is not None:
            self._services.pool.give_back(self._port)
        self._tell({"type": "ended", "code": code, "reason": reason})
        end = LegEnd(code, reason, method, "", local=not method)
        self._leg.tell(lambda handler: handler.on_ended(end))
        self._leg.call = None

    def play(self, sound: str) -> None:
        """Let the page hear a sound in a loop, in place of the one before; "" stops it."""
        self.link.play(sound)

    def press(self, digit: str, _how: str) -> None:
        """Send a DTMF digit to the page as a message; nothing is heard."""
        self._tell({"type": "dtmf", "digit": digit})

    def hold(self, _held: bool) -> None:
        """Do nothing: there is no SDP that could say so."""

    def offer(self, _codecs: list[Codec]) -> None:
        """Do nothing: there is no SDP, and the page's codec is fixed."""

    def refer(self, _target: str, on_progress: Callable[[ReferProgress], None]) -> None:
        """Refuse with a final 501: a page places no calls. Its calls are bridged instead."""
        progress = ReferProgress(_NOT_IMPLEMENTED, "a browser follows no REFER", True)
        self._services.thread.to_loop(on_progress, progress)

    def refer_to(self, _other: Any, on_progress: Callable[[ReferProgress], None]) -> None:
        """Refuse with 501, as :meth:`refer`."""
        self.refer("", on_progress)

    def join(self, other: Any, listen: bool, level: float | None) -> None:
        """Let page and B-leg hear each other; see :meth:`ConferenceLink.join`."""
        self.link.join(other.link, listen, level)

    def poll_quality(self) -> None:
        """Report the frames received from the page and sent to it as packets (``on_quality``),
        without quality: TCP loses none."""
        quality = RtpQuality(self._end.received, 0, 0.0, self._end.sent)
        self._leg.tell(lambda handler: handler.on_quality(quality))

    def _tell(self, message: dict[str, Any]) -> None:
        """Give the page a message, on the event loop."""
        self._services.thread.to_loop(self._end.tell, message)
