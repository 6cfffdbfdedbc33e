# SPDX-License-Identifier: GPL-2.0-or-later
"""Session descriptions as peers send them (RFC 4566, 3264): read, judged, and mended. Pure.

pjmedia's parser gives a whole description up for one odd line, and pjsua refuses what its account
cannot take with codes that do not say why. So a description is read here first, line by line and
without a regular expression that backtracks:

* :func:`parse` takes what can be understood of it;
* :meth:`Description.choose` picks the one audio line that the gateway answers, or says why there is
  none: :class:`Objection`, one row for each cause;
* :func:`mended` writes the description that pjmedia gets. A good one stays as it came.
"""

from __future__ import annotations

import ipaddress
from dataclasses import dataclass, field
from enum import Enum

from gateway.audio.g711 import Codec
from gateway.call.ending import EndReason
from gateway.sip.settings import Security

MAX_STREAMS = 8
"""``m=`` lines of a description. The library answers no more, and RFC 3264 section 6 wants an
answer to each; each offered one gets sockets of its own until it is answered."""

MAX_FORMATS = 128
"""Payload numbers of one ``m=`` line that are read: as many as there are."""

MAX_LINES = 512
"""Lines of one description; a real one has some thirty."""


class Objection(Enum):
    """Why no line of a description can be answered: the reason of the ending, and in words."""

    MALFORMED = EndReason.BAD_SDP, "the SDP cannot be read, or names a host in place of an address"
    TOO_MANY_STREAMS = EndReason.BAD_SDP, f"more than {MAX_STREAMS} m= lines"
    NO_AUDIO = EndReason.NO_AUDIO, "no audio line that is not disabled"
    ADDRESS_FAMILY = EndReason.ADDRESS_FAMILY, "the audio is at an address of the other IP version"
    CODEC = EndReason.NO_COMMON_CODEC, "neither PCMU nor PCMA of those that its calls may speak"
    PROFILE = EndReason.SRTP_MISMATCH, "an RTP profile that is not known"
    SRTP_REQUIRED = EndReason.SRTP_MISMATCH, 'RTP without encryption, and srtp = "required"'
    SRTP_OFF = EndReason.SRTP_MISMATCH, 'SRTP, and srtp = "off"'
    KEYING = EndReason.SRTP_MISMATCH, "SRTP keys in a way that is not in srtp_keying"
    KEYS = EndReason.SRTP_MISMATCH, "SRTP without a crypto or fingerprint line that can be used"

    @property
    def why(self) -> EndReason:
        """The reason in the record; its row says SIP code and Reason."""
        return self.value[0]

    @property
    def text(self) -> str:
        """For people."""
        return self.value[1]


_PLAIN, _SDES, _DTLS = "RTP/AVP", "RTP/SAVP", "UDP/TLS/RTP/SAVP"
_BASES = {
    _PLAIN: _PLAIN,
    "RTP/AVPF": _PLAIN,
    _SDES: _SDES,
    "RTP/SAVPF": _SDES,
    _DTLS: _DTLS,
    "UDP/TLS/RTP/SAVPF": _DTLS,
}
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
_STATIC = {"0": Codec.PCMU, "8": Codec.PCMA}
_DIRECTIONS = ("sendrecv", "sendonly", "recvonly", "inactive")
_KNOWN_NAMES = frozenset(
    # The others mean nothing here (ICE, BUNDLE, source descriptions); pjmedia has room for 68 of
    # one line, and refuses the line for a flaw in some.
    {"rtpmap", "fmtp", "ptime", "maxptime", "rtcp", "rtcp-mux", "crypto", "fingerprint", "setup"}
    | {*_DIRECTIONS}
)
_EVENTS = "telephone-event"
_BASE64 = frozenset("ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/=")
_HEX = frozenset("0123456789ABCDEFabcdef")
_TOKEN = frozenset("!#$%&'*+-.^_`{|}~") | _BASE64 - frozenset("/=")


@dataclass(slots=True)
class Media:
    """One ``m=`` line and what belongs to it; ``lines`` are the other lines, mended."""

    kind: str
    port: int
    profile: str
    formats: list[str]
    lines: list[str] = field(default_factory=list)
    address: str | None = None
    """Of its own ``c=`` line."""
    written: str = ""
    """The line as it came, where there is nothing to mend in it."""

    def attributes(self, name: str) -> list[str]:
        """The values of an attribute, in order."""
        return _values(self.lines, name)

    @property
    def names(self) -> dict[str, str]:
        """``encoding/clock`` in upper case by payload number, by rtpmap."""
        found: dict[str, str] = {}
        for value in self.attributes("rtpmap"):
            number, _, encoding = value.partition(" ")
            found.setdefault(number, encoding.upper())
        return found

    @property
    def codecs(self) -> tuple[Codec, ...]:
        """The G.711 laws that it offers, in its order."""
        names = self.names
        found = dict.fromkeys(_law_of(number, names) for number in self.formats)
        return tuple(codec for codec in found if codec is not None)

    def line(self, port: int) -> str:
        """The ``m=`` line, with this port."""
        if port == self.port and self.written:
            return self.written
        return f"m={self.kind} {port} {self.profile} {' '.join(self.formats)}"


@dataclass(slots=True)
class Description:
    """What could be understood of a description."""

    head: list[str]
    """Lines of the session, mended: v, o, s and t are there, once each and first."""
    media: list[Media]
    flaw: Objection | None = None
    """It cannot be used, whatever the account takes."""

    def choose(
        self, security: Security, laws: tuple[Codec, ...] = tuple(Codec), six: bool | None = None
    ) -> Media | Objection:
        """The audio line to answer, the first one that can be taken; else why there is none.

        Args:
            security: what the account asks of media.
            laws: those that its calls may speak.
            six: whether our RTP is IPv6; None takes either.
        """
        if self.flaw is not None:
            return self.flaw
        nearest, steps = Objection.NO_AUDIO, 0
        for media in self.media:
            if media.kind != "audio" or not media.port:
                continue
            found = self._objection(media, security, laws, six)
            if found is None:
                return media
            if found[0] > steps:
                steps, nearest = found
        return nearest

    def _objection(
        self, media: Media, security: Security, laws: tuple[Codec, ...], six: bool | None
    ) -> tuple[int, Objection] | None:
        if not any(codec in laws for codec in media.codecs):
            return 1, Objection.CODEC
        address = media.address or _address_in(self.head)
        found_six = address is not None and ":" in address
        if six is not None and address != "0.0.0.0" and found_six is not six:
            return 2, Objection.ADDRESS_FAMILY
        why = self._keying_objection(media, security)
        return None if why is None else (3, why)

    def _keying_objection(self, media: Media, security: Security) -> Objection | None:
        base = _BASES.get(media.profile)
        if base is None:
            return Objection.PROFILE
        if base == _PLAIN:
            return Objection.SRTP_REQUIRED if security.srtp == "required" else None
        if security.srtp == "off":
            return Objection.SRTP_OFF
        crypto = bool(media.attributes("crypto"))
        fingerprint = bool(media.attributes("fingerprint") or _values(self.head, "fingerprint"))
        wanted = {"sdes": crypto and base == _SDES, "dtls": fingerprint}
        if any(wanted[keying] for keying in security.keying if keying in wanted):
            return None
        way = "dtls" if base == _DTLS or (fingerprint and not crypto) else "sdes"
        return Objection.KEYS if way in security.keying else Objection.KEYING


def parse(text: str) -> Description:
    """What can be understood of a description; lines that cannot are left out."""
    head: list[str] = []
    fixed: dict[str, str] = {}
    media: list[Media] = []
    flaw: Objection | None = None
    connection_at: int | None = None
    """Where the ``c=`` of this part is, in its lines."""
    for number, raw in enumerate(text.replace("\r", "\n").split("\n")):
        line = _printable(raw)
        kind, value = line[:1].lower(), line[1:].lstrip()
        if not value.startswith("="):
            continue
        value = value[1:].strip()
        if number >= 2 * MAX_LINES:
            flaw = flaw or Objection.MALFORMED
            break
        lines = media[-1].lines if media else head
        if kind == "m":
            found = _media(value)
            if found is None:
                flaw = flaw or Objection.MALFORMED
                continue
            media.append(found)
            connection_at = None
        elif kind == "c":
            address = _connection(value)
            if address is None:
                flaw = flaw or Objection.MALFORMED
                continue
            line = f"c=IN IP{6 if ':' in address else 4} {_after_address(value)}"
            if connection_at is None:
                connection_at = len(lines)
                lines.append(line)
            else:
                lines[connection_at] = line  # pjmedia takes the last one
            if media:
                media[-1].address = address
        elif kind == "a":
            attribute = _attribute(value)
            if attribute is _UNUSABLE:
                flaw = flaw or Objection.MALFORMED
            elif attribute is not None:
                lines.append(f"a={attribute}")
        elif kind == "b":
            modifier, colon, width = value.partition(":")
            if colon and _is_token(modifier) and _number(width, 10) is not None:
                lines.append(f"b={modifier}:{width}")
        elif kind in "vost" and kind:
            if value and not media:
                fixed.setdefault(kind, value)
        elif kind in "iuepzkr" and kind:
            lines.append(f"{kind}={value}")
    if fixed.get("v", "0") != "0" or not media:
        flaw = flaw or Objection.MALFORMED
    if len(media) > MAX_STREAMS:
        flaw = flaw or Objection.TOO_MANY_STREAMS
    origin = _origin(fixed.get("o", ""))
    time = _time(fixed.get("t", ""))
    begin = ["v=0", f"o={origin}", f"s={fixed.get('s') or '-'}"]
    description = Description([*begin, *_ordered(head, f"t={time}")], media, flaw)
    for one in media:
        _mend_media(one)
    _one_fingerprint(description)
    if _address_in(description.head) is None:
        for one in media:
            if one.address is None and one.port and one.kind == "audio":
                description.flaw = description.flaw or Objection.MALFORMED
            elif one.address is None:
                one.lines.insert(0, "c=IN IP4 0.0.0.0")
    return description


def mended(description: Description, chosen: Media | None = None, *, sdes: bool = True) -> str:
    """The description that the library gets.

    Args:
        chosen: the line to answer; the other audio lines are disabled. None leaves all as they are.
        sdes: whether its crypto lines may be taken.
    """
    lines = list(description.head)
    for media in description.media:
        port = media.port
        if chosen is not None and media is not chosen:
            port = 0 if media.kind == "audio" else port
        lines.append(media.line(port))
        lines += (line for line in media.lines if sdes or not line.startswith("a=crypto:"))
    return "\r\n".join(lines) + "\r\n"


def offered_codecs(message: str) -> tuple[Codec, ...] | None:
    """The G.711 laws of an INVITE's audio, in the order of the offer; None without an offer.

    Those of the first audio line that has any: which line is answered depends on its profile too.
    """
    found = description_in(message)
    if found is None:
        return None
    for media in found.media:
        if media.kind == "audio" and media.port and media.codecs:
            return media.codecs
    return ()


def description_in(message: str) -> Description | None:
    """The first description in a message's body, of which it may be one part of several."""
    text = message.replace("\r\n", "\n").replace("\r", "\n")
    _header, empty, body = text.partition("\n\n")
    if not empty or ("\nm=" not in body and not body.startswith("m=")):
        return None
    if body.lstrip("\n").startswith("--"):
        parts = body.split("\n\n")
        body = next((part for part in parts if "\nm=" in part or part.startswith("m=")), "")
        body = body.partition("\n--")[0]
    return parse(body)


# ---- lines

_UNUSABLE = "\0"
"""In place of an attribute: with it the description must not reach the library."""


def _printable(line: str) -> str:
    if line.isprintable():
        return line.strip()
    return "".join(c for c in line if c == "\t" or c >= " ").replace("\x7f", "").strip()


def _is_token(text: str) -> bool:
    return bool(text) and all(c in _TOKEN for c in text)


def _number(text: str, digits: int) -> int | None:
    return int(text) if text.isascii() and text.isdigit() and len(text) <= digits else None


def _values(lines: list[str], name: str) -> list[str]:
    begin = f"a={name}:"
    return [line[len(begin) :] for line in lines if line.startswith(begin)]


def _address_in(lines: list[str]) -> str | None:
    for line in lines:
        if line.startswith("c="):
            return line.split(" ")[2].partition("/")[0]
    return None


def _ordered(head: list[str], time: str) -> list[str]:
    """RFC 4566 section 5 has ``t=`` behind ``c=`` and ``b=`` and before the attributes."""
    before = [line for line in head if line[0] in "iuepcb"]
    return [*before, time, *(line for line in head if line[0] not in "iuepcb")]


def _origin(value: str) -> str:
    words = value.split()
    user = words[0] if words else "-"
    numbers = [w[-18:] if w.isascii() and w.isdigit() else "0" for w in words[1:3]]
    numbers += ["0"] * (2 - len(numbers))
    rest = [word.upper() for word in words[3:5]]
    if len(words) > 5 and rest[0] == "IN" and rest[1] in ("IP4", "IP6"):
        return " ".join([user, *numbers, *rest, words[5]])
    return " ".join([user, *numbers, "IN", "IP4", "0.0.0.0"])


def _time(value: str) -> str:
    words = value.split()
    if len(words) == 2 and all(_number(word, 19) is not None for word in words):
        return " ".join(words)
    return "0 0"


def _connection(value: str) -> str | None:
    """The address of a ``c=`` line; None where it is no literal: names are not resolved."""
    words = value.split()
    if len(words) < 3 or words[0].upper() != "IN":
        return None
    text = words[2].partition("/")[0]
    try:
        address = ipaddress.ip_address(text)
    except ValueError:
        return None
    return text if words[1].upper() == f"IP{address.version}" else None


def _after_address(value: str) -> str:
    """Address and TTL of a ``c=`` line; a TTL or count that is none is left out."""
    text, *more = value.split()[2].split("/")
    good = len(more) <= 2 and all((n := _number(one, 3)) is not None and n < 256 for one in more)
    return "/".join([text, *more]) if good else text


def _media(value: str) -> Media | None:
    words = value.split()
    if len(words) < 3 or not _is_token(words[0]):
        return None
    port = _number(words[1].partition("/")[0], 5)
    kind, profile = words[0].lower(), words[2]
    if port is None or port > 65535:
        if kind == "audio":
            return None
        port = 0  # it is declined anyway, and the audio beside it can be taken
    if kind == "audio":
        profile = profile.upper()
    formats = [word for word in words[3:] if _is_token(word)]
    media = Media(kind, port, profile, formats[:MAX_FORMATS])
    plain = f"m={value}"
    media.written = plain if plain == media.line(port) and media.formats else ""
    return media


def _attribute(value: str) -> str | None:
    name, colon, rest = value.partition(":")
    name, rest = name.strip(), rest.strip()
    if not _is_token(name):
        return None
    name = name.lower()
    if name not in _KNOWN_NAMES:
        return None
    if not colon:
        return name if name not in ("rtpmap", "fmtp", "ptime", "rtcp", "crypto") else None
    if name == "rtpmap":
        return _rtpmap(rest)
    if name in _DIRECTIONS:
        return name
    if name in ("ptime", "maxptime"):
        whole = _number(rest.partition(".")[0].strip(), 4)
        return f"{name}:{whole}" if whole else None
    if name == "fmtp":
        number, _, parameters = rest.partition(" ")
        good = _number(number, 3) is not None and parameters.strip()
        return f"fmtp:{number} {parameters.strip()}" if good else None
    if name == "rtcp":
        words = rest.split()
        port = _number(words[0], 5) if words else None
        if port is None or port > 65535:
            return None
        if len(words) == 1:
            return f"rtcp:{port}"
        return f"rtcp:{rest}" if _connection(" ".join(words[1:])) else _UNUSABLE
    if name == "crypto":
        return f"crypto:{rest}" if _is_crypto(rest) else None
    if name == "fingerprint":
        return f"fingerprint:{rest}" if _is_fingerprint(rest) else None
    return f"{name}:{rest}"


def _rtpmap(rest: str) -> str | None:
    number, _, encoding = rest.replace("\t", " ").partition(" ")
    parts = [part.strip() for part in encoding.split("/")]
    if len(parts) == 1 and parts[0].upper() in ("PCMU", "PCMA", _EVENTS.upper()):
        parts.append("8000")  # what RFC 3551 and 4733 have it mean
    if len(parts) not in (2, 3) or _number(number, 3) is None or int(number) > 127:
        return None
    parts[1:] = [part.split(" ")[0] for part in parts[1:]]
    if not _is_token(parts[0]) or _number(parts[1], 6) is None:
        return None
    return f"rtpmap:{number} {'/'.join(part for part in parts if part)}"


def _is_crypto(value: str) -> bool:
    words = value.split()
    if len(words) < 3 or not words[2].lower().startswith("inline:"):
        return False
    key = words[2][len("inline:") :].partition("|")[0]
    return (
        _number(words[0], 9) is not None
        and len(key) == _KEY_CHARS.get(words[1].upper(), -1)
        and all(c in _BASE64 for c in key)
        and "=" not in key.rstrip("=")
    )


def _is_fingerprint(value: str) -> bool:
    words = value.split()
    if len(words) != 2 or words[0].lower() not in _HASHES:
        return False
    octets = words[1].split(":")
    return len(octets) == _HASHES[words[0].lower()] and all(
        len(octet) == 2 and all(c in _HEX for c in octet) for octet in octets
    )


# ---- what belongs together


def _mend_media(media: Media) -> None:
    """Leave out what would have pjmedia refuse the line, or take another meaning from it."""
    if media.kind != "audio":
        names = media.names
        known = [n for n in media.formats if n in names or not n.isdigit() or int(n[:9]) < 96]
        if known != media.formats or not known:
            media.formats, media.written = known[:32] or ["0"], ""
        return
    media.lines = _one_direction(_one_rtpmap_each(_distinct_crypto(media.lines)))
    names = media.names
    events = {n: name for n, name in names.items() if name.startswith(_EVENTS.upper() + "/")}
    good = {n for n, name in events.items() if name == f"{_EVENTS.upper()}/8000"}
    formats: list[str] = []
    for number in media.formats:
        value = _number(number, 3)
        if value is None or value > 127 or number in formats:
            continue
        if value >= 96 and number not in names:
            continue  # RFC 3551 section 3: it means nothing without one
        if good and number in events and number not in good:
            continue  # keys come at the clock of the audio (RFC 4733 section 2.1)
        formats.append(number)
    speech = [number for number in formats if _law_of(number, names) is not None]
    if speech:
        # Only these can be answered, and the first one of an answer is taken for its codec.
        formats = [*speech, *(number for number in formats if number in events)]
    formats = formats[:32]
    if formats != media.formats:
        media.formats, media.written = formats or ["0"], ""
        kept = frozenset(media.formats)
        media.lines = [line for line in media.lines if _format_of(line) in (None, *kept)]
        if not formats:
            media.port = 0


def _law_of(number: str, names: dict[str, str]) -> Codec | None:
    """The G.711 law of a payload number, if it is one."""
    fixed, encoding = _STATIC.get(number), names.get(number)
    if encoding is None:
        return fixed
    encoding = encoding.removesuffix("/1")
    law = next((codec for codec in Codec if encoding == f"{codec.value}/8000"), None)
    return law if fixed in (None, law) else None


def _format_of(line: str) -> str | None:
    """The payload number that a rtpmap or fmtp line is of, for those that have one of their own."""
    for begin in ("a=rtpmap:", "a=fmtp:"):
        if line.startswith(begin):
            return line[len(begin) :].partition(" ")[0]
    return None


def _one_rtpmap_each(lines: list[str]) -> list[str]:
    """One rtpmap for each payload number: of several, the first at 8 kHz, or else the first."""
    best: dict[str, str] = {}
    for value in _values(lines, "rtpmap"):
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


def _distinct_crypto(lines: list[str]) -> list[str]:
    """One crypto line for each tag: a tag that is there twice refuses the line (RFC 4568)."""
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


def _one_direction(lines: list[str]) -> list[str]:
    """The first direction; pjmedia would read the last of some and the first of others."""
    first = next((line for line in lines if line[2:] in _DIRECTIONS), None)
    kept = [line for line in lines if line[2:] not in _DIRECTIONS]
    return lines if first is None or len(kept) == len(lines) - 1 else [*kept, first]


def _one_fingerprint(description: Description) -> None:
    """One fingerprint for each line, the strongest: pjmedia reads the first one only."""
    for lines in (description.head, *(media.lines for media in description.media)):
        values = _values(lines, "fingerprint")
        if len(values) > 1:
            strong = [v for v in values if v.lower().startswith("sha-256 ")]
            best = (strong or values)[0]
            lines[:] = [line for line in lines if not line.startswith("a=fingerprint:")]
            lines.append(f"a=fingerprint:{best}")
