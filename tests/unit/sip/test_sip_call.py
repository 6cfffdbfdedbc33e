# SPDX-License-Identifier: GPL-2.0-or-later
"""What a call of the library's is asked: keys of SRTP, why nobody answered."""

from __future__ import annotations

import time
from types import SimpleNamespace
from typing import Any

import pjsua2 as pj
import pytest

from gateway.sip.sip_call import SipCall

ACTIVE = "SRTP status: Active Crypto-suite: AES_CM_128_HMAC_SHA1_80"


@pytest.mark.parametrize(
    ("status", "left_s", "known"),
    [(ACTIVE, 5.0, True), ("SRTP status: Not active Crypto-suite: ", 5.0, False), ("", -1.0, True)],
    ids=["there", "not yet", "never"],
)
def test_playout_waits_for_keys_until_a_deadline(status: str, left_s: float, known: bool) -> None:
    waiting: list[bool] = []
    call: Any = SimpleNamespace(
        name="call",
        ended=False,
        leg=SimpleNamespace(security=""),
        link=SimpleNamespace(port=object(), await_keys=waiting.append),
        getStreamInfo=lambda _index: SimpleNamespace(proto=pj.PJMEDIA_TP_PROTO_DTLS),
        dump=lambda *_how: status,
        _audio_index=0,
        _keys_until=time.monotonic() + left_s,
    )
    assert SipCall.keys_known(call) is known
    assert waiting == [not known]


@pytest.mark.parametrize(
    ("event", "code", "told"),
    [
        (pj.PJSIP_EVENT_TIMER, 408, (0, "nobody answered the INVITE; check trunk.outbound_proxy")),
        (pj.PJSIP_EVENT_RX_MSG, 408, (408, "Said")),
        (pj.PJSIP_EVENT_TRANSPORT_ERROR, 503, (0, "Said; check trunk.outbound_proxy")),
    ],
    ids=["timer B", "a response", "no connection"],
)
def test_a_call_that_nobody_answers_is_told_from_one_that_somebody_refuses(
    event: int, code: int, told: tuple[int, str]
) -> None:
    trunk = SimpleNamespace(outbound_proxy="192.0.2.1", registrar="", transport="udp")
    call: Any = SimpleNamespace(account=SimpleNamespace(trunk=trunk))
    state = SimpleNamespace(
        type=pj.PJSIP_EVENT_TSX_STATE,
        body=SimpleNamespace(tsxState=SimpleNamespace(type=event)),
    )
    found, reason = SipCall._why_not_answered(call, state, code, "Said")
    assert (found, reason.removesuffix(", trunk.transport")) == told
