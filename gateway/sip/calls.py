# SPDX-License-Identifier: GPL-2.0-or-later
"""The calls of a user agent: held for as long as the library may name them, and counted."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import TYPE_CHECKING, TypeVar

import structlog

from gateway.sip.trunks.challenges import Challenged

if TYPE_CHECKING:
    from gateway.sip.leg import SipCall

log = structlog.get_logger("sip")

_T = TypeVar("_T")

KEYS_SECONDS = 0.05
"""How often a call is asked for keys that it waits for."""

QUALITY_SECONDS = 1.0
"""How often the RTP counters of each leg are read."""


class Calls:
    """Used on the SIP thread, but for what is said to be for any."""

    def __init__(self) -> None:
        self.followed = 0
        """Calls in progress that a REFER made."""
        self.awaiting_keys: list[SipCall] = []
        """Calls whose SRTP keys are agreed by DTLS, in media, which no callback tells of."""
        self.awaiting_rtp: list[SipCall] = []
        """Calls that may send early media only where RTP has come from."""
        self._all: list[SipCall] = []
        self._retired: list[SipCall] = []
        self._parties: Counter[str] = Counter()
        self._next_keys = 0.0

    def __bool__(self) -> bool:
        return bool(self._all)

    @property
    def live(self) -> int:
        """Those that have not ended."""
        return sum(not call.ended for call in self._all)

    def of(self, party: str) -> int:
        """Calls in progress of a party (``access_control.party_of``). Any thread."""
        return self._parties.get(party, 0)

    def hold(self, call: SipCall, party: str) -> None:
        """Keep a call referenced for as long as pjsip may call it; counted with its party's."""
        self._all.append(call)
        call.party = party
        self._parties[party] += 1

    def retire(self, call: SipCall) -> None:
        """Let go of an ended call, once no callback of it is on the stack.

        Whoever learns first that a call is over says so; further words of it change nothing.
        """
        if call in self._retired or call not in self._all:
            return
        self._retired.append(call)
        if call.followed:
            call.followed = False
            self.followed -= 1

    def let_go(self) -> None:
        """Drop the ended calls whose library slot nobody has taken. No callback is on the stack."""
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
            if call.leg is not None:
                call.leg.unbind()
                call.leg = None

    def ask_for_keys(self, now: float) -> None:
        """See whether a call has the keys, or the RTP, that it waits for."""
        if (self.awaiting_keys or self.awaiting_rtp) and now >= self._next_keys:
            self._next_keys = now + KEYS_SECONDS
            awaiting, self.awaiting_rtp = self.awaiting_rtp, []
            self.awaiting_rtp += [
                call for call in awaiting if self._ask(call, call.rtp_known) is False
            ]
            waiting, self.awaiting_keys = self.awaiting_keys, []
            self.awaiting_keys += [
                call for call in waiting if self._ask(call, call.keys_known) is False
            ]

    def poll_quality(self) -> None:
        """Have each leg report its RTP counters."""
        for call in list(self._all):
            self._ask(call, call.poll_quality)

    def challenged(self, sip_call_id: str) -> Challenged | None:
        """What is to be known of the call with this SIP Call-ID that somebody wants a password
        for."""
        for call in self._all:
            if not call.ended and sip_call_id == call.sip_call_id:
                to_uri = "" if call.leg is None else call.leg.invite.to_uri
                return Challenged(call.account.trunk, to_uri, call.followed)
        return None

    def each(self, what: Callable[[SipCall], None]) -> None:
        """Do something with every call that is held, ended ones included."""
        for call in self._all:
            what(call)

    def _ask(self, call: SipCall, what: Callable[[], _T]) -> _T | None:
        """Ask something of one call. What that raises ends this call, and no other."""
        try:
            return what()
        except Exception:
            log.exception("sip.call_failed", call=call.name)
            call.fail()
            return None
