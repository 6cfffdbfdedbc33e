# SPDX-License-Identifier: GPL-2.0-or-later
"""Digest authentication of requests that come in (RFC 3261 section 22, RFC 7616, RFC 8760). Pure.

A nonce is made of the time and of random bytes, signed for the address that it was given to, so a
flood of requests leaves nothing behind here. Only a nonce that was used with the right password is
remembered, with the highest nonce count that came with it.
"""

from __future__ import annotations

import hashlib
import hmac
import secrets
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import Enum

MAX_FIELD = 2048
"""Characters of an Authorization field that are read; a real one has some 300."""

MAX_NONCES = 8192
"""Nonces in use that are remembered; beyond, the one not used for longest is no good any more."""

REPEAT_SECONDS = 32.0
"""How long the same bytes count as a retransmission: 64 * T1 (RFC 3261 section 17.1.1.2)."""

_HASHES = {"MD5": hashlib.md5, "SHA-256": hashlib.sha256}
_WHITE = " \t"
_TAG_BYTES = 16


class Outcome(Enum):
    """What credentials are worth."""

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
class Checked:
    """The outcome, and whose credentials they are when it is GOOD."""

    outcome: Outcome
    username: str = ""


class DigestAuth:
    """Makes challenges, and checks what comes in answer to them.

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
        self._used: OrderedDict[str, tuple[int, int, float]] = OrderedDict()
        """Nonce count, hash of the request it came with, and when it came, by nonce."""

    def challenge(self, source: str, now: float, *, stale: bool = False) -> tuple[str, ...]:
        """The values of WWW-Authenticate for a request from ``source`` (an IP literal)."""
        nonce = self._nonce(source, now)
        more = ", stale=true" if stale else ""
        return tuple(
            f'Digest realm="{self._realm}", nonce="{nonce}", algorithm={algorithm}, '
            f'qop="auth"{more}'
            for algorithm in self._algorithms
        )

    def check(
        self, fields: Sequence[str], method: str, source: str, message: bytes, now: float
    ) -> Checked:
        """Judge the Authorization ``fields`` of a request.

        Args:
            source: IP literal that it came from.
            message: the request as it came; the very same bytes are a retransmission.
        """
        for field in fields:
            given = parameters_of(field)
            if given is None or given.get("realm") != self._realm:
                continue
            algorithm = given.get("algorithm", "MD5").upper()
            if algorithm in self._algorithms:
                return self._judge(given, algorithm, method, source, message, now)
        return Checked(Outcome.NONE)

    def _judge(
        self,
        given: Mapping[str, str],
        algorithm: str,
        method: str,
        source: str,
        message: bytes,
        now: float,
    ) -> Checked:
        nonce, username = given.get("nonce", ""), given.get("username", "")
        ours, fresh = self._look_at(nonce, source, now)
        count = _count_of(given.get("nc", ""))
        complete = count and given.get("qop", "").lower() == "auth" and given.get("cnonce")
        known = self._passwords.get(username)
        # An unknown user takes as long as a wrong password.
        wanted = response_of(given, algorithm, method, "" if known is None else known)
        told = given.get("response", "").lower().encode("utf-8", "replace")
        equal = hmac.compare_digest(wanted.encode(), told)
        if not (equal and known is not None and complete):
            return Checked(Outcome.WRONG if ours else Outcome.FORGED)
        if not (ours and fresh) or not self._count(nonce, count, hash(message), now):
            return Checked(Outcome.STALE)
        return Checked(Outcome.GOOD, username)

    def _count(self, nonce: str, count: int, request: int, now: float) -> bool:
        """Whether this nonce count is a new one, or a retransmission's."""
        last = self._used.get(nonce)
        if last is not None and count <= last[0]:
            return (count, request) == last[:2] and now - last[2] <= REPEAT_SECONDS
        self._used[nonce] = (count, request, now)
        self._used.move_to_end(nonce)
        if len(self._used) > MAX_NONCES:
            self._used.popitem(last=False)
        return True

    def _nonce(self, source: str, now: float) -> str:
        plain = f"{int(now * 1000):x}.{secrets.token_hex(8)}"
        return f"{plain}.{self._sign(plain, source)}"

    def _sign(self, plain: str, source: str) -> str:
        signature = hmac.new(self._key, f"{plain}@{source}".encode(), hashlib.sha256)
        return signature.hexdigest()[: 2 * _TAG_BYTES]

    def _look_at(self, nonce: str, source: str, now: float) -> tuple[bool, bool]:
        """Whether a nonce was given to this address, and whether it is still good."""
        plain, _, tag = nonce.rpartition(".")
        if not hmac.compare_digest(
            self._sign(plain, source).encode(), tag.encode("utf-8", "replace")
        ):
            return False, False
        made = int(plain.partition(".")[0], 16) / 1000
        return True, now - made <= self._lifetime


def response_of(given: Mapping[str, str], algorithm: str, method: str, password: str) -> str:
    """The response to a challenge with these parameters (RFC 7616 section 3.4.1)."""

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


def parameters_of(field: str) -> dict[str, str] | None:
    """The parameters of digest credentials by lower-case name; None when they are none.

    Reads each character once, whatever comes. A parameter that is there twice makes it none.
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
    """A quoted string from behind its first quote, and where it ends."""
    parts: list[str] = []
    while at < len(field) and field[at] != '"':
        at += field[at] == "\\"
        parts.append(field[at : at + 1])
        at += 1
    return "".join(parts), at + 1


def _count_of(text: str) -> int:
    """A nonce count: eight hexadecimal digits; 0 for anything else."""
    good = len(text) == 8 and all(char in "0123456789abcdefABCDEF" for char in text)
    return int(text, 16) if good else 0
