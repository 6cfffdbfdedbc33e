# SPDX-License-Identifier: GPL-2.0-or-later
"""A leg: its INVITE, its handle on the event loop, what its owner is on_progress, and how it ended.

Plain values, and commands that are run on the SIP thread: no pjsua2 object leaves that thread."""

from __future__ import annotations

import re
import secrets
import time
import uuid
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol, Self

from gateway.audio import G711, Codec
from gateway.ending import EndReason
from gateway.sip.rtp import RtpQuality

if TYPE_CHECKING:
    from gateway.sip.call_audio import CallAudio
    from gateway.sip.library import SipThread


def new_call_id() -> str:
    """The gateway's own id of a call: a UUIDv7 (RFC 9562 section 5.7), sorted by time.

    The SIP Call-ID is the caller's choice: two calls may have the same, and it may be longer, or
    look otherwise, than file names, commands and logs can take.
    """
    bits = time.time_ns() // 1_000_000 << 80 | secrets.randbits(80)
    bits = bits & ~(0xF << 76) | 7 << 76  # the version
    return str(uuid.UUID(int=bits & ~(3 << 62) | 2 << 62))  # the variant


@dataclass(frozen=True, slots=True)
class Invite:
    """An INVITE, as routes and records need it. ``headers`` is keyed by lower-case full name."""

    sip_call_id: str
    """Its Call-ID, which is the caller's choice; empty while a call of ours has none yet."""
    to_uri: str
    from_uri: str
    to_user: str
    from_user: str
    from_name: str
    source: str
    """``address:port`` the request came from."""
    headers: Mapping[str, tuple[str, ...]]
    offered: tuple[Codec, ...] | None
    """G.711 codecs offered, the one to take first; None when the INVITE brought no offer."""
    trunk: str = ""
    """Name of the trunk that it belongs to."""
    attributed_by: str = ""
    """registration, registrar or peer: how that was found."""
    transport: str = ""
    """udp, tcp or tls, as it came."""
    there: bool = False
    """Whoever sent it is known to be where it came from: over UDP anybody can forge that."""
    codecs: tuple[Codec, ...] = G711
    """What we offer where the INVITE brought no offer: its trunk's, in their order."""
    call_id: str = field(default_factory=new_call_id)
    """The gateway's own id of the call."""

    @property
    def trusted(self) -> bool:
        """Whether its source is known to be real, or a trunk's, so that a session may be opened
        before its ACK."""
        return self.there or bool(self.trunk)


@dataclass(frozen=True, slots=True)
class RejectedInvite:
    """An INVITE that was answered below the application: no common codec, no free call."""

    invite: Invite | None
    """None where the library no longer had the message."""
    code: int
    reason: str
    why: EndReason | None = None
    """Where it is known; else the code has to say it."""


@dataclass(frozen=True, slots=True)
class LegEnd:
    """How a leg ended, as SIP saw it."""

    code: int
    """Last status code: 200 after a BYE, 487 after a CANCEL, the refusal otherwise; 0 where a call
    of ours reached nobody."""
    reason: str
    """Its reason phrase."""
    method: str
    """BYE or CANCEL when the peer ended the leg with one, else empty."""
    reason_header: str
    """The Reason header (RFC 3326) of that request, else empty."""
    local: bool
    """True when we ended it."""
    undelivered: str = ""
    """What became of a BYE of ours that was not taken: the other side may think the call is up."""


class LegHandler(Protocol):
    """Interface of the owner of a leg. All calls come on the event loop, in order; what comes
    before a leg has a handler is dropped."""

    def on_ringing(self, code: int) -> None:
        """Handle a provisional response (such as 180, 183) to a call that we placed."""

    def on_media(self, codec: Codec) -> None:
        """Handle media that came up, or was agreed anew, with this codec."""

    def on_confirmed(self) -> None:
        """Handle the ACK of the dialog, received or sent: the call is answered."""

    def on_hold(self, held: bool) -> None:
        """Handle a hold (True) or resumption by the peer (RFC 3264 section 8.4)."""

    def on_digit(self, digit: str) -> None:
        """Handle a DTMF digit of the peer, by RFC 4733 or INFO: one of ``0-9 * # A-D``. Once for
        each press."""

    def on_quality(self, quality: RtpQuality) -> None:
        """Handle RTP counters of the leg so far, about once a second while it has media."""

    def on_ended(self, end: LegEnd) -> None:
        """Handle the end of the leg, after a BYE of ours its outcome included; nothing is called
        after this."""


class IgnoringHandler:
    """Handler that ignores everything; a base of those that look at little of a leg."""

    def on_ringing(self, code: int) -> None: ...
    def on_media(self, codec: Codec) -> None: ...
    def on_confirmed(self) -> None: ...
    def on_hold(self, held: bool) -> None: ...
    def on_digit(self, digit: str) -> None: ...
    def on_quality(self, quality: RtpQuality) -> None: ...
    def on_ended(self, end: LegEnd) -> None: ...


@dataclass(frozen=True, slots=True)
class ReferProgress:
    """The response to our REFER (100 stands for 202), or the status line of a NOTIFY (RFC 3515
    section 2.4.5); ``final``: the subscription is over."""

    code: int
    phrase: str
    final: bool


class LegCall(Protocol):
    """The pjsua2 call behind a leg; used on the SIP thread. See
    :class:`gateway.sip.sip_call.SipCall` for what each command does."""

    ended: bool

    def run(self, command: Callable[[Self], None]) -> None: ...
    def respond(self, code: int) -> None: ...
    def finish(self, code: int, headers: Mapping[str, str]) -> None: ...
    def play(self, sound: str) -> None: ...
    def press(self, digit: str, how: str) -> None: ...
    def hold(self, held: bool) -> None: ...
    def offer(self, codecs: list[Codec]) -> None: ...
    def refer(self, target: str, on_progress: Callable[[ReferProgress], None]) -> None: ...
    def refer_to(self, other: Any, on_progress: Callable[[ReferProgress], None]) -> None: ...
    def join(self, other: Any, listen: bool, level: float | None) -> None: ...

    @property
    def link(self) -> Any: ...


class Leg:
    """Handle of a leg on the event loop. Its methods post to the SIP thread and return at once.

    ``handler`` and ``audio`` are set by the owner before the leg can need them: in the callback
    that announces it, or when it is dialled.
    """

    def __init__(self, thread: SipThread, invite: Invite) -> None:
        self.invite = invite
        self.handler: LegHandler | None = None
        self.audio: CallAudio | None = None
        self.logged: CallAudio | None = None
        """Takes the headers of the leg's packets while it has no ``audio``."""
        self.call_id = invite.call_id
        """The gateway's id of the call that it belongs to, for logs."""
        self.security = ""
        """``rtp``, or what SRTP was negotiated; empty until that is known."""
        self.given_up = False
        """Hung up by its owner; one that was not dialled yet is not dialled any more."""
        self.placed = False
        """We placed it, or it has taken the place of one that we placed."""
        self.allowed_refer_to: re.Pattern[str] | None = None
        """URIs that the peer may send us to by REFER; none by default."""
        self.on_replaced: Callable[[Leg], None] | None = None
        """Told, on the event loop, which leg has taken the place of this one."""
        self.on_refer: Callable[[str], None] | None = None
        """Told, on the event loop, of the target of each REFER of the peer, followed or not."""
        self.call: LegCall | None = None
        """Set and read on the SIP thread, where the last reference to it has to go."""
        self._thread = thread
        self._plays = False

    def ring(self) -> None:
        """Send 180 Ringing, without media."""
        self._command(lambda call: call.respond(180))

    def progress(self) -> None:
        """Send 183 Session Progress with a description: early media (RFC 3960)."""
        self._command(lambda call: call.respond(183))

    def answer(self) -> None:
        """Send 200 OK with a description."""
        self._command(lambda call: call.respond(200))

    def refuse(self, code: int, headers: Mapping[str, str] | None = None) -> None:
        """Send this final response to the INVITE, with these headers added; BYE where the leg was
        answered."""
        self._command(lambda call: call.finish(code, headers or {}))

    def hang_up(self, headers: Mapping[str, str] | None = None) -> None:
        """End the leg with BYE, CANCEL or 603, whichever its dialog's state allows; a call that
        waits for the look-up of a name is not placed.

        ``headers`` are added to that message.
        """
        self.given_up = True
        self._command(lambda call: call.finish(0, headers or {}))

    def play(self, sound: str) -> None:
        """Play a sound (a built-in one's name or a WAV file's path) to the peer in a loop; "" stops
        it.

        It is stopped on the SIP thread, so playout is paused until that has happened.
        """
        audio, ends = self.audio, self._plays and not sound
        self._plays = bool(sound)
        if audio is not None and ends:
            audio.playout.await_sound(True)
        self._command(lambda call: call.play(sound))
        if audio is not None and ends:
            self._thread.post(lambda: audio.playout.await_sound(False))

    def press(self, digit: str, how: str = "auto") -> None:
        """Send one DTMF digit. ``how`` is rfc4733, info, or auto: RFC 4733, and INFO where the peer
        lacks it."""
        self._command(lambda call: call.press(digit, how))

    def hold(self, held: bool) -> None:
        """Hold (True) or resume the peer by a re-INVITE (RFC 3264 section 8.4)."""
        self._command(lambda call: call.hold(held))

    def offer(self, codecs: list[Codec]) -> None:
        """Offer these codecs, and no others, by a re-INVITE."""
        self._command(lambda call: call.offer(codecs))

    def refer(self, target: str, on_progress: Callable[[ReferProgress], None]) -> None:
        """Send REFER to a sip or tel URI: blind transfer (RFC 3515). ``on_progress`` is told its
        response and each NOTIFY, on the event loop."""
        self._command(lambda call: call.refer(target, on_progress))

    def refer_to(self, other: Leg, on_progress: Callable[[ReferProgress], None]) -> None:
        """Send REFER with Replaces (attended transfer): the peer takes over our call ``other`` (RFC
        3891). ``on_progress`` as of :meth:`refer`; 481 where the other call is over."""

        def run(call: LegCall) -> None:
            if other.call is None or other.call.ended:
                progress = ReferProgress(481, "the other call is over", True)
                self._thread.to_loop(on_progress, progress)
            else:
                call.refer_to(other.call, on_progress)

        self._command(run)

    def hear_fully(self) -> None:
        """Let the peer hear the leg that it was joined with at a level at full volume."""
        self._command(lambda call: call.link.hear_fully())

    def join(self, other: Leg, listen: bool, level: float | None = None) -> None:
        """Let the peers of both legs hear each other; the session listens to both, or (``listen``
        False) to none. Nothing if the other leg has ended.

        With ``level`` they hear each other so loud (a factor), and each leg keeps its audio.
        """

        def run(call: LegCall) -> None:
            if other.call is not None and not other.call.ended:
                call.join(other.call, listen, level)

        self._command(run)

    def tell(self, event: Callable[[LegHandler], None]) -> None:
        """Call ``event`` with the handler, on the event loop; nothing if it has none by then. Any
        thread."""
        self._thread.to_loop(lambda: None if self.handler is None else event(self.handler))

    def _command(self, command: Callable[[LegCall], None]) -> None:
        """Post a command to the SIP thread. It is dropped when the leg has no call yet, or the call
        has ended, by then; what it raises ends the leg."""

        def run() -> None:
            call = self.call
            if call is not None and not call.ended:
                call.run(command)

        self._thread.post(run)
