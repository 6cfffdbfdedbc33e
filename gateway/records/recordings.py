# SPDX-License-Identifier: GPL-2.0-or-later
"""Writes recordings of calls: WAV or Ogg Opus files, encrypted with age where there are recipients.

A recorder in the media's threads keeps what both sides said (``gateway/sip/media/ports.py``); one
thread takes it from there twice a second, for all calls. Neither a slow disk nor an encoder can
hold up audio: what finds no place is counted, and silence stands in its place.

A file that is cut short, by ``kill -9`` or a full disk, can be played up to there: the header of a
WAV file is right after each write, Ogg has no length in it, and an encrypted file is a row of small
ones, each whole.
"""

from __future__ import annotations

import fcntl
import os
import secrets
import struct
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, Protocol

import structlog

from gateway.audio.g711 import FRAME_BYTES, FRAME_MS, SAMPLE_RATE, Codec
from gateway.records.files import private

WRITE_SECONDS = 0.5
"""From one write to the next: as much is lost of a file whose process is killed."""
WAITING_FRAMES = 30_000 // FRAME_MS
"""Frames that wait for the thread: 30 s, 480 kB a call; a disk that hangs for longer costs some."""
STOP_SECONDS = 5.0
MAX_NAMES = 100

PENDING = "pending"
"""Folder of links to the files that are still to be uploaded."""

SEALED = b"sip-gateway recording, age segments 1\n"
"""First line of an encrypted file. Then, again and again: four bytes of length, most significant
first, and so many bytes of an age file. In each are 8 bytes that are the same in all of a
recording, 4 bytes that count the segments from 0, one that is 1 in the last, and a piece of it."""

_HEAD = struct.Struct(">8sI?")
_UNKNOWN = 0xFFFFFFFF
"""Length of a file that cannot be changed any more once it is known (as of a stream)."""

log = structlog.get_logger("recording")


class RecordingError(Exception):
    """A recording cannot be written or read; the message is for people."""


class Source(Protocol):
    """Where a recording comes from: :class:`gateway.sip.media.ports.Recorder`."""

    def take(self) -> bytes:
        """Return what was recorded since the last time: G.711, left and right by turns."""


@dataclass(frozen=True, slots=True)
class Options:
    """How the files of a process are written."""

    folder: Path | None = None
    recipients: tuple[str, ...] = ()
    """Whom they are encrypted for: age's X25519 (``age1...``) or SSH public keys; nobody: plain."""
    upload: bool = False
    """Whether files are to be uploaded."""


# ---- containers


class _File(Protocol):
    """What a container writes to."""

    def write(self, data: bytes, /) -> int: ...


class WavFile:
    """Writes stereo WAV: G.711 as it is (``linear`` false), or 16-bit linear samples.

    Args:
        out: where to; :meth:`header` is to be written over its first bytes again and again, or
            else ``stream`` says that its length is not known.
    """

    def __init__(self, out: _File, codec: Codec, *, linear: bool, stream: bool) -> None:
        self._out, self._codec, self._linear = out, codec, linear
        self._bytes = 0
        out.write(self.header(_UNKNOWN if stream else 0))

    def write(self, interleaved: bytes) -> None:
        """Write G.711 bytes, left and right by turns."""
        data = self._codec.to_linear(interleaved) if self._linear else interleaved
        self._bytes += len(data)
        self._out.write(data)

    def close(self) -> None:
        """Nothing is to be added."""

    def header(self, length: int | None = None) -> bytes:
        """The header for what was written so far, or for ``length`` bytes of audio."""
        length = self._bytes if length is None else length
        tag = 1 if self._linear else 6 if self._codec is Codec.PCMA else 7
        return wav_header(tag, length)


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
    """Writes stereo Ogg Opus, by libsndfile. Needs the extra ``recording``."""

    def __init__(self, out: _File, codec: Codec) -> None:
        try:
            import soundfile
        except ImportError:
            raise RecordingError("format opus needs the package soundfile") from None
        self._codec = codec
        self._sound = soundfile.SoundFile(
            _Pages(out), "w", SAMPLE_RATE, 2, format="OGG", subtype="OPUS"
        )

    def write(self, interleaved: bytes) -> None:
        """Encode G.711 bytes, left and right by turns."""
        self._sound.buffer_write(self._codec.to_linear(interleaved), dtype="int16")

    def close(self) -> None:
        """Write what the encoder still has."""
        self._sound.close()


class _Pages:
    """A file that is only ever appended to, as libsndfile wants one."""

    def __init__(self, out: _File) -> None:
        self._out = out
        self._at = 0

    def write(self, data: Any) -> int:
        """Append."""
        taken = bytes(data)
        self._out.write(taken)
        self._at += len(taken)
        return len(taken)

    def tell(self) -> int:
        """The number of bytes written."""
        return self._at

    def seek(self, _offset: int, _whence: int = 0) -> int:
        """Stay: nothing was written that could be read."""
        return self._at

    def readinto(self, _buffer: Any) -> int:
        """Nothing can be read."""
        return 0

    def flush(self) -> None:
        """Nothing waits here."""


class SealedFile:
    """Gathers what is written, and writes it encrypted, a segment at a time."""

    def __init__(self, out: BinaryIO, recipients: tuple[Any, ...]) -> None:
        self._out, self._recipients = out, recipients
        self._id, self._segments = secrets.token_bytes(8), 0
        self._waiting = bytearray()
        out.write(SEALED)

    def write(self, data: bytes, /) -> int:
        """Keep for the next segment."""
        self._waiting += data
        return len(data)

    def seal(self, *, last: bool = False) -> None:
        """Write what waits as a segment."""
        if not (self._waiting or last):
            return
        import pyrage

        head = _HEAD.pack(self._id, self._segments, last)
        segment = pyrage.encrypt(head + bytes(self._waiting), list(self._recipients))
        self._out.write(len(segment).to_bytes(4, "big") + segment)
        self._segments += 1
        self._waiting.clear()


def recipients_of(texts: tuple[str, ...]) -> tuple[Any, ...]:
    """Return the keys of these recipients. Raises RecordingError."""
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
    """Return the private keys in these files. Raises RecordingError, or OSError."""
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
    """Yield the pieces of an encrypted recording.

    Raises RecordingError where it is none, none of the keys fits, or pieces are missing or changed.
    A file that was cut ends with its last whole piece; ``RecordingCutError`` says so then.
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
    """An encrypted recording has no end; what there is of it was read."""


def decrypt(source: Path, target: Path, identities: list[Any]) -> str:
    """Write the plain file of an encrypted recording; returns what is to be said of it, or "".

    Raises RecordingError, or OSError.
    """
    note = ""
    with source.open("rb") as file, open(target, "xb", opener=private) as out:
        try:
            for piece in unsealed(file, identities):
                out.write(piece)
        except RecordingCutError as cut:
            note = str(cut)
        length = out.tell()
    with target.open("r+b") as out:
        start = out.read(58)
        if start[:4] == b"RIFF" and len(start) >= 44:
            tag = int.from_bytes(start[20:22], "little")
            out.seek(0)
            out.write(wav_header(tag, length - len(wav_header(tag, 0))))
    return note


# ---- one recording


class Recording:
    """The file of one call, written by the thread.

    Args:
        link: leave word that the file is to be uploaded.
    """

    def __init__(
        self,
        call: str,
        path: Path,
        source: Source,
        codec: Codec,
        format: str,
        recipients: tuple[Any, ...],
        *,
        link: bool,
    ) -> None:
        self.call, self.path = call, path
        self.over = self.discarded = False
        """Set by the event loop: nothing more comes; nothing is to be left of it."""
        self.lost_bytes = 0
        """That could not be written."""
        self._source, self._codec, self._format = source, codec, format
        self._recipients, self._link = recipients, link
        self._file: BinaryIO | None = None
        self._sealed: SealedFile | None = None
        self._container: WavFile | OpusFile | None = None
        self._failed = False

    @property
    def encrypted(self) -> bool:
        """Whether nothing of it is written in plain."""
        return bool(self._recipients)

    @property
    def pending(self) -> Path:
        """The link that says that the file is still to be uploaded."""
        return self.path.parent / PENDING / self.path.name

    def work(self) -> bool:
        """Write what there is; returns whether the file is complete. On the thread."""
        over = self.over  # before the last take
        data = self._source.take()
        try:
            if not self._failed and not self.discarded:
                self._write(data, over)
        except Exception as error:
            # Once said; what comes for this file from now on is lost, and counted.
            self._failed = True
            log.error("recording.write_failed", call=self.call, error=str(error))
        if self._failed:
            self.lost_bytes += len(data)
        if over:
            self._close()
        return over

    def _write(self, data: bytes, over: bool) -> None:
        if self._file is None:
            self._open()
        assert self._container is not None
        assert self._file is not None
        if data:
            self._container.write(data)
        if over:
            self._container.close()
        if self._sealed is not None:
            self._sealed.seal(last=over)
        elif isinstance(self._container, WavFile):
            self._file.flush()
            os.pwrite(self._file.fileno(), self._container.header(), 0)
        self._file.flush()

    def _open(self) -> None:
        folder = self.path.parent
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._file = file = open(self.path, "xb", opener=private)  # noqa: SIM115 (closed later)
        # Whoever uploads sees by the lock that it is still written to.
        fcntl.flock(file, fcntl.LOCK_EX)
        if self._link:
            self.pending.parent.mkdir(mode=0o700, exist_ok=True)
            self.pending.symlink_to(Path("..", self.path.name))
        out: _File = file
        if self._recipients:
            out = self._sealed = SealedFile(file, self._recipients)
        if self._format == "opus":
            self._container = OpusFile(out, self._codec)
        else:
            linear = self._format == "wav_pcm"
            self._container = WavFile(
                out, self._codec, linear=linear, stream=self._sealed is not None
            )

    def _close(self) -> None:
        if self._file is not None:
            if self.discarded:
                self.path.unlink(missing_ok=True)
                self.pending.unlink(missing_ok=True)
            try:
                self._file.close()
            except OSError as error:
                log.error("recording.write_failed", call=self.call, error=str(error))
            self._file = None


# ---- all of them


class Recordings:
    """Owns the thread that writes the recordings of a process."""

    def __init__(self, options: Options, uploads: Callable[[], None] = lambda: None) -> None:
        self.options = options
        self.lost_bytes = 0
        """Of recordings that are over, that could not be written."""
        self._wake_uploads = uploads
        self._recipients: tuple[Any, ...] = ()
        self._changed = threading.Condition()
        self._open: dict[Recording, None] = {}
        self._closed = False
        self._thread: threading.Thread | None = None

    @property
    def open(self) -> int:
        """Files that are being written."""
        return len(self._open)

    def prepare(self) -> None:
        """Make the folder and read the keys. Raises OSError or RecordingError."""
        folder = self.options.folder
        self._recipients = recipients_of(self.options.recipients)
        if folder is not None:
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            if not os.access(folder, os.W_OK):
                raise PermissionError(f"recording.folder: {folder} cannot be written to")

    def begin(self, call: str, stem: str, source: Source, codec: Codec, format: str) -> Recording:
        """Have what ``source`` records written to a file; returns at once. Raises RecordingError.

        Args:
            stem: beginning of the file's name.
            format: wav, wav_pcm or opus.
        """
        folder = self.options.folder
        if folder is None:
            raise RecordingError("no recording.folder is set")
        if self._closed or self._thread is None:
            raise RecordingError("the gateway stops")
        ending = f"{'ogg' if format == 'opus' else 'wav'}{'.sealed' if self._recipients else ''}"
        path = _free(folder, stem, ending)
        made = Recording(
            call, path, source, codec, format, self._recipients, link=self.options.upload
        )
        with self._changed:
            self._open[made] = None
        return made

    def end(self, recording: Recording, *, discard: bool = False) -> None:
        """Close the file once all of it is written; ``discard``: delete it."""
        recording.discarded = discard
        recording.over = True
        with self._changed:
            self._changed.notify()

    def start(self) -> None:
        """Start the thread."""
        if self.options.folder is None:
            return
        self.prepare()
        self._closed = False
        self._thread = threading.Thread(target=self._run, name="recordings", daemon=True)
        self._thread.start()

    async def stop(self) -> None:
        """Complete all files, for at most ``STOP_SECONDS``."""
        import asyncio

        thread, self._thread = self._thread, None
        if thread is None:
            return
        with self._changed:
            self._closed = True
            for one in self._open:
                one.over = True
            self._changed.notify()
        await asyncio.to_thread(thread.join, STOP_SECONDS)
        if self._open:
            log.error("recording.not_completed", files=len(self._open))

    def as_json(self) -> dict[str, int]:
        """What ``gateway status`` shows."""
        return {"open": self.open, "lost_bytes": self.lost_bytes}

    def _run(self) -> None:
        due = time.monotonic()
        while True:
            with self._changed:
                left = due - time.monotonic()
                if left > 0 and not any(one.over for one in self._open) and not self._closed:
                    self._changed.wait(left)
                closed, there = self._closed, list(self._open)
            now = time.monotonic()
            all_due = now >= due or closed
            if all_due:
                due = now + WRITE_SECONDS
            done = [one for one in there if (all_due or one.over) and one.work()]
            with self._changed:
                for one in done:
                    self.lost_bytes += one.lost_bytes
                    del self._open[one]
                over = closed and not self._open
            if done:
                self._wake_uploads()
            if over:
                return


def _free(folder: Path, stem: str, ending: str) -> Path:
    for number in range(1, MAX_NAMES + 1):
        path = folder / (f"{stem}.{ending}" if number == 1 else f"{stem}-{number}.{ending}")
        if not path.exists():
            return path
    raise RecordingError(f"{MAX_NAMES} recordings are named {stem}")


def seconds_of(frames: int) -> float:
    """Return how long so many frames are (s)."""
    return round(frames * FRAME_MS / 1000, 2)


def stereo(left: bytes, right: bytes) -> bytes:
    """Return two tracks of G.711 as one, left and right by turns."""
    both = bytearray(2 * len(left))
    both[::2], both[1::2] = left, right
    return bytes(both)


def write_stereo(path: Path, codec: Codec, left: bytes, right: bytes) -> None:
    """Write a whole recording of two tracks of one length, as 16-bit WAV. Raises OSError."""
    with path.open("wb") as file:
        container = WavFile(file, codec, linear=True, stream=False)
        step = 50 * FRAME_BYTES
        for at in range(0, len(left), step):
            container.write(stereo(left[at : at + step], right[at : at + step]))
        file.seek(0)
        file.write(container.header())
