# SPDX-License-Identifier: GPL-2.0-or-later
"""Has pjsip see a mended session description, and tells what a message's description comes to.

The judgement is :mod:`gateway.sip.messages.sdp`'s; here is whose account a message is for, and the
way into pjsip's message (``deploy/pjsua2/native/description.cpp``).
"""

from __future__ import annotations

import pjsua2 as pj

from gateway.addresses import address_of
from gateway.audio.g711 import Codec
from gateway.sip.messages.sdp import Media, Objection, mended, parse
from gateway.sip.settings import Security, SipSettings, Trunk

_OFFERS = ("INVITE", "UPDATE", "PRACK")
_NOTHING = b"v=0\r\no=- 0 0 IN IP4 0.0.0.0\r\ns=-\r\nt=0 0\r\n"
"""In place of an answer that cannot be read: it is one, and there is nothing to negotiate in it."""


class Negotiation:
    """Used on the SIP thread; :meth:`settle` while it is decided on a message."""

    def __init__(self, settings: SipSettings) -> None:
        self._settings = settings

    def settle(self, method: str, trunk: Trunk | None, local: str) -> Media | Objection | None:
        """Mend the description of a message; returns the audio line to answer, or why none can be.

        Args:
            method: of a request; empty for a response, in which nothing is chosen.
            trunk: whose message it is.
            local: our address that it came to.

        None where it has no description.
        """
        raw = pj.sessionDescription()
        if raw is None:
            return None
        description = parse(raw.decode("utf-8", "replace"))
        if description.flaw is not None:
            if method not in _OFFERS:
                pj.replaceSessionDescription(_NOTHING)
            return description.flaw
        security, laws = self._asked(trunk)
        chosen = description.choose(security, laws, self.is_six(local))
        line = chosen if isinstance(chosen, Media) and method in _OFFERS else None
        new = mended(description, line, sdes="sdes" in security.keying).encode()
        if new != raw:
            pj.replaceSessionDescription(new)
        return chosen

    def discard(self) -> None:
        """Put an empty description in place of the message's: nothing can be agreed on by it."""
        if pj.sessionDescription() is not None:
            pj.replaceSessionDescription(_NOTHING)

    def objection(self, text: str, trunk: Trunk | None, local: str) -> Objection | None:
        """Why an offer inside of a call cannot be taken, if so."""
        security, laws = self._asked(trunk)
        chosen = parse(text).choose(security, laws, self.is_six(local))
        return chosen if isinstance(chosen, Objection) else None

    def is_six(self, local: str) -> bool:
        """Whether a call that came to this address of ours has RTP over IPv6."""
        address = address_of(local)
        known = address is not None and not address.is_unspecified
        return ":" in (str(address) if known else self._settings.listen[0].host)

    def _asked(self, trunk: Trunk | None) -> tuple[Security, tuple[Codec, ...]]:
        if trunk is None:
            return self._settings.security, tuple(Codec)
        return trunk.security, trunk.codecs
