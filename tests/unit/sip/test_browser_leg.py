# SPDX-License-Identifier: GPL-2.0-or-later
"""A leg in a browser: what page and owner are told, in which order, and its audio."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any, cast

import pjsua2 as pj
import pytest
from structlog.testing import capture_logs

from gateway.audio import FRAME_BYTES, Codec
from gateway.sip import browser_leg
from gateway.sip.browser_leg import IDLE_FRAMES, LOOK_FRAMES, MIXED_FRAMES, BrowserCall, BrowserEnd
from gateway.sip.call_audio import CallAudio, Source
from gateway.sip.leg import Leg, LegEnd, ReferProgress

FRAME = bytes(range(1, FRAME_BYTES + 1))


class Page:
    """A leg in a browser: what the page (dicts) and the leg's owner (names, values) are told."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.told: list[Any] = []
        self.full = False
        self.ended = 0
        self.link = SimpleNamespace(partner=None, done=[])
        for name in ("take_port", "wire", "disconnect", "close"):
            setattr(self.link, name, lambda *_given, name=name: self.link.done.append(name))
        monkeypatch.setattr(browser_leg, "ConferenceLink", lambda *_given, **_more: self.link)
        thread: Any = SimpleNamespace(
            post=lambda command: command(), to_loop=lambda callback, *given: callback(*given)
        )
        self.leg = Leg(thread, cast(Any, SimpleNamespace(call_id="c1")))
        self.leg.handler = cast(Any, self)
        self.leg.audio = CallAudio(Codec.PCMU, 100)
        self.end = BrowserEnd(self.leg, thread, self.told.append)
        pool = SimpleNamespace(
            take=self._take, give_back=lambda _port: self.link.done.append("port")
        )
        services: Any = SimpleNamespace(thread=thread, sounds=None, pool=pool)
        self.call = BrowserCall(services, self.end, self._over)

    def _take(self, _audio: CallAudio) -> Any:
        if self.full:
            raise pj.Error
        return object()

    def _over(self, _call: BrowserCall) -> None:
        self.ended += 1

    def __getattr__(self, name: str) -> Any:
        if not name.startswith("on_"):
            raise AttributeError(name)
        return lambda *given: self.told.append((name, *given))


@pytest.fixture
def page(monkeypatch: pytest.MonkeyPatch) -> Page:
    return Page(monkeypatch)


def test_a_call_from_ringing_to_its_answer(page: Page) -> None:
    page.leg.ring()
    assert page.told == [{"type": "ringing"}]
    assert page.link.done == [], "no media while it rings"
    page.leg.progress()
    page.leg.answer()
    assert page.told[1:] == [
        ("on_media", Codec.PCMU), {"type": "progress"}, {"type": "answered"}, ("on_confirmed",),
    ]  # fmt: skip
    assert page.link.done == ["take_port", "wire"], "once"
    assert page.leg.security == "browser"


@pytest.mark.parametrize(
    ("answered", "end"),
    [
        (True, LegEnd(200, "Normal call clearing", "BYE", "", local=False)),
        (False, LegEnd(487, "Request Terminated", "CANCEL", "", local=False)),
    ],
)
def test_a_page_that_leaves_ends_as_a_telephone_does(
    page: Page, answered: bool, end: LegEnd
) -> None:
    if answered:
        page.leg.answer()
    page.told.clear()
    page.link.done.clear()
    for _ in range(2):
        page.end.leave()
    page.leg.hang_up()
    ended = {"type": "ended", "code": end.code, "reason": end.reason}
    assert page.told == [ended, ("on_ended", end)], "once"
    assert page.link.done == ["disconnect", "close", *(["port"] if answered else [])]
    assert (page.ended, page.leg.call) == (1, None)


@pytest.mark.parametrize(
    ("answered", "code", "told"),
    [(False, 486, 486), (False, 0, 603), (True, 0, 200), (True, 503, 200)],
)
def test_an_end_of_ours_is_told_with_its_reason(
    page: Page, answered: bool, code: int, told: int
) -> None:
    if answered:
        page.leg.answer()
    page.leg.refuse(code, {"Reason": 'SIP;cause=486;text="Nobody is there"'})
    assert page.told[-1] == ("on_ended", LegEnd(told, "Nobody is there", "", "", local=True))


def test_a_bridge_without_a_place_ends_this_call_only(page: Page) -> None:
    page.full = True
    with capture_logs() as logs:
        page.leg.answer()
    assert page.told[-1] == ("on_ended", LegEnd(503, "Gateway error", "", "", local=True))
    assert [one["event"] for one in logs] == ["sip.call_failed"]


def test_a_defect_ends_this_call_only(page: Page) -> None:
    page.link.play = None  # cannot be called
    with capture_logs():
        page.leg.play("ring")
    assert page.told[-1] == ("on_ended", LegEnd(500, "Gateway error", "", "", local=True))
    page.leg.play("ring")
    assert page.ended == 1


def test_a_page_cannot_be_sent_elsewhere(page: Page) -> None:
    told: list[ReferProgress] = []
    page.leg.refer("sip:1@x", told.append)
    other = Leg(cast(Any, page.leg)._thread, cast(Any, SimpleNamespace(call_id="c2")))
    other.call = cast(Any, SimpleNamespace(ended=False))
    page.leg.refer_to(other, told.append)
    assert [(one.code, one.final) for one in told] == [(501, True)] * 2
    assert page.ended == 0


def test_digits_go_both_ways(page: Page) -> None:
    page.end.press("5")
    page.leg.press("#", "info")
    page.leg.handler = None
    page.end.press("6")
    assert page.told == [("on_digit", "5"), {"type": "dtmf", "digit": "#"}]


def test_what_the_page_says_goes_to_the_session(page: Page) -> None:
    assert page.leg.audio is not None
    page.leg.audio.uplink.listen(Source.PACKETS)
    page.end.say(FRAME * 3)
    assert page.leg.audio.uplink.drain() == FRAME * 3
    assert (page.end.received, len(page.end.audio.playout)) == (3, 0), "nobody else hears it"
    page.leg.audio = None
    page.end.say(FRAME)
    page.call.poll_quality()
    assert page.told[-1][1].rx_packets == 4


def test_what_other_legs_hear_is_never_late_for_long(page: Page) -> None:
    """The bridge takes a frame every 20 ms; what is queued all the time only adds delay."""
    page.link.partner = object()
    queue = page.end.audio.playout
    page.end.say(FRAME * MIXED_FRAMES)
    assert (len(queue), page.end.skipped) == (MIXED_FRAMES, 0)
    page.end.say(FRAME)
    assert (len(queue), page.end.skipped) == (1, MIXED_FRAMES), "a burst"
    page.end.say(FRAME * IDLE_FRAMES)
    for _ in range(LOOK_FRAMES - MIXED_FRAMES - IDLE_FRAMES - 2):
        queue.pull()
        page.end.say(FRAME)
    kept = page.end.skipped
    for _ in range(2 * LOOK_FRAMES):
        queue.pull()
        page.end.say(FRAME)
    assert page.end.skipped > kept
    assert len(queue) <= IDLE_FRAMES
    kept = page.end.skipped
    page.end.say(FRAME)
    for _ in range(3 * LOOK_FRAMES):
        queue.pull()
        page.end.say(FRAME)
    assert page.end.skipped == kept, "one that is short stays"
