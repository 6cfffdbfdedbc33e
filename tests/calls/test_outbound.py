# SPDX-License-Identifier: GPL-2.0-or-later
"""Calls that the gateway places: every outcome, and what keeps them from costing a fortune."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import json
import shutil
import socket
import subprocess
import sys
import threading
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import pytest

from gateway.api.client import RefusedError, ask
from gateway.devtools.emulator.session_log import SessionRecord
from tests import support
from tests.support.callee import CalledCall, CalledPhone
from tests.support.forked import Forked
from tests.support.gateway_process import WITHIN_S
from tests.support.harness import GatewayStack
from tests.support.listening import all_arrives, assert_beep, missing_frames, noise
from tests.support.made_sounds import beep
from tests.support.rtp_end import FRAME

WORLD = {
    "routes": """
[[route]]
name = "outward"
to = "^nobody$"
[route.greeting]
say = "Hello, this is the hotel."

[[route]]
name = "quiet"
to = "^nobody$"

[[route]]
name = "moves"
to = "^nobody$"
allowed_refer_to = 'sip:[a-z]+@127\\.0\\.0\\.1:[0-9]+'

[[route]]
name = "box"
to = "^nobody$"
[route.greeting]
say = "Hello, this is the hotel."
[route.session.audio.input.transcription]
model = "whisper-1"
[route.machine_detection]
voicemail = "leave_message"
voicemail_message = "Your room is ready."
""",
    "more": """
[control]
socket = "gateway.sock"
[outbound]
enabled = true
country = "DE"
allowed_prefixes = ["answer", "busy", "away", "no", "full", "ring", "race", "early", "+", "00"]
denied_prefixes = ["00", "+882"]
max_concurrent_calls = 2
max_calls_per_minute = 60
ring_timeout = 6
early_media = true
[[trunk]]
name = "carrier"
peers = ["127.0.0.9"]
[access]
unknown_sources = "allow"
[media]
packet_wait_ms = 500
""",
}


@pytest.fixture
def callee(runner: asyncio.Runner) -> Iterator[CalledPhone]:
    """A telephone to call."""
    phone = runner.run(CalledPhone().start())
    yield phone
    runner.run(phone.stop())


async def place(world: GatewayStack, to: str, route: str = "outward", trunk: str = "") -> str:
    """Ask for a call; returns its id. Raises RefusedError."""
    path = world.folder / "gateway.sock"
    answer = await asyncio.to_thread(ask, path, "dial", to=to, route=route, trunk=trunk)
    return str(answer["call"])


async def summary_of(world: GatewayStack, call: str) -> dict[str, Any]:
    """Its summary line."""
    return dict(await world.gateway.wait("call.summary", call=call))


async def test_answered_and_greeted(world: GatewayStack, callee: CalledPhone) -> None:
    greeting = {"kind": "pattern", "seconds": 1, "burst": True}
    world.behave(vad="off", answers=[greeting, {"kind": "silent"}])
    call = await place(world, callee.uri("answer"))
    there = await callee.called()
    line = await world.gateway.wait("call.session_up", call=call)
    (session,) = [one for one in world.emulator.sessions if one.id == line["session_id"]]
    await there.until(lambda c: c.requests("ACK"))
    await world.gateway.wait("call.confirmed", call=call)
    # The model was ready before anybody was called, and was not asked to speak before the answer.
    await session.wait_until(lambda s: s.sent("response.done") != [], 20)
    (audio,) = session.sent_items.values()
    await there.rtp.until(lambda: bytes(audio) in there.rtp.heard)
    said = noise(1, 1.0)
    there.rtp.say(said)  # not before: the line of the ACK is in the log before media begins
    await all_arrives(session, said, 20)
    there.bye()
    summary = await summary_of(world, call)
    assert summary["direction"] == "outbound"
    assert (summary["ending"]["by"], summary["ending"]["why"]) == ("callee", "remote_hangup")
    assert summary["sip_call_id"] == there.call_id
    times = summary["times_ms"]
    assert times["session"] <= times["ringing"] <= times["answered"] <= times["first_audio"]


@pytest.mark.parametrize(
    ("user", "by", "why", "code"),
    [
        ("busy-486", "callee", "busy", 486),
        ("away-480", "callee", "no_answer", 480),
        ("no-603", "callee", "declined", 603),
        ("nobody-404", "network", "no_such_number", 404),
        ("not-403", "network", "forbidden", 403),
        ("full-503", "network", "call_failed", 503),
    ],
)
async def test_refused(
    world: GatewayStack, callee: CalledPhone, user: str, by: str, why: str, code: int
) -> None:
    call = await place(world, callee.uri(user))
    summary = await summary_of(world, call)
    ending = summary["ending"]
    assert (ending["by"], ending["why"], ending["sip_code"]) == (by, why, code)
    assert summary["times_ms"]["answered"] is None


class Moved(CalledPhone):
    """Sends whoever calls somewhere else."""

    code = 302
    contacts: tuple[str, ...] = ()

    def _begin(self, call: CalledCall) -> None:
        names = ("Via", "From", "Call-ID", "CSeq")
        lines = [f"{name}: {call.invite.headers[name.lower()]}" for name in names]
        lines.append(f"To: {call.invite.headers['to']};tag={call.tag}")
        lines += [f"Contact: {contact}" for contact in self.contacts]
        head = [f"SIP/2.0 {self.code} Elsewhere", *lines, "Content-Length: 0"]
        self.send(("\r\n".join(head) + "\r\n\r\n").encode())


@pytest.fixture
def moved(runner: asyncio.Runner) -> Iterator[Moved]:
    phone = Moved()
    runner.run(phone.start())
    yield phone
    runner.run(phone.stop())


@pytest.mark.parametrize(
    ("code", "contacts"),
    [
        (302, ("<{there}>",)),
        (302, ("<{here}>",)),
        (301, ("<sip:+4990012345@127.0.0.1:{port}>",)),
        (302, ("<{there}?Route=%3Csip:127.0.0.1:{port};lr%3E&P-Asserted-Identity=x>",)),
        (300, ("<{there}>;q=0.9, <{here}>;q=0.1", *(f"<sip:no{n}@127.0.0.1>" for n in range(30)))),
        (302, ("<tel:+4990012345>", "<mailto:a@b.example>")),
        (305, ("<sip:name.invalid;transport=tcp>", "<sips:127.0.0.1:{port}>")),
        (302, ("*",)),
        (302, ("<>", "no uri", "<sip:@@>")),
        (380, ()),
        (399, ("<{there};maddr=127.0.0.1;ttl=1>",)),
    ],
)
async def test_nobody_sends_our_calls_elsewhere(
    world: GatewayStack, callee: CalledPhone, moved: Moved, code: int, contacts: tuple[str, ...]
) -> None:
    """3xx (RFC 3261 section 8.1.3.4): nobody is called whom nobody has allowed, or twice."""
    names = {"there": callee.uri("answer"), "here": moved.uri("no"), "port": callee.address[1]}
    moved.code, moved.contacts = code, tuple(one.format(**names) for one in contacts)
    call = await place(world, moved.uri("no"))
    ending = (await summary_of(world, call))["ending"]
    assert (ending["why"], ending["sip_code"]) == ("call_failed", code)
    assert len(moved.calls) == 1
    assert not callee.calls
    (one,) = moved.calls
    await one.until(lambda c: c.requests("ACK"))
    assert not one.requests("INVITE")


async def test_a_voicemail_box_answers(world: GatewayStack, callee: CalledPhone) -> None:
    """The greeting that speaks into the box's own is stopped; what is left is the message."""
    world.behave(
        vad="scripted",
        answers=[{"kind": "pattern", "seconds": 20}, {"kind": "pattern", "seconds": 1}],
        speech={"at_ms": [400], "length_ms": 500},
        transcripts=["Nobody is at home. Please leave a message after the tone."],
    )
    call = await place(world, callee.uri("answer"), "box")
    there = await callee.called()
    await there.until(lambda c: c.requests("ACK"))
    await world.gateway.wait("call.machine_detected", call=call)
    beep(there.rtp, 950, 300)
    message = await world.gateway.wait("call.voicemail_message", call=call)
    assert_beep(message["beep"], 950, 300)
    summary = await summary_of(world, call)
    assert (summary["ending"]["why"], summary["direction"]) == ("machine_detected", "outbound")
    line = await world.gateway.wait("call.session_up", call=call)
    (session,) = [one for one in world.emulator.sessions if one.id == line["session_id"]]
    asked = [one.body.get("response", {}) for one in session.seen("response.create")]
    assert asked[-1]["instructions"] == "Say exactly: Your room is ready."
    assert summary["interruptions"], "twenty seconds of greeting were not heard out"


async def test_nobody_answers(world: GatewayStack, callee: CalledPhone) -> None:
    call = await place(world, callee.uri("ring"))
    there = await callee.called()
    summary = await summary_of(world, call)
    assert (summary["ending"]["by"], summary["ending"]["why"]) == ("callee", "no_answer")
    await there.until(lambda c: c.requests("CANCEL"))
    assert len(there.requests("CANCEL")) == 1


async def test_an_answer_that_crosses_our_cancel_is_hung_up(
    world: GatewayStack, callee: CalledPhone
) -> None:
    call = await place(world, callee.uri("race"))
    there = await callee.called()
    await there.until(lambda c: c.requests("CANCEL"))
    await there.hung_up()
    summary = await summary_of(world, call)
    assert summary["ending"]["why"] == "no_answer"
    assert summary["times_ms"]["answered"] is None


async def test_what_comes_before_the_answer_is_heard(
    world: GatewayStack, callee: CalledPhone
) -> None:
    """And what goes on through the answer has no hole there."""
    world.behave(vad="off", answer="silent")
    call = await place(world, callee.uri("early"), "quiet")
    there = await callee.called()
    said = noise(2, 0.6)
    await world.gateway.wait("call.early_media", call=call)
    line = await world.gateway.wait("call.session_up", call=call)
    (session,) = [one for one in world.emulator.sessions if one.id == line["session_id"]]
    there.rtp.say(said)
    await session.wait_until(lambda s: said[:FRAME] in s.received, 20)
    assert not world.gateway.all("call.confirmed", call=call)
    there.respond(200, sdp=True)
    await all_arrives(session, said, 20)
    await there.until(lambda c: c.requests("ACK"))
    there.bye()
    summary = await summary_of(world, call)
    assert summary["ending"]["why"] == "remote_hangup"


@pytest.fixture
def held_up(own_folder: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[str, ...]:
    """How to start a gateway whose threads tests/support/held_up.c holds up."""
    compiler = shutil.which("cc")
    if compiler is None:
        pytest.skip("no C compiler")
    here, library = Path(support.__file__).parent, own_folder / "held_up.so"
    flags = ("-shared", "-fPIC", "-o", str(library))
    command = [compiler, *flags, str(here / "held_up.c"), "-ldl"]
    subprocess.run(command, check=True, timeout=60)
    monkeypatch.setenv("HELD_UP", str(library))
    return (str(here / "held_up_gateway.py"),)


async def test_who_sends_before_we_read_is_heard(
    own_folder: Path, callee: CalledPhone, held_up: tuple[str, ...]
) -> None:
    """Whatever comes to pass between what one thread of pjmedia does and the next: one that is
    not read at first would not be heard in the whole call. And who sends to one port faster than
    its packets are read takes nothing from the others."""
    more = WORLD["more"].replace("calls = 2", "calls = 6").replace("timeout = 6", "timeout = 20")
    world = GatewayStack(own_folder / "world", routes=WORLD["routes"], more=more, entry=held_up)
    await world.start()
    world.behave(vad="off", answer="silent")
    calls = [await place(world, callee.uri("early"), "quiet") for _ in range(6)]
    for number, call in enumerate(calls, 1):
        there = await callee.called(number)
        await world.gateway.wait("call.early_media", call=call)
        there.rtp.say(noise(number, 0.2))
    for call in calls:
        line = await world.gateway.wait("call.session_up", call=call)
        (session,) = [one for one in world.emulator.sessions if one.id == line["session_id"]]
        await session.wait_until(_has_one_of_them, 20)
    async with _flooded(callee.calls[0].rtp._peer):
        callee.calls[-1].rtp.say(said := noise(9, 0.2))
        await session.wait_until(lambda s: not missing_frames(said, bytes(s.received)), 20)
    for there in callee.calls:
        there.respond(486)
    for call in calls:
        await summary_of(world, call)
    await world.stop()


@contextlib.asynccontextmanager
async def _flooded(port: tuple[str, int] | None) -> AsyncIterator[None]:
    """More packets come to this port than are read, of those that take their time."""
    assert port is not None
    begun, over = threading.Event(), threading.Event()

    def send() -> None:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as end:
            for number in itertools.count():
                if over.is_set():
                    return
                end.sendto(b"\xff", port)
                if number == 5000:
                    begun.set()

    sending = asyncio.create_task(asyncio.to_thread(send))
    try:
        await asyncio.to_thread(begun.wait, WITHIN_S)
        yield
    finally:
        over.set()
        await sending


def _has_one_of_them(session: SessionRecord) -> bool:
    return any(not missing_frames(noise(n, 0.2), bytes(session.received)) for n in range(1, 7))


async def test_no_session_no_call(world: GatewayStack, callee: CalledPhone) -> None:
    refusal = {"step": "connect", "code": "invalid_api_key"}
    world.behave(refuse=refusal)
    call = await place(world, callee.uri("answer"))
    summary = await summary_of(world, call)
    assert summary["ending"]["why"] == "session_refused"
    assert not callee.calls


async def test_caps(world: GatewayStack, callee: CalledPhone) -> None:
    for to, rule in [
        ("0049301234567", "has no host: name a trunk"),
        (callee.uri("0049301234567"), "outbound.denied_prefixes has '00'"),
        (callee.uri("+8821234"), "outbound.denied_prefixes has '+882'"),
    ]:
        with pytest.raises(RefusedError) as refused:
            await place(world, to)
        assert rule in str(refused.value)
    calls = [await place(world, callee.uri("ring")) for _ in range(2)]
    with pytest.raises(RefusedError, match=r"outbound\.max_concurrent_calls = 2"):
        await place(world, callee.uri("ring"))
    for call in calls:
        await summary_of(world, call)
    # Their places are free again.
    call = await place(world, callee.uri("busy-486"))
    await summary_of(world, call)
    (line,) = [
        one
        for one in world.gateway.all("call.summary")
        if "max_concurrent_calls" in one["ending"]["detail"]
    ]
    assert (line["ending"]["why"], line["direction"]) == ("refused", "outbound")


async def test_the_command_line(world: GatewayStack, callee: CalledPhone) -> None:
    """Through the gateway that runs: an answered call, a busy one, and one that is not allowed."""
    world.behave(
        vad="off", answers=[{"kind": "pattern", "seconds": 0.3, "burst": True, "end_call": True}]
    )
    for user, status, words in [
        ("answer", 0, "answered: agent_hangup by model, SIP 200"),
        ("busy-486", 1, "not answered: busy by callee, SIP 486"),
        ("0012345", 2, "not placed: outbound.denied_prefixes has '00'"),
    ]:
        dial = await Forked.command(
            *("dial", callee.uri(user), "--route", "outward", "-c", world.gateway.config)
        )
        output, error = await dial.communicate()
        assert words in (output + error).decode()
        assert dial.returncode == status


async def test_without_a_gateway_that_runs(world: GatewayStack, callee: CalledPhone) -> None:
    """The same command places the call by itself."""
    world.behave(
        vad="off", answers=[{"kind": "pattern", "seconds": 0.3, "burst": True, "end_call": True}]
    )
    text = world.gateway.config.read_text().replace("gateway.sock", "other.sock")
    text = text.replace('"records"', '"other-records"')
    config = world.gateway.config.with_name("other.toml")
    config.write_text(text)
    dial = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "gateway", "dial", callee.uri("answer"), "--route", "outward"),
        *("-c", str(config)),
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    output, log = await dial.communicate()
    assert "answered: agent_hangup by model, SIP 200" in output.decode(), log.decode()[-2000:]
    assert dial.returncode == 0
    (there,) = callee.calls
    (audio,) = world.emulator.sessions[-1].sent_items.values()
    assert bytes(audio) in there.rtp.heard
    summaries = [json.loads(line) for line in log.decode().splitlines() if "call.summary" in line]
    assert [one["sip_call_id"] for one in summaries] == [there.call_id]


async def test_a_call_whose_callee_moves_gives_its_place_back(
    world: GatewayStack, callee: CalledPhone
) -> None:
    """Both places are taken by calls whose leg is replaced by another (RFC 3891)."""
    world.behave(vad="off", answer="silent")
    for number in (1, 2):
        call = await place(world, callee.uri("answer"), "quiet")
        there = await callee.called(number)
        await world.gateway.wait("call.confirmed", call=call)
        tag = there.invite.headers["from"].partition(";tag=")[2]
        replaces = f"Replaces: {there.call_id};to-tag={tag};from-tag={there.tag}"
        other = world.phone.call("plain", headers=(replaces, "Require: replaces"))
        other.invite()
        await other.answered()
        await world.gateway.wait("call.caller_replaced", call=call)
        await other.hang_up()
        assert (await summary_of(world, call))["ending"]["why"] == "remote_hangup"
        await world.phone.forget(other)
    await summary_of(world, await place(world, callee.uri("busy-486")))


async def test_a_call_whose_callee_refers_it_on_takes_one_place(
    world: GatewayStack, callee: CalledPhone
) -> None:
    """Two while both legs are up; then its new leg has the one that it began with."""
    world.behave(vad="off", answer="silent")
    call = await place(world, callee.uri("answer"), "moves")
    there = await callee.called()
    await world.gateway.wait("call.confirmed", call=call)
    for number in (2, 3):
        there.refer(callee.uri("ring"))
        after = await callee.called(number)
        with pytest.raises(RefusedError, match=r"outbound\.max_concurrent_calls = 2"):
            await place(world, callee.uri("ring"))
        after.respond(200, sdp=True)
        await there.hung_up()
        there = after
    other = await place(world, callee.uri("answer"), "quiet")
    last = await callee.called(4)
    await world.gateway.wait("call.confirmed", call=other)
    with pytest.raises(RefusedError, match=r"outbound\.max_concurrent_calls = 2"):
        await place(world, callee.uri("ring"))
    for one in (there, last):
        one.bye()
    for ended in (call, other):
        assert (await summary_of(world, ended))["ending"]["why"] == "remote_hangup"
    # Each place was given back once: there are two again, and no more.
    ringing = [await place(world, callee.uri("ring")) for _ in range(2)]
    with pytest.raises(RefusedError, match=r"outbound\.max_concurrent_calls = 2"):
        await place(world, callee.uri("ring"))
    for one_ringing in ringing:
        await summary_of(world, one_ringing)
