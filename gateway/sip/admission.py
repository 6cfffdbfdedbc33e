"""A 503 with Retry-After for the INVITE that finds every call of the library taken.

Also for the one that would find no handle for its sockets; and the one that came already is
absorbed (:mod:`gateway.sip.arrivals`).

pjsua answers 486 by itself when it has no free call, before the application hears of the INVITE.
RFC 3261 section 21.5.4 wants 503 there, so that a proxy or trunk tries another gateway. pjsua2's
proxies cannot reach that far down, so this is a pjsip module of our own (``pjsip_module``), put
together with ctypes from the C functions that the extension exports. It sits just before pjsua:
retransmissions and requests inside a dialog were taken by the layers below and never get here.
"""

from __future__ import annotations

import ctypes
import time
from collections.abc import Callable

from gateway.sip.arrivals import Arrivals
from gateway.sip.library import native
from gateway.sip.message import headers_of

_JUST_BEFORE_PJSUA = 64 - 1
_HANDLED, _PASS = 1, 0
_SERVICE_UNAVAILABLE = 503
_LOOK_FOR_MESSAGE_BYTES = 4000
"""A received message lies inside pjsip's rx_data, a few hundred bytes from its head; its struct is
larger than this, so looking this far reads nothing that is not ours."""

_OnRxRequest = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.c_void_p)
_P = ctypes.c_void_p


class _Str(ctypes.Structure):
    _fields_ = (("ptr", ctypes.c_char_p), ("slen", ctypes.c_ssize_t))


class _Links(ctypes.Structure):
    _fields_ = (("prev", _P), ("next", _P))


class _Module(ctypes.Structure):
    _fields_ = (
        ("prev", _P),
        ("next", _P),
        ("name", _Str),
        ("id", ctypes.c_int),
        ("priority", ctypes.c_int),
        ("load", _P),
        ("start", _P),
        ("stop", _P),
        ("unload", _P),
        ("on_rx_request", _OnRxRequest),
        ("on_rx_response", _P),
        ("on_tx_request", _P),
        ("on_tx_response", _P),
        ("on_tsx_state", _P),
    )


class Admission:
    """Answers new INVITEs while ``full()``; made, opened and closed on the SIP thread.

    Args:
        full: whether the library has no call left; asked for each new INVITE.
        arrivals: what the INVITEs before say about the next one.
        retry_after: seconds for the Retry-After header.
        on_refused: told the message (empty when it could not be read) of each refused INVITE.
    """

    def __init__(
        self,
        full: Callable[[], bool],
        arrivals: Arrivals,
        retry_after: int,
        on_refused: Callable[[str], None],
    ) -> None:
        self._full = full
        self._arrivals = arrivals
        self._on_refused = on_refused
        library = native()
        self._endpoint_of = library.pjsua_get_pjsip_endpt
        self._endpoint_of.restype = _P
        self._info = library.pjsip_rx_data_get_info
        self._info.argtypes, self._info.restype = (_P,), ctypes.c_char_p
        self._dialog_of = library.pjsip_rdata_get_dlg
        self._dialog_of.argtypes, self._dialog_of.restype = (_P,), _P
        self._respond = library.pjsip_endpt_respond_stateless
        self._respond.argtypes = (_P, _P, ctypes.c_int, _P, _P, _P)
        self._register = library.pjsip_endpt_register_module
        self._register.argtypes = (_P, _P)
        make_pool = library.pjsua_pool_create
        make_pool.argtypes, make_pool.restype = (ctypes.c_char_p, *[ctypes.c_size_t] * 2), _P
        make_header = library.pjsip_generic_string_hdr_create
        make_header.argtypes, make_header.restype = (_P, _P, _P), _P

        self._endpoint = self._endpoint_of()
        pool = make_pool(b"admission", 512, 512)
        name, value = _Str(b"Retry-After", 11), _Str(str(retry_after).encode(), 0)
        value.slen = len(value.ptr)
        header = make_header(pool, ctypes.byref(name), ctypes.byref(value))
        # pjlib's circular list with a bare head, as pjsip_endpt_respond_stateless walks it.
        self._headers = _Links(header, header)
        head = ctypes.addressof(self._headers)
        links = _Links.from_address(header)
        links.prev, links.next = head, head
        self._callback = _OnRxRequest(self._on_rx_request)
        self._module = _Module(
            name=_Str(b"mod-gateway-admission", 21),
            id=-1,
            priority=_JUST_BEFORE_PJSUA,
            on_rx_request=self._callback,
        )

    def open(self) -> None:
        """Register with the endpoint. Raises OSError when pjsip refuses the module.

        The module stays registered for the endpoint's life; keep this object as long.
        """
        status = self._register(self._endpoint, ctypes.byref(self._module))
        if status != 0:
            raise OSError(status, "pjsip took no admission module")

    def _on_rx_request(self, rdata: int) -> int:
        try:
            info = self._info(rdata) or b""
            if b" INVITE/" not in info or self._dialog_of(rdata):
                return _PASS
            now = time.monotonic()
            message = _message_of(rdata)
            identity = _identity_of(message)
            if identity and self._arrivals.is_repeat(identity, now):
                return _HANDLED
            if not self._full() and not self._arrivals.exhausted(now):
                self._arrivals.admit(now)
                return _PASS
            self._respond(
                self._endpoint,
                rdata,
                _SERVICE_UNAVAILABLE,
                None,
                ctypes.byref(self._headers),
                None,
            )
            self._on_refused(message)
            return _HANDLED
        except Exception:
            return _PASS


def _message_of(rdata: int) -> str:
    raw = ctypes.string_at(rdata, _LOOK_FOR_MESSAGE_BYTES)
    start = raw.find(b"INVITE ")
    if start < 0:
        return ""
    message = raw[start:].split(b"\0", 1)[0].decode("utf-8", "replace")
    return message if "call-id" in headers_of(message) else ""


def _identity_of(message: str) -> str:
    """What two copies of one INVITE have in common and no other has; empty when unknown."""
    headers = headers_of(message)
    if not message or any(name not in headers for name in ("via", "from", "call-id", "cseq")):
        return ""
    return "\n".join(headers[name][0] for name in ("via", "from", "call-id", "cseq"))
