"""What becomes of the BYEs that we send: pjsua tells that a call is over before they are answered.

A module of ours joins the dialog (a *dialog usage* of pjsip) when a call is hung up, and sees the
states of the BYE's transaction from then on.
"""

from __future__ import annotations

import ctypes
import re
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pjsua2 as pj

from gateway.sip.filter import Module, OnTsxState, name_of_module
from gateway.sip.library import native

ANSWER_SECONDS = 3.0
"""How long the end of a call waits for the answer to its BYE: over UDP it is sent three times in
that (RFC 3261 section 17.1.2.2). What is as slow as that counts as lost."""

NO_ANSWER = f"no answer within {ANSWER_SECONDS:g} s"
NOT_SENT = "cannot be sent"
TIMED_OUT = "408 no answer"

_PRIORITY = 63
"""Behind pjsip's own usage (48), which answers a challenge with another BYE."""

_P = ctypes.c_void_p
_RESPONSE = re.compile(rb"Response msg (\d+)/BYE/")
_REQUEST = re.compile(rb"Request msg BYE/")
_CHALLENGES = (401, 407)
_NO_SUCH_CALL = 481


class _TsxEvent(ctypes.Structure):
    """``pjsip_event`` of type TSX_STATE."""

    _fields_ = (
        ("prev", _P),
        ("next", _P),
        ("type", ctypes.c_int),
        ("source", _P),
        ("tsx", _P),
        ("previous", ctypes.c_int),
        ("cause", ctypes.c_int),
    )


@dataclass(slots=True)
class _Watch:
    told: Callable[[str], None] | None
    until: float
    outcome: str | None = None
    tsx: int = 0
    """The latest BYE's transaction."""


class Byes:
    """Made, opened and used on the SIP thread, once the library is initialised."""

    def __init__(self) -> None:
        self._library = library = native()
        self._dialog_of = library.pjsip_tsx_get_dlg
        self._dialog_of.argtypes, self._dialog_of.restype = (_P,), _P
        for name in ("pjsip_rx_data_get_info", "pjsip_tx_data_get_info"):
            function = getattr(library, name)
            function.argtypes, function.restype = (_P,), ctypes.c_char_p
        self._add_usage = library.pjsip_dlg_add_usage
        self._add_usage.argtypes = (_P, _P, _P)
        self._watches: dict[int, _Watch] = {}
        self._callback = OnTsxState(self._on_tsx_state)
        self._name = b"mod-gateway-byes"
        self._module = Module(
            name=name_of_module(self._name),
            id=-1,
            priority=_PRIORITY,
            on_tsx_state=self._callback,
        )
        self._opened = False

    def open(self) -> None:
        """Register with the endpoint, for its life. Raises OSError when pjsip refuses."""
        endpoint_of = self._library.pjsua_get_pjsip_endpt
        endpoint_of.restype = _P
        register = self._library.pjsip_endpt_register_module
        register.argtypes = (_P, _P)
        status = register(endpoint_of(), ctypes.byref(self._module))
        if status != 0:
            raise OSError(status, "pjsip took no module for BYEs")
        self._opened = True

    def dialog_of(self, transaction: Any) -> int:
        """The dialog of a pjsua2 ``SipTransaction``, 0 for none."""
        return self._dialog_of(int(transaction.pjTransaction)) or 0

    def watch(self, dialog: int) -> None:
        """A BYE is about to be sent in this dialog."""
        if not self._opened or self._add_usage(dialog, ctypes.byref(self._module), None) != 0:
            return
        earlier = self._watches.pop(dialog, None)
        if earlier is not None and earlier.told is not None:
            earlier.told("")  # a dialog that is gone, at the same address
        self._watches[dialog] = _Watch(None, time.monotonic() + ANSWER_SECONDS)

    def wait(self, dialog: int, told: Callable[[str], None]) -> None:
        """Tell what became of the BYE, once: empty for taken, else why it was not.

        At once where it is known, or no BYE is watched; by ``tick`` at the latest.
        """
        watch = self._watches.get(dialog)
        if watch is None:
            told("")
        elif watch.outcome is None:
            watch.told = told
        else:
            del self._watches[dialog]
            told(watch.outcome)

    def tick(self, now: float) -> None:
        """Give up waiting where it took too long."""
        for dialog in [d for d, watch in self._watches.items() if now >= watch.until]:
            self._settle(dialog, self._watches[dialog], NO_ANSWER)
            self._watches.pop(dialog, None)

    def _settle(self, dialog: int, watch: _Watch, outcome: str) -> None:
        if watch.outcome is not None:
            return
        watch.outcome = outcome
        if watch.told is not None:
            del self._watches[dialog]
            watch.told(outcome)

    def _on_tsx_state(self, tsx: int, event_at: int) -> None:
        try:
            dialog = self._dialog_of(tsx) or 0
            watch = self._watches.get(dialog)
            if watch is None or not event_at:
                return
            event = _TsxEvent.from_address(event_at)
            if event.type != pj.PJSIP_EVENT_TSX_STATE:
                return
            outcome = self._outcome(watch, tsx, event)
            if outcome is not None:
                self._settle(dialog, watch, outcome)
        except Exception:
            return  # it is only a note

    def _outcome(self, watch: _Watch, tsx: int, event: Any) -> str | None:
        cause, source = event.cause, event.source
        if cause == pj.PJSIP_EVENT_TX_MSG and _REQUEST.match(self._sent(source)):
            watch.tsx = tsx
        if cause == pj.PJSIP_EVENT_TRANSPORT_ERROR and _REQUEST.match(self._sent(source)):
            watch.tsx = tsx
            return NOT_SENT
        if tsx != watch.tsx:
            return None
        if cause == pj.PJSIP_EVENT_TIMER:
            return TIMED_OUT
        if cause != pj.PJSIP_EVENT_RX_MSG:
            return None
        response = _RESPONSE.match(self._library.pjsip_rx_data_get_info(source) or b"")
        code = int(response[1]) if response is not None else 0
        if code < 200:
            return None
        # A 481 says that the other side has no such call any more, which is as good.
        return "" if code < 300 or code == _NO_SUCH_CALL else _phrase(code)

    def _sent(self, tdata: int | None) -> bytes:
        return (self._library.pjsip_tx_data_get_info(tdata) or b"") if tdata else b""


def _phrase(code: int) -> str:
    return f"{code}, unanswered challenge" if code in _CHALLENGES else f"refused with {code}"
