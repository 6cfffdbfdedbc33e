# SPDX-License-Identifier: GPL-2.0-or-later
"""LiteLLM's proxy between gateway and realtime server, unmodified.

Its environment is 750 MB and takes minutes to install, so it is made only when this file is asked
for by name (``make interop INTEROP=tests/interop/test_litellm.py``), and used by every run after.
"""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest

from gateway.devtools.emulator import Emulator
from gateway.devtools.emulator.script import Script
from tests.interop.lab.ports import free_port
from tests.interop.lab.process import Process
from tests.support.harness import GatewayStack

pytestmark = [pytest.mark.interop, pytest.mark.timeout(700)]

VERSION = "1.108.7"
INSTALL_S = 500
START_S = 90

CONFIG = """
model_list:
  - model_name: gpt-realtime-2.1
    litellm_params:
      model: openai/gpt-realtime-2.1
      api_base: http://127.0.0.1:{port}
      api_key: upstream-key
    model_info:
      mode: realtime
general_settings:
  master_key: sk-proxy-key
"""

ROUTE = """
[[route]]
name = "proxied"
to = "^proxied$"
[route.realtime]
url = "ws://127.0.0.1:{port}/v1/realtime"
api_key = "sk-proxy-key"
[route.greeting]
say = "Hello."
"""


@pytest.fixture(scope="module")
def environment(request: pytest.FixtureRequest) -> Path:
    """A virtual environment with LiteLLM's proxy, kept in the cache."""
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    folder = cache / "sip-realtime-gateway" / f"litellm-{VERSION}"
    done = folder / "installed"
    if not done.exists():
        if not any("litellm" in argument for argument in request.config.args):
            pytest.skip(f"LiteLLM is not in {folder}: run this file by its name once")
        subprocess.run([sys.executable, "-m", "venv", folder], check=True)
        install = ("-m", "pip", "install", "--quiet", f"litellm[proxy]=={VERSION}")
        subprocess.run([folder / "bin/python", *install], check=True, timeout=INSTALL_S)
        done.touch()
    return folder


async def starts(proxy: Process, url: str) -> None:
    """Run the proxy until it answers."""
    await proxy.start()
    async with asyncio.timeout(START_S):
        while True:
            assert proxy.running, proxy.log.read_text()
            try:
                await asyncio.to_thread(urllib.request.urlopen, url, timeout=5)
                return
            except (urllib.error.URLError, OSError):
                await asyncio.sleep(0.2)


@pytest.fixture(scope="module")
def upstream(runner: asyncio.Runner) -> Iterator[Emulator]:
    """The realtime server behind the proxy."""
    made = Emulator(api_key="upstream-key", audio_limit=8_000_000)
    runner.run(made.start())
    yield made
    runner.run(made.stop())


@pytest.fixture(scope="module")
def stack(
    runner: asyncio.Runner,
    environment: Path,
    upstream: Emulator,
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[GatewayStack]:
    folder = tmp_path_factory.mktemp("litellm")
    (folder / "config.yaml").write_text(CONFIG.format(port=upstream.port))
    port = free_port("127.0.0.1")
    where = ("--config", "config.yaml", "--host", "127.0.0.1", "--port", str(port))
    proxy = Process([str(environment / "bin/litellm"), *where], folder, folder / "proxy.log")
    made = GatewayStack(folder / "gateway", routes=ROUTE.format(port=port))
    try:
        runner.run(starts(proxy, f"http://127.0.0.1:{port}/health/liveliness"))
        runner.run(made.start())
        yield made
        runner.run(made.stop())
    finally:
        runner.run(proxy.stop())


async def test_a_call_through_the_proxy(stack: GatewayStack, upstream: Emulator) -> None:
    """Audio passes byte for byte, and the truncation of a barge-in is exact."""
    answers = [{"kind": "pattern", "seconds": 3, "seed": seed} for seed in (7, 8)]
    upstream.script = Script.model_validate({"vad": "off", "answers": answers})
    call = await stack.dial("proxied")
    session = await upstream.wait_sessions(1, within_s=30)
    await session.wait_until(lambda s: bool(s.sent("response.done")), within_s=20)
    (greeting,) = session.sent_items.values()
    await call.rtp.until(lambda: bytes(greeting) in call.rtp.heard)
    upstream.live[session.id].session.pretend_speech(300)
    await session.wait_until(lambda s: len(s.sent_items) == 2, within_s=20)
    await call.rtp.until(
        lambda: bytes(list(session.sent_items.values())[1])[:4000] in call.rtp.heard
    )
    upstream.live[session.id].session.pretend_speech(300)
    await session.wait_until(lambda s: bool(s.truncations), within_s=20)
    (truncation,) = session.truncations
    assert 0 < truncation.requested_ms < 3000
    assert list(session.errors) == []
    await stack.summary_at_end(call)
