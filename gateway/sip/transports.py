# SPDX-License-Identifier: GPL-2.0-or-later
"""The listeners: UDP, TCP and TLS, on IPv4 and IPv6 (RFC 3261 section 18)."""

from __future__ import annotations

import socket
import ssl
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pjsua2 as pj
import structlog

from gateway.addresses import bracketed
from gateway.sip.settings import Listen, SipSettings
from gateway.sip.types import AgentError

log = structlog.get_logger("sip")

_KINDS = {
    "udp": (pj.PJSIP_TRANSPORT_UDP, pj.PJSIP_TRANSPORT_UDP6),
    "tcp": (pj.PJSIP_TRANSPORT_TCP, pj.PJSIP_TRANSPORT_TCP6),
    "tls": (pj.PJSIP_TRANSPORT_TLS, pj.PJSIP_TRANSPORT_TLS6),
}
HANDSHAKE_MS = 10_000
"""How long a TLS handshake may take, ms; whoever connects and says nothing is gone after that."""

_SYSTEM_CAS = "/etc/ssl/certs/ca-certificates.crt"


@dataclass(slots=True)
class _Open:
    listen: Listen
    identity: int
    name: str
    port: int


class Listeners:
    """Opened and renewed on the SIP thread.

    Args:
        endpoint: pjsua2's, initialised.
    """

    def __init__(self, endpoint: Any, settings: SipSettings) -> None:
        self._endpoint = endpoint
        self._settings = settings
        self._open: list[_Open] = []

    def open(self) -> None:
        """Bind all. Raises AgentError, naming the address or the file that is at fault."""
        if any(listen.transport == "tls" for listen in self._settings.listen):
            self._try_certificates()
        for listen in self._settings.listen:
            self._open.append(self._bind(listen, listen.port))

    @property
    def addresses(self) -> tuple[str, ...]:
        """``transport:host:port`` of each, with the ports really bound."""
        return tuple(
            f"{one.listen.transport}:{bracketed(one.listen.host)}:{one.port}" for one in self._open
        )

    @property
    def bound(self) -> tuple[Listen, ...]:
        """The listeners with the ports really bound."""
        return tuple(replace(one.listen, port=one.port) for one in self._open)

    @property
    def name(self) -> str:
        """``host:port`` of the first one, as others see it."""
        return self._open[0].name

    def renew_certificates(self) -> int:
        """Take the TLS files anew; returns how many listeners now have them.

        Connections go on, with the certificates that they were made with. Raises AgentError where
        the files are no good, in which case everything stays as it is.
        """
        secure = [one for one in self._open if one.listen.transport == "tls"]
        if secure:
            self._try_certificates()
        for one in secure:
            # pjsip keeps the connections of a listener that is closed.
            self._endpoint.transportClose(one.identity)
            one.identity = self._bind(one.listen, one.port).identity
        return len(secure)

    def _bind(self, listen: Listen, port: int) -> _Open:
        config = pj.TransportConfig()
        config.boundAddress, config.port = listen.host, port
        public = self._settings.public_address
        if (":" in public) is (":" in listen.host):
            config.publicAddress = public
        if listen.transport == "tls":
            self._secure(config.tlsConfig)
        elif listen.transport == "tcp":
            _reuse_address(config.sockOptParams)
        try:
            identity = self._endpoint.transportCreate(
                _KINDS[listen.transport][":" in listen.host], config
            )
        except pj.Error as error:
            where = f"{listen.transport}:{bracketed(listen.host)}:{port}"
            why = f"sip.listen: cannot bind {where}: {error.reason}"
            if "in use" in error.reason:
                why += "; `ss -lptu` shows which program has it"
            raise AgentError(why) from error
        local = str(self._endpoint.transportGetInfo(identity).localName)
        host, _, bound = local.rpartition(":")
        name = f"{bracketed(host.strip('[]'))}:{bound}"
        return _Open(listen, int(identity), name, int(bound))

    def _secure(self, config: Any) -> None:
        tls = self._settings.tls
        config.certFile, config.privKeyFile = tls.certificate, tls.private_key
        # Of whom it is given, pjsip also tells every client that connects: the system's many CAs
        # are for those who need them.
        outward = tls.verify_server and any(
            trunk.transport == "tls" for trunk in self._settings.trunks
        )
        config.CaListFile = tls.ca or (system_cas() if outward else "")
        config.verifyServer = tls.verify_server
        config.verifyClient = tls.client_certificates != "off"
        config.requireClientCert = tls.client_certificates == "required"
        config.msecTimeout = HANDSHAKE_MS
        if tls.ciphers:
            config.ciphers = _ciphers(tls.ciphers)
        config.proto = pj.PJ_SSL_SOCK_PROTO_TLS1_3
        if tls.min_version == "1.2":
            config.proto |= pj.PJ_SSL_SOCK_PROTO_TLS1_2
        _reuse_address(config.sockOptParams)

    def _try_certificates(self) -> None:
        # pjsip would open a listener with a certificate that it could not read.
        tls = self._settings.tls
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        for key, name in (("certificate", tls.certificate), ("private_key", tls.private_key)):
            _readable(f"sip.tls.{key}", name)
        try:
            # A passphrase is asked for on the terminal unless there is an answer.
            context.load_cert_chain(tls.certificate, tls.private_key, password="")
        except (ssl.SSLError, ValueError) as error:
            raise AgentError(
                f"sip.tls.certificate: {tls.certificate} and {tls.private_key} are no certificate "
                f"with its key: {error}"
            ) from None
        if tls.ca:
            _readable("sip.tls.ca", tls.ca)
            try:
                context.load_verify_locations(tls.ca)
            except ssl.SSLError as error:
                raise AgentError(f"sip.tls.ca: {tls.ca} holds no certificates: {error}") from None


def _ciphers(names: str) -> Any:
    """The cipher suites of an OpenSSL list, by their numbers (RFC 8446 appendix B.4)."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.set_ciphers(names)
    numbers = pj.IntVector()
    for cipher in context.get_ciphers():
        if cipher["protocol"] != "TLSv1.3":
            numbers.append(cipher["id"] & 0xFFFF)
    return numbers


def system_cas() -> str:
    """The file with the CAs that this system trusts; empty when there is none."""
    paths = ssl.get_default_verify_paths()
    known = (paths.cafile, paths.openssl_cafile, _SYSTEM_CAS)
    return next((path for path in known if path and Path(path).is_file()), "")


def _readable(key: str, name: str) -> None:
    try:
        with Path(name).open("rb"):
            return
    except OSError as error:
        raise AgentError(f"{key}: {name} cannot be read: {error.strerror}") from None


_REUSE_ADDRESS = pj.SockOpt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
"""Kept: a copy of it, which is what pjsua2 has, refers to the value in this one."""


def _reuse_address(params: Any) -> None:
    # A listener has to come back while connections to its port live on.
    options = pj.SockOptVector()
    options.append(_REUSE_ADDRESS)
    params.sockOpts = options
