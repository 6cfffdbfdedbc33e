# SPDX-License-Identifier: GPL-2.0-or-later
"""The console in a real Chromium: what operators see, hear and do, by mouse and by keyboard."""

from __future__ import annotations

import asyncio
import fcntl
import json
import os
import pty
import struct
import sys
import termios
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import axe_playwright_python  # type: ignore[import-untyped]
import numpy as np
import pytest
from playwright.async_api import Page, expect

from gateway.audio import Codec
from tests.calls.conftest import shared_world, world
from tests.calls.test_api import API, TOKENS, Client
from tests.calls.test_keys import events_of
from tests.support.browser import PROGRAM, TELEPHONE, Browser
from tests.support.callee import CalledPhone, free_port
from tests.support.harness import PATIENT, GatewayStack, eventually
from tests.support.listening import is_silence, noise
from tests.support.made_sounds import g711, melody
from tests.support.sip_phone import PhoneCall

__all__ = ["shared_world", "world"]

pytestmark = [
    pytest.mark.interop,
    pytest.mark.skipif(not PROGRAM.exists(), reason="Chromium is not installed"),
]
PORT = free_port()
ROUTES = f"""
[[route]]
name = "office"
to = "^office$"
greeting.say = "Hello."
[route.recording]
mode = "always"
[[route.transfer]]
name = "front desk"
to = "sip:answer@127.0.0.1:{PORT}"
mode = "bridge"
ring_timeout = 5
"""
WORLD = {
    "more": API
    + PATIENT
    + '[control]\nsocket = "gateway.sock"\n'
    + '[access]\nunknown_sources = "allow"\n[outbound]\n'
    'max_calls_per_minute = 60\n[recording]\nfolder = "recordings"\n',
    "routes": ROUTES,
}
SPOKEN = "Yes, we do. There is a double room with a view of the lake, breakfast included."
TALK = {"kind": "say", "text": f"{SPOKEN} {SPOKEN} {SPOKEN}"}
HOSTILE = "<img src=x onerror=alert(1)><script>alert(2)</script>"


@pytest.fixture(scope="module")
def chromium(runner: asyncio.Runner) -> Iterator[Browser]:
    """One browser for all tests."""
    made = Browser()
    runner.run(made.start())
    yield made
    runner.run(made.stop())


@pytest.fixture
def browser(runner: asyncio.Runner, chromium: Browser) -> Iterator[Browser]:
    """The browser; after each test nothing may have gone wrong in its pages."""
    yield chromium
    runner.run(chromium.check())


def address(world: GatewayStack, path: str = "/console/") -> str:
    """Where the gateway serves a page."""
    return f"http://{world.gateway.all('api.listening')[-1]['address']}{path}"


async def logged_in(
    browser: Browser, world: GatewayStack, role: str = "operator", path: str = "", **options: Any
) -> Page:
    """A page of somebody who has logged in."""
    page = await browser.page(address(world) + path, **options)
    await page.get_by_label("Token").fill(TOKENS[role])
    await page.get_by_role("button", name="Log in").click()
    await expect(page.get_by_role("button", name="Log out")).to_be_visible()
    return page


async def test_people_log_in_and_out(browser: Browser, world: GatewayStack) -> None:
    page = await browser.page(address(world, "/"))
    await page.get_by_label("Token").fill("gw_wrong")
    await page.keyboard.press("Enter")
    await expect(page.get_by_role("alert")).to_contain_text("not known")
    await page.get_by_label("Token").fill(TOKENS["readonly"])
    await page.keyboard.press("Enter")
    await expect(page.get_by_text("readonly-one (readonly)")).to_be_visible()
    await page.reload()
    await expect(page.get_by_text("readonly-one (readonly)")).to_be_visible()
    (cookie,) = await page.context.cookies()
    assert cookie["httpOnly"]
    assert cookie["sameSite"] == "Strict"
    await page.get_by_role("button", name="Log out").click()
    await expect(page.get_by_label("Token")).to_be_visible()
    for given in TOKENS.values():
        assert given not in page.url
        assert not [line for line in world.gateway.lines if given in str(line)]
    await page.context.add_cookies([cookie])  # type: ignore[list-item]
    await page.reload()
    await expect(page.get_by_label("Token")).to_be_visible()


def opened(page: Page, name: str) -> str:
    """The address of a call's page."""
    return page.url.partition("#")[0] + f"#/calls/{name}"


async def until(page: Page, condition: str) -> None:
    """Wait for a condition in JavaScript; playwright's own way needs eval, which pages forbid."""

    async def met() -> bool:
        return bool(await page.evaluate(condition))

    await eventually(met, condition)


async def office(world: GatewayStack, **script: Any) -> tuple[PhoneCall, str]:
    """A call whose agent talks for long, and its id."""
    world.behave(**{"vad": "off", "answers": [TALK], **script})
    call = await world.dial("office")
    (name,) = world.gateway.ids_of(call.call_id)
    return call, name


async def examined(page: Page) -> None:
    """Assert that axe finds nothing in a page, light and dark."""
    await page.evaluate((Path(axe_playwright_python.__file__).parent / "axe.min.js").read_text())
    for scheme in ("light", "dark"):
        await page.emulate_media(color_scheme=scheme)
        found = await page.evaluate("axe.run()")
        told = [(one["id"], [node["html"] for node in one["nodes"]]) for one in found["violations"]]
        assert told == [], (page.url, scheme)


async def test_no_page_has_a_finding_of_axe(browser: Browser, world: GatewayStack) -> None:
    call, name = await office(world)
    page = await browser.page(address(world), screen=TELEPHONE)
    await expect(page.get_by_label("Token")).to_be_visible()
    await examined(page)
    page = await logged_in(browser, world)
    await expect(page.get_by_role("link", name="tester → office")).to_be_visible()
    await examined(page)
    await page.goto(opened(page, name))
    await expect(page.get_by_role("log")).to_contain_text("Yes, we do.")
    await page.get_by_role("button", name="Listen in").click()
    await expect(page.get_by_role("status").get_by_text("listening", exact=True)).to_be_visible()
    await page.get_by_role("button", name="Transfer…").click()
    await examined(page)
    await page.keyboard.press("Escape")
    await examined(page)
    await world.summary_at_end(call)
    await expect(page.get_by_label("Recording: caller left")).to_be_visible()
    await examined(page)
    for path in ("past", "trunks"):
        await page.goto(page.url.partition("#")[0] + f"#/{path}")
        await expect(page.get_by_role("heading", level=1)).to_be_visible()
        await examined(page)
    wide = await page.evaluate("document.documentElement.scrollWidth")
    await page.set_viewport_size(TELEPHONE)  # type: ignore[arg-type]
    for path in ("live", "past", f"call/{name}"):
        await page.goto(page.url.partition("#")[0] + f"#/{path}")
        await expect(page.get_by_role("heading", level=1)).to_be_visible()
        wide = await page.evaluate("document.documentElement.scrollWidth")
        assert wide <= TELEPHONE["width"], f"{path} is {wide} pixels wide"


STEPS = """async (record) => {
    const ladder = new (await import("/console/picture.js")).Ladder();
    ladder.draw(record, false);
    return [...ladder.list.querySelectorAll(".arrow")].map((one) => one.textContent);
}"""


async def test_a_live_session_is_told_as_what_it_is(browser: Browser, world: GatewayStack) -> None:
    """Before its hand-over to a Realtime session the call has no turns of a model's."""
    page = await logged_in(browser, world)
    marks = [
        {"t_ms": 1, "event": "session_up", "session_id": "live_1"},
        {"t_ms": 100, "event": "caller_speech_started"},
        {"t_ms": 200, "event": "agent_speech_started", "item_id": "speech_1"},
        {"t_ms": 900, "event": "agent_speech_stopped", "cut": False},
        {"t_ms": 910, "event": "agent_speech_started", "item_id": "speech_1"},
        {"t_ms": 950, "event": "agent_speech_stopped", "cut": False},
        {"t_ms": 960, "event": "response", "response_id": "speech_1", "status": "completed"},
        {"t_ms": 990, "event": "agent_transcript", "item_id": "speech_1", "text": "Hello."},
        {"t_ms": 995, "event": "response", "response_id": "resp_1", "status": "completed"},
        {"t_ms": 1000, "event": "session_up", "session_id": "sess_2"},
        {"t_ms": 1100, "event": "caller_speech_started"},
    ]
    record = {"direction": "inbound", "timeline": marks, "times_ms": {"answered": 0}}
    assert await page.evaluate(STEPS, record) == [
        "model to gateway: session.started",
        "caller to gateway: speech begins",
        "gateway to caller: first frame of speech",
        "gateway to caller: last frame of speech",
        "gateway to caller: first frame of speech",
        "gateway to caller: last frame of speech",
        "model to gateway: speech ends: completed",
        "model to gateway: “Hello.”",
        "model to gateway: response.done: completed",
        "model to gateway: session.updated",
        "model to gateway: speech_started",
    ]
    words = await page.evaluate(
        """async (record) => (await import("/console/picture.js"))
            .storyOf(record, 2000).agent.map((one) => one.text)""",
        record,
    )
    assert words == ["Hello.", ""]


async def test_words_are_those_of_the_session_that_said_them(
    browser: Browser, world: GatewayStack
) -> None:
    """Servers may use ids again in each session, and Live sessions always have the same."""
    page = await logged_in(browser, world)
    marks = [
        {"t_ms": 300, "event": "agent_speech_started", "item_id": "a"},
        {"t_ms": 400, "event": "agent_transcript", "item_id": "a", "text": "Good morning."},
        {"t_ms": 1000, "event": "session_lost", "why": "session_lost"},
        {"t_ms": 2300, "event": "agent_speech_stopped", "cut": False},
        {"t_ms": 5000, "event": "agent_speech_started", "item_id": "a"},
        {"t_ms": 5100, "event": "agent_transcript", "item_id": "a", "text": "We are closed."},
        {"t_ms": 6240, "event": "agent_speech_stopped", "cut": True},
    ]
    words = await page.evaluate(
        """async (record) => (await import("/console/picture.js"))
            .storyOf(record, 6500).agent.map((one) => one.text)""",
        {"direction": "inbound", "timeline": marks, "times_ms": {"answered": 0}},
    )
    assert words == ["Good morning.", "We are closed."]


async def test_the_ladder_says_who_is_sent_a_transfer(
    browser: Browser, world: GatewayStack
) -> None:
    page = await logged_in(browser, world)
    marks = [
        {"t_ms": 1, "event": "command", "command": "OperatorTransfer"},
        {"t_ms": 2, "event": "transfer", "mode": "blind", "to": "sip:1@pbx"},
        {"t_ms": 3, "event": "transfer", "mode": "bridge", "to": "sip:2@pbx"},
        {"t_ms": 4, "event": "end", "why": "operator", "by": "operator"},
    ]
    record = {"direction": "inbound", "timeline": marks, "times_ms": {"answered": 0}}
    assert await page.evaluate(STEPS, record) == [
        "gateway: command: operator transfer",
        "gateway to caller: REFER sip:1@pbx",
        "gateway to other leg: INVITE sip:2@pbx",
        "gateway to caller: BYE: operator",
    ]


async def test_a_call_is_watched_and_played_afterwards(
    browser: Browser, world: GatewayStack
) -> None:
    page = await logged_in(browser, world)
    await expect(page.get_by_text("No call is in progress.")).to_be_visible()
    call, name = await office(world, vad="auto")
    await page.get_by_role("link", name="tester → office").click()
    log = page.get_by_role("log")
    await expect(log).to_contain_text("Yes, we do.")
    await call.rtp.until(lambda: sum(not is_silence(one) for one in call.rtp.packets) > 60)
    call.rtp.say(noise(1, 1.0))
    await world.gateway.wait("call.interruption", call=call.call_id)
    struck = log.locator("s")
    await expect(struck).to_contain_text("cut, not heard:")
    async with Client(world) as http:
        entries = (await http.get(f"/api/v1/calls/{name}/transcript")).json()["transcript"]
    (cut,) = [one for one in entries if "heard" in one]
    assert (await struck.inner_text()).endswith(cut["text"][len(cut["heard"]) :].strip())
    picture = page.get_by_label("Picture of the call")
    await expect(picture.locator(".cut")).to_have_count(1)
    await expect(page.get_by_label("SIP and session")).to_contain_text("item.truncate")
    await world.summary_at_end(call)
    await expect(page.get_by_text("completed", exact=True)).to_be_visible()
    await expect(picture.locator(".wave.agent")).to_have_count(1)
    steps = await page.get_by_label("SIP and session").locator("li").all_inner_texts()
    assert "INVITE" in steps[0]
    assert "BYE: remote hangup" in steps[-1]
    player = page.get_by_label("Recording: caller left")
    await player.evaluate("one => one.play()")
    await until(page, "document.querySelector('audio').currentTime > 0.2")
    await page.get_by_role("link", name="Past calls").first.click()
    await page.get_by_label("Number").fill("nobody")
    await page.keyboard.press("Enter")
    await expect(page.get_by_text("No call fits.")).to_be_visible()
    await page.get_by_label("Number").fill("tester")
    await page.keyboard.press("Enter")
    await expect(page.locator(f"a[href='#/calls/{name}']")).to_be_visible()


KEEP = """() => document.querySelector(".listen").addEventListener("listening", ({detail}) => {
    const {context, gain} = detail;
    const keep = context.createScriptProcessor(2048, 2, 1);
    window.heard = [[], []];
    window.rate = context.sampleRate;
    keep.onaudioprocess = ({inputBuffer}) => {
        for (const side of [0, 1]) window.heard[side].push(...inputBuffer.getChannelData(side));
    };
    gain.connect(keep).connect(context.destination);
})"""
"""Keep what the page plays."""

HEARD = """(side) => {
    const {heard: {[side]: samples}, rate} = window;
    return Array.from({length: Math.floor(samples.length * 8000 / rate)}, (_, at) => {
        return Math.round(32767 * samples[Math.floor(at * rate / 8000)]);
    });
}"""
"""It, at 8 kHz."""


async def likeness(page: Page, side: int, said: bytes) -> float:
    """How well G.711 bytes fit what was heard on a side, where they fit best; 1 is all of it."""
    wanted = np.frombuffer(Codec.PCMU.to_linear(said), "<i2").astype(float)
    heard = np.array(await page.evaluate(HEARD, side), float)
    if len(heard) < len(wanted):
        return 0.0
    power = np.convolve(heard**2, np.ones(len(wanted)), "valid")
    found = np.correlate(heard, wanted, "valid")
    best = found / np.sqrt(np.maximum(power, 1.0) * np.sum(wanted**2))
    return float(np.max(best))


async def test_what_is_said_is_heard(browser: Browser, world: GatewayStack) -> None:
    call, name = await office(world)
    page = await logged_in(browser, world)
    await page.goto(opened(page, name))
    await page.get_by_role("button", name="Listen in").wait_for()
    await page.evaluate(KEEP)
    await page.get_by_role("button", name="Listen in").focus()
    await page.keyboard.press("Enter")
    await until(page, "window.heard?.[1].some((sample) => Math.abs(sample) > 0.01)")
    before = len(call.rtp.packets)
    said = g711(melody(1.0), Codec.PCMU)
    call.rtp.say(said)
    await call.rtp.quiet()
    spoken = b"".join(one.payload for one in call.rtp.packets[before + 5 : before + 30])
    for side, sound in ((0, said[2000:6000]), (1, spoken)):
        found = 0.0
        for _ in range(20):
            found = await likeness(page, side, sound)
            if found > 0.9:
                break
            await page.wait_for_timeout(200)
        assert found > 0.9, f"side {side} is no more like it than {found:.2f}"
    await page.keyboard.press("Enter")
    await world.gateway.wait("api.audit", action="listened", call=name, who="operator-one")
    await expect(page.get_by_role("button", name="Listen in")).to_be_visible()
    summary = await world.summary_at_end(call)
    assert (summary["underruns"], summary["dropped_append_frames"]) == (0, 0)


async def test_an_operator_acts_by_mouse(browser: Browser, world: GatewayStack) -> None:
    call, name = await office(world)
    session = await world.session_of(call)
    page = await logged_in(browser, world)
    await page.get_by_role("link", name="tester → office").click()

    def button(text: str) -> Any:
        return page.get_by_role("button", name=text, exact=True)

    await button("Stop speaking").click()
    await session.wait_until(lambda one: one.seen("conversation.item.truncate") != [], 20)
    await button("Say…").click()
    await page.get_by_label("Words").fill("One moment, please.")
    await page.keyboard.press("Tab")
    await expect(button("Say")).to_be_focused()
    await page.get_by_label("Words").press("Enter")
    await session.wait_until(
        lambda one: "One moment" in json.dumps([e.body for e in one.seen("response.create")]), 20
    )
    await button("Mute caller").click()
    await expect(button("Mute caller")).to_have_attribute("aria-pressed", "true")
    await button("Mute caller").click()
    await expect(button("Mute caller")).to_have_attribute("aria-pressed", "false")
    await button("Hold").click()
    await expect(button("Hold")).to_have_attribute("aria-pressed", "true")
    await expect(page.locator(".call-head .state")).to_have_text("held")
    await button("Hold").click()
    await expect(button("Hold")).to_have_attribute("aria-pressed", "false")
    await button("Stop speaking").click()  # keys wait for what is said
    await button("Keys…").click()
    await page.get_by_label("Digits").fill("12#")
    await button("Send").click()
    await call.rtp.until(lambda: "".join(key for key, _ in events_of(call)) == "12#")
    await button("Hang up").click()
    await button("Cancel").click()
    await button("Hang up").click()
    await page.get_by_role("dialog").get_by_role("button", name="Hang up").click()
    await call.hung_up()
    assert (await world.summary(call))["ending"]["why"] == "operator"
    await expect(page.get_by_text("completed", exact=True)).to_be_visible()
    await expect(button("Hang up")).to_have_count(0)
    line = await world.gateway.wait("api.audit", action="hangup", call=name)
    assert line["who"] == "operator-one"


async def test_an_operator_transfers_and_hangs_up_by_keyboard(
    browser: Browser, world: GatewayStack, runner: asyncio.Runner
) -> None:
    desk = await CalledPhone().start(PORT)
    try:
        call, _name = await office(world, answers=[{"kind": "say", "text": "Yes."}])
        page = await logged_in(browser, world)

        async def press(label: str) -> None:
            """Go to a control by the tabulator, and press Enter there."""
            for _ in range(60):
                await page.keyboard.press("Tab")
                found = await page.evaluate("document.activeElement.innerText?.trim()")
                if found == label:
                    await page.keyboard.press("Enter")
                    return
            raise AssertionError(f"the tabulator never came to {label}")

        await press("tester → office")
        await expect(page.get_by_role("button", name="Transfer…")).to_be_visible()
        await press("Transfer…")
        await expect(page.get_by_role("combobox", name="To")).to_be_focused()
        await press("Transfer")
        await desk.called()
        await expect(
            page.get_by_role("status").get_by_text("Transferred: answered")
        ).to_be_visible()
        await expect(page.get_by_label("SIP and session")).to_contain_text("INVITE sip:answer@")
        await press("Hang up")
        await page.keyboard.press("Enter")
        await call.hung_up()
        assert (await world.summary(call))["transfers"][0]["outcome"] == "answered"
    finally:
        await desk.stop()


async def test_a_viewer_sees_no_buttons_and_no_words(browser: Browser, world: GatewayStack) -> None:
    call, name = await office(world)
    page = await logged_in(browser, world, "readonly")
    await page.get_by_role("link", name="tester → office").click()
    await expect(page.get_by_text("are for operators")).to_be_visible()
    await expect(page.locator(".facts")).to_contain_text(name)
    names = await page.get_by_role("button").all_inner_texts()
    assert names == ["Log out"]
    assert "Yes, we do" not in await page.content()
    await page.goto(page.url.partition("#")[0] + "#/trunks")
    await world.summary_at_end(call)


async def test_what_strangers_send_is_shown_as_text(browser: Browser, world: GatewayStack) -> None:
    tool = {"name": HOSTILE, "arguments": json.dumps([HOSTILE])}
    answers = [{"kind": "say", "text": HOSTILE, "tools": [tool]}, {"kind": "silent"}]
    world.behave(vad="off", answers=answers)
    quoted = HOSTILE.replace(" ", "%20").replace("<", "%3C").replace(">", "%3E")
    call = world.phone.call("office")
    call.caller, call.display = quoted, f"Eve {HOSTILE}"
    call.invite()
    await call.answered()
    name = (await world.gateway.wait("call.confirmed", call=call.call_id))["call"]
    page = await logged_in(browser, world)
    await expect(page.locator(".rows .who-calls")).to_contain_text(f"Eve {HOSTILE}"[:64])
    await page.goto(opened(page, name))
    await expect(page.get_by_role("log")).to_contain_text(HOSTILE)
    await page.get_by_role("button", name="Disposition…").click()
    await page.get_by_label("Disposition").fill(HOSTILE)
    await page.get_by_role("button", name="Note").click()
    await expect(page.locator(".facts")).to_contain_text(HOSTILE)
    await world.summary_at_end(call)
    await expect(page.get_by_text("completed", exact=True)).to_be_visible()
    await page.goto(page.url.partition("#")[0] + "#/past")
    await expect(page.locator(f"a[href='#/calls/{name}']")).to_contain_text(f"Eve {HOSTILE}"[:64])
    for markup in ("main img", "main script", "header img[src=x]"):
        await expect(page.locator(markup)).to_have_count(0)


async def test_two_who_listen_disturb_neither_each_other_nor_the_call(
    browser: Browser, world: GatewayStack
) -> None:
    call, name = await office(world)
    one, two = await logged_in(browser, world), await logged_in(browser, world)
    for page in (one, two):
        await page.goto(opened(page, name))
        await page.get_by_role("button", name="Listen in").click()
        await expect(page.get_by_text("listening", exact=True)).to_be_visible()
    await one.get_by_role("button", name="Stop listening").click()
    await two.goto(two.url.partition("#")[0] + "#/live")
    for _ in range(2):
        await world.gateway.wait("api.audit", action="listened", call=name)
    await world.summary_at_end(call)


async def test_top_in_a_terminal(world: GatewayStack) -> None:
    call, _name = await office(world)
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 30, 110, 0, 0))
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "gateway", "top", "-c", str(world.gateway.config)),
        stdin=theirs,
        stdout=theirs,
        stderr=theirs,
        env={**os.environ, "TERM": "xterm-256color"},
    )
    os.close(theirs)
    os.set_blocking(ours, False)
    shown = bytearray()

    def has(text: bytes) -> bool:
        with suppress(BlockingIOError, OSError):
            shown.extend(os.read(ours, 65536))
        return text in shown

    await eventually(lambda: has(b"tester"), "the call in the terminal")
    await eventually(lambda: has(b"breakfast"), "its words")
    os.write(ours, b"q")
    await eventually(lambda: has(b"nothing") or process.returncode is not None, "its end")
    os.close(ours)
    assert process.returncode == 0
    await world.summary_at_end(call)
