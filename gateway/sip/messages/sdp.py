# SPDX-License-Identifier: GPL-2.0-or-later
"""Session descriptions as peers send them (RFC 4566, 3264): parsed, judged, and repaired. Pure.

pjmedia's parser rejects a whole description for one malformed line, and pjsua refuses what its
account cannot take with codes that do not say why. So a description is parsed here first, line by
line and without a regular expression that backtracks:

* :func:`parse` keeps the lines that can be parsed;
* :meth:`SessionDescription.choose` returns the one audio line that the gateway answers, or why
  there is none: :class:`SdpRejection`, one row for each cause;
* :func:`sdp_text` writes the description that pjmedia gets. A good one stays as it came."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import Enum

from gateway.audio import G711, Codec
from gateway.ending import EndReason
from gateway.sip import Security
from gateway.sip.messages.sdp_lines import (
    EVENTS,
    UNUSABLE,
    address_and_ttl,
    address_in,
    attribute_of,
    connection_of,
    distinct_crypto,
    is_token,
    one_direction,
    one_rtpmap_each,
    ordered_head,
    origin_of,
    printable,
    time_of,
    values_of,
)
from gateway.text import whole_number

MAX_STREAMS = 8
"""``m=`` lines of a description. The library answers no more, and RFC 3264 section 6 wants an
answer to each; each offered one gets sockets of its own until it is answered."""

MAX_FORMATS = 128
"""Payload numbers of one ``m=`` line that are read: as many as there are."""

MAX_LINES = 512
"""Lines of one description; a real one has some thirty."""


class SdpRejection(Enum):
    """Why no line of a description can be answered: the reason of the ending, and in words."""

    MALFORMED = EndReason.BAD_SDP, "the SDP cannot be read, or names a host in place of an address"
    TOO_MANY_STREAMS = EndReason.BAD_SDP, f"more than {MAX_STREAMS} m= lines"
    NO_AUDIO = EndReason.NO_AUDIO, "no audio line that is not disabled"
    ADDRESS_FAMILY = EndReason.ADDRESS_FAMILY, "the audio is at an address of the other IP version"
    CODEC = EndReason.NO_COMMON_CODEC, "none of the codecs that its calls may speak"
    PROFILE = EndReason.SRTP_MISMATCH, "an RTP profile that is not known"
    SRTP_REQUIRED = EndReason.SRTP_MISMATCH, 'RTP without encryption, and srtp = "required"'
    SRTP_OFF = EndReason.SRTP_MISMATCH, 'SRTP, and srtp = "off"'
    KEYING = EndReason.SRTP_MISMATCH, "SRTP keys in a way that is not in srtp_keying"
    KEYS = EndReason.SRTP_MISMATCH, "SRTP without a crypto, or fingerprint and setup, of use"

    @property
    def why(self) -> EndReason:
        """The end reason in the record; its row in ``gateway/ending.py`` has SIP code and
        Reason."""
        return self.value[0]

    @property
    def text(self) -> str:
        """The reason in words, for the log."""
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
_SETUPS = ("active", "passive", "actpass")
"""Who begins the handshake of DTLS, as pjmedia knows it (RFC 4145 section 4)."""
_STATIC = {"0": Codec.PCMU, "8": Codec.PCMA, "9": Codec.G722}


@dataclass(slots=True)
class MediaLine:
    """One ``m=`` line with its attributes; ``lines`` are the lines below it, repaired."""

    kind: str
    port: int
    profile: str
    formats: list[str]
    lines: list[str] = field(default_factory=list)
    address: str | None = None
    """Of its own ``c=`` line."""
    written: str = ""
    """The line as it came, where there is nothing to mend in it."""
    known: tuple[Codec, ...] = G711
    """The codecs that are told from others; a number of another one means nothing."""
    misread: bool = False
    """It cannot be used: declined in its place, while others are served."""

    def decline(self) -> None:
        """Decline this line: port 0 (RFC 3264 section 6)."""
        self.port, self.misread, self.written = 0, True, ""

    def attributes(self, name: str) -> list[str]:
        """Return the values of an attribute (``a=name:value``) of this line, in order."""
        return values_of(self.lines, name)

    @property
    def names(self) -> dict[str, str]:
        """Return the encodings of its rtpmap lines, as ``encoding/clock`` in upper case, by payload
        number; the first of a number holds."""
        found: dict[str, str] = {}
        for value in self.attributes("rtpmap"):
            number, _, encoding = value.partition(" ")
            found.setdefault(number, encoding.upper())
        return found

    @property
    def codecs(self) -> tuple[Codec, ...]:
        """Return the codecs that it offers and calls can use, in its order."""
        names = self.names
        found = dict.fromkeys(_codec_of(number, names, self.known) for number in self.formats)
        return tuple(codec for codec in found if codec is not None)

    def line(self, port: int) -> str:
        """Return the ``m=`` line with this port: as it came, where nothing was changed."""
        if port == self.port and self.written:
            return self.written
        return f"m={self.kind} {port} {self.profile} {' '.join(self.formats)}"


@dataclass(slots=True)
class SessionDescription:
    """A session description as far as it could be parsed."""

    head: list[str]
    """Lines of the session, repaired: v, o, s and t are there, once each and first."""
    media: list[MediaLine]
    flaw: SdpRejection | None = None
    """It cannot be used, whatever the account takes."""

    @property
    def lacks_keys(self) -> bool:
        """Return whether an audio line that is not disabled has an SRTP profile and neither crypto
        nor fingerprint, not even the session's."""
        if values_of(self.head, "fingerprint"):
            return False
        return any(
            media.kind == "audio"
            and media.port
            and _BASES.get(media.profile, _PLAIN) != _PLAIN
            and not (media.attributes("crypto") or media.attributes("fingerprint"))
            for media in self.media
        )

    def choose(
        self, security: Security, codecs: tuple[Codec, ...] = G711, six: bool | None = None
    ) -> MediaLine | SdpRejection:
        """Return the first audio line that can be answered, or the :class:`SdpRejection` of the one
        that came furthest in the checks: codec, IP version, then profile and keys.

        Args:
            security: SRTP policy of the account.
            codecs: those that its calls may use.
            six: whether our RTP is IPv6; None accepts either.
        """
        if self.flaw is not None:
            return self.flaw
        nearest, steps = SdpRejection.NO_AUDIO, 0
        for media in self.media:
            if media.kind != "audio" or not media.port:
                continue
            found = self._rejection(media, security, codecs, six)
            if found is None:
                return media
            if found[0] > steps:
                steps, nearest = found
        return nearest

    def _rejection(
        self, media: MediaLine, security: Security, codecs: tuple[Codec, ...], six: bool | None
    ) -> tuple[int, SdpRejection] | None:
        """Return why an audio line cannot be answered, and how many checks it passed; None if it
        can."""
        if not any(codec in codecs for codec in media.codecs):
            return 1, SdpRejection.CODEC
        address = media.address or address_in(self.head)
        found_six = address is not None and ":" in address
        if six is not None and address != "0.0.0.0" and found_six is not six:
            return 2, SdpRejection.ADDRESS_FAMILY
        why = self._keying_rejection(media, security)
        return None if why is None else (3, why)

    def _keying_rejection(self, media: MediaLine, security: Security) -> SdpRejection | None:
        """Return why RTP profile or SRTP keys of a line cannot be accepted; None if they can. Plain
        RTP is accepted unless SRTP is required, SRTP unless it is off; it needs keys in a way of
        ``security.keying``: a crypto line with RTP/SAVP(F), or fingerprint and setup, of the line
        or the session."""
        base = _BASES.get(media.profile)
        if base is None:
            return SdpRejection.PROFILE
        if base == _PLAIN:
            return SdpRejection.SRTP_REQUIRED if security.srtp == "required" else None
        if security.srtp == "off":
            return SdpRejection.SRTP_OFF
        crypto = bool(media.attributes("crypto"))
        fingerprint = bool(media.attributes("fingerprint") or values_of(self.head, "fingerprint"))
        setups = media.attributes("setup") or values_of(self.head, "setup")
        begins = bool(setups) and setups[0].strip().lower() in _SETUPS
        wanted = {"sdes": crypto and base == _SDES, "dtls": fingerprint and begins}
        if any(wanted[keying] for keying in security.keying if keying in wanted):
            return None
        way = "dtls" if base == _DTLS or (fingerprint and not crypto) else "sdes"
        return SdpRejection.KEYS if way in security.keying else SdpRejection.KEYING


class _Reader:
    """Parses the lines of a description one by one."""

    def __init__(self) -> None:
        self.head: list[str] = []
        self.fixed: dict[str, str] = {}
        """The first ``v=``, ``o=``, ``s=`` and ``t=`` before the media."""
        self.media: list[MediaLine] = []
        self.malformed = False
        self._connection_at: int | None = None
        """Where the ``c=`` of this part is, in its lines."""

    @property
    def _lines(self) -> list[str]:
        """The lines of the last media section, or of the part before the first one."""
        return self.media[-1].lines if self.media else self.head

    def take(self, kind: str, value: str) -> None:
        """Parse the line ``kind=value``; skip it if it cannot be parsed. A bad ``m=`` line makes
        the description malformed."""
        match kind:
            case "m":
                self._take_media(value)
            case "c":
                self._take_connection(value)
            case "a":
                self._take_attribute(value)
            case "b":
                modifier, colon, width = value.partition(":")
                if colon and is_token(modifier) and whole_number(width, 10) is not None:
                    self._lines.append(f"b={modifier}:{width}")
            case "v" | "o" | "s" | "t":
                if value and not self.media:
                    self.fixed.setdefault(kind, value)
            case "i" | "u" | "e" | "p" | "z" | "k" | "r":
                self._lines.append(f"{kind}={value}")

    def _take_media(self, value: str) -> None:
        """Parse an ``m=`` line and begin its section; one that cannot be parsed makes the
        description malformed."""
        found = _media(value)
        if found is None:
            self.malformed = True
            return
        self.media.append(found)
        self._connection_at = None

    def _take_connection(self, value: str) -> None:
        """Parse a ``c=`` line; of several in a section the last one holds, as for pjmedia. One that
        names a host, or cannot be parsed, disables its section."""
        address = connection_of(value)
        if address is None:
            self._decline()
            return
        line = f"c=IN IP{6 if ':' in address else 4} {address_and_ttl(value)}"
        if self._connection_at is None:
            self._connection_at = len(self._lines)
            self._lines.append(line)
        else:
            self._lines[self._connection_at] = line  # pjmedia takes the last one
        if self.media:
            self.media[-1].address = address

    def _take_attribute(self, value: str) -> None:
        """Parse an ``a=`` line; one that is not needed is left out, an unusable one disables its
        section."""
        attribute = attribute_of(value)
        if attribute is UNUSABLE:
            self._decline()
        elif attribute is not None:
            self._lines.append(f"a={attribute}")

    def _decline(self) -> None:
        """Disable the current media section; outside of one the description is malformed."""
        if self.media:
            self.media[-1].decline()
        else:
            self.malformed = True


def parse(text: str, codecs: tuple[Codec, ...] = G711) -> SessionDescription:
    """Parse a description and repair it for pjmedia; lines that cannot be parsed are left out. One
    that cannot be used has a ``flaw``.

    Audio without an address is disabled.

    Args:
        codecs: those that its call may speak, G.711 ones in any case: others are left out.
    """
    reader = _Reader()
    for number, raw in enumerate(text.replace("\r", "\n").split("\n")):
        line = printable(raw)
        kind, value = line[:1].lower(), line[1:].lstrip()
        if not value.startswith("="):
            continue
        if number >= 2 * MAX_LINES:
            reader.malformed = True
            break
        reader.take(kind, value[1:].strip())
    media, fixed = reader.media, reader.fixed
    flaw = SdpRejection.MALFORMED if reader.malformed else None
    if fixed.get("v", "0") != "0" or not media:
        flaw = flaw or SdpRejection.MALFORMED
    if len(media) > MAX_STREAMS:
        flaw = flaw or SdpRejection.TOO_MANY_STREAMS
    begin = ["v=0", f"o={origin_of(fixed.get('o', ''))}", f"s={fixed.get('s') or '-'}"]
    head = [*begin, *ordered_head(reader.head, f"t={time_of(fixed.get('t', ''))}")]
    description = SessionDescription(head, media, flaw)
    for one in media:
        one.known = tuple(dict.fromkeys((*G711, *codecs)))
        _mend_media(one)
    _one_fingerprint(description)
    if address_in(description.head) is None:
        for one in media:
            if one.address is None:
                if one.port and one.kind == "audio":
                    one.decline()
                one.lines.insert(0, "c=IN IP4 0.0.0.0")
    audio = [one for one in media if one.kind == "audio"]
    if any(one.misread for one in audio) and not any(one.port for one in audio):
        description.flaw = description.flaw or SdpRejection.MALFORMED
    return description


def sdp_text(
    description: SessionDescription, chosen: MediaLine | None = None, *, sdes: bool = True
) -> str:
    """Return the description that the library gets, in lines ended by CRLF.

    Args:
        chosen: the line to answer; the other audio lines are disabled. None keeps all.
        sdes: whether its crypto lines may be used.
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
    """Return the codecs of an INVITE's first audio line with any, in its order: empty if none has
    one we know, None without an offer.

    The line that is answered may be another one, depending on its profile.
    """
    found = description_in(message, tuple(Codec))
    if found is None:
        return None
    for media in found.media:
        if media.kind == "audio" and (media.port or media.misread) and media.codecs:
            return media.codecs
    return ()


def description_in(message: str, codecs: tuple[Codec, ...] = G711) -> SessionDescription | None:
    """Return the first description in a message's body, which may be one part of several, parsed;
    None without one.

    Args:
        codecs: as of :func:`parse`.
    """
    text = message.replace("\r\n", "\n").replace("\r", "\n")
    _header, empty, body = text.partition("\n\n")
    if not empty or ("\nm=" not in body and not body.startswith("m=")):
        return None
    if body.lstrip("\n").startswith("--"):
        parts = body.split("\n\n")
        body = next((part for part in parts if "\nm=" in part or part.startswith("m=")), "")
        body = body.partition("\n--")[0]
    return parse(body, codecs)


def _media(value: str) -> MediaLine | None:
    """Parse the value of an ``m=`` line; None if it cannot be parsed. A wrong port becomes 0, and
    the line is marked ``misread``."""
    words = value.split()
    if len(words) < 3 or not is_token(words[0]):
        return None
    port = whole_number(words[1].partition("/")[0], 5)
    kind, profile = words[0].lower(), words[2]
    misread = port is None or port > 65535
    if port is None or misread:
        port = 0
    if kind == "audio":
        profile = profile.upper()
    formats = [word for word in words[3:] if is_token(word)]
    media = MediaLine(kind, port, profile, formats[:MAX_FORMATS], misread=misread)
    plain = f"m={value}"
    media.written = plain if plain == media.line(port) and media.formats else ""
    return media


def _mend_media(media: MediaLine) -> None:
    """Remove attributes and payload numbers of a line for which pjmedia would refuse it, or that it
    would misinterpret. Of audio, only codecs that can be answered stay, before telephone-event at
    their clock; a line without any is disabled."""
    if media.kind != "audio":
        names = media.names
        known = [n for n in media.formats if n in names or not n.isdigit() or int(n[:9]) < 96]
        if known != media.formats or not known:
            media.formats, media.written = known[:32] or ["0"], ""
        return
    media.lines = one_direction(one_rtpmap_each(distinct_crypto(media.lines)))
    names = media.names
    events = {n: name for n, name in names.items() if name.startswith(EVENTS.upper() + "/")}
    clocks = {one.rtpmap.split("/")[1] for one in (Codec.PCMU, *media.codecs)}
    good = {n for n, name in events.items() if name.partition("/")[2] in clocks}
    formats: list[str] = []
    for number in media.formats:
        value = whole_number(number, 3)
        if value is None or value > 127 or number in formats:
            continue
        if value >= 96 and number not in names:
            continue  # RFC 3551 section 3: it means nothing without one
        if good and number in events and number not in good:
            continue  # keys come at the clock of the audio (RFC 4733 section 2.1)
        formats.append(number)
    speech = [number for number in formats if _codec_of(number, names, media.known)]
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


def _codec_of(number: str, names: dict[str, str], known: tuple[Codec, ...]) -> Codec | None:
    """Return the codec of a payload number, by its rtpmap (``names``) or else as a static number;
    None where it is none of ``known``, or the two contradict each other."""
    fixed, encoding = _STATIC.get(number), names.get(number)
    if encoding is None:
        return fixed if fixed in known else None
    encoding = encoding.removesuffix("/1")
    codec = next((one for one in known if encoding == one.rtpmap.upper()), None)
    return codec if fixed in (None, codec) else None


def _format_of(line: str) -> str | None:
    """Return the payload number that an rtpmap or fmtp line is about; None for other lines."""
    for begin in ("a=rtpmap:", "a=fmtp:"):
        if line.startswith(begin):
            return line[len(begin) :].partition(" ")[0]
    return None


def _one_fingerprint(description: SessionDescription) -> None:
    """Keep one fingerprint for the session and each line, SHA-256 if there is one: pjmedia reads
    the first one only."""
    for lines in (description.head, *(media.lines for media in description.media)):
        values = values_of(lines, "fingerprint")
        if len(values) > 1:
            strong = [v for v in values if v.lower().startswith("sha-256 ")]
            best = (strong or values)[0]
            lines[:] = [line for line in lines if not line.startswith("a=fingerprint:")]
            lines.append(f"a=fingerprint:{best}")
