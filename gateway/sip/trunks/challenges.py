# SPDX-License-Identifier: GPL-2.0-or-later
"""Who may ask for a trunk's password: its own servers, in its realm (RFC 3261 section 22).

pjsip answers whoever asks. A call that goes elsewhere, or a proxy that hands on what others say,
would make it send a digest of the password to somebody who can guess the password by it.
"""

from __future__ import annotations

import re
from collections import OrderedDict
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import structlog

from gateway.addresses import host_of
from gateway.sip.settings import Trunk
from gateway.sip.trunks.matching import Trunks

log = structlog.get_logger("sip")

MAX_REGISTRATIONS = 64
"""Challenges remembered until it is known whether the registration came of it."""

_REALM = re.compile(r'\brealm\s*=\s*"((?:[^"\\]|\\.){0,200})"', re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class Challenged:
    """The call of ours that was challenged; ``followed``: the other side has sent us there."""

    trunk: Trunk | None
    to_uri: str
    followed: bool


class Challenges:
    """Used on the SIP thread.

    Args:
        call_of: the call with a SIP Call-ID.
    """

    def __init__(self, trunks: Trunks, call_of: Callable[[str], Challenged | None]) -> None:
        self._trunks = trunks
        self._call_of = call_of
        self._registrations: OrderedDict[str, frozenset[str]] = OrderedDict()
        self._realms: dict[str, frozenset[str]] = {}

    def is_foreign(self, code: int, headers: Mapping[str, tuple[str, ...]], source: str) -> bool:
        """Whether a 401 or 407 is one that gets no digest.

        Args:
            headers: of the response, by lower-case name.
            source: IP literal that it came from.
        """
        if code not in (401, 407):
            return False
        fields = (*headers.get("www-authenticate", ()), *headers.get("proxy-authenticate", ()))
        realms = frozenset(realm for field in fields for realm in _REALM.findall(field))
        call_id = next(iter(headers.get("call-id", ())), "")
        if next(iter(headers.get("cseq", ())), "").upper().endswith("REGISTER"):
            # It goes where the configuration says, and nowhere else.
            self._registrations[call_id] = realms
            while len(self._registrations) > MAX_REGISTRATIONS:
                self._registrations.popitem(last=False)
            return False
        call = self._call_of(call_id)
        if call is None:
            # Of no call that is known; pjsip answers it with whatever account it was made by.
            log.warning("trunk.foreign_challenge", source=source)
            return True
        if call.trunk is None:
            return False
        trunk = call.trunk
        if not self._is_server(trunk, source, call):
            log.warning("trunk.foreign_challenge", trunk=trunk.name, source=source)
            return True
        # pjsip itself looks for the realms that are configured.
        learnt = self._realms.get(trunk.name) if "*" in trunk.realms else None
        if learnt and not learnt & realms:
            told = ", ".join(sorted(realms))
            log.warning("trunk.foreign_challenge", trunk=trunk.name, source=source, realm=told)
            return True
        return False

    def registered(self, trunk: str, call_id: str) -> None:
        """The trunk's registrar took a registration: the realm that it asked for is its own."""
        realms = self._registrations.get(call_id)
        if realms:
            self._realms[trunk] = realms

    def _is_server(self, trunk: Trunk, source: str, call: Challenged) -> bool:
        known = self._trunks.is_server(trunk, source)
        if known is not None:
            return known
        # Nothing has come from it yet; what goes to the server of the configuration is answered
        # by it.
        named = bool(trunk.outbound_proxy) or host_of(call.to_uri) == host_of(trunk.registrar)
        return named and not call.followed
