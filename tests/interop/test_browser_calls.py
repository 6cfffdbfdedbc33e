# SPDX-License-Identifier: GPL-2.0-or-later
"""Calls from the console's page in a real Chromium, whose microphone plays a file; listened to."""

from __future__ import annotations

import asyncio
import base64
import re
import time
import wave
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from playwright.async_api import Page, expect

from gateway.audio import Codec
from gateway.devtools.emulator.session_log import SessionRecord
from gateway.devtools.speech import resample, synthesise
from tests.calls.conftest import shared_world, world
from tests.calls.test_api import API, TOKENS, Client
from tests.calls.test_browser_calls import page as websocket
from tests.interop.test_console import address, browser, examined, logged_in
from tests.support import figures
from tests.support.browser import PROGRAM, TELEPHONE, WITHIN_MS, Browser
from tests.support.harness import GatewayStack, eventually

__all__ = ["browser", "shared_world", "world"]

pytestmark = [
    pytest.mark.interop,
    pytest.mark.skipif(not PROGRAM.exists(), reason="Chromium is not installed"),
]
WORLD = {
    "more": API.replace("[api]\n", "[api]\nbrowser_calls = 2\n"),
    "routes": '[[route]]\nname = "keypad"\nto = "^keypad$"\ndtmf.finish_on_key = "#"\n',
}
SAID = "The quick brown fox jumps over the lazy dog and the seven little sheep"
RATE = 48000
ALIKE = 0.8
"""Of the loudness; a microphone's filters change some of it."""


@pytest.fixture(scope="module")
def microphone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Half a second of silence, and a sentence."""
    spoken, rate = synthesise(SAID)
    path = tmp_path_factory.mktemp("microphone") / "said.wav"
    samples = np.frombuffer(spoken, np.int16)
    at = np.arange(int(len(samples) * RATE / rate)) * rate / RATE
    sound = np.interp(at, np.arange(len(samples)), samples).astype(np.int16)
    with wave.open(str(path), "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(RATE)
        file.writeframes(bytes(RATE) + sound.tobytes())
    return path


@pytest.fixture(scope="module")
def chromium(runner: asyncio.Runner, microphone: Path) -> Iterator[Browser]:
    """One browser for all tests."""
    made = Browser(f"--use-file-for-fake-audio-capture={microphone}%noloop")
    runner.run(made.start())
    yield made
    runner.run(made.stop())


def envelope(audio: bytes, smooth: int = 5) -> Any:
    """How loud each 10 ms of G.711 is, as a mean of so many."""
    linear = np.frombuffer(Codec.PCMU.to_linear(audio), np.int16).astype(float)
    power = (linear[: len(linear) // 80 * 80].reshape(-1, 80) ** 2).mean(axis=1)
    loudness = np.sqrt(np.convolve(power, np.ones(smooth) / smooth, "same"))
    return loudness + 1e-6 * np.arange(len(loudness))  # silence correlates with nothing


def likeness(said: bytes, heard: bytes) -> float:
    """How alike in loudness both are, -1 to 1: the mean of seconds that follow on one another.

    Each may be half a second off, as a busy machine leaves gaps.
    """
    one, other = envelope(said), envelope(heard)
    found: list[float] = []
    places = range(max(0, len(other) - 100))
    for start in range(0, len(one) - 99, 100):
        piece = one[start : start + 100]
        alike = [(float(np.corrcoef(piece, other[at : at + 100])[0, 1]), at) for at in places]
        best, place = max(alike, default=(0.0, 0))
        found.append(best)
        places = range(place + 50, min(place + 151, len(other) - 100))
    return sum(found) / len(found)


TAP = """
const connect = AudioNode.prototype.connect;
AudioNode.prototype.connect = function (to, ...rest) {
  if (to instanceof AudioDestinationNode) {
    const size = window.wall ? 256 : 4096;
    const tap = this.context.createScriptProcessor(size, 1, 1);
    window.heard = [];
    window.heardRate = this.context.sampleRate;
    tap.onaudioprocess = ({ inputBuffer, playbackTime }) => {
      const loud = inputBuffer.getChannelData(0).findIndex((one) => Math.abs(one) > 0.02);
      const at = playbackTime + (loud - size) / this.context.sampleRate;
      if (loud >= 0) window.loud ??= window.wall?.(this.context, at);
      const samples = Int16Array.from(inputBuffer.getChannelData(0), (one) => one * 32767);
      window.heard.push(String.fromCharCode(...new Uint8Array(samples.buffer)));
    };
    connect.call(this, tap);
    connect.call(tap, to);
  }
  return connect.call(this, to, ...rest);
};
"""
"""Keeps what a page plays, on its way to the loudspeaker."""


FIRST_HEARD = """async () => {
  while (!window.loud) await new Promise((done) => setTimeout(done, 50));
  return window.loud;
}"""
"""When the page had something to play, by the wall clock (ms)."""


async def heard_by(page: Page) -> bytes:
    """What the page has played so far, as G.711."""
    rate, samples = await page.evaluate("[window.heardRate, btoa(window.heard.join(''))]")
    return Codec.PCMU.from_linear(resample(base64.b64decode(samples), rate, 8000))


async def calling(
    browser: Browser, world: GatewayStack, to: str, script: str = TAP, **options: Any
) -> Page:
    """A page in a call to this number."""
    page = await logged_in(browser, world, path=f"#/call/{to}", **options)
    await page.evaluate(f"() => {{ {script} }}")
    await page.get_by_role("button", name="Call", exact=True).click()
    await expect(page.get_by_text("Connected")).to_be_visible()
    return page


async def session_of(world: GatewayStack) -> SessionRecord:
    """The only one that is open."""
    await eventually(lambda: len(world.emulator.live) == 1, "a session")
    return next(one for one in world.emulator.sessions if one.id in world.emulator.live)


async def hung_up(page: Page) -> None:
    """Hang up in the page, and see that it says so."""
    await page.get_by_role("button", name="Hang up").click()
    await expect(page.get_by_text("The call is over")).to_be_visible()


async def test_both_hear_each_other(browser: Browser, world: GatewayStack) -> None:
    """The session hears the microphone, and the loudspeaker plays the agent."""
    text = "One moment please. I have found your booking for Saturday, the twenty third of May."
    first = {"kind": "say", "text": "Good morning. " + text}
    world.behave(answers=[first, {"kind": "say", "text": text}, {"kind": "silent"}])
    page = await calling(browser, world, "greeted")
    session = await session_of(world)
    said_so = page.get_by_role("log")
    await expect(said_so).to_contain_text("cut, not heard")
    await expect(said_so.get_by_text(text, exact=True)).to_be_visible(timeout=WITHIN_MS)
    await expect(page.get_by_text(re.compile("Delay: [0-9]+ ms to the gateway"))).to_be_visible()
    await session.wait_until(lambda s: len(s.sent("response.done")) == 2, 20)
    answer = bytes(list(session.sent_items.values())[-1])
    alike: list[float] = [0.0]

    async def played() -> bool:
        alike[0] = likeness(answer, await heard_by(page))
        return alike[0] > ALIKE

    await eventually(played, "the agent's answer at the loudspeaker", 20)
    spoken, rate = synthesise(SAID)
    said = Codec.PCMU.from_linear(resample(spoken, rate, 8000))
    alike.append(likeness(said, bytes(session.received)))
    figures.show("voice of a page, as the session got it", f"{alike[1]:.2f} alike")
    figures.show("the agent's voice, as a page played it", f"{alike[0]:.2f} alike")
    assert alike[1] > ALIKE
    await hung_up(page)
    await world.gateway.wait("call.summary", transport="browser")


async def test_the_caller_interrupts(browser: Browser, world: GatewayStack) -> None:
    """What is played of the agent's words is what the server is told, but for a jitter buffer."""
    world.behave(answers=[{"kind": "pattern", "seconds": 20, "seed": 1}, {"kind": "silent"}])
    page = await calling(browser, world, "greeted")
    session = await session_of(world)
    await session.wait_until(lambda s: s.truncations != [], 20)
    (cut,) = session.truncations
    heard: list[float] = []

    async def still() -> bool:
        heard[:] = envelope(await heard_by(page), 1)
        return len(heard) > 100 and max(heard[-50:-3]) < 200

    await eventually(still, "silence at the loudspeaker", 20)
    loud = 10 * sum(one > 2000 for one in heard)
    assert abs(loud - cut.requested_ms) <= 100, (loud, cut)
    await hung_up(page)


async def test_on_a_telephone_by_keyboard(browser: Browser, world: GatewayStack) -> None:
    world.behave(vad="off", answers=[{"kind": "silent"}])
    page = await logged_in(browser, world, path="#/call", screen=TELEPHONE)
    width = await page.evaluate("document.documentElement.scrollWidth")
    assert width <= TELEPHONE["width"], "nothing is cut off"
    await page.get_by_label("Number", exact=True).fill("keypad")
    await page.keyboard.press("Enter")
    await expect(page.get_by_text("Connected")).to_be_visible()
    await expect(page.get_by_role("button", name="Hang up")).to_be_focused()
    await page.keyboard.press("Tab")
    await expect(page.get_by_role("button", name="1", exact=True)).to_be_focused()
    await page.keyboard.press("4")
    await page.get_by_role("button", name="2", exact=True).click()
    await page.keyboard.press("#")
    await expect(page.get_by_label("Keys pressed")).to_have_text("42#")
    session = await session_of(world)
    await session.wait_until(lambda s: s.seen("conversation.item.create") != [], 30)
    assert "4 2" in str(session.seen("conversation.item.create")[0].body)
    mute = page.get_by_role("button", name="Mute")
    await mute.press("Enter")
    await expect(mute).to_have_attribute("aria-pressed", "true")
    await session.wait_until(lambda s: set(s.received[-4000:]) == {0xFF}, 30)
    await page.get_by_role("button", name="Hang up").press("Enter")
    await expect(page.get_by_text("The call is over")).to_be_visible()
    await expect(page.get_by_label("Number", exact=True)).to_be_focused()


async def test_no_finding_of_axe_in_a_call(browser: Browser, world: GatewayStack) -> None:
    world.behave(vad="off", answers=[{"kind": "say", "text": "Good morning."}])
    page = await calling(browser, world, "greeted", screen=TELEPHONE)
    await expect(page.get_by_role("log")).to_contain_text("Good morning.")
    await examined(page)
    await hung_up(page)
    await examined(page)


PARTS = """async () => {
  const { Resampler, JitterBuffer, coded } = await import("/console/phone.js");
  const { LAWS } = await import("/console/sound.js");
  const made = (from, to, hz) => {
    const out = [];
    const one = new Resampler(from, to);
    for (let at = 0; at < from; at += 128) {
      const sine = (_, i) => Math.sin((2 * Math.PI * hz * (at + i)) / from);
      one.push(Float32Array.from({ length: 128 }, sine), (sample) => out.push(sample));
    }
    const middle = out.slice(1000, -1000);
    const power = middle.reduce((sum, sample) => sum + sample * sample, 0) / middle.length;
    return { count: out.length, loud: Math.sqrt(2 * power) };
  };
  const rates = [
    [48000, 8000], [44100, 8000], [16000, 8000], [96000, 8000], [8000, 48000], [8000, 44100],
  ];
  const quiet = new Float32Array(160);
  const loud = new Float32Array(160).fill(0.3);
  const carried = (perSecond, seconds, gap = 0) => {
    const buffer = new JitterBuffer();
    const waits = [];
    let came = 0;
    for (let ms = 0; ms < seconds * 1000; ms++) {
      const due = ms > 5000 && ms < 5000 + gap ? came : Math.floor((ms * perSecond) / 1000);
      for (; came < due; came++) buffer.put(came % 5 ? loud : quiet);
      for (let sample = 0; sample < 8; sample++) buffer.next();
      waits.push(buffer.ms);
    }
    const { gaps, skipped, repeated, target } = buffer;
    return { gaps, skipped, repeated, target, most: Math.max(...waits), last: buffer.ms };
  };
  return {
    codes: Array.from({ length: 256 }, (_, code) => coded(LAWS.PCMU[code])),
    speech: rates.map(([from, to]) => ({ to, ...made(from, to, 1000) })),
    above: rates.slice(0, 4).map(([from, to]) => made(from, to, 6000).loud),
    fast: carried(50.5, 60),
    slow: carried(49.5, 60),
    stalled: carried(50, 20, 3000),
  };
}"""


async def test_rates_codes_and_clocks(browser: Browser, world: GatewayStack) -> None:
    """The parts of the page's audio, without a microphone."""
    page = await browser.page(address(world))
    found = await page.evaluate(PARTS)
    assert found["codes"] == [0xFF if code == 0x7F else code for code in range(256)]
    for one in found["speech"]:
        assert abs(one["loud"] - 1) < 0.02, one
        assert abs(one["count"] - one["to"]) < one["to"] / 100, one
    assert max(found["above"]) < 0.01, "what a telephone cannot carry becomes no other tone"
    fast, slow, stalled = found["fast"], found["slow"], found["stalled"]
    assert fast["most"] < 250, fast
    assert fast["skipped"] > 10, fast
    assert (slow["gaps"] <= 2, slow["repeated"] > 10) == (True, True), slow
    assert stalled["gaps"] >= 1, stalled
    assert stalled["most"] <= 1000, stalled
    assert stalled["last"] < 250, stalled


CLICK = (
    TAP
    + """
window.wall = (context, at) =>
  performance.timeOrigin + performance.now() + 1000 * (at - context.currentTime);
navigator.mediaDevices.getUserMedia = async () => {
  const context = new AudioContext();
  await context.resume();
  const tone = new OscillatorNode(context, { frequency: 700 });
  const microphone = context.createMediaStreamDestination();
  tone.connect(microphone);
  const at = context.currentTime + 3;
  tone.start(at);
  window.spoken = window.wall(context, at);
  return microphone.stream;
};
"""
)
"""A microphone that is silent for three seconds."""


async def test_how_long_a_word_takes(browser: Browser, world: GatewayStack) -> None:
    """From mouth to session, and from session to ear: figures, of the clocks of this machine."""
    world.behave(vad="off", answers=[{"kind": "nothing"}, {"kind": "pattern", "seconds": 1}])
    page = await calling(browser, world, "greeted", CLICK)
    session = await session_of(world)
    await session.wait_until(lambda s: len(s.received) > 8000, 20)
    async with Client(world, "operator") as http:
        (call,) = (await http.get("/api/v1/calls", params={"live": True})).json()["calls"]
        await http.post(f"/api/v1/calls/{call['id']}/say", json={"text": "One."})
    loud = await page.evaluate(FIRST_HEARD)
    began = time.time() - time.monotonic()
    answer = next(one for one in session.server_events if one.type.endswith("audio.delta"))
    figures.show(
        "delay of a page, session to loudspeaker", f"{loud - 1000 * (began + answer.at):.0f} ms"
    )
    quiet = Codec.PCMU.silence

    def heard_at() -> float:
        said = bytes(session.received)
        first = len(said) - len(said.lstrip(quiet))
        passed = 0
        for at, count in session.appends:
            passed += count
            if passed > first:
                return at
        return 0.0

    await session.wait_until(lambda _session: heard_at() > 0, 20)
    spoken = await page.evaluate("window.spoken")
    delay = 1000 * (began + heard_at()) - spoken
    figures.show("delay of a page, microphone to session", f"{delay:.0f} ms")
    assert 0 < delay < 5000, "in order, and not by seconds"
    await hung_up(page)


async def test_the_other_side_hangs_up(browser: Browser, world: GatewayStack) -> None:
    world.behave(vad="off", answers=[{"kind": "silent"}])
    page = await calling(browser, world, "plain")
    async with Client(world, "operator") as http:
        (call,) = (await http.get("/api/v1/calls", params={"live": True})).json()["calls"]
        await http.post(f"/api/v1/calls/{call['id']}/hangup")
    await expect(page.get_by_text(re.compile("The call is over after .* s"))).to_be_visible()
    await page.get_by_label("Number", exact=True).fill("nowhere")
    await page.keyboard.press("Enter")
    await expect(page.get_by_text("(404)")).to_be_visible()


async def test_leaving_the_page_hangs_up(browser: Browser, world: GatewayStack) -> None:
    world.behave(vad="off", answers=[{"kind": "silent"}])
    page = await calling(browser, world, "plain")
    await page.get_by_role("link", name="Live calls").click()
    await eventually(lambda: not world.emulator.live, "no session")
    page = await calling(browser, world, "plain")
    await page.context.close()
    await eventually(lambda: not world.emulator.live, "no session")


@pytest.mark.parametrize(
    ("script", "told"),
    [
        (
            "navigator.mediaDevices.getUserMedia = async () => {"
            " throw new DOMException('denied', 'NotAllowedError'); }",
            "The microphone is blocked",
        ),
        (
            "navigator.mediaDevices.getUserMedia = async () => {"
            " throw new DOMException('none', 'NotFoundError'); }",
            "No microphone was found",
        ),
    ],
)
async def test_without_a_microphone(
    browser: Browser, world: GatewayStack, script: str, told: str
) -> None:
    page = await logged_in(browser, world, path="#/call/plain")
    await page.evaluate(f"() => {{ {script} }}")
    await page.get_by_role("button", name="Call", exact=True).click()
    await expect(page.get_by_text(told)).to_be_visible()
    await expect(page.get_by_role("button", name="Call", exact=True)).to_be_enabled()
    assert not world.emulator.live


async def test_a_page_without_tls_says_why_it_cannot_call(
    browser: Browser, world: GatewayStack
) -> None:
    page = await logged_in(browser, world)
    await page.evaluate("Object.defineProperty(window, 'isSecureContext', {value: false})")
    await page.get_by_role("link", name="Call", exact=True).click()
    await expect(page.get_by_text("only to pages over https or on localhost")).to_be_visible()
    await expect(page.get_by_role("button", name="Call", exact=True)).to_be_disabled()


async def test_an_address_with_a_key_is_all_that_is_needed(
    browser: Browser, world: GatewayStack
) -> None:
    """As ``make run`` prints it."""
    world.behave(vad="off", answers=[{"kind": "silent"}])
    page = await browser.page(address(world) + f"#/key/{TOKENS['operator']}/call/plain")
    await page.get_by_role("button", name="Call", exact=True).click()
    await expect(page.get_by_text("Connected")).to_be_visible()
    assert page.url == address(world) + "#/call/plain"
    await hung_up(page)
    await page.go_back()
    assert TOKENS["operator"] not in page.url
    wrong = await browser.page(address(world) + "#/key/gw_wrong/call/plain")
    await expect(wrong.get_by_label("Token")).to_be_visible()


async def test_too_many_calls(browser: Browser, world: GatewayStack) -> None:
    world.behave(vad="off", answers=[{"kind": "silent"}])
    async with websocket(world) as one, websocket(world) as other:
        await one.answered()
        await other.answered()
        page = await logged_in(browser, world, path="#/call/plain")
        await page.get_by_role("button", name="Call", exact=True).click()
        await expect(page.get_by_role("alert")).to_contain_text("as many calls from browsers")
