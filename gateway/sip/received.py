"""Where a request came from, read out of pjsip's ``rx_data`` before anything is made of it.

The layout is that of pjsip's headers since 2.0. Only the size of the packet buffer in its middle
(``PJSIP_MAX_PKT_LEN``) is up to the build; it is found out with the first request, and until then,
or where nothing fits, nothing is read.
"""

from __future__ import annotations

import ctypes
import ipaddress
import socket
import sys
from dataclasses import dataclass
from typing import Any

_P = ctypes.c_void_p

PACKET_SIZES = (4000, 8000)
"""pjsip's default, and that of ``deploy/pjsua2``; from small to large, so that no attempt reads
beyond a structure that is smaller."""

_TRANSPORTS = {b"UDP": "udp", b"TCP": "tcp", b"TLS": "tls"}


class _Address(ctypes.Union):
    class _V4(ctypes.Structure):
        _fields_ = (
            ("family", ctypes.c_uint16),
            ("port", ctypes.c_uint16),
            ("address", ctypes.c_uint32),
            ("zero", ctypes.c_char * 8),
        )

    class _V6(ctypes.Structure):
        _fields_ = (
            ("family", ctypes.c_uint16),
            ("port", ctypes.c_uint16),
            ("flow", ctypes.c_uint32),
            ("address", ctypes.c_uint8 * 16),
            ("scope", ctypes.c_uint32),
        )

    _fields_ = (("v4", _V4), ("v6", _V6))


class _Transport(ctypes.Structure):
    """The head of ``pjsip_transport``, as far as its own address."""

    _fields_ = (
        ("obj_name", ctypes.c_char * 32),
        ("pool", _P),
        ("ref_cnt", _P),
        ("lock", _P),
        ("grp_lock", _P),
        ("tracing", ctypes.c_int),
        ("is_shutdown", ctypes.c_int),
        ("is_destroying", ctypes.c_int),
        ("key_type", ctypes.c_long),
        ("key_address", _Address),
        ("type_name", ctypes.c_char_p),
        ("flag", ctypes.c_uint),
        ("info", ctypes.c_char_p),
        ("address_length", ctypes.c_int),
        ("local", _Address),
    )


class _Parsed(ctypes.Structure):
    """The head of ``pjsip_msg``, of a response."""

    _fields_ = (("type", ctypes.c_int), ("status", ctypes.c_int64))


def _rx_data(packet_size: int) -> Any:
    class RxData(ctypes.Structure):
        _fields_ = (
            ("pool", _P),
            ("transport", ctypes.POINTER(_Transport)),
            ("tp_data", _P),
            ("op_key", _P * 34),
            ("op_key_rdata", _P),
            ("seconds", ctypes.c_long),
            ("milliseconds", ctypes.c_long),
            ("packet", ctypes.c_char * packet_size),
            ("zero", ctypes.c_uint32),
            ("length", ctypes.c_ssize_t),
            ("source", _Address),
            ("source_length", ctypes.c_int),
            ("source_name", ctypes.c_char * 46),
            ("source_port", ctypes.c_int),
            ("message", _P),
            ("message_length", ctypes.c_int),
            ("parsed", ctypes.POINTER(_Parsed)),
        )

    return RxData


@dataclass(frozen=True, slots=True)
class Received:
    """A request before it is anything to pjsua: ``source`` is an IP literal."""

    source: str
    port: int
    transport: str
    """udp, tcp or tls."""
    local: str
    """Our address that it came to, as IP literal; the unspecified one for a socket on all."""
    message: bytes
    connection: int = 0
    """pjsip's handle of the connection or socket that it came by."""

    @property
    def reliable(self) -> bool:
        """Over a connection, whose source port means nothing."""
        return self.transport != "udp"

    @property
    def method(self) -> str:
        """INVITE, OPTIONS, ..."""
        return self.message.split(b" ", 1)[0].decode("ascii", "replace")

    @property
    def request_uri(self) -> str:
        """As it came."""
        parts = self.message.split(b"\n", 1)[0].split(b" ")
        return parts[1].decode("utf-8", "replace") if len(parts) > 1 else ""


class Reader:
    """Reads requests; use on the SIP thread only, within pjsip's callback."""

    def __init__(self) -> None:
        self._layouts = [_rx_data(size) for size in PACKET_SIZES]
        self._layout: Any = None
        self.failed = False
        """No layout fitted: this build is unknown, and nothing will be read."""

    def read(self, rdata: int) -> Received | None:
        """What came, or None where this build's layout is not known."""
        if self._layout is None and not self.failed:
            fitting = (layout for layout in self._layouts if _fits(layout.from_address(rdata)))
            self._layout = next(fitting, None)
            self.failed = self._layout is None
        if self.failed:
            return None
        data = self._layout.from_address(rdata)
        return Received(
            source=data.source_name.decode("ascii", "replace"),
            port=int(data.source_port),
            transport=_transport_of(data),
            local=_literal(data.transport.contents.local),
            message=ctypes.string_at(data.message, data.message_length),
            connection=ctypes.addressof(data.transport.contents),
        )

    def relabel(self, rdata: int, code: int) -> None:
        """Let the library take a response for one with this status code."""
        if self._layout is not None:
            parsed = self._layout.from_address(rdata).parsed.contents
            parsed.status = parsed.status & ~0xFFFFFFFF | code


def _fits(data: Any) -> bool:
    begin = ctypes.addressof(data) + type(data).packet.offset
    if not (0 < data.length <= type(data).packet.size):
        return False
    if not (data.message and begin <= data.message < begin + data.length):
        return False
    if not (0 <= data.source_port <= 65535 and 0 < data.message_length <= data.length):
        return False
    try:
        ipaddress.ip_address(data.source_name.decode("ascii").partition("%")[0])
    except ValueError:
        return False
    return bool(data.transport)


def _transport_of(data: Any) -> str:
    # pjsip's own names begin so for both address families ("tlss", "tcps" for a server's side).
    name: bytes = data.transport.contents.obj_name[:3]
    return _TRANSPORTS.get(name.upper(), "udp")


def _literal(address: Any) -> str:
    if address.v4.family == socket.AF_INET6:
        return str(ipaddress.IPv6Address(bytes(address.v6.address)))
    return socket.inet_ntoa(address.v4.address.to_bytes(4, sys.byteorder))
