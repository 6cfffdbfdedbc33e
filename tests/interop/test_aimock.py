# SPDX-License-Identifier: GPL-2.0-or-later
"""Calls through aimock, a mock of the Live API by other people, unmodified.

It is installed from npm into the cache, once (``aimock/package-lock.json`` pins it). It knows one
model, ``gpt-live-1``, and one format, 24 kHz PCM. Between gateway and emulator it checks what both
send, and writes it down as a fixture; alone it plays a fixture to a call, whose audio has to be
that of the fixture, byte for byte.
"""

from __future__ import annotations

import asyncio
import base64
import json
import os
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from gateway.devtools.speech import PCM_RATE, tones
from tests.interop.lab.debian import locked
from tests.interop.lab.ports import free_port
from tests.interop.lab.process import Process
from tests.support.harness import GatewayStack, eventually

pytestmark = pytest.mark.interop

LOCKED = Path(__file__).parent / "aimock"
INSTALL_S = 120
NODE = 20
START_S = 60

ROUTE = """
[[route]]
name = "{name}"
to = "^{name}$"
fallback = []
[route.realtime]
url = "ws://127.0.0.1:{port}/v1/live/sessions"
api_key = "{{key}}"
model = "gpt-live-1"
audio = "pcm24"
[route.live]
instructions = "You are the receptionist of a small hotel."
delegation.type = "client"
"""
GREETING = """[route.greeting]
say = "Good morning."
"""
SESSION = {
    "model": "gpt-live-1",
    "instructions": "You are the receptionist of a small hotel.",
    "audio": {"format": {"type": "audio/pcm", "rate": PCM_RATE}},
    "delegation": {"type": "client"},
}
BYTES_PER_MS = 2 * PCM_RATE // 1000
TONE_MS = 1000
CALL_MS = 3000


@pytest.fixture(scope="module")
def llmock() -> Path:
    """Its program, installed."""
    if shutil.which("npm") is None or shutil.which("node") is None:
        pytest.skip("npm or node is missing")
    found = subprocess.run(["node", "--version"], capture_output=True, text=True, check=True)
    if int(found.stdout.strip().removeprefix("v").split(".")[0]) < NODE:
        pytest.skip(f"node {NODE} or newer is needed")
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    wanted = json.loads((LOCKED / "package.json").read_text())["dependencies"]
    version = wanted["@copilotkit/aimock"]
    folder = cache / "sip-realtime-gateway" / f"aimock-{version}"
    program = folder / "node_modules/.bin/llmock"
    with locked(folder):
        if not program.exists():
            for file in LOCKED.iterdir():
                shutil.copy(file, folder)
            command = ("npm", "ci", "--ignore-scripts", "--no-audit", "--no-fund")
            subprocess.run(command, cwd=folder, check=True, timeout=INSTALL_S)
    return program


def _sent(at_ms: int, event: dict[str, Any], command: int, audio_ms: int) -> dict[str, Any]:
    """A server's entry: sent once so many commands, and so much audio after them, have come."""
    barrier = {"command": command, "audioBytes": audio_ms * BYTES_PER_MS}
    return {"direction": "server", "atMs": at_ms, "event": event, "barrier": barrier}


def fixture() -> dict[str, Any]:
    """A session that says a tone to a silent caller, and ends after :data:`CALL_MS` of it."""
    resource = {**SESSION, "id": "live-1", "expires_at": 2_000_000_000, "status": "active"}
    session: dict[str, Any] = {"session": resource}
    start = {"type": "session.start", "event_id": "c-1", "session": SESSION}
    started = {"type": "session.started", "event_id": "s-1", "client_event_id": "c-1", **session}
    entries: list[dict[str, Any]] = [
        {"direction": "client", "atMs": 0, "event": start},
        _sent(0, started, 1, 0),
    ]
    for at in range(0, 2 * CALL_MS, 1000):  # More than will come: the end comes before.
        audio = base64.b64encode(bytes(1000 * BYTES_PER_MS)).decode()
        event = {"type": "session.input_audio.append", "audio": audio}
        entries.append({"direction": "client", "atMs": at, "event": event})
    pcm = tones([1000], TONE_MS / 1000, -12) + bytes((CALL_MS - TONE_MS) * BYTES_PER_MS)
    for at in range(0, CALL_MS, 100):
        part = base64.b64encode(pcm[at * BYTES_PER_MS : (at + 100) * BYTES_PER_MS]).decode()
        event = {"type": "session.output_audio.delta", "delta": part}
        entries.append(_sent(2 * CALL_MS, event, 1, at))
    usage = {"usage": {"seconds": CALL_MS / 1000}}
    closed = {"type": "session.closed", "event_id": "s-2", "reason": "remote_hangup"}
    entries.append(_sent(2 * CALL_MS, {**closed, **session, **usage}, 1, CALL_MS))
    last = len(entries) - 1
    names = [
        (0, "/event_id", "start", "define", "client"),
        (1, "/event_id", "started", "define", "server"),
        (1, "/client_event_id", "start", "reference", "client"),
        (1, "/session/id", "session", "define", "server"),
        (last, "/event_id", "closed", "define", "server"),
        (last, "/session/id", "session", "reference", "server"),
    ]
    keys = ("entry", "pointer", "name", "action", "owner")
    live = {
        "version": 1,
        "model": "gpt-live-1",
        "mode": "client",
        "audio": {"encoding": "pcm16le", "sampleRateHz": PCM_RATE, "channels": 1},
        "configuration": SESSION,
        "entries": entries,
        "bindings": [dict(zip(keys, name, strict=True)) for name in names],
        "capture": {"source": "authored", "complete": True, "terminalEntry": last},
    }
    match = {"endpoint": "openai-live", "model": "gpt-live-1"}
    response = {"live": live, "liveTiming": "immediate"}
    return {"fixtures": [{"match": match, "response": response}]}


async def _listening(port: int, process: Process) -> None:
    async with asyncio.timeout(START_S):
        while True:
            assert process.running, process.log.read_text()
            try:
                _, writer = await asyncio.open_connection("127.0.0.1", port)
            except OSError:
                await asyncio.sleep(0.05)
            else:
                writer.close()
                return


@pytest.fixture(scope="module")
def recorded(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where aimock writes what passes through it."""
    return tmp_path_factory.mktemp("recorded")


@pytest.fixture(scope="module")
def stack(
    runner: asyncio.Runner,
    llmock: Path,
    recorded: Path,
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[GatewayStack]:
    """A gateway with a route through aimock to the emulator, and one to aimock alone."""
    folder = tmp_path_factory.mktemp("aimock")
    (folder / "fixture.json").write_text(json.dumps(fixture()))
    ports = [free_port("127.0.0.1") for _ in range(2)]
    routes = ROUTE.format(name="proxied", port=ports[0]) + GREETING
    made = GatewayStack(
        folder / "gateway", routes=routes + ROUTE.format(name="mocked", port=ports[1])
    )
    started: list[Process] = []

    async def start(name: str, port: int, *options: str) -> None:
        command = (str(llmock), "-p", str(port), *options)
        process = Process(command, folder, folder / f"{name}.log")
        started.append(process)
        await process.start()
        await _listening(port, process)

    try:
        runner.run(made.start())
        upstream = f"http://127.0.0.1:{made.emulator.port}"
        record = ("--record", "--provider-openai", upstream, "-f", str(recorded))
        runner.run(start("proxied", ports[0], *record))
        runner.run(start("mocked", ports[1], "--strict", "-f", str(folder / "fixture.json")))
        yield made
        runner.run(made.stop())
    finally:
        for process in started:
            runner.run(process.stop())


async def test_a_call_through_the_mock_to_the_emulator(stack: GatewayStack, recorded: Path) -> None:
    """What both sides send passes its checks: only then is there a recording."""
    call = await stack.dial("proxied")
    session = await stack.session_of(call)
    await eventually(lambda: set(call.rtp.heard) > {0xFF}, "the greeting is heard", within_s=30)
    call.rtp.press("5")
    await session.wait_until(lambda one: bool(one.sent("session.thinking.appended")), 30)
    await stack.summary_at_end(call)
    await session.wait_until(lambda one: not one.live, 30)
    assert [event.type for event in session.client_events][-1] == "session.close"
    found: list[dict[str, Any]] = []

    def written_down() -> bool:
        with suppress(ValueError):  # it is being written
            found[:] = [json.loads(file.read_text()) for file in recorded.rglob("*.json")]
        return bool(found)

    await eventually(written_down, "it is written down", within_s=30)
    (written,) = [one for file in found for one in file["fixtures"]]
    types = {entry["event"]["type"] for entry in written["response"]["live"]["entries"]}
    assert {"session.start", "session.commentary.append", "session.closed"} <= types


async def test_a_call_with_the_mock_alone(stack: GatewayStack) -> None:
    """A silent caller hears the fixture's tone, and the end of the session ends the call."""
    call = await stack.dial("mocked")
    await call.hung_up(within_s=20)
    loud = len(call.rtp.heard.replace(b"\xff", b"").replace(b"\x7f", b""))
    assert abs(loud / 8 - TONE_MS) < 100
    record = await stack.record(call)
    assert record["cost"]["session_seconds"] == CALL_MS / 1000
