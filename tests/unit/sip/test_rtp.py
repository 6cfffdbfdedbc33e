# SPDX-License-Identifier: GPL-2.0-or-later
"""From RTCP's counters to the quality that is told of a call."""

from __future__ import annotations

import pytest

from gateway.sip.rtp import CallQuality, QualityMeter, RtpCounters, StreamCounters, mos_of, r_factor


@pytest.mark.parametrize(
    ("loss", "delay", "mos"),
    [
        # G.107: the default line has R 93.2, which annex B makes 4.41.
        (0, 0, 4.41),
        (0, 100, 4.36),
        (0, 177.3, 4.31),
        (0, 300, 3.71),
        (1, 60, 4.29),
        (3, 60, 4.08),
        (5, 60, 3.86),
        (10, 60, 3.34),
        (20, 60, 2.56),
        (100, 60, 1.14),
        (100, 2000, 1.0),
    ],
)
def test_mos(loss: float, delay: float, mos: float) -> None:
    assert mos_of(r_factor(loss, delay)) == pytest.approx(mos, abs=0.015)


def test_mos_only_falls_and_stays_in_its_range() -> None:
    scores = [mos_of(r_factor(loss, 40)) for loss in range(101)]
    assert scores == sorted(scores, reverse=True)
    assert mos_of(-5) == 1.0
    assert mos_of(120) == 4.5
    assert all(1.0 <= mos_of(r / 10) <= 4.5 for r in range(1000))


def _rx(packets: int, lost: int = 0, **other: float) -> RtpCounters:
    rx = StreamCounters(packets, lost, jitter_ms=other.pop("jitter_ms", 0.0))
    return RtpCounters(rx, **other)  # type: ignore[arg-type]


def test_each_reading_is_of_its_own_second() -> None:
    meter = QualityMeter()
    first = meter.read(_rx(50, jitter_ms=1.0, rtt_ms=40.0, buffer_ms=40.0))
    assert first.rx is not None
    assert (first.rx.loss_percent, first.rx.jitter_ms) == (0.0, 1.0)
    assert first.rx.mos == pytest.approx(mos_of(r_factor(0, 20 + 20 + 40)))
    second = meter.read(_rx(95, 5, rtt_ms=40.0, buffer_ms=40.0))
    assert second.rx is not None
    assert second.rx.loss_percent == pytest.approx(10.0)
    third = meter.read(_rx(135, 5, discarded=10, rtt_ms=40.0))
    assert third.rx is not None
    assert third.rx.loss_percent == pytest.approx(20.0), "what came too late was not heard either"
    assert meter.read(_rx(135, 5, discarded=10)).rx is None, "nothing was to come"
    assert meter.read(_rx(185, 4, discarded=10)).rx is not None, "a late one filled a gap"


def test_what_we_send_is_as_the_other_side_tells_it() -> None:
    meter = QualityMeter()
    assert meter.read(RtpCounters(tx=StreamCounters(50))).tx is None
    told = meter.read(
        RtpCounters(tx=StreamCounters(100, 10, jitter_ms=30.0, reports=1), rtt_ms=10.0)
    )
    assert told.tx is not None
    assert told.tx.loss_percent == pytest.approx(10.0)
    assert told.tx.mos == pytest.approx(mos_of(r_factor(10, 5 + 20 + 60)))
    assert meter.read(RtpCounters(tx=StreamCounters(150, 10, reports=1))).tx == told.tx, (
        "until it tells anew"
    )
    again = meter.read(RtpCounters(tx=StreamCounters(200, 10, reports=2)))
    assert again.tx is not None
    assert again.tx.loss_percent == 0.0
    assert (again.tx_lost, again.tx_reports) == (10, 2)


def test_a_new_stream_of_the_call_begins_at_nothing_and_its_totals_do_not() -> None:
    meter = QualityMeter()
    meter.read(_rx(500, 20, discarded=3))
    after = meter.read(_rx(40, 0))
    assert after.rx is not None
    assert after.rx.loss_percent == 0.0
    assert (after.rx_packets, after.rx_lost, after.rx_discarded) == (540, 20, 3)
    assert meter.read(_rx(90, 0)).rx_packets == 590


def test_the_stream_of_a_successor_may_have_had_more_packets() -> None:
    meter = QualityMeter()
    meter.read(_rx(100, 20))
    meter.begin_stream()
    after = meter.read(_rx(300, 0))
    assert after.rx is not None
    assert after.rx.loss_percent == 0.0
    assert (after.rx_packets, after.rx_lost) == (400, 20)
    assert meter.read(_rx(350, 0)).rx_packets == 450


def test_a_call_has_the_least_the_mean_and_the_most() -> None:
    meter, call = QualityMeter(), CallQuality()
    call.add(meter.read(_rx(50, jitter_ms=2.0, rtt_ms=20.0, buffer_ms=40.0)))
    call.add(meter.read(_rx(90, 10, jitter_ms=6.0, rtt_ms=40.0, buffer_ms=60.0)))
    told = call.add(meter.read(_rx(90, 10, rtt_ms=40.0)))
    assert told["rx"]["jitter_ms"] == {"min": 2.0, "mean": 4.0, "max": 6.0}
    assert told["rx"]["mos"]["max"] == pytest.approx(4.37, abs=0.01)
    assert told["rx"]["mos"]["min"] == pytest.approx(2.46, abs=0.05)
    assert (told["rx"]["packets"], told["rx"]["lost"], told["rx"]["lost_percent"]) == (90, 10, 10.0)
    assert told["rtt_ms"] == {"min": 20.0, "mean": 33.3, "max": 40.0}
    assert told["buffer_ms"] == {"min": 40.0, "mean": 50.0, "max": 60.0}
    assert told["tx"] is None


def test_a_call_without_media_has_no_quality() -> None:
    assert CallQuality().add(QualityMeter().read(RtpCounters()))["rx"]["mos"] is None
