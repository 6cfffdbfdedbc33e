"""Which pjsua2 this process runs on, what it can carry, and how a frame gets in and out of it.

The only module that knows one build of pjsua2 from another. Three ways to reach the bytes of a
``MediaFrame``, fastest first:

* ``copy_to_bytearray`` / ``assign_from_bytes``, in pjproject 2.16 and later;
* the storage of the ``std::vector`` behind a SWIG proxy, through ctypes: the proxy's address holds
  the vector, whose first two words are the begin and the end of its data. Tried on known bytes at
  import, and used only where they are found;
* a Python call for each byte, always right, a hundred times slower.
"""

from __future__ import annotations

import ctypes
import importlib.metadata
import os
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pjsua2 as pj

from gateway.audio.g711 import PCM_FRAME_BYTES

FrameReader = Callable[[Any], bytes]
"""Takes the bytes out of a ``MediaFrame``."""

FrameWriter = Callable[[Any, bytes], None]
"""Puts one frame of linear samples into a ``MediaFrame``; one writer belongs to one port."""


def _extension() -> Any:
    return pj._pjsua2


_NATIVE = ctypes.CDLL(_extension().__file__, mode=os.RTLD_NOLOAD | os.RTLD_NOW)
_Words = ctypes.c_size_t * 2
_LogFunction = ctypes.CFUNCTYPE(None, ctypes.c_int, ctypes.c_char_p, ctypes.c_int)
_DUMP_LEVEL = 3
_OWN = "pjsua2-gateway"
_OWN_ACCOUNTS, _ACCOUNTS = 128, 8
"""Of ``deploy/pjsua2/config_site.h``, and pjsua's default."""

_FEWEST_HANDLES = 64
"""pjlib's default, which every build has at least."""


def native() -> ctypes.CDLL:
    """The C functions of pjsip that the extension module exports, for what its proxies lack."""
    return _NATIVE


def capacity() -> int:
    """Calls that this build can have at the same time; 0 until the library is initialised.

    pjsua cuts the ``maxCalls`` it is asked for down to its compiled ``PJSUA_MAX_CALLS``.
    """
    function = _NATIVE.pjsua_call_get_max_count
    function.restype = ctypes.c_uint
    return int(function())


def account_capacity() -> int:
    """Accounts that this build has a place for (``PJSUA_MAX_ACC``), which it does not tell.

    Compiled with assertions, it ends the process when it is asked for one more.
    """
    return _OWN_ACCOUNTS if build().distribution.startswith(_OWN) else _ACCOUNTS


def media_handles() -> int:
    """Sockets that a queue of this build holds (``PJ_IOQUEUE_MAX_HANDLES``).

    Needs what :func:`compiled` needs.
    """
    found = compiled("PJ_IOQUEUE_MAX_HANDLES")
    return _FEWEST_HANDLES if found is None else found


def compiled(macro: str) -> int | None:
    """What an integer macro of pjlib was when it was compiled; None where that is not told.

    pjlib tells it only in the dump of its configuration. Needs an initialised library, and the
    thread that initialised it.
    """
    pattern = re.compile(rb"\b" + macro.encode() + rb"\s*:\s*(\d+)")
    found: list[int] = []

    def look(_level: int, text: bytes, _length: int) -> None:
        match = pattern.search(text)
        if match:
            found.append(int(match[1]))

    listener = _LogFunction(look)
    current, level = _NATIVE.pj_log_get_log_func, int(_NATIVE.pj_log_get_level())
    current.restype = ctypes.c_void_p
    before = current()
    _NATIVE.pj_log_set_log_func.argtypes = (ctypes.c_void_p,)
    _NATIVE.pj_log_set_log_func(ctypes.cast(listener, ctypes.c_void_p))
    _NATIVE.pj_log_set_level(_DUMP_LEVEL)
    try:
        _NATIVE.pj_dump_config()
    finally:
        _NATIVE.pj_log_set_level(level)
        _NATIVE.pj_log_set_log_func(before)
    return found[0] if found else None


def _vector_span(vector: Any) -> tuple[int, int]:
    begin, end = _Words.from_address(int(vector.this))
    return begin, end - begin


def _vectors_are_transparent() -> bool:
    known = bytes(range(256))
    try:
        vector = pj.ByteVector(known)
        begin, size = _vector_span(vector)
        return size == len(known) and begin != 0 and ctypes.string_at(begin, size) == known
    except (TypeError, ValueError, AttributeError):
        return False


def _read_fast(frame: Any) -> bytes:
    buffer = bytearray(frame.size)
    frame.buf.copy_to_bytearray(buffer)
    return bytes(buffer)


def _write_fast(frame: Any, pcm: bytes) -> None:
    frame.buf.assign_from_bytes(pcm)


def _read_vector(frame: Any) -> bytes:
    begin, size = _vector_span(frame.buf)
    return ctypes.string_at(begin, size)


def _vector_writer() -> FrameWriter:
    # One vector of constant size for each port: its storage never moves, so a frame costs one
    # memmove and the assignment that C++ makes of it.
    vector = pj.ByteVector(bytes(PCM_FRAME_BYTES))
    address, _ = _vector_span(vector)
    move = ctypes.memmove

    def write(frame: Any, pcm: bytes) -> None:
        move(address, pcm, PCM_FRAME_BYTES)
        frame.buf = vector

    return write


def _read_slow(frame: Any) -> bytes:
    return bytes(frame.buf)


def _write_slow(frame: Any, pcm: bytes) -> None:
    frame.buf = pj.ByteVector(pcm)


def _choose() -> tuple[str, FrameReader, Callable[[], FrameWriter]]:
    if hasattr(pj.ByteVector, "copy_to_bytearray") and hasattr(pj.ByteVector, "assign_from_bytes"):
        return "buffer calls", _read_fast, lambda: _write_fast
    if _vectors_are_transparent():
        return "vector storage", _read_vector, _vector_writer
    return "byte by byte", _read_slow, lambda: _write_slow


FRAME_ACCESS, read_frame, frame_writer = _choose()


def never_discard(media: Any) -> None:
    """Let a ``MediaConfig``'s jitter buffer keep every sample, at the cost of some delay."""
    none = 0  # PJMEDIA_JB_DISCARD_NONE, which SWIG does not export
    try:
        media.jbDiscardAlgo = none
    except TypeError:
        # A build that wraps the enumeration as a pointer to a copy of it: change the copy.
        copy = media.jbDiscardAlgo
        copy.disown()  # four bytes that SWIG knows no destructor for, and would say so
        ctypes.c_int.from_address(int(copy)).value = none
        media.jbDiscardAlgo = copy


@dataclass(frozen=True, slots=True)
class Build:
    """What is known of the pjsua2 in use."""

    distribution: str
    """Name and version of the installed package, or "unknown"."""
    version: str
    """pjproject's own version."""
    path: str
    """Where the extension module was loaded from."""
    frame_access: str
    """How frames are read and written: one of the three ways of this module's head."""
    tls: str
    """The TLS library it was linked with, or "none"."""
    keying: tuple[str, ...] = ("sdes",)
    """How it can agree on the keys of SRTP: sdes, dtls."""


def _tls_library() -> str:
    for symbol in ("OpenSSL_version", "SSLeay_version"):
        function = getattr(_NATIVE, symbol, None)
        if function is not None:
            function.restype = ctypes.c_char_p
            return str(function(0).decode(errors="replace"))
    bundled = sorted(Path(_extension().__file__).parent.parent.glob("pjsua2*.libs/libssl*"))
    return f"bundled {bundled[0].name}" if bundled else "none"


def _srtp_keying() -> tuple[str, ...]:
    names = ("sdes", "dtls")
    count = ctypes.c_uint(len(names))
    methods = (ctypes.c_int * len(names))()
    if _NATIVE.pjmedia_srtp_enum_keying(ctypes.byref(count), methods) != 0:
        return ()
    return tuple(names[method] for method in methods[: count.value] if method < len(names))


def build() -> Build:
    """Describe the pjsua2 in use; needs no started endpoint (but :func:`capacity` does)."""
    found = "unknown"
    for name in ("pjsua2-gateway", "pjsua2-python", "pjsua2"):
        try:
            found = f"{name} {importlib.metadata.version(name)}"
            break
        except importlib.metadata.PackageNotFoundError:
            continue
    function = _NATIVE.pj_get_version
    function.restype = ctypes.c_char_p
    return Build(
        distribution=found,
        version=function().decode(),
        path=str(_extension().__file__),
        frame_access=FRAME_ACCESS,
        tls=_tls_library(),
        keying=_srtp_keying(),
    )
