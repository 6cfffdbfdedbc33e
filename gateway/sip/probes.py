"""OPTIONS to trunks (RFC 3261 section 11): is the other side there? pjsua2 sends none by itself."""

from __future__ import annotations

import ctypes
import re
from collections.abc import Callable
from typing import Any

import structlog

from gateway.sip.library import native
from gateway.sip.trunks import Trunk

log = structlog.get_logger("sip")

_P = ctypes.c_void_p
_RX_MSG = 3
"""PJSIP_EVENT_RX_MSG: a response came; otherwise time is over, or nothing could be sent."""

_CODE = re.compile(rb"Response msg (\d{3})/")
_OnEvent = ctypes.CFUNCTYPE(None, _P, _P)


class _Str(ctypes.Structure):
    _fields_ = (("ptr", ctypes.c_char_p), ("slen", ctypes.c_ssize_t))


class _Event(ctypes.Structure):
    """``pjsip_event`` of a transaction's state."""

    _fields_ = (
        ("prev", _P),
        ("next", _P),
        ("type", ctypes.c_int),
        ("source", _P),
        ("transaction", _P),
        ("previous_state", ctypes.c_int),
        ("cause", ctypes.c_int),
    )


def target_of(trunk: Trunk) -> str:
    """Whom to ask: the proxy, the registrar or the only address of the trunk; empty for nobody."""
    address = trunk.outbound_proxy or trunk.registrar
    if not address and trunk.peers and trunk.peers[0].network.num_addresses == 1:
        peer = trunk.peers[0]
        host = str(peer.network.network_address)
        address = (f"[{host}]" if ":" in host else host) + (f":{peer.port}" if peer.port else "")
    through = "" if trunk.transport == "udp" else f";transport={trunk.transport}"
    return f"sip:{address}{through}" if address else ""


class Probes:
    """Made and used on the SIP thread; ``results`` may be read from others.

    Args:
        account_of: pjsua's number of a trunk's account.
        on_back: told of each trunk that answers after it did not.
    """

    def __init__(
        self,
        trunks: tuple[Trunk, ...],
        account_of: Callable[[Trunk], int],
        on_back: Callable[[Trunk], None] = lambda _trunk: None,
    ) -> None:
        self.results: dict[str, str] = {}
        """Last answer of each trunk that is asked: a code, or ``no answer``."""
        self._trunks = [trunk for trunk in trunks if trunk.options_interval and target_of(trunk)]
        self._account_of = account_of
        self._on_back = on_back
        self._due: dict[str, float] = {}
        library = native()
        self._options: Any = library.pjsip_get_options_method
        self._options.restype = _P
        self._create: Any = library.pjsua_acc_create_request
        self._create.argtypes = (ctypes.c_int, _P, _P, _P)
        self._send: Any = library.pjsip_endpt_send_request
        self._send.argtypes = (_P, _P, ctypes.c_int32, _P, _OnEvent)
        self._info: Any = library.pjsip_rx_data_get_info
        self._info.argtypes, self._info.restype = (_P,), ctypes.c_char_p
        endpoint: Any = library.pjsua_get_pjsip_endpt
        endpoint.restype = _P
        self._endpoint = endpoint()
        self._callback = _OnEvent(self._on_event)

    def tick(self, now: float) -> None:
        """Ask where it is due. To be called about once a second."""
        for index, trunk in enumerate(self._trunks):
            if now >= self._due.get(trunk.name, 0.0):
                self._due[trunk.name] = now + trunk.options_interval
                self._ask(index, trunk)

    def _ask(self, index: int, trunk: Trunk) -> None:
        uri = target_of(trunk).encode()
        target, request = _Str(uri, len(uri)), _P()
        status = self._create(
            self._account_of(trunk), self._options(), ctypes.byref(target), ctypes.byref(request)
        )
        if status == 0:
            status = self._send(self._endpoint, request, -1, index + 1, self._callback)
        if status != 0:
            self._note(trunk, f"cannot be sent ({status})")

    def _on_event(self, token: int, event: int) -> None:
        try:
            trunk = self._trunks[token - 1]
            seen = _Event.from_address(event)
            found = _CODE.search(self._info(seen.source) or b"") if seen.cause == _RX_MSG else None
            self._note(trunk, found[1].decode() if found else "no answer")
        except Exception:
            log.exception("sip.callback_failed", callback="OPTIONS")

    def _note(self, trunk: Trunk, result: str) -> None:
        before = self.results.get(trunk.name)
        self.results[trunk.name] = result
        if result == before:
            return
        if result[:1].isdigit():  # whatever it says, somebody is there
            log.info("trunk.answers", trunk=trunk.name, code=int(result))
            if before is not None and not before[:1].isdigit():
                self._on_back(trunk)
        else:
            log.warning("trunk.silent", trunk=trunk.name, error=result)
