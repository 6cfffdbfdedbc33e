# SPDX-License-Identifier: GPL-2.0-or-later
"""Certificate and key of ``[sip.tls]``: readable, a pair, and valid now."""

from __future__ import annotations

import ssl
import time
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

from gateway.config.sip import SipSettings

SOON_DAYS = 14
"""Days before the end of a certificate from which it is noted."""


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
        wanted = "PRIVATE KEY-----" if key == "private_key" else "-----BEGIN CERTIFICATE-----"
        if wanted not in text:
            what = "private key" if key == "private_key" else "certificate"
            return key, f"{getattr(tls, key)} is no PEM file with a {what}"
    try:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(tls.certificate, tls.private_key, password=lambda: "")
    except ssl.SSLError as error:
        if error.reason == "KEY_VALUES_MISMATCH":
            return "private_key", f"{tls.private_key} is not the key of {tls.certificate}"
        return "certificate", f"cannot be used with its key: {error.reason or error}"
    return None


def certificate_notes(sip: SipSettings) -> Iterator[str]:
    """Yield a line when the certificate is not valid yet, expired, or expires soon."""
    path = sip.tls.certificate
    if path is None:
        return
    validity = _validity(path)
    if validity is None:
        return
    begins, ends = validity
    now = time.time()
    day = f"{datetime.fromtimestamp(ends, UTC):%Y-%m-%d}"
    if ends < now:
        yield f"sip.tls.certificate: {path} expired on {day}: others end TLS with it"
    elif begins > now:
        yield f"sip.tls.certificate: {path} is not valid yet; is the clock right?"
    elif ends - now < SOON_DAYS * 86400:
        yield f"sip.tls.certificate: {path} expires on {day}"


def _validity(path: Path) -> tuple[float, float] | None:
    """Begin and end of the first certificate in a PEM file (X.509, RFC 5280 section 4.1.2.5)."""
    try:
        text = path.read_text("latin-1")
        start = text.index("-----BEGIN CERTIFICATE-----")
        end = text.index("-----END CERTIFICATE-----", start) + len("-----END CERTIFICATE-----")
        der = ssl.PEM_cert_to_DER_cert(text[start:end])
        fields = list(_der(next(_der(next(_der(der))[1]))[1]))
        if fields[0][0] == 0xA0:  # the version, which may be left out
            fields = fields[1:]
        begins, ends = (_time(tag, value) for tag, value in _der(fields[3][1]))
    except (OSError, ValueError, IndexError, StopIteration):
        return None
    return begins, ends


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
    """Seconds since 1970 of a UTCTime (0x17) or GeneralizedTime."""
    text = value.decode("ascii")
    if tag == 0x17:
        text = ("20" if int(text[:2]) < 50 else "19") + text
    return datetime.strptime(text, "%Y%m%d%H%M%SZ").replace(tzinfo=UTC).timestamp()
