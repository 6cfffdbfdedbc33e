# SPDX-License-Identifier: GPL-2.0-or-later
"""Checks that trunks are reachable: resolves the host, sends OPTIONS, logs in at the registrar.

The REGISTER has no Contact: the registrar checks the password and lists the bindings, and nothing
is bound (RFC 3261 section 10.3). Of ``--trunk``, the certificate is read too, and where nobody
answers, the other transports are tried.
"""

from __future__ import annotations

import asyncio
import hashlib
import re
import secrets
import socket
import ssl
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from datetime import UTC, datetime

from gateway.addresses import bracketed, is_inside, is_loopback, is_name
from gateway.config import Config
from gateway.config.sip import Address, Transport, TrunkSettings
from gateway.devtools.doctor import Finding, Verdict, bad, network, ok, warn
from gateway.devtools.doctor.network import CERTIFICATE_DAYS, Service
from gateway.devtools.doctor.trunk_messages import redacted
from gateway.planning.sip import sip_settings
from gateway.sip.messages.headers import first_of, headers_of, start_line_of
from gateway.sip.transports import carried_to

ANSWER_SECONDS = 4.0
"""For name, connection and answer of one request; a UDP request is repeated within it."""

_WRONG_TIME, _OTHER_NAME = (9, 10), (62, 64)
"""X509_V_ERR codes of OpenSSL: not yet valid, expired; of another name, of another address."""

_REPEATS = (0.5, 1.0)
_HASHES = {"MD5": hashlib.md5, "SHA-256": hashlib.sha256}
_PORTS: dict[Transport, int] = {"udp": 5060, "tcp": 5060, "tls": 5061}
OTHER_SECONDS = 1.5
"""For the answer by another transport than that of the trunk."""


@dataclass(frozen=True, slots=True)
class Answer:
    """Status line of a response, and its header fields by lower-case full name."""

    code: int
    reason: str
    headers: Mapping[str, tuple[str, ...]]


class _ProbeError(Exception):
    """No answer; ``advice`` names the key to change."""

    def __init__(self, fact: str, advice: str, code: str = "unreachable") -> None:
        super().__init__(fact)
        self.fact, self.advice, self.code = fact, advice, code


def check_trunks(config: Config) -> list[Finding]:
    """Check all trunks at the same time, without a call."""

    async def all_of_them() -> list[Finding]:
        return list(await asyncio.gather(*(_check_trunk(config, trunk) for trunk in config.trunk)))

    return asyncio.run(all_of_them())


async def _check_trunk(config: Config, trunk: TrunkSettings) -> Finding:
    """Resolve one trunk, send OPTIONS, or log in where it has a registrar."""
    target, key = _target(trunk)
    if target is None:
        return ok("trunk", f"{trunk.name} has no single address to ask")
    host, port = target.host, target.port or _PORTS[trunk.transport]
    shown = f"{trunk.name}, {trunk.transport}:{host}:{port}"
    loopback = all(is_loopback(address.host) for address in config.sip.listen)
    try:
        family, address = await _resolved(host, port, key)
        if loopback and not is_loopback(address):
            advice = _everywhere(config, trunk, address)
            return bad("trunk", f"{shown} cannot reach sip.listen, on this machine only", advice)
        client = _Client(config, trunk, family, (address, port), host, key)
        if trunk.registrar is None:
            answer = await client.ask("OPTIONS", f"sip:{bracketed(host)}")
            own = carried_to(sip_settings(config), address)
            if own and is_inside(own) and not is_inside(address) and not config.sip.stun_server:
                fact = f"{shown} answers OPTIONS, but SDP would carry {own}, which it cannot reach"
                return warn("trunk", fact, "set sip.public_address, and forward the ports")
            fact = f"{shown} answers OPTIONS with {answer.code} {answer.reason}"
            if answer.code in (401, 407) and trunk.password is None:
                advice = "does it know our address (an Asterisk: match of its identify)? "
                return warn("trunk", fact, f"{advice}Else it refuses the calls that we place")
            return ok("trunk", fact)
        return await _login(client, trunk, shown)
    except _ProbeError as error:
        return bad("trunk", f"{shown}: {error.fact}", error.advice)


async def check_closely(config: Config, trunk: TrunkSettings) -> list[Finding]:
    """Resolve a trunk's host, read its certificate, send OPTIONS, and log in at its registrar.

    The last finding is bad where the trunk cannot be reached, so that no call can be placed.
    """
    subject = f"trunk {trunk.name}"
    target, key = _target(trunk)
    if target is None:
        advice = f"{config.place('outbound_proxy', trunk.name)}, or a peer that is one address"
        return [
            warn(subject, "it has no single address to ask or to call", advice).of("no_address")
        ]
    host, port = target.host, target.port or _PORTS[trunk.transport]
    where = config.place(key.removeprefix("trunk."), trunk.name)
    found: list[Finding] = []
    services: list[Service] = []
    if is_name(host) and not target.port:  # with a port, no record is asked (RFC 3263 section 4.2)
        services = await asyncio.to_thread(network.services, host)
    listed = ", ".join(map(str, services))
    try:
        try:
            family, address = await _resolved(host, port, where)
        except _ProbeError as error:
            if not services:
                raise
            fact = f"{error.fact}; its SRV records name {listed}, which are not followed"
            raise _ProbeError(fact, _by_service(config, trunk, services), "dns_srv") from None
        if services and not await _is_one_of(services, trunk.transport, address, port):
            fact = f"its SRV records name {listed}, and its address is {address}, port {port}: "
            fact += "the gateway follows addresses only"
            found.append(warn(subject, fact, _by_service(config, trunk, services)).of("dns_srv"))
        if address != host:
            found.append(ok(subject, f"{host} is {address}").of("dns"))
        if all(is_loopback(one.host) for one in config.sip.listen) and not is_loopback(address):
            fact = f"{address} cannot be reached from sip.listen, on this machine only"
            advice = _everywhere(config, trunk, address)
            return [*found, bad(subject, fact, advice).of("listen")]
        if trunk.transport == "tls":
            found += await asyncio.to_thread(_certificate, config, trunk, (address, port), host)
        client = _Client(config, trunk, family, (address, port), host, where)
        try:
            answer = await client.ask("OPTIONS", f"sip:{bracketed(host)}")
            client.shown.clear()
        except _ProbeError as error:
            fact, advice, code = error.fact, error.advice, error.code
            if any(one.code == "certificate" and one.verdict is Verdict.BAD for one in found):
                return found
            for other in _PORTS:
                if other != trunk.transport and await _answers_by(config, trunk, other, client):
                    fact += f"; by {other} somebody answers there"
                    advice = f'{config.place("transport", trunk.name)}: "{other}"'
                    code = "transport"
                    break
            shown = f"{trunk.transport}:{bracketed(host)}:{port}"
            said = bad(subject, f"{shown}: {fact}", advice).of(code, *client.shown)
            return [*found, said]
        fact = f"answers OPTIONS with {answer.code} {answer.reason}"
        found.append(ok(subject, fact).of("options"))
        if trunk.registrar is not None:
            one = await _login(client, trunk, "it")
            found.append(replace(one, subject=subject))
    except _ProbeError as error:
        found.append(bad(subject, error.fact, error.advice).of(error.code))
    return found


def _everywhere(config: Config, trunk: TrunkSettings, address: str) -> str:
    """Return the advice to listen where a trunk at this IP address reaches it."""
    host, port = "[::]" if ":" in address else "0.0.0.0", config.sip.listen[0].port
    return f'sip.listen = ["{trunk.transport}:{host}:{port}"]'


def _by_service(config: Config, trunk: TrunkSettings, services: list[Service]) -> str:
    own = [one for one in services if one.transport == trunk.transport]
    first = (own or services)[0]
    text = f'{config.place("outbound_proxy", trunk.name)}: "{first.host}:{first.port}"'
    return text if own else f'{text}, with transport = "{first.transport}"'


async def _is_one_of(services: list[Service], transport: str, address: str, port: int) -> bool:
    loop = asyncio.get_running_loop()
    for one in services:
        if (one.transport, one.port) == (transport, port):
            with suppress(OSError):
                found = await loop.getaddrinfo(one.host, port, type=socket.SOCK_DGRAM)
                if address in [str(entry[4][0]) for entry in found]:
                    return True
    return False


async def _answers_by(
    config: Config, trunk: TrunkSettings, transport: Transport, asked: _Client
) -> bool:
    """Whether somebody answers OPTIONS at the same port by another transport."""
    other = trunk.model_copy(update={"transport": transport})
    client = _Client(config, other, asked.family, asked.address, asked.host, "")
    client.verify = False
    try:
        async with asyncio.timeout(OTHER_SECONDS):
            await client.ask("OPTIONS", f"sip:{bracketed(asked.host)}")
    except (_ProbeError, TimeoutError):
        return False
    return True


def _tls_context(config: Config, *, verify: bool) -> ssl.SSLContext:
    """Return the settings of a TLS connection to a trunk, with our certificate where there is one.

    Args:
        verify: whether the certificate of the other side is checked.
    """
    tls = config.sip.tls
    context = ssl.create_default_context(cafile=tls.ca and str(tls.ca))
    if not verify:
        context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    if tls.certificate is not None and tls.private_key is not None:
        context.load_cert_chain(tls.certificate, tls.private_key)
    return context


def _certificate(
    config: Config, trunk: TrunkSettings, address: tuple[str, int], host: str
) -> list[Finding]:
    """Check chain, names and dates of a TLS trunk's certificate, as a call would; blocks."""
    subject, tls = f"trunk {trunk.name}", config.sip.tls
    ca = config.place("sip.tls.ca")
    context = _tls_context(config, verify=False)
    try:
        with (
            socket.create_connection(address, ANSWER_SECONDS) as plain,
            context.wrap_socket(plain, server_hostname=host) as secure,
        ):
            raw, version = secure.getpeercert(binary_form=True), secure.version()
    except OSError:
        return []  # OPTIONS says it
    if raw is None:
        return []
    from cryptography import x509

    one = x509.load_der_x509_certificate(raw)
    try:
        names = one.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
        known = [*names.get_values_for_type(x509.DNSName)]
        known += [str(ip) for ip in names.get_values_for_type(x509.IPAddress)]
    except x509.ExtensionNotFound:
        known = [
            str(part.value) for part in one.subject.get_attributes_for_oid(x509.NameOID.COMMON_NAME)
        ]
    now, begin, end = datetime.now(UTC), one.not_valid_before_utc, one.not_valid_after_utc
    text = (
        f"subject {one.subject.rfc4514_string()}, names {', '.join(known) or 'none'}, issuer "
        f"{one.issuer.rfc4514_string()}, valid {begin:%Y-%m-%d %H:%M} to {end:%Y-%m-%d %H:%M} UTC, "
        f"{version}"
    )
    clock = f"the clock here says {now:%Y-%m-%d %H:%M} UTC"
    if now < begin:
        fact = f"its certificate is not valid yet, from {begin:%Y-%m-%d %H:%M} UTC; {clock}"
        advice = "set this machine's clock (chrony), or that of who made the certificate"
        return [bad(subject, fact, advice).of("certificate", text)]
    if now > end:
        fact = f"its certificate has expired on {end:%Y-%m-%d %H:%M} UTC; {clock}"
        return [bad(subject, fact, "a new one at the other side").of("certificate", text)]
    if not any(_is_named(host, name) for name in known):
        verdict = bad if tls.verify_server else warn
        fact = f"its certificate is not for {host}, but for {', '.join(known) or 'no name'}"
        advice = f"{config.place('registrar', trunk.name)} or outbound_proxy by a name of it"
        return [verdict(subject, fact, advice).of("certificate", text)]
    context = _tls_context(config, verify=True)
    try:
        with (
            socket.create_connection(address, ANSWER_SECONDS) as plain,
            context.wrap_socket(plain, server_hostname=host),
        ):
            pass
    except ssl.SSLCertVerificationError as error:
        verdict = bad if tls.verify_server else warn
        fact = f"its certificate is not trusted: {error.verify_message}"
        return [verdict(subject, fact, f"{ca} has to hold its CA").of("certificate", text)]
    except OSError:
        return []
    left = (end - now).days
    if left < CERTIFICATE_DAYS:
        fact = f"its certificate ends in {left} days"
        return [warn(subject, fact, "a new one at the other side").of("certificate", text)]
    return [ok(subject, f"certificate: {text}").of("certificate")]


def _is_named(host: str, name: str) -> bool:
    host, name = host.lower().rstrip("."), name.lower().rstrip(".")
    return host == name or (name.startswith("*.") and host.partition(".")[2] == name[2:])


async def _login(client: _Client, trunk: TrunkSettings, shown: str) -> Finding:
    registrar = trunk.registrar
    assert registrar is not None
    uri = f"sip:{bracketed(registrar.host)}"
    answer = await client.ask("REGISTER", uri)
    if answer.code in (401, 407):
        answer = await client.ask("REGISTER", uri, answer)
        if answer.code in (401, 403, 407):
            fact = f"{shown} refuses the login of {trunk.username}: {answer.code} {answer.reason}"
            advice = "is trunk.password right, and trunk.username, trunk.realm?"
            return bad("trunk", fact, advice).of("password", *client.shown)
    if 200 <= answer.code < 300:
        return ok("trunk", f"{shown} accepts the login of {trunk.username}").of("login")
    fact = f"{shown} answers the REGISTER with {answer.code} {answer.reason}"
    if answer.code in (403, 404):
        advice = "does it know trunk.username, and is trunk.registrar its domain?"
        return bad("trunk", fact, advice).of("user", *client.shown)
    advice = "it does not list bindings, so the password was not tried"
    return warn("trunk", fact, advice).of("login", *client.shown)


def _target(trunk: TrunkSettings) -> tuple[Address | None, str]:
    """Return the address to send requests to, and the key that has it; None for no single one."""
    if trunk.outbound_proxy is not None:
        return trunk.outbound_proxy, "trunk.outbound_proxy"
    if trunk.registrar is not None:
        return trunk.registrar, "trunk.registrar"
    for peer in trunk.peers:
        if peer.network.num_addresses == 1:
            return Address(str(peer.network.network_address), peer.port), "trunk.peers"
    return None, ""


async def _resolved(host: str, port: int, key: str) -> tuple[int, str]:
    loop = asyncio.get_running_loop()
    try:
        async with asyncio.timeout(ANSWER_SECONDS):
            found = await loop.getaddrinfo(host, port, type=socket.SOCK_DGRAM)
    except TimeoutError:
        raise _ProbeError("the name is not resolved in time", "is DNS working?", "dns") from None
    except OSError as error:
        fact = f"the name cannot be resolved: {error.strerror or error}"
        raise _ProbeError(fact, f"is {key} right, and DNS working?", "dns") from None
    family, _, _, _, address = found[0]
    return family, str(address[0])


class _Client:
    """Sends one request at a time to a trunk, over a connection of its own."""

    def __init__(
        self,
        config: Config,
        trunk: TrunkSettings,
        family: int,
        address: tuple[str, int],
        host: str,
        key: str,
    ) -> None:
        self._config, self._trunk, self._key = config, trunk, key
        self.family, self.address, self.host = family, address, host
        self.verify = config.sip.tls.verify_server
        self.shown: list[str] = []
        """Messages so far, without digests."""
        self._from = network.source_address(config.sip.listen, trunk.transport, address[0])
        self._call_id, self._tag, self._sequence = secrets.token_hex(12), secrets.token_hex(6), 0

    async def ask(self, method: str, uri: str, challenge: Answer | None = None) -> Answer:
        """Send a request and return its final response. Raises _ProbeError."""
        transport = self._trunk.transport
        try:
            async with asyncio.timeout(ANSWER_SECONDS):
                if transport == "udp":
                    return await self._over_udp(method, uri, challenge)
                return await self._over_stream(method, uri, challenge)
        except TimeoutError:
            advice = f"are {self._key} and trunk.transport right? Does a firewall drop it?"
            raise _ProbeError(f"no answer within {ANSWER_SECONDS:g} s", advice) from None
        except ssl.SSLCertVerificationError as error:
            advice = "sip.tls.ca has to hold the CA of its certificate"
            if error.verify_code in _OTHER_NAME:
                advice = f"{self._key} is not the name in its certificate"
            elif error.verify_code in _WRONG_TIME:
                advice = "the other side renews it; is the clock of this machine right?"
            fact = f"certificate not trusted: {error.verify_message}"
            raise _ProbeError(fact, advice, "certificate") from None
        except ssl.SSLError as error:
            fact = f"TLS failed: {error.reason or error}"
            advice = f"does {self._key} name its TLS port? sip.tls has versions and certificates"
            raise _ProbeError(fact, advice, "tls") from None
        except ConnectionRefusedError:
            advice = f"is the port of {self._key} right, and trunk.transport?"
            raise _ProbeError("nothing listens there", advice, "port") from None
        except OSError as error:
            fact = f"cannot be reached: {error.strerror or error}"
            raise _ProbeError(fact, f"is {self._key} right?") from None

    async def _over_udp(self, method: str, uri: str, challenge: Answer | None) -> Answer:
        loop = asyncio.get_running_loop()
        with socket.socket(self.family, socket.SOCK_DGRAM) as own:
            own.setblocking(False)
            if self._from is not None:
                own.bind(self._from)
            own.connect(self.address)
            request = self._request(method, uri, own.getsockname(), challenge)
            self._note("sent to", request)
            await loop.sock_sendall(own, request)
            repeats = [loop.call_later(after, own.send, request) for after in _REPEATS]
            try:
                while True:
                    data = await loop.sock_recv(own, 65535)
                    answer = _parsed(data)
                    if answer is not None and answer.code >= 200:
                        self._note("received from", data)
                        return answer
            finally:
                for repeat in repeats:
                    repeat.cancel()

    async def _over_stream(self, method: str, uri: str, challenge: Answer | None) -> Answer:
        tls = None
        if self._trunk.transport == "tls":
            tls = _tls_context(self._config, verify=self.verify)
        name = self.host if tls is not None else None
        reader, writer = await asyncio.open_connection(
            *self.address, ssl=tls, server_hostname=name, local_addr=self._from
        )
        try:
            own = writer.get_extra_info("sockname")
            request = self._request(method, uri, own, challenge)
            self._note("sent to", request)
            writer.write(request)
            while True:
                data = await reader.readuntil(b"\r\n\r\n")
                answer = _parsed(data)
                if answer is None:
                    raise OSError("what answers is no SIP")
                await reader.readexactly(int(first_of(answer.headers, "content-length") or 0))
                if answer.code >= 200:
                    self._note("received from", data)
                    return answer
        except (asyncio.IncompleteReadError, asyncio.LimitOverrunError, ValueError):
            raise OSError("it ended the connection, or is no SIP") from None
        finally:
            writer.close()

    def _note(self, way: str, message: bytes) -> None:
        text = redacted(message.decode("utf-8", "replace"))
        host = bracketed(self.address[0])
        where = f"{self._trunk.transport}:{host}:{self.address[1]}"
        self.shown.append(f"{way} {where}\n{text.rstrip()}")

    def _request(
        self, method: str, uri: str, own: tuple[str, int], challenge: Answer | None
    ) -> bytes:
        self._sequence += 1
        transport = self._trunk.transport.upper()
        here = f"{bracketed(own[0])}:{own[1]}"
        user = self._trunk.username or "gateway"
        domain = bracketed((self._trunk.registrar or Address(self.host, 0)).host)
        lines = [
            f"{method} {uri} SIP/2.0",
            f"Via: SIP/2.0/{transport} {here};branch=z9hG4bK{secrets.token_hex(8)};rport",
            "Max-Forwards: 70",
            f"From: <sip:{user}@{domain}>;tag={self._tag}",
            f"To: <sip:{user}@{domain}>" if method == "REGISTER" else f"To: <{uri}>",
            f"Call-ID: {self._call_id}",
            f"CSeq: {self._sequence} {method}",
            f"User-Agent: {self._config.sip.user_agent}",
            *([f"Contact: <sip:{user}@{here}>"] if method == "OPTIONS" else []),
            *(self._credentials(method, uri, challenge) if challenge is not None else []),
            "Content-Length: 0",
        ]
        return "\r\n".join([*lines, "", ""]).encode()

    def _credentials(self, method: str, uri: str, challenge: Answer) -> list[str]:
        """Answer a digest challenge (RFC 7616); none for an algorithm that is not known."""
        proxy = challenge.code == 407
        name = "proxy-authenticate" if proxy else "www-authenticate"
        for offered in challenge.headers.get(name, ()):
            fields = {
                key.lower(): quoted or plain
                for key, quoted, plain in re.findall(r'(\w+)=(?:"([^"]*)"|([^\s,]+))', offered)
            }
            digest = _HASHES.get(fields.get("algorithm", "MD5").upper())
            if digest is None or "nonce" not in fields:
                continue
            realm, nonce = fields.get("realm", ""), fields["nonce"]
            password = self._trunk.password.get_secret_value() if self._trunk.password else ""
            one = digest(f"{self._trunk.username}:{realm}:{password}".encode()).hexdigest()
            two = digest(f"{method}:{uri}".encode()).hexdigest()
            given = {"username": self._trunk.username, "realm": realm, "nonce": nonce, "uri": uri}
            more = ""
            if "auth" in fields.get("qop", ""):
                client = secrets.token_hex(8)
                response = digest(f"{one}:{nonce}:00000001:{client}:auth:{two}".encode())
                more = f', qop=auth, nc=00000001, cnonce="{client}"'
            else:
                response = digest(f"{one}:{nonce}:{two}".encode())
            given["response"] = response.hexdigest()
            if "opaque" in fields:
                given["opaque"] = fields["opaque"]
            text = ", ".join(f'{key}="{value}"' for key, value in given.items()) + more
            text += f", algorithm={fields.get('algorithm', 'MD5')}"
            return [f"{'Proxy-' if proxy else ''}Authorization: Digest {text}"]
        return []


def _parsed(data: bytes) -> Answer | None:
    """Parse a SIP response; return None for anything else."""
    text = data.decode("utf-8", "replace")
    found = re.match(r"SIP/2\.0 (\d{3}) ?(.*)", start_line_of(text))
    return None if found is None else Answer(int(found[1]), found[2], headers_of(text))
