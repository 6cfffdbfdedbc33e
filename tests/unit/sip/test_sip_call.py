# SPDX-License-Identifier: GPL-2.0-or-later
"""What a call of the library's is asked: keys of SRTP, sounds, why nobody answered."""

from __future__ import annotations

import re
import time
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any, cast

import pjsua2 as pj
import pytest

from gateway.audio import Codec
from gateway.sip.call_audio import CallAudio
from gateway.sip.leg import Leg
from gateway.sip.rtp import QualityMeter, RtpCounters, StreamCounters
from gateway.sip.sip_call import SipCall
from gateway.sip.transfer import ReferSubscriptions, TransferableCall

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


def test_the_sessions_audio_waits_for_the_end_of_a_sound() -> None:
    """The SIP thread ends a sound, and may be late."""
    posted: list[Callable[[], None]] = []
    played: list[str] = []
    leg = Leg(
        cast(Any, SimpleNamespace(post=posted.append)), cast(Any, SimpleNamespace(call_id=""))
    )
    leg.audio = audio = CallAudio(Codec.PCMU, 10)
    leg.call = cast(
        Any, SimpleNamespace(ended=False, run=lambda do: do(leg.call), play=played.append)
    )
    leg.play("ringback")
    leg.play("")
    audio.playout.put(bytes(160))
    assert audio.playout.pull() is None
    for run in posted:
        run()
    assert played == ["ringback", ""]
    assert audio.playout.pull() is not None


@pytest.mark.parametrize("codec", [None, Codec.PCMA], ids=["INVITE with Replaces", "REFER"])
def test_a_successor_tells_its_owner_that_nobody_holds_it(codec: Codec | None) -> None:
    """Who transfers us to somebody else has put us on hold before."""
    told: list[Any] = []
    thread: Any = SimpleNamespace(to_loop=lambda what, *args: what(*args))
    invite = cast(Any, SimpleNamespace(call_id=""))
    handler: Any = SimpleNamespace(on_hold=told.append, on_media=told.append)

    def call(held: bool, codec: Codec | None) -> Any:
        link = SimpleNamespace(take_over=lambda _link: None)
        services = SimpleNamespace(thread=thread)
        leg = Leg(thread, invite)
        meter = QualityMeter()
        return SimpleNamespace(
            leg=leg, held=held, codec=codec, link=link, services=services, meter=meter
        )

    def on_replaced(successor: Leg) -> None:
        successor.handler = handler

    old, new = call(True, Codec.PCMU), call(False, codec)
    old.leg.on_replaced = on_replaced
    meter = old.meter
    meter.read(RtpCounters(rx=StreamCounters(100)))
    TransferableCall.take_over(new, old)
    assert new.meter is meter
    counts = meter.read(RtpCounters(rx=StreamCounters(300)))
    assert counts.rx_packets == 400, "the counts of a call go on"
    assert told == ([] if codec is None else [codec]) + [False]


@pytest.mark.parametrize(
    ("why", "known", "permit_followed", "rule"),
    [
        ("unknown host", False, None, None),
        ("outbound: others could not be asked", True, object(), None),
        ("outbound: a cap", True, object(), "a cap"),
    ],
)
def test_a_refer_that_is_declined_counts_for_no_rate(
    why: str, known: bool, permit_followed: object, rule: str | None
) -> None:
    counted: list[str] = []
    told: list[str] = []
    call: Any = SimpleNamespace(
        leg=SimpleNamespace(
            on_refer=None, on_replaced=print, allowed_refer_to=re.compile("sip:desk@pbx")
        ),
        services=SimpleNamespace(
            calls=SimpleNamespace(
                permit=None if rule is None else SimpleNamespace(rule=rule),
                permit_followed=permit_followed,
                may_follow_refer=counted.append,
            ),
            names=SimpleNamespace(known=lambda _host: known, resolve_soon=None),
            thread=SimpleNamespace(to_loop=lambda *_what: None),
        ),
        remark=lambda _level, _event, **facts: told.append(facts["why"]),
        _followers=[],
    )
    prm = SimpleNamespace(dstUri="<sip:desk@pbx>", statusCode=0)
    TransferableCall.onCallTransferRequest(call, prm)
    assert (told, prm.statusCode, counted) == ([why], 603, [])


def _two_refers() -> ReferSubscriptions:
    """A first REFER of CSeq 5, taken, and a second of CSeq 7, without a response yet."""
    found = ReferSubscriptions()
    found.begin()
    found.on_sent("5", "<sip:desk@pbx>")
    found.on_response("5")
    assert found.take() == (True, "5")
    found.begin()
    found.on_sent("7", "<sip:mobile@pbx>")
    return found


def test_every_status_is_of_the_only_refer() -> None:
    found = ReferSubscriptions()
    found.begin()
    found.on_sent("5", "<sip:desk@pbx>")
    assert found.take() == (True, ""), "it has expired"
    for event_id in ("", "5", "of another dialog"):
        found.on_notify(event_id)
        assert found.take()[0], event_id


def test_a_refer_that_had_no_response_is_not_the_next_one() -> None:
    found = _two_refers()
    found.on_response("5")
    assert found.take() == (False, "5")
    assert found.take() == (False, ""), "a subscription has expired, of either"
    found.on_response("7")
    assert found.take() == (True, "7")


def test_a_notify_without_id_is_of_the_last_refer_unless_that_is_named_or_has_no_response() -> None:
    found = _two_refers()
    found.on_notify("")
    assert not found.take()[0]
    found.on_response("7")
    found.on_notify("")
    assert found.take()[0]
    found.on_notify("7")
    assert found.take()[0]
    found.on_notify("")
    assert not found.take()[0]


def test_ids_that_are_no_cseq_of_ours_are_told_apart_too() -> None:
    """A B2BUA numbers the requests of each side by itself."""
    found = ReferSubscriptions()
    for number, event_id in (("5", "105"), ("7", "107")):
        found.begin()
        found.on_sent(number, "<sip:desk@pbx>")
        found.on_response(number)
        assert found.take()[0]
        found.on_notify(event_id)
        assert found.take()[0]
    found.on_notify("105")
    assert not found.take()[0]


def test_a_refer_sent_again_with_credentials_has_another_id() -> None:
    """Nothing is told of the 401 before it."""
    found = _two_refers()
    found.on_sent("8", "<sip:mobile@pbx>")
    found.on_response("8")
    assert found.take() == (True, "8")
    found.on_sent("9", "<sip:desk@pbx>")
    found.on_response("9")
    assert found.take() == (False, "9")
    found.on_notify("9")
    assert not found.take()[0]
    found.on_notify("8")
    assert found.take()[0]
