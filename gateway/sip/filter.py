"""A pjsip module of our own that sees a new request before pjsua does, and may answer it.

pjsua answers some requests by itself, before any callback of pjsua2: an INVITE without a free call,
every OPTIONS. pjsua2's proxies cannot reach that far down, so this is a ``pjsip_module`` put
together with ctypes from the C functions that the extension exports. It sits just before pjsua,
where retransmissions and requests inside a dialog were taken by the layers below and never get
here; or before all layers (``FIRST``), where every request passes.
"""

from __future__ import annotations

import ctypes
import time
from collections.abc import Callable

import structlog

from gateway.sip.library import native

log = structlog.get_logger("sip")

FAILED_SECONDS = 10.0
"""A screen that raises says so this often."""

HANDLED, PASS = 1, 0
"""What a filter says: it has answered (or swallowed) the request, or pjsua shall have it."""

JUST_BEFORE_PJSUA = 64 - 1
FIRST = 1
"""Places among pjsip's modules: the transport layer is 8, transactions 16, dialogs 32, pjsua 64."""

_MAX_HEADERS = 64
"""Header fields kept made; only so many different ones are ever asked for."""

_UNAUTHORIZED, _SERVICE_UNAVAILABLE = 401, 503

_OnRxRequest = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.c_void_p)
OnTsxState = ctypes.CFUNCTYPE(None, ctypes.c_void_p, ctypes.c_void_p)
"""Transaction and event."""
_P = ctypes.c_void_p


class _Str(ctypes.Structure):
    _fields_ = (("ptr", ctypes.c_char_p), ("slen", ctypes.c_ssize_t))


class _Links(ctypes.Structure):
    _fields_ = (("prev", _P), ("next", _P))


class Module(ctypes.Structure):
    """``pjsip_module``."""

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
        ("on_rx_response", _OnRxRequest),
        ("on_tx_request", _P),
        ("on_tx_response", _P),
        ("on_tsx_state", OnTsxState),
    )


def name_of_module(name: bytes) -> ctypes.Structure:
    """For a :class:`Module`; ``name`` has to live as long."""
    return _Str(name, len(name))


class RequestFilter:
    """Hands requests of one method, outside of dialogs, to ``decide``; of ``FIRST``, all requests.

    Made, opened and used on the SIP thread, once the library is initialised.

    Args:
        method: the SIP method it is asked about; empty for all.
        decide: told pjsip's ``rx_data`` of each such request; returns HANDLED or PASS. What it
            raises means HANDLED: who cannot be judged does not get in.
        retry_after: seconds for the Retry-After header of :meth:`refuse` (RFC 3261 20.33).
        decide_response: the same for responses; what is HANDLED is dropped.
    """

    def __init__(
        self,
        method: str,
        decide: Callable[[int], int],
        retry_after: int,
        place: int = JUST_BEFORE_PJSUA,
        decide_response: Callable[[int], int] | None = None,
    ) -> None:
        self._mark = f" {method}/".encode() if method else b""
        self._place = place
        self._decide = decide
        library = native()
        self._info = library.pjsip_rx_data_get_info
        self._info.argtypes, self._info.restype = (_P,), ctypes.c_char_p
        self._dialog_of = library.pjsip_rdata_get_dlg
        self._dialog_of.argtypes, self._dialog_of.restype = (_P,), _P
        self._respond = library.pjsip_endpt_respond_stateless
        self._respond.argtypes = (_P, _P, ctypes.c_int, _P, _P, _P)
        self._register = library.pjsip_endpt_register_module
        self._register.argtypes = (_P, _P)
        endpoint_of = library.pjsua_get_pjsip_endpt
        endpoint_of.restype = _P
        self._endpoint = endpoint_of()
        self._library = library
        self._retry_after = ("Retry-After", str(retry_after))
        self._headers: dict[tuple[str, str], _Links] = {}
        self._failed_until = 0.0
        self._callback = _OnRxRequest(self._on_rx_request)
        self._decide_response = decide_response
        self._response_callback = (
            _OnRxRequest(self._on_rx_response) if decide_response is not None else _OnRxRequest()
        )
        self._name = f"mod-gateway-{place}-{method.lower() or 'all'}".encode()
        self._module = Module(
            name=name_of_module(self._name),
            id=-1,
            priority=place,
            on_rx_request=self._callback,
            on_rx_response=self._response_callback,
        )

    def open(self) -> None:
        """Register with the endpoint. Raises OSError when pjsip refuses the module.

        The module stays registered for the endpoint's life; keep this object as long.
        """
        status = self._register(self._endpoint, ctypes.byref(self._module))
        if status != 0:
            raise OSError(status, f"pjsip took no module {self._name.decode()}")

    def refuse(self, rdata: int, code: int, header: tuple[str, str] | None = None) -> None:
        """Answer with ``code``, without a transaction. A 503 carries Retry-After.

        Args:
            header: name and value of a field that the response shall have.
        """
        header = self._retry_after if code == _SERVICE_UNAVAILABLE else header
        made = None if header is None else ctypes.byref(self._made(header))
        self._respond(self._endpoint, rdata, code, None, made, None)

    def challenge(self, rdata: int, values: tuple[str, ...]) -> None:
        """Answer 401 with a WWW-Authenticate of each of these values."""
        pool = ctypes.c_void_p.from_address(rdata).value  # the request's own: its first field
        fields = [(b"WWW-Authenticate", value.encode()) for value in values]
        links = _headers(self._library, pool, fields)
        self._respond(self._endpoint, rdata, _UNAUTHORIZED, None, ctypes.byref(links[0]), None)

    def _made(self, header: tuple[str, str]) -> _Links:
        found = self._headers.get(header)
        if found is None:
            assert len(self._headers) < _MAX_HEADERS, "a pool each, for ever"
            found = _header_list(self._library, header[0].encode(), header[1].encode())
            self._headers[header] = found
        return found

    def _on_rx_request(self, rdata: int) -> int:
        try:
            if self._place != FIRST:
                info = self._info(rdata) or b""
                if self._mark not in info or self._dialog_of(rdata):
                    return PASS
            return self._decide(rdata)
        except Exception:
            self._say_failed()
            return HANDLED

    def _on_rx_response(self, rdata: int) -> int:
        try:
            return PASS if self._decide_response is None else self._decide_response(rdata)
        except Exception:
            self._say_failed()
            return HANDLED

    def _say_failed(self) -> None:
        now = time.monotonic()
        if now >= self._failed_until:
            self._failed_until = now + FAILED_SECONDS
            log.exception("sip.screen_failed", advice="what it was asked about got no answer")


def _header_list(library: ctypes.CDLL, name: bytes, value: bytes) -> _Links:
    """pjlib's circular list with a bare head, as ``pjsip_endpt_respond_stateless`` walks it."""
    make_pool = library.pjsua_pool_create
    make_pool.argtypes, make_pool.restype = (ctypes.c_char_p, *[ctypes.c_size_t] * 2), _P
    return _headers(library, make_pool(b"filter", 512, 512), [(name, value)])[0]


def _headers(
    library: ctypes.CDLL, pool: int | None, fields: list[tuple[bytes, bytes]]
) -> list[_Links]:
    """The bare head of a list of these fields, and the fields."""
    make_header = library.pjsip_generic_string_hdr_create
    make_header.argtypes, make_header.restype = (_P, _P, _P), _P
    links = [_Links()]
    for name, value in fields:
        key, text = _Str(name, len(name)), _Str(value, len(value))
        made = make_header(pool, ctypes.byref(key), ctypes.byref(text))
        links.append(_Links.from_address(made))
    for one, other in zip(links, [*links[1:], links[0]], strict=True):
        one.next, other.prev = ctypes.addressof(other), ctypes.addressof(one)
    return links
