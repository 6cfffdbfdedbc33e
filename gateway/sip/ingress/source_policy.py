# SPDX-License-Identifier: GPL-2.0-or-later
"""Which sources get in: the policy for strangers, scanners, bans, and digest credentials."""

from __future__ import annotations

import time
from collections import OrderedDict
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import structlog

from gateway.addresses import plain
from gateway.sip.ingress.digest import DigestAuth, Outcome
from gateway.sip.messages.headers import first_of
from gateway.sip.messages.replies import Reply
from gateway.sip.settings import Access, Trunk
from gateway.sip.signalling import Received, Unread
from gateway.sip.source_limits import Bans, RefusalLog, TokenBucket, is_scanner
from gateway.sip.trunks.matching import Attribution, Trunks

log = structlog.get_logger("sip")

MAX_AUTHENTICATED = 4096
"""INVITEs with good credentials that are remembered, for what may follow without any: a CANCEL."""

BAN_LINES_PER_SECOND = 0.2
BAN_LINES_AT_ONCE = 20
"""Bans that the log has a line for; ``gateway status`` has all of them."""

_UNAUTHORIZED, _FORBIDDEN = 401, 403

Headers = Mapping[str, tuple[str, ...]]


@dataclass(frozen=True, slots=True)
class Stopped:
    """A request that does not get in, and its answer.

    A challenge has no rule: it is no refusal, unless wrong credentials came before it.
    """

    rule: str
    reply: Reply


class SourcePolicy:
    """Decides whether a request gets in by where it comes from, and by its credentials.

    Args:
        access: the policy for strangers.
        trunks: whose request is whose.
        names_of: the names in the certificate of who is at the other end of a connection, by
            pjsip's handle of it.
        refusals: counts requests of banned sources.
    """

    def __init__(
        self,
        access: Access,
        trunks: Trunks,
        names_of: Callable[[int], tuple[str, ...]],
        refusals: RefusalLog,
    ) -> None:
        self.bans = Bans(access.bans)
        self._access = access
        self._trunks = trunks
        self._names_of = names_of
        self._refusals = refusals
        digest = access.digest
        self._digest = DigestAuth(
            digest.realm, digest.algorithms, digest.nonce_lifetime, trunks.passwords
        )
        self._authenticated: OrderedDict[tuple[str, str], Attribution] = OrderedDict()
        """By source and Call-ID."""
        self._ban_lines: TokenBucket | None = None
        self.on_banned: Callable[[str, float, bool], None] = lambda *_ban: None
        """Told of each source that is banned: for how long (s), whether proven."""

    @property
    def reply(self) -> Reply:
        """The answer to strangers who may not call: 403 or none."""
        return Reply(0 if self._access.unknown == "drop" else _FORBIDDEN)

    @property
    def rule(self) -> str:
        """The rule by which strangers may not call."""
        return f'access.unknown_sources = "{self._access.unknown}"'

    def allows(self, source: str) -> bool:
        """Return whether strangers at this address may call."""
        return self._access.verdict(source, bool(self._trunks.all)) == "allow"

    def may_connect(self, source: str) -> bool:
        """Return whether a connection of a stranger can lead to anything."""
        if self.bans.drops(source, time.monotonic(), may_prove=bool(self._trunks.callers)):
            return False
        # A registrar's other servers are known by our contact's parameter only.
        registers = any(
            self._trunks.by_name[name].transport != "udp" for name in self._trunks.lines
        )
        return self.allows(source) or bool(self._trunks.callers) or registers

    def admit(
        self,
        received: Received,
        found: Attribution | None,
        source: str,
        headers: Headers,
        now: float,
    ) -> Attribution | Stopped | None:
        """Return whose a request outside of dialogs is (None: a stranger's), if it gets in."""
        method = received.method
        if found is None and is_scanner(first_of(headers, "user-agent")):
            self.count_refusal(received, now)
            return Stopped("known scanner", Reply(0))
        if found is not None:
            unfit = found.trunk.misfit(received.transport, self._names_of(received.connection))
            if unfit:
                return Stopped(f"trunk {found.trunk.name}: {unfit}", self.reply)
        banned = source in self.bans
        welcome = found is not None or (self.allows(source) and not banned)
        if method != "INVITE":
            follows = (source, first_of(headers, "call-id")) in self._authenticated
            welcome = welcome or (follows and method in ("ACK", "CANCEL"))
        elif self._asks(found, welcome=welcome and "authorization" not in headers):
            return self._authenticate(received, found, source, headers, now)
        if welcome:
            return found
        self.count_refusal(received, now)
        if banned:
            self.count_banned()
            return Stopped("", Reply(0))
        return Stopped(self.rule, self.reply)

    def _asks(self, found: Attribution | None, *, welcome: bool) -> bool:
        """Whether an INVITE has to have credentials to be taken, or taken for a trunk's."""
        if found is not None:
            return found.trunk.inbound_auth is not None
        return bool(self._trunks.callers) and not welcome

    def _authenticate(
        self,
        received: Received,
        found: Attribution | None,
        source: str,
        headers: Headers,
        now: float,
    ) -> Attribution | Stopped:
        """Challenge an INVITE, or take the trunk's whose credentials it has (RFC 3261 22.1)."""
        fields = headers.get("authorization", ())
        checked = self._digest.check(fields, received.method, source, received.message, now)
        outcome = checked.outcome
        if outcome is Outcome.GOOD:
            trunk = self._trunk_of(found, checked.username)
            if trunk is None:  # of a trunk whose calls do not come from here
                outcome = Outcome.WRONG
            elif unfit := trunk.misfit(received.transport, self._names_of(received.connection)):
                return Stopped(f"trunk {trunk.name}: {unfit}", self.reply)
            else:
                self.bans.proved(source, now)
                proved = Attribution(trunk, "authentication")
                self._authenticated[source, first_of(headers, "call-id")] = proved
                if len(self._authenticated) > MAX_AUTHENTICATED:
                    self._authenticated.popitem(last=False)
                return proved
        stale = outcome is Outcome.STALE
        reply = Reply(_UNAUTHORIZED, challenges=self._digest.challenge(source, now, stale=stale))
        if stale:
            return Stopped("", reply)
        surely = outcome is Outcome.WRONG or (received.reliable and outcome is Outcome.FORGED)
        if surely or found is None:
            self.count_refusal(received, now, surely=surely)
        return Stopped("" if outcome is Outcome.NONE else f"digest: {outcome.value}", reply)

    def _trunk_of(self, found: Attribution | None, username: str) -> Trunk | None:
        """The trunk whose credentials are good where the request came from."""
        if found is None:
            return self._trunks.callers.get(username)
        own = found.trunk.inbound_auth
        return found.trunk if own is not None and own.username == username else None

    def is_banned(
        self, received: Received, found: Attribution | None, source: str, now: float
    ) -> bool:
        """Return whether a request outside of dialogs gets no answer because of its source.

        A trunk that is known without credentials is never banned. Who has credentials may show them
        unless wrong ones brought the ban: anybody can write another's address into UDP packets.
        """
        if found is not None and found.trunk.inbound_auth is None:
            return False
        may_prove = received.method in ("INVITE", "ACK", "CANCEL") and (
            found is not None or bool(self._trunks.callers)
        )
        return self.bans.drops(source, now, may_prove=may_prove)

    def count_banned(self) -> None:
        """Count a request of a banned source."""
        self._refusals.by_rule["banned"] += 1

    def count_refusal(self, by: Received | Unread, now: float, *, surely: bool = False) -> None:
        """Count a refusal towards a ban of its source; ``surely``: wrong credentials."""
        source, connected = plain(by.source), by.transport != "udp"
        if not surely and self._trunks.is_peer(source):
            return
        if not self.bans.refused(source, now, surely=surely, connected=connected):
            return
        self.on_banned(source, self._access.bans.seconds, surely or connected)
        if self._ban_lines is None:
            self._ban_lines = TokenBucket(BAN_LINES_PER_SECOND, BAN_LINES_AT_ONCE, now)
        if self._ban_lines.take(now):
            policy = self._access.bans
            log.warning("sip.banned", source=source, seconds=policy.seconds, refusals=policy.after)
