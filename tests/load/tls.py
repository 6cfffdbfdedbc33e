# SPDX-License-Identifier: GPL-2.0-or-later
"""A socket of the load endpoint behind TLS, whose bytes keep the kernel's time of their arrival."""

from __future__ import annotations

import contextlib
import socket
import ssl
from pathlib import Path
from typing import Any


def server_context(certificate: Path, key: Path) -> ssl.SSLContext:
    """TLS as a server that shows this certificate."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, key)
    return context


class TlsSocket:
    """What the endpoint uses of a socket that does not block, with the plain text of TLS."""

    def __init__(self, raw: socket.socket, context: ssl.SSLContext) -> None:
        self._raw = raw
        self._in, self._out = ssl.MemoryBIO(), ssl.MemoryBIO()
        self._tls = context.wrap_bio(self._in, self._out, server_side=True)
        self._up = False
        self._pending = b""
        self.fileno = raw.fileno
        self.setsockopt = raw.setsockopt
        self.close = raw.close

    def recv(self, size: int) -> bytes:
        """Plain text that came; b"" at the end. Raises BlockingIOError while there is none."""
        return self._opened(self._raw.recv(size))

    def recvmsg(self, size: int, ancillary_bytes: int) -> tuple[bytes, Any, int, Any]:
        """As :meth:`recv`, with what the kernel tells of the last bytes."""
        data, *rest = self._raw.recvmsg(size, ancillary_bytes)
        return self._opened(data), *rest

    def send(self, data: bytes) -> int:
        """Send all of it, now or when the kernel takes it."""
        self._tls.write(data)
        self._flush()
        return len(data)

    def _opened(self, data: bytes) -> bytes:
        if not data:
            return b""
        self._in.write(data)
        plain = b""
        try:
            if not self._up:
                self._tls.do_handshake()
                self._up = True
            while more := self._tls.read(1 << 18):
                plain += more
        except ssl.SSLWantReadError:
            pass
        self._flush()
        if not plain:
            raise BlockingIOError
        return plain

    def _flush(self) -> None:
        self._pending += self._out.read()
        with contextlib.suppress(BlockingIOError):
            self._pending = self._pending[self._raw.send(self._pending) :]
