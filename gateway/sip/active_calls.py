# SPDX-License-Identifier: GPL-2.0-or-later
"""The calls of a user agent, and what they share.

Calls are held for as long as the library may name them, and counted; BYEs are followed to their
answer.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol, TypeVar

import structlog

from gateway.addresses import Names
from gateway.measures import BoundedDict
from gateway.sip.call_audio import PortPool
from gateway.sip.conference import ConferenceLink, Sounds
from gateway.sip.leg import Leg
from gateway.sip.library import CodecOrder, SipThread
from gateway.sip.signalling import Negotiation, Signalling
from gateway.sip.transports import RtpPortQuarantine
from gateway.sip.trunks import ChallengedCall

log = structlog.get_logger("sip")

_T = TypeVar("_T")

KEYS_SECONDS = 0.05
"""How often a call is asked for keys that it waits for."""

MAX_ENDED = 4096
"""Ended calls whose BYE may still be asked for a password: 100 calls/s for 32 s (timer F)."""

QUALITY_SECONDS = 1.0
"""How often the RTP counters of each leg are read."""


class GiveBack(Protocol):
    """Function that gives back a call's place in what all processes count. On the event loop."""

    def __call__(self, *, unused: bool = False) -> None:
        """Give a place back; ``unused``: no call was placed, so their rate does not count it."""


def no_place(*, unused: bool = False) -> None:
    """Give nothing back: no other process counts the call."""


class ReferPermit(NamedTuple):
    """Whether following a REFER may place a call, by what all processes count."""

    rule: str
    """Why not; empty: it may."""
    give_back: GiveBack


PermitFollowed = Callable[[str, Callable[[ReferPermit], None]], None]
"""Asks for a permit for the call of this id, and tells it; both on the event loop."""


class HeldCall(Protocol):
    """Interface of a call towards :class:`Calls`."""

    ended: bool
    answered: bool
    """We have sent 200."""
    acknowledged: bool
    """The ACK has come: only BYE ends it."""
    followed: bool
    """A REFER made this call."""
    party: str
    """Whose calls this one is counted with."""
    this: Any

    leg: Leg | None
    link: ConferenceLink

    @property
    def name(self) -> str: ...
    @property
    def sip_call_id(self) -> str: ...
    def getId(self) -> int: ...  # noqa: N802 (pjsua2's name)
    def challenged(self) -> ChallengedCall:
        """Return what :class:`Challenges` asks about this call."""

    def keys_known(self) -> bool:
        """Return whether SRTP keys are agreed, or none are needed."""

    def poll_quality(self) -> None:
        """Report the RTP counters to the leg's handler (``on_quality``); nothing without media."""

    def fail(self) -> None:
        """End the call because of an error of the gateway's, with 500 or BYE; nothing if it has
        ended."""

    def release(self) -> None:
        """Drop the references between call and leg."""

    def give_back(self) -> None:
        """Return the permit of a call that a REFER made; nothing without one."""


class Calls:
    """Calls of the user agent. Used on the SIP thread, unless a method says any thread."""

    def __init__(self) -> None:
        self.may_follow_refer: Callable[[str], Callable[[], None] | None] = lambda _uri: no_place
        """Asked on the SIP thread before a REFER makes a call of ours: None where it may not, else
        what frees the place that was taken for it, once it is counted here."""
        self.permit_followed: PermitFollowed | None = None
        """Asked on the loop before that, where other processes count such calls too."""
        self.permit: ReferPermit | None = None
        """Its answer, while pjsip takes the REFER."""
        self.awaiting_keys: list[HeldCall] = []
        """Calls whose SRTP keys are agreed by DTLS, in media, which no callback tells of."""
        self._followed: set[HeldCall] = set()
        self._all: list[HeldCall] = []
        self._retired: list[HeldCall] = []
        self._ended: BoundedDict[str, ChallengedCall] = BoundedDict(MAX_ENDED)
        self._parties: Counter[str] = Counter()
        self._next_keys = 0.0

    def __bool__(self) -> bool:
        """Return whether any call is held, ended ones that are not released yet included."""
        return bool(self._all)

    @property
    def live(self) -> int:
        """Number of calls that have not ended."""
        return sum(not call.ended for call in self._all)

    @property
    def followed(self) -> int:
        """Number of calls in progress that a REFER made, but those that have the place of a call
        that we placed. Any thread."""
        return len(self._followed)

    def of(self, party: str) -> int:
        """Return how many calls of a party (``access_control.party_of``) are held: in progress, or
        ended and not released yet. Any thread."""
        return self._parties.get(party, 0)

    def unacknowledged(self, trunk: str) -> int:
        """Return how many calls wait for their ACK, to a 200 of ours; of unknown sources also those
        that are not answered yet. On the SIP thread.

        Args:
            trunk: of its calls those that we have answered; "": all calls of unknown sources.
        """
        return sum(
            not (call.acknowledged or call.ended)
            and (
                (call.answered and call.party == f"trunk {trunk}")
                if trunk
                else call.party.startswith("source ")
            )
            for call in self._all
        )

    def add(self, call: HeldCall, party: str) -> None:
        """Keep a call referenced for as long as pjsip may call it, and count it with its party's
        until :meth:`release_all` lets it go."""
        self._all.append(call)
        call.party = party
        self._parties[party] += 1

    def count_followed(self, call: HeldCall) -> None:
        """Count a call that a REFER made among those that we place, until :meth:`uncount_followed`
        or its end."""
        self._followed.add(call)

    def uncount_followed(self, call: HeldCall) -> None:
        """Count a call no more among those that REFERs made, and give its permit back; nothing if
        it is not counted there."""
        if call in self._followed:
            self._followed.remove(call)
            call.give_back()

    def retire(self, call: HeldCall) -> None:
        """Mark an ended call for :meth:`release_all`, which comes once none of its callbacks is on
        the stack. One that a REFER made is counted as such no more, and its permit given back.

        May be called several times for a call; only the first one counts.
        """
        if call in self._retired or call not in self._all:
            return
        self._retired.append(call)
        self.uncount_followed(call)

    def release_all(self) -> None:
        """Drop references to ended calls, unless a newer call has their slot in the library; they
        are no longer counted with their party, and remembered for challenges to their BYE.

        To be called outside of pjsua2's callbacks.
        """
        if not self._retired:
            return
        # A Call's destructor hangs up, and makes deaf, whatever call has its library slot by then,
        # and a slot may be taken again before we are back here: keep it until the slot is free.
        taken = {call.getId() for call in self._all if not call.ended}
        waiting = self._retired
        self._retired = [call for call in waiting if call.getId() in taken]
        for call in waiting:
            if call.getId() in taken:
                continue
            self._all.remove(call)
            self._parties[call.party] -= 1
            if not self._parties[call.party]:
                del self._parties[call.party]
            self._ended[call.sip_call_id] = call.challenged()
            call.release()

    def poll_keys(self, now: float) -> None:
        """Poll the calls in ``awaiting_keys`` for their SRTP keys (DTLS), every ``KEYS_SECONDS``;
        those that wait no more are dropped from it. ``now`` in s."""
        if self.awaiting_keys and now >= self._next_keys:
            self._next_keys = now + KEYS_SECONDS
            waiting, self.awaiting_keys = self.awaiting_keys, []
            self.awaiting_keys += [
                call for call in waiting if self._ask(call, call.keys_known) is False
            ]

    def poll_quality(self) -> None:
        """Have each call that is held report its RTP counters."""
        for call in list(self._all):
            self._ask(call, call.poll_quality)

    def fail_at(self, slots: set[int]) -> None:
        """End the calls in progress whose stream or port has one of these slots of the conference
        bridge."""
        for call in list(self._all):
            if not call.ended and any(call.link.at(slot) for slot in slots):
                call.fail()

    def challenged(self, sip_call_id: str) -> ChallengedCall | None:
        """Return the call that a 401 or 407 is about, by its SIP Call-ID; None when it is unknown.

        A call that has ended is found too: its BYE may be challenged.
        """
        for call in self._all:
            if sip_call_id == call.sip_call_id:
                return call.challenged()
        return self._ended.get(sip_call_id)

    def live_call(self, sip_call_id: str) -> HeldCall | None:
        """Return the call with this SIP Call-ID that has not ended, or None."""
        named = (one for one in self._all if one.sip_call_id == sip_call_id and not one.ended)
        return next(named, None)

    def is_established(self, sip_call_id: str) -> bool:
        """Return whether the call with this SIP Call-ID is past its ACK, and has not ended."""
        call = self.live_call(sip_call_id)
        return call is not None and call.acknowledged

    def each(self, what: Callable[[HeldCall], None]) -> None:
        """Apply a function to every call that is held, ended ones included."""
        for call in self._all:
            what(call)

    def _ask(self, call: HeldCall, what: Callable[[], _T]) -> _T | None:
        """Call a function about one call; an exception ends that call, and returns None."""
        try:
            return what()
        except Exception:
            log.exception("sip.call_failed", call=call.name)
            call.fail()
            return None


ANSWER_SECONDS = 3.0
"""How long the end of a call waits for the answer to its BYE: over UDP it is sent three times in
that (RFC 3261 section 17.1.2.2). What is as slow as that counts as lost."""

NO_ANSWER = f"no answer within {ANSWER_SECONDS:g} s"
NOT_SENT = "cannot be sent"
TIMED_OUT = "408 no answer"

_CHALLENGES = (401, 407)
_TIMED_OUT, _NO_SUCH_CALL = 408, 481


@dataclass(slots=True)
class _Watch:
    until: float
    on_outcome: Callable[[str], None] | None = None
    outcome: str | None = None


class ByeTracker:
    """Tells what became of the BYEs that we sent: accepted, refused or unanswered. On the SIP
    thread."""

    def __init__(self, signalling: Signalling) -> None:
        self._signalling = signalling
        self._watches: dict[int, _Watch] = {}
        signalling.on_bye = self._on_bye

    def watch(self, call: Any) -> int:
        """Follow the BYE that is about to be sent for a ``pj.Call``; return a number for
        :meth:`wait`, 0 when the call has no dialog any more."""
        number = self._signalling.watch_bye(call)
        if number:
            self._watches[number] = _Watch(time.monotonic() + ANSWER_SECONDS)
        return number

    def wait(self, number: int, on_outcome: Callable[[str], None]) -> None:
        """Call ``on_outcome`` once with the outcome of a BYE: "" for accepted, else what became of
        it.

        At once if the outcome is known; with "" if the number is not (0, given up, asked before).
        Else when the answer comes, or :meth:`tick` gives up.
        """
        watch = self._watches.get(number)
        if watch is None:
            on_outcome("")
        elif watch.outcome is None:
            watch.on_outcome = on_outcome
        else:
            del self._watches[number]
            on_outcome(watch.outcome)

    def tick(self, now: float) -> None:
        """Give up on BYEs that have had no answer for ``ANSWER_SECONDS``: their outcome is
        ``NO_ANSWER``. One that nobody has waited for is forgotten. ``now`` in s."""
        for number in [n for n, watch in self._watches.items() if now >= watch.until]:
            self._finish(number, NO_ANSWER)
            self._watches.pop(number, None)

    def _finish(self, number: int, outcome: str) -> None:
        """Store the outcome of a BYE; if :meth:`wait` was called for it, call back and forget it.
        Only the first outcome counts."""
        watch = self._watches.get(number)
        if watch is None or watch.outcome is not None:
            return
        watch.outcome = outcome
        if watch.on_outcome is not None:
            del self._watches[number]
            watch.on_outcome(outcome)

    def _on_bye(self, number: int, status: int) -> None:
        """Translate the final status of a BYE to its outcome: 0 is ``NOT_SENT``, 408 ``TIMED_OUT``;
        a 2xx, and 481, count as accepted; a challenge that was not answered, and others, are told
        with their status."""
        if status == 0:
            outcome = NOT_SENT
        elif status == _TIMED_OUT:
            outcome = TIMED_OUT
        elif status in _CHALLENGES:
            outcome = f"{status}, unanswered challenge"
        elif status < 300 or status == _NO_SUCH_CALL:
            # A 481 says that the other side has no such call any more, which is as good.
            outcome = ""
        else:
            outcome = f"refused with {status}"
        self._finish(number, outcome)


@dataclass(frozen=True, slots=True)
class CallServices:
    """Services that calls share while the library runs."""

    thread: SipThread
    calls: Calls
    byes: ByeTracker
    codecs: CodecOrder
    names: Names
    negotiation: Negotiation
    pool: PortPool
    sounds: Sounds
    rtp_ports: RtpPortQuarantine
    packet_wait_ms: int
    """Of calls whose trunk does not set it."""
