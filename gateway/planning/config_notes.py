# SPDX-License-Identifier: GPL-2.0-or-later
"""Notes of ``gateway check``: valid but seldom meant settings of ``gateway.toml``, with servers,
models and the certificate of ``[sip.tls]``; :func:`notes` joins them with those on routes."""

from __future__ import annotations

import re
import ssl
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, date, datetime
from difflib import get_close_matches
from fnmatch import fnmatchcase
from pathlib import Path
from stat import S_IROTH
from urllib.parse import urlsplit

from gateway.addresses import is_inside, is_loopback, is_name
from gateway.billing import transcriber_of
from gateway.billing.prices import load_prices
from gateway.config import Config
from gateway.config.sections import on_loopback
from gateway.config.sip import SipSettings
from gateway.config.source import mode_of, suggestion
from gateway.dialplan import Dialplan, Route, call_settings
from gateway.planning.route_notes import (
    history_notes,
    live_notes,
    route_notes,
    toll_fraud_notes,
    tool_notes,
    transcription_notes,
)
from gateway.planning.route_tools import (
    has_prompt,
    offers_of,
    own_tools,
    recording_plan,
    transfer_plan,
)
from gateway.realtime.connection import Endpoint, is_live
from gateway.realtime.dialects import AZURE_HOSTS
from gateway.tools.executor import RouteTools


def notes(config: Config, dialplan: Dialplan) -> list[str]:
    """Return a line for each setting that is valid but seldom meant."""
    advice: list[str] = []
    enabled = [route for route in dialplan.routes if route.enabled]
    if not enabled:
        folder = config.dialplan.folder
        advice.append(
            f"dialplan.folder: no route in {folder}/*.toml: every call is refused with 404"
        )
    listening = {address.transport for address in config.sip.listen}
    for route in enabled:
        for target in route.transfer:
            if target.mode == "blind" or target.trunk is not None:
                continue
            found = re.search(r";transport=(\w+)", target.to, re.IGNORECASE)
            transport = found[1].lower() if found else "udp"
            if transport not in listening:
                advice.append(
                    f"route {route.name}: transfer {target.name} names no trunk, so it goes by "
                    f"{transport}, for which sip.listen has no address"
                )
    advice += route_notes(enabled)
    advice += live_notes(config, enabled)
    advice += history_notes(config, enabled)
    advice += _unreachable(config)
    advice += certificate_notes(config.sip)
    advice += _unknown_models(config, enabled)
    advice += [text for soon, text in retirements(config, dialplan) if soon]
    advice += _odd_keys(config, enabled)
    advice += _access_notes(config)
    if config.records.database_url is None:
        lost = sorted(config.records.model_fields_set - {"redact", "redact_patterns"})
        advice += [f"records.{key}: has no effect without records.folder" for key in lost]
    advice += toll_fraud_notes(config, dialplan)
    advice += tool_notes(config, dialplan)
    advice += transcription_notes(config, enabled)
    urls = {config.realtime.url} | {route.realtime.url for route in enabled if route.realtime.url}
    advice += [
        f"{url} is not encrypted: use wss://"
        for url in sorted(urls)
        if url.startswith(("ws:", "http:")) and not on_loopback(url)
    ]
    advice += _other_regions(config, enabled)
    offers = offers_of(config, dialplan)
    advice += [
        f"route {route.name}: its tools take the place of those of the hosted prompt"
        for route in enabled
        if has_prompt(route)
        and (
            own_tools(route, transfer_plan(route, config.trunk), recording_plan(config, route))
            or offers[route.name] != RouteTools()
        )
    ]
    advice += [f"{problem} (passed on to the server as it is)" for problem in dialplan.unsure]
    return advice


_REGION = re.compile(r"^(?:(eu|us|ae|au|in|jp)\.)?api\.openai\.com$")


def _region(url: str) -> str | None:
    """Return the region in the name of an OpenAI host, "none" without one; None of other hosts."""
    found = _REGION.match((urlsplit(url).hostname or "").lower())
    return None if found is None else found[1] or "none"


def _other_regions(config: Config, routes: Sequence[Route]) -> Iterator[str]:
    """Yield fallback servers that are not in the region of the server they stand in for."""
    urls = {one.name: one.url for one in config.realtime_server}
    for route in routes:
        home = _region(call_settings(config, route).realtime.url)
        if home in (None, "none"):
            continue
        for step in route.fallback:
            url = urls.get(step.server or "", "")
            if url and _region(url) != home:
                yield (
                    f"route {route.name}: its server keeps data in {home!r}, and the server "
                    f"{step.server} ({urlsplit(url).hostname}) does not"
                )


def _unreachable(config: Config) -> Iterator[str]:
    """Yield trunks that the addresses of ``[sip]`` do not reach, as far as literals tell."""
    sip = config.sip
    hosts = [address.host for address in sip.listen]
    if sip.public_address and is_loopback(sip.public_address) and not all(map(is_loopback, hosts)):
        yield f"sip.public_address: {sip.public_address} is reached from this machine only"
    for trunk in config.trunk:
        known = [str(peer.network.network_address) for peer in trunk.peers]
        known += [one.host for one in (trunk.outbound_proxy, trunk.registrar) if one]
        away = [one for one in known if one != "localhost" and not is_loopback(one)]
        first = sip.listen[0]
        here = "[::]" if away and ":" in away[0] else "0.0.0.0"
        all_v6 = bool(away) and all(":" in one for one in away)
        if away and all(is_loopback(host) for host in hosts):
            why = "is reached from this machine only"
        elif all_v6 and not any(":" in host for host in hosts):
            why = "is not reached by IPv6"
        else:
            why = ""
        if why:
            yield (
                f"trunk {trunk.name} is at {away[0]}, and sip.listen ({first}) {why}: "
                f'listen = ["{first.transport}:{here}:{first.port}"]'
            )
            continue
        for key in ("registrar", "outbound_proxy"):
            port = 0 if (target := getattr(trunk, key)) is None else target.port
            if trunk.transport == "tls" and port == 5060:
                yield f"trunk {trunk.name}, {key}: {target} is no port of TLS, mostly 5061"
            elif trunk.transport != "tls" and port == 5061:
                yield (
                    f"trunk {trunk.name}, {key}: {target} is mostly the port of TLS, and transport "
                    f'is {trunk.transport}: transport = "tls"'
                )
        if trunk.registrar is not None and trunk.password is None:
            yield f"trunk {trunk.name} registers without a password: most registrars ask for one"
        public = [one for one in away if not is_name(one) and not is_inside(one)]
        if public and sip.public_address and is_inside(sip.public_address):
            yield (
                f"sip.public_address: {sip.public_address} is private, and trunk {trunk.name} is "
                f"at {public[0]}: it must be the address that the trunk sees"
            )
        if trunk.registrar is not None:
            continue  # Contact and SDP carry the address that the registrar saw
        if public and not sip.public_address and not sip.stun_server and is_inside(hosts[0]):
            yield (
                f"trunk {trunk.name} is at {public[0]}, and SDP would carry the private address "
                f"{hosts[0]}: set sip.public_address"
            )


def _unknown_models(config: Config, routes: Sequence[Route]) -> Iterator[str]:
    """Yield models and paths that OpenAI's servers do not have; other servers have other names."""
    servers = [(config.realtime.url, config.realtime.model, "realtime")]
    for one in config.realtime_server:
        servers.append((one.url, one.model, f"realtime_server {one.name}"))
    for route in routes:
        settings = call_settings(config, route).realtime
        servers.append((settings.url, settings.model, f"route {route.name}, realtime"))
    seen = set()
    prices = load_prices(config.cost.prices)
    for url, model, where in servers:
        if (url, model) in seen:
            continue
        seen.add((url, model))
        path, live = urlsplit(Endpoint(url).connect_url).path, is_live(url, model)
        host = (urlsplit(url).hostname or "").lower()
        if not _REGION.match(host):
            last = path.rpartition("/")[2]
            close = get_close_matches(last, ["realtime"], cutoff=0.75)
            if last != "realtime" and close and not live:
                yield f"{where}.url: {url} ends in {last}; most servers' ends in realtime"
            continue
        # The path of a Live session is put in place of the other.
        if path != "/v1/realtime" and not (live and path.startswith("/v1/live")):
            right = "/v1/live/sessions" if live else "/v1/realtime"
            yield f"{where}.url: {url} has the path {path}; OpenAI's is {right}"
        known = prices.speech_models(host)
        priced = prices.price(model) if live else None
        if priced is None and not any(fnmatchcase(model, name) for name in known):
            names = [name for name in known if "*" not in name]
            if live:
                names = [name.rstrip("*") for name in known if name.startswith("gpt-live")]
            hint = suggestion(model, names)
            yield f'{where}.model: "{model}" is no model that this gateway has a price for{hint}'


_OTHERS = {
    "sk-ant-": "Anthropic",
    "sk-or-": "OpenRouter",
    "AIza": "Google",
    "gsk_": "Groq",
    "xai-": "xAI",
}
"""How keys of other providers begin."""


def _odd_keys(config: Config, routes: Sequence[Route]) -> Iterator[str]:
    """Yield servers of OpenAI that get a key of another provider, and those of Azure that get a key
    of the resource where an Entra token is expected."""
    servers = [("realtime", config.realtime)]
    servers += [
        (f"route {route.name}, realtime", call_settings(config, route).realtime) for route in routes
    ]
    told = set()
    for where, one in servers:
        host, key = urlsplit(one.url).hostname or "", one.api_key
        whose = next(
            (_OTHERS[it] for it in _OTHERS if key and key.get_secret_value().startswith(it)), ""
        )
        if whose and _REGION.match(host) and one.url not in told:
            told.add(one.url)
            yield f"{where}.api_key: is a key of {whose}, by its beginning, and {host} is OpenAI's"
        if not host.endswith(AZURE_HOSTS) or one.url in told or key is None:
            continue
        token = key.get_secret_value().count(".") == 2  # a JSON Web Token
        if one.api_key_header == "authorization" and not token:
            told.add(one.url)
            yield f'{where}.api_key: a key of Azure needs api_key_header = "api-key"'


RETIREMENT_DAYS = 90
"""Days before a provider retires a model from which it is noted."""


def retirements(
    config: Config, dialplan: Dialplan, today: date | None = None
) -> Iterator[tuple[bool, str]]:
    """Yield a note on each model or prompt of enabled routes that its provider retires.

    Each with whether it is still served; those beyond :data:`RETIREMENT_DAYS` are left out.

    Args:
        today: None for this day (UTC).
    """
    today = today or datetime.now(UTC).date()
    book = load_prices(config.cost.prices)
    used: dict[tuple[str, str], str] = {}
    for route in dialplan.routes:
        if not route.enabled:
            continue
        realtime, at = call_settings(config, route).realtime, f"route {route.name}"
        own = bool(route.realtime.model or route.realtime.url)
        used.setdefault(
            (realtime.model, realtime.url), f"{at}, realtime.model" if own else "realtime.model"
        )
        urls = [realtime.url]
        servers = {step.server for step in route.fallback}
        for server in config.realtime_server:
            if server.name in servers:
                where = f"{at}, fallback: realtime_server {server.name}"
                used.setdefault((server.model or realtime.model, server.url), where)
                urls.append(server.url)
        prompt = route.session.get("prompt")
        named = {f"{at}, session.audio.input.transcription.model": transcriber_of(route.session)}
        if isinstance(prompt, dict):
            named[f"{at}, session.prompt"] = f"prompt:{prompt.get('id')}"
        for key, name in named.items():
            for url in urls:
                used.setdefault((name, url), key)
    for (name, url), where in used.items():
        found = book.retirement(name, (urlsplit(url).hostname or "").lower())
        if found is None or found.on is None or (found.on - today).days > RETIREMENT_DAYS:
            continue
        left = (found.on - today).days
        ends = f"ends on {found.on}, in {left} days" if left > 0 else f"ended on {found.on}"
        instead = f"; use {found.replacement}" if found.replacement else ""
        yield left > 0, f"{where}: {name} {ends} at {urlsplit(url).hostname}{instead}"


def _access_notes(config: Config) -> Iterator[str]:
    """Yield notes on settings that let unknown sources call, or disclose keys."""
    access = config.access
    public = [address for address in config.sip.listen if not is_inside(address.host)]
    if access.unknown_sources == "allow" and public:
        unlimited = not access.calls_per_second and access.max_concurrent_calls == 0
        more = ", without a limit" if unlimited else ""
        yield (f'access.unknown_sources = "allow": anybody who reaches {public[0]} can call{more}')
    elif access.unknown_sources == "auto" and not config.trunk and public:
        yield (
            f'access.unknown_sources = "auto" and no trunk: whoever reaches {public[0]} from a '
            "private network can call"
        )
    if public and (
        access.unknown_sources == "allow" or (access.unknown_sources == "auto" and not config.trunk)
    ):
        for key in ("calls_per_second", "max_concurrent_calls"):
            if getattr(access, key) == 0:
                yield f"access.{key} = 0: one source can take all calls"
    if not access.ban_after and public:
        yield "access.ban_after = 0: password guessing is never blocked"
    for trunk in config.trunk:
        for peer in trunk.peers:
            if peer.network.prefixlen == 0 and trunk.inbound_auth is None:
                yield f"trunk {trunk.name}: with {peer} every call counts as this trunk's"
        if (
            config.sip.tls.client_certificates == "required"
            and trunk.transport == "tls"
            and trunk.peers
            and not trunk.certificate_names
        ):
            yield (
                f"trunk {trunk.name}: whoever has a certificate of sip.tls.ca passes for it at its "
                "addresses; certificate_names says which name is this trunk's"
            )
        if trunk.srtp != "off" and "sdes" in trunk.srtp_keying and trunk.transport != "tls":
            yield (
                f"trunk {trunk.name}: SDES puts the keys of SRTP into SDP, and {trunk.transport} "
                'lets everybody on the way read them (transport = "tls" does not)'
            )


SOON_DAYS = 14
"""Days before the end of a certificate from which it is noted."""

_BEGIN, _END = "-----BEGIN CERTIFICATE-----", "-----END CERTIFICATE-----"


def certificate_problem(sip: SipSettings) -> tuple[str, str] | None:
    """Return the key of ``[sip.tls]`` that a ``tls:`` listener fails on, and why; None if none."""
    tls = sip.tls
    if not sip.listens_on("tls") or tls.certificate is None or tls.private_key is None:
        return None
    try:
        files = {"certificate": tls.certificate.read_text("latin-1")}
        files["private_key"] = tls.private_key.read_text("latin-1")
        if tls.ca is not None:
            files["ca"] = tls.ca.read_text("latin-1")
    except OSError:
        return None  # reported where files are looked for
    for key, text in files.items():
        wanted = "PRIVATE KEY-----" if key == "private_key" else _BEGIN
        if wanted not in text:
            what = "private key" if key == "private_key" else "certificate"
            return key, f"{getattr(tls, key)} is no PEM file with a {what}"
    asked = []

    def no_passphrase() -> str:
        asked.append(True)
        return ""

    try:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(tls.certificate, tls.private_key, password=no_passphrase)
    except ssl.SSLError as error:
        if asked:
            remedy = "write it without, with `openssl pkey -in … -out …`"
            return "private_key", f"{tls.private_key} is protected by a passphrase; {remedy}"
        if error.reason == "KEY_VALUES_MISMATCH":
            return "private_key", f"{tls.private_key} is not the key of {tls.certificate}"
        if "PEM lib" in str(error):
            return "certificate", f"{tls.certificate} or its key is cut off or damaged"
        return "certificate", f"cannot be used with its key: {error.reason or error}"
    try:
        if tls.ca is not None:
            context.load_verify_locations(tls.ca)
    except ssl.SSLError:
        return "ca", f"{tls.ca} is cut off or damaged"
    return None


def certificate_notes(sip: SipSettings) -> Iterator[str]:
    """Yield what other sides may reject: dates that are over, near or to come, a chain with a gap.

    A chain ends in a self-signed certificate, or in one whose issuer is in ``sip.tls.ca`` or
    among the CAs of the system.
    """
    path = sip.tls.certificate
    chain = [] if path is None else _certificates(path)
    if not chain:
        return
    if not sip.listens_on("tls"):
        yield 'sip.tls.certificate: has no effect, as sip.listen has no "tls:" address'
    now, first = time.time(), chain[0]
    day = f"{datetime.fromtimestamp(first.ends, UTC):%Y-%m-%d}"
    key = sip.tls.private_key
    if key is not None and mode_of(key) & S_IROTH:
        yield f"sip.tls.private_key: every user of this machine can read {key}: chmod 600"
    if first.ends < now:
        yield f"sip.tls.certificate: {path} expired on {day}: other sides will reject it"
    elif first.begins > now:
        yield f"sip.tls.certificate: {path} is not valid yet; is the clock right?"
    elif first.ends - now < SOON_DAYS * 86400:
        yield f"sip.tls.certificate: {path} expires on {day}"
    by_name = {one.subject: one for one in chain}
    last, seen = first, {first.subject}
    while last.issuer in by_name and last.issuer not in seen:
        last = by_name[last.issuer]
        seen.add(last.subject)
    if last.issuer == last.subject:
        return
    known = [] if sip.tls.ca is None else _certificates(sip.tls.ca)
    if all(one.subject != last.issuer for one in known) and not _of_system(last.issuer):
        yield (
            f"sip.tls.certificate: {path} does not lead to a CA that this machine knows: append "
            "the intermediate certificates, the gateway's own first"
        )


@dataclass(frozen=True)
class _Certificate:
    """Fields of an X.509 certificate (RFC 5280 section 4.1.2): names as DER, Unix seconds."""

    issuer: bytes
    subject: bytes
    begins: float
    ends: float


def _certificates(path: Path) -> list[_Certificate]:
    """Return the certificates of a PEM file in its order; none where one cannot be read."""
    try:
        text = path.read_text("latin-1")
        parts = [part.partition(_END)[0] for part in text.split(_BEGIN)[1:]]
        return [_parsed(ssl.PEM_cert_to_DER_cert(_BEGIN + part + _END)) for part in parts]
    except (OSError, ValueError, IndexError, StopIteration):
        return []


def _of_system(issuer: bytes) -> bool:
    """Return whether OpenSSL's default file of CAs has one of this name."""
    for der in ssl.create_default_context().get_ca_certs(binary_form=True):
        try:
            if _parsed(der).subject == issuer:
                return True
        except (ValueError, IndexError, StopIteration):
            continue
    return False


def _parsed(certificate: bytes) -> _Certificate:
    """Read an X.509 certificate in DER. Raises ValueError, IndexError or StopIteration."""
    fields = list(_der(next(_der(next(_der(certificate))[1]))[1]))
    if fields[0][0] == 0xA0:  # the version, which may be left out
        fields = fields[1:]
    begins, ends = (_time(tag, value) for tag, value in _der(fields[3][1]))
    return _Certificate(fields[2][1], fields[4][1], begins, ends)


def _der(data: bytes) -> Iterator[tuple[int, bytes]]:
    """Yield tag and content of each element of a DER sequence (ITU-T X.690)."""
    at = 0
    while at + 2 <= len(data):
        tag, length = data[at], data[at + 1]
        at += 2
        if length & 0x80:
            size = length & 0x7F
            length = int.from_bytes(data[at : at + size], "big")
            at += size
        yield tag, data[at : at + length]
        at += length


def _time(tag: int, value: bytes) -> float:
    """Return a UTCTime (tag 0x17) or GeneralizedTime as Unix seconds. Raises ValueError."""
    text = value.decode("ascii")
    if tag == 0x17:
        text = ("20" if int(text[:2]) < 50 else "19") + text
    return datetime.strptime(text, "%Y%m%d%H%M%SZ").replace(tzinfo=UTC).timestamp()
