"""What the gateway reads of a SIP message besides what pjsip has parsed (RFC 3261, 4566)."""

from __future__ import annotations

import re
from collections.abc import Mapping
from email.parser import HeaderParser
from email.policy import compat32

from gateway.audio.g711 import Codec

_COMPACT = {
    "a": "accept-contact",
    "b": "referred-by",
    "c": "content-type",
    "e": "content-encoding",
    "f": "from",
    "i": "call-id",
    "k": "supported",
    "l": "content-length",
    "m": "contact",
    "o": "event",
    "r": "refer-to",
    "s": "subject",
    "t": "to",
    "u": "allow-events",
    "v": "via",
    "x": "session-expires",
}
_STATIC_PAYLOADS = {"0": Codec.PCMU, "8": Codec.PCMA}
_URI = re.compile(r"<([^>]*)>")
_SIP_USER = re.compile(r"^(?:sips?|tel):(?:([^@;?]*)@)?([^;?]*)", re.IGNORECASE)


def headers_of(message: str) -> Mapping[str, tuple[str, ...]]:
    """Header fields of a SIP message by lower-case full name, repeats kept in order."""
    _start, _, rest = message.partition("\r\n")
    head, _, _body = rest.partition("\r\n\r\n")
    fields: dict[str, list[str]] = {}
    for name, value in HeaderParser(policy=compat32).parsestr(head).items():
        key = name.strip().lower()
        text = re.sub(r"\r?\n[ \t]+", " ", str(value)).strip()
        fields.setdefault(_COMPACT.get(key, key), []).append(text)
    return {key: tuple(values) for key, values in fields.items()}


def request_uri_of(message: str) -> str:
    """The Request-URI of a request, empty when the start line is not one."""
    parts = message.split("\r\n", 1)[0].split(" ")
    return parts[1] if len(parts) == 3 else ""


def uri_of(field: str) -> str:
    """The URI inside a From, To or Contact field, with or without angle brackets."""
    found = _URI.search(field)
    return found.group(1) if found else field.split(";", 1)[0].strip()


def user_of(uri: str) -> str:
    """The user part of a sip URI, or the number of a tel URI; empty when there is none."""
    found = _SIP_USER.match(uri)
    if found is None:
        return ""
    if uri[:4].lower() == "tel:":
        return found.group(2)
    return found.group(1) or ""


def display_name_of(field: str) -> str:
    """The display name before the angle bracket, without quotes; empty when there is none."""
    return field.partition("<")[0].strip().strip('"').strip() if "<" in field else ""


def reason_of(headers: Mapping[str, tuple[str, ...]]) -> str:
    """The Reason header of a BYE or CANCEL (RFC 3326), empty without one."""
    return ", ".join(headers.get("reason", ()))


def offered_codecs(message: str) -> tuple[Codec, ...] | None:
    """G.711 laws of the first audio stream in the order of the offer; None without an offer."""
    _, _, body = message.partition("\r\n\r\n")
    if "m=" not in body:
        return None
    payloads: list[str] = []
    names: dict[str, str] = {}
    inside = False
    for line in body.splitlines():
        if line.startswith("m="):
            if inside:
                break
            words = line[2:].split()
            if words and words[0] == "audio" and len(words) > 3 and words[1] != "0":
                inside, payloads = True, words[3:]
        elif inside and line.startswith("a=rtpmap:"):
            payload, _, name = line[len("a=rtpmap:") :].partition(" ")
            names[payload.strip()] = name.strip().upper()
    found: list[Codec] = []
    for payload in payloads:
        encoding = names.get(payload)
        if encoding is None:
            codec = _STATIC_PAYLOADS.get(payload)
        else:
            codec = next(
                (c for c in Codec if encoding in (f"{c.value}/8000", f"{c.value}/8000/1")), None
            )
        if codec is not None and codec not in found:
            found.append(codec)
    return tuple(found)
