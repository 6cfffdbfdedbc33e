# SPDX-License-Identifier: GPL-2.0-or-later
"""What ``gateway check`` says of the certificate in ``[sip.tls]``: files, dates, chain."""

from __future__ import annotations

import ssl
import time
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from gateway.config.sip import SipSettings

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
        return "certificate", f"cannot be used with its key: {error.reason or error}"
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
    now, first = time.time(), chain[0]
    day = f"{datetime.fromtimestamp(first.ends, UTC):%Y-%m-%d}"
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
    """Read a certificate in DER. Raises ValueError, IndexError or StopIteration."""
    fields = list(_der(next(_der(next(_der(certificate))[1]))[1]))
    if fields[0][0] == 0xA0:  # the version, which may be left out
        fields = fields[1:]
    begins, ends = (_time(tag, value) for tag, value in _der(fields[3][1]))
    return _Certificate(fields[2][1], fields[4][1], begins, ends)


def _der(data: bytes) -> Iterator[tuple[int, bytes]]:
    """Yield tag and content of each DER element in a row."""
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
