# SPDX-License-Identifier: GPL-2.0-or-later
"""Recording files: WAV and Ogg Opus, plain or encrypted with age; writing and reading."""

from __future__ import annotations

import fcntl
import secrets
import struct
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO, Protocol

from gateway.audio import SAMPLE_RATE, Codec
from gateway.records.files import private

PENDING = "pending"
"""Folder, beside the recordings, of links to the files that are still to be uploaded."""

SEALED = b"sip-gateway recording, age segments 1\n"
"""First line of an encrypted file. Then, again and again: four bytes of length, most significant
first, and so many bytes of an age file: a segment. Decrypted, it is 8 bytes that are the same in
all segments of a recording, 4 bytes with its number from 0, one that is 1 in the last segment, and
the next bytes of the recording."""

_HEAD = struct.Struct(">8sI?")
_UNKNOWN = 0xFFFFFFFF
"""Length in the header of a file whose header cannot be written again, as of a stream."""


class RecordingError(Exception):
    """A recording cannot be written or read; the message is for people."""


class Sink(Protocol):
    """Destination of a file's bytes."""

    def write(self, data: bytes, /) -> int:
        """Take bytes; return their number."""


class WavFile:
    """Writes WAV at 8 kHz.

    Args:
        out: gets the header, then the audio.
        codec: G.711 codec of what is written.
        linear: convert to 16-bit samples; otherwise G.711 is stored as it is.
        stream: the header says that the length is unknown. Otherwise the owner of the file writes
            :meth:`header` over its first bytes after each write.
    """

    def __init__(
        self, out: Sink, codec: Codec, *, linear: bool, stream: bool, channels: int = 2
    ) -> None:
        self._channels = channels
        self._out, self._codec, self._linear = out, codec, linear
        self._bytes = 0
        out.write(self.header(_UNKNOWN if stream else 0))

    def write(self, interleaved: bytes) -> None:
        """Write G.711 bytes; those of two channels alternate."""
        data = self._codec.to_linear(interleaved) if self._linear else interleaved
        self._bytes += len(data)
        self._out.write(data)

    def close(self) -> None:
        """Do nothing: the header is complete already."""

    def header(self, length: int | None = None) -> bytes:
        """Return the header for ``length`` bytes of audio; by default, for those written so far."""
        length = self._bytes if length is None else length
        tag = 1 if self._linear else 6 if self._codec is Codec.PCMA else 7
        return wav_header(tag, length, self._channels)


def wav_header(tag: int, length: int, channels: int = 2) -> bytes:
    """Return the header of a WAV file at 8 kHz.

    Args:
        tag: 1 for 16-bit linear samples, 6 for A-law, 7 for mu-law.
        length: bytes of audio.
    """
    size = 2 if tag == 1 else 1
    block = channels * size
    shape = struct.pack("<HHIIHH", tag, channels, SAMPLE_RATE, SAMPLE_RATE * block, block, 8 * size)
    if tag == 1:
        chunks = b"fmt " + struct.pack("<I", len(shape)) + shape
    else:
        # All but linear samples have an extension, here empty, and say how many samples there are.
        samples = min(_UNKNOWN, length // block) if length != _UNKNOWN else _UNKNOWN
        chunks = b"fmt " + struct.pack("<I", len(shape) + 2) + shape + bytes(2)
        chunks += b"fact" + struct.pack("<II", 4, samples)
    whole = min(_UNKNOWN, 4 + len(chunks) + 8 + length)
    return (
        b"RIFF" + struct.pack("<I", whole) + b"WAVE" + chunks + b"data" + struct.pack("<I", length)
    )


class OpusFile:
    """Writes stereo Ogg Opus, by libsndfile. Raises RecordingError without the package
    ``soundfile`` (extra ``recording``)."""

    def __init__(self, out: Sink, codec: Codec) -> None:
        try:
            import soundfile
        except ImportError:
            raise RecordingError("format opus needs the package soundfile") from None
        self._codec = codec
        self._sound = soundfile.SoundFile(
            _AppendOnly(out), "w", SAMPLE_RATE, 2, format="OGG", subtype="OPUS"
        )

    def write(self, interleaved: bytes) -> None:
        """Encode G.711 bytes, left and right alternating."""
        self._sound.buffer_write(self._codec.to_linear(interleaved), dtype="int16")

    def close(self) -> None:
        """Write what the encoder still holds, and end the container."""
        self._sound.close()


class _AppendOnly:
    """File object for libsndfile that only appends to ``out``: it can neither seek nor read."""

    def __init__(self, out: Sink) -> None:
        self._out = out
        self._at = 0

    def write(self, data: Any) -> int:
        """Append bytes to ``out``; return their number."""
        taken = bytes(data)
        self._out.write(taken)
        self._at += len(taken)
        return len(taken)

    def tell(self) -> int:
        """Return the number of bytes written."""
        return self._at

    def seek(self, _offset: int, _whence: int = 0) -> int:
        """Stay at the end, and return its position."""
        return self._at

    def readinto(self, _buffer: Any) -> int:
        """Read nothing."""
        return 0

    def flush(self) -> None:
        """Do nothing: nothing is buffered."""


@contextmanager
def locked(path: Path) -> Iterator[bool]:
    """Lock a file (flock) for the block, without waiting; yield False, unlocked, if another holder
    has the lock.

    Raises FileNotFoundError, or another OSError if it cannot be read.
    """
    with path.open("rb") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            yield False
        else:
            yield True


class SealedFile:
    """Encrypts what is written for recipients (age), and writes it to ``out`` in segments, in the
    format that :data:`SEALED` describes."""

    def __init__(self, out: Sink, recipients: tuple[Any, ...]) -> None:
        self._out, self._recipients = out, recipients
        self._id, self._segments = secrets.token_bytes(8), 0
        self._waiting = bytearray()
        out.write(SEALED)

    def write(self, data: bytes, /) -> int:
        """Keep bytes of the container for the next segment; return their number."""
        self._waiting += data
        return len(data)

    def seal(self, *, last: bool = False) -> None:
        """Encrypt the bytes that wait and write them as one segment; ``last`` marks the end of the
        file. Nothing if no bytes wait, unless it is the last."""
        if not (self._waiting or last):
            return
        import pyrage

        head = _HEAD.pack(self._id, self._segments, last)
        segment = pyrage.encrypt(head + bytes(self._waiting), list(self._recipients))
        self._out.write(len(segment).to_bytes(4, "big") + segment)
        self._segments += 1
        self._waiting.clear()


def recipients_of(texts: tuple[str, ...]) -> tuple[Any, ...]:
    """Parse public keys of age (``age1…``) or SSH; () for none. Raises RecordingError for another
    text, or without the package ``pyrage``."""
    if not texts:
        return ()
    try:
        import pyrage
    except ImportError:
        raise RecordingError("recipients need the package pyrage") from None
    keys = []
    for text in texts:
        kind = pyrage.ssh if text.startswith("ssh-") else pyrage.x25519
        try:
            keys.append(kind.Recipient.from_str(text))
        except Exception:
            raise RecordingError(f"{text[:24]!r} is no public key of age or SSH") from None
    return tuple(keys)


def identities_of(files: Iterable[Path]) -> list[Any]:
    """Read private keys of age or SSH from files. Raises RecordingError or OSError."""
    import pyrage

    keys = []
    for file in files:
        text = file.read_text(encoding="utf-8")
        lines = [line for line in text.splitlines() if line.startswith("AGE-SECRET-KEY-")]
        try:
            if lines:
                keys += [pyrage.x25519.Identity.from_str(line.strip()) for line in lines]
            else:
                keys.append(pyrage.ssh.Identity.from_buffer(text.encode()))
        except Exception:
            raise RecordingError(f"{file} has no private key of age or SSH") from None
    return keys


def unsealed(file: BinaryIO, identities: list[Any]) -> Iterator[bytes]:
    """Yield the decrypted segments of an encrypted recording, in their order.

    Raises RecordingError if it is none, no key fits, or a segment is missing or changed, and
    RecordingCutError after the last whole segment of a file without its end.
    """
    import pyrage

    if file.read(len(SEALED)) != SEALED:
        raise RecordingError("this is no encrypted recording of a gateway")
    first = b""
    number, ended = 0, False
    while len(size := file.read(4)) == 4:
        segment = file.read(int.from_bytes(size, "big"))
        if len(segment) < int.from_bytes(size, "big"):
            break
        try:
            plain = pyrage.decrypt(segment, identities)
        except Exception as error:
            raise RecordingError(f"segment {number} cannot be decrypted: {error}") from None
        ident, count, ended = _HEAD.unpack_from(plain)
        first = first or ident
        if ident != first or count != number:
            raise RecordingError(f"segment {number} is missing, or of another recording")
        number += 1
        yield plain[_HEAD.size :]
    if not ended:
        raise RecordingCutError("the recording was cut: its end is missing")


class RecordingCutError(RecordingError):
    """An encrypted recording has no last segment; those before it are valid."""


def decrypt(source: Path, target: Path, identities: list[Any]) -> str:
    """Write an encrypted recording as a plain file; return a warning if it has no end, or "".

    Raises RecordingError, and then leaves no file, or OSError, as for a target that exists.
    """
    note = ""
    with source.open("rb") as file, open(target, "xb", opener=private) as out:
        try:
            for piece in unsealed(file, identities):
                out.write(piece)
        except RecordingCutError as cut:
            note = str(cut)
        except BaseException:
            # Nothing of a file that is not to be trusted; and the right key can be tried next.
            target.unlink()
            raise
        length = out.tell()
    with target.open("r+b") as out:
        start = out.read(58)
        if start[:4] == b"RIFF" and len(start) >= 44:
            tag = int.from_bytes(start[20:22], "little")
            out.seek(0)
            out.write(wav_header(tag, length - len(wav_header(tag, 0))))
    return note


def stereo(left: bytes, right: bytes) -> bytes:
    """Interleave two tracks of G.711 of one length."""
    both = bytearray(2 * len(left))
    both[::2], both[1::2] = left, right
    return bytes(both)


def write_tracks(path: Path, codec: Codec, tracks: Sequence[bytes]) -> None:
    """Write one track of G.711, or two of one length, as WAV of 16 bit at 8 kHz. Raises OSError."""
    audio = tracks[0] if len(tracks) == 1 else stereo(*tracks)
    with path.open("wb") as file:
        out = WavFile(file, codec, linear=True, stream=False, channels=len(tracks))
        out.write(audio)
        file.seek(0)
        file.write(out.header())
