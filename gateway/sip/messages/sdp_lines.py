# SPDX-License-Identifier: GPL-2.0-or-later
"""Lines of a session description (RFC 4566), parsed and repaired one by one. Pure.

No regular expression here backtracks: strangers write these lines.
"""

from __future__ import annotations

import ipaddress

from gateway.audio import G711, Codec
from gateway.text import whole_number

_OTHER_PACKETS = ("UNENCRYPTED_SRTP", "UNAUTHENTICATED_SRTP", "KDR", "FEC_ORDER", "FEC_KEY")
"""Session parameters (RFC 4568 section 6.3) with which packets are not as their suite says. With
UNENCRYPTED_SRTCP reports are lost, and audio is not: that line is taken."""
_KEY_CHARS = {
    "AES_CM_128_HMAC_SHA1_80": 40,
    "AES_CM_128_HMAC_SHA1_32": 40,
    "AES_192_CM_HMAC_SHA1_80": 52,
    "AES_192_CM_HMAC_SHA1_32": 52,
    "AES_256_CM_HMAC_SHA1_80": 64,
    "AES_256_CM_HMAC_SHA1_32": 64,
    "AEAD_AES_128_GCM": 40,
    "AEAD_AES_256_GCM": 60,
}
"""Base64 characters of key and salt, filled up with "=" (RFC 4568 section 6.1, 6188, 7714)."""
_HASHES = {"sha-256": 32, "sha-1": 20}
"""Bytes of the fingerprints that pjmedia can compare (RFC 8122 section 5)."""
DIRECTIONS = ("sendrecv", "sendonly", "recvonly", "inactive")
_KNOWN_NAMES = frozenset(
    # The others mean nothing here (ICE, BUNDLE, source descriptions); pjmedia has room for 68 of
    # one line, and refuses the line for a flaw in some.
    {"rtpmap", "fmtp", "ptime", "maxptime", "rtcp", "rtcp-mux", "crypto", "fingerprint", "setup"}
    | {*DIRECTIONS}
)
EVENTS = "telephone-event"
_BASE64 = frozenset("ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/=")
_HEX = frozenset("0123456789ABCDEFabcdef")
_TOKEN = frozenset("!#$%&'*+-.^_`{|}~") | _BASE64 - frozenset("/=")

UNUSABLE = "\0"
"""In place of an attribute: with it the description must not reach the library."""


def printable(line: str) -> str:
    """Return the line without control characters and surrounding white space."""
    if line.isprintable():
        return line.strip()
    return "".join(c for c in line if c == "\t" or c >= " ").replace("\x7f", "").strip()


def is_token(text: str) -> bool:
    """Return whether a text is a token of RFC 4566 section 9."""
    return bool(text) and all(c in _TOKEN for c in text)


def values_of(lines: list[str], name: str) -> list[str]:
    """Return the values of an attribute (``a=name:value``) in these lines, in order."""
    begin = f"a={name}:"
    return [line[len(begin) :] for line in lines if line.startswith(begin)]


def address_in(lines: list[str]) -> str | None:
    """Return the address of the first ``c=`` line, or None."""
    for line in lines:
        if line.startswith("c="):
            return line.split(" ")[2].partition("/")[0]
    return None


def ordered_head(head: list[str], time: str) -> list[str]:
    """Return the head with the ``t=`` line ``time`` after ``c=``, ``b=`` and the like, and before
    attributes (RFC 4566 section 5)."""
    before = [line for line in head if line[0] in "iuepcb"]
    return [*before, time, *(line for line in head if line[0] not in "iuepcb")]


def origin_of(value: str) -> str:
    """Return the value of ``o=`` with its six words: numbers cut to 18 digits, 0 for what is none;
    ``IN IP4 0.0.0.0`` where the address is missing."""
    words = value.split()
    user = words[0] if words else "-"
    numbers = [w[-18:] if w.isascii() and w.isdigit() else "0" for w in words[1:3]]
    numbers += ["0"] * (2 - len(numbers))
    rest = [word.upper() for word in words[3:5]]
    if len(words) > 5 and rest[0] == "IN" and rest[1] in ("IP4", "IP6"):
        return " ".join([user, *numbers, *rest, words[5]])
    return " ".join([user, *numbers, "IN", "IP4", "0.0.0.0"])


def time_of(value: str) -> str:
    """Return the value of ``t=``; ``0 0`` for one that is not two numbers."""
    words = value.split()
    if len(words) == 2 and all(whole_number(word, 19) is not None for word in words):
        return " ".join(words)
    return "0 0"


def connection_of(value: str) -> str | None:
    """Return the address of a ``c=`` line; None where it cannot be parsed, is of the other IP
    version, or a name: names are not resolved."""
    words = value.split()
    if len(words) < 3 or words[0].upper() != "IN":
        return None
    text = words[2].partition("/")[0]
    try:
        address = ipaddress.ip_address(text)
    except ValueError:
        return None
    return text if words[1].upper() == f"IP{address.version}" else None


def address_and_ttl(value: str) -> str:
    """Return address, TTL and count of a ``c=`` line that :func:`connection_of` can read; without
    the latter two if they are malformed."""
    text, *more = value.split()[2].split("/")
    good = len(more) <= 2 and all(
        (n := whole_number(one, 3)) is not None and n < 256 for one in more
    )
    return "/".join([text, *more]) if good else text


def attribute_of(value: str) -> str | None:
    """Return an attribute (``name`` or ``name:value``) repaired; None to leave it out, as malformed
    or not needed; :data:`UNUSABLE` for an ``rtcp`` with a host name, with which its section must
    not reach the library."""
    name, colon, rest = value.partition(":")
    name, rest = name.strip(), rest.strip()
    if not is_token(name):
        return None
    name = name.lower()
    if name not in _KNOWN_NAMES:
        return None
    if not colon:
        return name if name not in ("rtpmap", "fmtp", "ptime", "rtcp", "crypto") else None
    if name == "rtpmap":
        return _rtpmap(rest)
    if name in DIRECTIONS:
        return name
    if name in ("ptime", "maxptime"):
        whole = whole_number(rest.partition(".")[0].strip(), 4)
        return f"{name}:{whole}" if whole else None
    if name == "fmtp":
        number, _, parameters = rest.partition(" ")
        good = whole_number(number, 3) is not None and parameters.strip()
        return f"fmtp:{number} {parameters.strip()}" if good else None
    if name == "rtcp":
        words = rest.split()
        port = whole_number(words[0], 5) if words else None
        if port is None or port > 65535:
            return None
        if len(words) == 1:
            return f"rtcp:{port}"
        return f"rtcp:{rest}" if connection_of(" ".join(words[1:])) else UNUSABLE
    if name == "crypto":
        return f"crypto:{rest}" if _is_crypto(rest) else None
    if name == "fingerprint":
        return f"fingerprint:{rest}" if _is_fingerprint(rest) else None
    return f"{name}:{rest}"


def _rtpmap(rest: str) -> str | None:
    """Return an rtpmap attribute repaired, a missing clock of a known encoding added; None where it
    cannot be parsed."""
    number, _, encoding = rest.replace("\t", " ").partition(" ")
    parts = [part.strip() for part in encoding.split("/")]
    if len(parts) == 1 and parts[0].upper() in (*G711, Codec.G722, EVENTS.upper()):
        parts.append("8000")  # what RFC 3551 and 4733 have it mean
    if len(parts) not in (2, 3) or whole_number(number, 3) is None or int(number) > 127:
        return None
    parts[1:] = [part.split(" ")[0] for part in parts[1:]]
    if not is_token(parts[0]) or whole_number(parts[1], 6) is None:
        return None
    return f"rtpmap:{number} {'/'.join(part for part in parts if part)}"


def _is_crypto(value: str) -> bool:
    """Return whether a crypto attribute (RFC 4568) has a known suite, a key of its length, and
    nothing that changes how packets look: a master key identifier, or session parameters."""
    words = value.split()
    if len(words) < 3 or not words[2].lower().startswith("inline:"):
        return False
    key, _, lifetime = words[2][len("inline:") :].partition("|")
    if ":" in lifetime or any(
        word.upper().partition("=")[0] in _OTHER_PACKETS for word in words[3:]
    ):
        return False
    return (
        whole_number(words[0], 9) is not None
        and len(key) == _KEY_CHARS.get(words[1].upper(), -1)
        and all(c in _BASE64 for c in key)
        and "=" not in key.rstrip("=")
    )


def _is_fingerprint(value: str) -> bool:
    """Return whether a fingerprint attribute (RFC 8122) has a known hash and its octets."""
    words = value.split()
    if len(words) != 2 or words[0].lower() not in _HASHES:
        return False
    octets = words[1].split(":")
    return len(octets) == _HASHES[words[0].lower()] and all(
        len(octet) == 2 and all(c in _HEX for c in octet) for octet in octets
    )


def one_rtpmap_each(lines: list[str]) -> list[str]:
    """Keep one rtpmap per payload number: the first at 8 kHz, or else the first."""
    best: dict[str, str] = {}
    for value in values_of(lines, "rtpmap"):
        number, _, encoding = value.partition(" ")
        other = best.get(number)
        if other is None or ("/8000" in encoding and "/8000" not in other):
            best[number] = value
    kept: list[str] = []
    for line in lines:
        if line.startswith("a=rtpmap:"):
            number = line[len("a=rtpmap:") :].partition(" ")[0]
            if best.get(number) != line[len("a=rtpmap:") :]:
                continue
            del best[number]
        kept.append(line)
    return kept


def distinct_crypto(lines: list[str]) -> list[str]:
    """Keep one crypto line per tag, the first, and at most 16: a repeated tag makes the line
    invalid (RFC 4568)."""
    seen: set[int] = set()
    kept: list[str] = []
    for line in lines:
        if line.startswith("a=crypto:"):
            tag = int(line[len("a=crypto:") :].split()[0])
            if tag in seen or len(seen) >= 16:
                continue
            seen.add(tag)
        kept.append(line)
    return kept


def one_direction(lines: list[str]) -> list[str]:
    """Keep the first direction attribute, at the end if there were several: pjmedia is not
    consistent about them."""
    first = next((line for line in lines if line[2:] in DIRECTIONS), None)
    kept = [line for line in lines if line[2:] not in DIRECTIONS]
    return lines if first is None or len(kept) == len(lines) - 1 else [*kept, first]
