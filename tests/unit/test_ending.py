# SPDX-License-Identifier: GPL-2.0-or-later
"""The taxonomy of endings, row by row."""

from __future__ import annotations

import re

import pytest

from gateway.ending import EndReason, ending_of, reason_header, refusal_code

TABLE = {
    EndReason.REMOTE_HANGUP: ("caller", 487, 16),
    EndReason.CANCELLED: ("caller", 487, 16),
    EndReason.AGENT_HANGUP: ("model", 480, 16),
    EndReason.SESSION_CLOSED: ("model", 480, 16),
    EndReason.SESSION_ERROR: ("model", 503, 41),
    EndReason.SESSION_LOST: ("network", 503, 41),
    EndReason.SESSION_UNREACHABLE: ("network", 503, 41),
    EndReason.SESSION_REFUSED: ("model", 503, 41),
    EndReason.LEG_TIMEOUT: ("network", 480, 41),
    EndReason.RTP_TIMEOUT: ("network", 480, 102),
    EndReason.MAX_DURATION: ("gateway", 480, 102),
    EndReason.BUDGET: ("gateway", 480, 31),
    EndReason.SHUTDOWN: ("operator", 503, 41),
    EndReason.NO_ROUTE: ("gateway", 404, 1),
    EndReason.OVER_CAPACITY: ("gateway", 503, 34),
    EndReason.NO_COMMON_CODEC: ("gateway", 488, 88),
    EndReason.REFUSED: ("gateway", 480, 21),
    EndReason.INTERNAL_ERROR: ("gateway", 500, 41),
}


@pytest.mark.parametrize(("why", "row"), TABLE.items())
def test_row(why: EndReason, row: tuple[str, int, int]) -> None:
    party, code, cause = row
    assert refusal_code(why) == code
    assert f";cause={cause};" in reason_header(why)
    assert ending_of(why, answered=False).by == party


@pytest.mark.parametrize("why", EndReason)
def test_every_ending_is_one_that_sip_can_say(why: EndReason) -> None:
    found = re.fullmatch(r'Q\.850;cause=(\d+);text="[A-Za-z0-9 ]+"', reason_header(why))
    assert found is not None
    assert 1 <= int(found[1]) <= 127
    assert 400 <= refusal_code(why) <= 699
    refused = ending_of(why, answered=False, detail="d")
    assert (refused.why, refused.sip_code) == (why, refusal_code(why))
    assert (refused.reason, refused.detail) == (reason_header(why), "d")
    assert ending_of(why, answered=True).sip_code == 200


def test_the_peers_own_reason_is_kept_even_if_it_gave_none() -> None:
    assert (
        ending_of(EndReason.REMOTE_HANGUP, answered=True, reason="SIP;cause=200").reason
        == "SIP;cause=200"
    )
    assert ending_of(EndReason.REMOTE_HANGUP, answered=True, reason="").reason == ""
