# SPDX-License-Identifier: GPL-2.0-or-later
"""Recordings of calls, compared with what their telephones heard and said."""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyrage
import pytest
import soundfile
from moto.server import ThreadedMotoServer

from gateway.devtools.speech import pattern
from gateway.records.recording_files import decrypt
from gateway.records.retention import Storage
from tests.calls.test_api import API, Client
from tests.calls.test_moved import is_heard_by
from tests.support.callee import CalledPhone, free_port
from tests.support.forked import Forked
from tests.support.harness import PATIENT, GatewayStack, eventually
from tests.support.listening import is_silence, missing_frames, noise, share_heard
from tests.support.rtp_end import FRAME
from tests.support.sip_phone import PhoneCall

KEY = pyrage.x25519.Identity.generate()

PORT = free_port()
WORLD = {
    "more": API
    + PATIENT
    + '[access]\nunknown_sources = "allow"\nburst = 50\n[outbound]\nmax_calls_per_minute = 60\n'
    + f"""
[recording]
folder = "recordings"
recipients = ["{KEY.to_public()}"]
""",
    "routes": """
[[route]]
name = "recorded"
to = "^recorded$"
[route.greeting]
say = "Hello."
[route.recording]
mode = "always"
[route.session.audio.input.turn_detection]
type = "server_vad"
[[route]]
name = "handed"
to = "^handed$"
[route.greeting]
say = "Hello."
[route.recording]
mode = "always"
after_transfer = true
[[route.transfer]]
name = "anna"
to = "sip:answer@127.0.0.1:{port_of_anna}"
mode = "bridge"
[[route.transfer]]
name = "briefed"
to = "sip:answer@127.0.0.1:{port_of_anna}"
mode = "bridge"
[route.transfer.briefing]
record = true
[[route]]
name = "asked"
to = "^asked$"
[route.greeting]
say = "Hello."
[route.recording]
mode = "always"
consent = "ask"
consent_timeout = 5
[route.session.audio.input.turn_detection]
type = "server_vad"
[route.session.audio.input.transcription]
model = "gpt-transcribe"
[[route]]
name = "told"
to = "^told$"
[route.greeting]
say = "Hello."
[route.recording]
mode = "always"
consent = "announce"
[[route]]
name = "wanted"
to = "^wanted$"
[route.greeting]
say = "Hello."
[route.recording]
mode = "on_demand"
tool = true
""".replace("{port_of_anna}", str(PORT)),
}


@pytest.fixture
def callee(runner: asyncio.Runner) -> Iterator[CalledPhone]:
    """The telephone of a colleague."""
    phone = runner.run(CalledPhone().start(PORT))
    yield phone
    runner.run(phone.stop())


def interrupted(seed: int, count: int = 6) -> dict[str, Any]:
    """Answers of bytes that come once only, cut at random moments."""
    ways: list[dict[str, Any]] = [{"burst": True}, {"speed": 1.1}, {"speed": 4.0}]
    answers = [
        {"kind": "pattern", "seconds": 4, "seed": 100 * seed + number, **ways[number % len(ways)]}
        for number in range(count + 1)
    ]
    speech = {"min_ms": 30, "max_ms": 700, "count": count, "length_ms": 40, "seed": seed}
    return {"vad": "scripted", "answers": answers, "speech": speech}


async def file_of(world: GatewayStack, record: dict[str, Any], tmp_path: Path) -> bytes:
    """The audio of a call's recording, G.711, left and right by turns; plain from here on."""
    name = record["recording"]["file"]
    path = world.folder / "recordings" / name
    await eventually(path.exists, "the recording")
    await eventually(lambda: open_files(world) == 0, "complete files")
    whole = path.read_bytes()
    assert b"WAVEfmt " not in whole  # four letters may be there by chance
    target = tmp_path / f"{name}.wav"
    assert decrypt(path, target, [KEY]) == ""
    audio = target.read_bytes()[58:]
    seconds = record["recording"].get("seconds", len(audio) / 16000)
    assert len(audio) == seconds * 16000
    return audio


def open_files(world: GatewayStack) -> int:
    """Recordings that the gateway has open, by their locks."""
    import fcntl

    count = 0
    for path in (world.folder / "recordings").glob("*.*"):
        with path.open("rb") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
            except OSError:
                count += 1
    return count


def assert_as_heard(call: PhoneCall, audio: bytes, *, whole: bool = True) -> None:
    """Every packet at the ear has its place in the file; each of them, if it is a whole one."""
    heard = audio[1::2]
    frames = [heard[at : at + FRAME] for at in range(0, len(heard), FRAME)]
    packets = call.rtp.packets
    loud = [n for n, packet in enumerate(packets) if not is_silence(packet)]
    offset = next(
        frames.index(packets[n].payload) - n for n in loud if packets[n].payload in frames
    )
    for n, packet in enumerate(packets):
        if 0 <= n + offset < len(frames):
            assert packet.payload == frames[n + offset], f"frame {n} of {len(packets)}"
    if whole:
        assert all(0 <= n + offset < len(frames) for n in loud), "what was heard is in the file"


SEEDS = int(os.environ.get("RECORDED_CALLS", "3"))


@pytest.mark.parametrize("seed", range(SEEDS))
async def test_interruptions_are_in_the_file_as_the_caller_heard_them(
    world: GatewayStack, tmp_path: Path, seed: int
) -> None:
    world.behave(**interrupted(seed))
    call = await world.dial("recorded")
    said = [noise(10 * seed + number, 0.6) for number in range(2)]
    call.rtp.say(said[0])
    session = await world.session_of(call)
    await session.wait_until(lambda s: len(s.sent("input_audio_buffer.speech_started")) >= 6, 30)
    await call.rtp.heard_bytes(len(call.rtp.packets) * FRAME + 16_000)
    call.rtp.say(said[1])
    await call.rtp.quiet()
    await call.rtp.heard_bytes(len(call.rtp.packets) * FRAME + 1_600)
    await world.summary_at_end(call)
    record = await world.record(call)
    assert len(record["interruptions"]) >= 3
    audio = await file_of(world, record, tmp_path)
    assert_as_heard(call, audio)
    # A gateway that stands still for a second leaves out some of what the caller says then, and for
    # as long afterwards, until the file is in step again.
    lost = [missing_frames(one, audio[::2]) for one in said]
    assert [] in lost, lost
    told = record["recording"]
    assert (told["state"], told["consent"], told["encryption"]) == ("stopped", "", "age")
    assert told["dropped_frames"] == 0
    assert told["silenced_seconds"] == 0


PROMPT = {"kind": "pattern", "seconds": 0.4, "seed": 900}
GREETING = {"kind": "pattern", "seconds": 0.4, "seed": 901}


async def prompt_heard(world: GatewayStack, call: PhoneCall) -> None:
    """Wait until all of the prompt came to the ear."""
    session = await world.session_of(call)
    await session.wait_until(lambda s: len(s.sent("response.done")) >= 1, 20)
    said = next(iter(session.sent_items.values()))
    await call.rtp.until(lambda: bytes(said)[-FRAME:] in call.rtp.heard)


@pytest.mark.parametrize(
    ("key", "state", "consent"),
    [("1", "stopped", "given"), ("2", "refused", "refused")],
    ids=["yes", "no"],
)
async def test_who_is_asked_decides(
    world: GatewayStack, tmp_path: Path, key: str, state: str, consent: str
) -> None:
    world.behave(vad="off", answers=[PROMPT, GREETING, {"kind": "silent"}])
    call = await world.dial("asked")
    await world.gateway.wait("call.recording_asked", call=call.call_id)
    await prompt_heard(world, call)
    call.rtp.press(key)
    session = await world.session_of(call)
    await session.wait_until(lambda s: len(s.sent("response.done")) >= 2, 20)
    prompt, greeting = (bytes(item) for item in session.sent_items.values())
    await call.rtp.until(lambda: greeting[-FRAME:] in call.rtp.heard)
    await world.summary_at_end(call)
    record = await world.record(call)
    told = record["recording"]
    assert (told["state"], told["consent"]) == (state, consent)
    assert record["digits"] == [], "the key was for the question"
    if key == "1":
        heard = (await file_of(world, record, tmp_path))[1::2]
        assert greeting[:800] in heard
        assert prompt[:FRAME] not in heard
    else:
        assert told["file"] == ""
        assert not list((world.folder / "recordings").glob(f"*_{record['call_id']}.*"))


@pytest.mark.parametrize(
    ("words", "state", "consent"),
    [
        ("Yes, that is fine.", "stopped", "given"),
        ("No, thank you.", "refused", "refused"),
        ("Yes. No, wait, no!", "refused", "refused"),
        ("What do you mean?", "unanswered", "unanswered"),
    ],
)
async def test_who_is_asked_may_say_it(
    world: GatewayStack, words: str, state: str, consent: str
) -> None:
    answers = [PROMPT, GREETING, {"kind": "silent"}]
    world.behave(vad="off", answers=answers, transcripts=[words])
    call = await world.dial("asked")
    await world.gateway.wait("call.recording_asked", call=call.call_id)
    await prompt_heard(world, call)
    session = await world.session_of(call)
    world.emulator.live[session.id].session.pretend_speech(100)
    event = "recording_started" if consent == "given" else "recording_refused"
    await world.gateway.wait(f"call.{event}", call=call.call_id)
    told = (await world.summary_at_end(call))["recording"]
    assert (told["state"], told["consent"]) == (state, consent)
    assert bool(told["file"]) is (consent == "given")


async def test_a_no_after_the_announcement_deletes_what_there_is(world: GatewayStack) -> None:
    world.behave(vad="off", answers=[PROMPT, GREETING, {"kind": "silent"}])
    call = await world.dial("told")
    await world.gateway.wait("call.recording_started", call=call.call_id)
    call.rtp.press("2")
    stopped = await world.gateway.wait("call.recording_stopped", call=call.call_id)
    assert stopped["deleted"]
    await world.summary_at_end(call)
    record = await world.record(call)
    assert record["recording"]["state"] == "refused"
    pattern = f"*_{record['call_id']}.*"
    await eventually(lambda: not list((world.folder / "recordings").glob(pattern)), "no file")


async def test_an_announcement_that_the_caller_cuts_off_is_said_again(
    world: GatewayStack, tmp_path: Path
) -> None:
    cut = {"kind": "pattern", "seconds": 60, "seed": 905}
    answer = {"kind": "pattern", "seconds": 1, "seed": 906}
    world.behave(vad="off", answers=[cut, answer, PROMPT, GREETING, {"kind": "silent"}])
    call = await world.dial("told")
    await call.rtp.until(lambda: len(call.rtp.heard) > 10 * FRAME)
    session = await world.session_of(call)
    world.emulator.live[session.id].session.pretend_speech(100)
    await session.wait_until(lambda s: len(s.sent("response.done")) >= 4, 40)
    _cut, answered, prompt, greeting = (bytes(item) for item in session.sent_items.values())
    await call.rtp.until(lambda: greeting[-FRAME:] in call.rtp.heard)
    record = await world.summary_at_end(call)
    assert record["recording"]["consent"] == "announced"
    heard = (await file_of(world, record, tmp_path))[1::2]
    assert greeting[:800] in heard
    assert answered[-FRAME:] not in heard, "it was recorded before they were told"
    assert prompt[:FRAME] not in heard


async def test_the_tool_starts_pauses_and_stops_it(world: GatewayStack, tmp_path: Path) -> None:
    def act(action: str, seed: int) -> dict[str, Any]:
        tool = {"name": "record_call", "arguments": f'{{"action": "{action}"}}'}
        return {"kind": "pattern", "seconds": 0.6, "seed": seed, "tools": [tool]}

    answers = [act("start", 910), act("pause", 911), act("resume", 912), act("stop", 913)]
    world.behave(vad="off", answers=[*answers, {"kind": "pattern", "seconds": 0.4, "seed": 914}])
    call = await world.dial("wanted")
    await world.gateway.wait("call.recording_stopped", call=call.call_id)
    await world.summary_at_end(call)
    record = await world.record(call)
    told = record["recording"]
    assert (told["state"], told["started_by"]) == ("stopped", "tool")
    assert told["silenced_seconds"] > 0
    assert {use["outcome"] for use in record["tools"]} == {"done"}
    await file_of(world, record, tmp_path)


async def test_an_operator_controls_and_reads_it(world: GatewayStack, tmp_path: Path) -> None:
    world.behave(vad="off", answers=[{"kind": "pattern", "seconds": 60, "seed": 920}])
    call = await world.dial("wanted")
    call_id = (await world.gateway.wait("call.confirmed", call=call.call_id))["call"]
    path = f"/api/v1/calls/{call_id}/recording"
    async with Client(world, "readonly") as http:
        assert (await http.post(path, json={"action": "start"})).status_code == 403
        assert (await http.get(path)).status_code == 403
    async with Client(world, "operator") as http:
        assert (await http.get(path)).status_code == 404
        assert (await http.post(path, json={"action": "pause"})).status_code == 409
        started = await http.post(path, json={"action": "start"})
        assert started.json() == {"call": call_id, "state": "recording"}
        before = len(call.rtp.packets)
        await call.rtp.until(lambda: len(call.rtp.packets) > before + 50)
        assert (await http.post(path, json={"action": "stop"})).json()["state"] == "stopped"
        await world.summary_at_end(call)
        record = await world.record(call)
        audio = await file_of(world, record, tmp_path)
        assert_as_heard(call, audio, whole=False)
        got = await http.get(path)
        assert (
            got.content == (world.folder / "recordings" / record["recording"]["file"]).read_bytes()
        )
        part = await http.get(path, headers={"Range": "bytes=0-19"})
        assert (part.status_code, part.content) == (206, got.content[:20])
        wrong = await http.get("/api/v1/calls/..%2F..%2Frecords/recording")
        assert wrong.status_code == 404
    await world.gateway.wait("api.audit", action="recording.read", call=call_id)
    audited = [line["action"] for line in world.gateway.all("api.audit", call=call_id)]
    assert audited == ["recording"] * 3 + ["recording.read"], "its parts are not logged again"


async def test_a_stopped_recording_is_deleted_during_the_call(world: GatewayStack) -> None:
    world.behave(vad="off", answers=[{"kind": "pattern", "seconds": 2, "seed": 921}])
    call = await world.dial("wanted")
    call_id = (await world.gateway.wait("call.confirmed", call=call.call_id))["call"]
    path = f"/api/v1/calls/{call_id}/recording"
    folder = world.folder / "recordings"
    before = {one.name for one in folder.glob("*.wav*")}
    async with Client(world, "operator") as http:
        for action in ("start", "stop", "delete"):
            await call.rtp.heard_bytes(len(call.rtp.packets) * FRAME + 6400)
            assert (await http.post(path, json={"action": action})).status_code == 200
        # The recorder's thread deletes it, after the answer.
        gone = lambda: {one.name for one in folder.glob("*.wav*")} == before  # noqa: E731
        await eventually(gone, "no file")
        assert (await http.get(path)).status_code == 404
        assert (await http.post(path, json={"action": "delete"})).status_code == 409
    record = (await world.summary_at_end(call))["recording"]
    assert (record["state"], record["file"]) == ("deleted", "")


KILLED_CALLS = int(os.environ.get("KILLED_CALLS", "3"))


async def test_files_of_a_killed_process_play(own_folder: Path) -> None:
    made = GatewayStack(own_folder, more=WORLD["more"], routes=WORLD["routes"])
    await made.start()
    made.behave(vad="off", answers=[{"kind": "pattern", "seconds": 20, "seed": 930}])
    for _ in range(KILLED_CALLS):
        await made.dial("recorded")
    folder = own_folder / "recordings"

    def written() -> list[Path]:
        """The files that have a second of both sides: two bytes for each sample."""
        return [one for one in folder.glob("*.wav.sealed") if one.stat().st_size > 20_000]

    await eventually(lambda: len(written()) == KILLED_CALLS, "a second in each file")
    made.gateway.kill()
    files = sorted(written())
    for number, path in enumerate(files):
        assert b"WAVEfmt " not in path.read_bytes()
        plain = own_folder / f"plain-{number}.wav"
        decrypt(path, plain, [KEY])
        with soundfile.SoundFile(plain) as sound:
            assert sound.frames >= 8000, "all that was written"
    await made.phone.stop()
    await made.emulator.stop()


@pytest.mark.parametrize("whom", ["anna", "briefed"])
async def test_the_colleague_is_recorded_after_a_transfer(
    world: GatewayStack, callee: CalledPhone, tmp_path: Path, whom: str
) -> None:
    """Their briefing is in a file of its own."""
    tool = {"name": "transfer_call", "arguments": f'{{"destination": "{whom}"}}'}
    briefing = {"kind": "pattern", "seconds": 0.6, "seed": 950}
    world.behave(vad="off", answers=[{"kind": "nothing", "tools": [tool]}], out_of_band=briefing)
    call = await world.dial("handed")
    there = await callee.called()
    words = pattern(950, 4800)
    if whom == "briefed":
        await there.rtp.until(lambda: share_heard(words, there.rtp.heard) > 0.8)
        there.rtp.say(private := noise(42, 0.4))
        await there.rtp.quiet()
        there.rtp.press("1")
    await world.gateway.wait("call.bridged", call=call.call_id)
    said, answered = await asyncio.gather(
        is_heard_by(there.rtp, call.rtp, 40), is_heard_by(call.rtp, there.rtp, 41)
    )
    await call.hang_up()
    record = await world.record(call)
    audio = await file_of(world, record, tmp_path)
    assert share_heard(said[4800:], audio[::2]) > 0.8
    (leg,) = record["b_legs"]
    if whom == "anna":
        assert_as_heard(call, audio)
        assert leg["recording"] == ""
        return
    assert share_heard(words, audio[1::2]) < 0.1
    briefed = await file_of(world, {"recording": {"file": leg["recording"]}}, tmp_path)
    assert share_heard(words, briefed[1::2]) > 0.8
    assert share_heard(private, briefed[::2]) > 0.8
    assert share_heard(answered[4800:], briefed[::2]) < 0.1


async def test_a_file_that_cannot_be_written_is_a_failed_recording(
    world: GatewayStack, tmp_path: Path
) -> None:
    folder, kept = world.folder / "recordings", world.folder / "kept"
    async with Client(world) as http:

        async def told(name: str, count: int) -> bool:
            return bool((await http.get("/api/v1/status")).json()["recordings"][name] == count)

        # One that is still to be opened would make the folder anew.
        await eventually(lambda: told("open", 0), "the files of the calls before")
        folder.rename(kept)
        folder.write_text("")
        try:
            call = await world.dial("recorded")
            await world.gateway.wait("recording.write_failed", level="error")
            await eventually(lambda: told("failing", 1), "what is not written")
            await call.rtp.until(lambda: sum(not is_silence(p) for p in call.rtp.packets) > 10)
            assert (await world.summary_at_end(call))["recording"]["state"] == "failed"
        finally:
            # In one step: the thread that tries again would make a folder in between.
            (link := world.folder / "link").symlink_to(kept)
            link.replace(folder)
    # There is room again: the file comes, though its call is over.
    call_id = (await world.summary(call))["call"]
    await world.gateway.wait("recording.write_resumed", call=call_id)
    record = await world.record(call)
    assert_as_heard(call, await file_of(world, record, tmp_path), whole=False)


async def test_what_was_uploaded_is_deleted_and_erased_there(own_folder: Path) -> None:
    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    server = ThreadedMotoServer("127.0.0.1", 0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    storage = Storage(f"http://{host}:{port}", "calls", "", "us-east-1", "key", "secret")
    client = storage.client()
    client.make_bucket("calls")
    upload = f"[recording.upload]\nendpoint = '{storage.endpoint}'\nbucket = 'calls'\n"
    upload += "region = 'us-east-1'\naccess_key = 'key'\nsecret_key = 'secret'\n"
    made = GatewayStack(own_folder, more=WORLD["more"] + upload, routes=WORLD["routes"])
    await made.start()

    async def there() -> set[str]:
        found = await asyncio.to_thread(lambda: list(client.list_objects("calls")))
        return {str(one.object_name).split("_")[1].split(".")[0] for one in found}

    async def are(*calls: str) -> bool:
        return await there() == set(calls)

    try:
        made.behave(vad="off", answers=[{"kind": "pattern", "seconds": 20, "seed": 940}])
        ids = []
        for user in ("recorded", "wanted"):
            call = await made.dial(user)
            line = await made.gateway.wait("call.confirmed", call=call.call_id)
            ids.append(line["call"])
        path = f"/api/v1/calls/{ids[1]}/recording"
        async with Client(made, "operator") as http:
            for action in ("start", "stop"):
                assert (await http.post(path, json={"action": action})).status_code == 200
            await eventually(lambda: are(ids[1]), "the upload")
            assert (await http.post(path, json={"action": "delete"})).status_code == 200
            await eventually(are, "nothing there")
        await made.summary_at_end(call)
        for other in list(made.phone.calls.values()):
            await other.hang_up()
        await eventually(lambda: are(ids[0]), "the other upload")
    finally:
        await made.stop()
    erased = await Forked.command("erase", "tester", "-c", made.gateway.config)
    told, _ = await erased.communicate()
    assert b"2 recordings" in told
    assert await are()
    assert not list((own_folder / "recordings").glob("*.wav*"))
    server.stop()
