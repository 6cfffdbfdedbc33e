# SPDX-License-Identifier: GPL-2.0-or-later
"""The emulator under bad clients, many clients and none: nothing crashes, nothing is left."""

from __future__ import annotations

import asyncio
import json
import os
import random
import re
import signal
import sys
import wave
from pathlib import Path

import pytest
from websockets.asyncio.client import connect

from gateway.devtools.emulator import Emulator, run
from gateway.devtools.emulator.script import ScriptError
from gateway.devtools.speech import PCMU, pattern, synthesise
from tests.support.emulator_client import PCMU_SESSION, phone, session, with_emulator
from tests.support.harness import eventually


async def gone(emulator: Emulator) -> None:
    """Wait until every session so far is over."""
    for record in list(emulator.sessions):
        await record.wait_until(lambda record: not record.live, 30)


def test_a_hundred_sessions_at_once() -> None:
    async def many() -> None:
        async with Emulator(keep_sessions=200) as emulator:
            tasks_before = asyncio.all_tasks()

            async def one(number: int) -> None:
                async with phone(
                    emulator, "pattern", answer__seed=number, answer__seconds=2, speed=20
                ) as client:
                    await client.append(PCMU.silence(200))
                    response = await client.answered()
                    assert client.audio() == pattern(number, 16_000)
                    assert response["usage"]["output_token_details"]["audio_tokens"] == 40

            async with asyncio.timeout(30):
                await asyncio.gather(*(one(number) for number in range(100)))
            await gone(emulator)
            assert emulator.total_sessions == 100
            assert not emulator.live
            assert {record.close_code for record in emulator.sessions} == {1000}
            await eventually(lambda: asyncio.all_tasks() == tasks_before, "no task is left")

    asyncio.run(many())


def test_clients_that_leave_at_any_moment_leave_nothing_behind() -> None:
    async def leave(emulator: Emulator) -> None:
        tasks_before = asyncio.all_tasks()
        choice = random.Random(5)
        for number in range(30):
            url = emulator.url("pattern", model="m", answer__first_delay_ms=number)
            socket = await connect(url)
            await socket.send(json.dumps({"type": "session.update", "session": PCMU_SESSION}))
            await socket.send('{"type":"response.create"}')
            for _ in range(choice.randrange(12)):
                await socket.recv()
            if number % 2:
                socket.transport.abort()
            await socket.close()
        await gone(emulator)
        assert not emulator.live
        await eventually(lambda: asyncio.all_tasks() == tasks_before, "no task is left")

    with_emulator(leave)


def test_garbage_and_huge_messages() -> None:
    async def garbage(emulator: Emulator) -> None:
        noise = random.Random(7)
        parts = ["type", "session", "audio", "item", "response", "event_id", "content", "id"]
        values: list[object] = [
            None,
            1,
            -1e308,
            "",
            "x" * 50,
            [],
            {},
            [{}],
            True,
            "\ud800",
            "response.create",
        ]

        def value(depth: int) -> object:
            if depth and noise.random() < 0.5:
                return {noise.choice(parts): value(depth - 1) for _ in range(3)}
            return noise.choice(values)

        kinds = [
            "session.update",
            "conversation.item.create",
            "conversation.item.truncate",
            "response.create",
            "input_audio_buffer.append",
        ]
        async with session(emulator, "silent") as client:
            await client.until("session.created")
            for _ in range(300):
                event = {noise.choice(parts): value(3) for _ in range(4)}
                event["type"] = noise.choice([*kinds, value(1)])
                await client.socket.send(json.dumps(event))
            huge = "A" * (24 * 1024 * 1024)
            await client.send("input_audio_buffer.append", audio=huge)
            await client.say("B" * 3_000_000)
            await client.send("session.update", session={"type": "realtime", "instructions": huge})
            await client.send("session.update", session={"type": "realtime", "tool_choice": "none"})
            while client.events[-1].get("session", {}).get("tool_choice") != "none":
                await client.receive()
            assert emulator.sessions[-1].errors

    with_emulator(garbage)


def test_a_client_that_does_not_read_is_not_buffered_for_without_end() -> None:
    async def deaf() -> None:
        emulator = Emulator()
        await emulator.start()
        url = emulator.url("burst", answer__seconds=600, model="m")  # 38 MB on the wire in PCM
        async with connect(url, max_queue=1, close_timeout=0.1) as socket:
            await socket.send('{"type":"response.create"}')
            record = emulator.sessions[-1]
            await record.wait_until(lambda record: record.sent_total > 100_000, 30)
            async with asyncio.timeout(30):
                await emulator.stop()
            assert record.sent_total < 600 * 48_000
            assert not record.live
        await eventually(lambda: len(asyncio.all_tasks()) == 1, "no task is left")

    asyncio.run(deaf())


def test_memory_of_sessions_is_bounded() -> None:
    async def bounded(emulator: Emulator) -> None:
        for _ in range(4):
            async with phone(emulator, "pattern", answer__seconds=2, speed=500) as client:
                await client.append(PCMU.silence(2000), 4000)
                await client.answered()
        await gone(emulator)
        assert len(emulator.sessions) == 2
        assert emulator.total_sessions == 4
        record = emulator.sessions[-1]
        assert len(record.received) <= 5000
        assert sum(map(len, record.sent_items.values())) <= 5000
        assert record.received_total == record.sent_total == 16_000
        assert record.left_out > 0

    with_emulator(bounded, keep_sessions=2, audio_limit=5000)


def test_record_folder(tmp_path: Path) -> None:
    pcm, rate = synthesise("Good morning.", "ash")
    audio = PCMU.encode(pcm, rate) + PCMU.silence(800)

    async def record(emulator: Emulator) -> None:
        async with phone(emulator, speed=200) as client:
            await client.append(audio)
            await client.done()
        await gone(emulator)
        session_id = emulator.sessions[-1].id
        lines = [
            json.loads(line) for line in (tmp_path / f"{session_id}.jsonl").read_text().splitlines()
        ]
        types = [line["event"]["type"] for line in lines]
        assert types[0] == "session.created"
        assert types[-1] == "close"
        assert [line["at"] for line in lines] == sorted(line["at"] for line in lines)
        delta = next(line for line in lines if line["event"]["type"].endswith("audio.delta"))
        assert delta["from"] == "server"
        assert delta["event"]["audio_bytes"] == 1600
        assert "delta" not in delta["event"]
        appended = [
            line["event"]["audio_bytes"]
            for line in lines
            if line["event"]["type"] == "input_audio_buffer.append"
        ]
        assert sum(appended) == len(audio)
        with wave.open(str(tmp_path / f"{session_id}-caller.wav")) as reader:
            assert reader.getframerate() == 8000
            assert reader.readframes(10**7) == PCMU.decode(audio)

    with_emulator(record, record=tmp_path)


def test_run_serves_until_a_signal(tmp_path: Path) -> None:
    script = tmp_path / "script.toml"
    script.write_text('answer = { kind = "say", text = "From the file." }\nspeed = 200.0')
    program = (
        "import sys; from pathlib import Path; from gateway.devtools.emulator import run;"
        "run('127.0.0.1:0', Path(sys.argv[1]))"
    )

    async def serve() -> None:
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-c", program, str(script), stdout=asyncio.subprocess.PIPE
        )
        assert process.stdout is not None
        try:
            async with asyncio.timeout(60):
                line = (await process.stdout.readline()).decode()
                assert "emulator" in line
                found = re.search(r"ws://[\d.:]+/v1/realtime", line)
                assert found is not None
                url = found[0]
                async with connect(f"{url}?model=m") as socket:
                    await socket.send('{"type":"response.create"}')
                    said = ""
                    while not said:
                        event = json.loads(await socket.recv())
                        if event["type"] == "response.done":
                            said = event["response"]["output"][0]["content"][0]["transcript"]
                    assert said == "From the file."
                    os.kill(process.pid, signal.SIGTERM)
                    await socket.wait_closed()
                    assert socket.close_code == 1001
                assert await process.wait() == 0
        finally:
            if process.returncode is None:
                process.kill()
                await process.wait()

    asyncio.run(serve())


def test_run_refuses_what_it_cannot_use(tmp_path: Path) -> None:
    for listen in ("8765", "127.0.0.1:", "127.0.0.1:99999", "host:port"):
        with pytest.raises(ValueError, match="HOST:PORT"):
            run(listen)
    bad = tmp_path / "bad.toml"
    bad.write_text("colour = 1")
    with pytest.raises(ScriptError, match="colour"):
        run("127.0.0.1:0", bad)
