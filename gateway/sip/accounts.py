# SPDX-License-Identifier: GPL-2.0-or-later
"""pjsua2 accounts: one for calls of no trunk, one for each trunk, and its registration.

An account is where pjsua keeps what a call needs: who we are, SRTP, the address of our RTP. A call
that arrives at another of our addresses gets an account like its trunk's, bound to that address;
so does one over TCP or TLS that needs a Contact of its own.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import pjsua2 as pj
import structlog

from gateway.addresses import address_of, bracketed, host_of
from gateway.sip import Security, Trunk
from gateway.sip.library import account_capacity
from gateway.sip.messages.headers import headers_of, text_of
from gateway.sip.transports import forced_contact, set_dscp
from gateway.sip.trunks import (
    LINE_PARAMETER,
    Registration,
    RegistrationChange,
    RegState,
    Trunks,
    keys_to_check,
)

if TYPE_CHECKING:
    from gateway.sip import Listen, SipSettings

log = structlog.get_logger("sip")

UNREGISTER_SECONDS = 2.0
"""How long a stop waits for registrars to answer the goodbye."""

_SRTP = {
    "off": pj.PJMEDIA_SRTP_DISABLED,
    "optional": pj.PJMEDIA_SRTP_OPTIONAL,
    "required": pj.PJMEDIA_SRTP_MANDATORY,
}
_TIMERS = {
    "off": pj.PJSUA_SIP_TIMER_INACTIVE,
    "optional": pj.PJSUA_SIP_TIMER_OPTIONAL,
    "required": pj.PJSUA_SIP_TIMER_REQUIRED,
    "always": pj.PJSUA_SIP_TIMER_ALWAYS,
}
_KEYING = {
    "sdes": pj.PJMEDIA_SRTP_KEYING_SDES,
    "dtls": pj.PJMEDIA_SRTP_KEYING_DTLS_SRTP,
}


class Account(pj.Account):  # type: ignore[misc]
    """One account; ``trunk`` is None for calls of no trunk."""

    def __init__(self, accounts: Accounts, trunk: Trunk | None, host: str) -> None:
        super().__init__()
        self.trunk = trunk
        self.host = host
        """Our address of its calls; empty for any."""
        self._accounts = accounts

    def onIncomingCall(self, prm: Any) -> None:  # noqa: N802
        """Handle an INVITE for which pjsua has made a call; an exception is logged and goes no
        further."""
        try:
            self._accounts.on_call(self, prm)
        except Exception:
            log.exception("sip.callback_failed", callback="onIncomingCall")

    def onRegState(self, prm: Any) -> None:  # noqa: N802
        """Handle a registrar's final response to REGISTER, or its absence; an exception is logged
        and goes no further."""
        try:
            if self.trunk is not None:
                self._accounts.on_registrar(self.trunk, prm)
        except Exception:
            log.exception("sip.callback_failed", callback="onRegState")


class Accounts:
    """pjsua2's accounts: one for each trunk, which may register, and one for all other calls.

    Made and used on the SIP thread; ``registrations`` may be read from others.

    Args:
        own: ``host:port`` that our own URI names, where no registrar gives us another.
        listeners: with the ports really bound.
        on_call: told of each incoming call.
        on_registered: told of each registration, by the trunk's name and the Call-ID.
    """

    def __init__(
        self,
        settings: SipSettings,
        trunks: Trunks,
        own: str,
        listeners: tuple[Listen, ...],
        on_call: Callable[[Account, Any], None],
        on_registered: Callable[[str, str], None],
    ) -> None:
        self._on_registered = on_registered
        self.on_call = on_call
        self.registrations: dict[str, Registration] = {}
        self._settings = settings
        self._trunks = trunks
        self._own = own
        self._listeners = listeners
        self._host = _specific(settings.listen[0].host)
        self._accounts: dict[tuple[str, str, str], Account] = {}
        """By the trunk's name, our address, and the Contact that is forced, mostly none."""
        self._registrars: dict[str, str] = {}
        """``address:port`` that answered each trunk's last REGISTER."""
        self._connections: dict[int, str] = {}
        """``address:port`` of whom each TLS connection is with, by pjsip's handle."""
        self._names: dict[int, tuple[str, ...]] = {}
        """Names in the certificate of who is at its other end, where it was verified."""
        self._places = account_capacity()
        self._impossible: set[tuple[str, str, str]] = set()

    def open(self) -> None:
        """Make the account for calls of no trunk and one for each trunk; those with a registrar,
        and ``registers``, are registered from the next tick on. Raises ``pj.Error`` when the
        library has no place for them."""
        self._make(None, self._host, default=True)
        for trunk in self._trunks.all:
            self._make(trunk, self._host)
            if trunk.registrar and trunk.registers:
                self.registrations[trunk.name] = Registration(random.random, time.monotonic())

    def of(self, trunk: Trunk | None, local: str = "", transport: str = "") -> Account:
        """Return the account for a call of ``trunk`` (None: of no trunk) whose INVITE came to our
        address ``local``; made now if it is needed for that address or Contact.

        The trunk's first account, where the library has no place or has failed to make one.

        Args:
            local: "" for a call that we place.
            transport: of the INVITE; "" for the trunk's, or udp.
        """
        known = _specific(local)
        host = known or self._host
        transport = transport or ("udp" if trunk is None else trunk.transport)
        public = self._settings.public_address
        contact = forced_contact(self._user(trunk), transport, known, public, self._listeners)
        name = "" if trunk is None else trunk.name
        found = self._accounts.get((name, host, contact))
        full = len(self._accounts) >= self._places
        if found is None and not full and (name, host, contact) not in self._impossible:
            try:
                found = self._make(trunk, host, contact)
            except pj.Error as error:
                self._impossible.add((name, host, contact))
                log.warning("sip.account_lacking", trunk=name, host=host, error=error.reason)
        return found or self._accounts[name, self._host, ""]

    def from_uri(self, trunk: Trunk | None, caller_id: str = "") -> str:
        """Return the From URI of calls to this trunk: ``caller_id``, else the trunk's, else our
        user there, at the registrar's host, or at our own address."""
        user = caller_id or (trunk.caller_id if trunk else "") or self._user(trunk)
        host = bracketed(host_of(trunk.registrar)) if trunk else ""
        return f"sip:{user}@{host or self._own}"

    def tick(self, now: float) -> None:
        """Send the REGISTERs that are due; one that cannot be sent counts as failed. To be called
        about once a second, but not while draining."""
        for name, registration in self.registrations.items():
            if not registration.due(now):
                continue
            try:
                self._accounts[name, self._host, ""].setRegistration(True)
            except pj.Error as error:
                self._log(name, registration.failed(0, text_of(error.reason), now))

    def on_registrar(self, trunk: Trunk, prm: Any) -> None:
        """Handle a registrar's final response to a REGISTER, or pjsip's 408 or 503 where none came;
        logs what changes.

        A 2xx with an expiry: registered, and the source address is known as the registrar's;
        ``on_registered`` is called. If we have unregistered meanwhile, the unregistration is sent
        now. Anything else, a 2xx without expiry included: failed. After an unregistration any
        response ends it.
        """
        now = time.monotonic()
        registration = self.registrations.get(trunk.name)
        if registration is None:
            return
        code, source = int(prm.code), str(prm.rdata.srcAddress)
        if registration.leaving:
            registration.unregistered(now)
            log.info("trunk.unregistered", trunk=trunk.name, code=code)
        elif code // 100 == 2 and int(prm.expiration) > 0:
            self._trunks.learn_registrar(trunk.name, source.rpartition(":")[0])
            self._registrars[trunk.name] = source
            call_id = headers_of(text_of(prm.rdata.wholeMsg)).get("call-id", ("",))[0]
            self._on_registered(trunk.name, call_id)
            self._log(trunk.name, registration.succeeded(float(prm.expiration), now))
            if registration.leaving:  # it crossed the unregistration
                self._send_unregistration(trunk.name, registration, now)
        else:
            if not text_of(prm.rdata.wholeMsg):
                code = 0  # nobody answered: the 408 or 503 is pjsip's own
            self._log(trunk.name, registration.failed(code, text_of(prm.reason), now))

    def on_reachable(self, trunk: Trunk) -> None:
        """Register again at a trunk that answers OPTIONS after a silence; see
        :meth:`Registration.reachable`."""
        registration = self.registrations.get(trunk.name)
        if registration is not None:
            registration.reachable(time.monotonic())

    def on_connection(self, prm: Any) -> None:
        """Handle a TCP or TLS connection that was opened or closed.

        Opened, for TLS: keep its peer's address and certificate names. Closed: registrations by
        that transport are renewed soon, of those whose registrar it was with, or of all where its
        peer is not known (TCP).
        """
        transport, handle = str(prm.type).lower()[:3], int(prm.hnd)
        if prm.state == pj.PJSIP_TP_STATE_CONNECTED:
            if transport == "tls":  # pjsua tells whose it is for TLS only, and only now
                self._connections[handle] = str(prm.tlsInfo.remoteAddr)
                self._names[handle] = _names_in(prm.tlsInfo)
            return
        remote = self._connections.pop(handle, "")
        self._names.pop(handle, None)
        if prm.state != pj.PJSIP_TP_STATE_DISCONNECTED:
            return
        now = time.monotonic()
        for trunk in self._trunks.all:
            registration = self.registrations.get(trunk.name)
            if registration is None or trunk.transport != transport:
                continue
            if not remote or remote == self._registrars.get(trunk.name):
                registration.disconnected(now, surely=bool(remote))

    def names_of(self, connection: int) -> tuple[str, ...]:
        """Return the names in the verified certificate of a TLS connection's peer, in lower case;
        empty for others. ``connection`` is pjsip's handle."""
        return self._names.get(connection, ())

    def unregister(self) -> None:
        """Register nowhere any more, and send a REGISTER that ends it (``Expires: 0``) for each
        trunk that is registered; :meth:`wait_unregistered` waits for the responses. A further call
        does nothing."""
        now = time.monotonic()
        for name, registration in self.registrations.items():
            left = registration.state in (RegState.LEAVING, RegState.GONE)
            if not left and registration.unregister(now):
                self._send_unregistration(name, registration, now)

    def _send_unregistration(self, name: str, registration: Registration, now: float) -> None:
        """Send a REGISTER with ``Expires: 0``; where it cannot be sent, log that, and count the
        trunk as unregistered."""
        try:
            self._accounts[name, self._host, ""].setRegistration(False)
        except pj.Error as error:
            log.warning("trunk.unregister_failed", trunk=name, error=text_of(error.reason))
            registration.unregistered(now)

    def wait_unregistered(self, poll: Callable[[], None]) -> None:
        """Wait for the registrars' answers, at most ``UNREGISTER_SECONDS``; each that is missing
        then is logged. Blocks the SIP thread, but for ``poll``.

        Args:
            poll: handles pjsip's events, for a few ms.
        """
        end = time.monotonic() + UNREGISTER_SECONDS
        leaving = {name for name, one in self.registrations.items() if one.leaving}
        while leaving and time.monotonic() < end:
            poll()
            leaving = {name for name in leaving if self.registrations[name].leaving}
        for name in sorted(leaving):
            log.warning("trunk.unregister_failed", trunk=name, error="no answer")

    def shut_down(self) -> None:
        """Delete the accounts in pjsua2, before the library is destroyed."""
        for account in self._accounts.values():
            account.shutdown()

    def disown(self) -> None:
        """Leave the accounts undestroyed until the process ends, after the library was
        destroyed."""
        for account in self._accounts.values():
            account.this.disown()

    def _log(self, name: str, change: RegistrationChange | None) -> None:
        """Log a change of a trunk's registration, a failure with the keys to check; None: nothing
        to log."""
        if change is None:
            return
        fields = {key: value for key, value in asdict(change).items() if value and key != "state"}
        if change.state is RegState.REGISTERED:
            log.info("trunk.registered", trunk=name, expires=fields.get("seconds"))
        else:
            next_try = fields.pop("seconds", None)
            check = keys_to_check(change.code, self._trunks.by_name[name])
            log.warning(
                "trunk.registration_failed",
                trunk=name,
                next_try=next_try,
                check=check,
                advice=f"gateway doctor --trunk {name}",
                **fields,
            )

    def _user(self, trunk: Trunk | None) -> str:
        """Return the user of our URI towards a trunk: its ``username``, else ``sip.user``."""
        return (trunk.username if trunk else "") or self._settings.user

    def _make(
        self, trunk: Trunk | None, host: str, contact: str = "", *, default: bool = False
    ) -> Account:
        """Create an account of a trunk, or of no trunk, and keep it. Raises ``pj.Error``.

        Args:
            host: our address that its RTP is bound to; "" for any.
            contact: the Contact to use; "" for the one that pjsua makes.
            default: pjsua's account for what belongs to no other.
        """
        settings = self._settings
        config = pj.AccountConfig()
        config.sipConfig.contactForced = contact
        config.natConfig.sipOutboundUse = 0
        known = bool(settings.public_address)
        config.natConfig.contactRewriteUse = 0 if known or trunk is None else 1
        config.natConfig.viaRewriteUse = 0 if known or trunk is None else 1
        config.natConfig.sdpNatRewriteUse = 0 if known or trunk is None else 1
        low, high = settings.rtp_ports
        media = config.mediaConfig.transportConfig
        media.port, media.portRange = low, high - low
        set_dscp(media, settings.rtp_dscp)
        if (":" in settings.public_address) is (":" in host):
            media.publicAddress = settings.public_address
        media.boundAddress = host
        six = ":" in host or (not host and ":" in settings.listen[0].host)
        config.mediaConfig.ipv6Use = (
            pj.PJSUA_IPV6_ENABLED_USE_IPV6_ONLY if six else pj.PJSUA_IPV6_DISABLED
        )
        config.callConfig.timerUse = _TIMERS[settings.session_timers]
        config.callConfig.timerSessExpiresSec = settings.session_expires
        config.callConfig.timerMinSESec = settings.session_min
        if trunk is None:
            config.idUri = f"sip:{settings.user}@{self._own}"
            _secure_media(config.mediaConfig, settings.security)
        else:
            self._fill(config, trunk)
        account = Account(self, trunk, host)
        account.create(config, default)
        self._accounts["" if trunk is None else trunk.name, host, contact] = account
        return account

    def _fill(self, config: Any, trunk: Trunk) -> None:
        """Set identity, registrar (pjsua registers only when told, refreshes before it expires, and
        tries nothing again that failed), proxy, credentials and SRTP of a trunk's account."""
        config.idUri = f"sip:{self._user(trunk)}@{bracketed(host_of(trunk.registrar)) or self._own}"
        through = trunk.uri_parameters
        if trunk.registrar:
            registration = config.regConfig
            registration.registrarUri = f"sip:{trunk.registrar}{through}"
            registration.registerOnAdd = False
            registration.timeoutSec = trunk.expires
            registration.retryIntervalSec = 0  # that is Registration's, which says what it does
            registration.contactUriParams = f";{LINE_PARAMETER}={self._trunks.lines[trunk.name]}"
            registration.headers = header_vector(trunk.headers)
        if trunk.outbound_proxy:
            proxies = pj.StringVector()
            proxies.append(f"sip:{trunk.outbound_proxy}{through};lr")
            config.sipConfig.proxies = proxies
        if trunk.password:
            credentials = pj.AuthCredInfoVector()
            for realm in trunk.realms:
                credentials.append(
                    pj.AuthCredInfo("digest", realm, trunk.username, 0, trunk.password)
                )
            config.sipConfig.authCreds = credentials
        _secure_media(config.mediaConfig, trunk.security)


def header_vector(headers: Mapping[str, str]) -> Any:
    """Return header fields in pjsua2's form."""
    vector = pj.SipHeaderVector()
    for name, value in headers.items():
        header = pj.SipHeader()
        header.hName, header.hValue = name, value
        vector.append(header)
    return vector


def _secure_media(config: Any, security: Security) -> None:
    """Set the SRTP policy and keying of an account's media configuration."""
    config.srtpUse = _SRTP[security.srtp]
    config.srtpSecureSignaling = 0  # who wants SDES kept secret says transport = "tls"
    keyings = pj.IntVector()
    for keying in security.keying:
        keyings.append(_KEYING[keying])
    if security.srtp == "optional" and "sdes" not in security.keying:
        # Without it pjmedia refuses RTP that is not encrypted. It is never offered, as it is not
        # the first; sdp_text leaves lines with keys out of what comes.
        keyings.append(_KEYING["sdes"])
    config.srtpOpt.keyings = keyings


def _names_in(tls: Any) -> tuple[str, ...]:
    """Return the names in a certificate's subjectAltName (RFC 5922 section 7.1), in lower case;
    empty unless the handshake is done and the certificate was verified."""
    if tls.isEmpty() or not tls.established or tls.verifyStatus:
        return ()
    names = tls.remoteCertInfo.subjectAltName
    return tuple(str(names[index].name).lower() for index in range(len(names)))


def _specific(host: str) -> str:
    """Return an IP literal in canonical form; "" for a name or the unspecified address."""
    address = address_of(host)
    return "" if address is None or address.is_unspecified else str(address)
