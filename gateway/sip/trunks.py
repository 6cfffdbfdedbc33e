# SPDX-License-Identifier: GPL-2.0-or-later
"""Trunks: which one a request belongs to, who may ask for its password, whether it can be reached.

A request is a trunk's by the line of its registration, then by its source address. A trunk can be
reached while it is registered (RFC 3261 section 10), and answers OPTIONS (section 11).
"""

from __future__ import annotations

import re
import secrets
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from enum import Enum
from typing import TYPE_CHECKING

import structlog

from gateway.addresses import IPAddress, address_of, host_of
from gateway.measures import BoundedDict
from gateway.sip import Trunk
from gateway.sip.messages.headers import first_of, user_of

if TYPE_CHECKING:
    from gateway.sip.signalling import Signalling

log = structlog.get_logger("sip")


LINE_PARAMETER = "line"
"""URI parameter of our registered contacts; its value tells the trunks apart and is not guessed."""

MAX_REGISTRARS = 32
"""Addresses remembered for one registrar; a cluster of them answers from a few."""

_LINE = re.compile(rf";{LINE_PARAMETER}=([0-9a-f]+)", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class Attribution:
    """A trunk, and ``how`` a request was found to be its: registration, registrar, peer or
    authentication."""

    trunk: Trunk
    how: str


class Trunks:
    """All trunks, asked about each request. Any thread may read.

    The SIP thread calls :meth:`learn_registrar`.
    """

    def __init__(self, trunks: Iterable[Trunk]) -> None:
        self.all = tuple(trunks)
        self.by_name = {trunk.name: trunk for trunk in self.all}
        self.lines = {trunk.name: secrets.token_hex(12) for trunk in self.all if trunk.registrar}
        """The value of ``line`` in the contact of each trunk that registers."""
        self.callers = {
            trunk.inbound_auth.username: trunk
            for trunk in self.all
            if trunk.inbound_auth is not None and not trunk.peers
        }
        """By user name, the trunks whose calls may come from anywhere."""
        self.passwords = {
            trunk.inbound_auth.username: trunk.inbound_auth.password
            for trunk in self.all
            if trunk.inbound_auth is not None
        }
        self._by_line = {line: self.by_name[name] for name, line in self.lines.items()}
        self._registrars: dict[str, list[IPAddress]] = {name: [] for name in self.lines}
        peers = [(peer, trunk) for trunk in self.all for peer in trunk.peers]
        # The smallest network first, and in it the peer with a port before the one with any.
        self._peers = sorted(
            peers, key=lambda item: (item[0].network.prefixlen, bool(item[0].port)), reverse=True
        )

    def attribute(
        self, source: str, port: int, reliable: bool, request_uri: str
    ) -> Attribution | None:
        """Return the trunk that a request belongs to; None for an unknown source.

        Tried in this order: the ``line`` parameter of our registered contact in the Request-URI; an
        address that a registrar has answered from, if the Request-URI's user is the trunk's
        username; the peers, the smallest network first, and one with a port before one without.

        Args:
            source: IP literal that it came from.
            port: source port; means nothing over TCP and TLS (``reliable``).
            request_uri: as it came.
        """
        line = _LINE.search(request_uri)
        if line is not None and (trunk := self._by_line.get(line[1].lower())) is not None:
            return Attribution(trunk, "registration")
        address = address_of(source)
        if address is None:
            return None
        user = user_of(request_uri)
        for name, known in self._registrars.items():
            if address in known and self.by_name[name].username == user:
                return Attribution(self.by_name[name], "registrar")
        for peer, trunk in self._peers:
            if (
                address.version == peer.network.version
                and address in peer.network
                and (reliable or not peer.port or peer.port == port)
            ):
                return Attribution(trunk, "peer")
        return None

    def is_server(self, trunk: Trunk, source: str) -> bool | None:
        """Return whether an address is one of a trunk's own servers: an IP literal as registrar or
        proxy, an address that a registrar has answered from, or in the peers' networks. None when
        none of these is known, as with names only."""
        address = address_of(source)
        registrars = self._registrars.get(trunk.name, [])
        named = [
            found
            for text in (trunk.registrar, trunk.outbound_proxy)
            if (found := address_of(host_of(text))) is not None
        ]
        if not (trunk.peers or registrars or named):
            return None
        return address is not None and (
            address in registrars
            or address in named
            or any(
                address.version == peer.network.version and address in peer.network
                for peer in trunk.peers
            )
        )

    def leads_to(self, trunk: Trunk, host: str, addresses: Iterable[str]) -> bool:
        """Return whether a call through a trunk goes to the trunk's own servers first, so that it
        may have the trunk's headers: it has an outbound proxy, or neither peers nor registrar, or
        the URI's host is its registrar's or a server's (:meth:`is_server`).

        Args:
            host: host of the call's URI.
            addresses: addresses of that host.
        """
        if trunk.outbound_proxy or not (trunk.peers or trunk.registrar):
            return True
        if host and host == host_of(trunk.registrar):
            return True
        return any(self.is_server(trunk, one) for one in (host, *addresses))

    def is_peer(self, source: str) -> bool:
        """Return whether calls of any trunk come from this address: in a peer's network, or a
        registrar has answered from it. The port does not matter."""
        address = address_of(source)
        if address is None:
            return False
        return any(address in known for known in self._registrars.values()) or any(
            address.version == peer.network.version and address in peer.network
            for peer, _trunk in self._peers
        )

    def learn_registrar(self, name: str, source: str) -> None:
        """Remember the address that trunk ``name``'s registrar has answered a REGISTER from; beyond
        ``MAX_REGISTRARS`` the oldest is forgotten."""
        address = address_of(source)
        known = self._registrars[name]
        if address is not None and address not in known:
            known.append(address)
            del known[:-MAX_REGISTRARS]


MAX_REGISTRATIONS = 64
"""Challenges to REGISTER remembered until the registration has succeeded or failed."""

_REALM = re.compile(r'\brealm\s*=\s*"((?:[^"\\]|\\.){0,200})"', re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class ChallengedCall:
    """The call of ours that was challenged; ``followed``: a REFER of the other side made it."""

    trunk: Trunk | None
    to_uri: str
    followed: bool


class Challenges:
    """Decides who may challenge for a trunk's password: its servers, in its realm (RFC 3261 22.1).

    pjsip answers every challenge. A call to another host, or a proxy that forwards responses, would
    get a digest by which the password can be guessed. Used on the SIP thread.

    Args:
        call_of: the call with a SIP Call-ID.
    """

    def __init__(self, trunks: Trunks, call_of: Callable[[str], ChallengedCall | None]) -> None:
        self._trunks = trunks
        self._call_of = call_of
        self._registrations: BoundedDict[str, frozenset[str]] = BoundedDict(MAX_REGISTRATIONS)
        self._realms: dict[str, frozenset[str]] = {}

    def is_foreign(self, code: int, headers: Mapping[str, tuple[str, ...]], source: str) -> bool:
        """Return whether a 401 or 407 comes from someone else than the trunk, so that it gets no
        digest.

        False for another status, and for REGISTER, whose realms are remembered. True for an unknown
        call; for a call of a trunk if the source is none of its servers, or if the realm is another
        than the registrar's, where that is known and ``realms`` has "*". Logged where True.

        Args:
            headers: of the response, by lower-case name.
            source: IP literal that it came from.
        """
        if code not in (401, 407):
            return False
        fields = (*headers.get("www-authenticate", ()), *headers.get("proxy-authenticate", ()))
        realms = frozenset(realm for field in fields for realm in _REALM.findall(field))
        call_id = first_of(headers, "call-id")
        if first_of(headers, "cseq").upper().endswith("REGISTER"):
            # It goes where the configuration says, and nowhere else.
            self._registrations[call_id] = realms
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
        """Note that a REGISTER of a trunk succeeded: the realms of its challenge, if it had one,
        are the registrar's."""
        realms = self._registrations.get(call_id)
        if realms:
            self._realms[trunk] = realms

    def _is_server(self, trunk: Trunk, source: str, call: ChallengedCall) -> bool:
        """Return whether a response to a call comes from the trunk's own server.

        Where no address of a server is known, True if the call went to the configured proxy or
        registrar, and no REFER made it.
        """
        known = self._trunks.is_server(trunk, source)
        if known is not None:
            return known
        # Nothing has come from it yet; what goes to the server of the configuration is answered
        # by it.
        named = bool(trunk.outbound_proxy) or host_of(call.to_uri) == host_of(trunk.registrar)
        return named and not call.followed


FIRST_RETRY_SECONDS = 2.0
LAST_RETRY_SECONDS = 60.0
"""A registrar that comes back is noticed within a minute (and a quarter)."""

REJECTED_RETRY_SECONDS = 60.0
LAST_REJECTED_RETRY_SECONDS = 900.0
"""A password does not get right by trying; registrars lock out who does so too often."""

RECONNECT_SECONDS = 1.0
RECONNECT_PAUSE_SECONDS = 30.0
"""Connections that end may be anybody's: a registrar is not asked more often because of them."""

JITTER = 0.25
"""So that a thousand gateways do not come back in one moment."""

_REJECTIONS = frozenset({401, 403, 404, 405, 407, 423, 603})


TLS_KEYS = "sip.tls.ca, sip.tls.verify_server"
"""What to check where the other side's certificate is not accepted."""


def keys_to_check(code: int, trunk: Trunk) -> str:
    """Return the configuration keys to check after a request to a trunk has failed, as a list for
    people; empty for none.

    Args:
        code: its final response; 0 where nobody answered.
    """
    if code in (401, 407):
        return "trunk.username, trunk.password, trunk.realm"
    if code == 403 and trunk.registrar:
        return "trunk.username, trunk.password, trunk.realm"
    if code == 404 and trunk.registrar:
        return "trunk.username, trunk.registrar"
    if code:
        return ""
    known = (("outbound_proxy", trunk.outbound_proxy), ("registrar", trunk.registrar))
    address = next((f"trunk.{key}" for key, value in known if value), "trunk.peers")
    return f"{address}, {TLS_KEYS if trunk.transport == 'tls' else 'trunk.transport'}"


class RegState(Enum):
    """State of a registration; ``LEAVING``: the REGISTER that ends it is sent."""

    TRYING = "trying"
    REGISTERED = "registered"
    FAILED = "failed"
    LEAVING = "leaving"
    GONE = "gone"


@dataclass(frozen=True, slots=True)
class RegistrationChange:
    """A change of state to be logged, with its cause."""

    state: RegState
    code: int = 0
    reason: str = ""
    seconds: float = 0.0
    """Until it expires, or until the next try."""


class Registration:
    """State of one trunk's registration (RFC 3261 section 10), and when the next REGISTER is due.

    Given each final response; sends nothing itself. Times are in s of one monotonic clock.

    Args:
        chance: evenly distributed between 0 and 1; for the jitter.
        now: when it is made (s).
    """

    def __init__(self, chance: Callable[[], float], now: float = 0.0) -> None:
        self._chance = chance
        self._failures = 0
        self.state = RegState.TRYING
        self.since = now
        self.next_try: float | None = 0.0
        """When to send REGISTER; None while an answer or a refresh is awaited."""
        self.expires_at: float | None = None
        self.last_error = ""
        self._renewed = 0.0
        """When the last 200 came (s)."""
        self._rejected = False
        """The last failure was one that trying again soon does not mend (401, 403, ...)."""
        self._awaits_answer = False
        """A REGISTER counts as sent by :meth:`due`, and has no final response yet."""

    @property
    def leaving(self) -> bool:
        """Whether an unregistration is sent, or to be sent, and has no response yet."""
        return self.state is RegState.LEAVING

    def due(self, now: float) -> bool:
        """Return whether ``next_try`` has come, so that a REGISTER is to be sent now; if so, it
        counts as sent, and ``next_try`` is None."""
        if self.next_try is None or now < self.next_try:
            return False
        self.next_try, self._awaits_answer = None, True
        return True

    def succeeded(self, expires: float, now: float) -> RegistrationChange | None:
        """Handle a 200 valid for ``expires`` s: registered, and no retry is due. Return the change
        to log; None for a refresh.

        A 200 that comes after :meth:`unregister` sent nothing, to a REGISTER that was under way,
        sets LEAVING: the caller has to send the unregistration now.
        """
        fresh = self.state is not RegState.REGISTERED
        self._awaits_answer = False
        self._failures, self.next_try, self.last_error = 0, None, ""
        self._renewed = now
        self.expires_at = now + expires
        if self.state is RegState.GONE:
            self.state, self.since = RegState.LEAVING, now
        if self.state is RegState.LEAVING or not fresh:
            return None
        self.state, self.since = RegState.REGISTERED, now
        return RegistrationChange(RegState.REGISTERED, 200, "", expires)

    def disconnected(self, now: float, *, surely: bool) -> None:
        """Register again soon, since the connection for incoming calls has ended (``surely``) or
        may have: after 1 to 2 s, else not before 30 s after the last 200. Only while REGISTERED,
        and nothing if a REGISTER is due already.

        A restarted registrar forgets connections, and sometimes registrations; without this, calls
        would not arrive until the next refresh.
        """
        if self.state is RegState.REGISTERED and self.next_try is None:
            soon = now + RECONNECT_SECONDS * (1 + self._chance())
            self.next_try = soon if surely else max(soon, self._renewed + RECONNECT_PAUSE_SECONDS)

    def reachable(self, now: float) -> None:
        """Register at the next tick: the registrar answers OPTIONS again after a silence, and may
        have restarted. While REGISTERED, unless a REGISTER is due or under way; while FAILED,
        unless it was a rejection such as 403."""
        told = (
            self.state is RegState.REGISTERED and self.next_try is None and not self._awaits_answer
        )
        waits = self.state is RegState.FAILED and self.next_try is not None and not self._rejected
        if told or waits:
            self.next_try = now

    def renew(self) -> None:
        """Register at the next tick, before the refresh or the next try is due. Nothing in another
        state than REGISTERED or FAILED, or while a REGISTER of ours has no final response."""
        if self.state in (RegState.REGISTERED, RegState.FAILED) and not self._awaits_answer:
            self.next_try = 0.0

    def failed(self, code: int, reason: str, now: float) -> RegistrationChange | None:
        """Handle a failed REGISTER: FAILED, and ``next_try`` after a pause that doubles with each
        failure in a row (2 to 60 s; 60 to 900 s for a rejection), +-25 %. Once we have
        unregistered, nothing is tried again.

        Return the change to log; None for the same error as before, and once unregistered.

        Args:
            code: 0 where nobody answered.
        """
        self._awaits_answer = False
        if self.state in (RegState.LEAVING, RegState.GONE):
            self.next_try = self.expires_at = None
            return None
        rejected = self._rejected = code in _REJECTIONS
        first = REJECTED_RETRY_SECONDS if rejected else FIRST_RETRY_SECONDS
        last = LAST_REJECTED_RETRY_SECONDS if rejected else LAST_RETRY_SECONDS
        wait = min(last, first * 2.0 ** min(self._failures, 16))
        wait *= 1 + JITTER * (2 * self._chance() - 1)
        self._failures += 1
        self.next_try = now + wait
        self.expires_at = None
        error = f"{code or ''} {reason}".strip()
        known = self.state is RegState.FAILED and self.last_error == error
        if self.state is not RegState.FAILED:
            self.since = now
        self.state, self.last_error = RegState.FAILED, error
        return None if known else RegistrationChange(RegState.FAILED, code, reason, round(wait, 1))

    def unregister(self, now: float) -> bool:
        """Register no more. True: it is registered, so that the caller has to send an
        unregistration (LEAVING); False: nothing to be sent (GONE)."""
        told = self.state is RegState.REGISTERED
        self.state = RegState.LEAVING if told else RegState.GONE
        self.next_try, self.since = None, now
        return told

    def unregistered(self, now: float) -> None:
        """Handle the registrar's response to the unregistration, whichever, or its absence:
        GONE."""
        self.state, self.since, self.expires_at = RegState.GONE, now, None


def options_uri(trunk: Trunk) -> str:
    """Return the URI that OPTIONS to a trunk go to: its outbound proxy, else its registrar, else
    its first peer if that is a single address; "" for none."""
    address = trunk.outbound_proxy or trunk.registrar
    if not address and trunk.peers:
        address = trunk.peers[0].host_port
    return f"sip:{address}{trunk.uri_parameters}" if address else ""


class OptionsPinger:
    """Sends OPTIONS to the trunks with an ``options_interval`` and an address (RFC 3261 section
    11), and keeps the last result of each.

    Made and used on the SIP thread; ``results`` may be read from others.

    Args:
        account_of: pjsua's number of a trunk's account.
        on_reachable: called with each trunk that answers after it did not.
    """

    def __init__(
        self,
        signalling: Signalling,
        trunks: tuple[Trunk, ...],
        account_of: Callable[[Trunk], int],
        on_reachable: Callable[[Trunk], None],
    ) -> None:
        self.results: dict[str, str] = {}
        """Last answer of each trunk that is asked: a code, or ``no answer``."""
        self._trunks = [trunk for trunk in trunks if trunk.options_interval and options_uri(trunk)]
        self._account_of = account_of
        self._on_reachable = on_reachable
        self._due: dict[str, float] = {}
        self._count = 0
        """OPTIONS sent so far; one's number among them comes back with its result."""
        self._asked: dict[int, Trunk] = {}
        """Whom each that has no result yet was sent to, the oldest first."""
        signalling.on_options = self._on_options
        self._signalling = signalling

    def tick(self, now: float) -> None:
        """Send the OPTIONS that are due, the first at once, then every ``options_interval`` s. To
        be called about once a second."""
        for trunk in self._trunks:
            if now >= self._due.get(trunk.name, 0.0):
                self._due[trunk.name] = now + trunk.options_interval
                self._ask(trunk)

    def _ask(self, trunk: Trunk) -> None:
        """Send OPTIONS to a trunk. An error of sending is the result at once."""
        self._count += 1
        number = self._count
        self._asked[number] = trunk
        status = self._signalling.send_options(self._account_of(trunk), options_uri(trunk), number)
        if status != 0:
            self._asked.pop(number, None)
            self._note(trunk, f"cannot be sent ({status})")

    def _on_options(self, number: int, status: int) -> None:
        """Keep the final status of an OPTIONS as the trunk's result, 0 as no answer; ignored if one
        that was sent later has its result already."""
        trunk = self._asked.get(number)
        if trunk is None:
            return
        # What was sent before tells less; without an answer it ends half a minute later.
        for older in [n for n, one in self._asked.items() if one is trunk and n <= number]:
            del self._asked[older]
        self._note(trunk, str(status) if status else "no answer")

    def _note(self, trunk: Trunk, result: str) -> None:
        """Keep the result of an OPTIONS, and log it if it differs from the last one. A status,
        whichever, means reachable; ``on_reachable`` is called if the result before was none."""
        before = self.results.get(trunk.name)
        self.results[trunk.name] = result
        if result == before:
            return
        if result[:1].isdigit():  # whatever it says, somebody is there
            log.info("trunk.reachable", trunk=trunk.name, code=int(result))
            if before is not None and not before[:1].isdigit():
                self._on_reachable(trunk)
        else:
            check = keys_to_check(0, trunk)
            log.warning("trunk.unreachable", trunk=trunk.name, error=result, check=check)
