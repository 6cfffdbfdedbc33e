# SPDX-License-Identifier: GPL-2.0-or-later
"""Which sources get in: the policy for strangers, scanners, bans, and digest credentials.

Digest authentication (RFC 3261 section 22, RFC 7616, RFC 8760) is pure. A nonce is made of the time
and of random bytes, signed for the address that it was given to, so a flood of requests leaves
nothing behind here. Only a nonce that was used with the right password is remembered, with the
highest nonce count that came with it.
"""

from __future__ import annotations

import hashlib
import hmac
import secrets
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from enum import Enum

import structlog

from gateway.addresses import plain
from gateway.measures import BoundedDict
from gateway.sip import Access, Trunk
from gateway.sip.messages.headers import first_of
from gateway.sip.messages.replies import Reply
from gateway.sip.signalling import ReceivedMessage, UnparsedMessage
from gateway.sip.source_limits import Bans, RefusalLog, TokenBucket, is_scanner
from gateway.sip.trunks import Attribution, Trunks

MAX_FIELD = 2048
"""Characters of an Authorization field that are read; a real one has some 300."""

MAX_NONCES = 8192
"""Nonces in use that are remembered; beyond, the one not used for longest is no good any more."""

REPEAT_SECONDS = 32.0
"""How long the same bytes count as a retransmission: 64 * T1 (RFC 3261 section 17.1.1.2)."""

_HASHES = {"MD5": hashlib.md5, "SHA-256": hashlib.sha256}
_WHITE = " \t"
_TAG_BYTES = 16


class DigestOutcome(Enum):
    """Outcome of checking the credentials of a request."""

    NONE = "no credentials"
    """There are none for our realm, or none that we asked for."""
    GOOD = "good"
    STALE = "stale"
    """The password is right, the nonce too old or used already (RFC 7616 section 3.3)."""
    FORGED = "wrong credentials, and no nonce of ours"
    """Anybody can send such a request in the name of any address."""
    WRONG = "wrong credentials"
    """Whoever sends it has got a nonce of ours at its address."""


@dataclass(frozen=True, slots=True)
class DigestResult:
    """The outcome, and whose credentials they are when it is GOOD."""

    outcome: DigestOutcome
    username: str = ""


class DigestAuth:
    """Makes digest challenges and checks credentials (RFC 3261 section 22, RFC 7616).

    Args:
        realm: what the user agents show, and store passwords by.
        algorithms: of MD5 and SHA-256, the preferred one first.
        lifetime: seconds that a nonce is good for.
        passwords: by user name.
    """

    def __init__(
        self, realm: str, algorithms: Sequence[str], lifetime: float, passwords: Mapping[str, str]
    ) -> None:
        self._realm = realm
        self._algorithms = tuple(algorithms)
        self._lifetime = lifetime
        self._passwords = dict(passwords)
        self._key = secrets.token_bytes(32)
        self._used: BoundedDict[str, tuple[int, int, float]] = BoundedDict(MAX_NONCES)
        """Nonce count, hash of the request it came with, and when it came, by nonce."""

    def challenge(self, source: str, now: float, *, stale: bool = False) -> tuple[str, ...]:
        """Return the values of WWW-Authenticate for a request from ``source`` (an IP literal), one
        for each algorithm, with a new nonce. ``stale``: the password was right, only the nonce is
        not."""
        nonce = self._nonce(source, now)
        more = ", stale=true" if stale else ""
        return tuple(
            f'Digest realm="{self._realm}", nonce="{nonce}", algorithm={algorithm}, '
            f'qop="auth"{more}'
            for algorithm in self._algorithms
        )

    def check(
        self, fields: Sequence[str], method: str, source: str, message: bytes, now: float
    ) -> DigestResult:
        """Judge the Authorization ``fields`` of a request: the first one of our realm, in an
        algorithm that we ask for; NONE without one.

        Args:
            source: IP literal that it came from.
            message: the request as it came; the very same bytes are a retransmission.
            now: s.
        """
        for field in fields:
            given = digest_parameters(field)
            if given is None or given.get("realm") != self._realm:
                continue
            algorithm = given.get("algorithm", "MD5").upper()
            if algorithm in self._algorithms:
                return self._check_one(given, algorithm, method, source, message, now)
        return DigestResult(DigestOutcome.NONE)

    def _check_one(
        self,
        given: Mapping[str, str],
        algorithm: str,
        method: str,
        source: str,
        message: bytes,
        now: float,
    ) -> DigestResult:
        """Check one set of credentials. First the response, with user, ``qop=auth``, nonce count
        and cnonce: wrong ones are WRONG with a nonce that we gave to this source, else FORGED. Then
        the nonce: STALE if it is not ours, too old, or its count was used."""
        nonce, username = given.get("nonce", ""), given.get("username", "")
        ours, fresh = self._check_nonce(nonce, source, now)
        count = _nonce_count_of(given.get("nc", ""))
        complete = count and given.get("qop", "").lower() == "auth" and given.get("cnonce")
        known = self._passwords.get(username)
        # An unknown user takes as long as a wrong password.
        wanted = digest_response(given, algorithm, method, "" if known is None else known)
        told = given.get("response", "").lower().encode("utf-8", "replace")
        equal = hmac.compare_digest(wanted.encode(), told)
        if not (equal and known is not None and complete):
            return DigestResult(DigestOutcome.WRONG if ours else DigestOutcome.FORGED)
        if not (ours and fresh) or not self._count_is_new(nonce, count, hash(message), now):
            return DigestResult(DigestOutcome.STALE)
        return DigestResult(DigestOutcome.GOOD, username)

    def _count_is_new(self, nonce: str, count: int, request: int, now: float) -> bool:
        """Return whether a nonce count (``nc``, RFC 7616 section 3.4) is higher than all before
        with this nonce, and remember it; or the same request's, repeated within ``REPEAT_SECONDS``.

        Args:
            request: a hash of the request.
            now: s.
        """
        last = self._used.get(nonce)
        if last is not None and count <= last[0]:
            return (count, request) == last[:2] and now - last[2] <= REPEAT_SECONDS
        self._used[nonce] = (count, request, now)
        return True

    def _nonce(self, source: str, now: float) -> str:
        """Make a nonce for a source: time in ms (hexadecimal), random bytes, and their signature.
        ``now`` in s."""
        plain = f"{int(now * 1000):x}.{secrets.token_hex(8)}"
        return f"{plain}.{self._sign(plain, source)}"

    def _sign(self, plain: str, source: str) -> str:
        """Return the signature, in hexadecimal, of a nonce's text for a source."""
        signature = hmac.new(self._key, f"{plain}@{source}".encode(), hashlib.sha256)
        return signature.hexdigest()[: 2 * _TAG_BYTES]

    def _check_nonce(self, nonce: str, source: str, now: float) -> tuple[bool, bool]:
        """Return whether we made a nonce for this address, and whether it is not older than
        ``nonce_lifetime``. ``now`` in s."""
        plain, _, tag = nonce.rpartition(".")
        if not hmac.compare_digest(
            self._sign(plain, source).encode(), tag.encode("utf-8", "replace")
        ):
            return False, False
        made = int(plain.partition(".")[0], 16) / 1000
        return True, now - made <= self._lifetime


def digest_response(given: Mapping[str, str], algorithm: str, method: str, password: str) -> str:
    """Return the digest response in hexadecimal for these credentials' parameters (RFC 7616 section
    3.4.1, with ``qop``). ``algorithm`` is MD5 or SHA-256."""

    def digest(*parts: str) -> str:
        text = ":".join(parts).encode("utf-8", "replace")
        return _HASHES[algorithm](text, usedforsecurity=False).hexdigest()

    def of(key: str) -> str:
        return given.get(key, "")

    return digest(
        digest(of("username"), of("realm"), password),
        *(of(key) for key in ("nonce", "nc", "cnonce", "qop")),
        digest(method, of("uri")),
    )


def digest_parameters(field: str) -> dict[str, str] | None:
    """Return the parameters of digest credentials by lower-case name, without quotes; None when
    malformed, of another scheme, or longer than ``MAX_FIELD``.

    A parameter that occurs twice is malformed. Runs in linear time.
    """
    if len(field) > MAX_FIELD or field[:6].lower() != "digest" or not field[6:].strip():
        return None
    if field[6] not in _WHITE:
        return None
    found: dict[str, str] = {}
    at, end = 6, len(field)
    while at < end:
        equals = field.find("=", at)
        if equals < 0:
            return None
        name = field[at:equals].strip(" \t,").lower()
        at = equals + 1
        while at < end and field[at] in _WHITE:
            at += 1
        if field[at : at + 1] == '"':
            value, at = _quoted(field, at + 1)
            if at > end:
                return None
            comma = field.find(",", at)
            if field[at : end if comma < 0 else comma].strip(_WHITE):
                return None
        else:
            comma = field.find(",", at)
            value = field[at : end if comma < 0 else comma].strip(_WHITE)
        if not name or name in found:
            return None
        found[name] = value
        at = end if comma < 0 else comma + 1
    return found


def _quoted(field: str, at: int) -> tuple[str, int]:
    """Return the text of a quoted string, without escapes, and the index after its closing quote.
    ``at`` is that of its first character; without a closing quote the index is past the end."""
    parts: list[str] = []
    while at < len(field) and field[at] != '"':
        at += field[at] == "\\"
        parts.append(field[at : at + 1])
        at += 1
    return "".join(parts), at + 1


def _nonce_count_of(text: str) -> int:
    """Return a nonce count of eight hexadecimal digits; 0 for anything else."""
    good = len(text) == 8 and all(char in "0123456789abcdefABCDEF" for char in text)
    return int(text, 16) if good else 0


log = structlog.get_logger("sip")

MAX_AUTHENTICATED = 4096
"""INVITEs with good credentials that are remembered, for what may follow without any: a CANCEL."""

BAN_LINES_PER_SECOND = 0.2
BAN_LINES_AT_ONCE = 20
"""Bans that the log has a line for; ``gateway status`` has all of them."""

_UNAUTHORIZED, _FORBIDDEN = 401, 403

Headers = Mapping[str, tuple[str, ...]]


@dataclass(frozen=True, slots=True)
class Rejection:
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
        self._authenticated: BoundedDict[tuple[str, str], Attribution] = BoundedDict(
            MAX_AUTHENTICATED
        )
        """By source and Call-ID."""
        self._ban_lines = TokenBucket(BAN_LINES_PER_SECOND, BAN_LINES_AT_ONCE)
        self.on_banned: Callable[[str, float, bool], None] = lambda *_ban: None
        """Told of each source that is banned: for how long (s), whether proven."""

    @property
    def reply(self) -> Reply:
        """The answer to unknown sources that may not call: 403, or none (code 0) with
        ``unknown_sources = "drop"``."""
        return Reply(0 if self._access.unknown == "drop" else _FORBIDDEN)

    @property
    def rule(self) -> str:
        """The name of the rule by which unknown sources may not call."""
        return f'access.unknown_sources = "{self._access.unknown}"'

    def allows(self, source: str) -> bool:
        """Return whether an unknown source at this address may call: by ``access.unknown_sources``;
        with "auto", only without trunks, and from private addresses."""
        return self._access.action_for(source, bool(self._trunks.all)) == "allow"

    def may_connect(self, source: str) -> bool:
        """Return whether an unknown source may open a TCP or TLS connection: it is not banned, and
        may call, or show credentials, or be a server of a registrar that we use by TCP or TLS."""
        if self.bans.drops(source, time.monotonic(), may_prove=bool(self._trunks.callers)):
            return False
        # A registrar's other servers are known by our contact's parameter only.
        registers = any(
            self._trunks.by_name[name].transport != "udp" for name in self._trunks.lines
        )
        return self.allows(source) or bool(self._trunks.callers) or registers

    def admit(
        self,
        received: ReceivedMessage,
        found: Attribution | None,
        source: str,
        headers: Headers,
        now: float,
    ) -> Attribution | Rejection | None:
        """Return the trunk of a request outside of dialogs (None: an unknown source that may call),
        or its refusal.

        In this order: a known scanner that is no trunk (no answer); transport or certificate that
        is not the trunk's; an INVITE that needs credentials, or has some, by these; ACK and CANCEL
        of an INVITE that had good ones; then by the source. Refusals of unknown sources count
        towards a ban.

        Args:
            source: IP literal in canonical form.
            now: s.
        """
        method = received.method
        if found is None and is_scanner(first_of(headers, "user-agent")):
            self.count_refusal(received, now)
            return Rejection("known scanner", Reply(0))
        if found is not None:
            mismatch = found.trunk.mismatch(received.transport, self._names_of(received.connection))
            if mismatch:
                return Rejection(f"trunk {found.trunk.name}: {mismatch}", self.reply)
        banned = source in self.bans
        welcome = found is not None or (self.allows(source) and not banned)
        if method != "INVITE":
            follows = (source, first_of(headers, "call-id")) in self._authenticated
            welcome = welcome or (follows and method in ("ACK", "CANCEL"))
        elif self._needs_credentials(found, welcome=welcome and "authorization" not in headers):
            return self._authenticate(received, found, source, headers, now)
        if welcome:
            return found
        self.count_refusal(received, now)
        if banned:
            self.count_banned()
            return Rejection("", Reply(0))
        return Rejection(self.rule, self.reply)

    def _needs_credentials(self, found: Attribution | None, *, welcome: bool) -> bool:
        """Return whether an INVITE needs credentials: its trunk has ``inbound_auth``; or for an
        unknown source, if any trunk's calls come from anywhere and the source is not welcome
        without."""
        if found is not None:
            return found.trunk.inbound_auth is not None
        return bool(self._trunks.callers) and not welcome

    def _authenticate(
        self,
        received: ReceivedMessage,
        found: Attribution | None,
        source: str,
        headers: Headers,
        now: float,
    ) -> Attribution | Rejection:
        """Challenge an INVITE with 401, or attribute it to the trunk of its credentials (RFC 3261
        section 22.1).

        Good ones are remembered for this source and Call-ID, and end the count of its refusals;
        they are refused if transport or certificate are not the trunk's. Wrong ones, and none from
        an unknown source, count towards a ban; stale ones do not.
        """
        fields = headers.get("authorization", ())
        checked = self._digest.check(fields, received.method, source, received.message, now)
        outcome = checked.outcome
        if outcome is DigestOutcome.GOOD:
            trunk = self._trunk_of(found, checked.username)
            if trunk is None:  # of a trunk whose calls do not come from here
                outcome = DigestOutcome.WRONG
            elif mismatch := trunk.mismatch(
                received.transport, self._names_of(received.connection)
            ):
                return Rejection(f"trunk {trunk.name}: {mismatch}", self.reply)
            else:
                self.bans.proved(source, now)
                proved = Attribution(trunk, "authentication")
                self._authenticated[source, first_of(headers, "call-id")] = proved
                return proved
        stale = outcome is DigestOutcome.STALE
        reply = Reply(_UNAUTHORIZED, challenges=self._digest.challenge(source, now, stale=stale))
        if stale:
            return Rejection("", reply)
        surely = outcome is DigestOutcome.WRONG or (
            received.reliable and outcome is DigestOutcome.FORGED
        )
        if surely or found is None:
            self.count_refusal(received, now, surely=surely)
        return Rejection("" if outcome is DigestOutcome.NONE else f"digest: {outcome.value}", reply)

    def _trunk_of(self, found: Attribution | None, username: str) -> Trunk | None:
        """Return the trunk whose credentials this user name is, among those accepted from where the
        request came: those of ``found``, or, for an unknown source, of the trunks whose calls come
        from anywhere. None for none."""
        if found is None:
            return self._trunks.callers.get(username)
        own = found.trunk.inbound_auth
        return found.trunk if own is not None and own.username == username else None

    def is_banned(
        self, received: ReceivedMessage, found: Attribution | None, source: str, now: float
    ) -> bool:
        """Return whether a request outside of dialogs gets no answer because its source is banned.

        A trunk without credentials is never banned. A source with credentials may still show them,
        unless wrong credentials caused the ban: others can write its address into UDP packets.
        """
        if found is not None and found.trunk.inbound_auth is None:
            return False
        may_prove = received.method in ("INVITE", "ACK", "CANCEL") and (
            found is not None or bool(self._trunks.callers)
        )
        return self.bans.drops(source, now, may_prove=may_prove)

    def count_banned(self) -> None:
        """Count a request of a banned source, which gets no answer and no line in the log."""
        self._refusals.by_rule["banned"] += 1

    def count_refusal(
        self, by: ReceivedMessage | UnparsedMessage, now: float, *, surely: bool = False
    ) -> None:
        """Count a refusal towards a ban of its source; a new ban is reported (``on_banned``) and
        logged.

        A trunk's address counts only if ``surely``: wrong credentials, which prove who sent them.
        Over TCP and TLS the source is proven, too.
        """
        source, connected = plain(by.source), by.transport != "udp"
        if not surely and self._trunks.is_peer(source):
            return
        if not self.bans.refused(source, now, surely=surely, connected=connected):
            return
        self.on_banned(source, self._access.bans.seconds, surely or connected)
        if self._ban_lines.take(now):
            policy = self._access.bans
            log.warning("sip.banned", source=source, seconds=policy.seconds, refusals=policy.after)
