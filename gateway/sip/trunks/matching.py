# SPDX-License-Identifier: GPL-2.0-or-later
"""Which trunk a request is of, by registration, then by address; who may ask for its password."""

from __future__ import annotations

import re
import secrets
from collections import OrderedDict
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

import structlog

from gateway.addresses import IPAddress, address_of, host_of
from gateway.sip.messages.headers import first_of, user_of
from gateway.sip.settings import Trunk

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
    """All trunks, asked about each request. Any thread may read; the SIP thread calls ``learn``."""

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
        """Return whether an address is one of a trunk's own servers; None when none of them is
        known."""
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
        """Return whether a call through a trunk goes to the trunk's own servers first.

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
        """Return whether calls of a trunk come from this address."""
        address = address_of(source)
        if address is None:
            return False
        return any(address in known for known in self._registrars.values()) or any(
            address.version == peer.network.version and address in peer.network
            for peer, _trunk in self._peers
        )

    def learn(self, name: str, source: str) -> None:
        """Remember the address that trunk ``name``'s registrar has answered a REGISTER from."""
        address = address_of(source)
        known = self._registrars[name]
        if address is not None and address not in known:
            known.append(address)
            del known[:-MAX_REGISTRARS]


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
    """Decides who may challenge for a trunk's password: its servers, in its realm (RFC 3261 22.1).

    pjsip answers every challenge. A call to another host, or a proxy that forwards responses, would
    get a digest by which the password can be guessed. Used on the SIP thread.

    Args:
        call_of: the call with a SIP Call-ID.
    """

    def __init__(self, trunks: Trunks, call_of: Callable[[str], Challenged | None]) -> None:
        self._trunks = trunks
        self._call_of = call_of
        self._registrations: OrderedDict[str, frozenset[str]] = OrderedDict()
        self._realms: dict[str, frozenset[str]] = {}

    def is_foreign(self, code: int, headers: Mapping[str, tuple[str, ...]], source: str) -> bool:
        """Return whether a 401 or 407 comes from someone else than the trunk, so that it gets no
        digest.

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
        """Note that a REGISTER succeeded: the realm in which it was challenged is the
        registrar's."""
        realms = self._registrations.get(call_id)
        if realms:
            self._realms[trunk] = realms

    def _is_server(self, trunk: Trunk, source: str, call: Challenged) -> bool:
        """Return whether a response to a call comes from the trunk's own server."""
        known = self._trunks.is_server(trunk, source)
        if known is not None:
            return known
        # Nothing has come from it yet; what goes to the server of the configuration is answered
        # by it.
        named = bool(trunk.outbound_proxy) or host_of(call.to_uri) == host_of(trunk.registrar)
        return named and not call.followed
