# SPDX-License-Identifier: GPL-2.0-or-later
"""REFER of theirs and ours, and calls that take another's place."""

from __future__ import annotations

import re
from types import SimpleNamespace
from typing import Any, cast

import pytest

from gateway.audio import Codec
from gateway.sip.leg import Leg
from gateway.sip.rtp import QualityMeter, RtpCounters, StreamCounters
from gateway.sip.transfer import ReferSubscriptions, TransferableCall


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
