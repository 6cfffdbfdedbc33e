# SPDX-License-Identifier: GPL-2.0-or-later
"""The caller's leg and the B-leg of a transfer."""

from __future__ import annotations

from typing import Any

import pytest

from gateway.audio import Codec
from gateway.bridge.legs import DialRefusedError, Legs, OutboundTarget
from gateway.call import inputs, outputs
from gateway.sip.leg import LegEnd, ReferProgress
from gateway.sip.rtp import RtpQuality
from tests.support.call_fakes import FakeLeg, Fed

BYE = LegEnd(200, "OK", "BYE", "Q.850;cause=16", False)
QUALITY = RtpQuality(rx_packets=50, rx_lost=1, rx_jitter_ms=2.5, tx_packets=49)


class Audio:
    """As much of a call's audio as legs look at."""

    codec = Codec.PCMA


class Call:
    """The legs of a call that came in, or that is placed."""

    def __init__(self, target: OutboundTarget | None = None, **more: Any) -> None:
        self.fed = Fed()
        self.main = FakeLeg("sip-1")
        self.dialled: list[tuple[str, list[Codec], str]] = []
        self.caller_ids: list[str] = []
        self.b_legs: list[FakeLeg] = []
        self.refusal = ""
        self.legs = Legs(
            self.fed.host,
            self.main.leg if target is None else target,
            Audio(),  # type: ignore[arg-type]
            dial=self._dial,
            **more,
        )
        self.legs.take()

    def _dial(
        self,
        uri: str,
        handler: Any,
        audio: Any,
        codecs: list[Codec],
        trunk: str,
        by_pattern: bool = False,
        caller_id: str = "",
    ) -> Any:
        if self.refusal:
            raise DialRefusedError(self.refusal)
        self.dialled.append((uri, codecs, trunk))
        self.caller_ids.append(caller_id)
        leg = FakeLeg(f"sip-{len(self.dialled) + 1}")
        leg.handler, leg.audio = handler, audio
        self.b_legs.append(leg)
        return leg

    def do(self, output: outputs.Output) -> None:
        """As the machine says."""
        self.legs.executors[type(output)](output)


def test_what_happens_to_the_callers_leg_is_told_and_recorded() -> None:
    call = Call()
    handler = call.main.handler
    handler.on_media(Codec.PCMA)
    handler.on_confirmed()
    handler.on_digit("5")
    handler.on_quality(QUALITY)
    handler.on_ended(BYE)
    assert call.fed.take() == [
        inputs.MediaUp(Codec.PCMA),
        inputs.Confirmed(),
        inputs.DigitPressed("5"),
        inputs.RtpStats(50, True),
        inputs.LegEnded(200, "OK", "BYE", "Q.850;cause=16", False),
    ]
    assert call.fed.record.leg.security == "rtp"
    assert call.fed.record.media.rtp["rx_lost"] == 1
    assert call.legs.caller_gone


def test_a_record_that_is_written_is_not_changed_any_more() -> None:
    call = Call()
    call.fed.over = True
    call.main.handler.on_quality(QUALITY)
    call.main.handler.on_ended(BYE)
    assert call.fed.record.media.rtp == {}
    assert call.fed.take() == []


def test_a_call_that_a_rule_of_ours_forbids_ends_as_403() -> None:
    call = Call(OutboundTarget("sip:b@x", "carrier", (Codec.PCMU,)))
    call.refusal = "outbound.max_concurrent_calls = 4"
    call.do(outputs.Dial())
    assert call.fed.take() == [inputs.LegEnded(403, call.refusal, "", "", True)]


def test_a_call_that_is_placed() -> None:
    call = Call(OutboundTarget("sip:b@x", "carrier", (Codec.PCMU,)))
    call.do(outputs.Dial())
    assert call.dialled == [("sip:b@x", [Codec.PCMU], "carrier")]
    handler = call.b_legs[0].handler
    handler.on_ringing(100)
    handler.on_ringing(180)
    assert call.fed.take() == [inputs.RemoteRinging(180)]


def test_a_b_leg_has_the_law_of_the_caller_first_and_its_own_record() -> None:
    call = Call()
    call.do(outputs.DialBLeg("sip:desk@x", "carrier"))
    assert call.dialled == [("sip:desk@x", [Codec.PCMA, Codec.PCMU], "carrier")]
    call.fed.ms = 1500.0
    call.b_legs[0].handler.on_confirmed()
    call.do(outputs.BridgeLegs(listen=False))
    call.fed.ms = 9000.0
    call.b_legs[0].handler.on_ended(BYE)
    assert call.fed.take() == [inputs.BLegAnswered(), inputs.BLegEnded(200, "OK", "BYE", False)]
    (record,) = call.fed.record.actions.b_legs
    assert (record.sip_call_id, record.answered_ms, record.ended_ms) == ("sip-2", 1500.0, 9000.0)
    assert call.main.done == [("join", call.b_legs[0], False, None)]


def test_the_b_leg_of_an_earlier_attempt_is_not_told_of_any_more() -> None:
    call = Call()
    call.do(outputs.DialBLeg("sip:one@x"))
    call.do(outputs.DialBLeg("sip:two@x"))
    call.b_legs[0].handler.on_ended(LegEnd(486, "Busy Here", "", "", False))
    assert call.fed.take() == []
    call.do(outputs.SendDtmf("1", "auto", b_leg=True))
    assert (call.b_legs[0].verbs, call.b_legs[1].verbs) == ([], ["press"])
    assert [one.sip_code for one in call.fed.record.actions.b_legs] == [486, 0]


def test_a_b_leg_that_a_rule_of_ours_forbids() -> None:
    call = Call()
    call.refusal = "outbound.denied_prefixes"
    call.do(outputs.DialBLeg("tel:+1900"))
    call.do(outputs.HangUpBLeg())
    assert call.fed.take() == [inputs.BLegEnded(403, call.refusal, "", True)]
    assert call.fed.record.actions.b_legs[0].sip_code == 403


def test_a_blind_transfer_and_its_outcome() -> None:
    call = Call()
    call.do(outputs.Refer("sip:desk@x"))
    ((verb, target, tell),) = call.main.done
    assert (verb, target) == ("refer", "sip:desk@x")
    tell(ReferProgress(200, "OK", True))
    assert call.fed.take() == [inputs.ReferProgress(200, "OK", True)]


def test_a_transfer_that_a_rule_of_ours_forbids_is_not_sent() -> None:
    def forbid(_uri: str, _by_pattern: bool) -> None:
        raise DialRefusedError("outbound.denied_prefixes")

    call = Call(permit_refer=forbid)
    call.do(outputs.Refer("sip:+1900@x", by_pattern=True))
    assert call.main.done == []
    assert call.fed.take() == [
        inputs.ReferProgress(403, "outbound.denied_prefixes", True, by_us=True)
    ]


def test_an_attended_transfer_refers_the_caller_to_the_b_leg() -> None:
    call = Call()
    call.do(outputs.DialBLeg("sip:desk@x"))
    call.do(outputs.Refer(replaces=True))
    assert call.main.done[0][:2] == ("refer_to", call.b_legs[0])


def test_a_caller_who_moves_is_followed() -> None:
    call = Call()
    successor = FakeLeg("sip-9", from_uri="sip:elsewhere@x")
    call.main.on_replaced(successor)
    assert call.main.verbs == ["hang_up"]
    assert call.main.handler is None
    assert call.fed.take() == [inputs.CallerReplaced("sip:elsewhere@x")]
    call.do(outputs.HangUp())
    assert successor.verbs == ["hang_up"]
    call.legs.finish()
    assert call.fed.record.sip_call_id == "sip-9"


def test_a_defect_ends_the_call() -> None:
    call = Call()
    call.main.handler.on_quality(None)
    assert [type(error) for error in call.fed.faults] == [AttributeError]


def test_a_b_leg_that_may_not_be_dialled_ends_when_it_is_refused() -> None:
    call = Call()
    call.refusal = "outbound.max_concurrent_calls = 4"
    call.fed.ms = 1500.0
    call.do(outputs.DialBLeg("sip:desk@x", "carrier"))
    call.fed.ms = 60_000.0
    call.legs.finish()
    (record,) = call.fed.record.actions.b_legs
    assert (record.sip_code, record.ended_ms) == (403, 1500.0)


@pytest.mark.parametrize("over", [False, True])
def test_a_leg_that_takes_over_from_one_that_was_hung_up_is_hung_up_too(over: bool) -> None:
    call, successor = Call(), FakeLeg("sip-9")
    call.do(outputs.HangUp({"Reason": "Q.850;cause=16"}))
    call.fed.over = over
    call.main.on_replaced(successor.leg)
    assert ("hang_up", {"Reason": "Q.850;cause=16"}) in successor.done
    successor.handler.on_ended(BYE)
    ends = [one for one in call.fed.take() if isinstance(one, inputs.LegEnded)]
    assert len(ends) == (0 if over else 1)
